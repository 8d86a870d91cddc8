"""A collection as it was at one moment: vectors, ids and columns of all its segments, in one numbering.

A position counts the rows of all segments from 0, those that are gone included, so that what was computed for
a segment (its codes, its lengths) stays right while rows are deleted. `live` says which ones can be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import InputError, unknown_name
from vecmill.core.types import Id, IntArray, Mask, Vectors
from vecmill.core.vectors import norms_of
from vecmill.index.catalogue import Catalogue, Entry
from vecmill.index.keys import id_column, ids_of, keys_of
from vecmill.index.segments import KEY, ROW, VectorsFile, read_deleted, read_items

ID = "id"
"""The name under which filters and records know an item's id."""


class Segment:
    """The files of one segment, open. Which of its rows are gone is not part of it.

    Args:
        folder: The collection's folder of segments.
        entry: What the catalogue says of it.
        dimensions: Components of a vector.

    Raises:
        FileNotFoundError: A file is not there.
        CorruptFileError: A file is not what was written.
    """

    def __init__(self, folder: Path, entry: Entry, dimensions: int) -> None:
        self.name = entry.name
        self.vectors = VectorsFile(folder / f"{entry.name}.vectors", rows=entry.rows, dimensions=dimensions)
        self.items: pa.Table = read_items(folder / f"{entry.name}.items", entry.items_digest)

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


class Snapshot:
    """All vectors, ids and columns of a collection at one generation. It never changes, for any thread.

    `Store.snapshot` makes it. It is an `Originals`: `fetch` and `parts` speak of positions.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, known: Sequence[Segment] = ()) -> None:
        open_already = {segment.name: segment for segment in known}
        self.catalogue = catalogue
        self.folder = folder
        self.segments = tuple(
            open_already.get(entry.name) or Segment(folder / "segments", entry, catalogue.dimensions)
            for entry in catalogue.segments
        )
        self.starts: IntArray = np.concatenate(
            (np.zeros(1, np.int64), np.cumsum([len(segment) for segment in self.segments], dtype=np.int64))
        )
        self.live: Mask = np.ones(len(self), np.bool_)
        for entry, start in zip(catalogue.segments, self.starts.tolist(), strict=False):
            if entry.deleted_file is not None and entry.deleted_digest is not None:
                path = folder / "segments" / entry.deleted_file
                gone = read_deleted(path, entry.deleted_digest, entry.rows)
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
        """Return the positions of the live rows that have one of these encoded ids, ascending."""
        found = [np.empty(0, np.int64)]
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            hit = pc.is_in(segment.items.column(KEY), value_set=wanted)
            found.append(start + np.flatnonzero(hit.to_numpy(zero_copy_only=False)))
        positions = np.concatenate(found)
        return positions[self.live[positions]]

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
        arrays = []
        for name in names:
            kind = pa.binary() if name == KEY else self.catalogue.schema.field(name).type
            if name not in segment.items.column_names:
                arrays.append(pa.chunked_array([pa.nulls(len(segment), kind)]))
                continue
            column = segment.items.column(name)
            arrays.append(column if column.type == kind else column.cast(kind))
        return pa.table(arrays, names=list(names)) if names else segment.items.select([])

    def _empty(self, names: Sequence[str]) -> pa.Table:
        kinds = [pa.binary() if name == KEY else self.catalogue.schema.field(name).type for name in names]
        return pa.table([pa.array([], kind) for kind in kinds], names=list(names))

    def _inside(self, names: Sequence[str]) -> list[str]:
        """Return the stored columns that are needed for the named ones."""
        for name in names:
            if name not in self.columns and name != ID:
                raise unknown_name("column", name, (ID, *self.columns))
        return [KEY if name == ID and ID not in self.columns else name for name in dict.fromkeys(names)]

    def _shaped(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """Give stored columns the names they were asked by."""
        return pa.table(
            [
                id_column(table.column(KEY)) if name == ID and ID not in self.columns else table.column(name)
                for name in names
            ],
            names=list(names),
        )
