"""A filter means what SQL means, on every type of column, and says where it is wrong."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill.collection.filters import parse, quoted
from vecmill.core.errors import InputError, UnknownNameError

DAY = dt.date(2026, 3, 1)


def rows(text: str, **columns: Any) -> list[int]:
    """Return the rows that pass."""
    found: list[int] = np.flatnonzero(parse(text).mask(pa.table(columns))).tolist()
    return found


FILMS: dict[str, Any] = {
    "stars": pa.array([5, 4, 3, None], pa.int8()),
    "lang": pa.array(["en", "de", None, "EN"]),
    "seen": pa.array([True, False, None, True]),
    "my price": pa.array([1.5, 2.5, float("nan"), -0.0]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stars >= 4 and lang = 'en'", [0]),
        ("STARS >= 4".lower(), [0, 1]),
        ("4 <= stars", [0, 1]),
        ("stars == 4", [1]),
        ("stars != 4", [0, 2]),
        ("stars <> 4 or lang = 'EN'", [0, 2, 3]),
        ("NOT stars > 3", [2]),
        ("not (stars > 3 and lang = 'de')", [0, 2, 3]),
        ("not not stars > 3", [0, 1]),
        ("stars in (3, 5)", [0, 2]),
        ("stars not in (3, 5)", [1]),
        ("stars not in (3, null)", []),
        ("stars in (3, null, 3.5)", [2]),
        ("stars between 3 and 4", [1, 2]),
        ("stars not between 3 and 4", [0]),
        ("lang like 'e_'", [0]),
        ("lang not like 'e%'", [1, 3]),
        ("lang is null", [2]),
        ("lang is not null and stars is null", [3]),
        ("seen", [0, 3]),
        ("not seen", [1]),
        ("seen = false", [1]),
        ("`my price` > 1", [0, 1]),
        ('"my price" = 0', [3]),
        ('"my price" in (0, 2.5)', [1, 3]),
        ('"my price" is null', [2]),
        ("stars = 4 or stars = 5 and lang = 'de'", [1]),
        ("stars < `my price`", []),
        ("true", [0, 1, 2, 3]),
        ("stars > 3.5", [0, 1]),
        ("stars = 3.5", []),
        ("stars <> 3.5", [0, 1, 2]),
        ("stars < 1000 and stars > -1000", [0, 1, 2]),
        ("stars = 1000", []),
        ("lang = ''''", []),
    ],
)
def test_a_filter_passes_the_rows_sql_would(text: str, expected: list[int]) -> None:
    assert rows(text, **FILMS) == expected


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_every_width_is_compared_at_its_ends(kind: str) -> None:
    info = np.iinfo(kind)
    column = pa.array([int(info.min), 7, int(info.max), None], kind)
    assert rows(f"x = {info.max}", x=column) == [2]
    assert rows(f"x > {info.max}", x=column) == []
    assert rows(f"x < {int(info.max) + 1}", x=column) == [0, 1, 2]
    assert rows(f"x >= {int(info.min) - 1}", x=column) == [0, 1, 2]
    assert rows(f"x <= {int(info.min) - 1}", x=column) == []
    assert rows(f"x in ({info.min}, {int(info.max) + 1})", x=column) == [0]
    assert rows("x < 7.5", x=column) == [0, 1]


def test_whole_numbers_beyond_2_to_53_are_exact() -> None:
    big = 2**53
    column = pa.array([big, big + 1, big + 2], pa.int64())
    assert rows(f"x = {big + 1}", x=column) == [1]
    floats = pa.array([float(big), float(big + 2)])
    assert rows(f"x > {big + 1}", x=floats) == [1]
    assert rows(f"x = {big + 1}", x=floats) == []
    assert rows(f"x > {big + 3}", x=pa.array([float(big + 2), float(big + 4)])) == [1]
    assert rows(f"x <= {big + 3}", x=pa.array([float(big + 2), float(big + 4)])) == [0]
    assert rows(f"x < {10**50}", x=floats) == [0, 1]
    assert rows(f"x < {10**50}", x=pa.array([1.0, float("inf")], pa.float32())) == [0]


def test_a_fraction_is_taken_at_the_precision_of_the_column() -> None:
    for kind in ("halffloat", "float", "double"):
        column = pa.array(np.array([0.1, 4.1, 4.0], np.dtype(pa.type_for_alias(kind).to_pandas_dtype())))
        assert rows("x = 0.1 or x = 4.1", x=column) == [0, 1], kind


@pytest.mark.parametrize(("kind", "beyond"), [("halffloat", "70000.5"), ("float", "1e39")])
def test_a_number_beyond_a_column_is_not_its_infinity(kind: str, beyond: str) -> None:
    column = pa.array(np.array([1.0, np.inf, -np.inf], np.dtype(pa.type_for_alias(kind).to_pandas_dtype())))
    assert rows(f"x = {beyond} or x in ({beyond})", x=column) == []
    assert rows(f"x > {beyond}", x=column) == [1]
    assert rows(f"x <> {beyond}", x=column) == [0, 1, 2]
    assert rows(f"x < -{beyond}", x=column) == [2]
    assert rows(f"x >= -{beyond}", x=column) == [0, 1]


@pytest.mark.parametrize("zone", ["+99:99", "+12:60", "-16"])
def test_a_time_zone_there_is_not_is_refused(zone: str) -> None:
    column = pa.array([0], pa.timestamp("us", "UTC"))
    with pytest.raises(InputError, match="is not a date"):
        rows(f"x = '2026-01-31 12:00{zone}'", x=column)
    assert rows("x = '1970-01-01 15:59+15:59'", x=column) == [0]


@pytest.mark.parametrize(
    "kind", [pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(10, 2), pa.decimal256(50, 2)]
)
def test_decimals_are_exact(kind: pa.DataType) -> None:
    column = pa.array([Decimal("1.10"), Decimal("-2.50"), None], kind)
    assert rows("x = 1.1", x=column) == [0]
    assert rows("x < 1.105", x=column) == [0, 1]
    assert rows("x >= -2.505", x=column) == [0, 1]
    assert rows(f"x > {-(10**60)}", x=column) == [0, 1]
    assert rows("x in (-2.5, 7.777)", x=column) == [1]


@pytest.mark.parametrize(
    "kind",
    [
        pa.date32(),
        pa.date64(),
        pa.timestamp("s"),
        pa.timestamp("ms"),
        pa.timestamp("us"),
        pa.timestamp("ns", "UTC"),
    ],
)
def test_dates_are_compared_with_texts_that_are_dates(kind: pa.DataType) -> None:
    column = pa.array([DAY, DAY - dt.timedelta(days=1), None, dt.date(1969, 7, 20)], pa.date32()).cast(kind)
    assert rows("x >= '2026-03-01'", x=column) == [0]
    assert rows("x = '2026-02-28'", x=column) == [1]
    assert rows("x between '1969-01-01' and '1970-01-01'", x=column) == [3]
    assert rows("x in ('2026-03-01', '1969-07-20')", x=column) == [0, 3]
    other = pa.array([DAY] * 4).cast(pa.timestamp("ms"))
    assert rows("x < y", x=column, y=other) == [1, 3]


def test_moments_are_exact_to_the_nanosecond() -> None:
    column = pa.array(
        [1_000_000_000_000_000_001, 1_000_000_000_000_000_002], pa.timestamp("ns", "Europe/Rome")
    )
    assert rows("x = '2001-09-09 01:46:40.000000001'", x=column) == [0]
    assert rows("x > '2001-09-09T03:46:40.000000001+02:00'", x=column) == [1]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_texts_of_every_layout_are_compared(kind: pa.DataType) -> None:
    column = pa.array(["en", None, "de", "zoë"]).cast(kind)
    assert rows("x = 'en'", x=column) == [0]
    assert rows("x > 'en'", x=column) == [3]
    assert rows("x in ('de', 'zoë')", x=column) == [2, 3]
    assert rows("x like '%o_'", x=column) == [3]


def test_a_backslash_is_a_character_like_others() -> None:
    column = pa.array(["a\\b", "a%", "ab"])
    assert rows(r"x like 'a\%'", x=column) == [0]
    assert rows(r"x like 'a!\%' escape '!'", x=column) == [0]
    assert rows(r"x like 'a\%' escape '\'", x=column) == [1]


def test_a_column_without_any_value_passes_nothing_but_is_null() -> None:
    assert rows("x = 4 or x like 'a' or x in (1) or x", x=pa.nulls(3)) == []
    assert rows("x is null", x=pa.nulls(3)) == [0, 1, 2]
    assert rows("x < y", x=pa.nulls(1), y=pa.array([1])) == []


def test_columns_of_different_width_are_compared_exactly() -> None:
    unsigned = pa.array([2**64 - 1, 0, 5], pa.uint64())
    assert rows("x > y", x=unsigned, y=pa.array([-1, -1, 5], pa.int64())) == [0, 1]
    assert rows("x = y", x=unsigned, y=pa.array([Decimal("1.0"), Decimal("0.0"), Decimal("5.5")])) == [1]


def test_a_table_without_rows_gives_an_empty_mask() -> None:
    mask = parse("x > 1 and y = 'a'").mask(
        pa.table({"x": pa.array([], "int64"), "y": pa.array([], "string")})
    )
    assert mask.shape == (0,)
    assert mask.dtype == np.bool_


def test_the_columns_are_named_once_each() -> None:
    assert parse('b > 1 and (a = 2 or "b" < c) and d').columns == ("b", "a", "c", "d")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("stars >= 'four'", r"character 10: stars is a number, 'four' is text"),
        ("lang = 4", r"character 8: lang is text, 4 is a number"),
        ("seen = 1", r"character 8: seen is true or false, 1 is a number"),
        ("seen = 'yes'", "seen is true or false"),
        ("stars < lang", r"character 9: stars is a number, lang is text"),
        ("stars in (1, 'a')", r"character 14: stars is a number, 'a' is text"),
        ("tags = 1", "tags is of type list<"),
        ("day = '1.3.2026'", r"character 7: '1.3.2026' is not a date; write it as"),
        ("day = '2026-02-30'", "not a date"),
        ("day = '2026-02-20 10:00'", "dates only"),
        ("at > '2026-02-20 10:00Z'", "time zone"),
        ("stars like '4'", "like compares texts"),
        ("stars", r"character 1: stars is a number; compare it"),
        ("stars = null", "is null"),
        ("4 = 4", "one side must be a column"),
        ("stars >", "found the end"),
        ("stars = and", 'takes quotes: "and"'),
        ("stars > 3 4", r"character 11: '4' cannot stand here"),
        ("(stars > 3", r"for the \( of character 1"),
        ("stars > 3)", r"character 10: '\)' cannot stand here"),
        ("2fast > 3", 'takes quotes: "2fast"'),
        ("stars = 1.2.3", "not a number"),
        ("lang = 'x", r"character 8: .*no end"),
        ('"lang = 1', "no end"),
        ("stars > 1 && stars < 3", r"character 11: .*and, or"),
        ("stars in ()", "expected a value"),
        ("stars in 4", "after in"),
        ("stars between 1", "between the two values"),
        ("lang like 'a!' escape '!'", "ends with its escape"),
        ("lang like 'a' escape 'ab'", "one character"),
        ("lang like 5", "a pattern"),
        ("stars = 1e999", "beyond"),
        ("stars = 1e-999", "beyond"),
        ("stars = " + "9" * 200, "200 characters"),
        ("stars is 4", "expected null"),
        ("stars not 4", "expected"),
        ("'a' in (1)", "begins with a column"),
        ("lang = 'a\0'", "zero character"),
        ("lang = '\ud800'", "Unicode"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    table = pa.table(
        {
            **FILMS,
            "tags": pa.array([[1]] * 4),
            "day": pa.array([DAY] * 4),
            "at": pa.array([DAY] * 4).cast(pa.timestamp("s")),
        }
    )
    with pytest.raises(InputError, match=said):
        parse(text).mask(table)


def test_an_unknown_column_lists_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"character 1: .*'starz'.*'stars'"):
        rows("starz > 3", **FILMS)
    with pytest.raises(UnknownNameError, match="a text takes single quotes"):
        rows('lang = "en"', **FILMS)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "(" * 101 + "x" + ")" * 101,
        "x = " + "not " * 20_000,
        "x like '" + "%" * 2_000 + "'",
        "x in (" + "1," * 60_000,
        "x > 1 and " * 20_000,
    ],
)
def test_a_hostile_filter_is_refused_not_a_crash(text: str) -> None:
    with pytest.raises(InputError, match="where"):
        parse(text)


def test_long_filters_within_bounds_work() -> None:
    values = ", ".join(map(str, range(10_000)))
    assert rows(f"x in ({values})", x=pa.array([9_999, 10_000])) == [0]
    assert rows(" or ".join(f"x = {number}" for number in range(1_000)), x=pa.array([999, 1_000])) == [0]
    assert rows("not " * 2_001 + "x = 1", x=pa.array([0, 1])) == [0]
    assert rows("(" * 100 + "x = 1" + ")" * 100, x=pa.array([0, 1])) == [1]
    assert rows("x like '" + "%_" * 500 + "'", x=pa.array(["a" * 600, "a"])) == [0]


def test_no_value_becomes_part_of_the_sql() -> None:
    sql, parameters = parse("""a = '1''; drop table t; --' and "x"";--%" in (1, true, null)""").sql()
    assert sql == '(("a" = %s) AND ("x"";--%%" IN (%s, TRUE, NULL)))'
    assert parameters == ["1'; drop table t; --", 1]


def test_the_caller_may_write_the_names() -> None:
    assert parse("a < b").sql(lambda name: f"t.{name.upper()}") == ("(t.A < t.B)", [])
    assert quoted('a"b%') == '"a""b%%"'
