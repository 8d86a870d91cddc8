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
│   └── BadReplyError
├── StorageError                   a file is not what it claims, or cannot be written
│   ├── CorruptFileError
│   ├── FormatVersionError
│   └── WriteError
└── JobError                       a job cannot go on, or some of its rows failed

A message says what was wrong, the value, what would be right and the next step. It names rows by id or
position, never by their text, and never shows a key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class ProviderError(Error):
    """The other side failed.

    Attributes:
        provider: Who runs the model.
        model: Which model was asked.
        status: The HTTP status, where there was one.
        request_id: The provider's own id of the request.
        retry_after: Seconds the provider asked to wait.
        retryable: Whether the same request may succeed later.
    """

    retryable = False

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
    ) -> None:
        super().__init__(message)
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
        provider: str = "",
        model: str = "",
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, provider=provider, model=model, status=status, request_id=request_id)
        self.until = until


class UnavailableError(ProviderError):
    """No answer, or an answer that blames the server."""

    retryable = True


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


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not known, with the closest known ones first.

    Args:
        kind: What the name stands for, such as "model" or "column".
        name: What was asked for.
        known: Every name that would have been right.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join(repr(c) for c in close)}?"
    elif names:
        hint = f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    else:
        hint = "none is known"
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")
