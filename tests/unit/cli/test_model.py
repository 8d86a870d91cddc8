"""`vecmill model`: hosted models are shown with price, source and key status, and are not asked."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from vecmill.cli import main

KEY = "sk-planted-0123456789abcdefghij"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.run(["model", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_says_price_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "list").splitlines()
    line = next(line for line in lines if line.startswith("openai:text-embedding-3-small"))
    for part in ("1536", "8192", "$0.02 per million tokens", "OPENAI_API_KEY: set", "catalogue"):
        assert part in line
    line = next(line for line in lines if line.startswith("github:openai/text-embedding-3-large"))
    assert "unknown" in line
    assert "GITHUB_TOKEN: missing" in line
    records = json.loads(shown(capsys, "list", "--json"))
    assert KEY not in json.dumps(records)
    assert {"minilm"} <= {alias for record in records for alias in record["aliases"]}


def test_a_hosted_model_is_shown_with_the_date_and_source_of_its_price(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(capsys, "show", "openai:text-embedding-3-small")
    assert "$0.02 per million tokens; by the Batch API $0.01 per million tokens" in text
    assert "(OpenAI API, Pricing: Embeddings, 2026-05)" in text
    assert "OPENAI_API_KEY: set" in text
    assert KEY not in text
    record = json.loads(shown(capsys, "show", "openai:text-embedding-3-small", "--json"))
    assert (record["dimensions"], record["usd_per_million_tokens"]) == (1536, 0.02)


def test_what_is_unknown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "show", "azure:reviews")
    assert "unknown until it is asked" in text
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(("mrl", "price"))] == [
        "unknown",
        "unknown",
    ]


def test_options_of_local_models_are_refused_for_hosted_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["model", "show", "openai:text-embedding-3-small", "--device", "CPU"]) == 2
    assert "for local models" in capsys.readouterr().err


def test_a_local_model_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(shown(capsys, "show", "minilm", "--json"))
    assert (record["dimensions"], record["hosted"], record["precision"]) == (384, False, "int8")
