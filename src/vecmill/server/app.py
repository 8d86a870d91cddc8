"""The application: every request passes here, from its headers to its log line."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from vecmill.core import errors
from vecmill.core.config import Settings, load_settings
from vecmill.server import logs
from vecmill.server.access import ANONYMOUS, Caller, Gate
from vecmill.server.call import Answer, Bodies, Call, ClientLeft, Noted, Receive, Scope, Send
from vecmill.server.door import REFUSED, REQUEST_ID
from vecmill.server.errors import Refusal, invalid, late, refusal_of
from vecmill.server.hosts import check_host, cors_headers, preflight
from vecmill.server.keys import Right
from vecmill.server.metrics import Metrics
from vecmill.server.options import Options
from vecmill.server.rates import FREE
from vecmill.server.routes import table
from vecmill.server.routing import Route, Table
from vecmill.server.served import ServedModels
from vecmill.server.tracing import Tracer

log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""What log and metrics say of a request nobody waited for; never sent."""

NO_CONTENT = 204
"""A status whose answers have no body, and say nothing of one."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Server:
    """What requests share.

    Attributes:
        options, settings: What the operator said.
        models: What is served. gate: who may ask. metrics: what is counted.
        table: The routes.
        bodies: What all bodies together take.
        draining: Whether the server is stopping.
        tracer: Makes spans where tracing is on.
        started: When it began, in seconds since the epoch.
    """

    options: Options
    settings: Settings
    models: ServedModels
    gate: Gate
    metrics: Metrics
    table: Table
    bodies: Bodies = field(init=False)
    draining: bool = False
    tracer: Tracer | None = None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.options.limits.max_bodies_bytes)

    async def start(self) -> None:
        """Load the models; the server answers before that, but is not ready."""
        await self.models.start()

    async def close(self) -> None:
        """Let go of the models."""
        await self.models.close()

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.models.ready and not self.draining


class App:
    """The ASGI application.

    Attributes:
        server: What requests share.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the server's life."""
        if scope["type"] == "http":
            await _Exchange(self.server, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.server.start()
        except Exception as error:
            await self.server.close()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.server.close()
        await send({"type": "lifespan.shutdown.complete"})


def create_app(options: Options | None = None, *, settings: Settings | None = None) -> App:
    """Make the ASGI application; nothing is loaded before its lifespan starts.

    Args:
        options: None serves the built-in model on loopback without keys.
        settings: None reads environment and `vecmill.toml`.

    Raises:
        ConfigError: Options contradict each other.
        StorageError: The file of keys is there and cannot be read.
    """
    options = options or Options()
    settings = settings or load_settings()
    server = Server(
        options,
        settings,
        ServedModels(options, settings),
        Gate(options, settings),
        Metrics(),
        Table(table.ROUTES),
    )
    return App(server)


class _Exchange:
    """One request, from its headers to its log line."""

    def __init__(self, server: Server, scope: Scope, receive: Receive, send: Send) -> None:
        self._server, self._scope, self._receive, self._send = server, scope, receive, send
        self._headers, self._repeated = _by_name(scope["headers"])
        self._id: str = scope.get(REQUEST_ID) or _request_id(self._headers.get("x-request-id", ""))
        scope[REQUEST_ID] = self._id
        self._route: Route | None = None
        self._caller: Caller = ANONYMOUS
        self._noted = Noted()
        self._slow = False
        self._extra: tuple[tuple[str, str], ...] = ()

    async def run(self) -> None:
        started = time.perf_counter()
        status = CLIENT_LEFT
        self._server.metrics.running += 1
        tracer = self._server.tracer
        span = None if tracer is None else tracer.begin(self._scope["method"], self._headers)
        try:
            answer = await self._answer()
            status = answer.status
            await self._reply(answer)
        except ClientLeft:
            status = self._scope.get(REFUSED, CLIENT_LEFT)  # the protocol may have answered, as 408
        except OSError:
            status = CLIENT_LEFT  # gone while we wrote
        finally:
            self._server.metrics.running -= 1
            seconds = time.perf_counter() - started
            route = _UNKNOWN if self._route is None else self._route.name
            retries = self._headers.get("x-stainless-retry-count", "0")
            again = int(retries) if retries.isascii() and retries.isdigit() and len(retries) < 4 else 0
            self._server.metrics.request(route, status, seconds, self._noted, retries=again)
            if tracer is not None:
                tracer.end(span, method=self._scope["method"], route=route, status=status, noted=self._noted)
            logs.access(
                request_id=self._id,
                method=self._scope["method"],
                route=route,
                status=status,
                seconds=seconds,
                caller=self._caller.id,
                noted=self._noted,
            )

    async def _answer(self) -> Answer:
        """Return what the route answers, or the error object of what went wrong."""
        try:
            return await self._routed()
        except Refusal as refusal:
            return self._refused(refusal)
        except TimeoutError:
            return self._refused(_slow_body() if self._slow else late())
        except errors.Error as error:
            answer = refusal_of(error)
            if answer.status >= 500:
                log.warning("request %s: %s", self._id, error)
            return self._refused(answer)
        except ClientLeft:
            raise
        except Exception as error:  # told without its message, which may hold a text
            logs.event("failed", level=logging.ERROR, request_id=self._id, error=logs.told(error))
            return self._refused(Refusal(500, "the server had an error", type="server_error"))

    async def _routed(self) -> Answer:
        server, scope, headers = self._server, self._scope, self._headers
        # Our own protocol has refused these already; other ASGI servers pass them on.
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Refusal(400, "content-length and transfer-encoding exclude each other", close=True)
        if self._repeated is not None:
            raise Refusal(400, f"a request has at most one {self._repeated} header: send one of them")
        check_host(server.options, headers, version=scope.get("http_version", ""))
        method, path = scope["method"], scope["path"]
        self._extra = cors_headers(server.options, headers)
        if method == "OPTIONS" and "access-control-request-method" in headers:
            return preflight(server.options, headers)
        route, parts = server.table.find(method, path)
        self._route = route
        most = server.options.limits.request_seconds
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(begun + most) as timer:
            client = scope.get("client")
            address = client[0] if client else ""
            self._caller = await server.gate.check(headers, route.right, address=address)
            seconds = _timeout(headers, most)
            if seconds < most:
                timer.reschedule(begun + seconds)
            call = Call(
                server=server,
                method=method,
                path=path,
                headers=headers,
                query=_query(scope.get("query_string", b"")),
                parts=parts,
                caller=self._caller,
                request_id=self._id,
                deadline=begun + seconds,
                receive=self._receive,
                noted=self._noted,
                seconds=seconds,
                timer=timer,
            )
            return await self._handled(route, call)

    async def _handled(self, route: Route, call: Call) -> Answer:
        """Let the caller's limits decide before anything is read, then let the route answer."""
        counts = route.right is Right.EMBED
        with self._server.gate.rates.enter(call.caller.id) if counts else FREE as call.ticket:
            try:
                return await route.handler(call)
            except asyncio.CancelledError:
                self._slow = call.reading  # where the deadline was it, the client was late, not we
                raise
            finally:
                call.release()

    def _refused(self, refusal: Refusal) -> Answer:
        self._noted.code = refusal.code or ""
        azure = self._route is not None and self._route.azure
        return Answer(refusal.status, refusal.body(azure=azure), headers=refusal.headers, close=refusal.close)

    async def _reply(self, answer: Answer) -> None:
        body, size = answer.body, answer.size
        if isinstance(body, bytes):
            size = len(body)
        headers = [
            (b"x-request-id", self._id.encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in self._extra),
        ]
        if answer.status != NO_CONTENT:
            headers.append((b"content-type", answer.media_type.encode()))
            if size is not None:
                headers.append((b"content-length", b"%d" % size))
        if answer.close or self._server.draining:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if self._scope["method"] == "HEAD":
            body = b""
        if isinstance(body, bytes):
            await self._send({"type": "http.response.body", "body": body})
            return
        async for piece in body:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})


_ONCE = ("host", "authorization", "api-key")


def _by_name(pairs: Iterable[tuple[bytes, bytes]]) -> tuple[Mapping[str, str], str | None]:
    """Return headers by lower-case name, the first of each; and which was repeated that must not be."""
    found: dict[str, str] = {}
    repeated = None
    for raw, value in pairs:
        name = raw.decode("latin-1").lower()
        if name not in found:
            found[name] = value.decode("latin-1")
        elif name in _ONCE:
            repeated = name
    return found, repeated


def _slow_body() -> Refusal:
    return Refusal(408, "the body of the request did not arrive in time", close=True)


def _request_id(given: str) -> str:
    """Return the client's id where it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _query(raw: bytes) -> Mapping[str, str]:
    if not raw:
        return {}
    found: dict[str, str] = {}
    with suppress(ValueError):
        for name, value in parse_qsl(raw.decode("latin-1"), max_num_fields=32):
            found.setdefault(name, value)
    return found


def _timeout(headers: Mapping[str, str], most: float) -> float:
    """Return the seconds a request has: the client may ask for fewer than `most`."""
    given = headers.get("x-request-timeout-ms")
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and 0 < len(given) <= 9 and int(given) > 0):
        raise invalid("x-request-timeout-ms must be a whole number of milliseconds above 0")
    return min(int(given) / 1000, most)
