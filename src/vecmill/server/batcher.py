"""Requests of many clients become batches of one model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import BadReplyError, InputError, ProviderError, RefusedError
from vecmill.core.types import Vectors
from vecmill.models.base import Encoded, join
from vecmill.server.errors import Refusal, late, unavailable, wait
from vecmill.server.fairness import Piece, Turns, Waiting
from vecmill.server.options import Limits
from vecmill.server.pace import Flow, Pace

MAX_WAIT = 60.0
"""Seconds a refused client is asked to wait at most."""

_GUESS = 1.0
"""Seconds a refused client is asked to wait while nothing was measured."""

_HOPELESS = 1.5
"""A request is given up when its rest alone would take so many times the time it has left."""

_BETWEEN = 0.002
"""Seconds between two clients who come back after a batch; after longer the next one begins."""

_SHARE = 0.1
"""Of a batch's time, what is waited after it at most for its clients to come back."""

_LOOK_EVERY = 0.005
"""Seconds between two looks at what has expired."""

_SMALLEST = 2048
"""Padded tokens a batch may always have, and has before anything was measured: fewer cost throughput."""

_ANY = 1 << 62

_INTERRUPTED = "the model was stopped while it computed: try again"


@dataclass(frozen=True, slots=True)
class Batched:
    """What came for a batch of n texts, or for one request of it.

    Attributes:
        vectors: (n, width) float32 in the order of the texts; rows with an error are zeros. Not to be written
            to: requests of one batch share its memory.
        errors: Why a text has none, by position.
        cached: Texts that were computed or paid for earlier, or for another request.
        free: (n,) bool, which texts these were, where it is known; then `cached` of each request is exact.
    """

    vectors: Vectors
    errors: dict[int, ProviderError] = field(default_factory=dict)
    cached: int = 0
    free: npt.NDArray[np.bool_] | None = None


Supply: TypeAlias = Callable[[Encoded], Awaitable[Batched]]
"""Computes one batch."""

Left: TypeAlias = Callable[[int], None]
"""Called when something of a batch leaves for a provider, with how many requests for it have not left yet."""

Sending: TypeAlias = Callable[[Encoded, Left], Awaitable[Batched]]
"""Buys one batch and tells when it leaves; 0 also where nothing of it has to be sent."""


@dataclass(slots=True)
class Stats:
    """What a batcher has done. Counters only grow; tokens are padded to multiples of 8.

    Attributes:
        requests: Admitted. refused: answered 429. expired: answered 504. cancelled: their client left.
        batches, batch_texts, batch_tokens: Given to the model. failed: of these, batches that raised.
        busy_seconds: Of batches on their way, added up.
        wait_seconds: Between arrival and the begin of a request's first batch, added up over `begun`.
        begun: Requests whose first batch began.
    """

    requests: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    batches: int = 0
    batch_texts: int = 0
    batch_tokens: int = 0
    failed: int = 0
    busy_seconds: float = 0.0
    wait_seconds: float = 0.0
    begun: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Texts on their way: the pieces of requests, in order; in padded tokens; `full`: more waited."""

    pieces: list[Piece]
    cost: int
    begun: float
    full: bool
    sent: bool = False


class Batcher:
    """Collects what waits while the model is busy and gives it to the model together.

    A batch begins as soon as fewer than `at_once` are on their way and fewer than `unsent` of them have not
    left, so a request that comes to an idle model is begun at once; only just after a batch of several
    requests it may wait a moment for others (`rejoin`). What is taken, and from whom, is decided then
    (`Turns`): a request of another key that arrives during a batch is in the next one, whatever else waits.

    Args:
        supply: Computes one batch; a `Sending` where `unsent` is given.
        limits: Size of a batch and of the queue.
        at_once: Batches on their way at once: 1 for a model that computes here, more for one that is asked.
        unsent: Of these, how many may not have left for the provider yet: what waits in its limiter is served
            first come first served, what waits here in turns. None: nothing tells of leaving.
        most_tokens: Tells how many tokens a request to the provider should have at most, as far as known.
        linger: Seconds to wait for company where `at_once` allows more and another batch is on its way.
        max_texts: Texts of one batch; None: any number.
        batch_seconds: A batch is made smaller than `limits.batch_tokens` where it would take longer, by the
            measured rate; for models that compute here, whose next batch waits for it. None: never.
        rejoin: Seconds to wait at most, after a batch of several requests, for their clients to come back
            with the next ones: a tenth of the batch's time, and only while one comes every 2 ms. 0: not at
            all.
        keep_seconds: Seconds `close` waits at most for batches of which something was sent and which nobody
            waits for any more: they are paid for, and at their end they are in the cache.

    Attributes:
        stats: What it has done.
    """

    def __init__(
        self,
        supply: Supply | Sending,
        limits: Limits,
        *,
        at_once: int = 1,
        unsent: int | None = None,
        most_tokens: Callable[[], int | None] = lambda: None,
        linger: float = 0.0,
        max_texts: int | None = None,
        batch_seconds: float | None = None,
        rejoin: float = 0.0,
        keep_seconds: float = 0.0,
    ) -> None:
        self._supply = supply
        self._tells = unsent is not None
        self._limits = limits
        self._at_once = max(at_once, 1)
        self._most_held = self._at_once if unsent is None else min(max(unsent, 1), self._at_once)
        self._most_tokens = most_tokens
        self._keep_seconds = keep_seconds
        self._linger = linger
        self._rejoin = rejoin
        self._company = 0  # requests that wait once those just answered are back
        self._company_until = 0.0
        self._came = 0.0  # when the last request came, or the last batch was answered
        self._most = _ANY if max_texts is None else max(max_texts, 1)
        self._batch_seconds = batch_seconds
        self._turns = Turns()
        self._pace = Pace(self._at_once) if unsent is None else Flow()
        self._running: dict[_Batch, asyncio.Task[None]] = {}
        self._held: dict[_Batch, None] = {}  # of these, those that hold the next ones up
        self._open: dict[Waiting, None] = {}
        self._scheduled = False
        self._since: float | None = None  # what waits longest for company has waited since then
        self._go_at: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._closed: str | None = None
        self.stats = Stats()

    @property
    def waiting_tokens(self) -> int:
        """Padded tokens in the queue."""
        return self._turns.tokens

    @property
    def waiting_requests(self) -> int:
        """Requests of which something is in the queue."""
        return self._turns.requests

    @property
    def rate(self) -> float | None:
        """Padded tokens a second that are computed or leave for a provider; None before enough was seen."""
        return self._pace.rate

    @property
    def batch_tokens(self) -> int:
        """Padded tokens the next batch may have."""
        most, rate = self._limits.batch_tokens, self._pace.rate
        if self._batch_seconds is None:
            known = self._most_tokens()
            return most if known is None else min(most, known)
        return min(most, max(int((rate or 0) * self._batch_seconds), _SMALLEST))

    async def vectors(self, work: Encoded, *, key: str, deadline: float) -> Batched:
        """Return the vectors of one request's texts.

        Cancelling takes what has not begun out of the queue.

        Args:
            work: The texts, at least one, none above the model's limit.
            key: Who asks: keys take turns.
            deadline: The loop's time at which the answer is worth nothing any more.

        Raises:
            Refusal: 429 the queue is full, 504 the deadline passed, 503 the model is being closed.
            Error: What the supply raised.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._closed is not None:
            raise unavailable("the model is being stopped: try again", self._closed, seconds=_GUESS)
        if not len(work):
            return Batched(np.zeros((0, 0), dtype=np.float32))
        request = Waiting(work, key, deadline, loop.create_future(), now)
        self._admit(request, now)
        self.stats.requests += 1
        self._open[request] = None
        self._turns.add(request)
        self._came = now
        if self._since is None:
            self._since = now
        if self._watch is None or deadline < self._watch.when():
            self._watch_until(deadline, loop)
        self._pump_soon(loop)  # what arrives in the same turn of the loop goes together
        try:
            return await request.future
        except asyncio.CancelledError:
            if not request.over:
                self.stats.cancelled += 1
                self._end(request)
            elif not request.future.cancelled():
                request.future.exception()  # nobody is left to read it
            raise

    async def close(self, *, code: str = "shutting_down") -> None:
        """Refuse new requests and return when every earlier one is answered, and what is paid for is kept.

        Args:
            code: What new requests are told: "shutting_down", or "model_loading" where another version comes.
        """
        self._closed = code
        if self._open:
            if self._quiet is None:
                self._quiet = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._quiet)
        for timer in (self._go_at, self._watch):
            if timer is not None:
                timer.cancel()
        paid = [task for batch, task in self._running.items() if batch.sent]
        tasks = list(self._running.values())  # nobody waits for these any more
        for task in tasks:
            if task not in paid:
                task.cancel()
        if paid and self._keep_seconds > 0:
            await asyncio.wait(paid, timeout=self._keep_seconds)
        for task in paid:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Arriving

    def _watch_until(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        """Look for expired requests at this time."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = loop.call_at(deadline, self._look)

    def _look(self) -> None:
        """Answer what has expired."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._watch = None
        for request in [request for request in self._open if request.deadline <= now]:
            self._expire(request)
        if self._open:
            earliest = min(request.deadline for request in self._open)
            self._watch_until(max(earliest, now + _LOOK_EVERY), loop)

    def _admit(self, request: Waiting, now: float) -> None:
        """Refuse a request the queue has no room for. Where nothing waits there is room for any."""
        if request.deadline <= now:
            self.stats.expired += 1
            raise late()
        waiting = self._turns.tokens
        if not waiting:
            return
        rate, limits = self._pace.rate, self._limits
        if waiting + request.cost > limits.queue_tokens:
            seconds = _GUESS if rate is None else waiting / rate
            raise self._full(f"{waiting} tokens wait for this model, {limits.queue_tokens} may", seconds)
        if rate is None:
            return
        begun = self._on_the_way(now, rate)
        left, most, cost = request.deadline - now, limits.queue_seconds, request.cost
        # It may be overtaken by as many tokens as it has, and is answered with the others of its batch.
        own = 2 * cost + min(self.batch_tokens, waiting + cost)
        if begun + waiting / rate <= most and begun + (waiting + own) / rate <= left:
            return  # the usual case: even behind all that waits
        first, last = (begun + tokens / rate for tokens in self._turns.ahead(request.key, cost))
        if not self._turns.has(request.key):  # what others have on their way is not its fault
            first -= begun * (1 - self._share_on_the_way(request.key))
        if first > most:
            raise self._full(
                f"the wait for this model is about {first:.1f} s, at most {most:g} s may be", first
            )
        if last + own / rate > left:
            raise self._full("the request would not be answered before its deadline", first)

    def _full(self, message: str, seconds: float) -> Refusal:
        self.stats.refused += 1
        return wait(f"{message}: try again in a moment", min(seconds, MAX_WAIT))

    def _on_the_way(self, now: float, rate: float) -> float:
        """Return the seconds until what is on its way is done, or has left, by the measured rate."""
        cost = sum(batch.cost for batch in self._held)
        spent = sum(now - batch.begun for batch in self._held) / self._most_held
        return max(cost / rate - spent, 0.0)

    def _share_on_the_way(self, key: str) -> float:
        """Return which share of what the next batch waits for belongs to a key."""
        pieces = [piece for batch in self._held for piece in batch.pieces]
        own = sum(request.cost_of(start, end) for request, start, end in pieces if request.key == key)
        return own / max(sum(batch.cost for batch in self._held), 1)

    # Batches

    def _may_begin(self) -> bool:
        return len(self._held) < self._most_held and len(self._running) < self._at_once

    def _pump_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled and self._may_begin():
            self._scheduled = True
            loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Begin what can begin."""
        self._scheduled = False
        if self._go_at is not None:
            self._go_at.cancel()
            self._go_at = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._turns.tokens and self._may_begin():
            if self._lingers(now, loop):
                return
            usable = partial(self._usable, now=now)
            pieces = self._turns.take(self.batch_tokens, self._most, usable)
            self._since = now if self._turns.tokens else None
            if pieces:
                self._begin(pieces, now, loop)

    def _lingers(self, now: float, loop: asyncio.AbstractEventLoop) -> bool:
        """Say whether what waits should wait for company, and look again when it has."""
        until = 0.0
        if self._turns.requests < self._company:  # those just answered are coming back
            until = min(self._company_until, self._came + _BETWEEN)
        if self._running and self._linger > 0:
            until = (now if self._since is None else self._since) + self._linger
        if until <= now or self._turns.tokens >= self.batch_tokens or self._turns.texts >= self._most:
            return False
        self._go_at = loop.call_at(until, self._pump)
        return True

    def _usable(self, request: Waiting, now: float) -> bool:
        """Say whether a request can still be answered in time; where not, it is answered 504 and gone.

        A request that waits alone is tried unless its time is over: the rate is an estimate.
        """
        left, rate, others = request.deadline - now, self._pace.rate, self._turns.tokens - request.left
        if left > 0 and rate is not None:
            batch = min(self.batch_tokens, self._turns.tokens) if others else 0
            rest = request.left / _HOPELESS if request.taken else 0
            if max(batch, rest) <= rate * left:
                return True
        elif left > 0:
            return True
        self._expire(request)
        return False

    def _expire(self, request: Waiting) -> None:
        self.stats.expired += 1
        self._end(request, late())

    def _begin(self, pieces: list[Piece], now: float, loop: asyncio.AbstractEventLoop) -> None:
        cost = texts = 0
        for request, start, end in pieces:
            cost += request.cost_of(start, end)
            texts += end - start
            if not start:
                self.stats.wait_seconds += now - request.arrived
                self.stats.begun += 1
        self.stats.batches += 1
        self.stats.batch_texts += texts
        self.stats.batch_tokens += cost
        batch = _Batch(pieces, cost, now, bool(self._turns.tokens))
        self._held[batch] = None
        self._running[batch] = loop.create_task(self._run(batch))

    async def _run(self, batch: _Batch) -> None:
        """Get one batch, answer its requests and begin the next one."""
        loop = asyncio.get_running_loop()
        pieces = batch.pieces
        try:
            found = await self._supplied(pieces, partial(self._left, batch))
            if not isinstance(found, Batched):
                self.stats.failed += 1
            elif not self._tells:
                self._pace.measured(batch.cost, loop.time() - batch.begun)
            if len(pieces) > 1 and isinstance(found, InputError | RefusedError):
                await self._each_alone(pieces)
                pieces = []
        finally:
            self.stats.busy_seconds += loop.time() - batch.begun
            del self._running[batch]
            self._held.pop(batch, None)
            self._expect(batch, loop.time())
            self._pump()
        if self._running:  # first the next batch: it starts in this turn of the loop
            loop.call_soon(self._hand_out, pieces, found)
        else:
            self._hand_out(pieces, found)
        if isinstance(found, KeyboardInterrupt | SystemExit):
            raise found

    def _left(self, batch: _Batch, waiting: int) -> None:
        """Begin the next batch where all of this one has left for the provider.

        How long that took says how fast texts leave, where more waited than it could take: of a batch that
        leaves at once and comes back in a while any number may be on the way.
        """
        batch.sent = True
        if waiting or batch not in self._held:
            return
        loop = asyncio.get_running_loop()
        del self._held[batch]
        if batch.full:
            self._pace.measured(batch.cost, loop.time() - batch.begun)
        if self._turns.tokens:
            self._pump_soon(loop)

    def _expect(self, batch: _Batch, now: float) -> None:
        """Let what waits wait for the clients of a batch of several requests, as long as they come back.

        Without that the clients of a closed loop fall into two groups which take turns, in batches of half
        the size.
        """
        self._company = self._turns.requests + len(batch.pieces) if len(batch.pieces) > 1 else 0
        self._company_until = now + min(self._rejoin, _SHARE * (now - batch.begun))
        self._came = now

    async def _supplied(
        self, pieces: Sequence[Piece], left: Left = lambda _: None
    ) -> Batched | BaseException:
        """Return what the supply gives or raises for these texts; raise nothing."""
        try:
            parts = [request.part(start, end) for request, start, end in pieces]
            work = parts[0] if len(parts) == 1 else join(parts)
            if self._tells:
                found = await cast(Sending, self._supply)(work, left)
            else:
                found = await cast(Supply, self._supply)(work)
        except BaseException as error:
            return error
        if len(found.vectors) == len(work):
            return found
        return BadReplyError(f"the model gave {len(found.vectors)} vectors for {len(work)} texts")

    async def _each_alone(self, pieces: Sequence[Piece]) -> None:
        """Try the requests of a batch one by one, so that one bad text fails only its own."""
        for at, piece in enumerate(pieces):
            if piece[0].over:
                continue
            found = await self._supplied([piece])
            if isinstance(found, BaseException) and not isinstance(found, Exception):
                self._hand_out(pieces[at:], found)
                return
            self._hand_out([piece], found)

    def _hand_out(self, pieces: Sequence[Piece], found: Batched | BaseException) -> None:
        """Give each request its share of a batch, or the error."""
        at = 0
        for request, start, end in pieces:
            if not request.over:
                if isinstance(found, Batched):
                    self._land(request, start, end, found, at)
                elif isinstance(found, Exception):
                    self._end(request, found)
                else:
                    self._end(request, unavailable(_INTERRUPTED, "shutting_down", seconds=_GUESS))
            at += end - start

    def _land(self, request: Waiting, start: int, end: int, found: Batched, at: int) -> None:
        """Take the rows of a request from a batch in which they begin at row `at`."""
        count = end - start
        vectors = found.vectors[at : at + count]
        if found.errors:
            there = {row - at: error for row, error in found.errors.items() if at <= row < at + count}
            for row, error in there.items():
                request.errors[request.position(start + row, whole=count == len(request.work))] = error
        if found.free is not None:
            request.cached += int(np.count_nonzero(found.free[at : at + count]))
        elif found.cached:  # only their sum is known: in proportion
            texts = len(found.vectors)
            request.cached += found.cached * (at + count) // texts - found.cached * at // texts
        request.landed += count
        n = len(request.work)
        if count == n:
            request.vectors = vectors
        else:
            if request.vectors is None:
                request.vectors = np.zeros((n, vectors.shape[1]), dtype=np.float32)
            if request.vectors.shape[1] != vectors.shape[1]:
                return self._end(request, BadReplyError("the model changed the dimensions of its vectors"))
            request.vectors[request.rows[start:end]] = vectors
        if request.landed == n:
            self._end(request, Batched(request.vectors, request.errors, request.cached))
        return None

    def _end(self, request: Waiting, answer: Batched | Exception | None = None) -> None:
        """Answer a request, or forget it, and take what is left of it out of the queue."""
        request.over = True
        self._turns.discard(request)
        if not self._turns.tokens:
            self._since = None
        self._open.pop(request, None)
        if not request.future.done():
            if isinstance(answer, Exception):
                request.future.set_exception(answer)
            elif answer is not None:
                request.future.set_result(answer)
        if not self._open and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
