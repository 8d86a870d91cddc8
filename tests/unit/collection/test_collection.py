"""A collection with its model: what is added is found, by text, by vector, by words, by filter."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import vecmill
from vecmill import Collection
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.index.settings import IndexKind

TEXTS = {
    "mill": "The old mill grinds wheat into flour.",
    "cat": "A grey cat sleeps on the warm oven.",
    "dog": "The dog barks at every bicycle.",
    "tax": "Tax forms are due at the end of April.",
    "rain": "Heavy rain flooded the lower fields.",
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A collection of a few texts, embedded by the built-in model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VECMILL_HOME", str(tmp_path_factory.mktemp("home")))
        collection = Collection.create(tmp_path_factory.mktemp("notes") / "notes", model="minilm")
        stars = {"stars": list(range(len(TEXTS))), "lang": ["en", "en", None, "en", "de"]}
        collection.add(list(TEXTS), list(TEXTS.values()), columns=stars)
    return collection


def plain(tmp_path: Path, n: int = 30, **options: Any) -> tuple[Collection, Any]:
    vectors = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    collection = Collection.create(tmp_path / "plain", dimensions=8, **options)
    collection.add(
        range(n), vectors=vectors, columns={"n": list(range(n)), "text": [f"row {i}" for i in range(n)]}
    )
    return collection, vectors


def test_texts_are_found_by_meaning_with_their_columns(notes: Collection) -> None:
    found = notes.search("a pet", k=2)
    assert [hit.id for hit in found.hits] == ["dog", "cat"] or [hit.id for hit in found.hits] == [
        "cat",
        "dog",
    ]
    assert found.hits[0].text in TEXTS.values()
    assert set(found.hits[0].columns) == {"stars", "lang"}
    assert found.model == "local:all-MiniLM-L6-v2"
    assert found.complete


def test_a_filter_comes_before_the_neighbours(notes: Collection) -> None:
    found = notes.search("a pet", k=3, where="stars >= 2 and lang is not null")
    assert {hit.id for hit in found.hits} == {"tax", "rain"}
    assert not found.complete


def test_words_and_meaning_together(notes: Collection) -> None:
    found = notes.search("bicycle", k=2, hybrid=True)
    assert found.hits[0].id == "dog"
    notes.add(["bike"], ["A bicycle needs oil."])
    try:
        assert {hit.id for hit in notes.search("bicycle", k=2, hybrid=True).hits} == {"dog", "bike"}
    finally:
        notes.delete(["bike"])
    assert "bike" not in {hit.id for hit in notes.search("bicycle", k=9, hybrid=True).hits}


def test_similar_leaves_the_item_itself_out(notes: Collection) -> None:
    found = notes.similar("cat", k=9)
    assert len(found.hits) == len(TEXTS) - 1
    assert "cat" not in {hit.id for hit in found.hits}
    with pytest.raises(UnknownNameError, match="cat"):
        notes.similar("cats")


def test_a_path_opens_it_wherever_a_set_can_be_searched(notes: Collection) -> None:
    assert vecmill.search(notes.path, "a pet", k=1).hits == notes.search("a pet", k=1).hits
    assert vecmill.search(str(notes.path), "a pet", k=1, where="id = 'tax'").hits[0].id == "tax"


def test_updating_changes_texts_or_columns_and_keeps_the_rest(tmp_path: Path, notes: Collection) -> None:
    collection = Collection.create(tmp_path / "c", model="minilm")
    collection.add(["a", "b"], ["apples and pears", "ships and boats"], columns={"stars": [1, 2]})
    collection.update(["b"], ["apples and cherries"])
    hit = collection.search("cherry", k=1).hits[0]
    assert (hit.id, hit.text, hit.columns["stars"]) == ("b", "apples and cherries", 2)
    collection.update(["a"], columns={"stars": [9]})
    assert collection.search("pears", k=1).hits[0].columns["stars"] == 9
    with pytest.raises(UnknownNameError, match="'c'"):
        collection.update(["a", "c"], columns={"stars": [1, 1]})
    with pytest.raises(InputError, match="nothing to update"):
        collection.update(["a"])


def test_vectors_from_anywhere_need_no_model_but_cannot_be_searched_by_text(tmp_path: Path) -> None:
    collection, vectors = plain(tmp_path)
    assert collection.search(vectors[4], k=1).hits[0].id == 4
    with pytest.raises(InputError, match="model"):
        collection.search("a text")
    with pytest.raises(InputError, match="model"):
        collection.add(["x"], ["a text"])
    with pytest.raises(InputError, match="texts"):
        collection.add(["x"])


def test_an_index_is_measured_and_survives_reopening(tmp_path: Path) -> None:
    collection, vectors = plain(tmp_path, 2000)
    state = collection.build_index(precision="int8", recall_target=0.95)
    assert state.measured is not None
    assert state.measured.low <= state.measured.recall <= state.measured.high
    assert state.measured.recall >= 0.95
    again = Collection(collection.path)
    assert again.index_state() == state
    assert again.search(vectors[77], k=1).hits[0].id == 77
    assert again.search(vectors[77], k=5, exact=True) == collection.search(vectors[77], k=5, exact=True)


@pytest.mark.parametrize("kind", list(IndexKind))
def test_every_kind_of_index_honours_filters_and_deletes(tmp_path: Path, kind: IndexKind) -> None:
    collection, vectors = plain(tmp_path, 1500)
    collection.build_index(kind=kind, precision="float32" if kind is not IndexKind.FLAT else "int8")
    collection.delete(range(0, 1500, 2))
    found = collection.search(vectors[3], k=10, where="n < 300")
    assert len(found.hits) == 10
    assert all(isinstance(hit.id, int) and hit.id % 2 and hit.id < 300 for hit in found.hits)
    odd = np.arange(1, 300, 2)
    cosines = vectors[odd] @ vectors[3] / np.linalg.norm(vectors[odd], axis=1)
    assert [hit.id for hit in found.hits] == odd[np.argsort(-cosines)[:10]].tolist()


def test_a_one_percent_filter_finds_every_true_neighbour(tmp_path: Path) -> None:
    collection, vectors = plain(tmp_path, 3000)
    for precision in ("float32", "binary"):
        collection.build_index(precision=precision, recall_target=0.8)
        for query in range(20):
            found = collection.search(vectors[query], k=10, where="n between 1000 and 1029")
            rows = np.arange(1000, 1030)
            cosines = vectors[rows] @ vectors[query] / np.linalg.norm(vectors[rows], axis=1)
            assert [hit.id for hit in found.hits] == rows[np.argsort(-cosines)[:10]].tolist()


def test_frames_and_tables_can_be_columns(tmp_path: Path) -> None:
    import pandas as pd

    collection = Collection.create(tmp_path / "c", dimensions=2)
    collection.add(["a"], vectors=[[1, 0]], columns=pd.DataFrame({"stars": [1]}))
    collection.add(["b"], vectors=[[0, 1]], columns=pa.table({"stars": [2]}))
    assert [hit.columns for hit in collection.search([1, 0.1], k=2).hits] == [{"stars": 1}, {"stars": 2}]


def test_searching_threads_see_whole_answers_while_items_come_and_go(tmp_path: Path) -> None:
    collection, vectors = plain(tmp_path, 400)
    collection.build_index(precision="int8", recall_target=0.9)
    stop = threading.Event()
    wrong: list[str] = []

    def look(number: int) -> None:
        while not stop.is_set():
            hits = collection.search(vectors[number], k=3).hits
            if len(hits) != 3 or hits[0].id != number:
                wrong.append(f"{number}: {[hit.id for hit in hits]}")
            stop.wait(0.002)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    try:
        for step in range(10):
            collection.add([f"extra {step}"], vectors=np.full((1, 8), 50.0 + step))
            collection.delete([f"extra {step - 1}", 100 + step])
        collection.compact()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(collection) == 400 + 10 - 9 - 10


def test_a_source_that_loses_a_row_does_not_pass_for_one_that_found_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection, vectors = plain(tmp_path)
    items = collection.items()
    monkeypatch.setattr(items, "records", lambda rows, names: [dict.fromkeys(names)] * (len(rows) - 1))
    with pytest.raises(ValueError, match="shorter"):
        vecmill.search(items, vectors[0], k=3)


def test_items_are_what_was_held_when_they_were_taken(tmp_path: Path) -> None:
    collection, _ = plain(tmp_path)
    before = collection.items()
    assert collection.items() is before
    collection.delete([0])
    assert len(before) == 30
    assert len(collection.items()) == 29
    assert before.ids(before.find(0)) == [0]
    assert not len(collection.items().find(0))


def test_what_changes_while_texts_are_embedded_is_not_lost(
    notes: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = Collection.create(tmp_path / "c", model="minilm")
    collection.add(["a", "b"], ["apples", "ships"], columns={"stars": [1, 2]})
    other, real = Collection(collection.path), Collection._vectors

    async def slow(self: Collection, *given: Any) -> Any:
        made = await real(self, *given)
        await asyncio.to_thread(other.update, ["a"], columns={"stars": [9]})
        await asyncio.to_thread(other.delete, ["b"])
        return made

    monkeypatch.setattr(Collection, "_vectors", slow)
    change = collection.update(["a"], ["pears"])
    assert (change.added, change.replaced) == (0, 1)
    monkeypatch.undo()
    hit = collection.search("pears", k=1).hits[0]
    assert (hit.id, hit.text, hit.columns["stars"]) == ("a", "pears", 9)
    collection.add(["b"], ["boats"])
    monkeypatch.setattr(Collection, "_vectors", slow)
    with pytest.raises(UnknownNameError, match="'b'"):
        collection.update(["b"], ["trains"])
    assert len(collection) == 1, "what was deleted stays so"


def test_nothing_is_embedded_that_could_not_be_kept(
    notes: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecmill.collection.collection.AsyncEmbedder", None)  # whoever embeds fails
    calls: list[Any] = [
        lambda: notes.add(["cat"], ["again"]),
        lambda: notes.add(["new", "new"], ["one", "two"]),
        lambda: notes.add(["new"], ["one", "two"]),
        lambda: notes.add(["new"], ["one"], columns={"stars": ["many"]}),
        lambda: notes.add(["new"], ["one"], columns={"stars": [1, 2]}),
        lambda: notes.add(["new"], ["one"], columns={"stars": [1], "lang": ["en", "de"]}),
        lambda: notes.add(["new"], ["one"], columns={"text": ["one"]}),
        lambda: notes.add(["new"], [1]),  # type: ignore[list-item]
        lambda: notes.add("cats", "text"),
        lambda: notes.add(["a", "b"], "ab"),
        lambda: notes.update(["nobody"], ["one"]),
        lambda: notes.update(["cat", "cat"], ["one", "two"]),
        lambda: notes.delete("cat"),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()
    assert len(notes) == len(TEXTS)


def test_ids_may_be_an_arrow_column_or_a_generator(tmp_path: Path) -> None:
    collection, vectors = plain(tmp_path)
    collection.add(pa.array(["x", "y"]), vectors=vectors[:2])
    collection.add((name for name in "pq"), vectors=vectors[:2])  # type: ignore[arg-type]
    assert collection.delete(pa.array(["x", "q", "none"])).missing == ("none",)
    assert collection.update(pa.array(["y"]), columns={"n": [5]}).replaced == 1
    assert len(collection) == 32


def test_a_collection_of_a_model_can_be_searched_before_it_has_a_text(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "c", model="minilm")
    collection.add(["a"], vectors=np.ones((1, 384)))
    assert [(hit.id, hit.text) for hit in collection.search("mill").hits] == [("a", None)]
    with pytest.raises(InputError, match="no text column"):
        collection.search("mill", hybrid=True)
    collection.add(["b"], ["The mill."])
    assert [(hit.id, hit.text) for hit in collection.search("mill", hybrid=True).hits] == [
        ("b", "The mill."),
        ("a", None),
    ]


def test_who_takes_a_collection_for_a_vector_set_is_told(tmp_path: Path) -> None:
    collection, _ = plain(tmp_path)
    with pytest.raises(InputError, match="is a collection, not a vector set: `vecmill index info"):
        vecmill.read_vectors(collection.path)


def test_items_without_any_column_are_found(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "c", dimensions=2)
    collection.add(["a", "b"], vectors=[[1, 0], [0, 1]])
    found = collection.search([0.9, 0.1], k=2)
    assert [(hit.id, hit.text, hit.columns) for hit in found.hits] == [("a", None, {}), ("b", None, {})]
    plain(tmp_path)
    assert len(Collection(tmp_path / "plain").search([1.0] * 8, k=3, columns=[]).hits) == 3


def test_codes_are_used_again_though_nobody_searched_for_some_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecmill.index import store_index

    collection, vectors = plain(tmp_path, 1500)
    collection.build_index(precision="int8", recall_target=0.9)
    collection.search(vectors[0])
    monkeypatch.setattr(store_index, "_read_codes", lambda *given: pytest.fail("codes were read again"))
    for step in range(3):
        collection.delete([step])
        collection.items()
    assert collection.search(vectors[7], k=1).hits[0].id == 7
