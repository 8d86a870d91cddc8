"""Where the state of limits lies: in this process, or in a file that several processes share."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from vecmill.core.durable import make_dir
from vecmill.core.errors import StorageError
from vecmill.embedder.pacing import Meter, State

T = TypeVar("T")

logger = logging.getLogger(__name__)

_FORMAT = 1
_OPENINGS = 20  # SQLite does not wait while somebody else makes the file a WAL one
_OPENING_SECONDS = 0.05
_PREPARATION = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=OFF",
    "CREATE TABLE IF NOT EXISTS endpoints (id TEXT PRIMARY KEY, state BLOB NOT NULL)",
    "PRAGMA busy_timeout=2000",  # milliseconds
)


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

    def keep(self, key: str, state: State) -> None:
        """Put a state in the place of an endpoint's."""
        with self._lock:
            self._states[key] = state

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
        """Change the state of an endpoint, in one short transaction."""
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
                    "INSERT OR REPLACE INTO endpoints VALUES (?, ?)", (key, encode_state(state))
                )
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._fall_back(error).keep(key, state)
            return result

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        with self._lock:
            self._close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        make_dir(self._path.parent)
        for remaining in reversed(range(_OPENINGS)):
            connection = sqlite3.connect(
                self._path, timeout=_OPENING_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                for statement in _PREPARATION:
                    connection.execute(statement)
            except BaseException as error:
                connection.close()
                if remaining == 0 or not isinstance(error, sqlite3.OperationalError):
                    raise
                time.sleep(_OPENING_SECONDS)
            else:
                self._connection = connection
                break
        return connection

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


def encode_state(state: State) -> bytes:
    """Return a state as the file keeps it."""
    return orjson.dumps({"format": _FORMAT, "state": state})


def _load(connection: sqlite3.Connection, key: str) -> State:
    row = connection.execute("SELECT state FROM endpoints WHERE id = ?", (key,)).fetchone()
    return State() if row is None else decode_state(row[0])


def decode_state(content: bytes) -> State:
    """Return the state that was encoded, or a new one where it is of another version, or nonsense."""
    try:
        values: dict[str, Any] = orjson.loads(content)
        if values["format"] != _FORMAT:
            return State()
        values = values["state"]
        requests, tokens = _meter(values.pop("requests")), _meter(values.pop("tokens"))
        return State(requests, tokens, **_numbers(values))
    except (ValueError, TypeError, KeyError, AttributeError):
        return State()


def _meter(values: dict[str, Any]) -> Meter:
    limit, kind, log = values.pop("limit"), str(values.pop("kind")), values.pop("log")
    if limit is not None:
        limit = float(limit)
    log = [[float(step), float(amount)] for step, amount in log]
    return Meter(limit=limit, kind=kind, log=log, **_numbers(values))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
