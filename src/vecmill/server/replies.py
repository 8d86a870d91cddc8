"""Vectors to bytes: JSON with numbers, base64, int8 or bits, or raw rows. All numbers are little-endian."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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

_AT_ONCE = 16_384
"""Numbers written as text without letting other requests have their turn: about 2 ms."""

_AT_ONCE_BYTES = 1_048_576
"""The same of bytes that are copied or encoded in base64."""

_OPEN = tuple(b'{"object":"embedding","index":%d,"embedding":' % at for at in range(2048))
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def wants_raw(accept: str) -> bool:
    """Say whether a client asks for rows of bytes."""
    return RAW in accept and any(part.partition(";")[0].strip() == RAW for part in accept.lower().split(","))


async def json_reply(
    vectors: Vectors, encoding: str, *, model: str, tokens: int, cut: Sequence[int] = ()
) -> bytes:
    """Return OpenAI's answer. Large ones are written in slices, between which other requests have their turn.

    Args:
        vectors: (n, d) float32, finite, n at least 1.
        encoding: "float": the shortest decimals that read back as the same float32. "base64": of the d
            little-endian float32. "int8": d integers from -127 to 127, which times the item's `scale` are the
            components. "ubinary": bytes of eight bits, the first component's highest, 1 where a component is
            above 0; zero bits fill the last byte.
        model: The model's name.
        tokens: For `usage`.
        cut: Inputs that were truncated.
    """
    match encoding:
        case "base64":
            pieces = await _base64(vectors)
        case "int8":
            pieces = await _int8(vectors)
        case "ubinary":
            pieces = await _numbers(bits(vectors))
        case _:
            pieces = await _numbers(vectors)
    tail = b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (
        orjson.dumps(model),
        tokens,
        tokens,
    )
    if cut:
        tail += b',"truncated":' + orjson.dumps(list(cut))
    pieces[0] = b'{"object":"list","data":[' + pieces[0]
    pieces.append(tail + b"}")
    return b"".join(pieces)


async def _base64(vectors: Vectors) -> list[bytes]:
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    encode = pybase64.b64encode
    pieces: list[bytes] = []
    step = max(_AT_ONCE_BYTES // max(rows.itemsize * rows.shape[1], 1), 1)
    for at, row in enumerate(rows):
        if at:
            if at % step == 0:
                await asyncio.sleep(0)
            pieces.append(b",")
        pieces += (_opening(at), b'"', encode(row.data), b'"}')
    return pieces


async def _numbers(values: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> list[bytes]:
    rows = np.ascontiguousarray(values)
    pieces: list[bytes] = []
    step = max(_AT_ONCE // max(rows.shape[1], 1), 1)
    for at, row in enumerate(rows):
        if at:
            if at % step == 0:
                await asyncio.sleep(0)
            pieces.append(b",")
        pieces += (_opening(at), orjson.dumps(row, option=_NUMPY), b"}")
    return pieces


async def _int8(vectors: Vectors) -> list[bytes]:
    codes, scales = int8(vectors)
    pieces: list[bytes] = []
    step = max(_AT_ONCE // max(codes.shape[1], 1), 1)
    for at, row in enumerate(codes):
        if at:
            if at % step == 0:
                await asyncio.sleep(0)
            pieces.append(b",")
        scale = orjson.dumps(scales[at], option=_NUMPY)
        pieces += (_opening(at), orjson.dumps(row, option=_NUMPY), b',"scale":', scale, b"}")
    return pieces


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
    if encoding == "int8":
        codes, scales = int8(vectors)
        rows = np.empty((n, 4 + d), dtype=np.uint8)
        rows[:, :4] = np.ascontiguousarray(scales, dtype="<f4").view(np.uint8).reshape(n, 4)
        rows[:, 4:] = codes.view(np.uint8)
        body = rows.tobytes()
    elif encoding == "ubinary":
        body = bits(vectors).tobytes()
    else:
        body = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    said = (
        ("x-vecmill-rows", str(n)),
        ("x-vecmill-dimensions", str(d)),
        ("x-vecmill-precision", encoding if encoding in ("int8", "ubinary") else "float32"),
        ("x-vecmill-tokens", str(tokens)),
    )
    return Answer(200, body, RAW, headers + said)


def header_value(name: str) -> str:
    """Return a model's name as a header may hold it: what is not plain ASCII is percent-encoded."""
    return name if name.isascii() and name.isprintable() else quote(name, safe="/:.-_")
