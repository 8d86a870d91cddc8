"""Arithmetic on vectors in NumPy: the reference every faster path is compared with.

A distance is computed in float64 from the float32 components and rounded to float32 once. Order is by that
rounded distance, equal distances by row. So the answer does not depend on how the work was cut: searching two
halves and merging equals searching the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import (
    Float32Array,
    distance,
    ensure_finite,
    normalize,
    norms_of,
    pair_distances,
    parts,
    similarity,
)
from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.scan import Best, Table, collect
from vecmill.core.scores import scorer
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors

__all__ = [
    "check",
    "distance",
    "distances",
    "merged",
    "nearest",
    "normalize",
    "norms_of",
    "pair_distances",
    "shorten",
    "similarity",
]

_QUERY_BLOCK = 1024
_MAX_FOUND = 1 << 20  # neighbours held for one block


def check(vectors: npt.ArrayLike, *, dimensions: int | None = None, what: str = "vectors") -> Vectors:
    """Return vectors as (n, d) float32 in C order, or say what is wrong with them.

    Nothing is copied where the input already is what is asked for.

    Args:
        vectors: (n, d) numbers of any real dtype, or a list of equally long lists.
        dimensions: The d that is required, or None for any.
        what: Names the vectors in messages.

    Raises:
        InputError: Not a table of finite numbers; the message names the first bad row.
        DimensionMismatchError: d is not `dimensions`.
    """
    try:
        raw = np.asarray(vectors)
        if raw.dtype.kind not in "fiu":
            raise ValueError(f"dtype {raw.dtype}")
        with np.errstate(over="ignore"):
            table = np.ascontiguousarray(raw, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what} must be a table of numbers, one row per vector: {error}") from error
    if raw.ndim != 2:
        raise InputError(
            f"{what} must have two axes (n, d), not shape {raw.shape}; for one vector pass [vector]"
        )
    if dimensions is not None and table.shape[1] != dimensions:
        raise DimensionMismatchError(
            f"{what} have {table.shape[1]} dimensions, not the {dimensions} required"
        )
    ensure_finite(table, what)
    return table


def shorten(vectors: Vectors, dimensions: int) -> Vectors:
    """Keep the first components of each vector and scale the rest to unit length.

    Right for models trained so that their leading components carry most (Matryoshka); others lose much.

    Args:
        vectors: (n, d) float32; not modified.
        dimensions: Components kept, from 1 to d.

    Returns:
        (n, dimensions) float32, a new array.

    Raises:
        InputError: `dimensions` is below 1 or above d.
    """
    if not 1 <= dimensions <= vectors.shape[1]:
        raise InputError(
            f"cannot shorten vectors of {vectors.shape[1]} dimensions to {dimensions}; "
            f"choose from 1 to {vectors.shape[1]}"
        )
    return normalize(vectors[:, :dimensions])


def distances(queries: Vectors, vectors: Vectors, *, metric: Metric) -> Float32Array:
    """Compute the distance of every query to every vector, exactly.

    Float64 all the way, so slower than `nearest`, and the result is the whole table: for small inputs.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32.
        metric: What "near" means; see `pair_distances`.

    Returns:
        (q, n) float32.

    Raises:
        DimensionMismatchError: queries and vectors differ in d.
    """
    _ensure_same_width(queries, vectors)
    out = np.empty((len(queries), len(vectors)), np.float32)
    for row, query in enumerate(queries):
        out[row] = pair_distances(np.broadcast_to(query, vectors.shape), vectors, Metric(metric))
    return out


def nearest(
    queries: Vectors,
    vectors: Vectors,
    k: int,
    *,
    metric: Metric,
    norms: Float32Array | None = None,
    allowed: Mask | None = None,
) -> Neighbors:
    """Find the k nearest vectors to each query by comparing it with all of them.

    Fast float32 scores find every row that can possibly be among the k (their rounding error is bounded),
    float64 distances of those few decide. Works in blocks of queries and tiles of vectors: peak memory is a
    few ten MiB beside input and output. One query reads the vectors once. Cosine, dot and euclidean are one
    matrix product; hamming and jaccard count bits; manhattan and chebyshev take some ten times as long.
    Sources: Johnson et al., Billion-scale similarity search with GPUs, section 2 (exact search in tiles);
    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (error bound of inner products).

    Args:
        queries: (q, d) float32; need not be normalized. Another dtype is converted, which copies.
        vectors: (n, d) float32, the vectors searched; may be memory-mapped and need not be contiguous.
        k: Neighbours per query, at least 1; capped at the rows that may be found.
        metric: What "near" means.
        norms: `norms_of(vectors)` where the caller keeps it; saves one pass over the vectors.
        allowed: (n,) bool, the rows that may be found; None for all.

    Returns:
        Row i answers queries[i]: rows (q, k) int64 into vectors, distances (q, k) float32 ascending, equal
        distances in row order; complete is False where fewer than k rows may be found.

    Raises:
        DimensionMismatchError: queries and vectors differ in d.
        InputError: k is below 1, a component is NaN or infinite, or `allowed` is of another length.
    """
    asked, table, metric = _float32(queries, "queries"), _float32(vectors, "vectors"), Metric(metric)
    _ensure_same_width(asked, table)
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 neighbour")
    survivors = None if allowed is None else _survivors(allowed, len(table))
    query_norms = norms_of(asked, what="queries")
    lengths = norms_of(table) if norms is None else norms
    if len(lengths) != len(table):
        raise InputError(f"there are {len(lengths)} norms for {len(table)} vectors; pass norms_of(vectors)")
    searched = Table(table, lengths, metric, survivors)
    q, found = len(asked), min(k, len(searched))
    rows = np.empty((q, found), np.int64)
    near = np.empty((q, found), np.float32)
    if found:
        block = max(1, min(_QUERY_BLOCK, _MAX_FOUND // found))
        for start in range(0, q, block):
            part = slice(start, start + block)
            rows[part], near[part] = _search(asked[part], query_norms[part], searched, found)
    return Neighbors(rows, near, complete=k <= len(searched))


def merged(answers: Sequence[Neighbors], k: int) -> Neighbors:
    """Put together what the same queries found in several pieces of one table.

    Args:
        answers: Per piece the neighbours of every query; rows are positions in the whole table, each in one
            piece only.
        k: Neighbours per query.

    Returns:
        The k nearest of all, equal distances in row order; `complete` is False where there are fewer than k.

    Raises:
        InputError: There are no answers, they are not of the same queries, or k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 neighbour")
    counts = {len(one.rows) for one in answers}
    if len(counts) != 1:
        raise InputError(f"cannot merge {len(answers)} answers to {sorted(counts)} queries; need the same")
    rows = np.concatenate([one.rows for one in answers], axis=1)
    near = np.concatenate([one.distances for one in answers], axis=1)
    best = np.lexsort((rows, near), axis=1)[:, :k]
    return Neighbors(
        np.take_along_axis(rows, best, axis=1),
        np.take_along_axis(near, best, axis=1),
        complete=k <= rows.shape[1],
    )


def _search(
    queries: Vectors, query_norms: Float32Array, table: Table, k: int
) -> tuple[IntArray, Float32Array]:
    """Answer one block of queries: candidates by their scores, then exact distances."""
    best = Best(queries, table, k)
    alive = np.arange(len(queries))
    if table.metric in (Metric.COSINE, Metric.DOT):
        # A zero query is equally far from everything: the first k rows.
        alive = np.flatnonzero(query_norms > 0.0)
        for at in np.flatnonzero(query_norms == 0.0):
            best.add(np.full(k, at), np.arange(k))
    if len(alive):
        ready = scorer(queries[alive], query_norms[alive], table)
        if np.isfinite(ready.slack).all():
            collect(best, alive, ready, len(table))
        else:
            for at in alive:  # float32 cannot tell: every row is a candidate
                for part in parts(len(table), 1):
                    positions = np.arange(part.start, part.stop)
                    best.add(np.full(len(positions), at), positions)
    return best.result()


def _float32(vectors: Vectors, what: str) -> Vectors:
    """Return a table of float32 the product can read; copied only where it is something else."""
    table = np.asarray(vectors)
    if table.ndim != 2 or table.dtype != np.float32 or not table.dtype.isnative:
        return check(table, what=what)
    return table if table.strides[1] == table.itemsize or table.shape[1] < 2 else np.ascontiguousarray(table)


def _survivors(allowed: Mask, n: int) -> IntArray | None:
    """Return the rows that may be found, None for all."""
    mask = np.asarray(allowed)
    if mask.shape != (n,) or mask.dtype != np.bool_:
        raise InputError(
            f"allowed has shape {mask.shape} and dtype {mask.dtype}; it must hold one bool for each of the "
            f"{n} vectors"
        )
    return None if mask.all() else np.flatnonzero(mask)


def _ensure_same_width(queries: Vectors, vectors: Vectors) -> None:
    if queries.shape[1] != vectors.shape[1]:
        raise DimensionMismatchError(
            f"queries have {queries.shape[1]} dimensions, the vectors searched {vectors.shape[1]}"
        )
