"""A vector set brought up to date: written whole beside, vectors that stay copied byte for byte, renamed.

The rows stand in the order of the table, as if it had been embedded anew; rows that are gone from the table
and are to be kept follow behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.core.space import Manifest
from vecmill.core.types import IntArray, Mask
from vecmill.data.set_files import SetFile
from vecmill.data.vector_set import stream_vectors
from vecmill.jobs.layout import Layout, ids_of
from vecmill.jobs.sync_diff import Diff, aligned
from vecmill.jobs.windows import Window

_FROM_TABLE = ("id", "file", "row", "text")
"""Roles whose values come from the table; all others come from where the vector does."""

_STEP = 8_192


class Spool:
    """The vectors of a set in one file that can be read at any place: (n, d) float32, zeros where none is.

    Args:
        path: The file, made here; whoever calls removes it.
        source: The set.
    """

    def __init__(self, path: Path, source: Path) -> None:
        stream = stream_vectors(source)
        self.present = np.zeros(stream.total_rows, np.bool_)
        row = 0
        with path.open("wb") as file:
            for batch in stream.batches():
                block = np.zeros((len(batch.ids), stream.dimensions), np.float32)
                block[batch.rows] = batch.vectors
                self.present[row + batch.rows] = True
                file.write(block.data)
                row += len(block)
        shape = (row, stream.dimensions)
        self._map: npt.NDArray[np.float32] = (
            np.memmap(path, np.float32, "r", shape=shape) if row else np.zeros(shape, np.float32)
        )

    def take(self, rows: IntArray) -> pa.Array:
        """Return the vectors at rows as a column of lists."""
        missing = ~self.present[rows]
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.asarray(self._map[rows]).ravel()),
            self._map.shape[1],
            mask=pa.array(missing) if missing.any() else None,
        )


@dataclass(frozen=True, slots=True)
class Side:
    """Where rows of the new set come from: the old set, or the set of changes.

    Attributes:
        file: The set. made: its manifest.
        spool: Its vectors at any place; None: they are read from the file, in order.
        others: What goes with them, in memory, where the vectors are spooled: about 30 bytes a row.
    """

    file: SetFile
    made: Manifest
    spool: Spool | None = None
    others: pa.Table | None = None

    @classmethod
    def at_any_place(cls, file: SetFile, made: Manifest, spool: Path, layout: Layout) -> Side:
        """Prepare a set whose rows are taken in any order."""
        names = [name for name in _names(file, made, layout).values() if name != made.vector]
        batches = list(file.batches(names)) if names else []
        others = pa.Table.from_batches(batches) if batches else None
        return cls(file, made, Spool(spool, file.path), others)

    def take(self, rows: IntArray, layout: Layout) -> dict[str, Any]:
        """Return what goes with rows, by role: the vectors, and what was noted when they were made."""
        names = _names(self.file, self.made, layout)
        if self.spool is None:
            table = self.file.take(rows, list(names.values()))
            return {role: table.column(name).combine_chunks() for role, name in names.items()}
        found: dict[str, Any] = {"embedding": self.spool.take(rows)}
        if self.others is not None:
            table = self.others.take(pa.array(rows))
            del names["embedding"]
            found |= {role: table.column(name).combine_chunks() for role, name in names.items()}
        return found


def _names(file: SetFile, made: Manifest, layout: Layout) -> dict[str, str]:
    """Return the columns of a set that go with its vectors, by role."""
    names = {role: made.column(role) for role in layout.names if role not in (*_FROM_TABLE, "embedding")}
    there = {role: name for role, name in names.items() if name in file.schema.names}
    return {**there, "embedding": made.vector}


@dataclass(slots=True)
class Merge:
    """The rows of a set after a sync.

    Attributes:
        layout: Its columns.
        diff: What changed.
        old: The set as it is. changes: rows that were embedded, None where none was.
        at: Position in `changes` of the first row of each row of the table that was embedded, by number
            among those; one more than there are.
        keep: Rows of the old set that stay though the table no longer has them.
        rows, failed, vectors: What the new set will have; filled while it is written.
    """

    layout: Layout
    diff: Diff
    old: Side
    changes: Side | None
    at: IntArray
    keep: IntArray
    failed: list[dict[str, Any]] = field(default_factory=list)
    vectors: int = 0
    errors: int = 0

    def total_rows(self) -> int:
        """Count the rows of the new set before it is written."""
        stay = np.flatnonzero(~self.diff.to_embed)
        copied, _ = self.diff.rows_of(stay)
        return len(copied) + int(self.at[-1]) + len(self.keep)

    def batches(self, windows: Iterator[Window]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the new set, a window of the table at a time."""
        row = embedded = 0
        for window in windows:
            here = np.arange(row, row + len(window))
            new = self.diff.to_embed[here]
            count = int(new.sum())
            batch = self._window(window, here, new, embedded)
            row, embedded = row + len(window), embedded + count
            yield self._counted(batch)
        for start in range(0, len(self.keep), _STEP):
            yield self._counted(self._kept(self.keep[start : start + _STEP]))

    def _window(self, window: Window, here: IntArray, new: Mask, embedded: int) -> pa.RecordBatch:
        stay = np.flatnonzero(~new)
        old_rows, place = self.diff.rows_of(here[stay])
        starts = self.at[embedded : embedded + len(here) - len(stay) + 1]
        fresh = np.flatnonzero(new)
        from_row = np.concatenate([stay[place], np.repeat(fresh, np.diff(starts))])
        order = np.argsort(from_row, kind="stable")
        parts = [self.old.take(old_rows, self.layout)] if len(old_rows) else []
        if self.changes is not None and len(fresh):
            parts.append(self.changes.take(np.arange(starts[0], starts[-1]), self.layout))
        lengths = [n for n in (len(old_rows), int(starts[-1] - starts[0])) if n]
        roles = _roles(parts, lengths, order, self.layout)
        return _batch(window, from_row[order], roles, self.layout)

    def _kept(self, rows: IntArray) -> pa.RecordBatch:
        """Return rows of the old set in the new set's columns."""
        layout, file = self.layout, self.old.file
        found = self.old.take(rows, layout)
        for role in _FROM_TABLE:
            if role in layout.names:
                found[role] = _column(
                    file, rows, self.old.made.text if role == "text" else self.old.made.column(role)
                )
        by_name = {layout.names[role]: column for role, column in found.items()}
        arrays = []
        for entry in layout.schema:
            column = by_name[entry.name] if entry.name in by_name else _column(file, rows, entry.name)
            arrays.append(_as(column, entry, len(rows)))
        return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)

    def _counted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = self.layout.names
        errors = batch.column(names["error"])
        self.vectors += len(batch) - batch.column(names["embedding"]).null_count
        bad = np.flatnonzero(np.asarray(errors.is_valid()))
        self.errors += len(bad)
        keys = [batch.column(names[role]).take(pa.array(bad)).to_pylist() for role in ("id", "file", "row")]
        for id_, file, row, error in zip(*keys, errors.take(pa.array(bad)).to_pylist(), strict=True):
            self.failed.append({"id": id_, "file": file, "row": row, **error})
        return batch


def first_rows(rows: IntArray, count: int, where: str) -> IntArray:
    """Return where the rows of each row of the table begin in a set of changes: (count + 1,) int64.

    Args:
        rows: (m,) ascending, the `row` column of the set.
        count: Rows of the table that were embedded.
        where: Names the set, in the message.

    Raises:
        CorruptFileError: The set is not of these rows.
    """
    if len(np.unique(rows)) != count or (len(rows) and (np.diff(rows) < 0).any()):
        raise CorruptFileError(f"{where} does not hold what changed; remove its folder, then sync again")
    return np.searchsorted(rows, np.arange(count + 1)).astype(np.int64)


def _roles(
    parts: list[dict[str, Any]], lengths: list[int], order: IntArray, layout: Layout
) -> Mapping[str, Any]:
    """Put the columns of both sides together in the order of the table."""
    roles: dict[str, Any] = {}
    for role, name in layout.names.items():
        if role in _FROM_TABLE:
            continue
        entry = layout.schema.field(name)
        columns = [_as(part.get(role), entry, n) for part, n in zip(parts, lengths, strict=True)]
        roles[role] = pa.concat_arrays(columns).take(pa.array(order))
    return roles


def _batch(window: Window, from_row: IntArray, roles: Mapping[str, Any], layout: Layout) -> pa.RecordBatch:
    """Lay out the rows of a window: what the table says, and what goes with the vectors."""
    take = pa.array(from_row)
    names = layout.names
    made = {names[role]: column for role, column in roles.items()}
    made[names["id"]] = pa.array(ids_of(window, layout), pa.string()).take(take)
    made[names["file"]] = pa.array(window.files, pa.string()).take(take)
    made[names["row"]] = pa.array(window.rows[from_row])
    if "text" in names:
        made[names["text"]] = pa.array(window.texts, pa.string()).take(take)
    source = dict(zip(window.batch.schema.names, window.batch.columns, strict=True))
    arrays = [made[name] if name in made else source[name].take(take) for name in layout.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


def _column(file: SetFile, rows: IntArray, name: str | None) -> Any:
    if name is None or name not in file.schema.names:
        return None
    return file.take(rows, [name]).column(name).combine_chunks()


def _as(column: Any, entry: pa.Field, rows: int) -> Any:
    """Return a column in the new set's type; what cannot be is null, a number that must be there 0."""
    if column is None:
        return pa.nulls(rows, entry.type) if entry.nullable else pa.array(np.zeros(rows), entry.type)
    column = aligned(column, entry.type)
    if column.type != entry.type:
        raise InputError(
            f"column {entry.name!r} is {column.type} in the set and {entry.type} in the table, and not every "
            "row that stays fits: give the column another name, or let the rows that are gone go"
        )
    return column
