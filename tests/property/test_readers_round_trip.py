"""What other programs write is read back as it was; cutting into batches changes nothing."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.data import readers_json, tables
from vecmill.data.kinds import Cells, cast_cells
from vecmill.data.readers import FileBatch, ReadOptions, batches, scan
from vecmill.data.sources import resolve

# Mostly what breaks parsers: quotes, separators, line ends, blanks, NUL, marks, digits, other scripts.
TEXTS = st.text(
    st.sampled_from("\"',;\t\n\r \\ab01.-+eé猫🙂\u2028\ufeff\x00") | st.characters(codec="utf-8"), max_size=12
)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1, max_size=8)
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def read(name: str, content: bytes, columns: list[str], rows: int = 3, **options: Any) -> list[FileBatch]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        sources = resolve([path], spool_dir=Path(folder))
        chosen = ReadOptions(**options)
        found = scan(sources, text_columns=columns, options=chosen)
        return list(batches(sources, found, text_columns=columns, options=chosen, batch_rows=rows))


def column(parts: list[FileBatch], name: str) -> list[Any]:
    return [value for part in parts for value in part.batch.column(name).to_pylist()]


@settings(deadline=None)  # files are written and read
@given(
    table=TABLES,
    delimiter=st.sampled_from(",\t;"),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_quoted_csv_reads_back_equal(
    table: list[list[str]], delimiter: str, line_end: str, encoding: str
) -> None:
    names = [f"n{i}" for i in range(len(table[0]))]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *table])
    parts = read("a.csv", out.getvalue().encode(encoding), names, delimiter=delimiter)
    for i, name in enumerate(names):
        assert column(parts, name) == [row[i] for row in table]


@settings(deadline=None)  # files are written and read
@given(table=TABLES, delimiter=st.sampled_from(",\t"))
def test_sparsely_quoted_csv_reads_back_equal_but_for_empty_cells(
    table: list[list[str]], delimiter: str
) -> None:
    names = [f"n{i}" for i in range(len(table[0]))]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([names, *table])
    parts = read("a.csv", out.getvalue().encode(), names, delimiter=delimiter)
    for i, name in enumerate(names):
        assert [cell or "" for cell in column(parts, name)] == [row[i] for row in table]


@settings(deadline=None)  # files are written and read
@given(table=TABLES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_json_texts_read_back_equal_in_every_layout(
    table: list[list[str]], ascii_only: bool, indent: int | None
) -> None:
    names = [f"n{i}" for i in range(len(table[0]))]
    records = [dict(zip(names, row, strict=True)) for row in table]
    columns = {name: [row[i] for row in table] for i, name in enumerate(names)}
    pandas_style = {name: {str(i): text for i, text in enumerate(texts)} for name, texts in columns.items()}
    lines = "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records)
    documents = [
        json.dumps(d, ensure_ascii=ascii_only, indent=indent) for d in (records, columns, pandas_style)
    ]
    for name, content in [("a.jsonl", lines), *(("a.json", document) for document in documents)]:
        parts = read(name, content.encode(), names)
        for one, texts in columns.items():
            assert column(parts, one) == texts


@settings(deadline=None)  # files are written and read
@given(values=st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_any_json_values_are_read_and_texts_are_kept(values: list[Any]) -> None:
    lines = "".join(json.dumps({"x": value}) + "\n" for value in values).encode()
    document = json.dumps([{"x": value} for value in values]).encode()
    for name, content in [("a.jsonl", lines), ("a.json", document)]:
        parts = read(name, content, [])
        if not any(value is not None for value in values):
            continue
        found = column(parts, "x")
        assert len(found) == len(values)
        for value, cell in zip(values, found, strict=True):
            assert (value is None) == (cell is None)
            if isinstance(value, str):
                assert cell == value
        bad = {p.first_row + i for p in read(name, content, ["x"]) for i in p.bad_texts}
        assert bad == {i for i, v in enumerate(values) if v is not None and not isinstance(v, str)}


@settings(deadline=None)  # files are written and read
@given(
    lines=st.lists(TEXTS.map(lambda t: t.replace("\n", " ").replace("\r", " ").lstrip("\ufeff")), min_size=1)
)
def test_lines_read_back_equal(lines: list[str]) -> None:
    parts = read("a.txt", "".join(line + "\n" for line in lines).encode(), [])
    assert column(parts, "text") == lines


NUMBERS = st.one_of(
    st.integers(-(2**64), 2**64).map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(str),
    st.text("0123456789.-+eE", max_size=6),
)


@settings(deadline=None)  # files are written and read
@given(cells=st.lists(NUMBERS, min_size=1, max_size=6), at=st.integers(0, 6))
def test_numbers_found_in_cells_tell_the_cells_apart(cells: list[str], at: int) -> None:
    array = pa.array([cell or None for cell in cells], pa.string())
    learner = Cells()
    learner.add(array.slice(0, at))
    learner.add(array.slice(at))
    kind = learner.result().type
    if pa.types.is_null(kind):
        assert not any(cells)
        return
    values = cast_cells(array, kind).to_pylist()
    for cell, value in zip(cells, values, strict=True):
        assert (value is None) == (not cell)
        if type(value) is float:
            assert float(cell) == value
        elif value is not None:
            assert str(value) == cell


@settings(deadline=None)  # files are written and read
@given(rows=st.integers(1, 40), size=st.integers(1, 50))
def test_batches_cut_rows_without_losing_any(rows: int, size: int) -> None:
    content = "x,text\n" + "".join(f"{i},t{i}\n" for i in range(rows))
    parts = read("a.csv", content.encode(), [], rows=size)
    assert [part.batch.num_rows for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert column(parts, "x") == list(range(rows))
    assert [part.first_row for part in parts] == list(range(0, rows, size))


@settings(deadline=None)  # files are written and read
@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    limit=st.integers(1, 8000),
    size=st.integers(1, 50),
)
def test_batches_hold_no_more_bytes_than_they_may(lengths: list[int], limit: int, size: int) -> None:
    texts = ["w" * length for length in lengths]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_BYTES", limit)
        patch.setattr(readers_json, "_CHUNK_BYTES", limit)
        parts = read("a.jsonl", lines, ["text"], rows=size)
    assert column(parts, "text") == texts
    starts = [part.first_row for part in parts]
    assert starts == [0, *itertools.accumulate(part.batch.num_rows for part in parts)][:-1]
    for part in parts:
        assert part.batch.num_rows <= size
        longest = max(map(len, column([part], "text")))
        assert part.batch.num_rows == 1 or part.batch.nbytes <= 2 * (limit + longest + 64)
