"""Recall with its interval, and what becomes of it as rows are added.

Recall at a fixed effort falls as the set grows: more rows lie as near as the neighbours, and crowd them out
of the candidates. Measured on 1/16, 1/8, 1/4, 1/2 and all of a sample, the normal quantile of recall is close
to a straight line in the logarithm of the rows; that line is carried on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_Z = 1.959963984540054
"""Of a 95 % interval."""

_RESAMPLES = 200
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """A recall and its 95 % interval."""

    recall: float
    low: float
    high: float


def interval(hits: Float64Array, k: int, *, mean: float | None = None) -> Interval:
    """Return mean recall with a 95 % interval: Wilson's, for as many independent neighbours as there are.

    Neighbours of one query stand or fall together, so k per query count for less (the design effect: the
    variance of the queries' means against what k independent ones would have). It is estimated with one
    query added that misses two: perfect scores say little about it.
    Sources: Wilson, Probable inference, 1927; Kish, Survey sampling, 1965.

    Args:
        hits: (q,) share of each query's k neighbours that were found.
        k: Neighbours per query.
        mean: Lay the interval around this recall instead of the hits' own.
    """
    q = len(hits)
    widened = np.append(hits, 1.0 - min(2, k) / k)
    p = float(widened.mean())
    design = float(np.clip(k * widened.var() / max(p * (1.0 - p), 1e-12), 1.0, k))
    count = q * k / design
    share = float(hits.mean()) if mean is None else mean
    center = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z / (1 + _Z * _Z / count) * math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    high = 1.0 if share > 1.0 - 0.5 / (q * k) else min(1.0, max(center + half, share))
    return Interval(share, max(0.0, min(center - half, share)), high)


def predicted(
    sizes: Sequence[int], hits: Float64Array, k: int, rows: Sequence[int], *, seed: int = 0
) -> list[Interval]:
    """Predict recall at other sizes from what was measured at some.

    The line is fitted by least squares, the largest size counting twice; it never rises. The interval holds
    the 95 % of 200 bootstrap samples of the queries, and Wilson's around the prediction: it widens with the
    distance. Up to the largest size measured, what was measured there is returned.

    Args:
        sizes: Rows searched, ascending.
        hits: (sizes, q) share of each query's k neighbours found at that size.
        k: Neighbours per query.
        rows: Sizes asked about.
        seed: Of the bootstrap.
    """
    whole = interval(hits[-1], k)
    if max(rows) <= sizes[-1] or len(sizes) < 2:
        return [whole for _ in rows]
    q = hits.shape[1]
    picks = np.random.default_rng(seed).multinomial(q, np.full(q, 1.0 / q), size=_RESAMPLES) / q
    table = np.vstack((hits.mean(axis=1), picks @ hits.T))  # (1 + resamples, sizes)
    smooth = (table * q * k + 0.5) / (q * k + 1.0)
    lines = _lines(np.log(np.asarray(sizes, np.float64)), _quantiles(smooth))
    found = []
    for n in rows:
        if n <= sizes[-1]:
            found.append(whole)
            continue
        levels = lines[0] + lines[1] * (math.log(n) - math.log(sizes[-1]))
        values = np.array([_NORMAL.cdf(level) for level in levels])
        values = np.minimum(values, table[:, -1])
        around = interval(hits[-1], k, mean=float(values[0]))
        low, high = np.percentile(values[1:], [2.5, 97.5])
        found.append(Interval(float(values[0]), min(around.low, float(low)), max(around.high, float(high))))
    return found


def _quantiles(shares: Float64Array) -> Float64Array:
    flat = np.array([_NORMAL.inv_cdf(float(share)) for share in shares.ravel()])
    return flat.reshape(shares.shape)


def _lines(x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Fit a line to each row of y (m, sizes): its height at the last x, and its slope, at most 0."""
    weights = np.ones(len(x))
    weights[-1] = 2.0
    weights /= weights.sum()
    middle = float(weights @ x)
    height = y @ weights
    slope = np.minimum(((y - height[:, None]) * (x - middle)) @ weights / (weights @ (x - middle) ** 2), 0.0)
    return height + slope * (x[-1] - middle), slope
