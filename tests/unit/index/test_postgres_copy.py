from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core.errors import InputError, StorageError

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.index import postgres_copy as copy
from vecmill.index.postgres_schema import Column, checked_version, sql_type, version_notes


def column(kind: str, arrow: pa.DataType) -> Column:
    return Column("c", kind, arrow)


def test_vector_has_the_servers_layout() -> None:
    field = copy.vector_fields(np.array([[1.0, -2.0]], np.float32))[0]
    assert field == bytes.fromhex("0000000c000200003f800000c0000000")


def test_row_begins_with_its_number_of_fields() -> None:
    assert copy.rows([copy.id_fields(["ä", "b"]), copy.id_fields([1, -1])]) == bytes.fromhex(
        "000200000002c3a40000000800000000000000010002000000016200000008ffffffffffffffff"
    )


@pytest.mark.parametrize(
    ("kind", "arrow", "value", "expected"),
    [
        ("smallint", pa.int16(), -2, "00000002fffe"),
        ("boolean", pa.bool_(), True, "0000000101"),
        ("date", pa.date32(), dt.date(2000, 1, 2), "0000000400000001"),
        (
            "timestamp without time zone",
            pa.timestamp("us"),
            dt.datetime(2000, 1, 1, 0, 0, 1),  # noqa: DTZ001 - without a zone
            "0000000800000000000f4240",
        ),
        ("double precision", pa.float64(), 1.0, "000000083ff0000000000000"),
        ("numeric(5,2)", pa.decimal128(5, 2), Decimal("1.50"), "0000000c000200000000000200011388"),
        ("bytea", pa.binary(), b"\0\1", "000000020001"),
        ("json", pa.string(), None, "ffffffff"),
        ("text", pa.string(), None, "ffffffff"),
        ("bigint", pa.int64(), None, "ffffffff"),
    ],
)
def test_values_have_the_servers_bytes(kind: str, arrow: pa.DataType, value: Any, expected: str) -> None:
    assert copy.column_fields(column(kind, arrow), pa.array([value], arrow), ["a"])[0].hex() == expected


def test_lists_and_records_become_json() -> None:
    values = pa.array([{"a": [1, None], "d": dt.date(2026, 1, 2)}])
    field = copy.column_fields(column("json", pa.string()), values, ["a"])[0]
    assert field[4:] == b'{"a": [1, null], "d": "2026-01-02"}'


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", pa.array(["fine", "zero\0byte"])),
        ("json", pa.array([[1.0], [float("nan")]])),
        ("integer", pa.array([1, 1 << 40])),
        ("timestamp without time zone", pa.array([1, 1_001], pa.timestamp("ns"))),
    ],
)
def test_value_that_does_not_fit_is_refused_without_being_shown(kind: str, values: pa.Array) -> None:
    known = {"text": pa.string(), "json": pa.string(), "integer": pa.int32()}
    with pytest.raises(InputError, match="column 'c'") as raised:
        copy.column_fields(column(kind, known.get(kind, pa.timestamp("us"))), values, ["a", "second"])
    assert "zero\0byte" not in str(raised.value)


def test_ids_are_of_one_kind() -> None:
    assert copy.checked_ids(["a", np.str_("b")], "text", "t") == ["a", "b"]
    assert copy.checked_ids([1, np.int32(2)], "bigint", "t") == [1, 2]
    for ids, kind in (
        (["a", 1], "text"),
        ([1, "a"], "bigint"),
        ([True], "bigint"),
        ([1 << 63], "bigint"),
        ([b"x"], "text"),
        (["a\0"], "text"),
    ):
        with pytest.raises(InputError, match=f"row {len(ids) - 1}"):
            copy.checked_ids(ids, kind, "t")  # type: ignore[arg-type] # lists of one type are lists of object here


@settings(deadline=None)
@given(n=st.integers(0, 40), cut=st.integers(1, 100))
def test_vectors_are_read_however_they_are_cut(n: int, cut: int) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    ids = list(range(n))
    sent = (
        copy.HEADER
        + (copy.rows([copy.id_fields(ids), copy.vector_fields(vectors)]) if n else b"")
        + copy.TRAILER
    )
    found = list(copy.read_vectors((sent[at : at + cut] for at in range(0, len(sent), cut)), 3))
    assert [row for rows, _ in found for row in rows] == ids
    if n:
        assert np.array_equal(np.concatenate([part for _, part in found]), vectors)


def test_vectors_cut_short_or_of_another_width_are_refused() -> None:
    sent = copy.HEADER + copy.rows([copy.id_fields([1, 2]), copy.vector_fields(np.ones((2, 3), np.float32))])
    with pytest.raises(StorageError, match="cut short"):
        list(copy.read_vectors([sent[:-5]], 3))
    with pytest.raises(StorageError):
        list(copy.read_vectors([sent + copy.TRAILER], 4))


@pytest.mark.parametrize(
    ("arrow", "expected"),
    [
        (pa.uint8(), "smallint"),
        (pa.uint16(), "integer"),
        (pa.uint32(), "bigint"),
        (pa.uint64(), "numeric(20,0)"),
        (pa.float16(), "real"),
        (pa.dictionary(pa.int8(), pa.string()), 'text COLLATE "C"'),
        (pa.list_(pa.int8()), "json"),
        (pa.timestamp("ns", tz="Europe/Paris"), "timestamp with time zone"),
        (pa.large_binary(), "bytea"),
        (pa.decimal128(7, 3), "numeric(7,3)"),
    ],
)
def test_every_arrow_type_has_its_column(arrow: pa.DataType, expected: str) -> None:
    assert sql_type(pa.field("c", arrow)) == expected


@pytest.mark.parametrize("name", ["id", "embedding", "vecmill_row", "x" * 64, "ä" * 32, "", "a\0"])
def test_column_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        sql_type(pa.field(name, pa.int8()))


def test_old_pgvector_is_refused_and_a_faulty_one_noted() -> None:
    with pytest.raises(InputError, match=r"0\.7\.4.*at least 0\.8\.0"):
        checked_version("0.7.4", "there")
    assert "0.8.6" in version_notes((0, 8, 6))[0]
    assert checked_version("0.8.7", "there") == (0, 8, 7)
    assert version_notes((0, 8, 7)) == ()
    assert version_notes((0, 10, 0)) == ()
