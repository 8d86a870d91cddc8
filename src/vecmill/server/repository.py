"""Folders of model versions: which there are, and whether they are whole yet.

A repository holds `<name>/<version>/…`, where a name may have one "/" in it and a version is a whole number
above 0; a model folder without numbers is version 1 of itself. A version counts once its files have been left
alone: for a second by their own times, or between two looks a fifth of a second apart. Copying in progress is
therefore not served, and a folder renamed into place counts at once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from types import MappingProxyType
from typing import TypeAlias

from vecmill.core import errors
from vecmill.models.local import ovms_layout
from vecmill.models.local.files import inspect_folder

log = logging.getLogger(__name__)

Stamp: TypeAlias = tuple[tuple[str, int, int, int, int], ...]
"""Of every file below a folder: relative path, size, times of content and record, inode."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""A model's name in a repository."""

QUIET_SECONDS = 1.0
"""Files nobody touched for so long are whole."""

APART = 0.2
"""Looks that are nearer to each other say nothing: no copy writes without a pause."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_ALMOST = re.compile(r"(?:v|ver|version)?[-_.]?[0-9]+(?:[-_.][0-9]+)*", re.IGNORECASE)
_MODEL_FILES = ("config.json", "modules.json", "vecmill.json", ovms_layout.GRAPH)
_NO_NAMES: Mapping[str, Path] = MappingProxyType({})
_DEEPEST = 6
"""Folders below a version; a link that leads upwards ends here."""


@dataclass(frozen=True, slots=True)
class Found:
    """A version as it lies on disk.

    Attributes:
        version: "1", "2", …
        folder: What is opened.
        stamp: Of its files: other content, another stamp.
        newest: When a file of it was last touched, in nanoseconds since the epoch.
        size_bytes: Of all its files; see `loaded_bytes`.
    """

    version: str
    folder: Path
    stamp: Stamp
    newest: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in one look at a model's folder.

    Attributes:
        found: Versions by number.
        whole: Those whose files have been left alone.
        since: When each was first seen with the files it has, in seconds since the epoch.
    """

    found: Mapping[str, Found]
    whole: frozenset[str]
    since: Mapping[str, float] = field(default_factory=dict)

    def descending(self) -> list[Found]:
        """Return the versions, the highest first."""
        return sorted(self.found.values(), key=lambda found: -int(found.version))


NOTHING = Look({}, frozenset())


def look(folder: Path, before: Look = NOTHING, *, now: Callable[[], float] = time.time) -> Look:
    """Look at a model's versions. Reads names and times, never content.

    Args:
        folder: A folder of versions, or a model folder, which is version 1.
        before: What the last look found: what has been as it is now for `APART` seconds is whole.
        now: Seconds since the epoch.

    Raises:
        OSError: The folder is there and cannot be read.
    """
    places = (_found(version, place) for version, place in _versions(folder))
    found = {one.version: one for one in places if one.stamp}
    moment = now()
    oldest = (moment - QUIET_SECONDS) * 1e9
    alike = {v for v, one in found.items() if v in before.found and before.found[v].stamp == one.stamp}
    since = {version: before.since.get(version, moment) if version in alike else moment for version in found}
    whole = frozenset(
        version
        for version, one in found.items()
        if one.newest < oldest or (version in alike and moment - since[version] >= APART)
    )
    return Look(found, whole, since)


def loaded_bytes(found: Found) -> int:
    """Return the size of those files of a version that are loaded; reads its JSON files.

    A folder may hold the same weights in several formats, of which one is opened. One that cannot be read
    as a model counts with all its files.
    """
    try:
        return sum(path.stat().st_size for path in inspect_folder(found.folder).hashed)
    except (errors.Error, OSError, ValueError, TypeError, KeyError, AttributeError):
        return found.size_bytes


def names(root: Path, before: Mapping[str, Path] = _NO_NAMES) -> dict[str, Path]:
    """Return the models of a repository and where their versions are.

    Folders beginning with "." and names that cannot be asked for are left out.

    Args:
        root: The repository.
        before: What it was known to hold: of a folder that cannot be read this is still so.

    Raises:
        OSError: The repository cannot be read: it says nothing about its models then.
    """
    found: dict[str, Path] = {}
    for folder in _folders(root):
        try:
            found |= _models(folder)
        except OSError:  # such as the lost+found of a volume: the others do not depend on it
            found |= {name: path for name, path in before.items() if folder in (path, path.parent)}
    return {name: folder for name, folder in sorted(found.items()) if NAME.fullmatch(name)}


def has_versions(folder: Path) -> bool:
    """Say whether a folder holds numbered versions rather than one model."""
    return any(True for _ in _numbered(ovms_layout.versions_of(folder) or folder))


def holds_versions(root: Path) -> bool:
    """Say whether a repository is rather one model: its folders are numbers that hold no further ones.

    False also where this cannot be read.
    """
    try:
        return any(not has_versions(folder) and any(folder.iterdir()) for _, folder in _numbered(root))
    except OSError:
        return False


def misnamed(root: Path) -> list[str]:
    """Return the folders of a repository that seem to be versions and are none: "NAME/v1", "NAME/1.0".

    Of a folder that cannot be read there are none.

    Raises:
        OSError: The repository cannot be read.
    """
    found: list[str] = []
    for folder in _folders(root):
        try:
            found += (f"{folder.name}/{name}" for name in _misnamed(folder))
        except OSError:  # told where its model is looked at
            continue
    return found


def _misnamed(folder: Path) -> list[str]:
    found = _almost(folder)
    if not _is_model(folder):
        inner = (one for one in _folders(folder) if not _ALMOST.fullmatch(one.name))
        found += (f"{one.name}/{name}" for one in inner for name in _almost(one))
    return found


def _almost(folder: Path) -> list[str]:
    """Return what seems to be a version of a model, and is not one itself: "v3" of "jina/v3/1" is."""
    inner = _folders(ovms_layout.versions_of(folder) or folder)
    seem = (one for one in inner if _ALMOST.fullmatch(one.name) and not _VERSION.fullmatch(one.name))
    return [one.name for one in seem if not has_versions(one)]


def _models(folder: Path) -> dict[str, Path]:
    """Return the model a folder of the repository is, or those it holds."""
    if _is_model(folder):
        return {folder.name: folder}
    return {f"{folder.name}/{inner.name}": inner for inner in _folders(folder) if _is_model(inner)}


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MODEL_FILES) or has_versions(folder)


def _versions(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        return
    numbered = list(_numbered(ovms_layout.versions_of(folder) or folder))
    if numbered:
        yield from numbered
    elif any(path.is_file() for path in folder.iterdir()):
        yield "1", folder


def _numbered(folder: Path) -> Iterator[tuple[str, Path]]:
    for inner in _folders(folder):
        if _VERSION.fullmatch(inner.name):
            yield inner.name, inner


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        listed = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(Path(entry.path) for entry in listed if (stat := _stat(entry)) and S_ISDIR(stat.st_mode))


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what an entry of a folder is; None where it has vanished, or is a link that leads nowhere."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return None


def _found(version: str, folder: Path) -> Found:
    entries: list[tuple[str, int, int, int, int]] = []
    newest = 0
    for path in (folder, *ovms_layout.beside(folder)):
        for name, stat, is_folder in _walk(path, 0):
            newest = max(newest, stat.st_ctime_ns)
            if not is_folder:
                entries.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    entries.sort()
    return Found(version, folder, tuple(entries), newest, sum(entry[1] for entry in entries))


def _walk(path: Path, depth: int) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Yield (path, stat, whether it is a folder) of what is below a folder, or of a file.

    What vanishes meanwhile is left out. The folder itself is not told: a rename touches it and nothing else.
    """
    if path.is_file():
        yield str(path), path.stat(), False
        return
    try:
        with os.scandir(path) as listed:
            entries = list(listed)
    except FileNotFoundError:
        return
    for entry in entries:
        stat = _stat(entry)
        if stat is None:
            continue
        is_folder = S_ISDIR(stat.st_mode)
        yield entry.path, stat, is_folder
        if is_folder and depth < _DEEPEST:
            yield from _walk(Path(entry.path), depth + 1)
