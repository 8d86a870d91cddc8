"""Changes of a table in PostgreSQL: rows in by binary COPY, rows out by id, columns in place.

Every function works in the transaction of the cursor it is given: whoever began it commits all or nothing.
"""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from vecmill.core.errors import InputError
from vecmill.core.types import Id, Vectors
from vecmill.core.vectors import check
from vecmill.index import postgres_copy
from vecmill.index.postgres_copy import HEADER, TRAILER, checked_ids
from vecmill.index.postgres_schema import ID, ROW, VECTOR, Layout, read, sql_type
from vecmill.index.postgres_session import copying
from vecmill.index.postgres_url import Address, quoted
from vecmill.index.storage import Change

if TYPE_CHECKING:
    from psycopg import Cursor

_COPY_ROWS = 2_048
_IDS_AT_ONCE = 10_000
_ANALYZE_FROM = 1_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Items to add.

    Attributes:
        ids: (n,) texts, or whole numbers of 64 bits, as the table has them.
        vectors: (n, d) finite numbers.
        columns: n rows of other columns, or None.
    """

    ids: Sequence[object]
    vectors: npt.ArrayLike
    columns: pa.Table | None = None


def add(
    cursor: Cursor[Any],
    layout: Layout,
    address: Address,
    batches: Iterable[Batch],
    *,
    replace: bool,
    repeated: bool,
) -> tuple[Change, Layout]:
    """Add items; return what was done and the layout with their columns. See `PostgresTable.add_batches`."""
    last = _last(cursor, layout)
    added = 0
    for batch in batches:
        layout = _copy(cursor, layout, address, batch, repeated)
        added += len(batch.ids)
    if not repeated:
        _ensure_distinct(cursor, layout, last)
    replaced = 0
    if last and added and replace:
        replaced = _make_way(cursor, layout, last)
    elif last and added and not repeated:
        _ensure_new(cursor, layout, last, address.shown)
    if added >= _ANALYZE_FROM:
        cursor.execute(f"ANALYZE {layout.name}", ())
    return Change(added=added - replaced, replaced=replaced), layout


def delete(cursor: Cursor[Any], layout: Layout, ids: Sequence[Id]) -> Change:
    """Delete all rows of ids; see `PostgresTable.delete`."""
    gone, deleted = set[Id](), 0
    for start in range(0, len(ids), _IDS_AT_ONCE):
        part = list(ids[start : start + _IDS_AT_ONCE])
        cursor.execute(f"DELETE FROM {layout.name} WHERE {ID} = ANY(%s) RETURNING {ID}", (part,))
        found = [row[0] for row in cursor.fetchall()]
        gone.update(found)
        deleted += len(found)
    return Change(deleted=deleted, missing=_without(ids, gone))


def set_columns(
    cursor: Cursor[Any], layout: Layout, address: Address, ids: Sequence[Id], columns: pa.Table
) -> tuple[Change, Layout]:
    """Give items other columns; see `PostgresTable.set_columns`."""
    layout = _with_columns(cursor, layout, columns, address)
    names = [quoted(name) for name in columns.column_names]
    listed = ", ".join((ID, *names))
    cursor.execute(
        f"CREATE TEMP TABLE vecmill_changed ON COMMIT DROP AS SELECT {listed} FROM {layout.name} LIMIT 0", ()
    )
    _send(cursor, f"pg_temp.vecmill_changed ({listed})", layout, ids, None, columns)
    cursor.execute(
        f"UPDATE {layout.name} t SET {', '.join(f'{name} = s.{name}' for name in names)} "
        f"FROM pg_temp.vecmill_changed s WHERE t.{ID} = s.{ID} RETURNING t.{ID}",
        (),
    )
    found = [row[0] for row in cursor.fetchall()]
    there = set(found)
    if len(found) > len(there):
        raise InputError("an id names several rows; its columns cannot be changed one by one")
    return Change(replaced=len(found), missing=_without(ids, there)), layout


def ensure_once(ids: Sequence[Id]) -> None:
    """Refuse ids that stand twice, naming both rows."""
    if len(set(ids)) == len(ids):
        return
    first: dict[Id, int] = {}
    for row, one in enumerate(ids):
        if one in first:
            raise InputError(f"id {one!r} stands at rows {first[one]} and {row}; ids name one item each")
        first[one] = row


def _copy(cursor: Cursor[Any], layout: Layout, address: Address, batch: Batch, repeated: bool) -> Layout:
    """Send one batch; return the layout with the columns it brought."""
    ids = checked_ids(batch.ids, layout.id_kind, address.shown)
    if not repeated:
        ensure_once(ids)
    vectors = check(batch.vectors, dimensions=layout.dimensions if ids else None)
    if len(vectors) != len(ids):
        raise InputError(f"{len(ids)} ids and {len(vectors)} vectors; each item has one of both")
    columns = batch.columns
    if columns is not None and columns.num_rows != len(ids):
        raise InputError(f"{len(ids)} ids and {columns.num_rows} rows of columns; each item has one of both")
    if not ids:
        return layout
    names = [ID, VECTOR]
    if columns is not None:
        layout = _with_columns(cursor, layout, columns, address)
        names += map(quoted, columns.column_names)
    _send(cursor, f"{layout.name} ({', '.join(names)})", layout, ids, vectors, columns)
    return layout


def _send(
    cursor: Cursor[Any],
    target: str,
    layout: Layout,
    ids: Sequence[Id],
    vectors: Vectors | None,
    columns: Any,
) -> None:
    """Stream rows into a table, some thousand encoded at a time."""
    known = {column.name: column for column in layout.columns}
    with copying(cursor, f"COPY {target} FROM STDIN (FORMAT binary)") as copy:
        copy.write(HEADER)
        for start in range(0, len(ids), _COPY_ROWS):
            part = slice(start, start + _COPY_ROWS)
            fields = [postgres_copy.id_fields(ids[part])]
            if vectors is not None:
                fields.append(postgres_copy.vector_fields(vectors[part]))
            for name in () if columns is None else columns.column_names:
                values = columns.column(name).slice(start, _COPY_ROWS)
                fields.append(postgres_copy.column_fields(known[name], values, ids[part]))
            copy.write(postgres_copy.rows(fields))
        copy.write(TRAILER)


def _with_columns(cursor: Cursor[Any], layout: Layout, columns: pa.Table, address: Address) -> Layout:
    """Add the columns a table lacks; return its layout then."""
    names = columns.column_names
    if len(set(names)) < len(names):
        raise InputError(f"columns share a name: {', '.join(names)}; rename one")
    known = {column.name for column in layout.columns}
    lacking = [entry for entry in columns.schema if entry.name not in known]
    if not lacking:
        return layout
    added = ", ".join(f"ADD COLUMN {quoted(entry.name)} {sql_type(entry)}" for entry in lacking)
    cursor.execute(f"ALTER TABLE {layout.name} {added}", ())
    return read(cursor, address)


def _last(cursor: Cursor[Any], layout: Layout) -> int:
    """Return the highest row there is; whatever is added gets a higher one."""
    row = cursor.execute(f"SELECT coalesce(max({ROW}), 0) FROM {layout.name}", ()).fetchone()
    return 0 if row is None else int(row[0])


def _ensure_distinct(cursor: Cursor[Any], layout: Layout, last: int) -> None:
    """Refuse an id that stands in two batches of a call."""
    row = cursor.execute(
        f"SELECT {ID} FROM {layout.name} WHERE {ROW} > %s GROUP BY {ID} HAVING count(*) > 1 LIMIT 1", (last,)
    ).fetchone()
    if row is not None:
        raise InputError(f"id {row[0]!r} stands at two rows of what was to be added; ids name one item each")


def _new(layout: Layout) -> str:
    return f"(SELECT DISTINCT {ID} FROM {layout.name} WHERE {ROW} > %s) n"


def _make_way(cursor: Cursor[Any], layout: Layout, last: int) -> int:
    """Delete older rows of ids that were added anew; return how many rows took their place."""
    found = cursor.execute(
        f"WITH gone AS (DELETE FROM {layout.name} o USING {_new(layout)} WHERE o.{ID} = n.{ID} "
        f"AND o.{ROW} <= %s RETURNING o.{ID}) "
        f"SELECT count(*) FROM {layout.name} WHERE {ROW} > %s AND {ID} IN (SELECT {ID} FROM gone)",
        (last, last, last),
    ).fetchone()
    return 0 if found is None else int(found[0])


def _ensure_new(cursor: Cursor[Any], layout: Layout, last: int, where: str) -> None:
    """Refuse ids that were there before."""
    row = cursor.execute(
        f"SELECT min(o.{ID}), count(*) FROM {layout.name} o JOIN {_new(layout)} ON o.{ID} = n.{ID} "
        f"WHERE o.{ROW} <= %s",
        (last, last),
    ).fetchone()
    first, count = row or (None, 0)
    if count:
        more = f" and {count - 1} more" if count > 1 else ""
        raise InputError(
            f"id {first!r}{more} is in {where} already; replace it: replace=True, --replace on the "
            "command line"
        )


def _without(ids: Sequence[Id], there: set[Id]) -> tuple[Id, ...]:
    return tuple(dict.fromkeys(one for one in ids if one not in there))
