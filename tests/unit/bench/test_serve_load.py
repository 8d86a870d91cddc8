from __future__ import annotations

import asyncio

import numpy as np
import pytest

from vecmill.bench.serve_load import Ask, Outcome, Run, arrivals, closed_loop, open_loop
from vecmill.bench.serve_report import Latency
from vecmill.core.errors import InputError
from vecmill.testing.clock import run_virtual

GOOD = Outcome(200, 5, 384)


def answering(seconds: float) -> Ask:
    async def ask(at: int) -> Outcome:
        await asyncio.sleep(seconds)
        return GOOD

    return ask


def stalling(begin: float, end: float, *, otherwise: float = 0.01) -> Ask:
    """Answer after `otherwise` seconds, but nothing between `begin` and `end`."""

    async def ask(at: int) -> Outcome:
        now = asyncio.get_running_loop().time()
        stalled = max(end - now, 0.0) if now >= begin else 0.0
        await asyncio.sleep(stalled + otherwise)
        return GOOD

    return ask


def latencies(run: Run) -> list[float]:
    return [sample.latency for sample in run.samples]


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times = arrivals(20_000, 50.0, seed=3)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert np.all(gaps >= 0.0)
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)  # exponential: as much as its mean
    np.testing.assert_array_equal(times, arrivals(20_000, 50.0, seed=3))
    assert not np.array_equal(times, arrivals(20_000, 50.0, seed=4))


def test_an_infinite_rate_sends_all_at_once() -> None:
    np.testing.assert_array_equal(arrivals(3, float("inf")), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_sends_nothing_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="above 0, or inf"):
        arrivals(3, rate)


def test_requests_of_the_open_loop_leave_at_their_times_whatever_became_of_others() -> None:
    times = arrivals(500, 100.0, seed=1)
    run = run_virtual(open_loop(answering(0.5), times, 500))
    np.testing.assert_allclose([sample.sent for sample in run.samples], times, atol=1e-9)
    np.testing.assert_allclose(latencies(run), 0.5, atol=1e-9)
    assert run.seconds == pytest.approx(times[-1] + 0.5)
    assert [sample.request for sample in run.samples] == list(range(500))


def test_a_stall_of_a_second_shows_in_the_percentiles_of_the_open_loop() -> None:
    times = arrivals(1000, 100.0, seed=2)  # ten seconds
    found = Latency.of(latencies(run_virtual(open_loop(stalling(4.0, 5.0), times, 1000))))
    assert found.median == pytest.approx(10.0, abs=0.01)
    assert found.p99 > 850.0  # a tenth of the requests came while it stood still
    assert found.p95 > 400.0
    assert found.max <= 1010.1


def test_the_closed_loop_hides_the_stall_and_says_service_time() -> None:
    run = run_virtual(closed_loop(stalling(4.0, 5.0), 1, 1000, total=1000))
    found = Latency.of([sample.service for sample in run.samples])
    assert found.p99 == pytest.approx(10.0, abs=0.01)
    assert found.max > 900.0  # one request alone
    assert all(sample.intended == sample.sent for sample in run.samples)


def test_the_closed_loop_never_has_more_requests_on_their_way_than_clients() -> None:
    busy, most = 0, 0

    async def ask(at: int) -> Outcome:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.01 * (1 + at % 3))
        busy -= 1
        return GOOD

    run = run_virtual(closed_loop(ask, 7, 50, total=120))
    assert most == 7
    assert len(run.samples) == 120
    assert sorted(sample.request for sample in run.samples) == sorted(n % 50 for n in range(120))


def test_the_closed_loop_ends_with_its_duration() -> None:
    run = run_virtual(closed_loop(answering(0.1), 4, 3, duration=2.0))
    assert max(sample.sent for sample in run.samples) < 2.0
    assert len(run.samples) == pytest.approx(80, abs=4)


def test_a_loop_that_is_blocked_is_seen_to_be_late() -> None:
    import time

    async def ask(at: int) -> Outcome:
        time.sleep(0.08)  # what a client must not do
        return GOOD

    run = asyncio.run(open_loop(ask, arrivals(3, float("inf")), 3))
    assert run.lags.max() > 0.05
    last = run.samples[-1]
    assert last.latency > 0.23  # from the moment it should have left, not from when this client came to it
    assert last.latency > last.service + 0.15
