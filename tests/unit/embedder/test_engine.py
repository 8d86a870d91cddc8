"""The request engine packs, tries again, halves, learns, stops; a text ends with a vector or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest

from vecmill.core.clock import now
from vecmill.core.errors import (
    AuthenticationError,
    BadReplyError,
    BudgetReachedError,
    InputError,
    ProviderError,
    QuotaExhaustedError,
    RateLimitError,
    RefusedError,
    UnavailableError,
)
from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import InputType, Usage
from vecmill.embedder.budget import Budget
from vecmill.embedder.engine import Bought, Engine, apportion
from vecmill.embedder.limits import Limiter
from vecmill.models.base import Advance, Encoded, Endpoint, ModelInfo, Reply, no_advance
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider

Script = Callable[[int, tuple[str, ...]], ProviderError | None]


@dataclass(slots=True)
class Hosted(FakeProvider):
    """A hosted model whose requests go wrong as a script says: (number, texts) -> error."""

    script: Script = lambda number, texts: None
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("0" * 32, "fake:hash"))
    billed: int = 0
    remembered: dict[str, int] = field(default_factory=dict)

    @property
    def info(self) -> ModelInfo:
        known = {name: value for name, value in self.remembered.items() if value is not None}
        return replace(FakeProvider.info.fget(self), hosted=True, **known)  # type: ignore[attr-defined]  # a property

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        number = len(self.calls)
        error = self.script(number, encoded.texts)
        if error is not None:
            self.calls.append(encoded.texts)
            raise error
        reply = await FakeProvider.embed(self, encoded)
        self.billed += reply.usage.tokens
        return reply

    async def learn(self) -> Reply | None:
        return None

    def remember(self, **limits: int | None) -> None:
        self.remembered.update({name: value for name, value in limits.items() if value is not None})

    def varied(self, *, user: str | None = None, deployment: str | None = None) -> Hosted:
        return self


def embed(
    texts: list[str], script: Script | None = None, *, budget: Budget | None = None, **provider: Any
) -> tuple[Bought, Hosted]:
    model = Hosted(**({"script": script} if script else {}), **{"max_inputs": 8, **provider})

    async def go() -> Bought:
        engine = Engine(model, Limiter(model.endpoint, now=now), budget or Budget(), random=Random(7))
        bought = Bought.nothing(len(texts), model.dimensions)
        await engine.embed(model.encode(texts, input_type=InputType.DOCUMENT), into=bought)
        assert engine._waiting == 0
        return bought

    return run_virtual(go()), model


def words(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


def assert_right(bought: Bought, model: Hosted, texts: list[str]) -> None:
    """Every text has its own vector or an error, and the tokens add up."""
    expected = model.vectors(texts)
    for at in range(len(texts)):
        assert bought.done[at] != (at in bought.errors)
        if bought.done[at]:
            assert np.array_equal(bought.vectors[at], expected[at])
    assert int(bought.tokens.sum()) == bought.usage.tokens == model.billed


def test_texts_are_packed_and_answered_in_order() -> None:
    bought, model = embed(words(20))
    assert [len(call) for call in model.calls] == [8, 8, 4]
    assert_right(bought, model, words(20))
    assert bought.usage.requests == 3


def test_token_limits_cut_requests() -> None:
    bought, model = embed(words(9), max_request_tokens=7)
    assert [len(call) for call in model.calls] == [2, 2, 2, 2, 1]
    assert_right(bought, model, words(9))


def test_it_says_when_the_requests_of_a_call_have_left() -> None:
    model, heard = Hosted(max_inputs=8), []

    async def go() -> None:
        engine = Engine(model, Limiter(model.endpoint, now=now), random=Random(7))
        work = model.encode(words(20), input_type=InputType.DOCUMENT)
        await engine.embed(work, into=Bought.nothing(20, model.dimensions), left=heard.append)

    run_virtual(go())
    assert heard == [2, 1, 0]


def test_one_poison_text_costs_twice_the_logarithm() -> None:
    texts = words(64)
    texts[37] = "poison"

    def refuse(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        return RefusedError("no", reason="input", code="bad") if "poison" in asked else None

    bought, model = embed(texts, refuse, max_inputs=64)
    assert_right(bought, model, texts)
    assert set(bought.errors) == {37}
    assert len(model.calls) <= 1 + 2 * 6


def test_a_model_that_refuses_everything_is_not_asked_for_every_text() -> None:
    bought, model = embed(words(512), lambda n, t: RefusedError("no", reason="input"), max_inputs=512)
    assert isinstance(bought.stopped, RefusedError)
    assert len(model.calls) < 20


def test_texts_refused_one_after_another_do_not_stop_those_that_are_taken() -> None:
    texts = [*(f"poison {i}" for i in range(6)), "fine", "also fine"]

    def refuse(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        return RefusedError("no", reason="input") if any("poison" in text for text in asked) else None

    bought, _ = embed(texts, refuse)
    assert bought.stopped is None
    assert (sorted(bought.errors), bought.done.tolist()[6:]) == ([*range(6)], [True, True])
    assert int(bought.tokens.sum()) == bought.usage.tokens == 3


def test_a_refused_request_stops_at_once() -> None:
    bought, model = embed(words(8), lambda n, t: RefusedError("no such model", reason="request"))
    assert len(model.calls) == 1
    assert isinstance(bought.stopped, RefusedError)


@pytest.mark.parametrize("named", [True, False])
def test_a_smaller_limit_of_texts_is_learned(named: bool) -> None:
    def too_many(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        limit = 16 if named else None
        return RefusedError("too many", reason="max_inputs", limit=limit) if len(asked) > 16 else None

    bought, model = embed(words(256), too_many, max_inputs=128)
    assert_right(bought, model, words(256))
    assert model.remembered["max_inputs"] == 16
    refused = sum(len(call) > 16 for call in model.calls)
    assert refused <= (2 if named else 4)  # both first requests were on their way


def test_too_many_tokens_are_packed_anew() -> None:
    def too_many(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        over = sum(len(text.split()) for text in asked) > 12
        return RefusedError("max 12 tokens", reason="max_request_tokens", limit=12) if over else None

    bought, model = embed(words(16), too_many)
    assert_right(bought, model, words(16))
    assert model.remembered["max_request_tokens"] == 12


def test_too_large_a_body_is_halved_and_remembered() -> None:
    def too_large(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        over = sum(map(len, asked)) > 1500
        return RefusedError("too large", reason="max_bytes", status=413) if over else None

    texts = [f"{i} " + "x" * 400 for i in range(8)]
    bought, model = embed(texts, too_large)
    assert_right(bought, model, texts)
    assert model.remembered["max_request_bytes"] > 0


def test_faults_that_pass_are_tried_again() -> None:
    faults: list[ProviderError] = [
        UnavailableError("503", status=503),
        BadReplyError("wrong count", retryable=True),
        RateLimitError("429", retry_after=2.0),
        UnavailableError("reset"),
    ]
    bought, model = embed(words(4), lambda n, t: faults[n] if n < len(faults) else None)
    assert_right(bought, model, words(4))
    assert bought.usage.requests == 5
    assert bought.usage.unsure_tokens == 2 * 12  # a wrong reply and a lost one may have been billed


def test_nobody_there_stops_instead_of_failing_every_row() -> None:
    bought, _ = embed(words(40), lambda n, t: UnavailableError("refused"))
    assert isinstance(bought.stopped, UnavailableError)
    assert not bought.errors
    assert bought.stopped.attempts == 8


def test_a_text_that_breaks_the_server_fails_alone() -> None:
    texts = words(16)
    texts[5] = "crash"

    def crash(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        return UnavailableError("500", status=500) if "crash" in asked else None

    bought, model = embed(texts, crash, max_inputs=16)
    assert set(bought.errors) == {5}
    model.billed -= sum(len(text.split()) for text in PROBE_TEXTS)  # asked whether it takes anything
    assert_right(bought, model, texts)


def test_a_model_whose_replies_are_always_wrong_is_not_asked_again_and_again() -> None:
    def wrong(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        if number % 2:
            return UnavailableError("503", status=503)
        return BadReplyError("8 dimensions instead of 1536", retryable=True)

    bought, model = embed(words(512), wrong, max_inputs=512)
    assert isinstance(bought.stopped, BadReplyError)  # and not the 503, which hides the cause
    assert len(model.calls) <= 10


def test_an_address_never_reached_is_given_up_soon() -> None:
    bought, model = embed(words(4), lambda n, t: UnavailableError("refused", code="refused"))
    assert isinstance(bought.stopped, UnavailableError)
    assert len(model.calls) == 3
    assert bought.usage.unsure_tokens == 0


def test_an_endless_rate_limit_ends() -> None:
    bought, _ = embed(words(4), lambda n, t: RateLimitError("429", retry_after=20.0))
    assert isinstance(bought.stopped, RateLimitError | QuotaExhaustedError)


def test_a_used_up_quota_stops_and_keeps_what_was_paid() -> None:
    def spent(number: int, asked: tuple[str, ...]) -> ProviderError | None:
        return QuotaExhaustedError("quota", until=1.0) if number >= 2 else None

    bought, model = embed(words(64), spent)
    assert isinstance(bought.stopped, QuotaExhaustedError)
    assert int(bought.done.sum()) == 16
    assert int(bought.tokens.sum()) == model.billed


def test_a_refused_key_stops_at_once() -> None:
    bought, model = embed(words(8), lambda n, t: AuthenticationError("401", status=401))
    assert isinstance(bought.stopped, AuthenticationError)
    assert len(model.calls) == 1


def test_a_budget_is_never_passed() -> None:
    budget = Budget(max_usd=0.000050, usd_per_million_tokens=1.0)  # 50 tokens, 24 a request
    bought, model = embed(words(64), budget=budget, usd_per_million_tokens=1.0)
    assert isinstance(bought.stopped, BudgetReachedError)
    assert model.billed == 48
    assert int(bought.done.sum()) == 16


@pytest.mark.parametrize("steps", range(12))
def test_a_call_cancelled_at_any_moment_gives_money_and_place_back(steps: int) -> None:
    model = Hosted(max_inputs=2, usd_per_million_tokens=1.0)

    async def go() -> tuple[int, float, int]:
        limiter, budget = Limiter(model.endpoint, now=now), Budget(1.0, 1.0)
        engine = Engine(model, limiter, budget, random=Random(7))
        work = model.encode(words(16), input_type=InputType.DOCUMENT)
        call = asyncio.create_task(engine.embed(work, into=Bought.nothing(16, model.dimensions)))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        return limiter.in_flight, budget._holders, engine._waiting

    assert run_virtual(go()) == (0, 0, 0)


def test_a_cap_below_one_request_buys_what_it_can_in_one() -> None:
    budget = Budget(max_usd=0.000010, usd_per_million_tokens=1.0)  # 10 tokens, 24 a request
    bought, model = embed(words(64), budget=budget, usd_per_million_tokens=1.0)
    assert isinstance(bought.stopped, BudgetReachedError)
    assert [len(call) for call in model.calls] == [3]
    assert model.billed == 9


def test_what_is_left_is_not_known_while_requests_are_on_their_way() -> None:
    budget = Budget(max_usd=0.000050, usd_per_million_tokens=1.0)
    assert budget.tokens_left == 50
    held = budget.hold_now(30)
    assert budget.tokens_left is None
    budget.settle(held, None)
    assert budget.tokens_left == 50


@pytest.mark.parametrize("apart", [True, False])
def test_what_stops_one_call_stops_others_only_where_they_are_of_one_job(apart: bool) -> None:
    model = Hosted(
        script=lambda number, texts: RefusedError("no", reason="request") if "bad" in texts else None,
        endpoint=Endpoint("0" * 32, "fake:hash", max_concurrency=1),
    )

    async def go() -> list[bool]:
        engine = Engine(model, Limiter(model.endpoint, now=now), random=Random(7), apart=apart)

        async def ask(texts: list[str]) -> bool:
            bought = Bought.nothing(len(texts), model.dimensions)
            await engine.embed(model.encode(texts, input_type=InputType.DOCUMENT), into=bought)
            return bought.stopped is None and bool(bought.done.all())

        return await asyncio.gather(ask(["bad"]), *(ask([text]) for text in words(3)))

    assert run_virtual(go()) == [False, apart, apart, apart]


def test_a_budget_needs_a_price() -> None:
    with pytest.raises(InputError, match="price is not known"):
        Budget(max_usd=1.0, usd_per_million_tokens=None)


def test_shares_add_up() -> None:
    assert apportion(10, np.array([1, 1, 1])).tolist() == [4, 3, 3]
    assert apportion(7, np.array([3, 4])).tolist() == [3, 4]
    assert apportion(5, np.array([0, 0])).tolist() == [3, 2]
    assert apportion(0, np.array([2, 2])).tolist() == [0, 0]
    assert Usage(unsure_tokens=2) + Usage(unsure_tokens=3) == Usage(unsure_tokens=5)
