"""Texts to token ids, in OpenVINO Model Server's shape."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import Settings
from vecmill.models.resolve import open_model
from vecmill.server.options import Limits, Options
from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, application, asked = fake["Served"], fake["application"], fake["asked"]

HELLO = [101, 7592, 2088, 102]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    provider = open_model("minilm", settings=Settings(home, home))
    return application(Served("minilm", provider), Served("asked", FakeProvider()))


def tokens(app: Any, text: Any, **more: Any) -> Any:
    found = asked(app, "/v3/tokenize", {"model": "minilm", "text": text, **more})
    assert found.status == 200, found.content
    assert found.json.keys() == {"tokens"}
    return found.json["tokens"]


@pytest.mark.parametrize("base", ["/v1", "/v3"])
def test_a_text_gives_its_ids_with_special_tokens(app: Any, base: str) -> None:
    found = asked(app, f"{base}/tokenize", {"model": "minilm", "text": "hello world"})
    assert found.json == {"tokens": HELLO}


def test_a_list_gives_a_list_each(app: Any) -> None:
    assert tokens(app, ["hello world", "hello"]) == [HELLO, [101, 7592, 102]]


def test_special_tokens_can_be_left_out(app: Any) -> None:
    assert tokens(app, "hello world", add_special_tokens=False) == [7592, 2088]


@pytest.mark.parametrize(
    ("length", "special", "ids"),
    [
        (3, True, [101, 7592, 102]),
        (3.0, True, [101, 7592, 102]),
        (1, False, [7592]),
        (4, True, HELLO),
        (1, True, [101]),
    ],
)
def test_max_length_cuts_the_text_and_keeps_special_tokens(
    app: Any, length: float, special: bool, ids: list[int]
) -> None:
    assert tokens(app, "hello world", max_length=length, add_special_tokens=special) == ids


def test_padding_fills_up_to_max_length_on_the_side_asked_for(app: Any) -> None:
    padded = {"max_length": 10, "pad_to_max_length": True}
    assert tokens(app, "hello world", **padded) == [*HELLO, *[0] * 6]
    assert tokens(app, "hello world", padding_side="left", **padded) == [*[0] * 6, *HELLO]


def test_padding_without_a_length_goes_up_to_the_models(app: Any) -> None:
    assert len(tokens(app, "hello world", pad_to_max_length=True)) == 256


def test_padding_beyond_the_model_is_refused(app: Any) -> None:
    body = {"model": "minilm", "text": "a", "pad_to_max_length": True, "max_length": 10**9}
    found = asked(app, "/v3/tokenize", body)
    assert (found.status, found.error["param"]) == (400, "max_length")


def test_ids_given_back_embed_as_the_text_does(app: Any) -> None:
    text = "The mill turns grain into flour; naïve café, 漢字, emoji 🌊, <unk>."
    ids = tokens(app, text)
    replies = [
        asked(app, "/v1/embeddings", {"model": "minilm", "input": given}) for given in (text, ids, [ids])
    ]
    assert replies[0].status == 200
    assert replies[0].content == replies[1].content == replies[2].content


def test_long_text_is_tokenized_whole(app: Any) -> None:
    assert len(tokens(app, "hi " * 5000)) == 5002


def test_a_model_without_own_tokens_is_counted_in_cl100k(app: Any) -> None:
    found = asked(app, "/v3/tokenize", {"model": "asked", "text": "hello world"})
    assert found.json == {"tokens": [15339, 1917]}


@pytest.mark.parametrize("text", ["", [], ["a", ""], 3, [1], None])
def test_other_texts_are_refused(app: Any, text: Any) -> None:
    found = asked(app, "/v3/tokenize", {"model": "minilm", "text": text})
    assert (found.status, found.error["param"]) == (400, "text")


@pytest.mark.parametrize("text", [["a " * 400_000] * 2, ["a " * 50_000] * 100])
def test_the_ids_of_an_answer_are_bounded_before_all_texts_are_read(text: list[str]) -> None:
    read: list[str] = []

    class Counted(FakeProvider):
        vocabulary = SimpleNamespace(specials=(0, 0), rows=1, padding_id=0)

    def encode(texts: list[str]) -> Any:
        read.extend(texts)
        return SimpleNamespace(ids=[np.zeros(len(each.split()), dtype=np.int32) for each in texts])

    Counted.vocabulary.encode = encode
    found = asked(application(Served("m", Counted())), "/v1/tokenize", {"model": "m", "text": text})
    assert (found.status, found.error["code"]) == (400, "max_tokens_per_request")
    assert sum(len(each.split()) for each in read) <= 400_000


def test_padding_counts_among_the_ids_of_an_answer(app: Any) -> None:
    body = {"model": "minilm", "text": ["a"] * 2048, "pad_to_max_length": True}
    found = asked(app, "/v1/tokenize", body)
    assert (found.status, found.error["message"]) == (
        400,
        "Requested 524288 tokens, max 300000 tokens per request",
    )


def test_a_callers_limit_of_requests_counts_here_too_and_that_of_tokens_does_not() -> None:
    limits = Limits(key_requests_per_minute=1, key_tokens_per_minute=1)
    limited = application(Served("m", FakeProvider()), options=Options(limits=limits))
    first, second = (asked(limited, "/v1/tokenize", {"model": "m", "text": "a b c"}) for _ in range(2))
    assert (first.status, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert first.headers["x-ratelimit-remaining-tokens"] == "1"
    assert (second.status, second.error["code"]) == (429, "rate_limit_exceeded")
