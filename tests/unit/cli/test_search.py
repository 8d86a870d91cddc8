"""What `vecmill search` and `similar` print, and how they say that there are fewer than asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.cli import main
from vecmill.cli.search import METRICS
from vecmill.collection import search as search_module
from vecmill.collection.search import SearchResult
from vecmill.core.types import Hit, Metric


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six rows on a line, one of them a star apart."""
    monkeypatch.chdir(tmp_path)
    table = pa.table(
        {
            "name": [f"row {row}" for row in range(6)],
            "stars": [1, 2, 3, 4, 5, None],
            "vector": pa.array([[1.0, row] for row in range(6)], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "set.parquet")
    np.save(tmp_path / "one.npy", np.array([1.0, 0.0], np.float32))
    np.save(tmp_path / "two.npy", np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    return "set.parquet"


def ran(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], str]:
    """Run a command; return the lines it printed and what it said on stderr."""
    assert main.run(list(arguments)) == code
    said = capsys.readouterr()
    return said.out.splitlines(), said.err


def test_the_metrics_offered_are_all_there_are() -> None:
    assert tuple(METRICS) == tuple(metric.value for metric in Metric)


def test_a_filter_is_obeyed(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, said = ran(
        capsys, "search", source, "--vector", "one.npy", "-k", "2", "--where", "stars > 2 and name <> 'row 2'"
    )
    assert [line.split()[2] for line in lines] == ["3", "4"]
    assert said == ""
    lines, _ = ran(capsys, "similar", source, "--id", "0", "-k", "1", "--where", "stars is null", "--json")
    assert [hit["id"] for hit in json.loads(lines[0])["results"]] == ["5"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--where", "stars > 3"], "2 of 10 asked for: only 2 rows pass --where\n"),
        (["--where", "stars = 3"], "1 of 10 asked for: only 1 row passes --where\n"),
        (["--where", "stars = 9"], "0 of 10 asked for: no row passes --where\n"),
        (["--max-distance", "0.3", "-k", "6"], "2 of 6 asked for: the others do not pass --max-distance\n"),
        (
            ["--max-distance", "9", "--min-similarity", "2", "--where", "stars > 0"],
            "0 of 10 asked for: the others do not pass --max-distance and --min-similarity\n",
        ),
        (["-k", "7"], "6 of 7 asked for: there are no more\n"),
        (["-k", "6"], ""),
        ([], ""),
    ],
)
def test_fewer_than_asked_for_is_said_with_the_reason(
    source: str, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(capsys, "search", source, "--vector", "one.npy", *options)[1] == expected
    lines, said = ran(capsys, "search", source, "--vector", "one.npy", *options, "--json")
    assert said == expected
    assert json.loads(lines[0])["complete"] == (options == ["-k", "6"])


def test_of_several_queries_each_is_named(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, said = ran(capsys, "search", source, "--vector", "two.npy", "--where", "stars < 2")
    assert [line for line in lines if line.startswith("query")] == ["query 0", "query 1"]
    assert said.splitlines() == [
        "query 0: 1 of 10 asked for: only 1 row passes --where",
        "query 1: 1 of 10 asked for: only 1 row passes --where",
    ]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_asked_for(source: str, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = ran(
        capsys, "search", source, "--vector", "one.npy", "-k", "1", "--metric", metric, "--exact", "--json"
    )
    assert json.loads(lines[0])["results"][0]["rank"] == 1


def test_a_wrong_filter_is_one_line_that_names_the_place(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = ran(capsys, "search", source, "--vector", "one.npy", "--where", "stars >= 'four'", code=1)
    assert said == "error: where, character 10: stars is a number, 'four' is text\n"


def test_hybrid_needs_a_text(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = ran(capsys, "search", source, "--vector", "one.npy", "--hybrid", code=1)
    assert "give the query as a text" in said
    assert main.run(["similar", source, "--id", "0", "--hybrid"]) == 2


def test_ids_of_every_type_and_notes_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [2**60 + 1, b"\xab\x01", "\x1b[2Jx"]

    async def found(*_: Any, **__: Any) -> SearchResult:
        hits = tuple(Hit(rank, name, 0.5, 0.5, "a text", {}) for rank, name in enumerate(names, 1))
        return SearchResult(None, None, None, True, "cosine", hits, notes=("the index is old",))

    monkeypatch.setattr(search_module, "similar_async", found)
    lines, said = ran(capsys, "similar", "anything", "--id", "x", "-k", "3", "--json")
    assert [hit["id"] for hit in json.loads(lines[0])["results"]] == [2**60 + 1, "ab01", "\x1b[2Jx"]
    assert said == "note: the index is old\n"
    lines, _ = ran(capsys, "similar", "anything", "--id", "x", "-k", "3")
    assert [line.split()[2] for line in lines] == [str(2**60 + 1), "ab01", "x"]
