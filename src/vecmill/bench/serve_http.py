"""A lean HTTP/1.1 client for load: connections are kept and used again, nothing is read twice.

It does what a load client needs and no more: POST bodies made before the clock runs, replies by length, in
chunks or to the end of the connection. No proxy, no redirect, no cookies. One request costs this side a small
part of what it costs with a general client, so that the server is measured and not this process.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vecmill._version import __version__
from vecmill.core.errors import InputError


class Broken(Exception):  # noqa: N818 - an outcome that is counted, not a fault of this program
    """A request got no answer.

    Attributes:
        why: "connect", "timeout", "disconnected" or "bad_reply".
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: its status, its headers by lower-case name, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go.

    Attributes:
        host, port: To connect to. tls: whether by https.
        target: Path and query. shown: the Host header.
    """

    host: str
    port: int
    tls: bool
    target: str
    shown: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Take a URL apart.

        Raises:
            InputError: It is not http or https, has no host, or carries a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"the URL of the server is not one: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url!r} is no URL of a server: give http://HOST:PORT/v1/embeddings")
        if parts.username or parts.password:
            raise InputError("the URL carries a user or password: give the key by --api-key-env or a file")
        tls = parts.scheme == "https"
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        return cls(parts.hostname, port or (443 if tls else 80), tls, target, parts.netloc)


@dataclass(slots=True, eq=False)
class Pool:
    """Connections to one address; at most `connections`, the one used last is used next.

    Attributes:
        address: Where they go. headers: Of every request.
        connections: At most so many at once; a request beyond waits for one.
        timeout: Seconds a request has from the moment it gets a connection, connecting included.
        opened: Connections made so far. waited: requests that had to wait for one.
    """

    address: Address
    headers: Mapping[str, str]
    connections: int = 100
    timeout: float = 120.0
    ca_file: str | None = None
    opened: int = 0
    waited: int = 0
    _idle: list[_Connection] = field(default_factory=list)
    _busy: int = 0
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _head: bytes = b""
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        named = {
            "host": self.address.shown,
            "user-agent": f"vecmill-bench/{__version__}",
            "content-type": "application/json",
            "accept": "application/json",
            **{name.lower(): value for name, value in self.headers.items()},
        }
        for name, value in named.items():
            if not f"{name}{value}".isascii() or not value.isprintable():
                raise InputError(f"the header {name} has characters a header cannot have")
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self._head = f"POST {self.address.target} HTTP/1.1\r\n{lines}".encode("ascii")
        self._tls = ssl.create_default_context(cafile=self.ca_file) if self.address.tls else None

    def prepare(self, body: bytes) -> bytes:
        """Return the bytes of a request; making them costs no time while the clock runs."""
        return self._head + b"content-length: %d\r\n\r\n" % len(body) + body

    async def send(self, request: bytes) -> Answered:
        """Send a prepared request and return the answer.

        A kept connection that the server closed meanwhile is replaced once by a new one.

        Raises:
            Broken: There was no answer.
        """
        await self._turn()
        try:
            async with asyncio.timeout(self.timeout):
                return await self._exchange(request)
        except TimeoutError as error:
            raise Broken("timeout") from error
        finally:
            self._busy -= 1
            while self._waiting and self._busy < self.connections:
                following = self._waiting.popleft()
                if not following.done():
                    self._busy += 1
                    following.set_result(None)

    async def close(self) -> None:
        """Close what is kept open."""
        while self._idle:
            self._idle.pop().end()
        await asyncio.sleep(0)

    async def _turn(self) -> None:
        """Wait until there may be one connection more."""
        if self._busy < self.connections and not self._waiting:
            self._busy += 1
            return
        self.waited += 1
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    async def _exchange(self, request: bytes) -> Answered:
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else await self._connect()
            if connection.closed:
                continue
            try:
                answer = await connection.exchange(request)
            except Broken as broken:
                if kept and broken.why == "disconnected" and not connection.began:
                    continue
                raise
            finally:
                if connection.reusable:
                    self._idle.append(connection)
                else:
                    connection.end()
            return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        name = self.address.host if self._tls is not None else None
        try:
            _, connection = await loop.create_connection(
                _Connection, self.address.host, self.address.port, ssl=self._tls, server_hostname=name
            )
        except OSError as error:
            raise Broken("connect") from error
        self.opened += 1
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answered] | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str], int] | None = None  # status, headers, where the body begins
        self._keep = False
        self.closed = False

    @property
    def began(self) -> bool:
        """Whether bytes of the answer have come."""
        return bool(self._buffer)

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return not self.closed and self._keep and self._answer is None

    async def exchange(self, request: bytes) -> Answered:
        assert self._transport is not None  # noqa: S101 - it is connected
        self._buffer.clear()
        self._head = None
        self._keep = False
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._transport.write(request)
        return await answer

    def end(self) -> None:
        self._answer = None
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream's
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is None and self._head is not None and self._to_the_end():
            self._finish(bytes(self._buffer[self._head[2] :]))
        self._fail("disconnected")

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # bytes nobody asked for
            self.end()
            return
        self._buffer += data
        try:
            self._advance()
        except ValueError:
            self._fail("bad_reply")

    def _advance(self) -> None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > 65_536:
                    raise ValueError("endless headers")
                return
            self._head = _read_head(bytes(self._buffer[:end]), end + 4)
        status, headers, start = self._head
        if 100 <= status < 200:
            del self._buffer[:start]
            self._head = None
            self._advance()
            return
        self._keep = headers.get("connection", "").lower() != "close"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            if (body := _unchunked(self._buffer, start)) is not None:
                self._finish(body)
            return
        if self._to_the_end():
            self._keep = False
            return
        length = int(headers.get("content-length", "0"))
        if len(self._buffer) - start >= length:
            self._finish(bytes(self._buffer[start : start + length]))

    def _to_the_end(self) -> bool:
        """Whether the body ends where the connection does."""
        if self._head is None:
            return False
        status, headers, _ = self._head
        return status not in (204, 304) and not {"content-length", "transfer-encoding"} & headers.keys()

    def _finish(self, body: bytes) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done() and self._head is not None:
            answer.set_result(Answered(self._head[0], self._head[1], body))

    def _fail(self, why: str) -> None:
        answer, self._answer = self._answer, None
        self._keep = False
        if answer is not None and not answer.done():
            answer.set_exception(Broken(why))


def _read_head(head: bytes, start: int) -> tuple[int, dict[str, str], int]:
    """Read a status line and headers.

    Raises:
        ValueError: It is no HTTP.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(first[:20])
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return int(rest[:3]), headers, start


def _unchunked(buffer: bytearray, at: int) -> bytes | None:
    """Return the body of chunks from `at` on, or None while it is not whole.

    Raises:
        ValueError: A chunk's length is no number.
    """
    pieces: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(bytes(buffer[at:line]).partition(b";")[0], 16)
        at = line + 2
        if size == 0:
            return b"".join(pieces) if buffer.find(b"\r\n", at) >= 0 else None
        if len(buffer) < at + size + 2:
            return None
        pieces.append(bytes(buffer[at : at + size]))
        at += size + 2
