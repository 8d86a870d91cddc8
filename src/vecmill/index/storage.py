"""A collection's vectors, ids and columns on disk: one writer at a time, any number of readers, no waiting.

A change writes new files beside the old ones, then replaces the catalogue: that publishes it, nothing before.
What a crash leaves behind is named by no catalogue and removed by the next writer. When a method that changes
something returns, the change is on disk.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core import durable
from vecmill.core.errors import (
    CorruptFileError,
    DimensionMismatchError,
    InputError,
    StorageError,
    UnknownNameError,
    WriteError,
    unknown_name,
)
from vecmill.core.space import Manifest
from vecmill.core.types import IntArray, Metric, Precision, Vectors, choice
from vecmill.core.vectors import check
from vecmill.index.catalogue import (
    MOST_DIMENSIONS,
    NAME,
    Catalogue,
    Stamp,
    read_stamped,
    stamp_of,
    write_catalogue,
)
from vecmill.index.changes import (
    Change,
    ensure_distinct,
    ensure_float16,
    ensure_rows,
    ensure_width,
    not_found,
)
from vecmill.index.compaction import Compaction, runs_to_merge
from vecmill.index.keys import ids_of, keys_of, other_readings, shown
from vecmill.index.schema import plain, unified
from vecmill.index.segments import rows_per_segment
from vecmill.index.snapshot import ID, Opened, Segment, Snapshot
from vecmill.index.writing import gathered, sweep, with_rows, without_rows

SEGMENTS = "segments"
SIDECARS = "sidecars"
_LOCK = ".lock"
_PATIENCE = 30.0  # seconds a writer waits for another to end
_FAN = 8  # so many neighbouring segments of one size become one
_COMPACT_BYTES = 256 << 20
_TRIES = 1000  # to open what is replaced meanwhile; segments that are open stay so between them
_COMPARED_IDS = 100_000

_LOG = logging.getLogger(__name__)


def is_store(path: Path | str) -> bool:
    """Say whether a folder is a collection, sound or not."""
    return (Path(path) / NAME).is_file()


class Store:
    """A collection on disk. Any thread may use it; other processes may read and write it at the same time.

    Opening maps every segment, keeps no file open, and needs no right to write. A writer that finds another
    at work, in this process or elsewhere, waits for it: half a minute, then it says who it is.

    Args:
        path: The folder of an existing collection; `create` makes one.

    Raises:
        InputError: The folder is not a collection.
        CorruptFileError: Its catalogue is damaged.
        FormatVersionError: A later version wrote it.
        StorageError: A file cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path).absolute()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._state: tuple[Stamp, Snapshot] = self._load(None)  # replaced whole: threads look without a lock

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open an existing collection; see the class."""
        return cls(path)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        dimensions: int,
        metric: Metric | str = Metric.COSINE,
        precision: Precision | str = Precision.FLOAT32,
        manifest: Manifest | None = None,
        text_column: str | None = None,
    ) -> Store:
        """Make an empty collection.

        Args:
            path: A folder that does not exist yet, or is empty.
            dimensions: Components of a vector, from 1 to 1,048,576.
            metric: What "near" means, unless a search says otherwise.
            precision: float32, or float16: half the disk, rounded to 11 bits.
            manifest: What makes the vectors.
            text_column: The column that is embedded.

        Raises:
            InputError: The folder holds something, or an argument is out of range.
            WriteError: The disk does not allow it.
        """
        folder = Path(path)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise InputError(
                f"vectors of {dimensions} dimensions cannot be kept; from 1 to {MOST_DIMENSIONS:,} can"
            )
        kept = choice(Precision, precision, "precision")
        if kept not in (Precision.FLOAT32, Precision.FLOAT16):
            raise InputError(f"originals are kept as float32 or float16, not {kept.value}; that is for codes")
        if manifest is not None and manifest.dimensions != dimensions:
            raise DimensionMismatchError(
                f"the manifest speaks of {manifest.dimensions} dimensions, the collection of {dimensions}"
            )
        near = choice(Metric, metric, "metric")
        _ensure_empty(folder)
        durable.make_dir(folder)
        with durable.lock(folder / _LOCK, what=f"the collection {folder}"):
            _ensure_empty(folder)
            durable.make_dir(folder / SEGMENTS)
            durable.make_dir(folder / SIDECARS)
            made = Catalogue(dimensions, near, kept, manifest, text_column, identity=secrets.token_hex(16))
            write_catalogue(folder, made)
        return cls(folder)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._path

    @property
    def catalogue(self) -> Catalogue:
        """What it holds now."""
        return self.snapshot().catalogue

    def __len__(self) -> int:
        """Return the rows that can be found now."""
        return self.catalogue.live

    def snapshot(self) -> Snapshot:
        """Return the collection as it is now. Costs one look at the end of a file while nothing changes.

        Raises:
            InputError: The folder is gone, or no collection any more.
            CorruptFileError: A file is damaged; the message says which, and the cure.
            StorageError: A file cannot be read.
        """
        stamp, now = self._state
        if stamp_of(self._path) == stamp:
            return now
        with self._reading:
            stamp, now = self._state
            if stamp_of(self._path) != stamp:
                self._state = self._load(now)
            return self._state[1]

    def add(
        self,
        ids: Sequence[object] | pa.Array,
        vectors: npt.ArrayLike,
        columns: pa.Table | None = None,
        *,
        replace: bool = False,
        repeated: bool = False,
    ) -> Change:
        """Add items, all of them or none. On disk when this returns.

        Cost: one segment's files a 64 MiB of vectors, and a look through the ids that are there.

        Args:
            ids: (n,) text, whole numbers of 64 bits, UUIDs or bytes; 1 and "1" are two ids.
            vectors: (n, d) finite numbers.
            columns: n rows of other columns; those the collection lacks are null for older items. Whole
                numbers beside fractions become fractions, narrower types wider ones.
            replace: Items with the same id give way to the new ones; otherwise they are an error.
            repeated: An id may stand at several rows: the pieces of one text.

        Raises:
            InputError: An id is repeated or there already, a component is NaN, lengths differ, or a column
                holds what does not go with what it holds here.
            DimensionMismatchError: The vectors are of another width.
            StorageError: Another process has been writing for half a minute, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        keys = keys_of(ids)
        columns = plain(columns)
        now = self._state[1]
        table = check(vectors, dimensions=None if not len(keys) else now.dimensions)
        if len(table) != len(keys):
            raise InputError(f"{len(keys)} ids and {len(table)} vectors; each item has one of both")
        ensure_rows(len(keys), columns)
        if now.catalogue.precision is Precision.FLOAT16:
            ensure_float16(table)
        if not repeated:
            ensure_distinct(keys)
        if not len(keys):
            return Change()
        with self._changing() as now:
            ensure_width(table, now.dimensions)
            there = now.find_keys(keys)
            if len(there) and not replace:
                raise self._known(now, there)
            catalogue = now.catalogue.next(schema=unified(now, columns, self._path))
            catalogue = without_rows(self._segments, now, catalogue, there)
            self._publish(with_rows(self._segments, catalogue, keys, table, columns))
            self._tidied()
        old = pc.is_in(keys, value_set=pa.array(now.keys(there), pa.binary())).true_count
        return Change(added=len(keys) - old, replaced=old)

    def ensure_addable(
        self, ids: Sequence[object] | pa.Array, columns: pa.Table | None = None, *, replace: bool = False
    ) -> None:
        """Raise now what `add` would raise for these ids and columns, before vectors are paid for.

        Raises:
            InputError: An id is repeated or there already, or the columns do not fit.
        """
        keys, now = keys_of(ids), self.snapshot()
        columns = plain(columns)
        ensure_rows(len(keys), columns)
        ensure_distinct(keys)
        unified(now, columns, self._path)
        there = np.empty(0, np.int64) if replace else now.find_keys(keys)
        if len(there):
            raise self._known(now, there)

    def ensure_there(self, ids: Sequence[object] | pa.Array, columns: pa.Table | None = None) -> None:
        """Raise now what `update` of all these ids would raise, before vectors are paid for.

        Raises:
            InputError: An id is repeated, or names several rows, or the columns do not fit.
            UnknownNameError: An id is not there.
        """
        keys, now = keys_of(ids), self.snapshot()
        columns = plain(columns)
        ensure_distinct(keys)
        ensure_rows(len(keys), columns)
        unified(now, columns, self._path)
        self._rows_of(now, keys, all_or_none=True)

    def delete(self, ids: Sequence[object] | pa.Array) -> Change:
        """Delete items. On disk when this returns; the space is given back by `compact`.

        Args:
            ids: Ids of items; those that are not there are listed in `Change.missing`.

        Raises:
            StorageError: Another process has been writing for half a minute, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        keys = keys_of(ids)
        with self._changing() as now:
            there = now.find_keys(keys)
            missing = not_found(keys, pa.array(now.keys(there), pa.binary()))
            if len(there):
                self._publish(without_rows(self._segments, now, now.catalogue.next(), there))
        return Change(deleted=len(there), missing=missing)

    def set_columns(self, ids: Sequence[object] | pa.Array, columns: pa.Table) -> Change:
        """Give items other columns and keep their vectors. On disk when this returns.

        Args:
            ids: (n,) ids of items, each of one row; those that are not there are listed in `Change.missing`.
            columns: n rows; columns not named keep their values.

        Raises:
            InputError: An id is repeated, or names several rows.
            StorageError: Another process has been writing for half a minute, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        return self.update(ids, columns=columns)

    def update(
        self,
        ids: Sequence[object] | pa.Array,
        *,
        vectors: npt.ArrayLike | None = None,
        columns: pa.Table | None = None,
        all_or_none: bool = False,
    ) -> Change:
        """Give items other vectors, other columns, or both, in one step. On disk when this returns.

        Args:
            ids: (n,) ids of items, each of one row.
            vectors: (n, d) finite numbers; None: theirs stay.
            columns: n rows; columns not named keep their values.
            all_or_none: An id that is not there is an error; otherwise it is listed in `Change.missing`.

        Raises:
            InputError: An id is repeated, or names several rows, or what is given does not fit.
            UnknownNameError: An id is not there and all should be; nothing was changed.
            StorageError: Another process has been writing for half a minute, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        keys, columns = keys_of(ids), plain(columns)
        ensure_distinct(keys)
        ensure_rows(len(keys), columns)
        table = None if vectors is None else check(vectors, dimensions=self._state[1].dimensions)
        if table is not None and len(table) != len(keys):
            raise InputError(f"{len(keys)} ids and {len(table)} vectors; each item has one of both")
        if table is not None and self._state[1].catalogue.precision is Precision.FLOAT16:
            ensure_float16(table)
        with self._changing() as now:
            if table is not None:
                ensure_width(table, now.dimensions)
            there, found, missing = self._rows_of(now, keys, all_or_none=all_or_none)
            if len(there):
                self._rewrite(now, there, found, pc.index_in(found, value_set=keys), table, columns)
        return Change(replaced=len(there), missing=missing)

    def _rows_of(
        self, now: Snapshot, keys: pa.Array, *, all_or_none: bool
    ) -> tuple[IntArray, pa.Array, tuple[object, ...]]:
        """Find items of one row each: positions, their ids as keys, and the ids that are not there."""
        there = now.find_keys(keys)
        found = pa.array(now.keys(there), pa.binary())
        many = pc.value_counts(found)
        many = many.filter(pc.greater(many.field("counts"), 1))
        if len(many):
            name = ids_of([many.field("values")[0].as_py()])[0]
            raise InputError(
                f"id {name!r} names several rows of {self._path}, the pieces of one text; replace them all "
                "by adding them again with replace=True"
            )
        missing = not_found(keys, found)
        if missing and all_or_none:
            raise _unknown(now, missing[0])
        return there, found, missing

    def _rewrite(
        self,
        now: Snapshot,
        there: IntArray,
        keys: pa.Array,
        at: pa.Array,
        vectors: Vectors | None,
        columns: pa.Table | None,
    ) -> None:
        """Write rows that are there anew; `at` says where in what is given each of them stands."""
        given = [] if columns is None else columns.column_names
        kept = [name for name in now.columns if name not in given]
        merged = dict(zip(kept, now.stored(there, kept).columns, strict=True))
        if columns is not None:
            merged |= {name: columns.column(name).take(at) for name in given}
        table = pa.table(merged) if merged else None
        fresh = now.fetch(there) if vectors is None else vectors[at.to_numpy()]
        catalogue = without_rows(
            self._segments, now, now.catalogue.next(schema=unified(now, table, self._path)), there
        )
        self._publish(with_rows(self._segments, catalogue, keys, fresh, table))
        self._tidied()

    def set_index(self, index: dict[str, Any] | None, write: Callable[[], None] | None = None) -> None:
        """Publish which index the collection has.

        Args:
            index: What the catalogue says of it.
            write: Writes its sidecars; called before, while nobody else changes the collection.
        """
        with self._changing() as now:
            if write is not None:
                write()
            self._publish(now.catalogue.next(index=index))

    @contextmanager
    def alone(self) -> Iterator[Snapshot]:
        """Keep all other writers away while the block runs; nothing of the segments may be written in it.

        Raises:
            StorageError: Another process has been writing for half a minute.
        """
        with self._changing() as now:
            yield now

    def compact(self, *, max_bytes: int = _COMPACT_BYTES) -> Compaction:
        """Write small segments, and those with many deleted rows, anew as few. On disk when this returns.

        A full segment is written anew from a fifth of its rows deleted: until then they take their space.
        Readers go on with what they have. Rows keep their numbers, so indexes stay right.

        Args:
            max_bytes: Bytes of vectors written at most, but one segment always; call again for more.

        Raises:
            StorageError: Another process has been writing for half a minute, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        with self._changing() as now:
            before = now.catalogue
            runs, complete = runs_to_merge(
                before, rows_per_segment(before.dimensions, before.precision), max_bytes
            )
            written = 0
            for run in runs:
                written += self._merge(run)
            after = self.snapshot().catalogue
        removed = sum(entry.rows for entry in before.segments) - sum(entry.rows for entry in after.segments)
        return Compaction(len(before.segments), len(after.segments), removed, written, complete)

    def verify(self) -> None:
        """Check every byte of the collection against its checksums.

        Raises:
            CorruptFileError: A file is not what was written; the message says which.
        """
        self._load(None)[1].verify()

    @contextmanager
    def _changing(self) -> Iterator[Snapshot]:
        """Be the only writer; start from what is published, and remove what crashed writers left."""
        stamp_of(self._path)  # where there is no collection, no lock is left either
        with self._writing, ExitStack() as held:
            self._wait_for(held)
            now = self.snapshot()
            durable.make_dir(self._segments)  # a copy may have left out empty folders
            durable.remove_leftovers(self._path)
            sweep(self._segments, now.catalogue)
            yield now

    def _wait_for(self, held: ExitStack) -> None:
        """Take the lock as soon as nobody else has it."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                held.enter_context(durable.lock(self._path / _LOCK, what=f"the collection {self._path}"))
            except WriteError:
                raise
            except StorageError:
                if time.monotonic() >= until:
                    raise
            except OSError as error:
                raise WriteError(f"{self._path} cannot be written: {error.strerror or error}") from error
            else:
                return
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - so that two who wait do not keep step

    @property
    def _segments(self) -> Path:
        return self._path / SEGMENTS

    def _publish(self, catalogue: Catalogue) -> None:
        write_catalogue(self._path, catalogue)

    def _load(self, known: Snapshot | None) -> tuple[Stamp, Snapshot]:
        """Open what the catalogue names; a writer may replace files meanwhile: then start again."""
        opened: Opened = {} if known is None else {one.identity: one for one in known.segments}
        for _ in range(_TRIES):
            catalogue, stamp = read_stamped(self._path)
            try:
                return stamp, Snapshot(self._path, catalogue, opened, known)
            except FileNotFoundError as error:
                if stamp_of(self._path) == stamp:
                    raise CorruptFileError(
                        f"{error.filename or error} is missing from the collection {self._path}; restore it "
                        "from a copy, or build the collection again from its vector set"
                    ) from error
        raise StorageError(f"{self._path} is changed faster than it can be opened; try again")

    def _tidied(self) -> None:
        """Tidy up after a change. It is published: whatever goes wrong now must not say that it failed."""
        try:
            self._tidy()
        except StorageError as error:
            _LOG.warning("small segments of %s stay as they are: %s", self._path, error)

    def _tidy(self) -> None:
        """Put neighbouring small segments of one size together, so that adding one by one stays cheap."""
        now = self.snapshot().catalogue
        full = rows_per_segment(now.dimensions, now.precision)
        size = _FAN
        while size < full:
            entries = self.snapshot().catalogue.segments
            first = len(entries)
            while first and entries[first - 1].rows < size:
                first -= 1
            if len(entries) - first >= _FAN:
                self._merge([entry.name for entry in entries[first:]])
            size *= _FAN

    def _merge(self, names: Sequence[str]) -> int:
        """Write neighbouring segments anew without their deleted rows; return the bytes of their vectors."""
        catalogue, written = gathered(self._segments, self.snapshot(), set(names))
        self._publish(catalogue)
        sweep(self._segments, catalogue)
        return written

    def _known(self, now: Snapshot, there: IntArray) -> InputError:
        name = ids_of(now.keys(there[:1]))[0]
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        return InputError(f"id {name!r}{more} is in {self._path} already; replace it by replace=True")


def _unknown(now: Snapshot, missing: Any) -> UnknownNameError:
    """Say that an id is not there, and which ones like it are."""
    for other in other_readings(missing):
        if len(now.find([other])):
            kind = "a number" if isinstance(other, int) else "a text"
            return UnknownNameError(f"unknown id {missing!r}; did you mean {other!r}, {kind}?")
    live = np.flatnonzero(now.live)[:_COMPARED_IDS]
    return unknown_name("id", shown(missing), [shown(one) for one in now.ids(live)])


def _ensure_empty(folder: Path) -> None:
    """Refuse a folder that holds something; what a creation that was cut short left there is nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a new folder")
    for path in folder.iterdir() if folder.is_dir() else ():
        left = path.name == _LOCK or durable.is_leftover(path)
        empty = path.name in (SEGMENTS, SIDECARS) and path.is_dir() and not any(path.iterdir())
        if not left and not empty:
            raise InputError(f"{folder} is not empty; name a new folder, or open the collection in it")


__all__ = ["ID", "Change", "Compaction", "Segment", "Snapshot", "Store", "is_store"]
