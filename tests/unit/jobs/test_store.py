"""The list of jobs: begun anew when of another version, honest about processes that died."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vecmill.core.errors import StorageError
from vecmill.jobs.store import list_jobs


def test_a_list_of_another_version_is_begun_anew(own_home: Path) -> None:
    with sqlite3.connect(own_home / "jobs.sqlite") as db:
        db.execute("CREATE TABLE job (id TEXT, state TEXT)")
        db.execute("INSERT INTO job VALUES ('a', 'running')")
    db.close()
    assert list_jobs() == []


def test_a_damaged_list_is_said_to_be(own_home: Path) -> None:
    (own_home / "jobs.sqlite").write_bytes(b"no database, but long enough to be read as one" * 40)
    with pytest.raises(StorageError, match="loses only the list"):
        list_jobs()


def test_a_running_job_whose_process_died_is_stopped(own_home: Path) -> None:
    assert list_jobs() == []
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    db = sqlite3.connect(own_home / "jobs.sqlite")
    with db:
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "CREATE TABLE job (id TEXT, state TEXT, inputs TEXT, output TEXT PRIMARY KEY, "
            "rows INTEGER, done INTEGER, updated REAL, pid INTEGER) STRICT"
        )
        db.execute("INSERT INTO job VALUES ('a', 'running', 'i', 'o', 5, 2, 1.0, ?)", (int(dead.stdout),))
    db.close()
    assert [(job.state, job.done) for job in list_jobs()] == [("stopped", 2)]
