"""Which projects' files may say where texts and keys are sent.

A `vecmill.toml` comes along with a project that somebody else may have written. Where one says to which
address texts are sent, with which headers or certificates a request goes that carries a secret, what it is
taken to cost, or that more may be spent without a question, the user must have run `vecmill config trust`;
that records the file's path and digest, so a changed file is asked about again.
"""

from __future__ import annotations

import json
from pathlib import Path

from vecmill.core import durable
from vecmill.core.config import user_home
from vecmill.core.errors import ConfigError, StorageError


def trusted(path: Path, digest: str) -> bool:
    """Say whether a file with this content is trusted."""
    return _load().get(str(path.resolve())) == digest


def ensure_trusted(path: Path, digest: str, *, why: str) -> None:
    """Refuse a file that may not say where a secret goes.

    Args:
        path: The project's file.
        digest: BLAKE2b-128 of the bytes that were read.
        why: What it says, such as "base_url of profile 'work'".

    Raises:
        ConfigError: It is not trusted; the message names the command.
    """
    if trusted(path, digest):
        return
    known = str(path.resolve()) in _load()
    state = "the file has changed since it was trusted" if known else "the file is not trusted"
    raise ConfigError(
        f"{path.resolve()} sets {why}, which decides where your texts and keys go or what they cost, but "
        f"{state}: read it, then run `vecmill config trust`"
    )


def trust(path: Path) -> str:
    """Trust a file as it is now. Return its digest.

    Raises:
        ConfigError: There is no such file.
        WriteError: The record cannot be written.
    """
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"{path} is not a file: name a vecmill.toml")
    digest = durable.digest_file(path)
    _save({**_load(), str(path): digest})
    return digest


def distrust(path: Path) -> bool:
    """Trust a file no longer. Return whether it was trusted, as it is now or as it was."""
    table = _load()
    was = table.pop(str(path.resolve()), None) is not None
    if was:
        _save(table)
    return was


def _file() -> Path:
    return user_home() / "trusted.json"


def _load() -> dict[str, str]:
    try:
        table = json.loads(_file().read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(f"{_file()} cannot be read: {error}; mend it or remove it") from error
    if not isinstance(table, dict):
        raise StorageError(f"{_file()} is not a table of files: remove it")
    return {str(path): str(digest) for path, digest in table.items()}


def _save(table: dict[str, str]) -> None:
    durable.make_dir(_file().parent)
    durable.write_bytes(_file(), (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())
