from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs the extra ann")

from vecmill.core.scan import Table
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest, normalize, norms_of
from vecmill.index import flat_faiss


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def table(vectors: np.ndarray, metric: Metric) -> Table:
    return Table(vectors, norms_of(vectors), metric)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
@pytest.mark.parametrize("k", [1, 10, 3_000])
def test_answers_equal_those_of_numpy(metric: Metric, k: int) -> None:
    vectors, queries = normalize(random(2_000, 24)), random(50, 24, seed=1)
    vectors[1_500:] = vectors[:500]  # ties
    queries[7] = 0
    got = flat_faiss.search(queries, table(vectors, metric), k)
    want = nearest(queries, vectors, k, metric=metric)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert got.complete == want.complete


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
def test_scores_float32_cannot_tell_apart_are_left_to_numpy(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(3)
    vectors = (1.0 + numbers.integers(-3, 4, (2_000, 300)) * 2.0**-23).astype(np.float32)
    queries = vectors[:4] * np.float32(1.5)
    asked = []

    def counted(*given: np.ndarray, **options: object) -> object:
        asked.append(len(given[0]))
        return nearest(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(flat_faiss, "nearest", counted)
    got = flat_faiss.search(queries, table(vectors, metric), 7)
    np.testing.assert_array_equal(got.rows, nearest(queries, vectors, 7, metric=metric).rows)
    assert asked == [4]


def test_cosine_of_vectors_of_other_lengths_is_not_served() -> None:
    assert flat_faiss.can_serve(table(normalize(random(9, 5)), Metric.COSINE))
    assert not flat_faiss.can_serve(table(random(9, 5), Metric.COSINE))
    assert not flat_faiss.can_serve(table(random(9, 5), Metric.HAMMING))
