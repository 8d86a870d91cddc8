"""Calls at once: a text on its way is shared, and what one call lost another gets for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import (
    BudgetReachedError,
    InputError,
    ProviderError,
    QuotaExhaustedError,
    RefusedError,
)
from vecmill.core.space import Manifest
from vecmill.core.types import InputType
from vecmill.embedder.cache.memory import MemoryCache
from vecmill.embedder.channel import Channel
from vecmill.embedder.embedder import AsyncEmbedder
from vecmill.embedder.engine import Engine
from vecmill.embedder.limits import Limiter
from vecmill.models.base import Advance, Encoded, Endpoint, ModelInfo, Reply, no_advance
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider

Script = Callable[[int, tuple[str, ...]], ProviderError | None]


@dataclass(slots=True)
class Hosted(FakeProvider):
    """A hosted model that takes a second for each request, one after another."""

    script: Script = lambda number, texts: None
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("1" * 32, "fake:hash", max_concurrency=1))

    @property
    def info(self) -> ModelInfo:
        return replace(FakeProvider.info.fget(self), hosted=True)  # type: ignore[attr-defined]  # a property

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        number = len(self.calls)
        await asyncio.sleep(1.0)
        error = self.script(number, encoded.texts)
        if error is not None:
            self.calls.append(encoded.texts)
            raise error
        return await FakeProvider.embed(self, encoded)

    async def learn(self) -> Reply | None:
        return None

    def remember(self, **limits: int | None) -> None:
        raise AssertionError(limits)

    def varied(self, *, user: str | None = None, deployment: str | None = None) -> Hosted:
        return self

    def sent(self) -> list[str]:
        return [text for call in self.calls for text in call]


def words(n: int) -> list[str]:
    return [f"text number {i}" for i in range(n)]


def poison(number: int, texts: tuple[str, ...]) -> ProviderError | None:
    return RefusedError("no", reason="input", code="bad") if "poison" in texts else None


def embedder(model: Hosted, **options: Any) -> AsyncEmbedder:
    return AsyncEmbedder(provider=model, cache=False, **options)


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.5, 2.5, 3.5])
def test_what_a_cancelled_call_did_not_fetch_another_call_gets_by_itself(moment: float) -> None:
    model = Hosted(max_inputs=2)

    async def go() -> np.ndarray:
        door = embedder(model)
        first = asyncio.create_task(door.embed(words(8)))
        await asyncio.sleep(moment)
        second = asyncio.create_task(door.embed(words(8)))
        await asyncio.sleep(0.2)
        first.cancel()
        return (await second).vectors

    assert np.array_equal(run_virtual(go()), model.vectors(words(8)))
    twice = len(model.sent()) - len(set(model.sent()))
    assert twice == 0  # a request torn on its way never reached this model's list


def test_a_text_of_another_calls_first_request_arrives_with_that_request() -> None:
    model = Hosted(max_inputs=2)

    async def go() -> tuple[float, Any]:
        door, loop = embedder(model), asyncio.get_running_loop()
        long = asyncio.create_task(door.embed(words(8)))
        await asyncio.sleep(0.5)
        started = loop.time()
        found = await door.embed(words(1))
        took = loop.time() - started
        await long
        return took, found.vectors

    took, vectors = run_virtual(go())
    assert took == pytest.approx(0.5)  # not the 3.5 seconds of the whole call
    assert np.array_equal(vectors, model.vectors(words(1)))
    assert len(model.sent()) == 8


def test_a_call_that_waits_for_one_the_quota_stopped_ends_with_the_quota() -> None:
    def used_up(number: int, texts: tuple[str, ...]) -> ProviderError | None:
        return QuotaExhaustedError("quota", until=1.0) if number >= 2 else None

    model = Hosted(max_inputs=2, script=used_up)

    async def go() -> list[Any]:
        door = embedder(model)
        return await asyncio.gather(door.embed(words(8)), door.embed(words(8)), return_exceptions=True)

    assert [type(error) for error in run_virtual(go())] == [QuotaExhaustedError] * 2


def test_a_text_refused_for_two_calls_at_once_is_named_by_the_position_each_gave_it() -> None:
    model = Hosted(script=poison)

    async def go() -> list[Any]:
        door = embedder(model)
        await door.embed("taken")
        calls = (door.embed(["a", "poison"]), door.embed(["b", "c", "d", "poison"]))
        return await asyncio.gather(*calls, return_exceptions=True)

    one, other = run_virtual(go())
    assert str(one).startswith("text 1: no")
    assert str(other).startswith("text 3: no")


@pytest.mark.parametrize(
    ("bad", "said"), [("", "text 1 is empty"), ("poison", "text 1: no"), ("w " * 300, "text 1 has")]
)
def test_errors_name_positions_of_the_whole_list_where_roles_differ(bad: str, said: str) -> None:
    model = Hosted(script=poison)

    async def go() -> None:
        door = embedder(model)
        await door.embed("taken")
        await door.embed(["a", bad, "b"], input_type=["query", "document", "query"])

    with pytest.raises((InputError, ProviderError), match=said):
        run_virtual(go())


def test_a_manifest_can_be_made_after_a_quota_is_over() -> None:
    model = Hosted(
        script=lambda number, texts: QuotaExhaustedError("quota", until=1.0) if number == 0 else None
    )

    async def go() -> Manifest:
        door = embedder(model)
        with pytest.raises(QuotaExhaustedError):
            await door.embed(words(4))
        return await door.manifest()

    assert run_virtual(go()).probe is not None


def test_what_may_be_spent_is_spent_once_on_several_event_loops() -> None:
    model = Hosted(usd_per_million_tokens=1.0)
    door = embedder(model, max_usd=0.000030)
    run_virtual(door.embed(words(8)))  # 24 tokens
    with pytest.raises(BudgetReachedError):
        run_virtual(door.embed([f"other words {i}" for i in range(8)]))


def test_the_probe_does_not_ride_with_texts_for_the_other_model_of_a_pair(tmp_path: Path) -> None:
    asked: list[str] = []

    class Paired(Hosted):
        def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
            variant = "hash-query" if input_type is InputType.QUERY else ""
            return replace(FakeProvider.encode(self, texts, input_type=input_type), variant=variant)

        async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
            asked.extend(f"{encoded.variant}:{text}" for text in encoded.texts)
            return await Hosted.embed(self, encoded)

    async def go() -> None:
        model = Paired()
        channel = Channel(model, Engine(model, Limiter(model.endpoint)), MemoryCache(), tmp_path)
        await channel.ride_probe()
        await channel.vectors(model.encode(["what"], input_type=InputType.QUERY))
        await channel.probe()

    run_virtual(go())
    assert [sent.partition(":")[0] for sent in asked] == ["hash-query", "", "", ""]


def test_a_quota_met_for_one_user_does_not_stop_later_calls() -> None:
    model = Hosted(
        script=lambda number, texts: QuotaExhaustedError("quota", until=1.0) if number == 0 else None
    )

    async def go() -> list[Any]:
        door = embedder(model)
        with pytest.raises(QuotaExhaustedError):
            await door.embed(words(4), user="one")
        return [await door.embed(words(4)), await door.embed(["another"], user="one")]

    assert [len(made) for made in run_virtual(go())] == [4, 1]
