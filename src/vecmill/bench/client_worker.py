"""One way to ask a hosted model, in a process of its own: `worker.py` for `vecmill bench client`.

A script: `python -P client_worker.py SYSTEM OPTIONS`, run by the interpreter that has the SDK, which needs
NumPy and nothing else of ours installed. Options: `url`, `key`, `model`, `size` (texts of a request),
`in_flight` (requests at once), `home` (an empty folder). What is not part of the measurement (cutting texts
into requests, counting tokens for the provider alone, collecting garbage) is done in `prepare`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from vecmill.bench import worker

A = TypeVar("A")
B = TypeVar("B")
Vector: TypeAlias = list[float]
"""As the SDK returns it: with its default format too it makes lists of what it decodes."""

PROFILE = "bench"


class SdkSync:
    """The openai SDK as most people call it: one request after the other, nothing but the defaults."""

    packages = ("openai", "httpx2", "pydantic", "numpy")

    def __init__(self, options: dict[str, Any]) -> None:
        from openai import OpenAI

        self._options = options
        self._client = OpenAI(api_key=options["key"], base_url=options["url"])
        self._format: dict[str, Any] = {"encoding_format": "float"} if options.get("floats") else {}

    def prepare(self, texts: list[str]) -> list[list[str]]:
        """Cut texts into requests."""
        gc.collect()
        return cut(texts, self._options["size"])

    def embed(self, requests: list[list[str]]) -> list[Vector]:
        """Ask and keep the vectors as they come, lists of floats."""
        vectors: list[Vector] = []
        self.tokens = 0
        for texts in requests:
            reply = self._client.embeddings.create(
                model=self._options["model"], input=texts if len(texts) > 1 else texts[0], **self._format
            )
            vectors += [item.embedding for item in reply.data]
            self.tokens += reply.usage.total_tokens
        return vectors


class SdkAsync:
    """The openai SDK with several requests under way."""

    packages = SdkSync.packages

    def __init__(self, options: dict[str, Any]) -> None:
        from openai import AsyncOpenAI

        self._options = options
        self._client = AsyncOpenAI(api_key=options["key"], base_url=options["url"])
        self._loop = asyncio.new_event_loop()  # a Runner formats every result, for the signal's sake

    def prepare(self, texts: list[str]) -> list[list[str]]:
        """Cut texts into requests."""
        gc.collect()
        return cut(texts, self._options["size"])

    def embed(self, requests: list[list[str]]) -> list[Vector]:
        """Ask, several requests at once, and keep the vectors as they come, lists of floats."""

        async def ask(texts: list[str]) -> Any:
            return await self._client.embeddings.create(model=self._options["model"], input=texts)

        replies = self._loop.run_until_complete(at_once(ask, requests, self._options["in_flight"]))
        self.tokens = sum(reply.usage.total_tokens for reply in replies)
        return [item.embedding for reply in replies for item in reply.data]


class Provider:
    """This package's provider alone: encoded texts in, checked vectors out. Tokens are counted before."""

    packages = ("vecmill", "aiohttp", "orjson", "numpy")

    def __init__(self, options: dict[str, Any]) -> None:
        from vecmill.models.resolve import open_model

        self._options = options
        self._provider = open_model(f"openai:{PROFILE}", settings=settings(options), base_url=options["url"])
        self._loop = asyncio.new_event_loop()  # a Runner formats every result, for the signal's sake

    def prepare(self, texts: list[str]) -> list[Any]:
        """Cut texts into requests and count their tokens."""
        from vecmill.core.types import InputType

        gc.collect()
        requests = cut(texts, self._options["size"])
        return [self._provider.encode(request, input_type=InputType.DOCUMENT) for request in requests]

    def embed(self, requests: list[Any]) -> list[Any]:
        """Ask, several requests at once, and keep each one's vectors (b, d)."""
        asked = at_once(self._provider.embed, requests, self._options["in_flight"])
        replies = self._loop.run_until_complete(asked)
        self.tokens = sum(reply.usage.tokens for reply in replies)
        return [reply.vectors for reply in replies]


class Embedder:
    """This package through the door users take: checks, token counts and the cache on disk.

    Each call is of `call` texts; the profile bounds requests to `size`.
    """

    packages = ("vecmill", "aiohttp", "orjson", "tiktoken", "numpy")

    def __init__(self, options: dict[str, Any]) -> None:
        from vecmill.embedder.embedder import Embedder as Door

        self._options = options
        self._door = Door(
            f"openai:{PROFILE}", settings=settings(options), base_url=options["url"], cache=True
        )

    def prepare(self, texts: list[str]) -> list[list[str]]:
        """Cut texts into calls."""
        gc.collect()
        return cut(texts, self._options["call"])

    def embed(self, calls: list[list[str]]) -> list[Any]:
        """Embed call by call and keep each one's vectors (n, d)."""
        results = [self._door.embed(texts) for texts in calls]
        self.tokens = sum(result.usage.tokens for result in results)
        return [result.vectors for result in results]


class AsyncCalls:
    """The same door for code that awaits: several calls of `size` texts under way."""

    packages = Embedder.packages

    def __init__(self, options: dict[str, Any]) -> None:
        from vecmill.embedder.embedder import AsyncEmbedder as Door

        self._options = options
        made = settings(options)
        self._door = Door(f"openai:{PROFILE}", settings=made, base_url=options["url"], cache=True)
        self._loop = asyncio.new_event_loop()

    def prepare(self, texts: list[str]) -> list[list[str]]:
        """Cut texts into calls."""
        gc.collect()
        return cut(texts, self._options["size"])

    def embed(self, calls: list[list[str]]) -> list[Any]:
        """Embed, several calls at once, and keep each one's vectors (n, d)."""
        asked = at_once(self._door.embed, calls, self._options["in_flight"])
        results = self._loop.run_until_complete(asked)
        self.tokens = sum(result.usage.tokens for result in results)
        return [result.vectors for result in results]


def settings(options: dict[str, Any]) -> Any:
    """Return settings that no file or variable of this machine changes; the profile bounds requests."""
    from vecmill.core.config import Profile, Settings

    home = Path(options["home"])
    profile = Profile(
        PROFILE,
        origin="the benchmark",
        model=options["model"],
        key="env:OPENAI_API_KEY",
        max_inputs=options["size"],
    )
    return Settings(home, home / "cache", profiles={profile.name: profile})


def cut(texts: Sequence[A], size: int) -> list[list[A]]:
    """Cut texts into lists of `size`, the last one shorter."""
    return [list(texts[at : at + size]) for at in range(0, len(texts), size)]


async def at_once(ask: Callable[[A], Awaitable[B]], requests: Sequence[A], in_flight: int) -> list[B]:
    """Ask everything, at most `in_flight` at a time; the answers in the order of the requests."""
    answers: dict[int, B] = {}
    waiting = iter(enumerate(requests))

    async def work() -> None:
        for at, request in waiting:
            answers[at] = await ask(request)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return [answers[at] for at in range(len(requests))]


SYSTEMS: dict[str, type[Any]] = {
    "sdk_sync": SdkSync,
    "sdk_async": SdkAsync,
    "provider": Provider,
    "embedder": Embedder,
    "async_calls": AsyncCalls,
}

if __name__ == "__main__":
    worker.main(SYSTEMS)
