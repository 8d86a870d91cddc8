"""A vector set as `Items` to search: by comparing with all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vecmill.collection.filters import Filter
from vecmill.collection.items import Near
from vecmill.collection.text_index import TextIndex
from vecmill.core.errors import InputError, UnknownNameError, unknown_name
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray, Mask, Metric, Vectors
from vecmill.data.vector_set import VectorSet
from vecmill.index.exact import ExactIndex

_ID = "id"
"""The name under which a filter knows an item's id, as in a collection."""


class SetItems:
    """What a vector set holds. Rows are those of the set, with or without a vector.

    Lengths of vectors, the words of the texts and the last filter are kept, so that searching it again costs
    less. Any thread may use it.

    Args:
        vector_set: As `read_vectors` opens it. A filter reads the columns it names from the file.
    """

    def __init__(self, vector_set: VectorSet) -> None:
        self._set = vector_set
        self._lock = threading.Lock()
        self._indexes: dict[Metric, ExactIndex] = {}
        self._words: TextIndex | None = None
        self._last: tuple[str, Mask] | None = None

    @property
    def name(self) -> str:
        """Its path."""
        return self._set.path

    @property
    def manifest(self) -> Manifest | None:
        """What made the vectors; None where nobody knows."""
        return self._set.manifest

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self._set.dimensions

    @property
    def metric(self) -> Metric | None:
        """None: a set is searched by any metric."""
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns a hit can carry: all but the vectors, and the ids where they are a column of ours."""
        made = self.manifest
        own = None if made is None else made.column("id")
        return tuple(name for name in self._set.columns if name != own)

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is known."""
        return self._set.text_column

    @property
    def vector_column(self) -> str:
        """The column the vectors were read from."""
        return self._set.vector_column

    def __len__(self) -> int:
        """Return how many rows have a vector."""
        return len(self._set.vectors)

    def nearest(
        self,
        queries: Vectors,
        k: int,
        *,
        metric: Metric,
        where: Filter | None = None,
        leave_out: IntArray | None = None,
        exact: bool = False,  # noqa: ARG002 - it always is
    ) -> list[Near]:
        """Find the k nearest rows to each query among those that pass the filter; see `Items`."""
        allowed = None if where is None else self._passing(where)[self._set.rows]
        if not len(self):
            return [Near(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        if leave_out is not None and len(leave_out):
            others = ~np.isin(self._set.rows, leave_out)
            allowed = others if allowed is None else allowed & others
        found = self._index(metric).search(queries, k, allowed=allowed)
        rows = self._set.rows[found.rows]
        return [Near(row, near) for row, near in zip(rows, found.distances, strict=True)]

    def ranked(self, query: str, count: int, *, where: Filter | None = None) -> IntArray:
        """Rank rows that have a vector by the words of a query, with BM25; see `Items`.

        Cost: the first time, indexing the words of all texts: some 300,000 short ones a second.
        """
        allowed = None if where is None else self._passing(where)
        return self._text_index().ranked(query, count, allowed)

    def find(self, item: Id) -> IntArray:
        """Return the rows of an id, ascending; ids of a set are texts."""
        return np.array([row for row, name in enumerate(self._set.ids) if name == item], np.int64)

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the vectors of rows, in their order: (m, d) float32; rows without one are left out."""
        held = self._set.rows
        at = np.searchsorted(held, rows)
        there = at < len(held)
        there[there] = held[at[there]] == rows[there]
        return self._set.vectors[at[there]]

    def known_ids(self) -> Sequence[Id]:
        """Return all ids."""
        return self._set.ids

    def ids(self, rows: IntArray) -> list[Id]:
        """Return the ids of rows, in their order."""
        return [self._set.ids[row] for row in rows.tolist()]

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of rows, in their order."""
        return self._set.records(rows.tolist(), names)

    def _index(self, metric: Metric) -> ExactIndex:
        with self._lock:
            if metric not in self._indexes:
                self._indexes[metric] = ExactIndex(self._set.vectors, metric=metric)
            return self._indexes[metric]

    def _passing(self, where: Filter) -> Mask:
        """Return which rows of the set pass: (total_rows,) bool."""
        last = self._last
        if last is not None and last[0] == where.text:
            return last[1]
        passing = where.mask(self._table(where))
        self._last = (where.text, passing)
        return passing

    def _table(self, where: Filter) -> pa.Table:
        """Read the columns a filter names, of all rows; `id` is the ids where no column is called so."""
        stored = self._set.columns
        known = stored if _ID in stored else (*stored, _ID)
        for name in where.columns:
            if name not in known:
                raise _unknown(where, name, known)
        table = self._set.table([name for name in where.columns if name in stored])
        if _ID in where.columns and _ID not in stored:
            table = table.append_column(_ID, pa.array(self._set.ids, pa.string()))
        return table

    def _text_index(self) -> TextIndex:
        with self._lock:
            if self._words is None:
                if self.text_column is None:
                    raise InputError(
                        f"{self.name} has no column known to hold its texts: embed it with the text kept, "
                        'call the column "text" in a file from elsewhere, or search without hybrid'
                    )
                self._words = TextIndex.build(None, self._texts(self.text_column))
            return self._words

    def _texts(self, column: str) -> Iterator[tuple[int, str | None]]:
        has_vector = np.zeros(len(self._set), np.bool_)
        has_vector[self._set.rows] = True
        row = 0
        for batch in self._set.table([column]).to_batches():
            for text in batch.column(0).to_pylist():
                if has_vector[row]:
                    yield row, text
                row += 1


def _unknown(where: Filter, name: str, known: Sequence[str]) -> UnknownNameError:
    """Build the error a filter itself builds, from names alone."""
    try:
        where.check(pa.schema([(column, pa.null()) for column in known]))
    except UnknownNameError as error:
        return error
    return unknown_name("column", name, known)
