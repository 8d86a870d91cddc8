"""What the embeddings routes answer, with models that need no files."""

from __future__ import annotations

import asyncio
import base64
import runpy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest

from vecmill.core import tokens
from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, RefusedError
from vecmill.core.types import InputType, LongText
from vecmill.models.base import Advance, Encoded, ModelInfo, Reply, no_advance
from vecmill.models.resolve import open_model
from vecmill.server.options import Limits, Options
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, Words, application, ask, asked = (
    fake[name] for name in ("Served", "Words", "application", "ask", "asked")
)

OWN, FOREIGN = "own", "cl100k"
BASES = ("/v1", "/v3", "/openai/v1", "")
AZURE = "/openai/deployments/m/embeddings?api-version=2024-10-21"


class Cuttable(FakeProvider):
    """A model whose first components are vectors themselves."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, mrl=True)


class Own(FakeProvider):
    """A model with token ids of its own; see `Words`."""

    vocabulary = Words()

    def encode(self, texts: Any, *, input_type: InputType) -> Encoded:
        found: Encoded = self.vocabulary.encode(texts)
        return found

    def split(self, text: str, *, max_tokens: int, input_type: InputType) -> Any:
        return self.vocabulary.split(text, max_tokens=max_tokens)

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        found: Encoded = self.vocabulary.encode(
            [" ".join(text.split()[: max_tokens - 2]) for text in encoded.texts]
        )
        return found


def app(provider: Any = None, *, options: Options | None = None, **more: Any) -> Any:
    return application(Served("m", provider or FakeProvider(), **more), options=options)


def floats(reply: Any) -> npt.NDArray[np.float32]:
    return np.array([item["embedding"] for item in reply.json["data"]], np.float32)


def test_the_reply_has_every_key_the_contract_requires() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": ["one two", "three"]})
    assert found.status == 200
    assert found.json.keys() == {"object", "data", "model", "usage"}
    assert (found.json["object"], found.json["model"]) == ("list", "m")
    assert found.json["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [item.keys() for item in found.json["data"]] == [{"object", "index", "embedding"}] * 2
    assert [item["index"] for item in found.json["data"]] == [0, 1]
    assert {item["object"] for item in found.json["data"]} == {"embedding"}
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("one two", "three")))
    assert int(found.headers["content-length"]) == len(found.content)


def test_headers_say_model_space_version_and_time() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": "a"}).headers
    assert (found["openai-model"], found["x-vecmill-model-version"]) == ("m", "1")
    assert found["x-vecmill-space"] == FakeProvider().info.space[:6]
    assert int(found["openai-processing-ms"]) >= 0
    assert "x-vecmill-truncated" not in found


def test_a_name_a_header_cannot_hold_is_percent_encoded() -> None:
    found = asked(
        application(Served("mö\n", FakeProvider())), "/v1/embeddings", {"model": "mö\n", "input": "a"}
    )
    assert (found.status, found.headers["openai-model"]) == (200, "m%C3%B6%0A")
    assert found.json["model"] == "mö\n"


@pytest.mark.parametrize("base", BASES)
def test_every_base_answers_the_same(base: str) -> None:
    body = {"model": "m", "input": "a"}
    assert asked(app(), f"{base}/embeddings", body).content == asked(app(), "/v1/embeddings", body).content


def test_base64_is_little_endian_float32_with_padding() -> None:
    plain = floats(asked(app(), "/v1/embeddings", {"model": "m", "input": ["a", "b"]}))
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": ["a", "b"], "encoding_format": "base64"})
    for row, item in zip(plain, found.json["data"], strict=True):
        assert base64.b64decode(item["embedding"], validate=True) == row.astype("<f4").tobytes()


def test_int8_times_scale_is_near_the_vector() -> None:
    provider = FakeProvider(dimensions=96)
    plain = floats(asked(app(provider), "/v1/embeddings", {"model": "m", "input": ["a", "b"]}))
    body = {"model": "m", "input": ["a", "b"], "encoding_format": "int8"}
    for row, item in zip(plain, asked(app(provider), "/v1/embeddings", body).json["data"], strict=True):
        codes = np.array(item["embedding"])
        assert codes.dtype.kind == "i"
        assert np.abs(codes).max() == 127
        np.testing.assert_allclose(codes * item["scale"], row, atol=item["scale"] / 2 * 1.001)


def test_ubinary_has_a_bit_per_component_the_first_one_highest() -> None:
    provider = FakeProvider(dimensions=12)
    plain = floats(asked(app(provider), "/v1/embeddings", {"model": "m", "input": "a"}))
    body = {"model": "m", "input": "a", "encoding_format": "ubinary"}
    (item,) = asked(app(provider), "/v1/embeddings", body).json["data"]
    assert len(item["embedding"]) == 2
    bits = "".join(f"{byte:08b}" for byte in item["embedding"])
    assert bits == "".join("1" if value > 0 else "0" for value in plain[0]) + "0000"


@pytest.mark.parametrize("encoding", ["float", "int8", "ubinary", "base64"])
def test_raw_rows_hold_what_json_says(encoding: str) -> None:
    provider = FakeProvider(dimensions=12)
    body = {"model": "m", "input": ["a b", "c"], "encoding_format": encoding}
    told = asked(app(provider), "/v1/embeddings", body)
    raw = asked(app(provider), "/v1/embeddings", body, headers={"accept": "application/octet-stream"})
    assert raw.headers["content-type"] == "application/octet-stream"
    names = ("rows", "dimensions", "precision", "tokens")
    shown = "float32" if encoding == "base64" else {"float": "float32"}.get(encoding, encoding)
    assert [raw.headers[f"x-vecmill-{name}"] for name in names] == ["2", "12", shown, "3"]
    rows = [raw.content[at : at + len(raw.content) // 2] for at in (0, len(raw.content) // 2)]
    for row, item in zip(rows, told.json["data"], strict=True):
        match encoding:
            case "int8":
                assert np.frombuffer(row[:4], "<f4")[0] == np.float32(item["scale"])
                assert np.frombuffer(row[4:], np.int8).tolist() == item["embedding"]
            case "ubinary":
                assert list(row) == item["embedding"]
            case "base64":
                assert row == base64.b64decode(item["embedding"])
            case _:
                np.testing.assert_array_equal(np.frombuffer(row, "<f4"), np.float32(item["embedding"]))


def test_a_zero_vector_has_scale_zero() -> None:
    class Zero(FakeProvider):
        def vectors(self, texts: Any) -> Any:
            return np.zeros((len(texts), self.dimensions), np.float32)

    body = {"model": "m", "input": "a", "encoding_format": "int8"}
    (item,) = asked(app(Zero()), "/v1/embeddings", body).json["data"]
    assert (item["scale"], set(item["embedding"])) == (0.0, {0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "input is an empty string"),
        ([], "input is an empty array"),
        (["a", ""], "input[1] is an empty string"),
        ([[1], []], "input[1] is an empty array"),
        (["a", 1], "its elements are of several types"),
        ([1, [1]], "its elements are of several types"),
        ([1.5], "input[0] is no whole number"),
    ],
)
def test_empty_and_mixed_inputs_are_refused(given: Any, message: str) -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": given})
    assert (found.status, found.error["param"], found.error["code"]) == (400, "input", None)
    assert found.error["message"].startswith("'$.input' is invalid. Please check the API reference:")
    assert message in found.error["message"]


def test_more_than_2048_inputs_are_refused() -> None:
    assert asked(app(), "/v1/embeddings", {"model": "m", "input": ["a"] * 2048}).status == 200
    for given in (["a"] * 2049, [[1]] * 2049):
        found = asked(app(), "/v1/embeddings", {"model": "m", "input": given})
        assert found.error == {
            "message": "Invalid 'input': array too long. Expected an array with maximum length 2048, but got "
            "an array with length 2049 instead.",
            "type": "invalid_request_error",
            "param": "input",
            "code": "array_above_max_length",
        }


def test_a_text_above_the_limit_is_told_with_its_count_and_index() -> None:
    found = asked(app(FakeProvider(max_tokens=8)), "/v1/embeddings", {"model": "m", "input": ["a", "b " * 9]})
    assert found.error == {
        "message": "This model's maximum context length is 8 tokens, however you requested 9 tokens (9 in "
        "your prompt; 0 for the completion). Please reduce your prompt; or completion length. It is at index "
        "1 of input.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_the_tokens_of_a_request_are_bounded() -> None:
    options = Options(limits=Limits(max_request_tokens=10))
    body = {"model": "m", "input": ["a b c d e", "a b c d e"]}
    assert asked(app(options=options), "/v1/embeddings", body).status == 200
    body["input"].append("f")  # type: ignore[attr-defined]
    found = asked(app(options=options), "/v1/embeddings", body)
    assert (found.status, found.error["param"]) == (400, None)
    assert found.error["message"] == "Requested 11 tokens, max 10 tokens per request"


def test_a_flood_of_tokens_is_refused_before_all_of_it_is_tokenized() -> None:
    options = Options(limits=Limits(max_request_tokens=10))
    provider = FakeProvider(max_tokens=10**6)
    found = asked(
        app(provider, options=options), "/v1/embeddings", {"model": "m", "input": ["a " * 70_000] * 9}
    )
    assert found.error["message"] == "Requested at least 70000 tokens, max 10 tokens per request"


def test_few_long_texts_are_tokenized_at_a_time_and_other_threads_stay_free() -> None:
    running: list[int] = [0]
    most: list[int] = []

    class Slow(FakeProvider):
        def encode(self, texts: Any, *, input_type: InputType) -> Encoded:
            running[0] += 1
            most.append(running[0])
            busy.wait()
            running[0] -= 1
            return super().encode(texts, input_type=input_type)

    async def ask_many() -> None:
        served = app(Slow(max_tokens=10**6))
        body = {"model": "m", "input": "a " * 5_000}
        asking = [asyncio.ensure_future(ask(served, "/v1/embeddings", body)) for _ in range(40)]
        while running[0] < 2:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(30):
                await asyncio.to_thread(len, "another thread")
        finally:
            busy.set()
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}

    busy = threading.Event()
    asyncio.run(ask_many())
    assert max(most) == 2


def test_characters_are_bounded_before_tokenizing() -> None:
    class Never(FakeProvider):
        def encode(self, texts: Any, *, input_type: InputType) -> Encoded:
            raise AssertionError

    found = asked(app(Never()), "/v1/embeddings", {"model": "m", "input": ["a", "x" * 1_000_001]})
    assert (found.status, found.error["code"]) == (400, "string_above_max_length")
    assert "length 1000001 instead, at index 1" in found.error["message"]


@pytest.mark.parametrize("value", [True, "end", "END", " End "])
def test_truncate_cuts_and_lists_what_was_cut(value: Any) -> None:
    body = {"model": "m", "input": ["a", "b c d e f", "g h i j"], "truncate": value}
    found = asked(app(FakeProvider(max_tokens=3)), "/v1/embeddings", body)
    assert (found.json["truncated"], found.headers["x-vecmill-truncated"]) == ([1, 2], "2")
    assert found.json["usage"]["total_tokens"] == 7
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("a", "b c d", "g h i")))


@pytest.mark.parametrize("value", ["average", "Mean"])
def test_average_is_the_token_weighted_mean_of_the_parts(value: str) -> None:
    body = {"model": "m", "input": ["a", "b c d e f", "g"], "truncate": value}
    found = asked(app(FakeProvider(max_tokens=3)), "/v1/embeddings", body)
    assert "truncated" not in found.json
    assert found.json["usage"]["total_tokens"] == 7
    parts = FakeProvider().vectors(("b c d", "e f")).astype(np.float64)
    mean = np.average(parts, axis=0, weights=[3, 2])
    np.testing.assert_allclose(floats(found)[1], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_array_equal(floats(found)[[0, 2]], FakeProvider().vectors(("a", "g")))


@pytest.mark.parametrize("value", ["start", "middle", ""])
def test_other_ways_to_truncate_are_refused_with_what_is_possible(value: str) -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": "a", "truncate": value})
    assert (found.status, found.error["param"], found.error["code"]) == (400, "truncate", "invalid_value")
    assert "'none'" in found.error["message"]
    assert "'average'" in found.error["message"]


def test_the_operators_way_with_long_texts_is_taken_unless_the_request_says_otherwise() -> None:
    one = app(FakeProvider(max_tokens=2), long_text=LongText.TRUNCATE)
    assert asked(one, "/v1/embeddings", {"model": "m", "input": "a b c"}).json["truncated"] == [0]
    assert asked(one, "/v1/embeddings", {"model": "m", "input": "a b c", "truncate": False}).status == 400


@pytest.mark.parametrize(
    ("given", "role"), [("query", "query: a"), ("search_query", "query: a"), ("Passage", "a")]
)
def test_the_role_of_texts_is_heard(given: str, role: str) -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": "a", "input_type": given})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors((role,)))


def test_an_unknown_role_is_refused() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": "a", "input_type": "title"})
    assert (found.status, found.error["param"], found.error["code"]) == (400, "input_type", "invalid_value")


# Dimensions.


@pytest.mark.parametrize("given", [8, 8.0, None])
def test_the_models_own_dimensions_are_always_allowed(given: float | None) -> None:
    assert floats(
        asked(app(), "/v1/embeddings", {"model": "m", "input": "a", "dimensions": given})
    ).shape == (1, 8)


@pytest.mark.parametrize("given", [1, 4, 9])
def test_other_dimensions_are_refused_where_the_model_cannot_be_cut(given: int) -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": "a", "dimensions": given})
    assert found.status == 400
    assert found.error["message"] == "This model does not support specifying dimensions."


@pytest.mark.parametrize("allowed", ["model", "option"])
def test_fewer_dimensions_are_the_first_ones_at_unit_length(allowed: str) -> None:
    provider = Cuttable() if allowed == "model" else FakeProvider()
    one = app(provider, options=Options(allow_truncated_dimensions=allowed == "option"))
    found = floats(asked(one, "/v1/embeddings", {"model": "m", "input": "a", "dimensions": 4}))
    whole = FakeProvider().vectors(("a",))[:, :4]
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole), rtol=1e-6)
    assert asked(one, "/v1/embeddings", {"model": "m", "input": "a", "dimensions": 9}).status == 400


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", True])
def test_dimensions_that_are_no_number_of_components_are_refused(given: Any) -> None:
    found = asked(app(Cuttable()), "/v1/embeddings", {"model": "m", "input": "a", "dimensions": given})
    assert (found.status, found.error["param"]) == (400, "dimensions")


# Token ids.


def test_token_ids_are_read_as_cl100k_unless_they_look_the_models_own() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": [[15339, 1917], [64.0]]})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("hello world", "a")))


def test_the_ranks_of_token_ids_are_not_loaded_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def decode(ids: Any) -> str:
        threads.append(threading.current_thread() is threading.main_thread())
        return "a"

    monkeypatch.setattr(tokens, "decode", decode)
    for loaded in (False, True):
        monkeypatch.setattr(tokens, "is_loaded", lambda loaded=loaded: loaded)
        assert asked(app(), "/v1/embeddings", {"model": "m", "input": [64]}).status == 200
    assert threads == [False, True]


def test_a_flat_list_of_token_ids_is_one_input() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "m", "input": [15339, 1917]})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("hello world",)))


@pytest.mark.parametrize(
    ("ids", "said"),
    [([200_000], "vocabulary"), ([-1], "vocabulary"), ([10**30], "vocabulary"), ([9468], "character")],
)
def test_token_ids_that_are_no_text_are_refused_by_index(ids: list[int], said: str) -> None:
    body = b'{"model":"m","input":[[64],[%d]]}' % ids[0]
    found = asked(app(), "/v1/embeddings", body)
    assert (found.status, found.error["param"]) == (400, "input")
    assert said in found.error["message"]
    assert "at index 1" in found.error["message"]


def test_the_models_own_ids_give_the_texts_bytes() -> None:
    provider = Own(max_tokens=5)
    text = asked(app(provider), "/v1/embeddings", {"model": "m", "input": ["w3 w4", "w5"]})
    own = asked(app(provider), "/v1/embeddings", {"model": "m", "input": [[1, 13, 14, 2], [1, 15, 2]]})
    assert own.content == text.content


@pytest.mark.parametrize("truncate", ["end", "average"])
def test_long_own_ids_are_cut_as_their_text_is(truncate: str) -> None:
    provider = Own(max_tokens=5)
    long = {"model": "m", "truncate": truncate}
    text = asked(app(provider), "/v1/embeddings", {**long, "input": "w1 w2 w3 w4 w5 w6 w7"})
    own = asked(app(provider), "/v1/embeddings", {**long, "input": [1, 11, 12, 13, 14, 15, 16, 17, 2]})
    assert text.status == 200
    assert own.content == text.content


def test_own_ids_that_no_text_has_are_embedded_as_they_are_and_share_no_name() -> None:
    served = Served("m", Own(max_tokens=5))
    body = {"model": "m", "input": [[1, 5, 11, 2], [1, 11, 2]]}
    found = asked(application(served), "/v1/embeddings", body)
    assert found.json["usage"]["total_tokens"] == 7
    (work,) = served.asked
    assert [ids.tolist() for ids in work.ids] == body["input"]
    assert work.texts[1] == "w1"
    with pytest.raises(UnicodeEncodeError):
        work.texts[0].encode()


@pytest.mark.parametrize("truncate", ["none", "end", "average"])
def test_long_ids_that_no_text_has_are_cut_between_special_tokens(truncate: str) -> None:
    served = Served("m", Own(max_tokens=5))
    ids = [1, 5, 11, 12, 13, 14, 2]
    found = asked(application(served), "/v1/embeddings", {"model": "m", "input": ids, "truncate": truncate})
    if truncate == "none":
        assert (found.status, "requested 7 tokens" in found.error["message"]) == (400, True)
        return
    pieces = [row.tolist() for row in served.asked[0].ids]
    assert pieces == [[1, 5, 11, 12, 2], [1, 13, 14, 2]][: 1 if truncate == "end" else 2]
    assert found.json.get("truncated", []) == ([0] if truncate == "end" else [])


def test_own_and_foreign_ids_may_stand_in_one_request_and_keep_their_order() -> None:
    class Mixed(Own):
        def encode(self, texts: Any, *, input_type: InputType) -> Encoded:
            return super().encode(["w1" for _ in texts], input_type=input_type)

    served = Served("m", Mixed(max_tokens=5))
    body = {"model": "m", "input": [[64], [1, 13, 2], [64], [1, 14, 2]]}
    assert asked(application(served), "/v1/embeddings", body).status == 200
    assert served.asked[0].texts == ("w1", "w3", "w1", "w4")


def test_the_operator_may_say_whose_the_ids_are() -> None:
    own = app(Own(max_tokens=5), options=Options(token_ids=OWN))
    assert asked(own, "/v1/embeddings", {"model": "m", "input": [64]}).json["usage"]["total_tokens"] == 1
    served = Served("m", FakeProvider())
    served.provider = type("Both", (FakeProvider,), {"vocabulary": Words()})()
    foreign = application(served, options=Options(token_ids=FOREIGN))
    assert asked(foreign, "/v1/embeddings", {"model": "m", "input": [1, 2]}).status == 200
    assert served.asked[0].texts == ('"#',)


def test_own_ids_outside_the_vocabulary_are_refused_by_index() -> None:
    found = asked(
        app(Own(max_tokens=5)), "/v1/embeddings", {"model": "m", "input": [[1, 13, 2], [1, 100, 2]]}
    )
    assert (found.status, found.error["param"]) == (400, "input")
    assert "(0 to 99), at index 1" in found.error["message"]


# What goes wrong behind.


def test_a_vector_that_is_not_finite_is_tried_once_more_alone() -> None:
    served = Served("m", FakeProvider(), nan={"b": 1})
    found = asked(application(served), "/v1/embeddings", {"model": "m", "input": ["a", "b", "c"]})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("a", "b", "c")))
    assert [work.texts for work in served.asked] == [("a", "b", "c"), ("b",)]


@pytest.mark.parametrize("encoding", ["float", "base64", "int8", "ubinary"])
def test_a_vector_that_stays_unusable_is_never_sent(encoding: str) -> None:
    served = Served("m", FakeProvider(), nan={"b": 2})
    body = {"model": "m", "input": ["a", "b"], "encoding_format": encoding}
    found = asked(application(served), "/v1/embeddings", body)
    assert (found.status, found.error["code"], found.error["type"]) == (500, "no_vector", "server_error")
    assert "index 1" in found.error["message"]
    assert found.headers["x-should-retry"] == "false"


def test_a_batch_without_a_usable_reply_is_asked_for_once_more_together() -> None:
    provider = FakeProvider(faults={0: BadReplyError("not finite")})
    found = asked(app(provider), "/v1/embeddings", {"model": "m", "input": ["a", "b"]})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(("a", "b")))
    assert provider.calls == [("a", "b"), ("a", "b")]


def test_a_batch_that_fails_by_chance_is_filled_in_halves() -> None:
    provider = FakeProvider(faults=dict.fromkeys([0, 1, 2], BadReplyError("not finite")))
    texts = tuple("abcd")
    found = asked(app(provider), "/v1/embeddings", {"model": "m", "input": texts})
    np.testing.assert_array_equal(floats(found), FakeProvider().vectors(texts))
    assert ["".join(call) for call in provider.calls] == ["abcd", "abcd", "ab", "a", "b", "cd"]


class Spoilt(FakeProvider):
    """A model that gives no reply at all to a batch with a bad text in it."""

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        reply = await super().embed(encoded, advance=advance)
        if any(text.startswith("bad") for text in encoded.texts):
            raise BadReplyError("not finite")
        return reply


@pytest.mark.parametrize("place", [0, 1, 700, 1023, 1024, 2047])
def test_the_one_bad_text_of_many_is_found_in_a_few_calls(place: int) -> None:
    provider = Spoilt()
    texts = [f"w{number}" for number in range(2048)]
    texts[place] = "bad"
    found = asked(app(provider), "/v1/embeddings", {"model": "m", "input": texts})
    assert (found.status, found.error["code"]) == (500, "no_vector")
    assert f"index {place}," in found.error["message"]
    assert len(provider.calls) <= 2 + 11 + 1


def test_among_many_bad_texts_the_first_is_named() -> None:
    provider = Spoilt()
    texts = [f"bad{number}" if number >= 100 else f"w{number}" for number in range(2048)]
    found = asked(app(provider), "/v1/embeddings", {"model": "m", "input": texts})
    assert "index 100," in found.error["message"]
    assert len(provider.calls) <= 2 + 11 + 1


def test_a_text_the_provider_refuses_is_named_by_index() -> None:
    served = Served("m", FakeProvider(max_tokens=2), failing={"d": RefusedError("no", reason="input")})
    body = {"model": "m", "input": ["a b c", "d"], "truncate": "average"}
    found = asked(application(served), "/v1/embeddings", body)
    assert (found.status, found.error["param"]) == (400, "input")
    assert found.error["message"].startswith("the input at index 1")


@pytest.mark.parametrize("route", ["embeddings", "rerank"])
def test_a_client_that_leaves_ends_the_reading_of_its_texts(route: str) -> None:
    read: list[int] = []
    gone, going = asyncio.Event(), threading.Event()

    class Slow(FakeProvider):
        def encode(self, texts: Any, *, input_type: InputType) -> Encoded:
            if len(texts[0]) > 1:
                read.append(len(texts))
                going.wait()
            return super().encode(texts, input_type=input_type)

    async def leave() -> Any:
        texts = ["ab " * 10_000] * 40
        body = {"model": "m", "input": texts, "query": "q", "documents": texts}
        asking = asyncio.ensure_future(ask(app(Slow(max_tokens=10**6)), f"/v1/{route}", body, left=gone))
        try:
            while not read:
                assert not asking.done()
                await asyncio.sleep(0)
            gone.set()
            async with asyncio.timeout(30):
                return await asking
        finally:
            going.set()

    assert asyncio.run(leave()) is None
    assert len(read) == 1


def test_a_client_that_leaves_ends_the_wait() -> None:
    async def leave() -> tuple[Any, Any]:
        served = Served("m", FakeProvider(), wait=asyncio.Event())
        left = asyncio.Event()
        asyncio.get_running_loop().call_later(3.0, left.set)
        started = asyncio.get_running_loop().time()
        found = await ask(application(served), "/v1/embeddings", {"model": "m", "input": "a"}, left=left)
        assert asyncio.get_running_loop().time() - started == pytest.approx(3.0)
        return found, served

    found, served = run_virtual(leave())
    assert found is None
    assert len(served.asked) == 1
    assert not served.provider.calls


def test_waiting_for_a_client_that_stays_ends_with_the_answer() -> None:
    async def stay() -> Any:
        served = Served("m", FakeProvider(), wait=asyncio.Event())
        asyncio.get_running_loop().call_later(3.0, served.wait.set)
        found = await ask(application(served), "/v1/embeddings", {"model": "m", "input": "a"})
        await asyncio.sleep(1)
        assert len(asyncio.all_tasks()) == 1
        return found

    assert run_virtual(stay()).status == 200


def test_a_deadline_that_passes_is_told_as_such() -> None:
    async def late() -> Any:
        served = Served("m", FakeProvider(), wait=asyncio.Event())
        return await ask(
            application(served),
            "/v1/embeddings",
            {"model": "m", "input": "a"},
            headers={"x-request-timeout-ms": "2000"},
        )

    assert run_virtual(late()).status == 504


# Azure, media.


def test_the_deployment_of_the_path_wins_over_the_bodys_model() -> None:
    assert asked(app(), AZURE, {"model": "other", "input": "a"}).json["model"] == "m"
    assert asked(app(), AZURE, {"input": "a"}).status == 200


def test_a_call_without_api_version_is_azures_404() -> None:
    found = asked(app(), "/openai/deployments/m/embeddings", {"input": "a"})
    assert (found.status, found.error["code"], found.error["message"]) == (404, "404", "Resource not found")


def test_an_unknown_deployment_is_azures_404() -> None:
    found = asked(app(), AZURE.replace("/m/", "/n/"), {"input": "a"})
    assert (found.status, found.error["code"]) == (404, "DeploymentNotFound")


def test_an_unknown_model_is_openais_404() -> None:
    found = asked(app(), "/v1/embeddings", {"model": "n", "input": "a"})
    assert found.status == 404
    assert found.error == {
        "message": "The model `n` does not exist or you do not have access to it."
        " The models served here are listed at /v1/models.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_body_of_another_kind_is_refused_before_it_is_read() -> None:
    body = orjson.dumps({"model": "m", "input": "a"})
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        found = asked(app(), "/v1/embeddings", body, headers=headers)
        assert (found.status, found.error["type"]) == (415, "invalid_request_error")


def test_strict_servers_refuse_unknown_fields() -> None:
    body = {"model": "m", "input": "a", "colour": 1}
    assert asked(app(), "/v1/embeddings", body).status == 200
    assert asked(app(options=Options(strict=True)), "/v1/embeddings", body).status == 400


def test_a_language_the_model_hardly_knows_is_said(tmp_path: Path) -> None:
    provider = open_model("minilm", settings=Settings(tmp_path, tmp_path))
    known, unknown = (
        asked(app(provider), "/v1/embeddings", {"model": "m", "input": text})
        for text in ("the mill by the river turns all day", "수차는 하루 종일 돌아간다")
    )
    assert "x-vecmill-warning" not in known.headers
    assert (unknown.status, unknown.headers["x-vecmill-warning"]) == (200, "language_unknown")
