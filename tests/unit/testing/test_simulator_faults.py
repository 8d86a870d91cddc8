"""What goes wrong goes wrong as said, when said, and is billed if it was computed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import numpy as np
import pytest

from vecmill.core.errors import InputError, UnknownNameError
from vecmill.testing.clock import run_virtual
from vecmill.testing.scenarios import FAULTY, GITHUB, RPM_BOUND, TINY_MODELS, Scenario
from vecmill.testing.simulator import Simulator
from vecmill.testing.simulator_faults import KINDS, MIX, Fault, FaultPlan

SMALL = "text-embedding-3-small"
TEXTS = ["a", "b", "c", "d"]
TINY = Scenario(models=TINY_MODELS)


@dataclass
class Seen:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    error: Exception | None = None

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


async def post(sim: Simulator, texts: list[str], path: str = "", redirects: bool = False) -> Seen:
    """Ask for base64 and return whatever comes of it."""
    body = {"model": SMALL, "input": texts, "encoding_format": "base64"}
    if "inference" in path:
        body["model"] = f"openai/{SMALL}"
    head = {"Authorization": f"Bearer {sim.key}"}
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, headers=head) as session:
        try:
            url = f"{sim.azure_url}{path}" if path else f"{sim.url}/embeddings"
            async with session.post(url, json=body, allow_redirects=redirects) as reply:
                headers = {k.lower(): v for k, v in reply.headers.items()}
                return Seen(reply.status, headers, await reply.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            return Seen(error=error)


def talk(scenario: Scenario, conversation: Callable[[Simulator], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with Simulator(scenario) as sim:
            return await conversation(sim)

    return run_virtual(main())


def once(kind: str, path: str = "", scenario: Scenario = TINY, **more: Any) -> tuple[Seen, Simulator]:
    """Ask once and let this go wrong; then see that asking again is answered."""

    async def conversation(sim: Simulator) -> tuple[Seen, Simulator]:
        seen = await post(sim, TEXTS, path)
        again = await post(sim, TEXTS, path)
        assert again.status == 200
        assert "data" in again.body
        await asyncio.sleep(1)  # the server notices that a client left
        return seen, sim

    seen, sim = talk(replace(scenario, faults=(Fault(kind, at={0}, **more),)), conversation)
    assert sim.log[0].fault == kind
    assert sim.log[1].fault == ""
    return seen, sim


def rows(seen: Seen) -> list[np.ndarray[Any, Any]]:
    return [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in seen.body["data"]]


HINTS = {"retry-after", "retry-after-ms", "x-ratelimit-reset-requests", "x-ratelimit-remaining-requests"}


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("rate_seconds", {"retry-after": "8"}),
        ("rate_float", {"retry-after": "7.250"}),
        ("rate_date", {"retry-after": "Fri, 15 Jan 2027 08:00:08 GMT"}),
        ("rate_ms", {"retry-after-ms": "7250"}),
        ("rate_reset", {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7.25s"}),
        ("rate_message", {}),
        ("rate_silent", {}),
        ("rate_200", {}),
    ],
)
def test_a_429_says_when_to_come_back_in_one_place_only(kind: str, headers: dict[str, str]) -> None:
    seen, sim = once(kind, seconds=7.25)
    assert seen.status == (200 if kind == "rate_200" else 429)
    assert {name: value for name, value in seen.headers.items() if name in HINTS} == headers
    assert seen.body["error"]["code"] == "rate_limit_exceeded"
    in_words = "Please retry after 8 seconds" in seen.body["error"]["message"]
    assert in_words == (kind in ("rate_message", "rate_200"))
    assert not sim.log[0].billed


def test_vendors_say_429_in_their_own_words() -> None:
    azure, _ = once(
        "rate_message", f"/openai/deployments/{SMALL}/embeddings?api-version=2024-10-21", seconds=1
    )
    assert set(azure.body["error"]) == {"code", "message"}
    assert azure.body["error"]["code"] == "429"
    assert "Please retry after 1 second." in azure.body["error"]["message"]
    github, _ = once("rate_seconds", "/inference/embeddings")
    assert github.body["error"]["code"] == "RateLimitReached"
    assert github.headers["x-ratelimit-type"] == "UserByModelByMinute"


@pytest.mark.parametrize("kind", ["500", "502", "503"])
def test_server_errors_are_not_billed(kind: str) -> None:
    seen, sim = once(kind)
    assert seen.status == int(kind)
    assert seen.raw.startswith(b"<html>") == (kind == "502")
    assert not sim.log[0].billed


@pytest.mark.parametrize(("kind", "billed"), [("reset_before", False), ("reset_after", True)])
def test_a_broken_connection_is_billed_if_it_was_computed(kind: str, billed: bool) -> None:
    seen, sim = once(kind)
    assert isinstance(seen.error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
    assert sim.log[0].billed == billed
    assert sim.times_billed("a") == 1 + billed


def test_a_timeout_lasts_until_the_client_leaves() -> None:
    seen, sim = once("timeout")
    assert isinstance(seen.error, TimeoutError)
    assert sim.log[0].seconds == pytest.approx(30, abs=1)  # aiohttp rounds long timeouts up
    assert not sim.log[0].billed


def test_half_a_body_breaks_or_pretends_to_be_whole() -> None:
    seen, sim = once("truncated")
    assert isinstance(seen.error, aiohttp.ClientPayloadError)
    assert sim.log[0].billed
    seen, sim = once("cut_json")
    assert seen.status == 200
    assert int(seen.headers["content-length"]) == len(seen.raw)
    with pytest.raises(json.JSONDecodeError):
        _ = seen.body
    assert sim.log[0].billed


def test_wrong_replies_are_wrong_as_said_and_billed() -> None:
    found = {
        kind: once(kind) for kind in ("count", "missing_index", "duplicate_index", "narrow", "nan", "zero")
    }
    for seen, sim in found.values():
        assert seen.status == 200
        assert sim.log[0].billed
        assert sim.times_billed("a") == 2
    assert len(found["count"][0].body["data"]) == 3
    assert [item.get("index") for item in found["missing_index"][0].body["data"]] == [0, None, 2, 3]
    assert [item["index"] for item in found["duplicate_index"][0].body["data"]] == [0, 1, 2, 0]
    assert {len(row) for row in rows(found["narrow"][0])} == {2}
    assert [np.isnan(row).any() for row in rows(found["nan"][0])] == [False, False, False, True]
    assert [row.any() for row in rows(found["zero"][0])] == [True, True, True, False]


def test_shuffled_data_has_every_vector_at_its_index() -> None:
    seen, sim = once("shuffled")
    order = [item["index"] for item in seen.body["data"]]
    assert order != [0, 1, 2, 3]
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.stack(rows(seen)), sim.vectors([TEXTS[i] for i in order]))


def test_floats_come_where_base64_was_asked() -> None:
    seen, sim = once("floats")
    numbers = np.array([item["embedding"] for item in seen.body["data"]], dtype=np.float32)
    np.testing.assert_array_equal(numbers, sim.vectors(TEXTS))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("base64_refused", 400, "unsupported_value"),
        ("401", 401, "invalid_api_key"),
        ("413", 413, "content_too_large"),
        ("quota", 429, "insufficient_quota"),
    ],
)
def test_refusals_on_demand(kind: str, status: int, code: str) -> None:
    seen, sim = once(kind)
    assert seen.status == status
    assert seen.body["error"]["code"] == code
    assert sim.key not in seen.raw.decode()
    assert "retry-after" not in seen.headers


def test_a_redirect_leads_to_another_origin_that_notes_who_brings_a_key() -> None:
    async def conversation(sim: Simulator) -> tuple[Seen, list[bool]]:
        seen = await post(sim, TEXTS)
        async with aiohttp.ClientSession() as session:
            place = seen.headers["location"]
            for headers in ({}, {"api-key": sim.key}, {"Authorization": f"Bearer {sim.key}"}):
                async with session.post(place, headers=headers) as reply:
                    assert reply.status == 404
        assert not place.startswith(sim.azure_url)
        assert place.endswith("/v1/embeddings")
        assert sim.requests == 1
        return seen, sim.elsewhere

    seen, elsewhere = talk(replace(TINY, faults=(Fault("redirect"),)), conversation)
    assert seen.status == 308
    assert elsewhere == [False, True, True]


@pytest.mark.parametrize("kind", MIX)
def test_every_fault_can_happen_to_a_single_text(kind: str) -> None:
    async def conversation(sim: Simulator) -> Seen:
        return await post(sim, ["alone"])

    seen = talk(replace(TINY, faults=(Fault(kind),)), conversation)
    if kind == "duplicate_index":
        assert [item["index"] for item in seen.body["data"]] == [1]
    if kind == "count":
        assert seen.body["data"] == []
    if kind == "missing_index":
        assert "index" not in seen.body["data"][0]


def picked(*faults: Fault, seed: int = 0, requests: int = 5_000) -> list[str | None]:
    plan = FaultPlan(faults, seed)
    return [found.kind if (found := plan.pick(number)) else None for number in range(requests)]


def test_shares_add_up_and_repeat_with_the_seed() -> None:
    faults = (Fault("500", share=0.1), Fault("503", share=0.2))
    found = picked(*faults)
    counted = Counter(found)
    assert 0.08 < counted["500"] / 5_000 < 0.12
    assert 0.17 < counted["503"] / 5_000 < 0.23
    assert picked(*faults) == found
    assert picked(*faults, seed=1) != found


def test_the_mix_is_even() -> None:
    counted = Counter(picked(Fault("mix", share=1.0)))
    assert set(counted) == set(MIX)
    assert max(counted.values()) < 2 * min(counted.values())


def test_faults_happen_at_their_numbers_and_so_often() -> None:
    assert picked(Fault("500", at={1, 3}), requests=5) == [None, "500", None, "500", None]
    assert picked(Fault("500", times=2), requests=4) == ["500", "500", None, None]
    assert picked(Fault("500", times=1), Fault("503"), requests=3) == ["500", "503", "503"]
    assert picked(requests=2) == [None, None]


def test_a_fault_nobody_knows_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="rate_seconds"):
        Fault("rate_second")
    with pytest.raises(InputError, match="between 0 and 1"):
        Fault("500", share=1.5)
    assert len(set(KINDS)) == len(KINDS)


def test_a_limited_request_is_told_when_to_come_back_and_then_passes() -> None:
    scenario = replace(TINY, requests_per_minute=2, meaning="window")

    async def conversation(sim: Simulator) -> list[Seen]:
        await asyncio.sleep(15)
        seen = [await post(sim, TEXTS) for _ in range(3)]
        await asyncio.sleep(int(seen[2].headers["retry-after"]))
        return [*seen, await post(sim, TEXTS)]

    first, second, third, fourth = talk(scenario, conversation)
    assert [s.status for s in (first, second, third, fourth)] == [200, 200, 429, 200]
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.headers["retry-after"] == "45"
    assert third.headers["retry-after-ms"] == "45000"
    assert third.headers["x-ratelimit-reset-requests"] == "45s"
    assert "Limit 2, Used 2, Requested 1." in third.body["error"]["message"]


def test_limits_belong_to_a_key_and_a_model() -> None:
    scenario = replace(TINY, requests_per_minute=1, keys=("first-key-of-two", "other-key-of-two"))

    async def conversation(sim: Simulator) -> list[int]:
        statuses = []
        async with aiohttp.ClientSession() as session:
            for key, model in [(0, SMALL), (0, SMALL), (1, SMALL), (0, "text-embedding-ada-002")]:
                head = {"Authorization": f"Bearer {scenario.keys[key]}"}
                body = {"model": model, "input": "a"}
                async with session.post(f"{sim.url}/embeddings", json=body, headers=head) as reply:
                    statuses.append(reply.status)
        return statuses

    assert talk(scenario, conversation) == [200, 429, 200, 200]


def test_a_request_no_minute_can_hold_has_no_hint() -> None:
    async def conversation(sim: Simulator) -> Seen:
        return await post(sim, TEXTS)

    seen = talk(replace(TINY, tokens_per_minute=3), conversation)
    assert seen.status == 429
    assert "retry-after" not in seen.headers
    assert seen.body["error"]["message"].startswith("Request too large")


def test_the_hint_of_a_limit_can_be_chosen() -> None:
    async def conversation(sim: Simulator) -> Seen:
        await post(sim, TEXTS)
        return await post(sim, TEXTS)

    scenario = replace(TINY, requests_per_minute=1, hint="rate_silent", rate_headers=False)
    seen = talk(scenario, conversation)
    assert seen.status == 429
    assert not HINTS & set(seen.headers)


@pytest.mark.parametrize(
    ("path", "hours", "code"),
    [
        ("/inference/embeddings", 16, "RateLimitReached"),
        ("/openai/v1/embeddings", 16, "429"),
        ("/v1/embeddings", None, "insufficient_quota"),
    ],
)
def test_an_exhausted_day_is_said_in_each_vendors_way(path: str, hours: int | None, code: str) -> None:
    async def conversation(sim: Simulator) -> Seen:
        await post(sim, TEXTS, path)
        return await post(sim, TEXTS, path)

    seen = talk(
        replace(GITHUB, models=TINY_MODELS, requests_per_day=1, requests_per_minute=None), conversation
    )
    assert seen.status == 429
    assert seen.body["error"]["code"] == code
    if hours is None:
        assert "retry-after" not in seen.headers
    else:
        assert int(seen.headers["retry-after"]) in (hours * 3600, hours * 3600 - 1)
    assert (seen.headers.get("x-ratelimit-type") == "UserByModelByDay") == ("inference" in path)


def test_a_client_that_keeps_the_limit_is_never_refused() -> None:
    async def conversation(sim: Simulator) -> Counter[int]:
        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(post(sim, [f"row {number}"])))
            await asyncio.sleep(60 / 3_000)
        await asyncio.gather(*tasks)
        return sim.statuses

    assert talk(RPM_BOUND, conversation) == {200: 400}


def test_a_faulty_provider_serves_the_rest_and_bills_what_it_computed() -> None:
    async def conversation(sim: Simulator) -> Simulator:
        await asyncio.gather(*(post(sim, [f"row {number}"]) for number in range(300)))
        await asyncio.sleep(1)
        return sim

    sim = talk(FAULTY, conversation)
    wrong = [logged for logged in sim.log if logged.fault]
    assert 0.2 < len(wrong) / 300 < 0.4
    assert sim.billed_texts == sum(logged.texts for logged in sim.log if logged.billed)
    assert sim.billed_tokens == sum(logged.tokens for logged in sim.log if logged.billed)
    assert all(logged.status == 200 and logged.billed for logged in sim.log if not logged.fault)
