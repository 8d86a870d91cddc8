"""`vecmill config`: keys by reference only; trust is given and taken by a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vecmill.cli import main
from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError
from vecmill.models.hosted.openai import connect

KEY = "sk-planted-0123456789abcdefghij"
PROFILE = (
    '[profiles.team]\nmodel = "text-embedding-3-small"\nbase_url = "https://gateway.example/v1"\n'
    'key = "env:TEAM_KEY"\nheaders = { X-Team = "search" }\n[aliases]\nada = "team"\n'
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEAM_KEY", KEY)
    made = tmp_path / "vecmill.toml"
    made.write_text(PROFILE)
    return made


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.run(["config", *arguments]) == 0
    said = capsys.readouterr()
    return said.out + said.err


def test_profiles_are_shown_with_origin_and_reference_never_with_a_key(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "show")
    for part in (str(file), "(not trusted)", "env:TEAM_KEY", "X-Team: search", "https://gateway.example/v1"):
        assert part in text
    record = json.loads(shown(capsys, "show", "--json"))
    assert record["profiles"]["team"] == {
        "origin": str(file),
        "trusted": False,
        "provider": "openai",
        "model": "text-embedding-3-small",
        "base_url": "https://gateway.example/v1",
        "key": "env:TEAM_KEY",
        "headers": {"X-Team": "search"},
    }
    assert record["aliases"] == {"ada": "team"}
    assert record["cache"] == {"value": "auto", "origin": "default"}
    assert KEY not in text + json.dumps(record)


def test_trust_is_given_and_taken(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="run `vecmill config trust`"):
        connect("team", settings=load_settings())
    assert f"trusted as it is now: {file}" in shown(capsys, "trust")
    assert connect("team", settings=load_settings()).model == "text-embedding-3-small"
    assert "(trusted)" in shown(capsys, "show")
    file.write_text(PROFILE + "# changed\n")
    assert "(not trusted)" in shown(capsys, "show")
    assert "trusted as it is now" in shown(capsys, "trust", str(file.parent))
    assert "is trusted no longer" in shown(capsys, "trust", "--remove")
    assert "was not trusted" in shown(capsys, "trust", "--remove", str(file))


def test_the_user_s_own_profiles_need_no_trust(
    file: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.rename(own_home / "vecmill.toml")
    assert "trusted" not in shown(capsys, "show")


def test_a_file_that_is_not_there_cannot_be_trusted(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config", "trust", "nowhere.toml"]) == 1
    assert "nowhere.toml is not a file" in capsys.readouterr().err
