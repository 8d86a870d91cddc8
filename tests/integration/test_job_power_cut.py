"""A power cut at any moment of a job: every state the disk may show reopens and resumes to the same bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from vecmill.data.vector_set import read_manifest, read_vectors
from vecmill.jobs import windows
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import Outcome, run
from vecmill.testing.crash import recording, replay
from vecmill.testing.fakes import FakeProvider


def embed(source: Path, output: Path, *, overwrite: bool = False) -> Outcome:
    async def both() -> Outcome:
        options = JobOptions(overwrite=overwrite)
        plan = await make_plan([source], output, options, provider=FakeProvider(dimensions=4, max_tokens=20))
        return await run(plan)

    return asyncio.run(both())


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "folder"])
def test_every_state_a_power_cut_may_leave_resumes_to_the_same_bytes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 2)
    source = tmp_path / "texts.txt"
    source.write_text("a\nb\na\n\nc\n", encoding="utf-8")
    calm = tmp_path / "calm"
    calm.mkdir()
    with recording(calm) as record:
        embed(source, calm / name)
        record.mark("done")
    expected = tree(calm)
    seen: Counter[str] = Counter()
    every = 1 if slow else 7
    for number, (state, folder) in enumerate(replay(record, tmp_path / "states", limit=16 if slow else 4)):
        if number % every and "done" not in state.marks:
            continue
        outcome = embed(source, folder / name)
        seen[outcome.state] += 1
        if "done" in state.marks:
            assert outcome.state == "already complete", state
        assert tree(folder) == expected, state
    assert len(read_vectors(calm / name).vectors) == 4
    assert seen["failed rows"] > 5, "most states leave an unfinished job"


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "folder"])
def test_overwriting_shows_the_old_set_or_the_new_one_at_every_moment(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 2)
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("x\ny\nz\n", encoding="utf-8")
    new.write_text("a\nb\n", encoding="utf-8")
    calm, disk = tmp_path / "calm", tmp_path / "disk"
    embed(new, calm / name)
    embed(old, disk / name)
    plans = {read_manifest(calm / name), read_manifest(disk / name)}
    with recording(disk) as record:
        embed(new, disk / name, overwrite=True)
        record.mark("done")
    every = 1 if slow else 7
    for number, (state, folder) in enumerate(replay(record, tmp_path / "states", limit=16 if slow else 4)):
        if number % every and "done" not in state.marks:
            continue
        assert read_manifest(folder / name) in plans, state
        read_vectors(folder / name)
        embed(new, folder / name, overwrite=True)
        assert tree(folder) == tree(calm), state
