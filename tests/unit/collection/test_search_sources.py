"""The same items answer alike from a vector set and from a collection, whatever is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.search import SearchResult, search, similar
from vecmill.core import registry
from vecmill.core.errors import InputError
from vecmill.core.types import Metric, Precision
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store
from vecmill.index.store_index import build_index
from vecmill.testing.fakes import FakeProvider

SIZE = 300


def open_fake(name: str, **_: Any) -> FakeProvider:
    """Open the fake model as the registry opens any."""
    return FakeProvider(name=name, dimensions=8)


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.names("providers"), "fake", f"{__name__}:open_fake")


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """A vector set and a collection of the same items; the collection once held others, too."""
    generator = np.random.default_rng(2)
    vectors = generator.standard_normal((SIZE, 8)).astype(np.float32)
    columns = pa.table(
        {
            "lot": [row % 10 for row in range(SIZE)],
            "text": [f"word{row % 7} number{row}" for row in range(SIZE)],
        }
    )
    column = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    ids = pa.array([f"item {row}" for row in range(SIZE)])
    pq.write_table(columns.append_column("id", ids).append_column("vector", column), tmp_path / "a.parquet")
    store = Store.create(tmp_path / "a.collection", dimensions=8, text_column="text")
    store.add(["gone"], vectors[:1], columns.slice(0, 1))
    half = SIZE // 2
    store.add(ids[:half], vectors[:half], columns.slice(0, half))
    store.add(ids[half:], vectors[half:], columns.slice(half))
    store.delete(["gone"])
    return tmp_path / "a.parquet", tmp_path / "a.collection"


def plain(result: SearchResult) -> SearchResult:
    """Leave out what only one of them can say."""
    hits = tuple(
        replace(hit, columns={"lot": hit.columns["lot"]}, text=str(hit.text).split()[0])
        for hit in result.hits
    )
    return replace(result, hits=hits, notes=())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "lot = 3"},
        {"where": "lot in (1, 2) and not text like 'word1%'", "k": 200},
        {"where": "lot > 99"},
        {"where": "id = 'item 7'"},
        {"max_distance": 0.6, "k": 50},
        *[{"metric": metric.value, "exact": True, "where": "lot < 5"} for metric in Metric],
    ],
    ids=str,
)
def test_a_collection_answers_as_the_set_does(sources: tuple[Path, Path], options: dict[str, Any]) -> None:
    query = np.linspace(-1, 1, 8)
    of_set, of_collection = (
        search(source, query, **options, **extra)
        for source, extra in zip(sources, ({"id_column": "id"}, {}), strict=True)
    )
    assert plain(of_set) == plain(of_collection)
    own = similar(sources[0], "item 12", id_column="id", **options)
    assert plain(own) == plain(similar(sources[1], "item 12", **options))


def test_hybrid_search_of_a_collection_finds_words_of_what_is_still_there(
    sources: tuple[Path, Path],
) -> None:
    options: dict[str, Any] = {"model": "fake:hash", "hybrid": True, "where": "lot <> 4"}
    hits = search(sources[1], "number123", k=2, **options).hits
    assert "item 123" in {hit.id for hit in hits}
    everything = search(sources[1], "word0", k=SIZE, **options)
    assert (len(everything), everything.fewer) == (SIZE * 9 // 10, "where")
    assert "gone" not in {hit.id for hit in everything.hits}


@pytest.mark.parametrize("metric", [metric.value for metric in Metric])
def test_without_an_index_any_metric_is_answered_as_the_set_does(
    sources: tuple[Path, Path], metric: str
) -> None:
    of_set = search(sources[0], np.ones(8), metric=metric, id_column="id")
    of_collection = search(sources[1], np.ones(8), metric=metric)
    assert of_collection.metric == metric
    assert plain(of_set) == plain(of_collection)
    own = similar(sources[0], "item 12", id_column="id", metric=metric)
    assert plain(own) == plain(similar(sources[1], "item 12", metric=metric))


def test_a_collection_with_an_index_refuses_another_metric(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    store = Store.create(tmp_path / "c", dimensions=8)
    store.add([str(n) for n in range(300)], vectors)
    build_index(store, IndexSettings(precision=Precision.INT8))
    assert search(tmp_path / "c", np.ones(8)).metric == "cosine"
    with pytest.raises(InputError, match="built for the metric cosine, not dot"):
        search(tmp_path / "c", np.ones(8), metric="dot")
    assert search(tmp_path / "c", np.ones(8), metric="dot", exact=True).metric == "dot"


def test_a_collection_refuses_columns_of_a_file(sources: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="a collection has its own"):
        search(sources[1], np.ones(8), vector_column="vector")
