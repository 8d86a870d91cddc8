"""What can be searched: a vector set, a collection, a table in PostgreSQL; one face for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vecmill.collection.filters import Filter
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray, Metric, Vectors


@dataclass(frozen=True, slots=True)
class Near:
    """What one query found, nearest first.

    Attributes:
        rows: (m,) int64, the source's own numbers of its rows; good for `records` of the same `Items`.
        distances: (m,) float32, ascending, equal ones in row order.
    """

    rows: IntArray
    distances: npt.NDArray[np.float32]


class Items(Protocol):
    """Vectors with ids and columns, as they were at one moment. All methods may be called from any thread."""

    @property
    def name(self) -> str:
        """What people call it in messages: a path, or an address without its password."""

    @property
    def manifest(self) -> Manifest | None:
        """What made the vectors; None where nobody knows."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""

    @property
    def metric(self) -> Metric | None:
        """The metric it is built for; None where any will do."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns a hit can carry: all but ids and vectors."""

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is known."""

    def __len__(self) -> int:
        """Return how many items have a vector."""

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
        """Find the k nearest items to each query among those that pass the filter.

        Args:
            queries: (q, d) float32, checked.
            k: Neighbours per query, at least 1.
            metric: What "near" means.
            where: Only rows that pass it.
            leave_out: (m,) rows that are not to be found.
            exact: Compare with all, whatever indexes there are.
        """

    def ranked(self, query: str, count: int, *, where: Filter | None = None) -> IntArray:
        """Rank rows by the words of a query (BM25 or what the source has), best first: (m,) rows.

        Raises:
            InputError: The source has no text index; the message says how to get one.
        """

    def find(self, item: Id) -> IntArray:
        """Return the rows of an id, ascending; several where a text was cut into chunks, none if unknown.

        Items without a vector count too.
        """

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the vectors of rows: (m, d) float32; rows without one are left out."""

    def known_ids(self) -> Sequence[Id]:
        """Return ids to compare an unknown one with; all of them where that is cheap."""

    def ids(self, rows: IntArray) -> list[Id]:
        """Return the ids of rows, in their order."""

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of rows, in their order.

        Raises:
            UnknownNameError: There is no such column.
        """
