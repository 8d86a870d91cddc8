"""`vecmill index`: what the commands print, and what they refuse."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from vecmill.cli.index import index
from vecmill.cli.main import cli, run
from vecmill.core.errors import InputError, MissingExtraError, UnknownNameError
from vecmill.core.types import InputType
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import manifest_of
from vecmill.index.storage import Store
from vecmill.testing.fakes import FakeProvider, fake_vector


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(index, [str(one) for one in arguments], standalone_mode=False)


def shown(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


@pytest.fixture
def vector_set(tmp_path: Path) -> Path:
    texts = [f"text number {number}" for number in range(60)]
    flat = np.concatenate([fake_vector(text) for text in texts])
    absent = np.zeros(60, np.bool_)
    absent[59] = True
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), 8, mask=pa.array(absent))
    ids = [f"i{number}" for number in range(60)]
    table = pa.table({"id": ids, "text": texts, "stars": [n % 5 for n in range(60)], "embedding": vectors})
    made = manifest_of(FakeProvider(dimensions=8).info, InputType.DOCUMENT)
    write_set(tmp_path / "s.parquet", table.schema, table.to_batches(), replace(made, rows=60, text="text"))
    return tmp_path / "s.parquet"


def test_build_says_what_was_left_out_and_the_recall_measured(vector_set: Path, tmp_path: Path) -> None:
    result = invoke("build", vector_set, "-o", tmp_path / "c", "--precision", "int8")
    assert result.exception is None, result.exception
    assert result.stdout == ""
    assert "59 rows, 1 without a vector left out; flat int8" in result.stderr
    assert "recall@10 " in result.stderr
    assert "held-back queries" in result.stderr
    found = shown("info", tmp_path / "c")
    assert (found["rows"], found["index"]["settings"]["precision"]) == (59, "int8")


def test_build_without_an_index_says_that_search_is_exact(vector_set: Path, tmp_path: Path) -> None:
    told = shown("build", vector_set, "-o", tmp_path / "c", "--metric", "dot", "--columns", "stars")
    assert told == {
        "target": str(tmp_path / "c"),
        "rows": 59,
        "without_vector": 1,
        "dimensions": 8,
        "metric": "dot",
        "index": "exact",
        "measured": None,
    }
    assert Store.open(tmp_path / "c").snapshot().columns == ("stars",)


def test_build_rebuilds_the_index_of_a_collection(vector_set: Path, tmp_path: Path) -> None:
    invoke("build", vector_set, "-o", tmp_path / "c")
    told = shown("build", tmp_path / "c", "--precision", "int8", "--recall-target", "0.9")
    assert told["measured"]["recall"] >= 0.9
    assert shown("build", tmp_path / "c")["index"].startswith("flat int8")
    told = shown("build", tmp_path / "c", "--precision", "float16")
    assert told["index"].startswith("flat float16")
    assert (Store.open(tmp_path / "c").catalogue.index or {})["settings"]["recall_target"] == 0.9
    removed = {"target": str(tmp_path / "c"), "index": "exact", "measured": None}
    assert shown("build", tmp_path / "c", "--kind", "flat", "--precision", "float32") == removed
    shown("build", tmp_path / "c", "--precision", "int8")
    assert shown("build", tmp_path / "c", "--exact") == removed
    assert "has no index" in invoke("build", tmp_path / "c").stderr
    both = invoke("build", tmp_path / "c", "--exact", "--precision", "int8")
    assert isinstance(both.exception, click.UsageError)


def test_what_is_not_said_of_a_graph_stays_as_it_was(vector_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    first = ("build", vector_set, "-o", tmp_path / "c", "--kind", "cagra", "--param", "graph_degree=16")
    result = invoke(*first, "--param", "itopk_size=7777")
    assert "hnsw with m 8" in result.stderr
    assert (
        "ef 7777 was given; --recall-target 0.99 decides that, and chose hnsw float32, m 8" in result.stderr
    )
    assert "m 8, ef_construction 200" in shown("build", tmp_path / "c")["index"]
    told = shown("build", tmp_path / "c", "--precision", "int8", "--param", "ef_construction=50")
    assert told["index"].startswith("hnsw int8, m 8, ef_construction 50")
    assert isinstance(invoke("build", tmp_path / "c", "--param", "nlist=4").exception, InputError)
    told = shown("build", tmp_path / "c", "--kind", "hnsw")
    assert told["index"].startswith("hnsw float32, m 16, ef_construction 200")


@pytest.mark.parametrize("where", ["build", "info", "add", "delete", "compact", "rebuild"])
def test_an_address_that_is_none_of_ours_is_refused_without_its_password(
    vector_set: Path, tmp_path: Path, where: str
) -> None:
    url = "postgresql+psycopg://bob:S3cret@localhost/db"
    commands: dict[str, tuple[str | Path, ...]] = {
        "build": ("build", vector_set, "-o", url),
        "rebuild": ("build", url),
        "info": ("info", url),
        "add": ("add", url, vector_set),
        "delete": ("delete", url, "--id", "a"),
        "compact": ("compact", url),
    }
    result = invoke(*commands[where])
    assert isinstance(result.exception, InputError | click.UsageError)
    assert "S3cret" not in str(result.exception) + result.output
    assert "postgresql+psycopg://bob:…@localhost" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--metric", "hamming", "--precision", "int8"), "signs only"),
        (("--kind", "ivf", "--param", "nlist=5000"), "nlist is 5000"),
        (("--kind", "hnsw", "--metric", "hamming"), "hamming"),
        (("--kind", "hnsw"), "faiss"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_anything_is_copied(
    vector_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], why: str
) -> None:
    if why == "faiss":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:
        pytest.importorskip("faiss")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("rows were copied")

    monkeypatch.setattr(Store, "create", never)
    result = invoke("build", vector_set, "-o", tmp_path / "c", *options)
    assert isinstance(result.exception, InputError | MissingExtraError), result.exception
    assert why in str(result.exception)


@pytest.mark.parametrize(
    "option",
    [("--metric", "dot"), ("--columns", "none"), ("--overwrite",), ("--originals", "float16"), ("--id", "a")],
)
def test_options_of_a_new_collection_need_one(
    vector_set: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    invoke("build", vector_set, "-o", tmp_path / "c")
    result = invoke("build", tmp_path / "c", *option)
    assert isinstance(result.exception, click.UsageError)
    assert option[0] in str(result.exception)


def test_a_set_needs_a_name_for_its_collection_and_a_collection_none(
    vector_set: Path, tmp_path: Path
) -> None:
    result = invoke("build", vector_set, "--precision", "int8")
    assert isinstance(result.exception, click.UsageError)
    assert "-o" in str(result.exception)
    invoke("build", vector_set, "-o", tmp_path / "c")
    result = invoke("build", tmp_path / "c", "-o", tmp_path / "d")
    assert isinstance(result.exception, click.UsageError)
    assert "leave out -o" in str(result.exception)


def test_shortening_a_model_that_was_not_made_for_it_must_be_meant(vector_set: Path, tmp_path: Path) -> None:
    short = ("build", vector_set, "-o", tmp_path / "c", "--shorten", "4")
    result = invoke(*short)
    assert isinstance(result.exception, InputError)
    assert "--not-mrl" in str(result.exception)
    assert not (tmp_path / "c").exists()
    assert shown(*short, "--not-mrl")["index"].startswith("flat float32, shorten 4")
    assert isinstance(invoke("build", tmp_path / "c", "--shorten", "4").exception, InputError)


def test_parameters_have_the_names_people_know(vector_set: Path, tmp_path: Path) -> None:
    build = ("build", vector_set, "-o", tmp_path / "c")
    assert isinstance(invoke(*build, "--param", "M").exception, click.UsageError)
    assert isinstance(invoke(*build, "--kind", "hsnw").exception, UnknownNameError)
    result = invoke(*build, "--kind", "flat", "--param", "M=16")
    assert isinstance(result.exception, InputError)
    assert "'M'" in str(result.exception)
    pytest.importorskip("faiss")
    told = shown(*build, "--kind", "hnsw", "--param", "M=8", "--param", "ef_construction=40")
    assert "m 8, ef_construction 40" in told["index"]


def test_add_delete_and_compact_say_what_they_did(vector_set: Path, tmp_path: Path) -> None:
    target = tmp_path / "c"
    invoke("build", vector_set, "-o", target)
    result = invoke("add", target, vector_set)
    assert isinstance(result.exception, InputError)
    result = invoke("add", target, vector_set, "--replace")
    assert "59 rows replaced, 1 without a vector left out" in result.stderr
    assert "added" not in result.stderr
    (tmp_path / "ids.txt").write_text("i1\ni2\n\nnobody\n")
    named = ("delete", target, "--id", "i0", "--ids-from", tmp_path / "ids.txt")
    result = invoke(*named, "--where", "stars = 4")
    assert isinstance(result.exception, click.UsageError)
    assert shown(*named, "--dry-run") == {"deleted": 3, "missing": ["nobody"], "dry_run": True}
    result = invoke("delete", target, "--where", "stars = 4", "--dry-run")
    assert "11 rows would be deleted" in result.stderr
    assert shown("info", target)["rows"] == 59
    assert shown(*named) == {"deleted": 3, "missing": ["nobody"]}
    assert shown("delete", target, "--where", "stars = 4") == {"deleted": 11, "missing": []}
    assert isinstance(invoke("delete", target).exception, click.UsageError)
    assert shown("compact", target)["rows_removed"] == 59 + 14
    assert shown("info", target)["rows"] == 45


def test_info_is_for_people_too(vector_set: Path, tmp_path: Path) -> None:
    invoke("build", vector_set, "-o", tmp_path / "c", "--precision", "int8")
    text = invoke("info", tmp_path / "c").stdout
    for word in ("rows", "59", "flat int8", "recall", "fake:hash", "segment", "overhead bytes", "1,888"):
        assert word in text


def test_info_verify_and_advise_take_a_collection(vector_set: Path, tmp_path: Path) -> None:
    target = tmp_path / "c"
    invoke("build", vector_set, "-o", target, "--metric", "dot")

    def main(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(one) for one in arguments], standalone_mode=False)

    assert main("info", target).stdout == invoke("info", target).stdout
    assert json.loads(main("info", target, "--json").stdout)["rows"] == 59
    sound = main("verify", target)
    assert (sound.return_value, sound.stdout.split()[:2]) == (0, ["ok", "checksums"])
    more = tmp_path / "more"
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    Store.create(more, dimensions=8, metric="dot").add([f"{n}" for n in range(200)], vectors)
    told = shown("advise", more, "--kind", "flat", "--queries", "20")
    assert (told["metric"], told["rows"]) == ("dot", 200)
    assert told["command"].startswith(f"vecmill index build {more} --")
    assert "-o" not in told["command"].split()
    assert invoke(*told["command"].split()[2:]).exception is None
    assert isinstance(invoke("advise", more, "--metric", "cosine").exception, click.UsageError)
    file = next((target / "segments").glob("*.vectors"))
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 1
    file.write_bytes(damaged)
    found = main("verify", target)
    assert (found.return_value, found.stdout.split()[0]) == (1, "FAILED")
    assert json.loads(main("verify", target, "--json").stdout)["ok"] is False


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
@pytest.mark.parametrize("command", ["info", "verify", "index advise"])
def test_no_command_says_a_password(
    scheme: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), f"{scheme}://bob:S3cret@localhost/db?table=x"]) == 1
    said = capfd.readouterr()
    assert "S3cret" not in said.out + said.err
    assert "bob:…@localhost" in said.err
    assert "PostgreSQL" in said.err


@pytest.mark.parametrize("command", ["search", "sync", "embed"])
def test_an_unknown_scheme_says_no_password(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("sku,text\n1,a\n")
    url, table = "postgresql+psycopg://bob:S3cret@localhost/db?table=x", str(tmp_path / "t.csv")
    words = {"search": [url, "a"], "sync": [table, url, "--id", "sku"], "embed": [table, "-o", url]}
    assert run([command, *words[command]]) in (1, 2)
    said = capfd.readouterr()
    assert "S3cret" not in said.out + said.err
