"""A collection's vectors, ids and columns on disk: one writer at a time, any number of readers, no waiting.

A change writes new files beside the old ones, then replaces the catalogue: that publishes it, nothing before.
What a crash leaves behind is named by no catalogue and removed by the next writer. When a method that changes
something returns, the change is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, DimensionMismatchError, InputError
from vecmill.core.space import Manifest
from vecmill.core.types import IntArray, Metric, Precision, Vectors, choice
from vecmill.core.vectors import check
from vecmill.index.catalogue import NAME, Catalogue, Entry, generation_of, read_catalogue, write_catalogue
from vecmill.index.keys import ids_of, keys_of
from vecmill.index.segments import (
    KEY,
    ROW,
    rows_per_segment,
    write_deleted,
    write_items,
    write_vectors,
)
from vecmill.index.snapshot import ID, Segment, Snapshot

SEGMENTS = "segments"
SIDECARS = "sidecars"
_LOCK = ".lock"
_FAN = 8  # so many neighbouring segments of one size become one
_GONE_SHARE = 0.2  # a segment with more deleted rows is written anew by compact
_COMPACT_BYTES = 256 << 20
_TRIES = 8


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did.

    Attributes:
        added: Rows that are new.
        replaced: Rows that were there and are gone now, because rows with their ids took their place.
        deleted: Rows that are gone.
        missing: Ids that were to be deleted or changed and are not there.
    """

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    missing: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting did.

    Attributes:
        segments_before, segments_after: How many there are.
        rows_removed: Deleted rows that are no longer stored.
        bytes_written: Bytes of vectors that were written anew.
        complete: False where the bound was reached and another call would do more.
    """

    segments_before: int
    segments_after: int
    rows_removed: int
    bytes_written: int
    complete: bool


def is_store(path: Path | str) -> bool:
    """Say whether a folder is a collection, sound or not."""
    return (Path(path) / NAME).is_file()


class Store:
    """A collection on disk. Any thread may use it; other processes may read and write it at the same time.

    Args:
        path: The folder of an existing collection; `create` makes one.

    Raises:
        InputError: The folder is not a collection.
        CorruptFileError: Its catalogue is damaged.
        FormatVersionError: A later version wrote it.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._now = self._load()

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
            dimensions: Components of a vector, at least 1.
            metric: What "near" means, unless a search says otherwise.
            precision: float32, or float16: half the disk, rounded to 11 bits.
            manifest: What makes the vectors.
            text_column: The column that is embedded.

        Raises:
            InputError: The folder holds something, or an argument is out of range.
            WriteError: The disk does not allow it.
        """
        folder = Path(path)
        if dimensions < 1:
            raise InputError(f"vectors of {dimensions} dimensions cannot be kept; at least 1")
        kept = choice(Precision, precision, "precision")
        if kept not in (Precision.FLOAT32, Precision.FLOAT16):
            raise InputError(f"originals are kept as float32 or float16, not {kept.value}; that is for codes")
        if manifest is not None and manifest.dimensions != dimensions:
            raise DimensionMismatchError(
                f"the manifest speaks of {manifest.dimensions} dimensions, the collection of {dimensions}"
            )
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a new folder, or open the collection in it")
        durable.make_dir(folder / SEGMENTS)
        durable.make_dir(folder / SIDECARS)
        write_catalogue(
            folder,
            Catalogue(dimensions, choice(Metric, metric, "metric"), kept, manifest, text_column),
        )
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
        """Return the collection as it is now. Costs one look at a file's status while nothing changes.

        Raises:
            CorruptFileError: A file is damaged; the message says which, and the cure.
        """
        if generation_of(self._path) == self._stamp:
            return self._now
        with self._reading:
            if generation_of(self._path) != self._stamp:
                self._now = self._load()
            return self._now

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
            columns: n rows of other columns; those the collection lacks are null for older items.
            replace: Items with the same id give way to the new ones; otherwise they are an error.
            repeated: An id may stand at several rows: the pieces of one text.

        Raises:
            InputError: An id is repeated or there already, a component is NaN, or lengths differ.
            DimensionMismatchError: The vectors are of another width.
            StorageError: Another process is writing, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        keys = keys_of(ids)
        table = check(vectors, dimensions=None if not len(keys) else self._now.dimensions)
        if len(table) != len(keys):
            raise InputError(f"{len(keys)} ids and {len(table)} vectors; each item has one of both")
        if columns is not None and columns.num_rows != len(keys):
            raise InputError(
                f"{len(keys)} ids and {columns.num_rows} rows of columns; each item has one of both"
            )
        if not repeated:
            _ensure_distinct(keys)
        if not len(keys):
            return Change()
        with self._changing() as now:
            there = now.find_keys(keys)
            if len(there) and not replace:
                name = ids_of(now.keys(there[:1]))[0]
                more = f" and {len(there) - 1} more" if len(there) > 1 else ""
                raise InputError(f"id {name!r}{more} is in {self._path} already; replace it by replace=True")
            schema = _unified(now.catalogue.schema, columns, self._path)
            catalogue = now.catalogue.next(schema=schema)
            catalogue = self._without(now, catalogue, there)
            catalogue = self._with(catalogue, keys, table, columns)
            self._publish(catalogue)
            self._tidy()
        return Change(added=len(keys), replaced=len(there))

    def delete(self, ids: Sequence[object] | pa.Array) -> Change:
        """Delete items. On disk when this returns; the space is given back by `compact`.

        Args:
            ids: Ids of items; those that are not there are listed in `Change.missing`.

        Raises:
            StorageError: Another process is writing, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        keys = keys_of(ids)
        with self._changing() as now:
            there = now.find_keys(keys)
            found = pa.array(now.keys(there), pa.binary())
            missing = keys.filter(pc.invert(pc.is_in(keys, value_set=found))).to_pylist()
            if len(there):
                self._publish(self._without(now, now.catalogue.next(), there))
        return Change(deleted=len(there), missing=tuple(ids_of(missing)))

    def set_columns(self, ids: Sequence[object] | pa.Array, columns: pa.Table) -> Change:
        """Give items other columns and keep their vectors. On disk when this returns.

        Args:
            ids: (n,) ids of items, each of one row.
            columns: n rows; columns not named keep their values.

        Raises:
            InputError: An id is repeated, or names several rows.
            StorageError: Another process is writing, or a file is damaged.
        """
        keys = keys_of(ids)
        _ensure_distinct(keys)
        if columns.num_rows != len(keys):
            raise InputError(f"{len(keys)} ids and {columns.num_rows} rows of columns")
        with self._changing() as now:
            there = now.find_keys(keys)
            found = pa.array(now.keys(there), pa.binary())
            if len(pc.unique(found)) != len(found):
                raise InputError("an id names several rows; its columns cannot be changed one by one")
            missing = keys.filter(pc.invert(pc.is_in(keys, value_set=found))).to_pylist()
            if len(there):
                at = pc.index_in(found, value_set=keys)
                kept = [name for name in now.columns if name not in columns.column_names]
                stored = now.stored(there, kept)
                changed = {name: columns.column(name).take(at) for name in columns.column_names}
                merged = pa.table({**{name: stored.column(name) for name in kept}, **changed})
                schema = _unified(now.catalogue.schema, merged, self._path)
                catalogue = self._without(now, now.catalogue.next(schema=schema), there)
                self._publish(self._with(catalogue, found, now.fetch(there), merged))
                self._tidy()
        return Change(replaced=len(there), missing=tuple(ids_of(missing)))

    def set_index(self, index: dict[str, Any] | None) -> None:
        """Publish which index the collection has; its files are sidecars."""
        with self._changing() as now:
            self._publish(now.catalogue.next(index=index))

    def compact(self, *, max_bytes: int = _COMPACT_BYTES) -> Compaction:
        """Write small segments, and those with many deleted rows, anew as few. On disk when this returns.

        Readers go on with what they have. Rows keep their numbers, so indexes stay right.

        Args:
            max_bytes: Bytes of vectors written at most, but one segment always; call again for more.

        Raises:
            StorageError: Another process is writing, or a file is damaged.
            WriteError: The disk is full or does not allow it; nothing has changed.
        """
        with self._changing() as now:
            before = now.catalogue
            runs, complete = _runs(before, rows_per_segment(before.dimensions, before.precision), max_bytes)
            written = 0
            for run in runs:
                written += self._merge(run)
            after = self._now.catalogue
        removed = sum(entry.rows for entry in before.segments) - sum(entry.rows for entry in after.segments)
        return Compaction(len(before.segments), len(after.segments), removed, written, complete)

    def verify(self) -> None:
        """Check every byte of the collection against its checksums.

        Raises:
            CorruptFileError: A file is not what was written; the message says which.
        """
        Snapshot(self._path, read_catalogue(self._path)).verify()

    @contextmanager
    def _changing(self) -> Iterator[Snapshot]:
        """Be the only writer; start from what is published, and remove what crashed writers left."""
        with self._writing, durable.lock(self._path / _LOCK, what=f"the collection {self._path}"):
            now = self.snapshot()
            self._sweep(now.catalogue)
            yield now

    def _publish(self, catalogue: Catalogue) -> None:
        write_catalogue(self._path, catalogue)
        self.snapshot()

    def _load(self) -> Snapshot:
        """Open what the catalogue names; a writer may replace files meanwhile: then start again."""
        known = self._now.segments if self._stamp is not None else ()
        for attempt in range(_TRIES):
            stamp = generation_of(self._path) if is_store(self._path) else None
            catalogue = read_catalogue(self._path)
            try:
                loaded = Snapshot(self._path, catalogue, known)
            except FileNotFoundError as error:
                if generation_of(self._path) == stamp or attempt == _TRIES - 1:
                    raise CorruptFileError(
                        f"{error.filename or error} is missing from the collection {self._path}; restore it "
                        "from a copy, or build the collection again from its vector set"
                    ) from error
                continue
            self._stamp = stamp
            return loaded
        raise AssertionError("unreachable")

    def _with(
        self, catalogue: Catalogue, keys: pa.Array, vectors: Vectors, columns: pa.Table | None
    ) -> Catalogue:
        """Write new rows as segments; return the catalogue that names them."""
        step = rows_per_segment(catalogue.dimensions, catalogue.precision)
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            count = len(vectors[part])
            rows = np.arange(catalogue.next_row, catalogue.next_row + count)
            items = pa.table([pa.array(rows), keys.slice(start, step)], names=[ROW, KEY])
            if columns is not None:
                for name in columns.column_names:
                    items = items.append_column(name, columns.column(name).slice(start, step))
            catalogue = replace(
                catalogue,
                segments=(*catalogue.segments, self._segment(catalogue, vectors[part], items)),
                next_row=catalogue.next_row + count,
                next_segment=catalogue.next_segment + 1,
            )
        return catalogue

    def _segment(self, catalogue: Catalogue, vectors: Vectors, items: pa.Table) -> Entry:
        """Write the files of one segment; nothing names them yet."""
        name = f"{catalogue.next_segment:08d}"
        folder = self._path / SEGMENTS
        size = write_vectors(folder / f"{name}.vectors", vectors, catalogue.precision)
        rows = items.column(ROW)
        return Entry(
            name=name,
            rows=len(vectors),
            first_row=rows[0].as_py(),
            last_row=rows[-1].as_py(),
            vectors_bytes=size,
            items_digest=write_items(folder / f"{name}.items", items),
        )

    def _without(self, now: Snapshot, catalogue: Catalogue, positions: IntArray) -> Catalogue:
        """Write which rows are gone; return the catalogue that says so."""
        entries = list(catalogue.segments)
        for number in np.unique(np.searchsorted(now.starts, positions, side="right") - 1).tolist():
            start, stop = now.starts[number], now.starts[number + 1]
            gone = ~now.live[start:stop]
            gone[positions[(positions >= start) & (positions < stop)] - start] = True
            file = f"{entries[number].name}.deleted-{catalogue.generation}"
            entries[number] = replace(
                entries[number],
                deleted=int(gone.sum()),
                deleted_file=file,
                deleted_digest=write_deleted(self._path / SEGMENTS / file, gone),
            )
        return replace(catalogue, segments=tuple(entries))

    def _tidy(self) -> None:
        """Put neighbouring small segments of one size together, so that adding one by one stays cheap."""
        full = rows_per_segment(self._now.dimensions, self._now.catalogue.precision)
        size = _FAN
        while size < full:
            entries = self._now.catalogue.segments
            first = len(entries)
            while first and entries[first - 1].rows < size:
                first -= 1
            if len(entries) - first >= _FAN:
                self._merge([entry.name for entry in entries[first:]])
            size *= _FAN

    def _merge(self, names: Sequence[str]) -> int:
        """Write neighbouring segments anew without their deleted rows; return the bytes of their vectors."""
        now = self._now
        chosen = [number for number, entry in enumerate(now.catalogue.segments) if entry.name in set(names)]
        first, last = chosen[0], chosen[-1]
        positions = np.arange(now.starts[first], now.starts[last + 1])
        positions = positions[now.live[positions]]
        catalogue = now.catalogue.next()
        step = rows_per_segment(now.dimensions, catalogue.precision)
        made: list[Entry] = []
        for start in range(0, len(positions), step):
            part = positions[start : start + step]
            items = pa.table([pa.array(now.rows[part])], names=[ROW])
            stored = now.stored(part, [KEY, *now.columns])
            for name in stored.column_names:
                items = items.append_column(name, stored.column(name))
            made.append(self._segment(catalogue, now.fetch(part), items))
            catalogue = replace(catalogue, next_segment=catalogue.next_segment + 1)
        entries = catalogue.segments
        self._publish(replace(catalogue, segments=(*entries[:first], *made, *entries[last + 1 :])))
        self._sweep(self._now.catalogue)
        return len(positions) * now.dimensions * (4 if catalogue.precision is Precision.FLOAT32 else 2)

    def _sweep(self, catalogue: Catalogue) -> None:
        """Remove files that no catalogue names. Readers that have them open keep what they see."""
        names = {f"{entry.name}.{kind}" for entry in catalogue.segments for kind in ("vectors", "items")}
        names |= {entry.deleted_file for entry in catalogue.segments if entry.deleted_file is not None}
        folder = self._path / SEGMENTS
        durable.remove_leftovers(folder)
        durable.remove_leftovers(self._path)
        for path in sorted(folder.iterdir()):
            if path.name not in names and not durable.is_leftover(path):
                with suppress(OSError):  # open elsewhere, on Windows: the next writer removes it
                    durable.remove(path)


def _ensure_distinct(keys: pa.Array) -> None:
    counts = pc.value_counts(keys)
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(many):
        return
    key = many.field("values")[0]
    rows = np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False))
    raise InputError(
        f"rows {rows[0]} and {rows[1]} have the same id {ids_of([key.as_py()])[0]!r}; an id names one item"
    )


def _unified(schema: pa.Schema, columns: pa.Table | None, where: Path) -> pa.Schema:
    """Return the schema that holds old and new columns."""
    if columns is None:
        return schema
    for name in columns.column_names:
        if name in (ROW, KEY):
            raise InputError(f"a column cannot be named {name!r}; that name is the collection's own")
    if len(set(columns.column_names)) != len(columns.column_names):
        raise InputError(f"two columns have the same name: {', '.join(columns.column_names)}")
    merged = schema.remove_metadata()
    for field in columns.schema.remove_metadata():
        try:
            merged = pa.unify_schemas([merged, pa.schema([field])], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise InputError(
                f"column {field.name!r} holds {schema.field(field.name).type} in {where}, the new rows have "
                f"{field.type}; make them alike, or give the column another name"
            ) from error
    return merged


def _runs(catalogue: Catalogue, full: int, max_bytes: int) -> tuple[list[list[str]], bool]:
    """Choose neighbouring segments worth writing anew, within a bound: their names, run by run; is it all?"""
    runs: list[list[Entry]] = [[]]
    for entry in catalogue.segments:
        small = entry.rows - entry.deleted < full // 2
        if small or entry.deleted > _GONE_SHARE * entry.rows:
            runs[-1].append(entry)
        elif runs[-1]:
            runs.append([])
    worth = [run for run in runs if len(run) > 1 or any(entry.deleted for entry in run)]
    chosen: list[list[str]] = []
    spent, complete = 0, True
    for run in worth:
        names: list[str] = []
        for entry in run:
            if spent + entry.vectors_bytes > max_bytes and (len(names) > 1 or (spent and not names)):
                complete = False
                break
            spent += entry.vectors_bytes
            names.append(entry.name)
        if names:
            chosen.append(names)
    return chosen, complete


__all__ = ["ID", "Change", "Compaction", "Segment", "Snapshot", "Store", "is_store"]
