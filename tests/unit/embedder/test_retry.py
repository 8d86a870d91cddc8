"""The retry policy waits as told, gives up in bounded time, and knows a quota from a limit per minute."""

from __future__ import annotations

import math
from random import Random

import pytest

from vecmill.core.errors import (
    AuthenticationError,
    BadReplyError,
    ProviderError,
    QuotaExhaustedError,
    RateLimitError,
    RefusedError,
    UnavailableError,
)
from vecmill.embedder.retry import RetryPolicy, as_quota

POLICY = RetryPolicy()


def _wait(error: ProviderError, attempt: int = 1, elapsed: float = 0.0, seed: int = 0) -> float | None:
    return POLICY.wait(error, attempt=attempt, elapsed=elapsed, random=Random(seed))


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("no"),
        RefusedError("no"),
        QuotaExhaustedError("no"),
        ProviderError("no"),
        UnavailableError("the provider says so", retryable=False),
        RateLimitError("the provider says so", retryable=False),
    ],
)
def test_what_is_not_retryable_is_given_up(error: ProviderError) -> None:
    assert _wait(error) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "error", [RateLimitError("", retry_after=7.0), UnavailableError("", retry_after=7.0)]
)
def test_retry_after_is_waited_and_up_to_a_tenth_more(error: ProviderError, seed: int) -> None:
    wait = _wait(error, attempt=3, seed=seed)
    assert wait is not None
    assert 7.0 <= wait <= 7.7


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("attempt", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0)])
def test_without_advice_the_wait_lies_in_the_upper_half_of_a_doubling_bound(
    attempt: int, bound: float, seed: int
) -> None:
    wait = _wait(UnavailableError(""), attempt=attempt, seed=seed)
    assert wait is not None
    assert bound / 2 <= wait <= bound


def test_waits_differ() -> None:
    assert len({_wait(UnavailableError(""), seed=seed) for seed in range(50)}) == 50


def test_attempts_are_bounded() -> None:
    assert _wait(UnavailableError(""), attempt=7) is not None
    assert _wait(UnavailableError(""), attempt=8) is None


def test_wrong_replies_are_asked_again_twice() -> None:
    assert _wait(BadReplyError("", retryable=True), attempt=2) is not None
    assert _wait(BadReplyError("", retryable=True), attempt=3) is None


def test_rate_limits_are_no_attempts_but_time_is_bounded() -> None:
    assert _wait(RateLimitError("", retry_after=1.0), attempt=10**6) is not None
    assert _wait(RateLimitError("", retry_after=1.0), attempt=1, elapsed=599.5) is None
    assert _wait(RateLimitError(""), attempt=10**6) is not None


@pytest.mark.parametrize("error", [RateLimitError("", retry_after=0.0), RateLimitError("")])
def test_an_endless_error_ends(error: ProviderError) -> None:
    random, elapsed, tries = Random(0), 0.0, 0
    while (wait := POLICY.wait(error, attempt=1, elapsed=elapsed, random=random)) is not None:
        elapsed += wait
        tries += 1
    assert elapsed <= POLICY.total_seconds
    assert tries <= POLICY.total_seconds / POLICY.least_wait


@pytest.mark.parametrize("after", [math.nan, math.inf, -5.0])
def test_advice_that_cannot_be_is_passed_over(after: float) -> None:
    wait = _wait(UnavailableError("", retry_after=after))
    assert wait is not None
    assert wait <= 0.5


def test_a_wait_that_would_end_too_late_is_given_up() -> None:
    assert _wait(UnavailableError("", retry_after=30.0), elapsed=580.0) is None
    assert _wait(UnavailableError("", retry_after=86_400.0)) is None


def test_a_long_retry_after_is_a_quota() -> None:
    error = RateLimitError(
        "daily limit",
        retry_after=24_367.0,
        provider="github",
        model="m",
        status=429,
        request_id="r",
        code="c",
    )
    error.attempts = 4

    quota = as_quota(error, 1_000.0)

    assert quota is not None
    assert quota.until == 25_367.0
    assert (quota.provider, quota.model, quota.status, quota.request_id) == ("github", "m", 429, "r")
    assert (quota.code, quota.attempts, quota.retryable) == ("c", 4, False)


@pytest.mark.parametrize(
    "error",
    [
        RateLimitError("", retry_after=59.0),
        RateLimitError(""),
        RateLimitError("", retry_after=math.nan),
        UnavailableError("", retry_after=86_400.0),
    ],
)
def test_other_errors_are_no_quota(error: ProviderError) -> None:
    assert as_quota(error, 0.0) is None
