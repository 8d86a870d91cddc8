"""Batches across requests, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vecmill.core.errors import InputError, ProviderError, UnavailableError
from vecmill.models.base import Encoded
from vecmill.server.batcher import Batched, Batcher
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.testing.clock import run_virtual

LIMITS = Limits(batch_tokens=1024, queue_tokens=64 * 1024)
FAR = 1e9


def texts(*names: str, tokens: int = 8, variant: str = "") -> Encoded:
    """Return texts of so many tokens each."""
    n = len(names)
    return Encoded(names, np.full(n, tokens), np.zeros(n, dtype=np.int64), None, variant)


def row(name: str) -> float:
    """Return the number that stands for a text."""
    return float(sum(ord(letter) * 31**at for at, letter in enumerate(name[:6])) % 100_003)


def rows(work: Encoded) -> np.ndarray:
    """Return the vectors (n, 2) of texts."""
    return np.array([[row(name), 1.0] for name in work.texts], dtype=np.float32)


@dataclass
class Model:
    """A model of a fixed speed that notes what it is given and when."""

    tokens_per_second: float = 1024.0
    overhead: float = 0.0
    seen: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    wrong: Callable[[Encoded], BaseException | None] = lambda work: None

    async def __call__(self, work: Encoded) -> Batched:
        loop = asyncio.get_running_loop()
        self.seen.append((loop.time(), work.texts))
        await asyncio.sleep(self.overhead + int(work.tokens.sum()) / self.tokens_per_second)
        error = self.wrong(work)
        if error is not None:
            raise error
        return Batched(rows(work))

    @property
    def batches(self) -> list[tuple[str, ...]]:
        return [names for _, names in self.seen]


async def ask(batcher: Batcher, work: Encoded, *, key: str = "a", deadline: float = FAR) -> Batched:
    return await batcher.vectors(work, key=key, deadline=deadline)


def begin(awaitable: Awaitable[Batched]) -> asyncio.Task[Batched]:
    return asyncio.ensure_future(awaitable)


def test_lone_request_does_not_wait() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        await asyncio.sleep(5)
        found = await ask(batcher, texts("x"))
        assert model.seen == [(5.0, ("x",))]
        assert found.vectors.tolist() == [[row("x"), 1.0]]

    run_virtual(body())


def test_what_waits_while_the_model_is_busy_is_one_batch() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        first = begin(ask(batcher, texts("first", tokens=512)))
        await asyncio.sleep(0.1)
        others = [begin(ask(batcher, texts(f"{i}"))) for i in range(10)]
        found = await asyncio.gather(first, *others)
        assert model.batches == [("first",), tuple(str(i) for i in range(10))]
        assert [f.vectors[0, 0] for f in found[1:]] == [row(str(i)) for i in range(10)]

    run_virtual(body())
