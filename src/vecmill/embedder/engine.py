"""The request engine: many texts to a hosted model, through its limits and faults.

It packs texts into requests, sends as many at once as the limiter allows, tries again what may succeed,
halves what is refused until the text that is to blame stands alone, and learns smaller limits on the way. A
text ends with a vector or with an error of its own. Where going on makes no sense (a refused key, a quota, a
budget, nobody there) it stops: requests in flight are awaited, so that what was paid is kept.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import (
    BadReplyError,
    BudgetReachedError,
    ProviderError,
    RateLimitError,
    RefusedError,
    UnavailableError,
)
from vecmill.core.http import NOTHING_SENT
from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import InputType, IntArray, Usage, Vectors
from vecmill.embedder.batching import batches
from vecmill.embedder.budget import Budget
from vecmill.embedder.limits import ABOVE_LIMIT, Limiter, Ticket
from vecmill.embedder.retry import RetryPolicy, as_quota
from vecmill.models.base import Advance, Encoded, HostedProvider, RateLimits, Reply, no_advance

T = TypeVar("T")
Stop: TypeAlias = ProviderError | BudgetReachedError

Left: TypeAlias = Callable[[int], None]
"""Called when a request of a call leaves for the provider, with how many of the call have not left yet."""


def no_left(_waiting: int) -> None:
    """Take no notice of what leaves."""


_PROBE_TOKENS = 64

_ALONE = RetryPolicy(attempts=3)
"""For the halves of a batch that failed whole: others get through, so the texts are to blame more likely."""

_UNREACHED = 3
"""Tries of an address that was never reached: about a second."""

_HOPELESS = 3
"""So many single texts refused, none ever taken: perhaps it is not the texts."""


@dataclass(slots=True)
class Bought:
    """What became of texts.

    Attributes:
        vectors: (n, width) float32; rows of texts without a vector are zeros.
        done: (n,) bool, which texts have a vector.
        tokens: (n,) int64, what was billed for each; adds up to `usage.tokens`.
        errors: Why a text was given up, by position. Texts with neither were not come to.
        usage: All requests, the failed ones too.
        stopped: Why the engine stopped early, or None.
    """

    vectors: Vectors
    done: npt.NDArray[np.bool_]
    tokens: IntArray
    errors: dict[int, ProviderError] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    stopped: Stop | None = None

    @classmethod
    def nothing(cls, n: int, width: int) -> Bought:
        """Return the record before the first request."""
        vectors = np.zeros((n, width), dtype=np.float32)
        return cls(vectors, np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64))


@dataclass(slots=True)
class Engine:
    """Sends texts to a hosted provider.

    Attributes:
        provider: The model. limiter: its limits. budget: what may be spent.
        retry: How long and how often to try.
        random: For the jitter of waits.
        trial_usage: What it cost to find out whether the model takes anything at all.
        apart: Whether calls are of different people: what stops one then stops no other.
    """

    provider: HostedProvider
    limiter: Limiter
    budget: Budget = field(default_factory=Budget)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    random: random.Random = field(default_factory=random.Random)
    trial_usage: Usage = field(default_factory=Usage)
    apart: bool = False
    _answered: int = 0
    _refused_alone: int = 0
    _wrong: BadReplyError | None = None
    _trial: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: int = 0
    _active: int = 0
    _drained: asyncio.Event = field(default_factory=asyncio.Event)
    _halted: Stop | None = None
    _interruptible: set[asyncio.Future[Any]] = field(default_factory=set)

    def halt(self, error: Stop) -> None:
        """Send nothing more: every call ends with this error once its requests in flight are answered."""
        self._halted = self._halted or error
        for waiting in self._interruptible:
            waiting.cancel()

    @property
    def patience(self) -> int:
        """Tries of an address that cannot be reached: few before it ever was, as it may well be wrong."""
        return 1_000 if self._answered else _UNREACHED

    def revive(self) -> None:
        """Forget why it was halted: a new call may find the provider well."""
        if self._halted is not None and not self._active:
            self._halted = None

    async def embed(
        self, work: Encoded, *, into: Bought, advance: Advance = no_advance, left: Left = no_left
    ) -> None:
        """Embed texts, recording what becomes of each in `into`, also when this is cancelled.

        Args:
            work: The texts, each of at most `info.max_tokens` tokens.
            into: An empty record of as many texts.
            advance: Called with (texts, tokens) after each request.
            left: Called when a request has passed the limiter for the first time, or will not be sent, with
                how many have not yet: 0 says that what is asked for now does not wait behind this call.
        """
        if not len(work):
            return
        self._active += 1
        try:
            await _Run(self, work, into, advance, left).to_end()
        finally:
            self._active -= 1

    async def learn(self) -> tuple[Reply | None, Usage]:
        """Let the provider learn what it does not know of its model: one request, tried again as others.

        Returns:
            Its answer, and what all tries cost.

        Raises:
            ProviderError: It cannot be asked.
        """
        # three short texts: asking often costs nothing, and without the answer nothing can begin
        patient = replace(self.retry, reply_attempts=self.retry.attempts)
        tries, usage = _Tries(patient, self.random, self.patience), Usage()
        while True:
            ticket = await self.limiter.acquire(_PROBE_TOKENS)
            try:
                reply = await self.provider.learn()
                self.limiter.succeeded(
                    ticket, tokens=reply.usage.tokens if reply else 0, rates=reply.rates if reply else None
                )
                return reply, usage + (reply.usage if reply else Usage())
            except RateLimitError as error:
                self.limiter.limited(ticket, retry_after=error.retry_after, rates=_rates(error))
                failure: ProviderError = error
            except ProviderError as error:
                self.limiter.failed(ticket, rates=_rates(error))
                failure = error
            except BaseException:
                self.limiter.failed(ticket)
                raise
            usage += Usage(requests=1, unsure_tokens=_PROBE_TOKENS if _may_be_billed(failure) else 0)
            wait = tries.wait(failure)
            if wait is None:
                raise as_quota(failure, self.limiter.now()) or failure
            await asyncio.sleep(wait)

    async def drained(self) -> None:
        """Wait until every request asked for has been sent: there is room for more."""
        while self._waiting > 0:
            self._drained.clear()
            await self._drained.wait()

    def _wait_more(self, requests: int) -> None:
        self._waiting += requests
        if self._waiting <= 0:
            self._drained.set()

    async def _unless_halted(
        self, waiting: Coroutine[Any, Any, T], *, undo: Callable[[T], None] = lambda _: None
    ) -> T:
        """Wait for something, but not longer than until `halt`.

        Args:
            waiting: What to wait for.
            undo: Gives its result back, where it came and the caller is cancelled before he has it.

        Raises:
            ProviderError, BudgetReachedError: What the engine was halted with.
        """
        task = asyncio.ensure_future(waiting)
        self._interruptible.add(task)
        try:
            if self._halted is not None:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and task.exception() is None:
                undo(task.result())
            caller = asyncio.current_task()
            if self._halted is not None and caller is not None and not caller.cancelling():
                raise self._halted from None
            raise
        finally:
            self._interruptible.discard(task)


@dataclass(slots=True)
class _Run:
    """One call of `Engine.embed`.

    Attributes:
        left: Told of requests that leave. waiting: those that have not.
        queue: Rows of requests not sent yet. workers: those who send them, one request at a time each.
        answered: Requests answered.
        searching: Whether a limit was passed that the provider does not name: `sole` lets one find it.
    """

    engine: Engine
    work: Encoded
    into: Bought
    advance: Advance
    left: Left = no_left
    waiting: int = 0
    queue: deque[IntArray] = field(default_factory=deque)
    workers: set[asyncio.Task[None]] = field(default_factory=set)
    answered: int = 0
    searching: bool = False
    sole: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def to_end(self) -> None:
        self._queue(self._packed(np.arange(len(self.work), dtype=np.int64)))
        try:
            while self.workers:
                done, _ = await asyncio.wait(self.workers, return_when=asyncio.FIRST_COMPLETED)
                self.workers -= done  # others may have been added meanwhile
                for task in done:
                    task.result()
        finally:
            for task in self.workers:
                task.cancel()
            await asyncio.gather(*self.workers, return_exceptions=True)
            self._wait_more(-len(self.queue))
            self.queue.clear()

    def _wait_more(self, requests: int) -> None:
        """Count requests that wait to be sent, those of all calls and those of this one."""
        self.engine._wait_more(requests)
        self.waiting += requests
        if requests < 0:
            self.left(self.waiting)

    def _packed(self, rows: IntArray) -> Iterable[IntArray]:
        """Cut rows into requests within the limits known now."""
        info, most = self.engine.provider.info, self.engine.limiter.most_tokens
        tokens = self.work.tokens[rows]
        left = self.engine.budget.tokens_left
        left = None if left is None else max(left, 1)  # a request that does not fit is cut, not given up
        limits = [limit for limit in (info.max_request_tokens, most, left) if limit is not None]
        cuts = batches(tokens, max_inputs=info.max_inputs, max_tokens=min(limits) if limits else None)
        for cut in cuts:
            yield from self._within_bytes(rows[cut], info.max_request_bytes)

    def _within_bytes(self, rows: IntArray, most: int | None) -> Iterable[IntArray]:
        if most is None:
            yield rows
            return
        sizes = [len(self.work.texts[row].encode("utf-8", "replace")) + 8 for row in rows]
        for cut in batches(np.array(sizes, dtype=np.int64), max_inputs=None, max_tokens=max(most - 512, 1)):
            yield rows[cut]

    def _queue(self, cuts: Iterable[IntArray], *, first: bool = False) -> None:
        """Add requests to those that wait, and workers for them."""
        added = list(cuts)
        if first:
            self.queue.extendleft(reversed(added))
        else:
            self.queue.extend(added)
        self._wait_more(len(added))
        most = self.engine.provider.endpoint.max_concurrency
        for _ in range(min(len(self.queue), most - len(self.workers))):
            self.workers.add(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        while self.queue and self.into.stopped is None:
            if self.engine._halted is not None:
                return self._stop(self.engine._halted)
            if self.searching:
                async with self.sole:  # one request after another finds the limit, not all at once
                    if self.searching and self.queue:
                        await self._send_next()
            elif self.queue:
                await self._send_next()
        return None

    async def _send_next(self) -> None:
        rows, *rest = self._packed(self.queue.popleft())  # limits may have been learned meanwhile
        self._queue(rest, first=True)
        await self._send(rows, self.engine.retry, waited=True)

    async def _send(self, rows: IntArray, retry: RetryPolicy, *, waited: bool = False) -> None:
        """Bring texts to their end: vectors, errors, or the stop of everything.

        Args:
            rows: Positions of one request's texts.
            retry: How long to try.
            waited: Whether the request counts among those that wait to be sent.
        """
        part = self.work.take(rows)
        tries, answered = _Tries(retry, self.engine.random, self.engine.patience), self.answered
        while self.into.stopped is None:
            try:
                reply = await self._ask(part, waited=waited)
            except RefusedError as error:
                error.attempts = tries.made + 1
                return await self._refused(rows, error, retry)
            except (RateLimitError, UnavailableError, BadReplyError) as error:
                wait = tries.wait(error)
                if wait is None:
                    return await self._gave_up(rows, error, healthy=self.answered > answered)
                if not await self._sleep(wait):
                    return None
            except (ProviderError, BudgetReachedError) as error:
                return self._stop(error)
            else:
                return self._keep(rows, part, reply)
            finally:
                waited = False
        return None

    async def _sleep(self, seconds: float) -> bool:
        """Sleep; return False where the engine was halted meanwhile."""
        try:
            await self.engine._unless_halted(asyncio.sleep(seconds))
        except (ProviderError, BudgetReachedError) as error:
            self._stop(error)
            return False
        return True

    async def _ask(self, part: Encoded, *, waited: bool) -> Reply:
        """Wait for the turn, send one request, and tell the limiter and the budget how it went."""
        engine, tokens = self.engine, int(part.tokens.sum())
        try:
            held = engine.budget.hold_now(tokens)
        except BudgetReachedError:
            held = await self._wait_for_money(tokens, waited=waited)
        billed: float | None = 0.0
        try:
            try:
                ticket = await engine._unless_halted(
                    engine.limiter.acquire(tokens), undo=engine.limiter.unused
                )
            finally:
                self._wait_more(-waited)
            most = engine.limiter.most_tokens
            if most is not None and tokens > most and len(part) > 1:  # learned since it was packed
                engine.limiter.unused(ticket)
                raise RefusedError("packed too large", reason="max_request_tokens", code=ABOVE_LIMIT)
            billed = held  # once it is sent, it may be billed whatever becomes of the reply
            reply = await self._exchange(part, ticket)
            billed = reply.usage.usd
            return reply
        except ProviderError as error:
            billed = held if _may_be_billed(error) else 0.0
            if isinstance(error, BadReplyError):
                engine._wrong = error
            raise
        finally:
            engine.budget.settle(held, billed)

    async def _wait_for_money(self, tokens: int, *, waited: bool) -> float:
        """Wait until requests on their way turn out cheaper than what was set aside for them."""
        budget = self.engine.budget
        try:
            return await self.engine._unless_halted(
                budget.hold(tokens), undo=lambda held: budget.settle(held, None)
            )
        except BaseException:
            self._wait_more(-waited)
            raise

    async def _exchange(self, part: Encoded, ticket: Ticket) -> Reply:
        limiter, failure = self.engine.limiter, True
        try:
            reply = await self.engine.provider.embed(part)
            limiter.succeeded(ticket, tokens=reply.usage.tokens, rates=reply.rates)
            failure = False
            return reply
        except RateLimitError as error:
            limiter.limited(ticket, retry_after=error.retry_after, rates=_rates(error))
            failure = False
            self.into.usage += Usage(requests=1)
            raise
        except ProviderError as error:
            limiter.failed(ticket, rates=_rates(error))
            failure = False
            unsure = int(part.tokens.sum()) if _may_be_billed(error) else 0
            self.into.usage += Usage(requests=1, unsure_tokens=unsure)
            raise
        finally:
            if failure:  # cancelled: it was sent, and nobody knows how it ended
                limiter.failed(ticket)
                self.into.usage += Usage(requests=1, unsure_tokens=int(part.tokens.sum()))

    def _keep(self, rows: IntArray, part: Encoded, reply: Reply) -> None:
        into = self.into
        if len(rows) == len(into.vectors):  # one request for all, in order
            into.vectors = reply.vectors
        else:
            into.vectors[rows] = reply.vectors
        into.done[rows] = True
        into.tokens[rows] += apportion(reply.usage.tokens, part.tokens)
        into.usage += reply.usage
        self.answered += 1
        self.searching = False
        self.engine._answered += 1
        self.engine._refused_alone = 0
        self.advance(len(rows), int(part.tokens.sum()))

    async def _refused(self, rows: IntArray, error: RefusedError, retry: RetryPolicy) -> None:
        learned = _LEARN.get(error.reason)
        if learned is not None and len(rows) > 1:
            if error.code != ABOVE_LIMIT:
                self._learn(rows, error)
                self.searching = error.limit is None
            self._queue([rows], first=True)  # packed anew when its turn comes
            return
        if error.reason == "request":
            self._stop(error)
            return
        await self._halve(rows, error, retry)

    def _learn(self, rows: IntArray, error: RefusedError) -> None:
        """Remember a smaller limit: the one the provider names, or half of what was too much."""
        provider, measure = self.engine.provider, _LEARN[error.reason]
        had = measure(self.work, rows)
        limit = error.limit if error.limit is not None and 0 < error.limit < had else max(had // 2, 1)
        if error.reason == "max_inputs":
            provider.remember(max_inputs=limit)
        elif error.reason == "max_request_tokens":
            provider.remember(max_request_tokens=max(limit, int(self.work.tokens[rows].max())))
        else:
            longest = max(len(self.work.texts[row].encode("utf-8", "replace")) for row in rows)
            provider.remember(max_request_bytes=max(limit, longest + 1024))

    async def _halve(self, rows: IntArray, error: ProviderError, retry: RetryPolicy) -> None:
        if len(rows) == 1:
            await self._refuse(rows, error)
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            await self._send(half, retry)

    async def _refuse(self, rows: IntArray, error: ProviderError) -> None:
        """Give single texts up, or everything where the model takes no text at all."""
        self.engine._refused_alone += 1
        hopeless = self.engine._answered == 0 and self.engine._refused_alone >= _HOPELESS
        if hopeless and not await self._takes_anything():
            self._stop(error)
            return
        for row in rows:
            self.into.errors[int(row)] = error
        self.advance(len(rows), int(self.work.tokens[rows].sum()))

    async def _takes_anything(self) -> bool:
        """Ask for the probe's sentences, which hurt nobody: are the texts to blame, or the model?"""
        engine = self.engine
        async with engine._trial:
            if engine._answered:
                return True
            probe = engine.provider.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)
            tries = _Tries(_ALONE, engine.random)
            while True:
                try:
                    reply = await self._ask(probe, waited=False)
                except (RateLimitError, UnavailableError, BadReplyError) as error:
                    wait = tries.wait(error)
                    if wait is None or not await self._sleep(wait):
                        return False
                except (ProviderError, BudgetReachedError):
                    return False
                else:
                    engine.trial_usage += reply.usage
                    engine._answered += 1
                    return True

    async def _gave_up(self, rows: IntArray, error: ProviderError, *, healthy: bool) -> None:
        """Decide what exhausted attempts mean: the texts are to blame, or the provider is away."""
        if isinstance(error, RateLimitError):
            quota = as_quota(error, self.engine.limiter.now())
            if quota is not None or not healthy:
                self._stop(quota or error)
                return
        elif not healthy and not isinstance(error, BadReplyError) and error.status != _SERVER_ERROR:
            self._stop(error if self.engine._answered else self.engine._wrong or error)
            return
        elif not self.engine._answered and not await self._takes_anything():
            self._stop(self.engine._wrong or error)  # no answer was ever right: halving would only cost
            return
        elif len(rows) > 1:
            await self._halve(rows, error, _ALONE)
            return
        await self._refuse(rows, error)

    def _stop(self, error: Stop) -> None:
        if self.into.stopped is None:
            self.into.stopped = error
        if not self.engine.apart:
            self.engine.halt(error)


_SERVER_ERROR = 500
"""The server broke on this request, perhaps by a text in it; 502 to 504 say that it is not there."""

_LEARN: dict[str, Callable[[Encoded, IntArray], int]] = {
    "max_inputs": lambda _, rows: len(rows),
    "max_request_tokens": lambda work, rows: int(work.tokens[rows].sum()),
    "max_bytes": lambda work, rows: sum(len(work.texts[r].encode("utf-8", "replace")) for r in rows),
}


def apportion(total: int, weights: IntArray) -> IntArray:
    """Share a whole number by weights, (n,) int64, adding up exactly: the largest remainders get the rest."""
    known = int(weights.sum())
    if total == known or not len(weights):
        return np.array(weights, dtype=np.int64)
    if known == 0:
        even: IntArray = np.full(len(weights), total // len(weights), dtype=np.int64)
        even[: total - int(even.sum())] += 1
        return even
    exact = weights * (total / known)
    shares: IntArray = np.floor(exact).astype(np.int64)
    missing = total - int(shares.sum())
    if missing > 0:
        shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return shares


@dataclass(slots=True)
class _Tries:
    """How often one request was tried, and how that ended.

    Wrong replies are counted apart from failures: each may have been billed, so fewer are allowed.

    Attributes:
        unreached: Tries after which an address that was never reached is given up.
    """

    retry: RetryPolicy
    random: random.Random
    unreached: int = 1_000
    made: int = 0
    failed: int = 0
    wrong: int = 0
    failed_at: float = 0.0

    def wait(self, error: ProviderError) -> float | None:
        """Note a failed try; return the seconds to wait before the next, or None to give up."""
        moment = asyncio.get_running_loop().time()
        if not self.made:
            self.failed_at = moment
        self.made += 1
        error.attempts = self.made
        if isinstance(error, BadReplyError):
            self.wrong += 1
            attempt = self.wrong
        else:
            self.failed += not isinstance(error, RateLimitError)
            attempt = max(self.failed, 1)
        if self.failed + self.wrong >= self.retry.attempts:
            return None
        if error.code in NOTHING_SENT and self.made >= self.unreached:
            return None
        elapsed = moment - self.failed_at
        return self.retry.wait(error, attempt=attempt, elapsed=elapsed, random=self.random)


def _may_be_billed(error: ProviderError) -> bool:
    """Whether the texts were computed perhaps, and only the answer is lost: nobody can tell."""
    if isinstance(error, UnavailableError):
        return error.status is None and error.code not in NOTHING_SENT
    return isinstance(error, BadReplyError)


def _rates(error: ProviderError) -> RateLimits | None:
    return error.rates if isinstance(error.rates, RateLimits) else None
