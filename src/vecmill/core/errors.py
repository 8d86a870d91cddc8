"""Every exception vecmill raises, by what the caller can do about it.

Error (the package's base class)
├── InputError (ValueError)        fix the call
│   ├── DimensionMismatchError     vectors of different widths were put together
│   ├── UnknownNameError           no model, metric, column or format of that name
│   ├── TextTooLongError           a text exceeds the model's limit and no policy was chosen
│   └── SpaceMismatchError         vectors of different models were put together
├── ConfigError                    fix the settings
│   ├── MissingExtraError (ImportError)
│   └── MissingKeyError
├── ProviderError                  the other side failed
│   ├── AuthenticationError
│   ├── RateLimitError
│   ├── QuotaExhaustedError        nothing more until a moment that may be known
│   ├── UnavailableError
│   ├── RefusedError               the request is refused as it is: too many texts, or one of them
│   └── BadReplyError
├── StorageError                   a file is not what it claims, or cannot be written
│   ├── CorruptFileError
│   ├── FormatVersionError
│   └── WriteError
└── JobError                       a job cannot go on, or some of its rows failed
    └── BudgetReachedError         it has spent what it may

A message says what was wrong, the value, what would be right and the next step. It names rows by id or
position, never by their text, and never shows a key.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict, Unpack


class Error(Exception):
    """Base class of every exception of this package."""


class InputError(Error, ValueError):
    """The call itself is wrong; the same call will fail again."""


class DimensionMismatchError(InputError):
    """Vectors of different widths were put together."""


class UnknownNameError(InputError):
    """A name is not among those known; the message lists close ones."""


class TextTooLongError(InputError):
    """A text has more tokens than the model takes, and no policy for long texts was chosen."""


class SpaceMismatchError(InputError):
    """Vectors of different models, or of one model computed differently, were put together."""


class ConfigError(Error):
    """A setting is missing or wrong."""


class MissingExtraError(ConfigError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class MissingKeyError(ConfigError):
    """A credential is missing; the message names the variable to set."""


class Said(TypedDict, total=False):
    """What every error of a provider may carry; see `ProviderError`."""

    provider: str
    model: str
    status: int | None
    request_id: str | None
    code: str
    rates: object | None


class ProviderError(Error):
    """The other side failed.

    Attributes:
        provider: Who runs the model.
        model: Which model was asked.
        status: The HTTP status, where there was one.
        request_id: The provider's own id of the request.
        retry_after: Seconds the provider asked to wait.
        retryable: Whether the same request may succeed later.
        code: The provider's own word for what happened, or ours.
        attempts: How often the request was tried.
        rates: What the answer said about limits, or None (`models.base.RateLimits`).
    """

    retryable = False
    code: str = ""
    attempts: int = 1
    rates: object | None = None

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
        code: str = "",
        rates: object | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.rates = rates
        self.provider = provider
        self.model = model
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        if retryable is not None:
            self.retryable = retryable


class AuthenticationError(ProviderError):
    """The key or token was refused."""


class RateLimitError(ProviderError):
    """Too many requests or tokens for the moment."""

    retryable = True


class QuotaExhaustedError(ProviderError):
    """Nothing more is served until `until` (seconds since the epoch, None when unknown)."""

    def __init__(
        self,
        message: str,
        *,
        until: float | None = None,
        **said: Unpack[Said],
    ) -> None:
        super().__init__(message, **said)
        self.until = until


class UnavailableError(ProviderError):
    """No answer, or an answer that blames the server."""

    retryable = True


class RefusedError(ProviderError):
    """The request will never be answered as it is.

    Attributes:
        reason: "input" (a text in it is refused; which one, halving tells), "max_inputs" (too many texts),
            "max_request_tokens" (too many tokens), "max_bytes" (too large a body), or "request" (nothing in
            the texts: the model's name, a parameter).
        limit: The limit the provider named, where it named one.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "request",
        limit: int | None = None,
        **said: Unpack[Said],
    ) -> None:
        super().__init__(message, **said)
        self.reason = reason
        self.limit = limit


class BadReplyError(ProviderError):
    """The reply does not answer the request: count, order, width or values are wrong."""


class StorageError(Error):
    """A file is not what it claims to be, or cannot be written."""


class CorruptFileError(StorageError):
    """A file is damaged or cut short."""


class FormatVersionError(StorageError):
    """A file was written by a version whose format this one does not read."""


class WriteError(StorageError):
    """A file could not be written; what was there before is intact."""


class JobError(Error):
    """A job cannot go on, or some of its rows failed; the message says how to resume."""


class BudgetReachedError(JobError):
    """The next request would cost more than was allowed; what is finished is kept and can be resumed."""


_MANY = 2_000
"""Of more names, such as a million ids, only `_COMPARED` are compared letter by letter, which is slow."""

_COMPARED = 200

_LONGEST = 200
"""A name of more characters is compared with none."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not known, with the closest known ones first.

    Cost: a few passes over the names. Of more than 2,000 names only 200 are compared letter by letter: those
    that share the most letters at the beginning, and at the end.

    Args:
        kind: What the name stands for, such as "model" or "column".
        name: What was asked for.
        known: Every name that would have been right.
    """
    names = list(known)
    if len(names) <= _MANY:
        names = sorted(set(names))
    close = difflib.get_close_matches(name, _similar(name, names), n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join(repr(c) for c in close)}?"
    elif names:
        hint = f"known: {', '.join(heapq.nsmallest(20, names))}{', …' if len(names) > 20 else ''}"
    else:
        hint = "none is known"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")


def _similar(name: str, names: Sequence[str]) -> list[str]:
    """Return the names worth comparing, sorted: all of them, or of many those that begin or end alike."""
    if len(name) > _LONGEST:
        return []
    if len(names) <= _MANY:
        return [known for known in names if len(known) <= _LONGEST]
    pool = [known for known in names if abs(len(known) - len(name)) <= 2]
    return sorted({*_sharing(pool, _beginning, name), *_sharing(pool, _ending, name)})


def _beginning(pool: Sequence[str], name: str, letters: int) -> list[str]:
    part = name[:letters]
    return [known for known in pool if known.startswith(part)]


def _ending(pool: Sequence[str], name: str, letters: int) -> list[str]:
    part = name[-letters:]
    return [known for known in pool if known.endswith(part)]


def _sharing(
    pool: Sequence[str], sharing: Callable[[Sequence[str], str, int], list[str]], name: str
) -> list[str]:
    """Return names that share the most letters, found by halving the number of letters again and again."""
    wanted, near = _COMPARED // 2, list[str]()
    least, most = 0, len(name) + 1
    while len(pool) > wanted and most - least > 1:
        letters = (least + most) // 2
        found = sharing(pool, name, letters)
        if len(found) > wanted:
            least, pool = letters, found
        else:
            most, near = letters, found
    return [*near, *pool[:wanted]][:wanted]
