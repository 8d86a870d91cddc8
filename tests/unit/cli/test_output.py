"""What is printed is one line, aligned, and cannot take over a terminal."""

from __future__ import annotations

import datetime as dt
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vecmill.cli.output import count, duration, plain, shorten, table, tell, to_json, unsaid


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("line one\r\n  line two", "line one line two"),
        ("tab\there", "tab here"),
        ("nul\x00bell\x07del\x7f\x9b31m", "nulbelldel31m"),
        ("abc\u202etxt.exe\u202c", "abctxt.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half \udcff", "half \ufffd"),
        ("line\u2028separator", "line separator"),
        ("family 👨\u200d👩\u200d👧", "family 👨\u200d👩\u200d👧"),
        ("עברית and English", "עברית and English"),
        ("日本語", "日本語"),
    ],
)
def test_hostile_text_is_made_harmless(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text())
def test_nothing_printed_controls_a_terminal(text: str) -> None:
    shown = plain(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in shown)
    shown.encode()


@given(st.text(alphabet="ab日本👩", max_size=30), st.integers(1, 30))
def test_a_shortened_text_fits_its_cells(text: str, width: int) -> None:
    assert cell_len(shorten(text, width)) <= width


def test_columns_align_by_cells_not_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = table([("1", "日本", "first"), ("10", "ab\ncd", "second " * 30)], right=frozenset({0}))
    assert lines[0] == " 1  日本   first"
    assert lines[1].startswith("10  ab cd  second second")
    assert all(cell_len(line) <= 60 for line in lines)
    assert lines[1].endswith("…")


def test_json_of_what_json_does_not_know() -> None:
    value = {
        "nan": math.nan,
        "inf": np.float32("inf"),
        "array": np.arange(2),
        "when": dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC),
        "bytes": b"\xff",
        "half": "\udcff",
        1: (True, None),
    }
    assert json.loads(to_json(value)) == {
        "nan": None,
        "inf": None,
        "array": [0, 1],
        "when": "2026-01-02T03:04:00+00:00",
        "bytes": "\\xff",
        "half": "?",
        "1": [True, None],
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_is_always_one_line_that_reads_back(value: object) -> None:
    line = to_json(value)
    assert "\n" not in line
    json.loads(line)


def test_words_for_people() -> None:
    assert (count(1, "row"), count(1200, "row"), count(2, "copy", "copies")) == (
        "1 row",
        "1,200 rows",
        "2 copies",
    )
    assert [duration(s) for s in (0.44, 12, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]


def test_what_the_log_says_of_pgvector_is_not_said_again() -> None:
    notes = ["pgvector 0.8.1 is known to corrupt indexes in rare cases", "searched exactly"]
    assert unsaid(notes) == ["searched exactly"]


def test_a_line_for_people_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    tell("copied -> postgresql://bob:S3cret@host/db")
    assert capsys.readouterr().err == "copied -> postgresql://bob:…@host/db\n"
