"""A power cut at any moment of a job: every state the disk may show reopens and resumes to the same bytes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from vecmill.data.vector_set import read_vectors
from vecmill.jobs import windows
from vecmill.jobs.plan import make_plan
from vecmill.jobs.run import Outcome, run
from vecmill.testing.crash import recording, replay
from vecmill.testing.fakes import FakeProvider


def embed(source: Path, output: Path) -> Outcome:
    async def both() -> Outcome:
        plan = await make_plan([source], output, provider=FakeProvider(dimensions=4, max_tokens=20))
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
