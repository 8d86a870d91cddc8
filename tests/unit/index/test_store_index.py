"""The index of a collection stays right while the collection changes, and when its files are damaged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import InputError
from vecmill.core.types import Metric, Precision
from vecmill.core.vectors import nearest
from vecmill.index import store_index
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
