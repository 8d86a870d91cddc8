"""`vecmill index`: what the commands print, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from vecmill.cli.index import index
from vecmill.core.errors import InputError, UnknownNameError
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
    assert shown("build", tmp_path / "c") == {
        "target": str(tmp_path / "c"),
        "index": "exact",
        "measured": None,
    }


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
    assert shown("add", target, vector_set, "--replace") == {"added": 59, "replaced": 59, "without_vector": 1}
    (tmp_path / "ids.txt").write_text("i1\ni2\n\nnobody\n")
    told = shown("delete", target, "--id", "i0", "--ids-from", tmp_path / "ids.txt", "--where", "stars = 4")
    assert told == {"deleted": 3 + 11, "missing": ["nobody"]}
    assert isinstance(invoke("delete", target).exception, click.UsageError)
    assert shown("compact", target)["rows_removed"] == 59 + 14
    assert shown("info", target)["rows"] == 45


def test_info_is_for_people_too(vector_set: Path, tmp_path: Path) -> None:
    invoke("build", vector_set, "-o", tmp_path / "c", "--precision", "int8")
    text = invoke("info", tmp_path / "c").stdout
    for word in ("rows", "59", "flat int8", "recall", "fake:hash", "segment", "overhead bytes", "1,888"):
        assert word in text
