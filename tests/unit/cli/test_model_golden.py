"""`vecmill model golden` writes what the server checks a version against."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from vecmill.cli.model import model
from vecmill.core.config import load_settings
from vecmill.core.errors import BadReplyError, InputError
from vecmill.models.resolve import open_model
from vecmill.server import golden

MODELS = Path(__file__).parents[2] / "data" / "models"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VECMILL_CACHE_DIR", str(tmp_path / "cache"))
    return Path(shutil.copytree(MODELS / "bert-mean", tmp_path / "m"))


def check(folder: Path, pooling: str | None = None) -> None:
    provider = open_model(str(folder), settings=load_settings(), pooling=pooling)
    asyncio.run(golden.check(provider, load_settings(), folder=folder))


def test_the_same_model_passes_and_another_pooling_does_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a mill\n\nflour and bread\n")
    result = CliRunner().invoke(model, ["golden", str(folder), "--texts", str(tmp_path / "texts.txt")])
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "golden.json").read_text())["texts"] == ["a mill", "flour and bread"]
    check(folder)
    with pytest.raises(BadReplyError, match="from the golden one"):
        check(folder, pooling="cls")


def test_without_texts_there_is_nothing_to_write(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n \n")
    arguments = ["golden", str(folder), "--texts", str(tmp_path / "texts.txt")]
    result = CliRunner().invoke(model, arguments, standalone_mode=False)
    assert isinstance(result.exception, InputError)
    assert not (folder / "golden.json").exists()
