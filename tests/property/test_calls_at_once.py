"""Calls at once over the same texts, refused, failing, torn: each that ends has its own right vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core.errors import (
    BadReplyError,
    ProviderError,
    QuotaExhaustedError,
    RateLimitError,
    RefusedError,
    UnavailableError,
)
from vecmill.embedder.embedder import AsyncEmbedder
from vecmill.models.base import Advance, Encoded, Endpoint, ModelInfo, Reply, no_advance
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider


@dataclass(slots=True)
class Faulty(FakeProvider):
    """A hosted model of which a quarter of the requests go wrong."""

    seed: int = 0
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("2" * 32, "fake:hash"))

    @property
    def info(self) -> ModelInfo:
        return replace(FakeProvider.info.fget(self), hosted=True)  # type: ignore[attr-defined]  # a property

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        dice = Random(f"{self.seed} {len(self.calls)}").random()
        reply = await FakeProvider.embed(self, encoded)
        await asyncio.sleep(0.5)
        error = self.fault(dice, encoded.texts)
        if error is not None:
            raise error
        return reply

    def fault(self, dice: float, texts: Sequence[str]) -> ProviderError | None:
        if dice < 0.08:
            return RateLimitError("429", retry_after=1.0)
        if dice < 0.16:
            return UnavailableError("503", status=503)
        if dice < 0.22:
            return BadReplyError("wrong", retryable=True)
        if dice < 0.24:
            return QuotaExhaustedError("quota", until=1.0)
        return RefusedError("no", reason="input") if "poison" in texts else None

    async def learn(self) -> Reply | None:
        return None

    def remember(self, **limits: int | None) -> None:
        raise AssertionError(limits)

    def varied(self, *, user: str | None = None, deployment: str | None = None) -> Faulty:
        return self


async def call(door: AsyncEmbedder, model: Faulty, dice: Random) -> None:
    texts = [f"text {dice.randrange(30)}" for _ in range(dice.randrange(1, 25))]
    if dice.random() < 0.15:
        texts.append("poison")
    user, patience = dice.choice([None, None, "somebody"]), dice.choice([1000.0, dice.random() * 6])
    await asyncio.sleep(dice.random() * 6)
    task = asyncio.create_task(door.embed(texts, user=user))
    done, _ = await asyncio.wait([task], timeout=patience)
    if not done:
        task.cancel()
    try:
        made = await task
    except (ProviderError, asyncio.CancelledError):
        return
    assert np.array_equal(made.vectors, model.vectors(texts))
    assert int(made.tokens.sum()) == made.usage.tokens


@given(seed=st.integers(0, 2**20), inputs=st.sampled_from([1, 2, 5]), most=st.sampled_from([1, 3, 8]))
@settings(max_examples=25, deadline=None)
def test_calls_at_once_get_their_own_vectors_and_leave_nothing_claimed(
    seed: int, inputs: int, most: int
) -> None:
    endpoint = Endpoint("2" * 32, "fake:hash", max_concurrency=most)
    model = Faulty(seed=seed, max_inputs=inputs, usd_per_million_tokens=1.0, endpoint=endpoint)

    async def go() -> None:
        door = AsyncEmbedder(provider=model, cache=False, max_usd=1.0)
        dice = Random(seed)
        async with asyncio.timeout(100_000):
            await asyncio.gather(*(call(door, model, Random(dice.random())) for _ in range(12)))
        channel = await door._channel()
        assert not channel._flights._open
        assert channel.engine is not None
        assert (channel.engine.budget._holders, channel.engine._waiting) == (0, 0)
        assert channel.engine.limiter.in_flight == 0

    run_virtual(go())
