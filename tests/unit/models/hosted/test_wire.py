"""Bodies, replies and headers of hosted models: what is taken, and what never is."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

import numpy as np
import orjson
import pytest
from multidict import CIMultiDict

from vecmill.core.errors import BadReplyError, InputError
from vecmill.models.base import RateLimits
from vecmill.models.hosted.wire import (
    Parsed,
    check_unicode,
    decode_json,
    decode_reply,
    encode_body,
    read_duration,
    read_rates,
    read_retry_after,
)

N, D = 5, 12
Reply = dict[str, Any]
Spoil = Callable[[Reply], None]


def vectors(n: int = N, d: int = D) -> np.ndarray[Any, np.dtype[np.float32]]:
    made = np.random.default_rng(0).standard_normal((n, d)).astype("<f4")
    return np.asarray(made / np.linalg.norm(made, axis=1)[:, None], dtype="<f4")


def reply_of(rows: np.ndarray[Any, Any], *, as_base64: bool = True) -> Reply:
    def shown(row: np.ndarray[Any, Any]) -> Any:
        return base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist()

    items = [{"object": "embedding", "index": i, "embedding": shown(row)} for i, row in enumerate(rows)]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {"object": "list", "data": items, "model": "m", "usage": usage}


def parse(reply: Any, *, count: int = N, width: int | None = D, normalized: bool = True) -> Parsed:
    value = decode_json(orjson.dumps(reply))
    return decode_reply(value, count=count, width=width, normalized=normalized)


# Bodies.


def test_body_holds_what_was_asked() -> None:
    body = encode_body(["a", "ü"], model="m", dimensions=256, user="u")
    assert orjson.loads(body) == {
        "input": ["a", "ü"],
        "model": "m",
        "encoding_format": "base64",
        "dimensions": 256,
        "user": "u",
    }


def test_body_leaves_out_what_was_not_asked() -> None:
    assert orjson.loads(encode_body(("a",), model=None, base64=False)) == {"input": ["a"]}


@pytest.mark.parametrize("half", ["\ud83d", "ok \udc00"])
def test_half_of_a_surrogate_pair_is_named_by_place_and_not_quoted(half: str) -> None:
    with pytest.raises(InputError, match=rf"text 1 .* character {len(half) - 1}") as caught:
        encode_body(["fine", half], model="m")
    assert half not in str(caught.value)
    assert caught.value.__cause__ is None


def test_text_of_another_type_is_named() -> None:
    with pytest.raises(InputError, match="text 1 is int"):
        check_unicode(["a", 3])  # type: ignore[list-item]  # what the test is about


# Replies that are taken.


@pytest.mark.parametrize("as_base64", [True, False])
def test_reply_gives_vectors_tokens_and_model(as_base64: bool) -> None:
    parsed = parse(reply_of(vectors(), as_base64=as_base64))
    assert parsed.vectors.tobytes() == vectors().tobytes()
    assert parsed.vectors.dtype == np.float32
    assert parsed.vectors.flags.c_contiguous
    assert (parsed.tokens, parsed.model, parsed.base64, parsed.normalized) == (9, "m", as_base64, True)


@pytest.mark.parametrize("as_base64", [True, False])
def test_order_comes_from_the_index(as_base64: bool) -> None:
    reply = reply_of(vectors(), as_base64=as_base64)
    reply["data"] = [reply["data"][i] for i in (3, 0, 4, 2, 1)]
    assert parse(reply).vectors.tobytes() == vectors().tobytes()


def test_unknown_width_is_learned() -> None:
    assert parse(reply_of(vectors()), width=None).vectors.shape == (N, D)


def test_numbers_may_be_whole() -> None:
    reply = reply_of(np.eye(2, dtype=np.float32), as_base64=False)
    reply["data"][0]["embedding"] = [1, 0]
    assert parse(reply, count=2, width=2).vectors.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0},
        {"prompt_tokens": -9},
        {"prompt_tokens": 9.0},
        {"prompt_tokens": 2**64 - 1},
        {"prompt_tokens": "9"},
        {"prompt_tokens": True},
        [],
    ],
)
def test_usage_may_be_missing(usage: Any) -> None:
    assert parse({**reply_of(vectors()), "usage": usage}).tokens is None


def test_total_is_read_where_the_prompt_is_missing() -> None:
    assert parse({**reply_of(vectors()), "usage": {"total_tokens": 7}}).tokens == 7


def test_vectors_of_any_length_are_taken_where_nobody_says_unit() -> None:
    parsed = parse(reply_of(vectors() * 3), normalized=False)
    assert not parsed.normalized
    assert np.allclose(np.linalg.norm(parsed.vectors, axis=1), 3)


# Replies that are not.


def change(place: str, value: Any) -> Spoil:
    def spoil(reply: Reply) -> None:
        reply["data"][2][place] = value

    return spoil


def drop(place: str, *, everywhere: bool = False) -> Spoil:
    def spoil(reply: Reply) -> None:
        for item in reply["data"] if everywhere else reply["data"][2:3]:
            del item[place]

    return spoil


def scale(row: int, factor: float) -> Spoil:
    def spoil(reply: Reply) -> None:
        made = vectors() if row < 0 else vectors().copy()
        made[row] *= np.float32(factor)
        reply.update(reply_of(made))

    return spoil


def narrow(width: int, rows: slice = slice(None)) -> Spoil:
    def spoil(reply: Reply) -> None:
        reply["data"][rows] = reply_of(vectors(d=width))["data"][rows]

    return spoil


SPOILS: dict[str, tuple[Spoil, str]] = {
    "no data": (lambda r: r.pop("data") and None, "no list 'data'"),
    "another object": (lambda r: r.update(object="error"), "no list 'data'"),
    "one too few": (lambda r: r["data"].pop() and None, "4 vectors for 5 texts"),
    "one too many": (lambda r: r["data"].append(r["data"][0]), "6 vectors for 5 texts"),
    "an item is no object": (lambda r: r["data"].__setitem__(2, None), "null instead of an object"),
    "an index is missing": (drop("index"), "'index' is missing"),
    "every index is missing": (drop("index", everywhere=True), "'index' is missing"),
    "an index is text": (change("index", "2"), "'index' is missing"),
    "an index is true": (change("index", True), "'index' is missing"),
    "an index twice": (change("index", 1), "two vectors for text 1"),
    "an index too large": (change("index", 5), "text 5 of 5"),
    "an index below 0": (change("index", -1), "text -1 of 5"),
    "a vector is missing": (drop("embedding"), "vector 2 is null"),
    "a vector is an object": (change("embedding", {}), "vector 2 is an object"),
    "a vector is empty": (change("embedding", ""), "vector 2 0"),
    "no base64": (change("embedding", "!" * 64), "vector 2 is not base64"),
    "base64 with a break": (change("embedding", "AAAA\nAAAA" * 8), "vector 2 is not base64"),
    "base64 of other bytes": (change("embedding", base64.b64encode(b"12345").decode()), "5 bytes"),
    "one of each kind": (change("embedding", [1.0] * D), "some vectors as base64 and some as lists"),
    "one narrower": (narrow(D - 1, slice(2, 3)), "vector 2 11"),
    "all narrower": (narrow(D - 1), "11 dimensions instead of 12"),
    "a quarter": (narrow(D // 4), "3 dimensions instead of 12: a quarter.*base64"),
    "all empty": (narrow(0), "are empty"),
    "NaN": (scale(2, float("nan")), "vector 2 holds NaN"),
    "infinite": (scale(2, float("inf")), "vector 2 holds NaN, infinite"),
    "huge": (scale(2, 1e30), "vector 2 holds NaN, infinite or absurdly large"),
    "zeros": (scale(2, 0.0), "vector 2 is all zeros"),
    "too long": (scale(2, 1.03), "vector 2 has length 1.03"),
    "too short": (scale(4, 0.97), "vector 4 has length 0.97"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILS.values(), ids=SPOILS)
def test_wrong_reply_is_refused_and_may_be_tried_again(spoil: Spoil, words: str) -> None:
    reply = reply_of(vectors())
    spoil(reply)
    with pytest.raises(BadReplyError, match=words) as caught:
        parse(reply)
    assert caught.value.retryable


LISTS: dict[str, tuple[Any, str]] = {
    "a string": (["1.0"] * D, "no number"),
    "null": ([None] * D, "no number"),
    "true": ([True] * D, "no number"),
    "true among numbers": ([True, *[0.0] * (D - 1)], "no number"),
    "nested": ([[1.0]] * D, "no number"),
    "ragged": ([[1.0], *[1.0] * (D - 1)], "no number"),
    "one short": ([0.1] * (D - 1), "vector 2 11"),
    "beyond float32": ([1e300] * D, "vector 2 holds NaN, infinite"),
    "enormous": ([10**30] * D, "no number"),
}


@pytest.mark.parametrize(("value", "words"), LISTS.values(), ids=LISTS)
def test_wrong_list_of_numbers_is_refused(value: Any, words: str) -> None:
    reply = reply_of(vectors(), as_base64=False)
    reply["data"][2]["embedding"] = value
    with pytest.raises(BadReplyError, match=words):
        decode_reply(reply, count=N, width=D, normalized=True)


@pytest.mark.parametrize("reply", [[], "text", None, 3])
def test_reply_that_is_no_object_is_refused(reply: Any) -> None:
    with pytest.raises(BadReplyError, match="not an object"):
        parse(reply)


@pytest.mark.parametrize(
    ("raw", "words"), [(b"", "is empty"), (b'{"data": [', "not JSON"), (b'{"a": NaN}', "not JSON")]
)
def test_reply_that_is_no_json_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(BadReplyError, match=words):
        decode_json(raw)


# Headers.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("88ms", 0.088),
        ("1h2m3.5s", 3723.5),
        ("12", 12),
        ("0.5", 0.5),
        ("1d", 86400),
        ("250µs", 0.00025),
        ("-3", 0),
        ("", None),
        ("soon", None),
        ("6m later", None),
        ("nan", None),
        ("inf", None),
        ("9" * 99, None),
        (None, None),
    ],
)
def test_durations(value: str | None, seconds: float | None) -> None:
    assert read_duration(value) == (seconds if seconds is None else pytest.approx(seconds))


def test_rates_are_read_in_any_case() -> None:
    headers = CIMultiDict(
        {
            "X-RateLimit-Limit-Requests": "5000",
            "x-ratelimit-remaining-requests": "4999",
            "x-ratelimit-reset-requests": "12ms",
            "x-ratelimit-limit-tokens": "1000000",
            "x-ratelimit-remaining-tokens": "-20",
            "x-ratelimit-reset-tokens": "6m0s",
        }
    )
    assert read_rates(headers) == RateLimits(5000, 4999, 0.012, 1_000_000, 0, 360)


def test_rates_no_counter_has_are_none() -> None:
    assert read_rates(CIMultiDict({"x-ratelimit-limit-requests": "1e30"})) is None


@pytest.mark.parametrize("headers", [{}, {"x-ratelimit-limit-requests": "many"}])
def test_rates_that_say_nothing_are_none(headers: dict[str, str]) -> None:
    assert read_rates(CIMultiDict(headers)) is None


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, "retry after 8 seconds", 1.5),
        ({"retry-after": "9"}, "retry after 8 seconds", 9),
        ({"retry-after": "0.25"}, "", 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, "", 30),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, "", 0),
        ({"retry-after": "tomorrow", "x-ratelimit-reset-requests": "3s"}, "", 3),
        ({"x-ratelimit-reset-requests": "3s"}, "Please retry after 8 seconds.", 8),
        ({}, "Please try again in 88ms. Visit", 0.088),
        ({}, "Please wait 24367 seconds before retrying.", 24367),
        ({}, "Please retry after 1 minute", 60),
        ({}, "Try again in 1.5s", 1.5),
        ({}, "have 8 seconds", None),
        ({"x-ratelimit-timeremaining": "90"}, "", 90),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "5",
                "x-ratelimit-reset-tokens": "1s",
            },
            "",
            2,
        ),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "3s",
            },
            "",
            3,
        ),
        ({"x-ratelimit-reset-requests": "9s", "x-ratelimit-reset-tokens": "4s"}, "", 4),
        ({}, "", None),
    ],
)
def test_time_to_wait(headers: dict[str, str], message: str, seconds: float | None) -> None:
    found = read_retry_after(CIMultiDict(headers), message, now=NOW)
    assert found == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"retry-after": "1e308"}, ""),
        ({"retry-after-ms": "1e308"}, ""),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, ""),
        ({"x-ratelimit-reset-requests": f"{'9' * 25}s"}, ""),
        ({}, f"Please retry after {'9' * 15} seconds"),
    ],
)
def test_absurd_times_to_wait_are_a_year_and_have_a_date(headers: dict[str, str], message: str) -> None:
    found = read_retry_after(CIMultiDict(headers), message, now=NOW)
    assert found == 366 * 86_400
    assert datetime.fromtimestamp(NOW + found, UTC).year == 2028


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, f"Please retry after {'9' * 400} seconds"),
        ({"retry-after": "nan"}, ""),
        ({"retry-after": "1e309"}, ""),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 -00009999999999999999"}, ""),
    ],
)
def test_times_that_are_none_are_not_obeyed(headers: dict[str, str], message: str) -> None:
    assert read_retry_after(CIMultiDict(headers), message, now=NOW) is None
