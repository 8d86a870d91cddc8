from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vecmill.bench.serve_http import Address, Answered, Broken, Pool
from vecmill.core.errors import InputError
from vecmill.testing.clock import run_virtual

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


def exchanged(
    serve: Serve, requests: int = 1, *, at_once: bool = False, **options: Any
) -> tuple[list[Answered | str], Pool]:
    """Send requests to a server that `serve` plays (with the number of the connection), in virtual time."""

    async def work() -> tuple[list[Answered | str], Pool]:
        number = 0

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal number
            number += 1
            try:
                await serve(reader, writer, number)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool(Address.of(f"http://127.0.0.1:{port}/v1/embeddings?x=1"), {}, **options)

        async def one() -> Answered | str:
            try:
                return await pool.send(pool.prepare(b"{}"))
            except Broken as broken:
                return broken.why

        if at_once:
            found = list(await asyncio.gather(*(one() for _ in range(requests))))
        else:
            found = [await one() for _ in range(requests)]
        await pool.close()
        server.close()
        await asyncio.sleep(1.0)
        return found, pool

    return run_virtual(work())


async def asked(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(2)
    return head


def replying(*pieces: bytes) -> Serve:
    """Answer every request with these pieces, a moment between them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await asked(reader)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Y: z\r\n\r\nhello"


def test_one_connection_serves_requests_that_follow_each_other() -> None:
    found, pool = exchanged(replying(OK), 5)
    assert found == [Answered(200, {"content-length": "5", "x-y": "z"}, b"hello")] * 5
    assert pool.opened == 1


def test_an_answer_in_single_bytes_is_put_together() -> None:
    found, _ = exchanged(replying(*(OK[i : i + 1] for i in range(len(OK)))), 2)
    assert [one.body for one in found if isinstance(one, Answered)] == [b"hello"] * 2


def test_chunks_are_put_together_and_the_connection_is_kept() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    found, pool = exchanged(replying(head + b"5;x=y\r\nhel", b"lo\r\n1\r\n!\r\n0\r\n", b"\r\n"), 2)
    assert [one.body for one in found if isinstance(one, Answered)] == [b"hello!"] * 2
    assert pool.opened == 1


def test_a_body_without_length_ends_with_its_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await asyncio.sleep(0.1)
        writer.write(b"lo")

    found, pool = exchanged(serve, 2)
    assert [one.body for one in found if isinstance(one, Answered)] == [b"hello"] * 2
    assert pool.opened == 2


def test_an_interim_answer_is_passed_over() -> None:
    found, _ = exchanged(replying(b"HTTP/1.1 100 Continue\r\n\r\n" + OK))
    assert [one.body for one in found if isinstance(one, Answered)] == [b"hello"]


def test_connection_close_is_obeyed() -> None:
    found, pool = exchanged(replying(OK.replace(b"X-Y: z", b"Connection: close")), 3)
    assert all(isinstance(one, Answered) for one in found)
    assert pool.opened == 3


def test_a_kept_connection_the_server_closed_is_replaced() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await asked(reader)
        writer.write(OK)
        await reader.readexactly(1)  # the next request begins: gone without a word

    found, pool = exchanged(serve, 3)
    assert all(isinstance(one, Answered) for one in found)
    assert pool.opened == 3


def test_a_connection_lost_within_an_answer_is_an_error_and_nothing_is_sent_twice() -> None:
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal seen
        await asked(reader)
        seen += 1
        writer.write(OK[:-2])
        await writer.drain()

    found, _ = exchanged(serve, 1)
    assert found == ["disconnected"]
    assert seen == 1


def test_a_silent_server_is_a_timeout_and_its_connection_is_not_used_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await asked(reader)
        if number == 1:
            await asyncio.sleep(60.0)
        writer.write(OK)
        await asyncio.sleep(1.0)

    found, pool = exchanged(serve, 2, timeout=5.0)
    assert found[0] == "timeout"
    assert isinstance(found[1], Answered)
    assert pool.opened == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 xx\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_http_is_a_bad_reply(answer: bytes) -> None:
    found, _ = exchanged(replying(answer))
    assert found == ["bad_reply"]


def test_no_more_connections_than_allowed_are_open_and_the_others_wait() -> None:
    busy, most = 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal busy, most
        while True:
            await asked(reader)
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(1.0)
            busy -= 1
            writer.write(OK)

    found, pool = exchanged(serve, 10, at_once=True, connections=3)
    assert all(isinstance(one, Answered) for one in found)
    assert (most, pool.opened, pool.waited) == (3, 3, 7)


def test_the_request_is_what_http_asks_for() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        heads.append(await asked(reader))
        writer.write(OK)
        await asyncio.sleep(1.0)

    exchanged(serve)
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/embeddings?x=1 HTTP/1.1"
    assert lines[1].startswith("host: 127.0.0.1:")
    assert "content-type: application/json" in lines
    assert "content-length: 2" in lines


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "ümlaut", "a\0"])
def test_a_header_that_would_break_out_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="characters a header cannot have"):
        Pool(Address.of("http://127.0.0.1/"), {"authorization": value})


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x/", "http://", "http://h:port/"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Address.of(url)


def test_addresses_are_taken_apart() -> None:
    assert Address.of("https://h.example/a/b?c=d") == Address("h.example", 443, True, "/a/b?c=d", "h.example")
    assert Address.of("http://[::1]:81") == Address("::1", 81, False, "/", "[::1]:81")
