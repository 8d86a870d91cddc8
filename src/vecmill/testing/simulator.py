"""A provider of embeddings over real HTTP, for tests and benchmarks: it costs nothing and counts everything.

It speaks as OpenAI, Azure OpenAI and GitHub Models do, keeps limits per minute, takes its time and goes wrong
on demand. It runs on the event loop of the test, so that on a `VirtualLoop` its minutes pass at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from vecmill.core.types import Vectors
from vecmill.testing import simulator_wire as wire
from vecmill.testing.hashed import digest
from vecmill.testing.scenarios import Latency, Model, Scenario
from vecmill.testing.simulator_batches import BatchRules, BatchService, add_routes
from vecmill.testing.simulator_desk import Desk
from vecmill.testing.simulator_faults import MIX, Fault
from vecmill.testing.simulator_ledger import CLIENT_LEFT, Ledger, Logged
from vecmill.testing.simulator_model import Problem, SimulatedModels, reply

__all__ = [
    "CLIENT_LEFT",
    "MIX",
    "Fault",
    "Latency",
    "Logged",
    "Model",
    "Scenario",
    "Simulator",
    "simulator_thread",
]

_DOORS = {
    "/v1/embeddings": "openai",
    "/openai/v1/embeddings": "azure_v1",
    "/openai/deployments/{deployment}/embeddings": "azure",
    "/inference/embeddings": "github",
}

_BACKLOG = 4096
"""Connections that wait to be accepted. One more is tried again after a real second: ages of virtual time."""


class Simulator(Ledger):
    """A provider that costs nothing and remembers everything but the texts; what it counts, `Ledger` says.

    Doors: `POST /v1/embeddings` (OpenAI), `/openai/deployments/{name}/embeddings?api-version=…` and
    `/openai/v1/embeddings` (Azure), `/inference/embeddings` (GitHub Models); `GET /v1/models`; files and
    batches.

    Args:
        scenario: What it is like.
        now: The wall clock in seconds since the epoch; the loop's own on a `VirtualLoop`, else `time.time`.
        batch_rules: How files and batches behave.

    Attributes:
        batches: Files and batches, with counters of their own. None before the start.
    """

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        now: Callable[[], float] | None = None,
        batch_rules: BatchRules | None = None,
    ) -> None:
        super().__init__(Scenario() if scenario is None else scenario)
        self.batches: BatchService | None = None
        self._clock = now
        self._batch_rules = batch_rules
        self._models = SimulatedModels(self.scenario)
        self._desk = Desk(self.scenario, self._models, self, self.now)
        self._runner: web.AppRunner | None = None
        self._origin = ""
        self._other_port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Begin to serve; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        if self._clock is None:
            self._clock = getattr(loop, "now", time.time)
        self._runner = web.AppRunner(
            self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        port = self._runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        self._origin = f"http://{shown}:{port}"
        if any(fault.kind == "redirect" for fault in self.scenario.faults):
            await web.TCPSite(self._runner, host, 0).start()
            self._other_port = next(a[1] for a in self._runner.addresses if a[1] != port)
            self._desk.other_origin = f"http://{shown}:{self._other_port}"

    async def close(self) -> None:
        """Stop serving; requests that are being answered are dropped."""
        self._desk.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The base URL for clients of OpenAI: "http://127.0.0.1:PORT/v1"."""
        return f"{self._origin}/v1"

    @property
    def azure_url(self) -> str:
        """The endpoint for clients of Azure OpenAI: "http://127.0.0.1:PORT"."""
        return self._origin

    @property
    def github_url(self) -> str:
        """The base URL for clients of GitHub Models."""
        return f"{self._origin}/inference"

    @property
    def key(self) -> str:
        """A key it lets in."""
        return self.scenario.keys[0]

    def now(self) -> float:
        """Return the wall clock, in seconds since the epoch."""
        return time.time() if self._clock is None else self._clock()

    def count(self, text: str) -> int:
        """Return a text's tokens, counted independently of `core.tokens`."""
        return self._models.count(text)

    def vectors(
        self, texts: Sequence[str], model: str | None = None, dimensions: int | None = None
    ) -> Vectors:
        """Return what it answers for texts: (n, dimensions) float32 of unit length.

        Args:
            texts: The exact texts.
            model: A name of the scenario; None: its first.
            dimensions: None: all of the model's.
        """
        name = next(iter(self.scenario.models)) if model is None else model
        return self._models.vectors([digest(text) for text in texts], name, dimensions)

    def answer(
        self, model: str, texts: Sequence[str], dimensions: int | None = None, *, base64: bool = False
    ) -> tuple[int, dict[str, Any], int]:
        """Answer without limits and faults, and without a bill: (status, body, tokens)."""
        found = wire.model_name(self.scenario, "openai", model)
        if isinstance(found, Problem):
            return found.status, found.body(), 0
        form = "base64" if base64 else "float"
        body = {"input": list(texts), "dimensions": dimensions, "encoding_format": form}
        asked = self._models.understand(body, found)
        problem = asked if isinstance(asked, Problem) else self._models.check(asked)
        if isinstance(asked, Problem) or problem is not None:
            problem = problem or wire.SERVER_ERROR
            return problem.status, problem.body(), 0
        answered: dict[str, Any] = orjson.loads(
            reply(self._models.items(asked), asked.name, asked.total_tokens)
        )
        return 200, answered, asked.total_tokens

    def answer_line(
        self, model: str, texts: Sequence[str], dimensions: int | None, *, base64: bool
    ) -> tuple[int, dict[str, Any]]:
        """Answer a line of a batch, and bill it at the batch price."""
        status, body, tokens = self.answer(model, texts, dimensions, base64=base64)
        if status == 200:
            name = self.scenario.deployments.get(model, model)
            self.bill(name, [digest(text) for text in texts], tokens, batch=True)
        return status, body

    def refuse(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request without a valid key, None for one that has it."""
        door = "azure_v1" if request.path.startswith("/openai/") else "openai"
        problem = wire.check_key(self.scenario, door, request.headers)
        return None if problem is None else self._say(problem)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=0, middlewares=[self._note])
        for path, door in _DOORS.items():
            app.router.add_post(path, self._desk.door(door))
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{name:.+}", self._show_model)
        self.batches = add_routes(app, self, self._batch_rules)
        app.router.add_route("*", "/{path:.*}", self._nothing_here)
        return app

    @web.middleware
    async def _note(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        """Count a request before anything else happens to it."""
        self.visits[f"{request.method} {request.path}"] += 1
        if any(key in request.path_qs for key in self.scenario.keys):
            self.key_seen_in_urls = True
        if self._other_port and wire.port(request) == self._other_port:
            self.elsewhere.append("authorization" in request.headers or "api-key" in request.headers)
            return self._say(wire.NOT_FOUND)
        response: web.StreamResponse = await handler(request)
        return response

    async def _list_models(self, request: web.Request) -> web.Response:
        models = [wire.shown_model(name) for name in self.scenario.models]
        return self.refuse(request) or self._send(200, orjson.dumps({"object": "list", "data": models}))

    async def _show_model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if (refusal := self.refuse(request)) is not None:
            return refusal
        if name not in self.scenario.models:
            return self._say(wire.unknown_model(name))
        return self._send(200, orjson.dumps(wire.shown_model(name)))

    async def _nothing_here(self, request: web.Request) -> web.Response:
        return self._say(Problem(404, f"Invalid URL ({request.method} {request.path})"))

    def _say(self, problem: Problem) -> web.Response:
        return self._send(problem.status, wire.written(problem, "openai"))

    def _send(self, status: int, body: bytes) -> web.Response:
        return web.Response(status=status, body=body, headers=wire.common_headers(self.now()))


@contextmanager
def simulator_thread(
    scenario: Scenario | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    batch_rules: BatchRules | None = None,
) -> Iterator[Simulator]:
    """Serve from a thread with an event loop of its own, on real time: for synchronous tests."""
    simulator = Simulator(scenario, batch_rules=batch_rules)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vecmill-simulator", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(simulator.start(host, port), loop).result()
        yield simulator
    finally:
        asyncio.run_coroutine_threadsafe(simulator.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
