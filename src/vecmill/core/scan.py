"""Exact search from inexact scores: scores find what may be among the nearest, exact distances decide.

A score is larger the nearer, and its error is bounded. So whatever scores further below the k-th best than
errors can explain is out; the few that remain are compared by their distances in float64.
Source: Johnson et al., Billion-scale similarity search with GPUs, section 2 (exact search in tiles).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import Float32Array, Float64Array, pair_distances, parts
from vecmill.core.types import IntArray, Metric, Vectors

_GROUP = 16  # scores that share one maximum
_TILE_SCORES = 1 << 20  # scores computed at once: 4 MiB
_MIN_TILE = 1024
_TILE_COMPONENTS = 1 << 23  # components of a tile, which may be a copy: 32 MiB
_RENEWAL = 1.5  # the limits are renewed whenever the rows passed have grown so many times
_MAX_PENDING = 1 << 21  # candidates held before they are settled: at most about 60 MiB


class Scorer(Protocol):
    """Scores rows for the queries of a block; larger is nearer."""

    @property
    def slack(self) -> Float64Array:
        """(q,): how far the score of a nearer row may lie below that of a farther one; inf: any distance."""

    @property
    def relative(self) -> float:
        """The same as a share of the score, beside `slack`."""

    @property
    def exact(self) -> bool:
        """Whether a score is the negative of the distance, to the last bit."""

    @property
    def floor(self) -> Float32Array:
        """(q,): rows with a score below are never found; -inf where every score stands for a row."""

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        """Fill (stop - start, q) scores of the positions from start to stop."""


@dataclass(frozen=True, slots=True)
class Table:
    """Vectors of which some rows may be found; a position counts only those.

    Attributes:
        vectors: (n, d) float32.
        norms: (n,) float32, their lengths.
        metric: What "near" means.
        survivors: (m,) rows that may be found, ascending; None for all.
    """

    vectors: Vectors
    norms: Float32Array
    metric: Metric
    survivors: IntArray | None = None

    def __len__(self) -> int:
        return len(self.vectors) if self.survivors is None else len(self.survivors)

    def tile(self, start: int, stop: int) -> tuple[Vectors, Float32Array]:
        """Return vectors and lengths of some positions, without a copy where the rows adjoin."""
        if self.survivors is None:
            return self.vectors[start:stop], self.norms[start:stop]
        rows = self.survivors[start:stop]
        if rows[-1] - rows[0] == len(rows) - 1:
            return self.vectors[rows[0] : rows[-1] + 1], self.norms[rows[0] : rows[-1] + 1]
        return self.vectors[rows], self.norms[rows]

    def rows(self, positions: IntArray) -> IntArray:
        """Return the rows of positions."""
        return positions if self.survivors is None else self.survivors[positions]


class Taker(Protocol):
    """Takes the candidates that a pass finds."""

    @property
    def k(self) -> int:
        """How many neighbours a query is to have."""

    @property
    def dimensions(self) -> int:
        """Components of a vector."""

    def add(self, at: IntArray, positions: IntArray, near: Float32Array | None = None) -> None:
        """Add candidates: queries by place in the block, positions that may be theirs, distances if known."""


def tile_rows(queries: int, dimensions: int, n: int) -> int:
    """Return how many rows are scored at once, a multiple of the group that suits the caches.

    Args:
        queries: How many are answered at once.
        dimensions: Components of a row, as a tile may be a copy.
        n: Rows there are.
    """
    size = min(_TILE_SCORES // max(queries, 1), _TILE_COMPONENTS // max(dimensions, 1), n + _GROUP - 1)
    return max(max(size, min(_MIN_TILE, n + _GROUP - 1)) // _GROUP, 1) * _GROUP


def collect(
    best: Taker, asked: IntArray, scorer: Scorer, n: int, *, tile: int | None = None, most: int | None = None
) -> IntArray:
    """Find every position that may be among the k nearest of a query, and hand it to `best`.

    Scores fall into groups with one maximum each; only groups whose maximum may matter are looked into. The
    limit of a query follows its k-th best score so far.

    Args:
        best: Takes the candidates.
        asked: (q,) places in the block of the queries that the scorer knows.
        scorer: Scores the positions 0 to n.
        n: Positions.
        tile: Rows scored at once, a multiple of the group; None for what suits the caches.
        most: Candidates a query may have at the end, and four times as many (or two tiles) on the way, where
            the k best are not known yet; with more it is given up. None for any number.

    Returns:
        The places of the queries given up, of which `best` knows nothing.
    """
    if tile is None:
        tile = tile_rows(len(asked), best.dimensions, n)
    waiting = _Waiting(asked, best, scorer, None if most is None else max(4 * most, 2 * tile))
    buffer = np.empty((tile, len(asked)), np.float32)
    members = buffer.reshape(_GROUP, tile // _GROUP, len(asked))  # of a group lie tile // _GROUP apart
    maxima = np.empty(members.shape[1:], np.float32)
    renewal = 0.0
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        scorer.score(start, stop, buffer[: stop - start])
        buffer[stop - start :] = -np.inf
        np.max(members, axis=0, out=maxima)
        if start == 0:
            waiting.begin(buffer[:stop], maxima)
        group, query = np.nonzero(maxima >= waiting.limits)
        scores = members[:, group, query]  # (members, groups)
        member, pair = np.nonzero(scores >= waiting.limits[query])
        positions = member * (tile // _GROUP) + group[pair]
        if stop - start < tile:
            inside = positions < stop - start
            member, pair, positions = member[inside], pair[inside], positions[inside]
        waiting.add(query[pair], start + positions, scores[member, pair])
        if stop >= renewal or waiting.count >= _MAX_PENDING:
            waiting.renew()
            renewal = _RENEWAL * stop
    waiting.renew(most)
    waiting.hand_over()
    return asked[np.flatnonzero(waiting.given_up)]


class _Waiting:
    """Candidates of a pass with their scores, and the limits below which a score is out."""

    def __init__(self, asked: IntArray, best: Taker, scorer: Scorer, most: int | None) -> None:
        self.limits = scorer.floor
        self.given_up = np.zeros(len(asked), np.bool_)
        self.count = 0
        self._most = most
        self._floor = scorer.floor
        self._asked = asked
        self._best = best
        self._exact = scorer.exact
        self._slack = scorer.slack.astype(np.float32) * np.float32(1.001)
        self._relative = np.float32(scorer.relative)
        self._tops = np.empty(0, np.uint64)  # keys of the k best scores of each query so far
        self._new: list[tuple[IntArray, IntArray, Float32Array]] = []
        self._kept: list[tuple[IntArray, IntArray, Float32Array]] = []

    def begin(self, scores: Float32Array, maxima: Float32Array) -> None:
        """Take the first limits from the first tile, from (t, q) scores or (groups, q) maxima."""
        first = maxima if len(maxima) >= 2 * self._best.k else scores
        worst = len(first) - self._best.k
        if worst >= 0:
            self.limits = self._below(np.partition(first, worst, axis=0)[worst])

    def add(self, queries: IntArray, positions: IntArray, scores: Float32Array) -> None:
        """Add candidates, each once."""
        self._new.append((queries, positions, scores))
        self.count += len(queries)

    def renew(self, most: int | None = None) -> None:
        """Raise the limits to what the candidates allow, and drop those below."""
        keys = [self._tops, *(_keys(queries, scores) for queries, _, scores in self._new)]
        self._tops, full, worst = _best_keys(np.concatenate(keys), len(self.limits), self._best.k)
        kept = self.limits.copy()
        kept[full] = self._below(worst, full)
        if self._most is not None:
            self._give_up(kept, self._most if most is None else most)
        self._kept = [_above(one, kept) for one in (*self._kept, *self._new)]
        self._new = []
        self.count = sum(len(queries) for queries, _, _ in self._kept)
        self.limits = kept
        if self._exact:  # a row that comes later loses to those before it that are as near
            self.limits[full] = np.nextafter(kept[full], np.float32(np.inf))
        if self._most is None and self.count >= _MAX_PENDING // 2:
            self.hand_over()

    def hand_over(self) -> None:
        """Give the candidates to `best`."""
        if self.count:
            queries = np.concatenate([one[0] for one in self._kept])
            positions = np.concatenate([one[1] for one in self._kept])
            near = np.float32(0.0) - np.concatenate([one[2] for one in self._kept])
            self._best.add(self._asked[queries], positions, near if self._exact else None)
        self._kept, self.count = [], 0

    def _below(self, scores: Float32Array, queries: IntArray | slice = slice(None)) -> Float32Array:
        """Return the least score that a row may have which is as near as one of these scores."""
        with np.errstate(over="ignore"):
            lowest: Float32Array = scores - self._slack[queries]
            if self._relative > 0.0:
                lowest -= np.abs(scores) * self._relative
        return np.maximum(lowest, self._floor[queries])

    def _give_up(self, limits: Float32Array, most: int) -> None:
        """Drop the queries that have more candidates: nothing reaches their limit any more."""
        counts = np.zeros(len(limits), np.int64)
        for queries, _, scores in (*self._kept, *self._new):
            counts += np.bincount(queries[scores >= limits[queries]], minlength=len(limits))
        lost = counts > most
        self.given_up |= lost
        limits[self.given_up] = np.inf


def _above(
    candidates: tuple[IntArray, IntArray, Float32Array], limits: Float32Array
) -> tuple[IntArray, IntArray, Float32Array]:
    queries, positions, scores = candidates
    fit = scores >= limits[queries]
    return queries[fit], positions[fit], scores[fit]


def _keys(queries: IntArray, scores: Float32Array) -> npt.NDArray[np.uint64]:
    """Make one number of query and score that sorts by query, then by falling score."""
    bits = (scores + np.float32(0.0)).view(np.uint32)  # adding 0 makes one zero of the two
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (queries.astype(np.uint64) << np.uint64(32)) | ~rising


def may_be_best(
    queries: IntArray, scores: Float32Array, q: int, k: int, slack: Float64Array
) -> npt.NDArray[np.bool_]:
    """Say of some candidates which may be among the k best of their query.

    Args:
        queries: (m,) whose candidates they are, from 0 to q - 1.
        scores: (m,) float32, larger is nearer.
        q: Queries.
        k: Neighbours a query is to have.
        slack: (q,) as `Scorer.slack`.
    """
    limits = np.full(q, -np.inf, np.float32)
    _, full, worst = _best_keys(_keys(queries, scores), q, k)
    limits[full] = worst - slack[full].astype(np.float32) * np.float32(1.001)
    fit: npt.NDArray[np.bool_] = scores >= limits[queries]
    return fit


def _best_keys(
    keys: npt.NDArray[np.uint64], q: int, k: int
) -> tuple[npt.NDArray[np.uint64], IntArray, Float32Array]:
    """Return the keys of the k best of each query, the queries that have k, and the k-th score of those."""
    keys = np.sort(keys)
    queries = (keys >> np.uint64(32)).astype(np.int64)
    starts = np.searchsorted(queries, np.arange(q + 1))
    full = np.flatnonzero(np.diff(starts) >= k)
    rising = ~keys[starts[full] + k - 1].astype(np.uint32)
    bits = np.where(rising >> 31, rising ^ np.uint32(1 << 31), ~rising)
    return keys[np.arange(len(keys)) - starts[queries] < k], full, bits.view(np.float32)


class Best:
    """The k best rows of each query of a block. Candidates wait until they are many, then are settled."""

    def __init__(self, queries: Vectors, table: Table, k: int) -> None:
        self._k = k
        self._queries = queries
        self._table = table
        self._waiting: list[tuple[IntArray, IntArray, Float32Array | None]] = []
        self._count = 0
        self._at = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)
        self._near = np.empty(0, np.float32)

    @property
    def k(self) -> int:
        """How many neighbours a query is to have."""
        return self._k

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return int(self._table.vectors.shape[1])

    def add(self, at: IntArray, positions: IntArray, near: Float32Array | None = None) -> None:
        """Add candidates: queries by place in the block, positions that may be theirs, distances if known."""
        self._waiting.append((at, self._table.rows(positions), near))
        self._count += len(at)
        if self._count >= _MAX_PENDING:
            self._settle()

    def result(self) -> tuple[IntArray, Float32Array]:
        """Return rows and distances, (block, k) each."""
        self._settle()
        return self._rows.reshape(-1, self.k), self._near.reshape(-1, self.k)

    def _settle(self) -> None:
        at = np.concatenate([self._at, *(one[0] for one in self._waiting)])
        rows = np.concatenate([self._rows, *(one[1] for one in self._waiting)])
        known = [self._near, *(self._distances(*one) for one in self._waiting)]
        near = np.concatenate(known)
        order = np.lexsort((rows, near, at))
        at = at[order]
        rank = np.arange(len(at)) - np.searchsorted(at, at)
        kept = order[rank < self.k]
        self._at, self._rows, self._near = at[rank < self.k], rows[kept], near[kept]
        self._waiting, self._count = [], 0

    def _distances(self, at: IntArray, rows: IntArray, near: Float32Array | None) -> Float32Array:
        if near is not None:
            return near
        out = np.empty(len(at), np.float32)
        vectors = self._table.vectors
        for part in parts(len(at), vectors.shape[1]):
            out[part] = pair_distances(self._queries[at[part]], vectors[rows[part]], self._table.metric)
        return out
