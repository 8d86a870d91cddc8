"""One process that sends requests under a shared limit: FOLDER LIMIT SECONDS, or FOLDER LIMIT reserve COUNT.

It prints the moments at which it sent them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from vecmill.embedder.limit_store import SqliteStore
from vecmill.embedder.limits import Limiter
from vecmill.embedder.pacing import Caps, Grant, State
from vecmill.models.base import Endpoint


async def send(folder: Path, limit: int, seconds: float) -> list[float]:
    store = SqliteStore(folder / "limits.sqlite")
    limiter = Limiter(Endpoint("e", "openai:m", limit), store=store)
    moments: list[float] = []
    end = time.time() + seconds

    async def work() -> None:
        while time.time() < end:
            ticket = await limiter.acquire(10)
            moments.append(time.time())
            await asyncio.sleep(0.05)
            limiter.succeeded(ticket, tokens=10, rates=None)

    await asyncio.gather(*(work() for _ in range(32)))
    store.close()
    return moments


def reserve(folder: Path, limit: int, count: int) -> list[float]:
    store = SqliteStore(folder / "limits.sqlite")
    now = 1_800_000_000.0
    moments: list[float] = []

    def change(state: State) -> list[Grant]:
        return state.reserve([10], Caps(limit), now=now, horizon=0)

    for _ in range(count):
        now = max(now, store.change("e", change)[0].at)
        moments.append(now)
    assert store.blocks, "the file is shared, not given up"
    store.close()
    return moments


if __name__ == "__main__":
    where, most = Path(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3] == "reserve":
        print(json.dumps(reserve(where, most, int(sys.argv[4]))))
    else:
        print(json.dumps(asyncio.run(send(where, most, float(sys.argv[3])))))
