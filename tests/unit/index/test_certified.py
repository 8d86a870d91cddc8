from __future__ import annotations

import threading

import numpy as np
import pytest

from vecmill.core.scan import Table
from vecmill.core.types import Metric, Neighbors
from vecmill.core.vectors import nearest, norms_of
from vecmill.index import certified
from vecmill.index.certified import METRICS, CertifiedCodes, can_certify

THREE = sorted(METRICS)


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def table(vectors: np.ndarray, metric: Metric) -> Table:
    return Table(vectors, norms_of(vectors), metric)


def assert_same(got: Neighbors, want: Neighbors) -> None:
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert got.complete == want.complete


@pytest.mark.parametrize("metric", THREE)
@pytest.mark.parametrize("q", [1, 17, 70, 1100])
def test_answers_equal_those_of_float32(metric: Metric, q: int) -> None:
    vectors, queries = random(5_000, 48), random(q, 48, seed=1)
    codes = CertifiedCodes(table(vectors, metric), threads=1)
    assert_same(codes.search(queries, 10), nearest(queries, vectors, 10, metric=metric))
    assert codes.asked == q


@pytest.mark.parametrize("metric", THREE)
def test_codes_prove_nearly_all_queries_of_real_vectors(real_vectors: np.ndarray, metric: Metric) -> None:
    vectors, queries = real_vectors[:21_000], real_vectors[21_000:]
    codes = CertifiedCodes(table(vectors, metric), threads=1)
    assert_same(codes.search(queries, 10), nearest(queries, vectors, 10, metric=metric))
    assert codes.proved >= 0.98 * codes.asked


def test_a_query_that_is_not_proved_is_answered_in_float32() -> None:
    vectors = np.repeat(random(20, 16), 300, axis=0)  # each query has 300 rows at one distance
    codes = CertifiedCodes(table(vectors, Metric.COSINE), threads=1)
    queries = vectors[::300] + random(20, 16, seed=1) * np.float32(0.01)
    assert_same(codes.search(queries, 5), nearest(queries, vectors, 5, metric=Metric.COSINE))
    assert codes.proved == 0


@pytest.mark.parametrize("metric", THREE)
def test_the_error_bound_holds_for_every_pair(metric: Metric) -> None:
    # Lengths, an offset shared by all rows and outliers: where scales and centre matter.
    vectors = random(900, 40) * np.exp(random(900, 1, seed=1)) + np.float32(2)
    vectors[::50, 3] *= np.float32(30)
    queries = random(16, 40, seed=2) + np.float32(2)
    rows = table(vectors, metric)
    coded = certified._encoded(rows)
    product = certified.Products(960, 16, 40, threads=1)
    scorer = certified._Scorer(coded, rows, product, queries, norms_of(queries), None)
    out = np.empty((900, 16), np.float32)
    scorer.score(0, 900, out)
    asked = scorer.asked.astype(np.float64)
    wide = vectors.astype(np.float64)
    if metric is Metric.COSINE:
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    true = (wide - coded.centre) @ asked.T
    if metric is Metric.EUCLIDEAN:
        true -= 0.5 * (wide**2).sum(axis=1)[:, None]
    units = certified._coded_queries(scorer.asked, metric is Metric.EUCLIDEAN)[1]
    assert scorer.sure.all()
    assert (np.abs(out * units - true) <= 0.5 * scorer.slack * units).all()
    # The bound is of use: it is not many times what is seen.
    assert (scorer.slack * units).max() < 60 * np.abs(out * units - true).max()


def test_without_the_slack_neighbours_are_lost_so_it_is_what_keeps_them(
    monkeypatch: pytest.MonkeyPatch, real_vectors: np.ndarray
) -> None:
    vectors, queries = real_vectors[:8_000], real_vectors[21_000:21_256]
    codes = CertifiedCodes(table(vectors, Metric.COSINE), threads=1)
    init = certified._Scorer.__init__

    def careless(self: certified._Scorer, *given: object) -> None:
        init(self, *given)  # type: ignore[arg-type]
        self.slack[:] = 0.0

    monkeypatch.setattr(certified._Scorer, "__init__", careless)
    got = codes.search(queries, 10)
    assert (got.rows != nearest(queries, vectors, 10, metric=Metric.COSINE).rows).any()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("metric", THREE)
def test_only_rows_allowed_are_found(metric: Metric, share: float) -> None:
    vectors, queries = random(3_000, 24), random(20, 24, seed=1)
    allowed = np.random.default_rng(2).random(3_000) < share
    got = CertifiedCodes(table(vectors, metric), threads=1).search(queries, 7, allowed=allowed)
    assert_same(got, nearest(queries, vectors, 7, metric=metric, allowed=allowed))


@pytest.mark.parametrize("metric", THREE)
def test_zero_vectors_and_zero_queries_are_answered(metric: Metric) -> None:
    vectors, queries = random(300, 12), random(9, 12, seed=1)
    vectors[::3] = 0
    queries[4] = 0
    codes = CertifiedCodes(table(vectors, metric), threads=1)
    assert_same(codes.search(queries, 150), nearest(queries, vectors, 150, metric=metric))


@pytest.mark.parametrize("metric", THREE)
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e14])
def test_sizes_at_the_ends_of_float32_are_answered(metric: Metric, size: float) -> None:
    vectors, queries = random(400, 12) * np.float32(size), random(5, 12, seed=1)
    for asked in (queries, queries * np.float32(size)):
        codes = CertifiedCodes(table(vectors, metric), threads=1)
        assert_same(codes.search(asked, 9), nearest(asked, vectors, 9, metric=metric))


def test_vectors_too_long_or_of_another_metric_are_not_for_codes() -> None:
    assert can_certify(table(random(5, 3), Metric.DOT))
    assert not can_certify(table(random(5, 3) * np.float32(1e20), Metric.DOT))
    assert not can_certify(table(random(5, 3), Metric.HAMMING))


def test_threads_that_search_at_once_get_their_own_answers() -> None:
    vectors = random(3_000, 32)
    codes = CertifiedCodes(table(vectors, Metric.COSINE), threads=1)
    asked = [random(20 + 13 * i, 32, seed=i) for i in range(6)]
    got: dict[int, Neighbors] = {}

    def search(i: int) -> None:
        got[i] = codes.search(asked[i], 5)

    workers = [threading.Thread(target=search, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(6):
        assert_same(got[i], nearest(asked[i], vectors, 5, metric=Metric.COSINE))


def test_codes_take_a_byte_per_component_and_a_scale_per_vector() -> None:
    assert CertifiedCodes(table(random(100, 384), Metric.DOT), threads=1).size_bytes == 100 * (384 + 4)
