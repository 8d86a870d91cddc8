"""The three meanings of "per minute", the day's quota, and headers that are true to them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmill.testing.clock import START
from vecmill.testing.simulator_faults import go_duration
from vecmill.testing.simulator_limits import DAY, METERS, Bucket, Limits, Sliding, Window

STEPS = st.lists(
    st.tuples(st.floats(0, 90).map(lambda x: round(x, 3)), st.integers(1, 12)), min_size=1, max_size=60
)


def test_a_bucket_refills_evenly_and_holds_a_minute() -> None:
    bucket = Bucket(60)
    bucket.take(60, START)
    assert bucket.remaining(START) == 0
    assert bucket.wait(1, START) == pytest.approx(1.0)
    assert bucket.remaining(START + 10) == 10
    assert bucket.reset(START + 10) == pytest.approx(50.0)
    assert bucket.remaining(START + 1000) == 60


def test_a_window_begins_anew_with_the_minute_of_the_clock() -> None:
    window = Window(10)
    window.take(10, START + 55)  # START is a full minute
    assert window.wait(1, START + 55) == pytest.approx(5.0)
    assert window.wait(1, START + 59.5) == pytest.approx(0.5)
    assert window.wait(10, START + 60) == 0.0
    assert window.reset(START + 60) == 0.0


def test_a_sliding_minute_forgets_each_request_after_a_minute() -> None:
    sliding = Sliding(10)
    sliding.take(6, START)
    sliding.take(4, START + 20)
    assert sliding.wait(1, START + 30) == pytest.approx(30.0)
    assert sliding.wait(7, START + 30) == pytest.approx(50.0)
    assert sliding.remaining(START + 60) == 6
    assert sliding.reset(START + 60) == pytest.approx(20.0)


@pytest.mark.parametrize("meaning", METERS)
def test_more_than_a_minute_has_never_passes(meaning: str) -> None:
    meter = METERS[meaning](10)
    assert meter.wait(10, START) == 0.0
    assert math.isinf(meter.wait(11, START))


@pytest.mark.parametrize("meaning", METERS)
@given(steps=STEPS)
def test_who_waits_as_told_passes_and_who_does_not_is_refused(
    meaning: str, steps: list[tuple[float, int]]
) -> None:
    meter, now = METERS[meaning](12), START
    for pause, amount in steps:
        now += pause
        wait = meter.wait(amount, now)
        assert (wait == 0.0) == (amount <= meter.remaining(now))
        if wait:
            assert meter.wait(amount, now + wait * 0.9 - 1e-3) > 0
            now += wait
            assert meter.wait(amount, now) == 0.0
        meter.take(amount, now)
        assert 0 <= meter.remaining(now) <= 12 - amount or meaning == "bucket"
        assert meter.remaining(now + meter.reset(now) + 1e-6) == 12


@pytest.mark.parametrize(("meaning", "most"), [("bucket", 24), ("window", 24), ("sliding", 12)])
@given(steps=STEPS)
def test_no_minute_lets_more_pass_than_its_meaning_allows(
    meaning: str, most: int, steps: list[tuple[float, int]]
) -> None:
    meter, now = METERS[meaning](12), START
    passed: list[tuple[float, int]] = []
    for pause, amount in steps:
        now += pause
        if meter.wait(amount, now) == 0.0:
            meter.take(amount, now)
            passed.append((now, amount))
    for end, _ in passed:
        assert sum(amount for moment, amount in passed if end - 60 + 1e-5 < moment <= end) <= most


def test_the_longer_wait_is_told_and_a_refused_request_is_not_counted() -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=600)
    assert limits.ask(600, START) is None
    refused = limits.ask(100, START)
    assert refused is not None
    assert (refused.what, refused.limit, refused.used, refused.asked) == ("tokens", 600, 600, 100)
    assert refused.wait == pytest.approx(10.0)
    assert limits.ask(100, START + 10) is None
    assert limits.headers(START + 10)["x-ratelimit-remaining-requests"] == "59"


def test_the_quota_of_a_day_ends_at_midnight() -> None:
    limits = Limits(requests_per_day=2)
    assert limits.ask(1, START) is None
    assert limits.ask(1, START) is None
    refused = limits.ask(1, START)
    assert refused is not None
    assert refused.what == "day"
    assert refused.wait == pytest.approx(DAY - 8 * 3600)  # START is eight o'clock
    assert limits.ask(1, START + refused.wait) is None


def test_headers_say_what_is_left_and_when_all_of_it_is_back() -> None:
    limits = Limits(requests_per_minute=600, tokens_per_minute=6000)
    assert limits.ask(1500, START) is None
    assert limits.headers(START) == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert Limits().headers(START) == {}


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (7.5, "7.5s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
        (86.4, "1m26.4s"),
        (24_367, "6h46m7s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, written: str) -> None:
    assert go_duration(seconds) == written
