"""What servers of embeddings take and answer: OpenAI's shape, and the one of text-embeddings-inference."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from vecmill.core.errors import BadReplyError, UnknownNameError, unknown_name
from vecmill.core.types import Vectors

OPENAI = "openai"
TEI = "tei-embed"

BACKENDS: dict[str, str] = {
    OPENAI: "http://127.0.0.1:8000/v1/embeddings",
    "vecmill": "http://127.0.0.1:8000/v1/embeddings",
    "ovms-embeddings": "http://127.0.0.1:8000/v3/embeddings",
    TEI: "http://127.0.0.1:8080/embed",
    "infinity-embeddings": "http://127.0.0.1:7997/embeddings",
    "vllm": "http://127.0.0.1:8000/v1/embeddings",
}
"""name -> where such a server is asked unless --api_url says otherwise."""


@dataclass(frozen=True, slots=True)
class Read:
    """What an answer says.

    Attributes:
        vectors: How many came. dimensions: Of each.
        tokens: The server's own count, where it gives one.
    """

    vectors: int
    dimensions: int
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Shape:
    """How one server is asked.

    Attributes:
        backend: A name of `BACKENDS`.
        model: As the server calls it; "" where it does not ask.
        encoding: "float" or "base64".
    """

    backend: str = OPENAI
    model: str = ""
    encoding: str = "base64"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.encoding not in ("float", "base64"):
            raise UnknownNameError(f"encoding {self.encoding!r} is not known: float or base64")

    @property
    def asks_for_model(self) -> bool:
        """Whether a request must name a model."""
        return self.backend != TEI

    def body(self, texts: Sequence[str]) -> bytes:
        """Return the body that asks for the vectors of some texts."""
        if self.backend == TEI:
            return orjson.dumps({"inputs": list(texts)})
        return orjson.dumps(
            {"model": self.model, "input": list(texts), "encoding_format": self.encoding},
        )

    def read(self, body: bytes, headers: Mapping[str, str], texts: int) -> Read:
        """Check that an answer has a vector for every text.

        Raises:
            BadReplyError: It has not.
        """
        try:
            reply = orjson.loads(body)
            rows = _rows(reply) if self.backend != TEI else reply
            widths = {_width(row) for row in rows}
            counted = _counted(reply, headers)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadReplyError("the answer is not what such a server answers", code="bad_reply") from error
        if len(rows) != texts or len(widths) != 1 or 0 in widths:
            raise BadReplyError(
                f"{texts} texts were asked, {len(rows)} vectors of {sorted(widths)} dimensions came",
                code="bad_reply",
            )
        return Read(len(rows), widths.pop(), counted)

    def vectors(self, body: bytes) -> Vectors:
        """Return the vectors of an answer that `read` found right: (n, d) float32, in the texts' order."""
        reply = orjson.loads(body)
        rows = reply
        if self.backend != TEI:
            rows = [item["embedding"] for item in sorted(reply["data"], key=lambda item: item["index"])]
        return np.array([_numbers(row) for row in rows], np.float32)


def _rows(reply: Any) -> list[Any]:
    data = reply["data"]
    if sorted(item.get("index", at) for at, item in enumerate(data)) != list(range(len(data))):
        raise ValueError("positions are missing")
    return [item["embedding"] for item in data]


def _width(row: Any) -> int:
    if isinstance(row, str):
        return len(row) * 3 // 4 // 4
    return len(row)


def _numbers(row: Any) -> Any:
    return np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row


def _counted(reply: Any, headers: Mapping[str, str]) -> int | None:
    if isinstance(reply, dict):
        usage = reply.get("usage") or {}
        tokens = usage.get("prompt_tokens")
        return None if tokens is None else int(tokens)
    given = headers.get("x-compute-tokens", "")  # as text-embeddings-inference says it
    return int(given) if given.isdigit() else None
