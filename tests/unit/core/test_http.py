"""One HTTP exchange, against real servers and proxies on this machine."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import ssl
import traceback
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from aiohttp import web

from vecmill.core import http, http_replies
from vecmill.core.errors import (
    BadReplyError,
    ConfigError,
    Error,
    InputError,
    ProviderError,
    StorageError,
    UnavailableError,
)
from vecmill.core.http import FileForm, Response, Session, shared_session
from vecmill.testing.clock import run_virtual
from vecmill.testing.simulator import simulator_thread

KEY = "sk-planted-key-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve on a free port and give the origin."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"{'https' if tls else 'http'}://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(answer: bytes, *, read: bool = True) -> AsyncIterator[str]:
    """Answer every connection with the same bytes and close it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if read:
            await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Proxy:
    """A forward proxy: CONNECT and absolute addresses. It notes the head of every request it gets."""

    def __init__(self, *, refuse: bytes = b"") -> None:
        self.heads: list[str] = []
        self.refuse = refuse
        self.url = ""

    async def __aenter__(self) -> Proxy:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            if self.refuse:
                writer.write(self.refuse)
                await writer.drain()
                return
            method, target, _ = head.decode().split(" ", 2)
            place = target if method == "CONNECT" else target.split("/")[2]
            there, back = await asyncio.open_connection("127.0.0.1", int(place.rpartition(":")[2]))
            writers.append(back)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                back.write(head.replace(f"http://{place}".encode(), b"", 1))
            with suppress(asyncio.CancelledError):  # the end of the test
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            for each in writers:
                each.close()
                with suppress(OSError):
                    await each.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


async def ask(url: str, session: Session | None = None, **options: Any) -> Response:
    """Post once, with the key, and close the session if it is our own."""
    mine = session is None
    session = session or Session()
    options = {"headers": HEADERS, "timeout": 20.0, "body": b"{}", **options}
    try:
        return await session.request(options.pop("method", "POST"), url, **options)
    finally:
        if mine:
            await session.close()


async def failing(url: str, session: Session | None = None, **options: Any) -> Error:
    """Return what a request fails with, after looking for the key in all that it shows."""
    with pytest.raises(Error) as caught:
        await ask(url, session, **options)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    shown += repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert KEY not in shown
    return caught.value


async def echo(request: web.Request) -> web.Response:
    names = {name.lower(): value for name, value in request.headers.items()}
    body = (await request.read()).decode()
    return web.json_response(
        {"method": request.method, "path": request.path_qs, "headers": names, "body": body}
    )


def json_of(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.body)
    return found


# Plain exchanges.


def test_sends_what_it_is_given_and_returns_what_came() -> None:
    async def main() -> None:
        async with serving(echo) as origin:
            got = await ask(f"{origin}/v1/embeddings?api-version=1", body=b'{"input":"a"}')
        said = json_of(got)
        assert (got.status, said["method"], said["path"]) == (200, "POST", "/v1/embeddings?api-version=1")
        assert said["body"] == '{"input":"a"}'
        assert said["headers"]["authorization"] == f"Bearer {KEY}"
        assert said["headers"]["accept-encoding"] == "identity"
        assert said["headers"]["user-agent"].startswith("vecmill/")
        assert got.headers["CONTENT-TYPE"] == got.headers["content-type"]

    asyncio.run(main())


def test_status_of_a_refusal_is_returned_with_its_body() -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=429, text="slow down", headers={"Retry-After": "3"})

    async def main() -> Response:
        async with serving(refuse) as origin:
            return await ask(origin)

    got = asyncio.run(main())
    assert (got.status, got.body, got.headers["retry-after"]) == (429, b"slow down", "3")


def test_connection_is_kept_between_requests() -> None:
    seen: set[object] = set()

    async def note(request: web.Request) -> web.Response:
        seen.add(request.transport)
        return web.Response()

    async def main() -> None:
        async with serving(note) as origin:
            session = Session()
            for _ in range(3):
                await ask(origin, session)
            await session.close()

    asyncio.run(main())
    assert len(seen) == 1


def test_session_works_on_one_loop_after_another_and_leaves_nothing_open() -> None:
    session = Session()

    async def main(*, last: bool) -> int:
        async with serving(echo) as origin:
            statuses = [(await ask(origin, session)).status for _ in range(2)]
            assert len(session._clients) == 1
            if last:
                await session.close()
            return sum(statuses)

    assert [asyncio.run(main(last=last)) for last in (False, False, True)] == [400, 400, 400]
    gc.collect()  # an open connection would warn now
    assert not session._clients


def test_end_of_a_loop_closes_connections_nobody_closed() -> None:
    session = Session()
    with simulator_thread() as simulator:  # its end of the connection stays open
        for _ in range(2):
            answer = asyncio.run(ask(f"{simulator.url}/models", session, method="GET", body=None))
            assert answer.status == 401
            gc.collect()  # an open connection would warn now, and warnings are errors
    asyncio.run(session.close())
    assert not session._clients


def test_session_works_on_two_loops_at_once() -> None:
    session = Session()

    async def main() -> None:
        async with serving(echo) as origin:
            there = asyncio.to_thread(lambda: asyncio.run(ask(origin, session)))
            assert [found.status for found in await asyncio.gather(ask(origin, session), there)] == [200, 200]
            await session.close()

    asyncio.run(main())


def test_session_of_a_loop_that_was_just_closed_is_let_go() -> None:
    session = Session()

    async def main() -> None:
        async with serving(echo) as origin:
            await ask(origin, session)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    first = next(iter(session._clients.values())).session
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # nobody gave its sockets a chance to be closed
        asyncio.run(main())
        assert first.closed
        del first, loop
        gc.collect()
    asyncio.run(session.close())


def test_large_body_is_sent_whole() -> None:
    async def main() -> int:
        async def length(request: web.Request) -> web.Response:
            assert request.headers["Content-Length"] == str(3_000_000)
            return web.Response(text=str(len(await request.read())))

        async with serving(length) as origin:
            return int((await ask(origin, body=b"x" * 3_000_000)).body)

    assert asyncio.run(main()) == 3_000_000


def test_form_sends_fields_and_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a":1}\n' * 100_000)
    got: dict[str, Any] = {}

    async def take(request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        got.update(purpose=form["purpose"], name=file.filename, kind=file.content_type, data=file.file.read())
        file.file.close()
        return web.Response()

    async def main() -> None:
        async with serving(take) as origin:
            form = FileForm(path, {"purpose": "batch"}, filename="up.jsonl", content_type="application/jsonl")
            await ask(origin, body=None, form=form)

    asyncio.run(main())
    assert got.pop("data") == path.read_bytes()
    assert got == {"purpose": "batch", "name": "up.jsonl", "kind": "application/jsonl"}


def test_missing_file_of_a_form_is_named(tmp_path: Path) -> None:
    async def main() -> Error:
        return await failing("http://127.0.0.1:1/", body=None, form=FileForm(tmp_path / "gone.jsonl"))

    error = asyncio.run(main())
    assert isinstance(error, StorageError)
    assert "gone.jsonl" in str(error)


def test_reply_goes_to_a_file_and_replaces_it_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")

    async def main() -> Response:
        async def much(request: web.Request) -> web.Response:
            return web.Response(body=b"line\n" * 200_000)

        async with serving(much) as origin:
            return await ask(origin, method="GET", body=None, to=path)

    got = asyncio.run(main())
    assert got.body == b""
    assert path.read_bytes() == b"line\n" * 200_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_cut_short_reply_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")

    async def main() -> Error:
        async with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf") as origin:
            return await failing(origin, to=path)

    error = asyncio.run(main())
    assert isinstance(error, UnavailableError)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_refusal_does_not_go_to_the_file(tmp_path: Path) -> None:
    async def main() -> Response:
        async def missing(request: web.Request) -> web.Response:
            return web.Response(status=404, text="no such file")

        async with serving(missing) as origin:
            return await ask(origin, to=tmp_path / "out")

    assert asyncio.run(main()).body == b"no such file"
    assert not (tmp_path / "out").exists()


# Bounds.


def test_announced_large_reply_is_refused_before_it_is_read() -> None:
    async def main() -> Error:
        async with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n") as origin:
            return await failing(origin)

    error = asyncio.run(main())
    assert isinstance(error, BadReplyError)
    assert "268,435,456 bytes" in str(error)


def test_unannounced_large_reply_is_bounded() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 200_000_000:
            await response.write(b"x" * 100_000)
            sent += 100_000
        return response

    async def main() -> Error:
        async with serving(endless) as origin:
            return await failing(origin, max_bytes=1_000_000)

    assert isinstance(asyncio.run(main()), BadReplyError)
    assert sent < 100_000_000


def bomb(size: int) -> bytes:
    return gzip.compress(b"0" * size, 9)


def packed(body: bytes, encoding: str) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    return answer


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_reply_is_unpacked_though_nobody_asked(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    async def main() -> Response:
        async with serving(packed(pack(b"hello " * 100), encoding)) as origin:
            return await ask(origin)

    assert asyncio.run(main()).body == b"hello " * 100


class CountingUnpacker:
    """A zlib object that counts what it gives out."""

    given = 0

    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits=wbits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._object, name)

    def decompress(self, *arguments: Any) -> bytes:
        found = self._object.decompress(*arguments)
        CountingUnpacker.given += len(found)
        return found


def test_packed_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        http_replies, "zlib", SimpleNamespace(decompressobj=CountingUnpacker, error=zlib.error)
    )

    async def main() -> Error:
        async with serving(packed(bomb(50_000_000), "gzip")) as origin:
            return await failing(origin, max_bytes=1_000_000)

    assert isinstance(asyncio.run(main()), BadReplyError)
    assert 0 < CountingUnpacker.given <= 1_000_001


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(b"x" * 99)[:-9], "gzip"),
        (gzip.compress(b"{}") + b"more", "gzip"),
        (gzip.compress(b"{}") + b"x" * 3_000_000, "gzip"),  # zlib would keep it all
        (gzip.compress(b"{}") * 2, "gzip"),  # the second half would be lost
        (b"no", "gzip"),
        (b"", "br"),
    ],
)
def test_broken_packing_is_a_bad_reply(body: bytes, encoding: str) -> None:
    async def main() -> Error:
        async with serving(packed(body, encoding)) as origin:
            return await failing(origin)

    assert isinstance(asyncio.run(main()), BadReplyError)


def test_slow_body_ends_at_the_timeout_of_the_whole_exchange() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(1)

    async def main() -> tuple[Error, float]:
        async with serving(drip) as origin:
            origin = origin.replace("localhost", "127.0.0.1")
            start = asyncio.get_running_loop().time()
            error = await failing(origin, timeout=60.0)
            return error, asyncio.get_running_loop().time() - start

    error, seconds = run_virtual(main())
    assert isinstance(error, UnavailableError)
    assert (error.code, error.retryable) == ("timeout", True)
    assert "60 seconds" in str(error)
    assert 60 <= seconds < 61


# What goes wrong on the way.


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", "truncated"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not_http"),
    ],
)
def test_broken_answer_may_be_tried_again(answer: bytes, code: str) -> None:
    async def main() -> Error:
        async with raw_server(answer) as origin:
            return await failing(f"{origin}/v1/embeddings?sig=secret")

    error = asyncio.run(main())
    assert isinstance(error, UnavailableError)
    assert (error.code, error.retryable) == (code, True)
    assert "127.0.0.1" in str(error)
    assert "secret" not in str(error)


def test_failed_post_is_not_sent_again() -> None:
    connections = 0

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            for number in range(2):
                await reader.readuntil(b"{}")
                if number == 0:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            session = Session()
            await ask(origin, session)
            await failing(origin, session)
            await session.close()

    asyncio.run(main())
    assert connections == 1


def test_refused_connection_is_said_for_people() -> None:
    async def main() -> Error:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return await failing(f"http://127.0.0.1:{port}/v1")

    error = asyncio.run(main())
    assert isinstance(error, UnavailableError)
    assert (error.code, error.retryable) == ("refused", True)
    assert "nothing listens there" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_unknown_host_is_said_for_people() -> None:
    error = asyncio.run(failing("http://no-such-host.invalid/v1"))
    assert isinstance(error, UnavailableError)
    assert (error.code, error.retryable) == ("dns", True)
    assert "no-such-host.invalid" in str(error)


def test_key_with_a_line_break_is_refused_and_not_shown() -> None:
    async def main() -> Error:
        async with serving(echo) as origin:
            return await failing(origin, headers={"Authorization": f"Bearer {KEY}\n"})

    assert isinstance(asyncio.run(main()), ConfigError)


@pytest.mark.parametrize("url", ["ftp://host/", "localhost:80/v1", "/v1", "https://"])
def test_what_is_no_address_is_a_setting_to_mend(url: str) -> None:
    assert isinstance(asyncio.run(failing(url)), ConfigError)


# Redirects.


def redirecting(status: int, target: str) -> Handler:
    async def move(request: web.Request) -> web.Response:
        if request.path == "/there":
            return await echo(request)
        return web.Response(status=status, headers={"Location": target})

    return move


@pytest.mark.parametrize("status", [307, 308])
def test_redirect_within_the_origin_is_followed_with_body_and_key(status: int) -> None:
    async def main() -> dict[str, Any]:
        async with serving(redirecting(status, "/there?x=1")) as origin:
            return json_of(await ask(f"{origin}/here", body=b"texts"))

    said = asyncio.run(main())
    assert (said["method"], said["path"], said["body"]) == ("POST", "/there?x=1", "texts")
    assert said["headers"]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("target", ["http://[bad", "https://u:planted@evil.example:99999/", "mailto:a@b"])
def test_redirect_to_what_is_no_address_is_the_provider_s_mistake(target: str) -> None:
    async def main() -> Error:
        async with serving(redirecting(307, target)) as origin:
            return await failing(f"{origin}/here")

    error = asyncio.run(main())
    assert isinstance(error, ProviderError)
    assert error.code == "redirect"
    assert "planted" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("proxy", ["http://u:planted@[bad", "http://u:planted@h:99999", "http://", "h:port"])
def test_proxy_that_is_no_address_is_said_without_its_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)

    async def main() -> Error:
        return await failing("http://mill.example/v1")

    error = asyncio.run(main())
    assert isinstance(error, ConfigError)
    assert "proxy set for http is no address" in str(error)
    assert "planted" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_redirect_to_another_origin_is_not_followed(status: int, method: str) -> None:
    reached = 0

    async def other(request: web.Request) -> web.Response:
        nonlocal reached
        reached += 1
        return web.Response()

    async def main() -> tuple[Error, str]:
        async with serving(other) as elsewhere, serving(redirecting(status, f"{elsewhere}/x?t=1")) as origin:
            return await failing(f"{origin}/here", method=method, body=None), elsewhere

    error, elsewhere = asyncio.run(main())
    assert isinstance(error, ProviderError)
    assert not error.retryable
    assert f"{elsewhere}/x" in str(error)
    assert "no key" in str(error)
    assert "t=1" not in str(error)
    assert reached == 0


def test_redirect_from_https_to_http_is_another_origin(tls: tuple[ssl.SSLContext, Path]) -> None:
    async def main() -> Error:
        async with serving(redirecting(308, "http://localhost/there"), tls[0]) as origin:
            session = Session(ca_file=tls[1])
            try:
                return await failing(origin, session)
            finally:
                await session.close()

    assert "no key" in str(asyncio.run(main()))


@pytest.mark.parametrize("status", [301, 302, 303])
def test_redirect_that_would_drop_the_body_is_not_followed(status: int) -> None:
    async def main() -> Error:
        async with serving(redirecting(status, "/there")) as origin:
            return await failing(f"{origin}/here")

    assert "moved to" in str(asyncio.run(main()))


def test_redirect_in_a_circle_ends() -> None:
    hits = 0

    async def circle(request: web.Request) -> web.Response:
        nonlocal hits
        hits += 1
        return web.Response(status=307, headers={"Location": "/again"})

    async def main() -> Error:
        async with serving(circle) as origin:
            return await failing(origin)

    assert isinstance(asyncio.run(main()), ProviderError)
    assert hits == 4


# Certificates.


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's context for localhost, and the file of the authority that signed it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return context, path


async def ask_tls(tls: ssl.SSLContext, ca_file: Path | None, *, host: str = "localhost") -> Response | Error:
    async with serving(echo, tls) as origin:
        session = Session(ca_file=ca_file)
        try:
            return await ask(origin.replace("localhost", host), session)
        except Error as error:
            return error
        finally:
            await session.close()


def test_own_authority_is_trusted_when_named(tls: tuple[ssl.SSLContext, Path]) -> None:
    got = asyncio.run(ask_tls(*tls))
    assert isinstance(got, Response)


def test_unknown_authority_is_refused_for_good(tls: tuple[ssl.SSLContext, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    for ca_file in (None, other):
        error = asyncio.run(ask_tls(tls[0], ca_file))
        assert isinstance(error, ConfigError)
        assert "VECMILL_CA_FILE" in str(error)


def test_certificate_of_another_host_is_refused(tls: tuple[ssl.SSLContext, Path]) -> None:
    error = asyncio.run(ask_tls(*tls, host="127.0.0.1"))
    assert isinstance(error, ConfigError)
    assert "127.0.0.1" in str(error)


def test_system_variable_names_an_authority(
    tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
    assert isinstance(asyncio.run(ask_tls(tls[0], None)), Response)


def test_system_authorities_stay_trusted_beside_ones_own(tls: tuple[ssl.SSLContext, Path]) -> None:
    with_own = len(http._tls_context(tls[1]).get_ca_certs())
    assert with_own == len(http._tls_context(None).get_ca_certs()) + 1


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_file_without_certificates_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem.*VECMILL_CA_FILE"):
        http._tls_context(path)


def test_plain_server_behind_https_is_named() -> None:
    async def main() -> Error:
        async with serving(echo) as origin:
            return await failing(origin.replace("http:", "https:"))

    error = asyncio.run(main())
    assert isinstance(error, ConfigError)
    assert "http://" in str(error)


# Proxies.


def test_plain_request_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[list[str], dict[str, Any]]:
        async with serving(echo) as origin, Proxy() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:pass%20word@"))
            said = json_of(await ask(f"{origin}/v1"))
            return proxy.heads, said

    heads, said = asyncio.run(main())
    assert len(heads) == 1
    assert heads[0].startswith("POST http://localhost:")
    assert "Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in heads[0]
    assert said["headers"]["authorization"] == f"Bearer {KEY}"


def test_a_session_looks_for_the_proxy_of_a_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def found(url: Any) -> tuple[None, None]:
        asked.append(str(url))
        return None, None

    async def main() -> None:
        async with serving(echo) as origin, serving(echo) as other:
            session = http.Session()
            for url in (f"{origin}/v1", f"{origin}/v2", f"{other}/v1"):
                await session.request("POST", url, headers={}, body=b"{}", timeout=5)
            await session.close()

    monkeypatch.setattr(http, "_proxy", found)
    asyncio.run(main())
    assert len(asked) == 2


def test_tls_goes_through_a_tunnel_and_the_proxy_sees_no_key(
    tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> list[str]:
        async with Proxy() as proxy:
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:secret@"))
            assert isinstance(await ask_tls(*tls), Response)
            return proxy.heads

    heads = asyncio.run(main())
    assert len(heads) == 1
    assert heads[0].startswith("CONNECT localhost:")
    assert "Proxy-Authorization: Basic" in heads[0]
    assert KEY not in heads[0]


def test_certificate_is_checked_behind_a_proxy_too(
    tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> Response | Error:
        async with Proxy() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            return await ask_tls(tls[0], None)

    assert isinstance(asyncio.run(main()), ConfigError)


@pytest.mark.parametrize(
    ("excepted", "used"), [("localhost", 0), ("*", 0), ("example.com,localhost", 0), ("ocalhost", 1)]
)
def test_no_proxy_excepts_hosts(excepted: str, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[str]:
        async with serving(echo) as origin, Proxy() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", excepted)
            await ask(origin)
            return proxy.heads

    assert len(asyncio.run(main())) == used


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [(407, ProviderError, False), (403, UnavailableError, False), (502, UnavailableError, True)],
)
def test_proxy_that_refuses_is_named(
    status: int,
    kind: type[ProviderError],
    retryable: bool,
    tls: tuple[ssl.SSLContext, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> Response | Error:
        async with Proxy(refuse=f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:hush@"))
            return await ask_tls(*tls)

    error = asyncio.run(main())
    assert type(error) is kind
    assert error.retryable is retryable
    assert "hush" not in str(error) + repr(error.__cause__) + repr(error.__context__)


def test_proxy_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:hush@127.0.0.1:1")
    error = asyncio.run(failing("http://example.invalid/v1"))
    assert isinstance(error, UnavailableError)
    assert "proxy 127.0.0.1:1" in str(error)
    assert "hush" not in str(error)


def test_proxy_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hush@127.0.0.1:1")
    error = asyncio.run(failing("http://example.invalid/v1"))
    assert isinstance(error, ConfigError)
    assert "socks5" in str(error)
    assert "hush" not in str(error)


def test_cookies_are_not_kept() -> None:
    async def main() -> dict[str, Any]:
        async def set_cookie(request: web.Request) -> web.Response:
            response = await echo(request)
            response.set_cookie("a", "b")
            return response

        async with serving(set_cookie) as origin:
            session = Session()
            await ask(origin, session)
            said = json_of(await ask(origin, session))
            await session.close()
            return said

    assert "cookie" not in asyncio.run(main())["headers"]


# Sharing.


def test_shared_session_is_closed_by_its_last_user() -> None:
    async def main() -> None:
        first, second = shared_session(), shared_session()
        assert first is second
        async with serving(echo) as origin:
            await first.close()
            assert (await ask(origin, second)).status == 200
            await second.close()
            with pytest.raises(InputError, match="closed"):
                await ask(origin, second)
        third = shared_session()
        assert third is not second
        await third.close()

    asyncio.run(main())


def test_sessions_of_other_certificates_are_others(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = shared_session(), shared_session(tmp_path / "ca.pem")
        assert first is not second
        await first.close()
        await second.close()

    asyncio.run(main())
