"""How the simulated provider answers one request for embeddings: checks, limits, faults, time, reply."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from vecmill.testing import simulator_wire as wire
from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator_faults import RATE_LIMITED, Fault, FaultPlan
from vecmill.testing.simulator_ledger import CLIENT_LEFT, Ledger, Visit
from vecmill.testing.simulator_limits import DAY, Limits
from vecmill.testing.simulator_model import Asked, Problem, SimulatedModels, base64_refused, reply, spoil

_LINGER = struct.pack("ii", 1, 0)  # a closed connection is reset, what was not sent is dropped
_LOST = ("reset_before", "reset_after", "truncated")


class Desk:
    """Answers requests for embeddings.

    Args:
        scenario: What the provider is like.
        models: What it serves.
        ledger: Where it writes down what happens.
        now: The wall clock in seconds since the epoch.

    Attributes:
        other_origin: Where redirects lead.
    """

    def __init__(
        self, scenario: Scenario, models: SimulatedModels, ledger: Ledger, now: Callable[[], float]
    ) -> None:
        self.other_origin = ""
        self._scenario = scenario
        self._models = models
        self._ledger = ledger
        self._now = now
        self._plan = FaultPlan(scenario.faults, scenario.seed)
        self._limits: dict[tuple[str, str], Limits] = {}
        self._working: set[asyncio.Task[web.StreamResponse]] = set()

    def door(self, door: str) -> Callable[[web.Request], Any]:
        """Return the handler of a door's path."""

        async def handle(request: web.Request) -> web.StreamResponse:
            visit = self._ledger.arrive(door, request.path, self._now())
            work = asyncio.ensure_future(self._work(request, visit))
            self._working.add(work)
            work.add_done_callback(self._working.discard)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                visit.left.set()  # the work goes on: a provider computes, and bills, what was begun
                raise

        return handle

    def close(self) -> None:
        """Drop what is being answered."""
        for task in list(self._working):
            task.cancel()

    async def _work(self, request: web.Request, visit: Visit) -> web.StreamResponse:
        try:
            response = await self._answer(request, visit)
            if visit.left.is_set() and visit.fault not in _LOST:
                visit.status = CLIENT_LEFT
            return response
        finally:
            self._ledger.leave(visit, self._now())

    async def _answer(self, request: web.Request, visit: Visit) -> web.StreamResponse:
        asked = await self._understand(request, visit)
        if isinstance(asked, Problem):
            return self._say(asked, visit)
        problem = self._models.check(asked)
        limits = self._limits_of(request, asked.name)
        now = self._now()
        refused = limits.ask(0 if problem else asked.total_tokens, now)
        headers = limits.headers(now) if self._scenario.rate_headers else {}
        if refused is not None:
            hint, problem = wire.limited(visit.door, refused, asked.name, self._scenario.hint, now)
            return self._say(problem, visit, {**headers, **hint})
        if problem is not None:
            return self._say(problem, visit, headers)
        fault = self._plan.pick(visit.number)
        if fault is not None and not (fault.kind == "base64_refused" and not asked.base64):
            visit.fault = fault.kind
            return await self._go_wrong(request, visit, asked, fault, headers)
        await self._take_time(visit, asked)
        self._compute(visit, asked)
        return self._send(200, self._reply(asked), visit, headers)

    async def _understand(self, request: web.Request, visit: Visit) -> Asked | Problem:
        raw = await request.read()
        problem = wire.check_request(self._scenario, visit.door, request, len(raw))
        if problem is not None:
            return problem
        body = wire.parse(raw)
        if isinstance(body, Problem):
            return body
        given = request.match_info.get("deployment") or body.get("model")
        name = wire.model_name(self._scenario, visit.door, given)
        if isinstance(name, Problem):
            return name
        asked = self._models.understand(body, name)
        if isinstance(asked, Asked):
            visit.asked = asked
        return asked

    def _limits_of(self, request: web.Request, name: str) -> Limits:
        place = (wire.given_key(request.headers), name)
        if place not in self._limits:
            scenario = self._scenario
            self._limits[place] = Limits(
                requests_per_minute=scenario.requests_per_minute,
                tokens_per_minute=scenario.tokens_per_minute,
                requests_per_day=scenario.requests_per_day,
                meaning=scenario.meaning,
            )
        return self._limits[place]

    async def _go_wrong(
        self,
        request: web.Request,
        visit: Visit,
        asked: Asked,
        fault: Fault,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Answer as the fault says."""
        if fault.kind == "reset_before":
            return _reset(request)
        if fault.kind == "timeout":
            await visit.left.wait()
            return web.Response()
        refused = self._refuse(request, visit, fault, headers)
        if refused is not None:
            return refused
        await self._take_time(visit, asked)
        if fault.kind == "502":
            return self._send(502, wire.BAD_GATEWAY, visit, {"Content-Type": "text/html"})
        if fault.kind in ("500", "503"):
            problem = wire.SERVER_ERROR if fault.kind == "500" else wire.OVERLOADED
            return self._say(problem, visit, headers)
        self._compute(visit, asked)
        return await self._deliver(request, visit, self._reply(asked, fault.kind, visit.number), headers)

    def _refuse(
        self, request: web.Request, visit: Visit, fault: Fault, headers: Mapping[str, str]
    ) -> web.StreamResponse | None:
        """Return the answer of a fault that takes no time, None for another."""
        now = self._now()
        if fault.kind in RATE_LIMITED:
            hint, problem = wire.scripted_429(visit.door, fault.kind, fault.seconds, now)
            return self._say(problem, visit, {**headers, **hint})
        match fault.kind:
            case "quota":
                hint, problem = wire.quota(visit.door, DAY - now % DAY)
                return self._say(problem, visit, hint)
            case "401":
                return self._say(wire.wrong_key(visit.door, request.headers), visit)
            case "413":
                return self._say(wire.TOO_LARGE, visit)
            case "base64_refused":
                return self._say(base64_refused(), visit)
            case "redirect":
                return self._send(308, b"", visit, {"Location": f"{self.other_origin}{request.path_qs}"})
        return None

    async def _deliver(
        self, request: web.Request, visit: Visit, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Send what was computed, or lose it on the way."""
        if visit.fault == "reset_after":
            return _reset(request)
        if visit.fault == "cut_json":
            body = body[: len(body) // 2]
        if visit.fault != "truncated":
            return self._send(200, body, visit, headers)
        visit.status = 200
        response = web.StreamResponse(
            headers={**wire.visit_headers(visit, self._now()), "Content-Length": str(len(body))}
        )
        with suppress(ConnectionError):
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    async def _take_time(self, visit: Visit, asked: Asked) -> None:
        latency = self._scenario.latency
        seconds = latency.seconds
        if latency.kind != "constant":
            dice = random.Random(f"{self._scenario.seed}/latency/{visit.number}")  # noqa: S311 - repeatable
            if latency.kind == "uniform":
                seconds = dice.uniform(latency.seconds, latency.most)
            else:
                seconds = latency.seconds * math.exp(dice.gauss(0.0, latency.sigma))
        seconds += latency.per_token * asked.total_tokens
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _compute(self, visit: Visit, asked: Asked) -> None:
        visit.billed = True
        self._ledger.bill(asked.name, asked.digests, asked.total_tokens)

    def _reply(self, asked: Asked, fault: str = "", number: int = 0) -> bytes:
        items = spoil(fault, asked, self._models, number) if fault else self._models.items(asked)
        return reply(items, asked.name, asked.total_tokens)

    def _say(self, problem: Problem, visit: Visit, headers: Mapping[str, str] | None = None) -> web.Response:
        return self._send(problem.status, wire.written(problem, visit.door), visit, headers)

    def _send(
        self, status: int, body: bytes, visit: Visit, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        visit.status = status
        shown = {**wire.visit_headers(visit, self._now()), **(headers or {})}
        return web.Response(status=status, body=body, headers=shown)


def _reset(request: web.Request) -> web.StreamResponse:
    """Reset the connection: what the client reads is an error at once."""
    if request.transport is not None:
        endpoint = request.transport.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        request.transport.abort()
    return web.Response()
