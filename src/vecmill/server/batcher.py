"""Requests of many clients become batches of one model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from vecmill.core.errors import ProviderError
from vecmill.core.types import Vectors
from vecmill.models.base import Encoded, join
from vecmill.server.options import Limits


@dataclass(frozen=True, slots=True)
class Batched:
    """What came for a batch of n texts, or for one request of it.

    Attributes:
        vectors: (n, width) float32 in the order of the texts; rows with an error are zeros.
        errors: Why a text has none, by position.
        cached: Texts that were computed or paid for earlier, or for another request.
    """

    vectors: Vectors
    errors: dict[int, ProviderError] = field(default_factory=dict)
    cached: int = 0


Supply: TypeAlias = Callable[[Encoded], Awaitable[Batched]]
"""Computes or buys one batch."""


@dataclass(slots=True, eq=False)
class _Waiting:
    work: Encoded
    future: asyncio.Future[Batched]


class Batcher:
    """Collects what waits while the model is busy and gives it to the model together.

    Args:
        supply: Computes one batch.
        limits: Size of a batch and of the queue.
        at_once: Batches on their way at once: 1 for a model that computes here, more for one that is asked.
        linger: Seconds a request waits for company while another batch is on its way and `at_once` allows more.
        max_texts: Texts of one batch; None: any number.
    """

    def __init__(
        self,
        supply: Supply,
        limits: Limits,
        *,
        at_once: int = 1,
        linger: float = 0.0,
        max_texts: int | None = None,
    ) -> None:
        self._supply = supply
        self._limits = limits
        self._queue: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def vectors(self, work: Encoded, *, key: str, deadline: float) -> Batched:
        """Return the vectors of one request's texts.

        Cancelling takes what has not begun out of the queue.

        Args:
            work: The texts, none above the model's limit.
            key: Who asks: keys take turns.
            deadline: The loop's time at which the answer is worth nothing any more.

        Raises:
            Refusal: 429 the queue is full, 504 the deadline passed, 503 the model is being closed.
            Error: What the supply raised.
        """
        waiting = _Waiting(work, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await waiting.future

    async def _run(self) -> None:
        while self._queue:
            taken = list(self._queue)
            self._queue.clear()
            try:
                found = await self._supply(join([waiting.work for waiting in taken]))
            except Exception as error:  # noqa: BLE001 - each request gets it
                for waiting in taken:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            start = 0
            for waiting in taken:
                end = start + len(waiting.work)
                if not waiting.future.done():
                    waiting.future.set_result(Batched(found.vectors[start:end]))
                start = end
        self._running = None

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return sum(int(waiting.work.tokens.sum()) for waiting in self._queue)

    async def close(self) -> None:
        """Refuse new requests and return when every earlier one is answered."""
        if self._running is not None:
            await self._running
