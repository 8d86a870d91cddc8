"""A greedy key in front of a paid provider's limit: others are served in turns, the limit is used."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vecmill.core.config import load_settings
from vecmill.core.types import InputType
from vecmill.models.base import Encoded
from vecmill.server.errors import Refusal
from vecmill.server.loading import Served, load
from vecmill.server.options import ModelSource, Options
from vecmill.testing.clock import run_virtual
from vecmill.testing.scenarios import Latency, Scenario
from vecmill.testing.simulator import Fault, Simulator

TOKENS_PER_MINUTE = 1_000_000
LATENCY = 0.3
BATCH_SECONDS = 60 * 10_000 / (0.975 * TOKENS_PER_MINUTE)
"""Seconds one request of a hundredth of the limit takes of it."""

SCENARIO = Scenario(tokens_per_minute=TOKENS_PER_MINUTE, latency=Latency(seconds=LATENCY))


@dataclass
class Clients:
    """Clients of one served model, each text never seen before."""

    served: Served
    texts: int = 0
    seconds: list[float] = field(default_factory=list)

    def work(self, count: int) -> Encoded:
        names = range(self.texts, self.texts + count)
        self.texts += count
        asked = [f"{i} " + "word " * 20 for i in names]
        return self.served.provider.encode(asked, input_type=InputType.DOCUMENT)

    async def ask(self, key: str, count: int) -> float:
        begun = asyncio.get_running_loop().time()
        found = await self.served.vectors(self.work(count), key=key, deadline=begun + 60)
        assert len(found.vectors) == count
        return asyncio.get_running_loop().time() - begun

    async def greedy(self, key: str) -> None:
        while True:
            try:
                await self.ask(key, 2048)
            except Refusal:
                await asyncio.sleep(1)


@pytest.mark.parametrize("keys", [1, 8])
def test_a_text_of_another_key_waits_for_about_one_batch_and_the_limit_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    async def body() -> tuple[list[float], float]:
        async with Simulator(SCENARIO) as simulator:
            monkeypatch.setenv("OPENAI_API_KEY", simulator.key)
            monkeypatch.setenv("OPENAI_BASE_URL", simulator.url)
            settings = load_settings(home=str(tmp_path / "home"), cache_dir=str(tmp_path / "cache"))
            source = ModelSource("m", "openai:text-embedding-3-small")
            served = await load(source, "1", None, Options(), settings)
            clients, loop = Clients(served), asyncio.get_running_loop()
            tasks = [asyncio.create_task(clients.greedy(f"g{i % keys}")) for i in range(8)]
            await asyncio.sleep(0.5)
            waits = []
            for _ in range(12):
                waits.append(await clients.ask("other", 1))
                await asyncio.sleep(0.7)
            await asyncio.sleep(61.5 - loop.time())  # the burst of the first second is over
            paid, since = simulator.billed_tokens, loop.time()
            await asyncio.sleep(122)
            flow = (simulator.billed_tokens - paid) / (loop.time() - since)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in ended)
            await served.close()
            return waits, flow * 60 / TOKENS_PER_MINUTE

    waits, used = run_virtual(body())
    print(f"{keys} greedy keys: a text waits {max(waits):.2f} s at most, {used:.1%} of the limit used")
    # the batch that waits to leave, its own, and the answer
    assert max(waits) <= 2 * BATCH_SECONDS + LATENCY + 0.1
    assert used >= 0.95


def test_a_request_that_hangs_is_tried_again_before_its_clients_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> list[float]:
        scenario = Scenario(latency=Latency(seconds=LATENCY), faults=(Fault("timeout", times=1),))
        async with Simulator(scenario) as simulator:
            monkeypatch.setenv("OPENAI_API_KEY", simulator.key)
            monkeypatch.setenv("OPENAI_BASE_URL", simulator.url)
            settings = load_settings(home=str(tmp_path / "home"), cache_dir=str(tmp_path / "cache"))
            source = ModelSource("m", "openai:text-embedding-3-small")
            clients = Clients(await load(source, "1", None, Options(), settings))
            waits = [await clients.ask("one", 5) for _ in range(2)]
            await clients.served.close()
            return waits

    hung, after = run_virtual(body())
    assert 20 < hung < 40  # a try may take 24 of the 60 seconds a client waits
    assert after < 1
