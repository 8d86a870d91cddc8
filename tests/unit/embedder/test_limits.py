"""The limiter lets requests through as fast as limits allow, in order, and loses no place."""

from __future__ import annotations

import asyncio

from vecmill.embedder.limits import Limiter
from vecmill.models.base import Endpoint
from vecmill.testing.clock import VirtualLoop, run_virtual


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_requests_flow_evenly_under_a_limit() -> None:
    async def main() -> float:
        loop = _loop()
        limiter = Limiter(Endpoint("e", "openai:m", requests_per_minute=60), now=loop.now)
        for _ in range(61):
            limiter.succeeded(await limiter.acquire(1), tokens=1, rates=None)
        return loop.time()

    assert 60.0 < run_virtual(main()) < 63.0
