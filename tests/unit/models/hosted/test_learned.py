"""What was learned of an endpoint: kept, merged, and never trusted when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vecmill.models.hosted.learned import Learned, plain_name, read_learned, write_learned

WHOLE = Learned(1536, "text-embedding-3-small", True, False, 16, 8000, 1_000_000)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "endpoints" / "a.json"
    write_learned(path, WHOLE)
    assert read_learned(path) == WHOLE
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_missing_file_and_no_file_know_nothing(tmp_path: Path) -> None:
    assert read_learned(tmp_path / "a.json") == read_learned(None) == Learned()


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": "1536"},
        {"dimensions": 0},
        {"dimensions": True},
        {"normalized": 1},
        {"model": "a text with spaces in it"},
        {"model": 3},
        {"max_inputs": -1},
        {"version": 2},
    ],
)
def test_file_with_one_wrong_value_is_ignored_whole(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_learned(path, WHOLE)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_learned(path) == Learned()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_file_is_ignored(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read_learned(path) == Learned()


def test_keys_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "dimensions": 8, "colour": "red"}))
    assert read_learned(path) == Learned(dimensions=8)


def test_place_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    write_learned(tmp_path / "file" / "a.json", WHOLE)
    assert "cannot be kept" in caplog.text


def test_limits_only_shrink() -> None:
    learned = Learned(max_inputs=16)
    assert learned.limited(max_inputs=8, max_request_tokens=None) == Learned(max_inputs=8)
    assert learned.limited(max_inputs=32) == learned
    assert learned.limited(max_inputs=0) == learned
    assert learned.limited(max_request_bytes=99) == Learned(max_inputs=16, max_request_bytes=99)


def test_names_that_are_no_names() -> None:
    assert plain_name("BAAI/bge-small-en:v1.5") == "BAAI/bge-small-en:v1.5"
    assert plain_name("") is plain_name("two words") is plain_name("x" * 121) is None


@pytest.mark.parametrize(
    "name",
    ["sk-planted-0123456789", "x/sk-planted-0123456789", "ghp_planted0123456789", "eyJhbGciOiJIUzI1NiJ9.a"],
)
def test_a_server_that_calls_its_model_by_a_key_has_it_kept_nowhere(name: str) -> None:
    assert plain_name(name) is None


@pytest.mark.parametrize(
    "name", ["text-embedding-3-small", "risk-assessment-embedder", "task-embed-large-v2"]
)
def test_names_of_models_are_names(name: str) -> None:
    assert plain_name(name) == name
