"""Run as a process by test_job_kill.py: a job on a fake model that kills itself at one durable operation.

Arguments: input, output, number of the operation to die before (-1: live).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from vecmill.core import durable
from vecmill.core.config import load_settings
from vecmill.embedder.channel import Channel
from vecmill.jobs import windows
from vecmill.jobs.plan import make_plan
from vecmill.jobs.run import run
from vecmill.testing.fakes import FakeProvider


class Killer:
    """Counts operations and kills the process before one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def before(self, operation: str, path: Path) -> None:
        """Die when it is time."""
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1

    def after(self, operation: str, path: Path) -> None:
        """See that it has happened."""


async def job(source: str, output: str) -> None:
    plan = await make_plan([source], output, provider=FakeProvider(dimensions=8, max_tokens=20))
    await run(plan)


if __name__ == "__main__":
    windows.WINDOW_ROWS = 8
    asyncio.run(Channel.to(FakeProvider(dimensions=8), load_settings()).probe())  # not in the count
    killer = Killer(int(sys.argv[3]))
    with durable.watching(killer):
        asyncio.run(job(sys.argv[1], sys.argv[2]))
    print(killer.seen)
