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
from vecmill.server.access import Gate, Right
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
    again: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    leaves: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, method: str = "POST", path: str = "/x") -> Exchange:
        every = [*self.headers.items(), *self.again.items()]
        given = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in every]
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
                await asyncio.sleep(self.pause)
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


@pytest.mark.parametrize("name", ["authorization", "api-key", "host"])
def test_a_header_that_says_who_asks_is_sent_once(app: App, name: str) -> None:
    given = {} if name == "host" else {name: "Bearer a"}
    done = run_virtual(Exchange(answering(app, fine), headers=given, again={name: "Bearer b"}).ask())
    assert done.status == 400
    assert name in done.error["message"]


def test_the_answer_to_a_preflight_says_nothing_of_a_body(app: App) -> None:
    headers = {"access-control-request-method": "POST"}
    done = run_virtual(Exchange(answering(app, fine), headers=headers).ask("OPTIONS"))
    assert (done.status, done.content) == (204, b"")
    assert not done.answered.keys() & {"content-type", "content-length"}


# Time


def test_the_answers_time_begins_when_the_body_is_complete(app: App) -> None:
    """The body takes 20 s, four times what the answer may; then the answer has its 5 s."""

    async def handler(call: Call) -> Answer:
        await call.body(100)
        left = call.deadline - asyncio.get_running_loop().time()
        assert left == pytest.approx(5.0, abs=0.01)
        await asyncio.sleep(4.9)
        return Answer(200, b"{}")

    done = run_virtual(Exchange(answering(app, handler), body=(b"a", b"b"), pause=10.0).ask())
    assert done.status == 200

    async def never(call: Call) -> Answer:
        await call.body(100)
        await asyncio.sleep(5.1)
        raise AssertionError

    done = run_virtual(Exchange(answering(app, never), body=(b"a", b"b"), pause=10.0).ask())
    assert done.status == 504


def test_a_body_without_end_is_the_clients_fault_and_bounded(app: App) -> None:
    async def go() -> tuple[Exchange, float]:
        done = await Exchange(answering(app, fine), body=(b"a", b"b"), pause=1000.0).ask()
        return done, asyncio.get_running_loop().time()

    async def timed() -> tuple[Exchange, float]:
        begun = asyncio.get_running_loop().time()
        done, end = await go()
        return done, end - begun

    done, took = run_virtual(timed())
    assert (done.status, done.answered["connection"]) == (408, "close")
    assert took == pytest.approx(60 + 5, abs=0.1)  # the body's time and the answer's


def test_a_gate_that_does_not_answer_is_bounded_too(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: object, *args: object, **more: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Gate, "check", never)
    assert run_virtual(Exchange(answering(app, fine)).ask()).status == 504


# Bodies


def test_bodies_together_are_bounded_and_small_ones_pass(tmp_path: Path) -> None:
    limits = Limits(max_bodies_bytes=300_000, request_seconds=5.0)
    app = create_app(Options(limits=limits), settings=Settings(tmp_path, tmp_path))

    async def size(call: Call) -> Answer:
        return Answer(200, b"%d" % len(await call.body(1 << 20)))

    answering(app, size)

    async def go() -> list[Exchange]:
        half = (b"x" * 100_000, b"x" * 100_000, b"")
        many = [asyncio.create_task(Exchange(app, body=half, pause=1.0).ask()) for _ in range(10)]
        await asyncio.sleep(2.5)
        assert 0 < app.server.bodies.held <= 300_000
        small = await Exchange(app, body=(b"x" * 60_000,)).ask()
        assert (small.status, small.content) == (200, b"60000")
        large = await Exchange(app, body=(b"x" * 200_000,)).ask()
        assert (large.status, large.error["code"]) == (429, "too_many_bodies")
        assert large.answered["connection"] == "close"
        assert int(large.answered["retry-after"]) >= 1
        return await asyncio.gather(*many)

    done = run_virtual(go())
    statuses = [one.status for one in done]
    assert statuses.count(200) >= 1
    assert set(statuses) == {200, 429}
    assert app.server.bodies.held == 0


@pytest.mark.parametrize("how", ["leaves", "late", "cancelled", "fails"])
def test_what_a_body_held_is_given_back_however_it_ends(app: App, how: str) -> None:
    async def handler(call: Call) -> Answer:
        await call.body(1 << 20)
        raise ValueError

    async def go() -> None:
        pieces = (b"x" * 200_000, b"") if how == "fails" else (b"x" * 200_000, b"x", b"")
        exchange = Exchange(answering(app, handler), body=pieces, pause=0.1 if how == "fails" else 40.0)
        if how == "leaves":
            exchange = Exchange(app, body=())
            given = [b"x" * 200_000]

            async def leave() -> dict[str, Any]:
                if given:
                    return {"type": "http.request", "body": given.pop(), "more_body": True}
                assert app.server.bodies.held > 0
                return {"type": "http.disconnect"}

            scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"host", b"127.0.0.1")]}
            await app(scope, leave, _nothing)
            return
        task = asyncio.create_task(exchange.ask())
        if how == "cancelled":
            await asyncio.sleep(41)
            assert app.server.bodies.held > 0
            task.cancel()
        await asyncio.wait([task])

    run_virtual(go())
    assert app.server.bodies.held == 0


async def _nothing(message: Any) -> None:
    raise AssertionError(message)


# Limits of a key


def test_a_caller_above_its_limits_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    limits = Limits(key_requests_per_minute=2, key_concurrency=1)
    app = create_app(Options(limits=limits), settings=Settings(tmp_path, tmp_path))
    read: list[int] = []

    async def handler(call: Call) -> Answer:
        read.append(len(await call.body(100)))
        return Answer(200, b"{}", headers=call.ticket.take(1))

    app.server.table = Table([Route("POST", "/x", handler, Right.EMBED, "x")])

    async def go() -> list[Exchange]:
        slow = asyncio.create_task(Exchange(app, body=(b"a",), pause=1.0).ask())
        await asyncio.sleep(0.5)
        beside = await Exchange(app, body=(b"a",)).ask()
        first = await slow
        second = await Exchange(app, body=(b"a",)).ask()
        third = await Exchange(app, body=(b"a",)).ask()
        return [beside, first, second, third]

    beside, first, second, third = run_virtual(go())
    assert [one.status for one in (beside, first, second, third)] == [429, 200, 200, 429]
    assert "at once" in beside.error["message"]
    assert first.answered["x-ratelimit-remaining-requests"] == "1"
    assert "requests a minute" in third.error["message"]
    assert len(read) == 2, "a refused body was read"
