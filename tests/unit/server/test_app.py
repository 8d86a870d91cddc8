"""What every request goes through, whatever its route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import CorruptFileError, InputError
from vecmill.server.access import Right
from vecmill.server.app import App, create_app
from vecmill.server.call import Answer, Call, ClientLeft
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits, Options
from vecmill.server.routing import Route, Table
from vecmill.testing.clock import run_virtual


@dataclass(slots=True)
class Exchange:
    """One request given to the application by hand, and what it sent."""

    app: App
    body: Sequence[bytes] = (b"",)
    headers: dict[str, str] = field(default_factory=dict)
    leaves: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, method: str = "POST", path: str = "/x") -> Exchange:
        given = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in self.headers.items()]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"host", b"127.0.0.1"), *given],
            "query_string": b"",
            "client": ("127.0.0.1", 1),
        }
        waiting = list(self.body)

        async def receive() -> dict[str, Any]:
            if waiting:
                chunk = waiting.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}
            if not self.leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.sent.append(dict(message))

        await self.app(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def answered(self) -> dict[str, str]:
        return {n.decode(): v.decode() for n, v in self.sent[0]["headers"]}

    @property
    def content(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.content)["error"]
        return found


@pytest.fixture
def app(tmp_path: Path) -> App:
    limits = Limits(request_seconds=5.0, max_body_bytes=100)
    return create_app(Options(limits=limits), settings=Settings(tmp_path, tmp_path))


def answering(app: App, handler: Any) -> App:
    app.server.table = Table([Route("POST", "/x", handler, Right.OPEN, "x")])
    return app


async def fine(call: Call) -> Answer:
    return Answer(200, await call.body(100))


@pytest.mark.parametrize("given", ["abc-1.2_3", "x" * 128])
def test_a_harmless_request_id_comes_back(app: App, given: str) -> None:
    done = run_virtual(Exchange(answering(app, fine), headers={"x-request-id": given}).ask())
    assert done.answered["x-request-id"] == given


@pytest.mark.parametrize("given", ["a b", "a\r\nset-cookie: x", "ü", "", "x" * 129])
def test_any_other_request_id_is_replaced(app: App, given: str) -> None:
    done = run_virtual(Exchange(answering(app, fine), headers={"x-request-id": given}).ask())
    assert done.answered["x-request-id"] != given
    assert done.answered["x-request-id"].startswith("req-")


def test_a_body_in_pieces_is_put_together(app: App) -> None:
    done = run_virtual(Exchange(answering(app, fine), body=(b"one ", b"", b"two")).ask())
    assert (done.status, done.content) == (200, b"one two")
    assert done.answered["content-length"] == "7"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ((b"x" * 60, b"x" * 60), {}),
        ((b"",), {"content-length": "101"}),
        ((b"",), {"content-length": "9" * 30}),
    ],
    ids=["counted", "declared", "absurd"],
)
def test_a_body_above_the_limit_is_413(app: App, body: Sequence[bytes], headers: dict[str, str]) -> None:
    done = run_virtual(Exchange(answering(app, fine), body=body, headers=headers).ask())
    assert (done.status, done.error["code"]) == (413, "content_too_large")
    assert done.answered["connection"] == "close"


def test_length_and_chunks_together_are_refused(app: App) -> None:
    headers = {"content-length": "3", "transfer-encoding": "chunked"}
    done = run_virtual(Exchange(answering(app, fine), headers=headers).ask())
    assert (done.status, done.answered["connection"]) == (400, "close")


@pytest.mark.parametrize(("asked", "seconds"), [(None, 5.0), ("1500", 1.5), ("999999999", 5.0)])
def test_a_request_ends_at_its_deadline(app: App, asked: str | None, seconds: float) -> None:
    async def never(call: Call) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async def go() -> tuple[Exchange, float]:
        headers = {} if asked is None else {"x-request-timeout-ms": asked}
        begun = asyncio.get_running_loop().time()
        done = await Exchange(answering(app, never), headers=headers).ask()
        return done, asyncio.get_running_loop().time() - begun

    done, took = run_virtual(go())
    assert (done.status, done.error["code"]) == (504, "deadline_exceeded")
    assert took == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "soon", "\xb2", "9" * 12])
def test_a_deadline_that_is_no_number_is_refused(app: App, asked: str) -> None:
    async def handler(call: Call) -> Answer:
        raise AssertionError

    headers = {"x-request-timeout-ms": asked}
    assert run_virtual(Exchange(answering(app, handler), headers=headers).ask()).status == 400


def test_a_client_that_left_gets_nothing(app: App) -> None:
    async def handler(call: Call) -> Answer:
        await call.body(100)
        await call.left()
        raise ClientLeft

    assert run_virtual(Exchange(answering(app, handler), leaves=True).ask()).sent == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("the input is odd"), 400),
        (CorruptFileError("/secret/folder is damaged"), 500),
        (RuntimeError("a text nobody may see"), 500),
        (Refusal(418, "no"), 418),
    ],
)
def test_an_error_becomes_an_error_object(
    app: App, error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(call: Call) -> Answer:
        raise error

    with caplog.at_level(logging.CRITICAL):
        done = run_virtual(Exchange(answering(app, handler)).ask())
    assert done.status == status
    assert set(done.error) == {"message", "type", "param", "code"}
    assert "secret" not in done.error["message"]
    assert "nobody" not in done.error["message"]


def test_pieces_are_sent_as_they_are_made(app: App) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def handler(call: Call) -> Answer:
        return Answer(200, pieces(), size=6)

    done = run_virtual(Exchange(answering(app, handler)).ask())
    assert [message["body"] for message in done.sent[1:]] == [b"one", b"two", b""]
    assert done.answered["content-length"] == "6"


def test_a_server_that_stops_closes_its_connections(app: App) -> None:
    answering(app, fine).server.draining = True
    assert run_virtual(Exchange(app).ask()).answered["connection"] == "close"
    assert not app.server.ready


def test_an_unknown_path_is_an_error_object(app: App) -> None:
    done = run_virtual(Exchange(answering(app, fine)).ask(path="/nothing"))
    assert (done.status, done.error["type"]) == (404, "invalid_request_error")
