"""`nearest` equals brute force in float64, ties included, however the work is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vecmill.core import distances as exact
from vecmill.core import scan, scores
from vecmill.core import vectors as module
from vecmill.core.scan import Table
from vecmill.core.types import Metric, Neighbors
from vecmill.core.vectors import distances, merged, nearest, normalize, norms_of
from vecmill.index.certified import CertifiedCodes, can_certify

METRICS = st.sampled_from(list(Metric))


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int, metric: Metric) -> Neighbors:
    """Compare every pair in float64 and sort everything."""
    a, b = queries.astype(np.float64)[:, None, :], vectors.astype(np.float64)[None, :, :]
    dots = (a * b).sum(axis=2)
    one, other = a > 0, b > 0
    match metric:
        case Metric.DOT:
            exact = 0.0 - dots
        case Metric.EUCLIDEAN:
            exact = np.sqrt(((a - b) ** 2).sum(axis=2))
        case Metric.MANHATTAN:
            exact = np.abs(a - b).sum(axis=2)
        case Metric.CHEBYSHEV:
            exact = np.abs(a - b).max(axis=2)
        case Metric.HAMMING:
            exact = (one != other).sum(axis=2).astype(np.float64)
        case Metric.JACCARD:
            either = (one | other).sum(axis=2)
            exact = np.where(either > 0, 1.0 - (one & other).sum(axis=2) / np.maximum(either, 1), 0.0)
        case Metric.COSINE:
            lengths = np.sqrt((a * a).sum(axis=2)) * np.sqrt((b * b).sum(axis=2))
            cosines = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1.0), 0.0)
            exact = np.round((1.0 - cosines) * 2.0**44) / 2.0**44
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    order = np.argsort(rounded, axis=1, kind="stable")[:, :k]
    return Neighbors(order, np.take_along_axis(rounded, order, axis=1), complete=k <= len(vectors))


def assert_equal(got: Neighbors, want: Neighbors) -> None:
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.distances, want.distances)
    assert got.complete == want.complete
    assert got.rows.dtype == np.int64
    assert got.distances.dtype == np.float32


@st.composite
def small_numbers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw vectors of few small whole numbers: sums are exact, duplicates and ties everywhere."""
    n, q, d = draw(st.integers(1, 60)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    largest = draw(st.integers(0, 3))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = numbers.integers(-largest, largest + 1, (n, d)).astype(np.float32)
    queries = numbers.integers(-largest, largest + 1, (q, d)).astype(np.float32)
    return queries, vectors, draw(st.integers(1, n + 3))


@given(case=small_numbers(), metric=METRICS)
@settings(max_examples=300, deadline=None)
def test_ties_are_answered_as_brute_force_does(
    case: tuple[np.ndarray, np.ndarray, int], metric: Metric
) -> None:
    queries, vectors, k = case
    assert_equal(nearest(queries, vectors, k, metric=metric), brute_force(queries, vectors, k, metric))


@given(case=small_numbers(), metric=METRICS, seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_small_blocks_give_the_same_answer(
    case: tuple[np.ndarray, np.ndarray, int], metric: Metric, seed: int
) -> None:
    queries, vectors, k = case
    numbers = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERY_BLOCK", int(numbers.integers(1, 4)))
        patch.setattr(scan, "_GROUP", int(numbers.integers(1, 5)))
        patch.setattr(scan, "_MIN_TILE", int(numbers.integers(1, 9)))
        patch.setattr(scan, "_TILE_SCORES", int(numbers.integers(1, 40)))
        patch.setattr(scan, "_MAX_PENDING", int(numbers.integers(1, 40)))
        patch.setattr(scores, "_LOOP_CELLS", int(numbers.integers(1, 40)))
        patch.setattr(scores, "_FEW_QUERIES", int(numbers.integers(1, 4)))
        patch.setattr(exact, "_EXACT_COMPONENTS", int(numbers.integers(1, 40)))
        got = nearest(queries, vectors, k, metric=metric)
    assert_equal(got, brute_force(queries, vectors, k, metric))


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-40, 1e-25, 1e-12, 1.0, 1e12, 1e19, 1e37]),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
    copies=st.integers(1, 4),
    metric=METRICS,
)
@example(seed=0, scale=1e37, offset=1.0, copies=4, metric=Metric.DOT)
@example(seed=0, scale=1e-40, offset=0.0, copies=2, metric=Metric.COSINE)
@settings(max_examples=150, deadline=None)
def test_real_numbers_of_any_size_are_answered_as_brute_force_does(
    seed: int, scale: float, offset: float, copies: int, metric: Metric
) -> None:
    numbers = np.random.default_rng(seed)
    n, d = 400, 24
    limit = np.finfo(np.float32).max / 4
    table = np.clip((numbers.normal(size=(n, d)) + offset) * scale, -limit, limit).astype(np.float32)
    vectors = np.repeat(table[: n // copies], copies, axis=0)
    vectors = vectors[numbers.permutation(len(vectors))]
    queries = np.concatenate([vectors[:2], table[-2:]])
    got, want = nearest(queries, vectors, 10, metric=metric), brute_force(queries, vectors, 10, metric)
    # Sums in another order differ in the last bit of float64, which can move a rounded distance by one step.
    np.testing.assert_allclose(got.distances, want.distances, rtol=3e-7, atol=2.0**-44)
    same = got.distances == want.distances
    assert np.all(got.rows[same] == want.rows[same]) or copies > 1 or metric is Metric.COSINE
    for row, near in zip(got.rows, got.distances, strict=True):
        assert len(set(row.tolist())) == 10
        assert all(x < y for x, y, a, b in zip(row, row[1:], near, near[1:], strict=False) if a == b)


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 59), metric=METRICS)
@settings(max_examples=60, deadline=None)
def test_searching_two_halves_and_merging_equals_searching_the_whole(
    seed: int, cut: int, metric: Metric
) -> None:
    numbers = np.random.default_rng(seed)
    vectors = numbers.normal(size=(60, 8)).astype(np.float32).round(1)
    queries = numbers.normal(size=(3, 8)).astype(np.float32).round(1)
    whole = nearest(queries, vectors, 5, metric=metric)
    left = nearest(queries, vectors[:cut], 5, metric=metric)
    right = nearest(queries, vectors[cut:], 5, metric=metric)
    assert_equal(merged([left, replace(right, rows=right.rows + cut)], 5), whole)


@given(case=small_numbers(), metric=METRICS, seed=st.integers(0, 99), share=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_a_mask_gives_what_searching_the_allowed_rows_alone_gives(
    case: tuple[np.ndarray, np.ndarray, int], metric: Metric, seed: int, share: float
) -> None:
    queries, vectors, k = case
    allowed = np.random.default_rng(seed).random(len(vectors)) < share
    alone = brute_force(queries, vectors[allowed], k, metric)
    got = nearest(queries, vectors, k, metric=metric, allowed=allowed)
    assert_equal(got, replace(alone, rows=np.flatnonzero(allowed)[alone.rows]))


SPECIAL = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1.0000001, 3e38, -3e38, 1e19, 1e-19])
NUMBERS = st.one_of(SPECIAL, st.floats(width=32, allow_nan=False, allow_infinity=False))


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    d = draw(st.integers(1, 4))
    row = st.lists(NUMBERS, min_size=d, max_size=d)
    vectors = draw(st.lists(row, min_size=0, max_size=8))
    queries = draw(st.lists(row, min_size=0, max_size=3))
    return (
        np.array(queries, np.float32).reshape(len(queries), d),
        np.array(vectors, np.float32).reshape(len(vectors), d),
    )


@given(case=tables(), metric=METRICS, k=st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_any_finite_numbers_are_answered_as_sorting_all_distances_does(
    case: tuple[np.ndarray, np.ndarray], metric: Metric, k: int
) -> None:
    queries, vectors = case
    table = distances(queries, vectors, metric=metric)
    order = np.argsort(table, axis=1, kind="stable")[:, :k]
    want = Neighbors(order, np.take_along_axis(table, order, axis=1), complete=k <= len(vectors))
    assert_equal(nearest(queries, vectors, k, metric=metric), want)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 700),
    q=st.integers(1, 40),
    d=st.integers(1, 40),
    k=st.sampled_from([1, 3, 20, 900]),
    kind=st.sampled_from(["plain", "rounded", "unit", "zeros", "lengths", "offset", "copies"]),
    size=st.sampled_from([1e-30, 1e-12, 1.0, 1e6, 1e20]),
    metric=st.sampled_from([Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN]),
    share=st.sampled_from([None, 0.1, 0.6, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_8_bit_codes_give_the_bits_of_float32(
    seed: int, n: int, q: int, d: int, k: int, kind: str, size: float, metric: Metric, share: float | None
) -> None:
    numbers = np.random.default_rng(seed)
    vectors = nasty(numbers, n, d, kind) * np.float32(size)
    near = vectors[numbers.integers(0, n, q // 2)]
    queries = np.concatenate([near, numbers.normal(size=(q - len(near), d)).astype(np.float32)])
    table = Table(vectors, norms_of(vectors), metric)
    allowed = None if share is None else numbers.random(n) < share
    want = nearest(queries, vectors, k, metric=metric, allowed=allowed)
    if can_certify(table):
        assert_equal(CertifiedCodes(table, threads=1).search(queries, k, allowed=allowed), want)


def nasty(numbers: np.random.Generator, n: int, d: int, kind: str) -> np.ndarray:
    """Make vectors on which a bound that is too tight shows."""
    vectors = numbers.normal(size=(n, d)).astype(np.float32)
    match kind:
        case "rounded":
            vectors = vectors.round(0)
        case "unit":
            vectors = normalize(vectors)
        case "zeros":
            vectors[numbers.random(n) < 0.3] = 0
        case "lengths":
            vectors *= np.exp(3 * numbers.normal(size=(n, 1))).astype(np.float32)
        case "offset":
            vectors += np.float32(10)
        case "copies":
            vectors = vectors[numbers.integers(0, min(n, 5), n)]
    return vectors
