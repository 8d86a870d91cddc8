"""One request and its answer, between ASGI and the routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from vecmill.server.errors import Header, Refusal

if TYPE_CHECKING:
    from vecmill.server.access import Caller
    from vecmill.server.app import Server

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

JSON = "application/json"


class ClientLeft(Exception):  # noqa: N818 - nothing is wrong
    """The client closed its connection: nobody waits for the answer."""


@dataclass(slots=True)
class Noted:
    """What the log line and the metrics of a request say beside status and time; never a text.

    Attributes:
        model: The served name, only of models that exist. version: which one answered.
        texts, tokens: What was asked. cached: texts that cost nothing.
        truncated: Texts that were cut.
        code: The error's code.
    """

    model: str = ""
    version: str = ""
    texts: int = 0
    tokens: int = 0
    cached: int = 0
    truncated: int = 0
    code: str = ""


@dataclass(slots=True)
class Call:
    """One request.

    Attributes:
        server: What it was sent to: options, models, metrics.
        method, path: As asked; the path is percent-decoded.
        headers: By lower-case name; of a name sent twice the first.
        query: The query's parameters, the first of each name.
        parts: What stands in the path at the route's `{names}`.
        caller: Who asks.
        request_id: Its id in answer and log.
        deadline: The event loop's time at which the answer is worth nothing any more.
        noted: For log and metrics.
    """

    server: Server
    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    parts: Mapping[str, str]
    caller: Caller
    request_id: str
    deadline: float
    receive: Receive
    noted: Noted = field(default_factory=Noted)

    async def body(self, most: int) -> bytes:
        """Read the body, counting its bytes as they arrive.

        Raises:
            Refusal: 413, it has more than `most` bytes; 408, it came too slowly.
            ClientLeft: The client went away.
        """
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise too_large(most)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise too_large(most)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def left(self) -> None:
        """Return when the client has gone; to be awaited after the body."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


def too_large(most: int) -> Refusal:
    """Return the answer to a body of more than `most` bytes."""
    message = f"the request body is larger than {most} bytes: send fewer or shorter texts in one request"
    return Refusal(413, message, code="content_too_large", close=True)


@dataclass(slots=True)
class Answer:
    """What is sent back.

    Attributes:
        body: Bytes, or pieces of known total size that are made while they are sent.
        size: Of the pieces together.
        headers: Beside content-type and content-length.
    """

    status: int
    body: bytes | AsyncIterator[bytes]
    media_type: str = JSON
    headers: tuple[Header, ...] = ()
    size: int | None = None
    close: bool = False


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


def now() -> float:
    """Return the event loop's time, which deadlines are in."""
    return asyncio.get_running_loop().time()
