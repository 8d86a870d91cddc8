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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vecmill.core.config import Settings
from vecmill.core.errors import DimensionMismatchError, InputError, StorageError
from vecmill.core.types import IntArray, Vectors
from vecmill.embedder.cache.database import AbsentError, DamagedError, Database, is_damage

FILE_NAME = "vectors.sqlite"
"""The cache's name in `Settings.cache_dir`."""

MAX_BYTES = 5 << 30
"""Of a cache nobody has set a limit for."""

_KEPT_SHARE = 0.9
"""An eviction ends at this share of the limit, so that not every put begins one."""

_EVICTED_AT_ONCE = 256
_PLANNED_AT_ONCE = 50_000
_FREED_AT_ONCE = 256

_HOUR = 3_600
_REFRESH_HOURS = 24
"""A row's last use is written down again only when it is older than this."""

_MOST_PENDING = 4_096
_QUIET_SECONDS = 60.0
"""After a failed write, the next one is tried this much later."""

_MOST_KEYS, _SOME_KEYS, _FEW_KEYS = 512, 64, 8
"""Keys a statement asks for; three shapes, so that every statement stays prepared."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """What a cache holds of one space.

    Attributes:
        space: Space id, 32 hex digits.
        model: Its name, where whoever put the vectors gave it.
        dimensions: Components of its vectors.
        vectors: How many.
        vector_bytes: Bytes of these, without what SQLite adds.
        first_seen: Seconds since the epoch.
        oldest_use, newest_use: Seconds since the epoch, exact to a day.
    """

    space: str
    model: str | None
    dimensions: int
    vectors: int
    vector_bytes: int
    first_seen: int
    oldest_use: int
    newest_use: int


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        path: The file.
        file_bytes: Size on disk, WAL and its index included.
        used_bytes: Of the file, without the pages free for new vectors: what `max_bytes` limits.
        max_bytes: The limit.
        spaces: Most vectors first.
    """

    path: Path
    file_bytes: int
    used_bytes: int
    max_bytes: int
    spaces: tuple[SpaceUse, ...] = ()

    @property
    def vectors(self) -> int:
        """Vectors of all spaces."""
        return sum(use.vectors for use in self.spaces)


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
            raise InputError(f"max_bytes is {max_bytes}; a cache needs at least 1, or leave it out")
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
            row = _space_row(db, space, dimensions)
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
                too_large = _used_bytes(db) > self.max_bytes
            if too_large:
                self._evict(int(self.max_bytes * _KEPT_SHARE))

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
        size = sum(_size(self.path.with_name(self.path.name + suffix)) for suffix in ("", "-wal", "-shm"))
        try:
            with self._file.reading() as db:
                spaces = tuple(_space_uses(db))
                return CacheInfo(self.path, size, _used_bytes(db), self.max_bytes, spaces)
        except AbsentError:
            return CacheInfo(self.path, size, 0, self.max_bytes)
        except (sqlite3.Error, DamagedError) as error:
            raise StorageError(f"the cache {self.path} cannot be read: {error}") from error

    def _collect(
        self, db: sqlite3.Connection, chunk: Sequence[bytes], width: int, held: dict[bytes, bytes]
    ) -> None:
        """Add the vectors of some keys that are whole."""
        sql = (
            "SELECT key, checksum, used, vector FROM entry LEFT JOIN data ON data.id = entry.id "  # noqa: S608
            f"WHERE key IN ({_marks(chunk)})"
        )
        stale = self._now() // _HOUR - _REFRESH_HOURS
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
        used, width = int(self._now() // _HOUR), dimensions * 4
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
        row = _space_row(db, space, dimensions)
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
        hour = int(self._now() // _HOUR)
        if used:
            db.executemany("UPDATE entry SET used = ? WHERE key = ?", [(hour, key) for key in sorted(used)])
        if damaged:
            _delete(db, [(key,) for key in damaged], "key = ?")

    def _evict(self, target_bytes: int) -> None:
        """Drop the vectors used least recently until the used pages fit, in small transactions."""
        if not self._evicting.acquire(blocking=False):
            return
        try:
            _evict(self._file, target_bytes)
            _shrink(self._file, self.max_bytes)
        finally:
            self._evicting.release()

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
            _open[path] = SqliteCache(path, max_bytes=getattr(settings, "cache_max_bytes", MAX_BYTES))
            atexit.register(_open[path].close)
        return _open[path]


_open: dict[Path, SqliteCache] = {}
_opening = threading.Lock()


def _evict(file: Database, target_bytes: int) -> int:
    dropped = 0
    while True:
        with file.reading() as db:
            if _used_bytes(db) <= target_bytes:
                return dropped
            count = db.execute("SELECT count(*) FROM entry").fetchone()[0]
            sql = "SELECT key, id FROM entry ORDER BY used, id LIMIT ?"
            rows = db.execute(sql, (_PLANNED_AT_ONCE,)).fetchall()
        if not rows:
            return dropped
        at = 0
        while at < len(rows):
            with file.writing() as db:
                used = _used_bytes(db)
                if used <= target_bytes:
                    return dropped
                size = min(_EVICTED_AT_ONCE, (used - target_bytes) * max(count - dropped, 1) // used + 1)
                dropped += _delete(db, rows[at : at + size], "key = ? AND id = ?")
            at += size


def _delete(db: sqlite3.Connection, rows: Iterable[tuple[object, ...]], where: str) -> int:
    """Delete entries and their vectors; an entry that is another one by now stays."""
    ids: list[tuple[int]] = []
    for row in rows:
        found = db.execute(f"SELECT id FROM entry WHERE {where}", row).fetchall()  # noqa: S608
        if found:
            db.execute(f"DELETE FROM entry WHERE {where}", row)  # noqa: S608 - a constant of ours
            ids += found
    db.executemany("DELETE FROM data WHERE id = ?", ids)
    return len(ids)


def _shrink(file: Database, target_bytes: int) -> None:
    """Give pages back to the disk until the file is no larger than this, in small transactions."""
    while True:
        with file.writing() as db:
            free = _pragma(db, "freelist_count")
            total = _pragma(db, "page_count") * _pragma(db, "page_size")
            if not free or total <= target_bytes:
                return
            db.execute(f"PRAGMA incremental_vacuum({_FREED_AT_ONCE})").fetchall()
            if _pragma(db, "freelist_count") == free:
                return


def _space_row(db: sqlite3.Connection, space: str, dimensions: int) -> int | None:
    found = db.execute(
        "SELECT id FROM space WHERE space = ? AND dimensions = ?", (space, dimensions)
    ).fetchone()
    return None if found is None else int(found[0])


def _space_uses(db: sqlite3.Connection) -> Iterator[SpaceUse]:
    sql = (
        "SELECT space.space, model, dimensions, count(*), first_seen, min(used), max(used) "
        "FROM entry JOIN space ON space.id = entry.space GROUP BY space.id ORDER BY count(*) DESC, space.id"
    )
    for space, model, dimensions, vectors, first_seen, oldest, newest in db.execute(sql).fetchall():
        name = None if model is None else model.decode("utf-8", "replace")
        yield SpaceUse(
            space.decode("utf-8", "replace"),
            name,
            dimensions,
            vectors,
            vectors * dimensions * 4,
            first_seen,
            oldest * _HOUR,
            newest * _HOUR,
        )


def _used_bytes(db: sqlite3.Connection) -> int:
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchall()[0][0])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
