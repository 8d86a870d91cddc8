"""What is done to the cache's file apart from looking up and keeping: counting, evicting, making it smaller.

Everything works in small transactions, so that other processes wait for milliseconds. Pages of what is
dropped are used again by new vectors; `shrink` gives them back to the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vecmill.embedder.cache.database import Database

HOUR = 3_600
"""`used` counts hours since the epoch."""

_EVICTED_AT_ONCE = 256
_PLANNED_AT_ONCE = 50_000
_FREED_AT_ONCE = 256


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
        set_aside: Damaged files that were replaced by this one.
    """

    path: Path
    file_bytes: int
    used_bytes: int
    max_bytes: int
    spaces: tuple[SpaceUse, ...] = ()
    set_aside: tuple[Path, ...] = ()

    @property
    def vectors(self) -> int:
        """Vectors of all spaces."""
        return sum(use.vectors for use in self.spaces)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was dropped: vectors, and bytes given back to the disk."""

    vectors: int
    freed_bytes: int


def space_row(db: sqlite3.Connection, space: str, dimensions: int) -> int | None:
    """Return the row of a space and width, or None where there is none."""
    sql = "SELECT id FROM space WHERE space = ? AND dimensions = ?"
    found = db.execute(sql, (space, dimensions)).fetchone()
    return None if found is None else int(found[0])


def space_uses(db: sqlite3.Connection) -> Iterator[SpaceUse]:
    """Count the vectors of each space; reads the index only."""
    sql = (
        "SELECT space.space, model, dimensions, count(*), first_seen, min(used), max(used) "
        "FROM entry JOIN space ON space.id = entry.space GROUP BY space.id ORDER BY count(*) DESC, space.id"
    )
    for space, model, dimensions, vectors, first_seen, oldest, newest in db.execute(sql).fetchall():
        yield SpaceUse(
            space=space.decode("utf-8", "replace"),
            model=None if model is None else model.decode("utf-8", "replace"),
            dimensions=dimensions,
            vectors=vectors,
            vector_bytes=vectors * dimensions * 4,
            first_seen=first_seen,
            oldest_use=oldest * HOUR,
            newest_use=newest * HOUR,
        )


def used_bytes(db: sqlite3.Connection) -> int:
    """Return the bytes of the pages that hold something."""
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * _pragma(db, "page_size")


def evict(file: Database, target_bytes: int) -> int:
    """Drop the vectors used least recently until the used pages fit; return how many were dropped."""
    dropped = 0
    while True:
        with file.reading() as db:
            if used_bytes(db) <= target_bytes:
                return dropped
            count = db.execute("SELECT count(*) FROM entry").fetchone()[0]
            sql = "SELECT key, id FROM entry ORDER BY used, id LIMIT ?"
            rows = db.execute(sql, (_PLANNED_AT_ONCE,)).fetchall()
        if not rows:
            return dropped
        at = 0
        while at < len(rows):
            with file.writing() as db:
                used = used_bytes(db)
                if used <= target_bytes:
                    return dropped
                size = min(_EVICTED_AT_ONCE, (used - target_bytes) * max(count - dropped, 1) // used + 1)
                dropped += delete(db, rows[at : at + size], "key = ? AND id = ?")
            at += size


def drop(file: Database, *, unused_since: float | None, spaces: Sequence[str] | None) -> int:
    """Drop the vectors of some spaces (None: all) not used since a moment (None: any); return how many."""
    where, values = ["1 = 1"], list[object]()
    if unused_since is not None:
        where.append("used < ?")
        values.append(int(unused_since // HOUR))
    if spaces is not None:
        marks = ",".join("?" * len(spaces))
        where.append(f"space IN (SELECT id FROM space WHERE space IN ({marks}))")  # noqa: S608
        values.extend(spaces)
    sql = f"SELECT key, id FROM entry WHERE {' AND '.join(where)} LIMIT ?"  # noqa: S608 - only our own words
    dropped = 0
    while True:
        with file.reading() as db:
            rows = db.execute(sql, (*values, _PLANNED_AT_ONCE)).fetchall()
        if not rows:
            return dropped
        for at in range(0, len(rows), _EVICTED_AT_ONCE):
            with file.writing() as db:
                dropped += delete(db, rows[at : at + _EVICTED_AT_ONCE], "key = ? AND id = ?")


def delete(db: sqlite3.Connection, rows: Iterable[tuple[object, ...]], where: str) -> int:
    """Delete entries and their vectors; an entry that is another one by now stays."""
    ids: list[tuple[int]] = []
    for row in rows:
        found = db.execute(f"SELECT id FROM entry WHERE {where}", row).fetchall()  # noqa: S608
        if found:
            db.execute(f"DELETE FROM entry WHERE {where}", row)  # noqa: S608 - a constant of ours
            ids += found
    db.executemany("DELETE FROM data WHERE id = ?", ids)
    return len(ids)


def shrink(file: Database, target_bytes: int) -> None:
    """Give free pages back to the disk until the file is no larger than this."""
    while True:
        with file.writing() as db:
            free = _pragma(db, "freelist_count")
            if not free or _pragma(db, "page_count") * _pragma(db, "page_size") <= target_bytes:
                return
            db.execute(f"PRAGMA incremental_vacuum({_FREED_AT_ONCE})").fetchall()
            if _pragma(db, "freelist_count") == free:
                return


def checkpoint(file: Database) -> None:
    """Bring the WAL into the file and empty it, as far as others let."""
    with file.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def file_bytes(path: Path) -> int:
    """Return what a cache takes on disk, WAL and its index included."""
    total = 0
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        total += part.stat().st_size if part.is_file() else 0
    return total


def set_aside(path: Path) -> tuple[Path, ...]:
    """Return the damaged files of this name, their WAL files included."""
    return tuple(sorted(path.parent.glob(f"{path.name}.damaged-*"))) if path.parent.is_dir() else ()


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchall()[0][0])
