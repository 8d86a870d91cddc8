"""How near rows are, fast and in float32, and how wrong that may be: the scores of `scan`.

The inner product gives cosine, dot and euclidean; its error is bounded. The other metrics have blocked loops:
manhattan and chebyshev with a relative error, hamming and jaccard with none.
Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (error bound of inner products).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import Float32Array, Float64Array, normalize, parts
from vecmill.core.scan import Scorer, Table
from vecmill.core.types import Metric, Vectors

Words = npt.NDArray[np.uint64]
T = TypeVar("T", bound=np.generic)

_ROUNDOFF = 2.0**-24  # unit roundoff of float32
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond, float32 products may overflow or vanish
_FEW_QUERIES = 8  # below, one pass per query over rows in the caches beats a product of matrices
_PASS_ROWS = 1024
_SPARSE = 4  # of so many rows one may be found: there a copy of those is faster than reading all
_LOOP_CELLS = 1 << 15  # differences worked on at once: 128 KiB, so that they stay in the nearest caches


def scorer(queries: Vectors, query_norms: Float32Array, table: Table) -> Scorer:
    """Make ready to score the rows of a table.

    Args:
        queries: (q, d) float32.
        query_norms: (q,) their lengths, above zero for cosine.
        table: The rows.
    """
    match table.metric:
        case Metric.MANHATTAN:
            return _Differences(queries, table, np.add)
        case Metric.CHEBYSHEV:
            return _Differences(queries, table, np.maximum)
        case Metric.HAMMING | Metric.JACCARD:
            return _Bits(queries, table)
    return _Products(queries, query_norms, table)


def margins(query_norms: Float32Array, table: Table) -> Float64Array:
    """Bound per query how far an inner-product score may be off, rounding of the distance included.

    The inner product of d terms is off by at most d roundoffs times the product of the lengths; lengths and
    the rounded distance add their own. Cosine and dot count for queries of length one, euclidean for those
    of any length.

    Returns:
        (q,) in units of the score; inf where float32 can overflow or vanish, so that nothing is known.
    """
    norms = table.norms if table.survivors is None else table.norms[table.survivors]
    largest, metric, d = float(norms.max(initial=0.0)), table.metric, table.vectors.shape[1]
    if metric is Metric.EUCLIDEAN:
        scales = (query_norms.astype(np.float64) + largest) ** 2
    else:
        scales = np.full(len(query_norms), largest, np.float64)
    sizes = scales * query_norms if metric is Metric.DOT else scales
    safe = (sizes == 0.0) | ((sizes > _SMALLEST) & (sizes < _LARGEST) & (scales < _LARGEST))
    if metric is Metric.COSINE:
        safe &= float(norms.min(initial=np.inf, where=norms > 0.0)) > _SMALLEST
        scales[:] = 1.0
    return np.where(safe, (3 * d + 16) * _ROUNDOFF * scales, np.inf)


def are_unit(table: Table) -> bool:
    """Whether every length is one to within the error that `margins` allows for it."""
    gap = np.abs(table.norms - np.float32(1.0)).max(initial=0.0)
    return bool(gap <= table.vectors.shape[1] * _ROUNDOFF)


def signs(vectors: Vectors) -> Words:
    """Pack the signs of vectors, a component above 0 being a one: (n, ceil(d / 64)) uint64."""
    n, d = vectors.shape
    words = np.zeros((n, -(-d // 64)), np.uint64)
    for part in parts(n, d):
        words[part].view(np.uint8)[:, : -(-d // 8)] = np.packbits(vectors[part] > 0.0, axis=1)
    return words


class _Products:
    """Inner products: cos, dot, or dot - |x|^2 / 2. Only to the last the length of a query matters."""

    relative = 0.0
    exact = False

    def __init__(self, queries: Vectors, query_norms: Float32Array, table: Table) -> None:
        self.slack = 2.0 * margins(query_norms, table)
        self.floor = _no_floor(queries)
        self._table = table
        self._queries = queries if table.metric is Metric.EUCLIDEAN else normalize(queries)
        self._columns = np.ascontiguousarray(self._queries.T)  # (d, q)
        self._unit = are_unit(table)

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        """Fill (stop - start, q) scores."""
        if len(self._queries) < _FEW_QUERIES:
            norms = self._pass_over(start, stop, out)
        else:
            vectors, norms = self._table.tile(start, stop)
            np.matmul(vectors, self._columns, out=out)
        if self._table.metric is Metric.COSINE and not self._unit:
            out *= np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)[:, None]
        elif self._table.metric is Metric.EUCLIDEAN:
            out -= (norms * norms * np.float32(0.5))[:, None]

    def _pass_over(self, start: int, stop: int, out: Float32Array) -> Float32Array:
        """Multiply query by query; return the norms of the rows.

        Reads at memory speed; with one BLAS thread 2.4 times as fast as gemv (benchmarks/micro.py). A copy of
        the rows that may be found would take longer than reading those between them, too.
        """
        table = self._table
        rows = None if table.survivors is None else table.survivors[start:stop]
        if rows is None or rows[-1] - rows[0] >= _SPARSE * len(rows):
            vectors, norms = table.tile(start, stop)
            self._multiply(vectors, out)
            return norms
        span = table.vectors[rows[0] : rows[-1] + 1]
        scores = np.empty((len(span), len(self._queries)), np.float32)
        self._multiply(span, scores)
        out[:] = scores[rows - rows[0]]
        return table.norms[rows]

    def _multiply(self, vectors: Vectors, out: Float32Array) -> None:
        for row in range(0, len(vectors), _PASS_ROWS):
            here = slice(row, row + _PASS_ROWS)
            for at, query in enumerate(self._queries):
                np.vecdot(vectors[here], query, out=out[here, at])


class _Differences:
    """Absolute differences, summed or the largest of them: rounded once each, a sum d times."""

    exact = False

    def __init__(self, queries: Vectors, table: Table, combine: np.ufunc) -> None:
        self.slack = np.zeros(len(queries))
        self.floor = _no_floor(queries)
        self.relative = (2 * queries.shape[1] + 16) * _ROUNDOFF
        self._queries = queries
        self._table = table
        self._combine = combine

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        """Fill (stop - start, q) scores: the negative distances, nearly."""
        vectors, _ = self._table.tile(start, stop)
        with np.errstate(over="ignore"):
            if len(self._queries) == 1:
                self._one_query(vectors, out[:, 0])
            else:
                self._by_component(vectors, out)
        np.negative(out, out=out)

    def _one_query(self, vectors: Vectors, out: Float32Array) -> None:
        step = max(1, _LOOP_CELLS // max(vectors.shape[1], 1))
        for start in range(0, len(vectors), step):
            gaps = vectors[start : start + step] - self._queries[0]  # (step, d)
            np.abs(gaps, out=gaps)
            self._combine.reduce(gaps, axis=1, initial=np.float32(0.0), out=out[start : start + step])

    def _by_component(self, vectors: Vectors, out: Float32Array) -> None:
        """Work through the components of few queries and rows at a time: sums stay in the nearest caches."""
        for place, columns in _pieces(vectors, len(self._queries), _LOOP_CELLS):
            rows = self._queries[place[1]]
            total = np.zeros((len(rows), columns.shape[1]), np.float32)
            gap = np.empty_like(total)
            for component in range(rows.shape[1]):
                np.subtract(rows[:, component, None], columns[component], out=gap)
                np.abs(gap, out=gap)
                self._combine(total, gap, out=total)
            out[place] = total.T


class _Bits:
    """Counts of bits: the distance itself, rounded as it is."""

    relative = 0.0
    exact = True

    def __init__(self, queries: Vectors, table: Table) -> None:
        self.slack = np.zeros(len(queries))
        self.floor = _no_floor(queries)
        self._queries = signs(queries)
        self._table = table

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        """Fill (stop - start, q) scores: the negative distances."""
        words = signs(self._table.tile(start, stop)[0])
        if self._table.metric is Metric.HAMMING:
            for place, differing in self._counted(words, np.bitwise_xor):
                np.negative(differing.T, out=out[place], dtype=np.float32)
            return
        ones = np.bitwise_count(self._queries).sum(axis=1, dtype=np.float64)
        others = np.bitwise_count(words).sum(axis=1, dtype=np.float64)
        for place, both in self._counted(words, np.bitwise_and):
            either = ones[place[1], None] + others[place[0]] - both
            share = np.divide(both, either, out=np.ones(both.shape), where=either > 0.0)
            np.subtract(share.T, 1.0, out=out[place], casting="same_kind")

    def _counted(
        self, words: Words, combine: np.ufunc
    ) -> Iterator[tuple[tuple[slice, slice], npt.NDArray[np.uint32]]]:
        """Yield places in the table of scores and (queries, rows) counts of common or differing bits."""
        for place, columns in _pieces(words, len(self._queries), _LOOP_CELLS // 2):
            rows = self._queries[place[1]]
            total = np.zeros((len(rows), columns.shape[1]), np.uint32)
            bits = np.empty(total.shape, np.uint64)
            count = np.empty(total.shape, np.uint8)
            for word in range(rows.shape[1]):
                combine(rows[:, word, None], columns[word], out=bits)
                np.bitwise_count(bits, out=count)
                np.add(total, count, out=total)
            yield place, total


def _no_floor(queries: Vectors) -> Float32Array:
    return np.full(len(queries), -np.inf, np.float32)


def _pieces(
    table: npt.NDArray[T], q: int, cells: int
) -> Iterator[tuple[tuple[slice, slice], npt.NDArray[T]]]:
    """Cut a table of scores (rows, queries) into pieces of some cells: place, and the rows turned (d, m)."""
    width = max(1, min(len(table), cells // min(max(q, 1), 16)))
    height = max(1, cells // width)
    for left in range(0, len(table), width):
        columns = np.ascontiguousarray(table[left : left + width].T)
        for top in range(0, q, height):
            yield (slice(left, left + columns.shape[1]), slice(top, min(top + height, q))), columns
