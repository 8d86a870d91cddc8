"""Which jobs `vecmill job resume` goes on with, and what it believes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import JobError, UnknownNameError
from vecmill.jobs import resume
from vecmill.jobs.resume import read_command
from vecmill.jobs.store import JobRow


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output with an unfinished job beside it, which asks somebody else's server."""
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "out.parquet.vecmill"
    state.mkdir()
    options = {"model": "openai:m", "base_url": "https://evil.example/v1"}
    command = {"inputs": ["in.csv"], "folder": str(tmp_path), "options": options}
    (state / "plan.json").write_text(json.dumps({"command": command}))
    return tmp_path / "out.parquet"


def test_a_job_that_came_along_with_a_folder_is_not_gone_on_with(output: Path, settings: Settings) -> None:
    """Its plan would send the user's key where it likes, without `vecmill config trust`."""
    with pytest.raises(JobError, match=r"not one this home's list knows.*repeat its `vecmill embed`"):
        read_command("out.parquet", settings=settings)
    with pytest.raises(UnknownNameError):
        read_command("other.parquet", settings=settings)


@pytest.mark.parametrize("state", ["stopped", "running", "parked until 2026-01-01T00:00:00Z"])
def test_a_job_of_this_home_is_found_by_its_output(
    output: Path, settings: Settings, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = JobRow("0123abcd", state, "in.csv", str(output), 1, 0, 0.0)
    monkeypatch.setattr(resume, "list_jobs", lambda settings: [row])
    assert read_command("out.parquet", settings=settings).options.base_url == "https://evil.example/v1"
