"""Send requests at their times and note when each was answered.

Open loop: every request has a moment it should leave, drawn before the run (Poisson arrivals), and its
latency counts from that moment. A server that stalls then shows it in every request that came meanwhile, not
in one. Source: Tene, How NOT to measure latency (coordinated omission). Closed loop: a fixed number of
clients, each sends when its last request was answered; a stall then delays the requests too, so times are
service times.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError

Float64Array: TypeAlias = npt.NDArray[np.float64]
TICK = 0.01
"""Seconds between two looks at how late the event loop is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        status: The HTTP status, or why there was none: "timeout", "connect", "disconnected", "bad_reply".
        tokens: The server's own count, where it gave one.
        dimensions: Of the vectors that came; 0 where none did.
        detail: What the server said of an error, for people.
    """

    status: int | str
    tokens: int | None = None
    dimensions: int = 0
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether vectors came."""
        return self.status == 200


Ask: TypeAlias = Callable[[int], Awaitable[Outcome]]
"""Sends the request of this position; the positions of texts repeat after the last."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are seconds since the run began.

    Attributes:
        request: Which of the prepared requests.
        intended: When it should have left. sent: when it did. done: when the answer was whole.
        outcome: What became of it.
    """

    request: int
    intended: float
    sent: float
    done: float
    outcome: Outcome

    @property
    def latency(self) -> float:
        """Seconds from the moment it should have left."""
        return self.done - self.intended

    @property
    def service(self) -> float:
        """Seconds from the moment it left."""
        return self.done - self.sent


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        samples: Every request, in the order they should have left.
        seconds: From the start to the last answer.
        lags: How late the event loop was, every `TICK` seconds.
        cpu_share: CPU seconds of this process for each second of the run; near 1 it is at its end.
    """

    samples: list[Sample]
    seconds: float
    lags: Float64Array
    cpu_share: float


@dataclass(slots=True)
class _Lateness:
    """Looks every `TICK` seconds at how late it is called."""

    lags: list[float] = field(default_factory=list)
    _due: float = 0.0
    _handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + TICK
        self._handle = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self.lags.append(asyncio.get_running_loop().time() - self._due)
        self.start()

    def stop(self) -> Float64Array:
        if self._handle is not None:
            self._handle.cancel()
        return np.array(self.lags or [0.0], np.float64)


def arrivals(requests: int, rate: float, *, seed: int = 0) -> Float64Array:
    """Draw when requests should leave: (n,) seconds, ascending; gaps are exponential with mean 1/rate.

    Args:
        requests: How many.
        rate: Requests a second; infinite: all at once.
        seed: Equal seeds give equal times.

    Raises:
        InputError: The rate is not above zero.
    """
    if not rate > 0.0:
        raise InputError(f"a rate of {rate} requests a second sends nothing: give a number above 0, or inf")
    if math.isinf(rate):
        return np.zeros(requests)
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, requests)
    return np.cumsum(gaps) - gaps[:1] if requests else gaps


async def open_loop(ask: Ask, times: Float64Array, requests: int) -> Run:
    """Send a request at each of these times, whatever became of the others.

    Args:
        ask: Sends one.
        times: (n,) seconds from the start, ascending.
        requests: How many prepared ones there are: they repeat.
    """
    loop = asyncio.get_running_loop()
    samples: list[Sample] = []
    tasks: set[asyncio.Task[None]] = set()
    watch = _Watch()

    async def one(position: int, intended: float) -> None:
        sent = loop.time() - watch.start
        outcome = await ask(position)
        samples.append(Sample(position, intended, sent, loop.time() - watch.start, outcome))

    try:
        for number, intended in enumerate(times.tolist()):
            if (wait := intended - (loop.time() - watch.start)) > 0.0:
                await asyncio.sleep(wait)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # when all are due at once, answers must still be read
            task = asyncio.create_task(one(number % requests, intended))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return watch.end(sorted(samples, key=lambda sample: sample.intended))


async def closed_loop(
    ask: Ask, clients: int, requests: int, *, total: int | None = None, duration: float | None = None
) -> Run:
    """Let clients send one request after the other.

    Args:
        ask: Sends one.
        clients: How many send at once.
        requests: How many prepared ones there are: they repeat.
        total: Requests to send; None: as many as fit into the duration.
        duration: Seconds in which requests are begun; None: until the total is reached.
    """
    loop = asyncio.get_running_loop()
    samples: list[Sample] = []
    numbers = itertools.count()
    watch = _Watch()

    async def client() -> None:
        while True:
            number = next(numbers)
            sent = loop.time() - watch.start
            if (total is not None and number >= total) or (duration is not None and sent >= duration):
                return
            outcome = await ask(number % requests)
            samples.append(Sample(number % requests, sent, sent, loop.time() - watch.start, outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return watch.end(sorted(samples, key=lambda sample: sample.intended))


class _Watch:
    """The clock of a run, and what this process does meanwhile."""

    def __init__(self) -> None:
        self._lateness = _Lateness()
        self._lateness.start()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        self.start = asyncio.get_running_loop().time()

    def end(self, samples: Sequence[Sample]) -> Run:
        wall = time.perf_counter() - self._wall
        share = (time.process_time() - self._cpu) / wall if wall > 0.0 else 0.0
        seconds = max((sample.done for sample in samples), default=0.0)
        return Run(list(samples), seconds, self._lateness.stop(), share)
