"""The list of jobs of this home, for `vecmill job list`.

A convenience: a job needs only the folder beside its output, and nothing is lost with this list.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vecmill.core import durable
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import StorageError
from vecmill.core.machine import is_running

if TYPE_CHECKING:
    from vecmill.jobs.plan import Plan

_VERSION = 1
"""Of the list's columns; a list of another version is begun anew."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job.

    Attributes:
        id: The start of its plan's fingerprint.
        state: "running", "stopped", "complete" or "failed rows".
        rows: Rows of the input. done: how many of them are finished.
        updated: Seconds since the epoch.
    """

    id: str
    state: str
    inputs: str
    output: str
    rows: int
    done: int
    updated: float


def note_job(plan: Plan, *, state: str, done: int) -> None:
    """Note how a job stands. A list that cannot be written is logged, not raised."""
    inputs = ", ".join(source.name for source in plan.sources.files[:3])
    if len(plan.sources.files) > 3:
        inputs += f", … ({len(plan.sources.files)} files)"
    job = (plan.fingerprint[:8], state, inputs, plan.target.name, plan.rows, done)
    try:
        durable.make_dir(plan.settings.home)
        with _open(plan.settings.home / "jobs.sqlite") as db:
            db.execute(
                "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*job, time.time(), os.getpid())
            )
    except (sqlite3.Error, OSError, StorageError) as error:
        _log.warning("the list of jobs in %s cannot be written: %s", plan.settings.home, error)


def forget_job(plan: Plan) -> None:
    """Take a job off the list: it ended before there was anything to resume."""
    path = plan.settings.home / "jobs.sqlite"
    if not path.is_file():
        return
    try:
        with _open(path) as db:
            db.execute("DELETE FROM job WHERE output = ?", (plan.target.name,))
    except (sqlite3.Error, OSError) as error:
        _log.warning("the list of jobs in %s cannot be written: %s", plan.settings.home, error)


def list_jobs(settings: Settings | None = None) -> list[JobRow]:
    """Return the jobs of this home, newest first.

    Raises:
        StorageError: The list is damaged; removing it loses nothing else.
    """
    path = (settings or load_settings()).home / "jobs.sqlite"
    if not path.is_file():
        return []
    try:
        with _open(path) as db:
            found = list(db.execute("SELECT * FROM job ORDER BY updated DESC"))
        return [JobRow(row[0], _state(row[1], row[-1]), *row[2:-1]) for row in found]
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be read: {error}; removing it loses only the list") from error


def _state(noted: str, pid: int) -> str:
    return "stopped" if noted == "running" and not is_running(pid) else noted


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, timeout=10)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        with db:
            if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                db.execute("DROP TABLE IF EXISTS job")
                db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute(
                "CREATE TABLE IF NOT EXISTS job (id TEXT, state TEXT, inputs TEXT, output TEXT PRIMARY KEY, "
                "rows INTEGER, done INTEGER, updated REAL, pid INTEGER) STRICT"
            )
            yield db
    finally:
        db.close()
