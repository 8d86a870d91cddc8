"""Graphs and lists under every input Hypothesis thinks of: an answer that holds, or an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecmill.core.errors import Error, InputError, StorageError
from vecmill.core.extras import installed, require
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest
from vecmill.index.build import calibrate
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import ALGORITHMS, IndexSettings, parameters

pytestmark = pytest.mark.skipif(not installed("faiss"), reason="needs faiss (the extra ann)")

NAMES = ["M", "ef", "efSearch", "nlist", "n_bits", "graph_degree", "max_elements", "k", "m", "precision"]
METRICS = [metric.value for metric in Metric]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small searches by several threads spend their time waiting for each other."""
    faiss = require("faiss", extra="ann")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """Vectors as people have them: copies, zeros, huge, tiny, float64, every other row of a larger table."""
    n, d = draw(st.integers(0, 60)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    table = rng.standard_normal((n, d)) * draw(st.sampled_from([1.0, 1e-30, 1e-3, 1e6, 1e18, 1e30]))
    table = table[rng.integers(0, max(1, n), n)] if n and draw(st.booleans()) else table
    if n and draw(st.booleans()):
        table[rng.integers(0, n, 1 + n // 3)] = 0.0
    if n and draw(st.integers(0, 9)) == 0:
        table[rng.integers(0, n), rng.integers(0, d)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    table = table.astype(draw(st.sampled_from(["f4", "f8"])))
    return np.repeat(table, 2, axis=0)[::2] if draw(st.booleans()) else table


@st.composite
def made_of(draw: st.DrawFn) -> IndexSettings:
    kind, precision = draw(
        st.sampled_from(
            [("hnsw", p) for p in ("float32", "float16", "int8")]
            + [("ivf", p) for p in ("float32", "float16", "int8", "pq")]
        )
    )
    return IndexSettings(
        kind,  # type: ignore[arg-type]
        precision,  # type: ignore[arg-type]
        draw(st.none() | st.integers(1, 10)),
        m=draw(st.integers(2, 20)),
        ef_construction=draw(st.integers(1, 50)),
        ef=draw(st.integers(1, 80)),
        nlist=draw(st.none() | st.integers(1, 70)),
        nprobe=draw(st.integers(1, 80)),
        pq_parts=draw(st.none() | st.integers(1, 10)),
    )


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), made_of(), st.sampled_from(METRICS), st.integers(-1, 80), st.data())
def test_an_answer_that_holds_or_an_error_of_ours(
    table: Any, made: IndexSettings, metric: str, count: int, data: st.DataObject
) -> None:
    kind = HnswGraph if made.kind.value == "hnsw" else IvfLists
    try:
        index = kind.build(table, made, metric=Metric(metric))
    except InputError:
        return
    n, d = table.shape
    assert len(index) == n
    assert np.isfinite(table.astype(np.float32)).all()
    width = data.draw(st.sampled_from([d, d, d, d + 1]))
    scale = np.float32(data.draw(st.sampled_from([1.0, 0.0, 1e20, np.nan])))
    queries = np.random.default_rng(0).standard_normal((3, width), np.float32) * scale
    allowed = data.draw(
        st.none() | st.integers(0, 1000).map(lambda seed: np.random.default_rng(seed).random(n) < 0.5)
    )
    try:
        named = index.candidates(queries, count, allowed=allowed)
    except InputError:
        assert count < 1 or width != d or not np.isfinite(scale)
        return
    assert named.shape == (3, min(count, n))
    for row in named.tolist():
        rows = [at for at in row if at >= 0]
        assert len(set(rows)) == len(rows)
        assert all(at < n for at in rows)
        assert allowed is None or all(allowed[at] for at in rows)
    again = kind.from_bytes(index.to_bytes())
    assert np.array_equal(again.candidates(queries, count, allowed=allowed), named)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), made_of(), st.integers(1, 70), st.sampled_from(["cosine", "dot", "euclidean"]))
def test_looking_everywhere_finds_what_exact_search_finds(
    table: Any, made: IndexSettings, k: int, metric: str
) -> None:
    vectors = np.ascontiguousarray(table, np.float32)
    everywhere = IndexSettings(
        made.kind, made.precision, m=made.m, ef_construction=50, ef=1000, nprobe=1000, pq_parts=made.pq_parts
    )
    kind = HnswGraph if made.kind.value == "hnsw" else IvfLists
    try:
        index = kind.build(vectors, everywhere, metric=Metric(metric))
    except InputError:
        return
    found = RescoredIndex(index, ArrayOriginals(vectors), metric=metric, oversample=100.0).search(
        vectors[:3], k
    )
    truth = nearest(vectors[:3], vectors, k, metric=Metric(metric))
    assert np.array_equal(found.distances, truth.distances)
    assert found.complete == truth.complete


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 5000), st.integers(1, 255), st.booleans())
def test_damaged_bytes_never_reach_faiss(junk: bytes, at: int, flip: int, append: bool) -> None:
    data = bytearray(_GRAPH)
    if append:
        data[at % len(data) :] = junk
    else:
        data[at % len(data)] ^= flip
    if bytes(data) == _GRAPH:
        return
    with pytest.raises(StorageError):
        HnswGraph.from_bytes(bytes(data))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), made_of(), st.sampled_from(METRICS), st.integers(1, 30), st.integers(1, 50))
def test_calibration_answers_or_raises_ours(
    table: Any, made: IndexSettings, metric: str, k: int, queries: int
) -> None:
    try:
        result = calibrate(table, made, metric=Metric(metric), k=k, queries=queries)
    except InputError:
        return
    assert 0.0 <= result.measured.low <= result.measured.recall <= result.measured.high <= 1.0
    assert len(result.candidates) == len(table)
    assert result.reached == (result.measured.recall >= made.recall_target)
    assert IndexSettings.from_json(result.settings.to_json()) == result.settings


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([*ALGORITHMS, "hsnw"]),
    st.dictionaries(
        st.sampled_from(
            ["M", "ef", "efSearch", "nlist", "n_bits", "graph_degree", "max_elements", "k", "m", "precision"]
        ),
        st.none()
        | st.booleans()
        | st.integers(-5, 2000)
        | st.floats()
        | st.sampled_from(["int8", "16", b"x"]),
        max_size=4,
    ),
)
def test_parameters_give_settings_or_an_error_of_ours(kind: str, given_: dict[str, object]) -> None:
    try:
        made = parameters(kind, given_)
    except Error:
        return
    assert IndexSettings.from_json(made.to_json()) == made


if installed("faiss"):
    _GRAPH = HnswGraph.build(
        np.random.default_rng(0).standard_normal((40, 4), np.float32),
        IndexSettings("hnsw"),  # type: ignore[arg-type]
        metric=Metric.COSINE,
    ).to_bytes()
