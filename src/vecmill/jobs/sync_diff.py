"""What changed between a table and what was made from it, by id: 48 bytes of digests a row, never the texts.

Two cells are equal when they say the same, whatever type their file gave them: 3 and 3.0, a moment in
milliseconds or in microseconds, a list or the same list elsewhere. 3 and "3" differ. A column that is null
everywhere equals one that is not there.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from vecmill.core.types import Id, IntArray, Mask

DIGEST_BYTES = 16

DigestArray = npt.NDArray[np.bytes_]
"""(n,) of 16 bytes each."""

_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY = 86_400 * 10**9
_EXACT = 2.0**53


class Action(IntEnum):
    """What is to be done with a row of the table."""

    UNCHANGED = 0
    ADD = 1
    UPDATE = 2
    COLUMNS = 3
    SKIP = 4


@dataclass(frozen=True, slots=True)
class Digests:
    """What a table or a target holds, as digests, in its own order.

    Attributes:
        ids, texts, columns: (n,) digests of 16 bytes.
        marked: (n,) bool. Of a table: rows that are not to be in the target. Of a target: rows to try again.
    """

    ids: DigestArray
    texts: DigestArray
    columns: DigestArray
    marked: Mask

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Digester:
    """Gathers `Digests`, batch after batch."""

    _ids: bytearray = field(default_factory=bytearray)
    _texts: bytearray = field(default_factory=bytearray)
    _columns: bytearray = field(default_factory=bytearray)
    _marked: list[Mask] = field(default_factory=list)

    def add(
        self,
        ids: Sequence[Id],
        texts: Sequence[str | None],
        columns: pa.RecordBatch | pa.Table,
        marked: Mask | None = None,
    ) -> None:
        """Take the next rows.

        Args:
            ids: Their ids.
            texts: What was embedded, or is to be; None where there is none.
            columns: What else is compared.
            marked: (n,) bool; None marks none.
        """
        self._ids += b"".join(id_digest(one) for one in ids)
        self._texts += b"".join(map(_text_digest, texts))
        self._columns += b"".join(map(_digest, _rows(columns)))
        self._marked.append(np.zeros(len(ids), np.bool_) if marked is None else marked)

    def finish(self) -> Digests:
        """Return what was gathered."""
        marked = np.concatenate(self._marked) if self._marked else np.zeros(0, np.bool_)
        return Digests(_array(self._ids), _array(self._texts), _array(self._columns), marked)


@dataclass(frozen=True, slots=True)
class Diff:
    """What makes a target equal to its table.

    Attributes:
        actions: (n,) uint8, an `Action` per row of the table.
        first: (n,) int64, the first row of the target with the same id, -1 where there is none.
        gone: (g,) int64 ascending, rows of the target whose ids the table does not have.
        target_ids, gone_ids: How many ids the target has, and how many of them are gone.
        order, sorted_ids: The target's rows by id, for `rows_of`.
    """

    actions: npt.NDArray[np.uint8]
    first: IntArray
    gone: IntArray
    target_ids: int
    gone_ids: int
    order: IntArray = field(repr=False)
    sorted_ids: DigestArray = field(repr=False)
    table_ids: DigestArray = field(repr=False)

    def count(self, action: Action) -> int:
        """Return how many rows of the table need this."""
        return int((self.actions == action).sum())

    @property
    def to_embed(self) -> Mask:
        """(n,) bool: rows of the table that need a vector."""
        found: Mask = (self.actions == Action.ADD) | (self.actions == Action.UPDATE)
        return found

    def rows_of(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Return the target's rows of some rows of the table: of an id cut into chunks there are several.

        Args:
            rows: (m,) rows of the table.

        Returns:
            Rows of the target (t,), ascending within an id, and for each the place in `rows` (t,).
        """
        wanted = self.table_ids[rows]
        left = np.searchsorted(self.sorted_ids, wanted, side="left")
        counts = np.searchsorted(self.sorted_ids, wanted, side="right") - left
        place = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.order[left[place] + within], place


def compare(table: Digests, target: Digests) -> Diff:
    """Say what is to be done with each row of a table whose ids differ, and which rows of the target go.

    A row that is marked in the table is to be left out: its id counts as one the table does not have. A row
    marked in the target is tried again, as if its text were another. Cost: sorting both sides by id.
    """
    order = np.argsort(target.ids, kind="stable").astype(np.int64)
    sorted_ids = target.ids[order]
    at = np.searchsorted(sorted_ids, table.ids)
    found = np.zeros(len(table), np.bool_)
    inside = at < len(sorted_ids)
    found[inside] = sorted_ids[at[inside]] == table.ids[inside]
    first = np.full(len(table), -1, np.int64)
    first[found] = order[at[found]]
    there = first[found]
    actions = np.full(len(table), Action.ADD, np.uint8)
    same_text = (table.texts[found] == target.texts[there]) & ~target.marked[there]
    same_columns = table.columns[found] == target.columns[there]
    actions[found] = np.select(
        [~same_text, ~same_columns], [Action.UPDATE, Action.COLUMNS], Action.UNCHANGED
    ).astype(np.uint8)
    actions[table.marked] = Action.SKIP
    gone = np.flatnonzero(~np.isin(target.ids, table.ids[~table.marked]))
    return Diff(
        actions=actions,
        first=first,
        gone=gone,
        target_ids=len(np.unique(sorted_ids)),
        gone_ids=len(np.unique(target.ids[gone])),
        order=order,
        sorted_ids=sorted_ids,
        table_ids=table.ids,
    )


def id_digest(one: Id) -> bytes:
    """Return the digest of an id: 1, "1" and b"1" are three ids."""
    match one:
        case str():
            return _digest(b"s" + one.encode("utf-8", "surrogatepass"))
        case bytes():
            return _digest(b"b" + one)
    return _digest(b"i%d" % int(one))


def aligned(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a target's column in the table's type where that loses nothing, else as it is.

    So a moment that JSON lines keep as text, or a number PostgreSQL keeps as numeric, equals the table's.
    """
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return column


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _text_digest(text: str | None) -> bytes:
    return bytes(DIGEST_BYTES) if text is None else _digest(text.encode("utf-8", "surrogatepass"))


def _array(raw: bytearray) -> DigestArray:
    return np.frombuffer(bytes(raw), dtype=f"S{DIGEST_BYTES}")


def _rows(columns: pa.RecordBatch | pa.Table) -> Iterable[bytes]:
    """Encode the rows: an object of what is not null, keys in order."""
    names = sorted(columns.schema.names)
    values = [_cells(columns.column(name)) for name in names]
    if not names:
        return [b"{}"] * columns.num_rows
    return [
        orjson.dumps({name: cell for name, cell in zip(names, row, strict=True) if cell is not None})
        for row in zip(*values, strict=True)
    ]


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's cells in the one form that equal values share."""
    if isinstance(column, pa.ChunkedArray):
        return [cell for chunk in column.chunks for cell in _cells(chunk)]
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _cells(column.storage)
    if pa.types.is_dictionary(kind):
        return _cells(column.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind):
        return _moments(column, _NANOSECONDS[kind.unit])
    if pa.types.is_date(kind):
        return _moments(column.cast(pa.date32()), _DAY)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return list(column.to_pylist())
    return [_plain(cell) for cell in column.to_pylist()]


def _moments(column: pa.Array, factor: int) -> list[Any]:
    width = pa.int32() if column.type.bit_width == 32 else pa.int64()
    numbers = column.cast(width).to_pylist()
    return [None if number is None else ["t", str(number * factor)] for number in numbers]


def _plain(value: Any) -> Any:
    """Return a value in the one form that equal ones share; what JSON has no word for is tagged."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < _EXACT else ["i", str(value)]
        case float():
            return _number(value)
        case Decimal():
            return _number(float(value)) if float(value) == value else ["d", format(value.normalize(), "f")]
        case bytes():
            return ["b", base64.b64encode(value).decode("ascii")]
        case dict():
            return {str(key): _plain(item) for key, item in sorted(value.items()) if item is not None}
        case list() | tuple():
            return [_plain(item) for item in value]
    return ["o", value.isoformat() if hasattr(value, "isoformat") else str(value)]


def _number(value: float) -> Any:
    if not math.isfinite(value):
        return ["f", repr(value)]
    if not value.is_integer():
        return value
    return int(value) if abs(value) < _EXACT else ["i", str(int(value))]
