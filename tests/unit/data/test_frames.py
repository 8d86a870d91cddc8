"""Frames of every kind become the same Arrow batches."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vecmill.core.errors import InputError
from vecmill.data.frames import to_reader

COLUMNS: dict[str, list[Any]] = {"id": [1, 2, 3], "text": ["a", None, "é"]}
TABLE = pa.table(COLUMNS)


class Capsule:
    """Only speaks Arrow's C stream interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return TABLE.__arrow_c_stream__(requested_schema)


class ArrayCapsule:
    """Only speaks Arrow's C array interface."""

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return TABLE.to_batches()[0].__arrow_c_array__(requested_schema)


FRAMES: dict[str, Callable[[], object]] = {
    "dict": lambda: COLUMNS,
    "dict of numpy and pandas": lambda: {"id": np.array([1, 2, 3]), "text": pd.Series(["a", None, "é"])},
    "dict of tuple and polars": lambda: {"id": (1, 2, 3), "text": pl.Series(["a", None, "é"])},
    "list of dicts": lambda: [{"id": 1, "text": "a"}, {"id": 2}, {"text": "é", "id": 3}],
    "arrow table": lambda: TABLE,
    "arrow batch": lambda: TABLE.to_batches()[0],
    "arrow reader": lambda: TABLE.to_reader(),
    "C stream": Capsule,
    "C array": ArrayCapsule,
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas, named index": lambda: pd.DataFrame(COLUMNS).set_index("id"),
    "pandas, other index": lambda: pd.DataFrame(COLUMNS, index=[7, 8, 9]),
    "pandas, category": lambda: pd.DataFrame(COLUMNS).astype({"text": "category"}),
    "pandas, object": lambda: pd.DataFrame(COLUMNS).astype({"text": object}),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars, categorical": lambda: pl.DataFrame(COLUMNS).with_columns(pl.col("text").cast(pl.Categorical)),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_every_kind_give_the_same_table(kind: str) -> None:
    frame = FRAMES[kind]()
    made = to_reader(frame).read_all()
    assert made.to_pydict() == COLUMNS
    assert made.schema.field("text").type == pa.string()


@pytest.mark.parametrize(
    "texts",
    [
        ["a", None, "é"],
        ("a", None, "é"),
        np.array(["a", None, "é"], dtype=object),
        pd.Series(["a", None, "é"]),
        pl.Series(["a", None, "é"]),
        pa.array(["a", None, "é"]),
        iter(["a", None, "é"]),
    ],
)
def test_texts_alone_become_the_column_text(texts: object) -> None:
    assert to_reader(texts).read_all().to_pydict() == {"text": ["a", None, "é"]}


def test_named_series_keeps_its_name() -> None:
    assert to_reader(pd.Series(["a"], name="body")).schema.names == ["body"]
    assert to_reader(pl.Series("body", ["a"])).schema.names == ["body"]


def test_no_texts_give_an_empty_column_of_strings() -> None:
    made = to_reader([]).read_all()
    assert (made.num_rows, made.schema) == (0, pa.schema([("text", pa.string())]))


def test_records_keep_keys_that_only_later_ones_have() -> None:
    made = to_reader([{"a": 1}, {"a": "x", "b": {"c": 1}}]).read_all()
    assert made.to_pydict() == {"a": ["1", "x"], "b": [None, {"c": 1}]}


def test_dates_and_mixed_pandas_objects_are_kept() -> None:
    day = datetime.date(2024, 1, 2)
    assert to_reader({"d": [day, None]}).read_all().to_pydict() == {"d": [day, None]}
    made = to_reader(pd.DataFrame({"x": pd.Series([1, "a", None, 2.5], dtype=object)})).read_all()
    assert made.to_pydict() == {"x": ["1", "a", None, "2.5"]}


def test_frame_is_not_changed() -> None:
    frame = pd.DataFrame(COLUMNS, index=[7, 8, 9])
    before = frame.copy(deep=True)
    to_reader(frame).read_all()
    pd.testing.assert_frame_equal(frame, before)
    rows = [{"a": 1}, {"b": 2}]
    to_reader(rows).read_all()
    assert rows == [{"a": 1}, {"b": 2}]


def test_batches_of_a_stream_are_passed_through_one_at_a_time() -> None:
    asked = []

    def stream() -> Iterator[pa.RecordBatch]:
        for i in range(3):
            asked.append(i)
            yield pa.record_batch({"t": pa.array(["x"], pa.large_string())})

    reader = to_reader(pa.RecordBatchReader.from_batches(pa.schema([("t", pa.large_string())]), stream()))
    assert reader.read_next_batch().schema.field("t").type == pa.string()
    assert asked == [0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("a text", "str is no frame.*list of texts"),
        (b"bytes", "bytes is no frame"),
        (None, "NoneType is no frame"),
        (7, "int is no frame"),
        ([1, 2], "item 0 is a number"),
        (["a", {"b": 1}], "item 0 is a string"),
        ({"a": [1], "b": [1, 2]}, "'a' has 1, 'b' has 2"),
        ({"a": "x"}, "column 'a' is a string"),
        (pl.DataFrame(COLUMNS).lazy(), r"LazyFrame.*collect\(\)"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns are named 'a'"),
        ({"d": [datetime.date(2024, 1, 2), "x"]}, "column 'd' mixes"),
    ],
)
def test_what_is_no_frame_is_refused_with_what_is(frame: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_reader(frame)
