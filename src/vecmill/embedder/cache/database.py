"""The SQLite file the cache keeps vectors in: how it is opened, shared, written, and set aside when damaged.

Nothing here knows what a vector is worth; `sqlite.py` does. With WAL and `synchronous=NORMAL` a
killed process loses nothing that was committed, a power cut perhaps the last puts; neither damages the file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from vecmill.core import durable
from vecmill.core.errors import StorageError, WriteError

Identity: TypeAlias = tuple[int, int]
"""Device and inode: tells the file from another one that has taken its name."""

APPLICATION_ID = 0x76656D63
"""Marks the file as ours in its header ("vemc")."""

VERSION = 1
"""Of the tables; a file of another version is set aside."""

PAGE_BYTES = 32_768
"""Measured on 2 cores, SQLite 3.40, medians of 3 runs: 9,600 vectors of 1,536 dimensions, 64 a put and a get,
a new file, its checkpoints included.

    page   bytes a row  put/s  CPU ms a put  get/s  CPU ms a get
    4 KB   8,252        21 k   2.16           95 k  0.61
    8 KB   8,250        27 k   1.69          133 k  0.48
    16 KB  8,247        34 k   1.39          116 k  0.55
    32 KB  6,612        41 k   1.15           90 k  0.64
    64 KB  6,636        45 k   1.06           76 k  0.75

A page of 32 KB holds five such rows, smaller ones one or two with the rest empty. 384 dimensions take 1,621
bytes a row (2,096 with 4 KB pages), 3,072 take 16,452 (12,859). What larger pages cost: with 300,000 other
keys in the file a put takes 3.0 ms (2.6 with 8 KB), as nearly each key has an index page of its own to write.
In puts and gets of 512: 54 k and 95 k vectors a second.
"""

_WAL_PAGES = 1_000
"""Frames after which the writer brings the WAL into the file: 32 MB. With 8 MB a put took up to twice the
CPU, since pages that are written again and again are copied each time."""

_SECONDS_TO_WRITE = 30.0
_SECONDS_TO_OPEN = 10.0

_SCHEMA = (
    "CREATE TABLE space (id INTEGER PRIMARY KEY, space TEXT NOT NULL, dimensions INTEGER NOT NULL, "
    "model TEXT, first_seen INTEGER NOT NULL, UNIQUE (space, dimensions))",
    "CREATE TABLE entry (key BLOB PRIMARY KEY, id INTEGER NOT NULL, space INTEGER NOT NULL, "
    "used INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE data (id INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
"""`entry` is the index: small rows, so that use, eviction and statistics never touch a vector."""

_ENVIRONMENT = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_AUTH,
    }
)
"""Errors that blame the disk, the rights or other processes; any other one says that the file is damaged."""

_log = logging.getLogger(__name__)


class AbsentError(Exception):
    """There is no file to read, which is no failure."""


class DamagedError(Exception):
    """The file is not what it should be."""


def is_damage(error: BaseException) -> bool:
    """Say whether an error means that the file itself is wrong, not the disk or the moment."""
    if isinstance(error, DamagedError | OverflowError):  # the latter from a damaged number
        return True
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or (code & 0xFF) not in _ENVIRONMENT


class Database:
    """One file and this process's connections to it. Its methods may be called from any thread.

    Args:
        path: The file; made, with its folder, by the first write.
        read_only: Never write, not even to make or set aside the file.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._lock_path = path.with_name(path.name + ".lock")
        self._idle: list[tuple[Identity, sqlite3.Connection]] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    @contextmanager
    def reading(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """Lend a connection; connections are kept and lent again.

        Args:
            create: Make the file if it is not there.

        Raises:
            AbsentError: There is no file.
            DamagedError: The file is not ours; it has been set aside.
            sqlite3.Error: Something failed; if it was damage, the file has been set aside.
            StorageError: The file could not be made.
        """
        identity, db = self._borrow(create=create)
        try:
            yield db
        except BaseException as error:
            db.close()
            if is_damage(error):
                self._set_aside(identity, error)
            raise
        with self._lock:
            self._idle.append((identity, db))

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside a transaction, which is committed at the end of the block.

        Waits for other writers, at most 30 seconds. Raises as `reading`.
        """
        with self._writing, self.reading(create=True) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections that are not in use; the next call opens new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, db in idle:
            with suppress(sqlite3.Error):
                db.close()

    def _borrow(self, *, create: bool) -> tuple[Identity, sqlite3.Connection]:
        now = identity(self.path)
        while True:
            with self._lock:
                found = self._idle.pop() if self._idle else None
            if found is None:
                return self._open(create=create)
            if found[0] == now:
                return found
            found[1].close()  # of a file that was removed or set aside; SQLite leaves the new one's WAL alone

    def _open(self, *, create: bool) -> tuple[Identity, sqlite3.Connection]:
        if self.read_only or (not create and not self.path.exists()):
            create = False
            if not self.path.exists():
                raise AbsentError
        if create:
            durable.make_dir(self.path.parent)
        with self._opening():
            if create:
                _ensure_file(self.path)
            opened = identity(self.path)
            if opened is None:
                raise AbsentError
            try:
                return opened, self._connect(create=create)
            except (sqlite3.Error, DamagedError) as error:
                if not is_damage(error):
                    raise
                self._rename(opened, error)
        if create:
            return self._open(create=True)
        raise AbsentError

    def _connect(self, *, create: bool) -> sqlite3.Connection:
        """Open the file for writing, or as far as the disk allows it: for reading, or as it lies there."""
        modes = ["mode=ro"] if self.read_only else ["mode=rw", "mode=ro"]
        wal = self.path.with_name(self.path.name + "-wal")
        if not wal.exists() or not wal.stat().st_size:
            modes.append("mode=ro&immutable=1")
        for mode in modes:
            try:
                return _connect(self.path, mode, create=create)
            except sqlite3.OperationalError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if mode == modes[-1] or code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
        raise AbsentError

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Keep other processes from opening or setting aside the file while the block runs.

        A file must not be renamed between the moments at which SQLite opens it and its WAL.
        """
        with ExitStack() as held:
            deadline = time.monotonic() + _SECONDS_TO_OPEN
            while True:
                try:
                    held.enter_context(durable.lock(self._lock_path, what=str(self.path)))
                    break
                except WriteError:  # a folder nobody may write to: nobody sets the file aside either
                    break
                except StorageError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)
            yield

    def _set_aside(self, damaged: Identity, why: BaseException) -> None:
        self.close()
        if not self.read_only:
            with suppress(StorageError), self._opening():
                self._rename(damaged, why)

    def _rename(self, damaged: Identity, why: BaseException) -> None:
        if self.read_only or identity(self.path) != damaged:
            return  # somebody else has done it
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm", ""):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                durable.rename(part, aside.with_name(aside.name + suffix))
        _log.warning(
            "the cache %s is damaged (%s); it is now %s and a new one is begun", self.path, why, aside.name
        )


def identity(path: Path) -> Identity | None:
    """Return what tells a file from another one of its name, or None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _ensure_file(path: Path) -> None:
    """Make an empty file that only its owner may read; SQLite gives WAL and index the same rights."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise WriteError(f"{path} cannot be made: {error.strerror}") from error


def _connect(path: Path, mode: str, *, create: bool) -> sqlite3.Connection:
    fresh = path.stat().st_size == 0
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=_SECONDS_TO_WRITE,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        _prepare(db, writable=mode == "mode=rw", create=create, fresh=fresh)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, *, writable: bool, create: bool, fresh: bool) -> None:
    db.text_factory = bytes  # a damaged text is no error
    if fresh:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA cache_size = -8192")
    application, version = _number(db, "application_id"), _number(db, "user_version")
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application, version) != (APPLICATION_ID, VERSION) and (application or version or tables):
        raise DamagedError(f"not a cache of version {VERSION}")
    if not tables and not create:
        raise AbsentError
    if writable:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = OFF")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * PAGE_BYTES}")
    if not tables:
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("COMMIT")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])
