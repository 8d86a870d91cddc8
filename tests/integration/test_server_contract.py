"""The built-in model over real HTTP: large answers, every form of a vector, the model's own ids."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from vecmill.server.app import create_app
from vecmill.server.run import served_in_thread

TEXTS = [f"Sack {number} holds {number * number} grains." for number in range(150)]


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with served_in_thread(create_app()) as found:
        yield found


def post(origin: str, body: Any, **headers: str) -> httpx.Response:
    answer = httpx.post(
        f"{origin}/v1/embeddings", json={"model": "minilm", **body}, headers=headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer


def rows(answer: httpx.Response) -> npt.NDArray[np.float32]:
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array(
        [
            np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
            if isinstance(item["embedding"], str)
            else item["embedding"]
            for item in data
        ],
        dtype=np.float32,
    )


def test_a_large_answer_is_the_same_in_every_form(origin: str) -> None:
    plain = post(origin, {"input": TEXTS})
    packed = post(origin, {"input": TEXTS, "encoding_format": "base64"})
    raw = post(origin, {"input": TEXTS}, accept="application/octet-stream")
    assert plain.headers.get("transfer-encoding") == "chunked"
    assert int(packed.headers["content-length"]) == len(packed.content)
    assert int(raw.headers["content-length"]) == len(raw.content) == 150 * 384 * 4
    assert rows(plain).tobytes() == rows(packed).tobytes() == raw.content
    assert plain.json()["usage"]["total_tokens"] == int(raw.headers["x-vecmill-tokens"])
    alone = post(origin, {"input": TEXTS[37]})
    assert rows(alone)[0].tobytes() == rows(plain)[37].tobytes()


def test_small_and_large_answers_at_once_are_each_whole(origin: str) -> None:
    large, small = ({"input": TEXTS}, {"input": "a mill"})
    expected = [post(origin, body).json()["data"] for body in (large, small)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda body: post(origin, body).json()["data"], [large, small, small, small] * 2)
        )
    assert found == [expected[0], *[expected[1]] * 3] * 2


def test_a_client_that_leaves_a_large_answer_disturbs_nobody(origin: str) -> None:
    body = {"model": "minilm", "input": TEXTS}
    with httpx.stream("POST", f"{origin}/v1/embeddings", json=body, timeout=60) as answer:
        next(answer.iter_raw(1000))
    assert post(origin, {"input": "a mill"}).json()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
