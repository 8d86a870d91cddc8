"""Filters by columns, `stars >= 4 and lang = 'en'`: a mask over Arrow columns, or SQL with parameters.

The meaning is SQL's: three-valued logic (a null is neither equal nor different, `not` keeps it unknown, only
true passes), texts compared by code point, case included. Beyond SQL: NaN counts as null, and a number is
compared as written, so whole numbers beyond 2^53 are exact. The grammar is in `filter_grammar.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vecmill.collection import filter_columns
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
    read,
)
from vecmill.core.types import Mask


def parse(text: str) -> Filter:
    """Read a filter.

    Args:
        text: Tests `= <> < <= > >=`, `in (a, b)`, `between a and b`, `like 'x%' [escape '!']`,
            `is [not] null`, or a column of true and false alone, joined by and, or, not and parentheses.
            Names are bare, "quoted" or `quoted`; texts are 'quoted', a ' in them doubled; dates are texts
            of the form 'YYYY-MM-DD', moments 'YYYY-MM-DD HH:MM:SS'.

    Raises:
        InputError: It is not a filter; the message names the place.
    """
    node = read(text)
    names = dict.fromkeys(column.name for column in filter_columns.columns(node))
    return Filter(text, tuple(names), node)


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the columns of a row; `parse` makes one.

    Attributes:
        text: As it was written.
        columns: The names in it, each once, in the order they come.
        node: The tree; see `filter_grammar`.
    """

    text: str
    columns: tuple[str, ...]
    node: Node

    def check(self, schema: pa.Schema) -> None:
        """Say what does not fit columns of these types, without reading any.

        Raises:
            UnknownNameError: There is no such column; the message lists close ones.
            InputError: A column is compared with what it cannot be: a number with a text, a list at all.
        """
        filter_columns.check(self.node, schema)

    def mask(self, table: pa.Table) -> Mask:
        """Compute which rows pass: (n,) bool, unknown ones do not.

        Args:
            table: Has at least the columns named; dictionaries, decimals, dates, moments and every width of
                number are compared exactly.

        Raises:
            UnknownNameError, InputError: As `check`.
        """
        return filter_columns.mask(self.node, table)

    def sql(self, column: Callable[[str], str] | None = None) -> tuple[str, list[Any]]:
        """Write the filter as an SQL expression with `%s` for each value, as psycopg takes it.

        No value becomes part of the SQL, and every name goes through `column`.

        Args:
            column: Writes a name as SQL; None for `quoted`. A % in what it returns must be doubled. Let it
                add COLLATE "C" to texts where `<` is to order them by code point as `mask` does.

        Returns:
            The expression, in parentheses where it needs them, and the values in order.
        """
        parameters: list[Any] = []
        return _sql(self.node, column or quoted, parameters), parameters

    def __str__(self) -> str:
        return self.text


def quoted(name: str) -> str:
    """Write a name as a quoted SQL identifier, % doubled for psycopg."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _sql(node: Node, column: Callable[[str], str], parameters: list[Any]) -> str:
    match node:
        case Not(part):
            return f"(NOT {_sql(part, column, parameters)})"
        case All(parts):
            return "(" + " AND ".join(_sql(part, column, parameters) for part in parts) + ")"
        case Some(parts):
            return "(" + " OR ".join(_sql(part, column, parameters) for part in parts) + ")"
    return f"({_test_sql(node, column, parameters)})"


def _test_sql(
    node: Compare | In | Like | IsNull | Holds, column: Callable[[str], str], parameters: list[Any]
) -> str:
    def written(operand: Column | Value) -> str:
        match operand:
            case Column(name):
                return column(name)
            case Value(None | bool()):
                return str(operand).upper()
        parameters.append(operand.value)
        return "%s"

    match node:
        case Compare(left, operator, right):
            return f"{written(left)} {operator} {written(right)}"
        case In(of, values):
            return f"{written(of)} IN ({', '.join(map(written, values))})"
        case Like(of, pattern):
            parameters.append(pattern)
            return f"{written(of)} LIKE CAST(%s AS text) ESCAPE '\\'"
        case IsNull(of):
            return f"{written(of)} IS NULL"
        case Holds(what):
            return written(what)
