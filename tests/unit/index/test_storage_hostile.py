"""A collection whose files were damaged, swapped or written by a hostile hand is refused, never believed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill.collection.collection_items import CollectionItems
from vecmill.collection.upkeep import describe
from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, Error, StorageError
from vecmill.core.types import Metric
from vecmill.index import catalogue
from vecmill.index.segments import KEY, ROW
from vecmill.index.storage import Store

D = 5


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "films", dimensions=D, text_column="text")
    for step in range(2):
        given = np.random.default_rng(step).normal(size=(3, D)).astype(np.float32)
        ids: list[object] = ["a", "b", "c"] if step else [1, 2, 3]
        store.add(ids, given, pa.table({"text": ["x", "y", "z"], "n": [1, 2, 3]}))
    store.delete(["b"])
    return store


def used(path: Path) -> list[Any]:
    """Everything people do with a collection."""
    store = Store.open(path)
    items = CollectionItems(store.snapshot())
    near = items.nearest(np.ones((1, D), np.float32), 3, metric=Metric.COSINE)[0]
    found = [items.ids(near.rows), items.records(near.rows, ["text", "n"]), near.distances.tolist()]
    items.ranked("x", 3)
    store.snapshot().table(["id", "text", "n"])
    describe(path)
    store.verify()
    return found


def values_of(store: Store) -> Any:
    return json.loads((store.path / "catalogue.json").read_text())


def put(store: Store, values: Any) -> None:
    """Write a catalogue with a digest that is right."""
    values = {name: value for name, value in values.items() if name != "digest"}
    text = json.dumps({**values, "digest": catalogue._digest(values)})
    (store.path / "catalogue.json").write_text(text)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for name, inner in inside for place in places(inner, (*at, name))]


ABSURD: list[Any] = [
    None,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "../../../secret",
    [],
    {},
    [1],
    True,
    "00000001",
]


def test_absurd_values_in_a_catalogue_are_refused_or_change_nothing(store: Store, tmp_path: Path) -> None:
    sound = values_of(store)
    expected = used(store.path)
    (tmp_path / "secret.vectors").write_bytes(b"not yours")
    refused = 0
    for place in places(sound):
        for absurd in ABSURD:
            values = copy.deepcopy(sound)
            holder = values
            for name in place[:-1]:
                holder = holder[name]
            holder[place[-1]] = absurd
            put(store, values)
            try:
                found = used(store.path)
            except Error:
                refused += 1
            else:
                assert found == expected or (place, absurd) == (("segments",), []), (place, absurd)
    assert refused > 250
    put(store, sound)
    assert used(store.path) == expected


@pytest.mark.parametrize("name", ["../00000001", "../../secret", "/etc/passwd", "00000001/../00000001", "1"])
def test_a_name_that_leads_out_of_the_folder_is_refused(store: Store, name: str) -> None:
    values = values_of(store)
    values["segments"][0]["name"] = name
    put(store, values)
    with pytest.raises(CorruptFileError, match=r"catalogue\.json is damaged: it says what cannot be"):
        Store.open(store.path)
    values = values_of(store)
    values["segments"][0]["name"] = "00000001"
    values["segments"][1]["deleted_file"] = f"{name}.deleted-3"
    put(store, values)
    with pytest.raises(CorruptFileError, match=r"catalogue\.json is damaged: it says what cannot be"):
        Store.open(store.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["segments"].reverse(),
        lambda v: v["segments"].append(v["segments"][1]),
        lambda v: v.update(next_row=5),
        lambda v: v.update(next_segment=2),
        lambda v: v["segments"][0].update(last_row=4),
    ],
    ids=["order", "twice", "next row", "next segment", "overlap"],
)
def test_numbers_that_overlap_or_would_be_given_out_again_are_refused(
    store: Store, change: Callable[[Any], None]
) -> None:
    values = values_of(store)
    change(values)
    put(store, values)
    with pytest.raises(CorruptFileError):
        Store.open(store.path)


def test_json_that_is_too_deep_is_refused(store: Store) -> None:
    (store.path / "catalogue.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFileError, match="not what was written"):
        Store.open(store.path)


@pytest.mark.parametrize("kind", ["vectors", "items"])
def test_segments_whose_files_were_swapped_are_refused(store: Store, kind: str) -> None:
    one, other = (store.path / "segments" / f"0000000{number}.{kind}" for number in (1, 2))
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    with pytest.raises(CorruptFileError, match="restore it from a copy"):
        Store.open(store.path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte less": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "twice": lambda data: data + data,
    "its end zero": lambda data: data[:-8] + bytes(8),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_cut_extended_or_zeroed_are_refused(store: Store, damage: str) -> None:
    checked = 0
    for path in sorted(store.path.rglob("*.*")):
        if not path.is_file():
            continue
        sound = path.read_bytes()
        damaged = DAMAGES[damage](sound)
        if damaged == sound:
            continue
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=path.name):
            used(store.path)
        path.write_bytes(sound)
        checked += 1
    assert checked >= 4
    used(store.path)


def test_a_folder_where_a_file_should_be_is_an_error_of_ours(store: Store) -> None:
    for path in [path for path in sorted(store.path.rglob("*")) if path.is_file()]:
        sound = path.read_bytes()
        path.unlink()
        path.mkdir()
        with pytest.raises(Error):
            used(store.path)
        path.rmdir()
        path.write_bytes(sound)


def keyed(keys: list[bytes | None]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(1, KEY, pa.array(keys, pa.binary()))


def numbered(rows: list[int | None], kind: Any = None) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(0, ROW, pa.array(rows, kind or pa.int64()))


ITEMS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "fewer": lambda table: table.slice(0, 2),
    "more": lambda table: pa.concat_tables([table, table]),
    "none": lambda table: table.slice(0, 0),
    "no row numbers": lambda table: table.drop([ROW]),
    "no ids": lambda table: table.drop([KEY]),
    "narrow row numbers": numbered([3, 4, 5], pa.int32()),
    "missing row numbers": numbered([3, None, 5]),
    "descending row numbers": numbered([5, 4, 3]),
    "repeated row numbers": numbered([3, 3, 5]),
    "other row numbers": numbered([2, 3, 4]),
    "ids as text": lambda table: table.set_column(1, KEY, pa.array(["s1", "s2", "s3"])),
    "missing ids": keyed([b"i1", None, b"i2"]),
    "ids of no kind": keyed([b"", b"i1", b"x"]),
    "numbers that are none": keyed([b"iabc", b"i1", b"i2"]),
    "text that is no text": keyed([b"s\xff", b"i1", b"i2"]),
    "a column of lists": lambda table: table.set_column(2, "text", pa.array([[1], [2], [3]])),
    "a column of bytes": lambda table: table.set_column(2, "text", pa.array([b"\xff", b"", b""])),
    "words for numbers": lambda table: table.set_column(3, "n", pa.array(["a", "b", "c"])),
    "a column twice": lambda table: table.append_column("n", pa.array([1, 2, 3])),
}


@pytest.mark.parametrize("change", ITEMS)
def test_items_that_do_not_fit_their_vectors_are_refused_though_their_digest_is_right(
    store: Store, change: str
) -> None:
    path = store.path / "segments" / "00000002.items"
    table = ITEMS[change](pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    values = values_of(store)
    values["segments"][1]["items_digest"] = durable.digest_file(path)
    put(store, values)
    with pytest.raises(CorruptFileError):
        used(store.path)


def test_random_bytes_in_items_with_a_right_digest_are_an_error_of_ours_or_other_values(store: Store) -> None:
    path = store.path / "segments" / "00000002.items"
    sound, chance = path.read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[int(chance.integers(len(damaged)))] = int(chance.integers(256))
        path.write_bytes(damaged)
        values = values_of(store)
        values["segments"][1]["items_digest"] = durable.digest_file(path)
        put(store, values)
        try:
            used(store.path)
        except Error:
            refused += 1
    assert refused > 30
