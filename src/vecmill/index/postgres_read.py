"""What a table in PostgreSQL holds: rows by number, rows by their words, all rows in order."""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from vecmill.core.errors import StorageError, unknown_name
from vecmill.core.types import Id, IntArray, Vectors
from vecmill.index.postgres_copy import vector_of
from vecmill.index.postgres_schema import ID, ROW, VECTOR, Column, Layout, text_words
from vecmill.index.postgres_search import Condition
from vecmill.index.postgres_url import quoted

if TYPE_CHECKING:
    from psycopg import Cursor

_FETCH_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Stored:
    """Some rows of a table.

    Attributes:
        rows: (m,) int64, ascending.
        ids: Their ids.
        columns: Their values by column, as Python's own.
        vectors: (m, d) float32, or None where they were not asked for.
    """

    rows: IntArray
    ids: list[Id]
    columns: dict[str, list[Any]]
    vectors: Vectors | None


def values_of(
    cursor: Cursor[Any], layout: Layout, rows: IntArray, expressions: Sequence[str], where: str
) -> list[tuple[Any, ...]]:
    """Return SQL expressions of rows, in the order of the rows.

    Raises:
        StorageError: A row is gone.
    """
    found: dict[int, tuple[Any, ...]] = {}
    wanted = np.unique(np.asarray(rows, np.int64))
    for start in range(0, len(wanted), _FETCH_ROWS):
        cursor.execute(
            f"SELECT {', '.join((ROW, *expressions))} FROM {layout.name} WHERE {ROW} = ANY(%s)",
            (wanted[start : start + _FETCH_ROWS].tolist(),),
        )
        found.update((row[0], row[1:]) for row in cursor.fetchall())
    gone = next((int(row) for row in wanted if int(row) not in found), None)
    if gone is not None:
        raise StorageError(f"{where}: row {gone} is gone: others changed the table; search again")
    return [found[int(row)] for row in rows]


def records(
    cursor: Cursor[Any], layout: Layout, rows: IntArray, names: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """Return the named columns of rows, in their order."""
    columns = [column_of(layout, name) for name in names]
    found = values_of(cursor, layout, rows, [_read(column) for column in columns], where)
    return [
        {column.name: _value(column, value) for column, value in zip(columns, values, strict=True)}
        for values in found
    ]


def stream(cursor: Cursor[Any], layout: Layout, names: Sequence[str], with_vectors: bool) -> Iterator[Stored]:
    """Yield all rows in order, some thousand at a time."""
    columns = [column_of(layout, name) for name in names]
    wanted = [ROW, ID, *([VECTOR] if with_vectors else []), *(_read(column) for column in columns)]
    cursor.execute(
        f"DECLARE vecmill_rows CURSOR FOR SELECT {', '.join(wanted)} FROM {layout.name} ORDER BY {ROW}", ()
    )
    while found := cursor.execute(f"FETCH {_FETCH_ROWS} FROM vecmill_rows").fetchall():
        table = list(zip(*found, strict=True))
        rest = table[2 + with_vectors :]
        yield Stored(
            rows=np.array(table[0], np.int64),
            ids=list(table[1]),
            columns={
                column.name: [_value(column, value) for value in values]
                for column, values in zip(columns, rest, strict=True)
            },
            vectors=vector_of(table[2], layout.dimensions) if with_vectors else None,
        )


def ranked(cursor: Cursor[Any], layout: Layout, query: str, count: int, condition: Condition) -> IntArray:
    """Rank rows by the words of a query, best first; see `PostgresTable.ranked`."""
    words = text_words(layout)
    escaped = r"replace(replace(lexeme, '\', '\\'), '''', '''''')"
    cursor.execute(
        f"WITH asked AS (SELECT string_agg('''' || {escaped} || '''', ' | ')::tsquery AS q "
        "FROM unnest(to_tsvector('simple', %s))) "
        f"SELECT {ROW} FROM (SELECT {ROW}, ts_rank_cd({words}, q) AS rank FROM {layout.name}, asked "
        f"{condition.sql or 'WHERE true'} AND {words} @@ q) ranks ORDER BY rank DESC, {ROW} LIMIT %s",
        (query.replace("\0", " "), *condition.parameters, count),
    )
    return numbers(cursor)


def numbers(cursor: Cursor[Any]) -> IntArray:
    """Return what a statement of one column found."""
    return np.array([row for (row,) in cursor.fetchall()], np.int64)


def column_of(layout: Layout, name: str) -> Column:
    """Return a column by its name, the id's too.

    Raises:
        UnknownNameError: There is none; the message lists close ones.
    """
    if name == ID:
        return Column(ID, layout.id_kind, None)
    found = next((column for column in layout.columns if column.name == name), None)
    if found is None:
        raise unknown_name("column", name, [ID, *(column.name for column in layout.columns)])
    return found


def _read(column: Column) -> str:
    """Write a column so that its value arrives as Python's own; kinds we do not know arrive as text."""
    known = column.arrow is not None or column.name == ID or column.kind.startswith("numeric")
    return quoted(column.name) if known else f"{quoted(column.name)}::text"


def _value(column: Column, value: Any) -> Any:
    """Give whole numbers that came as decimals back as such: they were unsigned 64 bits."""
    return int(value) if isinstance(value, Decimal) and column.kind.endswith(",0)") else value
