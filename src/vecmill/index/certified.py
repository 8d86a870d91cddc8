"""Exact search by 8-bit products: codes find what may be among the nearest, the originals decide.

A vector is its code times a scale plus a residual whose length is known. So the true inner product differs
from that of the codes, which is an exact sum of integers, by at most (Cauchy and Schwarz)
|residual of the query| |vector| + |code of the query| |residual of the vector|.
What scores lower than that explains is out; the few that remain are compared in float32, then in float64. So
the answer is that of `core.vectors.nearest`, bit for bit. A query with very many such rows is left to it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import normalize, norms_of, parts
from vecmill.core.scan import Best, Table, collect, may_be_best
from vecmill.core.scores import are_unit, margins
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors
from vecmill.core.vectors import nearest
from vecmill.models.local.products import LARGEST_CODE, MOST_DIMENSIONS, Products

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]
T = TypeVar("T", bound=np.generic)

METRICS = frozenset({Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN})
"""Those that an inner product decides."""

_ROUNDOFF = 2.0**-24  # unit roundoff of float32
_LEAST_SCALE, _LARGEST = 1e-30, 1e15  # scales below are raised; longer vectors are left to float32
_LARGEST_SCORE = 1e30  # in units of the scale of a query's code; beyond, float32 may overflow
_BLOCKS = (16, 32, 64, 128, 256, 512, 1024)  # queries of a compiled product
_TILE_SCORES = 1 << 20
_MAX_TILE = 8192
_ALIGNED = 64  # the rows of a tile are a multiple
_CENTRE_ROWS = 4096
_FEW = 128  # of n rows a query may have n / 128 candidates: more cost as much as all of them in float32
_LEAST_CANDIDATES = 64


def can_certify(table: Table) -> bool:
    """Whether codes can decide a search of these vectors."""
    return (
        table.metric in METRICS
        and table.vectors.shape[1] <= MOST_DIMENSIONS
        and float(table.norms.max(initial=0.0)) < _LARGEST
    )


@dataclass(frozen=True, slots=True)
class _Coded:
    """Vectors as codes: vector = centre + scale x code + residual.

    Attributes:
        codes: (n, d) int8, from -127 to 127.
        scales: (n, 1) float32.
        centre: (d,) float32.
        residual, length: The greatest length of a residual, and of a code times its scale.
    """

    codes: Codes
    scales: Float32Array
    centre: Float32Array
    residual: float
    length: float


class CertifiedCodes:
    """8-bit codes of vectors, each with a scale of its own, taken around the mean of the vectors.

    Costs one byte per component beside the vectors, and one pass over them to make. A search holds some
    20 MiB, OpenVINO some 50 MiB once. Several threads may search; they take turns.

    Args:
        table: All vectors, with their lengths and the metric; see `can_certify`.
        threads: Threads of the products; 0 for every core the process may use.

    Attributes:
        asked, proved: Queries searched so far, and those of them that the codes decided.

    Raises:
        ConfigError: The products are not exact on this processor.
    """

    def __init__(self, table: Table, *, threads: int = 0) -> None:
        self.asked = 0
        self.proved = 0
        self._table = table
        self._threads = threads
        self._turn = threading.Lock()
        self._products: dict[int, Products] = {}
        self._product(_BLOCKS[-1])  # here, not in the first search, says whether this processor is exact
        self._coded = _encoded(table)

    @property
    def size_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self._coded.codes.nbytes + self._coded.scales.nbytes

    def search(self, queries: Vectors, k: int, *, allowed: Mask | None = None) -> Neighbors:
        """Find the k nearest vectors to each query; arguments and answer as `core.vectors.nearest`."""
        table = self._table
        found = min(k, len(table) if allowed is None else int(np.count_nonzero(allowed)))
        rows = np.empty((len(queries), found), np.int64)
        near = np.empty((len(queries), found), np.float32)
        norms = norms_of(queries, what="queries")
        for start in range(0, len(queries) if found else 0, _BLOCKS[-1]):
            part = slice(start, min(start + _BLOCKS[-1], len(queries)))
            with self._turn:
                rows[part], near[part], sure = self._search(queries[part], norms[part], found, allowed)
                self.asked += len(sure)
                self.proved += int(np.count_nonzero(sure))
            if not sure.all():
                rest = start + np.flatnonzero(~sure)
                answer = nearest(
                    queries[rest], table.vectors, k, metric=table.metric, norms=table.norms, allowed=allowed
                )
                rows[rest], near[rest] = answer.rows, answer.distances
        return Neighbors(rows, near, complete=k <= found)

    def _search(
        self, queries: Vectors, norms: Float32Array, k: int, allowed: Mask | None
    ) -> tuple[IntArray, Float32Array, npt.NDArray[np.bool_]]:
        """Answer a block: (q, k) rows and distances, and which queries are proved; the others stay open."""
        size = next(size for size in _BLOCKS if size >= len(queries))
        n = len(self._table)
        scorer = _Scorer(self._coded, self._table, self._product(size), queries, norms, allowed)
        rows = np.empty((len(queries), k), np.int64)
        near = np.empty((len(queries), k), np.float32)
        sure = scorer.sure
        if not sure.any():
            return rows, near, sure
        best = Best(queries, self._table, k)
        refined = _Refined(best, self._table, scorer)
        places = np.zeros(size, np.int64)
        places[: len(queries)] = np.arange(len(queries))
        most = max(n // _FEW, _LEAST_CANDIDATES, 4 * k)
        lost = collect(refined, places, scorer, n, tile=self._tile_rows(size), most=most)
        sure[lost] = False
        rows[sure], near[sure] = best.result()
        return rows, near, sure

    def _tile_rows(self, block: int) -> int:
        whole = -(-len(self._table) // _ALIGNED) * _ALIGNED
        return min(_TILE_SCORES // block, _MAX_TILE, whole)

    def _product(self, block: int) -> Products:
        if block not in self._products:
            d = self._table.vectors.shape[1]
            self._products[block] = Products(self._tile_rows(block), block, d, threads=self._threads)
        return self._products[block]


class _Refined:
    """Looks at candidates once more, in float32, before float64 decides: most of them are out by then."""

    def __init__(self, best: Best, table: Table, scorer: _Scorer) -> None:
        self.k = best.k
        self.dimensions = best.dimensions
        self._best = best
        self._table = table
        self._asked = scorer.asked
        self._slack = 2.0 * scorer.margins

    def add(self, at: IntArray, positions: IntArray, near: Float32Array | None = None) -> None:
        """Hand on those that may be among the nearest."""
        scores = np.empty(len(at), np.float32)
        for part in parts(len(at), self.dimensions):
            np.vecdot(self._table.vectors[positions[part]], self._asked[at[part]], out=scores[part])
        norms = self._table.norms[positions]
        if self._table.metric is Metric.COSINE:
            scores *= np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
        elif self._table.metric is Metric.EUCLIDEAN:
            scores -= norms * norms * np.float32(0.5)
        fit = may_be_best(at, scores, len(self._asked), self.k, self._slack)
        self._best.add(at[fit], positions[fit], near)


class _Scorer:
    """Scores of one block of queries, in units of the scale of each query's code."""

    relative = 0.0
    exact = False

    def __init__(
        self,
        coded: _Coded,
        table: Table,
        product: Products,
        queries: Vectors,
        norms: Float32Array,
        allowed: Mask | None,
    ) -> None:
        euclidean = table.metric is Metric.EUCLIDEAN
        self.asked = queries if euclidean else normalize(queries)
        self.margins = margins(norms, table)
        codes, units, gaps, lengths = _coded_queries(self.asked, euclidean)
        largest = 1.0 if table.metric is Metric.COSINE else float(table.norms.max())
        error = gaps * (coded.length + coded.residual) + (lengths + gaps) * coded.residual
        error += self.margins
        # Roundings: to length one, taking off the centre, and those of the score itself.
        error += 32 * _ROUNDOFF * (lengths + gaps) * (largest + 2.0 * float(np.linalg.norm(coded.centre)))
        slack = 2.0 * error / units
        self.sure = (slack < _LARGEST_SCORE) & (euclidean | (norms > 0.0))
        if euclidean:
            self.sure &= 0.5 * largest**2 / units < _LARGEST_SCORE
        self.slack = np.zeros(product.queries)
        self.slack[: len(queries)][self.sure] = slack[self.sure]
        self.floor = np.full(product.queries, np.inf, np.float32)  # what is no query finds nothing
        self.floor[: len(queries)][self.sure] = np.finfo(np.float32).min  # rows not allowed score -inf
        self._coded = coded
        self._product = product
        self._allowed = allowed
        self._offsets = np.zeros((len(table) if euclidean else product.items, 1), np.float32)
        if euclidean and self.sure.any():
            self._offsets[:, 0] = -0.5 * table.norms.astype(np.float64) ** 2 / units[0]
        self._euclidean = euclidean
        asked = np.zeros((product.queries, codes.shape[1]), np.int8)
        asked[: len(queries)] = codes
        product.ask(asked)

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        """Fill (stop - start, q) scores."""
        codes, scales = self._coded.codes[start:stop], self._coded.scales[start:stop]
        offsets = self._offsets[start:stop] if self._euclidean else self._offsets
        full = self._product.items
        if stop - start == full:
            self._product.multiply(codes, scales, offsets, out)
        else:
            last = np.empty((full, self._product.queries), np.float32)
            self._product.multiply(_padded(codes, full), _padded(scales, full), _padded(offsets, full), last)
            out[:] = last[: stop - start]
        if self._allowed is not None:
            out[~self._allowed[start:stop]] = -np.inf


def _encoded(table: Table) -> _Coded:
    """Code vectors: of length one for cosine, as they are for the others."""
    n, d = table.vectors.shape
    unit = table.metric is not Metric.COSINE or are_unit(table)
    some = np.unique(np.linspace(0, n - 1, _CENTRE_ROWS).astype(np.int64))
    centre = _scaled(table, some, unit).mean(axis=0, dtype=np.float64).astype(np.float32)
    codes, every_scale = np.empty((n, d), np.int8), np.empty((n, 1), np.float32)
    residual = length = 0.0
    for part in parts(n, d):
        values = _scaled(table, part, unit) - centre
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(LARGEST_CODE)
        np.maximum(scales, np.float32(_LEAST_SCALE), out=scales)
        values *= np.float32(1.0) / scales
        whole = np.rint(values)
        codes[part], every_scale[part] = whole, scales
        values -= whole  # without rounding: at most half is left
        lengths = np.sqrt(np.vecdot(whole, whole)) * scales[:, 0]
        gaps = np.sqrt(np.vecdot(values, values)) * scales[:, 0] + 4 * _ROUNDOFF * lengths
        residual, length = max(residual, float(gaps.max())), max(length, float(lengths.max()))
    rounding = 1.0 + (2 * d + 16) * _ROUNDOFF
    return _Coded(codes, every_scale, centre, residual * rounding + _LEAST_SCALE * d, length * rounding)


def _scaled(table: Table, rows: slice | IntArray, unit: bool) -> Float32Array:
    vectors = table.vectors[rows]
    if unit:
        return vectors
    norms = table.norms[rows, None]
    return np.divide(vectors, norms, out=np.zeros(vectors.shape, np.float32), where=norms > 0.0)


def _coded_queries(
    queries: Vectors, together: bool
) -> tuple[Codes, Float64Array, Float64Array, Float64Array]:
    """Code queries, each with a scale of its own or all with one.

    Returns:
        (q, d) int8 codes, (q,) scales, and the lengths of residuals and of the queries.
    """
    wide = queries.astype(np.float64)
    units = np.abs(wide).max(axis=1, initial=0.0) / LARGEST_CODE
    if together:
        units[:] = units.max()
    np.maximum(units, _LEAST_SCALE, out=units)
    codes = np.rint(wide / units[:, None])
    gaps = wide - codes * units[:, None]
    return codes.astype(np.int8), units, np.linalg.norm(gaps, axis=1), np.linalg.norm(wide, axis=1)


def _padded(rows: npt.NDArray[T], count: int) -> npt.NDArray[T]:
    out = np.zeros((count, rows.shape[1]), rows.dtype)
    out[: min(len(rows), count)] = rows[:count]
    return out
