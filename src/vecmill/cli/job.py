"""`vecmill job`: the jobs this machine remembers."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from vecmill.cli.output import emit, say, table, tell
from vecmill.core.config import load_settings


@click.group()
def job() -> None:
    """List the jobs of this machine."""


@job.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_(as_json: bool) -> None:
    """List jobs, newest first. An unfinished one goes on when its command is repeated."""
    from vecmill.jobs.store import list_jobs

    jobs = list_jobs(load_settings())
    if as_json:
        emit([{**asdict(row), "updated": _when(row.updated, "milliseconds")} for row in jobs])
        return
    if not jobs:
        tell("no jobs yet; `vecmill embed` makes one")
        return
    header = ("job", "state", "rows", "done", "updated", "inputs", "output")
    rows = [
        (
            row.id,
            row.state,
            f"{row.rows:,}",
            f"{row.done:,}",
            _when(row.updated, "minutes"),
            row.inputs,
            row.output,
        )
        for row in jobs
    ]
    say(*table(rows, header, right=frozenset({2, 3})))


def _when(seconds: float, precision: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
