"""The cache that stays: vectors in one SQLite file, shared by every process of the machine.

A vector leaves it only if its checksum, over key and bytes, is right. The cache never fails its caller: what
it cannot read is not there, what it cannot write is not kept, and the log says so once. Not for network file
systems: SQLite's locks do not hold there.
"""

from __future__ import annotations

import atexit
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vecmill.core import durable
from vecmill.core.config import Settings
from vecmill.core.errors import DimensionMismatchError, InputError, StorageError, WriteError
from vecmill.core.types import IntArray, Vectors
from vecmill.embedder.cache import upkeep
from vecmill.embedder.cache.database import AbsentError, DamagedError, Database, is_damage
from vecmill.embedder.cache.upkeep import HOUR, CacheInfo, Pruned

FILE_NAME = "vectors.sqlite"
"""The cache's name in `Settings.cache_dir`."""

MAX_BYTES = 10 << 30
"""Of a cache nobody has set a limit for, as in `Settings.cache_max_bytes`."""

_KEPT_SHARE = 0.9
"""An eviction ends at this share of the limit, so that not every put begins one."""

_REFRESH_HOURS = 24
"""A row's last use is written down again only when it is older than this."""

_MOST_PENDING = 4_096
_FAR_FUTURE = float(1 << 40)
_QUIET_SECONDS = 60.0
"""After a failed write, the next one is tried this much later."""

_MOST_KEYS, _SOME_KEYS, _FEW_KEYS = 512, 64, 8
"""Keys a statement asks for; three shapes, so that every statement stays prepared."""

_log = logging.getLogger(__name__)


class SqliteCache:
    """Keeps vectors in a file; any number of threads and processes may use it at once.

    Connections must not cross a fork: start processes by spawning them.

    Args:
        path: The file; the first put makes it, readable by its owner only.
        max_bytes: When the file's used pages exceed this, the vectors used least recently go, down to 90 % of
            it. Their pages are used again; the file shrinks to the limit. The WAL, 32 MB, is not counted.
        read_only: Only look up; never write.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        read_only: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes is {max_bytes}; it must be at least 1; or switch the cache off")
        self.path = path
        self.max_bytes = max_bytes
        self._now = now
        self._read_only = read_only
        self._file = Database(path, read_only=read_only)
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self._used: set[bytes] = set()
        self._damaged: set[bytes] = set()
        self._models: dict[str, str] = {}
        self._warned: set[str] = set()
        self._quiet_until = 0.0

    def get(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> tuple[IntArray, Vectors]:
        """Look keys up; see `VectorCache.get`. A vector of 1,536 dimensions takes about 9 µs, a miss 2."""
        del space  # the keys hold it
        held: dict[bytes, bytes] = {}
        with self._surviving("read"), self._file.reading() as db:
            for chunk in _chunks(keys):
                self._collect(db, chunk, dimensions * 4, held)
        found = [at for at, key in enumerate(keys) if key in held]
        joined = bytearray().join([held[keys[at]] for at in found])
        if len(self._used) > _MOST_PENDING:
            self._write_pending()
        vectors = np.frombuffer(joined, dtype="<f4").reshape(-1, dimensions)  # (h, d)
        return np.array(found, dtype=np.int64), vectors.astype(np.float32, copy=False)

    def contains(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> npt.NDArray[np.bool_]:
        """Say which keys are there; see `VectorCache.contains`."""
        held: set[bytes] = set()
        with self._surviving("read"), self._file.reading() as db:
            row = upkeep.space_row(db, space, dimensions)
            for chunk in _chunks(keys) if row is not None else ():
                sql = f"SELECT key FROM entry WHERE key IN ({_marks(chunk)}) AND space = ?"  # noqa: S608
                held.update(key for (key,) in db.execute(sql, (*chunk, row)))
        with self._lock:
            held -= self._damaged
        return np.array([key in held for key in keys], dtype=np.bool_)

    def put(self, space: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors; see `VectorCache.put`. About 30 µs a vector of 1,536 dimensions, in puts of 64.

        Raises:
            DimensionMismatchError: There are not as many vectors as keys.
        """
        if vectors.ndim != 2 or len(vectors) != len(keys) or not vectors.shape[1]:
            raise DimensionMismatchError(f"{len(keys)} keys need as many vectors, got shape {vectors.shape}")
        if not keys or self._is_quiet():
            return
        with self._surviving("write"):
            with self._file.writing() as db:
                self._apply_pending(db)
                self._insert(db, space, keys, vectors)
                too_large = upkeep.used_bytes(db) > self.max_bytes
            if too_large:
                self._evict(int(self.max_bytes * _KEPT_SHARE))

    def sync(self) -> None:
        """Bring everything put so far to the disk: it survives a power cut when this returns.

        Without it a power cut may take the last puts; a crash of the process never does.

        Raises:
            WriteError: The disk does not take it.
        """
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            if path.exists():
                try:
                    durable.sync_file(path)
                except OSError as error:
                    raise WriteError(f"{path} cannot be brought to disk: {error}") from error

    def name_space(self, space: str, model: str) -> None:
        """Say what a space's model is called, for `info`; written down with the next put."""
        self._models[space] = model

    def close(self) -> None:
        """Write down what was used and let go of the file. A later call opens it again."""
        if self._used or self._damaged:
            self._write_pending()
        self._file.close()

    def info(self) -> CacheInfo:
        """Return what the cache holds; reads the index, not the vectors.

        Raises:
            StorageError: The file cannot be read.
        """
        size, aside = upkeep.file_bytes(self.path), upkeep.set_aside(self.path)
        try:
            with self._raising("read"), self._file.reading() as db:
                spaces, used = tuple(upkeep.space_uses(db)), upkeep.used_bytes(db)
        except AbsentError:
            spaces, used = (), 0
        return CacheInfo(self.path, size, used, self.max_bytes, spaces, aside)

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        unused_since: float | None = None,
        spaces: Sequence[str] | None = None,
    ) -> Pruned:
        """Drop vectors and give their room back to the disk.

        First those of `spaces` not used since `unused_since` go (all that meet both, where both are given),
        then, where `max_bytes` is given, the least recently used ones until the file fits.

        Args:
            max_bytes: What the file may take.
            unused_since: Seconds since the epoch; uses are noted to a day, so a vector may stay a day longer.
            spaces: Space ids.

        Raises:
            StorageError: The file cannot be written.
        """
        before, dropped = upkeep.file_bytes(self.path), 0
        if self._used or self._damaged:
            self._write_pending()
        with self._raising("written"), suppress(AbsentError):
            if unused_since is not None or spaces is not None:
                dropped += upkeep.drop(self._file, unused_since=unused_since, spaces=spaces)
            if max_bytes is not None:
                dropped += upkeep.evict(self._file, max_bytes)
            if self.path.exists():
                upkeep.shrink(self._file, 0)
                upkeep.checkpoint(self._file)
        return Pruned(dropped, max(before - upkeep.file_bytes(self.path), 0))

    def clear(self) -> Pruned:
        """Drop every vector, and remove the damaged files that were set aside.

        Raises:
            StorageError: The file cannot be written.
        """
        try:
            pruned = self.prune(unused_since=_FAR_FUTURE)
        except StorageError as error:
            if error.__cause__ is None or not is_damage(error.__cause__):
                raise
            pruned = self.prune(unused_since=_FAR_FUTURE)  # the damaged file has been set aside
        aside = upkeep.set_aside(self.path)
        freed = sum(path.stat().st_size for path in aside)
        for path in aside:
            durable.remove(path)
        return Pruned(pruned.vectors, pruned.freed_bytes + freed)

    def _collect(
        self, db: sqlite3.Connection, chunk: Sequence[bytes], width: int, held: dict[bytes, bytes]
    ) -> None:
        """Add the vectors of some keys that are whole."""
        sql = (
            "SELECT key, checksum, used, vector FROM entry LEFT JOIN data ON data.id = entry.id "  # noqa: S608
            f"WHERE key IN ({_marks(chunk)})"
        )
        stale = self._now() // HOUR - _REFRESH_HOURS
        damaged, used = set[bytes](), set[bytes]()
        for key, checksum, hour, vector in db.execute(sql, chunk).fetchall():
            if not isinstance(vector, bytes) or zlib.crc32(vector, zlib.crc32(key)) != checksum:
                damaged.add(key)
            elif len(vector) == width:
                held[key] = vector
                if not isinstance(hour, int) or hour < stale:
                    used.add(key)
        if damaged or used:
            with self._lock:
                self._damaged |= damaged
                self._used |= used

    def _insert(self, db: sqlite3.Connection, space: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        dimensions = vectors.shape[1]
        raw = memoryview(np.ascontiguousarray(vectors, dtype="<f4").data).cast("B")
        row = self._ensure_space(db, space, dimensions)
        there: set[bytes] = set()
        for chunk in _chunks(keys):
            sql = f"SELECT key FROM entry WHERE key IN ({_marks(chunk)})"  # noqa: S608 - only question marks
            there.update(key for (key,) in db.execute(sql, chunk))
        number = db.execute("SELECT max(id) FROM data").fetchone()[0] or 0
        used, width = int(self._now() // HOUR), dimensions * 4
        data: list[tuple[int, memoryview]] = []
        entries: list[tuple[bytes, int, int, int, int]] = []
        for at, key in enumerate(keys):
            if key in there:
                continue
            there.add(key)
            number += 1
            vector = raw[at * width : (at + 1) * width]
            data.append((number, vector))
            entries.append((key, number, row, used, zlib.crc32(vector, zlib.crc32(key))))
        db.executemany("INSERT INTO data VALUES (?, ?)", data)
        db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", sorted(entries))

    def _ensure_space(self, db: sqlite3.Connection, space: str, dimensions: int) -> int:
        row = upkeep.space_row(db, space, dimensions)
        model = self._models.pop(space, None)
        if row is None:
            sql = "INSERT INTO space (space, dimensions, model, first_seen) VALUES (?, ?, ?, ?)"
            row = int(db.execute(sql, (space, dimensions, model, int(self._now()))).lastrowid or 0)
        elif model is not None:
            db.execute("UPDATE space SET model = ? WHERE space = ?", (model, space))
        return row

    def _is_quiet(self) -> bool:
        return self._read_only or self._now() < self._quiet_until

    def _write_pending(self) -> None:
        if self._is_quiet():
            self._used.clear()
            return
        with self._surviving("write"), self._file.writing() as db:
            self._apply_pending(db)

    def _apply_pending(self, db: sqlite3.Connection) -> None:
        """Write down what was used since the last time, and drop rows that were found damaged."""
        with self._lock:
            used, self._used = self._used, set()
            damaged, self._damaged = self._damaged, set()
        hour = int(self._now() // HOUR)
        if used:
            db.executemany("UPDATE entry SET used = ? WHERE key = ?", [(hour, key) for key in sorted(used)])
        if damaged:
            upkeep.delete(db, [(key,) for key in damaged], "key = ?")

    def _evict(self, target_bytes: int) -> None:
        """Drop the vectors used least recently until the used pages fit, in small transactions."""
        if not self._evicting.acquire(blocking=False):
            return
        try:
            upkeep.evict(self._file, target_bytes)
            upkeep.shrink(self._file, self.max_bytes)
        finally:
            self._evicting.release()

    @contextmanager
    def _raising(self, done: str) -> Iterator[None]:
        """Let failures out as errors for people."""
        try:
            yield
        except (sqlite3.Error, DamagedError, OverflowError, TypeError) as error:
            raise StorageError(f"the cache {self.path} cannot be {done}: {error}") from error

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Let no failure out; say each kind of it once."""
        try:
            yield
        except AbsentError:
            pass
        except (sqlite3.Error, DamagedError, OverflowError, StorageError, OSError) as error:
            if is_damage(error):
                return  # said when it was set aside; a new file is begun
            if what == "write":
                self._quiet_until = self._now() + _QUIET_SECONDS
            if what not in self._warned:
                self._warned.add(what)
                lost = "new vectors are not kept" if what == "write" else "its vectors are computed again"
                _log.warning("the cache %s cannot be %s: %s; %s", self.path, _PAST[what], error, lost)


_PAST = {"read": "read", "write": "written"}


def open_cache(settings: Settings) -> SqliteCache:
    """Return this process's cache in a settings' folder; the same object for the same file.

    It is closed when the process ends; closing it earlier only lets go of the file until the next use.
    """
    path = settings.cache_dir.absolute() / FILE_NAME
    with _opening:
        if path not in _open:
            _open[path] = SqliteCache(path, max_bytes=settings.cache_max_bytes)
            atexit.register(_open[path].close)
        return _open[path]


_open: dict[Path, SqliteCache] = {}
_opening = threading.Lock()


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut keys into pieces of a few sizes, the last filled up with its own last key."""
    at = 0
    while at < len(keys):
        left = len(keys) - at
        size = _MOST_KEYS if left >= _MOST_KEYS else _SOME_KEYS if left > _FEW_KEYS else _FEW_KEYS
        chunk = list(keys[at : at + size])
        yield chunk + chunk[-1:] * (size - len(chunk))
        at += size


def _marks(chunk: Sequence[bytes]) -> str:
    return ",".join("?" * len(chunk))
