"""What type a column has: the narrowest one every value of every file fits without loss.

The order is null, then bool or int64 or float64 or a nested type, then string. Cells of text files count as
numbers only if the number says all the text said: "007", "+1", "1e400", integers beyond int64 and a mixture
such as "1.1" with "1.10" stay strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

MAX_EXACT_INT = 1 << 53  # integers up to here are exact in float64
_INT = r"^(0|-?[1-9][0-9]{0,18})$"
_FLOAT = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
_BOOLS = (("true", "false"), ("True", "False"), ("TRUE", "FALSE"))


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a column in one file, or in all of them.

    Attributes:
        type: An Arrow type; null when no value was seen.
        exact: For integers: whether float64 holds every one exactly. None when nobody looked.
        mixed: Whether values of several types met, so that string is a compromise.
    """

    type: pa.DataType
    exact: bool | None = True
    mixed: bool = False


NULL = Kind(pa.null())
STRING = Kind(pa.string())


def unify(a: Kind, b: Kind) -> Kind:
    """Return the narrowest kind that holds the values of both; string, marked mixed, where none does."""
    if pa.types.is_null(a.type):
        return b
    if pa.types.is_null(b.type):
        return a
    mixed = a.mixed or b.mixed
    if a.type == b.type:
        return Kind(a.type, _both(a.exact, b.exact), mixed)
    if pa.types.is_integer(a.type) and pa.types.is_integer(b.type):
        if pa.uint64() in (a.type, b.type):
            return Kind(pa.string(), mixed=True)
        return Kind(pa.int64(), _both(a.exact, b.exact), mixed)
    if _is_number(a.type) and _is_number(b.type):
        ints = [kind for kind in (a, b) if pa.types.is_integer(kind.type)]
        if all(kind.exact for kind in ints):
            return Kind(pa.float64(), mixed=mixed)
        return Kind(pa.string(), mixed=True)
    if pa.types.is_nested(a.type) and pa.types.is_nested(b.type):
        pair = [pa.schema([("x", kind.type)]) for kind in (a, b)]
        try:
            return Kind(pa.unify_schemas(pair, promote_options="permissive").field("x").type, mixed=mixed)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            pass  # no common nested type: JSON text below
    return Kind(pa.string(), mixed=True)


def _both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts: string, large or view, or a dictionary of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type a column of a typed file is read as: texts as string, dictionaries as their values."""
    if is_text(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """Return the type that is written: string for a column without any value or without fields."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pa.types.is_struct(kind):
        if kind.num_fields == 0:
            return pa.string()
        return pa.struct([(field.name, settled(field.type)) for field in kind])
    return kind


# Cells of text files


@dataclass(slots=True)
class Cells:
    """Learns the kind of one column from all its cells, given as string arrays with null for empty."""

    kind: str = "null"  # null, bool, int, float, string
    bools: tuple[str, str] | None = None
    exact: bool = True
    decimals: set[int] = field(default_factory=set)
    padded: bool = False  # a number ended in zeros after the point, as in 1.10
    as_text: bool = False  # take every cell as it is written

    def add(self, cells: pa.Array) -> None:
        """Take the next cells into account. Costs nothing once the column is known to be text."""
        if self.kind == "string":
            return
        if self.as_text:
            self.kind = "null" if cells.null_count == len(cells) else "string"
            return
        cells = cells.drop_null().unique()  # every question below is about all or any, so once each will do
        if len(cells) == 0:
            return
        found = self._classify(cells)
        if self.kind in ("null", found):
            self.kind = found
        elif {self.kind, found} == {"int", "float"} and self.exact:
            self.kind = "float"
        else:
            self.kind = "string"
        if self.kind == "float" and (not self.exact or (self.padded and len(self.decimals) > 1)):
            self.kind = "string"

    def result(self) -> Kind:
        """Return the kind of all cells seen."""
        types = {"null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        return Kind(types.get(self.kind, pa.string()), self.exact)

    def _classify(self, cells: pa.Array) -> str:
        if _all(pc.match_substring_regex(cells, _INT)):
            try:
                numbers = cells.cast(pa.int64())
            except pa.ArrowInvalid:
                return "string"  # beyond int64
            limits = pc.min_max(numbers)
            low, high = limits["min"].as_py(), limits["max"].as_py()
            self.exact = self.exact and low >= -MAX_EXACT_INT and high <= MAX_EXACT_INT
            self.decimals.add(0)
            return "int"
        if _all(pc.match_substring_regex(cells, _FLOAT)):
            return self._floats(cells)
        for pair in (self.bools,) if self.bools else _BOOLS:
            if pair is not None and _all(pc.is_in(cells, value_set=pa.array(pair))):
                self.bools = pair
                return "bool"
        return "string"

    def _floats(self, cells: pa.Array) -> str:
        numbers = cells.cast(pa.float64())
        mantissa = pc.replace_substring_regex(cells, r"[eE].*$", "")
        digits = pc.ascii_ltrim(pc.replace_substring_regex(mantissa, r"[-.]", ""), characters="0")
        underflow = pc.and_(pc.equal(numbers, 0.0), pc.greater(pc.utf8_length(digits), 0))
        if not _all(pc.is_finite(numbers)) or pc.any(underflow).as_py():
            return "string"
        if pc.max(pc.utf8_length(digits)).as_py() > 17:  # more digits than float64 tells apart
            return "string"
        after = pc.replace_substring_regex(mantissa, r"^[^.]*\.?", "")
        self.decimals.update(pc.unique(pc.utf8_length(after)).to_pylist())
        self.padded = self.padded or pc.any(pc.match_substring_regex(after, r"[0-9]0$")).as_py()
        whole = cells.filter(pc.match_substring_regex(cells, r"^-?[0-9]{16,}$"))
        self.exact = self.exact and len(whole) == 0
        return "float"


def _all(mask: pa.Array) -> bool:
    return bool(pc.all(mask).as_py())


def cast_cells(cells: pa.Array, kind: pa.DataType) -> pa.Array:
    """Turn cells into a type that `Cells` found; bools in any of their spellings."""
    if pa.types.is_string(kind):
        return cells
    if pa.types.is_boolean(kind):
        return pc.ascii_lower(cells).cast(kind)
    return cells.cast(kind)


# Values of JSON


@dataclass(slots=True)
class Values:
    """Learns the kind of one column from all its JSON values."""

    kind: Kind = NULL
    seen: set[str] = field(default_factory=set)

    def add(self, values: Sequence[Any]) -> None:
        """Take the next values into account."""
        for each in set(map(type, values)):
            if each is type(None):
                continue
            self.seen.add(_NAMES.get(each, "a string"))
            if self.kind.mixed:
                continue
            self.kind = unify(self.kind, _kind_of(each, values))

    def result(self) -> Kind:
        """Return the kind of all values seen."""
        return self.kind


_NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _kind_of(each: type, values: Sequence[Any]) -> Kind:
    if each is bool:
        return Kind(pa.bool_())
    if each is float:
        return Kind(pa.float64())
    if each is int:
        numbers = [v for v in values if type(v) is int]
        low, high = min(numbers), max(numbers)
        if low < -(1 << 63) or high >= 1 << 63:
            return Kind(pa.string())
        return Kind(pa.int64(), low >= -MAX_EXACT_INT and high <= MAX_EXACT_INT)
    if each in (list, dict):
        items = [v for v in values if type(v) is each]
        try:
            try:
                nested = pa.array(items).type
            except UnicodeEncodeError:
                nested = pa.array([_without_halves(v) for v in items]).type
        except (pa.ArrowException, OverflowError):
            return Kind(pa.string(), mixed=True)
        return Kind(pa.string()) if _has_empty_struct(nested) else Kind(nested)
    return STRING


def _has_empty_struct(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return bool(pa.types.is_list(kind)) and _has_empty_struct(kind.value_type)


def value_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Turn JSON values into an array of a type that `Values` found; others than strings become JSON text."""
    if pa.types.is_string(kind):
        values = [v if v is None or type(v) is str else None if v != v else json_text(v) for v in values]
    try:
        return pa.array(values, type=kind, from_pandas=True)  # from_pandas: NaN is null
    except UnicodeEncodeError:  # halves of surrogate pairs: no UTF-8 for them
        return pa.array([_without_halves(v) for v in values], type=kind)


def json_text(value: Any) -> str:
    """Write a JSON value as text, exactly: integers of any size, no spaces."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # integers beyond 64 bits, halves of surrogate pairs
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _without_halves(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_halves(v) for v in value]
    if isinstance(value, dict):
        return {_without_halves(k): _without_halves(v) for k, v in value.items()}
    return value


def plain_texts(column: pa.Array) -> list[str | None]:
    """Return values as people write them: 5 and not 5.0, true, ISO dates, JSON for lists and objects."""
    if pa.types.is_string(column.type):
        return list(column.to_pylist())
    return [None if value is None else _plain_text(value) for value in column.to_pylist()]


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    if isinstance(value, (list, dict, bool)):
        return json_text(value)
    return str(value)


def type_name(value: Any) -> str:
    """Name what stands where a text should be, such as "a number" or "a list"."""
    return _NAMES.get(type(value), f"a {type(value).__name__}")


def at_path(record: Any, path: str) -> Any:
    """Return the value at a column name or dotted path; None where nothing is."""
    if isinstance(record, Mapping) and path in record:
        return record[path]
    for part in path.split("."):
        if not isinstance(record, Mapping):
            return None
        record = record.get(part)
    return record


def names_in_order(records: Iterable[Mapping[str, Any]], known: dict[str, Any]) -> list[str]:
    """Return the keys of records that are not in `known`, in the order they appear."""
    new: dict[str, None] = {}
    last: tuple[str, ...] = ()
    for record in records:
        keys = tuple(record)
        if keys != last:
            new.update((key, None) for key in keys if key not in known)
            last = keys
    return list(new)


# Columns of typed files


def field_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Return the type of a column or of a field inside structs ("doc.text"); None where there is none."""
    if path in schema.names:
        return schema.field(path).type
    head, *rest = path.split(".")
    if head not in schema.names:
        return None
    kind = schema.field(head).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def cast_values(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Turn the column of a typed file into the unified type; nested values become JSON text."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind) and pa.types.is_nested(column.type):
        return pa.array([None if v is None else json_text(v) for v in column.to_pylist()], kind)
    return column.cast(kind)
