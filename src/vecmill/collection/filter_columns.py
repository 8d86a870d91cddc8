"""A filter computed over Arrow columns: exact for every width of number, null where SQL says unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.collection.filter_grammar import (
    All,
    Column,
    Compare,
    Holds,
    In,
    IsNull,
    Like,
    Node,
    Not,
    Some,
    Value,
    wrong,
)
from vecmill.core.errors import InputError, UnknownNameError, unknown_name
from vecmill.core.types import Mask

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_MOST_HOURS = 15
"""By which a time zone may differ from UTC. Source: PostgreSQL, `datatype/timestamp.h`, MAX_TZDISP_HOUR."""

_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)


def check(node: Node, schema: pa.Schema) -> None:
    """Say what in a filter does not fit columns of these types.

    Raises:
        UnknownNameError: There is no such column; the message lists close ones.
        InputError: A column is compared with what it cannot be.
    """
    for column in columns(node):
        if column.name not in schema.names:
            raise _unknown(column, schema.names)
        if schema.names.count(column.name) > 1:
            raise wrong(column.at, f"there are several columns {column.name!r}")
    for column, others, operation in _meetings(node):
        kind = _stored(schema.field(column.name).type)
        family = _family(kind)
        if operation == "holds" and family not in ("true or false", "nothing"):
            raise wrong(column.at, f"{_said(column, kind)}; compare it with a value")
        if operation == "like" and family not in ("text", "nothing"):
            raise wrong(column.at, f"{_said(column, kind)}; like compares texts")
        for other in others:
            if isinstance(other, Column):
                _ensure_alike(column, kind, other, _stored(schema.field(other.name).type))
            else:
                _ensure_fits(column, kind, other)


def mask(node: Node, table: pa.Table) -> Mask:
    """Compute which rows pass: (n,) bool. Unknown does not pass.

    Cost: about one pass over each column named.

    Raises:
        InputError: As `check`.
    """
    check(node, table.schema)
    passes = pc.fill_null(_Evaluation(table).of(node), fill_value=False)
    return np.ascontiguousarray(passes.to_numpy(), dtype=np.bool_)


def columns(node: Node) -> Iterator[Column]:
    """Yield every column of a filter as it stands there, repeated or not."""
    match node:
        case Not(part):
            yield from columns(part)
        case All(parts) | Some(parts):
            for part in parts:
                yield from columns(part)
        case Compare(column, _, Column() as other):
            yield column
            yield other
        case Holds(Column() as column):
            yield column
        case Compare(column) | In(column) | Like(column) | IsNull(column):
            yield column


def _meetings(node: Node) -> Iterator[tuple[Column, tuple[Column | Value, ...], str]]:
    """Yield each column with what it is compared with, and how."""
    match node:
        case Not(part):
            yield from _meetings(part)
        case All(parts) | Some(parts):
            for part in parts:
                yield from _meetings(part)
        case Compare(column, operator, other):
            yield column, (other,), operator
        case In(column, values):
            yield column, tuple(value for value in values if value.value is not None), "in"
        case Like(column):
            yield column, (), "like"
        case Holds(Column() as column):
            yield column, (), "holds"


def _unknown(column: Column, known: Iterable[str]) -> UnknownNameError:
    hint = " (a text takes single quotes)" if column.quoted else ""
    return UnknownNameError(
        f"where, character {column.at + 1}: {unknown_name('column', column.name, known)}{hint}"
    )


def _stored(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values themselves: inside an extension, a dictionary, a run."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _family(kind: pa.DataType) -> str:
    of = pa.types
    if of.is_integer(kind) or of.is_floating(kind) or of.is_decimal(kind):
        return "a number"
    if of.is_string(kind) or of.is_large_string(kind) or of.is_string_view(kind):
        return "text"
    if of.is_boolean(kind):
        return "true or false"
    if of.is_date(kind):
        return "a date"
    if of.is_timestamp(kind):
        return "a moment"
    return "nothing" if of.is_null(kind) else ""


def _said(column: Column, kind: pa.DataType) -> str:
    return f"{column.name} is {_family(kind) or f'of type {kind}, which has no order here'}"


def _ensure_fits(column: Column, kind: pa.DataType, value: Value) -> None:
    family = _family(kind)
    match value.value:
        case bool():
            given = "true or false"
        case str():
            given = "text"
        case _:
            given = "a number"
    if family == "nothing":
        return
    if family in ("a date", "a moment") and isinstance(value.value, str):
        _moment(value, kind)
    elif family != given:
        raise wrong(value.at, f"{_said(column, kind)}, {value} is {given}")


def _ensure_alike(column: Column, kind: pa.DataType, other: Column, other_kind: pa.DataType) -> None:
    one, two = _family(kind), _family(other_kind)
    times = ("a date", "a moment")
    if one == "" or not (one == two or "nothing" in (one, two) or (one in times and two in times)):
        raise wrong(other.at, f"{_said(column, kind)}, {_said(other, other_kind)}")


def _moment(value: Value, kind: pa.DataType) -> Fraction:
    """Return the number a date or moment of this type is kept as, exactly."""
    text = str(value.value).strip()
    found = _MOMENT.fullmatch(text)
    try:
        if found is None:
            raise ValueError("not of the form YYYY-MM-DD")
        day, minute, second, fraction, zone = found.groups()
        moment = datetime.fromisoformat(f"{day}T{minute or '00:00'}:{second or '00'}+00:00")
        ahead = _offset(zone or "Z")
    except ValueError as error:
        example = "'2026-01-31'" if pa.types.is_date(kind) else "'2026-01-31' or '2026-01-31 12:30:00'"
        raise wrong(value.at, f"{value} is not a date; write it as {example}") from error
    if pa.types.is_date(kind):
        if minute is not None:
            raise wrong(value.at, f"{value} has a time of day, the column has dates only")
        days = (moment - datetime(1970, 1, 1, tzinfo=UTC)).days
        return Fraction(days if pa.types.is_date32(kind) else days * 86_400_000)
    if zone is not None and kind.tz is None:
        raise wrong(value.at, f"{value} names a time zone, the column has none")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC) - ahead
    seconds = Fraction(since.days * 86_400 + since.seconds)
    if fraction:
        seconds += Fraction(int(fraction), 10 ** len(fraction))
    return seconds * _PER_SECOND[kind.unit]


def _offset(zone: str) -> timedelta:
    if zone == "Z":
        return timedelta()
    hours, minutes = int(zone[1:3]), int(zone[-2:]) if len(zone) > 3 else 0
    if hours > _MOST_HOURS or minutes > 59:
        raise ValueError(f"no such time zone: {zone}")
    return timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column ready to be compared: dates and booleans as whole numbers, NaN as null.

    `kind` is the type it had.
    """

    values: pa.ChunkedArray
    kind: pa.DataType


class _Evaluation:
    """One filter over one table; a column named twice is prepared once."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._ready: dict[str, _Column] = {}

    def of(self, node: Node) -> Any:
        """Return a chunked array of true, false and null."""
        match node:
            case Not(part):
                return pc.invert(self.of(part))
            case All(parts):
                return reduce(pc.and_kleene, (self.of(part) for part in parts))
            case Some(parts):
                return reduce(pc.or_kleene, (self.of(part) for part in parts))
            case Holds(what):
                return self._holds(what)
            case Compare(column, operator, Column() as other):
                return _OPERATIONS[operator](*_alike(self._column(column), self._column(other)))
            case Compare(column, operator, Value() as value):
                return _against(self._column(column), operator, value)
            case In(column, values):
                return _among(self._column(column), values)
            case Like(column, pattern):
                return _like(self._column(column), pattern)
        return pc.is_null(self._column(node.column).values)

    def _holds(self, what: Column | Value) -> Any:
        if isinstance(what, Value):
            return pa.chunked_array([pa.repeat(pa.scalar(bool(what.value)), self._table.num_rows)])
        return _against(self._column(what), "=", Value(value=True, at=what.at))

    def _column(self, column: Column) -> _Column:
        if column.name not in self._ready:
            self._ready[column.name] = _prepared(self._table.column(column.name))
        return self._ready[column.name]


def _prepared(values: pa.ChunkedArray) -> _Column:
    values = _plain(values)
    kind = values.type
    if (held := _held_as(kind)) is not None:
        values = values.cast(held)
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return _Column(values, kind)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Take values out of an extension, runs, a dictionary."""
    if isinstance(values.type, pa.BaseExtensionType):
        values = pa.chunked_array([chunk.storage for chunk in values.chunks], values.type.storage_type)
    if pa.types.is_run_end_encoded(values.type):
        kind = values.type.value_type
        values = pa.chunked_array([pc.run_end_decode(chunk) for chunk in values.chunks], kind)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values if values.type == _stored(values.type) else _plain(values)


def _held_as(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that values of this one are compared as; None for itself."""
    of = pa.types
    if of.is_boolean(kind):
        return pa.uint8()
    if of.is_date32(kind):
        return pa.int32()
    if of.is_date64(kind) or of.is_timestamp(kind):
        return pa.int64()
    if of.is_string_view(kind):
        return pa.large_string()
    if of.is_float16(kind):
        return pa.float32()
    if of.is_decimal(kind) and kind.bit_width < 128:
        return pa.decimal128(kind.precision, kind.scale)
    return None


def _like(column: _Column, pattern: str) -> Any:
    if pa.types.is_null(column.kind):
        return _constant(column.values, value=False)
    return pc.match_like(column.values, pattern)


def _constant(values: pa.ChunkedArray, *, value: bool) -> Any:
    """Return one answer for every row that has a value, null for the others."""
    return pc.if_else(pc.is_valid(values), pa.scalar(value), pa.scalar(None, pa.bool_()))


def _against(column: _Column, operator: str, value: Value) -> Any:
    """Compare with a value as it stands, without rounding it to what the column can hold.

    A value between two that the column can hold, or beyond them all, turns into a test that says the same.
    """
    values = column.values
    if pa.types.is_null(values.type):
        return _constant(values, value=False)
    if _family(column.kind) == "text":
        return _OPERATIONS[operator](values, pa.scalar(value.value, values.type))
    below, scalar, exact = _placed(column, value)
    if scalar is None:  # every value of the column lies above, or every one below
        return _constant(values, value=operator in (("<>", ">", ">=") if below else ("<>", "<", "<=")))
    if exact:
        return _OPERATIONS[operator](values, scalar)
    if operator in ("=", "<>"):
        return _constant(values, value=operator == "<>")
    return _OPERATIONS["<=" if operator[0] == "<" else ">"](values, scalar)


def _placed(column: _Column, value: Value) -> tuple[bool, Any, bool]:
    """Place a value among those a column can hold.

    Returns:
        below: It is less than them all (only where the next is None). The largest one that is not above the
        value, None where it is beyond them all. Whether it is the value itself.
    """
    kind = column.values.type
    if pa.types.is_floating(kind):
        return _placed_float(column, value.value)
    exact = _number(column, value)
    whole = math.floor(exact)
    if pa.types.is_decimal(kind):
        limit = 10**kind.precision - 1
        low, high = -limit, limit
    else:
        bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if not low <= whole <= high:
        return whole < low, None, False
    if pa.types.is_decimal(kind):
        digits = Decimal((whole < 0, tuple(map(int, str(abs(whole)))), -kind.scale))
        return False, pa.scalar(digits, kind), whole == exact
    return False, pa.scalar(whole, kind), whole == exact


def _placed_float(column: _Column, value: Any) -> tuple[bool, Any, bool]:
    """Place a number among floats: whole ones exactly, others at the precision of the column."""
    kind = column.values.type
    of_width = np.dtype(column.kind.to_pandas_dtype()).type
    with np.errstate(over="ignore", under="ignore"):
        near = of_width(float(value))
    if not isinstance(value, int) and np.isfinite(near):
        return False, pa.scalar(float(near), kind), True
    if np.isinf(near):
        near = np.finfo(of_width).max if value > 0 else of_width(-np.inf)
        return False, pa.scalar(float(near), kind), False
    exact = int(near) == value
    if int(near) > value:
        near = np.nextafter(near, of_width(-np.inf))
    return False, pa.scalar(float(near), kind), exact


def _number(column: _Column, value: Value) -> Fraction:
    """Return a value in the units a column without fractions counts in."""
    if isinstance(value.value, str):
        return _moment(value, column.kind)
    number = Fraction(int(value.value) if isinstance(value.value, bool) else value.value or 0)
    return number * 10**column.kind.scale if pa.types.is_decimal(column.kind) else number


def _among(column: _Column, values: tuple[Value, ...]) -> Any:
    """Test against a list: one look into a set per row."""
    held = column.values
    if pa.types.is_null(held.type):
        return _constant(held, value=False)
    if _family(column.kind) == "text":
        known: list[Any] = [value.value for value in values if value.value is not None]
    else:
        placed = (_placed(column, value) for value in values if value.value is not None)
        known = [scalar.as_py() for _, scalar, exact in placed if exact]
    if pa.types.is_floating(held.type):
        held = pc.add(held, pa.scalar(0.0, held.type))  # -0.0 becomes 0.0: the set compares bits
        known = [0.0 if number == 0 else number for number in known]
    found = pc.is_in(held, value_set=pa.array(known, held.type))
    unknown = pa.scalar(None, pa.bool_())
    if any(value.value is None for value in values):
        found = pc.if_else(found, pa.scalar(value=True), unknown)
    return pc.if_else(pc.is_valid(held), found, unknown)


def _alike(one: _Column, two: _Column) -> tuple[Any, Any]:
    """Bring two columns to one type that loses nothing, but float64 where one of them is a float."""
    kinds = (one.values.type, two.values.type)
    of = pa.types
    if any(of.is_null(kind) for kind in kinds):
        common = (
            pa.null()
            if all(of.is_null(kind) for kind in kinds)
            else next(kind for kind in kinds if not of.is_null(kind))
        )
    elif _family(one.kind) == "text":
        common = pa.large_string()
    elif _family(one.kind) in ("a date", "a moment"):
        return _same_clock(one), _same_clock(two)
    elif any(of.is_floating(kind) for kind in kinds):
        common = pa.float64()
    else:
        common = pa.decimal256(76, max(kind.scale if of.is_decimal(kind) else 0 for kind in kinds))
    try:
        return one.values.cast(common), two.values.cast(common)
    except pa.ArrowInvalid as error:
        raise InputError(f"where: columns of type {one.kind} and {two.kind} cannot be compared") from error


def _same_clock(column: _Column) -> Any:
    """Return dates and moments as nanoseconds, wide enough for all of them."""
    kind = column.kind
    if pa.types.is_date32(kind):
        factor = 86_400 * 10**9
    elif pa.types.is_date64(kind):
        factor = 10**6
    else:
        factor = 10**9 // _PER_SECOND[kind.unit]
    counted = column.values.cast(pa.decimal128(19, 0))
    return pc.multiply(counted, pa.scalar(Decimal(factor), pa.decimal128(18, 0)))
