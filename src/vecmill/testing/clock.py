"""Virtual time: an event loop whose clock jumps to the next timer when there is nothing else to do.

Everything that asks the loop for the time, `asyncio.sleep`, `asyncio.timeout`, `call_later`, the timeouts and
keep-alives of aiohttp, then runs on virtual time: hours pass in milliseconds, and twice the same.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1_800_000_000.0
"""What `VirtualLoop.now` begins with: 2027-01-15 08:00 UTC."""

_GRACE_PER_SECOND = 0.001
_GRACE_MOST = 0.05


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` begins at 0 and moves only by jumping to the next timer.

    It jumps when no callback is ready, no socket has data and nothing runs in an executor: work in a thread
    holds the time. Without any timer it waits for its sockets and threads as any loop does. Before a jump it
    gives bytes under way a moment of real time, a thousandth of the jump and at most 0.05 s, lest a timeout
    fires before a reply that was already sent.

    Client and server must run in this loop: what another thread or process computes takes no virtual time.
    Threads that were not started through `run_in_executor` or `asyncio.to_thread` hold nothing.

    Args:
        start: What `now` begins with, in seconds since the epoch.
    """

    def __init__(self, start: float = START) -> None:
        self._start = start
        self._virtual = 0.0
        self._jobs = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual

    def now(self) -> float:
        """Return the virtual wall clock: seconds since the epoch."""
        return self._start + self._virtual

    @property
    def is_held(self) -> bool:
        """Whether work in a thread keeps the time from jumping."""
        return self._jobs > 0

    def jump(self, seconds: float) -> None:
        """Let time pass at once. The loop does this by itself; a test may, in the place of slow work."""
        self._virtual += seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in a thread, as every loop does, and hold the time until its result is here."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._release)
        return future

    def _release(self, _future: object) -> None:
        self._jobs -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """Wait for the executor's threads, however long: a virtual timeout would be over at once."""
        await super().shutdown_default_executor()


class _Selector(selectors.DefaultSelector):
    """Looks at the sockets; where the loop would wait for a timer, it makes the time jump instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None or self._loop.is_held:
            return super().select(None)
        if len(self.get_map()) > 1:  # the first is the loop's own, by which threads wake it
            events = self._wait(min(_GRACE_MOST, timeout * _GRACE_PER_SECOND))
        if not events:
            self._loop.jump(timeout)
        return events

    def _wait(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        if seconds >= 0.001:
            return super().select(seconds)
        until = time.perf_counter() + seconds  # select knows only whole milliseconds
        events = super().select(0)
        while not events and time.perf_counter() < until:
            events = super().select(0)
        return events


def run_virtual(coroutine: Coroutine[Any, Any, T], *, start: float = START) -> T:
    """Run a coroutine on a `VirtualLoop` of its own, as `asyncio.run` does on a real one.

    Args:
        coroutine: What to run. Tasks it leaves behind are cancelled, threads of the executor waited for.
        start: What `VirtualLoop.now` begins with, in seconds since the epoch.
    """
    with asyncio.Runner(loop_factory=partial(VirtualLoop, start)) as runner:
        return runner.run(coroutine)
