"""Codes and rescoring on whatever floats there are: a right answer, or an error that says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest, pair_distances
from vecmill.index.codes import Codes, CodeSpec, codec_from_bytes, fit
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.selection import Best, largest

SIGN_METRICS = (Metric.HAMMING, Metric.JACCARD)

TAME = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0]
"""Few values, so that ties, zero vectors and equal rows are common."""

WILD = [*TAME, 3.4e38, -3.4e38, 1e-45, 1e-38, 1e20, -1e-20, 0.1, -0.7]
"""And the ends of float32."""


@st.composite
def tables(draw: st.DrawFn, most: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, d) and queries (q, d); from one row up, any width up to 20, constant components too."""
    n, d, q = draw(st.integers(1, most)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    pool = draw(st.lists(st.sampled_from(WILD), min_size=1) | st.just(TAME))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    vectors, queries = (rng.choice(np.array(pool, np.float32), (rows, d)) for rows in (n, q))
    if draw(st.booleans()):
        vectors += rng.normal(size=(n, d)).astype(np.float32)
    if draw(st.booleans()):
        vectors[:, draw(st.integers(0, d - 1))] = draw(st.sampled_from(WILD))
    return vectors, queries


@st.composite
def masks(draw: st.DrawFn, n: int) -> np.ndarray | None:
    share = draw(st.none() | st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return None if share is None else np.random.default_rng(draw(st.integers(0, 99))).random(n) < share


@st.composite
def specs(draw: st.DrawFn, width: int, metric: Metric) -> CodeSpec:
    kinds = [Precision.BINARY] if metric in SIGN_METRICS else list(Precision)
    precision = draw(st.sampled_from(kinds))
    short = draw(st.none() | st.integers(1, width))
    if precision is Precision.INT8:
        return CodeSpec(precision, short, scale=draw(st.sampled_from(["auto", "global", "dimension"])))
    if precision is Precision.PQ:
        parts = draw(st.none() | st.integers(1, short or width))
        return CodeSpec(precision, short, parts=parts, bits=draw(st.sampled_from([4, 8])))
    return CodeSpec(precision, short)


@settings(deadline=None, max_examples=150)
@given(st.data(), tables(), st.sampled_from(list(Metric)), st.sampled_from(["numpy", "auto"]))
def test_candidates_are_distinct_allowed_rows_and_as_many_as_there_are(
    data: st.DataObject, table: tuple[np.ndarray, np.ndarray], metric: Metric, engine: str
) -> None:
    vectors, queries = table
    codec = fit(vectors, data.draw(specs(vectors.shape[1], metric)), metric=metric)
    packed = codec.encode(vectors)
    assert packed.shape == (len(vectors), codec.size_bytes)
    codes = Codes(codec, packed, metric=metric, engine=engine)
    count = data.draw(st.integers(1, len(vectors) + 3))
    allowed = data.draw(masks(len(vectors)))
    rows = codes.candidates(queries, count, allowed=allowed)
    most = len(vectors) if allowed is None else int(allowed.sum())
    assert rows.shape == (len(queries), min(count, len(vectors)))
    for row in rows:
        named = row[row >= 0]
        assert len(np.unique(named)) == len(named) == min(count, most)
        assert allowed is None or allowed[named].all()
    np.testing.assert_array_equal(codes.codes(np.arange(len(vectors))), packed)
    assert np.isfinite(codec.estimate(queries, packed)).all() or metric is not Metric.COSINE
    assert not np.isnan(codec.estimate(queries, packed)).any()


@settings(deadline=None, max_examples=150)
@given(st.data(), tables(), st.sampled_from(list(Metric)), st.floats(1.0, 8.0), st.integers(1, 12))
def test_a_rescored_answer_is_ordered_true_and_full(
    data: st.DataObject,
    table: tuple[np.ndarray, np.ndarray],
    metric: Metric,
    oversample: float,
    k: int,
) -> None:
    vectors, queries = table
    codec = fit(vectors, data.draw(specs(vectors.shape[1], metric)), metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric)
    index = RescoredIndex(codes, ArrayOriginals(vectors), metric=metric, oversample=oversample)
    allowed = data.draw(masks(len(vectors)))
    got = index.search(queries, k, allowed=allowed)
    exact = nearest(queries, vectors, k, metric=metric, allowed=allowed)
    assert got.rows.shape == exact.rows.shape
    assert got.complete == exact.complete
    assert (got.distances >= exact.distances).all()
    order = np.lexsort((got.rows, got.distances), axis=1)
    np.testing.assert_array_equal(order, np.broadcast_to(np.arange(order.shape[1]), order.shape))
    at = np.repeat(np.arange(len(queries)), got.rows.shape[1])
    true = pair_distances(queries[at], vectors[got.rows.ravel()], metric)
    np.testing.assert_array_equal(got.distances.ravel(), true)


@settings(deadline=None, max_examples=150)
@given(tables(), st.sampled_from(SIGN_METRICS), st.integers(1, 20), st.sampled_from(["numpy", "auto"]))
def test_signs_are_exact_without_oversampling(
    table: tuple[np.ndarray, np.ndarray], metric: Metric, k: int, engine: str
) -> None:
    vectors, queries = table
    codec = fit(vectors, CodeSpec(Precision.BINARY), metric=metric)
    codes = Codes(codec, codec.encode(vectors), metric=metric, engine=engine)
    want = nearest(queries, vectors, k, metric=metric)
    np.testing.assert_array_equal(codes.candidates(queries, k), want.rows)


@settings(deadline=None, max_examples=100)
@given(st.data(), tables(), st.sampled_from(list(Metric)))
def test_a_codec_read_back_makes_the_same_bytes(
    data: st.DataObject, table: tuple[np.ndarray, np.ndarray], metric: Metric
) -> None:
    vectors, queries = table
    codec = fit(vectors, data.draw(specs(vectors.shape[1], metric)), metric=metric)
    read = codec_from_bytes(codec.to_bytes())
    np.testing.assert_array_equal(read.encode(queries), codec.encode(queries))
    assert read.spec == codec.spec


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bytes_that_are_no_codec_raise(data: st.DataObject) -> None:
    whole = fit(np.eye(3, dtype=np.float32), CodeSpec(Precision.PQ, parts=1), metric="dot").to_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    tail = data.draw(st.binary(max_size=40))
    if whole[:cut] + tail != whole:
        with pytest.raises(CorruptFileError):
            codec_from_bytes(whole[:cut] + tail)


@settings(deadline=None, max_examples=100)
@given(tables(), st.sampled_from(list(Precision)), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_numbers_that_are_none_raise_everywhere(
    table: tuple[np.ndarray, np.ndarray], precision: Precision, bad: float
) -> None:
    vectors, queries = table
    codec = fit(vectors, CodeSpec(precision), metric="euclidean")
    codes = Codes(codec, codec.encode(vectors), metric="euclidean")
    queries[0, 0] = bad
    for call in (
        codec.encode,
        lambda given: codes.candidates(given, 1),
        lambda given: fit(given, CodeSpec(precision), metric="dot"),
    ):
        with pytest.raises(InputError, match="row 0"):
            call(queries)


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(
        np.float32, st.integers(1, 4000), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, -7.5, 3.25])
    ),
    st.integers(1, 200),
)
def test_largest_are_those_of_a_stable_sort(scores: np.ndarray, count: int) -> None:
    want = np.argsort(-scores, kind="stable")[:count]
    np.testing.assert_array_equal(largest(scores, count), want)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 6), st.integers(1, 300), st.integers(1, 40))
def test_best_of_tiles_are_those_of_a_stable_sort(data: st.DataObject, q: int, n: int, count: int) -> None:
    values = st.sampled_from([0.0, -0.0, 1e-40, 1.0, 2.0, -7.5, 3.4e38, -3.4e38]).map(np.float32)
    scores = data.draw(arrays.arrays(np.float32, (q, n), elements=values))
    rows = 3 * np.arange(n)
    best = Best(q, count)
    start = 0
    while start < n:
        stop = start + data.draw(st.integers(1, 100))
        best.add(scores[:, start:stop], rows[start:stop])
        start = stop
    want = rows[np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]]
    got = best.rows()
    np.testing.assert_array_equal(got[:, : want.shape[1]], want)
    assert (got[:, want.shape[1] :] == -1).all()
