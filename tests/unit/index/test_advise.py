from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecmill.core.errors import InputError, UnknownNameError
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest, normalize
from vecmill.index import advise_sample
from vecmill.index.advise import Advice, advise
from vecmill.index.advise_growth import interval, predicted
from vecmill.index.advise_sample import draw, warnings_of
from vecmill.index.advise_sweep import Tried
from vecmill.index.codes import Codes, CodeSpec, fit
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexKind, IndexSettings

Float32Array = npt.NDArray[np.float32]


def cloud(n: int, d: int = 64, *, latent: int = 16, seed: int = 0) -> Float32Array:
    """Vectors with neighbourhoods like those of texts: a few hidden dimensions, spread over all."""
    chance = np.random.default_rng(seed)
    made = chance.standard_normal((n, latent)) @ chance.standard_normal((latent, d))
    return normalize((made + 0.3 * chance.standard_normal((n, d))).astype(np.float32))


def blobs(n: int, d: int = 64, *, clusters: int = 50, spread: float = 0.3) -> Float32Array:
    chance = np.random.default_rng(0)
    centers = chance.standard_normal((clusters, d))
    made = centers[chance.integers(0, clusters, n)] + spread * chance.standard_normal((n, d))
    return normalize(made.astype(np.float32))


def flat_sheet(n: int) -> Float32Array:
    chance = np.random.default_rng(0)
    made = chance.standard_normal((n, 3)) @ chance.standard_normal((3, 64))
    return normalize(made.astype(np.float32))


def advised(vectors: Float32Array, **options: Any) -> Advice:
    return advise(vectors, **{"sample": 4000, "queries": 200, "kinds": [IndexKind.FLAT], **options})


@pytest.fixture(scope="module")
def small() -> Advice:
    return advised(cloud(3000))


def test_below_50_000_rows_exact_search_is_advised_and_the_least_memory_named_beside(small: Advice) -> None:
    assert small.settings.is_exact
    least = small.choices[small.least_memory]
    assert least.reaches
    assert least.bytes_per_vector < small.choice.bytes_per_vector
    assert small.command("films.parquet", "films.c") == "vecmill index build films.parquet -o films.c"


def test_above_50_000_rows_the_least_memory_that_reaches_the_target_is_advised() -> None:
    found = advised(cloud(51_000, 32), metric="dot", recall_target=0.95)
    assert found.distinct >= 50_000
    assert not found.settings.is_exact
    assert found.choice.here.recall.low >= 0.95
    cheaper = [one for one in found.choices if one.bytes_per_vector < 0.98 * found.choice.bytes_per_vector]
    assert not any(one.reaches for one in cheaper)
    command = found.command("a b.parquet", "out")
    assert command.startswith("vecmill index build 'a b.parquet' -o out --precision ")
    assert "--metric dot --recall-target 0.95" in command


def test_choices_are_sorted_by_memory_and_say_what_they_take(small: Advice) -> None:
    sizes = [one.bytes_per_vector for one in small.choices]
    assert sizes == sorted(sizes)
    by_name = {one.settings.precision: one for one in small.choices}
    assert by_name[Precision.INT8].bytes_per_vector == pytest.approx(64, rel=0.05)
    assert by_name[Precision.BINARY].bytes_per_vector == pytest.approx(8, rel=0.05)
    assert by_name[Precision.FLOAT32].bytes_per_vector == 256
    assert [one.rows for one in small.choice.predicted] == [3000, 30_000, 300_000]
    assert small.choice.predicted[2].memory_bytes == 300_000 * 256


def test_nothing_on_the_front_is_beaten_in_memory_recall_and_latency(small: Advice) -> None:
    front = [one for one in small.choices if one.on_front]
    assert front
    for one in front:
        for other in small.choices:
            assert not (
                other.bytes_per_vector < 0.9 * one.bytes_per_vector
                and other.here.recall.recall > one.here.recall.recall + 0.001
                and other.here.latency < 0.8 * one.here.latency
            )


def test_recall_in_the_table_is_what_the_index_gives() -> None:
    vectors = cloud(3000)
    found = advised(vectors)
    drawn = draw(vectors, sample=4000, queries=200, k=10, metric=Metric.COSINE, seed=0)
    codec = fit(drawn.vectors, CodeSpec(Precision.BINARY), metric=Metric.COSINE)
    codes = Codes(codec, codec.encode(drawn.vectors), metric=Metric.COSINE)
    true = nearest(drawn.queries, drawn.vectors, 10, metric=Metric.COSINE)
    for one in found.choices:
        if one.settings.precision is not Precision.BINARY:
            continue
        index = RescoredIndex(
            codes, ArrayOriginals(drawn.vectors), metric=Metric.COSINE, oversample=one.settings.oversample
        )
        rows = index.search(drawn.queries, 10).rows
        share = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, true.rows, strict=True)])
        assert one.measured.recall.recall == pytest.approx(float(share), abs=1e-9)


def test_queries_are_not_among_the_rows_searched_and_copies_are_counted_once() -> None:
    vectors = cloud(1000)
    doubled = np.concatenate((vectors, vectors[:400]))
    drawn = draw(doubled, sample=2000, queries=100, k=10, metric=Metric.COSINE, seed=0)
    assert (drawn.rows, drawn.distinct, drawn.repeated) == (1400, 1000, 400)
    assert len(drawn.vectors) + len(drawn.queries) == 1000
    together = np.concatenate((drawn.vectors, drawn.queries))
    assert len(np.unique(together, axis=0)) == 1000
    said = warnings_of(drawn, Metric.COSINE, 10)
    assert any("400 of 1,400 rows repeat another (29%)" in line for line in said)


def test_minus_zero_and_zero_are_the_same_vector() -> None:
    vectors = cloud(300)
    vectors[:, 0] = 0.0
    again = vectors.copy()
    again[:, 0] = -0.0
    both = np.concatenate((vectors, again))
    drawn = draw(both, sample=1000, queries=50, k=5, metric=Metric.COSINE, seed=0)
    assert drawn.distinct == 300


def test_queries_nearly_the_same_as_a_row_are_left_out_and_said() -> None:
    vectors = cloud(1000)
    chance = np.random.default_rng(1)
    close = normalize(vectors + 1e-4 * chance.standard_normal(vectors.shape).astype(np.float32))
    drawn = draw(
        np.concatenate((vectors, close)), sample=4000, queries=300, k=10, metric=Metric.COSINE, seed=0
    )
    assert drawn.near_identical > 0.5
    assert len(drawn.queries) < 150
    assert any("nearly the same as another row" in line for line in warnings_of(drawn, Metric.COSINE, 10))


@pytest.mark.parametrize(
    ("vectors", "word"),
    [
        (blobs(4000), "clusters with nothing between them"),
        (blobs(4000, clusters=400, spread=0.5), "clusters with nothing between them"),
        (normalize(np.random.default_rng(0).standard_normal((4000, 256)).astype(np.float32)), "like noise"),
        (flat_sheet(4000), "times nearer than other rows"),
    ],
)
def test_vectors_that_no_text_has_are_called_synthetic(vectors: Float32Array, word: str) -> None:
    drawn = draw(vectors, sample=4000, queries=200, k=10, metric=Metric.COSINE, seed=0)
    assert any(word in line for line in warnings_of(drawn, Metric.COSINE, 10)), drawn.shape


def test_real_vectors_raise_no_doubt(real_vectors: Float32Array) -> None:
    for rows in (5000, 22_000):
        drawn = draw(real_vectors[:rows], sample=20_000, queries=500, k=10, metric=Metric.COSINE, seed=0)
        assert warnings_of(drawn, Metric.COSINE, 10) == []
        assert 10 < drawn.shape.dimension < 25


def test_lengths_that_differ_are_said_for_cosine_alone() -> None:
    vectors = cloud(3000) * np.random.default_rng(0).uniform(1, 3, (3000, 1)).astype(np.float32)
    drawn = draw(vectors, sample=4000, queries=200, k=10, metric=Metric.COSINE, seed=0)
    assert any("--metric dot" in line for line in warnings_of(drawn, Metric.COSINE, 10))
    assert not any("--metric dot" in line for line in warnings_of(drawn, Metric.DOT, 10))


def test_a_target_beyond_what_the_queries_can_tell_is_said() -> None:
    found = advised(cloud(3000), queries=50, recall_target=0.9995)
    assert any("is more than 50 queries can tell" in line for line in found.warnings)
    assert not any("queries can tell" in line for line in advised(cloud(3000), recall_target=0.9).warnings)


def test_a_latency_nothing_keeps_is_said() -> None:
    found = advised(cloud(3000), max_latency=1e-9)
    assert any("nothing answers within" in line for line in found.warnings)
    assert found.choice.reaches


def test_only_models_made_for_it_are_shortened_unasked() -> None:
    vectors = cloud(1500, 256)
    widths = {one.settings.shorten for one in advised(vectors).choices}
    assert widths == {None}
    widths = {one.settings.shorten for one in advised(vectors, mrl=True).choices}
    assert widths == {None, 128, 64}
    asked = advised(vectors, shorten=[200], recall_target=0.5)
    assert {one.settings.shorten for one in asked.choices} == {None, 200}
    short = next(at for at, one in enumerate(asked.choices) if one.settings.shorten)
    assert asked.command("s", "o", short).endswith("--not-mrl")


def test_signs_are_searched_by_bits_alone_and_found_all() -> None:
    found = advised(cloud(1500), metric="hamming", kinds=tuple(IndexKind))
    assert {one.settings.precision for one in found.choices} == {Precision.BINARY, Precision.FLOAT32}
    assert all(one.measured.recall.recall == 1.0 for one in found.choices)
    assert any("do not know hamming" in line for line in found.notes)


def test_graphs_and_lists_are_tried_where_faiss_is() -> None:
    pytest.importorskip("faiss")
    found = advised(cloud(6000, 32), sample=5000, kinds=[IndexKind.HNSW, IndexKind.IVF], metric="euclidean")
    kinds = {one.settings.kind for one in found.choices}
    assert kinds == set(IndexKind)
    graph = next(at for at, one in enumerate(found.choices) if one.settings.kind is IndexKind.HNSW)
    assert "--kind hnsw" in found.command("s", "o", graph)
    assert "--param m=16 --param ef_construction=200 --param ef=" in found.command("s", "o", graph)


def test_without_time_left_what_was_not_tried_is_said() -> None:
    found = advised(cloud(1500), budget_s=0.0)
    assert len(found.choices) == 1
    assert found.choice.settings.is_exact
    assert found.notes[0] == "after 0 s these were left out: flat float16, flat int8, flat binary, flat pq"


def test_equal_seeds_give_equal_recalls_and_json_holds_everything() -> None:
    vectors = cloud(1500)
    one, two = advised(vectors), advised(vectors)
    assert {str(c.settings): c.here.recall for c in one.choices} == {
        str(c.settings): c.here.recall for c in two.choices
    }
    told = json.loads(json.dumps(one.to_json()))
    assert len(told["choices"]) == len(one.choices)
    assert told["choices"][told["chosen"]]["name"] == told["chosen_name"] == "exact"


def test_json_names_units_and_the_recall_that_was_asked_for() -> None:
    found = advised(cloud(1500), max_latency=0.5, recall_target=0.9)
    told = found.to_json()
    assert told["max_latency_ms"] == 500.0
    assert "max_latency" not in told
    first, choice = told["choices"][0], found.choices[0]
    assert first["measured"]["latency_ms"] == 1000.0 * choice.measured.latency
    assert first["predicted"][2]["build_seconds"] == choice.predicted[2].build
    assert first["batch_latency_ms"] == 1000.0 * choice.batch_latency
    assert {one["settings"]["recall_target"] for one in told["choices"]} == {0.9}
    assert not {"latency", "build", "batch_latency"} & {*first, *first["measured"], *first["predicted"][0]}


def tried(kind: IndexKind, latencies: tuple[tuple[int, float], ...], overhead: float) -> Tried:
    """Return what was measured of a choice of 1,000 rows, in memory that takes no time to read."""
    return Tried(
        IndexSettings(kind=kind, precision=Precision.INT8),
        10,
        (1_000,),
        np.ones((1, 20)),
        latencies,
        0.0,
        (1_000, 1_000),
        (1_000, 0.0),
        0,
        1e15,
        overhead,
    )


@pytest.mark.parametrize("kind", list(IndexKind))
def test_what_every_search_takes_does_not_grow_with_the_rows(kind: IndexKind) -> None:
    flat = tried(kind, ((250, 3e-4), (1_000, 3e-4)), 2e-4)
    assert flat.latency_at(100_000) == 3e-4
    alone = tried(kind, ((1_000, 3e-4),), 3e-4)
    assert alone.latency_at(100_000) == 3e-4
    steep = tried(kind, ((250, 1e-4), (1_000, 3e-4)), 2.5e-4)
    grown = {IndexKind.FLAT: 100.0, IndexKind.HNSW: 5.0 / 3.0, IndexKind.IVF: 10.0}[kind]
    assert steep.latency_at(100_000) == pytest.approx(2.5e-4 + 0.5e-4 * grown)
    assert steep.latency_at(1_000) == 3e-4


def test_a_small_scan_is_expected_to_take_what_reading_takes() -> None:
    one = replace(tried(IndexKind.FLAT, ((250, 3e-4), (1_000, 3e-4)), 2e-4), bandwidth=1e6)
    assert one.latency_at(100_000) == pytest.approx(0.1)


def test_few_rows_are_said_to_tell_little_about_latencies(small: Advice) -> None:
    assert small.sample < 10_000
    assert any("latencies at 10 and 100 times as many are rough" in note for note in small.notes)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"k": 0}, InputError),
        ({"recall_target": 1.0}, InputError),
        ({"max_latency": 0.0}, InputError),
        ({"shorten": [64]}, InputError),
        ({"metric": "cosinus"}, UnknownNameError),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        advised(cloud(500), **options)


def test_too_few_rows_are_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="exact search is all you need"):
        advised(cloud(60))
    with pytest.raises(InputError, match="too few"):
        advised(np.repeat(cloud(20), 50, axis=0))


def test_a_row_that_is_not_finite_is_named() -> None:
    vectors = cloud(500)
    vectors[:, 3] = np.nan
    with pytest.raises(InputError):
        advised(vectors)


def test_predicted_recall_is_within_a_hundredth_of_that_measured_on_all_rows(
    real_vectors: Float32Array,
) -> None:
    found = advise(real_vectors, sample=5000, queries=1000, kinds=[IndexKind.FLAT])
    whole = draw(real_vectors, sample=10**9, queries=1000, k=10, metric=Metric.COSINE, seed=0)
    true = nearest(whole.queries, whole.vectors, 10, metric=Metric.COSINE)
    codes: dict[Precision, Codes] = {}
    compared = 0
    for one in found.choices:
        precision = one.settings.precision
        if one.settings.is_exact or one.here.recall.recall < 0.98:
            continue
        if precision not in codes:
            codec = fit(whole.vectors, CodeSpec(precision), metric=Metric.COSINE)
            codes[precision] = Codes(codec, codec.encode(whole.vectors), metric=Metric.COSINE)
        named = codes[precision].candidates(whole.queries, int(10 * one.settings.oversample))
        share = np.mean([np.isin(a, b).mean() for a, b in zip(true.rows, named, strict=True)])
        assert one.here.recall.recall == pytest.approx(float(share), abs=0.01), str(one.settings)
        compared += 1
    assert compared >= 6


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        easy = chance.beta(9.5, 0.5, 300)  # neighbours of one query stand or fall together
        hits = chance.binomial(10, easy) / 10
        found = interval(hits, 10)
        inside += found.low <= 0.95 <= found.high
    assert 0.92 <= inside / 400 <= 0.99


def test_perfect_scores_of_few_queries_leave_room() -> None:
    few, many = interval(np.ones(50), 10), interval(np.ones(5000), 10)
    assert few.recall == many.recall == few.high == 1.0
    assert few.low < 0.99 < 0.9997 < many.low


def test_the_line_is_carried_on_and_widens() -> None:
    chance = np.random.default_rng(0)
    sizes = [1000, 2000, 4000, 8000, 16_000]
    levels = [0.999, 0.998, 0.996, 0.992, 0.985]
    hits = np.stack([chance.binomial(10, level, 2000) / 10 for level in levels])
    near, far = predicted(sizes, hits, 10, [32_000, 1_600_000], seed=1)
    assert 0.96 < near.recall < 0.985
    assert far.recall < near.recall
    assert far.high - far.low > near.high - near.low
    assert near.low <= near.recall <= near.high
    assert predicted(sizes, hits, 10, [16_000])[0] == interval(hits[-1], 10)


def test_recall_is_never_predicted_to_rise() -> None:
    chance = np.random.default_rng(0)
    hits = np.stack([chance.binomial(10, level, 500) / 10 for level in (0.9, 0.95, 0.97)])
    found = predicted([1000, 2000, 4000], hits, 10, [100_000])[0]
    assert found.recall <= float(hits[-1].mean())


def test_thresholds_of_doubt_lie_between_texts_and_made_up_vectors() -> None:
    assert advise_sample._GAP > 1.5
    assert 25 < advise_sample._NOISE < 60
