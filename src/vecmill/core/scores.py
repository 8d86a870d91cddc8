"""How near a tile of vectors is, fast and in float32, and how wrong that may be.

A score is larger the nearer. The inner product gives cosine, dot and euclidean; its error is bounded. The
other metrics have blocked loops: manhattan and chebyshev with a relative error, hamming and jaccard with none.
Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (error bound of inner products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import Float32Array, Float64Array, normalize, parts
from vecmill.core.types import Metric, Vectors

Words = npt.NDArray[np.uint64]

Score: TypeAlias = Callable[[Vectors, Float32Array, Float32Array], None]
"""Fill (q, t) float32 scores from a tile (t, d) and its norms (t,)."""

_ROUNDOFF = 2.0**-24  # unit roundoff of float32
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond, float32 products may overflow or vanish
_LOOP_CELLS = 1 << 15  # differences worked on at once: 128 KiB, so that they stay in the nearest caches


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores of some queries against tiles of vectors, and their error.

    Attributes:
        score: Fills a table of scores.
        slack: (q,) how far two scores of nearly equal distances may lie apart; inf where nothing is known.
        relative: The same as a share of the score, beside `slack`.
    """

    score: Score
    slack: Float64Array
    relative: float = 0.0


def scorer(
    queries: Vectors, query_norms: Float32Array, largest: float, least: float, metric: Metric
) -> Scorer:
    """Make ready to score.

    Args:
        queries: (q, d) float32.
        query_norms: (q,) their lengths.
        largest: The greatest length of a vector.
        least: The least length above zero, inf where all are zero.
        metric: What "near" means.
    """
    none = np.zeros(len(queries))
    relative = (2 * queries.shape[1] + 16) * _ROUNDOFF
    match metric:
        case Metric.MANHATTAN:
            return Scorer(lambda tile, _, out: _manhattan(queries, tile, out), none, relative)
        case Metric.CHEBYSHEV:
            return Scorer(lambda tile, _, out: _chebyshev(queries, tile, out), none, relative)
        case Metric.HAMMING:
            words = signs(queries)
            return Scorer(lambda tile, _, out: _hamming(words, signs(tile), out), none)
        case Metric.JACCARD:
            words = signs(queries)
            return Scorer(lambda tile, _, out: _jaccard(words, signs(tile), out), none)
    asked = queries if metric is Metric.EUCLIDEAN else normalize(queries)
    margins = _margins(query_norms, largest, least, queries.shape[1], metric)
    return Scorer(lambda tile, norms, out: _products(asked, tile, norms, metric, out), 2.0 * margins)


def signs(vectors: Vectors) -> Words:
    """Pack the signs of vectors, a component above 0 being a one: (n, ceil(d / 64)) uint64."""
    n, d = vectors.shape
    words = np.zeros((n, -(-d // 64)), np.uint64)
    for part in parts(n, d):
        words[part].view(np.uint8)[:, : -(-d // 8)] = np.packbits(vectors[part] > 0.0, axis=1)
    return words


def _margins(query_norms: Float32Array, largest: float, least: float, d: int, metric: Metric) -> Float64Array:
    """Bound per query how far a score may be off, rounding of the distance included; inf: unbounded.

    The inner product of d terms is off by at most d roundoffs times the product of the lengths; lengths and
    the rounded distance add their own.
    """
    if metric is Metric.EUCLIDEAN:
        scales = (query_norms.astype(np.float64) + largest) ** 2
    else:
        scales = np.full(len(query_norms), largest, np.float64)
    sizes = scales * query_norms if metric is Metric.DOT else scales
    safe = (sizes == 0.0) | ((sizes > _SMALLEST) & (sizes < _LARGEST) & (scales < _LARGEST))
    if metric is Metric.COSINE:
        safe &= least > _SMALLEST
        scales[:] = 1.0
    return np.where(safe, (2 * d + 16) * _ROUNDOFF * scales, np.inf)


def _products(
    queries: Vectors, tile: Vectors, norms: Float32Array, metric: Metric, out: Float32Array
) -> None:
    """Score by inner products: cos, dot, or dot - |x|^2 / 2."""
    if len(queries) == 1:
        # Reads at memory speed; with one BLAS thread 2.4 times as fast as gemv (benchmarks/micro.py).
        np.vecdot(tile, queries[0], out=out[0])
    else:
        np.matmul(queries, tile.T, out=out)
    if metric is Metric.COSINE:
        out *= np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
    elif metric is Metric.EUCLIDEAN:
        out -= norms * norms * np.float32(0.5)


def _manhattan(queries: Vectors, tile: Vectors, out: Float32Array) -> None:
    """Score by the negative sum of absolute differences; each is rounded once, the sum d times."""
    with np.errstate(over="ignore"):
        if len(queries) == 1:
            _one_query(queries[0], tile, out[0], np.add)
        else:
            _by_component(queries, tile, out, np.add)


def _chebyshev(queries: Vectors, tile: Vectors, out: Float32Array) -> None:
    """Score by the negative of the largest absolute difference, which is rounded once."""
    with np.errstate(over="ignore"):
        if len(queries) == 1:
            _one_query(queries[0], tile, out[0], np.maximum)
        else:
            _by_component(queries, tile, out, np.maximum)


def _one_query(query: Float32Array, tile: Vectors, out: Float32Array, combine: np.ufunc) -> None:
    step = max(1, _LOOP_CELLS // max(len(query), 1))
    for start in range(0, len(tile), step):
        piece = tile[start : start + step] - query  # (step, d)
        np.abs(piece, out=piece)
        combine.reduce(piece, axis=1, initial=np.float32(0.0), out=out[start : start + step])
    np.negative(out, out=out)


def _by_component(queries: Vectors, tile: Vectors, out: Float32Array, combine: np.ufunc) -> None:
    """Work through the components of a few queries and rows at a time: sums stay in the nearest caches."""
    width = min(len(tile), 2048)
    height = max(1, _LOOP_CELLS // max(width, 1))
    for left in range(0, len(tile), width):
        columns = np.ascontiguousarray(tile[left : left + width].T)  # (d, width)
        for top in range(0, len(queries), height):
            rows = queries[top : top + height]
            total = np.zeros((len(rows), columns.shape[1]), np.float32)
            gap = np.empty_like(total)
            for component in range(queries.shape[1]):
                np.subtract(rows[:, component, None], columns[component], out=gap)
                np.abs(gap, out=gap)
                combine(total, gap, out=total)
            np.negative(total, out=out[top : top + height, left : left + width])


def _hamming(queries: Words, tile: Words, out: Float32Array) -> None:
    """Score by the negative count of bits that differ, exactly."""
    for place, differing in _counted(queries, tile, np.bitwise_xor):
        np.negative(differing, out=out[place], dtype=np.float32)


def _jaccard(queries: Words, tile: Words, out: Float32Array) -> None:
    """Score by |a and b| / |a or b| - 1, rounded as the distance is: exactly its negative."""
    ones = np.bitwise_count(queries).sum(axis=1, dtype=np.float64)
    others = np.bitwise_count(tile).sum(axis=1, dtype=np.float64)
    for place, both in _counted(queries, tile, np.bitwise_and):
        either = ones[place[0], None] + others[place[1]] - both
        share = np.divide(both, either, out=np.ones(both.shape), where=either > 0.0)
        np.subtract(share, 1.0, out=out[place], casting="same_kind")


def _counted(
    queries: Words, tile: Words, combine: np.ufunc
) -> Iterator[tuple[tuple[slice, slice], npt.NDArray[np.uint32]]]:
    """Yield a place in the table of scores and the counts of common or differing bits there."""
    width = max(1, min(len(tile), _LOOP_CELLS // 8))
    height = max(1, _LOOP_CELLS // (2 * width))
    for left in range(0, len(tile), width):
        columns = np.ascontiguousarray(tile[left : left + width].T)  # (words, width)
        for top in range(0, len(queries), height):
            rows = queries[top : top + height]
            total = np.zeros((len(rows), columns.shape[1]), np.uint32)
            bits = np.empty(total.shape, np.uint64)
            count = np.empty(total.shape, np.uint8)
            for word in range(queries.shape[1]):
                combine(rows[:, word, None], columns[word], out=bits)
                np.bitwise_count(bits, out=count)
                np.add(total, count, out=total)
            yield (slice(top, top + len(rows)), slice(left, left + total.shape[1])), total
