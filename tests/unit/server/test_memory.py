"""Who makes room for whom, and for how long a model stays."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vecmill.server import memory
from vecmill.server.errors import Refusal
from vecmill.server.memory import Room
from vecmill.server.options import ModelSource
from vecmill.server.versions import Model
from vecmill.testing.clock import run_virtual


def model(name: str, *, loaded: bool = False, folder: Path | None = Path("m"), **more: Any) -> Model:
    found = Model(ModelSource(name, "m", pinned=False), folder, named=False, **more)
    if loaded:
        found.current = SimpleNamespace(cost_bytes=10)  # type: ignore[assignment]
    return found


class Shelf:
    """A room for one model of ten bytes, and what went from it."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.room = Room(10, self.evict)

    def evict(self, one: Model) -> None:
        self.gone.append(one.name)
        one.current, one.evicted = None, True


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_model_that_was_just_brought_back_stays_for_its_time() -> None:
    async def work() -> None:
        shelf, a, b = Shelf(), model("a", loaded=True), model("b", evicted=True)
        begun = now()
        a.stays = begun + 4.0
        await shelf.room.make(b, 10, [a, b])
        assert shelf.gone == ["a"]
        assert 4.0 <= now() - begun < 4.1

    run_virtual(work())


def test_who_waits_in_vain_is_told_when_the_other_may_go() -> None:
    async def work() -> None:
        shelf, a, b = Shelf(), model("a", loaded=True), model("b", evicted=True)
        a.stays = now() + 29.5
        with pytest.raises(Refusal) as raised:
            await shelf.room.make(b, 10, [a, b])
        assert (raised.value.status, raised.value.code) == (503, "model_loading")
        assert dict(raised.value.headers)["retry-after"] == "20"
        assert not shelf.gone

    run_virtual(work())


def test_those_behind_one_who_waits_wait_no_longer() -> None:
    async def work() -> None:
        shelf, a = Shelf(), model("a", loaded=True)
        a.stays = now() + 60.0
        others = [model(name, evicted=True) for name in "bcd"]
        begun = now()
        found = await asyncio.gather(
            *(shelf.room.make(one, 10, [a, *others]) for one in others), return_exceptions=True
        )
        assert [type(one) for one in found] == [Refusal] * 3
        assert now() - begun < memory.WAIT_SECONDS + 1

    run_virtual(work())


def test_what_still_closes_is_counted_and_makes_no_other_go() -> None:
    async def work() -> None:
        shelf, a, b = Shelf(), model("a", loaded=True), model("b", evicted=True)
        shelf.room = Room(20, shelf.evict)
        shelf.room.leaving(10)
        with pytest.raises(Refusal):
            await shelf.room.make(b, 10, [a, b])
        assert not shelf.gone
        shelf.room.left(10)
        await shelf.room.make(b, 10, [a, b])
        assert not shelf.gone

    run_virtual(work())


def test_a_model_that_could_not_come_back_does_not_go() -> None:
    async def work() -> None:
        shelf, a, b = Shelf(), model("a", loaded=True, folder=None), model("b", evicted=True)
        with pytest.raises(Refusal):
            await shelf.room.make(b, 10, [a, b])
        assert not shelf.gone

    run_virtual(work())


def test_models_that_take_turns_all_the_time_are_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        shelf, one = Shelf(), model("a", evicted=True)
        for _ in range(100):  # 100 s
            await shelf.room.make(one, 10, [one])
            shelf.room.done(one)
            await asyncio.sleep(1.0)
        one.evicted = False  # loaded for the first time, as at the start
        for _ in range(100):
            await shelf.room.make(one, 10, [one])
            shelf.room.done(one)

    caplog.set_level(logging.WARNING)
    run_virtual(work())
    told = [record for record in caplog.records if "take each other's memory" in record.message]
    assert len(told) == 2
