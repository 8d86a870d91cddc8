"""Limits of one caller, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from vecmill.server import rates as rates_module
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.server.rates import Rates, duration
from vecmill.testing.clock import run_virtual

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    return run_virtual(main)


def ask(rates: Rates, tokens: int = 1, *, caller: str = "key:a") -> dict[str, str]:
    """Send one request that ends at once; return its headers."""
    with rates.enter(caller) as ticket:
        return dict(ticket.take(tokens))


def refusal(rates: Rates, tokens: int = 1, *, caller: str = "key:a") -> Refusal:
    with pytest.raises(Refusal) as caught, rates.enter(caller) as ticket:
        ticket.take(tokens)
    assert (caught.value.status, caught.value.type) == (429, "rate_limit_error")
    assert caught.value.code == "rate_limit_exceeded"
    return caught.value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "0s"),
        (0.25, "250ms"),
        (0.9996, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.25, "1m30.25s"),
        (3600, "1h0m0s"),
        (3661, "1h1m1s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_limits_nothing_is_counted() -> None:
    rates = Rates(Limits())
    assert not rates.is_on
    assert ask(rates, 10**9) == {}  # no event loop needed


def test_a_minutes_requests_may_come_at_once_and_come_back_evenly() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_requests_per_minute=60))
        for left in range(59, -1, -1):
            said = ask(rates)
            assert said["x-ratelimit-limit-requests"] == "60"
            assert said["x-ratelimit-remaining-requests"] == str(left)
            assert said["x-ratelimit-reset-requests"] == duration(60 - left)
            assert "x-ratelimit-limit-tokens" not in said
        refused = dict(refusal(rates).headers)
        assert refused["retry-after-ms"] == "1000"
        assert refused["retry-after"] == "1"
        assert refused["x-ratelimit-remaining-requests"] == "0"
        assert refused["x-ratelimit-reset-requests"] == "1m0s"
        await asyncio.sleep(0.5)
        assert dict(refusal(rates).headers)["retry-after-ms"] == "500"
        await asyncio.sleep(0.5)
        ask(rates)
        refusal(rates)
        await asyncio.sleep(3600)
        assert ask(rates)["x-ratelimit-remaining-requests"] == "59"

    run(main())


def test_tokens_are_taken_whole_or_not_at_all() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_tokens_per_minute=6000, key_requests_per_minute=100))
        said = ask(rates, 5900)
        assert said["x-ratelimit-remaining-tokens"] == "100"
        assert said["x-ratelimit-reset-tokens"] == "59s"
        refused = refusal(rates, 200)
        assert "6000 tokens a minute; 100 are left, 200 were asked for" in refused.message
        assert dict(refused.headers)["retry-after-ms"] == "1000"
        assert dict(refused.headers)["x-ratelimit-remaining-requests"] == "98", "its body was read"
        assert ask(rates, 100)["x-ratelimit-remaining-tokens"] == "0"

    run(main())


def test_a_request_above_a_whole_minute_is_told_not_to_come_again() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_tokens_per_minute=100))
        refused = refusal(rates, 101)
        assert ("x-should-retry", "false") in refused.headers
        assert not any(name.startswith("retry-after") for name, _ in refused.headers)
        assert ask(rates, 100)["x-ratelimit-remaining-tokens"] == "0"

    run(main())


def test_callers_have_limits_of_their_own() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_requests_per_minute=1))
        ask(rates, caller="key:a")
        ask(rates, caller="key:b")
        refusal(rates, caller="key:a")
        refusal(rates, caller="key:b")

    run(main())


def test_requests_at_once_end_also_when_they_fail_or_are_cancelled() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_concurrency=2))
        held = asyncio.Event()

        async def one() -> None:
            with rates.enter("key:a") as ticket:
                assert ticket.take(1) == ()
                await held.wait()
                raise ValueError

        tasks = [asyncio.create_task(one()) for _ in range(2)]
        await asyncio.sleep(0)
        assert "2 requests running at once" in refusal(rates).message
        ask(rates, caller="key:b")
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        ask(rates)
        held.set()
        await asyncio.wait(tasks)
        with rates.enter("key:a"), rates.enter("key:a"):
            refusal(rates)
        for task in tasks:
            assert task.cancelled() or isinstance(task.exception(), ValueError)

    run(main())


def test_the_rate_over_hours_is_the_limit() -> None:
    async def main() -> int:
        rates = Rates(Limits(key_requests_per_minute=30))
        passed = 0
        for _ in range(7200):
            try:
                ask(rates)
                passed += 1
            except Refusal as refused:
                await asyncio.sleep(float(dict(refused.headers)["retry-after-ms"]) / 1000)
        return passed

    passed = run(main())
    assert passed == 30 + (7200 - 30) // 2  # every wait that was asked for was enough


def test_who_came_longest_ago_is_forgotten_but_nobody_who_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "MAX_CALLERS", 10)

    async def main() -> None:
        rates = Rates(Limits(key_requests_per_minute=1, key_concurrency=1))
        with rates.enter("key:inside"):
            for i in range(50):
                ask(rates, caller=f"key:{i}")
            assert len(rates._uses) == 10
            refusal(rates, caller="key:inside")
            refusal(rates, caller="key:49")
            ask(rates, caller="key:0")  # long forgotten
        await asyncio.sleep(60)
        ask(rates, caller="key:new")
        assert list(rates._uses) == ["key:new"]  # all others had nothing used any more

    run(main())


def test_who_has_no_token_left_is_refused_before_anything_is_read() -> None:
    async def main() -> None:
        rates = Rates(Limits(key_tokens_per_minute=60, key_requests_per_minute=10))
        ask(rates, 60)
        with pytest.raises(Refusal, match="none left") as caught:
            rates.enter("key:a")
        said = dict(caught.value.headers)
        assert (said["retry-after-ms"], said["x-ratelimit-remaining-requests"]) == ("1000", "9")
        await asyncio.sleep(1)
        ask(rates, 1)

    run(main())
