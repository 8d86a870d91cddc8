"""Choosing and making the text."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from vecmill.core.errors import InputError, UnknownNameError
from vecmill.data.readers import Scan
from vecmill.data.template import Template, TextColumn, choose_text, parse_template, template_columns

BATCH = pa.record_batch(
    {
        "Summary": [" Good ", None, None, ""],
        "Text": ["tasty\n", "plain", None, None],
        "Score": pa.array([5, None, None, 3], pa.int64()),
        "price": [4.0, 2.5, None, 1e300],
        "ok": [True, False, None, None],
        "day": pa.array([datetime.date(2024, 1, 2), None, None, None]),
        "doc": [{"text": "in", "tags": ["a", "b"]}, None, None, {"text": None, "tags": None}],
        "a}b": ["x"] * 4,
    }
)


def scan_of(batch: pa.RecordBatch = BATCH) -> Scan:
    strings = tuple(field.name for field in batch.schema if pa.types.is_string(field.type))
    return Scan(batch.schema, (batch.num_rows,), strings, ())


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("T: {Summary}; C: {Text}", ["T: Good; C: tasty", "T: ; C: plain", None, ""]),
        ("{Score}/{price}", ["5/4", "/2.5", None, "3/1e+300"]),
        ("{ok} {day}", ["true 2024-01-02", "false ", None, None]),
        ("{doc.text} {doc.tags}", ['in ["a","b"]', None, None, None]),
        ("{{{Score}}}", ["{5}", None, None, "{3}"]),
        ("{Text}{Text}", ["tastytasty", "plainplain", None, None]),
    ],
)  # fmt: skip
def test_template_joins_trimmed_values(template: str, texts: list[str | None]) -> None:
    made = parse_template(template)
    assert made.texts(BATCH) == texts
    assert made.describe() == template


def test_row_of_blanks_has_an_empty_text_and_one_of_nulls_none() -> None:
    batch = pa.record_batch({"a": ["", " \n", None, None, "x"], "b": [None, "\t", "", None, " "]})
    assert parse_template("A: {a}, B: {b}.").texts(batch) == ["", "", "", None, "A: x, B: ."]


def test_columns_of_a_template_are_named_once() -> None:
    assert template_columns("{b} {{x}} {a.c}{b}") == ("b", "a.c")
    with pytest.raises(InputError, match="character 1"):
        template_columns("{b")


def test_batch_is_not_changed_and_slices_work() -> None:
    assert parse_template("{Text}").texts(BATCH.slice(1, 1)) == ["plain"]
    assert TextColumn("doc.text").texts(BATCH.slice(0, 2)) == ["in", None]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no column", "names no column"),
        ("{{text}}", "names no column"),
        ("{text", "character 1"),
        ("a {} b", "character 3"),
        ("{text} }", "character 8 closes nothing"),
        ("{a{b}", "character 1"),
    ],
)
def test_faulty_template_says_where(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_template(template)


def test_only_column_of_strings_is_chosen() -> None:
    batch = pa.record_batch({"id": [1], "note": ["x"]})
    assert choose_text(scan_of(batch), text=None, template=None) == TextColumn("note")


def test_several_columns_of_strings_are_listed() -> None:
    batch = pa.record_batch({"text": ["a"], "summary": ["b"], "title": ["c"]})
    with pytest.raises(
        InputError, match=r"text, summary, title; .*--text text.*--template '{text} {summary}'"
    ):
        choose_text(scan_of(batch), text=None, template=None)


def test_no_column_of_strings_is_an_error() -> None:
    with pytest.raises(InputError, match="no column holds text; the columns are id"):
        choose_text(scan_of(pa.record_batch({"id": [1]})), text=None, template=None)


def test_named_column_and_template_are_checked() -> None:
    found = scan_of()
    assert choose_text(found, text="Text", template=None) == TextColumn("Text")
    assert choose_text(found, text="doc.text", template=None) == TextColumn("doc.text")
    chosen = choose_text(found, text=None, template="{Text}")
    assert isinstance(chosen, Template)
    assert (chosen.columns, chosen.text_columns) == (("Text",), ())
    with pytest.raises(UnknownNameError, match="did you mean 'Text'"):
        choose_text(found, text="text", template=None)
    with pytest.raises(UnknownNameError, match="did you mean 'Summary'"):
        choose_text(found, text=None, template="{Sumary}")
    with pytest.raises(InputError, match="'Score' is int64, not text"):
        choose_text(found, text="Score", template=None)
    with pytest.raises(InputError, match="both given"):
        choose_text(found, text="Text", template="{Text}")
