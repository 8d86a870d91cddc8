"""Planning needs nothing that only a request needs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vecmill.core.errors import MissingKeyError
from vecmill.jobs.plan import JobOptions, make_plan


def test_a_plan_that_asks_nobody_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\nhello\nworld\n")
    options = JobOptions(model="openai:text-embedding-3-small")

    async def dimensions(*, ask: bool) -> int:
        plan = await make_plan(["a.csv"], "out.parquet", options, ask=ask)
        try:
            return plan.provider.info.dimensions
        finally:
            plan.discard()
            await plan.provider.close()

    assert asyncio.run(dimensions(ask=False)) == 1536
    with pytest.raises(MissingKeyError, match="set OPENAI_API_KEY"):
        asyncio.run(dimensions(ask=True))
