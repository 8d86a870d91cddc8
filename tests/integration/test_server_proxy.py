"""A server in front of a paid provider: nothing is paid twice, faults stay behind it, keys too."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson
import pybase64
import pytest

from vecmill.core import tokens
from vecmill.testing.scenarios import Latency, Model, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread
from vecmill.testing.simulator_faults import Fault

harness = runpy.run_path(str(Path(__file__).parent / "server_clients" / "harness.py"))
serving, vecmill_serve, Serving = (harness[n] for n in ("serving", "vecmill_serve", "Serving"))

MODEL = "text-embedding-3-small"
SERVED = "embedder"
SCENARIO = Scenario(
    models={MODEL: Model(1536), "text-embedding-ada-002": Model(1536, False)},
    keys=("sk-upstream-only-7f3a9c81",),
    deployments={"reviews": MODEL},
)
Vectors = npt.NDArray[np.float32]


def texts(n: int, *, start: int = 0) -> list[str]:
    return [f"text number {i} of a table" for i in range(start, start + n)]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client got: a status, the error object or the vectors, and what was counted."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def vectors(self) -> Vectors:
        assert self.status == 200, self.body
        coded = [item["embedding"] for item in self.body["data"]]
        return np.array([np.frombuffer(pybase64.b64decode(text), dtype="<f4") for text in coded])

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error


@dataclass(slots=True)
class Proxy:
    """Asks a server that asks a provider."""

    running: Any
    simulator: Simulator

    def ask(self, requests: Sequence[Sequence[str]], **more: Any) -> list[Reply]:
        """Send requests at once, each from a connection of its own."""
        return asyncio.run(self._ask(requests, more))

    async def _ask(self, requests: Sequence[Sequence[str]], more: Mapping[str, Any]) -> list[Reply]:
        connector = aiohttp.TCPConnector(limit=0)
        patience = aiohttp.ClientTimeout(total=100)
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
            return await asyncio.gather(*(self._one(session, asked, more) for asked in requests))

    async def _one(
        self, session: aiohttp.ClientSession, asked: Sequence[str], more: Mapping[str, Any]
    ) -> Reply:
        body = {"model": SERVED, "input": list(asked), "encoding_format": "base64", **more}
        headers = {"content-type": "application/json", "authorization": "Bearer sk-of-a-client-0123456789"}
        url = f"{self.running.origin}/v1/embeddings"
        async with session.post(url, data=orjson.dumps(body), headers=headers) as reply:
            return Reply(reply.status, orjson.loads(await reply.read()), dict(reply.headers))

    def one(self, asked: Sequence[str], **more: Any) -> Reply:
        return self.ask([asked], **more)[0]

    def get(self, path: str) -> str:
        async def get() -> str:
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.running.origin + path) as reply,
            ):
                return await reply.text()

        return asyncio.run(get())

    def paid_once(self, asked: Sequence[str]) -> None:
        again = {text: self.simulator.times_billed(text) for text in asked}
        assert {text: count for text, count in again.items() if count != 1} == {}


@contextmanager
def proxy(
    scenario: Scenario, home: Path, *, model: str = MODEL, key: str | None = None, **options: Any
) -> Iterator[Proxy]:
    """Serve a simulated provider's model under a name of our own."""
    with simulator_thread(scenario) as simulator, before(simulator, home, model, key, **options) as running:
        yield running


@contextmanager
def before(
    simulator: Simulator, home: Path, model: str = MODEL, key: str | None = None, **options: Any
) -> Iterator[Proxy]:
    """Serve in front of a simulator that runs already."""
    home.mkdir(exist_ok=True)
    (home / "vecmill.toml").write_text(
        f'[profiles.upstream]\nprovider = "openai"\nmodel = "{model}"\nbase_url = "{simulator.url}"\n'
        f'key = "env:UPSTREAM_KEY"\n'
    )
    env = {
        "VECMILL_HOME": str(home),
        "VECMILL_CACHE_DIR": str(home / "cache"),
        "UPSTREAM_KEY": simulator.key if key is None else key,
    }
    with serving(models=[{"name": SERVED, "spec": "upstream"}], env=env, **options) as running:
        yield Proxy(running, simulator)


def assert_right(reply: Reply, asked: Sequence[str], simulator: Simulator, model: str = MODEL) -> None:
    """Vectors in order and exact usage, under the name that was asked for."""
    assert np.allclose(reply.vectors, simulator.vectors(asked, model), atol=1e-6)
    tokens = sum(map(simulator.count, asked))
    assert reply.body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert reply.body["model"] == SERVED


def test_identical_texts_of_many_clients_are_paid_once(tmp_path: Path) -> None:
    """Also those that come while the provider is already computing them."""
    asked = texts(4)
    scenario = replace(SCENARIO, latency=Latency(seconds=1.0))

    async def early_and_late(running: Proxy) -> list[Reply]:
        early = asyncio.create_task(running._ask([asked] * 32, {}))
        while not running.simulator.requests and not early.done():
            await asyncio.sleep(0.002)
        late = await running._ask([asked] * 32, {})
        return [*await early, *late]

    with proxy(scenario, tmp_path / "home") as running:
        replies = asyncio.run(early_and_late(running))
        assert len(replies) == 64
        for reply in replies:
            assert_right(reply, asked, running.simulator)
        running.paid_once(asked)


def test_without_a_cache_nothing_is_kept_on_disk(tmp_path: Path) -> None:
    asked = texts(3)
    with simulator_thread(SCENARIO) as simulator:
        for _ in range(2):
            with before(simulator, tmp_path / "home", cache=False) as running:
                assert_right(running.one(asked), asked, simulator)
        assert {simulator.times_billed(text) for text in asked} == {2}


def test_what_was_asked_before_makes_no_request(tmp_path: Path) -> None:
    asked = texts(40)
    with proxy(SCENARIO, tmp_path / "home") as running:
        first = running.one(asked)
        requests = running.simulator.requests
        again = running.one(list(reversed(asked)))
        single = running.ask([[text] for text in asked])
        assert running.simulator.requests == requests
        assert_right(again, list(reversed(asked)), running.simulator)
        assert np.array_equal(again.vectors[::-1], first.vectors)
        for row, reply in enumerate(single):
            assert np.array_equal(reply.vectors[0], first.vectors[row])
        running.paid_once(asked)


def test_many_requests_of_one_text_become_few(tmp_path: Path) -> None:
    asked = texts(300)
    scenario = replace(SCENARIO, latency=Latency(seconds=0.25))
    with proxy(scenario, tmp_path / "home", limits={"max_connections_per_address": 1000}) as running:
        replies = running.ask([[text] for text in asked])
        for text, reply in zip(asked, replies, strict=True):
            assert_right(reply, [text], running.simulator)
        running.paid_once(asked)
        print(f"{len(asked)} requests of one text became {running.simulator.requests}")
        assert running.simulator.requests <= len(asked) // 4


HARMLESS = ("rate_ms", "rate_float", "500", "502", "503", "reset_before", "rate_200", "floats", "shuffled")
PAID = ("reset_after", "truncated", "cut_json", "count", "missing_index", "duplicate_index", "narrow", "nan")


@pytest.mark.parametrize("kind", HARMLESS + PAID)
def test_what_passes_when_asked_again_reaches_no_client(tmp_path: Path, kind: str) -> None:
    scenario = replace(SCENARIO, faults=(Fault(kind, times=2, seconds=0.05),))
    with proxy(scenario, tmp_path / "home") as running:
        groups = [texts(5, start=5 * at) for at in range(6)]
        replies = running.ask(groups)
        for asked, reply in zip(groups, replies, strict=True):
            assert_right(reply, asked, running.simulator)
        if kind in HARMLESS:
            running.paid_once([text for group in groups for text in group])


def test_limits_of_the_account_are_waited_for(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, requests_per_minute=600, max_inputs=4)
    groups = [texts(4, start=4 * at) for at in range(30)]
    with proxy(scenario, tmp_path / "home") as running:
        replies = running.ask(groups)
        for asked, reply in zip(groups, replies, strict=True):
            assert_right(reply, asked, running.simulator)
        running.paid_once([text for group in groups for text in group])


def assert_says_nothing(running: Proxy, reply: Reply, *secrets: str) -> None:
    """Neither the answer nor the log holds a secret, a text or where the provider is."""
    said = orjson.dumps(reply.body).decode() + str(dict(reply.headers))
    for secret in (running.simulator.key, "sk-of-a-client-0123456789", *secrets):
        assert secret not in said
        assert secret not in running.running.log
    assert running.simulator.azure_url not in said


def test_a_refused_key_is_not_the_clients_fault_and_is_never_shown(tmp_path: Path) -> None:
    wrong = "sk-refused-upstream-5b1e"
    with proxy(SCENARIO, tmp_path / "home", key=wrong) as running:
        reply = running.one(["a secret sentence of a client"])
        assert reply.status == 502
        assert reply.error["code"] == "upstream_key_refused"
        assert reply.headers["x-should-retry"] == "false"
        assert_says_nothing(running, reply, wrong, "a secret sentence")
        assert 401 in running.simulator.statuses


def test_a_spent_quota_says_so_and_is_not_tried_again(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, faults=(Fault("quota"),))
    with proxy(scenario, tmp_path / "home") as running:
        reply = running.one(texts(1))
        assert reply.status == 429
        assert reply.error["type"] == "rate_limit_error"
        assert reply.error["code"] == "insufficient_quota"
        assert reply.headers["x-should-retry"] == "false"
        assert_says_nothing(running, reply)


def test_a_provider_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    """One failure of the whole account does not stop the server for good."""
    scenario = replace(SCENARIO, faults=(Fault("401", times=1),))
    with proxy(scenario, tmp_path / "home") as running:
        asked = texts(2)
        assert running.one(asked).status == 502
        assert_right(running.one(asked), asked, running.simulator)


def test_a_text_the_provider_refuses_spoils_no_other_clients(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, poison="POISON", latency=Latency(seconds=0.1))
    groups = [texts(3, start=3 * at) for at in range(8)]
    with proxy(scenario, tmp_path / "home") as running:
        bad = ["first", "this one is POISON", "third"]
        *replies, refused = running.ask([*groups, bad])
        for asked, reply in zip(groups, replies, strict=True):
            assert_right(reply, asked, running.simulator)
        assert refused.status == 400
        assert "1" in refused.error["message"]
        assert "POISON" not in orjson.dumps(refused.body).decode()
        assert "POISON" not in running.running.log
        assert_right(running.one(["first", "third"]), ["first", "third"], running.simulator)
        running.paid_once(["first", "third"])


def test_fewer_dimensions_are_cut_from_what_was_paid_for(tmp_path: Path) -> None:
    asked = texts(3)
    with proxy(SCENARIO, tmp_path / "home") as running:
        running.one(asked)
        requests = running.simulator.requests
        short = running.one(asked, dimensions=256)
        assert running.simulator.requests == requests
        assert short.vectors.shape == (3, 256)
        own = running.simulator.vectors(asked, MODEL, 256)
        assert (np.einsum("ij,ij->i", own, short.vectors) >= 0.999999).all()
        assert np.allclose(np.linalg.norm(short.vectors, axis=1), 1, atol=1e-6)
        native = running.one(asked, dimensions=1536)
        assert_right(native, asked, running.simulator)
        for wrong in (0, 1537):
            assert running.one(asked, dimensions=wrong).status == 400
        assert running.simulator.requests == requests


def test_a_model_that_cannot_be_cut_takes_its_own_size_only(tmp_path: Path) -> None:
    asked = texts(2)
    with proxy(SCENARIO, tmp_path / "home", model="text-embedding-ada-002") as running:
        native = running.one(asked, dimensions=1536)
        assert_right(native, asked, running.simulator, "text-embedding-ada-002")
        refused = running.one(asked, dimensions=256)
        assert (refused.status, refused.error["param"]) == (400, "dimensions")


def test_token_ids_are_bought_as_the_text_they_stand_for(tmp_path: Path) -> None:
    asked = ["That is a happy person"]
    with proxy(SCENARIO, tmp_path / "home") as running:
        first = running.one(asked)
        requests = running.simulator.requests
        ids = tokens.encode(asked[0])
        again = running.one([], input=[ids])
        assert np.array_equal(again.vectors, first.vectors)
        assert running.simulator.requests == requests


def test_an_unknown_model_costs_no_request(tmp_path: Path) -> None:
    with proxy(SCENARIO, tmp_path / "home") as running:
        for name in (MODEL, "text-embedding-ada-002", "nothing"):
            reply = running.one(["x"], model=name)
            assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert not any(running.simulator.times_sent(text) for text in ("x",))


def test_the_hit_rate_is_a_metric(tmp_path: Path) -> None:
    asked = texts(10)
    with proxy(SCENARIO, tmp_path / "home") as running:
        for _ in range(4):
            running.one(asked)
        metrics = running.get("/metrics")
        texts_asked = _sum(metrics, "vecmill_texts_total")
        cached = _sum(metrics, "vecmill_cached_total")
        assert (texts_asked, cached) == (40, 30)
        billed = running.simulator.billed_tokens
        assert _sum(metrics, "vecmill_upstream_tokens_total") == billed
        assert _sum(metrics, "vecmill_tokens_total") > billed
        assert not any(text in metrics for text in asked)


def _sum(metrics: str, name: str) -> float:
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", metrics, re.MULTILINE)
    assert found, f"{name} is not among the metrics:\n{metrics[:2000]}"
    return sum(map(float, found))


def test_killed_and_started_again_it_pays_nothing_twice_but_what_was_in_flight(tmp_path: Path) -> None:
    kept, caught, rest = texts(60), texts(20, start=60), texts(20, start=80)
    with simulator_thread(replace(SCENARIO, latency=Latency(seconds=0.2))) as simulator:
        for round_ in range(3):
            with before(simulator, tmp_path / "home") as running:
                assert_right(running.one(kept), kept, simulator)
                asked = simulator.requests
                loop = asyncio.new_event_loop()
                try:
                    task = loop.create_task(running._ask([caught], {}))
                    give_up = loop.time() + 60
                    while simulator.requests == asked and not task.done() and loop.time() < give_up:
                        loop.run_until_complete(asyncio.sleep(0.005))
                    running.running.kill()
                    ended = loop.run_until_complete(asyncio.gather(task, return_exceptions=True))[0]
                    assert isinstance(ended, aiohttp.ClientError) or ended[0].status == 200
                finally:
                    loop.close()
            print(f"round {round_}: {simulator.billed_texts} texts paid")
        with before(simulator, tmp_path / "home") as running:
            everything = kept + caught + rest
            assert_right(running.one(everything), everything, simulator)
            running.paid_once(kept + rest)
            assert all(simulator.times_billed(text) <= 4 for text in caught)
            assert_right(running.one(everything), everything, simulator)


def test_upstream_is_one_option_of_the_command(tmp_path: Path) -> None:
    asked = texts(3)
    with simulator_thread(SCENARIO) as simulator:
        env = {
            "AZURE_OPENAI_ENDPOINT": simulator.azure_url,
            "AZURE_OPENAI_API_KEY": simulator.key,
            "VECMILL_HOME": str(tmp_path / "home"),
            "VECMILL_CACHE_DIR": str(tmp_path / "cache"),
        }
        with vecmill_serve("--upstream", "azure:reviews", env=env) as running:
            proxied = Proxy(running, simulator)
            names = [model["id"] for model in orjson.loads(proxied.get("/v1/models"))["data"]]
            assert len(names) == 1
            replies = proxied.ask([asked] * 8, model=names[0])
            for reply in replies:
                assert np.allclose(reply.vectors, simulator.vectors(asked, MODEL), atol=1e-6)
            proxied.paid_once(asked)
