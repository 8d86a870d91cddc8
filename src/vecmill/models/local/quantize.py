"""Int8 weights: symmetric, one scale per row (output channel of a linear layer, entry of a table)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEVELS = 127
_SHRINKS = 41
"""Scales tried per row, from the one that clips nothing down to 0.8 of it."""


def quantize_rows(
    weights: npt.NDArray[np.float32], *, search: bool = True
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize each row to int8 with the scale that gives the least squared error.

    Works row by row in float32 with sums in float64, without BLAS, so the result is the same everywhere.

    Args:
        weights: (rows, columns) float32.
        search: Try smaller scales that clip the largest weights; without it the largest weight is exact.

    Returns:
        (rows, columns) int8 in -127..127, and (rows, 1) float32 scales.
    """
    peak = np.abs(weights).max(axis=1, keepdims=True)
    base = np.where(peak > 0, peak, 1.0).astype(np.float32) / np.float32(_LEVELS)
    best = base.copy()
    if search:
        least = _squared_error(weights, base)
        for shrink in np.linspace(1.0, 0.8, _SHRINKS)[1:]:
            scale = (base * np.float32(shrink)).astype(np.float32)
            error = _squared_error(weights, scale)
            better = error < least
            best[better], least[better] = scale[better], error[better]
    return _round(weights, best).astype(np.int8), best


def _round(weights: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    levels: npt.NDArray[np.float32] = np.clip(np.rint(weights / scale), -_LEVELS, _LEVELS)
    return levels


def _squared_error(
    weights: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    difference = (_round(weights, scale) * scale - weights).astype(np.float64)
    return np.asarray((difference * difference).sum(axis=1, keepdims=True))
