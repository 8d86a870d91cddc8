"""Calibration: the least effort that finds enough, measured on rows held back."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecmill.core.errors import DimensionMismatchError, InputError, UnknownNameError
from vecmill.core.extras import installed, require
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest
from vecmill.index import construct
from vecmill.index.build import Calibration, build, calibrate
from vecmill.index.calibrate import harder, recall_interval
from vecmill.index.codes import Codes, fit
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexSettings

Float32Array = npt.NDArray[np.float32]

needs_faiss = pytest.mark.skipif(not installed("faiss"), reason="needs faiss (the extra ann)")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small searches by several threads spend their time waiting for each other."""
    if not installed("faiss"):
        yield
        return
    faiss = require("faiss", extra="ann")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def vectors() -> Float32Array:
    """4,000 vectors around 200 centres, as texts lie around topics."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((200, 48), np.float32)
    out: Float32Array = centres[rng.integers(0, 200, 4000)] + 0.7 * rng.standard_normal(
        (4000, 48), np.float32
    )
    return out


def calibrated(vectors: Any, metric: str = "cosine", **more: Any) -> Calibration:
    options = {name: more.pop(name) for name in ("k", "queries", "seed", "asked", "progress") if name in more}
    return calibrate(vectors, IndexSettings(**more), metric=Metric(metric), **options)


def true_recall(
    made: Calibration, vectors: Float32Array, queries: Float32Array, metric: str = "cosine"
) -> float:
    index = RescoredIndex(
        made.candidates, ArrayOriginals(vectors), metric=Metric(metric), oversample=made.settings.oversample
    )
    truth = nearest(queries, vectors, 10, metric=Metric(metric)).distances[:, 9:]
    return float((index.search(queries, 10).distances <= truth).mean())


@pytest.mark.parametrize(
    "made_of",
    [
        {"precision": "int8"},
        {"precision": "binary"},
        {"precision": "pq"},
        {"precision": "binary", "shorten": 32},
        pytest.param({"kind": "hnsw"}, marks=needs_faiss),
        pytest.param({"kind": "hnsw", "precision": "int8"}, marks=needs_faiss),
        pytest.param({"kind": "ivf"}, marks=needs_faiss),
        pytest.param({"kind": "ivf", "precision": "pq"}, marks=needs_faiss),
    ],
    ids=str,
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_what_is_promised_is_found_for_vectors_never_seen(
    vectors: Float32Array, made_of: dict[str, Any], metric: str
) -> None:
    kept, unseen = vectors[:3500], vectors[3500:]
    made = calibrated(kept, metric, recall_target=0.95, **made_of)
    assert made.reached
    assert made.surely
    assert made.measured.low >= 0.95
    assert made.measured.queries == 200
    assert made.measured.rows == 3300
    found = true_recall(made, kept, unseen, metric)
    assert found >= 0.94
    assert abs(found - made.measured.recall) <= 0.02
    assert len(made.candidates) == 3500


def test_less_effort_would_not_reach_the_target(vectors: Float32Array) -> None:
    easy, hard = (calibrated(vectors, precision="binary", recall_target=target) for target in (0.8, 0.99))
    assert 1.0 <= easy.settings.oversample < hard.settings.oversample
    said: list[str] = []
    calibrated(vectors, precision="binary", recall_target=0.99, progress=said.append)
    tried = sorted(
        (float(line.split("oversample ")[1].split(":")[0]), float(line.split("recall ")[1]))
        for line in said
        if line.startswith("measured")
    )
    below = [recall for over, recall in tried if over < hard.settings.oversample]
    assert below
    assert max(below) <= hard.measured.recall


@needs_faiss
def test_a_graph_is_measured_without_the_rows_it_is_asked_for(
    vectors: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    search = HnswGraph.candidates

    def seen(self: HnswGraph, queries: Float32Array, count: int, **more: Any) -> Any:
        sizes.append(int(self._index.ntotal))
        return search(self, queries, count, **more)

    monkeypatch.setattr(HnswGraph, "candidates", seen)
    made = calibrated(vectors, kind="hnsw")
    assert set(sizes) == {3800}
    assert int(made.candidates._index.ntotal) == 4000  # type: ignore[attr-defined]  # all are there in the end
    assert made.candidates.candidates(vectors[:100], 1).ravel().tolist() == list(range(100))
    assert made.settings == made.candidates.settings  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "made_of",
    [
        {"precision": "binary"},
        pytest.param({"kind": "hnsw"}, marks=needs_faiss),
        pytest.param({"kind": "ivf"}, marks=needs_faiss),
    ],
    ids=str,
)
def test_queries_unlike_the_rows_are_measured_where_they_are_given(
    vectors: Float32Array, made_of: dict[str, Any]
) -> None:
    unlike = np.random.default_rng(8).standard_normal((400, 48), np.float32)
    by_rows = calibrated(vectors, **made_of)
    by_queries = calibrated(vectors, asked=unlike[:200], **made_of)
    assert true_recall(by_rows, vectors, unlike[200:]) < 0.97  # promised for queries like the rows only
    assert true_recall(by_queries, vectors, unlike[200:]) >= 0.98
    assert (by_queries.measured.queries, by_queries.measured.rows) == (200, len(vectors))
    assert len(by_queries.candidates) == len(vectors)


def test_queries_to_measure_with_are_checked(vectors: Float32Array) -> None:
    with pytest.raises(InputError, match="asked holds 4 queries; give at least 5"):
        calibrated(vectors, precision="int8", asked=vectors[:4])
    with pytest.raises(DimensionMismatchError, match="asked have 12 dimensions"):
        calibrated(vectors, precision="int8", asked=vectors[:20, :12])
    assert calibrated(vectors[:15], precision="int8", asked=vectors[:20]).settings.is_exact
    assert calibrated(vectors, asked=vectors[:20]).settings.is_exact


def test_copies_of_what_is_asked_for_do_not_flatter(vectors: Float32Array) -> None:
    """Were the copies left in, eleven of eleven nearest would be the easiest there are: distance 0."""
    some = vectors[:600]
    repeated = np.concatenate([some] * 12)
    once = calibrated(some, precision="binary", recall_target=0.9, queries=100)
    often = calibrated(repeated, precision="binary", recall_target=0.9, queries=100)
    assert often.measured.queries < 100 or often.measured.rows == 12 * (600 - often.measured.queries)
    assert often.measured.rows == 12 * (600 - often.measured.queries)
    assert once.measured.rows == 500
    assert often.settings.oversample > 1.0


def test_a_target_that_cannot_be_reached_is_said_and_the_best_is_kept(vectors: Float32Array) -> None:
    made = calibrated(vectors, precision="binary", shorten=1, k=1, recall_target=0.9)
    assert not made.reached
    assert not made.surely
    assert made.measured.recall < 0.9
    assert made.settings.oversample > 50
    assert "the target 0.9 is not reached" in str(made)


def test_a_target_beyond_what_the_queries_can_show_is_reached_on_average_only(vectors: Float32Array) -> None:
    made = calibrated(vectors, precision="int8", recall_target=1.0)
    assert made.reached
    assert not made.surely
    assert made.measured.recall == 1.0
    assert "reached on average" in str(made)


@pytest.mark.parametrize("n", [1, 2, 20, 24])
def test_too_few_rows_to_measure_anything_are_searched_exactly(vectors: Float32Array, n: int) -> None:
    made = calibrated(vectors[:n], precision="binary", recall_target=0.9)
    assert made.settings.is_exact
    assert made.settings.recall_target == 0.9
    assert made.reached
    assert (made.measured.recall, made.measured.queries, made.measured.rows) == (1.0, 0, n)
    assert len(made.candidates) == n
    assert "exact" in str(made)


def test_rows_that_are_all_equal_are_searched_exactly() -> None:
    assert calibrated(np.ones((500, 8), np.float32), precision="int8").settings.is_exact


def test_few_rows_hold_back_a_fifth(vectors: Float32Array) -> None:
    made = calibrated(vectors[:60], precision="int8", recall_target=0.9)
    assert (made.measured.queries, made.measured.rows) == (12, 48)


def test_hamming_is_exact_by_its_bits(vectors: Float32Array) -> None:
    made = calibrated(vectors[:1000], "hamming", precision="binary")
    assert (made.measured.recall, made.settings.oversample) == (1.0, 1.0)
    assert len(calibrated(vectors[:9], "hamming", precision="binary").candidates) == 9


def test_equal_seeds_give_equal_calibrations(vectors: Float32Array) -> None:
    first, again = (calibrated(vectors[:1500], precision="pq", seed=3) for _ in range(2))
    assert (first.settings, first.measured) == (again.settings, again.measured)
    assert calibrated(vectors[:1500], precision="pq", seed=4).measured != first.measured


def test_nonsense_is_refused(vectors: Float32Array) -> None:
    with pytest.raises(InputError, match="k is 0"):
        calibrated(vectors, k=0)
    with pytest.raises(InputError, match="queries -1"):
        calibrated(vectors, queries=-1)
    with pytest.raises(InputError, match="nothing to index"):
        calibrated(np.empty((0, 4), np.float32))
    with pytest.raises(InputError, match="NaN"):
        calibrated(np.full((100, 4), np.nan), precision="int8")


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        hard = rng.random(200) < 0.1  # one query in ten loses neighbours together
        shares = np.where(hard, rng.binomial(10, 0.8, 200), 10) / 10.0
        low, high = recall_interval(shares, 10)
        held.append(low <= 0.98 <= high)
    assert 0.92 <= np.mean(held) <= 0.99


def test_the_interval_is_honest_where_nothing_was_missed() -> None:
    low, high = recall_interval(np.ones(200), 10)
    assert (round(low, 4), high) == (0.9981, 1.0)
    assert recall_interval(np.ones(20), 10)[0] < 0.985
    assert recall_interval(np.zeros(20), 10)[0] == 0.0


def test_build_gives_what_the_settings_say(vectors: Float32Array) -> None:
    assert isinstance(build(vectors[:100], IndexSettings(), metric=Metric.COSINE), Codes)
    pq = IndexSettings(precision="pq", pq_parts=6, pq_bits=8)  # type: ignore[arg-type]
    assert build(vectors[:600], pq, metric=Metric.DOT).size_bytes >= 600 * 6
    if installed("faiss"):
        said: list[str] = []
        graph = build(vectors, IndexSettings("hnsw"), metric=Metric.DOT, progress=said.append)  # type: ignore[arg-type]
        assert isinstance(graph, HnswGraph)
        assert said[-1] == "built 4,000 of 4,000 vectors"
        assert isinstance(build(vectors, IndexSettings("ivf"), metric=Metric.DOT), IvfLists)  # type: ignore[arg-type]


def test_wide_vectors_are_learned_from_fewer_rows(
    vectors: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = list[tuple[int, ...]]()

    def seen(sample: Float32Array, *given: Any, **more: Any) -> Any:
        learned.append(sample.shape)
        return fit(sample, *given, **more)

    monkeypatch.setattr(construct, "fit", seen)
    monkeypatch.setattr(construct, "_LEARNING_COMPONENTS", 48 * 700)
    monkeypatch.setattr(construct, "_FEWEST_LEARNED", 600)
    build(vectors, IndexSettings(precision=Precision.INT8), metric=Metric.COSINE)
    build(np.tile(vectors[:1000], (1, 4)), IndexSettings(precision=Precision.INT8), metric=Metric.COSINE)
    assert learned == [(700, 48), (600, 192)]


@pytest.mark.parametrize(
    "made_of",
    [
        {},
        {"precision": "binary"},
        pytest.param({"kind": "hnsw"}, marks=needs_faiss),
        pytest.param({"kind": "ivf"}, marks=needs_faiss),
    ],
    ids=str,
)
def test_a_metric_may_be_given_by_its_name(vectors: Float32Array, made_of: dict[str, Any]) -> None:
    copies = np.concatenate((vectors[:500], 2 * vectors[:500]))  # one direction, twice
    settings = IndexSettings(**made_of)
    by_name = calibrate(copies, settings, metric="cosine", queries=50)
    assert by_name.measured == calibrate(copies, settings, metric=Metric.COSINE, queries=50).measured
    named = build(copies, settings, metric="cosine").candidates(copies[:3], 5)
    assert np.array_equal(named, build(copies, settings, metric=Metric.COSINE).candidates(copies[:3], 5))
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        build(copies, settings, metric="cosin")
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        calibrate(copies, settings, metric="cosin")


@pytest.mark.parametrize(
    "made_of",
    [
        {"precision": "binary"},
        pytest.param({"kind": "hnsw", "m": 6, "ef_construction": 60}, marks=needs_faiss),
        pytest.param({"kind": "ivf"}, marks=needs_faiss),
    ],
    ids=str,
)
def test_queries_unlike_the_rows_that_may_be_found_are_searched_for_harder(made_of: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32), np.float32)
    rows = centres[rng.integers(0, 40, 4000)] + np.float32(0.3) * rng.standard_normal((4000, 32), np.float32)
    scattered = rng.random(4000) < 0.15
    rows[scattered] = rng.standard_normal((int(scattered.sum()), 32), np.float32)
    queries = rng.standard_normal((60, 32), np.float32)
    made = calibrated(rows, **made_of, recall_target=0.9)
    assert made.measured.far is not None
    truth = nearest(queries, rows, 10, metric=Metric.COSINE, allowed=~scattered).distances[:, 9:]

    def found(far: tuple[float, ...] | None) -> float:
        index = RescoredIndex(
            made.candidates,
            ArrayOriginals(rows),
            metric="cosine",
            oversample=made.settings.oversample,
            far=far,
            harder=functools.partial(harder, made.candidates),
        )
        return float((index.search(queries, 10, allowed=~scattered).distances <= truth).mean())

    once = found(None)
    assert once < 0.95
    assert found(made.measured.far) >= max(0.9, once + 0.05)


def test_usual_distances_are_those_of_the_queries_measured_with(vectors: Float32Array) -> None:
    rows, asked = vectors[:3000], vectors[3000:3400]
    made = calibrated(rows, precision="int8", asked=asked, k=5)
    true = nearest(asked, rows, 5, metric=Metric.COSINE).distances
    assert made.measured.far is not None
    beyond = true > np.array(made.measured.far, np.float32)
    assert beyond.mean(axis=0) == pytest.approx(0.05, abs=0.0026)
    assert calibrated(rows).measured.far is None
