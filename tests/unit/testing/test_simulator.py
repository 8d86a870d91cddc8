"""The simulated provider answers as the vendors do, counts everything and keeps no text."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np
import pytest

from vecmill.core.tokens import count
from vecmill.testing.clock import START, run_virtual
from vecmill.testing.scenarios import MODEST, TINY_MODELS, Latency, Model, Scenario
from vecmill.testing.simulator import CLIENT_LEFT, Fault, Logged, Simulator, simulator_thread

SMALL = "text-embedding-3-small"
TINY = Scenario(models=TINY_MODELS)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


Ask = Callable[..., Awaitable[Answer]]


async def ask(
    sim: Simulator,
    body: Any = None,
    *,
    url: str | None = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
    timeout: float = 60,
    **more: Any,
) -> Answer:
    """Make one request; `more` is put into the body."""
    if body is None and method == "POST":
        body = {"model": SMALL, **more}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {sim.key}"} if headers is None else headers
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session,
        session.request(method, url or f"{sim.url}/embeddings", data=raw, headers=sent) as reply,
    ):
        content = await reply.read()
        body = json.loads(content) if "json" in reply.headers["Content-Type"] else content
        return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, body)


def talk(scenario: Scenario, conversation: Callable[[Simulator], Awaitable[Any]]) -> Any:
    """Run a conversation with a simulator on virtual time."""

    async def main() -> Any:
        async with Simulator(scenario) as sim:
            return await conversation(sim)

    return run_virtual(main())


def error(answer: Answer) -> dict[str, Any]:
    assert set(answer.body) == {"error"}
    found: dict[str, Any] = answer.body["error"]
    return found


def test_reply_has_openais_shape_and_its_own_count_of_tokens() -> None:
    texts = ["hello world", "<|endoftext|> 你好，世界 👩‍🚀"]

    async def conversation(sim: Simulator) -> Answer:
        return await ask(sim, input=texts)

    answer = talk(TINY, conversation)
    total = int(count(texts).sum())
    assert answer.status == 200
    assert set(answer.body) == {"object", "data", "model", "usage"}
    assert answer.body["object"] == "list"
    assert answer.body["model"] == SMALL
    assert answer.body["usage"] == {"prompt_tokens": total, "total_tokens": total}
    assert [item["index"] for item in answer.body["data"]] == [0, 1]
    assert {item["object"] for item in answer.body["data"]} == {"embedding"}
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["openai-processing-ms"] == "0"
    assert answer.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"


def test_base64_is_little_endian_float32_of_the_same_vectors() -> None:
    async def conversation(sim: Simulator) -> tuple[Answer, Answer, Any]:
        texts = ["a", "b"]
        plain = await ask(sim, input=texts)
        packed = await ask(sim, input=texts, encoding_format="base64")
        return plain, packed, sim.vectors(texts, SMALL)

    plain, packed, wanted = talk(TINY, conversation)
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in packed.body["data"]]
    np.testing.assert_array_equal(np.stack(rows), wanted)
    numbers = np.array([item["embedding"] for item in plain.body["data"]], dtype=np.float32)
    np.testing.assert_array_equal(numbers, wanted)


def test_vectors_depend_on_text_and_model_and_nothing_else() -> None:
    sim, other = Simulator(TINY), Simulator(replace(TINY, seed=5))
    vectors = sim.vectors(["a", "b", "a"])
    np.testing.assert_array_equal(vectors, other.vectors(["a", "b", "a"]))
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert abs(float(vectors[0] @ vectors[1])) < 0.99
    assert not np.array_equal(sim.vectors(["a"], "text-embedding-ada-002"), vectors[:1])


def test_fewer_dimensions_are_the_first_ones_at_unit_length() -> None:
    async def conversation(sim: Simulator) -> tuple[list[float], Any]:
        answer = await ask(sim, input="a", dimensions=256)
        return answer.body["data"][0]["embedding"], sim.vectors(["a"], SMALL)[0]

    short, full = talk(Scenario(), conversation)
    assert len(full) == 1536
    cut = full[:256] / np.linalg.norm(full[:256])
    np.testing.assert_allclose(np.array(short), cut, rtol=1e-5, atol=1e-7)


def test_token_arrays_are_the_texts_they_stand_for() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        one, many = [15339, 1917], [[15339, 1917], [15339]]
        return [await ask(sim, input=value) for value in ("hello world", one, many, [[200_000]])]

    text, one, many, unknown = talk(TINY, conversation)
    assert one.body["data"] == text.body["data"]
    assert one.body["usage"]["total_tokens"] == 2
    assert many.body["data"][0]["embedding"] == text.body["data"][0]["embedding"]
    assert many.body["usage"]["total_tokens"] == 3
    assert unknown.status == 400


@pytest.mark.parametrize(
    ("more", "message", "param", "code"),
    [
        ({"input": ""}, "'$.input' is invalid.", None, None),
        ({"input": []}, "'$.input' is invalid.", None, None),
        ({"input": ["a", ""]}, "'$.input' is invalid.", None, None),
        ({"input": ["a", 1]}, "'$.input' is invalid.", None, None),
        ({"input": [[]]}, "'$.input' is invalid.", None, None),
        ({"input": [[1, "a"]]}, "'$.input' is invalid.", None, None),
        ({"input": {"text": "a"}}, "'$.input' is invalid.", None, None),
        ({}, "Missing required parameter: 'input'.", "input", "missing_required_parameter"),
        ({"input": "a", "model": ""}, "you must provide a model parameter", None, None),
        (
            {"input": "a", "encoding_format": "hex"},
            "Invalid value: 'hex'",
            "encoding_format",
            "invalid_value",
        ),
        ({"input": "a", "dimensions": 9}, "Must be less than or equal to 8.", "dimensions", None),
        (
            {"input": "a", "dimensions": 0},
            "Expected a value >= 1, but got 0 instead.",
            "dimensions",
            "integer_below_min_value",
        ),
        ({"input": "a", "dimensions": True}, "expected an integer", "dimensions", "invalid_type"),
        (
            {"input": "a", "dimensions": 8, "model": "text-embedding-ada-002"},
            "This model does not support specifying dimensions.",
            None,
            None,
        ),
        ({"input": "a", "user": 1}, "Invalid type for 'user'", "user", "invalid_type"),
        ({"input": "a", "texts": 1}, "Unrecognized request argument supplied: texts", None, None),
        (
            {"input": ["a"] * 2049},
            "Expected an array with maximum length 2048, but got an array with length 2049 instead.",
            "input",
            "array_above_max_length",
        ),
        (
            {"input": "a " * 8193},
            "maximum context length is 8192 tokens, however you requested 8194 tokens",
            None,
            None,
        ),
    ],
)
def test_wrong_requests_are_refused_in_openais_words(
    more: dict[str, Any], message: str, param: str | None, code: str | None
) -> None:
    async def conversation(sim: Simulator) -> tuple[Answer, int]:
        return await ask(sim, **more), sim.billed_tokens

    answer, billed = talk(TINY, conversation)
    assert answer.status == 400
    found = error(answer)
    assert message in found["message"]
    assert (found["type"], found["param"], found["code"]) == ("invalid_request_error", param, code)
    assert billed == 0


def test_too_many_tokens_in_one_request_are_refused() -> None:
    async def conversation(sim: Simulator) -> Answer:
        return await ask(sim, input=["one two three"] * 4)

    found = error(talk(replace(TINY, max_request_tokens=11), conversation))
    assert found["message"] == "Requested 12 tokens, max 11 tokens per request"
    assert found["code"] == "max_tokens_per_request"


def test_limits_are_inclusive() -> None:
    async def conversation(sim: Simulator) -> list[int]:
        scenario_exact = [await ask(sim, input=["one two three"] * 4), await ask(sim, input=["a"] * 4)]
        return [answer.status for answer in scenario_exact]

    assert talk(replace(TINY, max_request_tokens=12, max_inputs=4), conversation) == [200, 200]


@pytest.mark.parametrize(
    ("wording", "status", "message"),
    [
        ("openai", 400, "maximum length 16, but got an array with length 17"),
        ("limit", 400, "The max number of inputs is 16."),
        ("named", 413, "batch size 17 > maximum allowed batch size 16"),
        ("plain", 400, "too many inputs in one request"),
    ],
)
def test_too_many_inputs_are_refused_in_several_words(wording: str, status: int, message: str) -> None:
    async def conversation(sim: Simulator) -> Answer:
        return await ask(sim, input=["a"] * 17)

    answer = talk(replace(TINY, max_inputs=16, wording=wording), conversation)
    assert answer.status == status
    assert message in error(answer)["message"]


def test_a_body_that_is_no_json_or_too_large_is_refused() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        return [await ask(sim, b"{"), await ask(sim, b"[]"), await ask(sim, b"x" * 1001)]

    broken, array, large = talk(replace(TINY, max_request_bytes=1000), conversation)
    assert broken.status == array.status == 400
    assert error(broken)["message"].startswith("We could not parse the JSON body of your request.")
    assert large.status == 413
    assert error(large)["code"] == "content_too_large"


def test_unknown_models_and_paths_are_not_found() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        return [
            await ask(sim, input="a", model="gpt-9"),
            await ask(sim, url=f"{sim.url}/nothing", input="a"),
            await ask(sim, url=f"{sim.url}/embeddings", method="GET"),
        ]

    model, path, method = talk(TINY, conversation)
    assert (model.status, path.status, method.status) == (404, 404, 404)
    assert error(model)["code"] == "model_not_found"
    assert error(path)["message"] == "Invalid URL (POST /v1/nothing)"


def test_keys_are_checked_and_shown_masked() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        wrong = {"Authorization": "Bearer sk-wrong-0123456789abcdef"}
        azure = f"{sim.azure_url}/openai/v1/embeddings"
        asked = [
            await ask(sim, headers={}, input="a"),
            await ask(sim, headers=wrong, input="a"),
            await ask(sim, headers={"api-key": sim.key}, input="a"),
            await ask(sim, headers={"Authorization": "Bearer ключ"}, input="a"),
            await ask(sim, headers={"api-key": "no"}, input="a", url=azure),
            await ask(sim, headers=wrong, input="a", url=f"{sim.github_url}/embeddings"),
            await ask(sim, headers={}, url=f"{sim.url}/models", method="GET"),
            await ask(sim, headers={}, url=f"{sim.url}/models/{SMALL}", method="GET"),
        ]
        assert sim.requests == 6
        assert sim.billed_tokens == 0
        return asked

    answers = talk(TINY, conversation)
    assert [answer.status for answer in answers] == [401] * 8
    none, wrong, other, _, azure, github, *_ = answers
    assert error(none)["code"] is None
    assert error(wrong)["code"] == "invalid_api_key"
    assert "sk-w" in error(wrong)["message"]
    assert "wrong-0123456789" not in error(wrong)["message"]
    assert "didn't provide" in error(other)["message"]
    assert error(azure)["message"].startswith("Access denied due to invalid subscription key")
    assert error(github)["message"] == "Bad credentials"


def test_azure_takes_deployments_in_the_path_and_the_body() -> None:
    scenario = replace(TINY, deployments={"reviews": SMALL})

    async def conversation(sim: Simulator) -> list[Answer]:
        base, key = f"{sim.azure_url}/openai", {"api-key": sim.key}
        classic = f"{base}/deployments/reviews/embeddings"
        return [
            await ask(sim, {"input": "a"}, url=f"{classic}?api-version=2024-10-21", headers=key),
            await ask(sim, url=f"{base}/v1/embeddings", headers=key, model="reviews", input="a"),
            await ask(sim, url=f"{base}/v1/embeddings", model="reviews", input="a"),
            await ask(sim, {"input": "a"}, url=classic, headers=key),
            await ask(
                sim,
                {"input": "a"},
                url=f"{base}/deployments/absent/embeddings?api-version=2024-10-21",
                headers=key,
            ),
            await ask(sim, {"input": ""}, url=f"{classic}?api-version=2024-10-21", headers=key),
        ]

    classic, v1, bearer, unversioned, absent, empty = talk(scenario, conversation)
    assert [a.status for a in (classic, v1, bearer)] == [200, 200, 200]
    assert classic.body["model"] == SMALL
    assert classic.body["data"] == v1.body["data"] == bearer.body["data"]
    assert classic.headers["apim-request-id"]
    assert (unversioned.status, absent.status, empty.status) == (404, 404, 400)
    assert error(absent)["code"] == "DeploymentNotFound"
    for answer in (unversioned, absent, empty):
        assert set(error(answer)) == {"code", "message"}


def test_github_names_models_with_their_publisher() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        url = f"{sim.github_url}/embeddings"
        names = (f"openai/{SMALL}", SMALL, "openai/absent")
        return [await ask(sim, url=url, model=name, input="a") for name in names]

    right, bare, absent = talk(TINY, conversation)
    assert right.status == 200
    assert right.body["model"] == SMALL
    assert (bare.status, absent.status) == (400, 400)
    assert error(absent)["code"] == "unknown_model"


def test_models_are_listed() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        base = f"{sim.url}/models"
        return [await ask(sim, url=url, method="GET") for url in (base, f"{base}/{SMALL}", f"{base}/a/b")]

    many, one, absent = talk(TINY, conversation)
    assert [model["id"] for model in many.body["data"]] == list(TINY_MODELS)
    assert many.body["data"][0] == one.body
    assert absent.status == 404


def test_a_server_without_base64_ignores_or_refuses_it() -> None:
    async def conversation(sim: Simulator) -> list[Answer]:
        name = next(iter(sim.scenario.models))
        return [await ask(sim, input="a", model=name, encoding_format=form) for form in ("base64", "float")]

    refused, right = talk(MODEST, conversation)
    assert (refused.status, right.status) == (400, 200)
    assert error(refused)["param"] == "encoding_format"
    ignored, right = talk(replace(MODEST, base64="ignored"), conversation)
    assert ignored.body["data"] == right.body["data"]
    assert isinstance(ignored.body["data"][0]["embedding"], list)


def test_a_poisoned_text_is_refused_without_saying_which() -> None:
    async def conversation(sim: Simulator) -> tuple[Answer, Answer]:
        return await ask(sim, input=["a", "some POISON here", "b"]), await ask(sim, input=["a", "b"])

    refused, right = talk(replace(TINY, poison="POISON"), conversation)
    assert (refused.status, right.status) == (400, 200)
    found = error(refused)
    assert found["param"] is None
    assert "POISON" not in found["message"]
    assert "1" not in found["message"]


def test_the_log_proves_what_was_asked_and_paid_but_holds_no_text() -> None:
    scenario = replace(TINY, latency=Latency(seconds=2.0))

    async def conversation(sim: Simulator) -> Simulator:
        await ask(sim, input=["planted text", "b"])
        await ask(sim, input=["planted text"])
        await ask(sim, input=["c"], dimensions=99)
        return sim

    sim = talk(scenario, conversation)
    first, second, third = sim.log
    assert (first.number, first.path, first.model, first.texts) == (0, "/v1/embeddings", SMALL, 2)
    assert (first.status, first.billed, first.moment, first.seconds) == (200, True, START, 2.0)
    assert second.moment == START + 2.0
    assert (third.status, third.billed) == (400, False)
    assert first.digests[0] == second.digests[0]
    assert sim.requests == 3
    assert sim.statuses == {200: 2, 400: 1}
    assert sim.times_billed("planted text") == sim.times_sent("planted text") == 2
    assert sim.times_billed("never") == 0
    assert (sim.billed_texts, sim.distinct_billed_texts) == (3, 2)
    tokens = 2 * sim.count("planted text") + sim.count("b")
    assert sim.billed_tokens == tokens
    assert sim.billed_usd == pytest.approx(tokens * 0.02 / 1e6)
    assert sim.summary()["requests"] == 3
    assert sim.visits["POST /v1/embeddings"] == 3
    assert "planted" not in repr(vars(sim))


def test_a_key_in_a_url_is_noticed() -> None:
    async def conversation(sim: Simulator) -> tuple[bool, bool]:
        await ask(sim, input="a")
        before = sim.key_seen_in_urls
        await ask(sim, input="a", url=f"{sim.url}/embeddings?api-key={sim.key}")
        return before, sim.key_seen_in_urls

    assert talk(TINY, conversation) == (False, True)


@pytest.mark.parametrize(
    ("latency", "least", "most"),
    [
        (Latency(seconds=3.0), 3.0, 3.0),
        (Latency(seconds=3.0, per_token=0.5), 3.5, 3.5),
        (Latency("uniform", 1.0, most=2.0), 1.0, 2.0),
        (Latency("lognormal", 1.0, sigma=0.2), 0.3, 3.0),
    ],
)
def test_latency_is_as_the_scenario_says_and_the_same_each_time(
    latency: Latency, least: float, most: float
) -> None:
    async def conversation(sim: Simulator) -> list[float]:
        for _ in range(20):
            await ask(sim, input="a")
        return [logged.seconds for logged in sim.log]

    scenario = replace(TINY, latency=latency)
    seconds = talk(scenario, conversation)
    assert all(least - 1e-6 <= s <= most + 1e-6 for s in seconds)
    assert len({round(s, 6) for s in seconds}) == (1 if latency.kind == "constant" else 20)
    assert talk(scenario, conversation) == pytest.approx(seconds)


def test_requests_in_flight_are_counted_at_their_peak() -> None:
    async def conversation(sim: Simulator) -> int:
        await asyncio.gather(*(ask(sim, input=f"text {number}") for number in range(5)))
        await ask(sim, input="last")
        return sim.peak_in_flight

    assert talk(replace(TINY, latency=Latency(seconds=1.0)), conversation) == 5


def test_what_a_client_does_not_wait_for_is_computed_and_billed() -> None:
    async def conversation(sim: Simulator) -> Simulator:
        with pytest.raises(TimeoutError):
            await ask(sim, input="a", timeout=2)
        await asyncio.sleep(20)
        return sim

    sim = talk(replace(TINY, latency=Latency(seconds=10.0)), conversation)
    assert sim.times_billed("a") == 1
    assert sim.log[0].status == CLIENT_LEFT
    assert sim.log[0].seconds == pytest.approx(10.0)


def test_answers_for_batches_are_checked_and_billed_at_their_price() -> None:
    sim = Simulator(replace(TINY, poison="POISON", max_inputs=2))
    status, body = sim.answer_line(SMALL, ["a", "b c"], 4, base64=True)
    assert status == 200
    assert [item["index"] for item in body["data"]] == [0, 1]
    row = np.frombuffer(base64.b64decode(body["data"][1]["embedding"]), "<f4")
    np.testing.assert_array_equal(row, sim.vectors(["b c"], SMALL, 4)[0])
    assert sim.billed_tokens == 3
    assert sim.billed_usd == pytest.approx(3 * 0.01 / 1e6)
    for texts in (["POISON"], ["a", "b", "c"], [""]):
        assert sim.answer(SMALL, texts)[0] == 400
    assert sim.answer("absent", ["a"])[0] == 404
    assert sim.billed_tokens == 3


def test_many_texts_are_counted_as_the_shipped_counter_counts_them() -> None:
    sim = Simulator(TINY)
    texts = [
        "",
        " ",
        "\n\n \t x",
        "don't WE'LL",
        "12345678",
        "ünïcödé",
        "a" * 50,
        "def f(x):\n\treturn x\n\n",
        "🧑🏽‍🚀",
    ]
    assert [sim.count(text) for text in texts] == count(texts).tolist()


def test_a_thread_serves_synchronous_code() -> None:
    with simulator_thread(Scenario(models={"tiny": Model(2)})) as sim:
        body = json.dumps({"model": "tiny", "input": "a"}).encode()
        request = urllib.request.Request(f"{sim.url}/embeddings", body)  # noqa: S310 - http
        request.add_header("Authorization", f"Bearer {sim.key}")
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            vector = json.load(reply)["data"][0]["embedding"]
    np.testing.assert_allclose(vector, sim.vectors(["a"])[0], rtol=1e-6)
    assert sim.requests == 1


def test_the_official_client_understands_it() -> None:
    openai = pytest.importorskip("openai")
    with simulator_thread(TINY) as sim:
        client = openai.OpenAI(base_url=sim.url, api_key=sim.key, max_retries=0)
        found = client.embeddings.create(model=SMALL, input=["a", "b"], dimensions=4)
        np.testing.assert_allclose(
            [item.embedding for item in found.data], sim.vectors(["a", "b"], SMALL, 4), rtol=1e-6
        )
        assert found.usage.total_tokens == 2
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="absent", input="a")
        azure = openai.AzureOpenAI(
            azure_endpoint=sim.azure_url, api_key=sim.key, api_version="2024-10-21", max_retries=0
        )
        assert azure.embeddings.create(model=SMALL, input="a").model == SMALL
        client.close()
        azure.close()


def test_importing_the_package_loads_nothing_heavy_and_every_name_loads() -> None:
    code = (
        "import sys, vecmill.testing as testing\n"
        "assert not {'aiohttp', 'numpy', 'orjson', 'tiktoken'} & set(sys.modules)\n"
        "for name in testing.__all__: getattr(testing, name)\n"
        "assert set(testing.__all__) == set(testing._HOMES) == set(dir(testing))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_clients_may_come_at_once() -> None:
    async def conversation(sim: Simulator) -> list[int]:
        answers = await asyncio.gather(
            *(ask(sim, input=f"text {number}", timeout=5) for number in range(300))
        )
        return [answer.status for answer in answers]

    assert talk(TINY, conversation) == [200] * 300


def test_five_faulty_minutes_repeat_themselves_exactly() -> None:
    scenario = replace(TINY, latency=Latency("lognormal", 2.0), faults=(Fault("mix", share=0.5),), seed=3)

    async def one(sim: Simulator, number: int) -> None:
        await asyncio.sleep(5 * number)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
            await ask(sim, input=f"text {number}", timeout=90)

    async def conversation(sim: Simulator) -> list[Logged]:
        await asyncio.gather(*(one(sim, number) for number in range(60)))
        await asyncio.sleep(1)
        return sim.log

    first = talk(scenario, conversation)
    assert len({logged.fault for logged in first}) > 10
    assert talk(scenario, conversation) == first
