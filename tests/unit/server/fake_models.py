"""Models without a repository, and requests given to the application by hand; run with `runpy`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import orjson

from vecmill.core.config import Settings
from vecmill.core.errors import ProviderError
from vecmill.core.types import LongText
from vecmill.models.base import Encoded, ModelInfo, Span
from vecmill.server.app import App, create_app
from vecmill.server.batcher import Batched
from vecmill.server.errors import unknown_model
from vecmill.server.options import Options
from vecmill.server.served import Listed


class Words:
    """A vocabulary: "w7" is token 17 and "odd7" its other name, 1 stands before every text, 2 after it."""

    specials = (1, 1)
    rows = 100
    padding_id = 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        ids = tuple(
            np.array([1, *(10 + int(word.lstrip("wod")) for word in text.split()), 2], np.int32)
            for text in texts
        )
        counts = np.array([len(row) for row in ids], np.int64)
        return Encoded(tuple(texts), counts, np.zeros(len(ids), np.int64), ids)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{number - 10}" for number in ids if number >= 10)

    def split(self, text: str, *, max_tokens: int) -> list[Span]:
        words, room = text.split(), max_tokens - 2
        at, found = 0, []
        for start in range(0, len(words), room):
            some = words[start : start + room]
            end = at + len(" ".join(some))
            found.append(Span(at, end, len(some)))
            at = end + 1
        return found


@dataclass(slots=True, eq=False)
class Served:
    """What routes use of a served model."""

    name: str
    provider: Any
    long_text: LongText = LongText.ERROR
    version: str = "1"
    failing: dict[str, ProviderError] = field(default_factory=dict)
    nan: dict[str, int] = field(default_factory=dict)
    wait: asyncio.Event | None = None
    asked: list[Encoded] = field(default_factory=list)

    @property
    def info(self) -> ModelInfo:
        found: ModelInfo = self.provider.info
        return found

    async def vectors(self, work: Encoded, *, key: str, deadline: float) -> Batched:
        self.asked.append(work)
        if self.wait is not None:
            await self.wait.wait()
        vectors = (await self.provider.embed(work)).vectors
        for at, text in enumerate(work.texts):
            if self.nan.get(text, 0):
                self.nan[text] -= 1
                vectors[at] = np.nan
        errors = {at: self.failing[text] for at, text in enumerate(work.texts) if text in self.failing}
        return Batched(vectors, errors)


class Models:
    """What routes use of the served models."""

    ready = True

    def __init__(self, *served: Served) -> None:
        self.served = {one.name: one for one in served}

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Served]:
        if name not in self.served:
            raise unknown_model(name)
        yield self.served[name]

    def listed(self) -> list[Listed]:
        return [Listed(name, 1_700_000_000, "vecmill", one.info) for name, one in sorted(self.served.items())]

    async def start(self) -> None: ...

    async def close(self) -> None: ...


def application(*served: Served, options: Options | None = None) -> App:
    """Return the application with these models."""
    app = create_app(options or Options(), settings=Settings(Path("unused"), Path("unused")))
    app.server.models = Models(*served)  # type: ignore[assignment]
    return app


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found


async def ask(
    app: App,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    left: asyncio.Event | None = None,
) -> Reply | None:
    """Send one request; None where nothing was answered.

    Args:
        app: The application.
        path: With its query; percent-encoded.
        body: Bytes, or what becomes JSON; None: GET.
        method: Another one.
        headers: Beside content-type.
        left: When the client goes away.
    """
    raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    given = {"host": "127.0.0.1", **({} if body is None else {"content-type": "application/json"})}
    given |= headers or {}
    place, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": unquote(place),
        "raw_path": quote(place).encode(),
        "http_version": "1.1",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()],
        "query_string": query.encode(),
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []
    read = False

    async def receive() -> dict[str, Any]:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": raw, "more_body": False}
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await app(scope, receive, send)
    if not sent:
        return None
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], answered, b"".join(message["body"] for message in sent[1:]))


def asked(app: App, path: str, body: Any = None, **more: Any) -> Reply:
    """Send one request on an event loop of its own."""
    found = asyncio.run(ask(app, path, body, **more))
    assert found is not None
    return found


Ask = Callable[..., Reply]
