"""A filter passes the rows that SQLite, given the same expression and the same rows, passes."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.collection.filters import parse
from vecmill.core.errors import InputError

KINDS = {
    "whole": pa.int64(),
    "real": pa.float64(),
    "word": pa.string(),
    "flag": pa.bool_(),
    'an odd %"name': pa.int16(),
}
ODD = '"an odd %""name"'
NUMBERS = ["whole", "real", ODD]

WHOLE = (
    st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1])
)
REAL = st.sampled_from([-0.0, 0.5, 1.0, -2.5, 1e300, float(2**53), 9.3e18]) | st.floats(
    allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32
)
WORD = st.text("ab%_\\'é\n", max_size=4)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "whole": WHOLE,
    "real": REAL,
    "word": WORD,
    "flag": st.booleans(),
    'an odd %"name': st.integers(-3, 3),
}


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    size = draw(st.integers(0, 6))
    return {
        name: draw(st.lists(st.none() | values, min_size=size, max_size=size))
        for name, values in VALUES.items()
    }


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def number(value: float) -> str:
    written = repr(value)
    return written if "." in written or "e" in written or isinstance(value, int) else f"{written}.0"


LITERALS = WHOLE.map(str) | REAL.map(number)
OPERATORS = st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="])
NOT = st.sampled_from(["", "not "])


@st.composite
def likes(draw: st.DrawFn) -> str:
    pattern = draw(WORD)
    if draw(st.booleans()):
        return f"word {draw(NOT)}like {text(pattern)}"
    escape = draw(st.sampled_from(["!", "\\", "a"]))
    pattern = pattern.replace(escape, escape * 2) + escape + draw(st.sampled_from("%_")) + "%"
    return f"word {draw(NOT)}like {text(pattern)} escape {text(escape)}"


def lists(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values | st.just("null"), min_size=1, max_size=4).map(", ".join)


NUMBER = st.sampled_from(NUMBERS)
TESTS = st.one_of(
    st.builds("{} {} {}".format, NUMBER, OPERATORS, LITERALS),
    st.builds("{} {} {}".format, LITERALS, OPERATORS, NUMBER),
    st.builds("word {} {}".format, OPERATORS, WORD.map(text)),
    st.builds("flag {} {}".format, OPERATORS, st.sampled_from(["true", "false"])),
    st.builds(f"whole {{}} {ODD}".format, OPERATORS),
    st.builds("{} {}in ({})".format, NUMBER, NOT, lists(LITERALS)),
    st.builds("`word` {}in ({})".format, NOT, lists(WORD.map(text))),
    st.builds("{} {}between {} and {}".format, NUMBER, NOT, LITERALS, LITERALS),
    st.builds("{} is {}null".format, st.sampled_from([*NUMBERS, "word", "flag"]), NOT),
    likes(),
    st.sampled_from(["flag", "true", "false"]),
)
CONDITIONS = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.builds("not {}".format, inner.map("({})".format)),
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        inner.map("({})".format),
    ),
    max_leaves=8,
)


def sqlite_rows(columns: dict[str, list[Any]], where: str, parameters: list[Any] | None = None) -> list[int]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("PRAGMA case_sensitive_like = ON")
        names = ['"' + name.replace('"', '""') + '"' for name in columns]
        connection.execute(f"CREATE TABLE t (row INTEGER PRIMARY KEY, {', '.join(names)})")
        size = len(next(iter(columns.values())))
        marks = ", ".join("?" * (len(columns) + 1))
        connection.executemany(
            f"INSERT INTO t VALUES ({marks})",  # noqa: S608 - nothing but question marks
            [(row, *(values[row] for values in columns.values())) for row in range(size)],
        )
        found = connection.execute(
            f"SELECT row FROM t WHERE {where} ORDER BY row",  # noqa: S608 - that is the claim
            parameters or [],
        )
        return [row for (row,) in found]


def arrow(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, KINDS[name]) for name, values in columns.items()})


@settings(deadline=None, max_examples=1000)
@given(columns=tables(), where=CONDITIONS)
def test_the_mask_is_what_sqlite_computes(columns: dict[str, list[Any]], where: str) -> None:
    mask = parse(where).mask(arrow(columns))
    assert np.flatnonzero(mask).tolist() == sqlite_rows(columns, where)


@settings(deadline=None, max_examples=200)
@given(columns=tables(), where=CONDITIONS)
def test_the_sql_with_parameters_means_the_same(columns: dict[str, list[Any]], where: str) -> None:
    parsed = parse(where)
    sql, parameters = parsed.sql()
    assert sql.replace("%%", "").count("%s") == len(parameters)
    bound = [value if isinstance(value, int | str) else float(value) for value in parameters]
    expected = np.flatnonzero(parsed.mask(arrow(columns))).tolist()
    assert sqlite_rows(columns, sql.replace("%s", "?").replace("%%", "%"), bound) == expected


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60) | st.text("ab\"'`()<>=!, \n0.9-e%andortlik", max_size=60))
def test_any_text_is_a_filter_or_an_input_error(text: str) -> None:
    try:
        parsed = parse(text)
    except InputError:
        return
    sql, parameters = parsed.sql()
    assert sql.replace("%%", "").count("%") == len(parameters)
