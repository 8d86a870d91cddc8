from __future__ import annotations

import numpy as np
import pytest

from vecmill.core import scan
from vecmill.core.scan import Best, Table, collect, may_be_best, tile_rows
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest, norms_of

Float32Array = np.ndarray


class Given:
    """Scores made beforehand: (n, q)."""

    relative = 0.0
    exact = False

    def __init__(self, scores: Float32Array, slack: float) -> None:
        self._scores = scores
        self.slack = np.full(scores.shape[1], slack)
        self.floor = np.full(scores.shape[1], -np.inf, np.float32)

    def score(self, start: int, stop: int, out: Float32Array) -> None:
        out[:] = self._scores[start:stop]


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("n", [5, 100, 3_000, 40_000])
@pytest.mark.parametrize("k", [1, 4])
def test_scores_off_by_less_than_the_slack_give_the_exact_answer(n: int, k: int) -> None:
    vectors, queries = random(n, 6), random(3, 6, seed=1)
    errors = np.random.default_rng(2).uniform(-0.05, 0.05, (n, 3))
    scorer = Given((vectors @ queries.T + errors).astype(np.float32), slack=0.101)
    best = Best(queries, Table(vectors, norms_of(vectors), Metric.DOT), k)
    assert len(collect(best, np.arange(3), scorer, n)) == 0
    rows, near = best.result()
    want = nearest(queries, vectors, k, metric=Metric.DOT)
    np.testing.assert_array_equal(rows, want.rows)
    np.testing.assert_array_equal(near, want.distances)


def test_too_little_slack_loses_neighbours_so_the_test_above_can_fail() -> None:
    vectors, queries = random(40_000, 6), random(3, 6, seed=1)
    errors = np.random.default_rng(2).uniform(-0.5, 0.5, (40_000, 3))
    best = Best(queries, Table(vectors, norms_of(vectors), Metric.DOT), 4)
    collect(best, np.arange(3), Given((vectors @ queries.T + errors).astype(np.float32), slack=0.0), 40_000)
    assert (best.result()[0] != nearest(queries, vectors, 4, metric=Metric.DOT).rows).any()


def test_a_query_with_too_many_candidates_is_given_up_and_the_others_are_answered() -> None:
    n = 20_000
    vectors, queries = random(n, 6), random(2, 6, seed=1)
    scorer = Given(vectors @ queries.T, slack=1e-5)
    scorer.slack[1] = 100.0  # its scores say nothing
    best = Best(queries, Table(vectors, norms_of(vectors), Metric.DOT), 3)
    assert collect(best, np.arange(2), scorer, n, tile=1024, most=50).tolist() == [1]
    want = nearest(queries[:1], vectors, 3, metric=Metric.DOT)
    np.testing.assert_array_equal(best.result()[0], want.rows)


def test_candidates_beyond_what_may_wait_are_settled_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_MAX_PENDING", 100)
    vectors, queries = np.ones((5_000, 4), np.float32), random(3, 4)
    best = Best(queries, Table(vectors, norms_of(vectors), Metric.DOT), 3)
    collect(best, np.arange(3), Given(vectors @ queries.T, slack=1.0), 5_000, tile=64)
    assert best.result()[0].tolist() == [[0, 1, 2]] * 3


def test_may_be_best_keeps_what_lies_within_the_slack_of_the_kth() -> None:
    queries = np.array([0, 1, 0, 0, 1, 0])
    scores = np.array([5.0, -1.0, 4.0, 3.5, -0.0, -7.0], np.float32)
    fit = may_be_best(queries, scores, 3, 2, np.array([0.6, 0.0, 0.0]))
    assert fit.tolist() == [True, True, True, True, True, False]


def test_a_tile_is_whole_groups_and_bounded_by_its_components() -> None:
    for queries, d, n in ((1, 384, 10**6), (1024, 384, 10**6), (7, 3, 40), (1, 100_000, 10**6), (1, 4, 1)):
        rows = tile_rows(queries, d, n)
        assert rows % scan._GROUP == 0
        assert rows >= min(n, scan._MIN_TILE) - scan._GROUP
        assert rows <= max(scan._MIN_TILE, scan._TILE_COMPONENTS // d)
