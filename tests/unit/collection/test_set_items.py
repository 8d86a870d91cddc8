"""A vector set as items: filters before k, words ranked, everything as comparing by hand gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.filters import parse
from vecmill.collection.set_items import SetItems
from vecmill.core.errors import CorruptFileError, InputError, UnknownNameError
from vecmill.core.types import Metric
from vecmill.core.vectors import distances
from vecmill.data.vector_set import read_vectors

ROWS, WIDTH = 60, 6
NOTHING = (3, 17, 40)
"""Rows without a vector."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = np.random.default_rng(5)
    vectors: list[list[float] | None] = generator.standard_normal((ROWS, WIDTH)).astype(np.float32).tolist()
    for row in NOTHING:
        vectors[row] = None
    table = pa.table(
        {
            "stars": pa.array([row % 6 if row % 7 else None for row in range(ROWS)], pa.int8()),
            "text": [f"word{row % 4} thing" for row in range(ROWS)],
            "vector": pa.array(vectors, pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=16)
    return tmp_path / "set.parquet"


@pytest.fixture
def items(path: Path) -> SetItems:
    return SetItems(read_vectors(path))


def by_hand(
    items: SetItems, path: Path, query: npt.NDArray[np.float32], metric: Metric, keep: list[int]
) -> list[int]:
    """Return the rows of `keep` by their distance, then by row."""
    found = read_vectors(path)
    at = [int(np.flatnonzero(found.rows == row)[0]) for row in keep if row not in NOTHING]
    near = distances(query[np.newaxis], found.vectors[at], metric=metric)[0]
    order = np.lexsort((at, near))
    return [int(found.rows[at[position]]) for position in order]


@pytest.mark.parametrize("metric", list(Metric))
def test_a_filter_comes_before_k_for_every_metric(items: SetItems, path: Path, metric: Metric) -> None:
    query = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    passing = [row for row in range(ROWS) if row % 7 and row % 6 >= 4]
    (near,) = items.nearest(query[np.newaxis], 5, metric=metric, where=parse("stars >= 4"))
    assert near.rows.tolist() == by_hand(items, path, query, metric, passing)[:5]
    assert near.distances.dtype == np.float32


def test_fewer_survivors_than_k_are_all_found(items: SetItems, path: Path) -> None:
    (near,) = items.nearest(np.ones((1, WIDTH), np.float32), 50, metric=Metric.DOT, where=parse("stars = 5"))
    passing = {row for row in range(ROWS) if row % 7 and row % 6 == 5} - set(NOTHING)
    assert set(near.rows.tolist()) == passing


def test_rows_left_out_are_not_found(items: SetItems) -> None:
    query = np.ones((1, WIDTH), np.float32)
    everything = items.nearest(query, 100, metric=Metric.COSINE)[0].rows
    out = everything[[0, 3]]
    (near,) = items.nearest(query, 100, metric=Metric.COSINE, leave_out=out)
    assert near.rows.tolist() == [row for row in everything.tolist() if row not in out]
    (both,) = items.nearest(query, 100, metric=Metric.COSINE, leave_out=out, where=parse("stars > 2"))
    assert set(both.rows.tolist()) == {row for row in near.rows.tolist() if row % 7 and row % 6 > 2}


def test_no_survivor_gives_nothing(items: SetItems) -> None:
    (near,) = items.nearest(
        np.ones((1, WIDTH), np.float32), 3, metric=Metric.COSINE, where=parse("stars > 9")
    )
    assert near.rows.shape == (0,)


def test_words_rank_rows_that_have_a_vector(items: SetItems) -> None:
    found = items.ranked("word3", 100).tolist()
    assert found == [row for row in range(ROWS) if row % 4 == 3 and row not in NOTHING]
    passing = items.ranked("word3 thing", 2, where=parse("stars = 1")).tolist()
    assert passing == [row for row in range(ROWS) if row % 7 and row % 6 == 1 and row % 4 == 3][:2]


def test_a_set_without_texts_says_how_to_rank_by_words(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vector": pa.array([[1.0]], pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"no column known to hold its texts.*without hybrid"):
        SetItems(read_vectors(tmp_path / "x.parquet")).ranked("a", 1)


def test_vectors_of_rows_come_in_their_order(items: SetItems, path: Path) -> None:
    found = read_vectors(path)
    rows = np.array([59, 0, 3, 41, 0])
    expected = [found.vectors[np.flatnonzero(found.rows == row)[0]] for row in (59, 0, 41, 0)]
    assert np.array_equal(items.vectors_of(rows), np.array(expected))
    assert items.vectors_of(np.array([3])).shape == (0, WIDTH)


def test_an_id_is_found_as_the_text_it_is(items: SetItems) -> None:
    assert items.find("5").tolist() == [5]
    assert items.find(5).tolist() == []
    assert items.ids(np.array([7, 2])) == ["7", "2"]
    assert len(items) == ROWS - len(NOTHING)


def test_a_filter_knows_the_ids_where_no_column_is_called_so(items: SetItems) -> None:
    query = np.ones((1, WIDTH), np.float32)
    (near,) = items.nearest(query, 9, metric=Metric.DOT, where=parse("id in ('5', '3', '59')"))
    assert set(near.rows.tolist()) == {5, 59}
    (near,) = items.nearest(query, 9, metric=Metric.DOT, where=parse("id like '5_' and stars = 4"))
    assert set(near.rows.tolist()) == {52, 58}


def test_a_filter_on_an_unknown_column_names_the_place(items: SetItems) -> None:
    with pytest.raises(UnknownNameError, match=r"where, character 6: .*'starz'.*'stars'"):
        items.nearest(
            np.ones((1, WIDTH), np.float32), 3, metric=Metric.COSINE, where=parse("not (starz > 1)")
        )
    with pytest.raises(UnknownNameError, match="'vector'"):
        items.ranked("word1", 3, where=parse("vector is null"))


def test_a_file_that_shrank_is_noticed(items: SetItems, path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 9), path)
    with pytest.raises(CorruptFileError, match=r"changed since it was opened.*open it again"):
        items.nearest(np.ones((1, WIDTH), np.float32), 3, metric=Metric.COSINE, where=parse("stars > 1"))


def test_a_set_without_rows_finds_nothing(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    empty = SetItems(read_vectors(path))
    (near,) = empty.nearest(np.ones((1, WIDTH), np.float32), 3, metric=Metric.DOT, where=parse("stars > 1"))
    assert (len(near.rows), len(empty)) == (0, 0)
    assert empty.ranked("word1", 3, where=parse("stars > 1 or true")).tolist() == []


def test_a_filter_without_columns_passes_all_or_none(items: SetItems) -> None:
    query = np.ones((1, WIDTH), np.float32)
    assert len(items.nearest(query, 100, metric=Metric.DOT, where=parse("true"))[0].rows) == len(items)
    assert len(items.nearest(query, 100, metric=Metric.DOT, where=parse("not true"))[0].rows) == 0


def test_categories_of_several_row_groups_are_filtered(path: Path) -> None:
    table = pq.read_table(path)
    words = table.column("text").combine_chunks().dictionary_encode()
    at = table.column_names.index("text")
    pq.write_table(table.set_column(at, "text", words), path, row_group_size=7)
    found = SetItems(read_vectors(path))
    (near,) = found.nearest(
        np.ones((1, WIDTH), np.float32), 99, metric=Metric.DOT, where=parse("text like '%2 %'")
    )
    assert set(near.rows.tolist()) == {row for row in range(ROWS) if row % 4 == 2} - set(NOTHING)


def test_sixteen_threads_get_what_one_gets(items: SetItems) -> None:
    filters = [None, parse("stars > 3"), parse("stars <= 3"), parse("text like 'word1%'")]
    queries = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)

    def ask(number: int) -> tuple[list[list[int]], list[int]]:
        where = filters[number % 4]
        near = items.nearest(queries, 5, metric=list(Metric)[number % 7], where=where)
        return [one.rows.tolist() for one in near], items.ranked(f"word{number % 3}", 4, where=where).tolist()

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(112)))
    assert together == [ask(number) for number in range(112)]


def test_one_percent_of_real_vectors_has_recall_one(
    real_vectors: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    kept, asked = real_vectors[:20_000], real_vectors[-50:]
    flat = pa.array(kept.reshape(-1))
    lot = np.random.default_rng(3).permutation(len(kept)) % 100
    table = pa.table({"lot": lot, "vector": pa.FixedSizeListArray.from_arrays(flat, kept.shape[1])})
    pq.write_table(table, tmp_path / "real.parquet")
    near = SetItems(read_vectors(tmp_path / "real.parquet")).nearest(
        asked, 10, metric=Metric.COSINE, where=parse("lot = 42")
    )
    rows = np.flatnonzero(lot == 42)
    assert len(rows) == 200
    truth = distances(asked, kept[rows], metric=Metric.COSINE)
    for one, far in zip(near, truth, strict=True):
        order = np.lexsort((rows, far))[:10]
        assert one.rows.tolist() == rows[order].tolist()
        assert np.array_equal(one.distances, far[order])
