"""An environment without any vendor's variables, and a folder of its own for `vecmill.toml`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VENDORS = ("OPENAI_", "AZURE_", "GITHUB_TOKEN", "GH_TOKEN")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, empty."""
    for name in [name for name in os.environ if name.startswith(VENDORS)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_file(own_home: Path) -> Path:
    """The user's own `vecmill.toml`, which needs no trust."""
    return own_home / "vecmill.toml"
