"""A collection on disk: what goes in comes out, whatever happens in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from vecmill.core.errors import (
    CorruptFileError,
    DimensionMismatchError,
    InputError,
    StorageError,
    UnknownNameError,
)
from vecmill.core.types import Precision
from vecmill.index import catalogue, segments, storage
from vecmill.index.keys import id_column, ids_of, keys_of
from vecmill.index.storage import Store, is_store

D = 5


def vectors(n: int, seed: int = 0, d: int = D) -> Any:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def held(store: Store) -> dict[object, list[float]]:
    """Everything that can be found, by id."""
    now = store.snapshot()
    at = np.flatnonzero(now.live)
    return dict(zip(now.ids(at), now.fetch(at).tolist(), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "films", dimensions=D)


def test_what_is_added_can_be_read_by_another_process_or_object(store: Store) -> None:
    given = vectors(3)
    store.add(["a", "b", "c"], given, pa.table({"stars": [1, 2, 3], "text": ["x", "y", "z"]}))
    again = Store.open(store.path)
    assert is_store(store.path)
    assert held(again) == dict(zip("abc", given.tolist(), strict=True))
    assert again.snapshot().records(np.array([2, 0]), ["stars", "id", "text"]) == [
        {"stars": 3, "id": "c", "text": "z"},
        {"stars": 1, "id": "a", "text": "x"},
    ]
    np.testing.assert_array_equal(np.concatenate([part for _, part in again.snapshot().parts()]), given)


def test_ids_of_any_type_stay_apart() -> None:
    ids = ["1", 1, b"1", (1 << 63) - 1, -(1 << 63), 9_007_199_254_740_993, "é\n", UUID(int=5)]
    assert ids_of(keys_of(ids).to_pylist()) == [*ids[:-1], str(UUID(int=5))]
    assert id_column(keys_of([9_007_199_254_740_993, 2])).to_pylist() == [9_007_199_254_740_993, 2]
    assert keys_of(pa.array([1, 2])) == keys_of([1, 2])
    assert keys_of(pa.array(["a"])) == keys_of(["a"])
    assert keys_of(np.array([1, 2])) == keys_of([1, 2])


@pytest.mark.parametrize("bad", [None, 1.5, True, 1 << 63, "\ud800", ["a"], "x" * 70_000])
def test_what_cannot_be_an_id_names_its_row(bad: object) -> None:
    with pytest.raises(InputError, match="row 1"):
        keys_of(["a", bad])


def test_a_repeated_id_is_an_error_unless_the_pieces_of_a_text_are_meant(store: Store) -> None:
    with pytest.raises(InputError, match="rows 0 and 2 have the same id 'a'"):
        store.add(["a", "b", "a"], vectors(3))
    store.add(["a", "b", "a"], vectors(3), repeated=True)
    assert store.snapshot().find(["a"]).tolist() == [0, 2]
    with pytest.raises(InputError, match="id 'a' and 1 more is in"):
        store.add(["a"], vectors(1))
    assert len(store) == 3


def test_replacing_takes_the_place_of_every_row_of_the_id(store: Store) -> None:
    store.add(["a", "b", "a"], vectors(3), repeated=True)
    new = vectors(2, seed=1)
    change = store.add(["a", "c"], new, replace=True)
    assert (change.added, change.replaced) == (2, 2)
    assert held(store)["a"] == new[0].tolist()
    assert sorted(held(store)) == ["a", "b", "c"]


def test_deleting_says_what_was_not_there(store: Store) -> None:
    store.add(["a", 1, "1"], vectors(3))
    change = store.delete(["1", "nobody", 7])
    assert (change.deleted, change.missing) == (1, ("nobody", 7))
    assert sorted(held(store), key=str) == [1, "a"]
    assert store.delete(["1"]).missing == ("1",)


def test_columns_change_and_the_vector_stays(store: Store) -> None:
    given = vectors(2)
    store.add(["a", "b"], given, pa.table({"stars": [1, 2], "lang": ["en", "es"]}))
    change = store.set_columns(["b", "z"], pa.table({"stars": [5, 6]}))
    assert (change.replaced, change.missing) == (1, ("z",))
    at = store.snapshot().find(["b"])
    assert store.snapshot().records(at, ["stars", "lang"]) == [{"stars": 5, "lang": "es"}]
    assert held(store)["b"] == given[1].tolist()


def test_a_column_that_comes_later_is_null_before(store: Store) -> None:
    store.add(["a"], vectors(1), pa.table({"stars": pa.array([1], pa.int32())}))
    store.add(["b"], vectors(1), pa.table({"stars": [2.5], "lang": ["en"]}))
    assert store.snapshot().table(["id", "stars", "lang"]).to_pylist() == [
        {"id": "a", "stars": 1.0, "lang": None},
        {"id": "b", "stars": 2.5, "lang": "en"},
    ]
    with pytest.raises(InputError, match=r"column 'lang' holds string in .* the new rows have int64"):
        store.add(["c"], vectors(1), pa.table({"lang": [3]}))
    with pytest.raises(UnknownNameError, match="stars"):
        store.snapshot().records(np.array([0]), ["star"])


def test_a_snapshot_never_changes(store: Store) -> None:
    store.add(["a", "b"], vectors(2))
    before = store.snapshot()
    store.delete(["a"])
    store.add(["c"], vectors(1, 3))
    store.compact()
    assert before.ids(np.flatnonzero(before.live)) == ["a", "b"]
    np.testing.assert_array_equal(before.fetch(np.array([1, 0])), vectors(2)[[1, 0]])
    assert sorted(held(store), key=str) == ["b", "c"]


def test_adding_one_by_one_keeps_few_segments_and_row_numbers(store: Store) -> None:
    given = vectors(300)
    for at in range(300):
        store.add([at], given[at : at + 1])
    now = store.snapshot()
    assert len(now.segments) < 24
    assert now.rows.tolist() == list(range(300))
    np.testing.assert_array_equal(now.fetch(np.arange(300)), given)


def test_compacting_is_bounded_and_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * D * 10)
    given = vectors(100)
    store.add([f"{at}" for at in range(100)], given)
    assert len(store.snapshot().segments) == 10
    store.delete([f"{at}" for at in range(0, 100, 2)])
    rows = store.snapshot().rows[store.snapshot().live].tolist()
    done = store.compact(max_bytes=4 * D * 30)
    assert not done.complete
    for _ in range(20):
        done = store.compact(max_bytes=4 * D * 30)
        if done.complete:
            break
    assert done.complete
    now = store.snapshot()
    assert len(now.segments) == 5
    assert now.live.all()
    assert now.rows.tolist() == rows
    np.testing.assert_array_equal(now.fetch(np.arange(50)), given[1::2])
    files = sorted(path.name for path in (store.path / "segments").iterdir())
    assert len(files) == 10  # vectors and items of five segments, nothing else


@pytest.mark.parametrize(("precision", "size"), [("float32", 6144), ("float16", 3072)])
def test_the_payload_is_what_it_must_be_and_the_rest_is_small(
    tmp_path: Path, precision: str, size: int
) -> None:
    store = Store.create(tmp_path / "c", dimensions=1536, precision=precision)
    store.add(range(1000), vectors(1000, d=1536))
    store.add(range(1000, 1001), vectors(1, d=1536))
    for entry in store.catalogue.segments:
        assert 0 < entry.vectors_bytes - entry.rows * size < 4096
    full = segments.rows_per_segment(1536, Precision(precision)) * size
    assert 64 + 4 * -(-full // segments.BLOCK_BYTES) + 4 < 4096


def test_float16_originals_are_rounded_and_too_large_ones_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "c", dimensions=D, precision="float16")
    given = vectors(50)
    store.add(range(50), given)
    np.testing.assert_array_equal(
        store.snapshot().fetch(np.arange(50)), given.astype(np.float16).astype(np.float32)
    )
    parts = np.concatenate([part for _, part in store.snapshot().parts()])
    np.testing.assert_array_equal(parts, given.astype(np.float16).astype(np.float32))
    with pytest.raises(InputError, match="vector 0 .* float16"):
        store.add(["x"], np.full((1, D), 1e6))
    assert len(store) == 50


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.add(["x"], vectors(1, d=4)), DimensionMismatchError, "4 dimensions"),
        (lambda s: s.add(["x"], [[np.nan] * D]), InputError, "NaN"),
        (lambda s: s.add(["x", "y"], vectors(1)), InputError, "2 ids and 1 vectors"),
        (lambda s: s.add(["x"], vectors(1), pa.table({"a": [1, 2]})), InputError, "1 ids and 2 rows"),
        (lambda s: s.add(["x"], vectors(1), pa.table({"_row": [1]})), InputError, "_row"),
        (lambda s: Store.create(s.path, dimensions=3), InputError, "not empty"),
        (lambda s: Store.create(s.path / "n", dimensions=0), InputError, "0 dimensions"),
        (lambda s: Store.create(s.path / "n", dimensions=2, precision="int8"), InputError, "float16"),
        (lambda s: Store.open(s.path / "segments"), InputError, "not a collection"),
        (lambda s: s.snapshot().fetch(np.array([99])), InputError, "positions"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(
    store: Store, call: Callable[[Store], object], error: type[Exception], words: str
) -> None:
    store.add(["a"], vectors(1))
    with pytest.raises(error, match=words):
        call(store)
    assert held(store) == {"a": vectors(1)[0].tolist()}


def test_nothing_added_and_nothing_deleted_is_no_change(store: Store) -> None:
    before = store.catalogue.generation
    store.add([], np.empty((0, D)))
    store.delete([])
    assert store.catalogue.generation == before
    assert held(store) == {}
    assert store.snapshot().table(["id"]).num_rows == 0


def test_a_flipped_byte_in_any_file_is_noticed(store: Store) -> None:
    store.add(["a", "b", "c"], vectors(3), pa.table({"text": ["x", "y", "z"]}))
    store.delete(["b"])
    for path in sorted(store.path.rglob("*")):
        if not path.is_file():
            continue
        sound = path.read_bytes()
        for at in range(0, len(sound), max(1, len(sound) // 97)):
            damaged = bytearray(sound)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            try:
                seen = held(Store.open(store.path))
            except (StorageError, InputError):
                continue
            # What is not noticed must not matter: bits that stand for no row.
            assert seen == held(store), f"{path.name} byte {at}"
            pytest.fail(f"{path.name} byte {at} was not noticed")
        path.write_bytes(sound)
    assert len(held(Store.open(store.path))) == 2


@pytest.mark.parametrize("name", ["segments/00000001.vectors", "segments/00000001.items", "catalogue.json"])
def test_a_file_cut_short_or_missing_is_refused_with_the_cure(store: Store, name: str) -> None:
    store.add(["a", "b"], vectors(2))
    path = store.path / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-3])
    with pytest.raises(CorruptFileError, match="build the collection again"):
        held(Store.open(store.path))
    path.unlink()
    with pytest.raises((CorruptFileError, InputError), match=r"build the collection again|not a collection"):
        held(Store.open(store.path))


def test_verify_reads_everything_again(store: Store) -> None:
    store.add(["a", "b"], vectors(2))
    store.verify()
    path = store.path / "segments" / "00000001.vectors"
    damaged = bytearray(path.read_bytes())
    damaged[70] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match="block 0"):
        store.verify()


def test_what_a_crash_left_is_removed_by_the_next_writer(store: Store) -> None:
    store.add(["a"], vectors(1))
    left = store.path / "segments" / "00000002.vectors"
    left.write_bytes(b"half a file")
    store.add(["b"], vectors(1, 1))
    assert sorted(held(store)) == ["a", "b"]
    assert left.read_bytes()[:8] == segments.MAGIC


def test_a_second_writer_is_told_who_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecmill.core import durable

    monkeypatch.setattr(storage, "_PATIENCE", 0.0)
    with (
        durable.lock(store.path / ".lock", what="it"),
        pytest.raises(StorageError, match="in use by process"),
    ):
        store.add(["a"], vectors(1))


def test_a_catalogue_of_a_later_version_is_refused(store: Store) -> None:
    path = store.path / "catalogue.json"
    values = json.loads(path.read_text())
    values["version"] = 2
    del values["digest"]
    values["digest"] = catalogue._digest(values)
    path.write_text(json.dumps(values))
    with pytest.raises(StorageError, match="version 2"):
        Store.open(store.path)


def test_sixteen_readers_see_whole_states_while_one_writes(store: Store) -> None:
    store.add(list(range(20)), vectors(20))
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            now = store.snapshot()
            at = np.flatnonzero(now.live)
            ids = now.ids(at)
            first = now.fetch(at)[:, 0].tolist()
            if len(ids) != len(set(ids)):
                wrong.append("an id twice")
            if len(first) != len(ids) or len(ids) < 20:
                wrong.append(f"{len(ids)} items")
            stop.wait(0.002)  # sixteen loops without a pause leave the writer no time

    readers = [threading.Thread(target=read) for _ in range(16)]
    for reader in readers:
        reader.start()
    try:
        for step in range(20):
            store.add(list(range(20)), vectors(20, step), replace=True)
            store.add([f"extra {step}"], vectors(1, step))
            if step % 10 == 9:
                store.compact()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert len(store) == 40
