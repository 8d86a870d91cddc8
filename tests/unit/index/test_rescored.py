from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.errors import DimensionMismatchError, InputError, UnknownNameError
from vecmill.core.measure import recall
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Precision, Vectors
from vecmill.core.vectors import nearest
from vecmill.index import rescored as rescored_module
from vecmill.index.base import Index
from vecmill.index.codes import Codes, CodeSpec, fit
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex

SIGN_METRICS = (Metric.HAMMING, Metric.JACCARD)


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


class Fixed:
    """Names rows as it is told to; remembers what it was asked for."""

    def __init__(self, rows: np.ndarray, n: int, dimensions: int) -> None:
        self._rows = rows
        self._n = n
        self.dimensions = dimensions
        self.size_bytes = 0
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self._n

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        self.asked.append(count)
        out = np.full((len(queries), count), -1, np.int64)
        named = self._rows[: len(queries), :count]
        out[:, : named.shape[1]] = named
        return out


def equal(got: Neighbors, want: Neighbors) -> None:
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert got.complete == want.complete


def coded(vectors: np.ndarray, metric: Metric, spec: CodeSpec, oversample: float) -> RescoredIndex:
    codec = fit(vectors, spec, metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric)
    return RescoredIndex(codes, ArrayOriginals(vectors), metric=metric, oversample=oversample)


@pytest.mark.parametrize("metric", list(Metric))
def test_generous_candidates_give_the_exact_answer(metric: Metric) -> None:
    vectors, queries = random(1000, 40), random(30, 40, seed=1)
    precision = Precision.BINARY if metric in SIGN_METRICS else Precision.INT8
    index: Index = coded(vectors, metric, CodeSpec(precision), 20.0)
    equal(index.search(queries, 5), nearest(queries, vectors, 5, metric=metric))
    assert (len(index), index.dimensions, index.metric) == (1000, 40, metric)
    allowed = np.random.default_rng(2).random(1000) < 0.6
    equal(
        index.search(queries, 5, allowed=allowed),
        nearest(queries, vectors, 5, metric=metric, allowed=allowed),
    )


@pytest.mark.parametrize("metric", SIGN_METRICS)
@pytest.mark.parametrize("engine", ["numpy", "auto"])
def test_metrics_of_signs_need_no_oversampling(metric: Metric, engine: str) -> None:
    vectors, queries = random(2000, 33), random(40, 33, seed=1)
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric, engine=engine)
    index = RescoredIndex(codes, ArrayOriginals(vectors), metric=metric, oversample=1.0)
    equal(index.search(queries, 10), nearest(queries, vectors, 10, metric=metric))


@pytest.mark.parametrize("metric", list(Metric))
def test_distances_are_those_of_the_originals_whatever_was_named(metric: Metric) -> None:
    vectors, queries = random(400, 24), random(20, 24, seed=1)
    rows = np.stack([np.random.default_rng(row).permutation(400)[:50] for row in range(20)])
    index = RescoredIndex(Fixed(rows, 400, 24), ArrayOriginals(vectors), metric=metric, oversample=10.0)
    got = index.search(queries, 5)
    for at in range(20):
        allowed = np.zeros(400, np.bool_)
        allowed[rows[at]] = True
        want = nearest(queries[at : at + 1], vectors, 5, metric=metric, allowed=allowed)
        np.testing.assert_array_equal(got.rows[at : at + 1], want.rows)
        np.testing.assert_array_equal(got.distances[at : at + 1], want.distances)


def test_equal_distances_are_in_row_order() -> None:
    vectors = np.repeat(random(10, 8), 20, axis=0)
    rows = np.random.default_rng(0).permutation(np.arange(20, 60))[None]
    index = RescoredIndex(Fixed(rows, 200, 8), ArrayOriginals(vectors), metric="cosine", oversample=4.0)
    got = index.search(vectors[20:21], 10)
    assert got.rows.tolist() == [list(range(20, 30))]


@pytest.mark.parametrize("precision", [Precision.BINARY, Precision.PQ, Precision.INT8])
def test_more_oversampling_never_finds_less(precision: Precision) -> None:
    vectors, queries = random(3000, 32), random(50, 32, seed=1)
    true = nearest(queries, vectors, 10, metric=Metric.COSINE)
    reached = [
        recall(
            true.distances,
            coded(vectors, Metric.COSINE, CodeSpec(precision), oversample).search(queries, 10).distances,
            10,
            epsilon=0.0,
        )
        for oversample in (1, 1.5, 2, 4, 8, 16, 32, 100, 300)
    ]
    assert reached == sorted(reached)
    assert reached[0] < reached[-1] == 1.0


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
def test_candidates_float32_cannot_tell_apart_are_told_apart(metric: Metric) -> None:
    vectors = random(1, 64) + random(600, 64, seed=1) * np.float32(1e-6)
    rows = np.tile(np.arange(300), (20, 1))
    queries = random(20, 64, seed=2) + 3.0 * vectors[:1]
    index = RescoredIndex(Fixed(rows, 600, 64), ArrayOriginals(vectors), metric=metric, oversample=60.0)
    equal(index.search(queries, 5), nearest(queries, vectors[:300], 5, metric=metric))


def test_k_times_oversample_rounded_up_are_asked_for() -> None:
    rows = np.arange(300)[None]
    candidates = Fixed(rows, 1000, 4)
    index = RescoredIndex(candidates, ArrayOriginals(random(1000, 4)), metric="dot", oversample=2.5)
    index.search(random(1, 4), 3)
    assert candidates.asked == [8]


def test_few_allowed_rows_are_compared_one_by_one() -> None:
    vectors, queries = random(2000, 8), random(6, 8, seed=1)
    candidates = Fixed(np.zeros((6, 1), np.int64), 2000, 8)
    index = RescoredIndex(candidates, ArrayOriginals(vectors), metric="euclidean", oversample=2.0)
    for share, k in ((0.01, 10), (0.3, 100), (0.0005, 10)):
        allowed = np.random.default_rng(3).random(2000) < share
        want = nearest(queries, vectors, k, metric=Metric.EUCLIDEAN, allowed=allowed)
        equal(index.search(queries, k, allowed=allowed), want)
    assert candidates.asked == []


def test_a_query_with_too_few_candidates_is_answered_exactly_and_only_that_one() -> None:
    vectors, queries = random(500, 8), random(3, 8, seed=1)
    rows = np.array([np.arange(30), [3, 4] + [-1] * 28, np.arange(30)])
    index = RescoredIndex(Fixed(rows, 500, 8), ArrayOriginals(vectors), metric="cosine", oversample=3.0)
    got, want = index.search(queries, 10), nearest(queries, vectors, 10, metric=Metric.COSINE)
    np.testing.assert_array_equal(got.rows[1], want.rows[1])
    assert (got.rows[[0, 2]] < 30).all()


def test_a_zero_query_is_equally_far_from_all_rows() -> None:
    vectors = random(500, 8)
    query = np.zeros((1, 8), np.float32)
    for metric in (Metric.COSINE, Metric.DOT):
        anything = Fixed(np.arange(100, 110)[None], 500, 8)
        index = RescoredIndex(anything, ArrayOriginals(vectors), metric=metric, oversample=2.0)
        equal(index.search(query, 3), nearest(query, vectors, 3, metric=metric))
        got = coded(vectors, metric, CodeSpec(Precision.BINARY), 2.0).search(query, 3)
        equal(got, nearest(query, vectors, 3, metric=metric))


def test_k_above_what_may_be_found_gives_all_and_says_incomplete() -> None:
    vectors = random(30, 4)
    index = coded(vectors, Metric.COSINE, CodeSpec(Precision.BINARY), 1.0)
    got = index.search(vectors[:2], 100)
    assert got.rows.shape == (2, 30)
    assert not got.complete
    allowed = np.zeros(30, np.bool_)
    got = index.search(vectors[:2], 1, allowed=allowed)
    assert got.rows.shape == (2, 0)
    assert not got.complete
    assert index.search(vectors[:0], 3).rows.shape == (0, 3)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN])
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_sizes_float32_cannot_multiply_are_ordered_all_the_same(metric: Metric, size: float) -> None:
    vectors = random(400, 8)
    vectors[::2] *= np.float32(size)
    vectors[5] = 0.0
    queries = random(10, 8, seed=1) * np.float32(size)
    rows = np.tile(np.arange(200), (10, 1))
    index = RescoredIndex(Fixed(rows, 400, 8), ArrayOriginals(vectors), metric=metric, oversample=20.0)
    want = nearest(queries, vectors[:200], 10, metric=metric)
    equal(index.search(queries, 10), want)


def test_mapped_half_precision_originals_decide_as_their_float32_would(tmp_path: Path) -> None:
    halves = random(600, 16).astype(np.float16)
    np.save(tmp_path / "vectors.npy", halves)
    originals = ArrayOriginals(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    vectors, queries = halves.astype(np.float32), random(9, 16, seed=1)
    codec = fit(vectors, CodeSpec(Precision.INT8), metric="cosine")
    codes = Codes(codec, codec.encode(vectors), metric="cosine")
    index = RescoredIndex(codes, originals, metric="cosine", oversample=5.0)
    equal(index.search(queries, 5), nearest(queries, vectors, 5, metric=Metric.COSINE))


def test_many_queries_are_answered_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random(2000, 64)
    queries = np.tile(vectors[:200], (5, 1))
    rows = np.tile(np.arange(500), (1000, 1))
    index = RescoredIndex(Fixed(rows, 2000, 64), ArrayOriginals(vectors), metric="cosine", oversample=50.0)
    want = index.search(queries[:200], 10)
    monkeypatch.setattr(rescored_module, "_FETCHED", 1 << 18)  # 1 MiB of float32
    tracemalloc.start()
    got = index.search(queries, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # at once, the candidates alone are 128 MB
    np.testing.assert_array_equal(got.rows[800:], want.rows)


def test_candidates_are_named_for_many_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescored_module, "_FETCHED", 1)  # the originals of one query at a time
    vectors = random(600, 16)
    sizes = list[int]()

    class Counted(Codes):
        def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
            sizes.append(len(queries))
            return super().candidates(queries, count, allowed=allowed)

    codec = fit(vectors, CodeSpec(Precision.INT8), metric=Metric.COSINE)
    counted = Counted(codec, codec.encode(vectors), metric=Metric.COSINE)
    index = RescoredIndex(counted, ArrayOriginals(vectors), metric=Metric.COSINE, oversample=4.0)
    found = index.search(vectors[:300], 5)
    assert sizes == [256, 44]  # codes are decoded twice, not 300 times
    equal(found, nearest(vectors[:300], vectors, 5, metric=Metric.COSINE))


def test_parts_that_do_not_belong_together_raise() -> None:
    candidates, originals = Fixed(np.zeros((1, 1), np.int64), 10, 4), ArrayOriginals(random(10, 4))
    with pytest.raises(InputError, match="10 rows are known by codes, but there are 11"):
        RescoredIndex(candidates, ArrayOriginals(random(11, 4)), metric="dot", oversample=1.0)
    with pytest.raises(DimensionMismatchError, match="take 4 dimensions, originals have 5"):
        RescoredIndex(candidates, ArrayOriginals(random(10, 5)), metric="dot", oversample=1.0)
    with pytest.raises(InputError, match=r"oversample is 0\.5"):
        RescoredIndex(candidates, originals, metric="dot", oversample=0.5)
    with pytest.raises(InputError, match="oversample is nan"):
        RescoredIndex(candidates, originals, metric="dot", oversample=float("nan"))
    with pytest.raises(UnknownNameError, match="did you mean 'dot'"):
        RescoredIndex(candidates, originals, metric="dott", oversample=1.0)


def test_wrong_queries_raise_saying_what_would_be_right() -> None:
    index = coded(random(50, 4), Metric.COSINE, CodeSpec(Precision.INT8), 2.0)
    with pytest.raises(DimensionMismatchError, match="queries have 3 dimensions, the index 4"):
        index.search(random(1, 3), 1)
    with pytest.raises(InputError, match="k is 0"):
        index.search(random(1, 4), 0)
    with pytest.raises(InputError, match="queries: row 1 of 2 holds NaN"):
        index.search(np.array([[0, 0, 0, 1], [0, 0, np.inf, 0]], np.float32), 1)
    with pytest.raises(InputError, match="one bool for each of the 50"):
        index.search(random(1, 4), 1, allowed=np.ones(49, np.bool_))
    with pytest.raises(InputError, match="dtype int64"):
        index.search(random(1, 4), 1, allowed=np.ones(50, np.int64))


def test_real_vectors_come_back_as_exact_search_finds_them(real_vectors: np.ndarray) -> None:
    vectors, queries = real_vectors[:-1000], real_vectors[-1000:]
    true = nearest(queries, vectors, 10, metric=Metric.COSINE)
    reached = {}
    for precision, oversample in (("int8", 2.0), ("binary", 20.0), ("pq", 20.0), ("float16", 2.0)):
        index = coded(vectors, Metric.COSINE, CodeSpec(Precision(precision)), oversample)
        got = index.search(queries, 10)
        reached[precision] = recall(true.distances, got.distances, 10, epsilon=1e-6)
    assert reached["int8"] >= 0.999
    assert reached["float16"] >= 0.999
    assert reached["binary"] >= 0.998
    assert reached["pq"] >= 0.99


def test_unlike_queries_find_about_as_much_alone_as_together() -> None:
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((300, 128), np.float32)
    vectors = centres[rng.integers(0, 300, 20_000)] + np.float32(0.7) * rng.standard_normal(
        (20_000, 128), "f4"
    )
    queries = rng.standard_normal((150, 128), np.float32)
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=Metric.COSINE)
    codes = Codes(codec, codec.encode(vectors), metric=Metric.COSINE, engine="numpy")
    index = RescoredIndex(codes, ArrayOriginals(vectors), metric=Metric.COSINE, oversample=6.0)
    truth = nearest(queries, vectors, 10, metric=Metric.COSINE).distances
    together = recall(truth, index.search(queries, 10).distances, 10, epsilon=0.0)
    one_by_one = [index.search(query[np.newaxis], 10).distances[0] for query in queries]
    assert recall(truth, np.array(one_by_one), 10, epsilon=0.0) > together - 0.04


class Growing(Fixed):
    """Names the rows from 0 on; remembers how many queries asked for how many."""

    def __init__(self, n: int, dimensions: int) -> None:
        super().__init__(np.empty((0, 0), np.int64), n, dimensions)
        self.calls: list[tuple[int, int]] = []

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        self.calls.append((len(queries), count))
        return np.tile(np.arange(count), (len(queries), 1))


def on_a_line(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)[:, None]


def test_a_query_far_from_what_is_found_is_searched_harder_until_nothing_changes_and_only_that_one() -> None:
    growing = Growing(100_000, 1)
    index = RescoredIndex(
        growing, ArrayOriginals(on_a_line(100_000)), metric="euclidean", oversample=2.0, far=(0.5, 1.5)
    )
    got = index.search(np.array([[3.0], [50.0], [5.0]], np.float32), 2)
    assert growing.calls == [(3, 4), (2, 16), (2, 64), (1, 256)]
    assert got.rows.tolist() == [[3, 2], [50, 49], [5, 4]]


def test_a_query_far_from_everything_costs_at_most_one_exact_search_more() -> None:
    growing, vectors = Growing(3000, 1), on_a_line(3000)
    far = np.array([[4000.0], [2.0]], np.float32)
    index = RescoredIndex(
        growing, ArrayOriginals(vectors), metric="euclidean", oversample=2.0, far=(0.5, 1.5)
    )
    equal(index.search(far, 2), nearest(far, vectors, 2, metric=Metric.EUCLIDEAN))
    assert growing.calls == [(2, 4), (1, 16), (1, 64)]


def test_other_k_are_compared_at_the_ranks_that_were_measured() -> None:
    vectors, query = on_a_line(100_000), np.full((1, 1), 8.4, np.float32)

    def calls(k: int, *far: float) -> int:
        growing = Growing(100_000, 1)
        originals = ArrayOriginals(vectors)
        RescoredIndex(growing, originals, metric="euclidean", oversample=20.0, far=far).search(query, k)
        return len(growing.calls)

    assert calls(1, 0.45, 0.1) == 1
    assert calls(1, 0.35, 9.0) == 2
    assert calls(5, 0.45, 0.65) == 1
    assert calls(5, 0.45, 0.55) == 2
    assert calls(5) == 1


def test_harder_candidates_are_asked_with_how_many_times_the_effort() -> None:
    plain, better = Growing(100_000, 1), Growing(100_000, 1)
    times: list[int] = []

    def harder(effort: int) -> Growing:
        times.append(effort)
        return better

    index = RescoredIndex(
        plain,
        ArrayOriginals(on_a_line(100_000)),
        metric="euclidean",
        oversample=2.0,
        far=(0.5,),
        harder=harder,
    )
    assert index.search(np.full((1, 1), 20.0, np.float32), 2).rows.tolist() == [[20, 19]]
    assert times == [4, 16, 64]
    assert (plain.calls, better.calls) == ([(1, 4)], [(1, 16), (1, 64), (1, 256)])
