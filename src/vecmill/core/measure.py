"""How good, how fast, how sure: recall, nDCG, rank correlation, overlap, and ratios with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Vectors

Float64Array = npt.NDArray[np.float64]

RECALL_EPSILON = 1e-3
"""Source: ann-benchmarks, `plotting/metrics.py`, the epsilon of its k-nn metric."""


def recall(
    true_distances: npt.ArrayLike, found_distances: npt.ArrayLike, k: int, *, epsilon: float = RECALL_EPSILON
) -> float:
    """Compute recall@k, ties counted: whatever lies as near as the k-th true neighbour counts as found.

    Source: ann-benchmarks, `plotting/metrics.py` (threshold = k-th true distance + epsilon).

    Args:
        true_distances: (q, >= k) distances of the true neighbours, ascending.
        found_distances: (q, any) true distances of the rows found; fewer than k count as misses.
        k: Neighbours looked at.
        epsilon: Added to the threshold, in units of the distance.

    Returns:
        Mean over queries, 0 to 1.

    Raises:
        InputError: The tables disagree in q, or there are fewer than k true neighbours.
    """
    true = np.asarray(true_distances, np.float64)
    found = np.asarray(found_distances, np.float64)
    if true.ndim != 2 or found.ndim != 2 or len(true) != len(found) or not len(true):
        raise InputError(f"need one row per query on both sides, got shapes {true.shape} and {found.shape}")
    if not 1 <= k <= true.shape[1]:
        raise InputError(f"k is {k}, but {true.shape[1]} true neighbours are given")
    hits = found[:, :k] <= true[:, k - 1 : k] + epsilon
    return float(hits.sum() / (k * len(true)))


def ndcg(ranked: Sequence[float], judged: Sequence[float], k: int = 10) -> float:
    """Compute nDCG@k of one query with gain 2^relevance - 1.

    Source: Burges et al., Learning to rank using gradient descent, 2005, section 6.

    Args:
        ranked: Relevance of the results, best first; 0 for what was not judged.
        judged: Relevance of everything judged for the query, any order.
        k: Results looked at.

    Returns:
        0 to 1; 0 where nothing is relevant.
    """
    ideal = _dcg(sorted(judged, reverse=True)[:k])
    return _dcg(ranked[:k]) / ideal if ideal > 0.0 else 0.0


def mean_ndcg(
    ranked: Mapping[str, Sequence[str]], judged: Mapping[str, Mapping[str, float]], k: int = 10
) -> float:
    """Compute the mean nDCG@k over the queries that have a relevant item.

    Args:
        ranked: Query id to item ids, best first.
        judged: Query id to (item id to relevance).
        k: Results looked at.

    Raises:
        InputError: No query has a relevant item, or a judged one was not answered.
    """
    asked = [query for query, items in judged.items() if any(value > 0 for value in items.values())]
    if not asked:
        raise InputError("no query has a relevant item")
    if missing := [query for query in asked if query not in ranked]:
        raise InputError(f"{len(missing)} judged queries were not answered, the first is {missing[0]!r}")
    values = [
        ndcg([judged[query].get(item, 0.0) for item in ranked[query][:k]], list(judged[query].values()), k)
        for query in asked
    ]
    return float(np.mean(values))


def _dcg(relevance: Sequence[float]) -> float:
    gains = np.exp2(np.asarray(relevance, np.float64)) - 1.0
    return float(np.sum(gains / np.log2(np.arange(2, len(gains) + 2))))


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Compute Spearman's rank correlation; equal values share their average rank.

    Returns:
        -1 to 1; NaN where one side is constant.

    Raises:
        InputError: The sides differ in length, or have fewer than two values.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(f"need two equally long rows of at least two values, got {x.shape} and {y.shape}")
    rx, ry = _ranks(x), _ranks(y)
    rx, ry = rx - rx.mean(), ry - ry.mean()
    scale = float(np.sqrt((rx * rx).sum() * (ry * ry).sum()))
    return float((rx * ry).sum() / scale) if scale > 0.0 else float("nan")


def _ranks(values: Float64Array) -> Float64Array:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average: Float64Array = (last - (counts - 1) / 2.0)[where]
    return average


def overlap(a: IntArray, b: IntArray) -> float:
    """Compute the share of neighbours two searches agree on, order aside.

    Args:
        a: (q, k) rows found by one.
        b: (q, k) rows found by the other.

    Returns:
        Mean over queries, 0 to 1.

    Raises:
        InputError: The shapes differ or are empty.
    """
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise InputError(f"need two equal tables (q, k), got shapes {a.shape} and {b.shape}")
    shared = [len(np.intersect1d(x, y)) for x, y in zip(a, b, strict=True)]
    return float(np.mean(shared) / a.shape[1])


def cosines(a: Vectors, b: Vectors) -> Float64Array:
    """Compute the cosine of each pair of rows in float64: (n,); 0 where one is zero.

    Raises:
        InputError: The shapes differ.
    """
    if a.shape != b.shape:
        raise InputError(f"need two equal tables (n, d), got shapes {a.shape} and {b.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x) * np.einsum("ij,ij->i", y, y))
    dots = np.einsum("ij,ij->i", x, y)
    out: Float64Array = np.divide(dots, lengths, out=np.zeros(len(x)), where=lengths > 0.0)
    return out


def percentile(values: npt.ArrayLike, percent: float) -> float:
    """Return the value below which `percent` % lie, between neighbours by a straight line.

    Raises:
        InputError: There are no values.
    """
    sample = np.asarray(values, np.float64)
    if sample.size == 0:
        raise InputError("no values to take a percentile of")
    return float(np.percentile(sample, percent))


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times one measurement is another: the median of paired ratios with its interval.

    Attributes:
        median: Median of the ratios.
        low, high: Ends of the bootstrap interval of that median.
        pairs: Ratios it rests on.
        confidence: Of the interval, 0.9 unless told.
    """

    median: float
    low: float
    high: float
    pairs: int
    confidence: float = 0.9

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    seed: int = 0,
    confidence: float = 0.9,
    resamples: int = 10_000,
) -> Ratio:
    """Compare measurements taken side by side: pair i is two neighbours in time, so disturbances cancel.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval).

    Args:
        numerators: (n,) positive numbers, such as the baseline's seconds per round.
        denominators: (n,) positive numbers, the same rounds of the other side.
        seed: Of the resampling; equal seeds give equal intervals.
        confidence: Of the interval.
        resamples: Bootstrap samples.

    Raises:
        InputError: The sides differ in length, are empty, or hold a number that is not above zero.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise InputError(f"need two equally long rows of measurements, got {top.shape} and {bottom.shape}")
    if not (np.all(top > 0.0) and np.all(bottom > 0.0)):
        raise InputError("measurements must be above zero")
    ratios = top / bottom
    picks = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(medians, [tail, 100.0 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios), confidence)
