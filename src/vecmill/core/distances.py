"""Exact distances of pairs, in float64: what every faster path is judged by.

A distance is computed in float64 from float32 components and rounded to float32 once. Its value depends on
the pair alone, never on where in an array it stands.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import Metric, Vectors

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_EXACT_COMPONENTS = 1 << 18  # components converted to float64 at once: 2 MiB a side
_COSINE_GRID = 2.0**44  # finer than this, 1 - cos in float64 is noise
_SMALLEST, _LARGEST = 1e-30, 1e30  # squares beyond may have overflowed or vanished in float32


def normalize(vectors: Vectors) -> Vectors:
    """Scale each vector to unit length; zero vectors stay zero.

    Args:
        vectors: (n, d) float32; not modified.

    Returns:
        (n, d) float32, a new array.
    """
    out = np.empty(vectors.shape, np.float32)
    for part in parts(len(vectors), vectors.shape[1]):
        wide = vectors[part].astype(np.float64)
        norms = np.sqrt(_dots(wide, wide))
        norms[norms == 0.0] = 1.0
        np.divide(wide, norms[:, None], out=out[part], casting="same_kind")
    return out


def norms_of(vectors: Vectors, *, what: str = "vectors") -> Float32Array:
    """Return the length of each vector: (n,) float32, to about d roundoffs. One pass over the vectors.

    Args:
        vectors: (n, d) float32.
        what: Names the vectors in messages.

    Raises:
        InputError: A component is NaN or infinite.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.vecdot(vectors, vectors)
    norms: Float32Array = np.sqrt(squares)
    doubtful = np.flatnonzero(~((squares > _SMALLEST) & (squares < _LARGEST)))
    for part in parts(len(doubtful), vectors.shape[1]):
        rows = vectors[doubtful[part]].astype(np.float64)
        exact = np.sqrt(_dots(rows, rows))
        if not np.isfinite(exact).all():
            ensure_finite(vectors, what)
        with np.errstate(over="ignore", under="ignore"):
            norms[doubtful[part]] = exact
    return norms


def pair_distances(queries: Vectors, vectors: Vectors, metric: Metric) -> Float32Array:
    """Compute the distance of each query to the vector beside it.

    cosine is 1 - cos (1 where a vector is zero), dot -(a.b), euclidean the root, manhattan the sum and
    chebyshev the largest of the absolute differences. hamming and jaccard look at signs only, a component
    above 0 is a one: hamming counts the bits that differ, jaccard is 1 - |a and b| / |a or b|, 0 where both
    are empty.

    Args:
        queries: (m, d) float32.
        vectors: (m, d) float32.
        metric: What "near" means.

    Returns:
        (m,) float32: float64 rounded once.

    Raises:
        DimensionMismatchError: The shapes differ.
    """
    if queries.shape != vectors.shape:
        raise DimensionMismatchError(f"pairs need equal shapes, got {queries.shape} and {vectors.shape}")
    out = np.empty(len(queries), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for part in parts(len(queries), queries.shape[1]):
            out[part] = _of_pairs(queries[part].astype(np.float64), vectors[part].astype(np.float64), metric)
    return out


def distance(a: npt.ArrayLike, b: npt.ArrayLike, *, metric: Metric | str) -> float:
    """Compute the distance of two vectors, all in float64; meanings as in `pair_distances`.

    Args:
        a: (d,) numbers.
        b: (d,) numbers.
        metric: What "near" means.

    Raises:
        DimensionMismatchError: The vectors differ in length.
        InputError: Not two rows of finite numbers.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or y.ndim != 1:
        raise InputError(f"need two vectors (d,), got shapes {x.shape} and {y.shape}")
    if x.shape != y.shape:
        raise DimensionMismatchError(f"the vectors have {len(x)} and {len(y)} dimensions")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a vector holds NaN or infinity; distances need finite numbers")
    return float(_of_pairs(x[np.newaxis], y[np.newaxis], Metric(metric))[0])


def similarity(distances: npt.ArrayLike, metric: Metric, dimensions: int) -> Float64Array:
    """Turn distances into similarities for display: larger is nearer.

    Args:
        distances: Distances of any shape.
        metric: Of the distances.
        dimensions: Components of a vector; hamming needs it.

    Returns:
        float64 of the same shape: cos for cosine, the inner product for dot, 1/(1+x) for euclidean, manhattan
        and chebyshev, the share of equal bits for hamming, of common ones for jaccard.
    """
    given = np.asarray(distances, np.float64)
    if metric is Metric.DOT:
        return 0.0 - given
    if metric is Metric.HAMMING:
        return 1.0 - given / max(dimensions, 1)
    if metric in (Metric.COSINE, Metric.JACCARD):
        return 1.0 - given
    return 1.0 / (1.0 + given)


def parts(n: int, d: int) -> Iterator[slice]:
    """Cut n rows of d components into pieces of bounded size."""
    step = max(1, _EXACT_COMPONENTS // max(d, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def ensure_finite(vectors: Vectors, what: str) -> None:
    """Refuse vectors that hold NaN or infinity.

    Raises:
        InputError: The message names the first such row and counts the others.
    """
    bad = 0
    first = -1
    for part in parts(len(vectors), vectors.shape[1]):
        rows = np.flatnonzero(~np.isfinite(vectors[part]).all(axis=1))
        if len(rows) and first < 0:
            first = part.start + int(rows[0])
        bad += len(rows)
    if bad:
        others = f" and {bad - 1} more" if bad > 1 else ""
        raise InputError(
            f"{what}: row {first}{others} of {len(vectors)} holds NaN or a number beyond float32; "
            "drop or repair such rows"
        )


def _of_pairs(a: Float64Array, b: Float64Array, metric: Metric) -> Float64Array:
    """Compute the distances of rows in float64: (m,)."""
    exact: Float64Array
    match metric:
        case Metric.COSINE:
            lengths = np.sqrt(_dots(a, a)) * np.sqrt(_dots(b, b))
            cosines = np.divide(_dots(a, b), lengths, out=np.zeros(len(a)), where=lengths > 0.0)
            exact = np.round((1.0 - np.clip(cosines, -1.0, 1.0)) * _COSINE_GRID) / _COSINE_GRID
        case Metric.DOT:
            exact = 0.0 - _dots(a, b)
        case Metric.EUCLIDEAN:
            difference = a - b
            exact = np.sqrt(_dots(difference, difference))
        case Metric.MANHATTAN:
            exact = np.abs(a - b).sum(axis=1)
        case Metric.CHEBYSHEV:
            exact = np.abs(a - b).max(axis=1, initial=0.0)
        case Metric.HAMMING:
            exact = np.count_nonzero((a > 0.0) != (b > 0.0), axis=1).astype(np.float64)
        case Metric.JACCARD:
            both = np.count_nonzero((a > 0.0) & (b > 0.0), axis=1)
            either = np.count_nonzero((a > 0.0) | (b > 0.0), axis=1)
            exact = 1.0 - np.divide(both, either, out=np.ones(len(a)), where=either > 0)
    return exact


def _dots(a: Float64Array, b: Float64Array) -> Float64Array:
    """Multiply row by row: (n,). Not BLAS, whose sums depend on where in the array a row stands."""
    dots: Float64Array = np.einsum("ij,ij->i", a, b)
    return dots
