"""Exact search: every query is compared with every vector. Right up to some hundred thousand vectors."""

from __future__ import annotations

import numpy.typing as npt

from vecmill.core.errors import DimensionMismatchError, InputError, unknown_name
from vecmill.core.types import Metric, Neighbors, Vectors
from vecmill.core.vectors import check, nearest, norms_of


class ExactIndex:
    """Search by comparing with all vectors; recall is 1 by construction.

    Keeps the array it is given (no copy where it is float32 in C order, so a memory-mapped one stays on disk)
    and one length per vector. A search reads the vectors once per block of 256 queries.

    Args:
        vectors: (n, d), at least one; need not be normalized.
        metric: What "near" means: cosine, dot or euclidean.

    Raises:
        InputError: There are no vectors, or one holds NaN or infinity.
        UnknownNameError: No such metric.
    """

    def __init__(self, vectors: npt.ArrayLike, *, metric: Metric | str = Metric.COSINE) -> None:
        if metric not in list(Metric):
            raise unknown_name("metric", metric, [known.value for known in Metric])
        self._vectors = check(vectors)
        if self._vectors.size == 0:
            raise InputError(f"nothing to search: vectors have shape {self._vectors.shape}")
        self._metric = Metric(metric)
        self._norms = norms_of(self._vectors)

    @property
    def dimensions(self) -> int:
        """Components of a vector, and of every query."""
        return int(self._vectors.shape[1])

    @property
    def metric(self) -> Metric:
        """What "near" means here."""
        return self._metric

    @property
    def vectors(self) -> Vectors:
        """The (n, d) float32 array searched; do not modify it."""
        return self._vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: npt.ArrayLike, k: int) -> Neighbors:
        """Find the k nearest vectors to each query.

        Args:
            queries: (q, d) numbers; need not be normalized.
            k: Neighbours per query, at least 1; above n it gives n and `complete` is False.

        Returns:
            Row i answers queries[i]: rows and distances (q, min(k, n)), ascending, ties to the lower row.

        Raises:
            DimensionMismatchError: Queries and vectors differ in d.
            InputError: k is below 1, or a query holds NaN or infinity.
        """
        asked = check(queries, what="queries")
        if asked.shape[1] != self.dimensions:
            raise DimensionMismatchError(
                f"queries have {asked.shape[1]} dimensions, the index {self.dimensions}; "
                "embed them with the model that made the index"
            )
        return nearest(asked, self._vectors, k, metric=self._metric, norms=self._norms)
