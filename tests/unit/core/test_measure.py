from __future__ import annotations

import numpy as np
import pytest

from vecmill.core.errors import InputError
from vecmill.core.measure import (
    cosines,
    mean_ndcg,
    ndcg,
    overlap,
    paired_ratio,
    percentile,
    recall,
    spearman,
)


def test_recall_counts_a_tie_with_the_last_true_neighbour_as_found() -> None:
    assert recall([[0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3]], 3) == 1.0
    assert recall([[0.1, 0.2]], [[0.2, 0.2]], 2) == 1.0
    assert recall([[0.1, 0.2]], [[0.1, 0.2009]], 2) == 1.0
    assert recall([[0.1, 0.2]], [[0.1, 0.2011]], 2) == 0.5


def test_recall_counts_missing_neighbours_as_misses() -> None:
    assert recall([[0.1, 0.2], [0.1, 0.2]], [[0.1], [0.1]], 2) == 0.5


def test_recall_with_too_few_true_neighbours_raises() -> None:
    with pytest.raises(InputError, match="k is 3, but 2 true"):
        recall([[0.1, 0.2]], [[0.1, 0.2]], 3)


def test_ndcg_of_a_worked_example() -> None:
    # Gains 7, 3, 0, 1 at ranks 1 to 4; ideal order 7, 7, 3, 1.
    got = 7 + 3 / np.log2(3) + 1 / np.log2(5)
    ideal = 7 + 7 / np.log2(3) + 3 / np.log2(4) + 1 / np.log2(5)
    assert ndcg([3, 2, 0, 1], [3, 3, 2, 1]) == pytest.approx(got / ideal)


def test_ndcg_is_one_for_the_ideal_order_and_zero_for_nothing_relevant() -> None:
    assert ndcg([2, 1, 0], [0, 1, 2]) == 1.0
    assert ndcg([0, 0], [0, 0]) == 0.0


def test_ndcg_looks_at_k_results_only() -> None:
    assert ndcg([0, 1], [1], k=1) == 0.0


def test_mean_ndcg_leaves_out_queries_without_a_relevant_item() -> None:
    judged = {"a": {"x": 1.0}, "b": {"x": 0.0}}
    assert mean_ndcg({"a": ["x"], "b": ["y"]}, judged) == 1.0


def test_mean_ndcg_names_a_judged_query_without_answer() -> None:
    with pytest.raises(InputError, match="1 judged queries were not answered, the first is 'a'"):
        mean_ndcg({}, {"a": {"x": 1.0}})


def test_spearman_gives_equal_values_their_average_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: Pearson of the ranks by hand is 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_spearman_sees_order_only() -> None:
    x = np.random.default_rng(0).normal(size=100)
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)


def test_spearman_of_a_constant_is_nan() -> None:
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_overlap_ignores_order() -> None:
    a = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    b = np.array([[4, 3, 2, 1], [1, 2, 7, 8]])
    assert overlap(a, b) == 0.75


def test_cosines_of_pairs() -> None:
    a = np.array([[1, 0], [2, 2], [0, 0]], np.float32)
    b = np.array([[0, 1], [1, 1], [1, 1]], np.float32)
    np.testing.assert_allclose(cosines(a, b), [0, 1, 0], atol=1e-12)


def test_percentile_lies_on_a_line_between_neighbours() -> None:
    assert percentile([0.0, 10.0], 95) == pytest.approx(9.5)
    with pytest.raises(InputError):
        percentile([], 50)


def test_paired_ratio_cancels_disturbances_common_to_a_pair() -> None:
    noise = np.random.default_rng(1).uniform(1, 10, 9)
    got = paired_ratio(2.0 * noise, noise)
    assert (got.median, got.low, got.high, got.pairs) == (2.0, 2.0, 2.0, 9)


def test_paired_ratio_interval_holds_the_true_median_nine_times_of_ten() -> None:
    numbers = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        got = paired_ratio(np.exp(numbers.normal(0.7, 0.2, 25)), np.ones(25), resamples=500)
        held += got.low <= np.exp(0.7) <= got.high
    assert 160 <= held <= 196


def test_paired_ratio_is_the_same_for_the_same_seed() -> None:
    x = np.random.default_rng(3).uniform(1, 2, 11)
    assert paired_ratio(x, x[::-1], seed=5) == paired_ratio(x, x[::-1], seed=5)
    assert str(paired_ratio([2.0], [1.0])) == "2.00 [2.00, 2.00]"


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])])
def test_paired_ratio_of_impossible_measurements_raises(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError):
        paired_ratio(a, b)
