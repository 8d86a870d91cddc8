"""What an index must be: vectors in, neighbours out. It never embeds and knows no texts."""

from __future__ import annotations

from typing import Protocol

from vecmill.core.types import Metric, Neighbors, Vectors


class Index(Protocol):
    """Searchable vectors. Neighbours are named by the row of the vector they stand for."""

    @property
    def dimensions(self) -> int:
        """Components of a vector, and of every query."""

    @property
    def metric(self) -> Metric:
        """What "near" means here."""

    def __len__(self) -> int:
        """Return how many vectors are searched."""

    def search(self, queries: Vectors, k: int) -> Neighbors:
        """Find the k nearest vectors to each query.

        Args:
            queries: (q, d) float32.
            k: Neighbours per query, at least 1.

        Returns:
            Row i answers queries[i]: min(k, n) neighbours, nearest first, equal distances in row order.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: k is below 1, or a query holds NaN.
        """
