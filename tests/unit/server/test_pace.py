"""The measured rate, against bursts, small batches and stalls."""

from __future__ import annotations

import pytest

from vecmill.server.pace import ENOUGH, Flow, Pace


def test_nothing_is_said_before_enough_was_measured() -> None:
    pace = Pace(1)
    pace.measured(ENOUGH - 1, 1.0)
    assert pace.rate is None
    pace.measured(1, 0.1)
    assert pace.rate is not None


def test_rate_is_that_of_full_batches_whatever_small_ones_cost() -> None:
    pace = Pace(1)
    for _ in range(100):
        pace.measured(8, 0.004)  # 2,000 tokens/s
    assert pace.rate is None
    for _ in range(3):
        pace.measured(4096, 0.4096)  # 10,000 tokens/s
    for _ in range(100_000):
        pace.measured(8, 0.004)
    assert pace.rate == pytest.approx(10_000, rel=0.1)


def test_one_stall_hardly_counts() -> None:
    pace = Pace(1)
    for _ in range(50):
        pace.measured(2000, 0.2)
    pace.measured(2000, 60.0)
    assert pace.rate is not None
    assert pace.rate > 9_000


def test_lasting_change_is_followed() -> None:
    pace = Pace(1)
    for _ in range(50):
        pace.measured(2000, 0.2)
    for _ in range(40):
        pace.measured(2000, 2.0)
    assert pace.rate == pytest.approx(1000, rel=0.05)


def test_batches_side_by_side_add_up() -> None:
    pace = Pace(8)
    pace.measured(2000, 1.0)
    assert pace.rate == pytest.approx(16_000)


def test_what_leaves_is_counted_by_the_time_it_waits_and_not_by_what_is_on_its_way() -> None:
    flow = Flow()
    for _ in range(8):
        flow.measured(10_000, 0.0)  # at first they leave at once
    assert flow.rate is None
    for _ in range(60):
        flow.measured(10_000, 0.6)
    assert flow.rate == pytest.approx(10_000 / 0.6, rel=0.1)


def test_a_pause_of_the_provider_is_not_taken_for_its_rate() -> None:
    flow = Flow()
    for _ in range(40):
        flow.measured(10_000, 0.5)
    flow.measured(10_000, 60.0)
    assert flow.rate is not None
    assert flow.rate > 15_000
