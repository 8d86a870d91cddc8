"""One request and its answer, between ASGI and the routes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from vecmill.server.errors import Header, Refusal, wait
from vecmill.server.options import MIB
from vecmill.server.rates import FREE, Ticket

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


FREE_BYTES = 65_536
"""Of every body so much is not counted: small requests pass while others fill the room there is."""

_RETRY_BODIES = 1.0
"""Seconds to come back after when bodies fill the room; most are read in less."""


class Bodies:
    """The bytes of all bodies that are being read.

    Args:
        most: How many there may be, beyond `FREE_BYTES` of each body.

    Attributes:
        held: How many there are.
    """

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most

    def take(self, size: int) -> None:
        """Count bytes that arrived.

        Raises:
            Refusal: 429, there are too many; nothing is counted, and the connection is to end.
        """
        if self.held + size > self._most:
            refusal = wait(
                "the server is reading as many large requests as it can hold; come back later, or send "
                "smaller requests",
                _RETRY_BODIES,
                code="too_many_bodies",
            )
            refusal.close = True
            raise refusal
        self.held += size


@dataclass(slots=True)
class Noted:
    """What the log line and the metrics of a request say beside status and time; never a text.

    Attributes:
        model: The served name, only of models that exist. version: which one answered.
        texts, tokens: What was asked. cached: texts that cost nothing.
        truncated: Texts that were cut.
        code: The error's code. warning: "language_unknown" where the vectors mean little.
    """

    model: str = ""
    version: str = ""
    texts: int = 0
    tokens: int = 0
    cached: int = 0
    truncated: int = 0
    code: str = ""
    warning: str = ""


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
        deadline: The event loop's time at which the answer is worth nothing any more; it moves when the body
            is complete.
        noted: For log and metrics.
        seconds: What the answer may take, from the end of the request.
        timer: Ends the request at its deadline, where there is one.
        ticket: What its tokens are taken from.
        reading: Whether its body is being read.
        counted: Bytes of its body that `Bodies` counts.
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
    seconds: float = math.inf
    timer: asyncio.Timeout | None = None
    ticket: Ticket = FREE
    reading: bool = False
    counted: int = 0

    async def body(self, most: int) -> bytes:
        """Read the body, counting its bytes as they arrive; they count until `release`.

        Raises:
            Refusal: 413, it has more than `most` bytes; 429, all bodies together have too many.
            ClientLeft: The client went away.
        """
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
            raise too_large(most)
        self._begin()
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
            if (more := size - FREE_BYTES - self.counted) > 0:
                self.server.bodies.take(more)
                self.counted += more
            chunks.append(chunk)
            if not message.get("more_body", False):
                self._complete()
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self) -> None:
        """Count the body's bytes no more: it is parsed, or nobody will read it."""
        self.server.bodies.held -= self.counted
        self.counted = 0

    def _begin(self) -> None:
        """Give the body its own time: who counts its bytes on the wire says 408 before this ends."""
        self.reading = True
        limits = self.server.options.limits
        longest = limits.body_seconds + limits.body_seconds_per_mib * (limits.max_body_bytes / MIB)
        if self.timer is not None:
            self.timer.reschedule(now() + longest + self.seconds)

    def _complete(self) -> None:
        """Let the time of the answer begin."""
        self.reading = False
        if self.timer is not None:
            self.deadline = now() + self.seconds
            self.timer.reschedule(self.deadline)

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
