"""Go on with a job that was parked, paused or interrupted, without repeating its command."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, JobError, unknown_name
from vecmill.data.readers import ReadOptions
from vecmill.jobs.plan import JobOptions
from vecmill.jobs.remote import Remote
from vecmill.jobs.state import StateDir
from vecmill.jobs.store import JobRow, list_jobs


@dataclass(frozen=True, slots=True)
class Command:
    """What a job was asked: its inputs as given in `folder`, its output, its options."""

    inputs: tuple[str, ...]
    output: str
    folder: Path
    options: JobOptions


def unfinished_jobs(settings: Settings | None = None) -> list[JobRow]:
    """Return the jobs of this home that can go on, newest first."""
    return [row for row in list_jobs(settings) if row.state.startswith(("parked", "paused", "stopped"))]


def read_command(which: str | None, *, settings: Settings | None = None) -> Command:
    """Find an unfinished job's command.

    Args:
        which: Its id or output; None: the only unfinished one.
        settings: None reads environment and `vecmill.toml`.

    Raises:
        UnknownNameError: There is no such unfinished job.
        InputError: Several are unfinished and none was named.
        JobError: The job read standard input, what it was asked is not kept any more, or it is not of this
            home: its folder may have come along with somebody else's project.
    """
    settings = settings or load_settings()
    output = _output(which, settings)
    state = _state(output, settings)
    try:
        command: dict[str, Any] = json.loads(state.plan_path.read_bytes())["command"]
        options = _options(command["options"])
        found = Command(tuple(command["inputs"]), output, Path(command["folder"]), options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{state.path} does not say any more what the job was asked: repeat its `vecmill embed` command"
        ) from error
    if "-" in found.inputs:
        raise JobError(f"{output} was made from standard input: repeat its command with the same input")
    if not found.folder.is_dir():
        raise JobError(f"the job was started in {found.folder}, which is not there: repeat its command")
    return found


def _output(which: str | None, settings: Settings) -> str:
    jobs = unfinished_jobs(settings)
    if which is None:
        if len(jobs) == 1:
            return jobs[0].output
        if not jobs:
            raise InputError("no job of this home is unfinished; `vecmill job list` shows all")
        names = ", ".join(f"{row.id} ({row.output})" for row in jobs[:10])
        raise InputError(f"{len(jobs)} jobs are unfinished, say which: {names}")
    path = str(Path(which).absolute())
    same = [row.output for row in jobs if which in (row.id, row.output) or path == row.output]
    if len(same) > 1:
        raise InputError(
            f"{len(same)} unfinished jobs have the id {which}; name the output: {', '.join(same)}"
        )
    if same:
        return same[0]
    if any(row.state == "complete" and path == row.output for row in list_jobs(settings)):
        raise InputError(f"{which} is complete: there is nothing to resume")
    if any(path == row.output for row in list_jobs(settings)):
        return path
    if _state(path, settings).plan_path.is_file():
        raise JobError(
            f"{path} has an unfinished job, but not one this home's list knows: what it was asked, and where "
            f"keys would be sent, may be somebody else's words; repeat its `vecmill embed` command to go on"
        )
    raise unknown_name("unfinished job", which, [name for row in jobs for name in (row.id, row.output)])


def _state(output: str, settings: Settings) -> StateDir:
    if "://" in output:
        return StateDir.beside(Remote.of(output, settings.home).staging)
    return StateDir.beside(Path(output))


def _options(given: dict[str, Any]) -> JobOptions:
    if "read" in given:
        given["read"] = ReadOptions(**given["read"])
    if given.get("columns") is not None:
        given["columns"] = tuple(given["columns"])
    return replace(JobOptions(), **given)
