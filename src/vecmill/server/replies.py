"""Vectors to bytes: JSON with numbers, base64, int8 or bits, or raw rows. All numbers are little-endian."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import orjson

from vecmill.core.extras import require
from vecmill.core.types import Vectors
from vecmill.server.call import Answer
from vecmill.server.errors import Header

require("pybase64", extra="serve")

import pybase64  # noqa: E402 - a missing one is told by `require`

RAW = "application/octet-stream"

_AT_ONCE = 12_288
"""Numbers written as text without letting other requests have their turn: well under a millisecond."""

_AT_ONCE_BYTES = 131_072
"""The same of bytes that are copied or encoded in base64. Pieces of this size also use the same memory again
and again: an answer of 20 MB in one piece takes four times as long, all of it new pages."""

_OPEN = tuple(b'{"object":"embedding","index":%d,"embedding":' % at for at in range(2048))
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def wants_raw(accept: str) -> bool:
    """Say whether a client asks for rows of bytes."""
    return RAW in accept and any(part.partition(";")[0].strip() == RAW for part in accept.lower().split(","))


def json_reply(
    vectors: Vectors,
    encoding: str,
    *,
    model: str,
    tokens: int,
    cut: Sequence[int] = (),
    headers: tuple[Header, ...] = (),
) -> Answer:
    """Return OpenAI's answer. A large one is written in pieces while it is sent, others have turns between.

    Args:
        vectors: (n, d) float32, finite, n at least 1; not changed while the answer is sent.
        encoding: "float": the shortest decimals that read back as the same float32. "base64": of the d
            little-endian float32. "int8": d integers from -127 to 127, which times the item's `scale` are the
            components. "ubinary": bytes of eight bits, the first component's highest, 1 where a component is
            above 0; zero bits fill the last byte.
        model: The model's name.
        tokens: For `usage`.
        cut: Inputs that were truncated.
        headers: More headers.
    """
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    tail = b'],"model":%b,"usage":%b' % (orjson.dumps(model), usage)
    if cut:
        tail += b',"truncated":' + orjson.dumps(list(cut))
    tail += b"}"
    items = _ITEMS[encoding]
    n, d = vectors.shape
    step = max((_AT_ONCE_BYTES // 4 if encoding == "base64" else _AT_ONCE) // max(d, 1), 1)
    if n <= step:
        return Answer(200, _HEAD + items(vectors, 0) + tail, headers=headers)
    size = None
    if encoding == "base64":
        each = 4 * -(-4 * d // 3)
        size = len(_HEAD) + sum(len(_opening(at)) for at in range(n)) + n * (each + 4) - 1 + len(tail)
    return Answer(200, _pieces(vectors, step, items, tail), headers=headers, size=size)


_HEAD = b'{"object":"list","data":['


async def _pieces(vectors: Vectors, step: int, items: Items, tail: bytes) -> AsyncIterator[bytes]:
    yield _HEAD + items(vectors[:step], 0)
    for start in range(step, len(vectors), step):
        await asyncio.sleep(0)
        yield b"," + items(vectors[start : start + step], start)
    yield tail


def _as_base64(vectors: Vectors, start: int) -> bytes:
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    encode = pybase64.b64encode
    return b",".join([b'%b"%b"}' % (_opening(start + at), encode(row.data)) for at, row in enumerate(rows)])


def _as_floats(vectors: Vectors, start: int) -> bytes:
    return _as_numbers(np.ascontiguousarray(vectors), start)


def _as_bits(vectors: Vectors, start: int) -> bytes:
    return _as_numbers(bits(vectors), start)


def _as_numbers(rows: npt.NDArray[np.float32] | npt.NDArray[np.uint8], start: int) -> bytes:
    dumps = orjson.dumps
    return b",".join(
        [b"%b%b}" % (_opening(start + at), dumps(row, option=_NUMPY)) for at, row in enumerate(rows)]
    )


def _as_int8(vectors: Vectors, start: int) -> bytes:
    codes, scales = int8(vectors)
    dumps = orjson.dumps
    return b",".join(
        [
            b'%b%b,"scale":%b}'
            % (_opening(start + at), dumps(row, option=_NUMPY), dumps(scales[at], option=_NUMPY))
            for at, row in enumerate(codes)
        ]
    )


Items: TypeAlias = Callable[[Vectors, int], bytes]
"""Writes some rows, the first of which has that index."""

_ITEMS: dict[str, Items] = {
    "float": _as_floats,
    "base64": _as_base64,
    "int8": _as_int8,
    "ubinary": _as_bits,
}


def _opening(at: int) -> bytes:
    return _OPEN[at] if at < len(_OPEN) else b'{"object":"embedding","index":%d,"embedding":' % at


def int8(vectors: Vectors) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return codes (n, d) from -127 to 127 and scales (n,) float32; code times scale is about the component.

    The scale is the largest component's amount / 127; that of a zero vector is 0.
    """
    scales = (np.abs(vectors).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)  # (n,)
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(vectors / safe), -127, 127).astype(np.int8)
    return codes, scales


def bits(vectors: Vectors) -> npt.NDArray[np.uint8]:
    """Return one bit per component, (n, ceil(d / 8)) uint8: 1 where it is above 0, the first one highest."""
    return np.packbits(vectors > 0, axis=1)


def raw_reply(vectors: Vectors, encoding: str, *, tokens: int, headers: tuple[Header, ...] = ()) -> Answer:
    """Return rows of bytes one after another, without anything between.

    A row is d little-endian float32; as "int8" a little-endian float32, the scale, and d int8; as "ubinary"
    ceil(d / 8) bytes. The headers say how many rows and dimensions, which precision, and the tokens.

    Args:
        vectors: (n, d) float32, finite.
        encoding: As of `json_reply`; "base64" is as "float" here.
        tokens: Tokens embedded.
        headers: More headers.
    """
    n, d = vectors.shape
    rows = _ROWS.get(encoding, _raw_floats)
    said = (
        ("x-vecmill-rows", str(n)),
        ("x-vecmill-dimensions", str(d)),
        ("x-vecmill-precision", encoding if encoding in ("int8", "ubinary") else "float32"),
        ("x-vecmill-tokens", str(tokens)),
    )
    step = max(_AT_ONCE_BYTES // 4 // max(d, 1), 1)
    if n <= step:
        return Answer(200, rows(vectors), RAW, headers + said)
    return Answer(200, _raw_pieces(vectors, step, rows), RAW, headers + said, size=n * len(rows(vectors[:1])))


async def _raw_pieces(vectors: Vectors, step: int, rows: Callable[[Vectors], bytes]) -> AsyncIterator[bytes]:
    for start in range(0, len(vectors), step):
        yield rows(vectors[start : start + step])
        await asyncio.sleep(0)


def _raw_floats(vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def _raw_int8(vectors: Vectors) -> bytes:
    codes, scales = int8(vectors)
    n, d = codes.shape
    rows = np.empty((n, 4 + d), dtype=np.uint8)
    rows[:, :4] = np.ascontiguousarray(scales, dtype="<f4").view(np.uint8).reshape(n, 4)
    rows[:, 4:] = codes.view(np.uint8)
    return rows.tobytes()


_ROWS: dict[str, Callable[[Vectors], bytes]] = {
    "int8": _raw_int8,
    "ubinary": lambda vectors: bits(vectors).tobytes(),
}


def header_value(name: str) -> str:
    """Return a model's name as a header may hold it: what is not plain ASCII is percent-encoded."""
    return name if name.isascii() and name.isprintable() else quote(name, safe="/:.-_")
