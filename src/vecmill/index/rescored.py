"""Candidates judged by the originals: what comes out has exact distances, whatever named it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors, choice
from vecmill.core.vectors import check, pair_distances
from vecmill.index.base import Candidates, Originals
from vecmill.index.exact import search_originals

Float32Array = npt.NDArray[np.float32]

_FETCHED = 1 << 22
"""Components of originals in memory at once: 16 MiB."""

_MOST_QUERIES, _NAMED = 256, 1 << 20
"""Queries asked for candidates at once, and candidates named for them: codes are decoded once for all.

The originals of so many need not fit in memory at once.
"""

_FEW_SURVIVORS = 0.05
"""Where a filter leaves less than this share, its rows are compared one by one."""

_TIMES = 4
"""How many times harder a search is repeated for queries that are far from everything found."""

_COMPARED_MEANWHILE, _COMPARED_MEANWHILE_BY_EFFORT = 20, 200
"""Vectors compared one by one in the time it takes to find and judge one more candidate, roughly.

By codes, and by what needs more effort for it: a graph keeps several vectors in sight for each.
"""

_ROUNDOFF = 2.0**-24


class RescoredIndex:
    """Search by codes, a graph or lists; order by the originals.

    Can miss a neighbour, never report a wrong distance. A larger `oversample` never finds less, as long as
    what names candidates names more of the same.

    Args:
        candidates: What names rows.
        originals: The float vectors of the same rows.
        metric: What "near" means.
        oversample: Candidates per neighbour wanted, at least 1.
        far: Distances of the first, second, ... neighbour beyond which a query is unlike those that
            `oversample` was chosen with (`Measured.far`). Such a query is searched for again, 4, 16, ...
            times harder, until nothing else is found or comparing all rows is no dearer. None: every
            query is searched for once.
        harder: Candidates found with so many times the effort, where asking for more is not enough; they
            know the same rows. None for `candidates` themselves.

    Raises:
        InputError: Candidates and originals are not of the same vectors, or `oversample` is below 1.
    """

    def __init__(
        self,
        candidates: Candidates,
        originals: Originals,
        *,
        metric: Metric | str,
        oversample: float,
        far: Sequence[float] | None = None,
        harder: Callable[[int], Candidates] | None = None,
    ) -> None:
        if len(candidates) != len(originals):
            raise InputError(f"{len(candidates)} rows are known by codes, but there are {len(originals)}")
        if candidates.dimensions != originals.dimensions:
            raise DimensionMismatchError(
                f"candidates take {candidates.dimensions} dimensions, originals have {originals.dimensions}"
            )
        if not 1.0 <= oversample < math.inf:
            raise InputError(f"oversample is {oversample}: ask for at least 1 candidate per neighbour")
        self._candidates = candidates
        self._originals = originals
        self._metric = choice(Metric, metric, "metric")
        self._oversample = float(oversample)
        self._far = None if far is None else np.array(far, np.float32)
        self._harder = harder

    @property
    def dimensions(self) -> int:
        """Components of a vector, and of every query."""
        return self._originals.dimensions

    @property
    def metric(self) -> Metric:
        """What "near" means here."""
        return self._metric

    @property
    def oversample(self) -> float:
        """Candidates per neighbour wanted."""
        return self._oversample

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory for all rows together, originals not counted."""
        return self._candidates.size_bytes

    def __len__(self) -> int:
        return len(self._originals)

    def search(self, queries: Vectors, k: int, *, allowed: Mask | None = None) -> Neighbors:
        """Find the k nearest vectors to each query among the candidates named for it.

        All rows that may be found are compared where they are few, and where too few candidates are named.

        Args:
            queries: (q, d) numbers; need not be normalized.
            k: Neighbours per query, at least 1; capped at the rows that may be found.
            allowed: (n,) bool, the rows that may be found; None for all.

        Returns:
            Row i answers queries[i]: rows and distances (q, min(k, rows allowed)), ascending, equal
            distances in row order. Distances are those of the originals.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: k is below 1, a query holds NaN or infinity, or `allowed` is of another length.
        """
        asked = check(queries, what="queries")
        if asked.shape[1] != self.dimensions:
            raise DimensionMismatchError(
                f"queries have {asked.shape[1]} dimensions, the index {self.dimensions}; "
                "embed them with the model that made the index"
            )
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 neighbour")
        survivors = self._survivors(allowed)
        found = min(k, survivors)
        count = min(len(self), math.ceil(k * self._oversample))
        if survivors <= max(_FEW_SURVIVORS * len(self), 4 * count) and allowed is not None:
            return self._exact(asked, k, allowed)
        if count >= len(self):
            return self._exact(asked, k, allowed)
        rows, near = self._found(self._candidates, asked, count, found, allowed)
        if self._far is not None:
            self._search_harder(asked, rows, near, count, survivors, allowed)
        return Neighbors(rows, near, complete=k <= survivors)

    def _found(
        self, candidates: Candidates, asked: Vectors, count: int, found: int, allowed: Mask | None
    ) -> tuple[IntArray, Float32Array]:
        """Answer queries by so many candidates each: rows and distances (q, found)."""
        rows = np.empty((len(asked), found), np.int64)
        near = np.empty((len(asked), found), np.float32)
        named_at_once = max(1, min(_MOST_QUERIES, _NAMED // count))
        fetched_at_once = max(1, _FETCHED // (count * max(1, self.dimensions)))
        for start in range(0, len(asked), named_at_once):
            block = asked[start : start + named_at_once]
            named = candidates.candidates(block, count, allowed=allowed)
            for at in range(0, len(block), fetched_at_once):
                few = slice(at, at + fetched_at_once)
                part = slice(start + at, start + at + len(block[few]))
                rows[part], near[part] = self._judged(block[few], named[few], found, allowed)
        return rows, near

    def _search_harder(
        self,
        asked: Vectors,
        rows: IntArray,
        near: Float32Array,
        count: int,
        survivors: int,
        allowed: Mask | None,
    ) -> None:
        """Put better answers where a query is farther from what was found than those of the measurement."""
        meanwhile = _COMPARED_MEANWHILE if self._harder is None else _COMPARED_MEANWHILE_BY_EFFORT
        left, times = np.flatnonzero(self._is_far(near)), _TIMES
        while len(left):
            if times * count * meanwhile >= survivors:
                exact = self._exact(asked[left], rows.shape[1], allowed)
                rows[left], near[left] = exact.rows, exact.distances
                return
            candidates = self._candidates if self._harder is None else self._harder(times)
            found = self._found(candidates, asked[left], times * count, rows.shape[1], allowed)
            changed = (found[1] != near[left]).any(axis=1)
            rows[left], near[left] = found
            left, times = left[changed], _TIMES * times

    def _is_far(self, near: Float32Array) -> Mask:
        """Say for which queries any of the neighbours found is farther than usual: (q,) bool."""
        far = np.empty(0, np.float32) if self._far is None else self._far
        ranks = min(near.shape[1], len(far))
        return np.asarray((near[:, :ranks] > far[:ranks]).any(axis=1))

    def _survivors(self, allowed: Mask | None) -> int:
        if allowed is None:
            return len(self)
        if np.shape(allowed) != (len(self),) or allowed.dtype != np.bool_:
            raise InputError(
                f"allowed has shape {np.shape(allowed)} and dtype {allowed.dtype}; it must hold one bool for "
                f"each of the {len(self)} vectors"
            )
        return int(np.count_nonzero(allowed))

    def _exact(self, asked: Vectors, k: int, allowed: Mask | None) -> Neighbors:
        return search_originals(self._originals, asked, k, metric=self._metric, allowed=allowed)

    def _judged(
        self, asked: Vectors, named: IntArray, found: int, allowed: Mask | None
    ) -> tuple[IntArray, Float32Array]:
        """Answer some queries, whose candidates' originals fit in memory, by exact distances."""
        lacking = (named >= 0).sum(axis=1) < found
        if self._metric in (Metric.COSINE, Metric.DOT):
            lacking |= ~asked.any(axis=1)  # a zero query is equally far from all: the first rows
        rows = np.empty((len(asked), found), np.int64)
        near = np.empty((len(asked), found), np.float32)
        if lacking.any():
            exact = self._exact(asked[lacking], found, allowed)
            rows[lacking], near[lacking] = exact.rows, exact.distances
        enough = np.flatnonzero(~lacking)
        if len(enough):
            ordered = [np.sort(row[row >= 0]) for row in named[enough]]
            vectors = self._originals.fetch(np.concatenate(ordered))
            ends = np.cumsum([len(row) for row in ordered])
            for at, some, end in zip(enough, ordered, ends, strict=True):
                rows[at], near[at] = _nearest(
                    asked[at], vectors[end - len(some) : end], some, found, self._metric
                )
        return rows, near


def _nearest(
    query: Float32Array, vectors: Vectors, rows: IntArray, k: int, metric: Metric
) -> tuple[IntArray, Float32Array]:
    """Order candidates by exact distance and return the first k: rows (ascending) stand for vectors."""
    kept = _contenders(query, vectors, k, metric)
    if kept is not None:
        rows, vectors = rows[kept], vectors[kept]
    near = pair_distances(np.broadcast_to(query, vectors.shape), vectors, metric)
    order = np.argsort(near, kind="stable")[:k]
    return rows[order], near[order]


def _contenders(query: Float32Array, vectors: Vectors, k: int, metric: Metric) -> IntArray | None:
    """Return the candidates that float32 cannot tell from the k nearest, None for all; exact ones decide.

    An inner product of d terms is off by at most d roundoffs times the lengths, see `core.scores`.
    """
    if metric not in (Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN) or len(vectors) <= 2 * k:
        return None
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        scores, squares = np.vecdot(vectors, query), np.vecdot(vectors, vectors)
        length, largest = float(np.sqrt(np.vecdot(query, query))), float(np.sqrt(squares.max()))
        scale = length * largest
        if metric is Metric.COSINE:
            scores, scale = scores / np.sqrt(squares), length
        elif metric is Metric.EUCLIDEAN:
            scores, scale = scores - squares * np.float32(0.5), (length + largest) ** 2
        safe = 1e-30 < scale < 1e30 and squares.min() > 1e-30 and np.isfinite(scores).all()
    if not safe:
        return None
    floor = np.partition(scores, len(scores) - k)[len(scores) - k]
    slack = 2.0 * (2 * len(query) + 16) * _ROUNDOFF * scale
    return np.flatnonzero(scores >= floor - slack)
