"""The HTTP protocol: deadlines and bounds of everything a client sends before and around a request.

What is counted here is counted as it arrives, so nothing a client sends can grow in memory. One sweep per
server looks at all connections a few times a second: a deadline costs a request nothing but a number.
"""

from __future__ import annotations

import asyncio
import http
import math
import secrets
import struct
import sys
from enum import IntEnum
from typing import Any, ClassVar

from vecmill.core.extras import require
from vecmill.server import logs
from vecmill.server.call import Noted
from vecmill.server.door import GRACE_SECONDS, MAX_LINGERING, REFUSED, REQUEST_ID, Door, whose
from vecmill.server.errors import SERVER, Refusal
from vecmill.server.options import MIB, Limits

if sys.platform == "linux":
    import fcntl
    import termios

require("uvicorn", extra="serve")
require("httptools", extra="serve")

import httptools  # noqa: E402 - after the words for who lacks it
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402

MAX_PIPELINE = 16
"""Requests of one connection that may wait for the one before them."""

LINGER_SECONDS = 2.0
"""How long a refused client may go on sending, so that it reads the refusal before the connection breaks."""


class Phase(IntEnum):
    """What a connection's next byte belongs to."""

    FRESH = 0
    HEADER = 1
    BODY = 2
    DONE = 3
    DEAF = 4
    ENDED = 5


class Problem(Exception):  # noqa: N818 - an answer
    """What is wrong with a request as it was sent."""

    def __init__(self, status: int, message: str, reason: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.code = code


class _Transport:
    """A transport whose end is the guard's to decide; writing goes straight through."""

    __slots__ = ("_guard", "is_closing", "write")

    def __init__(self, real: asyncio.Transport, guard: Guard) -> None:
        self._guard = guard
        self.write = real.write
        self.is_closing = guard.is_closing

    def close(self) -> None:
        self._guard.end()


class Guard(HttpToolsProtocol):
    """One connection. `guarded` makes the class for a server.

    Attributes:
        door: What connections of a server share.
        due: The loop's time by which the client must have sent something.
        write_due: The loop's time by which it must have read something.
    """

    door: ClassVar[Door]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.due = math.inf
        self.write_due = math.inf
        self._phase = Phase.FRESH
        self._address = ""
        self._seen = 0  # bytes of a header not complete yet
        self._messages = 0
        self._header_bytes = 0
        self._hosts = 0
        self._coding: bytes | None = None
        self._sized = False
        self._raw = 0  # bytes since the headers ended
        self._body = 0  # of these, bytes of the body
        self._since = 0.0
        self._buffered = 0
        self._write_since = 0.0
        self._problem: Problem | None = None
        self._last: bytes | None = None  # said after the answers that are still due
        self._offered = False  # another protocol, by the client
        self._muted = False  # the parser is told what is known already
        self._over = False
        self._lost = False
        self._counted = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or say that there are too many."""
        super().connection_made(transport)
        self._real = transport
        self.transport = _Transport(transport, self)  # type: ignore[assignment]
        limits = self.door.limits
        self._address = whose(self.client[0]) if self.client else ""
        self.due = self.loop.time() + (GRACE_SECONDS if self.door.stopping else limits.header_seconds)
        if reason := self.door.enter(self, self._address):
            self._turn_away(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._lost = True
        self.door.leave(self, self._address)
        if self._counted:
            self.door.lingering -= 1
        super().connection_lost(exc)

    def is_closing(self) -> bool:
        """Say whether nothing more is to be answered here."""
        return self._over or self._lost or self._real.is_closing()

    def abort(self) -> None:
        """Break the connection; what was not sent is lost."""
        self._over = True
        self._phase = Phase.ENDED
        self._real.abort()

    def end(self) -> None:
        """Close once everything is written; a client that is still sending may finish its sentence first."""
        if self._over or self._lost:
            return
        self._over = True
        sending = self._phase in {Phase.HEADER, Phase.BODY, Phase.DEAF}
        self._phase = Phase.ENDED
        limits = self.door.limits
        now = self.loop.time()
        if not sending:
            self.due = now + limits.body_idle_seconds
            self._buffered = self._unread()
            self._real.close()
            return
        self.due = now + min(LINGER_SECONDS, limits.body_idle_seconds)
        self.flow.resume_reading()
        if self._real.can_write_eof():
            self._real.write_eof()

    def shutdown(self) -> None:
        """End with the answer that is due; a silent connection is given a moment."""
        if self._idle():
            self.due = min(self.due, self.loop.time() + GRACE_SECONDS)
        elif self.cycle is not None and not self.pipeline and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._phase in {Phase.FRESH, Phase.DONE}

    def _turn_away(self, reason: str) -> None:
        door = self.door
        door.metrics.refused(reason)
        self.connections.discard(self)
        if door.lingering >= MAX_LINGERING:
            self.abort()
            return
        door.lingering += 1
        self._counted = True
        problem = Problem(503, _MANY[reason], reason, code="too_many_connections")
        self._real.write(_answer(problem, _new_id()))
        self._phase = Phase.DEAF
        self.end()

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Read what came, no more of a header than is allowed."""
        before = self._phase
        if before >= Phase.DEAF:
            return
        if before == Phase.BODY:
            self._raw += len(data)
            self._feed(data)
        else:
            limits = self.door.limits
            seen = self._seen if before == Phase.HEADER else 0
            room = limits.max_line_bytes + limits.max_header_bytes - seen
            rest = data[room:]
            messages = self._messages
            self._feed(data[:room] if rest else data)
            if self._phase == Phase.HEADER:
                fresh = self._messages - messages
                self._seen = seen + len(data) if fresh <= 1 else 0
                if rest and fresh <= 1:
                    self._refuse(_headers_too_large(limits))
                    return
            if rest:
                self.data_received(rest)
                return
        if self._phase == Phase.BODY:
            self._tally()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            problem = self._problem
            self._refuse(problem or Problem(400, "the request is not valid HTTP/1.1", "malformed"))

    def _stay(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 with a client that offered another protocol; its parser takes that for the end.

        Java's HTTP client offers HTTP/2 with every request. A new parser is told the size of the body.
        """
        self._offered = False
        self._muted = True
        self.parser = httptools.HttpRequestParser(self)
        sized = next((value for name, value in self.headers if name == b"content-length"), b"0")
        framing = b"content-length: " + sized if self._coding is None else b"transfer-encoding: chunked"
        self._feed(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n" + rest)

    def _tally(self) -> None:
        """Set the body's deadline; stop bodies that are all wrapping, or that nobody will read."""
        limits = self.door.limits
        if self._raw - self._body > limits.max_header_bytes + self._body:
            self._refuse(Problem(400, "the chunks of the body are too small", "chunks"))
            return
        if self.cycle.response_complete and self._body > limits.max_body_bytes:
            self.end()
            return
        most = self._since + limits.body_seconds + limits.body_seconds_per_mib * (self._body / MIB)
        self.due = min(self.loop.time() + limits.body_idle_seconds, most)

    def on_message_begin(self) -> None:
        """Start the header's deadline."""
        if self._muted:
            return
        super().on_message_begin()
        self._phase = Phase.HEADER
        self._messages += 1
        self._header_bytes = 0
        self._hosts = 0
        self._coding = None
        self._sized = False
        self._since = self.loop.time()
        self.due = self._since + self.door.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        """Bound the request line."""
        if self._muted:
            return
        super().on_url(url)
        most = self.door.limits.max_line_bytes
        if len(self.url) > most:
            self._stop(Problem(431, f"the request line is longer than {most} bytes", "line"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound headers; those after a chunked body say nothing here."""
        if self._phase != Phase.HEADER:
            return
        limits = self.door.limits
        size = len(name) + len(value) + 4
        self._header_bytes += size
        name = name.lower()
        self.headers.append((name, value))
        if (
            size > limits.max_line_bytes
            or self._header_bytes > limits.max_header_bytes
            or len(self.headers) > limits.max_headers
        ):
            self._stop(_headers_too_large(limits))
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self._sized = True
        elif name == b"transfer-encoding":
            self._coding = value if self._coding is None else b"more than one"
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Refuse what two servers might read as two different requests, then start the application."""
        if self._muted:
            self._muted = False
            return
        version = self.parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._stop(Problem(505, "this server speaks HTTP/1.1", "version"))
        if self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            self._stop(Problem(400, "a request has exactly one Host header", "host"))
        coding = self._coding
        if coding is not None:
            if self._sized:
                message = "content-length and transfer-encoding exclude each other"
                self._stop(Problem(400, message, "smuggling"))
            if version == "1.0" or coding.strip().lower() != b"chunked":
                self._stop(Problem(400, "transfer-encoding may only be chunked", "smuggling"))
        if len(self.pipeline) >= MAX_PIPELINE:
            message = f"more than {MAX_PIPELINE} requests were sent before the first was answered"
            self._stop(Problem(400, message, "pipeline"))
        super().on_headers_complete()
        self._phase = Phase.BODY
        self._raw = self._body = 0
        self._since = self.loop.time()
        self.due = self._since + self.door.limits.body_idle_seconds
        self._offered = self.parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        """Count the body."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the answer, or for the next request."""
        if self._offered:
            return  # see `_stay`
        super().on_message_complete()
        self._phase = Phase.DONE
        self.due = math.inf
        if self.cycle.response_complete and not self.pipeline:
            self._rest()

    def _stop(self, problem: Problem) -> None:
        """Leave the parser; `_feed` answers."""
        self._problem = problem
        raise problem

    # What is answered

    def on_response_complete(self) -> None:
        """Wait for the next request without a timer of its own, or start the one that waits."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self._last is not None:
            self._real.write(self._last)
            self.end()
            return
        if self.is_closing():
            return
        self.flow.resume_reading()
        if self._phase == Phase.DONE:
            self._rest()
        elif self._phase == Phase.BODY and self.expect_100_continue:
            self.end()  # nobody knows whether the body will come

    def _rest(self) -> None:
        door = self.door
        idle = GRACE_SECONDS if door.stopping else door.limits.keep_alive_seconds
        self.due = self.loop.time() + idle

    def _refuse(self, problem: Problem) -> None:
        """Answer what cannot be a request, after the answers that are still due."""
        own = self._phase == Phase.BODY  # the request is with the application, or waits for it
        if own and self.pipeline:
            self.pipeline.popleft()
            own = False
            busy = True
        else:
            busy = self.cycle is not None and not self.cycle.response_complete and not own
        self.door.metrics.refused(problem.reason)
        self._phase = Phase.DEAF
        self.due = math.inf
        if own:
            self._take_back(problem)
            return
        request_id = _new_id()
        self._note(problem, request_id)
        answer = _answer(problem, request_id)
        if busy:
            self._last = answer
            return
        self._real.write(answer)
        self.end()

    def _take_back(self, problem: Problem) -> None:
        """Answer a request in the application's place, which learns that nobody waits any more."""
        cycle = self.cycle
        request_id: str = self.scope.setdefault(REQUEST_ID, _new_id())  # type: ignore[misc]
        self.scope[REFUSED] = problem.status  # type: ignore[literal-required]
        whole, begun = cycle.response_complete, cycle.response_started
        cycle.disconnected = True
        cycle.message_event.set()
        if begun and not whole:
            self.abort()
            return
        if not begun:
            self._real.write(_answer(problem, request_id))
        self.end()

    def _note(self, problem: Problem, request_id: str) -> None:
        noted = Noted(code=problem.code or problem.reason)
        seconds = self.loop.time() - self._since if self._messages else 0.0
        self.door.metrics.request("unknown", problem.status, seconds, noted)
        logs.access(
            request_id=request_id,
            method="",
            route="unknown",
            status=problem.status,
            seconds=seconds,
            caller="",
            noted=noted,
        )

    # What is late

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._buffered = self._unread()
        self._write_since = self.loop.time()
        self.write_due = self._write_since + self.door.limits.body_idle_seconds

    def resume_writing(self) -> None:
        """Note that it has read."""
        super().resume_writing()
        self.write_due = math.inf

    def late(self, now: float) -> None:
        """End or break a connection one of whose deadlines has passed."""
        if self.write_due <= now:
            self._slow_reader(now)
        if self.due > now or self._lost:
            return
        if self._over:
            self._last_bytes(now)
        elif self.write_due < math.inf:
            self.due = now + self.door.limits.body_idle_seconds  # it still reads the last answer
        elif self._phase in {Phase.FRESH, Phase.DONE}:
            self.end()
        elif self.flow.read_paused:
            self.due = now + self.door.limits.body_idle_seconds  # we are the ones who wait
        elif self._phase == Phase.HEADER:
            self._refuse(Problem(408, "the headers of the request did not arrive in time", "slow_headers"))
        else:
            self._refuse(Problem(408, "the body of the request did not arrive in time", "slow_body"))

    def _last_bytes(self, now: float) -> None:
        size = self._unread()
        if size >= self._buffered:
            self.abort()
            return
        self._buffered = size
        self.due = now + self.door.limits.body_idle_seconds

    def _slow_reader(self, now: float) -> None:
        limits = self.door.limits
        size = self._unread()
        most = limits.body_seconds + limits.body_seconds_per_mib * (self._buffered / MIB)
        if size >= self._buffered or now - self._write_since > most:
            self.door.metrics.refused("slow_reader")
            self.abort()
            return
        self._buffered = size
        self.write_due = now + limits.body_idle_seconds

    def _unread(self) -> int:
        """Return the bytes the client has not taken: here, and in the system's queue where it tells."""
        size = self._real.get_write_buffer_size()
        inside = self._real.get_extra_info("socket")
        if sys.platform == "linux" and inside is not None and inside.fileno() >= 0:
            size += struct.unpack("i", fcntl.ioctl(inside.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return size


def guarded(door: Door) -> type[Guard]:
    """Return the protocol of a server's connections."""
    return type("Guard", (Guard,), {"door": door})


def _headers_too_large(limits: Limits) -> Problem:
    message = (
        f"the headers are too large: at most {limits.max_headers} of them, {limits.max_line_bytes} bytes "
        f"each, {limits.max_header_bytes} bytes together"
    )
    return Problem(431, message, "headers")


_MANY = {
    "connections": "this server has too many connections: come back later",
    "connections_per_address": "too many connections from this address: keep fewer of them open",
}


def _new_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def _answer(problem: Problem, request_id: str) -> bytes:
    """Return a whole answer as bytes: the error object, and the end of the connection."""
    status = problem.status
    refusal = Refusal(status, problem.message, code=problem.code)
    if status >= 500 and status != 505:
        refusal.type = SERVER
    body = refusal.body()
    again = "retry-after: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\n{again}connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
