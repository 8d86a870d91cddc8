"""Models that share a budget of memory: the one that was not asked for longest makes room."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection

from vecmill.core.errors import ConfigError
from vecmill.server.errors import Refusal, unavailable
from vecmill.server.versions import Model

log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""How long a load waits for others to be answered and make room."""

STAY_SECONDS = 3.0
"""How long a model that was loaded because it was asked for stays at least; longer where its load took
longer. Two models that are asked for all the time and fit only in turn would be loaded all the time."""

OFTEN = 6
"""So many models brought back within `WINDOW_SECONDS` are told in the log, once in that time."""
WINDOW_SECONDS = 60.0

_MOMENT = 0.02


class Room:
    """What models that are not pinned may take together.

    Args:
        budget: Bytes; None: any.
        evict: Takes a model out of service; what it took is counted until `left`.
    """

    def __init__(self, budget: int | None, evict: Callable[[Model], None]) -> None:
        self._budget = budget
        self._evict = evict
        self._reserved: dict[str, int] = {}
        self._leaving = 0
        self._turn = asyncio.Lock()
        self._brought: deque[float] = deque(maxlen=OFTEN)
        self._told = float("-inf")

    async def make(self, model: Model, cost: int, models: Collection[Model]) -> None:
        """Let go of models until this one fits, and keep the room for it until `done`.

        Args:
            model: What is to be loaded.
            cost: What it is taken to need, in bytes.
            models: All there are.

        Raises:
            ConfigError: It can never fit.
            Refusal: 503: it does not fit now, because all others are in use, being loaded, or were just now.
        """
        if self._budget is None or model.source.pinned:
            return
        if cost > self._budget:
            raise ConfigError(
                f"model {model.name} takes about {cost >> 20} MiB, all models together may take "
                f"{self._budget >> 20} MiB: raise --memory"
            )
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._turn:
                while (taken := self._taken(models) + cost) + self._leaving > self._budget:
                    victim = self._victim(model, models) if taken > self._budget else None
                    if victim is None:
                        await asyncio.sleep(_MOMENT)
                    else:
                        log.info("model %s makes room for %s", victim.name, model.name)
                        self._evict(victim)
        except TimeoutError:
            raise _full(model, models) from None
        self._reserved[model.name] = cost
        if model.evicted:
            self._count()

    def done(self, model: Model) -> None:
        """Say that a model is loaded and counts by itself, or that it will not be."""
        self._reserved.pop(model.name, None)

    def leaving(self, cost: int) -> None:
        """Say that a version is out of service and still takes so many bytes."""
        self._leaving += cost

    def left(self, cost: int) -> None:
        """Say that those bytes are free."""
        self._leaving -= cost

    def _taken(self, models: Collection[Model]) -> int:
        loaded = (one.current.cost_bytes for one in models if one.current and not one.source.pinned)
        return sum(loaded) + sum(self._reserved.values())

    def _victim(self, model: Model, models: Collection[Model]) -> Model | None:
        """Return the model to let go of, or None where none can go yet.

        What is being loaded or looked at goes when that is done. What has no folder could not come back.
        """
        now = asyncio.get_running_loop().time()
        candidates = [
            one for one in _guests(models) if one is not model and not one.lock.locked() and one.stays <= now
        ]
        return min(candidates, key=lambda one: one.leased, default=None)

    def _count(self) -> None:
        """Note that a model was brought back, and tell where that happens all the time."""
        now = asyncio.get_running_loop().time()
        self._brought.append(now)
        often = len(self._brought) == OFTEN and now - self._brought[0] <= WINDOW_SECONDS
        if often and now - self._told >= WINDOW_SECONDS:
            self._told = now
            log.warning(
                "models take each other's memory: %d were loaded again within %.0f s, and requests wait for "
                "it; raise --memory or serve fewer",
                OFTEN,
                now - self._brought[0],
            )


def _guests(models: Collection[Model]) -> list[Model]:
    """Return the loaded models that could go and come back."""
    return [one for one in models if one.current and not one.source.pinned and one.folder is not None]


def _full(model: Model, models: Collection[Model]) -> Refusal:
    """Return the answer where there is no room: come back when the first of the others may go."""
    now = asyncio.get_running_loop().time()
    stay = min((one.stays - now for one in _guests(models)), default=0.0)
    return unavailable(
        f"there is no memory for model {model.name} at the moment", "model_loading", seconds=max(stay, 2.0)
    )
