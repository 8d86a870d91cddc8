"""A collection as it was at one moment: vectors, ids and columns of all its segments, in one numbering.

A position counts the rows of all segments from 0, those that are gone included, so that what was computed for
a segment (its codes, its lengths) stays right while rows are deleted. `live` says which ones can be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import InputError, unknown_name
from vecmill.core.types import Id, IntArray, Mask, Precision, Vectors
from vecmill.core.vectors import norms_of
from vecmill.index.catalogue import Catalogue, Entry
from vecmill.index.keys import id_column, ids_of, keys_of
from vecmill.index.segments import KEY, ROW, VectorsFile, damaged, read_deleted, read_items

ID = "id"
"""The name under which filters and records know an item's id."""


Opened: TypeAlias = MutableMapping[tuple[str, str, str], "Segment"]
"""Segments that are open, by `Segment.identity`."""


class Segment:
    """The files of one segment, open. Which of its rows are gone is not part of it.

    Args:
        folder: The collection's folder of segments.
        entry: What the catalogue says of it.
        dimensions: Components of a vector.
        precision: How they are kept.

    Raises:
        FileNotFoundError: A file is not there.
        CorruptFileError: A file is not what was written, or not what the catalogue says.
        StorageError: A file cannot be read.
    """

    def __init__(self, folder: Path, entry: Entry, dimensions: int, precision: Precision) -> None:
        self.name = entry.name
        self.identity = identity_of(entry)
        self.vectors = VectorsFile(
            folder / f"{entry.name}.vectors",
            rows=entry.rows,
            dimensions=dimensions,
            precision=precision,
            digest=entry.vectors_digest,
        )
        self._path = folder / f"{entry.name}.items"
        self.items: pa.Table = read_items(self._path, entry.items_digest)
        self._ensure_items(entry)

    def _ensure_items(self, entry: Entry) -> None:
        """Refuse items that are not those of the vectors."""
        names = self.items.column_names
        if len(set(names)) != len(names) or not {ROW, KEY} <= set(names):
            raise damaged(self._path, f"its columns are {', '.join(names)[:200]}")
        numbers, keys = self.items.column(ROW), self.items.column(KEY)
        if numbers.type != pa.int64() or keys.type != pa.binary() or numbers.null_count or keys.null_count:
            raise damaged(self._path, f"{ROW} is {numbers.type}, {KEY} is {keys.type}, or some are missing")
        rows = self.rows
        if len(rows) != entry.rows or (rows[0], rows[-1]) != (entry.first_row, entry.last_row):
            raise damaged(self._path, f"it has {len(rows)} rows, or others than the catalogue says")
        if (rows[1:] <= rows[:-1]).any():
            raise damaged(self._path, "its rows do not ascend")

    def column(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        """Return a column as the collection's schema has it; nulls where the segment lacks it.

        Raises:
            CorruptFileError: What it holds is no such type.
        """
        if name not in self.items.column_names:
            return pa.chunked_array([pa.nulls(len(self), kind)])
        column = self.items.column(name)
        if column.type == kind:
            return column
        try:
            return column.cast(kind)
        except pa.ArrowException as error:
            raise damaged(self._path, f"column {name!r} holds {column.type}, not {kind}") from error

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def rows(self) -> IntArray:
        """The rows' numbers, ascending: (n,) int64."""
        numbers: IntArray = self.items.column(ROW).to_numpy()
        return numbers

    @cached_property
    def norms(self) -> Any:
        """The vectors' lengths: (n,) float32. Reads them all, once."""
        parts = [norms_of(block) for _, block in self.vectors.parts()]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def identity_of(entry: Entry) -> tuple[str, str, str]:
    """Return what tells the files of one segment from those of any other, of this collection or another."""
    return entry.name, entry.vectors_digest, entry.items_digest


class Snapshot:
    """All vectors, ids and columns of a collection at one generation. It never changes, for any thread.

    `Store.snapshot` makes it. It is an `Originals`: `fetch` and `parts` speak of positions.

    Args:
        folder: The collection.
        catalogue: What it holds.
        opened: Segments that are open already; those opened now are put there too, also where one fails.
        known: An earlier snapshot, whose bits of deleted rows are used again.

    Raises:
        FileNotFoundError: A file is not there: a writer has removed it, or it is lost.
        CorruptFileError: A file is not what was written.
        StorageError: A file cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        opened: Opened | None = None,
        known: Snapshot | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.folder = folder
        self.segments = tuple(_open(folder / "segments", catalogue, {} if opened is None else opened))
        self.starts: IntArray = np.concatenate(
            (np.zeros(1, np.int64), np.cumsum([len(segment) for segment in self.segments], dtype=np.int64))
        )
        self.live: Mask = np.ones(len(self), np.bool_)
        self._gone: dict[str, Mask] = {}
        before: Mapping[str, Mask] = {} if known is None else known._gone
        for entry, start in zip(catalogue.segments, self.starts.tolist(), strict=False):
            if entry.deleted_file is None or entry.deleted_digest is None:
                continue
            gone = before.get(entry.deleted_digest)
            if gone is None or len(gone) != entry.rows:
                path = folder / "segments" / entry.deleted_file
                gone = read_deleted(path, entry.deleted_digest, entry.rows)
            if np.count_nonzero(gone) != entry.deleted:
                where = folder / "segments" / entry.deleted_file
                raise damaged(where, f"it marks {np.count_nonzero(gone)} rows, not {entry.deleted}")
            self._gone[entry.deleted_digest] = gone
            self.live[start : start + entry.rows] = ~gone
        self.live.setflags(write=False)

    @property
    def generation(self) -> int:
        """Raised by one with every change."""
        return self.catalogue.generation

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self.catalogue.dimensions

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the items, ids left out."""
        return tuple(self.catalogue.schema.names)

    def __len__(self) -> int:
        """Return the positions, those of rows that are gone included."""
        return int(self.starts[-1])

    @cached_property
    def rows(self) -> IntArray:
        """The number of the row at each position, ascending: (n,) int64. It survives compaction."""
        return np.concatenate([np.empty(0, np.int64), *(segment.rows for segment in self.segments)])

    @cached_property
    def norms(self) -> Any:
        """The vectors' lengths: (n,) float32."""
        return np.concatenate([np.empty(0, np.float32), *(segment.norms for segment in self.segments)])

    def fetch(self, rows: IntArray) -> Vectors:
        """Return the vectors at positions: (m, d) float32, a new array.

        Raises:
            CorruptFileError: What lies there is not what was written.
        """
        out = np.empty((len(rows), self.dimensions), np.float32)
        for number, at in self._by_segment(rows):
            out[at] = self.segments[number].vectors.fetch(rows[at] - self.starts[number])
        return out

    def parts(self) -> Iterator[tuple[int, Vectors]]:
        """Yield all vectors in order: position of the first, (m, d) float32.

        Raises:
            CorruptFileError: What lies there is not what was written.
        """
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            for offset, block in segment.vectors.parts():
                yield start + offset, block

    def find(self, ids: Sequence[object] | pa.Array) -> IntArray:
        """Return the positions of the live rows that have one of these ids, ascending."""
        return self.find_keys(keys_of(ids))

    def find_keys(self, wanted: pa.Array) -> IntArray:
        """Return the positions of the live rows that have one of these encoded ids, ascending.

        Cost: one look at every id, some 30 ms a million.
        """
        if not self.segments or not len(wanted):
            return np.empty(0, np.int64)
        hit = pc.is_in(self._all_keys, value_set=wanted)
        positions = np.flatnonzero(hit.to_numpy())
        return positions[self.live[positions]]

    @cached_property
    def _all_keys(self) -> pa.ChunkedArray:
        return pa.chunked_array(
            [chunk for segment in self.segments for chunk in segment.items.column(KEY).chunks], pa.binary()
        )

    def keys(self, positions: IntArray) -> list[bytes]:
        """Return the encoded ids at positions, in their order."""
        return self._take(positions, [KEY]).column(KEY).to_pylist()  # type: ignore[no-any-return]  # Arrow is untyped

    def ids(self, positions: IntArray) -> list[Id]:
        """Return the ids at positions, in their order."""
        return ids_of(self.keys(positions))

    def records(self, positions: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return named columns of the rows at positions, in their order.

        Raises:
            UnknownNameError: There is no such column.
        """
        if not names:
            return [{} for _ in positions]  # a table without columns has no rows
        table = self._take(positions, self._inside(names))
        return self._shaped(table, names).to_pylist()  # type: ignore[no-any-return]  # Arrow is untyped

    def stored(self, positions: IntArray, names: Sequence[str]) -> pa.Table:
        """Return columns at positions as they are stored, `KEY` too."""
        return self._take(positions, names)

    def table(self, names: Sequence[str]) -> pa.Table:
        """Return named columns of all positions, memory-mapped; `id` is the ids.

        Raises:
            UnknownNameError: There is no such column.
        """
        inside = self._inside(names)
        parts = [self._columns(segment, inside) for segment in self.segments]
        return self._shaped(pa.concat_tables(parts or [self._empty(inside)]), names)

    def verify(self) -> None:
        """Check every byte of every segment against its checksum.

        Raises:
            CorruptFileError: A file is not what was written; the message says which.
        """
        for segment in self.segments:
            segment.vectors.verify()

    def _take(self, positions: IntArray, names: Sequence[str]) -> pa.Table:
        """Gather columns at positions, in their order."""
        pieces: list[pa.Table] = []
        order: list[IntArray] = []
        for number, at in self._by_segment(positions):
            columns = self._columns(self.segments[number], names)
            pieces.append(columns.take(pa.array(positions[at] - self.starts[number])))
            order.append(at)
        if not pieces:
            return self._empty(names)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(pieces).take(pa.array(back))

    def _by_segment(self, positions: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Yield the number of each segment that holds some positions, and where in the array they stand."""
        if len(positions) and (positions.min() < 0 or positions.max() >= len(self)):
            raise InputError(f"positions must lie from 0 to {len(self) - 1}")
        of = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(of).tolist():
            yield number, np.flatnonzero(of == number)

    def _columns(self, segment: Segment, names: Sequence[str]) -> pa.Table:
        """Return columns of a segment as the collection's schema has them; what it lacks is null."""
        arrays = [segment.column(name, self._kind(name)) for name in names]
        return pa.table(arrays, names=list(names)) if names else segment.items.select([])

    def _kind(self, name: str) -> pa.DataType:
        return pa.binary() if name == KEY else self.catalogue.schema.field(name).type

    def _empty(self, names: Sequence[str]) -> pa.Table:
        return pa.table([pa.array([], self._kind(name)) for name in names], names=list(names))

    def _inside(self, names: Sequence[str]) -> list[str]:
        """Return the stored columns that are needed for the named ones."""
        for name in names:
            if name not in self.columns and name != ID:
                raise unknown_name("column", name, (ID, *self.columns))
        return [KEY if name == ID else name for name in dict.fromkeys(names)]

    def _shaped(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """Give stored columns the names they were asked by."""
        return pa.table(
            [id_column(table.column(KEY)) if name == ID else table.column(name) for name in names],
            names=list(names),
        )


def _open(folder: Path, catalogue: Catalogue, opened: Opened) -> Iterator[Segment]:
    for entry in catalogue.segments:
        identity = identity_of(entry)
        segment = opened.get(identity)
        if segment is None or len(segment) != entry.rows:
            segment = Segment(folder, entry, catalogue.dimensions, catalogue.precision)
            opened[identity] = segment
        yield segment
