"""What is answered instead of vectors: OpenAI's error object, and which of our errors has which status."""

from __future__ import annotations

import math
from collections.abc import Sequence

import orjson

from vecmill.core import errors

INVALID = "invalid_request_error"
SERVER = "server_error"
RATE = "rate_limit_error"

MAX_RETRY_AFTER = 120.0
"""Seconds; official clients do not try again at all when told to wait longer."""

Header = tuple[str, str]


class Refusal(Exception):  # noqa: N818 - an answer
    """An answer that is no success.

    Attributes:
        status: HTTP status.
        message: For the developer who reads it: what was wrong, what would be right; never a text or a key.
        type, code, param: As OpenAI's error object has them.
        headers: Sent with it.
        close: Whether the connection is closed after it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,  # noqa: A002 - the wire's word
        code: str | None = None,
        param: str | None = None,
        headers: Sequence[Header] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = tuple(headers)
        self.close = close

    def body(self, *, azure: bool = False) -> bytes:
        """Return the error object as JSON; all four keys are always there. Azure's code is never null."""
        code = self.code or (str(self.status) if azure else None)
        said = {"message": self.message, "type": self.type, "param": self.param, "code": code}
        return orjson.dumps({"error": said})


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """Return the answer to a request that is wrong in itself: 400."""
    return Refusal(400, message, param=param, code=code)


def unknown_model(name: str) -> Refusal:
    """Return the answer to a model nobody serves here: 404, in OpenAI's words. The name is shown cut."""
    shown = name if len(name) <= 128 else name[:125] + "…"
    message = (
        f"The model `{shown}` does not exist or you do not have access to it."
        " The models served here are listed at /v1/models."
    )
    return Refusal(404, message, param="model", code="model_not_found")


def wait(message: str, seconds: float, *, code: str = "rate_limit_exceeded", status: int = 429) -> Refusal:
    """Return the answer that asks to come back after so many seconds, at most `MAX_RETRY_AFTER`."""
    seconds = min(max(seconds, 0.001), MAX_RETRY_AFTER)
    headers = (("retry-after-ms", str(math.ceil(seconds * 1000))), ("retry-after", str(math.ceil(seconds))))
    return Refusal(status, message, type=RATE if status == 429 else SERVER, code=code, headers=headers)


def late() -> Refusal:
    """Return the answer to a request whose deadline passed before it was answered: 504."""
    return Refusal(
        504, "the request's deadline passed before it was answered", type=SERVER, code="deadline_exceeded"
    )


def unavailable(message: str, code: str, *, seconds: float | None = None) -> Refusal:
    """Return 503: the model is being loaded, or the server is stopping."""
    if seconds is not None:
        return wait(message, seconds, code=code, status=503)
    return Refusal(503, message, type=SERVER, code=code)


_NO_RETRY = (("x-should-retry", "false"),)

STATUSES: dict[type[errors.Error], tuple[int, str, str | None]] = {
    errors.Error: (500, SERVER, None),
    errors.InputError: (400, INVALID, None),
    errors.DimensionMismatchError: (400, INVALID, None),
    errors.UnknownNameError: (400, INVALID, "invalid_value"),
    errors.TextTooLongError: (400, INVALID, None),
    errors.SpaceMismatchError: (400, INVALID, None),
    errors.ConfigError: (500, SERVER, "misconfigured"),
    errors.MissingExtraError: (500, SERVER, "misconfigured"),
    errors.MissingKeyError: (502, SERVER, "upstream_key_missing"),
    errors.ProviderError: (502, SERVER, "upstream_error"),
    errors.AuthenticationError: (502, SERVER, "upstream_key_refused"),
    errors.RateLimitError: (429, RATE, "rate_limit_exceeded"),
    errors.QuotaExhaustedError: (429, RATE, "insufficient_quota"),
    errors.UnavailableError: (503, SERVER, "upstream_unavailable"),
    errors.RefusedError: (400, INVALID, "upstream_refused"),
    errors.BadReplyError: (502, SERVER, "upstream_bad_reply"),
    errors.StorageError: (500, SERVER, "storage"),
    errors.CorruptFileError: (500, SERVER, "storage"),
    errors.FormatVersionError: (500, SERVER, "storage"),
    errors.WriteError: (500, SERVER, "storage"),
    errors.JobError: (500, SERVER, None),
    errors.BudgetReachedError: (429, RATE, "budget_reached"),
}
"""What a request ends with when one of our errors reaches it; a test holds this table complete."""

_FINAL = (
    errors.ConfigError,
    errors.AuthenticationError,
    errors.QuotaExhaustedError,
    errors.BudgetReachedError,
)
"""A client that tries again gets the same answer."""


def refusal_of(error: errors.Error, *, param: str | None = None) -> Refusal:
    """Return what is answered for one of our errors.

    Messages of errors that are not the caller's doing may hold paths and addresses: they are replaced.
    """
    kind = next(kind for kind in type(error).__mro__ if kind in STATUSES)
    status, word, code = STATUSES[kind]
    headers: tuple[Header, ...] = _NO_RETRY if isinstance(error, _FINAL) else ()
    seconds = getattr(error, "retry_after", None)
    if status in {429, 503} and isinstance(seconds, int | float) and not headers:
        return wait(_shown(error, status), float(seconds), code=code or "rate_limit_exceeded", status=status)
    return Refusal(status, _shown(error, status), type=word, code=code, param=param, headers=headers)


_OURS = {
    500: "the server could not answer; its log says why under this request id",
    502: "the provider behind this server could not answer; the log says why under this request id",
    503: "the provider behind this server cannot be reached at the moment",
}


def _shown(error: errors.Error, status: int) -> str:
    return _OURS.get(status) or str(error)
