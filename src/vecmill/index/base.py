"""What the parts of a search agree on: an index, what names candidates, and the originals that decide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors


class Index(Protocol):
    """Searchable vectors. It never embeds and knows no texts; rows are positions of vectors."""

    @property
    def dimensions(self) -> int:
        """Components of a vector, and of every query."""

    @property
    def metric(self) -> Metric:
        """What "near" means here."""

    def __len__(self) -> int:
        """Return how many vectors are searched."""

    def search(self, queries: Vectors, k: int, *, allowed: Mask | None = None) -> Neighbors:
        """Find the k nearest vectors to each query.

        Args:
            queries: (q, d) float32.
            k: Neighbours per query, at least 1.
            allowed: (n,) bool, the rows that may be found; None for all.

        Returns:
            Row i answers queries[i]: min(k, rows allowed) neighbours, nearest first, equal distances in row
            order; `complete` is False where that is fewer than k. Distances are those of the originals.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: k is below 1, a query holds NaN, or `allowed` is of another length.
        """


class Candidates(Protocol):
    """Names rows that are probably near, cheaply. What it names is rescored; what it misses is lost."""

    @property
    def dimensions(self) -> int:
        """Components of a query, before any shortening of its own."""

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory for all rows together."""

    def __len__(self) -> int:
        """Return how many rows it knows."""

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        """Name rows that are probably among the nearest.

        Args:
            queries: (q, d) float32.
            count: Rows per query, at least 1.
            allowed: (n,) bool, the rows that may be named; None for all.

        Returns:
            (q, min(count, n)) int64, in no promised order, each row at most once per query; -1 where fewer
            were found.
        """


class Originals(Protocol):
    """The float vectors, wherever they are: in memory, memory-mapped, in the segments of a store."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""

    def __len__(self) -> int:
        """Return how many vectors there are."""

    def fetch(self, rows: IntArray) -> Vectors:
        """Return the vectors at (m,) positions: (m, d) float32, a new array. Reads ahead where it can.

        Raises:
            CorruptFileError: What lies there is not what was written.
        """

    def parts(self) -> Iterator[tuple[int, Vectors]]:
        """Yield all vectors in order, in pieces: position of the first one, (m, d) float32.

        Raises:
            CorruptFileError: What lies there is not what was written.
        """
