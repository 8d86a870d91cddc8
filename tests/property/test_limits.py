"""Whatever is asked for, and whenever: grants stay within the limits, in order, and lose nothing."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.embedder.limit_store import decode_state, encode_state
from vecmill.embedder.pacing import Caps, Grant, State

START = 1_800_000_000.0

LIMITS = st.one_of(st.none(), st.integers(1, 20_000))
COSTS = st.one_of(st.integers(1, 50), st.integers(1, 5_000))
ASKED = st.lists(
    st.tuples(st.floats(0, 20, allow_nan=False), st.lists(COSTS, min_size=1, max_size=6)),
    min_size=1,
    max_size=40,
)


def _grants(state: State, asked: list[tuple[float, list[int]]], caps: Caps) -> list[Grant]:
    """Ask again and again, a while apart and never before the last grant went, as a limiter does."""
    grants: list[Grant] = []
    now = START
    for pause, costs in asked:
        now = max(now, grants[-1].at if grants else now) + pause
        waiting = list(costs)
        while waiting:
            got = state.reserve(waiting, caps, now=now, horizon=0.1)
            assert got
            del waiting[: len(got)]
            grants.extend(got)
            now = max(now, got[-1].at)
    return grants


def _most_in_a_minute(moments: list[float], amounts: list[float], whole: float) -> float:
    """Return the most within 60 seconds, counting what is larger than the whole limit as the limit."""
    amounts = [min(amount, whole) for amount in amounts]
    most, first, total = 0.0, 0, 0.0
    for last, at in enumerate(moments):
        total += amounts[last]
        while moments[first] <= at - 60:
            total -= amounts[first]
            first += 1
        most = max(most, total)
    return most


@settings(deadline=None, max_examples=150)
@given(asked=ASKED, requests=LIMITS, tokens=LIMITS)
def test_no_minute_holds_more_than_the_limits(
    asked: list[tuple[float, list[int]]], requests: int | None, tokens: int | None
) -> None:
    caps = Caps(requests, tokens)
    grants = _grants(State(), asked, caps)

    moments = [grant.at for grant in grants]
    assert moments == sorted(moments)
    assert len(grants) == sum(len(costs) for _, costs in asked)
    if requests is not None:
        assert _most_in_a_minute(moments, [1.0] * len(grants), requests) <= requests
    if tokens is not None:
        assert _most_in_a_minute(moments, [grant.tokens.amount for grant in grants], tokens) <= tokens + 1e-6


@settings(deadline=None, max_examples=100)
@given(asked=ASKED, requests=LIMITS, tokens=LIMITS)
def test_a_state_written_and_read_goes_on_the_same(
    asked: list[tuple[float, list[int]]], requests: int | None, tokens: int | None
) -> None:
    caps = Caps(requests, tokens)
    state = State()
    _grants(state, asked, caps)

    again = _copy(state)

    assert again == state
    now = state.last
    assert again.reserve([7], caps, now=now, horizon=0) == state.reserve([7], caps, now=now, horizon=0)


@settings(deadline=None, max_examples=100)
@given(asked=ASKED, requests=st.integers(1, 20_000), tokens=st.integers(1, 20_000), cost=COSTS)
def test_a_grant_given_back_at_once_leaves_no_trace(
    asked: list[tuple[float, list[int]]], requests: int, tokens: int, cost: int
) -> None:
    caps = Caps(requests, tokens)
    state = State()
    _grants(state, asked, caps)
    now = state.last
    expected = _copy(state).reserve([cost], caps, now=now, horizon=0)[0].at

    for grant in state.reserve([cost], caps, now=now, horizon=0):
        state.give_back(grant, caps, now=now)

    assert all(amount >= 0 for _, amount in (*state.requests.log, *state.tokens.log))
    assert abs(state.reserve([cost], caps, now=now, horizon=0)[0].at - expected) < 1e-3


@settings(deadline=None, max_examples=100)
@given(
    limit=st.one_of(st.none(), st.integers(-5, 10**12)),
    remaining=st.one_of(st.none(), st.integers(-5, 10**12)),
    reset=st.one_of(st.none(), st.floats(-10, 1e9, allow_nan=False)),
    rounds=st.integers(1, 30),
)
def test_whatever_replies_say_requests_go_on(
    limit: int | None, remaining: int | None, reset: float | None, rounds: int
) -> None:
    state, caps, now = State(), Caps(600.0, None), START
    for _ in range(rounds):
        grant = state.reserve([10], caps, now=now, horizon=0)[0]
        now = grant.at + 0.3
        state.requests.observe(limit=limit, remaining=remaining, reset=reset, seen=grant.requests, now=now)
        in_force, _ = state.limits(caps)
        assert in_force is not None
        assert 0 < in_force <= 600
    slowest = max(60.0, 60.0 / (in_force * 0.05))
    assert state.reserve([10], caps, now=now, horizon=0)[0].at <= now + 80 + slowest * 1.1


def _copy(state: State) -> State:
    return decode_state(encode_state(state))


def test_a_state_is_small() -> None:
    state, caps = State(), Caps(6000.0, 1_000_000.0)
    _grants(state, [(0.01, [10])] * 20_000, caps)
    assert len(orjson.dumps(state)) < 10_000
