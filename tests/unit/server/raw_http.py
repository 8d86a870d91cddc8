"""A client that sends any bytes, and an application that says how many it got; run with `runpy`."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from vecmill.server.app import App, create_app
from vecmill.server.call import Receive, Scope, Send
from vecmill.server.options import Limits, Options

QUICK = Limits(
    header_seconds=0.3,
    body_idle_seconds=0.3,
    body_seconds=1.0,
    body_seconds_per_mib=0.1,
    keep_alive_seconds=0.4,
    drain_notice_seconds=0.0,
    drain_seconds=5.0,
)
"""Deadlines that pass while a test waits for what they cause."""

PATIENT = 20.0
"""Seconds after which a client gives a server up: never reached where the server does its work."""


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.body)["error"]
        return found


class Raw:
    """One connection."""

    def __init__(self, origin: str, *, buffer: int | None = None) -> None:
        parts = urlsplit(origin)
        self.host = parts.netloc
        self.sock = socket.socket()
        if buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(PATIENT)
        self.sock.connect((parts.hostname or "", parts.port or 0))
        self._read = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *gone: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> bool:
        """Send, and say whether the other side still took it."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def post(self, body: bytes, *headers: str, path: str = "/v1/embeddings") -> bool:
        lines = [f"POST {path} HTTP/1.1", f"host: {self.host}", f"content-length: {len(body)}", *headers]
        return self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def get(self, path: str = "/x", *headers: str) -> bool:
        lines = [f"GET {path} HTTP/1.1", f"host: {self.host}", *headers]
        return self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    def reply(self) -> Reply:
        """Read one answer."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.partition(": ") for line in lines if line]
        headers = {name.lower(): value for name, _, value in pairs}
        size = int(headers.get("content-length", "0"))
        while len(self._read) < size:
            self._more()
        body, self._read = self._read[:size], self._read[size:]
        return Reply(int(first.split()[1]), headers, body)

    def ended(self) -> bool:
        """Wait for the end, and say whether nothing came before it."""
        try:
            return self._read == b"" and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        head, _, self._read = self._read.partition(mark)
        return head

    def _more(self) -> None:
        some = self.sock.recv(65536)
        if not some:
            raise EOFError("the server closed before a whole answer came")
        self._read += some


@dataclass(eq=False)
class Sizes(App):
    """Answers with the size of the body; "/big" with megabytes, "/early" before the body came."""

    limits: Limits = field(default_factory=Limits)
    seen: list[str] = field(default_factory=list)
    names: set[bytes] = field(default_factory=set)
    left: int = 0
    big: int = 8 << 20

    def __post_init__(self) -> None:
        self.server = create_app(Options(models=(), limits=self.limits)).server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["path"])
        size = 0
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        self.names.update(name for name, _ in scope["headers"])
        body = b"x" * self.big if scope["path"] == "/big" else b"%d" % size
        headers = [(b"content-length", b"%d" % len(body))]
        if self.server.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
