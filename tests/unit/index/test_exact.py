from __future__ import annotations

import numpy as np
import pytest

from vecmill.core.errors import DimensionMismatchError, InputError, UnknownNameError
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest
from vecmill.index.base import Index
from vecmill.index.exact import ExactIndex


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("metric", list(Metric))
def test_search_equals_nearest(metric: Metric) -> None:
    vectors, queries = random(500, 16), random(9, 16, seed=1)
    index: Index = ExactIndex(vectors, metric=metric)
    got, want = index.search(queries, 5), nearest(queries, vectors, 5, metric=metric)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert (len(index), index.dimensions, index.metric) == (500, 16, metric)


def test_metric_may_be_given_by_name() -> None:
    assert ExactIndex(random(3, 2), metric="dot").metric is Metric.DOT


def test_unknown_metric_raises_naming_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        ExactIndex(random(3, 2), metric="cosin")


def test_queries_of_another_width_raise_naming_both() -> None:
    with pytest.raises(DimensionMismatchError, match="queries have 3 dimensions, the index 2"):
        ExactIndex(random(3, 2)).search(random(1, 3), 1)


def test_k_below_one_raises() -> None:
    with pytest.raises(InputError, match="k is 0"):
        ExactIndex(random(3, 2)).search(random(1, 2), 0)


def test_nan_in_vectors_or_queries_raises_naming_the_row() -> None:
    vectors = random(4, 2)
    vectors[3, 0] = np.nan
    with pytest.raises(InputError, match="vectors: row 3 of 4"):
        ExactIndex(vectors)
    with pytest.raises(InputError, match="queries: row 3 of 4"):
        ExactIndex(random(4, 2)).search(vectors, 1)


def test_an_index_of_nothing_raises() -> None:
    with pytest.raises(InputError, match="nothing to search"):
        ExactIndex(np.empty((0, 4), np.float32))


def test_k_above_n_returns_n_and_says_incomplete() -> None:
    got = ExactIndex(random(3, 2)).search(random(1, 2), 10)
    assert got.rows.shape == (1, 3)
    assert not got.complete


def test_a_float32_array_is_not_copied(tmp_path: object) -> None:
    vectors = random(10, 4)
    assert ExactIndex(vectors).vectors is vectors
