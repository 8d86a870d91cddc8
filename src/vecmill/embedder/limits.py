"""The limiter of an endpoint: when a request may go, and how many may be under way at once.

Each process has one `Limiter` per endpoint and event loop. What it knows of the limits per minute, and the
pause after a 429, is shared with other processes through a `LimitStore`; the number of requests under way is
its own. Requests are let through in the order in which they asked.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from vecmill.core import clock
from vecmill.core.errors import QuotaExhaustedError, RefusedError
from vecmill.embedder.limit_store import LimitStore, MemoryStore, SqliteStore
from vecmill.embedder.pacing import PACE, Caps, Grant, State
from vecmill.models.base import Endpoint, RateLimits

ABOVE_LIMIT = "above_tokens_per_minute"
"""Code of a refusal that is ours: the request has more tokens than a minute takes."""

_log = logging.getLogger(__name__)

Change: TypeAlias = Callable[[State], None]

_START = 4  # requests under way at first
_BATCH = 16  # requests granted in one go at most
_HORIZON = 0.1  # seconds within which they must be due
_GATHER = 0.1  # seconds in which changes of the shared state are gathered
_NAP = 0.2  # seconds of sleep after which the shared pause is looked at again
_MOST_BACKOFF = 30.0  # seconds of pause after a 429 that says nothing


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to send one request now. It must come back by `succeeded`, `limited` or `failed`, once."""

    number: int
    grant: Grant
    crowded: bool


@dataclass(slots=True)
class _Waiter:
    tokens: int
    future: asyncio.Future[Ticket]


class Limiter:
    """Lets requests through as fast as an endpoint takes them.

    Limits per minute come from the endpoint, or from replies. Requests under way begin with 4, double with
    each round of replies until the first 429, then grow by one a round; they do not grow while they are not
    used up. A 429 pauses everybody for as long as it says, halves the requests under way and lowers the flow
    a little; of many 429s at once only the first counts.

    Args:
        endpoint: Whose limits.
        store: Where they are shared; None: with nobody.
        now: Gives seconds since the epoch.
        patience: Seconds. A 429 that asks for a longer pause means a quota: until then `acquire` raises.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        store: LimitStore | None = None,
        now: Callable[[], float] = clock.now,
        patience: float = 600.0,
    ) -> None:
        self.endpoint = endpoint
        self.now = now
        self.patience = patience
        self._store: LimitStore = MemoryStore() if store is None else store
        self._seen = self._store.read(endpoint.id)
        self._waiting: deque[_Waiter] = deque()
        self._open: dict[int, Ticket] = {}
        self._number = 0
        self._window = float(min(_START, endpoint.max_concurrency))
        self._starting = True  # doubling
        self._served = False
        self._failures = 0
        self._storms = 0
        self._since = 0  # tickets with smaller numbers were issued before the last decrease
        self._quota_until = 0.0
        self._changes: list[Change] = []
        self._slot = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._flushing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._open)

    @property
    def concurrency(self) -> int:
        """Requests that may be under way at once, as of now."""
        return max(int(min(self._window, self.endpoint.max_concurrency)), 1)

    @property
    def most_tokens(self) -> int | None:
        """Tokens one request should have at most, under the limits known so far; None: none is known.

        A hundredth of the limit, so that requests flow evenly; more where few requests a minute are allowed.
        """
        requests, tokens = self._seen.limits(self._caps)
        if tokens is None:
            return None
        even = max(tokens / 100, min(tokens / 10, 1000))
        return max(int(min(max(even, 2 * tokens / requests if requests else 0), tokens / 2)), 1)

    def estimate_minutes(self, requests: int, tokens: int) -> float | None:
        """Return the minutes requests and tokens take at the limits known so far; None: none is known."""
        limits = zip((requests, tokens), self._seen.limits(self._caps), strict=True)
        minutes = [amount / (limit * PACE) for amount, limit in limits if limit is not None]
        return max(minutes) if minutes else None

    async def acquire(self, tokens: int) -> Ticket:
        """Wait until a request may be sent. First come, first served; cancelling gives the place back.

        Args:
            tokens: Tokens of the request.

        Raises:
            QuotaExhaustedError: The provider asked for a pause longer than `patience`.
            RefusedError: It has more tokens than replies say a whole minute may have (reason
                "max_request_tokens"); it was not sent, and must be cut.
        """
        if self._quota_until > self.now():
            raise self._quota()
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.unused(waiter.future.result())
            self._slot.set()
            raise

    def unused(self, ticket: Ticket) -> None:
        """Hand a ticket back without having sent anything; its place and its tokens are free again."""
        if self._close(ticket):
            self._give_back(ticket.grant)

    def succeeded(self, ticket: Ticket, *, tokens: int, rates: RateLimits | None) -> None:
        """Hand a ticket back after a good reply.

        Args:
            ticket: What `acquire` returned.
            tokens: What was billed; 0: not said.
            rates: What the reply said about limits.
        """
        crowded = ticket.crowded or self.in_flight >= self.concurrency
        if not self._close(ticket):
            return
        self._failures, self._served = 0, True
        if ticket.number > self._since:
            self._storms = 0
            if crowded and self._window < self.endpoint.max_concurrency:
                self._window += 1.0 if self._starting else 1.0 / self._window
        if tokens > 0:
            self._tell(lambda state: state.correct(ticket.grant, tokens, self._caps))
        self._observe(ticket, rates)

    def limited(self, ticket: Ticket, *, retry_after: float | None, rates: RateLimits | None) -> None:
        """Hand a ticket back after a 429: everybody pauses.

        Args:
            ticket: What `acquire` returned.
            retry_after: Seconds the provider asks to wait.
            rates: What the reply said about limits.
        """
        if not self._close(ticket):
            return
        now = self.now()
        if ticket.number > self._since:
            self._storms += 1
            self._starting = False
            self._decrease()
        if retry_after is None or not 0 <= retry_after < math.inf:
            retry_after = min(2.0 ** (self._storms - 1), _MOST_BACKOFF)
        if retry_after > self.patience:
            self._park(now + retry_after)
        else:
            self._tell(partial(_slow_down, ticket.grant, retry_after, now), at_once=True)
        self._observe(ticket, rates)

    def failed(self, ticket: Ticket, *, rates: RateLimits | None = None) -> None:
        """Hand a ticket back after anything else; many failures in a row halve the requests under way."""
        if not self._close(ticket):
            return
        self._failures += ticket.number > self._since
        if self._failures >= max(_START, self.concurrency):
            self._starting = self._starting and not self._served  # a refused first round says nothing
            self._decrease()
        self._observe(ticket, rates)

    @property
    def _caps(self) -> Caps:
        return Caps(self.endpoint.requests_per_minute, self.endpoint.tokens_per_minute)

    def _close(self, ticket: Ticket) -> bool:
        self._slot.set()
        return self._open.pop(ticket.number, None) is not None

    def _decrease(self) -> None:
        self._window = max(self._window / 2, 1.0)
        self._failures = 0
        self._since = self._number

    def _park(self, until: float) -> None:
        self._quota_until = max(self._quota_until, until)
        self._dismiss(self._quota())

    def _dismiss(self, error: Exception | None) -> None:
        """Let everybody who waits end with an error; None: cancelled."""
        while self._waiting:
            future = self._waiting.popleft().future
            if error is None:
                future.cancel()
            elif not future.done():
                future.set_exception(copy.copy(error))

    def _quota(self) -> QuotaExhaustedError:
        until = datetime.fromtimestamp(self._quota_until, UTC)
        return QuotaExhaustedError(
            f"{self.endpoint.name} takes no more requests until {until:%Y-%m-%d %H:%M:%S} UTC; resume then",
            until=self._quota_until,
            provider=self.endpoint.name.partition(":")[0],
            model=self.endpoint.name,
            code="quota",
        )

    def _observe(self, ticket: Ticket, rates: RateLimits | None) -> None:
        if rates is not None:
            self._tell(partial(_observe, ticket.grant, rates, self._caps, self.now()))

    def _tell(self, change: Change, *, at_once: bool = False) -> None:
        """Change the shared state.

        Where that takes a thread, changes are gathered: they go with the next request that asks for its turn,
        or after a moment. What others must know, such as a pause, goes at once.
        """
        if not self._store.blocks:
            self._store.change(self.endpoint.id, change)
            return
        self._changes.append(change)
        change(self._seen)
        if self._flushing is None and (self._timer is None or at_once):
            if self._timer is not None:
                self._timer.cancel()
            delay = 0.0 if at_once else _GATHER
            self._timer = asyncio.get_running_loop().call_later(delay, self._begin_flush)

    def _begin_flush(self) -> None:
        self._timer = None
        if self._changes and (self._dispatcher is None or self._dispatcher.done()):
            self._flushing = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        try:
            await self._exchange([])
        except RuntimeError as error:  # the loop ends and takes no threads any more
            _log.debug("the state of limits was not written: %s", error)
        finally:
            self._flushing = None

    async def _dispatch(self) -> None:
        """Serve those who wait, until nobody does."""
        try:
            while self._drop_done():
                self._slot.clear()
                free = self.concurrency - self.in_flight
                if free <= 0:
                    await self._slot.wait()
                    continue
                batch = list(islice(self._waiting, min(free, _BATCH)))
                grants = await self._exchange([waiter.tokens for waiter in batch])
                await self._release(list(zip(batch, grants, strict=False)))
        except Exception as error:
            self._dismiss(error)
        except BaseException:  # the loop ends
            self._dismiss(None)
            raise

    def _drop_done(self) -> bool:
        """Drop who was cancelled or can never go from the head of the queue; False if nobody is left."""
        most = self._seen.tokens.limit
        while self._waiting:
            waiter = self._waiting[0]
            if most is not None and waiter.tokens > most and not waiter.future.done():
                waiter.future.set_exception(self._too_large(waiter.tokens, int(most)))
            if not waiter.future.done():
                return True
            self._waiting.popleft()
        return False

    def _too_large(self, tokens: int, most: int) -> RefusedError:
        return RefusedError(
            f"a request of {tokens} tokens exceeds what {self.endpoint.name} takes in a whole minute, {most} "
            "tokens; send less at once",
            reason="max_request_tokens",
            limit=most,
            provider=self.endpoint.name.partition(":")[0],
            model=self.endpoint.name,
            code=ABOVE_LIMIT,
        )

    async def _release(self, granted: Sequence[tuple[_Waiter, Grant]]) -> None:
        """Let requests go, each at its moment. What cannot go any more is given back."""
        for i, (waiter, grant) in enumerate(granted):
            if not await self._turn(waiter, grant.at):
                for _, unused in granted[i:]:
                    self._give_back(unused)
                return
            self._number += 1
            ticket = Ticket(self._number, grant, self.in_flight + 1 >= self.concurrency)
            self._open[ticket.number] = ticket
            waiter.future.set_result(ticket)

    async def _turn(self, waiter: _Waiter, at: float) -> bool:
        """Wait for a moment; False if he gave up, or if by then everybody pauses or there is no room."""
        wait = at - self.now()
        if wait > 0:
            await asyncio.wait((waiter.future,), timeout=wait)
            if wait > _NAP and self._store.blocks:
                await self._exchange([])
        if waiter.future.done():
            return False
        return self._seen.paused_until <= self.now() and self.in_flight < self.concurrency

    def _give_back(self, grant: Grant) -> None:
        self._tell(partial(_give_back, grant, self._caps, self.now()))

    async def _exchange(self, costs: Sequence[int]) -> list[Grant]:
        """Bring what was learned here into the shared state, see what others learned, and get grants."""
        changes, self._changes = self._changes, []
        now, caps = self.now(), self._caps

        def change(state: State) -> tuple[State, list[Grant]]:
            state.forget_wrong_moments(now, longest_pause=self.patience)
            for each in changes:
                each(state)
            return state, state.reserve(costs, caps, now=now, horizon=_HORIZON)

        if self._store.blocks:
            self._seen, grants = await asyncio.to_thread(self._store.change, self.endpoint.id, change)
            for each in self._changes:  # learned meanwhile
                each(self._seen)
        else:
            self._seen, grants = self._store.change(self.endpoint.id, change)
        return grants


def _give_back(grant: Grant, caps: Caps, now: float, state: State) -> None:
    state.give_back(grant, caps, now=now)


def _slow_down(grant: Grant, pause: float, now: float, state: State) -> None:
    state.paused_until = max(state.paused_until, now + pause)
    if grant.at > state.factor_at:
        state.slow_down(now)


def _observe(grant: Grant, rates: RateLimits, caps: Caps, now: float, state: State) -> None:
    state.requests.observe(
        limit=rates.limit_requests,
        remaining=rates.remaining_requests,
        reset=rates.reset_requests,
        seen=grant.requests,
        now=now,
        cap=caps.requests,
    )
    state.tokens.observe(
        limit=rates.limit_tokens,
        remaining=rates.remaining_tokens,
        reset=rates.reset_tokens,
        seen=grant.tokens,
        now=now,
        cap=caps.tokens,
    )


_stores: dict[Path | None, LimitStore] = {}
_limiters: dict[asyncio.AbstractEventLoop, dict[tuple[str, Path | None], Limiter]] = {}


def limiter_for(endpoint: Endpoint, *, home: Path | None, now: Callable[[], float] = clock.now) -> Limiter:
    """Return the limiter of an endpoint in the running event loop; the same one each time.

    Args:
        endpoint: Equal ids share a limiter; the limits of the last call count.
        home: The folder whose `limits.sqlite` other processes share; None: this process alone.
        now: Seconds since the epoch; for the first call.

    Raises:
        RuntimeError: No event loop is running.
    """
    for loop in [loop for loop in _limiters if loop.is_closed()]:
        del _limiters[loop]
    limiters = _limiters.setdefault(asyncio.get_running_loop(), {})
    limiter = limiters.get((endpoint.id, home))
    if limiter is None:
        store = _stores.get(home)
        if store is None:
            store = MemoryStore() if home is None else SqliteStore(home / "limits.sqlite")
            atexit.register(store.close)
            _stores[home] = store
        limiter = limiters[endpoint.id, home] = Limiter(endpoint, store=store, now=now)
    limiter.endpoint = endpoint
    return limiter
