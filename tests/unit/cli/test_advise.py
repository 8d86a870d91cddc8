from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from vecmill.cli.main import run
from vecmill.index.storage import is_store

SMALL = ["--kind", "flat", "--sample", "1000", "--queries", "100"]


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    made = chance.standard_normal((1500, 12)) @ chance.standard_normal((12, 48))
    np.save(tmp_path / "films.npy", (made + 0.3 * chance.standard_normal((1500, 48))).astype(np.float32))
    return tmp_path / "films.npy"


def test_the_table_marks_the_choice_and_the_command_builds_it(
    vectors: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vectors.parent)
    assert run(["index", "advise", "films.npy", *SMALL]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("1,500 different vectors of 48 dimensions; 1,000 of them searched for 100")
    assert sum(line.startswith(">") for line in lines) == 1
    assert any(line.startswith(">") and "exact" in line for line in lines)
    assert any("below 50,000 rows no index is needed" in line for line in lines)
    commands = [line.strip() for line in lines if line.strip().startswith("vecmill index build")]
    assert commands[0] == "vecmill index build films.npy -o films.collection"
    assert run(shlex.split(commands[1])[1:]) == 0
    assert is_store(vectors.parent / "films.collection")
    assert "flat int8" in said.err


def test_json_holds_the_choices_and_the_command(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "advise", str(vectors), *SMALL, "--shorten", "24,12", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"].startswith("vecmill index build ")
    assert {one["settings"]["shorten"] for one in told["choices"]} == {None, 24, 12}
    assert told["choices"][told["chosen"]]["predicted"][2]["rows"] == 150_000


def test_the_choice_can_be_built_and_drawn_at_once(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built, drawn = tmp_path / "built", tmp_path / "advice.png"
    words = ["index", "advise", str(vectors), *SMALL, "--build", str(built), "--plot", str(drawn)]
    assert run(words) == 0
    assert is_store(built)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert f"1,500 rows -> {built}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--shorten", "many"], ["--recall-target", "1"], ["-k", "0"], ["--max-latency", "0"]]
)
def test_wrong_options_are_usage_errors(vectors: Path, words: list[str]) -> None:
    assert run(["index", "advise", str(vectors), *words]) == 2


def test_a_picture_of_an_unknown_kind_is_refused_before_anything_is_measured(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", "advise", str(vectors), *SMALL, "--plot", "a.gif"]) == 1
    assert "rows to search" not in capsys.readouterr().err
