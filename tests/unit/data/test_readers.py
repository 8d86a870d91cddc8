"""Reading tables: types, exactness, faults."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from vecmill.core.errors import CorruptFileError, InputError, UnknownNameError
from vecmill.data import readers_arrow, tables
from vecmill.data.readers import FileBatch, ReadOptions, Scan, batches, scan
from vecmill.data.sources import resolve
from vecmill.data.template import parse_template, template_columns


def read(
    tmp_path: Path,
    *files: tuple[str, bytes | str],
    limit: int | None = None,
    batch_rows: int = 2048,
    **options: Any,
) -> tuple[Scan, list[FileBatch]]:
    named = {key: options.pop(key, ()) for key in ("text_columns", "template_columns")}
    paths = []
    for name, content in files:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        paths.append(path)
    sources = resolve(paths, spool_dir=tmp_path / "spool")
    chosen = ReadOptions(**options)
    found = scan(sources, **named, options=chosen, limit=limit)
    parts = list(batches(sources, found, **named, options=chosen, batch_rows=batch_rows, limit=limit))
    for part in parts:
        assert part.batch.schema.equals(found.schema)
        part.batch.validate(full=True)
    assert sum(part.batch.num_rows for part in parts) == sum(found.rows)
    return found, parts


def table(parts: list[FileBatch]) -> dict[str, list[Any]]:
    return pa.Table.from_batches([part.batch for part in parts]).to_pydict()


def types(found: Scan) -> dict[str, str]:
    return {field.name: str(field.type) for field in found.schema}


# csv and tsv


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "0"], "int64"),
        (["1", "", "3"], "int64"),
        (["9223372036854775807", "-9223372036854775808"], "int64"),
        (["9223372036854775808"], "string"),
        (["007", "8"], "string"),
        (["+1"], "string"),
        (["-0", "1"], "double"),
        (["1.5", "2"], "double"),
        (["1.0", "2.5"], "double"),
        (["4.50", "12.00"], "double"),
        (["1.1", "1.10"], "string"),
        (["1e5", "2.5E-3"], "double"),
        (["1e400"], "string"),
        (["1e-400"], "string"),
        (["0.12345678901234567"], "double"),
        (["0.1234567890123456789"], "string"),
        (["9007199254740993", "1.5"], "string"),
        (["1.5", "9007199254740993"], "string"),
        (["true", "false"], "bool"),
        (["True", "False", ""], "bool"),
        (["true", "False"], "string"),
        (["true", "1"], "string"),
        (["nan", "1.0"], "string"),
        ([" 1", "2"], "string"),
        (["1_000"], "string"),
        (["0x10"], "string"),
        (["", ""], "string"),
        (["1", "2", "x"], "string"),
    ],
)
def test_column_of_cells_has_the_narrowest_type_that_loses_nothing(
    tmp_path: Path, cells: list[str], kind: str
) -> None:
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    found, parts = read(tmp_path, ("a.csv", "i,x\n" + rows))
    assert types(found)["x"] == kind
    if kind == "string":
        assert table(parts)["x"] == [cell or None for cell in cells]


def test_type_in_the_last_row_decides_for_all(tmp_path: Path) -> None:
    rows = "".join(f"{i}\n" for i in range(300_000))
    found, parts = read(tmp_path, ("a.csv", "x\n" + rows + "last\n"))
    assert types(found) == {"x": "string"}
    assert table(parts)["x"][:2] == ["0", "1"]


def test_int_column_that_becomes_float_late_stays_exact(tmp_path: Path) -> None:
    rows = "9007199254740993\n" + "1\n" * 300_000
    _, parts = read(tmp_path, ("a.csv", "x\n" + rows + "0.5\n"))
    assert table(parts)["x"][0] == "9007199254740993"


def test_named_text_column_is_never_a_number(tmp_path: Path) -> None:
    found, parts = read(tmp_path, ("a.csv", "x,y\n1,2\n"), text_columns=["x"])
    assert types(found) == {"x": "string", "y": "int64"}
    assert table(parts) == {"x": ["1"], "y": [2]}


def test_empty_cell_is_null_and_quoted_empty_cell_is_empty(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.csv", 'x,y\n,a\n"",b\n'))
    assert table(parts)["x"] == [None, ""]


def test_batches_have_the_rows_asked_for_and_continue_over_blocks(tmp_path: Path) -> None:
    content = "x,text\n" + "".join(f"{i},{'word ' * 40}\n" for i in range(12_345))
    _, parts = read(tmp_path, ("a.csv", content), batch_rows=1000)
    assert [part.batch.num_rows for part in parts] == [1000] * 12 + [345]
    assert [part.first_row for part in parts] == list(range(0, 13_000, 1000))
    assert table(parts)["x"] == list(range(12_345))


def test_cells_longer_than_a_block_are_read(tmp_path: Path) -> None:
    long = "word\n" * 700_000
    content = "x,text\n" + "".join(f"{i},short\n" for i in range(1000)) + f'1000,"{long}"\n1001,end\n'
    found, parts = read(tmp_path, ("a.csv", content))
    assert found.rows == (1002,)
    assert table(parts)["x"] == list(range(1002))
    assert table(parts)["text"][1000] == long


def test_first_row_longer_than_a_block_is_read(tmp_path: Path) -> None:
    long = "word " * 500_000
    found, parts = read(tmp_path, ("a.csv", f"1,{long}\n2,x\n"), header=False)
    assert table(parts) == {"c0": [1, 2], "c1": [long, "x"]}
    found, _ = read(tmp_path, ("b.csv", ",".join(f"{i:0100}" for i in range(11_000)) + "\n"))
    assert len(found.schema) == 11_000


def test_file_of_blank_lines_is_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.csv is empty"):
        read(tmp_path, ("a.csv", "\n" * 100))


def test_limit_cuts_over_all_files(tmp_path: Path) -> None:
    found, parts = read(tmp_path, ("a.csv", "x\n1\n2\n"), ("b.csv", "x\n3\nx\n"), limit=3)
    assert found.rows == (2, 1)
    assert types(found) == {"x": "int64"}
    assert [(part.file, table([part])["x"]) for part in parts] == [("a.csv", [1, 2]), ("b.csv", [3])]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_limit_holds_in_every_format(tmp_path: Path, limit: int) -> None:
    data = pa.table({"text": [f"t{i}" for i in range(10)]})
    pq.write_table(data, tmp_path / "p.parquet")
    feather.write_feather(data, tmp_path / "f.feather")
    files = [
        ("a.csv", "text\n" + "".join(f"t{i}\n" for i in range(10))),
        ("a.txt", "".join(f"t{i}\n" for i in range(10))),
        ("a.jsonl", "".join(f'{{"text": "t{i}"}}\n' for i in range(10))),
        ("a.json", json.dumps([{"text": f"t{i}"} for i in range(10)])),
        ("c.json", json.dumps({"text": [f"t{i}" for i in range(10)]})),
        ("p.parquet", (tmp_path / "p.parquet").read_bytes()),
        ("f.feather", (tmp_path / "f.feather").read_bytes()),
    ]
    for file in files:
        found, parts = read(tmp_path, file, limit=limit)
        assert found.rows == (limit,), file[0]
        assert [t for part in parts for t in table([part])["text"]] == [f"t{i}" for i in range(limit)]


def test_file_without_header_gets_numbered_columns(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.csv", "1,x\n2,y\n"), header=False)
    assert table(parts) == {"c0": [1, 2], "c1": ["x", "y"]}


def test_columns_without_name_are_named_by_position_with_a_notice(tmp_path: Path) -> None:
    found, _ = read(tmp_path, ("a.csv", ",text\n0,x\n"))
    assert found.schema.names == ["column_0", "text"]
    assert [notice.code for notice in found.notices] == ["unnamed_columns"]


def test_delimiter_and_quote_can_be_chosen(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.csv", "x;t\n1;'a;b'\n"), delimiter=";", quote="'")
    assert table(parts) == {"x": [1], "t": ["a;b"]}


def test_quoting_off_keeps_every_line(tmp_path: Path) -> None:
    content = 'a\tb\nx\t"one\ny\ttwo\nz\tthree"\n'
    found, _ = read(tmp_path, ("a.tsv", content))
    assert found.rows == (1,)
    assert [notice.code for notice in found.notices] == ["quotes"]
    found, parts = read(tmp_path, ("a.tsv", content), quote=None)
    assert table(parts)["b"] == ['"one', "two", 'three"']
    assert found.notices == ()


def test_semicolons_in_the_only_column_name_are_pointed_out(tmp_path: Path) -> None:
    found, _ = read(tmp_path, ("a.csv", "id;text\n1;x\n"))
    assert "--delimiter" in found.notices[0].message


@pytest.mark.parametrize("end", ["", "\n", "\nnext,row\n", ' ""\n'])
def test_quote_that_is_never_closed_is_refused(tmp_path: Path, end: str) -> None:
    with pytest.raises(InputError, match=r"a\.csv, row 1 .*never closed.*--no-quotes"):
        read(tmp_path, ("a.csv", 'x,y\n1,a\n2,"cut off' + end))


@pytest.mark.parametrize("cell", ['"closed"', '""""', 'a"b', '"a\nb"', '""', '"a"""'])
def test_closed_or_inner_quotes_at_the_end_are_read(tmp_path: Path, cell: str) -> None:
    found, _ = read(tmp_path, ("a.csv", "x,y\n1," + cell))
    assert found.rows == (1,)


def test_ragged_row_is_named_without_its_text(tmp_path: Path) -> None:
    content = "a,b\n" + "\n" + 'x,"two\nlines"\n' + "SECRET\n"
    with pytest.raises(InputError, match=r"r\.csv, row 1 .*1 cells where the first row has 2") as caught:
        read(tmp_path, ("r.csv", content))
    assert "SECRET" not in str(caught.value)


def test_ragged_row_beyond_the_first_block_is_named(tmp_path: Path) -> None:
    content = "a,b\n" + "word,word word word\n" * 100_000 + "1,2,3\n"
    with pytest.raises(InputError, match=r"row 100000 .*3 cells"):
        read(tmp_path, ("r.csv", content))


def test_wrong_byte_is_located_by_line_and_offset(tmp_path: Path) -> None:
    content = b"a\n" + b"fine\n" * 400_000 + b"caf\xe9\n"
    with pytest.raises(InputError, match=rf"r\.csv, line 400002: byte {len(content) - 2} \(0xe9\).*cp1252"):
        read(tmp_path, ("r.csv", content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.tsv", "a.csv"])
def test_wrong_byte_is_located_in_every_text_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"line 2: byte 10 \(0xff\).*--encoding"):
        read(tmp_path, (name, b'[{"x":1},\n\xff{"a":"b"}]' if name == "a.json" else b'{"x":  1}\n\xff\n'))


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.json"])
def test_byte_order_mark_decides_the_encoding(tmp_path: Path, codec: str, name: str) -> None:
    import codecs

    boms = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    contents = {"json": '[{"text": "naïve 猫"}]', "jsonl": '{"text": "naïve 猫"}\n', "txt": "naïve 猫\n"}
    content = contents.get(name.split(".")[1], "text\nnaïve 猫\n")
    _, parts = read(tmp_path, (name, boms.get(codec, b"") + content.encode(codec)))
    assert table(parts) == {"text": ["naïve 猫"]}


def test_named_encoding_is_used(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.csv", "text\n“café”\n".encode("cp1252")), encoding="cp1252")
    assert table(parts) == {"text": ["“café”"]}


def test_bad_bytes_can_be_marked(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.txt", b"caf\xe9 \n"), encoding="utf-8:replace")
    assert table(parts) == {"text": ["caf� "]}


def test_wrong_named_encoding_says_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: byte 3 is not cp1252"):
        read(tmp_path, ("a.txt", b"ok\n\x81\n"), encoding="cp1252")


@pytest.mark.parametrize("name", ["klingon", "rot13", "utf-8:sideways"])
def test_unknown_encoding_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unknown encoding"):
        read(tmp_path, ("a.txt", "x\n"), encoding=name)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.json", "a.jsonl", "a.parquet", "a.arrow"])
def test_empty_file_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises((InputError, CorruptFileError), match=name.replace(".", r"\.")):
        read(tmp_path, (name, b""))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.txt.gz", "a.json.gz"])
def test_truncated_gzip_is_a_corrupt_file(tmp_path: Path, name: str) -> None:
    content = gzip.compress(b'"x"\n' * 1000)
    with pytest.raises(CorruptFileError, match=r"a\.\w+\.gz.*cut short"):
        read(tmp_path, (name, content[:-12]))


def test_nul_bytes_are_text(tmp_path: Path) -> None:
    for name, content in [
        ("a.csv", b"text\na\0b\n"),
        ("a.txt", b"a\0b\n"),
        ("a.jsonl", b'{"text": "a\\u0000b"}\n'),
    ]:
        _, parts = read(tmp_path, (name, content))
        assert table(parts) == {"text": ["a\0b"]}


# columns a template mentions


def made(template: str, tmp_path: Path, *files: tuple[str, bytes | str]) -> list[str | None]:
    """The texts a template makes of files."""
    _, parts = read(tmp_path, *files, template_columns=template_columns(template))
    assert not any(part.bad_texts for part in parts)
    return [text for part in parts for text in parse_template(template).texts(part.batch)]


CELLS = ["1.50", "2", "TRUE", "007", "1e3", "9007199254740993", ""]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_template_says_what_the_cell_says(tmp_path: Path, name: str, cell: str) -> None:
    separator = "\t" if "tsv" in name else ","
    content = f"x{separator}y\n{cell}{separator}a\n".encode()
    file = (name, gzip.compress(content) if name.endswith("gz") else content)
    assert made("{x}|{y}", tmp_path, file) == [f"{cell}|a"]


def test_template_says_what_the_cell_says_whatever_other_files_hold(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [5.0, 2.25], "y": ["p", "q"]}), tmp_path / "w.parquet")
    files = [
        ("a.csv", "x,y\n" + "".join(f"{cell},a\n" for cell in CELLS)),
        ("b.parquet", (tmp_path / "w.parquet").read_bytes()),
        ("c.jsonl", '{"x": 1.50, "y": "l"}\n{"x": 3, "y": "l"}\n{"x": true, "y": "l"}\n'),
    ]
    wanted = [f"{cell}|a" for cell in CELLS] + ["5|p", "2.25|q", "1.50|l", "3|l", "true|l"]
    assert made("{x}|{y}", tmp_path, *files) == wanted
    found, _ = read(tmp_path, *files, template_columns=["x"])
    assert types(found)["x"] == "string"
    assert found.notices == ()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_template_keeps_json_numbers_as_written_and_other_types(tmp_path: Path, name: str) -> None:
    values = ["1.50", "7", "1e3", "null", "NaN", "1e400", "36893488147419103232", "-0.0"]
    rows = [f'{{"x": {v}, "n": 1.50, "l": [1, 2.5], "o": {{"p": 4.0}}}}' for v in values]
    content = "\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]"
    written = ["1.50", "7", "1e3", "", "", "1e400", "36893488147419103232", "-0.0"]
    texts = made("{x} {l} {o.p}", tmp_path, (name, content))
    assert texts == [f"{v} [1.0,2.5] 4" for v in written]
    found, parts = read(tmp_path, (name, content), template_columns=["x", "l", "o.p"])
    assert types(found) == {
        "x": "string",
        "n": "double",
        "l": "list<item: double>",
        "o": "struct<p: double>",
    }
    assert table(parts)["n"] == [1.5] * len(values)


def test_template_over_columns_of_json_takes_numbers(tmp_path: Path) -> None:
    content = '{"x": [1.5, 2, null], "y": [1, 2, 3]}'
    assert made("{x}/{y}", tmp_path, ("a.json", content)) == ["1.5/1", "2/2", "/3"]


def test_typed_columns_keep_their_types_in_a_template(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [5.0, None], "n": [1, 2]}), tmp_path / "w.parquet")
    file = ("a.parquet", (tmp_path / "w.parquet").read_bytes())
    assert made("{x}/{n}", tmp_path, file) == ["5/1", "/2"]
    assert types(read(tmp_path, file, template_columns=["x", "n"])[0]) == {"x": "double", "n": "int64"}


def test_column_of_a_template_may_be_missing_for_the_chooser_to_tell(tmp_path: Path) -> None:
    found, _ = read(tmp_path, ("a.csv", "x\n1\n"), template_columns=["X"])
    assert types(found) == {"x": "int64"}


# txt


def test_blank_lines_are_rows_and_the_last_line_end_is_none(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.txt", b"\r\none\r\n\n two\xe2\x80\xa8\x0b \n"))
    assert table(parts)["text"] == ["", "one", "", " two\u2028\x0b "]


def test_line_over_many_chunks_is_whole(tmp_path: Path) -> None:
    long = "é" * 1_500_001
    _, parts = read(tmp_path, ("a.txt", f"a\n{long}\nb"))
    assert table(parts)["text"] == ["a", long, "b"]


# json


def test_text_columns_of_json_tell_what_stands_instead(tmp_path: Path) -> None:
    lines = [
        '{"t":"a"}',
        '{"t":null}',
        "{}",
        '{"t":42}',
        '{"t":[1]}',
        '{"t":{"x":1}}',
        '{"t":true}',
        '{"t":1.5}',
    ]
    _, parts = read(tmp_path, ("a.jsonl", "\n".join(lines)), text_columns=["t"], batch_rows=3)
    assert table(parts)["t"] == ["a"] + [None] * 7
    seen = {part.first_row + i: what for part in parts for i, what in part.bad_texts.items()}
    assert seen == {3: "a number", 4: "a list", 5: "an object", 6: "a boolean", 7: "a number"}


def test_dotted_text_column_reaches_into_objects(tmp_path: Path) -> None:
    lines = '{"doc":{"text":"a"}}\n{"doc":null}\n{"doc":{"text":7}}\n{"doc":"x"}\n'
    _, parts = read(tmp_path, ("a.jsonl", lines), text_columns=["doc.text"])
    assert table(parts)["doc.text"] == ["a", None, None, None]
    assert parts[0].bad_texts == {2: "a number"}


def test_dotted_text_column_reaches_into_structs(tmp_path: Path) -> None:
    data = pa.table({"doc": [{"text": "a", "n": 1}, None]})
    pq.write_table(data, tmp_path / "x.parquet")
    _, parts = read(tmp_path, ("x.parquet", (tmp_path / "x.parquet").read_bytes()), text_columns=["doc.text"])
    assert table(parts)["doc.text"] == ["a", None]


def test_nested_json_keeps_its_types_and_mixed_becomes_json_text(tmp_path: Path) -> None:
    lines = '{"a":{"x":1},"b":[1,2],"c":[1],"d":{}}\n{"a":{"y":"z"},"b":[2.5],"c":{"k":"v"},"d":{}}\n'
    found, parts = read(tmp_path, ("a.jsonl", lines))
    assert types(found) == {
        "a": "struct<x: int64, y: string>",
        "b": "list<item: double>",
        "c": "string",
        "d": "string",
    }
    assert table(parts)["c"] == ["[1]", '{"k":"v"}']
    assert table(parts)["d"] == ["{}", "{}"]
    assert "c" in found.notices[0].message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_integers_beyond_64_bits_stay_exact(tmp_path: Path, name: str) -> None:
    rows = [{"x": 1}, {"x": 2**63}, {"x": -(2**80)}]
    content = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    _, parts = read(tmp_path, (name, content))
    assert table(parts)["x"] == ["1", str(2**63), str(-(2**80))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_nan_and_infinity_are_null_with_a_notice(tmp_path: Path, name: str) -> None:
    rows = ['{"x": NaN, "y": 1e400}', '{"x": 1.5, "y": -Infinity}']
    found, parts = read(tmp_path, (name, "\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]"))
    assert table(parts) == {"x": [None, 1.5], "y": ["1e400", None]}
    assert "nan_as_null" in [notice.code for notice in found.notices]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_half_surrogates_become_replacement_characters(tmp_path: Path, name: str) -> None:
    record = '{"text": "a\\ud800b", "list": ["\\udc00"]}'
    _, parts = read(tmp_path, (name, record if name == "a.jsonl" else f"[{record}]"))
    assert table(parts) == {"text": ["a�b"], "list": [["�"]]}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"a": 1}, {"a": 2}]', {"a": [1, 2]}),
        ("[]", {}),
        ('{"a": []}', {}),
        ('{"a": [1, 2], "b": ["x", "y"]}', {"a": [1, 2], "b": ["x", "y"]}),
        ('{"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}}', {"a": [1, 2], "b": ["x", "y"]}),
        ('["x", "y", null]', {"text": ["x", "y", None]}),
        ('{"a": 1, "b": "x"}', {"a": [1], "b": ["x"]}),
        ('{"a": 1}\n{"a": 2}\n{"a": 3}\n', {"a": [1, 2, 3]}),
        ('{\n"a": 1\n}\n{"a":\n2}', {"a": [1, 2]}),
        ('\ufeff [ {"a" : 1} ] \n', {"a": [1]}),
    ],
)
def test_json_document_layouts(tmp_path: Path, content: str, rows: dict[str, list[Any]]) -> None:
    _, parts = read(tmp_path, ("a.json", content))
    assert (table(parts) if parts else {}) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"meta": {"n": 1}, "data": [{"a": 1}]}', "--records data"),
        ('{"data": [{"a": 1}]}', "--records data"),
        ('{"x": {"y": [{"a": 1}]}, "z": {}}', r"--records x\.y"),
        ('{"x": {"a": 1}, "z": {"b": 2}}', "--records KEY"),
        ('{"Alien": [0.1, 0.2], "Dune": [0.3, 1]}', "file of vectors"),
        ('{"a": [1], "b": ["x", "y"]}', "'b' has 2 values, 'a' 1"),
        ("[[1, 2]]", r"record 1: a list"),
        ('[{"a": 1}, 7]', r"record 2: a number"),
        ("42", "a number is no table"),
        ('[{"a": 1} {"a": 2}]', r"line 1 \(record 1\).*comma"),
        ('[{"a": 1}\n, {"a": ]', r"line 2 \(record 2\): not JSON"),
        ('[{"a": 1}] x', "follows the end"),
        ('[{"a": 1}, {"a": "cut', r"line 1 \(record 2\): the file ends inside"),
        ('[{"a": 1},', "the file ends inside"),
        ('[{"a": 1}', "the file ends inside"),
        ("[" * 100_000, "nested too deeply|the file ends inside"),
    ],
)
def test_faulty_json_document_names_place_and_cure(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises((InputError, CorruptFileError), match=rf"a\.json.*{message}"):
        read(tmp_path, ("a.json", content))


def test_records_option_finds_the_records(tmp_path: Path) -> None:
    _, parts = read(tmp_path, ("a.json", '{"x": {"y": [{"a": 1}]}}'), records="x.y")
    assert table(parts) == {"a": [1]}
    with pytest.raises(InputError, match=r"nothing at 'x\.q'.*--records x\.y"):
        read(tmp_path, ("a.json", '{"x": {"y": [{"a": 1}]}}'), records="x.q")


def test_records_option_on_an_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --records"):
        read(tmp_path, ("a.json", "[]"), records="data")


def test_array_larger_than_the_reading_step_is_streamed(tmp_path: Path) -> None:
    rows = [{"i": i, "text": "naïve 猫 " * (i % 50)} for i in range(30_000)]
    _, parts = read(tmp_path, ("a.json", json.dumps(rows, ensure_ascii=False, indent=1)))
    assert table(parts)["i"] == list(range(30_000))
    assert table(parts)["text"] == [row["text"] for row in rows]


def test_number_across_the_reading_step_is_whole(tmp_path: Path) -> None:
    content = '{"a": "' + "x" * ((1 << 20) - 15) + '", "b": 1234567890}'
    _, parts = read(tmp_path, ("a.json", f"[{content}]"))
    assert table(parts)["b"] == [1234567890]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n\n{"a": oops}\n', r"line 3: not JSON: Expecting value \(column 7\)"),
        ('{"a": 1}\n[1]\n', "line 2: a list where an object"),
        ('[\n{"a": 1}]\n', "line 1: begins an array.*--format json"),
        ('{"a": 1}\n{"a": "cu', "line 2: the file ends inside this record"),
    ],
)
def test_faulty_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises((InputError, CorruptFileError), match=rf"a\.jsonl, {message}"):
        read(tmp_path, ("a.jsonl", content))


# typed files


def ipc_bytes(data: pa.Table, *, stream: bool = False, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    new = ipc.new_stream if stream else ipc.new_file
    with new(sink, data.schema, options=ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(data, max_chunksize=3)
    return bytes(sink.getvalue())


def test_arrow_stream_under_the_name_of_a_file_is_read(tmp_path: Path) -> None:
    data = pa.table({"text": ["a", "b", "c", "d"]})
    for name, stream in [("a.arrow", True), ("a.arrows", False), ("a.feather", False)]:
        _, parts = read(tmp_path, (name, ipc_bytes(data, stream=stream)))
        assert table(parts) == data.to_pydict()


def test_arrow_stream_cut_between_batches_is_pointed_out(tmp_path: Path) -> None:
    whole = ipc_bytes(pa.table({"text": ["a", "b"]}), stream=True)
    found, _ = read(tmp_path, ("a.arrows", whole))
    assert found.notices == ()
    found, _ = read(tmp_path, ("a.arrows", whole[:-8]))
    assert [notice.code for notice in found.notices] == ["no_end_mark"]
    with pytest.raises(CorruptFileError, match="ends 8 bytes before the file"):
        read(tmp_path, ("a.arrows", whole + whole[-8:]))


def test_ragged_row_of_wrong_bytes_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1 .*1 cells"):
        read(tmp_path, ("a.csv", b"a,b\n1,2\n\xff\n"))


def test_texts_of_every_string_type_are_read_as_string(tmp_path: Path) -> None:
    data = pa.table(
        {
            "large": pa.array(["a", None], pa.large_string()),
            "view": pa.array(["a", None], pa.string_view()),
            "dictionary": pa.array(["a", None]).dictionary_encode(),
        }
    )
    found, parts = read(tmp_path, ("a.arrow", ipc_bytes(data)), text_columns=["view"])
    assert set(types(found).values()) == {"string"}
    assert table(parts) == data.to_pydict()


@pytest.mark.parametrize("kind", [pa.binary(), pa.int64(), pa.list_(pa.string())])
def test_text_column_of_a_typed_file_must_hold_text(tmp_path: Path, kind: pa.DataType) -> None:
    data = pa.table({"t": pa.nulls(2, kind)})
    with pytest.raises(InputError, match=r"a\.arrow: column 't' is "):
        read(tmp_path, ("a.arrow", ipc_bytes(data)), text_columns=["t"])


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows", "a.feather"])
def test_truncated_typed_file_is_corrupt(tmp_path: Path, name: str, keep: float) -> None:
    data = pa.table({"text": [f"text {i}" * 10 for i in range(1000)]})
    if name == "a.parquet":
        pq.write_table(data, tmp_path / "whole")
        whole = (tmp_path / "whole").read_bytes()
    else:
        whole = ipc_bytes(data, stream=name == "a.arrows", compression="lz4" if name == "a.feather" else None)
    with pytest.raises(CorruptFileError, match=name.replace(".", r"\.")):
        read(tmp_path, (name, whole[: int(len(whole) * keep)]))


def test_parquet_texts_that_are_no_utf8_are_corrupt(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": wrong}), tmp_path / "w.parquet")
    with pytest.raises(CorruptFileError, match=r"a\.parquet.*UTF"):
        read(tmp_path, ("a.parquet", (tmp_path / "w.parquet").read_bytes()))


def test_csv_under_the_name_of_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"a\.parquet is not a Parquet file.*--format"):
        read(tmp_path, ("a.parquet", "a,b\n1,2\n"))


def test_typed_batches_are_cut_before_they_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(readers_arrow, "BATCH_BYTES", 10_000)
    texts = pa.array([f"{i:04}" + "x" * 996 for i in range(100)], pa.large_string())
    data = pa.table({"text": texts})
    pq.write_table(data, tmp_path / "w.parquet")
    with pa.OSFile(str(tmp_path / "w.arrow"), "wb") as sink, ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data)
    for name in ("w.parquet", "w.arrow"):
        _, parts = read(tmp_path, (f"a{name}", (tmp_path / name).read_bytes()))
        assert table(parts)["text"] == texts.to_pylist()
        assert max(part.batch.num_rows for part in parts) <= 10
        assert len(parts) <= 15


def test_exactness_of_integers_is_found_without_reading_other_columns(tmp_path: Path) -> None:
    wide = pa.table({f"c{i}": [2**53 + i % 2, 1] for i in range(20)})
    pq.write_table(wide, tmp_path / "w.parquet")
    cells = ",".join(wide.column_names) + "\n" + ",".join(["0.5"] * 20) + "\n"
    found, _ = read(tmp_path, ("a.parquet", (tmp_path / "w.parquet").read_bytes()), ("b.csv", cells))
    assert list(types(found).values()) == ["double", "string"] * 10


# several files


def test_columns_of_all_files_are_united(tmp_path: Path) -> None:
    found, parts = read(
        tmp_path,
        ("a.csv", "id,text\n1,x\n"),
        ("b.jsonl", '{"id": 1.5, "extra": true}\n'),
        ("c.csv", "text,id\ny,2\n"),
    )
    assert types(found) == {"id": "double", "text": "string", "extra": "bool"}
    assert table(parts) == {"id": [1.0, 1.5, 2.0], "text": ["x", None, "y"], "extra": [None, True, None]}


def test_conflicting_types_become_string_with_a_notice(tmp_path: Path) -> None:
    found, parts = read(tmp_path, ("a.csv", "id,v\n1,1.50\n"), ("b.csv", "id,v\nx7,true\n"))
    assert types(found) == {"id": "string", "v": "string"}
    assert table(parts) == {"id": ["1", "x7"], "v": ["1.50", "true"]}
    assert [notice.code for notice in found.notices] == ["mixed_types"]


def test_large_typed_integers_do_not_become_floats(tmp_path: Path) -> None:
    for value, kind in [(2**53, "double"), (2**53 + 1, "string")]:
        pq.write_table(pa.table({"x": [value]}), tmp_path / "w.parquet")
        content = (tmp_path / "w.parquet").read_bytes()
        found, parts = read(tmp_path, ("a.parquet", content), ("b.csv", "x\n0.5\n"))
        assert types(found) == {"x": kind}
        assert table(parts)["x"][0] in (float(value), str(value))


def test_missing_text_column_lists_close_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Summary'"):
        read(tmp_path, ("a.csv", "Summary,Text\na,b\n"), text_columns=["Sumary"])


def rewrite_unseen(path: Path, content: str) -> None:
    """Change a file so that size, time and inode stay: what no stamp shows."""
    was = path.stat()
    assert len(content) == was.st_size
    path.write_text(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_file_that_changed_after_it_was_hashed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n2\n")
    sources = resolve([path], spool_dir=tmp_path)
    found = scan(sources)
    path.write_text("x\n1\n")
    with pytest.raises(InputError, match=r"a\.csv changed while the job ran: leave the files alone"):
        list(batches(sources, found))
    path.unlink()
    with pytest.raises(InputError, match="is gone"):
        list(batches(sources, found))


@pytest.mark.parametrize("content", ["x\n9\n8\n" * 100_000, "x,y\n1,2\n" * 100_000, "x\n"])
def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n" + "1\n" * 3_000_000)
    sources = resolve([path], spool_dir=tmp_path)
    found = scan(sources)
    reading = batches(sources, found)
    next(reading)
    path.write_text(content)
    with pytest.raises(InputError, match="changed while the job ran"):
        list(reading)


def test_change_that_no_stamp_shows_is_refused_by_its_rows_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n2\n")
    sources = resolve([path], spool_dir=tmp_path)
    found = scan(sources)
    rewrite_unseen(path, "x\n123\n")
    with pytest.raises(InputError, match="had 2 rows when it was scanned and has 1 now"):
        list(batches(sources, found))
    rewrite_unseen(path, "x\na\n2\n")
    with pytest.raises(InputError, match="other values than when it was scanned"):
        list(batches(sources, found))


def test_reading_twice_gives_the_same_batches(tmp_path: Path) -> None:
    content = "x,text\n" + "".join(f"{i},{'w' * (i % 300)}\n" for i in range(20_000))
    first = read(tmp_path, ("a.csv", content))[1]
    second = read(tmp_path, ("a.csv", content))[1]
    assert [p.first_row for p in first] == [p.first_row for p in second]
    assert all(a.batch.equals(b.batch) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "options", [{"quote": "''"}, {"delimiter": "é"}, {"delimiter": "\n"}, {"quote": ","}]
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"quote|delimiter"):
        read(tmp_path, ("a.csv", "x\n1\n"), **({"delimiter": ","} | options))
