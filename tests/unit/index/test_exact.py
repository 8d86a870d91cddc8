from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vecmill.core.errors import ConfigError, DimensionMismatchError, InputError, UnknownNameError
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest, normalize, norms_of
from vecmill.index import exact
from vecmill.index.base import Index
from vecmill.index.exact import ExactIndex, search_originals


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


class Pieces:
    """Originals in pieces of uneven size, that count what is fetched."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors
        self.fetched = 0

    @property
    def dimensions(self) -> int:
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def fetch(self, rows: np.ndarray) -> np.ndarray:
        self.fetched += len(rows)
        return self.vectors[rows]

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self.vectors), 333):
            yield start, self.vectors[start : start + 333]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.7])
def test_originals_in_pieces_give_the_answer_of_the_whole(metric: Metric, share: float | None) -> None:
    vectors, queries = random(1_000, 12).round(1), random(5, 12, seed=1).round(1)
    allowed = None if share is None else np.random.default_rng(2).random(1_000) < share
    originals = Pieces(vectors)
    got = search_originals(originals, queries, 9, metric=metric, allowed=allowed, norms=norms_of(vectors))
    want = nearest(queries, vectors, 9, metric=metric, allowed=allowed)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert got.complete == want.complete
    assert originals.fetched == (0 if share in (None, 0.7) else np.count_nonzero(allowed))


def test_originals_and_a_mask_of_another_length_raise() -> None:
    with pytest.raises(InputError, match=r"allowed has shape \(3,\).*each of the 4 vectors"):
        search_originals(Pieces(random(4, 2)), random(1, 2), 1, metric=Metric.DOT, allowed=np.ones(3, bool))


@pytest.mark.parametrize("engine", ["auto", "numpy", "int8", "faiss"])
@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
def test_every_engine_gives_the_same_bits(engine: str, metric: Metric) -> None:
    if engine == "faiss":
        pytest.importorskip("faiss", reason="needs the extra ann")
    vectors, queries = normalize(random(3_000, 20)), random(40, 20, seed=1)
    index = ExactIndex(vectors, metric=metric, engine=engine, threads=1)
    for allowed in (None, np.arange(3_000) % 3 > 0, np.arange(3_000) % 50 == 0):
        got = index.search(queries, 8, allowed=allowed)
        want = nearest(queries, vectors, 8, metric=metric, allowed=allowed)
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_array_equal(got.distances, want.distances)


def test_an_engine_that_does_not_know_the_metric_refuses() -> None:
    with pytest.raises(InputError, match=r"int8.*serves cosine, dot, euclidean.*not hamming"):
        ExactIndex(random(3, 2), metric="hamming", engine="int8")
    pytest.importorskip("faiss", reason="needs the extra ann")
    with pytest.raises(InputError, match=r"faiss.*not manhattan"):
        ExactIndex(random(3, 2), metric="manhattan", engine="faiss")


def test_unknown_engine_raises_naming_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        ExactIndex(random(3, 2), engine="int")


def test_auto_makes_codes_when_the_time_lost_without_them_would_have_paid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "are_fast", lambda: True)
    monkeypatch.setattr(exact, "_CODES_START", 0.0)
    monkeypatch.setattr(exact, "_CODES_PER_COMPONENT", 100 * exact._CODES_SAVE)  # pay after 100 queries
    vectors = random(2_000, 16)
    index = ExactIndex(vectors, threads=1)
    for _ in range(3):
        index.search(random(33, 16), 3)
    index.search(random(exact._LEAST_BATCH - 1, 16), 3)  # too few to count
    assert index.engine == "numpy"
    assert index.proved is None
    before = index.size_bytes
    index.search(random(33, 16), 3)
    assert index.engine == "int8"
    assert index.proved == 1.0
    assert index.size_bytes == before + 2_000 * (16 + 4)


def test_auto_gives_up_codes_that_prove_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "are_fast", lambda: True)
    monkeypatch.setattr(exact, "_CODES_START", 0.0)
    monkeypatch.setattr(exact, "_CODES_PER_COMPONENT", 0.0)
    monkeypatch.setattr(exact, "_JUDGED_AFTER", 20)
    index = ExactIndex(np.ones((2_000, 4), np.float32), threads=1)
    for _ in range(3):
        assert index.search(random(20, 4), 2).rows.tolist() == [[0, 1]] * 20
    assert index.engine == "numpy"


def test_auto_stays_with_numpy_where_the_processor_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "are_fast", lambda: False)
    monkeypatch.setattr(exact, "_CODES_START", 0.0)
    monkeypatch.setattr(exact, "_CODES_PER_COMPONENT", 0.0)
    index = ExactIndex(random(2_000, 4))
    index.search(random(50, 4), 2)
    assert index.engine == "numpy"


def test_auto_stays_with_numpy_where_products_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **options: object) -> None:
        raise ConfigError("8-bit products are not exact on this processor")

    monkeypatch.setattr(exact, "are_fast", lambda: True)
    monkeypatch.setattr(exact, "_CODES_START", 0.0)
    monkeypatch.setattr(exact, "_CODES_PER_COMPONENT", 0.0)
    monkeypatch.setattr(exact, "CertifiedCodes", refuse)
    index = ExactIndex(random(2_000, 4))
    assert index.search(random(50, 4), 2).complete
    assert index.engine == "numpy"
    with pytest.raises(ConfigError):
        ExactIndex(random(5, 4), engine="int8")


def test_threads_granted_to_blas_are_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert ExactIndex(random(3, 2))._threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert ExactIndex(random(3, 2))._threads == 0
    assert ExactIndex(random(3, 2), threads=3)._threads == 3


def test_auto_stays_with_numpy_where_many_of_the_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "are_fast", lambda: True)
    monkeypatch.setattr(exact, "_CODES_START", 0.0)
    monkeypatch.setattr(exact, "_CODES_PER_COMPONENT", 0.0)
    index = ExactIndex(random(2_560, 4))
    index.search(random(50, 4), 11)
    assert index.engine == "numpy"
    index.search(random(50, 4), 10)
    assert index.engine == "int8"
