from __future__ import annotations

import numpy as np
import pytest

from vecmill.core.distances import distance, pair_distances, similarity
from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import Metric

A, B = np.array([[1, -2, 0, 3]], np.float32), np.array([[2, 2, 0, -1]], np.float32)


@pytest.mark.parametrize(
    ("metric", "want"),
    [
        (Metric.COSINE, 1 + 5 / np.sqrt(14 * 9)),
        (Metric.DOT, 5.0),
        (Metric.EUCLIDEAN, np.sqrt(33)),
        (Metric.MANHATTAN, 9.0),
        (Metric.CHEBYSHEV, 4.0),
        (Metric.HAMMING, 2.0),
        (Metric.JACCARD, 1 - 1 / 3),
    ],
)
def test_distances_are_those_of_the_definition(metric: Metric, want: float) -> None:
    assert pair_distances(A, B, metric).tolist() == [np.float32(want)]
    assert distance(A[0], B[0], metric=metric) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "want"),
    [
        (Metric.EUCLIDEAN, 0.6546536707),
        (Metric.MANHATTAN, 1.0690449676),
        (Metric.DOT, -0.7857142857),
        (Metric.COSINE, 0.2142857143),
        (Metric.CHEBYSHEV, 0.5345224838),
    ],
)
def test_unit_vectors_of_123_and_312_have_the_distances_known_elsewhere(metric: Metric, want: float) -> None:
    a, b = np.array([1, 2, 3]) / np.sqrt(14), np.array([3, 1, 2]) / np.sqrt(14)
    assert np.sqrt(14) == pytest.approx(3.7416573867739413, abs=1e-15)
    assert distance(a, b, metric=metric) == pytest.approx(want, abs=1e-9)
    assert distance(a, b, metric=metric.value) == distance(a, b, metric=metric)


@pytest.mark.parametrize("metric", list(Metric))
def test_a_distance_does_not_depend_on_where_the_pair_stands(metric: Metric) -> None:
    numbers = np.random.default_rng(0)
    a, b = numbers.normal(size=(2, 900, 387)).astype(np.float32)
    together = pair_distances(a, b, metric)
    alone = [pair_distances(a[i : i + 1].copy(), b[i : i + 1].copy(), metric)[0] for i in range(900)]
    np.testing.assert_array_equal(together, np.array(alone))


@pytest.mark.parametrize("metric", [Metric.HAMMING, Metric.JACCARD])
def test_without_ones_nothing_differs(metric: Metric) -> None:
    empty = np.array([[-1, 0, -0.0]], np.float32)
    assert pair_distances(empty, empty * 2, metric).tolist() == [0.0]


def test_a_zero_vector_has_cosine_distance_one() -> None:
    assert pair_distances(A, np.zeros_like(A), Metric.COSINE).tolist() == [1.0]


def test_distances_beyond_float32_are_infinite_not_an_error() -> None:
    huge = np.full((1, 4), 3e38, np.float32)
    for metric in (Metric.MANHATTAN, Metric.EUCLIDEAN, Metric.CHEBYSHEV):
        assert pair_distances(huge, -huge, metric).tolist() == [np.inf]


@pytest.mark.parametrize(
    ("metric", "given", "want"),
    [
        (Metric.COSINE, 0.25, 0.75),
        (Metric.DOT, -2.5, 2.5),
        (Metric.EUCLIDEAN, 1.0, 0.5),
        (Metric.MANHATTAN, 3.0, 0.25),
        (Metric.CHEBYSHEV, 0.0, 1.0),
        (Metric.HAMMING, 96, 0.75),
        (Metric.JACCARD, 0.25, 0.75),
    ],
)
def test_similarity_grows_as_distance_falls(metric: Metric, given: float, want: float) -> None:
    got = similarity([[given]], metric, 384)
    assert got.dtype == np.float64
    assert got.tolist() == [[want]]


def test_vectors_of_different_lengths_raise_naming_both() -> None:
    with pytest.raises(DimensionMismatchError, match="2 and 3 dimensions"):
        distance([1, 2], [1, 2, 3], metric=Metric.DOT)
    with pytest.raises(DimensionMismatchError, match=r"\(1, 4\) and \(2, 4\)"):
        pair_distances(A, np.repeat(B, 2, axis=0), Metric.DOT)


def test_what_is_no_vector_of_finite_numbers_raises() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        distance([1, np.nan], [1, 2], metric=Metric.DOT)
    with pytest.raises(InputError, match=r"shapes \(1, 4\)"):
        distance(A, B, metric=Metric.DOT)
