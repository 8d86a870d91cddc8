from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vecmill.bench.report import commit


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    """A file committed in a repository of its own."""
    file = tmp_path / "code.py"
    file.write_text("1\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "code.py"), (*author, "commit", "-qm", "one", "--no-verify")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return file


def test_a_clean_tree_is_its_commit_whatever_files_git_does_not_know(tracked: Path) -> None:
    (tracked.parent / "result.json").write_text("{}")
    found = commit(tracked)
    assert found is not None
    assert len(found) == 40


def test_a_changed_tracked_file_adds_a_plus(tracked: Path) -> None:
    clean = commit(tracked)
    tracked.write_text("2\n")
    assert commit(tracked) == f"{clean}+"


def test_code_that_git_does_not_know_has_no_commit(tracked: Path) -> None:
    installed = tracked.parent / "site-packages.py"
    installed.write_text("1\n")
    assert commit(installed) is None
