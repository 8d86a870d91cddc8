"""A provider's refusal, in whatever dialect, as the exception that tells the caller what can be done.

The provider's own words are kept where they cannot hold a text or a key: cut to 300 characters, left out
where they quote what was sent, and never shown of a refused key. Words that quote a text decide nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

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
from vecmill.models.hosted import wire
from vecmill.models.hosted.connection import Connection

_LONGEST = 300
_READ = 4_000
"""Characters of a message that are looked at: what a server says is no reason to think for minutes."""
_RUN = 16
"""Characters in a row that a message may share with a text."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What an error's body says: the provider's words, its code, type and parameter ("" where missing)."""

    message: str = ""
    code: str = ""
    kind: str = ""
    param: str = ""

    def names(self, parameter: str) -> bool:
        """Say whether a parameter of the request is to blame."""
        return self.param.split(".")[-1] == parameter or (
            not self.param and re.search(rf"\b{parameter}\b", self.message) is not None
        )


def read_problem(body: bytes) -> Problem:
    """Return what an error's body says: OpenAI's form, Azure's, FastAPI's, or nothing."""
    try:
        value = orjson.loads(body)
    except ValueError:
        return Problem()
    return problem_of(value)


def problem_of(value: Any) -> Problem:
    """Return what an error says, given its JSON value."""
    if not isinstance(value, dict):
        return Problem(message=value) if isinstance(value, str) else Problem()
    error = value.get("error", value)
    if isinstance(error, str):
        return Problem(error, _word(value.get("code")), _word(value.get("type")))
    if not isinstance(error, dict):
        return Problem()
    detail = error.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):  # FastAPI's validation
        place = detail[0].get("loc")
        param = ".".join(str(part) for part in place) if isinstance(place, list) else ""
        return Problem(_text(detail[0].get("msg")), _word(detail[0].get("type")), "", param[:100])
    message = _text(error.get("message")) or _text(detail) or _text(error.get("msg"))
    return Problem(
        message, _word(error.get("code")), _word(error.get("type")), _text(error.get("param"))[:100]
    )


def holds_error(value: Any) -> bool:
    """Say whether the JSON value of a reply with status 200 is an error all the same."""
    if not isinstance(value, dict) or "data" in value:
        return False
    return bool(value.get("error")) or ("message" in value and ("code" in value or "type" in value))


def classify(
    connection: Connection,
    response: Response,
    *,
    texts: Sequence[str] = (),
    secrets: Iterable[str] = (),
    now: float | None = None,
) -> ProviderError:
    """Return the exception for an answer that is no success.

    Args:
        connection: Who was asked.
        response: The answer; one of status 200 that holds an error counts as the error it holds.
        texts: What was sent; the message quotes none of it.
        secrets: Values of secret headers; the message shows none.
        now: Seconds since the epoch; None: the present.
    """
    return _Case(connection, response, texts, tuple(secrets), time.time() if now is None else now).error()


class _Case:
    """One refused request."""

    def __init__(
        self,
        connection: Connection,
        response: Response,
        texts: Sequence[str],
        secrets: tuple[str, ...],
        now: float,
    ) -> None:
        self.headers, self.now = response.headers, now
        self.connection = connection
        self.problem = read_problem(response.body)
        self.status = response.status
        self.meant = _status_within(self.problem) if 200 <= self.status < 300 else self.status
        plain = " ".join(self.problem.message[:_READ].split())
        quotes = _quotes(plain, texts)
        number = request_id(response) or ""
        number = "" if _shows_secret(number, secrets) else number
        bare = plain.replace(number, "") if number else plain  # an id looks like a key
        shows = _KEYS.search(bare) is not None or _shows_secret(plain, secrets)
        self.words = "" if quotes or shows else _cut(plain)
        self.wording = "" if quotes else plain.lower()
        code = self.problem.code or self.problem.kind
        hidden = _KEYS.search(code) is not None or _shows_secret(code, secrets) or _quotes(code, texts)
        self.code = "" if hidden else code
        self.retry_after = wire.read_retry_after(self.headers, self.wording, now=now)
        self.said: dict[str, Any] = {
            "provider": connection.provider,
            "model": connection.model,
            "status": self.status,
            "request_id": number or None,
            "code": self.code,
            "rates": wire.read_rates(self.headers),
        }

    def error(self) -> ProviderError:
        """Return what the answer amounts to."""
        status, again = self.meant, self.headers.get("x-should-retry", "").strip().lower()
        if status in (402, 403, 429):
            limited = self._limited()
            if limited is not None:
                return limited
        if status in (401, 403):
            return self._unauthorized()
        if status in (408, 409) or status >= 500 or again == "true":
            return UnavailableError(
                self._message("could not answer"),
                **self.said,
                retry_after=self.retry_after,
                retryable=again != "false",
            )
        if 400 <= status < 500:
            return self._refused()
        return BadReplyError(
            self._message("answered something unexpected"),
            **self.said,
            retry_after=self.retry_after,
            retryable=again != "false",
        )

    def _limited(self) -> ProviderError | None:
        """Return a limit that was reached, None where the answer is about something else."""
        message = self.wording
        too_large = _TOO_LARGE.search(message)
        if too_large is not None:
            return RefusedError(
                self._message("takes no request of so many tokens"),
                reason="max_request_tokens",
                limit=_limit(too_large),
                **self.said,
            )
        if self._is_quota(message):
            until = None if self.retry_after is None else self.now + self.retry_after
            return QuotaExhaustedError(self._message("serves nothing more for now"), until=until, **self.said)
        if self.meant == 403 and "rate limit" not in message:
            return None
        return RateLimitError(
            self._message("is asked too fast"),
            **self.said,
            retry_after=self.retry_after,
            retryable=self.headers.get("x-should-retry", "").strip().lower() != "false",
        )

    def _is_quota(self, message: str) -> bool:
        if self.meant == 402 or self.problem.code in _QUOTA_CODES or self.problem.kind in _QUOTA_CODES:
            return True
        if re.search(r"by(day|month)\b", self.headers.get("x-ratelimit-type", ""), re.IGNORECASE):
            return True
        if _LONG_WINDOW.search(message) is not None:
            return True
        soon = self.retry_after is not None and self.retry_after <= _SOON
        return _QUOTA.search(message) is not None and "rate limit" not in message and not soon

    def _unauthorized(self) -> AuthenticationError:
        provider = self.connection.provider
        origin: str | None = getattr(self.connection.login, "origin", None)
        what = "refuses the key" if self.meant == 401 else "does not allow this"
        # Words about a key may show parts of it.
        words = f": {self.words}" if self.words and self.meant == 403 else ""
        if origin is None:
            where = f"; check {_ORIGINS.get(provider, 'the key')}"
        elif origin:
            where = f"; check {origin}{_BESIDE.get(provider, '')}"
        else:
            what = "wants a key" if self.meant == 401 else what
            where = f"; no key was sent: set {_VARIABLES.get(provider, 'one')}, or `key` in its profile"
        return AuthenticationError(
            f"{self.connection.name} {what} (status {self.status}){words}{where}", **self.said
        )

    def _refused(self) -> RefusedError:
        message, problem = self.wording, self.problem
        for reason, patterns in _LIMITS.items():
            for pattern in patterns:
                if (match := pattern.search(message)) is not None:
                    return self._refuse(reason, limit=_limit(match))
        if problem.code == "array_above_max_length":
            return self._refuse("max_inputs")
        if self.meant == 413:
            return self._refuse("max_bytes")
        about_request = (
            self.meant not in (400, 422)
            or problem.code.lower() in _REQUEST_CODES
            or problem.param.split(".")[-1] in _PARAMETERS
            or any(pattern.search(message) for pattern in _REQUEST)
        )
        return self._refuse("request" if about_request else "input")

    def _refuse(self, reason: str, *, limit: int | None = None) -> RefusedError:
        message, advice = self._message(_REFUSALS[reason]), self._advice(reason)
        message = f"{message.rstrip('.')}; {advice}" if advice else message
        return RefusedError(message, reason=reason, limit=limit, **self.said)

    def _advice(self, reason: str) -> str:
        """Return what may help: a name that may be meant, or the limit of tokens to be said."""
        hint = self.connection.unknown_hint
        if reason == "request" and hint:
            unknown = self.problem.code.lower() in _NO_MODEL_CODES or _NO_MODEL.search(self.wording)
            return hint if unknown else ""
        longest = _CONTEXT.search(self.wording) if reason == "input" else None
        limit = None if longest is None else _limit(longest)
        if limit is None or self.connection.facts.catalogue_name is not None:
            return ""
        return f"say --max-tokens {limit} (max_tokens= in Python)"

    def _message(self, what: str) -> str:
        code = f" {self.code}" if self.code else ""
        words = f": {self.words}" if self.words else ""
        return f"{self.connection.name} {what} (status {self.status}{code}){words}"


def request_id(response: Response) -> str | None:
    """Return the provider's id of a request; None where nothing looks like one, or it looks like a key."""
    for name in ("x-request-id", "apim-request-id", "x-ms-request-id", "request-id"):
        value = response.headers.get(name, "")
        if re.fullmatch(r"[\w.:/+=-]{1,128}", value, re.ASCII):
            return None if _PLAIN_KEYS.search(value) else value
    return None


_ORIGINS = {
    "openai": "OPENAI_API_KEY, or the key of the profile",
    "azure": "AZURE_OPENAI_API_KEY, or the key or login of the profile, and its endpoint",
    "github": "GITHUB_TOKEN (it needs the permission models: read)",
}

_VARIABLES = {"openai": "OPENAI_API_KEY", "azure": "AZURE_OPENAI_API_KEY", "github": "GITHUB_TOKEN"}
_BESIDE = {"azure": " and the endpoint", "github": " (it needs the permission models: read)"}

_REFUSALS = {
    "input": "refuses a text",
    "max_inputs": "takes fewer texts in one request",
    "max_request_tokens": "takes fewer tokens in one request",
    "max_bytes": "takes smaller requests",
    "request": "refuses the request",
}

# Limits. Azure's message of a rate limit ends with a link to "quotaincrease", which is no quota.

_SOON = 300.0
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "quota_exceeded",
        "QuotaExceeded",
    }
)
_QUOTA = re.compile(r"\bquota\b|\bcredits?\b.{0,40}\b(exhausted|used up)|insufficient (balance|credit)")
_LONG_WINDOW = re.compile(r"for \w+by(day|month)\b|\bper (day|86,?400 ?s)|\brequests per day\b|\(rpd\)")
_TOO_LARGE = re.compile(r"request too large\b.*?\blimit:? (\d[\d,_]*)")


def _patterns(*sources: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source) for source in sources)


_N = r"(?P<limit>\d[\d,_]*)"
_AT_MOST = (
    r"(?:at most|no more than|more than|larger than|exceeds?|max(?:imum)?(?: of| is)?|limit(?: of| is)?)"
)
_LIMITS = {
    "max_request_tokens": _patterns(
        rf"max(?:imum)? (?:of )?{_N} tokens per request",
        rf"max(?:imum)? allowed tokens per (?:submitted )?(?:batch|request) is {_N}",
        rf"total (?:number of )?tokens.{{0,40}}{_AT_MOST} {_N}",
        r"too many tokens in (?:the |this |one |a )?(?:batch|request)",
    ),
    "max_inputs": _patterns(
        rf"(?:max(?:imum)? |max\. )?number of inputs is {_N}",
        rf"array too long.{{0,80}}?maximum length {_N}",
        rf"maximum allowed batch size {_N}",
        rf"batch size limit is {_N}",
        rf"batch size\b.{{0,60}}{_AT_MOST} {_N}",
        rf"(?:texts|inputs|items|requests)\b.{{0,40}}{_AT_MOST} {_N}",
        rf"(?:at most|no more than|maximum of|up to) {_N} (?:texts|inputs|items|requests)\b",
        r"too many (?:inputs|texts|items)\b",
        r"(?:input|array) (?:list |array )?(?:is )?too long\b(?!.{0,60}\btokens?\b)",
    ),
}

_CONTEXT = re.compile(r"max(?:imum)? (?:context|input|sequence) length (?:is|of) (?P<limit>\d[\d,_]*) tokens")

# A model there is not.

_NO_MODEL_CODES = frozenset({"model_not_found", "deploymentnotfound", "unknown_model"})
_NO_MODEL = re.compile(r"\b(?:model|deployment)\b.{0,80}(?:does not exist|not found|unknown)")

# What is about the request and not about a text in it.

_PARAMETERS = frozenset({"model", "dimensions", "encoding_format", "user", "api-version", "api_version"})
_REQUEST_CODES = frozenset(
    {
        "model_not_found",
        "deploymentnotfound",
        "operationnotsupported",
        "unsupportedapiversion",
        "unknown_model",
        "unsupported_model",
        "unknown_parameter",
        "unsupported_parameter",
        "resourcenotfound",
    }
)
_REQUEST = _patterns(
    r"specifying dimensions|dimensions.{0,40}(?:not supported|unsupported|does not support)",
    r"(?:unrecognized|unknown|unexpected|extra|unsupported)\b.{0,40}\b(?:argument|parameter|field|key)",
    r"\bmodel\b.{0,80}(?:does not exist|not found|not supported|not available|no access)",
    r"(?:does not|doesn't) support (?:embeddings|matryoshka)|does not work with the specified model",
    r"api version.{0,40}not supported",
)

_STATUSES = (
    (("insufficient_quota", "rate_limit", "ratelimit", "too_many_requests", "toomanyrequests"), 429),
    (("invalid_api_key", "authentication", "unauthorized"), 401),
    (("permission", "forbidden"), 403),
    (("not_found", "notfound"), 404),
    (("invalid_request", "invalid_value", "bad_request", "badrequest", "array_above"), 400),
    (("server_error", "internal", "unavailable", "overloaded", "timeout"), 503),
)


def _status_within(problem: Problem) -> int:
    """Return the status an error with status 200 should have had; 200 where it does not say."""
    if re.fullmatch(r"[45]\d\d", problem.code):
        return int(problem.code)
    words = f"{problem.code} {problem.kind}".lower()
    for parts, status in _STATUSES:
        if any(part in words for part in parts):
            return status
    message = problem.message.lower()
    return 429 if "rate limit" in message or "too many requests" in message else 200


def _limit(match: re.Match[str]) -> int | None:
    """Return the number a message names."""
    if not match.re.groups:
        return None
    digits = re.sub(r"\D", "", match[1])
    return int(digits) or None if len(digits) <= _MOST_DIGITS else None  # no limit of this world has more


_MOST_DIGITS = 15


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _word(value: Any) -> str:
    """Return a code if it is a plain word: anything else could hold a text."""
    value = str(value) if type(value) is int else value
    return value if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,64}", value, re.ASCII) else ""


# Words that may be shown.

_PREFIXED = (
    r"\b(?:sk|pk|rk)-[\w*.-]{6,}|\b(?:ghp|gho|ghu|ghs|github_pat)_\w{6,}|\beyJ[\w-]{10,}|\bbearer\s+\S{6,}"
)
_KEYS = re.compile(rf"{_PREFIXED}|(?<![\w-])(?=\w*\d)[0-9A-Za-z_]{{32,}}", re.IGNORECASE)
_PLAIN_KEYS = re.compile(_PREFIXED, re.IGNORECASE)


def shown(words: str, *, texts: Iterable[str] = ()) -> str:
    """Return a provider's words as they may be shown: cut, and "" where they hold a text or a key."""
    plain = " ".join(words[:_READ].split())
    return "" if _KEYS.search(plain) or _quotes(plain, texts) else _cut(plain)


def _cut(message: str) -> str:
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"


def _shows_secret(message: str, secrets: Iterable[str]) -> bool:
    """Say whether a message shows eight characters of a secret in a row."""
    for secret in secrets:
        bare = secret.removeprefix("Bearer ").strip()
        parts = [bare] if len(bare) < 8 else (bare[at : at + 8] for at in range(len(bare) - 7))
        if any(part and part in message for part in parts):
            return True
    return False


def _quotes(message: str, texts: Iterable[str]) -> bool:
    """Say whether a message holds a text, or shares a run of at least 31 characters with one."""
    runs = {message[at : at + _RUN] for at in range(0, len(message) - _RUN + 1, _RUN)}
    for text in texts:
        bare = " ".join(text.split())
        if 0 < len(bare) <= len(message) and (
            bare in message if len(bare) >= 4 else re.search(rf"""['"`]{re.escape(bare)}['"`]""", message)
        ):
            return True
        if any(run in bare for run in runs):
            return True
    return False
