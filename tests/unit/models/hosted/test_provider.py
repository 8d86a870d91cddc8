"""The hosted provider, over real HTTP: what it sends, takes, refuses, learns and never shows."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pytest
from aiohttp import web

from vecmill.core.errors import (
    AuthenticationError,
    BadReplyError,
    InputError,
    ProviderError,
    QuotaExhaustedError,
    RateLimitError,
    RefusedError,
    TextTooLongError,
    UnavailableError,
)
from vecmill.core.http import Session
from vecmill.core.space import PROBE_TEXTS, space_id
from vecmill.core.tokens import count
from vecmill.core.types import InputType
from vecmill.models.base import Encoded, Reply
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.provider import HostedProvider
from vecmill.testing.clock import run_virtual
from vecmill.testing.scenarios import OPENAI_MODELS, Model, Scenario
from vecmill.testing.simulator import Fault, Simulator

T = TypeVar("T")
SMALL = "text-embedding-3-small"
FACTS = Facts(
    catalogue_name=SMALL,
    dimensions=1536,
    mrl=True,
    usd_per_million_tokens=0.02,
    batch_usd_per_million_tokens=0.01,
)
TEXTS = ("the mill turns", "grain into flour", "old stone bridge", "ünïcödé 麻辣", "the mill turns")
UNKNOWN = Facts(exact=False)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def connect(simulator: Simulator, door: str = "openai", model: str = SMALL, **changes: Any) -> Connection:
    """Connect to one of a simulator's doors, as the builders of connections do."""
    login_header = "api-key" if door.startswith("azure") else "Authorization"
    value = simulator.key if door.startswith("azure") else f"Bearer {simulator.key}"

    async def login() -> Mapping[str, str]:
        return {login_header: value}

    urls = {
        "openai": f"{simulator.url}/embeddings",
        "github": f"{simulator.github_url}/embeddings",
        "azure": f"{simulator.azure_url}/openai/deployments/{model}/embeddings?api-version=2024-10-21",
        "azure_v1": f"{simulator.azure_url}/openai/v1/embeddings",
    }
    made = Connection(
        provider=door.removesuffix("_v1"),
        name=f"{door}:{model}",
        model=model,
        embeddings_url=urls[door],
        login=login,
        facts=FACTS,
        account="0123456789ab",
        sends_model=door != "azure",
        vouched=True,
        timeout=30.0,
    )
    return replace(made, **changes)


def documents(provider: HostedProvider, *texts: str) -> Encoded:
    return provider.encode(texts, input_type=InputType.DOCUMENT)


async def embedding(provider: HostedProvider, *texts: str) -> Reply:
    return await provider.embed(documents(provider, *texts))


def with_simulator(
    use: Callable[[Simulator], Awaitable[T]], scenario: Scenario | None = None, *, real: bool = False
) -> T:
    """Run against a simulator in the same loop, on virtual time unless said otherwise."""

    async def main() -> T:
        async with Simulator(scenario) as simulator:
            return await use(simulator)

    return asyncio.run(main()) if real else run_virtual(main())


@asynccontextmanager
async def opened(connection: Connection, **options: Any) -> AsyncIterator[HostedProvider]:
    provider = HostedProvider(connection, **options)
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def serving(
    answer: Callable[[dict[str, Any]], Any],
) -> AsyncIterator[tuple[Connection, list[dict[str, Any]]]]:
    """Serve what a function makes of each body; give a connection to it and the bodies that came."""
    bodies: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        bodies.append({**body, "": request.path_qs, "headers": dict(request.headers)})
        made = answer(body)
        return made if isinstance(made, web.Response) else web.json_response(made)

    app = web.Application(client_max_size=2**28)
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    origin = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def login() -> Mapping[str, str]:
        return {"Authorization": "Bearer sk-here-0123"}

    try:
        yield Connection("openai", "openai:m", "m", f"{origin}/v1/embeddings", login, UNKNOWN), bodies
    finally:
        await runner.cleanup()


def numbers(body: dict[str, Any], *, width: int = 6, model: str = "m", scale: float = 1.0) -> dict[str, Any]:
    """Answer with vectors as lists of numbers, one per text, of a length."""
    n = len(body["input"])
    rows = np.random.default_rng(n).standard_normal((n, body.get("dimensions", width)))
    rows *= scale / np.linalg.norm(rows, axis=1)[:, None]
    data = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 5 * n}}


# What comes back.


@pytest.mark.parametrize("door", ["openai", "github", "azure", "azure_v1"])
def test_every_door_answers_in_order(door: str) -> None:
    async def use(simulator: Simulator) -> None:
        model = f"openai/{SMALL}" if door == "github" else SMALL
        async with opened(connect(simulator, door, model)) as provider:
            reply = await embedding(provider, *TEXTS)
            assert np.array_equal(reply.vectors, simulator.vectors(TEXTS))
            assert reply.vectors.flags.c_contiguous
            assert simulator.requests == 1
            assert reply.request_id

    with_simulator(use)


def test_usage_is_the_providers_bill() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            seen: list[tuple[int, int]] = []
            encoded = documents(provider, *TEXTS)
            reply = await provider.embed(encoded, advance=lambda n, k: seen.append((n, k)))
            assert reply.usage.tokens == simulator.billed_tokens == int(encoded.tokens.sum())
            assert reply.usage.usd == pytest.approx(simulator.billed_usd)
            assert (reply.usage.texts, reply.usage.requests) == (5, 1)
            assert seen == [(5, reply.usage.tokens)]

    with_simulator(use)


def test_rates_are_read() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            rates = (await embedding(provider, "a")).rates
            assert rates is not None
            assert (rates.limit_requests, rates.limit_tokens) == (600, 100_000)
            assert rates.remaining_requests == 599

    with_simulator(use, Scenario(requests_per_minute=600, tokens_per_minute=100_000))


def test_own_count_is_used_where_the_reply_has_none() -> None:
    async def main() -> None:
        async with (
            serving(lambda body: {**numbers(body), "usage": None}) as (connection, _),
            opened(connection) as provider,
        ):
            encoded = documents(provider, "one two", "three")
            reply = await provider.embed(encoded)
            assert reply.usage.tokens == int(encoded.tokens.sum())
            assert reply.usage.usd is None

    asyncio.run(main())


def test_nothing_in_sends_nothing() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            reply = await embedding(provider)
            assert reply.vectors.shape == (0, 1536)
            assert reply.usage.requests == simulator.requests == 0

    with_simulator(use)


def test_reply_of_many_megabytes_is_the_same() -> None:
    async def use(simulator: Simulator) -> None:
        texts = [f"text {i}" for i in range(600)]
        async with opened(connect(simulator)) as provider:
            assert np.array_equal((await embedding(provider, *texts)).vectors, simulator.vectors(texts))

    with_simulator(use, Scenario(base64="accepted"))


# What is sent.


def test_request_says_what_it_must_and_no_more() -> None:
    async def main() -> None:
        async with serving(numbers) as (connection, bodies):
            connection = replace(connection, headers={"OpenAI-Project": "p"})
            async with opened(connection) as provider:
                await embedding(provider, "a")
            async with opened(connection, user="u-1") as provider:
                await embedding(provider, "a")
        assert set(bodies[0]) - {"", "headers"} == {"input", "model", "encoding_format"}
        assert (bodies[0]["model"], bodies[0]["encoding_format"]) == ("m", "base64")
        assert bodies[0]["headers"]["OpenAI-Project"] == "p"
        assert bodies[0]["headers"]["Authorization"] == "Bearer sk-here-0123"
        assert bodies[0]["headers"]["Content-Type"] == "application/json"
        assert bodies[1]["user"] == "u-1"

    asyncio.run(main())


def test_login_is_asked_for_each_request() -> None:
    given = iter(("first", "second"))

    async def login() -> Mapping[str, str]:
        return {"Authorization": next(given)}

    async def main() -> None:
        async with (
            serving(numbers) as (connection, bodies),
            opened(replace(connection, login=login)) as provider,
        ):
            await embedding(provider, "a")
            await embedding(provider, "a")
        assert [body["headers"]["Authorization"] for body in bodies] == ["first", "second"]

    asyncio.run(main())


def test_classic_azure_names_the_deployment_in_the_address_alone() -> None:
    async def main() -> None:
        async with serving(numbers) as (connection, bodies):
            url = (
                connection.embeddings_url.replace("/v1/", "/openai/deployments/my%20one/") + "?api-version=1"
            )
            made = replace(
                connection, provider="azure", model="my one", embeddings_url=url, sends_model=False
            )
            async with opened(made) as provider:
                await embedding(provider, "a")
                await embedding(provider.varied(deployment="other/one"), "a")
        assert "model" not in bodies[0]
        assert bodies[0][""] == "/openai/deployments/my%20one/embeddings?api-version=1"
        assert bodies[1][""] == "/openai/deployments/other%2Fone/embeddings?api-version=1"

    asyncio.run(main())


def test_prefixes_are_sent_and_counted() -> None:
    async def main() -> None:
        async with serving(numbers) as (connection, bodies):
            facts = replace(UNKNOWN, document_prefix="passage: ", query_prefix="query: ")
            async with opened(replace(connection, facts=facts)) as provider:
                document = documents(provider, "mill")
                query = provider.encode(["mill"], input_type=InputType.QUERY)
                assert (document.texts, query.texts) == (("passage: mill",), ("query: mill",))
                assert document.tokens.tolist() == count(["passage: mill"]).tolist()
                await provider.embed(document)
                text = "mill " * 99
                spans = provider.split(text, max_tokens=12, input_type=InputType.QUERY)
                pieces = [text[span.start : span.end] for span in spans]
                assert provider.encode(pieces, input_type=InputType.QUERY).tokens.max() <= 12
        assert bodies[0]["input"] == ["passage: mill"]

    asyncio.run(main())


def test_queries_of_a_pair_go_to_the_other_model() -> None:
    async def main() -> None:
        async with serving(lambda body: numbers(body, model=body["model"])) as (connection, bodies):
            facts = replace(UNKNOWN, query_model="text-embedding-3-large", catalogue_name=SMALL, dimensions=6)
            made = replace(connection, facts=facts, vouched=True)
            async with opened(made) as provider:
                query = provider.encode(["mill"], input_type=InputType.QUERY)
                assert (query.variant, documents(provider, "a").variant) == ("text-embedding-3-large", "")
                assert query.take([0]).variant == "text-embedding-3-large"
                assert provider.truncate(query, max_tokens=1).variant == "text-embedding-3-large"
                await provider.embed(query)
                await embedding(provider, "a")
        assert [body["model"] for body in bodies] == ["text-embedding-3-large", "m"]

    asyncio.run(main())


def test_half_of_a_surrogate_pair_is_refused_before_anything_is_sent() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            with pytest.raises(InputError, match="text 1 holds half"):
                documents(provider, "fine", "\ud800")
            whole = documents(provider, "fine")
            with pytest.raises(InputError, match="text 0 holds half"):
                await provider.embed(replace(whole, texts=("\ud800",)))
            assert simulator.requests == 0

    with_simulator(use)


def test_long_text_is_refused_before_anything_is_sent() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            encoded = documents(provider, "fine", "AGI " * 5000)
            with pytest.raises(TextTooLongError, match="text 1 has 10001 tokens"):
                await provider.embed(encoded)
            cut = provider.truncate(encoded, max_tokens=8192)
            assert (await provider.embed(cut)).vectors.shape == (2, 1536)
            assert simulator.requests == 1

    with_simulator(use)


def test_lower_limit_of_tokens_is_kept_and_a_higher_one_refused() -> None:
    connection = Connection("openai", "openai:m", "m", "https://h/v1/embeddings", _nobody, FACTS)
    assert HostedProvider(connection, max_tokens=100, session=Session()).info.max_tokens == 100
    for wrong in (0, 8193):
        with pytest.raises(InputError, match="takes 1 to 8192"):
            HostedProvider(connection, max_tokens=wrong, session=Session())
    unknown = replace(connection, facts=UNKNOWN)
    assert HostedProvider(unknown, max_tokens=32_000, session=Session()).info.max_tokens == 32_000


async def _nobody() -> Mapping[str, str]:
    return {}


# base64, or not.


def test_numbers_are_taken_and_base64_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "e.json"

    async def main() -> None:
        async with serving(numbers) as (connection, bodies):
            connection = replace(connection, learned_path=path)
            async with opened(connection) as provider:
                reply = await embedding(provider, *TEXTS)
                assert reply.vectors.shape == (5, 6)
                await embedding(provider, *TEXTS)
            async with opened(connection) as provider:
                await embedding(provider, *TEXTS)
        assert ["encoding_format" in body for body in bodies] == [True, False, False]

    asyncio.run(main())


def test_refused_base64_is_asked_once_more_without(tmp_path: Path) -> None:
    async def use(simulator: Simulator) -> None:
        connection = connect(simulator, learned_path=tmp_path / "e.json")
        async with opened(connection) as provider:
            reply = await embedding(provider, *TEXTS)
            assert np.allclose(reply.vectors, simulator.vectors(TEXTS), atol=1e-7)
            assert reply.usage.requests == simulator.requests == 2
            await embedding(provider, *TEXTS)
        async with opened(connection) as provider:
            await embedding(provider, *TEXTS)
        assert simulator.requests == 4

    with_simulator(use, Scenario(base64="refused"))


def test_refusal_of_something_else_is_not_taken_for_base64() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            with pytest.raises(RefusedError):
                await embedding(provider, "a poisoned text")
            assert simulator.requests == 1

    with_simulator(use, Scenario(poison="poison"))


# What goes wrong: one request, one error.

FAULTS: dict[str, tuple[type[ProviderError], bool]] = {
    "rate_seconds": (RateLimitError, True),
    "rate_float": (RateLimitError, True),
    "rate_date": (RateLimitError, True),
    "rate_ms": (RateLimitError, True),
    "rate_reset": (RateLimitError, True),
    "rate_message": (RateLimitError, True),
    "rate_silent": (RateLimitError, True),
    "rate_200": (RateLimitError, True),
    "500": (UnavailableError, True),
    "502": (UnavailableError, True),
    "503": (UnavailableError, True),
    "reset_before": (UnavailableError, True),
    "reset_after": (UnavailableError, True),
    "timeout": (UnavailableError, True),
    "truncated": (UnavailableError, True),
    "cut_json": (BadReplyError, True),
    "count": (BadReplyError, True),
    "missing_index": (BadReplyError, True),
    "duplicate_index": (BadReplyError, True),
    "narrow": (BadReplyError, True),
    "nan": (BadReplyError, True),
    "zero": (BadReplyError, True),
    "401": (AuthenticationError, False),
    "413": (RefusedError, False),
    "quota": (QuotaExhaustedError, False),
    "redirect": (ProviderError, False),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_fault_is_one_request_and_its_own_error(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wanted, retryable = FAULTS[kind]

    async def use(simulator: Simulator) -> ProviderError:
        async with opened(connect(simulator)) as provider:
            with pytest.raises(ProviderError) as caught:
                await embedding(provider, *TEXTS)
            shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
            assert simulator.key not in shown + caplog.text
            assert not any(text in shown + caplog.text for text in TEXTS)
            assert sum(simulator.visits.values()) == 1
            assert simulator.elsewhere == []
            again = await embedding(provider, *TEXTS)
            assert np.array_equal(again.vectors, simulator.vectors(TEXTS))
            return caught.value

    error = with_simulator(use, Scenario(faults=(Fault(kind, times=1),)))
    assert type(error) is wanted
    assert error.retryable is retryable
    assert (error.provider, error.model) == ("openai", SMALL)


def test_a_hastened_request_that_hangs_ends_at_the_smaller_time() -> None:
    async def use(simulator: Simulator) -> tuple[float, float]:
        async with opened(connect(simulator)) as provider:
            provider.hasten(4.0)
            provider.hasten(1_000.0)
            started = asyncio.get_running_loop().time()
            with pytest.raises(UnavailableError):
                await embedding(provider, *TEXTS)
            return asyncio.get_running_loop().time() - started, provider.endpoint.timeout

    took, limit = with_simulator(use, Scenario(faults=(Fault("timeout", times=1),)))
    assert took == pytest.approx(4.0, abs=0.1)
    assert limit == 4.0


@pytest.mark.parametrize(
    "kind", [kind for kind in FAULTS if kind.startswith("rate_") and kind != "rate_silent"]
)
def test_every_dialect_says_how_long_to_wait(kind: str) -> None:
    async def use(simulator: Simulator) -> float | None:
        loop = asyncio.get_running_loop()
        async with opened(connect(simulator), now=loop.now) as provider:  # type: ignore[attr-defined]  # VirtualLoop
            with pytest.raises(RateLimitError) as caught:
                await embedding(provider, "a")
            return caught.value.retry_after

    seconds = with_simulator(use, Scenario(faults=(Fault(kind, seconds=7.0),)))
    assert seconds == pytest.approx(7, abs=1)


@pytest.mark.parametrize("kind", ["shuffled", "floats"])
def test_what_is_unusual_and_right_is_taken(kind: str) -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            reply = await embedding(provider, *TEXTS)
            assert np.allclose(reply.vectors, simulator.vectors(TEXTS), atol=1e-7)

    with_simulator(use, Scenario(faults=(Fault(kind),)))


def test_refusal_that_quotes_text_and_key_shows_neither() -> None:
    planted = "A planted text nobody may read in an error."

    def refuse(body: dict[str, Any]) -> web.Response:
        text = body["input"][0]
        quoted = text if text == planted else "Bearer sk-here-0123"
        return web.json_response({"error": {"message": f"no: {quoted}"}}, status=400)

    async def main() -> None:
        async with serving(refuse) as (connection, _), opened(connection) as provider:
            for text in (planted, "fine"):
                with pytest.raises(RefusedError) as caught:
                    await embedding(provider, text)
                assert planted not in str(caught.value)
                assert "sk-here-0123" not in str(caught.value)

    asyncio.run(main())


def test_reply_names_who_it_came_from() -> None:
    async def main() -> None:
        async with (
            serving(lambda body: {"data": []}) as (connection, _),
            opened(connection) as provider,
        ):
            with pytest.raises(BadReplyError, match="openai:m: the reply has 0 vectors for 1 texts"):
                await embedding(provider, "a")

    asyncio.run(main())


def test_closed_provider_says_so_and_closing_twice_is_fine() -> None:
    async def use(simulator: Simulator) -> None:
        provider = HostedProvider(connect(simulator))
        await provider.close()
        await provider.close()
        with pytest.raises(InputError, match="closed"):
            await embedding(provider, "a")

    with_simulator(use)


# Dimensions.


def provider_of(facts: Facts, **options: Any) -> HostedProvider:
    connection = Connection(
        "openai", "openai:m", "m", "https://h/v1/embeddings", _nobody, facts, vouched=True
    )
    return HostedProvider(connection, session=Session(), **options)


def test_smaller_dimensions_are_cut_from_full_vectors() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator), dimensions=256) as provider:
            info = provider.info
            assert (info.dimensions, info.reply_dimensions, info.width) == (256, 1536, 1536)
            assert info.space == space_id("hosted", SMALL)
            assert (await embedding(provider, "a")).vectors.shape == (1, 1536)

    with_simulator(use)


def test_smaller_dimensions_are_sent_where_that_is_asked() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator), dimensions=256, send_dimensions=True) as provider:
            info = provider.info
            assert (info.dimensions, info.reply_dimensions, info.width) == (256, None, 256)
            assert info.space == space_id("hosted", SMALL)
            reply = await embedding(provider, "a")
            assert np.array_equal(reply.vectors, simulator.vectors(["a"], dimensions=256))

    with_simulator(use)


@pytest.mark.parametrize("mrl", [True, False, None])
@pytest.mark.parametrize("send", [True, False])
def test_native_dimensions_are_always_allowed_and_never_sent(mrl: bool | None, send: bool) -> None:
    provider = provider_of(replace(FACTS, mrl=mrl), dimensions=1536, send_dimensions=send)
    assert provider.info == provider_of(replace(FACTS, mrl=mrl)).info
    assert provider._known.sent_dimensions is None


def test_model_that_cannot_be_cut_names_those_that_can() -> None:
    with pytest.raises(InputError, match=r"cannot be cut.*openai:text-embedding-3-small"):
        provider_of(replace(FACTS, mrl=False), dimensions=256)


@pytest.mark.parametrize("mrl", [True, False, None])
@pytest.mark.parametrize("wrong", [0, -1, 1537])
def test_dimensions_nobody_has_are_refused(mrl: bool | None, wrong: int) -> None:
    with pytest.raises(InputError, match=f"dimensions is {wrong}"):
        provider_of(replace(FACTS, mrl=mrl), dimensions=wrong)


def test_unknown_model_is_asked_for_dimensions_and_that_is_another_space() -> None:
    facts = replace(UNKNOWN, dimensions=6)

    async def main() -> None:
        async with serving(numbers) as (connection, bodies):
            made = replace(connection, facts=facts)
            async with opened(made, dimensions=4) as provider:
                assert (await embedding(provider, "a")).vectors.shape == (1, 4)
                async with opened(made) as whole:
                    assert provider.info.space != whole.info.space
        assert bodies[0]["dimensions"] == 4

    asyncio.run(main())


def test_server_that_ignores_dimensions_is_noticed() -> None:
    def ignoring(body: dict[str, Any]) -> dict[str, Any]:
        body.pop("dimensions", None)
        return numbers(body)

    async def main() -> None:
        async with (
            serving(ignoring) as (connection, _),
            opened(replace(connection, facts=replace(UNKNOWN, dimensions=6)), dimensions=4) as provider,
        ):
            with pytest.raises(BadReplyError, match="6 dimensions instead of 4"):
                await embedding(provider, "a")

    asyncio.run(main())


# Spaces and endpoints.


def test_space_is_the_models_where_the_provider_vouches() -> None:
    def space(**changes: Any) -> str:
        base = Connection("openai", "n", "m", "https://h/v1/embeddings", _nobody, FACTS, vouched=True)
        return HostedProvider(replace(base, **changes), session=Session()).info.space

    vouched = space()
    assert vouched == space_id("hosted", SMALL)
    assert vouched == space(provider="azure", model="prod", embeddings_url="https://other/x?api-version=1")
    assert vouched != space(facts=replace(FACTS, catalogue_name="text-embedding-3-large"))
    own = space(vouched=False)
    assert own != vouched
    assert own == space(vouched=False, name="another", account="b")
    assert own == space(vouched=False, embeddings_url="https://h/v1/embeddings?api-version=2")
    assert own != space(vouched=False, model="other")
    assert own != space(vouched=False, embeddings_url="https://h/v2/embeddings")
    assert own != space(vouched=False, embeddings_url="https://g/v1/embeddings")


def test_endpoint_tells_accounts_and_deployments_apart() -> None:
    def endpoint(**changes: Any) -> str:
        base = Connection("openai", "n", "m", "https://h/v1/embeddings", _nobody, FACTS, account="a")
        return HostedProvider(replace(base, **changes), session=Session()).endpoint.id

    assert endpoint() == endpoint(name="other", embeddings_url="https://h/v1/embeddings?x=1")
    assert (
        len({endpoint(), endpoint(account="b"), endpoint(model="n"), endpoint(embeddings_url="https://g/v1")})
        == 4
    )
    assert len(endpoint()) == 32


def test_endpoint_and_info_say_what_the_connection_knows() -> None:
    connection = Connection(
        "azure", "azure:r", "m", "https://h/x", _nobody, FACTS, requests_per_minute=60, tokens_per_minute=9,
        max_concurrency=3, timeout=5.0,
    )  # fmt: skip
    provider = HostedProvider(connection, session=Session())
    endpoint, info = provider.endpoint, provider.info
    assert (endpoint.name, endpoint.requests_per_minute, endpoint.tokens_per_minute) == ("azure:r", 60, 9)
    assert (endpoint.max_concurrency, endpoint.timeout) == (3, 5.0)
    assert (info.name, info.provider, info.hosted, info.device) == ("azure:r", "azure", True, "h")
    assert (info.max_inputs, info.max_request_tokens, info.max_tokens) == (2048, 300_000, 8192)
    assert (info.usd_per_million_tokens, info.batch_usd_per_million_tokens) == (0.02, 0.01)
    assert "Bearer" not in repr(provider.endpoint) + repr(info)


# Learning.

AZURE = Scenario(
    models={**OPENAI_MODELS, "house-model": Model(24, mrl=True)},
    deployments={"prod": SMALL, "old": "text-embedding-ada-002", "own": "house-model"},
)


def test_a_reply_of_a_server_that_is_not_azure_s_gives_facts_but_no_shared_space() -> None:
    async def use(simulator: Simulator) -> None:
        connection = connect(simulator, "azure", "prod", facts=UNKNOWN, vouched=False)
        async with opened(connection) as provider:
            await provider.learn()
            assert (provider.info.dimensions, provider._known.facts.mrl) == (1536, True)
            assert provider.info.space != space_id("hosted", SMALL)
            other = connect(simulator, "azure", "old", facts=UNKNOWN, vouched=False)
            async with opened(other) as ada:
                await ada.learn()
                assert ada.info.space not in (
                    provider.info.space,
                    space_id("hosted", "text-embedding-ada-002"),
                )
        wrong = connect(simulator, "azure", "old", vouched=False)  # its profile says small
        async with opened(wrong) as provider:
            with pytest.raises(RefusedError, match="their vectors cannot be compared"):
                await embedding(provider, "a")

    with_simulator(use, AZURE)


@pytest.mark.parametrize("door", ["azure", "azure_v1"])
def test_azures_reply_names_the_model_and_vouches(door: str, tmp_path: Path) -> None:
    path = tmp_path / "learned" / "e.json"

    async def use(simulator: Simulator) -> None:
        connection = connect(simulator, door, "prod", facts=UNKNOWN, learned_path=path)
        async with opened(connection, dimensions=256) as provider:
            assert provider.info.dimensions == provider.info.width == 0
            reply = await provider.learn()
            assert reply is not None
            assert np.array_equal(reply.vectors, simulator.vectors(PROBE_TEXTS))
            assert reply.usage.tokens == simulator.billed_tokens
            info = provider.info
            assert (info.dimensions, info.reply_dimensions) == (256, 1536)
            assert info.space == space_id("hosted", SMALL)
            assert info.usd_per_million_tokens is None
            assert await provider.learn() is None
        async with opened(connection) as again:
            assert again.info.dimensions == 1536
            assert again.info.space == space_id("hosted", SMALL)
            assert await again.learn() is None
        assert simulator.requests == 1

    with_simulator(use, AZURE)
    kept = path.read_text()
    assert json.loads(kept) == {"version": 1, "dimensions": 1536, "model": SMALL, "normalized": True}
    assert "sk-" not in kept
    assert PROBE_TEXTS[0] not in kept


def test_profile_wins_over_what_is_learned(tmp_path: Path) -> None:
    async def use(simulator: Simulator) -> None:
        facts = replace(UNKNOWN, max_inputs=16, usd_per_million_tokens=0.5, document_prefix="d: ")
        async with opened(connect(simulator, "azure", "prod", facts=facts)) as provider:
            await provider.learn()
            assert provider.info.max_inputs == 16
            assert provider.info.usd_per_million_tokens == 0.5
            assert documents(provider, "a").texts == ("d: a",)

    with_simulator(use, AZURE)


def test_model_that_cannot_be_cut_is_learned_and_refused() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, "azure", "old", facts=UNKNOWN), dimensions=256) as provider:
            with pytest.raises(InputError, match="cannot be cut"):
                await provider.learn()

    with_simulator(use, AZURE)


def test_unknown_model_is_learned_by_its_width() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, "azure", "own", facts=UNKNOWN)) as provider:
            before = provider.info.space
            await provider.learn()
            assert (provider.info.dimensions, provider.info.space) == (24, before)
            assert provider.info.usd_per_million_tokens is None

    with_simulator(use, AZURE)


def test_unknown_model_with_dimensions_is_asked_for_them_in_the_end() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, "azure", "own", facts=UNKNOWN), dimensions=8) as provider:
            reply = await provider.learn()
            assert reply is not None
            assert reply.vectors.shape == (3, 8)
            assert provider.info.dimensions == provider.info.width == 8
            assert reply.usage.requests == simulator.requests == 2
            assert reply.usage.tokens == simulator.billed_tokens

    with_simulator(use, AZURE)


def test_name_in_the_reply_of_another_server_vouches_for_nothing() -> None:
    async def main() -> None:
        async with (
            serving(lambda body: numbers(body, model=SMALL, width=1536)) as (connection, _),
            opened(replace(connection, vouched=True)) as provider,
        ):
            await provider.learn()
            assert provider.info.dimensions == 1536
            assert provider.info.space != space_id("hosted", SMALL)

    asyncio.run(main())


def test_catalogue_name_with_another_width_vouches_for_nothing() -> None:
    async def main() -> None:
        async with (
            serving(lambda body: numbers(body, model=SMALL)) as (connection, _),
            opened(replace(connection, provider="azure", vouched=True)) as provider,
        ):
            await provider.learn()
            assert provider.info.dimensions == 6
            assert provider.info.space != space_id("hosted", SMALL)

    asyncio.run(main())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_unit_length_is_learned_and_then_asked_for(scale: float) -> None:
    scales = iter((scale, 3.0))

    async def main() -> None:
        async with (
            serving(lambda body: numbers(body, scale=next(scales))) as (connection, _),
            opened(connection) as provider,
        ):
            await provider.learn()
            assert provider.info.normalized is (scale == 1.0)
            if scale == 1.0:
                with pytest.raises(BadReplyError, match="unit length"):
                    await embedding(provider, "a")
            else:
                await embedding(provider, "a")

    asyncio.run(main())


def test_failed_learning_learns_nothing(tmp_path: Path) -> None:
    async def use(simulator: Simulator) -> None:
        connection = connect(simulator, "azure", "prod", facts=UNKNOWN, learned_path=tmp_path / "e.json")
        async with opened(connection) as provider:
            with pytest.raises(UnavailableError):
                await provider.learn()
            assert provider.info.dimensions == 0
            await provider.learn()
            assert provider.info.dimensions == 1536

    with_simulator(use, replace(AZURE, faults=(Fault("503", times=1),)))


def test_damaged_memory_is_learned_again(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text('{"version": 1, "dimensions": "many"}')

    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, "azure", "prod", facts=UNKNOWN, learned_path=path)) as provider:
            assert await provider.learn() is not None

    with_simulator(use, AZURE)
    assert json.loads(path.read_text())["dimensions"] == 1536


def test_deployment_that_serves_another_model_is_refused() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, "azure", "old")) as provider:
            with pytest.raises(
                RefusedError, match=r"'text-embedding-ada-002', not with 'text-embedding-3-small'"
            ) as caught:
                await embedding(provider, "a")
            assert caught.value.reason == "request"

    with_simulator(use, AZURE)


@pytest.mark.parametrize("named", [SMALL, f"{SMALL}-1", f"openai/{SMALL}", "", "unheard-of"])
def test_names_of_the_same_model_are_taken(named: str) -> None:
    async def main() -> None:
        async with serving(lambda body: numbers(body, model=named)) as (connection, _):
            facts = replace(FACTS, dimensions=6)
            async with opened(replace(connection, facts=facts, vouched=True)) as provider:
                assert (await embedding(provider, "a")).vectors.shape == (1, 6)

    asyncio.run(main())


def test_smaller_limits_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    connection = Connection("openai", "o:m", "m", "https://h/v1", _nobody, FACTS, learned_path=path)
    provider = HostedProvider(connection, session=Session())
    provider.remember(max_inputs=16)
    provider.remember(max_inputs=64, max_request_tokens=8000, max_request_bytes=10**6)
    for known in (provider, HostedProvider(connection, session=Session())):
        info = known.info
        assert (info.max_inputs, info.max_request_tokens, info.max_request_bytes) == (16, 8000, 10**6)
    provider.remember(max_inputs=4000)
    assert provider.info.max_inputs == 16


# Variations.


def test_variation_changes_the_user_and_shares_the_connections() -> None:
    async def main() -> None:
        async with (
            serving(numbers) as (connection, bodies),
            opened(connection, user="u-1") as provider,
        ):
            other = provider.varied(user="u-2")
            await embedding(provider, "a")
            await embedding(other, "a")
            await other.close()
            await embedding(provider.varied(), "a")
            assert other._session is provider._session
            assert other.info == provider.info
            assert other.endpoint == provider.endpoint
        assert [body["user"] for body in bodies] == ["u-1", "u-2", "u-1"]

    asyncio.run(main())


@pytest.mark.parametrize("door", ["azure", "azure_v1"])
def test_deployment_of_the_same_model_is_the_same_space(door: str) -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator, door, "prod")) as provider:
            other = provider.varied(deployment=SMALL)
            assert other.info.space == provider.info.space
            assert other.endpoint.id != provider.endpoint.id
            reply = await embedding(other, *TEXTS)
            assert np.array_equal(reply.vectors, simulator.vectors(TEXTS))
            for wrong in ("old", "own"):
                with pytest.raises((RefusedError, BadReplyError)):
                    await embedding(provider.varied(deployment=wrong), *TEXTS)

    with_simulator(use, AZURE)


def test_other_deployment_must_name_its_model() -> None:
    async def main() -> None:
        async with serving(lambda body: numbers(body, model="")) as (connection, _):
            facts = replace(FACTS, dimensions=6)
            made = replace(connection, facts=facts, vouched=True, provider="azure")
            async with opened(made) as provider:
                await embedding(provider, "a")
                with pytest.raises(RefusedError, match="none that it names"):
                    await embedding(provider.varied(deployment="n"), "a")

    asyncio.run(main())


def test_other_model_of_the_same_server_is_another_space() -> None:
    async def use(simulator: Simulator) -> None:
        async with opened(connect(simulator)) as provider:
            large = provider.varied(deployment="text-embedding-3-large")
            assert large.info.dimensions == 3072
            assert large.info.space == space_id("hosted", "text-embedding-3-large")
            reply = await embedding(large, "a")
            assert np.array_equal(reply.vectors, simulator.vectors(["a"], "text-embedding-3-large"))
            assert provider.varied(deployment="unheard-of").info.space != provider.info.space

    with_simulator(use)
