"""Ids of any type as bytes, so that 1 and "1" stay two ids and one column of Arrow holds them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.core.types import Id

_TEXT, _NUMBER, _BYTES = b"s", b"i", b"b"
_LONGEST = 1 << 16
"""Bytes of an id."""
_SHOWN = 60
"""Characters of an id that a message repeats."""
_DIGITS = 20
_ALONE: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bytes, "id of bytes"),
    (bytearray, "id of bytes"),
    (memoryview, "id of bytes"),
    (int, "number"),
    (np.integer, "number"),
    (UUID, "UUID"),
)
_LEAST, _GREATEST = -(1 << 63), (1 << 63) - 1


def keys_of(ids: Iterable[object]) -> pa.Array:
    """Encode ids: (n,) Arrow binary.

    Text is "s" and its UTF-8, a whole number "i" and its decimal digits, bytes are "b" and themselves. A UUID
    is its text.

    Raises:
        InputError: An id is missing, a fraction, a truth value or beyond 64 bits; the message names its row.
            One id alone is no list of ids: nobody means the letters of a text.
    """
    ids = listed(ids)
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    keys = _from_arrow(ids) if isinstance(ids, pa.Array) else None
    if keys is None:
        values = ids.to_pylist() if isinstance(ids, pa.Array) else ids
        keys = pa.array([_key(row, value) for row, value in enumerate(values)], pa.binary())
    lengths = pc.binary_length(keys).to_numpy()
    if len(lengths) and lengths.max() > _LONGEST:
        raise InputError(
            f"the id of row {int(lengths.argmax())} has {lengths.max():,} bytes; the most is {_LONGEST:,}"
        )
    return keys


def listed(ids: Iterable[object]) -> Sequence[object] | pa.Array | pa.ChunkedArray:
    """Return ids that can be read more than once: Arrow's as they are, others as a list.

    Raises:
        InputError: It is one id, not a list of them.
    """
    if isinstance(ids, pa.Array | pa.ChunkedArray | list):
        return ids
    one = next((said for kind, said in _ALONE if isinstance(ids, kind)), None)
    if one is None:
        try:
            return list(ids)
        except TypeError as error:
            raise InputError(f"ids must be a list of ids, not {type(ids).__name__}") from error
    said = repr(ids) if len(repr(ids)) <= _SHOWN else "..."
    raise InputError(f"ids is one {one}: put it into a list, [{said}]")


def other_readings(one: Id) -> list[Id]:
    """Return the ids people confuse with one: the number a text spells, the text of a number."""
    if isinstance(one, int):
        return [str(one)]
    if isinstance(one, str) and one.isascii() and len(one) <= _DIGITS and one.removeprefix("-").isdigit():
        number = int(one)
        return [number] if str(number) == one and _LEAST <= number <= _GREATEST else []
    return []


def shown(one: Id) -> str:
    """Return an id as people read it: bytes as hexadecimal digits."""
    return one.hex() if isinstance(one, bytes) else str(one)


def ids_of(keys: Sequence[bytes]) -> list[Id]:
    """Decode what `keys_of` made.

    Raises:
        CorruptFileError: It made no such key.
    """
    return [_id(key) for key in keys]


def id_column(keys: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return ids as a column to filter by: whole numbers where all are, else texts, bytes in hexadecimal."""
    kinds = set(pc.unique(pc.binary_slice(keys, 0, 1)).to_pylist())
    plain = pc.binary_slice(keys, 1, _LONGEST + 1)  # without an end some versions fail
    try:
        if kinds <= {_NUMBER} and kinds:
            return plain.cast(pa.string()).cast(pa.int64())
        if kinds <= {_NUMBER, _TEXT}:
            return plain.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise _not_a_key() from error
    return pa.array([shown(_id(key)) for key in keys.to_pylist()], pa.string())


def _from_arrow(ids: pa.Array) -> pa.Array | None:
    """Encode a column in one go where its type allows."""
    if ids.null_count:
        raise InputError(f"row {int(np.flatnonzero(np.asarray(ids.is_null()))[0])} has no id")
    kind = ids.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.binary_join_element_wise(pa.scalar(_TEXT), ids.cast(pa.binary()), pa.scalar(b""))
    if pa.types.is_signed_integer(kind):
        text = ids.cast(pa.string()).cast(pa.binary())
        return pc.binary_join_element_wise(pa.scalar(_NUMBER), text, pa.scalar(b""))
    return None


def _key(row: int, value: object) -> bytes:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        try:
            return _TEXT + value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the id of row {row} is not valid Unicode: {error.reason}") from error
    if isinstance(value, int) and not isinstance(value, bool):
        if not _LEAST <= value <= _GREATEST:
            raise InputError(f"the id of row {row} is {value}, beyond 64 bits; give it as text")
        return _NUMBER + str(value).encode("ascii")
    if isinstance(value, bytes | bytearray | memoryview):
        return _BYTES + bytes(value)
    if isinstance(value, UUID):
        return _TEXT + str(value).encode("ascii")
    if value is None:
        raise InputError(f"row {row} has no id")
    raise InputError(
        f"the id of row {row} is {type(value).__name__}; ids are text, whole numbers, UUIDs or bytes"
    )


def _id(key: bytes) -> Id:
    kind, rest = key[:1], key[1:]
    try:
        if kind == _TEXT:
            return rest.decode()
        if kind == _NUMBER:
            return int(rest)
    except ValueError as error:
        raise _not_a_key() from error
    if kind != _BYTES:
        raise _not_a_key()
    return rest


def _not_a_key() -> CorruptFileError:
    return CorruptFileError("an id of the collection is not what was written; restore it from a copy")
