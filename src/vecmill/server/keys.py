"""API keys: 256 random bits, shown once; the file keeps their SHA-256.

A fast hash is right here: a key is no password, nobody can try 2**256 of them. The file `keys.json` is
written whole or not at all, readable by its owner only, and read again by a running server when it changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from vecmill.core import clock, durable
from vecmill.core.errors import (
    CorruptFileError,
    FormatVersionError,
    InputError,
    StorageError,
    WriteError,
    unknown_name,
)

log = logging.getLogger(__name__)

FILE_NAME = "keys.json"
FORMAT = 1
PREFIX = "vm-"

MAX_KEY_BYTES = 512
"""A longer key is wrong without a look at it."""

MAX_FILE_BYTES = 16 * 1024 * 1024
CHECK_SECONDS = 1.0
"""A running server looks at the file's times at most this often."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it stands in logs
_SHOWN = 4
_SECRET_BYTES = 32
_LOCK_SECONDS = 5.0
_WEAK_BELOW = 16


class Right(StrEnum):
    """What a route needs; a key has some of them.

    OPEN: nothing (liveness only). EMBED: vectors, tokens, ranking. READ: models, status, readiness,
    documents. METRICS: the metrics. ADMIN: reload.
    """

    OPEN = "open"
    EMBED = "embed"
    READ = "read"
    METRICS = "metrics"
    ADMIN = "admin"


GIVEN = tuple(right for right in Right if right is not Right.OPEN)
"""Rights a key may have."""

DEFAULT_RIGHTS = (Right.EMBED, Right.READ)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; not the key.

    Attributes:
        id: Eight hex digits, in logs and for `vecmill key remove`.
        name: What its owner calls it.
        sha256: Of its bytes.
        prefix: How it begins, to recognise it by.
        rights: What it may.
        created, expires: Seconds since the epoch; expires None: never.
        disabled: Whether it was switched off.
    """

    id: str
    name: str
    sha256: bytes = field(repr=False)
    prefix: str
    rights: frozenset[Right]
    created: float
    expires: float | None = None
    disabled: bool = False

    def is_valid(self, now: float) -> bool:
        """Say whether it opens anything at a moment, in seconds since the epoch."""
        return not self.disabled and (self.expires is None or now < self.expires)


def digest(key: str) -> bytes:
    """Return the SHA-256 of a key as it stands in a header (bytes as Latin-1), or as it was typed."""
    try:
        raw = key.encode("latin-1")
    except UnicodeEncodeError:
        raw = key.encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).digest()


def masked(key: str) -> str:
    """Return a key for messages: its first and last four characters at most, never half of it."""
    shown = min(_SHOWN, len(key) // 4)
    plain = "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in key)
    return f"{plain[:shown]}****{plain[len(plain) - shown :]}" if shown else "****"


def plain_key(key: str) -> bytes:
    """Return the SHA-256 of another tool's key, such as that of `--api_key_file`: for `Options.key_hashes`.

    Raises:
        InputError: It is empty, longer than 512 bytes, or has blanks or control characters in it.
    """
    key = key.strip()
    raw = key.encode("utf-8", "surrogatepass")
    if not key or len(raw) > MAX_KEY_BYTES:
        raise InputError(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(raw)}")
    if not key.isprintable() or " " in key:
        raise InputError("a key has no blanks, line breaks or control characters; this one has")
    if len(key) < _WEAK_BELOW:
        log.warning("the given key has only %d characters and can be guessed: vecmill key add", len(key))
    return hashlib.sha256(raw).digest()


def given_keys(hashes: Sequence[bytes]) -> tuple[Key, ...]:
    """Return the keys behind `Options.key_hashes`: they may everything, as an operator's own.

    Their ids say nothing of the hashes: of a key that can be guessed a part of its hash would be enough.
    """
    rights = frozenset(GIVEN)
    return tuple(Key(f"given{i}", "given key", each, "", rights, 0.0) for i, each in enumerate(hashes))


class KeyFile:
    """The file of keys, for those who change it.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """Return all keys, in the order they were added; none where there is no file.

        Raises:
            CorruptFileError, FormatVersionError, StorageError: It cannot be read.
        """
        return read_keys(self.path)

    def add(
        self,
        name: str,
        *,
        rights: Iterable[Right] = DEFAULT_RIGHTS,
        expires: float | None = None,
    ) -> tuple[str, Key]:
        """Make a key and keep its hash.

        Args:
            name: What it is called; no two keys have one name.
            rights: What it may.
            expires: Seconds since the epoch; None: never.

        Returns:
            The key, which nobody can find out again, and what is kept of it.

        Raises:
            InputError: The name is taken or unusable, there is no right, or it would be over already.
            StorageError: The file cannot be read, or another process is changing it.
            WriteError: It cannot be written; what was there before is intact.
        """
        name, given, now = name.strip(), frozenset(rights), clock.now()
        if not name or len(name) > 100 or not name.isprintable():
            raise InputError("a key's name has 1 to 100 characters, none of them a control character")
        if not given or Right.OPEN in given:
            raise InputError(f"a key needs at least one of the rights {', '.join(GIVEN)}")
        if expires is not None and expires <= now:
            raise InputError(f"the key would be over before it begins: {moment(expires)} is past")
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise InputError(
                    f"there is a key named {name!r} already; choose another name or remove it first"
                )
            taken = {key.id for key in keys}
            made = next(i for i in iter(lambda: secrets.token_hex(4), "") if i not in taken)
            key = Key(made, name, digest(secret), secret[: len(PREFIX) + _SHOWN], given, int(now), expires)
            keys.append(key)
        return secret, key

    def remove(self, which: str) -> Key:
        """Remove a key by name or id and return it.

        Raises:
            UnknownNameError: There is none.
            StorageError, WriteError: As for `add`.
        """
        with self._changing() as keys:
            key = _found(keys, which)
            keys.remove(key)
        return key

    def disable(self, which: str, *, disabled: bool = True) -> Key:
        """Switch a key off (or on again) by name or id and return it.

        Raises:
            UnknownNameError: There is none.
            StorageError, WriteError: As for `add`.
        """
        with self._changing() as keys:
            key = _found(keys, which)
            changed = replace(key, disabled=disabled)
            keys[keys.index(key)] = changed
        return changed

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """Give the keys to change; they are written when the block ends well."""
        durable.make_dir(self.path.parent)
        with contextlib.ExitStack() as stack:
            _enter_lock(stack, self.path)
            keys = list(read_keys(self.path))
            yield keys
            with durable.replacing(self.path) as temp:
                temp.chmod(0o600)  # before there is anything to read in it
                temp.write_bytes(_encoded(keys))


class KeyStore:
    """The keys a running server knows. Reads the file again when it changes; a closed server stays closed.

    Args:
        path: The file; it need not exist.
        extra: Keys that are in no file.
    """

    def __init__(self, path: Path, *, extra: Sequence[Key] = ()) -> None:
        """Read the keys.

        Raises:
            CorruptFileError, FormatVersionError, StorageError: The file is there and cannot be read.
        """
        self._path = path
        self._extra = tuple(extra)
        self._state = _state(path)
        self._keys = (*self._extra, *read_keys(path))
        self._looked = time.monotonic()
        self._had_keys = bool(self._keys)
        _warn_of_readers(path)

    @property
    def has_keys(self) -> bool:
        """Whether there are keys, or were since the server started: also expired and disabled ones count."""
        return self._had_keys

    def find(self, given: str) -> Key | None:
        """Return the key that was given, or None. It may be expired or disabled: ask `Key.is_valid`.

        Every known key is compared, in a time that says nothing about any of them.
        """
        if len(given) > MAX_KEY_BYTES:
            return None
        hashed = digest(given)
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(hashed, key.sha256):
                found = key
        return found

    @property
    def is_due(self) -> bool:
        """Whether the file was last looked at a second or longer ago."""
        return time.monotonic() - self._looked >= CHECK_SECONDS

    def refresh(self) -> bool:
        """Read the file if it changed, and say whether it did; reads at most 16 MiB.

        What cannot be read changes nothing: the keys known so far stay, and the log says so once. A file that
        was removed takes its keys with it, and the server stays closed.
        """
        self._looked = time.monotonic()
        state = _state(self._path)
        if state == self._state:
            return False
        self._state = state
        try:
            keys = (*self._extra, *read_keys(self._path))
        except (StorageError, OSError) as error:
            log.error("%s; the keys known before stay in force", error)
            self._had_keys = True  # a file is there: never the time to open the door
            return False
        if not keys and self._had_keys:
            log.warning("%s has no keys any more; the server stays closed until it is restarted", self._path)
        self._keys = keys
        self._had_keys = self._had_keys or bool(keys)
        log.info("the file of keys changed: %d keys", len(keys))
        return True


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys; none where there is no file.

    Raises:
        CorruptFileError: It is not what it claims, or larger than 16 MiB.
        FormatVersionError: It was written by another version.
        StorageError: It cannot be read.
    """
    try:
        if (
            not path.is_file() and path.exists()
        ):  # who opens a pipe waits until somebody writes, maybe for ever
            raise StorageError(f"the keys in {path} cannot be read: it is no file")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StorageError(f"the keys in {path} cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise CorruptFileError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no file of keys")
    try:
        table = orjson.loads(raw)
        version = table["format"]
        if version != FORMAT:
            raise FormatVersionError(f"{path} has another format than {FORMAT}, which this version reads")
        keys = tuple(_key(entry) for entry in table["keys"])
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have one id")
    except (ValueError, TypeError, KeyError) as error:
        # The reason may show what stands in the file: only its kind is said.
        raise CorruptFileError(
            f"{path} is no whole file of keys ({type(error).__name__}); "
            "restore it, or remove it and add keys anew"
        ) from None
    return keys


def moment(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC: "2026-11-21T12:00:00Z"."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _encoded(keys: Sequence[Key]) -> bytes:
    entries = [
        {
            "id": key.id,
            "name": key.name,
            "sha256": key.sha256.hex(),
            "prefix": key.prefix,
            "rights": [right.value for right in Right if right in key.rights],
            "created": moment(key.created),
            "expires": None if key.expires is None else moment(key.expires),
            "disabled": key.disabled,
        }
        for key in keys
    ]
    return orjson.dumps({"format": FORMAT, "keys": entries}, option=orjson.OPT_INDENT_2) + b"\n"


def _key(entry: Mapping[str, Any]) -> Key:
    """Read one entry. Raises ValueError, TypeError or KeyError: nothing is guessed, least of all a right."""
    hashed = bytes.fromhex(entry["sha256"])
    if len(hashed) != hashlib.sha256().digest_size:
        raise ValueError("sha256 has another length")
    for name in ("id", "name", "prefix"):
        if not isinstance(entry[name], str):
            raise TypeError(name)
    if _ID.fullmatch(entry["id"]) is None:
        raise ValueError("id")
    if not isinstance(entry["disabled"], bool) or not isinstance(entry["rights"], list):
        raise TypeError("disabled, rights")
    rights = frozenset(Right(right) for right in entry["rights"])
    if Right.OPEN in rights:
        raise ValueError("rights")
    expires = entry["expires"]
    return Key(
        entry["id"],
        entry["name"],
        hashed,
        entry["prefix"],
        rights,
        _seconds(entry["created"]),
        None if expires is None else _seconds(expires),
        entry["disabled"],
    )


def _seconds(given: str) -> float:
    found = datetime.fromisoformat(given)
    if found.tzinfo is None:
        raise ValueError("a moment without its zone")
    return found.timestamp()


def _found(keys: Sequence[Key], which: str) -> Key:
    for key in keys:
        if which in (key.id, key.name):
            return key
    raise unknown_name("key", which, [key.name for key in keys])


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file's content; None where it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def _warn_of_readers(path: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("%s can be read or changed by others than its owner: chmod 600 it", path)


def _enter_lock(
    stack: contextlib.ExitStack, path: Path, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Take the file's lock, waiting a few seconds for another command that is changing it."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            stack.enter_context(durable.lock(path.with_name(f".{path.name}.vecmill-lock"), what=str(path)))
        except WriteError:
            raise
        except StorageError:
            if time.monotonic() >= until:
                raise
            sleep(0.02)
        else:
            return
