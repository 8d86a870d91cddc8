from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import Metric, Neighbors
from vecmill.core.vectors import check, distances, merged, nearest, normalize, norms_of, shorten


def random(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_normalize_gives_unit_length_and_leaves_the_input_alone() -> None:
    vectors = random(50, 7) * 100
    before = vectors.copy()
    out = normalize(vectors)
    np.testing.assert_allclose(np.linalg.norm(out.astype(np.float64), axis=1), 1.0, atol=1e-7)
    np.testing.assert_array_equal(vectors, before)
    assert out.dtype == np.float32


def test_normalize_keeps_zero_rows_zero() -> None:
    vectors = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_array_equal(normalize(vectors), np.array([[0, 0], [0.6, 0.8]], np.float32))


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e20, 3e38])
def test_normalize_works_where_float32_squares_overflow_or_vanish(size: float) -> None:
    out = normalize(np.array([[size, size]], np.float32))
    np.testing.assert_allclose(out, np.sqrt(0.5), rtol=1e-6)


def test_normalize_of_no_vectors_is_no_vectors() -> None:
    assert normalize(np.empty((0, 5), np.float32)).shape == (0, 5)


def test_shorten_keeps_leading_components_at_unit_length() -> None:
    out = shorten(np.array([[3, 4, 100]], np.float32), 2)
    np.testing.assert_allclose(out, [[0.6, 0.8]], rtol=1e-6)
    assert out.flags.c_contiguous


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_shorten_to_an_impossible_size_raises_naming_both(dimensions: int) -> None:
    with pytest.raises(InputError, match=rf"3 dimensions to {dimensions}; choose from 1 to 3"):
        shorten(random(2, 3), dimensions)


def test_check_returns_the_same_array_when_nothing_is_to_do() -> None:
    vectors = random(3, 4)
    assert check(vectors) is vectors


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], np.float64),
        np.asfortranarray(np.array([[1, 2], [3, 4]], np.float32)),
        np.array([[1, 2], [3, 4]], ">f4"),
        np.array([[1, 2], [3, 4]], np.float16),
    ],
)
def test_check_converts_to_float32_in_c_order(given: object) -> None:
    out = check(given)  # type: ignore[arg-type]
    assert out.dtype == np.dtype("=f4")
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 2.0], r"two axes \(n, d\), not shape \(2,\)"),
        ([[1.0], [2.0, 3.0]], "table of numbers"),
        ([["a", "b"]], "table of numbers"),
        ([[True, False]], "table of numbers"),
        ([[1j, 2j]], "table of numbers"),
        (np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]]), "row 1 and 1 more of 3 holds NaN"),
        (np.array([[1e300]]), "row 0 of 1 holds NaN or a number beyond float32"),
    ],
)
def test_check_says_what_is_wrong(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(given)  # type: ignore[arg-type]


def test_check_names_both_sizes_when_dimensions_differ() -> None:
    with pytest.raises(DimensionMismatchError, match="queries have 3 dimensions, not the 4 required"):
        check(random(2, 3), dimensions=4, what="queries")


def test_norms_of_finds_nan_where_the_sum_cannot_tell() -> None:
    vectors = random(5, 3)
    vectors[2, 1] = np.nan
    with pytest.raises(InputError, match="row 2 of 5"):
        norms_of(vectors)


def test_nan_in_queries_is_told_from_nan_in_vectors() -> None:
    good, bad = random(4, 3), random(4, 3)
    bad[1, 2] = np.nan
    with pytest.raises(InputError, match="queries: row 1 of 4"):
        nearest(bad, good, 1, metric=Metric.COSINE)
    with pytest.raises(InputError, match="vectors: row 1 of 4"):
        nearest(good, bad, 1, metric=Metric.COSINE)


def test_distances_are_those_of_the_definition() -> None:
    queries, vectors = np.array([[1, 0]], np.float32), np.array([[2, 0], [0, 3], [-1, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(distances(queries, vectors, metric=Metric.COSINE), [[0, 1, 2, 1]])
    np.testing.assert_array_equal(distances(queries, vectors, metric=Metric.DOT), [[-2, 0, 1, 0]])
    np.testing.assert_allclose(
        distances(queries, vectors, metric=Metric.EUCLIDEAN), [[1, np.sqrt(10), 2, 1]], rtol=1e-7
    )


@pytest.mark.parametrize("metric", list(Metric))
def test_nearest_equals_sorting_all_distances_of_a_larger_table(metric: Metric) -> None:
    vectors = random(20_000, 24, seed=1)
    vectors[15_000:] = vectors[:5_000]  # every fourth row twice
    queries = np.concatenate([vectors[:20], random(280, 24, seed=2)])
    got = nearest(queries, vectors, 10, metric=metric)
    table = distances(queries, vectors, metric=metric)
    order = np.argsort(table, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(got.rows, order)
    np.testing.assert_array_equal(got.distances, np.take_along_axis(table, order, axis=1))


@pytest.mark.parametrize("metric", list(Metric))
def test_nearly_equal_scores_are_told_apart_below_float32_rounding(metric: Metric) -> None:
    # All rows lie within a few float32 steps of each other: the product's rounding error hides their order.
    numbers = np.random.default_rng(3)
    vectors = (1.0 + numbers.integers(-3, 4, (5_000, 300)) * 2.0**-23).astype(np.float32)
    queries = vectors[:4] * np.float32(1.5)
    got = nearest(queries, vectors, 7, metric=metric)
    table = distances(queries, vectors, metric=metric)
    np.testing.assert_array_equal(got.rows, np.argsort(table, axis=1, kind="stable")[:, :7])


def test_euclidean_distance_of_nearly_equal_long_vectors_does_not_cancel() -> None:
    vectors = np.full((3, 4), 1000, np.float32)
    vectors[1, 0] += np.float32(2.0**-13)
    got = nearest(vectors[:1], vectors, 3, metric=Metric.EUCLIDEAN)
    assert got.rows.tolist() == [[0, 2, 1]]
    assert got.distances.tolist() == [[0.0, 0.0, 2.0**-13]]


def test_a_vector_is_at_cosine_distance_zero_from_itself_and_its_multiples() -> None:
    vectors = random(200, 384)
    got = nearest(vectors * np.float32(3), vectors, 1, metric=Metric.COSINE)
    np.testing.assert_array_equal(got.rows[:, 0], np.arange(200))
    np.testing.assert_array_equal(got.distances[:, 0], 0.0)


@pytest.mark.parametrize(("metric", "distance"), [(Metric.COSINE, 1.0), (Metric.DOT, 0.0)])
def test_a_zero_query_is_equally_far_from_everything(metric: Metric, distance: float) -> None:
    got = nearest(np.zeros((1, 3), np.float32), random(100, 3), 4, metric=metric)
    assert got.rows.tolist() == [[0, 1, 2, 3]]
    assert got.distances.tolist() == [[distance] * 4]


def test_all_rows_equal_gives_the_lowest_rows() -> None:
    vectors = np.ones((30_000, 8), np.float32)
    got = nearest(np.ones((3, 8), np.float32), vectors, 5, metric=Metric.COSINE)
    assert got.rows.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_k_above_n_gives_n_and_says_incomplete() -> None:
    got = nearest(random(2, 3), random(4, 3), 9, metric=Metric.DOT)
    assert got.rows.shape == (2, 4)
    assert not got.complete
    assert nearest(random(2, 3), random(4, 3), 4, metric=Metric.DOT).complete


def test_no_queries_and_no_vectors_are_answered_with_empty_tables() -> None:
    assert nearest(random(0, 3), random(4, 3), 2, metric=Metric.COSINE).rows.shape == (0, 2)
    empty = nearest(random(2, 3), random(0, 3), 2, metric=Metric.COSINE)
    assert empty.rows.shape == (2, 0)
    assert not empty.complete


def test_k_below_one_raises() -> None:
    with pytest.raises(InputError, match="k is 0"):
        nearest(random(1, 3), random(4, 3), 0, metric=Metric.COSINE)


def test_different_widths_raise_naming_both() -> None:
    with pytest.raises(DimensionMismatchError, match="queries have 3 dimensions, the vectors searched 4"):
        nearest(random(1, 3), random(4, 4), 1, metric=Metric.COSINE)


def test_memory_stays_far_below_the_table_of_all_scores() -> None:
    vectors, queries = random(60_000, 8), random(2_000, 8)
    tracemalloc.start()
    nearest(queries, vectors, 10, metric=Metric.COSINE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * 4 * len(queries) * len(vectors)


def test_caller_arrays_are_not_modified() -> None:
    queries, vectors = random(5, 6), random(300, 6)
    copies = queries.copy(), vectors.copy()
    for metric in Metric:
        nearest(queries, vectors, 3, metric=metric)
    np.testing.assert_array_equal(queries, copies[0])
    np.testing.assert_array_equal(vectors, copies[1])


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 0.999])
def test_only_rows_allowed_are_found(metric: Metric, share: float) -> None:
    vectors, queries = random(4_000, 9).round(1), random(6, 9, seed=1).round(1)
    allowed = np.random.default_rng(2).random(4_000) < share
    got = nearest(queries, vectors, 10, metric=metric, allowed=allowed)
    table = distances(queries, vectors, metric=metric)[:, allowed]
    order = np.argsort(table, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(got.rows, np.flatnonzero(allowed)[order])
    np.testing.assert_array_equal(got.distances, np.take_along_axis(table, order, axis=1))
    assert got.complete == (np.count_nonzero(allowed) >= 10)


def test_rows_allowed_that_adjoin_are_not_copied() -> None:
    vectors = random(50_000, 64)
    allowed = np.zeros(50_000, bool)
    allowed[1_000:49_000] = True
    norms = norms_of(vectors)
    tracemalloc.start()
    nearest(vectors[:1], vectors, 3, metric=Metric.DOT, norms=norms, allowed=allowed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * vectors.nbytes


@pytest.mark.parametrize(
    "allowed", [np.ones(3, bool), np.ones((4, 1), bool), np.ones(4, np.int64), np.arange(4)]
)
def test_a_mask_of_another_shape_or_kind_raises(allowed: np.ndarray) -> None:
    with pytest.raises(InputError, match="one bool for each of the 4 vectors"):
        nearest(random(1, 3), random(4, 3), 1, metric=Metric.DOT, allowed=allowed)


def test_norms_of_other_vectors_raise() -> None:
    with pytest.raises(InputError, match="5 norms for 4 vectors"):
        nearest(random(1, 3), random(4, 3), 1, metric=Metric.DOT, norms=norms_of(random(5, 3)))


@pytest.mark.parametrize("metric", list(Metric))
def test_any_layout_and_dtype_gives_the_same_answer(metric: Metric, tmp_path: Path) -> None:
    vectors, queries = random(700, 10), random(4, 10, seed=1)
    want = nearest(queries, vectors, 6, metric=metric)
    wide = np.repeat(vectors, 2, axis=1)
    np.save(tmp_path / "vectors.npy", vectors)
    read_only = vectors.copy()
    read_only.setflags(write=False)
    for given in (
        np.asfortranarray(vectors),
        wide[:, ::2],
        np.repeat(vectors, 2, axis=0)[::2],
        vectors.astype(np.float64),
        vectors.astype(">f4"),
        read_only,
        np.load(tmp_path / "vectors.npy", mmap_mode="r"),
    ):
        got = nearest(queries, given, 6, metric=metric)
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_array_equal(got.distances, want.distances)


@pytest.mark.parametrize("metric", list(Metric))
def test_what_is_not_a_table_of_finite_numbers_raises(metric: Metric) -> None:
    good, bad = random(3, 2), random(3, 2)
    bad[2, 1] = np.inf
    with pytest.raises(InputError, match="vectors: row 2 of 3"):
        nearest(good, bad, 1, metric=metric)
    with pytest.raises(InputError, match="queries: row 2 of 3"):
        nearest(bad, good, 1, metric=metric)
    with pytest.raises(InputError, match="two axes"):
        nearest(good[0], good, 1, metric=metric)


def test_merging_pieces_keeps_ties_in_row_order() -> None:
    left = Neighbors(np.array([[3, 1]]), np.array([[0.5, 1.0]], np.float32), complete=True)
    right = Neighbors(np.array([[2, 0]]), np.array([[0.5, 1.0]], np.float32), complete=True)
    got = merged([left, right], 3)
    assert got.rows.tolist() == [[2, 3, 0]]
    assert got.distances.tolist() == [[0.5, 0.5, 1.0]]
    assert got.complete
    assert not merged([left, right], 5).complete


def test_merging_answers_to_different_queries_raises() -> None:
    one = Neighbors(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32), complete=True)
    two = Neighbors(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32), complete=True)
    with pytest.raises(InputError, match=r"\[1, 2\] queries"):
        merged([one, two], 1)
    with pytest.raises(InputError, match="0 answers"):
        merged([], 1)
    with pytest.raises(InputError, match="k is 0"):
        merged([one], 0)
