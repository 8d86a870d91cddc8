"""The wire: texts to a request's body, a reply's bytes to vectors, headers to numbers.

Pure functions; nothing here waits or decides. A reply is taken only if it answers the request: as many
vectors as texts, each with its index, equally wide, finite, none all zeros. Order comes from `index` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecmill.core.errors import BadReplyError, InputError
from vecmill.core.types import Vectors
from vecmill.models.base import RateLimits

NORM_TOLERANCE = 0.02
"""How far from 1 the length of a normalized model's vector may be."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reply says.

    Attributes:
        vectors: (n, width) float32 in the order of the texts.
        tokens: What the provider counted, or None.
        model: What the provider calls its model; "" where it does not say.
        base64: Whether vectors came as base64.
        normalized: Whether all of them have unit length.
    """

    vectors: Vectors
    tokens: int | None
    model: str
    base64: bool
    normalized: bool


def encode_body(
    texts: Sequence[str],
    *,
    model: str | None,
    dimensions: int | None = None,
    user: str | None = None,
    base64: bool = True,
) -> bytes:
    """Return the body of a request for vectors.

    Raises:
        InputError: A text holds half of a surrogate pair, which JSON cannot carry; the message has its place.
    """
    body: dict[str, object] = {"input": texts if isinstance(texts, list) else list(texts)}
    if model is not None:
        body["model"] = model
    if base64:
        body["encoding_format"] = "base64"
    if dimensions is not None:
        body["dimensions"] = dimensions
    if user is not None:
        body["user"] = user
    try:
        return orjson.dumps(body)
    except TypeError as error:
        check_unicode(texts)
        raise InputError(f"the request cannot be written as JSON: {error}") from error


def check_unicode(texts: Sequence[str]) -> None:
    """Raise unless every text is a string that UTF-8 can carry.

    Raises:
        InputError: One is not; the message gives its position and the character's, never the text.
    """
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {row} is {type(text).__name__}, not str")
        if text.isascii():  # known without looking
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {row} holds half of a surrogate pair at character {error.start}, which is not valid "
                "Unicode: read the file with its right encoding, or replace the character"
            ) from None  # the cause would hold the text


def decode_json(raw: bytes) -> Any:
    """Return the JSON value of a reply.

    Raises:
        BadReplyError: It is none.
    """
    try:
        return orjson.loads(raw)
    except ValueError:
        what = "is empty" if not raw.strip() else f"of {len(raw):,} bytes is not JSON"
        raise _bad(f"the reply {what}") from None  # the cause would hold the reply


def decode_reply(value: Any, *, count: int, width: int | None, normalized: bool) -> Parsed:
    """Return what a reply says, checked.

    Args:
        value: The JSON value.
        count: Texts that were sent.
        width: Components each vector must have; None where nobody knows yet.
        normalized: Whether each must have unit length.

    Raises:
        BadReplyError: It does not answer the request.
    """
    if not isinstance(value, dict):
        raise _bad(f"the reply is {_kind(value)}, not an object with 'data'")
    items = value.get("data")
    if not isinstance(items, list) or value.get("object", "list") != "list":
        raise _bad("the reply has no list 'data'")
    if len(items) != count:
        raise _bad(f"the reply has {len(items)} vectors for {count} texts")
    values = _in_order(items)
    vectors, base64 = _vectors(values, width)
    lengths = np.einsum("ij,ij->i", vectors, vectors)
    unit = _check_values(lengths, normalized=normalized)
    named = value.get("model")
    return Parsed(vectors, _tokens(value), named if isinstance(named, str) else "", base64, unit)


def _in_order(items: list[Any]) -> list[Any]:
    """Return the embeddings by `index`, which must name every place once."""
    count = len(items)
    values: list[Any] = [None] * count
    seen = bytearray(count)
    for item in items:
        if not isinstance(item, dict):
            raise _bad(f"the reply's 'data' holds {_kind(item)} instead of an object")
        index = item.get("index")
        if type(index) is not int:
            raise _bad("the reply does not say which text each vector belongs to: an 'index' is missing")
        if not 0 <= index < count:
            raise _bad(f"the reply has a vector for text {index} of {count}")
        if seen[index]:
            raise _bad(f"the reply has two vectors for text {index}")
        seen[index] = 1
        values[index] = item.get("embedding")
    return values


def _vectors(values: list[Any], width: int | None) -> tuple[Vectors, bool]:
    """Return the vectors (n, width), and whether they came as base64."""
    if all(type(value) is str for value in values):
        return _from_base64(values, width), True
    if all(type(value) is list for value in values):
        return _from_lists(values, width), False
    odd = next((at for at, value in enumerate(values) if type(value) not in (str, list)), None)
    if odd is not None:
        raise _bad(f"the reply's vector {odd} is {_kind(values[odd])}, neither base64 nor a list of numbers")
    raise _bad("the reply has some vectors as base64 and some as lists of numbers")


def _from_base64(values: list[str], width: int | None) -> Vectors:
    vectors: Vectors | None = None
    import pybase64  # on first use; a seventh of the CPU of `binascii`

    for at, value in enumerate(values):
        try:
            raw = pybase64.b64decode(value, validate=True)
        except ValueError:
            raise _bad(f"the reply's vector {at} is not base64") from None
        if len(raw) % 4:
            raise _bad(f"the reply's vector {at} has {len(raw)} bytes, which are no whole 4-byte numbers")
        if vectors is None:
            vectors = _empty(len(values), len(raw) // 4, width)
        if len(raw) != 4 * vectors.shape[1]:
            raise _unequal(at, len(raw) // 4, vectors.shape[1])
        vectors[at] = np.frombuffer(raw, dtype="<f4")
    return vectors if vectors is not None else np.empty((0, width or 0), np.float32)


def _from_lists(values: list[list[Any]], width: int | None) -> Vectors:
    vectors = _empty(len(values), len(values[0]), width)
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is found
        for at, value in enumerate(values):
            if len(value) != vectors.shape[1]:
                raise _unequal(at, len(value), vectors.shape[1])
            try:
                row = np.array(value)
            except ValueError:
                row = np.array("")
            # NumPy takes true for 1 where it stands among numbers.
            if row.ndim != 1 or row.dtype.kind not in "fiu" or bool in set(map(type, value)):
                raise _bad(f"the reply's vector {at} holds something that is no number")
            vectors[at] = row
    return vectors


def _empty(count: int, width: int, expected: int | None) -> Vectors:
    if width == 0:
        raise _bad("the reply's vectors are empty")
    if expected is not None and width != expected:
        hint = ""
        if width * 4 == expected:
            hint = (
                ": a quarter, as when something on the way takes base64 for numbers or numbers for base64; "
                "check what stands between here and the model"
            )
        raise _bad(f"the reply's vectors have {width} dimensions instead of {expected}{hint}")
    return np.empty((count, width), dtype=np.float32)


def _unequal(at: int, width: int, first: int) -> BadReplyError:
    return _bad(f"the reply's vectors differ in width: the first has {first} dimensions, vector {at} {width}")


def _check_values(lengths: npt.NDArray[np.float32], *, normalized: bool) -> bool:
    """Refuse what is no vector, by squared lengths (n,); return whether all have unit length."""
    if not np.isfinite(lengths).all():  # also where a finite component's square is too large
        at = int(np.flatnonzero(~np.isfinite(lengths))[0])
        raise _bad(f"the reply's vector {at} holds NaN, infinite or absurdly large numbers")
    if not lengths.all():
        raise _bad(f"the reply's vector {int(np.flatnonzero(lengths == 0)[0])} is all zeros")
    off = np.abs(np.sqrt(lengths) - 1) > NORM_TOLERANCE
    if normalized and off.any():
        at = int(np.flatnonzero(off)[0])
        raise _bad(
            f"the reply's vector {at} has length {math.sqrt(lengths[at]):.4f}; the model gives unit length"
        )
    return not off.any()


def _tokens(value: Mapping[str, Any]) -> int | None:
    usage = value.get("usage")
    if isinstance(usage, dict):
        for name in ("prompt_tokens", "total_tokens", "input_tokens"):
            if type(usage.get(name)) is int and 0 < usage[name] <= _MOST_TOKENS:
                return int(usage[name])
    return None


_MOST_TOKENS = 10**9
"""Of one request: some hundred times what any takes. A larger number is no count, and adds up to no sum."""


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), "a value"
    )


def _bad(message: str) -> BadReplyError:
    return BadReplyError(message, retryable=True, code="bad_reply")


# Headers.


def read_rates(headers: Mapping[str, str]) -> RateLimits | None:
    """Return what `x-ratelimit-…` headers say, None where there are none that can be read.

    Args:
        headers: Finds names in any case.
    """
    rates = RateLimits(
        limit_requests=_whole(headers.get("x-ratelimit-limit-requests")),
        remaining_requests=_whole(headers.get("x-ratelimit-remaining-requests")),
        reset_requests=read_duration(headers.get("x-ratelimit-reset-requests")),
        limit_tokens=_whole(headers.get("x-ratelimit-limit-tokens")),
        remaining_tokens=_whole(headers.get("x-ratelimit-remaining-tokens")),
        reset_tokens=read_duration(headers.get("x-ratelimit-reset-tokens")),
    )
    return None if rates == _SILENT else rates


_SILENT = RateLimits()


def _whole(value: str | None) -> int | None:
    """Return a whole number; None also for one that no counter has, such as 1e30."""
    number = _number(value)
    return None if number is None or number > _MOST else int(number)


_MOST = 1e15


def _number(value: str | None) -> float | None:
    """Return a number of at least 0; what is below (a limit overdrawn) is 0."""
    if value is None or len(value) > 32:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return max(number, 0.0) if math.isfinite(number) else None


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|[dhms])")


def read_duration(value: str | None) -> float | None:
    """Return a duration in seconds: "6m0s", "1s", "88ms", or plain seconds. None where it is none.

    One of more than a year is cut to a year.
    """
    number = _number(value)
    if number is not None or value is None or len(value) > 32:
        return None if number is None else min(number, _LONGEST_WAIT)
    parts = _DURATION.findall(value)
    if not parts or "".join(amount + unit for amount, unit in parts) != value.strip():
        return None
    return min(sum(float(amount) * _UNITS[unit] for amount, unit in parts), _LONGEST_WAIT)


_LONGEST_WAIT = 366 * 86_400.0
"""Seconds: a year. Longer ones are nonsense, and have no date."""

_ASKED_TO_WAIT = re.compile(
    r"(?:retry|try again|wait)\b[^.\d]{0,20}?(\d{1,15}(?:\.\d{1,15})?)\s*"
    r"(milliseconds|ms|seconds?|secs?|s|minutes?|min|m|hours?|h)\b",
    re.IGNORECASE,
)


def read_retry_after(headers: Mapping[str, str], message: str, *, now: float) -> float | None:
    """Return the seconds a provider asks to wait, at most a year, or None.

    In this order: `retry-after-ms`, `retry-after` (seconds or a date), "retry after N seconds" in the
    message, the resets of limits that are used up.

    Args:
        headers: Finds names in any case.
        message: The provider's own words.
        now: Seconds since the epoch, for dates.
    """
    seconds = _asked(headers, message, now)
    return None if seconds is None else min(seconds, _LONGEST_WAIT)


def _asked(headers: Mapping[str, str], message: str, now: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after")
    seconds = _number(after)
    if seconds is None and after is not None:
        seconds = _until(after, now)
    if seconds is None and (match := _ASKED_TO_WAIT.search(message)) is not None:
        unit = match[2].lower()
        scale = 1e-3 if unit.startswith(("ms", "mil")) else _UNITS[unit[0]]
        seconds = float(match[1]) * scale
    return _reset(headers) if seconds is None else seconds


def _until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):  # the second: a zone of more hours than fit into a number
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(moment.timestamp() - now, 0.0)


def _reset(headers: Mapping[str, str]) -> float | None:
    """Return when limits that are used up are whole again; where none is said to be, the nearest reset."""
    left = read_duration(headers.get("x-ratelimit-timeremaining"))
    if left is not None:
        return left
    rates = read_rates(headers)
    if rates is None:
        return None
    resets = [
        (rates.remaining_requests, rates.reset_requests),
        (rates.remaining_tokens, rates.reset_tokens),
    ]
    used_up = [reset for remaining, reset in resets if remaining == 0 and reset is not None]
    known = [reset for _, reset in resets if reset is not None]
    return max(used_up) if used_up else min(known, default=None)
