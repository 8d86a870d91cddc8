"""A set searched by text, vector and item gives what comparing with every row by hand gives."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.search import search, search_async, search_many, similar
from vecmill.core import registry
from vecmill.core.errors import DimensionMismatchError, InputError, SpaceMismatchError, UnknownNameError
from vecmill.core.types import Vectors
from vecmill.data.vector_set import read_vectors
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import Embedder
from vecmill.testing.fakes import FakeProvider

TEXTS = ["a dog", "a cat", "two boats", None, "a house"]


def open_fake(name: str, **_: Any) -> FakeProvider:
    """Open the fake model as the registry opens any."""
    return FakeProvider(name=name, dimensions=int(name.partition("-")[2] or 8))


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.names("providers"), "fake", f"{__name__}:open_fake")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Five rows embedded by the fake model; the fourth has no text."""
    with Embedder(provider=FakeProvider()) as embedder:
        manifest = embedder.manifest()
        vectors = embedder.embed([text for text in TEXTS if text is not None]).vectors
    return write(tmp_path / "made.parquet", vectors, replace(manifest, rows=5, text="text"))


def write(path: Path, vectors: Vectors, manifest: Any) -> Path:
    given = iter(vectors.tolist())
    values = [None if text is None else next(given) for text in TEXTS]
    table = pa.table(
        {
            "id": [f"row{number}" for number in range(5)],
            "text": pa.array(TEXTS, pa.string()),
            "price": [1.0, 2.0, 3.0, 4.0, 5.0],
            "embedding": pa.array(values, pa.list_(pa.float32(), manifest.dimensions)),
        }
    )
    schema = table.schema.set(0, pa.field("id", pa.string(), nullable=False))
    batches = [pa.record_batch(batch.columns, schema=schema) for batch in table.to_batches()]
    write_set(path, schema, batches, manifest)
    return path


def foreign(path: Path, vectors: Vectors) -> Path:
    kind = pa.list_(pa.float64())
    pq.write_table(pa.table({"name": ["x", "y", "z"], "vector": pa.array(vectors.tolist(), kind)}), path)
    return path


def test_a_text_is_embedded_as_a_query_by_the_sets_own_model(made: Path) -> None:
    with Embedder(provider=FakeProvider()) as embedder:
        asked = embedder.embed("boats", input_type="query").vectors[0]
    by_text, by_vector = search(made, "boats", k=3), search(made, asked, k=3)
    assert by_text.hits == by_vector.hits
    assert (by_text.query, by_text.model) == ("boats", "fake:hash")
    assert by_text.space == FakeProvider().info.space


def test_hits_are_those_of_comparing_with_every_row(made: Path) -> None:
    found = read_vectors(made)
    asked = np.arange(8, dtype=np.float32)
    cosine = found.vectors @ asked / np.linalg.norm(asked)
    order = np.argsort(-cosine, kind="stable")
    result = search(found, asked, k=4)
    assert [hit.id for hit in result.hits] == [found.ids[found.rows[row]] for row in order]
    assert [hit.similarity for hit in result.hits] == pytest.approx(cosine[order].tolist(), abs=1e-6)
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4]
    assert all(hit.distance == pytest.approx(1 - hit.similarity) for hit in result.hits)


def test_a_row_without_a_vector_is_never_found(made: Path) -> None:
    result = search(made, "anything", k=50)
    assert {hit.id for hit in result.hits} == {"row0", "row1", "row2", "row4"}
    assert not result.complete


def test_a_hit_carries_its_text_and_columns(made: Path) -> None:
    hits = search(made, "anything", k=4).hits
    by_id = {hit.id: hit for hit in hits}
    assert by_id["row2"].text == "two boats"
    assert by_id["row2"].columns == {"price": 3.0}


def test_only_the_columns_asked_for_are_carried(made: Path) -> None:
    assert search(made, "anything", k=1, columns=[]).hits[0].columns == {}
    with pytest.raises(UnknownNameError, match="price"):
        search(made, "anything", columns=["prize"])


def test_several_queries_give_one_result_each_in_order(made: Path) -> None:
    texts = ["a dog", "a house", "a dog"]
    many = asyncio.run(search_many(made, texts, k=2))
    assert [result.query for result in many] == texts
    assert many == [search(made, text, k=2) for text in texts]


def test_complete_says_whether_k_were_found(made: Path) -> None:
    assert search(made, "x", k=4).complete
    assert not search(made, "x", k=5).complete


def test_thresholds_keep_their_boundary(made: Path) -> None:
    everything = search(made, "x", k=4).hits
    second = everything[1]
    assert search(made, "x", k=4, max_distance=second.distance).hits == everything[:2]
    near = search(made, "x", k=4, min_similarity=second.similarity)
    assert near.hits == everything[:2]
    assert not near.complete


@pytest.mark.parametrize(
    ("metric", "likeness"),
    [("cosine", 0.6), ("dot", 0.6), ("euclidean", 1 / (1 + 0.8**0.5)), ("manhattan", 1 / 2.2)],
)
def test_a_similarity_on_the_boundary_is_in_though_distances_are_rounded(
    tmp_path: Path, metric: str, likeness: float
) -> None:
    path = foreign(tmp_path / "three.parquet", np.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]], np.float32))
    found = search(path, np.array([1.0, 0.0]), metric=metric, min_similarity=likeness, id_column="name")
    assert [hit.id for hit in found.hits] == ["y", "x"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_similarity_grows_as_distance_shrinks(made: Path, metric: str) -> None:
    hits = search(made, np.ones(8), k=4, metric=metric).hits
    assert [h.distance for h in hits] == sorted(h.distance for h in hits)
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)


def test_similar_leaves_out_the_item_itself(made: Path) -> None:
    found = read_vectors(made)
    result = similar(made, "row1", k=10)
    assert {hit.id for hit in result.hits} == {"row0", "row2", "row4"}
    best = max((0, 2, 3), key=lambda at: float(found.vectors[at] @ found.vectors[1]))
    assert result.hits[0].id == found.ids[found.rows[best]]


def test_similar_to_an_unknown_id_names_close_ones(made: Path) -> None:
    with pytest.raises(UnknownNameError, match="'row1'"):
        similar(made, "row11")


def test_similar_to_an_item_without_a_vector_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match=r"row3.*no vector"):
        similar(made, "row3")


def test_an_item_of_several_chunks_finds_each_neighbour_once(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors = np.vstack([vectors, vectors[:1]])
    table = pa.table(
        {
            "id": ["long", "b", "long", "d", "e"],
            "chunk": pa.array([0, 0, 1, 0, 0], pa.int32()),
            "vector": pa.array(vectors.tolist(), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "chunks.parquet")
    result = similar(tmp_path / "chunks.parquet", "long", k=5, id_column="id")
    assert [hit.id for hit in result.hits] == ["e", "b", "d"]
    assert [hit.rank for hit in result.hits] == [1, 2, 3]
    assert result.hits[0].distance == pytest.approx(0)


def chunked(path: Path) -> Path:
    """Two items of two chunks each, "long" and "far", and two items of one id."""
    vectors = [[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0.1, 0.9, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    table = pa.table(
        {
            "id": ["long", "long", "far", "far", "one", "one"],
            "chunk": pa.array([0, 1, 0, 1, 0, 0], pa.int32()),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path)
    return path


def test_neighbours_do_not_depend_on_the_columns_shown(tmp_path: Path) -> None:
    path = chunked(tmp_path / "chunks.parquet")
    shown = [
        [(hit.id, hit.distance) for hit in similar(path, "long", id_column="id", columns=columns).hits]
        for columns in (None, [], ["chunk"])
    ]
    assert shown[0] == shown[1] == shown[2]
    assert [id_ for id_, _ in shown[0]] == ["far", "far", "one", "one"]


def test_two_rows_of_one_id_are_two_hits(tmp_path: Path) -> None:
    hits = similar(chunked(tmp_path / "chunks.parquet"), "long", id_column="id").hits
    assert [hit.id for hit in hits].count("one") == 2
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


def test_another_column_of_vectors_is_not_searched_with_the_sets_model(made: Path) -> None:
    table = pq.read_table(made)
    table = table.append_column("theirs", table.column("embedding"))
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(made).metadata), made)
    assert search(made, "a dog", k=1).model == "fake:hash"
    with pytest.raises(InputError, match=r"does not say which model made its column 'theirs'.*-m"):
        search(made, "a dog", vector_column="theirs")
    assert search(made, "a dog", vector_column="theirs", model="fake:hash", k=1).model == "fake:hash"
    by_vector = search(made, np.ones(8), vector_column="theirs", k=1)
    assert (by_vector.model, by_vector.space) == (None, None)


def test_another_model_is_refused_though_the_width_fits(made: Path) -> None:
    with pytest.raises(SpaceMismatchError, match="fake:hash"):
        search(made, "x", model="fake:other")


def test_a_foreign_set_needs_the_model_named(tmp_path: Path) -> None:
    path = foreign(tmp_path / "foreign.parquet", np.eye(3, 8, dtype=np.float32))
    with pytest.raises(InputError, match=r"-m .*all-MiniLM-L6-v2"):
        search(path, "a text")
    assert search(path, "a text", model="fake:hash").model == "fake:hash"
    by_vector = search(path, np.eye(8)[1], k=1)
    assert (by_vector.model, by_vector.space) == (None, None)
    assert by_vector.hits[0].columns == {"name": "y"}


def test_another_width_is_refused_naming_both(tmp_path: Path, made: Path) -> None:
    path = foreign(tmp_path / "foreign.parquet", np.eye(3, 5, dtype=np.float32))
    with pytest.raises(DimensionMismatchError, match=r"8 dimensions.* 5"):
        search(path, "a text", model="fake:hash")
    with pytest.raises(DimensionMismatchError, match=r"5 dimensions.* 8"):
        search(made, np.ones(5))


def test_a_model_that_moved_is_said_to_be_missing(tmp_path: Path, made: Path) -> None:
    found = read_vectors(made)
    assert found.manifest is not None
    moved = replace(found, manifest=replace(found.manifest, model="local:/nowhere/model"))
    with pytest.raises(InputError, match=r"/nowhere/model, which is not here.*-m"):
        search(moved, "x")


def test_a_set_without_vectors_has_no_hits(tmp_path: Path) -> None:
    path = foreign(tmp_path / "foreign.parquet", np.eye(3, 8, dtype=np.float32))
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    result = search(path, np.ones(8), k=3)
    assert result.hits == ()
    assert not result.complete


@pytest.mark.parametrize("query", ["", " \n\t"])
def test_an_empty_query_is_refused(made: Path, query: str) -> None:
    with pytest.raises(InputError, match="the query is empty"):
        search(made, query)


def test_half_a_character_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        search(made, "caf\udce9")


def test_a_query_that_is_too_long_is_not_cut_silently(made: Path) -> None:
    with pytest.raises(InputError, match="300"):
        search(made, "word " * 300)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, r"k is 2\.5"),
        ({"k": "5"}, "k is '5'"),
        ({"k": True}, "k is True"),
        ({"columns": "kind"}, r"give a list of names, such as \['kind'\]"),
        ({"max_distance": "0.5"}, "max_distance is '0.5'"),
        ({"max_distance": float("nan")}, "max_distance is nan"),
        ({"metric": "cosin"}, "cosine"),
        ({"top_k": 3}, "unknown option"),
    ],
)
def test_a_wrong_option_is_refused(made: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        search(made, "x", **options)


def test_a_table_of_vectors_is_not_one_query(made: Path) -> None:
    with pytest.raises(InputError, match="search_many"):
        search(made, np.ones((2, 8)))


def test_a_query_with_nan_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        search(made, np.full(8, np.nan))


def test_the_asynchronous_door_gives_the_same(made: Path) -> None:
    assert asyncio.run(search_async(made, "a cat", k=2)) == search(made, "a cat", k=2)


def test_no_queries_have_no_answers(made: Path) -> None:
    assert asyncio.run(search_many(made, [])) == []
    assert asyncio.run(search_many(made, np.empty((0, 8), np.float32))) == []


def test_more_hits_than_a_database_can_count_are_asked_for(made: Path) -> None:
    found = search(made, "a dog", k=1 << 62, hybrid=True)
    assert (len(found), found.fewer) == (4, "size")


def test_a_filter_is_checked_where_there_is_nothing_to_filter(tmp_path: Path) -> None:
    nothing = pa.table({"name": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32(), 2))})
    pq.write_table(nothing, tmp_path / "none.parquet")
    assert search(tmp_path / "none.parquet", [1.0, 0.0], where="name = 'x'").fewer == "where"
    with pytest.raises(UnknownNameError, match="unknown column 'nome'"):
        search(tmp_path / "none.parquet", [1.0, 0.0], where="nome = 'x'")
