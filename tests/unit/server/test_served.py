"""Versions under one name: which answers, what becomes of requests on the old one, and of memory."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, CorruptFileError, Error
from vecmill.core.types import InputType, LongText
from vecmill.embedder.channel import Channel
from vecmill.server import served as module
from vecmill.server.batcher import Batcher
from vecmill.server.errors import Refusal
from vecmill.server.loading import Served, estimated_bytes
from vecmill.server.options import ModelSource, Options
from vecmill.server.served import ServedModels, State
from vecmill.testing.fakes import FakeProvider

pytestmark = pytest.mark.asyncio
MIB = 1 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as whole at once: when they do is the repository's test."""
    monkeypatch.setattr(module, "_SECOND_LOOK", 0.0)
    monkeypatch.setattr("vecmill.server.repository.QUIET_SECONDS", -60.0)
    monkeypatch.setattr("vecmill.server.memory.STAY_SECONDS", 0.0)


class Fake(FakeProvider):
    """A model whose methods a test may replace."""


@dataclass
class Loads:
    """Opens versions without a model behind them, and notes what it opened."""

    settings: Settings
    done: list[tuple[str, str]] = field(default_factory=list)
    closed: list[tuple[str, str]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    running: int = 0

    async def __call__(
        self,
        source: ModelSource,
        version: str,
        folder: Path | None,
        options: Options,
        settings: Settings,
        **more: Any,
    ) -> Served:
        self.running += 1
        assert self.running == 1, "two loads at once"
        try:
            if self.gate is not None:
                await self.gate.wait()
            text = "" if folder is None else (folder / "config.json").read_text()
            if text == "bad":
                raise CorruptFileError(f"{folder} is damaged")
            if text == "odd":
                raise ZeroDivisionError("a text")
        finally:
            self.running -= 1
        provider = Fake(name=f"{source.name}-{version}")
        channel = Channel.to(provider, settings, cache=False)
        holder: list[Served] = []

        async def supply(work: Any) -> Any:
            return await holder[0].supply(work)

        served = Served(
            source.name,
            version,
            source,
            provider,
            channel,
            Batcher(supply, options.limits),
            LongText.ERROR,
            **more,
        )
        work = provider.encode(["probe"], input_type=InputType.DOCUMENT)
        served.probe = (await provider.embed(work)).vectors
        holder.append(served)
        self.done.append((source.name, version))
        close = provider.close

        async def noted() -> None:
            self.closed.append((source.name, version))
            await close()

        provider.close = noted  # type: ignore[method-assign]
        return served


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture
def loads(settings: Settings) -> Loads:
    return Loads(settings)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def put(folder: Path, content: str = "good", size: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(content)
    if size:
        (folder / "model.safetensors").write_bytes(bytes(size))
    return folder


async def models_of(loads: Loads, *, sources: tuple[ModelSource, ...] = (), **options: Any) -> ServedModels:
    given = Options(models=sources, poll_seconds=0, **options)
    models = ServedModels(given, loads.settings, load=loads)
    await models.start()
    while models.trouble() == "the models of the repository are being loaded":
        await asyncio.sleep(0.001)
    return models


async def version_of(models: ServedModels, name: str) -> str:
    async with models.lease(name) as served:
        return served.version


def states(models: ServedModels, name: str) -> dict[str, State]:
    return {state.version: state.state for state in models.states()[name]}


async def test_the_highest_version_answers(loads: Loads, root: Path) -> None:
    for number in ("1", "2", "10"):
        put(root / "m" / number)
    models = await models_of(loads, sources=(ModelSource("m", str(root / "m")),))
    assert await version_of(models, "m") == "10"
    assert loads.done == [("m", "10")]
    await models.close()
    assert loads.closed == [("m", "10")]


async def test_a_new_version_answers_after_a_reload_and_the_old_one_ends(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    assert not await models.reload()
    put(root / "m" / "2")
    assert await models.reload()
    assert await version_of(models, "m") == "2"
    await asyncio.sleep(0.01)
    assert states(models, "m") == {"1": State.END, "2": State.AVAILABLE}
    assert loads.closed == [("m", "1")]
    assert not await models.reload()
    await models.close()


async def test_a_reload_whose_client_left_goes_on_and_others_share_it(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    loads.gate = asyncio.Event()
    put(root / "m" / "2")
    impatient = asyncio.create_task(models.reload())
    patient = asyncio.create_task(models.reload())
    while not loads.running:
        await asyncio.sleep(0.001)
    impatient.cancel()
    await asyncio.wait([impatient])
    loads.gate.set()
    assert await patient
    assert await version_of(models, "m") == "2"
    assert loads.done == [("m", "1"), ("m", "2")]
    await models.close()


async def test_a_lease_keeps_its_version_until_it_ends(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    async with models.lease("m") as served:
        put(root / "m" / "2")
        await models.reload()
        assert served.version == "1"
        assert await version_of(models, "m") == "2"
        assert states(models, "m")["1"] is State.UNLOADING
        work = served.provider.encode(["still here"], input_type=InputType.DOCUMENT)
        found = await served.vectors(work, key="k", deadline=asyncio.get_running_loop().time() + 5)
        assert found.vectors.shape == (1, served.info.width)
        assert not loads.closed
    await asyncio.sleep(0.01)
    assert loads.closed == [("m", "1")]
    await models.close()


async def test_a_bad_version_leaves_the_old_one_and_says_why(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    put(root / "m" / "2", "bad")
    assert not await models.reload()
    assert await version_of(models, "m") == "1"
    (one, two) = models.states()["m"]
    assert (one.state, one.error) == (State.AVAILABLE, "")
    assert two.state is State.LOADING
    assert "is damaged" in two.error
    assert models.ready
    await models.close()


async def test_a_bad_version_is_tried_again_only_when_its_files_change(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    put(root / "m" / "2", "bad")
    tried = 0

    async def counted(*given: Any, **more: Any) -> Served:
        nonlocal tried
        tried += 1
        return await loads(*given, **more)

    models._load = counted
    for _ in range(3):
        await models.reload()
    assert tried == 1
    put(root / "m" / "2", "good")
    assert await models.reload()
    assert tried == 2
    assert await version_of(models, "m") == "2"
    await models.close()


async def test_files_changed_in_place_are_loaded_again_or_the_loaded_ones_stay(
    loads: Loads, root: Path
) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    put(root / "m" / "1", "bad")
    assert not await models.reload()
    assert await version_of(models, "m") == "1"
    assert "is damaged" in models.states()["m"][0].error
    put(root / "m" / "1", "better")
    assert await models.reload()
    assert loads.done == [("m", "1"), ("m", "1")]
    assert models.states()["m"][0].error == ""
    await models.close()


async def test_without_its_folder_the_next_lower_version_answers(loads: Loads, root: Path) -> None:
    for number in ("1", "2"):
        put(root / "m" / number)
    models = await models_of(loads, repository=root)
    shutil.rmtree(root / "m" / "2")
    assert await models.reload()
    assert await version_of(models, "m") == "1"
    await models.close()


async def test_one_look_that_misses_a_version_changes_nothing(loads: Loads, root: Path) -> None:
    for number in ("1", "2"):
        put(root / "m" / number)
    models = await models_of(loads, repository=root)
    (root / "m" / "2").rename(root / "m" / "aside")
    await models._look(switch=True)
    assert await version_of(models, "m") == "2"
    (root / "m" / "aside").rename(root / "m" / "2")
    await models._look(switch=True)
    await models._look(switch=True)
    assert loads.done == [("m", "2")]
    await models.close()


async def test_a_model_whose_folder_is_gone_is_unknown_after_its_requests(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    put(root / "other" / "1")
    models = await models_of(loads, repository=root)
    async with models.lease("m"):
        shutil.rmtree(root / "m")
        assert await models.reload()
        with pytest.raises(Refusal, match="does not exist") as raised:
            await version_of(models, "m")
        assert raised.value.status == 404
        assert not loads.closed
    await asyncio.sleep(0.01)
    assert loads.closed == [("m", "1")]
    assert models.ready
    await models.close()


async def test_a_model_whose_folder_vanishes_while_it_is_brought_back_is_let_go_of(
    loads: Loads, root: Path
) -> None:
    for name in ("a", "b"):
        put(root / name / "1", "good", 10 * MIB)
    models = await models_of(loads, repository=root, memory_bytes=COST)
    assert loads.closed == [("a", "1")]
    loads.gate = asyncio.Event()
    asked = asyncio.create_task(version_of(models, "a"))
    while not loads.running:
        await asyncio.sleep(0.001)
    (root / "a").rename(root / ".a")
    for _ in range(2):  # two looks that miss it, without what they would do with the others
        await models._search(switch=True)
    (root / ".a").rename(root / "a")  # the load itself finds its files
    loads.gate.set()
    with pytest.raises(Refusal, match="does not exist"):
        await asked
    await models.close()
    assert sorted(loads.closed) == sorted(loads.done)


async def test_a_failure_nobody_thought_of_stops_neither_other_models_nor_the_looks(
    loads: Loads, root: Path
) -> None:
    put(root / "a" / "1", "odd")
    put(root / "b" / "1")
    models = await models_of(loads, repository=root)
    assert await version_of(models, "b") == "1"
    (state,) = models.states()["a"]
    assert state.error == "ZeroDivisionError"
    await models.close()


async def test_models_of_the_repository_are_opened_as_the_operator_said(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root, common=ModelSource("", "", pooling="cls", streams=2))
    async with models.lease("m") as served:
        assert (served.source.name, served.source.pooling, served.source.streams) == ("m", "cls", 2)
    await models.close()


async def test_a_repository_that_cannot_be_reached_leaves_its_models(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    root.rename(root.with_name("unmounted"))
    for _ in range(3):
        await models.reload()
    assert await version_of(models, "m") == "1"
    await models.close()


async def test_a_new_model_of_the_repository_is_found(loads: Loads, root: Path) -> None:
    models = await models_of(loads, repository=root)
    put(root / "org" / "m" / "3")
    assert await models.reload()
    assert await version_of(models, "org/m") == "3"
    assert [listed.id for listed in models.listed()] == ["org/m"]
    await models.close()


async def test_a_named_model_that_cannot_be_loaded_stops_the_start(loads: Loads, root: Path) -> None:
    put(root / "m" / "1", "bad")
    with pytest.raises(CorruptFileError, match="is damaged"):
        await models_of(loads, sources=(ModelSource("m", str(root / "m")),))
    with pytest.raises(Error, match="holds no version"):
        await models_of(loads, sources=(ModelSource("m", str(root)),))


async def test_a_model_of_the_repository_that_cannot_be_loaded_answers_503(loads: Loads, root: Path) -> None:
    put(root / "bad" / "1", "bad")
    put(root / "good" / "1")
    models = await models_of(loads, repository=root)
    assert await version_of(models, "good") == "1"
    with pytest.raises(Refusal) as raised:
        await version_of(models, "bad")
    assert raised.value.status == 503
    for _ in range(3):  # however often it is looked at
        assert not models.ready
        assert models.trouble().startswith("model bad has no version that can be served: version 1: ")
        assert models.trouble().endswith(" is damaged")
        await models.reload()
    assert models.model_trouble("good") == ""
    assert models.model_trouble("nobody") is None
    put(root / "bad" / "2")
    await models.reload()
    assert models.ready
    await models.close()


async def test_a_model_with_the_name_of_a_named_one_stops_the_start_or_is_told_later(
    loads: Loads, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = (ModelSource("m", "minilm"),)
    put(root / "m" / "1")
    with pytest.raises(ConfigError, match="two models are called m: minilm"):
        await models_of(loads, sources=sources, repository=root)
    assert loads.done == []
    shutil.rmtree(root / "m")
    models = await models_of(loads, sources=sources, repository=root)
    assert caplog.text.count("no model in") == 1
    put(root / "m" / "1")
    for _ in range(3):
        await models.reload()
    assert caplog.text.count("model m of the repository is not served") == 1
    assert models.ready
    await models.close()


async def test_a_bad_model_that_comes_later_does_not_stop_the_others(loads: Loads, root: Path) -> None:
    put(root / "good" / "1")
    models = await models_of(loads, repository=root)
    put(root / "late" / "1", "bad")
    await models.reload()
    assert models.ready
    put(root / "slow" / "1")
    loads.gate = asyncio.Event()
    reload = asyncio.create_task(models.reload())
    while not loads.running:
        assert models.ready
        await asyncio.sleep(0.001)
    assert models.ready
    loads.gate.set()
    await reload
    assert await version_of(models, "slow") == "1"
    await models.close()


async def test_a_model_the_server_started_with_and_cannot_read_is_not_ready(
    loads: Loads, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root / "m" / "1")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as changed:
        changed.setattr(module.repository, "look", refuse)
        models = await models_of(loads, repository=root)
        await models.reload()
        assert models.trouble().endswith("its folder cannot be read: Permission denied")
    await models.reload()
    assert models.ready
    await models.close()


async def test_while_a_model_is_loaded_it_answers_503_and_says_when_to_come_back(
    loads: Loads, root: Path
) -> None:
    put(root / "m" / "1")
    loads.gate = asyncio.Event()
    models = ServedModels(Options(models=(ModelSource("m", str(root / "m")),)), loads.settings, load=loads)
    start = asyncio.create_task(models.start())
    while not loads.running:
        await asyncio.sleep(0.001)
    with pytest.raises(Refusal) as raised:
        await version_of(models, "m")
    assert (raised.value.status, raised.value.code) == (503, "model_loading")
    assert dict(raised.value.headers)["retry-after-ms"] == "1000"
    assert not models.ready
    assert states(models, "m") == {"1": State.LOADING}
    loads.gate.set()
    await start
    assert models.ready
    await models.close()


# Memory

COST = estimated_bytes(10 * MIB + 4)


@pytest.fixture
def three(root: Path) -> Path:
    for name in ("a", "b", "c"):
        put(root / name / "1", "good", 10 * MIB)
    return root


async def test_models_above_the_budget_make_room_least_recently_asked_first(
    loads: Loads, three: Path
) -> None:
    models = await models_of(loads, repository=three, memory_bytes=2 * COST)
    assert [name for name, _ in loads.done] == ["a", "b", "c"]
    assert [name for name, _ in loads.closed] == ["a"]
    assert models.ready
    assert {listed.id for listed in models.listed()} == {"a", "b", "c"}
    assert states(models, "a") == {"1": State.START}
    await version_of(models, "b")
    await asyncio.sleep(0.002)
    await version_of(models, "a")
    assert [name for name, _ in loads.closed] == ["a", "c"]
    assert loads.done[-1] == ("a", "1")
    await models.close()


async def test_many_who_wait_for_a_model_load_it_once(loads: Loads, three: Path) -> None:
    models = await models_of(loads, repository=three, memory_bytes=2 * COST)
    loads.done.clear()
    found = await asyncio.gather(*(version_of(models, "a") for _ in range(20)))
    assert found == ["1"] * 20
    assert loads.done == [("a", "1")]
    await models.close()


async def test_a_request_that_gives_up_does_not_stop_the_load_of_others(loads: Loads, three: Path) -> None:
    models = await models_of(loads, repository=three, memory_bytes=2 * COST)
    loads.gate = asyncio.Event()
    hasty = asyncio.create_task(version_of(models, "a"))
    patient = asyncio.create_task(version_of(models, "a"))
    while not loads.running:
        await asyncio.sleep(0.001)
    hasty.cancel()
    loads.gate.set()
    assert await patient == "1"
    assert hasty.cancelled()
    await models.close()


async def test_what_is_in_use_is_waited_for_and_then_503(
    loads: Loads, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecmill.server.memory.WAIT_SECONDS", 0.05)
    models = await models_of(loads, repository=three, memory_bytes=COST)
    async with models.lease("c"):
        with pytest.raises(Refusal) as raised:
            await version_of(models, "a")
        assert raised.value.status == 503
        assert "retry-after-ms" in dict(raised.value.headers)
    assert await version_of(models, "a") == "1"
    assert await version_of(models, "c") == "1"
    await models.close()


async def test_two_models_that_fit_only_in_turn_both_answer_at_once(loads: Loads, three: Path) -> None:
    models = await models_of(loads, repository=three, memory_bytes=COST)
    loads.gate = asyncio.Event()
    asked = [asyncio.create_task(version_of(models, name)) for name in ("a", "b")]
    while not loads.running:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)  # the other one meets a budget that is being loaded
    loads.gate.set()
    assert await asyncio.gather(*asked) == ["1", "1"]
    await models.close()


async def test_a_model_larger_than_the_budget_is_refused_and_says_so(loads: Loads, three: Path) -> None:
    put(three / "huge" / "1", "good", 60 * MIB)
    models = await models_of(loads, repository=three, memory_bytes=2 * COST)
    with pytest.raises(Refusal) as raised:
        await version_of(models, "huge")
    assert raised.value.status == 503
    assert "raise --memory" in models.states()["huge"][0].error
    await models.reload()
    assert "raise --memory" in models.trouble()
    shutil.rmtree(three / "huge")
    await models.reload()
    assert models.ready
    await models.close()


async def test_a_named_model_is_pinned(loads: Loads, three: Path) -> None:
    sources = (ModelSource("own", str(three / "a")),)
    models = await models_of(loads, sources=sources, repository=three, memory_bytes=COST)
    for name in ("a", "b", "c", "b"):
        await version_of(models, name)
    assert "own" not in [name for name, _ in loads.closed]
    assert await version_of(models, "own") == "1"
    await models.close()


async def test_an_evicted_model_that_went_bad_is_told_and_comes_back_with_good_files(
    loads: Loads, three: Path
) -> None:
    models = await models_of(loads, repository=three, memory_bytes=2 * COST)
    put(three / "a" / "1", "bad", 10 * MIB)
    with pytest.raises(Refusal) as raised:
        await version_of(models, "a")
    assert raised.value.status == 503
    assert not models.ready
    put(three / "a" / "1", "good", 10 * MIB)
    await models.reload()
    assert await version_of(models, "a") == "1"
    assert models.ready
    await models.close()


async def test_a_model_brought_back_is_not_let_go_of_at_once(
    loads: Loads, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = await models_of(loads, repository=three, memory_bytes=COST)
    monkeypatch.setattr("vecmill.server.memory.STAY_SECONDS", 3600.0)
    monkeypatch.setattr("vecmill.server.memory.WAIT_SECONDS", 0.05)
    assert await version_of(models, "a") == "1"
    for _ in range(2):
        with pytest.raises(Refusal) as raised:
            await version_of(models, "b")
        assert (raised.value.status, raised.value.code) == (503, "model_loading")
        assert int(dict(raised.value.headers)["retry-after"]) > 60
        assert await version_of(models, "a") == "1"
    await models.close()


async def test_a_version_that_still_answers_keeps_its_memory(
    loads: Loads, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecmill.server.memory.WAIT_SECONDS", 0.05)
    models = await models_of(loads, repository=three, memory_bytes=COST)
    async with models.lease("c"):
        for _ in range(2):  # c is out of service after the first time
            with pytest.raises(Refusal):
                await version_of(models, "a")
        assert not [name for name, _ in loads.done[3:]]
    assert await version_of(models, "a") == "1"
    await models.close()


async def test_a_folder_that_cannot_be_read_is_told_once(
    loads: Loads, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    look = module.repository.look

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for _ in range(2):
        monkeypatch.setattr(module.repository, "look", refuse)
        for _ in range(3):
            await models.reload()
        monkeypatch.setattr(module.repository, "look", look)
        await models.reload()
    assert caplog.text.count("cannot be read: Permission denied") == 2
    assert await version_of(models, "m") == "1"
    await models.close()


async def test_a_long_load_of_one_model_does_not_hold_up_the_others(loads: Loads, root: Path) -> None:
    for name in ("a", "b"):
        put(root / name / "1")
    gate = asyncio.Event()

    async def slow(source: ModelSource, version: str, *given: Any, **more: Any) -> Served:
        if (source.name, version) == ("a", "2"):
            await gate.wait()
        return await loads(source, version, *given, **more)

    models = ServedModels(Options(models=(), repository=root, poll_seconds=0.01), loads.settings, load=slow)
    await models.start()
    await until(lambda: models.ready)
    put(root / "a" / "2")
    await until(lambda: states(models, "a").get("2") is State.LOADING)
    for version in ("2", "3"):
        put(root / "b" / version)
        await until(lambda version=version: states(models, "b").get(version) is State.AVAILABLE)  # type: ignore[misc]
    assert await version_of(models, "a") == "1"
    gate.set()
    await until(lambda: states(models, "a").get("2") is State.AVAILABLE)
    await models.close()


# Health


async def broken(models: ServedModels, name: str, error: Exception) -> Served:
    async with models.lease(name) as served:
        pass

    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    served.provider.embed = fail  # type: ignore[method-assign]
    return served


async def test_a_model_that_cannot_compute_is_not_ready_until_it_can(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    async with models.lease("m") as served:
        good = served.provider.embed
    await broken(models, "m", RuntimeError("the device is gone: secret"))
    work = served.provider.encode(["a"], input_type=InputType.DOCUMENT)
    with pytest.raises(RuntimeError):
        await served.vectors(work, key="k", deadline=asyncio.get_running_loop().time() + 5)
    assert models.trouble() == "model m does not compute: RuntimeError"
    assert models.states()["m"][0].error == "RuntimeError"
    served.provider.embed = good  # type: ignore[method-assign]
    await served.vectors(work, key="k", deadline=asyncio.get_running_loop().time() + 5)
    assert models.ready
    await models.close()


async def test_a_model_probes_itself_and_finds_other_vectors(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    async with models.lease("m") as served:
        work = served.provider.encode(["The mill turns grain into flour."], input_type=InputType.DOCUMENT)
        served.probe = (await served.provider.embed(work)).vectors
    await served.probe_itself(5.0)
    assert models.ready
    served.probe = served.probe + np.float32(1e-6)
    await served.probe_itself(5.0)
    assert models.trouble().endswith("it gives other vectors than when it was loaded")
    await models.close()


async def test_a_model_that_hangs_is_found_by_its_probe(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = await models_of(loads, repository=root)
    async with models.lease("m") as served:
        pass

    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    served.provider.embed = hang  # type: ignore[method-assign]
    await served.probe_itself(0.02)
    assert "it has not answered for 0.02 s" in models.trouble()
    await models.close()


# Names


@pytest.mark.parametrize("spelling", ["minilm", "all-MiniLM-L6-v2", "local:all-MiniLM-L6-v2", "house"])
async def test_a_model_answers_to_every_spelling_and_is_listed_once(loads: Loads, spelling: str) -> None:
    loads.settings = replace(loads.settings, aliases={"house": "minilm"})
    models = await models_of(loads, sources=(ModelSource("embedder", "minilm"),))
    async with models.lease(spelling) as served:
        assert served.name == "embedder"
    assert [listed.id for listed in models.listed()] == ["embedder"]
    await models.close()


async def test_a_spelling_of_two_models_is_of_none_and_changed_vectors_are_asked_by_name(
    loads: Loads,
) -> None:
    two = (ModelSource("a", "minilm"), ModelSource("b", "all-MiniLM-L6-v2", precision="float32"))
    models = await models_of(loads, sources=two)
    with pytest.raises(Refusal):
        await version_of(models, "local:all-MiniLM-L6-v2")
    await models.close()
    changed = (ModelSource("plain", "minilm"), ModelSource("cls", "minilm", pooling="cls"))
    models = await models_of(loads, sources=changed)
    async with models.lease("all-MiniLM-L6-v2") as served:
        assert served.name == "plain"
    await models.close()


async def test_it_polls(loads: Loads, root: Path) -> None:
    put(root / "m" / "1")
    models = ServedModels(Options(models=(), repository=root, poll_seconds=0.01), loads.settings, load=loads)
    await models.start()
    put(root / "m" / "2")
    await until(lambda: ("m", "2") in loads.done)
    shutil.rmtree(root / "m" / "2")
    await until(lambda: loads.done[-1] == ("m", "1"))
    await models.close()


async def until(done: Callable[[], bool]) -> None:
    """Wait for what must happen, however slow the machine is."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
