"""The index of a collection stays right while the collection changes, and when its files are damaged."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill.collection.collection_items import CollectionItems
from vecmill.core.errors import CorruptFileError, InputError, WriteError
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest
from vecmill.index import snapshot, store_index
from vecmill.index.settings import IndexKind, IndexSettings
from vecmill.index.sidecars import read_sidecar, write_sidecar
from vecmill.index.storage import Store
from vecmill.index.store_index import SnapshotIndex, build_index, refresh, state_of

D = 16
KINDS = [
    IndexSettings(precision=Precision.INT8),
    IndexSettings(precision=Precision.BINARY, recall_target=0.9),
    IndexSettings(kind=IndexKind.HNSW),
    IndexSettings(kind=IndexKind.IVF, recall_target=0.95),
]


def vectors(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "c", dimensions=D)
    store.add(range(1500), vectors(1500))
    store.add(range(1500, 2000), vectors(500, 1))
    return store


def ids_found(store: Store, queries: Any, k: int = 10, **options: Any) -> list[list[object]]:
    now = store.snapshot()
    found = SnapshotIndex(now).search(queries, k, **options)
    return [now.ids(row) for row in found.rows]


def ids_true(store: Store, queries: Any, k: int = 10) -> list[list[object]]:
    now = store.snapshot()
    live = np.flatnonzero(now.live)
    found = nearest(queries, now.fetch(live), k, metric=now.catalogue.metric)
    return [now.ids(live[row]) for row in found.rows]


def recall(found: list[list[object]], true: list[list[object]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, true, strict=True)]))


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_an_index_finds_what_it_measured_also_after_changes(store: Store, settings: IndexSettings) -> None:
    state = build_index(store, settings)
    assert state.measured is not None
    assert state.measured.recall >= settings.recall_target
    assert not state.is_stale
    queries = vectors(50, 2)
    assert recall(ids_found(store, queries), ids_true(store, queries)) >= settings.recall_target - 0.05
    store.delete(range(0, 2000, 3))
    store.add([f"new {at}" for at in range(50)], queries)
    store.compact()
    found = ids_found(store, queries)
    assert [row[0] for row in found] == [f"new {at}" for at in range(50)], "new rows are found at once"
    assert not any(isinstance(name, int) and name % 3 == 0 for row in found for name in row), (
        "deleted ones never"
    )
    assert recall(found, ids_true(store, queries)) >= settings.recall_target - 0.05
    assert state_of(store.snapshot()).fresh == (0 if settings.kind is IndexKind.FLAT else 50)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_damaged_or_missing_sidecar_costs_time_not_rightness(
    store: Store, settings: IndexSettings, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(store, settings)
    queries = vectors(20, 2)
    true = ids_true(store, queries)
    for path in sorted((store.path / "sidecars").iterdir()):
        sound = path.read_bytes()
        for at in np.linspace(0, len(sound) - 1, 7).astype(int).tolist():
            damaged = bytearray(sound)
            damaged[at] ^= 4
            path.write_bytes(damaged)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                found = ids_found(store, queries)
            assert recall(found, true) >= settings.recall_target - 0.05, f"{path.name} byte {at}"
            assert "damaged" in caplog.text
        path.unlink()
        assert recall(ids_found(store, queries), true) >= settings.recall_target - 0.05
        path.write_bytes(sound)


def test_refresh_writes_codes_again_and_removes_what_nobody_needs(store: Store) -> None:
    build_index(store, IndexSettings(precision=Precision.INT8))
    folder = store.path / "sidecars"
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "00000001.codes"
    assert len(names) == 2, "a small segment's codes are made when needed"
    assert refresh(store) == 0
    (folder / names[0]).write_bytes(b"nothing")
    assert refresh(store) == 1
    build_index(store, IndexSettings(kind=IndexKind.HNSW))
    assert [path.name[:6] for path in folder.iterdir()] == ["graph-"]
    build_index(store, IndexSettings())
    assert list(folder.iterdir()) == []
    assert state_of(store.snapshot()).settings.is_exact


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BINARY])
def test_codes_on_disk_are_their_payload_and_a_little(tmp_path: Path, precision: Precision) -> None:
    store = Store.create(tmp_path / "c", dimensions=1536)
    rng = np.random.default_rng(0)
    store.add(range(1100), rng.normal(size=(1100, 1536)))
    build_index(store, IndexSettings(precision=precision, recall_target=0.5))
    size = (store.path / "sidecars" / "00000001.codes").stat().st_size
    assert 0 < size - 1100 * {Precision.INT8: 1536, Precision.BINARY: 192}[precision] < 4096


def test_a_graph_is_stale_when_a_fifth_of_its_rows_are_gone(store: Store) -> None:
    pytest.importorskip("faiss")
    state = build_index(store, IndexSettings(kind=IndexKind.HNSW))
    now = store.snapshot()
    ids = now.ids(np.flatnonzero(now.live))
    few = int(0.2 * state.rows)
    store.delete(ids[:few])
    state = state_of(store.snapshot())
    assert (state.gone, state.fresh, state.is_stale) == (few, 0, False)
    store.delete(ids[few : few + 1])
    store.add(["fresh"], vectors(1, seed=9))
    state = state_of(store.snapshot())
    assert (state.gone, state.fresh, state.is_stale) == (few + 1, 1, True)
    assert not build_index(store, IndexSettings(precision=Precision.INT8)).gone
    store.delete(ids[few + 1 :])
    assert not state_of(store.snapshot()).is_stale  # codes are scanned one by one: what is gone costs little


def test_another_metric_or_exact_compares_with_all(store: Store) -> None:
    build_index(store, IndexSettings(precision=Precision.BINARY, recall_target=0.5))
    queries = vectors(5, 2)
    now = store.snapshot()
    everything = nearest(queries, vectors_of(store), 10, metric=Metric.MANHATTAN)
    found = SnapshotIndex(now).search(queries, 10, metric=Metric.MANHATTAN)
    np.testing.assert_array_equal(found.rows, everything.rows)
    exact = SnapshotIndex(now).search(queries, 10, exact=True)
    np.testing.assert_array_equal(
        exact.rows, nearest(queries, vectors_of(store), 10, metric=Metric.COSINE).rows
    )


def vectors_of(store: Store) -> Any:
    now = store.snapshot()
    return now.fetch(np.arange(len(now)))


def test_codes_of_unchanged_segments_are_used_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(store, IndexSettings(precision=Precision.INT8))
    first = SnapshotIndex(store.snapshot())
    store.add(["x"], vectors(1, 9))
    encoded: list[str] = []
    real = store_index._encoded

    def watched(segment: Any, codec: Any) -> Any:
        encoded.append(segment.name)
        return real(segment, codec)

    monkeypatch.setattr(store_index, "_encoded", watched)
    again = SnapshotIndex(store.snapshot(), first)
    assert encoded == ["00000003"]
    assert store.snapshot().ids(again.search(vectors(1, 9), 1).rows[0]) == ["x"]


def test_an_empty_collection_has_nothing_to_index_and_finds_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "c", dimensions=D)
    with pytest.raises(InputError, match="empty"):
        build_index(store, IndexSettings(precision=Precision.INT8))
    store.add(["a"], vectors(1))
    store.delete(["a"])
    with pytest.raises(InputError, match="empty"):
        build_index(store, IndexSettings(precision=Precision.INT8))
    found = SnapshotIndex(store.snapshot()).search(vectors(2), 3)
    assert found.rows.shape == (2, 0)
    assert not found.complete


def test_a_sidecar_is_what_was_written_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_sidecar(path, {"kind": "x", "n": 1}, b"payload")
    assert bytes(read_sidecar(path, {"n": 1, "kind": "x"}) or b"") == b"payload"
    assert read_sidecar(path, {"kind": "x", "n": 2}) is None
    assert read_sidecar(tmp_path / "none", {}) is None
    sound = path.read_bytes()
    for at in range(len(sound)):
        damaged = bytearray(sound)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert read_sidecar(path, {"kind": "x", "n": 1}) is None
    path.write_bytes(b"")
    assert read_sidecar(path, {}) is None


def test_a_graph_is_read_once_for_all_generations(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(store, IndexSettings(kind=IndexKind.HNSW))
    index = SnapshotIndex(store.snapshot())
    monkeypatch.setattr(store_index, "_read_graph", None)  # whoever calls it fails
    for step in range(3):
        store.add([f"new {step}"], vectors(1, 50 + step))
        index = SnapshotIndex(store.snapshot(), index)
        found = index.search(vectors(1, 50 + step), 1)
        assert store.snapshot().ids(found.rows[0]) == [f"new {step}"]


def test_adding_reads_no_codes_and_saying_what_index_there_is_reads_no_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(store, IndexSettings(precision=Precision.INT8))
    store.add(["x"], vectors(1, 9))
    monkeypatch.setattr(store_index, "_read_codes", None)
    assert refresh(store) == 0
    build_with_graph = IndexSettings(kind=IndexKind.HNSW)
    monkeypatch.undo()
    build_index(store, build_with_graph)
    store.add(["y"], vectors(1, 10))
    store.delete(["x", 3])
    for path in (store.path / "sidecars").iterdir():
        path.write_bytes(b"")
    state = state_of(store.snapshot())
    assert (state.rows, state.fresh) == (2001, 1)


def test_building_an_index_writes_damaged_codes_again(store: Store) -> None:
    build_index(store, IndexSettings(precision=Precision.INT8))
    path = store.path / "sidecars" / "00000001.codes"
    sound = path.read_bytes()
    path.write_bytes(sound[:-30] + bytes(30))
    build_index(store, IndexSettings(precision=Precision.INT8))
    assert path.read_bytes() == sound


def test_few_rows_are_searched_without_reading_all_vectors(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = store.snapshot()
    allowed = np.zeros(len(now), np.bool_)
    allowed[:20] = True
    monkeypatch.setattr(snapshot.VectorsFile, "parts", None)
    found = SnapshotIndex(now).search(vectors(1)[:1], 1, allowed=allowed)
    assert found.rows.tolist() == [[0]]


def test_a_writer_does_not_remove_the_files_of_an_index_that_is_being_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds rows, and tidies up, between the files of an index and its publication."""
    real, others = store_index.write_sidecar, list[threading.Thread]()

    def written(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if path.name.startswith("codec"):
            others.append(threading.Thread(target=refresh, args=(Store.open(store.path),)))
            others[-1].start()
            others[-1].join(0.2)

    monkeypatch.setattr(store_index, "write_sidecar", written)
    build_index(store, IndexSettings(precision=Precision.INT8))
    for other in others:
        other.join()
    assert others
    assert any(path.name.startswith("codec-") for path in (store.path / "sidecars").iterdir())


def test_codes_and_words_of_a_collection_that_was_replaced_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c"
    store = Store.create(path, dimensions=D, text_column="text")
    store.add(range(1100), vectors(1100), pa.table({"text": ["old words"] * 1100}))
    build_index(store, IndexSettings(precision=Precision.INT8, recall_target=0.5))
    items = CollectionItems(store.snapshot())
    assert len(items.ranked("old", 3)) == 3
    items.nearest(vectors(1), 1, metric=Metric.COSINE)
    path.rename(tmp_path / "old")
    other = Store.create(path, dimensions=D, text_column="text")
    other.add(range(1100), vectors(1100, 7), pa.table({"text": ["new things"] * 1100}))
    other.set_index(items.snapshot.catalogue.index)
    shutil.copytree(tmp_path / "old" / "sidecars", path / "sidecars", dirs_exist_ok=True)
    later = CollectionItems(store.snapshot(), items)
    assert len(later.ranked("old", 3)) == 0
    assert len(later.ranked("things", 3)) == 3
    found = later.nearest(vectors(1100, 7)[40:41], 1, metric=Metric.COSINE)[0]
    assert later.ids(found.rows) == [40]


def test_a_write_is_done_though_its_sidecars_could_not_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(store, IndexSettings(precision=Precision.INT8))

    def full(*given: object) -> None:
        raise WriteError("no space")

    monkeypatch.setattr(store_index, "write_sidecar", full)
    store.add([f"x{at}" for at in range(1100)], vectors(1100, 3))
    assert refresh(store) == 0
    assert "were not written: no space" in caplog.text


ABSURD_INDEX: list[dict[str, Any]] = [
    {},
    {"settings": 1},
    {"settings": {"kind": "none"}},
    {"settings": {"kind": "flat", "precision": "int8"}, "codec": "../../../../etc"},
]


@pytest.mark.parametrize("described", ABSURD_INDEX, ids=str)
def test_a_catalogue_that_says_nonsense_of_its_index_is_refused(
    store: Store, described: dict[str, Any]
) -> None:
    store.set_index(described)
    with pytest.raises(CorruptFileError, match=r"of (the|an) index"):
        SnapshotIndex(store.snapshot())


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings(precision=Precision.BINARY, recall_target=0.9),
        IndexSettings(kind=IndexKind.HNSW, m=6, ef_construction=60, recall_target=0.9),
    ],
    ids=str,
)
def test_queries_a_filter_takes_far_are_searched_for_harder_unless_the_index_is_older(
    tmp_path: Path, settings: IndexSettings
) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 32), np.float32)
    rows = centres[rng.integers(0, 40, 4000)] + np.float32(0.3) * rng.standard_normal((4000, 32), np.float32)
    scattered = rng.random(4000) < 0.15
    rows[scattered] = rng.standard_normal((int(scattered.sum()), 32), np.float32)
    queries = rng.standard_normal((60, 32), np.float32)
    store = Store.create(tmp_path / "c", dimensions=32)
    store.add(range(4000), rows)
    build_index(store, settings)
    now = store.snapshot()
    truth = SnapshotIndex(now).search(queries, 10, allowed=~scattered, exact=True).distances[:, 9:]

    def found() -> float:
        index = SnapshotIndex(store.snapshot())
        return float((index.search(queries, 10, allowed=~scattered).distances <= truth).mean())

    assert found() >= 0.9
    described = now.catalogue.index
    assert described is not None
    assert len(described["measured"]["far"]) == 10
    older = {name: value for name, value in described["measured"].items() if name != "far"}
    store.set_index({**described, "measured": older})
    assert found() < 0.89
