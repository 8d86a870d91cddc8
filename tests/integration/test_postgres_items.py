"""A table in PostgreSQL as `Items`: filters mean what they mean elsewhere, and nobody's text is SQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecmill.collection.filters import parse
from vecmill.collection.items import Items
from vecmill.collection.search import search
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.collection.postgres_items import PostgresItems
from vecmill.index.postgres import PostgresTable

ODD = 'x"; DROP TABLE vecmill_manifests; --%s'
WORDS = ["Ran", "ran", "Ärger", "zeta", "", None, "a%b_c", "O'Neil", "Zeta"]
TABLE = pa.table(
    {
        "stars": pa.array([0, 1, 2, 3, 4, 5, None, -7, 1 << 60], pa.int64()),
        "price": [0.5, float("nan"), None, 1.5, float("inf"), -1.0, 2.5, 0.0, 3.0],
        "word": WORDS,
        "seen": [dt.date(2020, 1, day) if day != 3 else None for day in range(1, 10)],
        "good": [True, False, None] * 3,
        "tags": [["a"]] * 9,
        "text": [f"one {word or ''} of {n} films" for n, word in enumerate(WORDS)],
        ODD: list(range(9)),
    }
)
VECTORS = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
IDS = ["a", "b", "'; DROP TABLE x; --", "d%s", "e\\", "f", "g", "h", "i"]


@pytest.fixture(scope="module")
def items(postgres: Any) -> Iterator[PostgresItems]:
    url = postgres.url()
    with PostgresTable.create(url, dimensions=4, columns=TABLE.schema, text_column="text") as table:
        table.add(IDS, VECTORS, TABLE)
    with PostgresItems(url) as found:
        yield found


def passing(items: PostgresItems, condition: str) -> list[int]:
    """Return the positions that a search with a filter finds."""
    near = items.nearest(VECTORS[:1], 100, metric=Metric.EUCLIDEAN, where=parse(condition))
    return sorted((near[0].rows - 1).tolist())


def test_table_is_items(items: PostgresItems) -> None:
    face: Items = items
    assert len(face) == 9
    assert face.columns == tuple(TABLE.column_names)
    assert face.text_column == "text"
    rows = face.find("d%s")
    assert face.ids(rows) == ["d%s"]
    assert face.records(rows, ["word", ODD]) == [{"word": "zeta", ODD: 3}]
    assert np.array_equal(face.vectors_of(rows), VECTORS[3:4])
    assert len(face.find("nobody")) == 0
    assert set(face.known_ids()) == set(IDS)


@pytest.mark.parametrize(
    "condition",
    [
        "stars >= 2",
        "stars in (1, 5, 1152921504606846976)",
        "not stars = 3",
        "stars is null or price > 1",
        "price = price",
        "price >= 1.5",
        "not price < 1",
        "word > 'Z'",
        "word between 'R' and 'r'",
        "word like 'a!%b%' escape '!'",
        "word = 'O''Neil'",
        "word is not null and word < 'a'",
        "seen >= '2020-01-05'",
        "good",
        "not good",
        f'"{ODD.replace(chr(34), chr(34) * 2)}" <= 4',
        "id = 'd%s' or id > 'f'",
        "word = ''' OR 1=1 --'",
    ],
)
def test_filter_passes_the_rows_it_passes_elsewhere(items: PostgresItems, condition: str) -> None:
    table = TABLE.append_column("id", pa.array(IDS))
    assert passing(items, condition) == np.flatnonzero(parse(condition).mask(table)).tolist()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    word=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    operator=st.sampled_from(["=", "<", ">=", "<>"]),
)
def test_texts_are_compared_by_code_point(items: PostgresItems, word: str, operator: str) -> None:
    condition = f"word {operator} '{word.replace(chr(39), chr(39) * 2)}'"
    assert passing(items, condition) == np.flatnonzero(parse(condition).mask(TABLE)).tolist()


def test_filter_that_does_not_fit_is_refused(items: PostgresItems) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'stars'"):
        passing(items, "star = 3")
    for condition in ("tags = 'a'", "stars = 'five'", "word = 5"):
        with pytest.raises(InputError):
            passing(items, condition)


def test_words_are_ranked_and_are_never_syntax(items: PostgresItems) -> None:
    assert (items.ranked("zeta", 5) - 1).tolist() == [3, 8]
    assert (items.ranked("zeta", 5, where=parse("stars = 3")) - 1).tolist() == [3]
    assert len(items.ranked("films", 4)) == 4
    for odd in ("", "&", "' | !! (", "a:* <-> b", "\\", "'; DROP TABLE x; --", "\0", "<->", "x & y\\'"):
        items.ranked(odd, 3)
    assert (items.ranked("neil & (ärger", 5) - 1).tolist() == [2, 7]


def test_table_without_a_text_column_has_no_words(postgres: Any) -> None:
    url = postgres.url()
    PostgresTable.create(url, dimensions=4).close()
    with PostgresItems(url) as found, pytest.raises(InputError, match="text_column"):
        found.ranked("x", 3)


def test_nobodys_names_are_sql(postgres: Any) -> None:
    name = 'f"; DROP TABLE vecmill_manifests; --%s'
    url = postgres.url('"' + name.replace('"', '""') + '"')
    with PostgresTable.create(url, dimensions=4, columns=TABLE.schema, text_column="text") as table:
        table.add(IDS, VECTORS, TABLE)
        table.build_index()
        table.set_columns(IDS[:1], pa.table({ODD: [77], ODD + "2": ["new"]}))
        table.delete([IDS[1], "') OR true; --"])
        assert len(table) == 8
        assert table.sizes()["table"] > 0
        assert [sorted(map(str, one.ids)) for one in table.rows()] == [sorted([IDS[0], *IDS[2:]])]
        assert table.records(table.rows_of(IDS[0]), [ODD, ODD + "2"]) == [{ODD: 77, ODD + "2": "new"}]
        assert (name,) in postgres.run("SELECT table_name FROM vecmill_manifests")
        table.drop()
    assert (name,) not in postgres.run("SELECT table_name FROM vecmill_manifests")


def test_without_an_index_any_metric_is_answered(postgres: Any) -> None:
    url = postgres.url()
    vectors = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)
    with PostgresTable.create(url, dimensions=4) as table:
        table.add([str(n) for n in range(60)], vectors)
        for metric in Metric:
            true = nearest(vectors[:1], vectors, 5, metric=metric)
            found = search(url, vectors[0], k=5, metric=metric.value)
            assert found.metric == metric.value
            assert [hit.distance for hit in found.hits] == true.distances[0].tolist()
        table.build_index()
    with pytest.raises(InputError, match=r"built for the metric cosine, not manhattan.*--exact"):
        search(url, vectors[0], metric="manhattan")
    assert search(url, vectors[0], metric="manhattan", exact=True).metric == "manhattan"
