"""Bytes of a request to its type; what is wrong with them, in OpenAI's words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vecmill.server.call import Call
from vecmill.server.errors import Refusal, invalid
from vecmill.server.options import Limits

T = TypeVar("T", bound=msgspec.Struct)

MAX_DEPTH = 8
"""Arrays and objects inside each other."""

_AT_ONCE_BYTES = 32_768
"""A body up to this is read on the event loop: well under a millisecond."""

_BOM = b"\xef\xbb\xbf"
_LISTS = ("input", "text", "documents")
_AT = re.compile(r" - at `\$([^`]*)`$")
_HALF = re.compile(
    rb"(?i)(?<!\\)(?:\\\\)*(?:\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2})"
)
_MISSING = re.compile(r"missing required field `(\w+)`")
_EXTRA = re.compile(r"unknown field `(.*?)`", re.DOTALL)
_EXPECTED = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")


async def read(call: Call, kind: type[T]) -> T:
    """Read a request's body.

    Bodies of more than 32 KiB are read in a thread, in steps that leave the event loop its turns.

    Raises:
        Refusal: 415 no JSON, or compressed; 413 too large; 429 too many large bodies at once; 400 malformed,
            too deep, or not of the type.
        ClientLeft: The client went away.
    """
    check_media(call.headers)
    options = call.server.options
    body = await call.body(options.limits.max_body_bytes)
    if len(body) <= _AT_ONCE_BYTES:
        return parse(body, kind, strict=options.strict)
    try:
        return await asyncio.to_thread(parse_large, body, kind, options.strict, options.limits)
    finally:
        call.release()


def check_media(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not plain JSON in UTF-8. None given is taken as JSON.

    Raises:
        Refusal: 415.
    """
    coding = headers.get("content-encoding", "")
    if coding and coding.strip().lower() != "identity":
        raise Refusal(415, "compressed requests are not taken: send the body without content-encoding")
    given = headers.get("content-type")
    if given is None or given == "application/json":
        return
    kind, _, parameters = given.lower().partition(";")
    kind = kind.strip()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal(415, "the body must be JSON: send content-type: application/json")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise Refusal(415, "the body must be JSON in UTF-8")


def parse(body: bytes, kind: type[T], *, strict: bool = False) -> T:
    """Return the request a body holds. A byte order mark before it is skipped.

    Raises:
        Refusal: 400 malformed, too deep, or not of the type.
    """
    if body[:3] == _BOM:
        body = body[3:]
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and depth(body) > MAX_DEPTH:
        raise _too_deep()
    readers = _readers(kind)
    try:
        found: T = (readers.strict if strict else readers.plain).decode(body)
        return found
    except msgspec.ValidationError as error:
        raise _refused(str(error), kind) from None
    except msgspec.DecodeError as error:
        if _HALF.search(body):
            raise _malformed("a string holds half of a surrogate pair, which is no character") from None
        raise _malformed(str(error)) from None
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None


def depth(body: bytes) -> int:
    """Return how many arrays and objects of a JSON text are inside each other; brackets in strings are text.

    Nothing is decoded: a few passes over the bytes.
    """
    deepest, level = 0, 0
    for signs in _outside_strings(body, b"[]{}"):
        levels = level + np.cumsum(_STEPS[signs], dtype=np.int64)
        deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    return deepest


def elements(raw: bytes) -> tuple[int, int]:
    """Return how many elements an array of JSON has, and how many all of it with the arrays inside."""
    level, own, every = 0, 1, 1
    for signs in _outside_strings(raw, b"[]{},"):
        levels = level + np.cumsum(_STEPS[signs], dtype=np.int64)
        commas = signs == ord(",")
        own += int(np.count_nonzero(commas & (levels == 1)))
        every += int(np.count_nonzero(commas))
        level = int(levels[-1])
    return own, every


def _outside_strings(body: bytes, signs: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield those of some signs of a JSON text that are in no string, in pieces, none of them empty."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    wanted = b'"' + signs
    found = np.frombuffer(body.translate(None, bytes(x for x in range(256) if x not in wanted)), np.uint8)
    inside = False
    for start in range(0, len(found), _SIGNS_AT_ONCE):
        some = found[start : start + _SIGNS_AT_ONCE]
        quotes = some == ord('"')
        within = np.logical_xor.accumulate(quotes) ^ inside
        inside = bool(within[-1])
        outside = some[~(within | quotes)]
        if len(outside):
            yield outside


_SIGNS_AT_ONCE = 65_536
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


@dataclass(frozen=True, slots=True)
class _Readers(Generic[T]):
    plain: msgspec.json.Decoder[T]
    strict: msgspec.json.Decoder[T]


@cache
def _readers(kind: type[T]) -> _Readers[T]:
    closed = msgspec.defstruct(kind.__name__, [], bases=(kind,), forbid_unknown_fields=True, kw_only=True)
    return _Readers(msgspec.json.Decoder(kind), msgspec.json.Decoder(closed))


class _Lists(msgspec.Struct):
    """The fields that may be long, unread."""

    input: msgspec.Raw = msgspec.Raw(b"")
    text: msgspec.Raw = msgspec.Raw(b"")
    documents: msgspec.Raw = msgspec.Raw(b"")


_lists = msgspec.json.Decoder(_Lists)


def parse_large(body: bytes, kind: type[T], strict: bool, limits: Limits) -> T:
    """Return the request a large body holds; see `parse`.

    Elements are counted before they are read: millions of tiny ones would hold every other request up.

    Raises:
        Refusal: 400; also for more elements or token ids than the limits allow.
    """
    try:
        found = _lists.decode(body.removeprefix(_BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return parse(body, kind, strict=strict)  # says what is wrong
    for name in _LISTS:
        if name in kind.__struct_fields__:
            _refuse_flood(bytes(getattr(found, name)), name, limits)
    return parse(body, kind, strict=strict)


def _refuse_flood(raw: bytes, name: str, limits: Limits) -> None:
    if raw[:1] != b"[":
        return
    first = raw[1:].lstrip()[:1]
    if first in (b'"', b"{"):
        if raw.count(b",") < limits.max_inputs:
            return
        count, every = elements(raw)
        if count > limits.max_inputs:
            raise too_many(count, limits.max_inputs, name)
        if name == "input":  # lists of numbers behind a string: told apart later, but not read by the million
            refuse_tokens(every, limits)
    elif first == b"[":
        count = raw.count(b"[") - 1
        if count > limits.max_inputs:
            raise too_many(count, limits.max_inputs, name)
        refuse_tokens(raw.count(b",") + 1, limits)
    else:
        refuse_tokens(raw.count(b",") + 1, limits)


def refuse_tokens(count: int, limits: Limits, *, at_least: bool = False) -> None:
    """Refuse a request of too many tokens; `at_least` says that not all were counted.

    Raises:
        Refusal: 400.
    """
    if count > limits.max_request_tokens:
        requested = f"at least {count}" if at_least else str(count)
        raise invalid(
            f"Requested {requested} tokens, max {limits.max_request_tokens} tokens per request",
            code="max_tokens_per_request",
        )


def too_many(count: int, most: int, param: str) -> Refusal:
    """Return the answer to an array that is too long."""
    return invalid(
        f"Invalid '{param}': array too long. Expected an array with maximum length {most}, but got an array "
        f"with length {count} instead.",
        param=param,
        code="array_above_max_length",
    )


def _too_deep() -> Refusal:
    return invalid(f"the JSON body has more than {MAX_DEPTH} arrays and objects inside each other")


def _malformed(why: str) -> Refusal:
    return invalid(f"We could not parse the JSON body of your request: {why}.")


FORMS = {
    "input": "a string, or an array of strings, of token ids, or of arrays of token ids; none of them empty",
    "text": "a string or an array of strings",
    "query": "a string",
    "documents": 'an array of strings or of objects with a "text"; at least one',
}
"""What the fields may be that hold texts."""


def wrong_input(detail: str, *, param: str = "input") -> Refusal:
    """Return the answer to texts of a wrong form."""
    return invalid(
        f"'$.{param}' is invalid. Please check the API reference: it is {FORMS[param]}. {detail}", param=param
    )


_ENUMS = {
    "encoding_format": "'float', 'base64', 'int8' and 'ubinary'",
    "padding_side": "'left' and 'right'",
}
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def _refused(said: str, kind: type[msgspec.Struct]) -> Refusal:
    """Put what the decoder says into OpenAI's words; of what was sent only names of fields are repeated."""
    at = _AT.search(said)
    path = at.group(1).lstrip(".") if at else ""
    param = re.split(r"[.\[]", path, maxsplit=1)[0] or None
    if missing := _MISSING.search(said):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return invalid(
            f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
        )
    if unknown := _EXTRA.search(said):
        name = unknown[1][:64]
        return invalid(
            f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
        )
    expected = _EXPECTED.search(said)
    if param is None:
        got = f", but it is {_word(expected[2])}" if expected else ""
        return invalid(f"the request body must be a JSON object{got}")
    if param in FORMS and param in kind.__struct_fields__:
        got = f"{path} is {_word(expected[2])}." if expected else f"{path} is of another type."
        return wrong_input(got, param=param)
    if param in _ENUMS:
        return invalid(
            f"Invalid value for '{param}'. Supported values are: {_ENUMS[param]}.",
            param=param,
            code="invalid_value",
        )
    if expected is None:
        return invalid(
            f"Invalid value for '{path}': {said.partition(' - at')[0]}.", param=param, code="invalid_value"
        )
    names = [name.strip() for name in expected[1].split("|")]
    unsaid = ("null", "float") if "int" in names else ("null",)
    words = " or ".join(_word(name) for name in names if name not in unsaid)
    return invalid(
        f"Invalid type for '{path}': expected {words}, but got {_word(expected[2])} instead.",
        param=path,
        code="invalid_type",
    )


def _word(name: str) -> str:
    return _WORDS.get(name, name)


MAX_WHOLE = 10**15
"""No number a request may hold is larger; what is, has any number of digits and is not repeated."""


def whole(value: float | None, name: str, *, least: int = 1) -> int | None:
    """Return a whole number a client sent, also as 3.0.

    Raises:
        Refusal: 400 it has a fraction, is too small, or above `MAX_WHOLE`.
    """
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        raise invalid(
            f"Invalid type for '{name}': expected an integer, but got a decimal number instead.",
            param=name,
            code="invalid_type",
        )
    if value < least:
        raise invalid(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {least}, "
            "but got a smaller one instead.",
            param=name,
            code="integer_below_min_value",
        )
    if value > MAX_WHOLE:
        raise invalid(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {MAX_WHOLE}, "
            "but got a larger one instead.",
            param=name,
            code="integer_above_max_value",
        )
    return int(value)
