"""`vecmill sync`: the diff and its price first, a receipt that adds up, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vecmill.cli.sync import sync
from vecmill.core import registry
from vecmill.core.errors import InputError, MissingKeyError
from vecmill.testing.fakes import FakeProvider

MODEL = ("-m", "fake:hash")


def open_fake(name: str, **_: Any) -> FakeProvider:
    """Open the fake model as the registry opens any."""
    return FakeProvider(name=name, dimensions=8, max_tokens=20)


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.names("providers"), "fake", f"{__name__}:open_fake")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(sync, [str(one) for one in arguments], standalone_mode=False)


def write(tmp_path: Path, rows: int, **texts: str) -> Path:
    path = tmp_path / "t.csv"
    lines = [f"s{row},{texts.get(f's{row}', f'text {row}')},{row % 3}" for row in range(rows)]
    path.write_text("\n".join(["sku,title,stars", *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["o.parquet", "o.collection"])
def test_the_summary_adds_up(tmp_path: Path, name: str) -> None:
    table, target = write(tmp_path, 10), tmp_path / name
    result = invoke(table, target, "--id", "sku", "--text", "title", *MODEL)
    assert result.exception is None, result.exception
    assert "10 rows = 10 added + 0 updated + 0 columns only + 0 unchanged" in result.stderr
    write(tmp_path, 8, s3="another")
    result = invoke(table, target, "--id", "sku", "--json")
    assert "8 rows: 0 new, 1 with another text, 0 with other columns, 2 gone, 7 unchanged" in result.stderr
    assert (
        "8 rows = 0 added + 1 updated + 0 columns only + 7 unchanged; 2 deleted, 8 ids now" in result.stderr
    )
    receipt = json.loads(result.stdout)
    assert (receipt["state"], receipt["updated"], receipt["deleted"], receipt["ids_after"]) == (
        "complete",
        1,
        2,
        8,
    )
    assert "up to date" in invoke(table, target, "--id", "sku").stderr


def test_a_dry_run_prints_the_plan_and_its_price(tmp_path: Path) -> None:
    table, target = write(tmp_path, 10), tmp_path / "o.parquet"
    invoke(table, target, "--id", "sku", "--text", "title", *MODEL)
    write(tmp_path, 4, s3="another text")
    result = invoke(table, target, "--id", "sku", "--dry-run", "--json")
    planned = json.loads(result.stdout)
    assert (planned["state"], planned["updated"], planned["deleted"]) == ("planned", 1, 6)
    assert planned["too_many_gone"]
    assert planned["estimate"]["send_tokens"] == 2
    text = invoke(table, target, "--id", "sku", "--dry-run").stdout
    assert "6 (needs --delete-most)" in text
    assert "texts to embed" in text
    assert isinstance(invoke(table, target, "--id", "sku").exception, InputError)
    assert isinstance(invoke(table, target, "--id", "sku", "--yes").exception, InputError)
    assert invoke(table, target, "--id", "sku", "--delete-most").return_value == 0


def test_failed_rows_are_named_by_id_and_end_with_3(tmp_path: Path) -> None:
    table = write(tmp_path, 3, s1="one two three four five six seven eight nine" + " ten" * 15)
    result = invoke(
        table, tmp_path / "o.collection", "--id", "sku", "--text", "title", "--long-text", "error", *MODEL
    )
    assert result.return_value == 3
    assert "1 failed" in result.stderr
    assert "failed: s1: the text has 24 tokens" in result.stderr


def test_a_hosted_target_is_planned_without_a_key_and_without_a_request(tmp_path: Path) -> None:
    table = write(tmp_path, 10)
    hosted = (
        table,
        tmp_path / "o.parquet",
        "--id",
        "sku",
        "--text",
        "title",
        "-m",
        "openai:text-embedding-3-small",
    )
    planned = json.loads(invoke(*hosted, "--dry-run", "--json").stdout)
    assert (planned["added"], planned["estimate"]["requests"]) == (10, 1)
    assert planned["estimate"]["usd"] > 0
    assert isinstance(invoke(*hosted).exception, MissingKeyError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv"]


def test_a_table_is_read_as_it_is_said_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("sku;title\na;Stra\xdfe\n".encode("latin-1"))
    options = ("--format", "csv", "--delimiter", ";", "--encoding", "latin-1")
    result = invoke(path, tmp_path / "o.parquet", "--id", "sku", "--text", "title", *MODEL, *options)
    assert result.exception is None, result.exception
    from vecmill.data.vector_set import read_vectors

    assert read_vectors(tmp_path / "o.parquet").texts([0]) == ["Stra\xdfe"]
