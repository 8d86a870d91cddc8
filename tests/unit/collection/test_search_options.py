"""Filter, words, metric and exactness of a search; every kind of source by the same call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.filters import Filter
from vecmill.collection.items import Items, Near
from vecmill.collection.opening import opened
from vecmill.collection.search import search, similar
from vecmill.collection.set_items import SetItems
from vecmill.core import registry
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.core.types import Id, IntArray, Metric, Vectors
from vecmill.core.vectors import distances, similarity
from vecmill.data.vector_set import read_vectors
from vecmill.testing.fakes import FakeProvider

WORDS = ["boat", "dog", "cat", "house", "tree"]
SIZE = 400


def open_fake(name: str, **_: Any) -> FakeProvider:
    """Open the fake model as the registry opens any."""
    return FakeProvider(name=name, dimensions=8)


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.names("providers"), "fake", f"{__name__}:open_fake")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """400 rows from elsewhere: random vectors, texts of two words, a count of stars."""
    generator = np.random.default_rng(11)
    vectors = generator.standard_normal((SIZE, 8)).astype(np.float32)
    table = pa.table(
        {
            "stars": [row % 5 for row in range(SIZE)],
            "text": [f"{WORDS[row % 5]} {WORDS[row // 5 % 5]} {row}" for row in range(SIZE)],
            "vector": pa.array(vectors.tolist(), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "set.parquet")
    return tmp_path / "set.parquet"


def asked(text: str) -> Vectors:
    """Return the fake model's vector of a query."""
    from vecmill.embedder.embedder import Embedder

    with Embedder(provider=FakeProvider()) as embedder:
        return embedder.embed(text, input_type="query").vectors


def test_k_counts_among_the_rows_that_pass(path: Path) -> None:
    query = np.ones(8, np.float32)
    everything = search(path, query, k=SIZE).hits
    passing = [hit.id for hit in everything if hit.columns["stars"] >= 3]
    result = search(path, query, k=7, where="stars >= 3")
    assert [hit.id for hit in result.hits] == passing[:7]
    assert result.complete
    assert result.fewer is None


@pytest.mark.parametrize(
    ("options", "fewer"),
    [
        ({"where": "stars = 1 and text like '%dog dog%'"}, "where"),
        ({"where": "stars = 1", "max_distance": 0.2}, "threshold"),
        ({"min_similarity": 0.9}, "threshold"),
        ({}, "size"),
    ],
)
def test_why_there_are_fewer_is_said(path: Path, options: dict[str, Any], fewer: str) -> None:
    result = search(path, np.ones(8), k=SIZE + 1, **options)
    assert (result.complete, result.fewer) == (False, fewer)


def test_a_wrong_filter_is_refused_with_its_place(path: Path) -> None:
    with pytest.raises(InputError, match="where, character 9: stars is a number, 'x' is text"):
        search(path, np.ones(8), where="stars > 'x'")
    with pytest.raises(UnknownNameError, match="'stars'"):
        similar(path, "5", where="starz > 1")


@pytest.mark.parametrize("metric", list(Metric))
def test_every_metric_orders_and_displays_as_the_reference(path: Path, metric: Metric) -> None:
    found, query = read_vectors(path), np.linspace(-1, 1, 8, dtype=np.float32)
    near = distances(query[np.newaxis], found.vectors, metric=metric)[0]
    order = np.argsort(near, kind="stable")[:20]
    result = search(found, query, k=20, metric=metric.value)
    assert [hit.id for hit in result.hits] == [str(row) for row in order]
    assert [hit.distance for hit in result.hits] == near[order].tolist()
    assert [hit.similarity for hit in result.hits] == similarity(near[order], metric, 8).tolist()
    assert result.metric == metric.value


def test_hybrid_is_the_fusion_of_both_rankings(path: Path) -> None:
    items = SetItems(read_vectors(path))
    query = "tree house"
    near = items.nearest(asked(query), 100, metric=Metric.COSINE)[0].rows.tolist()
    words = items.ranked(query, 100).tolist()
    worth = {
        row: sum(1 / (61 + ranking.index(row)) for ranking in (near, words) if row in ranking)
        for row in {*near, *words}
    }
    order = sorted(
        worth, key=lambda row: (-round(worth[row], 15), near.index(row) if row in near else SIZE, row)
    )
    result = search(items, query, k=9, model="fake:hash", hybrid=True)
    assert [hit.id for hit in result.hits] == [str(row) for row in order[:9]]
    assert [hit.rank for hit in result.hits] == list(range(1, 10))


def test_a_hybrid_hit_carries_the_distance_of_its_vectors(path: Path) -> None:
    found = read_vectors(path)
    everything = search(found, "tree house", k=150, model="fake:hash", hybrid=True, metric="euclidean").hits
    near = distances(asked("tree house"), found.vectors, metric=Metric.EUCLIDEAN)[0]
    assert len(everything) == 150
    assert [hit.distance for hit in everything] == [float(near[int(str(hit.id))]) for hit in everything]


def test_a_hybrid_search_finds_a_word_the_vectors_miss(path: Path) -> None:
    found, word = read_vectors(path), "387"
    assert word not in {hit.id for hit in search(found, word, k=100, model="fake:hash").hits}
    hits = search(found, word, k=2, model="fake:hash", hybrid=True).hits
    assert word in {hit.id for hit in hits}


def test_hybrid_keeps_filter_and_thresholds(path: Path) -> None:
    options: dict[str, Any] = {"model": "fake:hash", "hybrid": True, "k": 100}
    everything = search(path, "tree house", **options | {"k": SIZE}).hits
    limit = sorted(hit.distance for hit in everything)[60]
    result = search(path, "tree house", **options, max_distance=limit)
    assert [hit.id for hit in result.hits] == [hit.id for hit in everything if hit.distance <= limit]
    assert (len(result), result.complete, result.fewer) == (61, False, "threshold")
    filtered = search(path, "tree house", **options, where="stars = 4")
    assert {hit.columns["stars"] for hit in filtered.hits} == {4}
    assert (len(filtered), filtered.fewer) == (SIZE // 5, "where")


def test_hybrid_without_a_text_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="give the query as a text"):
        search(path, np.ones(8), hybrid=True)
    with pytest.raises(InputError, match="similar compares vectors"):
        similar(path, "1", hybrid=True)


def test_similar_obeys_the_filter(path: Path) -> None:
    everything = similar(path, "5", k=SIZE).hits
    result = similar(path, "5", k=4, where="stars = 0")
    assert "5" not in {hit.id for hit in result.hits}
    assert result.hits == tuple(
        replace(hit, rank=rank)
        for rank, hit in enumerate([hit for hit in everything if hit.columns["stars"] == 0][:4], 1)
    )
    assert similar(path, "5", k=SIZE).fewer == "size"


class Own:
    """Items of whole numbers and bytes, built for euclidean; records what it is asked, and closing."""

    name, manifest, dimensions, columns, text_column = "own", None, 2, (), None
    metric = Metric.EUCLIDEAN

    def __init__(self) -> None:
        self.vectors = np.array([[0, 0], [1, 0], [0, 2]], np.float32)
        self.names: list[Id] = [17, b"\xab\x01", "x"]
        self.asked: list[tuple[Metric, bool]] = []
        self.closed = 0

    def __len__(self) -> int:
        return 3

    def nearest(
        self,
        queries: Vectors,
        k: int,
        *,
        metric: Metric,
        where: Filter | None = None,
        leave_out: IntArray | None = None,
        exact: bool = False,
    ) -> list[Near]:
        self.asked.append((metric, exact))
        near = distances(queries, self.vectors, metric=metric)
        rows = np.setdiff1d(np.arange(3), [] if leave_out is None else leave_out)
        orders = [rows[np.argsort(one[rows], kind="stable")][:k] for one in near]
        return [Near(order, one[order]) for order, one in zip(orders, near, strict=True)]

    def ranked(self, query: str, count: int, *, where: Filter | None = None) -> IntArray:
        raise InputError("no words here")

    def find(self, item: Id) -> IntArray:
        return np.array([row for row, name in enumerate(self.names) if name == item], np.int64)

    def vectors_of(self, rows: IntArray) -> Vectors:
        return self.vectors[rows]

    def known_ids(self) -> Sequence[Id]:
        return self.names

    def ids(self, rows: IntArray) -> list[Id]:
        return [self.names[row] for row in rows]

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        return [{} for _ in rows]

    def close(self) -> None:
        self.closed += 1


def test_items_already_open_are_searched_and_stay_open() -> None:
    own = Own()
    hits = search(own, [1.0, 0.1], k=5).hits
    assert [hit.id for hit in hits] == [b"\xab\x01", 17, "x"]
    assert own.closed == 0


def test_another_metric_than_it_is_built_for_needs_exact() -> None:
    own = Own()
    assert search(own, [1.0, 0.0]).metric == "euclidean"
    assert search(own, [1.0, 0.0], metric="euclidean").metric == "euclidean"
    with pytest.raises(InputError, match=r"own is built for the metric euclidean, not dot.*--exact"):
        search(own, [1.0, 0.0], metric="dot")
    with pytest.raises(InputError, match="--exact"):
        similar(own, 17, metric="dot")
    assert search(own, [1.0, 0.0], metric="dot", exact=True).metric == "dot"
    assert own.asked == [(Metric.EUCLIDEAN, False), (Metric.EUCLIDEAN, False), (Metric.DOT, True)]


@pytest.mark.parametrize("name", [17, "17", b"\xab\x01", "ab01", "x"], ids=repr)
def test_an_id_of_any_type_can_be_spelled_out(name: Id) -> None:
    assert len(similar(Own(), name).hits) == 2


@pytest.mark.parametrize(
    "name", [18, "18", b"\xab", "017", "17.0", "", "Ⅻ", "9" * 5_000], ids=lambda n: repr(n)[:9]
)
def test_an_id_that_is_not_there_is_refused(name: Id) -> None:
    with pytest.raises(UnknownNameError, match="unknown id"):
        similar(Own(), name)


@pytest.mark.parametrize("source", [Own(), None], ids=["items", "set"])
def test_columns_are_for_files_given_by_path(source: Any, path: Path) -> None:
    for option in ("vector_column", "id_column"):
        with pytest.raises(InputError, match=f"{option} is for a file"):
            search(source or read_vectors(path), [1.0, 0.0], **{option: "vector"})


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(InputError, match="cannot search a dict"):
        search({}, [1.0])  # type: ignore[arg-type]  # that is the claim


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Own]]:
    """Stand in for the table in PostgreSQL, which its own tests open for real."""
    import sys
    from types import ModuleType

    made: list[Own] = []

    def connect(url: str) -> Own:
        made.append(Own())
        return made[-1]

    module = ModuleType("vecmill.collection.postgres_items")
    module.PostgresItems = connect  # type: ignore[attr-defined]  # a stand-in
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield made
    assert made
    assert [own.closed for own in made] == [1] * len(made)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_is_searched_and_closed_even_after_an_error(postgres: list[Own], scheme: str) -> None:
    url = f"{scheme}://somebody@host/db?table=films"
    assert search(url, [1.0, 0.0], k=1).hits[0].id == b"\xab\x01"
    with pytest.raises(InputError, match="2: they are not of one model"):
        search(url, "x y", model="fake:hash-2", hybrid=True, exact=True, metric="dot")


async def _name_of(path: Path) -> str:
    async with opened(path) as items:
        checked: Items = items
        return checked.name


def test_a_path_of_vectors_opens_as_a_set(path: Path) -> None:
    import asyncio

    assert asyncio.run(_name_of(path)) == str(path)
