"""Real and hostile files: each reads whole, or raises an error naming the file, the place and the cure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vecmill.core.errors import CorruptFileError, Error, InputError
from vecmill.data.readers import FileBatch, ReadOptions, Scan, batches, scan
from vecmill.data.sources import resolve
from vecmill.data.template import choose_text


@dataclass(frozen=True)
class Case:
    """What reading a file gives: rows, columns, some texts, notices; or an error."""

    rows: int = 0
    columns: str = ""
    texts: dict[int, str | None] = field(default_factory=dict)  # row -> text
    text: str = "text"
    bad: dict[int, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    error: type[Error] | None = None
    message: str = ""
    options: dict[str, Any] = field(default_factory=dict)


NASTY: dict[str, list[Case]] = {
    "blns_shared.json": [Case(258, "text", {0: ""})],
    "kaggle_spam_latin1.csv": [
        Case(error=InputError, message=r"line 7: byte 606 \(0xe5\) is not UTF-8; .*--encoding cp1252"),
        Case(
            5572,
            "v1 v2 column_2 column_3 column_4",
            {1: "Ok lar... Joking wif u oni..."},
            text="v2",
            notices=("unnamed_columns",),
            options={"encoding": "cp1252"},
        ),
    ],
    "quora_broken_utf8_dev.tsv": [
        Case(error=InputError, message=r"line 1: byte 121 \(0xe2\) is not UTF-8; .*--encoding utf-8:replace"),
        Case(
            83,
            "c0 c1 c2 c3",
            {1: "What is the best GPS and Glonass satellite system?"},
            text="c1",
            options={"encoding": "utf-8:replace", "header": False, "quote": None},
        ),
    ],
    "crafted/blank_lines.txt": [
        Case(7, "text", {0: "", 1: "", 2: "first", 3: "", 4: "   ", 5: "second", 6: ""}),
    ],
    "crafted/bom_crlf.csv": [Case(3, "id text", {0: "café, please", 1: "naïve", 2: "two\r\nlines"})],
    "crafted/cp1252_smart_quotes.csv": [
        Case(error=InputError, message=r"line 2: byte 10 \(0x93\) .*--encoding cp1252"),
        Case(2, "id text", {0: "“smart” – it’s €5", 1: "naïve café"}, options={"encoding": "cp1252"}),
    ],
    "crafted/duplicate_headers.csv": [
        Case(error=InputError, message=r"several columns are named 'text'.*--no-header"),
        Case(3, "c0 c1 c2", {1: "first"}, text="c0", options={"header": False}),
    ],
    "crafted/emoji_rtl_combining.jsonl": [Case(20, "id text", {0: "👩‍👩‍👧‍👦 family emoji (ZWJ)"})],
    "crafted/empty.csv": [Case(error=InputError, message="is empty.*remove it")],
    "crafted/header_only.csv": [Case(0, "id text")],
    "crafted/long_line.txt": [Case(2, "text")],
    "crafted/nan_inf.json": [Case(2, "id text score", {0: "a", 1: "b"}, notices=("nan_as_null",))],
    "crafted/nested.json": [
        Case(error=InputError, message="--records data"),
        Case(2, "id doc doc.text", {0: "inside", 1: "deeper"}, text="doc.text", options={"records": "data"}),
    ],
    "crafted/nulls_and_types.jsonl": [
        Case(
            10,
            "id text",
            {0: "plain", 1: None, 2: None, 3: "", 4: "   \t\n ", 9: "id is a string here"},
            bad={5: "a number", 6: "a list", 7: "an object", 8: "a boolean"},
            notices=("mixed_types",),
        )
    ],
    "crafted/quotes_newlines.csv": [
        Case(4, "id text", {0: 'He said "no"', 1: "line one\nline two\n\nline four", 3: 'just "a" quote'})
    ],
    "crafted/ragged.csv": [Case(error=InputError, message=r"row 1 \(counted from 0\): 2 cells .* 3")],
    "crafted/strings.json": [Case(3, "text", {0: "one", 1: "two", 2: "three"})],
    "crafted/truncated.jsonl": [
        Case(error=CorruptFileError, message="line 4: the file ends inside this record; .*the line")
    ],
    "crafted/types.parquet": [Case(4, "id text cat tags when", {0: "a", 1: None, 2: "", 3: "é"})],
    "crafted/utf16le_bom.tsv": [Case(2, "id text", {0: "добрый день", 1: "こんにちは"})],
}  # fmt: skip


def read(
    path: Path, spool: Path, text_columns: tuple[str, ...], **options: Any
) -> tuple[Scan, list[FileBatch]]:
    sources = resolve([path], spool_dir=spool)
    chosen = ReadOptions(**options)
    found = scan(sources, text_columns=text_columns, options=chosen)
    return found, list(batches(sources, found, text_columns=text_columns, options=chosen))


def test_every_nasty_file_is_in_the_table(data_dir: Path) -> None:
    folder = data_dir / "nasty"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == set(NASTY)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in NASTY.items() for case in cases])
def test_nasty_file_reads_whole_or_says_what_to_do(
    data_dir: Path, tmp_path: Path, name: str, case: Case
) -> None:
    path = data_dir / "nasty" / name
    if case.error is not None:
        with pytest.raises(case.error, match=rf"{re.escape(path.name)}.*{case.message}"):
            read(path, tmp_path, (), **case.options)
        return
    found, parts = read(path, tmp_path, (case.text,), **case.options)
    table = pa.Table.from_batches([part.batch for part in parts], schema=found.schema)
    texts = table.column(case.text).to_pylist()
    assert (found.rows, table.num_rows) == ((case.rows,), case.rows)
    assert " ".join(found.schema.names) == case.columns
    assert {row: texts[row] for row in case.texts} == case.texts
    assert {part.first_row + i: what for part in parts for i, what in part.bad_texts.items()} == case.bad
    assert (
        tuple(notice.code for notice in found.notices if notice.code != "mixed_types")
        + (("mixed_types",) if "mixed_types" in case.notices else ())
        == case.notices
    )


def test_line_of_300_000_characters_is_whole(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "nasty/crafted/long_line.txt"
    _, parts = read(path, tmp_path, ("text",))
    assert "\n".join(parts[0].batch.column("text").to_pylist()) + "\n" == path.read_text()


def test_the_same_reviews_in_every_format_give_equal_tables(data_dir: Path, tmp_path: Path) -> None:
    files = sorted((data_dir / "formats").glob("reviews200.*"))
    assert len(files) == 11
    tables = {}
    for path in files:
        found, parts = read(path, tmp_path, ())
        tables[path.name] = pa.Table.from_batches([part.batch for part in parts])
        assert found.rows == (200,)
    lines = tables.pop("reviews200.txt")
    expected = tables["reviews200.csv"]
    assert expected.schema.names == ["id", "product", "score", "summary", "text"]
    assert [str(kind) for kind in expected.schema.types] == ["int64", "string", "int64", "string", "string"]
    for name, table in tables.items():
        assert table.equals(expected), name
    squeezed = [" ".join(text.split()) for text in expected.column("text").to_pylist()]
    assert [" ".join(text.split()) for text in lines.column("text").to_pylist()] == squeezed


def test_folder_of_all_formats_is_one_table(data_dir: Path, tmp_path: Path) -> None:
    sources = resolve([data_dir / "formats" / "reviews200.*"], spool_dir=tmp_path)
    found = scan(sources, text_columns=["text"])
    assert found.rows == (200,) * 11
    assert sum(part.batch.num_rows for part in batches(sources, found, text_columns=["text"])) == 2200


def test_bills_ask_which_text_is_meant(data_dir: Path, tmp_path: Path) -> None:
    sources = resolve([data_dir / "batch"], spool_dir=tmp_path)
    found = scan(sources)
    assert found.rows == (49, 200)
    with pytest.raises(InputError, match=r"several columns hold text: text, summary, title; .*--text"):
        choose_text(found, text=None, template=None)


def test_unbalanced_quotes_are_pointed_out_and_read_without_quoting(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "classify/SMSSpamCollection.tsv"
    found, _ = read(path, tmp_path, (), header=False)
    assert found.rows == (5572,)
    assert any("--no-quotes" in notice.message for notice in found.notices)
    found, _ = read(path, tmp_path, (), header=False, quote=None)
    assert found.rows == (5574,)
    assert found.notices == ()


def test_vector_files_are_recognised(data_dir: Path, tmp_path: Path) -> None:
    files = sorted((data_dir / "vectors").glob("*.json"))
    assert files
    for path in files:
        with pytest.raises(InputError, match=rf"{re.escape(path.name)} is a file of vectors"):
            read(path, tmp_path, ())


def test_every_table_of_the_collection_reads_with_default_options(data_dir: Path, tmp_path: Path) -> None:
    odd = {"ragged.csv", "duplicate_headers.csv", "nested.json", "empty.csv", "truncated.jsonl"}
    refused = []
    for path in sorted(data_dir.rglob("*")):
        inside = path.relative_to(data_dir).as_posix()
        is_table = any(s in path.name for s in (".csv", ".tsv", ".json", ".parquet", ".arrow", ".feather"))
        if not is_table or inside.startswith(("nasty/", "vectors/")) or path.name in odd:
            continue
        try:
            found, parts = read(path, tmp_path, ())
        except Error as error:
            refused.append(f"{inside}: {error}")
            continue
        assert sum(part.batch.num_rows for part in parts) == sum(found.rows) > 0
    assert refused == []
