"""A table in PostgreSQL as `Items` to search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import pyarrow as pa

from vecmill.collection.filters import Filter, quoted
from vecmill.collection.items import Near
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray, Metric, Vectors
from vecmill.index.postgres import PostgresTable


class PostgresItems:
    """What a table holds. Every call sees one moment of it; two calls may see two.

    A row that others delete between a search and the reading of its columns is an error that says so.

    Args:
        url: `postgresql://user:secret@host/db?table=films`.

    Raises:
        InputError, StorageError, MissingExtraError: As `PostgresTable.open`.
    """

    def __init__(self, url: str) -> None:
        self.table = PostgresTable.open(url)

    def close(self) -> None:
        """Close the connections that are kept. Items that are no longer used do so too."""
        self.table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The table's address, without the password."""
        return self.table.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about the server and the index."""
        return self.table.notes

    @property
    def manifest(self) -> Manifest | None:
        """What made the vectors; None where nobody knows."""
        return self.table.manifest

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self.table.dimensions

    @property
    def metric(self) -> Metric | None:
        """The metric its index is for; without an index only what is meant unless told."""
        return self.table.metric

    @property
    def indexed(self) -> bool:
        """Whether it has an index, which answers one metric."""
        return self.table.index is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns a hit can carry."""
        return self.table.columns

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is known."""
        return self.table.text_column

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.table)

    def nearest(
        self,
        queries: Vectors,
        k: int,
        *,
        metric: Metric,
        where: Filter | None = None,
        leave_out: IntArray | None = None,
        exact: bool = False,
    ) -> list[Near]:
        """Find the k nearest items to each query among those that pass the filter; see `Items`."""
        where_sql, parameters = self._condition(where)
        found = self.table.nearest(
            queries,
            k,
            metric=metric,
            where_sql=where_sql,
            parameters=parameters,
            leave_out=leave_out,
            exact=exact,
        )
        return [Near(rows, distances) for rows, distances in found]

    def ranked(self, query: str, count: int, *, where: Filter | None = None) -> IntArray:
        """Rank rows by the words of a query, best first; see `Items`.

        By the server's `ts_rank_cd`, which is not BM25: rare words count no more than frequent ones.
        """
        where_sql, parameters = self._condition(where)
        return self.table.ranked(query, count, where_sql=where_sql, parameters=parameters)

    def find(self, item: Id) -> IntArray:
        """Return the rows of an id, ascending."""
        return self.table.rows_of(item)

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the vectors of rows: (m, d) float32."""
        return self.table.vectors_of(rows)

    def known_ids(self) -> Sequence[Id]:
        """Return up to 2,000 ids to compare an unknown one with."""
        return self.table.known_ids()

    def ids(self, rows: IntArray) -> list[Id]:
        """Return the ids of rows, in their order."""
        return self.table.ids(rows)

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of rows, in their order."""
        return self.table.records(rows, names)

    def _condition(self, where: Filter | None) -> tuple[str | None, list[Any]]:
        """Write a filter as the server's SQL, once it fits the columns.

        Raises:
            UnknownNameError: There is no such column.
            InputError: A column is compared with what it cannot be.
        """
        if where is None:
            return None, []
        where.check(self.table.schema)
        return where.sql(self._column)

    def _column(self, name: str) -> str:
        """Write a column so that the server compares as filters do: texts by code point, NaN as null."""
        kind = self.table.schema.field(name).type
        if pa.types.is_string(kind):
            return f'{quoted(name)} COLLATE "C"'
        if pa.types.is_floating(kind):
            return f"NULLIF({quoted(name)}, 'NaN')"
        return quoted(name)
