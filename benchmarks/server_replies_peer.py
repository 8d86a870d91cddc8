"""The peers of `server_replies.py`: asked by lines of JSON, in an interpreter with fastapi and numpy."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class Reply(BaseModel):
    """An answer as OpenAI gives it."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


def reply(vectors: Any) -> Reply:
    """Put vectors (n, d) into models, as servers with pydantic do."""
    data = [Embedding(index=at, embedding=row.tolist()) for at, row in enumerate(vectors)]
    return Reply(data=data, model="m", usage=Usage(prompt_tokens=1, total_tokens=1))


def application(state: dict[str, Any]) -> FastAPI:
    """Return an application whose only route answers the state's vectors."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings() -> Reply:
        return reply(state["vectors"])

    return app


async def call(app: FastAPI) -> int:
    """Ask the application once; return the body's bytes."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/embeddings",
        "raw_path": b"/v1/embeddings",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-length", b"0")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    size = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal size
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"status {message['status']}")
        size += len(message.get("body", b""))

    await app(scope, receive, send)
    return size


async def several(name: str, app: FastAPI, vectors: Any, times: int) -> int:
    """Write the answer so many times; return its bytes."""
    size = 0
    for _ in range(times):
        size = await call(app) if name == "fastapi" else len(reply(vectors).model_dump_json().encode())
    return size


def main() -> None:
    """Answer every line until the input ends."""
    state: dict[str, Any] = {}
    app = application(state)
    chance = np.random.default_rng(0)
    for line in sys.stdin:
        asked = json.loads(line)
        if "seed" in asked:
            chance = np.random.default_rng(asked["seed"])
            names = ("fastapi", "pydantic", "starlette")
            found: dict[str, Any] = {"versions": {name: version(name) for name in names}}
        else:
            shape = (asked["rows"], asked["dimensions"])
            if "vectors" not in state or state["vectors"].shape != shape:
                vectors = chance.standard_normal(shape, dtype=np.float32)
                state["vectors"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            times = asked["times"]
            wall, cpu = time.perf_counter(), time.process_time()
            size = asyncio.run(several(asked["system"], app, state["vectors"], times))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found = {"bytes": size, "cpu": cpu / times, "wall": wall / times}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
