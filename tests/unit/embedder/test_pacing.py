"""The arithmetic of limits per minute: spacing, the last minute, what others use, and what a 429 does."""

from __future__ import annotations

import pytest

from vecmill.embedder.pacing import PACE, Caps, Grant, State

NOW = 1_800_000_000.0
CAPS = Caps(600.0)


def _reserve(state: State, now: float, tokens: int = 1, caps: Caps = CAPS) -> Grant:
    return state.reserve([tokens], caps, now=now, horizon=0)[0]


def test_grants_are_evenly_spaced() -> None:
    state = State()
    moments = [_reserve(state, NOW).at - NOW for _ in range(5)]
    step = 60 / (600 * PACE)
    assert moments == pytest.approx([0, 0, 0, max(3 * step - 0.25, 0), 4 * step - 0.25], abs=1e-3)


def test_nothing_known_waits_for_nothing() -> None:
    state = State()
    assert [grant.at for grant in state.reserve([10**6] * 50, Caps(), now=NOW, horizon=0)] == [NOW] * 50


def test_only_what_may_go_soon_is_granted_in_one_go() -> None:
    state = State()
    assert len(state.reserve([1] * 50, Caps(600.0), now=NOW, horizon=1.0)) == 13
    assert len(state.reserve([1] * 50, Caps(600.0), now=NOW, horizon=1.0)) == 1


def test_the_limit_that_binds_decides() -> None:
    state = State()
    caps = Caps(60_000.0, 6000.0)
    for _ in range(20):
        last = _reserve(state, NOW, 100, caps).at
    assert last - NOW == pytest.approx(19 * 100 / (6000 * PACE) * 60 - 0.25, rel=0.01)


def test_large_requests_leave_room_within_every_minute() -> None:
    state, caps = State(), Caps(None, 10_000.0)
    moments = [_reserve(state, NOW, 3000, caps).at - NOW for _ in range(7)]
    assert moments[3] >= 60
    assert moments[6] >= moments[3] + 60


def test_a_request_above_the_whole_limit_goes_alone() -> None:
    state, caps = State(), Caps(None, 1000.0)
    _reserve(state, NOW, 10, caps)
    alone = _reserve(state, NOW, 5000, caps).at
    assert 60 < alone - NOW < 63
    assert _reserve(state, alone, 10, caps).at - alone > 300 - 1


def _drain(state: State, now: float, *, remaining: int, reset: float, grant: Grant) -> None:
    state.requests.observe(limit=600, remaining=remaining, reset=reset, seen=grant.requests, now=now)


def test_use_that_is_not_ours_slows_us_down_and_is_forgotten() -> None:
    state = State()
    grant = _reserve(state, NOW)
    state.requests.observe(limit=600, remaining=200, reset=55.0, seen=grant.requests, now=NOW)
    # 400 are gone and one of them is ours: others use nearly 400 a minute
    assert state.requests.rival == pytest.approx(400 - 1 - 18 - 2)
    slow = [_reserve(state, NOW).at for _ in range(20)]
    assert slow[-1] - slow[-2] == pytest.approx(60 / (221 * PACE), rel=0.1)
    later = [_reserve(state, NOW + 900).at for _ in range(20)]
    assert later[-1] - later[-2] == pytest.approx(60 / (600 * PACE), rel=0.1)


def test_others_within_what_somebody_left_them_do_not_slow_us_down() -> None:
    state = State()
    grant = _reserve(state, NOW)
    state.requests.observe(limit=6000, remaining=4000, reset=30.0, seen=grant.requests, now=NOW)
    moments = [_reserve(state, NOW).at for _ in range(20)]
    assert moments[-1] - moments[-2] == pytest.approx(60 / (600 * PACE), rel=0.01)


def test_a_remainder_without_a_limit_is_held_against_the_limit_somebody_set() -> None:
    state = State()
    grant = _reserve(state, NOW)
    state.requests.observe(limit=None, remaining=200, reset=None, seen=grant.requests, now=NOW, cap=600)
    assert state.requests.limit is None
    assert state.requests.rival > 300


def test_our_own_use_is_no_rival() -> None:
    state, now = State(), NOW
    for i in range(300):
        grant = _reserve(state, now)
        now = grant.at
        _drain(state, now + 0.1, remaining=600 - i - 1, reset=60.0, grant=grant)
    assert state.requests.rival == 0


def test_a_bucket_that_others_empty_is_left_to_fill() -> None:
    state = State()
    grant = _reserve(state, NOW)
    _drain(state, NOW, remaining=90, reset=51.0, grant=grant)
    assert state.requests.kind == "bucket"
    moments = [_reserve(state, NOW).at for _ in range(12)]
    assert moments[-1] - moments[-2] > 1.5 * 60 / 600


def test_a_minute_that_is_used_up_is_waited_for() -> None:
    state = State()
    for second in range(0, 30, 3):
        grant = _reserve(state, NOW + second)
        _drain(state, NOW + second, remaining=400 - 40 * second // 3, reset=50.0 - second, grant=grant)
    assert state.requests.kind == "fixed"
    grant = _reserve(state, NOW + 31)
    _drain(state, NOW + 31, remaining=0, reset=19.0, grant=grant)
    assert _reserve(state, NOW + 31).at >= NOW + 50


def test_an_older_reply_does_not_replace_a_newer_remainder() -> None:
    state = State()
    first = _reserve(state, NOW)
    second = _reserve(state, NOW + 5)
    _drain(state, NOW + 6, remaining=10, reset=59.0, grant=second)
    allowance = state.requests.allowance
    _drain(state, NOW + 7, remaining=500, reset=1.0, grant=first)
    assert state.requests.allowance == allowance


def test_a_429_lowers_the_flow_and_time_raises_it_again() -> None:
    state = State()
    state.slow_down(NOW)
    assert state.flow(NOW) == pytest.approx(0.95)
    state.slow_down(NOW + 20)
    assert state.flow(NOW + 20) == pytest.approx(0.85 * (0.95 + 0.05 / 3), rel=1e-6)
    assert state.flow(NOW + 600) == 1.0


def test_endless_429s_leave_a_little() -> None:
    state = State()
    for i in range(100):
        state.slow_down(NOW + i)
    assert state.flow(NOW + 100) >= 0.05


def test_a_state_from_a_clock_that_was_set_back_is_begun_anew() -> None:
    state = State()
    _reserve(state, NOW + 86_400)
    state.requests.limit = 300.0
    state.forget_wrong_moments(NOW, longest_pause=600)
    assert state == State(requests=type(state.requests)(limit=300.0))


def test_a_pause_longer_than_any_is_begun_anew() -> None:
    state = State(paused_until=NOW + 10**6, saved_at=NOW)
    state.forget_wrong_moments(NOW, longest_pause=600)
    assert state.paused_until == 0


def test_a_usual_state_is_kept() -> None:
    state = State()
    _reserve(state, NOW)
    state.slow_down(NOW)
    state.paused_until = NOW + 599
    before = state.requests.total, state.factor, state.paused_until, state.last
    state.forget_wrong_moments(NOW + 1, longest_pause=600)
    assert (state.requests.total, state.factor, state.paused_until, state.last) == before
