"""A disk that fills up at any operation: a clear error, the old output intact, and the job resumes."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from vecmill.core import durable
from vecmill.core.errors import WriteError
from vecmill.data.vector_set import read_vectors
from vecmill.jobs import windows
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import Outcome, run
from vecmill.testing.fakes import FakeProvider


class FullDisk:
    """Lets some operations through and then has no space left for anything that takes some."""

    def __init__(self, room: int) -> None:
        self.room = room

    def before(self, operation: str, path: Path) -> None:
        if operation in ("create", "mkdir", "fsync"):
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def after(self, operation: str, path: Path) -> None:
        pass


def embed(source: Path, output: Path, *, overwrite: bool = False) -> Outcome:
    async def both() -> Outcome:
        options = JobOptions(overwrite=overwrite)
        plan = await make_plan([source], output, options, provider=FakeProvider(dimensions=4, max_tokens=20))
        return await run(plan)

    return asyncio.run(both())


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "folder"])
def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 2)
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("x\ny\n", encoding="utf-8")
    new.write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    embed(new, tmp_path / "calm" / name)
    refused = 0
    for room in range(60):
        output = tmp_path / str(room) / name
        embed(old, output)
        before = content(output)
        try:
            with durable.watching(FullDisk(room)):
                embed(new, output, overwrite=True)
        except WriteError as error:
            assert "space" in str(error).lower()  # noqa: PT017 - it may also have room
            assert content(output) in (before, content(tmp_path / "calm" / name)), "old or new, never mixed"
            refused += 1
        else:
            break
        embed(new, output, overwrite=True)
        assert tree(output) == tree(tmp_path / "calm" / name)
    assert refused > 8


def content(output: Path) -> tuple[str | None, bytes]:
    """Return which plan made the set, and its vectors."""
    found = read_vectors(output)
    assert found.manifest is not None
    return found.manifest.plan, found.vectors.tobytes()


def tree(output: Path) -> dict[str, bytes]:
    """Return the bytes of the set: of a file, or of all files in a folder."""
    files = [output] if output.is_file() else sorted(output.rglob("*"))
    return {path.name: path.read_bytes() for path in files if path.is_file()}
