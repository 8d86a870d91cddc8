"""A table and a target compared by id: what is equal, what changed, what is gone."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core.types import Id
from vecmill.jobs.sync_diff import Action, Diff, Digester, Digests, aligned, compare, id_digest


def digests(
    ids: list[Id],
    texts: list[str | None],
    columns: dict[str, Any] | None = None,
    marked: list[bool] | None = None,
) -> Digests:
    digester = Digester()
    table = pa.table(columns) if columns else pa.table({"nothing": pa.nulls(len(ids))})
    digester.add(ids, texts, table, None if marked is None else np.array(marked, np.bool_))
    return digester.finish()


def actions(diff: Diff) -> list[Action]:
    return [Action(value) for value in diff.actions]


def test_each_kind_of_change_is_told_apart() -> None:
    table = digests(["a", "b", "c", "d"], ["1", "2 new", "3", "4"], {"n": [1, 2, 30, 4]})
    target = digests(["c", "x", "b", "a"], ["3", "9", "2", "1"], {"n": [3, 9, 2, 1]})
    diff = compare(table, target)
    assert actions(diff) == [Action.UNCHANGED, Action.UPDATE, Action.COLUMNS, Action.ADD]
    assert diff.first.tolist() == [3, 2, 0, -1]
    assert diff.gone.tolist() == [1]
    assert (diff.target_ids, diff.gone_ids) == (4, 1)


def test_text_and_columns_changed_together_is_one_update() -> None:
    diff = compare(digests(["a"], ["new"], {"n": [2]}), digests(["a"], ["old"], {"n": [1]}))
    assert actions(diff) == [Action.UPDATE]


def test_a_null_text_is_another_than_an_empty_one() -> None:
    diff = compare(digests(["a", "b"], [None, ""]), digests(["a", "b"], ["", ""]))
    assert actions(diff) == [Action.UPDATE, Action.UNCHANGED]


def test_numbers_and_texts_are_different_ids() -> None:
    assert len({id_digest(1), id_digest("1"), id_digest(b"1")}) == 3
    diff = compare(digests(["1"], ["x"]), digests([1], ["x"]))
    assert actions(diff) == [Action.ADD]
    assert diff.gone.tolist() == [0]


def test_letters_composed_and_decomposed_are_different_texts() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert actions(compare(digests(["a"], [composed]), digests(["a"], [apart]))) == [Action.UPDATE]
    assert actions(compare(digests([composed], ["a"]), digests([apart], ["a"]))) == [Action.ADD]


def test_rows_to_try_again_count_as_changed_and_rows_to_skip_as_gone() -> None:
    table = digests(["a", "b"], ["1", None], marked=[False, True])
    target = digests(["a", "b"], ["1", "2"], marked=[True, False])
    diff = compare(table, target)
    assert actions(diff) == [Action.UPDATE, Action.SKIP]
    assert diff.gone.tolist() == [1]


def test_an_id_cut_into_chunks_has_several_rows() -> None:
    target = digests(["b", "a", "a", "b", "c"], ["y", "x", "x", "y", "z"])
    diff = compare(digests(["a", "b"], ["x", "y"]), target)
    rows, place = diff.rows_of(np.array([1, 0]))
    assert rows.tolist() == [0, 3, 1, 2]
    assert place.tolist() == [0, 0, 1, 1]
    assert (diff.target_ids, diff.gone_ids) == (3, 1)


def test_an_empty_target_means_that_all_is_new() -> None:
    diff = compare(digests(["a", "b"], ["x", "y"]), Digester().finish())
    assert actions(diff) == [Action.ADD, Action.ADD]
    assert len(diff.gone) == 0


def test_an_empty_table_means_that_all_is_gone() -> None:
    diff = compare(Digester().finish(), digests(["a", "b"], ["x", "y"]))
    assert len(diff.actions) == 0
    assert diff.gone_ids == 2


MOMENT = dt.datetime(2026, 2, 3, 4, 5, 6)  # noqa: DTZ001 - columns without a zone


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([3]), pa.array([3.0])),
        (pa.array([3], pa.int8()), pa.array([3], pa.uint64())),
        (pa.array([Decimal("3.00")]), pa.array([3])),
        (pa.array(["x"]), pa.array(["x"], pa.large_string())),
        (pa.array(["x"]), pa.array(["x"]).dictionary_encode()),
        (pa.array([MOMENT], pa.timestamp("s")), pa.array([MOMENT], pa.timestamp("ns"))),
        (
            pa.array([dt.date(2026, 2, 3)]),
            pa.array([MOMENT.replace(hour=0, minute=0, second=0)], pa.timestamp("us")),
        ),
        (pa.array([[1, 2]]), pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))),
        (pa.array([{"a": 1, "b": None}]), pa.array([{"a": 1}])),
        (pa.array([None], pa.int64()), pa.array([None], pa.string())),
        (pa.array([float("nan")]), pa.array([float("nan")], pa.float32())),
    ],
)
def test_equal_cells_are_equal_whatever_their_type(one: pa.Array, other: pa.Array) -> None:
    diff = compare(digests(["a"], ["t"], {"c": one}), digests(["a"], ["t"], {"c": other}))
    assert actions(diff) == [Action.UNCHANGED]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([3]), pa.array(["3"])),
        (pa.array([3]), pa.array([3.5])),
        (pa.array([True]), pa.array([1])),
        (pa.array([None], pa.string()), pa.array([""])),
        (pa.array([float("nan")]), pa.array([None], pa.float64())),
        (pa.array([2**53 + 1]), pa.array([2**53])),
        (pa.array([["a", "b"]]), pa.array([["a b"]])),
        (pa.array([b"a"]), pa.array(["a"])),
        (pa.array([MOMENT], pa.timestamp("us")), pa.array([str(MOMENT)])),
    ],
)
def test_different_cells_are_different(one: pa.Array, other: pa.Array) -> None:
    diff = compare(digests(["a"], ["t"], {"c": one}), digests(["a"], ["t"], {"c": other}))
    assert actions(diff) == [Action.COLUMNS]


def test_a_column_of_nulls_equals_none() -> None:
    with_it = digests(["a"], ["t"], {"c": [1], "d": pa.nulls(1)})
    assert actions(compare(with_it, digests(["a"], ["t"], {"c": [1]}))) == [Action.UNCHANGED]


def test_cells_do_not_run_into_each_other() -> None:
    one = digests(["a"], ["t"], {"c": ["x"], "d": ["y"]})
    other = digests(["a"], ["t"], {"c": ["y"], "d": ["x"]})
    assert actions(compare(one, other)) == [Action.COLUMNS]


def test_a_column_is_read_as_the_tables_where_nothing_is_lost() -> None:
    kind = pa.timestamp("us")
    assert aligned(pa.array(["2026-02-03 04:05:06"]), kind).to_pylist() == [MOMENT]
    assert aligned(pa.array(["soon"]), kind).type == pa.string()
    assert aligned(pa.array([1.5]), pa.int64()).type == pa.float64()


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 20), st.tuples(st.sampled_from("xyz"), st.integers(0, 2))),
    st.dictionaries(st.integers(0, 20), st.tuples(st.sampled_from("xyz"), st.integers(0, 2))),
)
def test_a_diff_is_what_comparing_dictionaries_says(
    now: dict[int, tuple[str, int]], before: dict[int, tuple[str, int]]
) -> None:
    def side(rows: dict[int, tuple[str, int]]) -> Digests:
        values = list(rows.values())
        columns = {"n": pa.array([number for _, number in values], pa.int64())}
        return digests(list(rows), [text for text, _ in values], columns)

    diff = compare(side(now), side(before))
    for action, (one, (text, number)) in zip(actions(diff), now.items(), strict=True):
        if one not in before:
            assert action == Action.ADD
        elif before[one][0] != text:
            assert action == Action.UPDATE
        else:
            assert action == (Action.UNCHANGED if before[one][1] == number else Action.COLUMNS)
    assert [list(before)[row] for row in diff.gone] == [one for one in before if one not in now]
