"""What the advisor looks at: a sample, queries held back from it, and what would flatter the figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Metric, Vectors
from vecmill.core.vectors import check, nearest, normalize, norms_of

NEAR_IDENTICAL = 0.03
"""Of the median distance between two vectors of the set: nearer than this is called near-identical."""

_FEWEST = 100
_SHARE_OF_QUERIES = 0.2
_LOOKED_AT = 300
"""Queries whose distances to the whole sample are looked at."""

_HASHED_COMPONENTS = 1 << 22

_ALARMING_REPEATS = 0.2
_ALARMING_NEAR = 0.05
_LENGTHS_DIFFER = 0.01
_GAP = 2.5
_NOISE = 40.0
_TIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """Part of a set of vectors, and queries that are not in it.

    Attributes:
        vectors: (n, d) float32, the rows searched, no two of them equal.
        queries: (q, d) float32, rows held back; none equal or nearly equal to a row of `vectors`.
        rows: Rows of the whole set. distinct: those left when equal ones are counted once.
        near_identical: Share of the rows held back that were left out because one of `vectors` is nearly
            the same.
        shape: What the distances look like.
    """

    vectors: Vectors
    queries: Vectors
    rows: int
    distinct: int
    near_identical: float
    shape: Shape

    @property
    def repeated(self) -> int:
        """Rows of the whole set that are equal to an earlier one."""
        return self.rows - self.distinct


@dataclass(frozen=True, slots=True)
class Shape:
    """How the distances from a query grow with the rank of the neighbour.

    Attributes:
        dimension: The local dimension: distances grow as rank ** (1 / dimension); median over the ranks.
        gap: How much slower that growth gets between two ranks, to become faster again: 1 for a cloud, many
            for clusters with nothing between them.
        contrast: Distance of the 10th neighbour as a share of the median distance of two vectors.
        length_spread: Standard deviation of the vectors' lengths, as a share of their mean.
    """

    dimension: float
    gap: float
    contrast: float
    length_spread: float


def draw(vectors: Vectors, *, sample: int, queries: int, k: int, metric: Metric, seed: int) -> Sample:
    """Draw a sample and queries that are not in it; equal rows are drawn once, nearly equal queries left out.

    Reads all vectors once, to find those that repeat; then only those drawn.

    Args:
        vectors: (n, d) numbers, an array or a memory-mapped one.
        sample: Rows to search, fewer where there are fewer.
        queries: Rows to hold back, at most a fifth of all.
        k: Neighbours that will be looked for.
        metric: What "near" means.
        seed: Of the draw.

    Raises:
        InputError: There are too few different rows, or one of those drawn holds NaN.
    """
    table = np.asarray(vectors) if not isinstance(vectors, np.ndarray) else vectors
    if table.ndim != 2 or table.shape[1] == 0:
        raise InputError(f"vectors must have two axes (n, d), not shape {table.shape}")
    distinct = _distinct(table)
    if len(distinct) < max(_FEWEST, 10 * k):
        raise InputError(
            f"{len(distinct)} different vectors are too few to measure recall@{k} on; "
            f"advice needs {max(_FEWEST, 10 * k)}, and below 50,000 exact search is all you need"
        )
    held = max(1, min(queries, int(len(distinct) * _SHARE_OF_QUERIES)))
    order = np.random.default_rng(seed).permutation(distinct)
    asked = _read(table, order[:held], "the rows held back")
    searched = _read(table, order[held : held + sample], "the rows drawn")  # in random order: pieces too
    shape, near = _looked_at(asked, searched, metric)
    kept = ~near
    if not kept.any():
        raise InputError("every row held back is nearly the same as another: there is nothing to measure")
    return Sample(
        searched,
        np.ascontiguousarray(asked[kept]),
        len(table),
        len(distinct),
        float(np.mean(near)),
        shape,
    )


def warnings_of(drawn: Sample, metric: Metric, k: int) -> list[str]:
    """Say what makes figures of this sample doubtful, each in a sentence with what to do."""
    shape, found = drawn.shape, list[str]()
    if drawn.repeated > _ALARMING_REPEATS * drawn.rows:
        found.append(
            f"{drawn.repeated:,} of {drawn.rows:,} rows repeat another ({drawn.repeated / drawn.rows:.0%}): "
            f"all figures are for the {drawn.distinct:,} that differ; with the copies, results repeat too"
        )
    if drawn.near_identical > _ALARMING_NEAR:
        found.append(
            f"{drawn.near_identical:.0%} of the rows held back are nearly the same as another row and were "
            "left out: what finds near copies easily may find real queries less well"
        )
    if len(drawn.vectors) < 200 * k:
        found.append(
            f"only {len(drawn.vectors):,} rows are searched: every choice looks good among so few; "
            "ask again when there are more"
        )
    if metric is Metric.COSINE and shape.length_spread > _LENGTHS_DIFFER:
        found.append(
            f"the vectors' lengths differ by {shape.length_spread:.0%}, and cosine looks at directions only: "
            "if their lengths mean something, use --metric dot"
        )
    return found + _doubts(shape)


def _doubts(shape: Shape) -> list[str]:
    """Say why vectors look made up, if they do. Thresholds: docs/reference/advisor.md."""
    unlike = "recall measured on them says little about real ones"
    if shape.gap > _GAP:
        return [
            f"the vectors lie in clusters with nothing between them (gap {shape.gap:.1f}; texts: about 1, "
            f"above {_GAP:g} is suspicious): they look synthetic, and {unlike}"
        ]
    if shape.dimension > _NOISE:
        return [
            f"the vectors are spread like noise (local dimension {shape.dimension:.0f}; texts: 10 to 25): "
            f"they look random, and {unlike}"
        ]
    if shape.contrast < _TIGHT:
        return [
            f"neighbours are {1 / max(shape.contrast, 1e-9):.0f} times nearer than other rows (texts: 1.3 to "
            f"2 times): the rows are variants of a few, and {unlike}"
        ]
    return []


def _read(table: npt.NDArray[np.generic], rows: IntArray, what: str) -> Vectors:
    order = np.argsort(rows)  # a mapped file is read front to back
    out = np.empty((len(rows), table.shape[1]), np.float32)
    out[order] = check(table[rows[order]], what=what)
    return out


def _distinct(table: npt.NDArray[np.generic]) -> IntArray:
    """Return the first row of each kind, ascending: rows are compared by a 64-bit hash of their bytes.

    Source: multilinear hashing, Carter and Wegman, Universal classes of hash functions, 1979. Two different
    rows collide with a probability below 2 ** -40.
    """
    d = table.shape[1]
    chance = np.random.default_rng(0x5EED)
    factors = chance.integers(0, 2**64, d, dtype=np.uint64)
    hashes = np.empty(len(table), np.uint64)
    step = max(1, _HASHED_COMPONENTS // d)
    for start in range(0, len(table), step):
        block = np.ascontiguousarray(table[start : start + step], dtype=np.float32) + np.float32(0.0)
        hashes[start : start + step] = np.einsum("ij,j->i", block.view(np.uint32).astype(np.uint64), factors)
    _, first = np.unique(hashes, return_index=True)
    rows: IntArray = np.sort(first).astype(np.int64)
    return rows


def _looked_at(queries: Vectors, vectors: Vectors, metric: Metric) -> tuple[Shape, npt.NDArray[np.bool_]]:
    """Return the shape of the distances, and which queries are nearly the same as a row.

    Lengths are judged for the euclidean family only; the others look at directions.
    """
    lengths = norms_of(vectors).astype(np.float64)
    spread = float(lengths.std() / max(float(lengths.mean()), 1e-30))
    a, b = queries, vectors
    if metric not in (Metric.EUCLIDEAN, Metric.MANHATTAN, Metric.CHEBYSHEV):
        a, b = normalize(queries), normalize(vectors)
    some = a[:_LOOKED_AT].astype(np.float64)
    table = np.empty((len(some), len(b)))
    squares = np.vecdot(b, b).astype(np.float64)
    for start in range(0, len(b), 8192):
        part = slice(start, start + 8192)
        products = some @ b[part].astype(np.float64).T
        table[:, part] = np.vecdot(some, some)[:, None] + squares[part] - 2.0 * products
    distances = np.sqrt(np.maximum(table, 0.0))
    distances.sort(axis=1)
    usual = float(np.median(distances))
    closest = nearest(a, b, 1, metric=Metric.EUCLIDEAN).distances[:, 0]
    near = closest < NEAR_IDENTICAL * usual
    kept = distances[~near[: len(some)]]
    return _shape(kept if len(kept) else distances, usual, spread), near


def _shape(distances: npt.NDArray[np.float64], usual: float, spread: float) -> Shape:
    """Judge sorted distances (q, n) by how they grow from rank 1 to half of all, octave by octave."""
    n = distances.shape[1]
    ranks = np.unique(np.minimum(2 ** np.arange(int(np.log2(n)) + 1), max(n // 2, 1)))
    grown = np.log(np.maximum(distances[:, ranks - 1], 1e-12)).mean(axis=0)
    growth = np.maximum(np.diff(grown) / np.diff(np.log(ranks)), 1e-4)
    local = 1.0 / growth  # the local dimension of every octave
    gap = 1.0
    for at in range(1, len(local) - 1):
        shoulder = min(local[:at].max(), local[at + 1 :].max())
        # Slow growth is a high local dimension; a gap is fast growth, a low one, between two slow ones.
        gap = max(gap, shoulder / local[at])
    contrast = float(distances[:, min(9, n - 1)].mean() / max(usual, 1e-30))
    return Shape(float(np.median(local)) if len(local) else 0.0, float(gap), contrast, spread)
