"""Search in a real PostgreSQL server: the distances of every other source, and the recall that is claimed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.space import Manifest
from vecmill.core.types import Metric, Neighbors, Precision, Vectors
from vecmill.core.vectors import nearest, normalize

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.index.postgres import Batch, Found, PostgresTable
from vecmill.index.postgres_build import kept
from vecmill.index.postgres_schema import ROW, write_index
from vecmill.index.postgres_search import Condition, survivors

ROWS, QUERIES, K = 10_000, 1_000, 10


def share_found(found: Sequence[Found], true: Neighbors) -> float:
    """Return recall@K, equally near ones counted."""
    limits = true.distances[:, K - 1]
    hits = [np.count_nonzero(one.distances[:K] <= limit) for one, limit in zip(found, limits, strict=True)]
    return sum(hits) / (K * len(hits))


@pytest.fixture(scope="module")
def captions(postgres: Any, real_vectors: Vectors) -> Iterator[PostgresTable]:
    """Real vectors with a column that 1 % of them, and 10 %, have in common; no index yet."""
    numbers = np.random.default_rng(0).permutation(ROWS) % 100
    columns = pa.table({"n": pa.array(numbers, pa.int32())})
    made = Manifest(model="local:x", space="c" * 32, dimensions=384, normalized=True)
    with PostgresTable.create(postgres.url(), dimensions=384, columns=columns.schema, manifest=made) as table:
        table.add([str(n) for n in range(ROWS)], real_vectors[:ROWS], columns)
        yield table


@pytest.fixture(scope="module")
def indexed(captions: PostgresTable) -> PostgresTable:
    captions.build_index()
    return captions


@pytest.fixture(scope="module")
def queries(real_vectors: Vectors) -> Vectors:
    return real_vectors[ROWS :: (len(real_vectors) - ROWS) // QUERIES][:QUERIES]


def test_recall_that_is_claimed_is_found_on_queries_that_were_never_seen(
    indexed: PostgresTable, real_vectors: Vectors, queries: Vectors
) -> None:
    index = indexed.index
    assert index is not None
    assert index.precision is Precision.FLOAT16
    assert index.measured is not None
    assert index.measured.low >= 0.99
    found = share_found(
        indexed.nearest(queries, K), nearest(queries, real_vectors[:ROWS], K, metric=Metric.COSINE)
    )
    assert found >= 0.99
    assert found >= index.measured.low - 0.003  # two standard errors of what is found here


@pytest.mark.parametrize(("below", "least"), [(1, 1.0), (4, 1.0), (10, 0.95), (50, 0.95)])
def test_filter_is_applied_before(
    indexed: PostgresTable, real_vectors: Vectors, queries: Vectors, below: int, least: float
) -> None:
    numbers = np.random.default_rng(0).permutation(ROWS) % 100
    true = nearest(queries, real_vectors[:ROWS], K, metric=Metric.COSINE, allowed=numbers < below)
    found = indexed.nearest(queries, K, where_sql='"n" < %s', parameters=[below])
    assert all(len(one.rows) == K for one in found)
    assert all((numbers[one.rows - 1] < below).all() for one in found)
    assert share_found(found, true) >= least


def test_few_survivors_are_counted_and_many_are_seen_by_a_sample(indexed: PostgresTable) -> None:
    with indexed._sessions.transaction() as cursor:

        def few(below: int) -> list[int] | None:
            return survivors(cursor, indexed._layout, Condition.of('"n" < %s', [below], None), K)

        assert len(few(1) or ()) == ROWS // 100
        assert len(few(4) or ()) == ROWS // 25
        assert few(0) == []
        assert few(7) is None
        assert few(50) is None


def test_distances_are_those_of_every_other_source(
    indexed: PostgresTable, real_vectors: Vectors, queries: Vectors
) -> None:
    true = nearest(queries, real_vectors[:ROWS], K, metric=Metric.COSINE)
    for part in (queries[:3], queries):  # on the server, and here
        for one, rows, distances in zip(
            indexed.nearest(part, K, exact=True), true.rows, true.distances, strict=False
        ):
            assert np.array_equal(one.rows - 1, rows)
            assert np.array_equal(one.distances, distances)
    for one, rows, distances in zip(indexed.nearest(queries, K), true.rows, true.distances, strict=True):
        both = np.isin(one.rows - 1, rows)
        assert np.isin(one.distances[both], distances).all()


def test_index_for_cosine_serves_unit_vectors_by_other_metrics(
    indexed: PostgresTable, real_vectors: Vectors, queries: Vectors
) -> None:
    for metric in (Metric.DOT, Metric.EUCLIDEAN):
        true = nearest(queries, real_vectors[:ROWS], K, metric=metric)
        assert share_found(indexed.nearest(queries, K, metric=metric), true) >= 0.985


def tricky(n: int, d: int) -> Vectors:
    """Vectors with everything that is special: zeros, equal ones, tiny, large, opposite."""
    vectors = np.random.default_rng(3).standard_normal((n, d)).astype(np.float32)
    vectors[5] = 0.0
    vectors[20:40] = vectors[20]
    vectors[41] = -vectors[42]
    vectors[43] *= 1e-12
    vectors[44] *= 1e4
    return vectors


@pytest.mark.parametrize("metric", list(Metric))
def test_exact_search_equals_the_reference_bit_by_bit(postgres: Any, metric: Metric) -> None:
    vectors = tricky(500, 12)
    queries = np.concatenate([vectors[[5, 20, 42, 43, 44]], vectors[100:110] + np.float32(0.1)])
    with PostgresTable.create(postgres.url(), dimensions=12, metric=metric) as table:
        table.add([str(n) for n in range(500)], vectors)
        for k, leave_out in itertools.product((1, 10, 600), (None, np.array([1, 21]))):
            allowed = np.ones(500, np.bool_)
            if leave_out is not None:
                allowed[leave_out - 1] = False
            true = nearest(queries, vectors, k, metric=metric, allowed=allowed)
            for part in (queries[:5], queries):
                found = table.nearest(part, k, leave_out=leave_out, exact=True)
                for one, rows, distances in zip(found, true.rows, true.distances, strict=False):
                    assert np.array_equal(one.rows - 1, rows)
                    assert np.array_equal(one.distances, distances)


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN, Metric.MANHATTAN])
def test_what_the_server_cannot_tell_apart_is_decided_here(postgres: Any, metric: Metric) -> None:
    random = np.random.default_rng(6)
    one = random.standard_normal(96)
    vectors = (one + 2e-7 * random.standard_normal((300, 96))).astype(np.float32)
    query = random.standard_normal((1, 96)).astype(np.float32)
    with PostgresTable.create(postgres.url(), dimensions=96, metric=metric) as table:
        table.add([str(n) for n in range(300)], vectors)
        for k in (1, 5, 20):
            true = nearest(query, vectors, k, metric=metric)
            found = table.nearest(query, k, exact=True)[0]
            assert np.array_equal(found.rows - 1, true.rows[0])
            assert np.array_equal(found.distances, true.distances[0])


@pytest.mark.parametrize(
    "metric", [Metric.MANHATTAN, Metric.HAMMING, Metric.JACCARD, Metric.DOT, Metric.EUCLIDEAN]
)
def test_every_metric_of_pgvector_has_its_index(postgres: Any, metric: Metric) -> None:
    vectors = tricky(1_500, 64)
    queries = np.random.default_rng(4).standard_normal((20, 64)).astype(np.float32)
    with PostgresTable.create(postgres.url(), dimensions=64, metric=metric) as table:
        table.add([str(n) for n in range(1_500)], vectors)
        index = table.build_index()
        assert index.metric is metric
        true = nearest(queries, vectors, K, metric=metric)
        assert share_found(table.nearest(queries, K), true) >= 0.9
        short = nearest(queries[:2], vectors, 2_000, metric=metric)
        for one, rows in zip(table.nearest(queries[:2], 2_000), short.rows, strict=True):
            assert np.array_equal(one.rows - 1, rows)


def test_chebyshev_has_no_index_and_says_so(postgres: Any) -> None:
    with (
        PostgresTable.create(postgres.url(), dimensions=4, metric="chebyshev") as table,
        pytest.raises(InputError, match=r"no index for chebyshev.*such as euclidean"),
    ):
        table.build_index()


@pytest.mark.parametrize(
    ("dimensions", "precision", "said"),
    [
        (2_500, None, None),
        (5_000, None, "too wide"),
        (2_500, "float32", "at most 2,000"),
        (16_000, "float16", "at most 4,000"),
    ],
)
def test_width_decides_what_an_index_keeps(
    postgres: Any, dimensions: int, precision: str | None, said: str | None
) -> None:
    vectors = normalize(np.random.default_rng(0).standard_normal((120, dimensions)).astype(np.float32))
    with PostgresTable.create(postgres.url(), dimensions=dimensions) as table:
        table.add([str(n) for n in range(120)], vectors)
        if precision is not None:
            with pytest.raises(InputError, match=said):
                table.build_index(precision=precision)
            return
        index = table.build_index()
        assert index.precision is (Precision.FLOAT16 if dimensions <= 4_000 else Precision.BINARY)
        assert said is None or any(said in note for note in table.notes)
        true = nearest(vectors[:5], vectors, 3, metric=Metric.COSINE)
        assert [one.rows[0] - 1 for one in table.nearest(vectors[:5], 3)] == true.rows[:, 0].tolist()


def test_vectors_beyond_the_server_are_refused(postgres: Any) -> None:
    with pytest.raises(InputError, match="1 to 16,000"):
        PostgresTable.create(postgres.url(), dimensions=16_001)


def test_vectors_too_long_for_16_bits_are_kept_in_32(postgres: Any) -> None:
    with PostgresTable.create(postgres.url(), dimensions=8, metric="euclidean") as table:
        table.add(["a", "b"], np.array([[1e6] * 8, [1.0] * 8]))
        index = table.build_index()
        assert index.precision is Precision.FLOAT32
        assert "too far from 1" in index.notes[0]
        with pytest.raises(InputError):
            table.build_index(precision="float16")
        assert table.index == index


def test_lists_are_an_index_too(postgres: Any, real_vectors: Vectors, queries: Vectors) -> None:
    with PostgresTable.create(postgres.url(), dimensions=384) as table:
        table.add([str(n) for n in range(3_000)], real_vectors[:3_000])
        index = table.build_index(kind="ivf", nlist=30)
        assert index.measured is not None
        true = nearest(queries[:100], real_vectors[:3_000], K, metric=Metric.COSINE)
        assert share_found(table.nearest(queries[:100], K), true) >= index.measured.recall - 0.03


def test_index_is_built_anew_dropped_and_known_to_be_stale(postgres: Any) -> None:
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    url = postgres.url()
    with PostgresTable.create(url, dimensions=16) as table:
        assert table.index is None
        table.add([str(n) for n in range(300)], vectors[:300])
        first, second = table.build_index(), table.build_index(m=8)
        assert first.name != second.name
        assert table.stale() is None
        names = {name for (name,) in postgres.run("SELECT indexname FROM pg_indexes")}
        assert {first.name, second.name} & names == {second.name}
        table.add([str(n) for n in range(300, 400)], vectors[300:])
        assert "built and measured at 300 rows, now there are 400" in str(table.stale())
        assert table.sizes()["vector_index"] > 0
        table.drop_index()
        with PostgresTable.open(url) as again:
            assert again.index is None
        assert table.nearest(vectors[7:8], 1)[0].rows.tolist() == [8]


def test_build_waits_for_a_writer_and_readers_wait_for_neither(postgres: Any) -> None:
    vectors = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
    url, added, failed = postgres.url(), threading.Event(), list[BaseException]()
    with PostgresTable.create(url, dimensions=16) as table:
        table.add([str(n) for n in range(300)], vectors[:300])

        def build() -> None:
            try:
                with PostgresTable.open(url) as mine:
                    added.wait()
                    mine.build_index()
            except BaseException as error:  # told to the test
                failed.append(error)

        builder = threading.Thread(target=build)
        builder.start()

        def batches() -> Iterator[Batch]:
            yield Batch([str(n) for n in range(300, 450)], vectors[300:450])
            added.set()
            assert len(table.nearest(vectors[:1], 400)[0].rows) == 300
            yield Batch([str(n) for n in range(450, 600)], vectors[450:])

        table.add_batches(batches())
        builder.join()
        assert not failed
        table.refresh()
        assert table.index is not None
        assert table.index.rows in (300, 600)
        assert table.nearest(vectors[599:], 1)[0].rows.tolist() == [600]


def test_user_who_may_not_create_an_index_is_told(postgres: Any) -> None:
    postgres.run("CREATE SCHEMA closed AUTHORIZATION guarded")
    url = postgres.guarded("closed.films")
    with PostgresTable.create(url, dimensions=4) as table:
        table.add([str(n) for n in range(100)], np.random.default_rng(0).standard_normal((100, 4)))
        postgres.run("ALTER SCHEMA closed OWNER TO postgres")
        postgres.run("GRANT USAGE ON SCHEMA closed TO guarded")
        with pytest.raises(InputError, match="permission denied"):
            table.build_index()
        postgres.run("GRANT CREATE ON SCHEMA closed TO guarded")
        assert table.build_index().measured is not None


def test_nothing_is_found_in_an_empty_table_and_its_index_can_be_built(postgres: Any) -> None:
    with PostgresTable.create(postgres.url(), dimensions=4) as table:
        assert len(table.nearest(np.ones((2, 4)), 3)[1].rows) == 0
        assert "too few rows" in str(table.build_index().notes)
        assert len(table.nearest(np.ones((2, 4)), 3)[1].rows) == 0


def test_wrong_queries_are_refused(indexed: PostgresTable) -> None:
    with pytest.raises(DimensionMismatchError):
        indexed.nearest(np.ones((1, 5)), 3)
    with pytest.raises(InputError, match="at least 1"):
        indexed.nearest(np.ones((1, 384)), 0)
    with pytest.raises(InputError, match="NaN"):
        indexed.nearest(np.full((1, 384), np.nan), 3)
    with pytest.raises(InputError):
        indexed.nearest(np.ones((1, 384)), 3, where_sql='"n" = %s', parameters=["many"])


def test_item_itself_can_be_left_out(indexed: PostgresTable, real_vectors: Vectors) -> None:
    assert indexed.nearest(real_vectors[:1], 1)[0].rows.tolist() == [1]
    assert 1 not in indexed.nearest(real_vectors[:1], K, leave_out=np.array([1]))[0].rows


@pytest.fixture(scope="module")
def two_kinds(postgres: Any) -> Iterator[tuple[PostgresTable, Vectors, Vectors, npt.NDArray[np.bool_]]]:
    """One kind of rows spread wide, then many of another close together; queries are of the first kind."""
    random = np.random.default_rng(0)
    wide = random.standard_normal((1_200, 64)) + 4.0 * np.eye(64)[0]
    close = 0.5 * random.standard_normal((6_000, 12)) @ random.standard_normal((12, 64)) + 6.0 * np.eye(64)[1]
    vectors = normalize(np.concatenate([wide[:1_000], close]).astype(np.float32))
    is_close = np.arange(len(vectors)) >= 1_000
    columns = pa.table({"kind": pa.array(np.where(is_close, "close", "wide"))})
    with PostgresTable.create(postgres.url(), dimensions=64, columns=columns.schema) as table:
        table.add([str(n) for n in range(len(vectors))], vectors, columns)
        table.build_index()
        yield table, vectors, normalize(wide[1_000:].astype(np.float32)), is_close


def test_queries_unlike_most_rows_are_searched_harder(
    two_kinds: tuple[PostgresTable, Vectors, Vectors, npt.NDArray[np.bool_]],
) -> None:
    table, vectors, queries, is_close = two_kinds
    true = nearest(queries, vectors, K, metric=Metric.COSINE)
    assert share_found(table.nearest(queries, K), true) >= 0.95
    true = nearest(queries, vectors, K, metric=Metric.COSINE, allowed=is_close)
    found = table.nearest(queries, K, where_sql='"kind" = %s', parameters=["close"])
    assert share_found(found, true) >= 0.95
    scaled = table.nearest(3.0 * queries, K, where_sql='"kind" = %s', parameters=["close"])
    assert share_found(scaled, true) >= 0.95


def test_index_that_does_not_say_how_far_its_rows_are_keeps_working(
    two_kinds: tuple[PostgresTable, Vectors, Vectors, npt.NDArray[np.bool_]],
) -> None:
    table, _, queries, _ = two_kinds
    index = table.index
    assert index is not None
    assert index.far is not None
    before = kept(index)
    with table._changing() as (cursor, layout):
        write_index(cursor, layout, {name: value for name, value in before.items() if name != "far"})
    table.refresh()
    assert table.index is not None
    assert table.index.far is None
    assert all(len(one.rows) == K for one in table.nearest(queries, K))
    with table._changing() as (cursor, layout):
        write_index(cursor, layout, before)
    table.refresh()


def test_recall_of_few_queries_is_an_interval(postgres: Any, real_vectors: Vectors) -> None:
    with PostgresTable.create(postgres.url(), dimensions=384) as table:
        table.add([str(n) for n in range(100)], real_vectors[:100])
        measured = table.build_index().measured
    assert measured is not None
    assert measured.queries <= 10
    assert measured.recall == 1.0
    assert 0.9 < measured.low < 0.98


def test_recall_is_measured_in_the_order_of_the_table(
    postgres: Any, real_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    with PostgresTable.create(postgres.url(), dimensions=384) as table:
        table.add([str(n) for n in range(500)], real_vectors[:500])

        def look(cursor: Any, layout: Any, index: Any, *_: Any) -> Any:
            cursor.execute(f"SELECT {ROW} FROM {layout.name}", ())  # noqa: S608 - a name of ours
            seen.append([row for (row,) in cursor.fetchall()])
            return index

        monkeypatch.setattr("vecmill.index.postgres_build._least", look)
        table.build_index()
    assert len(seen[0]) > 300
    assert seen[0] == sorted(seen[0])
