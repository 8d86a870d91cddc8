"""Three times more than the model can do: what is admitted is answered in time, the rest told when to come.

The model has a fixed speed and time is virtual, so that the figures are exact and the same on every machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vecmill.models.base import Encoded
from vecmill.server.batcher import Batched, Batcher
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.testing.clock import run_virtual

RATE = 10_000.0
"""Tokens a second of the model, beside a millisecond a batch."""

SECONDS = 20.0
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 256)
SEEDS = (1, 2, 3)
LIMITS = Limits(batch_tokens=4096)


async def model(work: Encoded) -> Batched:
    tokens = int((-(-work.tokens // 8) * 8).sum())
    await asyncio.sleep(0.001 + tokens / RATE)
    return Batched(np.zeros((len(work), 2), dtype=np.float32))


@dataclass
class Result:
    """What came of a load: tokens answered in time, latencies and refusals."""

    good_tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.good_tokens / SECONDS


async def load(
    limits: Limits, *, times: float, patience: float, gap: Callable[[float], float], seed: int
) -> Result:
    """Send requests at `times` what the model can do, spaced as `gap` says of the mean space."""
    result, random = Result(), np.random.default_rng(seed)
    batcher, loop = Batcher(model, limits), asyncio.get_running_loop()
    mean_tokens = float(np.mean(LENGTHS)) * 1.5

    async def one(work: Encoded, key: str) -> None:
        begun = loop.time()
        tokens = int(work.tokens.sum())
        try:
            await batcher.vectors(work, key=key, deadline=begun + patience)
        except Refusal as refusal:
            result.statuses[refusal.status] = result.statuses.get(refusal.status, 0) + 1
            result.waits.append(int(dict(refusal.headers).get("retry-after-ms", "0")) / 1000)
        else:
            result.latencies.append(loop.time() - begun)
            result.good_tokens += tokens if begun + result.latencies[-1] <= SECONDS else 0

    tasks = []
    while loop.time() < SECONDS:
        size = 1 if random.random() < 0.75 else 3
        tokens = random.choice(LENGTHS, size=size)
        work = Encoded(("x",) * size, tokens, np.zeros(size, dtype=np.int64))
        tasks.append(asyncio.ensure_future(one(work, f"key{random.integers(4)}")))
        await asyncio.sleep(gap(mean_tokens / (RATE * times)))
    await asyncio.gather(*tasks)
    await batcher.close()
    return result


def even(seed: int) -> Callable[[float], float]:
    return lambda mean: mean


def poisson(seed: int) -> Callable[[float], float]:
    random = np.random.default_rng(1000 + seed)
    return lambda mean: float(random.exponential(mean))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arrivals", [even, poisson])
@pytest.mark.parametrize("patience", [60.0, 1.5])
def test_three_times_the_peak_keeps_goodput_and_latency(
    arrivals: Callable[[int], Callable[[float], float]], seed: int, patience: float
) -> None:
    result = run_virtual(load(LIMITS, times=3.0, patience=patience, gap=arrivals(seed), seed=seed))
    p99 = float(np.percentile(result.latencies, 99))
    print(f"seed {seed}: {result.rate:.0f} tokens/s, p99 {p99:.2f} s, {result.statuses}")
    assert result.rate >= 0.95 * RATE
    assert p99 <= min(patience, LIMITS.queue_seconds + 2 * LIMITS.batch_tokens / RATE)
    assert set(result.statuses) <= {429, 504}
    expired = result.statuses.get(504, 0)  # admitted by an estimate that later arrivals overtook
    assert expired <= (0.1 * len(result.latencies) if patience < LIMITS.queue_seconds else 0)
    assert all(0 < wait <= 60 for wait in result.waits if wait)
    assert sum(not wait for wait in result.waits) == expired


@pytest.mark.parametrize("seed", SEEDS)
def test_below_the_peak_nothing_is_refused(seed: int) -> None:
    result = run_virtual(load(LIMITS, times=0.8, patience=60.0, gap=poisson(seed), seed=seed))
    print(f"seed {seed}: p99 {np.percentile(result.latencies, 99):.2f} s")
    assert result.statuses == {}


def test_client_that_comes_back_when_told_is_answered() -> None:
    async def body() -> int:
        batcher, loop = Batcher(model, LIMITS), asyncio.get_running_loop()
        attempts = 0
        statuses: set[int] = set()

        async def one(at: int) -> None:
            nonlocal attempts
            work = Encoded(("x",), np.array([256]), np.zeros(1, dtype=np.int64))
            await asyncio.sleep(at * 0.0085)  # three times too fast
            while True:
                attempts += 1
                try:
                    await batcher.vectors(work, key="a", deadline=loop.time() + 60)
                except Refusal as refusal:
                    statuses.add(refusal.status)
                    await asyncio.sleep(int(dict(refusal.headers)["retry-after-ms"]) / 1000)
                else:
                    return

        await asyncio.gather(*(one(at) for at in range(1000)))
        assert statuses == {429}
        return attempts

    assert run_virtual(body()) <= 10 * 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_key_within_its_share_is_served_while_another_floods(seed: int) -> None:
    async def body() -> tuple[list[float], list[int]]:
        batcher, loop = Batcher(model, replace(LIMITS, batch_tokens=2048)), asyncio.get_running_loop()
        random = np.random.default_rng(seed)
        latencies: list[float] = []
        statuses: list[int] = []
        flood: list[asyncio.Task[object]] = []

        async def quiet(work: Encoded) -> None:
            try:
                await batcher.vectors(work, key="flood", deadline=loop.time() + 60)
            except Refusal as refusal:
                statuses.append(refusal.status)

        async def modest() -> None:
            while loop.time() < SECONDS:
                work = Encoded(("y",), random.choice(LENGTHS, size=1), np.zeros(1, dtype=np.int64))
                begun = loop.time()
                await batcher.vectors(work, key="modest", deadline=begun + 60)
                latencies.append(loop.time() - begun)
                await asyncio.sleep(float(random.exponential(0.1)))

        asked = asyncio.ensure_future(modest())
        while loop.time() < SECONDS:
            size = int(random.choice([1, 16, 256]))
            flood.append(
                asyncio.ensure_future(
                    quiet(Encoded(("x",) * size, random.choice(LENGTHS, size=size), np.zeros(size, np.int64)))
                )
            )
            await asyncio.sleep(0.1)
        await asyncio.gather(asked, *flood)
        return latencies, statuses

    latencies, statuses = run_virtual(body())
    print(f"seed {seed}: {len(latencies)} modest, p99 {np.percentile(latencies, 99):.2f} s")
    assert max(latencies) <= 3 * 2048 / RATE + 0.1
    assert statuses
    assert set(statuses) == {429}
