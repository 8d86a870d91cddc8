"""Exact search: every query is compared with every vector. Right up to some hundred thousand vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors, choice
from vecmill.core.vectors import check, merged, nearest, norms_of
from vecmill.index.base import Originals

_FEW_SURVIVORS = 0.25  # below this share fetching the survivors reads less than passing over everything
_MOST_FETCHED = 1 << 22  # components fetched at once: 16 MiB


class ExactIndex:
    """Search by comparing with all vectors; recall is 1 by construction.

    Keeps the array it is given (no copy where it is float32 in C order, so a memory-mapped one stays on disk)
    and one length per vector. A search reads the vectors once per block of 256 queries.

    Args:
        vectors: (n, d), at least one; need not be normalized.
        metric: What "near" means.

    Raises:
        InputError: There are no vectors, or one holds NaN or infinity.
        UnknownNameError: No such metric.
    """

    def __init__(
        self, vectors: npt.ArrayLike, *, metric: Metric | str = Metric.COSINE, engine: str = "auto"
    ) -> None:
        self._metric = choice(Metric, metric, "metric")
        self._vectors = check(vectors)
        if self._vectors.size == 0:
            raise InputError(f"nothing to search: vectors have shape {self._vectors.shape}")
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

    def search(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> Neighbors:
        """Find the k nearest vectors to each query.

        Args:
            queries: (q, d) numbers; need not be normalized.
            k: Neighbours per query, at least 1; above n it gives n and `complete` is False.
            allowed: (n,) bool, the rows that may be found; None for all.

        Returns:
            Row i answers queries[i]: rows and distances (q, min(k, rows allowed)), ascending, ties to the
            lower row.

        Raises:
            DimensionMismatchError: Queries and vectors differ in d.
            InputError: k is below 1, a query holds NaN or infinity, or `allowed` is of another length.
        """
        asked = check(queries, what="queries")
        if asked.shape[1] != self.dimensions:
            raise DimensionMismatchError(
                f"queries have {asked.shape[1]} dimensions, the index {self.dimensions}; "
                "embed them with the model that made the index"
            )
        return nearest(asked, self._vectors, k, metric=self._metric, norms=self._norms, allowed=allowed)


def search_originals(
    originals: Originals,
    queries: Vectors,
    k: int,
    *,
    metric: Metric,
    allowed: Mask | None = None,
    norms: npt.NDArray[np.float32] | None = None,
) -> Neighbors:
    """Find the k nearest of vectors that lie in pieces, on disk or elsewhere, by comparing with all of them.

    Passes over the pieces once for all queries. Where few rows may be found only those are fetched.

    Args:
        originals: The vectors.
        queries: (q, d) float32.
        k: Neighbours per query, at least 1.
        metric: What "near" means.
        allowed: (n,) bool, the rows that may be found; None for all.
        norms: (n,) lengths of the vectors, where the caller keeps them.

    Returns:
        As `core.vectors.nearest`, whose answer over the whole table it equals.

    Raises:
        DimensionMismatchError: Queries and vectors differ in d.
        InputError: k is below 1, a component is NaN or infinite, or `allowed` is of another length.
        CorruptFileError: What lies there is not what was written.
    """
    n, d = len(originals), originals.dimensions
    answers = [nearest(queries, np.empty((0, d), np.float32), k, metric=metric)]
    if allowed is not None and np.shape(allowed) != (n,):
        raise InputError(
            f"allowed has shape {np.shape(allowed)}; it must hold one bool for each of {n} vectors"
        )
    survivors = None if allowed is None else np.flatnonzero(allowed)
    if survivors is not None and len(survivors) < _FEW_SURVIVORS * n:
        step = max(1, _MOST_FETCHED // max(d, 1))
        for start in range(0, len(survivors), step):
            rows = survivors[start : start + step]
            lengths = None if norms is None else norms[rows]
            found = nearest(queries, originals.fetch(rows), k, metric=metric, norms=lengths)
            answers = [_joined(answers, found, rows, k)]
        return answers[0]
    for first, vectors in originals.parts():
        here = slice(first, first + len(vectors))
        found = nearest(
            queries,
            vectors,
            k,
            metric=metric,
            norms=None if norms is None else norms[here],
            allowed=None if allowed is None else allowed[here],
        )
        answers = [_joined(answers, found, np.arange(here.start, here.stop), k)]
    return answers[0]


def _joined(answers: list[Neighbors], found: Neighbors, rows: IntArray, k: int) -> Neighbors:
    """Put what a piece gave beside what was found before it."""
    return merged([*answers, Neighbors(rows[found.rows], found.distances, found.complete)], k)
