"""A collection on disk: what goes in comes out, whatever happens in between."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import weakref
import zlib
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from vecmill.core import durable
from vecmill.core.errors import (
    CorruptFileError,
    DimensionMismatchError,
    InputError,
    StorageError,
    UnknownNameError,
)
from vecmill.core.types import Precision
from vecmill.index import catalogue, segments, snapshot, storage
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
    assert (change.added, change.replaced) == (1, 1)  # "c" is new, "a" took the place of both rows it had
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
    with pytest.raises(InputError, match=r"vector 0 .* float16"):
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


def test_one_text_is_no_list_of_ids(store: Store) -> None:
    store.add(["a", "b", "c"], vectors(3))
    for change in (lambda: store.delete("abc"), lambda: store.add("de", vectors(2)), lambda: keys_of(b"ab")):
        with pytest.raises(InputError, match=r"ids is one (text|id of bytes): put it into a list"):
            change()
    assert sorted(held(store)) == ["a", "b", "c"]


def test_a_collection_that_takes_the_place_of_another_is_another(tmp_path: Path) -> None:
    """Same names, same ids, same sizes: what was open of the old one must not answer for the new one."""
    path = tmp_path / "c"
    store = Store.create(path, dimensions=D)
    store.add(["a", "b"], vectors(2), pa.table({"x": [1, 2]}))
    assert held(store)["a"] == vectors(2)[0].tolist()
    path.rename(tmp_path / "old")
    Store.create(path, dimensions=D).add(["a", "b"], vectors(2, seed=5), pa.table({"x": [1, 2]}))
    assert held(store)["a"] == vectors(2, seed=5)[0].tolist()
    path.rename(tmp_path / "older")
    Store.create(path, dimensions=D + 1)
    assert held(store) == {}
    with pytest.raises(DimensionMismatchError, match="5 dimensions"):
        store.add(["c"], vectors(1))


def test_a_catalogue_with_the_status_of_the_one_before_is_noticed(store: Store) -> None:
    """Inode, size and time may be those of an earlier one: inodes are used again within a tick."""
    store.add(["a", "b"], vectors(2))
    path = store.path / "catalogue.json"
    other = Store.open(store.path)
    other.set_index({"rows": 1})
    generation = other.catalogue.generation
    other.set_index({"rows": 2})
    assert store.catalogue.index == {"rows": 2}
    values = json.loads(path.read_text())
    del values["digest"]
    values["index"] = {"rows": 3}
    values["digest"] = catalogue._digest(values)
    status = path.stat()
    path.write_bytes(json.dumps(values, indent=1, ensure_ascii=False).encode())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert store.catalogue.generation > generation
    assert store.catalogue.index == {"rows": 3}


POISON: dict[str, tuple[pa.Array, pa.Array]] = {
    "whole numbers beyond fractions": (pa.array([(1 << 53) + 1]), pa.array([1.5])),
    "fractions, then such a number": (pa.array([1.5]), pa.array([(1 << 53) + 1])),
    "unsigned beyond signed": (pa.array([1 << 63], pa.uint64()), pa.array([1])),
    "a time beyond nanoseconds": (
        pa.array([datetime(9999, 1, 1)], pa.timestamp("us")),  # noqa: DTZ001 - a naive column
        pa.array([0], pa.timestamp("ns")),
    ),
    "small numbers and decimals": (pa.array([1], pa.int8()), pa.array([Decimal("1.23")])),
    "decimals and fractions": (pa.array([Decimal("1.23")]), pa.array([1.5])),
    "text and bytes": (pa.array(["a"]), pa.array([b"\xff"])),
    "half fractions and decimals": (pa.array(np.ones(1, np.float16)), pa.array([Decimal("1.5")])),
}


@pytest.mark.parametrize("name", POISON)
def test_columns_that_no_type_holds_are_refused_before_the_collection_cannot_be_read(
    store: Store, name: str
) -> None:
    old, new = POISON[name]
    store.add(["a"], vectors(1), pa.table({"x": old}))
    with pytest.raises(InputError, match="column 'x' holds"):
        store.add(["b"], vectors(1), pa.table({"x": new}))
    assert store.snapshot().table(["x"]).column(0).to_pylist() == old.to_pylist()


UNITED: dict[str, tuple[pa.Array, pa.Array]] = {
    "numbers and fractions": (pa.array([1]), pa.array([2.5])),
    "narrow and wide": (pa.array([1], pa.int8()), pa.array([1 << 40])),
    "null and text": (pa.nulls(1), pa.array(["a"])),
    "text and large text": (pa.array(["a"]), pa.array(["b"], pa.large_string())),
    "a dictionary and text": (pa.array(["a"]).dictionary_encode(), pa.array(["b"])),
    "views": (pa.array(["a"], pa.string_view()), pa.array(["b"], pa.string_view())),
    "lists": (pa.array([[1]]), pa.array([[2.5]])),
    "structs": (pa.array([{"a": 1, "b": None}]), pa.array([{"a": 2, "b": "x"}])),
    "times of two zones' making": (
        pa.array([0], pa.timestamp("us", "UTC")),
        pa.array([1], pa.timestamp("ms", "UTC")),
    ),
    "decimals": (pa.array([Decimal("1.23")]), pa.array([Decimal("12345678901234567890.1")])),
}


@pytest.mark.parametrize("name", UNITED)
def test_columns_that_a_type_holds_are_kept_and_survive_compaction(store: Store, name: str) -> None:
    old, new = UNITED[name]
    store.add(["a"], vectors(1), pa.table({"x": old}))
    store.add(["b"], vectors(1, 1), pa.table({"x": new}))
    expected = old.to_pylist() + new.to_pylist()
    for store_now in (store, Store.open(store.path)):
        assert store_now.snapshot().table(["x"]).column(0).to_pylist() == expected
        assert [row["x"] for row in store_now.snapshot().records(np.array([1, 0]), ["x"])] == expected[::-1]
        store_now.compact()


def test_columns_of_one_name_and_columns_named_id_or_text(store: Store) -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    for change in (
        lambda: store.add(["a"], vectors(1), twice),
        lambda: store.set_columns(["a"], twice),
        lambda: store.ensure_addable(["a"], twice),
    ):
        with pytest.raises(InputError, match="two columns are named 'x'"):
            change()
    for name in ("id", "_row", "_id"):
        with pytest.raises(InputError, match=f"a column cannot be named '{name}', .*: rename it"):
            store.add(["a"], vectors(1), pa.table({name: ["mine"]}))
        with pytest.raises(InputError, match="rename it"):
            store.set_columns(["a"], pa.table({name: ["mine"]}))
    store.add(["a"], vectors(1), pa.table({"text": ["t"], "": [1], "a b": [2]}))
    assert store.snapshot().records(np.array([0]), ["id", "", "a b"]) == [{"id": "a", "": 1, "a b": 2}]
    assert store.snapshot().ids(np.array([0])) == ["a"]


def test_changing_vectors_and_columns_is_one_step(store: Store) -> None:
    store.add(["a", "b", "a b"], vectors(3), pa.table({"x": [1, 2, 3], "y": ["p", "q", "r"]}))
    before = store.catalogue.generation
    change = store.update(["b", "z"], vectors=vectors(2, 7), columns=pa.table({"x": [9, 8]}))
    assert (change.added, change.replaced, change.missing) == (0, 1, ("z",))
    assert store.catalogue.generation == before + 1
    assert held(store)["b"] == vectors(2, 7)[0].tolist()
    assert store.snapshot().records(store.snapshot().find(["b"]), ["x", "y"]) == [{"x": 9, "y": "q"}]
    with pytest.raises(UnknownNameError, match="'z'"):
        store.update(["b", "z"], columns=pa.table({"x": [0, 0]}), all_or_none=True)
    store.add(["p", "p"], vectors(2), repeated=True)
    with pytest.raises(InputError, match="id 'p' names several rows"):
        store.set_columns(["p"], pa.table({"x": [1]}))


class Broken:
    """A disk on which a kind of file cannot be made any more, from the n-th on."""

    def __init__(self, operation: str, word: str, after: int) -> None:
        self.operation, self.word, self.left = operation, word, after

    def before(self, operation: str, path: Path) -> None:
        if operation == self.operation and self.word in path.name:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def after(self, operation: str, path: Path) -> None:
        pass


def test_what_is_published_is_not_reported_as_failed_when_tidying_up_fails(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for at in range(7):
        store.add([at], vectors(1, at))
    with durable.watching(Broken("create", "vectors", 1)):  # the eighth is added, gathering the eight fails
        change = store.add([7], vectors(1, 7))
    assert change.added == 1
    assert "stay as they are" in caplog.text
    assert len(Store.open(store.path)) == 8
    store.add([8], vectors(1, 8))
    assert len(store.snapshot().segments) < 4
    with durable.watching(Broken("unlink", "0000", 0)):
        store.delete([3])
        store.compact()
    assert sorted(held(Store.open(store.path)), key=str) == [0, 1, 2, 4, 5, 6, 7, 8]


def test_more_segments_than_files_may_be_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * D)
    given = vectors(150)
    store.add(range(150), given)
    store.delete([3])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
    try:
        stores = [Store.open(store.path) for _ in range(3)]
        for one in stores:
            np.testing.assert_array_equal(one.snapshot().fetch(np.arange(150)), given)
        stores[0].add(["x"], given[:1])
        assert len(stores[1]) == 150
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_reader_in_the_middle_of_a_change_opens_the_next_state(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(["a"], vectors(1))
    store.add(["b"], vectors(1, 1))
    other, real, changes = Store.open(store.path), segments.read_items, iter(range(5))

    def late(path: Path, digest: str) -> Any:
        if next(changes, None) is not None:
            with monkeypatch.context() as patch:
                patch.setattr(snapshot, "read_items", real)
                other.add([f"more {path.name}"], vectors(1))
                other.compact()
        return real(path, digest)

    monkeypatch.setattr(snapshot, "read_items", late)
    reader = Store.open(store.path)
    assert {"a", "b"} < set(held(reader))
    assert set(held(reader)) == set(held(other))


def test_making_a_collection_goes_on_where_a_crash_left_it_and_is_done_once(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "segments").mkdir(parents=True)
    (folder / ".catalogue.json.0123456789ab.vecmill-tmp").write_bytes(b"{")
    (folder / ".lock").write_text("123")
    store = Store.create(folder, dimensions=D)
    store.add(["a"], vectors(1))
    with pytest.raises(InputError, match="not empty"):
        Store.create(folder, dimensions=D)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Store.create(tmp_path / "file", dimensions=D)
    assert len(Store.open(folder)) == 1


def test_a_copy_without_its_empty_folders_takes_items(store: Store) -> None:
    (store.path / "segments").rmdir()
    (store.path / "sidecars").rmdir()
    copied = Store.open(store.path)
    copied.add(["a"], vectors(1))
    assert sorted(held(copied)) == ["a"]


def test_many_generations_leave_nothing_behind(store: Store) -> None:
    store.add(range(50), vectors(50))
    gone = []
    for step in range(300):
        gone.append(weakref.ref(store.snapshot()))
        store.snapshot().find([1])
        store.set_index({"step": step})
    gc.collect()
    assert sum(one() is not None for one in gone) <= 1


def test_adding_is_judged_before_vectors_are_made(store: Store) -> None:
    store.add(["a"], vectors(1), pa.table({"x": [1]}))
    store.ensure_addable(["b"], pa.table({"x": [2]}))
    store.ensure_addable(["a"], replace=True)
    for ids, columns in ((["a"], None), (["b", "b"], None), (["b"], {"x": ["text"]}), (["b"], {"x": [1, 2]})):
        with pytest.raises(InputError):
            store.ensure_addable(ids, None if columns is None else pa.table(columns))
    with pytest.raises(UnknownNameError, match="'b'"):
        store.ensure_there(["b"])


def test_the_files_are_what_the_specification_says(store: Store) -> None:
    """Read by hand as docs/reference/collection.md tells, without a line of ours."""
    given = vectors(7000)
    store.add([1, *(f"é{at}" for at in range(1, 7000))], given, pa.table({"x": list(range(7000))}))
    store.delete([1, "é9"])
    said = json.loads((store.path / "catalogue.json").read_bytes())
    assert said.pop("digest") == blake(json.dumps(said, sort_keys=True, ensure_ascii=False).encode())
    assert (said["format"], said["version"], said["next_row"], said["next_segment"]) == (
        "vecmill collection",
        1,
        7000,
        2,
    )
    (segment,) = said["segments"]
    data = (store.path / "segments" / f"{segment['name']}.vectors").read_bytes()
    assert segment["vectors_bytes"] == len(data)
    magic, version, size, n, d, block = struct.unpack_from("<8sIIQII", data)
    assert (magic, version, size, n, d, block) == (b"VECMILLV", 1, 4, 7000, D, 131072)
    assert data[32:60] == bytes(28)
    assert struct.unpack_from("<I", data, 60) == (zlib.crc32(data[:60]),)
    end = 64 + n * d * size
    np.testing.assert_array_equal(np.frombuffer(data[64:end], "<f4").reshape(n, d), given)
    count = -(-n * d * size // block)
    sums = [zlib.crc32(data[64 + at * block : min(64 + (at + 1) * block, end)]) for at in range(count)]
    assert struct.unpack_from(f"<{count}I", data, end) == tuple(sums)
    assert struct.unpack_from("<I", data, end + 4 * count) == (zlib.crc32(data[end : end + 4 * count]),)
    assert len(data) == end + 4 * count + 4
    assert segment["vectors_digest"] == blake(data[:64] + data[end:])
    items = (store.path / "segments" / f"{segment['name']}.items").read_bytes()
    assert segment["items_digest"] == blake(items)
    table = pa.ipc.open_file(pa.py_buffer(items)).read_all()
    assert table.column("_row").to_pylist() == list(range(7000))
    assert table.column("_id").to_pylist()[:2] == [b"i1", b"s\xc3\xa91"]
    assert (segment["deleted"], segment["deleted_file"]) == (2, "00000001.deleted-2")
    bits = (store.path / "segments" / segment["deleted_file"]).read_bytes()
    assert segment["deleted_digest"] == blake(bits)
    assert [at for at in range(7000) if bits[at // 8] >> (at % 8) & 1] == [0, 9]
    assert len(bits) == 875


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_a_file_cut_short_while_it_is_open_is_an_error_and_not_the_end_of_the_process(store: Store) -> None:
    store.add(range(9000), vectors(9000))
    code = """
import sys, os, numpy as np
from vecmill.core.errors import CorruptFileError
from vecmill.index.storage import Store
now = Store.open(sys.argv[1]).snapshot()
now.fetch(np.array([0, 8999]))
os.truncate(sys.argv[1] + "/segments/00000001.vectors", 4096)
for read in (lambda: now.fetch(np.array([8999])), lambda: list(now.parts()), now.verify):
    try:
        read()
    except CorruptFileError as error:
        print("cut it short" in str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 3), done.stderr
