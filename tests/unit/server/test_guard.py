from __future__ import annotations

import logging
import runpy
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vecmill.server.app import create_app
from vecmill.server.options import Limits, Options
from vecmill.server.run import served_in_thread

raw = runpy.run_path(str(Path(__file__).with_name("raw_http.py")))
Raw, Sizes, QUICK = raw["Raw"], raw["Sizes"], raw["QUICK"]


class Place:
    """A server and its application."""

    def __init__(self, app: Any, origin: str) -> None:
        self.app = app
        self.origin = origin

    def refused(self) -> dict[str, int]:
        return dict(self.app.server.metrics.refusals())


@pytest.fixture
def quick() -> Iterator[Place]:
    yield from _served(QUICK)


@pytest.fixture
def calm() -> Iterator[Place]:
    yield from _served(Limits(drain_seconds=5.0))


def _served(limits: Limits) -> Iterator[Place]:
    app = Sizes(limits=limits)
    with served_in_thread(app) as origin:
        yield Place(app, origin)


def _is_refusal(reply: Any, status: int) -> bool:
    error = reply.error
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["type"] == ("server_error" if status == 503 else "invalid_request_error")
    assert reply.headers["x-request-id"].startswith("req-")
    assert reply.headers["connection"] == "close"
    return bool(reply.status == status)


# Too slow


def test_connection_that_sends_nothing_is_closed(quick: Place) -> None:
    with Raw(quick.origin) as client:
        assert client.ended()


@pytest.mark.parametrize("begin", [b"GET /x HT", b"GET /x HTTP/1.1\r\nhost: a\r\nx-a: b"])
def test_headers_that_do_not_end_are_answered_408(quick: Place, begin: bytes) -> None:
    with Raw(quick.origin) as client:
        client.send(begin)
        assert _is_refusal(client.reply(), 408)
        assert client.ended()
    assert quick.refused() == {"slow_headers": 1}


def test_header_bytes_that_keep_dripping_do_not_move_the_deadline(quick: Place) -> None:
    with Raw(quick.origin) as client:
        client.send(b"GET /x HTTP/1.1\r\nhost: a\r\nx-a: ")
        dripping = threading.Thread(target=lambda: _drip(client, b"b"))
        dripping.start()
        assert _is_refusal(client.reply(), 408)
        dripping.join()


def _drip(client: Any, byte: bytes) -> None:
    client.sock.settimeout(20)
    pause = threading.Event()
    while client.send(byte) and not pause.wait(0.02):
        pass


def test_body_that_stops_is_answered_408_and_the_application_learns_it(quick: Place) -> None:
    with Raw(quick.origin) as client:
        client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc")
        assert _is_refusal(client.reply(), 408)
        assert client.ended()
    _until(lambda: quick.app.left == 1)
    assert quick.refused() == {"slow_body": 1}


@pytest.mark.parametrize(
    "body", [b"content-length: 9\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\nzz\r\n"]
)
def test_answer_in_the_applications_place_has_the_id_its_log_line_has(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vecmill.server")
    with (
        served_in_thread(create_app(Options(models=(), limits=QUICK))) as origin,
        Raw(origin) as client,
    ):
        client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n" + body)
        given = client.reply().headers["x-request-id"]
    said = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [line["request_id"] for line in said] == [given]


def test_body_that_keeps_dripping_ends_at_the_total_deadline(quick: Place) -> None:
    with Raw(quick.origin) as client:
        client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
        dripping = threading.Thread(target=lambda: _drip(client, b"b"))
        dripping.start()
        assert _is_refusal(client.reply(), 408)
        dripping.join()


def test_idle_connection_is_closed_without_a_word(quick: Place) -> None:
    with Raw(quick.origin) as client:
        client.get()
        assert client.reply().status == 200
        assert client.ended()
    assert quick.refused() == {}


def test_client_that_never_reads_is_cut_off() -> None:
    app = Sizes(limits=replace(QUICK, body_seconds=60.0))
    with served_in_thread(app) as origin, Raw(origin, buffer=4096) as client:
        client.get("/big")
        _until(lambda: app.server.metrics.refusals() == {"slow_reader": 1})
        with pytest.raises((EOFError, ConnectionResetError)):
            client.reply()


def test_client_that_reads_slowly_but_steadily_gets_everything() -> None:
    app = Sizes(limits=replace(QUICK, body_seconds=60.0), big=4 << 20)
    with served_in_thread(app) as origin, Raw(origin, buffer=4096) as client:
        client.get("/big")
        got = 0
        pause = threading.Event()
        while got < app.big:
            some = len(client.sock.recv(1 << 18))
            assert some
            got += some
            pause.wait(0.005)
        assert app.server.metrics.refusals() == {}


def _until(holds: Any) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if holds():
            return
        pause.wait(0.01)
    pytest.fail("it never became true")


# Too much


def test_long_request_line_is_answered_431(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(b"GET /" + b"a" * 9000)
        assert _is_refusal(client.reply(), 431)


def test_header_of_five_megabytes_is_answered_431_before_it_is_there(calm: Place) -> None:
    with Raw(calm.origin) as client:
        sender = threading.Thread(
            target=lambda: client.send(b"GET /x HTTP/1.1\r\nhost: a\r\nx-a: " + b"b" * (5 << 20))
        )
        sender.start()
        assert _is_refusal(client.reply(), 431)
        sender.join()
    assert calm.app.seen == []


def test_client_that_sends_all_before_it_reads_still_gets_the_refusal(calm: Place) -> None:
    with Raw(calm.origin) as client:
        assert client.send(b"GET /x HTTP/1.1\r\nhost: a\r\nx-a: " + b"b" * (5 << 20))
        assert _is_refusal(client.reply(), 431)


@pytest.mark.parametrize(
    "headers",
    [
        b"x-a: b\r\n" * 10_000,
        b"x-a: b\r\n" * 101,
        b"x-a: " + b"b" * 8200 + b"\r\n",
        b"".join(b"x-%d: " % i + b"b" * 4000 + b"\r\n" for i in range(9)),
    ],
    ids=["ten thousand", "one too many", "one too long", "together too long"],
)
def test_too_many_or_too_long_headers_are_answered_431(calm: Place, headers: bytes) -> None:
    with Raw(calm.origin) as client:
        client.send(b"GET /x HTTP/1.1\r\nhost: a\r\n" + headers + b"\r\n")
        assert _is_refusal(client.reply(), 431)
    assert calm.app.seen == []


def test_headers_just_within_the_limits_are_taken(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.get("/" + "a" * 8000, *(f"x-{i}: {'b' * 7000}" for i in range(4)), *(["x-a: b"] * 95))
        assert client.reply().status == 200


def test_headers_arriving_byte_by_byte_are_read(calm: Place) -> None:
    with Raw(calm.origin) as client:
        for byte in b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc":
            client.send(bytes([byte]))
        assert client.reply().body == b"3"


def test_body_longer_than_headers_may_be_is_read_in_one_piece(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.post(b"z" * 3_000_000)
        assert client.reply().body == b"3000000"
        client.post(b"z" * 100)
        assert client.reply().body == b"100"


def test_chunks_that_are_all_wrapping_are_refused(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        client.send(b"1;" + b"e" * 200_000)
        assert _is_refusal(client.reply(), 400)


def test_trailers_without_end_are_refused_and_say_nothing(calm: Place) -> None:
    chunked = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    with Raw(calm.origin) as client:
        client.send(chunked + b"authorization: Bearer x\r\n\r\n")
        assert client.reply().body == b"3"
        assert b"authorization" not in calm.app.names
        client.send(chunked + b"x: " + b"y" * 200_000)
        assert client.reply().status == 400


def test_body_nobody_reads_is_skipped_up_to_the_limit() -> None:
    app = Sizes(limits=Limits(max_body_bytes=200_000, body_idle_seconds=60.0))
    with served_in_thread(app) as origin:
        with Raw(origin) as client:
            client.post(b"z" * 150_000, path="/early")
            assert client.reply().body == b"0"
            client.get()
            assert client.reply().status == 200  # the same connection
        with Raw(origin) as client:
            client.send(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n")
            assert client.reply().status == 200
            client.send(b"z" * 900_000)
            assert client.ended()


def test_requests_sent_ahead_are_answered_in_order_up_to_a_bound(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(
            b"".join(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nz" for _ in range(200))
        )
        statuses = []
        while True:
            reply = client.reply()
            statuses.append(reply.status)
            if reply.status != 200:
                break
        assert 1 <= len(statuses) - 1 <= 18
        assert _is_refusal(reply, 400)
        assert client.ended()


# Two ways to read it


SMUGGLING = [
    b"content-length: 4\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ncontent-length: 4",
    b"content-length: 4\r\ncontent-length: 5",
    b"content-length: 4\r\ncontent-length: 4",
    b"content-length: -1",
    b"content-length: +4",
    b"content-length: 0x4",
    b"content-length: 4, 4",
    b"content-length: 99999999999999999999999",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: identity",
    b"transfer-encoding: xchunked",
    b"transfer-encoding : chunked",
    b"x-a: b\r\n transfer-encoding: chunked",
    b"x-a: b\x00c",
    b"x-a: b\rc",
    b"x-a: b\nno colon here",
    b"x a: b",
    b": b",
    b"host: b",
]


@pytest.mark.parametrize("header", SMUGGLING)
def test_request_two_servers_may_read_differently_is_answered_400(calm: Place, header: bytes) -> None:
    with Raw(calm.origin) as client:
        client.send(
            b"POST /x HTTP/1.1\r\nhost: a\r\n" + header + b"\r\n\r\n0\r\n\r\nGET /inside HTTP/1.1\r\n\r\n"
        )
        assert _is_refusal(client.reply(), 400)
        assert client.ended()
    assert calm.app.seen == []


@pytest.mark.parametrize("size", [b"-1", b"0x3", b"ffffffffffffffffff", b"3 ", b"", b"z"])
def test_bad_size_of_a_chunk_is_answered_400(calm: Place, size: bytes) -> None:
    with Raw(calm.origin) as client:
        client.send(
            b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            + size
            + b"\r\nabc\r\n0\r\n\r\n"
        )
        assert _is_refusal(client.reply(), 400)


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
        (bytes(range(256)), 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /x\r\n\r\n", 505),
        (b"GET /x HTTP/0.9\r\nhost: a\r\n\r\n", 505),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /x HTTP/9.9\r\nhost: a\r\n\r\n", 400),
        (b"get /x HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"NONSENSE /x HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("GET /ä HTTP/1.1\r\nhost: a\r\n\r\n".encode(), 400),
    ],
)
def test_garbage_is_answered_with_an_error_object(calm: Place, garbage: bytes, status: int) -> None:
    with Raw(calm.origin) as client:
        client.send(garbage)
        assert _is_refusal(client.reply(), status)
        assert client.ended()
    assert calm.app.seen == []


def test_garbage_after_a_request_does_not_cost_its_answer(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n\x00\x01\x02")
        assert client.reply().status == 200
        assert _is_refusal(client.reply(), 400)
        assert client.ended()


@pytest.mark.parametrize("pause", [False, True], ids=["in one piece", "in pieces"])
def test_offer_of_another_protocol_costs_neither_body_nor_connection(calm: Place, pause: bool) -> None:
    offer = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
    with Raw(calm.origin) as client:
        for framing, body in (
            ("content-length: 3", "abc"),
            ("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"),
        ):
            request = f"POST /x HTTP/1.1\r\nhost: a\r\n{offer}{framing}\r\n\r\n{body}".encode()
            for piece in [bytes([byte]) for byte in request] if pause else [request]:
                client.send(piece)
            assert client.reply().body == b"3"
        client.get("/x", "connection: upgrade", "upgrade: websocket")
        assert client.reply().body == b"0"
        client.post(b"z" * 100_000, "connection: upgrade", "upgrade: h2c")
        assert client.reply().body == b"100000"
        client.post(b"ab")
        assert client.reply().body == b"2"


def test_http_1_0_is_answered_and_closed(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(b"POST /x HTTP/1.0\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc")
        assert client.reply().body == b"3"
        assert client.ended()


def test_refused_expectation_never_reads_the_body_as_a_request() -> None:
    app = Sizes(limits=Limits(body_idle_seconds=60.0))
    with served_in_thread(app) as origin, Raw(origin) as client:
        client.send(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 30\r\nexpect: 100-continue\r\n\r\n")
        assert client.reply().status == 200
        assert client.ended()


def test_half_closed_client_counts_as_gone(calm: Place) -> None:
    with Raw(calm.origin) as client:
        client.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.ended()
    _until(lambda: calm.app.left == 1)


# Too many


def test_connections_beyond_the_bound_of_an_address_are_told_and_closed() -> None:
    app = Sizes(limits=Limits(max_connections_per_address=4))
    with served_in_thread(app) as origin:
        kept = [Raw(origin) for _ in range(4)]
        for client in kept:
            client.get()
            assert client.reply().status == 200
        with Raw(origin) as client:
            reply = client.reply()
            assert _is_refusal(reply, 503)
            assert reply.error["code"] == "too_many_connections"
            assert reply.headers["retry-after"] == "1"
            assert client.ended()
        for client in kept:
            client.get()
            assert client.reply().status == 200
        kept.pop().sock.close()
        _until(lambda: app.server.metrics.connections <= 3)
        with Raw(origin) as client:
            client.get()
            assert client.reply().status == 200
        for client in kept:
            client.sock.close()


def test_flood_of_connections_leaves_a_good_client_its_answers() -> None:
    app = Sizes(limits=Limits(max_connections=16))
    with served_in_thread(app) as origin, Raw(origin) as good:
        good.get()
        assert good.reply().status == 200
        flood = [Raw(origin) for _ in range(400)]
        for _ in range(50):
            good.get()
            assert good.reply().status == 200
        _until(lambda: app.server.metrics.refusals()["connections"] == 385)
        for client in flood:
            client.sock.close()
        _until(lambda: app.server.metrics.connections == 1)


def test_what_was_refused_adds_up_in_the_metrics(calm: Place) -> None:
    for _ in range(3):
        with Raw(calm.origin) as client:
            client.send(b"\x00\r\n\r\n")
            assert client.reply().status == 400
    text = calm.app.server.metrics.render().decode()
    assert 'vecmill_refused_total{reason="malformed"} 3.0' in text
    assert 'vecmill_requests_total{model="",route="unknown",status="400"} 3.0' in text
