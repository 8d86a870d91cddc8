"""`vecmill job`: the jobs this machine remembers."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import asdict, replace
from datetime import UTC, datetime

import click

from vecmill.cli.output import emit, say, table, tell
from vecmill.core.config import load_settings


@click.group()
def job() -> None:
    """List the jobs of this machine, and go on with one."""


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


@job.command()
@click.argument("which", required=False, metavar="[JOB|OUT]")
@click.option("--max-usd", type=click.FloatRange(min=0), metavar="USD", help="Another cap than before.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as one JSON object.")
def resume(which: str | None, max_usd: float | None, yes: bool, as_json: bool) -> int:
    """Go on with a job that was parked, paused or stopped.

    JOB is the id of `vecmill job list`, OUT the job's output; neither is needed where only one is unfinished.
    """
    from vecmill.cli.embed import embed_and_tell
    from vecmill.jobs.resume import read_command

    command = read_command(which, settings=load_settings())
    options = command.options if max_usd is None else replace(command.options, max_usd=max_usd)
    tell(f"going on with {command.output}")
    with chdir(command.folder):
        return embed_and_tell(command.inputs, command.output, options, as_json=as_json, yes=yes)


def _when(seconds: float, precision: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
