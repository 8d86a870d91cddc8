"""The server's binary COPY format: rows of ids, vectors and columns as bytes, and vectors back.

Source: PostgreSQL manual, COPY, "Binary Format"; the layout of `vector` is pgvector's `vector_send`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import InputError, StorageError
from vecmill.core.extras import require
from vecmill.core.types import Id, IntArray, Vectors
from vecmill.index.postgres_schema import Column

if TYPE_CHECKING:
    import psycopg
else:
    psycopg = require("psycopg", extra="postgres")

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_EPOCH_DAYS = 10_957  # from 1970-01-01 to 2000-01-01, the server's own beginning
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000
_LARGEST_TEXT = (1 << 30) - 1

Buffer: TypeAlias = bytes | bytearray | memoryview

Fields: TypeAlias = Sequence[bytes]
"""One column's fields, row by row, each with its length before it."""


def rows(fields: Sequence[Fields]) -> bytes:
    """Put the fields of columns together, row after row."""
    n = len(fields[0])
    count = [len(fields).to_bytes(2, "big")] * n
    return b"".join(chain.from_iterable(zip(count, *fields, strict=True)))


def vector_fields(vectors: Vectors) -> Fields:
    """Encode vectors (n, d) float32."""
    n, d = vectors.shape
    table = np.empty(n, dtype=[("size", ">i4"), ("d", ">i2"), ("unused", ">i2"), ("x", ">f4", (d,))])
    table["size"], table["d"], table["unused"] = 4 + 4 * d, d, 0
    table["x"] = vectors
    return _cut(table)


def id_fields(ids: Sequence[Id]) -> Fields:
    """Encode ids, all texts or all whole numbers, as `checked_ids` gave them."""
    if ids and isinstance(ids[0], int):
        return _fixed(np.array(ids, dtype=np.int64), ">i8")
    return [_sized(str(value).encode()) for value in ids]


def column_fields(column: Column, values: pa.ChunkedArray | pa.Array, ids: Sequence[Id]) -> Fields:
    """Encode a column.

    Args:
        column: What the table has.
        values: (n,) values that fit its type.
        ids: (n,) names the rows in messages.

    Raises:
        InputError: A value does not fit; the message names the column and the item, not the value.
    """
    if column.arrow is None or column.generated:
        raise InputError(f"the column {column.name!r} ({column.kind}) cannot be written: leave it out")
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if column.kind in ("json", "jsonb"):
        return _json_fields(column, array, ids)
    cast = _cast(column, array)
    present = np.asarray(cast.is_valid())
    fields = list(_encode(column, cast, ids))
    for at in np.flatnonzero(~present):
        fields[at] = _NULL
    return fields


def _cast(column: Column, array: pa.Array) -> pa.Array:
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        return array.cast(column.arrow, safe=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"the column {column.name!r} of type {array.type} does not fit the table's {column.kind} without "
            f"loss: cast it before, or leave it out"
        ) from error


_NUMBERS = {
    "smallint": ">i2",
    "integer": ">i4",
    "bigint": ">i8",
    "real": ">f4",
    "double precision": ">f8",
}


def _encode(column: Column, array: pa.Array, ids: Sequence[Id]) -> Iterable[bytes]:
    """Encode values; what stands for nulls does not matter."""
    kind = column.arrow
    if column.kind in _NUMBERS:
        return _fixed(array.fill_null(0).to_numpy(zero_copy_only=False), _NUMBERS[column.kind])
    if pa.types.is_boolean(kind):
        return _fixed(array.fill_null(False).to_numpy(zero_copy_only=False), ">i1")
    if pa.types.is_date(kind):
        return _fixed(_integers(array, pa.int32()) - _EPOCH_DAYS, ">i4")
    if pa.types.is_timestamp(kind):
        return _fixed(_integers(array, pa.int64()) - _EPOCH_MICROSECONDS, ">i8")
    if pa.types.is_time(kind):
        return _fixed(_integers(array, pa.int64()), ">i8")
    if pa.types.is_duration(kind):
        table = np.zeros(
            len(array), dtype=[("size", ">i4"), ("us", ">i8"), ("days", ">i4"), ("months", ">i4")]
        )
        table["size"], table["us"] = 16, _integers(array, pa.int64())
        return _cut(table)
    if pa.types.is_string(kind):
        return _text_fields(column, array, ids)
    if pa.types.is_binary(kind):
        return [_sized(value or b"") for value in array.to_pylist()]
    return _decimal_fields(array)


def _integers(array: pa.Array, kind: pa.DataType) -> IntArray:
    numbers: IntArray = array.cast(kind).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _text_fields(column: Column, array: pa.Array, ids: Sequence[Id]) -> Iterator[bytes]:
    bad = pc.index(pc.match_substring(array, "\0"), True).as_py()
    if bad >= 0:
        raise InputError(
            f"the column {column.name!r} of item {ids[bad]!r} has a zero byte, which PostgreSQL cannot hold: "
            f"remove it"
        )
    for value in array.to_pylist():
        yield _sized((value or "").encode())


def _decimal_fields(array: pa.Array) -> Iterator[bytes]:
    dump = psycopg.adapters.get_dumper(Decimal, psycopg.adapt.PyFormat.BINARY)(Decimal).dump
    for value in array.to_pylist():
        yield _sized(bytes(dump(Decimal(value or 0)) or b""))


def _json_fields(column: Column, array: pa.Array, ids: Sequence[Id]) -> Fields:
    """Encode lists and records; texts in a json column are taken as JSON that is written already."""
    written = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    version = b"\1" if column.kind == "jsonb" else b""
    fields = []
    for at, value in enumerate(array.to_pylist()):
        if value is None:
            fields.append(_NULL)
            continue
        try:
            text = (
                value if written else json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
            )
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the column {column.name!r} of item {ids[at]!r} cannot be written as JSON: {error}"
            ) from error
        fields.append(_sized(version + text.encode()))
    return fields


def _as_json(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "as_tuple"):  # a Decimal
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")


def _fixed(numbers: npt.NDArray[Any], kind: str) -> Fields:
    table = np.empty(len(numbers), dtype=[("size", ">i4"), ("x", kind)])
    table["size"], table["x"] = np.dtype(kind).itemsize, numbers
    return _cut(table)


def _cut(table: npt.NDArray[Any]) -> Fields:
    raw, size = table.tobytes(), table.dtype.itemsize
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def _sized(value: bytes) -> bytes:
    if len(value) > _LARGEST_TEXT:
        raise InputError(f"a value of {len(value):,} bytes does not fit a column of PostgreSQL (1 GiB)")
    return len(value).to_bytes(4, "big") + value


def checked_ids(ids: Sequence[object], kind: str, where: str) -> list[Id]:
    """Return ids as Python's own, all of the kind a table has.

    Args:
        ids: Texts, or whole numbers of 64 bits.
        kind: "text" or "bigint".
        where: The table, for messages.

    Raises:
        InputError: An id is of another kind; the message names its row.
    """
    fits = {"text": lambda value: isinstance(value, str), "bigint": _is_bigint}[kind]
    found: list[Id] = []
    for row, given in enumerate(ids):
        value: Any = given.item() if isinstance(given, np.generic) else given
        if not fits(value):
            wanted = "texts" if kind == "text" else "whole numbers of 64 bits"
            cure = "turn them all into texts" if kind == "text" else "create a table with ids of text"
            raise InputError(
                f"{where} has ids that are {wanted}; that of row {row} is {_described(value)}: {cure}"
            )
        if isinstance(value, str) and "\0" in value:
            raise InputError(f"the id of row {row} has a zero byte, which PostgreSQL cannot hold: remove it")
        found.append(value)
    return found


def _is_bigint(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _described(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if isinstance(value, int | str) else type(value).__name__


def read_vectors(chunks: Iterable[Buffer], dimensions: int) -> Iterator[tuple[IntArray, Vectors]]:
    """Read what `COPY (SELECT row, vector) TO STDOUT (FORMAT binary)` sends.

    Args:
        chunks: What the server sends, cut anywhere.
        dimensions: Components of a vector.

    Yields:
        Rows (m,) int64 and vectors (m, d) float32, some megabytes at a time.

    Raises:
        StorageError: It is something else.
    """
    record = np.dtype(
        [
            ("n", ">i2"),
            ("a", ">i4"),
            ("row", ">i8"),
            ("b", ">i4"),
            ("d", ">i2"),
            ("u", ">i2"),
            ("x", ">f4", (dimensions,)),
        ]
    )
    step = max(1, (4 << 20) // record.itemsize) * record.itemsize
    waiting = bytearray()
    begun = False
    for chunk in chain(chunks, (b"",)):
        waiting += chunk
        if not begun:
            if len(waiting) < len(HEADER):
                continue
            del waiting[: len(HEADER)]
            begun = True
        last = not len(chunk)
        if last and bytes(waiting[-2:]) == TRAILER:
            del waiting[-2:]
        ready = len(waiting) if last else len(waiting) // step * step
        if ready == 0:
            continue
        if ready % record.itemsize:
            raise StorageError("the server's vectors are cut short; run it again")
        table = np.frombuffer(bytes(waiting[:ready]), dtype=record)
        del waiting[:ready]
        if not ((table["d"] == dimensions) & (table["n"] == 2)).all():
            raise StorageError(f"the table holds vectors that do not have {dimensions} dimensions")
        yield table["row"].astype(np.int64), table["x"].astype(np.float32)


def vector_of(data: Sequence[bytes], dimensions: int) -> Vectors:
    """Decode vectors as a SELECT in binary gives them: (m, d) float32."""
    if not data:
        return np.empty((0, dimensions), np.float32)
    raw = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(data), 4 + 4 * dimensions)
    return raw[:, 4:].copy().view(">f4").astype(np.float32)
