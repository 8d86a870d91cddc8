"""Arithmetic on vectors in NumPy: the reference every faster path is compared with.

A distance is computed in float64 from the float32 components and rounded to float32 once. Order is by that
rounded distance, equal distances by row. So the answer does not depend on how the work was cut: searching two
halves and merging equals searching the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import IntArray, Metric, Neighbors, Vectors

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_QUERY_BLOCK = 256
_TILE_SCORES = 1 << 20  # scores computed at once: 4 MiB
_MIN_TILE = 4096
_GROUP = 32  # scores that share one maximum
_EXACT_COMPONENTS = 1 << 20  # components converted to float64 at once: 8 MiB a side
_MAX_PENDING = 1 << 21  # candidates held before they are settled: at most about 50 MiB
_ROUNDOFF = 2.0**-24  # unit roundoff of float32
_COSINE_GRID = 2.0**44  # finer than this, 1 - cos in float64 is noise
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond, float32 products may overflow or vanish


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
    _ensure_finite(table, what)
    return table


def normalize(vectors: Vectors) -> Vectors:
    """Scale each vector to unit length; zero vectors stay zero.

    Args:
        vectors: (n, d) float32; not modified.

    Returns:
        (n, d) float32, a new array.
    """
    out = np.empty(vectors.shape, np.float32)
    for part in _parts(len(vectors), vectors.shape[1]):
        wide = vectors[part].astype(np.float64)
        norms = np.sqrt(_dots(wide, wide))
        norms[norms == 0.0] = 1.0
        np.divide(wide, norms[:, None], out=out[part], casting="same_kind")
    return out


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
    for part in _parts(len(doubtful), vectors.shape[1]):
        rows = vectors[doubtful[part]].astype(np.float64)
        exact = np.sqrt(_dots(rows, rows))
        if not np.isfinite(exact).all():
            _ensure_finite(vectors, what)
        with np.errstate(over="ignore", under="ignore"):
            norms[doubtful[part]] = exact
    return norms


def distances(queries: Vectors, vectors: Vectors, *, metric: Metric) -> Float32Array:
    """Compute the distance of every query to every vector, exactly.

    Float64 all the way, so slower than `nearest`, and the result is the whole table: for small inputs.

    Args:
        queries: (q, d) float32.
        vectors: (n, d) float32.
        metric: cosine 1 - cos, dot -(a.b), euclidean the root. Zero vectors have cosine distance 1.

    Returns:
        (q, n) float32.

    Raises:
        DimensionMismatchError: queries and vectors differ in d.
    """
    _ensure_same_width(queries, vectors)
    out = np.empty((len(queries), len(vectors)), np.float32)
    everything = np.arange(len(vectors))
    for row in range(len(queries)):
        out[row] = _exact(queries, vectors, np.full(len(vectors), row), everything, metric)
    return out


def nearest(
    queries: Vectors, vectors: Vectors, k: int, *, metric: Metric, norms: Float32Array | None = None
) -> Neighbors:
    """Find the k nearest vectors to each query by comparing it with all of them.

    A float32 matrix product finds every row that can possibly be among the k (its rounding error is bounded),
    float64 distances of those few decide. Works in blocks of queries and tiles of vectors: peak memory is a
    few ten MiB beside input and output. One query reads the vectors once.
    Sources: Johnson et al., Billion-scale similarity search with GPUs, section 2 (exact search in tiles);
    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (error bound of inner products).

    Args:
        queries: (q, d) float32; need not be normalized.
        vectors: (n, d) float32, the vectors searched.
        k: Neighbours per query, at least 1; capped at n.
        metric: What "near" means.
        norms: `norms_of(vectors)` where the caller keeps it; saves one pass over the vectors.

    Returns:
        Row i answers queries[i]: rows (q, k) int64 into vectors, distances (q, k) float32 ascending, equal
        distances in row order; complete is False where n < k.

    Raises:
        DimensionMismatchError: queries and vectors differ in d.
        InputError: k is below 1, or a component is NaN or infinite.
    """
    _ensure_same_width(queries, vectors)
    if k < 1:
        raise InputError(f"k is {k}; ask for at least 1 neighbour")
    query_norms = norms_of(queries, what="queries")
    lengths = norms_of(vectors) if norms is None else norms
    n, q, found = len(vectors), len(queries), min(k, len(vectors))
    rows = np.empty((q, found), np.int64)
    near = np.empty((q, found), np.float32)
    if found:
        block = max(1, min(_QUERY_BLOCK, _MAX_PENDING // found))
        for start in range(0, q, block):
            part = slice(start, start + block)
            rows[part], near[part] = _search(
                queries[part], query_norms[part], vectors, lengths, found, Metric(metric)
            )
    return Neighbors(rows, near, complete=k <= n)


def _search(
    queries: Vectors, query_norms: Float32Array, vectors: Vectors, norms: Float32Array, k: int, metric: Metric
) -> tuple[IntArray, Float32Array]:
    """Answer one block of queries: candidates tile by tile, then exact distances."""
    best = _Best(queries, vectors, k, metric)
    alive = np.arange(len(queries))
    if metric is not Metric.EUCLIDEAN:
        # A zero query is equally far from everything: the first k rows.
        alive = np.flatnonzero(query_norms > 0.0)
        for at in np.flatnonzero(query_norms == 0.0):
            best.add(np.full(k, at), np.arange(k))
    if len(alive):
        margins = _margins(query_norms[alive], norms, vectors.shape[1], metric)
        if np.isfinite(margins).all():
            _collect(best, alive, _asked(queries[alive], metric), vectors, norms, margins)
        else:
            for at in alive:  # float32 cannot tell: every row is a candidate
                for part in _parts(len(vectors), 1):
                    rows = np.arange(part.start, part.stop)
                    best.add(np.full(len(rows), at), rows)
    return best.result()


def _asked(queries: Vectors, metric: Metric) -> Vectors:
    """Return the queries as the product needs them: their length matters to the euclidean distance only."""
    return queries if metric is Metric.EUCLIDEAN else normalize(queries)


def _margins(query_norms: Float32Array, norms: Float32Array, d: int, metric: Metric) -> Float64Array:
    """Bound per query how far a float32 score may be off, rounding of the distance included; inf: unbounded.

    The inner product of d terms is off by at most d roundoffs times the product of the lengths; lengths and
    the rounded distance add their own.
    """
    largest = float(norms.max())
    if metric is Metric.EUCLIDEAN:
        scales = (query_norms.astype(np.float64) + largest) ** 2
    else:
        scales = np.full(len(query_norms), largest, np.float64)
    sizes = scales * query_norms if metric is Metric.DOT else scales
    safe = (sizes == 0.0) | ((sizes > _SMALLEST) & (sizes < _LARGEST) & (scales < _LARGEST))
    if metric is Metric.COSINE:
        lengths = norms[norms > 0.0]
        safe &= bool(len(lengths) == 0 or lengths.min() > _SMALLEST)
        scales[:] = 1.0
    return np.where(safe, (2 * d + 16) * _ROUNDOFF * scales, np.inf)


def _collect(
    best: _Best,
    asked: IntArray,
    queries: Vectors,
    vectors: Vectors,
    norms: Float32Array,
    margins: Float64Array,
) -> None:
    """Find every row that may be among the k nearest of a query.

    Scores fall into groups with one maximum each. The k-th largest maximum is at most the k-th largest score,
    so whatever lies more than twice the margin below it is out: no selection over all scores.
    """
    q, n, k = len(queries), len(vectors), best.k
    group = max(1, min(_GROUP, n // (8 * k)))
    tile = min(-(-n // group) * group, max(_MIN_TILE, _TILE_SCORES // q) // group * group or group)
    buffer = np.empty((q, tile), np.float32)
    tops = np.empty((q, 0), np.float32)
    slack = (2.0 * margins).astype(np.float32) * np.float32(1.001)
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        scores = _scores(queries, vectors[start:stop], norms[start:stop], best.metric, buffer)
        grouped = scores.reshape(q, group, tile // group)  # group members lie tile // group apart
        maxima = grouped.max(axis=1)
        tops = np.concatenate((tops, maxima), axis=1)
        if tops.shape[1] > k:
            tops = np.partition(tops, tops.shape[1] - k, axis=1)[:, -k:]
        enough = tops.shape[1] == k
        limits = tops.min(axis=1) - slack if enough else np.full(q, -np.inf, np.float32)
        at, column = np.nonzero(maxima >= limits[:, None])
        pair, member = np.nonzero(grouped[at, :, column] >= limits[at][:, None])
        rows = start + member * (tile // group) + column[pair]
        inside = rows < stop
        best.add(asked[at[pair[inside]]], rows[inside])


def _scores(
    queries: Vectors, tile: Vectors, norms: Float32Array, metric: Metric, buffer: Float32Array
) -> Float32Array:
    """Score a tile, larger is nearer: cos, dot, or dot - |x|^2 / 2. Unused columns are -inf."""
    scores = buffer[:, : len(tile)]
    if len(queries) == 1:
        # Reads at memory speed; with one BLAS thread 2.4 times as fast as gemv (benchmarks/micro.py).
        np.vecdot(tile, queries[0], out=scores[0])
    else:
        np.matmul(queries, tile.T, out=scores)
    if metric is Metric.COSINE:
        scores *= np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
    elif metric is Metric.EUCLIDEAN:
        scores -= norms * norms * np.float32(0.5)
    buffer[:, len(tile) :] = -np.inf
    return buffer


class _Best:
    """The k best rows of each query of a block. Candidates wait until they are many, then are settled."""

    def __init__(self, queries: Vectors, vectors: Vectors, k: int, metric: Metric) -> None:
        self.k = k
        self.metric = metric
        self._queries = queries
        self._vectors = vectors
        self._waiting: list[tuple[IntArray, IntArray]] = []
        self._count = 0
        self._at = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)
        self._near = np.empty(0, np.float32)

    def add(self, at: IntArray, rows: IntArray) -> None:
        """Add candidates: queries by position in the block, and the rows that may be theirs."""
        self._waiting.append((at, rows))
        self._count += len(at)
        if self._count >= _MAX_PENDING:
            self._settle()

    def result(self) -> tuple[IntArray, Float32Array]:
        """Return rows and distances, (block, k) each."""
        self._settle()
        return self._rows.reshape(-1, self.k), self._near.reshape(-1, self.k)

    def _settle(self) -> None:
        at = np.concatenate([self._at, *(pair[0] for pair in self._waiting)])
        rows = np.concatenate([self._rows, *(pair[1] for pair in self._waiting)])
        new = slice(len(self._at), None)
        near = np.empty(len(at), np.float32)
        near[: len(self._at)] = self._near
        near[new] = _exact(self._queries, self._vectors, at[new], rows[new], self.metric)
        order = np.lexsort((rows, near, at))
        at = at[order]
        rank = np.arange(len(at)) - np.searchsorted(at, at)
        kept = order[rank < self.k]
        self._at, self._rows, self._near = at[rank < self.k], rows[kept], near[kept]
        self._waiting, self._count = [], 0


def _exact(queries: Vectors, vectors: Vectors, at: IntArray, rows: IntArray, metric: Metric) -> Float32Array:
    """Compute the distances of pairs in float64: (pairs,) float32. Its value depends on the pair alone."""
    out = np.empty(len(at), np.float32)
    for part in _parts(len(at), vectors.shape[1]):
        a = queries[at[part]].astype(np.float64)
        b = vectors[rows[part]].astype(np.float64)
        if metric is Metric.DOT:
            exact = 0.0 - _dots(a, b)
        elif metric is Metric.EUCLIDEAN:
            difference = a - b
            exact = np.sqrt(_dots(difference, difference))
        else:
            lengths = np.sqrt(_dots(a, a)) * np.sqrt(_dots(b, b))
            cosines = np.divide(_dots(a, b), lengths, out=np.zeros(len(a)), where=lengths > 0.0)
            exact = np.round((1.0 - np.clip(cosines, -1.0, 1.0)) * _COSINE_GRID) / _COSINE_GRID
        with np.errstate(over="ignore"):
            out[part] = exact
    return out


def _dots(a: Float64Array, b: Float64Array) -> Float64Array:
    """Multiply row by row: (n,). Not BLAS, whose sums depend on where in the array a row stands."""
    dots: Float64Array = np.einsum("ij,ij->i", a, b)
    return dots


def _parts(n: int, d: int) -> Iterator[slice]:
    """Cut n rows into pieces of bounded size."""
    step = max(1, _EXACT_COMPONENTS // max(d, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _ensure_same_width(queries: Vectors, vectors: Vectors) -> None:
    if queries.shape[1] != vectors.shape[1]:
        raise DimensionMismatchError(
            f"queries have {queries.shape[1]} dimensions, the vectors searched {vectors.shape[1]}"
        )


def _ensure_finite(vectors: Vectors, what: str) -> None:
    bad = 0
    first = -1
    for part in _parts(len(vectors), vectors.shape[1]):
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
