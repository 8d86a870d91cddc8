"""Refusals in every dialect, and what they must become."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from vecmill.core.errors import (
    AuthenticationError,
    BadReplyError,
    ProviderError,
    QuotaExhaustedError,
    RateLimitError,
    RefusedError,
    UnavailableError,
)
from vecmill.core.http import Response
from vecmill.models.base import RateLimits
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.endpoints import KeyLogin
from vecmill.models.hosted.errors import Problem, classify, holds_error, read_problem, request_id

NOW = 1_800_000_000.0
KEY = "sk-planted-Abcdefgh12345678"
TEXT = "The planted text of a customer, which nobody may ever read in a log."


async def login() -> Mapping[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


def connection(provider: str = "openai") -> Connection:
    return Connection(provider, f"{provider}:m", "m", "https://host/v1/embeddings", login)


def error_of(
    status: int,
    message: str = "",
    *,
    code: Any = None,
    kind: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    provider: str = "openai",
    texts: tuple[str, ...] = (TEXT,),
) -> ProviderError:
    error = {"message": message, "type": kind, "param": param, "code": code}
    raw = body if isinstance(body, bytes) else orjson.dumps(body or {"error": error})
    response = Response(status, CIMultiDict(headers or {}), raw)
    secrets = (f"Bearer {KEY}",)
    return classify(connection(provider), response, texts=texts, secrets=secrets, now=NOW)


# Who asks, and how often.


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("provider", "variable"),
    [("openai", "OPENAI_API_KEY"), ("azure", "AZURE_OPENAI_API_KEY"), ("github", "GITHUB_TOKEN")],
)
def test_refused_key_says_where_to_look(status: int, provider: str, variable: str) -> None:
    error = error_of(status, f"Incorrect API key provided: {KEY[:6]}****{KEY[-4:]}.", provider=provider)
    assert isinstance(error, AuthenticationError)
    assert not error.retryable
    assert variable in str(error)
    assert KEY[-4:] not in str(error)


def test_words_about_a_refused_key_are_not_shown() -> None:
    assert "9xz" not in str(error_of(401, "The key that ends with 9xz is wrong."))


def test_code_is_a_word_or_nothing() -> None:
    assert error_of(400, code="some.code-1").code == "some.code-1"
    assert error_of(400, code="a whole sentence of somebody").code == ""


def test_origin_of_the_key_is_named_where_the_login_knows_it() -> None:
    made = connection()
    made.login.origin = "file:/run/key"  # type: ignore[attr-defined]  # what is tested
    try:
        assert "file:/run/key" in str(classify(made, Response(401, CIMultiDict(), b"")))
    finally:
        del made.login.origin  # type: ignore[attr-defined]


def test_missing_permission_keeps_the_providers_words() -> None:
    error = error_of(403, "Access denied due to Virtual Network/Firewall rules.", provider="azure")
    assert "Firewall rules" in str(error)


AZURE_429 = (
    "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded "
    "call rate limit of your current OpenAI S0 pricing tier. Please retry after 2 seconds. Please go here: "
    "https://aka.ms/oai/quotaincrease if you would like to further increase the default rate limit."
)
RATES = {
    "silent": ("", {}, None),
    "azure": (AZURE_429, {}, 2),
    "azure tokens": (AZURE_429.replace("call rate limit", "token rate limit"), {}, 2),
    "openai": (
        "Rate limit reached for m on requests per min (RPM): Limit 3, Used 3. Please try again in 20s.",
        {},
        20,
    ),
    "quota in passing": ("You have exceeded the token rate limit of your quota.", {}, None),
    "seconds": ("", {"retry-after": "3"}, 3),
    "milliseconds": ("", {"retry-after-ms": "70", "retry-after": "1"}, 0.07),
    "date": ("", {"retry-after": formatdate(NOW + 9, usegmt=True)}, 9),
    "reset": ("", {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
    "quota, but soon": ("Quota exceeded for metric: requests per minute.", {"retry-after": "30"}, 30),
    "minute": ("Slow down.", {"x-ratelimit-type": "UserByModelByMinute", "retry-after": "10"}, 10),
}


@pytest.mark.parametrize(("message", "headers", "seconds"), RATES.values(), ids=RATES)
def test_rate_limit_waits(message: str, headers: dict[str, str], seconds: float | None) -> None:
    error = error_of(429, message, headers=headers)
    assert type(error) is RateLimitError
    assert error.retryable
    assert error.retry_after == (seconds if seconds is None else pytest.approx(seconds))


def test_rate_limit_with_403_waits_too() -> None:
    assert type(error_of(403, "You have exceeded a secondary rate limit.")) is RateLimitError


QUOTAS: dict[str, tuple[int, dict[str, Any], float | None]] = {
    "code": (429, {"code": "insufficient_quota", "message": "You exceeded your current quota"}, None),
    "type": (429, {"kind": "insufficient_quota"}, None),
    "billing": (429, {"code": "billing_hard_limit_reached"}, None),
    "words": (429, {"message": "You exceeded your current quota, please check your plan."}, None),
    "github day": (
        429,
        {
            "code": "RateLimitReached",
            "message": "Rate limit of 150 per 86400s exceeded for UserByModelByDay. "
            "Please wait 24367 seconds.",
        },
        24367,
    ),
    "github header": (
        429,
        {"headers": {"x-ratelimit-type": "UserByModelByDay", "retry-after": "24367"}},
        24367,
    ),
    "requests per day": (429, {"message": "Rate limit reached on requests per day (RPD): Limit 200"}, None),
    "azure volume": (403, {"message": "Out of call volume quota. It will be replenished."}, None),
    "payment": (402, {"message": "Insufficient credits"}, None),
}


@pytest.mark.parametrize(("status", "said", "seconds"), QUOTAS.values(), ids=QUOTAS)
def test_used_up_quota_parks(status: int, said: dict[str, Any], seconds: float | None) -> None:
    error = error_of(status, said.pop("message", "") if "message" in (said := dict(said)) else "", **said)
    assert isinstance(error, QuotaExhaustedError)
    assert error.until == (None if seconds is None else NOW + seconds)
    assert not error.retryable


def test_request_above_the_limit_per_minute_is_no_rate_limit() -> None:
    error = error_of(
        429,
        "Request too large for m in organization org-1 on tokens per min (TPM): Limit 10000, "
        "Requested 20000.",
        code="rate_limit_exceeded",
    )
    assert isinstance(error, RefusedError)
    assert (error.reason, error.limit) == ("max_request_tokens", 10_000)


# Servers.


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_server_that_fails_may_be_asked_again(status: int) -> None:
    error = error_of(status, headers={"retry-after": "2"})
    assert isinstance(error, UnavailableError)
    assert (error.retryable, error.retry_after) == (True, 2)


def test_page_of_html_is_not_shown() -> None:
    error = error_of(502, body=b"<html><body>Bad gateway</body></html>")
    assert isinstance(error, UnavailableError)
    assert "html" not in str(error)


def test_header_overrides_the_status_both_ways() -> None:
    assert isinstance(error_of(400, headers={"x-should-retry": "true"}), UnavailableError)
    assert error_of(503, headers={"x-should-retry": "false"}).retryable is False
    assert error_of(429, headers={"x-should-retry": "false"}).retryable is False


@pytest.mark.parametrize("status", [204, 302, 304])
def test_status_nobody_expects_is_a_bad_reply(status: int) -> None:
    error = error_of(status)
    assert isinstance(error, BadReplyError)
    assert error.retryable


# Requests.

REFUSED: dict[str, tuple[int, dict[str, Any], str, int | None]] = {
    "openai inputs": (
        400,
        {
            "message": "Invalid 'input': array too long. Expected an array with maximum length 2048, but got "
            "an array with length 3000 instead.",
            "param": "input",
            "code": "array_above_max_length",
        },
        "max_inputs",
        2048,
    ),
    "inputs, code only": (400, {"code": "array_above_max_length"}, "max_inputs", None),
    "azure 16": (
        400,
        {"message": "Too many inputs. The max number of inputs is 16. We hope to increase it soon."},
        "max_inputs",
        16,
    ),
    "tei": (413, {"message": "batch size 64 > maximum allowed batch size 32"}, "max_inputs", 32),
    "dashscope": (
        400,
        {"message": "batch size is invalid, it should not be larger than 10.: input.contents"},
        "max_inputs",
        10,
    ),
    "cohere": (400, {"message": "total number of texts must be at most 96"}, "max_inputs", 96),
    "gemini": (400, {"message": "at most 100 requests can be in one batch"}, "max_inputs", 100),
    "voyage": (
        400,
        {"message": "The batch size limit is 1,000. Your batch size is 2000."},
        "max_inputs",
        1000,
    ),
    "plain": (400, {"message": "too many inputs"}, "max_inputs", None),
    "openai tokens": (
        400,
        {"message": "Requested 673477 tokens, max 300000 tokens per request"},
        "max_request_tokens",
        300_000,
    ),
    "voyage tokens": (
        400,
        {"message": "The max allowed tokens per submitted batch is 120000. Your batch has 130000 tokens."},
        "max_request_tokens",
        120_000,
    ),
    "large body": (413, {"message": "Request Entity Too Large"}, "max_bytes", None),
    "unknown model": (
        404,
        {"code": "model_not_found", "message": "The model `m` does not exist"},
        "request",
        None,
    ),
    "deployment": (404, {"code": "DeploymentNotFound"}, "request", None),
    "unknown path": (404, {"body": b"404 page not found"}, "request", None),
    "method": (405, {}, "request", None),
    "no dimensions": (
        400,
        {"message": "This model does not support specifying dimensions."},
        "request",
        None,
    ),
    "bad dimensions": (400, {"message": "must be at most 1536", "param": "dimensions"}, "request", None),
    "user": (400, {"message": "Unrecognized request argument supplied: user"}, "request", None),
    "fastapi field": (
        422,
        {
            "body": {
                "detail": [{"loc": ["body", "encoding_format"], "msg": "unexpected value", "type": "enum"}]
            }
        },
        "request",
        None,
    ),
    "chat model": (
        400,
        {"code": "OperationNotSupported", "message": "The embeddings operation does not work with gpt-4."},
        "request",
        None,
    ),
    "long text": (
        400,
        {"message": "This model's maximum context length is 8192 tokens, however you requested 8193 tokens."},
        "input",
        None,
    ),
    "empty text": (400, {"message": "'$.input' is invalid. Please check the API reference."}, "input", None),
    "fastapi text": (
        422,
        {
            "body": {
                "detail": [{"loc": ["body", "input", 3], "msg": "str type expected", "type": "type_error"}]
            }
        },
        "input",
        None,
    ),
    "nothing said": (400, {"body": b""}, "input", None),
    "content filter": (400, {"code": "content_filter", "message": "The input was filtered."}, "input", None),
}


@pytest.mark.parametrize(("status", "said", "reason", "limit"), REFUSED.values(), ids=REFUSED)
def test_refusal_says_what_to_change(
    status: int, said: dict[str, Any], reason: str, limit: int | None
) -> None:
    error = error_of(status, **said)
    assert isinstance(error, RefusedError)
    assert not error.retryable
    assert (error.reason, error.limit) == (reason, limit)


def test_refusal_that_quotes_a_text_does_not_decide_by_its_words() -> None:
    text = "In our shop the model does not exist, and max 5 tokens per request are sold."
    error = error_of(400, f"Cannot embed: {text}", texts=("a", text))
    assert isinstance(error, RefusedError)
    assert error.reason == "input"


# Errors with status 200.

INSIDE: dict[str, tuple[Any, type[ProviderError]]] = {
    "rate": ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, RateLimitError),
    "number": ({"error": {"message": "slow down", "code": 429}}, RateLimitError),
    "words": ({"error": {"message": "Rate limit reached"}}, RateLimitError),
    "flat": ({"code": "rate_limit", "message": "slow down"}, RateLimitError),
    "quota": ({"error": {"message": "", "type": "insufficient_quota"}}, QuotaExhaustedError),
    "key": ({"error": {"message": "", "code": "invalid_api_key"}}, AuthenticationError),
    "input": ({"error": {"message": "empty", "type": "invalid_request_error"}}, RefusedError),
    "server": ({"error": {"message": "oops", "type": "server_error"}}, UnavailableError),
    "string": ({"error": "something"}, BadReplyError),
}


@pytest.mark.parametrize(("body", "kind"), INSIDE.values(), ids=INSIDE)
def test_error_with_status_200_is_the_error_it_holds(body: Any, kind: type[ProviderError]) -> None:
    assert holds_error(body)
    assert type(error_of(200, body=body)) is kind


def test_reply_with_data_holds_no_error() -> None:
    assert not holds_error({"object": "list", "data": [], "error": None})
    assert not holds_error([])


# What every error carries, and what none shows.


def test_error_carries_all_that_is_known() -> None:
    headers = {"X-Request-Id": "req_1", "x-ratelimit-limit-requests": "60", "retry-after": "1"}
    error = error_of(429, "slow", code="rate_limit_exceeded", headers=headers)
    assert (error.provider, error.model, error.status, error.request_id) == ("openai", "m", 429, "req_1")
    assert (error.code, error.retry_after, error.rates) == (
        "rate_limit_exceeded",
        1,
        RateLimits(limit_requests=60),
    )
    assert str(error) == "openai:m is asked too fast (status 429 rate_limit_exceeded): slow"


def test_id_of_a_request_that_looks_like_a_key_is_kept() -> None:
    number = "req_fedcba9876543210fedcba9876543210"
    error = error_of(500, f"Try again, and name {number}.", headers={"x-request-id": number})
    assert error.request_id == number
    assert number in str(error)


def test_azures_id_of_a_request_is_read() -> None:
    assert error_of(500, headers={"apim-request-id": "a-b"}).request_id == "a-b"
    assert error_of(500, headers={"x-request-id": "no id at all"}).request_id is None


LEAKS = {
    "the text": TEXT,
    "quoted": f"invalid input: '{TEXT}'",
    "its beginning": f"cannot embed {TEXT[:40]!r}…",
    "a part of it": f"bad words near {TEXT[20:60]}",
    "other white space": TEXT.replace(" ", "\n"),
    "the key": f"unknown key {KEY}",
    "the login": f"header Bearer {KEY} is wrong",
    "its end": f"key ending in {KEY[-8:]} is wrong",
    "its beginning and stars": "wrong key sk-plan****5678",
    "another key": "use ghp_q9w8e7r6t5y4u3i2o1p0a9s8d7f6g5h4",
    "a key alone": "ghp_q9w8e7r6t5y4u3i2o1p0a9s8d7f6g5h4",
    "a token": "eyJhbGciOiJIUzI1NiJ9 has expired",
}


@pytest.mark.parametrize("message", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 413, 429, 500])
def test_no_text_and_no_key_is_shown(status: int, message: str) -> None:
    said = {"error": {"message": message, "code": message, "type": message, "param": message}}
    error = error_of(status, body=said, headers={"x-request-id": f"{message}"[:99].replace("\n", " ")})
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    for part in (TEXT, TEXT[:31], TEXT[20:51], KEY, KEY[:12], KEY[-8:], "ghp_q9w8", "eyJhbGci", "5678"):
        assert part not in shown


@pytest.mark.parametrize("text", ["short", "ü!?x"])
def test_short_text_is_not_quoted(text: str) -> None:
    assert text not in str(error_of(400, f"cannot embed {text}", texts=("other", text)))


def test_text_of_one_letter_does_not_silence_everything() -> None:
    assert "too long" in str(error_of(400, "this is too long", texts=("i",)))
    assert "'i'" not in str(error_of(400, "cannot embed 'i'", texts=("i",)))


def test_long_words_are_cut() -> None:
    error = error_of(500, "really " * 200)
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", Problem()),
        (b"[]", Problem()),
        (b'"plain"', Problem("plain")),
        (b'{"error":"plain"}', Problem("plain")),
        (b'{"message":"m","code":404}', Problem("m", "404")),
        (b'{"detail":"d"}', Problem("d")),
        (b'{"error":{"message":"m","code":"c","type":"t","param":"p"}}', Problem("m", "c", "t", "p")),
        (b'{"error":{"message":["m"],"code":{}}}', Problem()),
        (b'{"error":null}', Problem()),
    ],
)
def test_forms_of_an_error(body: bytes, problem: Problem) -> None:
    assert read_problem(body) == problem


@pytest.mark.parametrize("status", [400, 413, 429])
def test_limit_of_thousands_of_digits_is_none(status: int) -> None:
    words = "request too large limit: " if status == 429 else "maximum allowed batch size "
    error = error_of(status, words + "9" * 3_000)
    assert isinstance(error, RefusedError)
    assert error.limit is None


def test_only_the_beginning_of_endless_words_is_looked_at() -> None:
    """Looked at whole, these took a server's megabyte to hold every other request up for hours."""
    texts = tuple(f"text {n} of a batch " * 50 for n in range(200))
    error = error_of(429, "request too large " * 500_000, texts=texts)
    assert isinstance(error, RateLimitError)
    error = error_of(400, "so many words " * 500_000 + "maximum allowed batch size 16", texts=texts)
    assert isinstance(error, RefusedError)
    assert error.limit is None


def test_an_id_like_a_key_is_none_of_good_replies_either() -> None:
    assert request_id(Response(200, CIMultiDict({"x-request-id": KEY}), b"")) is None
    assert request_id(Response(200, CIMultiDict({"x-request-id": "req_1"}), b"")) == "req_1"


# Advice.


def advised(status: int, message: str, code: str = "", **changes: Any) -> str:
    raw = orjson.dumps({"error": {"message": message, "code": code}})
    made = replace(connection(), **changes)
    return str(classify(made, Response(status, CIMultiDict(), raw), now=NOW))


def test_a_model_nobody_has_brings_the_hint_and_other_refusals_do_not() -> None:
    absent = "The model `m` does not exist or you do not have access to it."
    for message, code in (
        (absent, "model_not_found"),
        (absent, ""),
        ('model "m" not found, try pulling it first', ""),
        ("The API deployment for this resource does not exist.", "DeploymentNotFound"),
    ):
        assert advised(404, message, code, unknown_hint="did you mean n?").endswith("; did you mean n?")
        assert ".;" not in advised(404, message, code, unknown_hint="did you mean n?")
    assert "did you mean" not in advised(404, "Not Found", unknown_hint="did you mean n?")
    assert "did you mean" not in advised(400, "no", "unknown_parameter", unknown_hint="did you mean n?")
    assert ";" not in advised(404, absent, "model_not_found")


def test_a_limit_of_tokens_nobody_knew_comes_with_the_option_that_keeps_it() -> None:
    said = "This model's maximum context length is 512 tokens, however you requested 600 tokens."
    assert advised(400, said, facts=Facts()).endswith("; say --max-tokens 512 (max_tokens= in Python)")
    assert "--max-tokens" not in advised(400, said, facts=Facts(catalogue_name="known"))
    assert "--max-tokens" not in advised(400, "a text is refused", facts=Facts())


@pytest.mark.parametrize(
    ("provider", "origin", "said"),
    [
        ("openai", "env:REVIEWS_KEY (key of profile 'r')", "check env:REVIEWS_KEY (key of profile 'r')"),
        ("azure", "AZURE_OPENAI_API_KEY", "check AZURE_OPENAI_API_KEY and the endpoint"),
        ("github", "GITHUB_TOKEN", "check GITHUB_TOKEN (it needs the permission models: read)"),
        ("openai", "", "wants a key (status 401); no key was sent: set OPENAI_API_KEY, or `key` in its"),
    ],
)
def test_a_refusal_names_the_key_that_was_sent_or_that_none_was(
    provider: str, origin: str, said: str
) -> None:
    made = replace(connection(provider), login=KeyLogin(dict, {}, origin))
    assert said in str(classify(made, Response(401, CIMultiDict(), b"")))
