"""Models that share a budget of memory: the one that was not asked for longest makes room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from vecmill.core.errors import ConfigError
from vecmill.server.errors import Refusal, unavailable
from vecmill.server.versions import Model

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""How long a load waits for others to be answered and make room."""

_MOMENT = 0.02


class Room:
    """What models that are not pinned may take together.

    Args:
        budget: Bytes; None: any.
        evict: Lets go of a model, and returns when its memory is free.
    """

    def __init__(self, budget: int | None, evict: Callable[[Model], Awaitable[None]]) -> None:
        self._budget = budget
        self._evict = evict
        self._reserved: dict[str, int] = {}
        self._turn = asyncio.Lock()

    async def make(self, model: Model, cost: int, models: Collection[Model]) -> None:
        """Let go of models until this one fits, and keep the room for it until `done`.

        Args:
            model: What is to be loaded.
            cost: What it is taken to need, in bytes.
            models: All there are.

        Raises:
            ConfigError: It can never fit.
            Refusal: 503: it does not fit now, because all others are in use or being loaded.
        """
        if self._budget is None or model.source.pinned:
            return
        if cost > self._budget:
            raise ConfigError(
                f"model {model.name} takes about {cost >> 20} MiB, all models together may take "
                f"{self._budget >> 20} MiB: raise --memory"
            )
        async with self._turn:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    while self._taken(models) + cost > self._budget:
                        await self._free(model, models)
            except TimeoutError:
                raise _full(model) from None
            self._reserved[model.name] = cost

    def done(self, model: Model) -> None:
        """Say that a model is loaded and counts by itself, or that it will not be."""
        self._reserved.pop(model.name, None)

    def _taken(self, models: Collection[Model]) -> int:
        loaded = (one.current.cost_bytes for one in models if one.current and not one.source.pinned)
        return sum(loaded) + sum(self._reserved.values())

    async def _free(self, model: Model, models: Collection[Model]) -> None:
        """Let one model go, or wait a moment for one that can."""
        candidates = [
            one
            for one in models
            if one is not model and one.current and not one.source.pinned and not one.lock.locked()
        ]
        if not candidates:  # those there are are being loaded, or looked at: they can go when that is done
            await asyncio.sleep(_MOMENT)
            return
        victim = min(candidates, key=lambda one: one.leased)
        log.info("model %s makes room for %s", victim.name, model.name)
        await self._evict(victim)


def _full(model: Model) -> Refusal:
    return unavailable(
        f"there is no memory for model {model.name} at the moment", "model_loading", seconds=2.0
    )
