"""The same text has the same bytes: alone, among others, among other clients, on every way out."""

from __future__ import annotations

import asyncio
import base64
import random
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson
import pytest

from vecmill import Embedder

harness = runpy.run_path(str(Path(__file__).parent / "server_clients" / "harness.py"))
serving = harness["serving"]

pytestmark = pytest.mark.asyncio

SEED = 5
CLIENTS = 32
PATIENT = {"queue_seconds": 60.0}
"""However slow the machine is, nobody is sent away here."""
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "watch")
Vectors = npt.NDArray[np.float32]


def mixed_texts(n: int) -> list[str]:
    """Texts of 1 to 150 words, some twice."""
    dice = random.Random(SEED)
    texts = [" ".join(dice.choices(WORDS, k=dice.choice([1, 3, 8, 20, 60, 150]))) for _ in range(n)]
    return texts + texts[: n // 8]


TEXTS = mixed_texts(160)


@pytest.fixture(scope="module")
def expected() -> dict[str, bytes]:
    """The library's own vector of each text, as little-endian float32."""
    print(f"seed {SEED}")
    with Embedder() as embedder:
        vectors = embedder.embed(TEXTS).vectors
    return {text: vector.astype("<f4").tobytes() for text, vector in zip(TEXTS, vectors, strict=True)}


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with serving(limits=PATIENT) as running:
        yield running.origin


async def ask(
    session: aiohttp.ClientSession,
    origin: str,
    texts: list[str],
    *,
    base: str = "/v1",
    form: str = "base64",
) -> list[bytes]:
    """Return the vectors of texts as bytes, whatever form they came in."""
    body: dict[str, Any] = {"model": "minilm", "input": texts}
    headers = {"content-type": "application/json"}
    if form == "octet-stream":
        headers["accept"] = "application/octet-stream"
    else:
        body["encoding_format"] = form
    async with session.post(f"{origin}{base}/embeddings", data=orjson.dumps(body), headers=headers) as reply:
        raw = await reply.read()
        assert reply.status == 200, raw[:500]
    if form == "octet-stream":
        assert reply.content_type == "application/octet-stream"
        width = len(raw) // len(texts)
        return [raw[at : at + width] for at in range(0, len(raw), width)]
    data = orjson.loads(raw)["data"]
    assert [item["index"] for item in data] == list(range(len(texts)))
    if form == "base64":
        return [base64.b64decode(item["embedding"]) for item in data]
    return [np.array(item["embedding"], dtype="<f4").tobytes() for item in data]


def assert_each(found: list[bytes], texts: list[str], expected: dict[str, bytes]) -> None:
    wrong = [at for at, text in enumerate(texts) if found[at] != expected[text]]
    assert not wrong, f"the texts at {wrong[:20]} have other bytes"
    assert len(found) == len(texts)


async def test_alone_and_in_one_request_with_all_others(origin: str, expected: dict[str, bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        assert_each(await ask(session, origin, TEXTS), TEXTS, expected)
        alone = [(await ask(session, origin, [text]))[0] for text in TEXTS[:60]]
    assert_each(alone, TEXTS[:60], expected)


@pytest.mark.parametrize("base", ["/v1", "/v3", "/openai/v1"])
@pytest.mark.parametrize("form", ["float", "base64", "octet-stream"])
async def test_in_every_form_at_every_base(
    origin: str, expected: dict[str, bytes], base: str, form: str
) -> None:
    async with aiohttp.ClientSession() as session:
        assert_each(await ask(session, origin, TEXTS, base=base, form=form), TEXTS, expected)


async def test_under_32_clients_with_batches_of_every_size(origin: str, expected: dict[str, bytes]) -> None:
    async def client(number: int) -> None:
        dice = random.Random(f"{SEED}/{number}")
        for _ in range(12):
            texts = dice.sample(TEXTS, dice.choice([1, 1, 1, 2, 5, 17]))
            form = dice.choice(["float", "base64", "octet-stream"])
            base = dice.choice(["/v1", "/v3"])
            assert_each(await ask(session, origin, texts, base=base, form=form), texts, expected)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))


async def test_while_and_after_the_same_version_is_loaded_again(expected: dict[str, bytes]) -> None:
    texts = TEXTS[:40]
    with serving(limits=PATIENT) as running:
        async with aiohttp.ClientSession() as session:
            before = await ask(session, running.origin, texts)
            asking = [asyncio.create_task(ask(session, running.origin, texts)) for _ in range(8)]
            async with session.post(f"{running.origin}/v1/config/reload") as reply:
                assert reply.status in {200, 201}, await reply.read()
            during = await asyncio.gather(*asking)
            after = await ask(session, running.origin, texts)
    for found in (before, *during, after):
        assert_each(found, texts, expected)


async def test_a_server_started_anew_gives_the_same_bytes(expected: dict[str, bytes]) -> None:
    texts = TEXTS[:40]
    for _ in range(2):
        with serving(limits=PATIENT) as running:
            async with aiohttp.ClientSession() as session:
                assert_each(await ask(session, running.origin, texts), texts, expected)
