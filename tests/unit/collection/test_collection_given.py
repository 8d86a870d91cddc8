"""What a collection is given: ids, texts, columns, long texts, parameters; and what it tells of its items."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecmill
from vecmill import Collection
from vecmill.collection.build import build_collection
from vecmill.collection.collection_items import Item
from vecmill.core.errors import Error, InputError, TextTooLongError, UnknownNameError
from vecmill.core.types import Precision
from vecmill.index.settings import IndexKind
from vecmill.index.storage import Store

WIDTH = 8
LONG = "The mill turns grain into flour. " * 200


def vectors(n: int) -> Any:
    return np.random.default_rng(n).normal(size=(n, WIDTH)).astype(np.float32)


def plain(tmp_path: Path, ids: Any = ("a", "b", "c")) -> Collection:
    made = Collection.create(tmp_path / "plain", dimensions=WIDTH)
    made.add(ids, vectors=vectors(len(ids)), columns={"n": list(range(len(ids)))})
    return made


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """An empty collection of the built-in model."""
    monkeypatch.setenv("VECMILL_HOME", str(tmp_path / "home"))
    return Collection.create(tmp_path / "notes", model="minilm")


@pytest.mark.parametrize(
    ("alone", "said"),
    [("abc", "one text"), (1, "one number"), (np.int64(1), "one number"), (uuid.UUID(int=1), "one UUID")],
)
def test_one_id_is_no_list_of_ids(tmp_path: Path, alone: Any, said: str) -> None:
    made = plain(tmp_path)
    store = Store.open(made.path)
    calls = [
        lambda: made.add(alone, vectors=vectors(1)),
        lambda: made.update(alone, columns={"n": [1]}),
        lambda: made.delete(alone),
        lambda: made.get(alone),
        lambda: store.add(alone, vectors(1)),
        lambda: store.delete(alone),
        lambda: store.set_columns(alone, pa.table({"n": [1]})),
    ]
    for call in calls:
        with pytest.raises(InputError, match=f"ids is {said}: put it into a list"):
            call()
    with pytest.raises(InputError, match="must be a list of ids, not float"):
        made.delete(1.5)  # type: ignore[arg-type]  # what a newcomer tries
    assert made.ids() == ["a", "b", "c"]


def test_one_text_is_no_list_of_texts(notes: Collection) -> None:
    for call in (notes.add, notes.update):
        with pytest.raises(InputError, match="texts is one text: put it into a list"):
            call(["a", "b"], "ab")
        with pytest.raises(InputError, match="2 ids and 1 texts"):
            call(["a", "b"], ["only"])
    assert len(notes) == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"n": [1, 2, 3]}, "2 ids and 3 rows of columns"),
        ({"n": [1, 2], "m": [1]}, "different lengths: 'n' 2, 'm' 1"),
        ({"n": 1}, "column 'n' is one int: put it into a list"),
        ({"n": "xy"}, "column 'n' is one text"),
        ({"n": [1, "a"]}, "make no table"),
        ({1: [1, 2]}, "names are text"),
    ],
)
def test_columns_that_do_not_fit_are_an_error_of_ours(tmp_path: Path, columns: Any, said: str) -> None:
    made = plain(tmp_path)
    with pytest.raises(InputError, match=said):
        made.add(["x", "y"], vectors=vectors(2), columns=columns)
    with pytest.raises(InputError, match=said):
        made.update(["a", "b"], columns=columns)


def test_no_column_takes_the_place_of_the_id_in_filters(tmp_path: Path) -> None:
    made = plain(tmp_path)
    with pytest.raises(InputError, match=r"a column cannot be named 'id'.*rename it"):
        made.add(["x"], vectors=vectors(1), columns={"id": ["a"]})
    assert [hit.id for hit in made.search(vectors(1)[0], where="id = 'b'").hits] == ["b"]


def test_a_set_with_its_ids_in_a_column_id_becomes_a_collection(tmp_path: Path) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors(2).reshape(-1)), WIDTH)
    pq.write_table(pa.table({"id": ["x", "y"], "n": [1, 2], "vector": column}), tmp_path / "a.parquet")
    build_collection(tmp_path / "a.parquet", tmp_path / "c", id_column="id")
    made = Collection(tmp_path / "c")
    assert made.get(["y"]) == [Item("y", None, {"n": 2})]
    build_collection(tmp_path / "a.parquet", tmp_path / "d", id_column="id", columns=["id", "n"])
    assert Collection(tmp_path / "d").items().columns == ("n",)
    with pytest.raises(InputError, match=r"has a column 'id' that is not its ids.*--id id"):
        build_collection(tmp_path / "a.parquet", tmp_path / "e", id_column="n")


def test_texts_that_are_too_long_are_an_error_whose_advice_can_be_followed(notes: Collection) -> None:
    with pytest.raises(TextTooLongError, match=r"text 1 has \d+ tokens.*long_text='average' or 'truncate'$"):
        notes.add(["a", "b"], ["short", LONG])
    assert len(notes) == 0
    notes.add(["a", "b"], ["short", LONG], long_text="average")
    notes.update(["b"], [LONG + "x"], long_text="truncate")
    with pytest.raises(InputError, match="'average' or 'truncate'"):
        notes.add(["c"], [LONG], long_text="chunks")
    with pytest.raises(UnknownNameError, match="did you mean 'average'"):
        notes.add(["c"], [LONG], long_text="averag")
    with pytest.raises(InputError, match="empty='embed'"):
        notes.add(["c"], [" "])
    notes.add(["c"], [" "], empty="embed")
    assert notes.ids() == ["a", "b", "c"]


def test_a_collection_keeps_what_becomes_of_long_texts(notes: Collection, tmp_path: Path) -> None:
    made = Collection.create(tmp_path / "kept", model="minilm", long_text="average")
    made.add(["a"], [LONG])
    again = Collection(made.path)
    assert again.manifest is not None
    assert again.manifest.long_text == "average"
    again.add(["b"], [LONG])
    kept = again.items().vectors_of(np.array([0, 1]))
    np.testing.assert_array_equal(kept[0], kept[1])
    notes.add(["t"], [LONG], long_text="truncate")
    assert not np.array_equal(notes.items().vectors_of(np.array([0]))[0], kept[0])
    with pytest.raises(TextTooLongError):
        again.add(["c"], [LONG], long_text="error")
    with pytest.raises(InputError, match="name a model"):
        Collection.create(tmp_path / "none", dimensions=4, long_text="average")


def test_an_index_is_asked_for_by_any_librarys_names(tmp_path: Path) -> None:
    made = plain(tmp_path, tuple(range(60)))
    assert made.build_index().settings.precision is Precision.INT8
    state = made.build_index(kind="exact")
    assert state.settings.is_exact
    pytest.importorskip("faiss")
    state = made.build_index(kind="hnsw", M=8, efConstruction=40)
    assert (state.settings.kind, state.settings.m, state.settings.ef_construction) == (IndexKind.HNSW, 8, 40)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "hnws"}, "did you mean 'hnsw'"),
        ({"kind": "flat", "precision": "int9"}, "did you mean 'int8'"),
        ({"kind": "hnsw", "ef_constructoin": 3}, "did you mean 'ef_construction'"),
        ({"kind": "flat", "M": 3}, "does not apply"),
        ({"kind": "hnsw", "m": "x"}, "whole number"),
        ({"kind": None}, "unknown kind"),
        ({"recall_target": 2}, "it is a share"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_a_mistake_in_an_index_is_an_error_of_ours(tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(Error, match=said):
        plain(tmp_path).build_index(**given)


def test_items_are_given_back_by_their_ids(notes: Collection) -> None:
    notes.add(["a", 1], ["a cat", "a dog"], columns={"n": [5, 6]})
    assert notes.get([1, "nobody", "a", 1]) == [
        Item(1, "a dog", {"n": 6}),
        None,
        Item("a", "a cat", {"n": 5}),
        Item(1, "a dog", {"n": 6}),
    ]
    assert notes.get([]) == []
    assert ("a" in notes, 1 in notes, "1" in notes, None in notes, 1.5 in notes) == (
        True,
        True,
        False,
        False,
        False,
    )
    assert notes.ids() == ["a", 1]
    assert repr(notes) == f"<Collection {notes.path}: 2 rows, 384 dimensions, local:all-MiniLM-L6-v2>"


def test_items_go_by_ids_or_by_a_filter_and_not_by_both(tmp_path: Path) -> None:
    made = plain(tmp_path)
    for given in ({}, {"ids": ["a"], "where": "n = 1"}):
        with pytest.raises(InputError, match="one of them"):
            made.delete(**given)
    with pytest.raises(UnknownNameError, match="column 'm'"):
        made.delete(where="m = 1")
    assert made.delete(where="n >= 1").deleted == 2
    assert made.delete(where="n >= 1").deleted == 0
    assert made.delete([]).deleted == 0
    assert made.ids() == ["a"]


def test_an_open_collection_is_searched_like_its_path(tmp_path: Path) -> None:
    made, query = plain(tmp_path), vectors(1)[0]
    assert vecmill.search(made, query).hits == made.search(query).hits
    assert vecmill.similar(made, "a").hits == made.similar("a").hits
    made.delete(["b"])
    assert {hit.id for hit in vecmill.search(made, query).hits} == {"a", "c"}
    with pytest.raises(InputError, match="cannot search a dict"):
        vecmill.search({"a": 1}, query)  # type: ignore[arg-type]  # what a newcomer tries
    with pytest.raises(InputError, match="id_column is for a file"):
        vecmill.search(made, query, id_column="x")


def test_an_unknown_id_brings_those_like_it(tmp_path: Path) -> None:
    made = plain(tmp_path, ("apple", "pear", 7, "8"))
    with pytest.raises(UnknownNameError, match="unknown id 'aple'; did you mean 'apple'"):
        made.update(["pear", "aple"], columns={"n": [1, 2]})
    with pytest.raises(UnknownNameError, match="unknown id '7'; did you mean 7, a number"):
        made.update(["7"], columns={"n": [1]})
    with pytest.raises(UnknownNameError, match="unknown id 8; did you mean '8', a text"):
        made.update([8], columns={"n": [1]})


def test_replacing_says_which_were_new_and_which_were_there(tmp_path: Path) -> None:
    made = plain(tmp_path)
    change = made.add(["a", "b", "z"], vectors=vectors(3), replace=True)
    assert (change.added, change.replaced) == (1, 2)
    change = made.update(["a"], columns={"n": [9]})
    assert (change.added, change.replaced) == (0, 1)


def test_ids_of_several_kinds_are_filtered_as_texts(tmp_path: Path) -> None:
    made = plain(tmp_path, (1, "1", "x"))
    query = vectors(1)[0]
    assert {hit.id for hit in made.search(query, where="id = '1'").hits} == {1, "1"}
    with pytest.raises(InputError, match="id"):
        made.search(query, where="id = 1")
    made.delete(["1", "x"])
