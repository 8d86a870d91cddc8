"""A fake embeddings server on the loop of the test, so that it runs on virtual time too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

DIMENSIONS = 8


@dataclass
class Fake:
    """What it does and what it saw.

    Attributes:
        delay: Seconds an answer takes. stall: between these times of the loop nothing is answered.
        statuses: of the first answers; 200 after them.
        requests: Bodies, in order. heads: their request lines and headers. connections: accepted.
        answer: Makes the body of a good answer.
    """

    delay: float = 0.01
    stall: tuple[float, float] = (0.0, 0.0)
    statuses: list[int] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[Any], Any] = lambda body: openai_answer(body)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line), 0
                )
                body = await reader.readexactly(length)
                self.heads.append(head)
                writer.write(await self._reply(head, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, head: str, body: bytes) -> bytes:
        if head.startswith("GET"):
            return http(200, {"object": "list", "data": [{"id": "the-model"}]})
        asked = json.loads(body)
        self.requests.append(asked)
        now, (begin, end) = asyncio.get_running_loop().time(), self.stall
        await asyncio.sleep(self.delay + (end - now if begin <= now < end else 0.0))
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return http(status, {"error": {"message": f"no: {status}", "type": "x", "param": None}})
        return http(200, self.answer(asked))


def http(status: int, value: Any, *headers: str) -> bytes:
    body = json.dumps(value).encode()
    lines = "".join(f"{line}\r\n" for line in ("content-type: application/json", *headers))
    return f"HTTP/1.1 {status} X\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def openai_answer(body: Any) -> Any:
    """Answer as OpenAI does, floats, in the wrong order: only `index` counts."""
    data = [
        {"object": "embedding", "index": i, "embedding": [float(i)] * DIMENSIONS}
        for i in reversed(range(len(body["input"])))
    ]
    tokens = sum(len(text.split()) + 2 for text in body["input"])
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": tokens}}


def tei_answer(body: Any) -> Any:
    """Answer as text-embeddings-inference's /embed does."""
    return [[1.0] * DIMENSIONS for _ in body["inputs"]]


@asynccontextmanager
async def serving(fake: Fake) -> AsyncIterator[Fake]:
    """Serve on the running loop; `fake.url` is the origin."""
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, backlog=2048)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()


async def against(fake: Fake, work: Callable[[Fake], Awaitable[Any]]) -> Any:
    """Serve while `work` runs."""
    async with serving(fake):
        return await work(fake)
