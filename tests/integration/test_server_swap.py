"""Versions change under load: no request fails, no reply mixes versions, a bad version is never served."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson
import pybase64
import pytest

from vecmill import Embedder
from vecmill.core.config import Settings
from vecmill.server.app import App, create_app
from vecmill.server.options import Options
from vecmill.server.run import served_in_thread

MODELS = Path(__file__).parents[1] / "data" / "models"
KINDS = ("bert-mean", "bert-last-max")
"""Two models of one family and vocabulary, of other weights, so that a mixed reply would show."""

SWAPS = 20
CLIENTS = 8
PATIENCE = 60.0
TEXTS = ["a mill", "the mill turns grain into flour", "one two three four five", "flour and bread"]

Vectors = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what was renamed into place without waiting a second."""
    monkeypatch.setattr("vecmill.server.repository.QUIET_SECONDS", 0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models" / "m").mkdir(parents=True)
    install(tmp_path / "models", 1)
    return tmp_path / "models"


def kind_of(version: int) -> str:
    return KINDS[version % 2]


def prepare(repository: Path, version: int) -> Path:
    """Copy a version beside the repository, with golden vectors of its own model."""
    place = repository.parent / f"coming-{version}"
    shutil.copytree(MODELS / kind_of(version), place)
    return place


def install(repository: Path, version: int, place: Path | None = None) -> None:
    """Let a version appear whole, as an operator does."""
    (place or prepare(repository, version)).rename(repository / "m" / str(version))


def expected(settings: Settings) -> dict[str, Vectors]:
    """The vectors of each model, computed by the library."""
    found: dict[str, Vectors] = {}
    for kind in KINDS:
        with Embedder(str(MODELS / kind), settings=settings) as embedder:
            found[kind] = embedder.embed(TEXTS).vectors
    return found


@dataclass
class Load:
    """Clients that ask without a pause, and what they got."""

    origin: str
    replies: list[tuple[int, str, Vectors]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def grew(self, count: int) -> bool:
        return len(self.replies) > count

    async def client(self, session: aiohttp.ClientSession, first: int) -> None:
        number = first
        while not self.stop.is_set():
            number += 1
            rows = [(number + at) % len(TEXTS) for at in range(1 + number % 3)]
            body = {"model": "m", "input": [TEXTS[row] for row in rows], "encoding_format": "base64"}
            try:
                async with session.post(f"{self.origin}/v1/embeddings", json=body) as reply:
                    content = await reply.read()
                    if reply.status != 200:
                        self.failures.append(f"{reply.status} {content[:200]!r}")
                        continue
                    version = reply.headers.get("x-vecmill-model-version", "")
            except aiohttp.ClientError as error:
                self.failures.append(repr(error))
                continue
            data = orjson.loads(content)["data"]
            coded = [np.frombuffer(pybase64.b64decode(item["embedding"]), "<f4") for item in data]
            self.replies.append((rows[0], version, np.array(coded)))


async def post(session: aiohttp.ClientSession, url: str) -> int:
    async with session.post(url) as reply:
        return reply.status


async def states(session: aiohttp.ClientSession, origin: str, model: str = "m") -> dict[str, dict[str, Any]]:
    async with session.get(f"{origin}/v1/config") as reply:
        listed = orjson.loads(await reply.read())[model]["model_version_status"]
    return {one["version"]: one for one in listed}


async def until(done: Callable[[], Any]) -> None:
    """Wait for what must happen, however slow the machine is."""
    end = time.monotonic() + PATIENCE
    while not await done():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def check_replies(load: Load, known: dict[str, Vectors]) -> set[str]:
    """Every reply is whole of one version, and of the one it names; return the versions that answered."""
    assert load.failures == []
    seen: set[str] = set()
    for first, version, vectors in load.replies:
        seen.add(version)
        rows = [(first + at) % len(TEXTS) for at in range(len(vectors))]
        right = known[kind_of(int(version))]
        assert vectors.shape[1] == right.shape[1]
        assert all(v.tobytes() == right[row].tobytes() for v, row in zip(vectors, rows, strict=True))
    return seen


def serving(repository: Path, settings: Settings, **more: Any) -> App:
    return create_app(Options(models=(), repository=repository, **more), settings=settings)


async def under_load(origin: str, work: Callable[[aiohttp.ClientSession, Load], Any]) -> Load:
    """Do something while clients ask; afterwards each has asked once more."""
    load = Load(origin)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        clients = [asyncio.create_task(load.client(session, at)) for at in range(CLIENTS)]
        try:
            await work(session, load)
            count = len(load.replies)
            await until(partial(load.grew, count + CLIENTS))
        finally:
            load.stop.set()
            await asyncio.gather(*clients)
    return load


@pytest.mark.parametrize("by", ["reload", "watching"])
def test_twenty_swaps_under_load_fail_no_request_and_mix_no_reply(
    repository: Path, settings: Settings, by: str
) -> None:
    known = expected(settings)
    poll = 0.0 if by == "reload" else 0.05

    async def swap(session: aiohttp.ClientSession, load: Load) -> None:
        for version in range(2, SWAPS + 2):
            place = prepare(repository, version)
            before = len(load.replies)
            install(repository, version, place)
            if by == "reload":
                assert await post(session, f"{load.origin}/v1/config/reload") == 201
            await until(partial(available, session, load.origin, str(version)))
            await until(partial(load.grew, before))
            shutil.rmtree(repository / "m" / str(version - 1))

    with served_in_thread(serving(repository, settings, poll_seconds=poll)) as origin:
        wait_ready(origin)
        load = asyncio.run(under_load(origin, swap))
    seen = check_replies(load, known)
    assert {str(SWAPS), str(SWAPS + 1)} <= seen
    assert len(seen) > SWAPS // 2


async def available(session: aiohttp.ClientSession, origin: str, version: str) -> bool:
    found = (await states(session, origin)).get(version)
    return found is not None and found["state"] == "AVAILABLE"


def wait_ready(origin: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{origin}/readyz", timeout=PATIENCE):  # noqa: S310 - our own address
                return
        except (urllib.error.HTTPError, urllib.error.URLError):
            assert time.monotonic() < end
            time.sleep(0.02)


def corrupt_weights(place: Path) -> None:
    path = place / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[:200] = b"\xff" * 200
    path.write_bytes(raw)


def truncate_weights(place: Path) -> None:
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-500])


def nan_weights(place: Path) -> None:
    path = place / "model.safetensors"
    raw = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(raw[:8], "little")
    raw[begin:] = np.full((len(raw) - begin) // 4, np.nan, dtype="<f4").tobytes()
    path.write_bytes(raw)


def zero_weights(place: Path) -> None:
    path = place / "model.safetensors"
    raw = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(raw[:8], "little")
    raw[begin:] = bytes(len(raw) - begin)
    path.write_bytes(raw)


def without_tokenizer(place: Path) -> None:
    (place / "tokenizer.json").unlink()


def damaged_tokenizer(place: Path) -> None:
    path = place / "tokenizer.json"
    path.write_text(path.read_text()[: len(path.read_text()) // 2])


def wrong_golden(place: Path) -> None:
    with_golden = {"texts": [TEXTS[0]], "vectors": [[0.5] * 32]}
    (place / "golden.json").write_text(json.dumps(with_golden))


def damaged_golden(place: Path) -> None:
    (place / "golden.json").write_text("{")


DAMAGES = (
    corrupt_weights,
    truncate_weights,
    nan_weights,
    zero_weights,
    without_tokenizer,
    damaged_tokenizer,
    wrong_golden,
    damaged_golden,
)


def test_no_bad_version_is_ever_served_and_each_says_why(repository: Path, settings: Settings) -> None:
    known = expected(settings)
    says = {}

    async def break_in(session: aiohttp.ClientSession, load: Load) -> None:
        for version, damage in enumerate(DAMAGES, 2):
            place = prepare(repository, version)
            damage(place)
            install(repository, version, place)
            assert await post(session, f"{load.origin}/v1/config/reload") == 200
            found = await states(session, load.origin)
            assert found["1"]["state"] == "AVAILABLE"
            assert found[str(version)]["state"] == "LOADING"
            says[damage.__name__] = found[str(version)]["status"]
        async with session.get(f"{load.origin}/readyz") as reply:
            assert reply.status == 200
        version = len(DAMAGES) + 2
        install(repository, version)
        assert await post(session, f"{load.origin}/v1/config/reload") == 201

    with served_in_thread(serving(repository, settings, poll_seconds=0.0)) as origin:
        wait_ready(origin)
        load = asyncio.run(under_load(origin, break_in))
    assert check_replies(load, known) == {"1", str(len(DAMAGES) + 2)}
    assert all(said["error_code"] == "UNKNOWN" and said["error_message"] for said in says.values())
    assert "not finite" in says["nan_weights"]["error_message"]
    assert "golden" in says["wrong_golden"]["error_message"]
    assert "tokenizer.json" in says["without_tokenizer"]["error_message"]


def test_a_version_that_is_copied_in_pieces_is_served_only_when_it_is_whole(
    repository: Path, settings: Settings
) -> None:
    known = expected(settings)

    async def copy_slowly(session: aiohttp.ClientSession, load: Load) -> None:
        target = repository / "m" / "2"
        files = sorted(path for path in (MODELS / kind_of(2)).rglob("*") if path.is_file())
        for path in files:
            place = target / path.relative_to(MODELS / kind_of(2))
            place.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes()
            with place.open("wb") as out:
                for at in range(0, len(raw), max(len(raw) // 3, 1)):
                    out.write(raw[at : at + max(len(raw) // 3, 1)])
                    out.flush()
                    await asyncio.sleep(0.03)
        await until(lambda: available(session, load.origin, "2"))

    with served_in_thread(serving(repository, settings, poll_seconds=0.05)) as origin:
        wait_ready(origin)
        load = asyncio.run(under_load(origin, copy_slowly))
    assert check_replies(load, known) == {"1", "2"}


def test_the_same_version_gives_the_same_bytes_before_and_after_it_is_loaded_again(
    repository: Path, settings: Settings
) -> None:
    known = expected(settings)

    async def touch(session: aiohttp.ClientSession, load: Load) -> None:
        assert await post(session, f"{load.origin}/v1/config/reload") == 200
        for _ in range(3):
            os.utime(repository / "m" / "1" / "model.safetensors")
            assert await post(session, f"{load.origin}/v1/config/reload") == 201

    with served_in_thread(serving(repository, settings, poll_seconds=0.0)) as origin:
        wait_ready(origin)
        load = asyncio.run(under_load(origin, touch))
    assert check_replies(load, known) == {"1"}


def test_models_that_take_turns_in_memory_answer_every_request(repository: Path, settings: Settings) -> None:
    known = expected(settings)
    for at, name in enumerate(("x", "y")):
        shutil.copytree(MODELS / kind_of(at), repository / name / "1")
    budget = 120 << 20  # two of three

    async def ask(session: aiohttp.ClientSession, origin: str, number: int) -> None:
        name = ("m", "x", "y")[number % 3]
        body = {"model": name, "input": TEXTS[0], "encoding_format": "base64"}
        async with session.post(f"{origin}/v1/embeddings", json=body) as reply:
            content = await reply.read()
            assert reply.status == 200, content
        vector = np.frombuffer(pybase64.b64decode(orjson.loads(content)["data"][0]["embedding"]), "<f4")
        kind = {"m": kind_of(1), "x": kind_of(0), "y": kind_of(1)}[name]
        assert vector.tobytes() == known[kind][0].tobytes()

    async def run(origin: str) -> None:
        async with aiohttp.ClientSession() as session:
            for start in range(0, 24, 2):
                await asyncio.gather(*(ask(session, origin, number) for number in (start, start + 1)))
            loaded = [
                name
                for name in ("m", "x", "y")
                if (await states(session, origin, name))["1"]["state"] == "AVAILABLE"
            ]
            assert len(loaded) == 2

    with served_in_thread(serving(repository, settings, memory_bytes=budget)) as origin:
        wait_ready(origin)
        asyncio.run(run(origin))


@pytest.fixture
def process(repository: Path, tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Start `vecmill serve` of the repository; what still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "vecmill", "serve", "--repository", str(repository), "--port", "0"]
        environment = {**os.environ, "VECMILL_HOME": str(tmp_path / "home")}
        environment |= {"VECMILL_CACHE_DIR": str(tmp_path / "cache")}
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        begun.append(running)
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("serving "):
                return running, line.split(" at ")[1].strip().removesuffix("/v1")
        raise AssertionError("the server ended before it served")

    yield start
    for running in begun:
        running.kill()
        running.communicate()


def test_killed_in_the_middle_of_a_load_it_starts_again_and_serves(
    process: Callable[[], tuple[subprocess.Popen[str], str]], repository: Path, settings: Settings
) -> None:
    known = expected(settings)
    for round_ in range(3):
        running, origin = process()
        if round_:
            wait_ready(origin)
            install(repository, round_ + 1)
            with urllib.request.urlopen(f"{origin}/v1/config", timeout=PATIENCE):  # noqa: S310 - our own
                time.sleep(0.1 * round_)  # anywhere: the claim holds wherever the kill falls
        running.send_signal(signal.SIGKILL)
        running.wait()
    running, origin = process()
    wait_ready(origin)

    async def ask() -> Load:
        return await under_load(origin, lambda *_: asyncio.sleep(0))

    load = asyncio.run(ask())
    assert check_replies(load, known) == {"3"}
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == 0
