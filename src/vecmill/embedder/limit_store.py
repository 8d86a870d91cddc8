"""Where the state of limits lies: in this process, or in a file that several processes share."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from vecmill.core.durable import make_dir
from vecmill.core.errors import StorageError
from vecmill.embedder.pacing import Meter, State

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FORMAT = 1
_PATIENCE_SECONDS = 2.0  # for a lock on the file
_KEPT_SECONDS = 30 * 86400.0


class LimitStore(Protocol):
    """Keeps the state of each endpoint. Methods may be called from any thread and never fail."""

    @property
    def blocks(self) -> bool:
        """Whether `change` waits for a disk or a lock, so that it belongs into a thread."""

    def read(self, key: str) -> State:
        """Return the state of an endpoint as it is now; the caller must not change it."""

    def change(self, key: str, change: Callable[[State], T]) -> T:
        """Change the state of an endpoint; nobody else reads or changes it meanwhile.

        Args:
            key: The endpoint's id.
            change: Changes the state it is given and returns what the caller wants to know. It must not
                keep the state.
        """

    def close(self) -> None:
        """Let go of the file."""


class MemoryStore:
    """Keeps states in this process."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._lock = threading.Lock()

    @property
    def blocks(self) -> bool:
        """No: it takes microseconds."""
        return False

    def read(self, key: str) -> State:
        """Return the state of an endpoint."""
        with self._lock:
            return self._states.setdefault(key, State())

    def change(self, key: str, change: Callable[[State], T]) -> T:
        """Change the state of an endpoint."""
        with self._lock:
            return change(self._states.setdefault(key, State()))

    def close(self) -> None:
        """Do nothing; the states stay."""


class SqliteStore:
    """Keeps states in a SQLite file that several processes share.

    A file that is damaged, locked for long or cannot be written costs one warning; from then on the states
    are this process's own. Nothing in it is worth more than a minute, so writes are not synced.

    Args:
        path: The file; it and its folder are made when needed. Not on a network drive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._instead: MemoryStore | None = None

    @property
    def blocks(self) -> bool:
        """Whether the file is in use."""
        return self._instead is None

    def read(self, key: str) -> State:
        """Return the state of an endpoint; does not wait for writers."""
        with self._lock:
            if self._instead is not None:
                return self._instead.read(key)
            if self._connection is None and not self._path.exists():
                return State()
            try:
                return _load(self._opened(), key)
            except (sqlite3.Error, OSError, StorageError) as error:
                return self._fall_back(error).read(key)

    def change(self, key: str, change: Callable[[State], T]) -> T:
        """Change the state of an endpoint, in one transaction of about 0.1 ms."""
        with self._lock:
            if self._instead is not None:
                return self._instead.change(key, change)
            try:
                connection = self._opened()
                connection.execute("BEGIN IMMEDIATE")
                state = _load(connection, key)
            except (sqlite3.Error, OSError, StorageError) as error:
                return self._fall_back(error).change(key, change)
            try:
                result = change(state)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            try:
                connection.execute(
                    "INSERT OR REPLACE INTO endpoints VALUES (?, ?, ?)", (key, _dump(state), state.saved_at)
                )
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._fall_back(error).change(key, lambda own: _become(own, state))
            return result

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        with self._lock:
            self._close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            make_dir(self._path.parent)
            connection = sqlite3.connect(
                self._path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection = connection
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS endpoints (id TEXT PRIMARY KEY, state BLOB, saved_at REAL)"
            )
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fall_back(self, error: Exception) -> MemoryStore:
        logger.warning(
            "%s cannot be used: %s; limits are not shared with other processes. If this stays, delete it",
            self._path,
            error,
        )
        self._instead = MemoryStore()
        self._close()
        return self._instead


def _become(state: State, other: State) -> None:
    for name in State.__slots__:
        setattr(state, name, getattr(other, name))


def _dump(state: State) -> bytes:
    return orjson.dumps({"format": _FORMAT, **asdict(state)})


def _load(connection: sqlite3.Connection, key: str) -> State:
    row = connection.execute("SELECT state FROM endpoints WHERE id = ?", (key,)).fetchone()
    if row is None:
        return State()
    try:
        values: dict[str, Any] = orjson.loads(row[0])
        if values.pop("format") != _FORMAT:
            return State()
        requests, tokens = Meter(**values.pop("requests")), Meter(**values.pop("tokens"))
        return State(requests, tokens, **values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return State()  # of another version
