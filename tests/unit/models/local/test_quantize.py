"""Int8 weights."""

from __future__ import annotations

import numpy as np

from vecmill.models.local.quantize import quantize_rows


def some(rows: int = 32, columns: int = 64) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(7).standard_normal((rows, columns)).astype(np.float32)


def test_error_is_at_most_half_a_step_where_nothing_is_clipped() -> None:
    weights = some()
    levels, scales = quantize_rows(weights, search=False)
    assert levels.dtype == np.int8
    assert scales.shape == (32, 1)
    assert np.all(np.abs(levels * scales - weights) <= scales * 0.5001)


def test_search_never_makes_a_row_worse() -> None:
    weights = some()
    plain, searched = (quantize_rows(weights, search=search) for search in (False, True))
    error = [(((levels * scales) - weights) ** 2).sum(axis=1) for levels, scales in (plain, searched)]
    assert np.all(error[1] <= error[0] * 1.000001)
    assert error[1].sum() < error[0].sum()


def test_levels_are_symmetric() -> None:
    levels, _ = quantize_rows(some() * 1e3)
    assert levels.min() >= -127


def test_row_of_zeros_stays_zero() -> None:
    levels, scales = quantize_rows(np.zeros((2, 8), dtype=np.float32))
    assert not levels.any()
    assert np.isfinite(scales).all()
