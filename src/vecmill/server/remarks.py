"""What is said of a repository whose folders do not mean what they seem to, each thing once."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from vecmill.core.errors import ConfigError
from vecmill.server import repository

log = logging.getLogger(__name__)

Named: TypeAlias = Mapping[str, tuple[str, Path | None]]
"""Of the models the operator named: specification, and where their versions are."""


def refuse_namesakes(root: Path, named: Named) -> None:
    """Refuse a repository that holds a model of a name that was given to another. Reads folders.

    The same folder may be named: its model then stays in memory. A repository that cannot be read is left to
    whoever looks at it next.

    Raises:
        ConfigError: Two models have one name.
    """
    try:
        found = repository.names(root)
    except OSError:
        return
    for name, folder in _namesakes(found, named).items():
        spec = named[name][0]
        raise ConfigError(
            f"two models are called {name}: {spec}, which was named, and {folder} of the repository; give "
            f"the first another name, as in --model NAME={spec}, or take the folder out of the repository"
        )


class Remarks:
    """Tells what is odd about a repository when it first is.

    Args:
        root: The repository.
        named: The models the operator named.
    """

    def __init__(self, root: Path, named: Named) -> None:
        self._root = root
        self._named = named
        self._namesakes: frozenset[str] = frozenset()
        self._misnamed: frozenset[str] = frozenset()
        self._begun = False

    def look(self, found: Mapping[str, Path]) -> None:
        """Look through the repository, in which these models were found. Reads folders.

        Raises:
            OSError: It cannot be read any more.
        """
        if not self._begun:
            self._begun = True
            self._tell_what_it_is(found)
        namesakes = frozenset(_namesakes(found, self._named))
        for name in sorted(namesakes - self._namesakes):
            log.warning(
                "model %s of the repository is not served: %s was named and has this name; rename the folder",
                name,
                self._named[name][0],
            )
        misnamed = frozenset(repository.misnamed(self._root))
        _tell_misnamed(sorted(misnamed - self._misnamed), found)
        self._namesakes, self._misnamed = namesakes, misnamed

    def _tell_what_it_is(self, found: Mapping[str, Path]) -> None:
        if repository.holds_versions(self._root):
            log.warning(
                "%s looks like one model with its versions: serve it with --model %s, or name the folder "
                "above it",
                self._root,
                self._root,
            )
        elif not found:
            log.warning(
                "no model in %s: expected NAME/VERSION/…, such as bge-small/1/config.json; a folder that is "
                "itself one model is served with --model",
                self._root,
            )


def _namesakes(found: Mapping[str, Path], named: Named) -> dict[str, Path]:
    return {
        name: folder for name, folder in found.items() if name in named and not _same(named[name][1], folder)
    }


def _same(one: Path | None, other: Path) -> bool:
    try:
        return one is not None and one.samefile(other)
    except OSError:  # one of them is not there any more
        return False


def _tell_misnamed(folders: Iterable[str], found: Mapping[str, Path]) -> None:
    for folder in folders:
        name, _, version = folder.rpartition("/")
        number = re.search(r"[1-9][0-9]*", version)
        right = f"{name}/{number.group() if number else '1'}"
        if folder in found:
            log.warning(
                "%s is taken for a model of this name: versions are whole numbers above 0, a version of %s "
                "would be %s",
                folder,
                name,
                right,
            )
        else:
            log.warning(
                "%s is no version and is not served: versions are whole numbers above 0, such as %s",
                folder,
                right,
            )
