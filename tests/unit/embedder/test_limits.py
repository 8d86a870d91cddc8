"""The limiter lets requests through as fast as limits allow, in order, and loses no place.

The provider here is a model of three meanings of a limit per minute: a bucket, a count per minute of the wall
clock, and a count over the last sixty seconds. Time is virtual.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from vecmill.core.errors import QuotaExhaustedError, RefusedError
from vecmill.embedder.limit_store import LimitStore, MemoryStore, SqliteStore
from vecmill.embedder.limits import Limiter, limiter_for
from vecmill.models.base import Endpoint, RateLimits
from vecmill.testing.clock import VirtualLoop, run_virtual

SEED = 20261121
KINDS = ("bucket", "window", "sliding")


class Bucket:
    def __init__(self, limit: float) -> None:
        self.limit, self.level, self.at = limit, float(limit), 0.0

    def left(self, now: float) -> float:
        self.level = min(self.limit, self.level + (now - self.at) * self.limit / 60)
        self.at = now
        return self.level

    def take(self, now: float, amount: float) -> None:
        self.level -= amount

    def reset(self, now: float) -> float:
        return 60 * (1 - self.left(now) / self.limit)

    def wait(self, now: float, amount: float) -> float:
        return max(amount - self.left(now), 0.0) * 60 / self.limit


class Window:
    def __init__(self, limit: float) -> None:
        self.limit, self.minute, self.used = limit, 0, 0.0

    def left(self, now: float) -> float:
        if int(now // 60) != self.minute:
            self.minute, self.used = int(now // 60), 0.0
        return self.limit - self.used

    def take(self, now: float, amount: float) -> None:
        self.used += amount

    def reset(self, now: float) -> float:
        return 60 - now % 60

    def wait(self, now: float, amount: float) -> float:
        return 0.0 if self.left(now) >= amount else self.reset(now)


class Sliding:
    def __init__(self, limit: float) -> None:
        self.limit, self.used = limit, 0.0
        self.log: deque[tuple[float, float]] = deque()

    def left(self, now: float) -> float:
        while self.log and self.log[0][0] <= now - 60:
            self.used -= self.log.popleft()[1]
        return self.limit - self.used

    def take(self, now: float, amount: float) -> None:
        self.log.append((now, amount))
        self.used += amount

    def reset(self, now: float) -> float:
        return self.log[-1][0] + 60 - now if self.log else 0.0

    def wait(self, now: float, amount: float) -> float:
        over = amount - self.left(now)
        for at, taken in self.log:
            if over <= 0:
                break
            over -= taken
            if over <= 0:
                return at + 60 - now
        return 0.0 if over <= 0 else 60.0


METERS = {"bucket": Bucket, "window": Window, "sliding": Sliding}


@dataclass
class Model:
    """A provider's limits; `answered` and `refused` hold (moment, tokens) of our requests."""

    kind: str
    rpm: int | None = None
    tpm: int | None = None
    has_headers: bool = True
    says_when: bool = True
    answered: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.requests = METERS[self.kind](self.rpm or 1e12)
        self.tokens = METERS[self.kind](self.tpm or 1e12)

    def ask(self, now: float, tokens: int, *, ours: bool = True) -> float:
        """Count a request; return 0 or how long it should have waited."""
        wait = max(self.requests.wait(now, 1), self.tokens.wait(now, tokens))
        if wait <= 1e-9:
            self.requests.take(now, 1)
            self.tokens.take(now, tokens)
        if ours:
            (self.refused if wait > 1e-9 else self.answered).append((now, tokens))
        return wait if wait > 1e-9 else 0.0

    def rates(self, now: float) -> RateLimits | None:
        if not self.has_headers:
            return None
        names: dict[str, float] = {}
        for name, limit, meter in (
            ("requests", self.rpm, self.requests),
            ("tokens", self.tpm, self.tokens),
        ):
            if limit is not None:
                names[f"limit_{name}"] = int(meter.limit)
                names[f"remaining_{name}"] = max(int(meter.left(now)), 0)
                names[f"reset_{name}"] = meter.reset(now)
        return RateLimits(**names)  # type: ignore[arg-type]  # counts are whole

    @property
    def share_refused(self) -> float:
        return len(self.refused) / (len(self.refused) + len(self.answered))

    def used(self, start: float) -> list[float]:
        """Return the share of the limit used in each minute but the first and the last."""
        minutes: dict[int, float] = {}
        for at, tokens in self.answered:
            minute = int((at - start) // 60)
            minutes[minute] = minutes.get(minute, 0.0) + (tokens if self.tpm else 1)
        limit = self.tpm or self.rpm
        assert limit is not None
        return [minutes.get(minute, 0.0) / limit for minute in range(1, max(minutes))]


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def _endpoint(rpm: int | None = None, tpm: int | None = None, most: int = 64) -> Endpoint:
    return Endpoint("0" * 32, "openai:m", rpm, tpm, max_concurrency=most)


async def _request(limiter: Limiter, model: Model, tokens: int, latency: float, random: Random) -> None:
    loop = _loop()
    while True:
        ticket = await limiter.acquire(tokens)
        seconds = latency * random.uniform(0.6, 1.6)
        await asyncio.sleep(seconds * random.uniform(0.1, 0.4))
        wait, rates = model.ask(loop.now(), tokens), model.rates(loop.now())
        await asyncio.sleep(seconds * 0.6)
        if not wait:
            limiter.succeeded(ticket, tokens=tokens, rates=rates)
            return
        limiter.limited(ticket, retry_after=wait if model.says_when else None, rates=rates)


async def _load(limiter: Limiter, model: Model, costs: Sequence[int], latency: float, random: Random) -> None:
    waiting: Iterator[int] = iter(costs)

    async def work() -> None:
        for tokens in waiting:
            await _request(limiter, model, tokens, latency, random)

    await asyncio.gather(*(work() for _ in range(64)))


def _run(
    model: Model,
    costs: Sequence[int],
    latency: float,
    *,
    endpoint: Endpoint | None = None,
    rival_per_second: float = 0.0,
) -> list[float]:
    """Send requests through one limiter; return the share of the limit used, minute by minute."""
    random = Random(SEED)

    async def rival() -> None:
        while True:
            await asyncio.sleep(random.expovariate(rival_per_second))
            model.ask(_loop().now(), 20, ours=False)

    async def main() -> float:
        loop = _loop()
        start = loop.now()
        other = asyncio.create_task(rival()) if rival_per_second else None
        limiter = Limiter(endpoint or _endpoint(model.rpm, model.tpm), now=loop.now)
        await _load(limiter, model, costs, latency, random)
        if other is not None:
            other.cancel()
        assert limiter.in_flight == 0
        return start

    return model.used(run_virtual(main()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("latency", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_six_thousand_short_requests_use_the_request_limit(kind: str, latency: float) -> None:
    model = Model(kind, rpm=600)

    used = _run(model, [20] * 6000, latency)

    assert _mean(used) >= 0.95
    assert min(used) >= 0.94
    assert model.share_refused < 0.01


@pytest.mark.parametrize("latency", [0.05, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_six_thousand_long_requests_use_the_token_limit(kind: str, latency: float) -> None:
    model = Model(kind, rpm=3000, tpm=1_000_000)
    random = Random(SEED)

    used = _run(model, [random.randint(200, 3000) for _ in range(6000)], latency)

    assert _mean(used) >= 0.95
    assert model.share_refused < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_any_size_up_to_a_third_of_the_limit_are_hardly_ever_refused(kind: str) -> None:
    model = Model(kind, tpm=24_000)
    random = Random(SEED)

    used = _run(model, [random.choice([50, 400, 2000, 8000]) for _ in range(300)], 0.5)

    assert _mean(used) >= 0.65  # what comes first goes first, however long it has to wait for room
    assert model.share_refused < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_learned_from_the_first_reply(kind: str) -> None:
    model = Model(kind, rpm=300)

    used = _run(model, [20] * 1500, 0.3, endpoint=_endpoint())

    assert _mean(used) >= 0.95
    assert model.share_refused < 0.01


@pytest.mark.parametrize("latency", [0.05, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_others_who_use_half_of_the_limit_are_seen_in_the_remainder(kind: str, latency: float) -> None:
    model = Model(kind, rpm=600)

    used = _run(model, [20] * 2500, latency, rival_per_second=5.0)

    assert model.share_refused < 0.03
    assert _mean(used) >= 0.3


def test_a_limit_that_shrinks_is_followed() -> None:
    model = Model("sliding", rpm=600)

    async def main() -> None:
        loop = _loop()
        limiter = Limiter(_endpoint(), now=loop.now)
        random = Random(SEED)
        await _load(limiter, model, [20] * 1200, 0.3, random)
        model.rpm = 200
        model.requests.limit = 200
        model.answered.clear()
        start = loop.now()
        await _load(limiter, model, [20] * 1000, 0.3, random)
        assert _mean(model.used(start)) >= 0.94
        assert model.share_refused < 0.02
        assert limiter.estimate_minutes(195, 0) == pytest.approx(1.0, rel=0.01)

    run_virtual(main())


def test_a_limit_per_minute_nobody_tells_is_survived() -> None:
    model = Model("window", rpm=120, has_headers=False)

    used = _run(model, [20] * 1200, 0.3, endpoint=_endpoint())

    assert _mean(used) >= 0.95


def test_one_limiter_may_be_slow_for_a_request_above_the_whole_limit_but_not_forever() -> None:
    async def main() -> float:
        loop = _loop()
        limiter = Limiter(_endpoint(tpm=1000), now=loop.now)
        for tokens in (100, 5000, 100):
            limiter.succeeded(await limiter.acquire(tokens), tokens=tokens, rates=None)
        return loop.time()

    assert 300 < run_virtual(main()) < 450


def test_fifty_requests_a_second_are_reached_within_three_seconds() -> None:
    async def main() -> int:
        loop = _loop()
        limiter = Limiter(_endpoint(), now=loop.now)
        sent = 0

        async def work() -> None:
            nonlocal sent
            while loop.time() < 4:
                ticket = await limiter.acquire(10)
                sent += loop.time() >= 3
                await asyncio.sleep(0.3)
                limiter.succeeded(ticket, tokens=10, rates=None)

        await asyncio.gather(*(work() for _ in range(64)))
        return sent

    assert run_virtual(main()) >= 50


def test_first_come_first_served() -> None:
    async def main() -> list[int]:
        limiter = Limiter(_endpoint(600), now=_loop().now)
        order: list[int] = []

        async def one(i: int) -> None:
            ticket = await limiter.acquire(1000 - i)
            order.append(i)
            await asyncio.sleep(0.5)
            limiter.succeeded(ticket, tokens=1, rates=None)

        await asyncio.gather(*(one(i) for i in range(200)))
        return order

    assert run_virtual(main()) == list(range(200))


def test_nobody_goes_before_retry_after_is_over() -> None:
    async def main() -> tuple[float, float]:
        loop = _loop()
        limiter = Limiter(_endpoint(), now=loop.now)
        tickets = [await limiter.acquire(1) for _ in range(4)]
        waiting = [asyncio.create_task(limiter.acquire(1)) for _ in range(8)]
        await asyncio.sleep(1)
        limited_at = loop.now()
        limiter.limited(tickets[0], retry_after=17.25, rates=None)
        for ticket in tickets[1:]:
            limiter.failed(ticket)
        first, *_ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert first
        at = loop.now()
        for task in waiting:
            task.cancel()
        return limited_at, at

    limited_at, at = run_virtual(main())
    assert at == pytest.approx(limited_at + 17.25, abs=1e-3)
    assert at >= limited_at + 17.25 - 1e-5  # what a float of seconds since the epoch can tell


def test_a_pause_reaches_requests_that_already_have_their_moment() -> None:
    async def main() -> float:
        loop = _loop()
        limiter = Limiter(_endpoint(6), now=loop.now)
        ticket = await limiter.acquire(1)
        waiting = asyncio.create_task(limiter.acquire(1))
        await asyncio.sleep(5)
        limiter.limited(ticket, retry_after=40, rates=None)
        await waiting
        return loop.time()

    assert run_virtual(main()) >= 45


def test_many_refusals_at_once_count_as_one() -> None:
    async def main() -> tuple[int, int, int]:
        limiter = Limiter(_endpoint(most=32), now=_loop().now)
        while limiter.concurrency < 32:
            tickets = [await limiter.acquire(1) for _ in range(limiter.concurrency)]
            for ticket in tickets:
                limiter.succeeded(ticket, tokens=1, rates=None)
        tickets = [await limiter.acquire(1) for _ in range(32)]
        before = limiter.concurrency
        for ticket in tickets:
            limiter.limited(ticket, retry_after=1, rates=None)
        after = limiter.concurrency
        limiter.limited(await limiter.acquire(1), retry_after=1, rates=None)
        return before, after, limiter.concurrency

    assert run_virtual(main()) == (32, 16, 8)


def test_concurrency_that_is_not_used_does_not_grow() -> None:
    async def main() -> int:
        limiter = Limiter(_endpoint(), now=_loop().now)
        for _ in range(100):
            limiter.succeeded(await limiter.acquire(1), tokens=1, rates=None)
        return limiter.concurrency

    assert run_virtual(main()) == 4


def test_single_failures_do_not_lower_concurrency_and_a_row_of_them_does() -> None:
    async def main() -> tuple[int, int]:
        limiter = Limiter(_endpoint(), now=_loop().now)
        for i in range(60):
            ticket = await limiter.acquire(1)
            if i % 3:
                limiter.failed(ticket)
            else:
                limiter.succeeded(ticket, tokens=1, rates=None)
        before = limiter.concurrency
        for _ in range(40):
            limiter.failed(await limiter.acquire(1))
        return before, limiter.concurrency

    assert run_virtual(main()) == (4, 1)


def test_requests_in_flight_never_exceed_the_endpoints_most() -> None:
    async def main() -> int:
        limiter = Limiter(_endpoint(most=3), now=_loop().now)
        most = 0

        async def one() -> None:
            nonlocal most
            ticket = await limiter.acquire(1)
            most = max(most, limiter.in_flight)
            await asyncio.sleep(1)
            limiter.succeeded(ticket, tokens=1, rates=None)

        await asyncio.gather(*(one() for _ in range(50)))
        return most

    assert run_virtual(main()) == 3


@pytest.mark.parametrize("shared", [False, True])
def test_cancelled_waits_give_their_place_and_their_tokens_back(shared: bool, tmp_path: Path) -> None:
    async def main() -> float:
        loop = _loop()
        store: LimitStore = SqliteStore(tmp_path / "limits.sqlite") if shared else MemoryStore()
        limiter = Limiter(_endpoint(tpm=60_000), store=store, now=loop.now)
        first = await limiter.acquire(1000)
        greedy = [asyncio.create_task(limiter.acquire(30_000)) for _ in range(10)]
        await asyncio.sleep(0.5)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        second = await limiter.acquire(1000)
        limiter.succeeded(first, tokens=1000, rates=None)
        limiter.succeeded(second, tokens=1000, rates=None)
        assert limiter.in_flight == 0
        at = loop.time()
        await asyncio.sleep(0)
        store.close()
        return at

    assert run_virtual(main()) < 2.5


def test_a_ticket_that_arrives_with_its_cancellation_is_given_back() -> None:
    async def main() -> int:
        limiter = Limiter(_endpoint(most=1), now=_loop().now)
        held = await limiter.acquire(1)
        waiting = asyncio.create_task(limiter.acquire(1))
        await asyncio.sleep(1)
        limiter.succeeded(held, tokens=1, rates=None)
        for _ in range(20):  # until the ticket is there, and the task has not seen it yet
            if limiter.in_flight:
                break
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        in_flight = limiter.in_flight
        async with asyncio.timeout(5):
            await limiter.acquire(1)
        return in_flight

    assert run_virtual(main()) == 0


def test_what_was_billed_corrects_what_was_reserved() -> None:
    async def main() -> tuple[float, float]:
        loop = _loop()
        times = []
        for billed in (500, 2000):
            limiter = Limiter(_endpoint(tpm=60_000), now=loop.now)
            start = loop.time()
            for _ in range(100):
                limiter.succeeded(await limiter.acquire(1000), tokens=billed, rates=None)
            times.append(loop.time() - start)
        return times[0], times[1]

    less, more = run_virtual(main())
    assert less == pytest.approx(100 * 500 / (60_000 * 0.975) * 60, rel=0.1)
    assert more == pytest.approx(100 * 2000 / (60_000 * 0.975) * 60, rel=0.1)


def test_replies_never_raise_a_limit_somebody_set() -> None:
    async def main() -> float | None:
        limiter = Limiter(_endpoint(60), now=_loop().now)
        rates = RateLimits(limit_requests=6000, remaining_requests=5999, reset_requests=0.01)
        limiter.succeeded(await limiter.acquire(1), tokens=1, rates=rates)
        return limiter.estimate_minutes(585, 0)

    assert run_virtual(main()) == pytest.approx(10.0)


def test_a_limit_per_day_is_not_taken_for_one_per_minute() -> None:
    async def main() -> float | None:
        limiter = Limiter(_endpoint(), now=_loop().now)
        rates = RateLimits(limit_requests=150, remaining_requests=3, reset_requests=40_000.0)
        limiter.succeeded(await limiter.acquire(1), tokens=1, rates=rates)
        return limiter.estimate_minutes(585, 0)

    assert run_virtual(main()) is None


@pytest.mark.parametrize("remaining", [-1, 10**9])
def test_remainders_that_cannot_be_are_passed_over(remaining: int) -> None:
    async def main() -> float:
        loop = _loop()
        limiter = Limiter(_endpoint(600), now=loop.now)
        rates = RateLimits(limit_requests=600, remaining_requests=remaining, reset_requests=1.0)
        for _ in range(100):
            limiter.succeeded(await limiter.acquire(1), tokens=1, rates=rates)
        return loop.time()

    assert run_virtual(main()) < 11


def test_a_pause_beyond_patience_raises_for_everybody_until_it_is_over() -> None:
    async def main() -> None:
        loop = _loop()
        limiter = Limiter(_endpoint(), now=loop.now, patience=600)
        tickets = [await limiter.acquire(1) for _ in range(4)]
        waiting = asyncio.create_task(limiter.acquire(1))
        await asyncio.sleep(0)
        limiter.limited(tickets[0], retry_after=7200, rates=None)
        with pytest.raises(QuotaExhaustedError, match="openai:m takes no more requests until") as raised:
            await waiting
        assert raised.value.until == loop.now() + 7200
        with pytest.raises(QuotaExhaustedError):
            await limiter.acquire(1)
        for ticket in tickets[1:]:
            limiter.failed(ticket)
        await asyncio.sleep(7200)
        await limiter.acquire(1)

    run_virtual(main())


def test_most_tokens_is_a_small_share_and_leaves_room_under_few_requests() -> None:
    async def main() -> list[int | None]:
        now = _loop().now
        cases = [(None, None), (3000, 1_000_000), (30, 1_000_000), (None, 100_000), (6, 1000), (1, 1000)]
        return [Limiter(_endpoint(*case), now=now).most_tokens for case in cases]

    assert run_virtual(main()) == [None, 10_000, 66_666, 1000, 333, 500]


def test_a_request_above_what_replies_allow_in_a_minute_is_to_be_cut() -> None:
    async def main() -> None:
        limiter = Limiter(_endpoint(), now=_loop().now)
        rates = RateLimits(limit_tokens=1000, remaining_tokens=900, reset_tokens=6.0)
        first = await limiter.acquire(300_000)
        held = [await limiter.acquire(100) for _ in range(3)]
        waiting = [asyncio.create_task(limiter.acquire(tokens)) for tokens in (50_000, 10)]
        await asyncio.sleep(0)
        limiter.limited(first, retry_after=1, rates=rates)
        for ticket in held:
            limiter.failed(ticket)
        with pytest.raises(RefusedError, match="50000 tokens exceeds") as raised:
            await waiting[0]
        assert (raised.value.reason, raised.value.limit) == ("max_request_tokens", 1000)
        limiter.failed(await waiting[1])
        with pytest.raises(RefusedError):
            await limiter.acquire(1001)
        assert limiter.in_flight == 0

    run_virtual(main())


def test_an_unused_ticket_costs_nothing() -> None:
    async def main() -> float:
        loop = _loop()
        limiter = Limiter(_endpoint(6, 1000), now=loop.now)
        for _ in range(50):
            limiter.unused(await limiter.acquire(900))
        return loop.time()

    assert run_virtual(main()) < 1


def test_a_third_of_all_requests_failing_does_not_stop_the_flow() -> None:
    async def main() -> float:
        loop = _loop()
        random = Random(SEED)
        limiter = Limiter(_endpoint(), now=loop.now)

        async def one() -> None:
            ticket = await limiter.acquire(10)
            await asyncio.sleep(0.3)
            if random.random() < 0.3:
                limiter.failed(ticket)
            else:
                limiter.succeeded(ticket, tokens=10, rates=None)

        await asyncio.gather(*(one() for _ in range(1000)))
        return loop.time()

    assert run_virtual(main()) < 20


def test_minutes_are_estimated_by_the_limit_that_binds() -> None:
    async def main() -> list[float | None]:
        limiter = Limiter(_endpoint(600, 100_000), now=_loop().now)
        return [limiter.estimate_minutes(5850, 10), limiter.estimate_minutes(10, 975_000)]

    assert run_virtual(main()) == [pytest.approx(10.0), pytest.approx(10.0)]


def test_a_clock_set_back_does_not_stop_the_flow() -> None:
    async def main() -> float:
        loop = _loop()
        shift = 0.0
        limiter = Limiter(_endpoint(60), now=lambda: loop.now() + shift)
        limiter.succeeded(await limiter.acquire(1), tokens=1, rates=None)
        shift = -86_400.0
        for _ in range(3):
            limiter.succeeded(await limiter.acquire(1), tokens=1, rates=None)
        return loop.time()

    assert run_virtual(main()) < 5


def test_two_limiters_on_one_file_share_limit_and_pause(tmp_path: Path) -> None:
    model = Model("sliding", rpm=600)

    async def main() -> float:
        loop = _loop()
        start = loop.now()
        stores = [SqliteStore(tmp_path / "limits.sqlite") for _ in range(2)]
        limiters = [Limiter(_endpoint(600), store=store, now=loop.now) for store in stores]
        await asyncio.gather(*(_load(each, model, [20] * 900, 0.3, Random(SEED)) for each in limiters))
        ticket = await limiters[0].acquire(1)
        paused_at = loop.now()
        limiters[0].limited(ticket, retry_after=30, rates=None)
        await asyncio.sleep(0.1)
        await limiters[1].acquire(1)
        assert loop.now() >= paused_at + 29.999
        for store in stores:
            store.close()
        return start

    used = model.used(run_virtual(main()))

    assert _mean(used) >= 0.95
    assert model.share_refused < 0.01


def test_one_limiter_per_endpoint_and_loop(tmp_path: Path) -> None:
    async def main() -> Limiter:
        one = limiter_for(_endpoint(), home=tmp_path)
        assert limiter_for(_endpoint(600), home=tmp_path) is one
        assert one.estimate_minutes(585, 0) == pytest.approx(1.0)
        assert limiter_for(Endpoint("1" * 32, "other"), home=tmp_path) is not one
        assert limiter_for(_endpoint(), home=None) is not one
        return one

    assert run_virtual(main()) is not run_virtual(main())


def test_a_ticket_handed_back_twice_counts_once() -> None:
    async def main() -> int:
        limiter = Limiter(_endpoint(), now=_loop().now)
        one, _ = await limiter.acquire(1), await limiter.acquire(1)
        limiter.succeeded(one, tokens=1, rates=None)
        limiter.failed(one)
        limiter.limited(one, retry_after=math.inf, rates=None)
        return limiter.in_flight

    assert run_virtual(main()) == 1
