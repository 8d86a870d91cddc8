"""Tables in a real PostgreSQL server: what goes in comes out, whole or not at all."""

# ruff: noqa: E402, S608 - optional packages are skipped first; SQL of tests
from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill.core.errors import (
    DimensionMismatchError,
    FormatVersionError,
    InputError,
    SpaceMismatchError,
    StorageError,
    UnknownNameError,
)
from vecmill.core.space import Manifest
from vecmill.core.types import Vectors

psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.index.postgres import Batch, PostgresTable


def manifest(space: str = "a" * 32, dimensions: int = 4) -> Manifest:
    return Manifest(model=f"local:{space[0]}", space=space, dimensions=dimensions, normalized=False)


def some(n: int, d: int = 4, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.fixture
def table(postgres: Any) -> Iterator[PostgresTable]:
    with PostgresTable.create(
        postgres.url(),
        dimensions=4,
        manifest=manifest(),
        columns=pa.schema([("title", pa.string()), ("stars", pa.int16())]),
        text_column="title",
    ) as made:
        yield made


TITLES = pa.table({"title": ["Heat", None, "Ran"], "stars": pa.array([5, 4, None], pa.int16())})


def test_what_is_added_comes_out_again(postgres: Any, table: PostgresTable) -> None:
    vectors = some(3)
    assert table.add(["a", "b", "ü'; --"], vectors, TITLES).added == 3
    url = postgres.url(table.name.rpartition("table=")[2])
    with PostgresTable.open(url) as found:
        assert len(found) == 3
        assert found.manifest == manifest()
        assert (found.dimensions, found.metric, found.columns) == (4, "cosine", ("title", "stars"))
        assert found.text_column == "title"
        rows = found.rows_of("ü'; --")
        assert found.ids(rows) == ["ü'; --"]
        assert found.records(rows, ["stars", "title", "id"]) == [
            {"stars": None, "title": "Ran", "id": "ü'; --"}
        ]
        everything = list(found.rows(with_vectors=True))
        assert everything[0].ids == ["a", "b", "ü'; --"]
        assert everything[0].columns["title"] == ["Heat", None, "Ran"]
        assert everything[0].vectors is not None
        assert np.array_equal(everything[0].vectors, vectors)


def test_every_kind_of_column_comes_out_as_it_went_in(postgres: Any) -> None:
    moment = dt.datetime(2026, 2, 3, 4, 5, 6, 7)  # noqa: DTZ001 - a moment without a zone is meant
    columns = pa.table(
        {
            "bool": [True, None],
            "u64": pa.array([2**64 - 1, None], pa.uint64()),
            "i64": [-(2**63), None],
            "f32": pa.array([0.1, None], pa.float32()),
            "f64": [float("inf"), None],
            "date": [dt.date(1969, 12, 31), None],
            "time": [dt.time(1, 2, 3, 4), None],
            "moment": [moment, None],
            "zoned": pa.array([moment, None], pa.timestamp("us", tz="Asia/Tokyo")),
            "span": [dt.timedelta(days=-1, microseconds=3), None],
            "money": [Decimal("-12.340"), None],
            "raw": [b"\0\xff", None],
            "list": [["a", None, "ü"], None],
            "record": [{"a": 1, "b": [1.5]}, None],
            "word": pa.array(["x", None]).dictionary_encode(),
            'odd"%s;name': ["%s", None],
            "nothing": pa.nulls(2),
        }
    )
    with PostgresTable.create(postgres.url(), dimensions=4, columns=columns.schema) as table:
        table.add(["a", "b"], some(2), columns)
        first, second = table.records(np.concatenate([table.rows_of("a"), table.rows_of("b")]), table.columns)
        assert first == columns.slice(0, 1).to_pylist()[0]
        assert set(second.values()) == {None}


def test_whole_numbers_can_be_ids(postgres: Any) -> None:
    with PostgresTable.create(postgres.url(), dimensions=4, int_ids=True) as table:
        table.add(np.array([7, -(2**63)]), some(2))
        assert table.known_ids() in ([7, -(2**63)], [-(2**63), 7])
        assert len(table.rows_of(7)) == 1
        assert len(table.rows_of("7")) == 0
        with pytest.raises(InputError, match="row 1"):
            table.add([1, "a"], some(2))


@pytest.mark.parametrize(
    ("ids", "vectors", "columns", "error"),
    [
        (["n"], np.array([[1, 2, 3, np.nan]]), None, InputError),
        (["n"], some(1, 5), None, DimensionMismatchError),
        (["n"], some(2), None, InputError),
        (["n", "n"], some(2), None, InputError),
        (["n", "a"], some(2), None, InputError),
        ([b"n"], some(1), None, InputError),
        (["n"], some(1), pa.table({"stars": ["five"]}), InputError),
        (["n"], some(1), pa.table({"stars": [1 << 20]}), InputError),
        (["n"], some(1), pa.table({"title": ["zero\0"]}), InputError),
        (["n"], some(1), pa.table({"id": ["x"]}), InputError),
        (["n"], some(1), TITLES, InputError),
    ],
)
def test_wrong_items_are_refused_and_nothing_changes(
    table: PostgresTable, ids: Any, vectors: Any, columns: Any, error: type[Exception]
) -> None:
    table.add(["a"], some(1))
    with pytest.raises(error):
        table.add_batches([Batch(["fine"], some(1)), Batch(ids, vectors, columns)])
    assert len(table) == 1
    assert table.add(["fine"], some(1)).added == 1


def test_id_in_two_batches_of_a_call_is_refused(table: PostgresTable) -> None:
    with pytest.raises(InputError, match="'a' stands at two rows"):
        table.add_batches([Batch(["a"], some(1)), Batch(["a"], some(1))])
    assert len(table) == 0


def test_pieces_of_one_text_share_an_id_and_are_replaced_together(table: PostgresTable) -> None:
    table.add(["a", "a", "b"], some(3), repeated=True)
    assert len(table.rows_of("a")) == 2
    done = table.add(["a"], some(1, seed=9), replace=True)
    assert (done.added, done.replaced) == (0, 1)
    assert np.array_equal(table.vectors_of(table.rows_of("a")), some(1, seed=9))


def test_deleted_items_are_gone_and_strangers_are_named(table: PostgresTable) -> None:
    table.add(["a", "b", "c"], some(3))
    done = table.delete(["b", "x", "b"])
    assert (done.deleted, done.missing) == (1, ("x",))
    assert sorted(map(str, table.known_ids())) == ["a", "c"]


def test_columns_change_and_vectors_stay(table: PostgresTable) -> None:
    vectors = some(3)
    table.add(["a", "b", "c"], vectors, TITLES)
    done = table.set_columns(["b", "x"], pa.table({"stars": [1, 2], "year": [1995, 1996]}))
    assert (done.replaced, done.missing) == (1, ("x",))
    rows = table.rows_of("b")
    assert table.records(rows, ["title", "stars", "year"]) == [{"title": None, "stars": 1, "year": 1995}]
    assert np.array_equal(table.vectors_of(rows), vectors[1:2])


def test_table_gains_the_columns_of_later_items(table: PostgresTable) -> None:
    table.add(["a"], some(1))
    table.add(["b"], some(1), pa.table({"tags": [["x"]]}))
    assert table.columns == ("title", "stars", "tags")
    assert table.records(table.rows_of("a"), ["tags"]) == [{"tags": None}]


def test_spaces_do_not_mix(postgres: Any, table: PostgresTable) -> None:
    table.add(["a"], some(1), manifest=manifest())
    with pytest.raises(SpaceMismatchError, match="space bbbbbb"):
        table.add(["b"], some(1), manifest=manifest("b" * 32))
    with PostgresTable.create(postgres.url(), dimensions=4) as unknown, pytest.raises(SpaceMismatchError):
        unknown.add(["b"], some(1), manifest=manifest())
    assert len(table) == 1


def test_unknown_column_lists_close_ones(table: PostgresTable) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'stars'"):
        table.records(np.empty(0, np.int64), ["star"])


def test_row_that_is_gone_says_so(table: PostgresTable) -> None:
    table.add(["a"], some(1))
    rows = table.rows_of("a")
    table.delete(["a"])
    with pytest.raises(StorageError, match="search again"):
        table.records(rows, ["title"])


def test_table_that_is_there_is_not_created_again(postgres: Any, table: PostgresTable) -> None:
    url = postgres.url(table.name.rpartition("table=")[2])
    assert PostgresTable.exists(url)
    with pytest.raises(InputError, match="already"):
        PostgresTable.create(url, dimensions=4)
    table.drop()
    assert not PostgresTable.exists(url)
    PostgresTable.create(url, dimensions=5).drop()


def test_table_of_others_is_left_alone(postgres: Any) -> None:
    postgres.run("CREATE TABLE theirs (id text)")
    with pytest.raises(InputError, match="not ours"):
        PostgresTable.open(postgres.url("theirs"))
    with pytest.raises(InputError, match="already"):
        PostgresTable.create(postgres.url("theirs"), dimensions=4)
    with pytest.raises(InputError, match="no table 'nowhere'"):
        PostgresTable.open(postgres.url("nowhere"))


def test_later_format_is_not_read(postgres: Any, table: PostgresTable) -> None:
    name = table.name.rpartition("table=")[2]
    postgres.run(f"UPDATE vecmill_manifests SET format_version = 2 WHERE table_name = '{name}'")
    with pytest.raises(FormatVersionError, match="upgrade"):
        PostgresTable.open(postgres.url(name))


def test_damaged_settings_say_so(postgres: Any, table: PostgresTable) -> None:
    name = table.name.rpartition("table=")[2]
    postgres.run(f"UPDATE vecmill_manifests SET settings = '{{}}' WHERE table_name = '{name}'")
    with pytest.raises(StorageError, match="damaged"):
        PostgresTable.open(postgres.url(name))


def test_tables_live_in_the_schema_named(postgres: Any) -> None:
    postgres.run('CREATE SCHEMA "Other.One"')
    url = postgres.url('"Other.One"."The Films"')
    with PostgresTable.create(url, dimensions=4) as table:
        table.add(["a"], some(1))
        assert postgres.run('SELECT count(*) FROM "Other.One"."The Films"') == [(1,)]
    with pytest.raises(InputError, match="create the schema"):
        PostgresTable.create(postgres.url("absent.films"), dimensions=4)


def test_pgvector_may_live_in_a_schema_off_the_search_path(postgres: Any) -> None:
    database = postgres.database()
    postgres.run("CREATE SCHEMA extensions", database=database)
    postgres.run("CREATE EXTENSION vector SCHEMA extensions", database=database)
    with PostgresTable.create(postgres.url("films", database=database), dimensions=4) as table:
        table.add([str(n) for n in range(300)], some(300))
        table.build_index()
        assert table.nearest(some(300)[7:8], 1)[0].rows.tolist() == [8]
        assert table.nearest(some(300)[7:8], 1, exact=True)[0].rows.tolist() == [8]


def test_pgvector_below_0_8_is_refused_and_0_8_5_noted(
    postgres: Any, table: PostgresTable, caplog: pytest.LogCaptureFixture
) -> None:
    assert any("0.8.7 or later is sound" in note for note in table.notes)
    database = postgres.database()
    url = postgres.url("films", database=database)
    PostgresTable.create(url, dimensions=4).close()
    postgres.run("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'", database=database)
    with pytest.raises(InputError, match=r"pgvector is 0\.7\.4, at least 0\.8\.0"):
        PostgresTable.open(url)


def test_database_without_pgvector_is_told_how(postgres: Any) -> None:
    database = postgres.database()
    with pytest.raises(InputError, match="lacks the extension"):
        PostgresTable.open(postgres.url("films", database=database))
    with pytest.raises(InputError, match="CREATE EXTENSION vector"):
        PostgresTable.create(
            postgres.url("films", user="guarded:" + "zx%254%2Fgh%40im%3A%C3%9F", database=database),
            dimensions=4,
        )


def test_password_is_in_no_error(postgres: Any, table: PostgresTable) -> None:
    name = table.name.rpartition("table=")[2]
    postgres.run(f"GRANT SELECT ON {name} TO guarded")
    with pytest.raises(InputError) as raised:
        PostgresTable.open(postgres.guarded(name, "gh@im-wrong"))
    assert "check user and password" in str(raised.value)
    with pytest.raises(InputError) as unread:
        PostgresTable.open(postgres.guarded(name))
    assert "GRANT" in str(unread.value)
    postgres.run("GRANT SELECT ON vecmill_manifests TO guarded")
    with PostgresTable.open(postgres.guarded(name)) as reader:
        assert len(reader) == 0
        assert "gh" not in reader.name
        with pytest.raises(InputError, match="permission denied") as refused:
            reader.add(["a"], some(1))
    for error in (raised.value, unread.value, refused.value):
        cause: BaseException | None = error
        while cause is not None:
            assert "gh@im" not in str(cause)
            assert "gh%40im" not in str(cause)
            cause = cause.__cause__


def test_server_or_database_that_is_not_there_says_so(postgres: Any) -> None:
    with pytest.raises(StorageError, match="is the server running"):
        PostgresTable.open("postgresql://ann:hunter2@127.0.0.1:1/d")
    with pytest.raises(InputError, match="createdb"):
        PostgresTable.open(postgres.url("films", database="nowhere"))


def test_lost_connections_are_replaced_and_a_lost_change_leaves_nothing(
    postgres: Any, table: PostgresTable
) -> None:
    table.add(["a"], some(1))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vecmill'"
    postgres.run(cut)
    assert len(table) == 1

    def batches() -> Iterator[Batch]:
        yield Batch(["b"], some(1))
        postgres.run(cut)
        yield Batch(["c"], some(1))

    with pytest.raises(StorageError, match="nothing of this call was kept"):
        table.add_batches(batches())
    assert table.known_ids() == ["a"]


def test_sixteen_readers_see_whole_changes_only(table: PostgresTable) -> None:
    table.add([f"{n}" for n in range(100)], some(100))
    seen, failed, done = set[int](), list[BaseException](), threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.add(len(table.nearest(some(1), 1000)[0].rows))
        except BaseException as error:  # told to the test
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(16)]
    for reader in readers:
        reader.start()
    for part in range(5):
        table.add([f"{part}-{n}" for n in range(100)], some(100, seed=part))
    done.set()
    for reader in readers:
        reader.join()
    assert not failed
    assert seen <= {100, 200, 300, 400, 500, 600}


def test_two_writers_take_turns(postgres: Any, table: PostgresTable) -> None:
    url = postgres.url(table.name.rpartition("table=")[2])
    outcomes = list[object]()

    def write(part: int) -> None:
        with PostgresTable.open(url) as mine:
            try:
                outcomes.append(mine.add([f"{n}" for n in range(200)], some(200, seed=part)).added)
            except InputError:
                outcomes.append("refused")

    writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(map(str, outcomes)) == ["200", "refused", "refused", "refused"]
    assert len(table) == 200


def test_no_connection_is_left_behind(postgres: Any) -> None:
    counted = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'left'"
    url = postgres.url() + "&application_name=left"
    table = PostgresTable.create(url, dimensions=4)
    table.add(["a"], some(1))
    rows = table.rows()
    assert next(rows).ids == ["a"]
    rows.close()  # type: ignore[attr-defined] # a generator
    table.close()
    again = PostgresTable.open(url)
    assert len(again) == 1
    del again
    for _ in range(100):  # the server takes a moment to notice
        if postgres.run(counted) == [(0,)]:
            return
    pytest.fail("a connection is still open")
