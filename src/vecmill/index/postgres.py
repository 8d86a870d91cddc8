"""Vectors in PostgreSQL with pgvector: the same search where one process is not enough (`[postgres]`).

A table of ours has `vecmill_row` (numbers never used again), `id`, `embedding` and the columns pushed with
them; `vecmill_manifests` beside it says what made its vectors. Reference: docs/reference/postgres.md.
"""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vecmill.core.errors import (
    DimensionMismatchError,
    InputError,
    SpaceMismatchError,
)
from vecmill.core.space import Manifest, ensure_comparable
from vecmill.core.types import Id, IntArray, Metric, Precision, Vectors, choice
from vecmill.core.vectors import check
from vecmill.index import (
    postgres_build,
    postgres_copy,
    postgres_read,
    postgres_schema,
    postgres_search,
    postgres_write,
)
from vecmill.index.postgres_read import Stored
from vecmill.index.postgres_schema import ID, ROW, VECTOR, Layout
from vecmill.index.postgres_search import Condition, Found, Index
from vecmill.index.postgres_session import Sessions
from vecmill.index.postgres_url import is_address, parse, quoted, shown
from vecmill.index.postgres_write import Batch
from vecmill.index.storage import Change

if TYPE_CHECKING:
    from psycopg import Cursor

__all__ = ["Batch", "Found", "Index", "PostgresTable", "Stored", "is_address", "shown"]

_KNOWN_IDS = 2_000
_STALE = 1.2


class PostgresTable:
    """A table of vectors in PostgreSQL. Any thread may use it; `create` and `open` make one.

    Each call has a connection of its own for as long as it lasts, from up to four that are kept; `close`
    closes them (a table that is no longer used does so too). A read sees one moment of the table, a change is
    done whole or not at all.
    """

    def __init__(self, sessions: Sessions, layout: Layout, name: str) -> None:
        self._sessions = sessions
        self._layout = layout
        self._name = name

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a table.

        Args:
            url: `postgresql://user:secret@host/db?table=films`; see docs/reference/postgres.md.

        Raises:
            InputError: The address is wrong or refused, there is no such table, it is not ours, or the server
                has pgvector below 0.8.0. No message contains the password.
            StorageError: The server does not answer.
            MissingExtraError: psycopg is not installed.
        """
        address = parse(url)
        sessions = Sessions(address)
        with sessions.transaction() as cursor:
            layout = postgres_schema.read(cursor, address)
        return cls(sessions, layout, address.shown)

    @classmethod
    def create(
        cls,
        url: str,
        *,
        dimensions: int,
        metric: Metric | str = Metric.COSINE,
        manifest: Manifest | None = None,
        columns: pa.Schema | None = None,
        text_column: str | None = None,
        int_ids: bool = False,
    ) -> Self:
        """Create an empty table; pgvector is installed into the database where that is allowed.

        Args:
            url: As `open` takes it.
            dimensions: Components of a vector, 1 to 16,000.
            metric: What its index will be for, and what searches mean unless they say otherwise.
            manifest: What makes the vectors; vectors of another space are refused later.
            columns: Names and types of the other columns. Lists and records become json.
            text_column: The one that was embedded, among `columns`.
            int_ids: Ids are whole numbers of 64 bits, not texts.

        Raises:
            InputError, StorageError, MissingExtraError: As `open`; also where a table has that name already,
                or a column cannot be in PostgreSQL.
        """
        address = parse(url)
        wanted = choice(Metric, metric, "metric")
        if not 1 <= dimensions <= postgres_schema.MAX_DIMENSIONS:
            raise InputError(
                f"vectors of {dimensions:,} dimensions cannot be in PostgreSQL: pgvector keeps 1 to "
                f"{postgres_schema.MAX_DIMENSIONS:,}; shorten them"
            )
        if manifest is not None and manifest.dimensions != dimensions:
            raise DimensionMismatchError(
                f"the manifest speaks of {manifest.dimensions} dimensions, the table of {dimensions}"
            )
        sessions = Sessions(address)
        with sessions.transaction(write=True) as cursor:
            postgres_schema.create(
                cursor,
                address,
                dimensions=dimensions,
                metric=wanted,
                manifest=manifest,
                columns=pa.schema([]) if columns is None else columns,
                text_column=text_column,
                id_kind="bigint" if int_ids else "text",
            )
            layout = postgres_schema.read(cursor, address)
        return cls(sessions, layout, address.shown)

    @classmethod
    def exists(cls, url: str) -> bool:
        """Say whether a table of this name is there, ours or not.

        Raises:
            InputError, StorageError, MissingExtraError: As `open`, but for tables.
        """
        address = parse(url)
        with Sessions(address).transaction() as cursor:
            return postgres_schema.exists(cursor, address)

    def close(self) -> None:
        """Close the connections that are kept; a later call opens one again."""
        self._sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Its address for people, without the password."""
        return self._name

    @property
    def manifest(self) -> Manifest | None:
        """What made the vectors; None where nobody knows."""
        return self._layout.manifest

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self._layout.dimensions

    @property
    def metric(self) -> Metric:
        """What its index is for."""
        return self._layout.metric

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column but row, id and vector."""
        return tuple(column.name for column in self._layout.columns)

    @property
    def schema(self) -> pa.Schema:
        """Arrow's types of id and columns, where there is one, to check a filter against; json is a list."""
        kind = pa.string() if self._layout.id_kind == "text" else pa.int64()
        nested = pa.list_(pa.null())
        known = [
            (column.name, nested if column.kind in ("json", "jsonb") else column.arrow)
            for column in self._layout.columns
            if column.arrow is not None
        ]
        return pa.schema([(ID, kind), *known])

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is known."""
        return self._layout.text_column

    @property
    def index(self) -> Index | None:
        """The index it has, with the recall measured when it was built."""
        return postgres_build.index_of(self._layout)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know: faults of this pgvector, remarks on the index."""
        index = self.index
        return (*postgres_schema.version_notes(self._layout.version), *(() if index is None else index.notes))

    def __len__(self) -> int:
        """Count the rows. Cost: the server reads the whole table, or an index of it."""
        with self._sessions.transaction() as cursor:
            cursor.execute(f"SELECT count(*) FROM {self._layout.name}", ())
            return int(postgres_read.numbers(cursor)[0])

    def refresh(self) -> None:
        """Read again what others may have changed: columns, index."""
        with self._sessions.transaction() as cursor:
            self._layout = postgres_schema.read(cursor, self._sessions.address)

    def add(
        self,
        ids: Sequence[object] | pa.Array,
        vectors: npt.ArrayLike,
        columns: pa.Table | None = None,
        *,
        replace: bool = False,
        repeated: bool = False,
        manifest: Manifest | None = None,
    ) -> Change:
        """Add items, all of them or none; see `add_batches`."""
        return self.add_batches(
            [Batch(_listed(ids), vectors, columns)], replace=replace, repeated=repeated, manifest=manifest
        )

    def add_batches(
        self,
        batches: Iterable[Batch],
        *,
        replace: bool = False,
        repeated: bool = False,
        manifest: Manifest | None = None,
    ) -> Change:
        """Add items in one transaction, all of them or none, by binary COPY.

        Cost: a few thousand rows in memory beside the batch at hand; some ten thousand rows a second without
        an index, some hundred with one (so build it afterwards).

        Args:
            batches: Items; a column the table lacks is added to it, one the batch lacks is null.
            replace: Items with the same id give way to the new ones; otherwise they are an error.
            repeated: An id may stand at several rows: the pieces of one text.
            manifest: What made these vectors; compared with the table's.

        Raises:
            InputError: An id is repeated, there already or of the wrong kind, a component is NaN, or a value
                does not fit its column. The message names the item, not its text.
            DimensionMismatchError: The vectors are of another width.
            SpaceMismatchError: They are of another model.
            StorageError, WriteError: The server could not; nothing has changed.
        """
        with self._changing() as (cursor, layout):
            self._ensure_space(manifest, layout)
            change, layout = postgres_write.add(
                cursor, layout, self._sessions.address, batches, replace=replace, repeated=repeated
            )
        self._layout = layout
        return change

    def delete(self, ids: Sequence[object] | pa.Array) -> Change:
        """Delete items with all their rows, all of them or none; the server takes their space back by itself.

        Args:
            ids: Ids of items; those that are not there are listed in `Change.missing`.

        Raises:
            InputError: An id is of the wrong kind, or this user may not delete.
            StorageError: The server could not; nothing has changed.
        """
        wanted = self._ids(ids)
        with self._changing() as (cursor, layout):
            return postgres_write.delete(cursor, layout, wanted)

    def set_columns(self, ids: Sequence[object] | pa.Array, columns: pa.Table) -> Change:
        """Give items other columns and keep their vectors, all of them or none.

        Args:
            ids: (n,) ids of items, each of one row.
            columns: n rows; columns not named keep their values, new ones are added to the table.

        Raises:
            InputError: An id is repeated or names several rows, or a value does not fit its column.
            StorageError: The server could not; nothing has changed.
        """
        wanted = self._ids(ids)
        postgres_write.ensure_once(wanted)
        if columns.num_rows != len(wanted):
            raise InputError(
                f"{len(wanted)} ids and {columns.num_rows} rows of columns; each item has one of both"
            )
        if not columns.num_columns or not wanted:
            return Change()
        with self._changing() as (cursor, layout):
            change, layout = postgres_write.set_columns(
                cursor, layout, self._sessions.address, wanted, columns
            )
        self._layout = layout
        return change

    def build_index(
        self,
        *,
        kind: str = "hnsw",
        precision: Precision | str | None = None,
        m: int = 16,
        ef_construction: int = 100,
        nlist: int | None = None,
        recall_target: float = 0.99,
        memory_bytes: int | None = None,
    ) -> Index:
        """Build an index in place of the one there is, and measure its recall. Readers go on, writers wait.

        With a text column, an index of its words for `ranked` is built too.

        Args:
            kind: "hnsw", or "ivf" (built faster, finds less).
            precision: float32, float16 or binary; None is float16 where vectors fit, the signs alone (binary)
                beyond 4,000 dimensions and for hamming and jaccard.
            m: hnsw: links per vector, 2 to 100.
            ef_construction: hnsw: vectors looked at to link one, 4 to 1,000.
            nlist: ivf: lists; None for a thousandth of the rows.
            recall_target: The share of true neighbours wanted; how hard a search looks is chosen to reach it.
            memory_bytes: What the server may use to build it; None for what it needs, at most 1 GiB.

        Raises:
            InputError: pgvector has no such index for this metric or these dimensions.
            StorageError, WriteError: The server could not; the index there was is as it was.
        """
        if not 0.0 < recall_target <= 1.0:
            raise InputError(f"recall_target is {recall_target}: it is a share, above 0 and at most 1")
        wanted = postgres_build.Wanted(
            kind=kind,
            precision=None if precision is None else choice(Precision, precision, "precision"),
            m=m,
            ef_construction=ef_construction,
            nlist=nlist,
            recall_target=recall_target,
            memory_bytes=memory_bytes,
        )
        self.refresh()
        index = postgres_build.build(self._sessions, self._layout, wanted)
        self.refresh()
        return index

    def drop_index(self) -> None:
        """Drop the index; searches compare with all vectors again."""
        with self._changing() as (cursor, layout):
            postgres_build.drop(cursor, layout)
        self.refresh()

    def drop(self) -> None:
        """Drop the table with all its rows, and its manifest."""
        with self._changing() as (cursor, layout):
            cursor.execute(f"DROP TABLE {layout.name}", ())
            cursor.execute(f"DELETE FROM {layout.manifests} WHERE table_name = %s", (layout.table,))
        self.close()

    def stale(self) -> str | None:
        """Say whether so many rows came or went since the index was built that its recall is unknown."""
        index = self.index
        if index is None:
            return None
        rows = len(self)
        if index.rows / _STALE <= rows <= index.rows * _STALE:
            return None
        return (
            f"the index was built and measured at {index.rows:,} rows, now there are {rows:,}: build it again"
        )

    def sizes(self) -> dict[str, int]:
        """Return bytes on the server: `table`, all its `indexes`, and the `vector_index` among them."""
        index = self.index
        name = self._layout.name.replace("%%", "%")
        vector_index = (
            None
            if index is None
            else f"{quoted(self._layout.schema)}.{quoted(index.name)}".replace("%%", "%")
        )
        with self._sessions.transaction() as cursor:
            cursor.execute(
                "SELECT pg_table_size(to_regclass(%s)), pg_indexes_size(to_regclass(%s)), "
                "coalesce(pg_relation_size(to_regclass(%s)), 0)",
                (name, name, vector_index),
            )
            row = cursor.fetchone() or (0, 0, 0)
        return dict(zip(("table", "indexes", "vector_index"), map(int, row), strict=True))

    def nearest(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        metric: Metric | str | None = None,
        where_sql: str | None = None,
        parameters: Sequence[Any] = (),
        leave_out: IntArray | None = None,
        exact: bool = False,
    ) -> list[Found]:
        """Find the k nearest rows to each query, in one moment of the table.

        The index names candidates, their float32 originals decide. A filter that less than 5 % of the rows
        pass is answered by comparing all of those; above, the index is searched on until enough pass.

        Args:
            queries: (q, d) numbers.
            k: Neighbours per query, at least 1.
            metric: None for the table's own. Another one than the index is for compares with all rows; so
                does chebyshev always, which moves all vectors here.
            where_sql: Only rows for which this is true: SQL with %s for every parameter, from
                `collection.filters`. It becomes part of the statement: never text of a user's.
            parameters: Its values.
            leave_out: (m,) rows that are not to be found.
            exact: Compare with all rows that may be found, whatever index there is.

        Returns:
            Per query min(k, rows that may be found) rows with their distances, equal ones in row order.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: k is below 1, a query holds NaN, or the filter does not fit the columns.
            StorageError: The server could not.
        """
        asked = check(queries, dimensions=self.dimensions, what="queries")
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 neighbour")
        wanted = self.metric if metric is None else choice(Metric, metric, "metric")
        made = self.manifest
        index = None if exact else self.index
        if index is not None and not index.serves(wanted, normalized=made is not None and made.normalized):
            index = None
        condition = Condition.of(where_sql, parameters, leave_out)
        with self._sessions.transaction() as cursor:
            return postgres_search.search(
                cursor, self._layout, asked, k, metric=wanted, condition=condition, index=index
            )

    def ranked(
        self,
        query: str,
        count: int,
        *,
        where_sql: str | None = None,
        parameters: Sequence[Any] = (),
        leave_out: IntArray | None = None,
    ) -> IntArray:
        """Rank rows by the words of a query: those with any of them, best first.

        The order is `ts_rank_cd`'s: how often and how close together the words stand. That is not BM25: how
        rare a word is does not count. Words are compared as written but for upper and lower case.

        Args:
            query: Words; no syntax is read in them.
            count: Rows at most.
            where_sql: As `nearest` takes it.
            parameters: Its values.
            leave_out: (m,) rows that are not to be found.

        Returns:
            (m,) rows.

        Raises:
            InputError: The table has no text column.
        """
        if self.text_column is None:
            raise InputError(
                f"{self.name} does not say which column was embedded, so it cannot be searched by words: "
                f"create it with text_column="
            )
        condition = Condition.of(where_sql, parameters, leave_out)
        with self._sessions.transaction() as cursor:
            return postgres_read.ranked(cursor, self._layout, query, count, condition)

    def rows_of(self, item: Id) -> IntArray:
        """Return the rows of an id, ascending; none if it is unknown."""
        try:
            wanted = self._ids([item])
        except InputError:
            return np.empty(0, np.int64)
        with self._sessions.transaction() as cursor:
            cursor.execute(f"SELECT {ROW} FROM {self._layout.name} WHERE {ID} = %s ORDER BY {ROW}", wanted)
            return postgres_read.numbers(cursor)

    def ids(self, rows: IntArray) -> list[Id]:
        """Return the ids of rows, in their order.

        Raises:
            StorageError: A row is gone since it was found.
        """
        with self._sessions.transaction() as cursor:
            found = postgres_read.values_of(cursor, self._layout, rows, [ID], self.name)
        return [record[0] for record in found]

    def known_ids(self) -> list[Id]:
        """Return up to 2,000 ids, to compare an unknown one with."""
        some = f"(SELECT {ID} FROM {self._layout.name} LIMIT {_KNOWN_IDS}) known"
        with self._sessions.transaction() as cursor:
            cursor.execute(f"SELECT DISTINCT {ID} FROM {some}", ())
            return [row[0] for row in cursor.fetchall()]

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the vectors of rows, in their order: (m, d) float32.

        Raises:
            StorageError: A row is gone since it was found.
        """
        with self._sessions.transaction() as cursor:
            found = postgres_read.values_of(cursor, self._layout, rows, [VECTOR], self.name)
        return postgres_copy.vector_of([record[0] for record in found], self.dimensions)

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of rows, in their order.

        Raises:
            UnknownNameError: There is no such column.
            StorageError: A row is gone since it was found.
        """
        with self._sessions.transaction() as cursor:
            return postgres_read.records(cursor, self._layout, rows, names, self.name)

    def rows(self, names: Sequence[str] | None = None, *, with_vectors: bool = False) -> Iterator[Stored]:
        """Read the whole table in one moment, some thousand rows at a time, ordered by row.

        Holds a transaction open until the last row was read or the iterator is closed.

        Args:
            names: Columns; None for all.
            with_vectors: Read the vectors too.

        Raises:
            UnknownNameError: There is no such column.
        """
        wanted = self.columns if names is None else names
        with self._sessions.transaction() as cursor:
            yield from postgres_read.stream(cursor, self._layout, wanted, with_vectors)

    @contextmanager
    def _changing(self) -> Iterator[tuple[Cursor[Any], Layout]]:
        """Be the only writer of ours, with the table as it is now, in a transaction."""
        with self._sessions.transaction(write=True) as cursor:
            postgres_schema.lock(cursor, self._layout)
            yield cursor, postgres_schema.read(cursor, self._sessions.address)

    def _ensure_space(self, manifest: Manifest | None, layout: Layout) -> None:
        if manifest is None:
            return
        if layout.manifest is None:
            raise SpaceMismatchError(
                f"{self.name} does not say which model made its vectors, these are of {manifest.model}: "
                f"create another table with its manifest"
            )
        ensure_comparable(layout.manifest, manifest, what=self.name)

    def _ids(self, ids: Sequence[object] | pa.Array) -> list[Id]:
        return postgres_copy.checked_ids(_listed(ids), self._layout.id_kind, self.name)


def _listed(ids: Sequence[object] | pa.Array) -> Sequence[object]:
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        found: list[object] = ids.to_pylist()
        return found
    return ids.tolist() if isinstance(ids, np.ndarray) else ids
