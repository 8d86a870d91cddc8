"""One HTTP exchange: proxy, certificates, bounds in time and bytes, and no key to another origin.

Nothing here knows models or retries. A `Session` may be made anywhere, without an event loop; it opens its
connections when it is first used, for each event loop its own. Proxies come from HTTPS_PROXY, HTTP_PROXY,
ALL_PROXY and NO_PROXY, read at a session's first request to a host. Certificates are always checked: against
the system's, SSL_CERT_FILE and `ca_file`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import ssl
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from vecmill._version import __version__
from vecmill.core import durable
from vecmill.core.errors import (
    BadReplyError,
    ConfigError,
    Error,
    InputError,
    ProviderError,
    StorageError,
    UnavailableError,
)

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

T = TypeVar("T")

MAX_BYTES = 256 * 1024 * 1024
"""Bytes of a reply at most, unpacked, unless the caller says otherwise."""

NOTHING_SENT = frozenset({"refused", "dns", "proxy", "tls", "unreachable", "connect_timeout"})
"""Codes of an `UnavailableError` after which the other side cannot have seen the request."""

_READ_BUFFER = 2**20
"""Bytes read ahead of us. With 64 KiB a reply of 500 KB costs twice the CPU: reading stops and starts."""

_CONNECT_SECONDS = 30.0
_KEEPALIVE_SECONDS = 30.0
_MAX_REDIRECTS = 3
_WARNED_ABOVE = 2**20
"""aiohttp warns of larger bodies given as bytes; a file in memory is sent piece by piece."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. `headers` finds names in any case; `body` is empty where it went to a file."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class FileForm:
    """A form (multipart/form-data) with one file, which is read piece by piece while it is sent.

    Attributes:
        path: The file.
        fields: Further fields, before the file.
        name: The file's field.
        filename: What the other side is told the file is called; None: its own name.
        content_type: What the other side is told the file is.
    """

    path: Path
    fields: Mapping[str, str] = field(default_factory=dict)
    name: str = "file"
    filename: str | None = None
    content_type: str = "application/octet-stream"


class Session:
    """Connections that are kept between requests, one set for each event loop.

    No cookies, no netrc. Made with `shared_session` it is one of many users' and is closed by the last one.
    """

    def __init__(self, *, ca_file: Path | None = None) -> None:
        """Prepare a session; nothing is opened yet.

        Args:
            ca_file: Certificates (PEM) trusted beside the system's.
        """
        self.ca_file = ca_file
        self.users = 1
        self._clients: dict[asyncio.AbstractEventLoop, _Client] = {}
        self._context: ssl.SSLContext | None = None
        self._proxies: dict[tuple[str, str | None, int | None], tuple[URL | None, str | None]] = {}
        self._lock = threading.Lock()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        form: FileForm | None = None,
        timeout: float,
        max_bytes: int = MAX_BYTES,
        to: Path | None = None,
    ) -> Response:
        """Send one request and read the whole answer, whatever its status.

        A redirect is followed where it stays at the same origin and keeps the method (307, 308; any of GET),
        at most three times. Nothing is ever sent twice otherwise.

        Args:
            method: "POST", "GET" and so on.
            url: Where to, query string included.
            headers: Sent as they are; they may hold secrets, which show up nowhere.
            body: What is sent, for all but forms.
            form: A file to send.
            timeout: Seconds for everything together.
            max_bytes: Bytes the answer may have, unpacked.
            to: Write a successful answer (2xx) to this file, which is replaced when it is whole.

        Raises:
            UnavailableError: No connection, no whole answer, or not in time; `code` says which.
            ConfigError: The certificate is not trusted, or address or headers cannot be used.
            ProviderError: It redirects to somewhere else, or the proxy refuses.
            BadReplyError: The answer is larger than `max_bytes`, or packed in a way nobody asked for.
            StorageError: The form's file cannot be read, or `to` not be written.
        """
        import aiohttp
        from yarl import URL

        if self.users < 1:
            raise InputError("the session is closed: open another")
        target = URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise ConfigError(
                f"{_place(target)} is no address of a server: it begins with https:// or http://"
            )
        failure: Error
        cause: OSError | None = None
        try:
            async with asyncio.timeout(timeout):
                for _ in range(_MAX_REDIRECTS + 1):
                    found = await self._once(method, target, headers, body, form, max_bytes, to)
                    if isinstance(found, Response):
                        return found
                    target = found
            failure = ProviderError(f"{_place(target)} redirects again and again; check the base URL")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _explained(error, target, timeout)
            cause = getattr(error, "os_error", None)
        # Raised outside: aiohttp's exceptions hold the request's headers, and with them the key.
        raise failure from (cause.with_traceback(None) if cause is not None else None)

    async def close(self) -> None:
        """Close the connections, when the last user of a shared session says so. Closing again is fine."""
        with _registry_lock:
            self.users -= 1
            if self.users > 0:
                return
            self.users = 0
            if _registry.get(self.ca_file) is self:
                del _registry[self.ca_file]
        with self._lock:
            clients, self._clients = self._clients, {}
        here = asyncio.get_running_loop()
        for loop, client in clients.items():
            if loop is here:
                await client.close()
            elif loop.is_closed():
                client.abandon()
            else:
                asyncio.run_coroutine_threadsafe(client.close(), loop)

    async def _once(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | None,
        form: FileForm | None,
        max_bytes: int,
        to: Path | None,
    ) -> Response | URL:
        """Send the request once; return the answer, or where it is to be sent instead."""
        client = await self._client()
        proxy, login = self._proxy_to(url)
        tunnel: dict[str, str] | None = None
        if login is not None and url.scheme == "https":
            tunnel = {"Proxy-Authorization": login}
        elif login is not None:
            headers = {**headers, "Proxy-Authorization": login}
        with _payload(body, form) as data:
            async with client.request(
                method,
                url,
                data=data,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
                proxy_headers=tunnel,
                ssl=self._tls() if url.scheme == "https" or (proxy and proxy.scheme == "https") else True,
            ) as reply:
                onward = _onward(reply, method, url)
                if onward is not None:
                    return onward
                if to is not None and 200 <= reply.status < 300:
                    await _save(reply, url, max_bytes, to)
                    return Response(reply.status, reply.headers, b"")
                pieces = [piece async for piece in _pieces(reply, url, max_bytes)]
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Response(reply.status, reply.headers, content)

    async def _client(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is not None and not client.session.closed:
                return client.session
            for old in [old for old in self._clients if old.is_closed()]:
                self._clients.pop(old).abandon()
            client = self._clients[loop] = _Client(_open())
        await client.guard()
        return client.session

    def _proxy_to(self, url: URL) -> tuple[URL | None, str | None]:
        place = (url.scheme, url.host, url.port)
        found = self._proxies.get(place)
        if found is None:
            found = self._proxies[place] = _proxy(url)
        return found

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = _tls_context(self.ca_file)
            return self._context


class _Client:
    """The connections of one event loop, closed at the latest when the loop ends."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self._guard = self._close_at_the_end()

    async def guard(self) -> None:
        """Let `asyncio.run` close the connections, as it closes every generator that is under way."""
        await anext(self._guard)

    async def close(self) -> None:
        """Close the connections, on their own loop."""
        await self._guard.aclose()
        await self.session.close()

    def abandon(self) -> None:
        """Let go of connections whose loop was closed without an end: then `close` never waits."""
        closing = self.session.close()
        with suppress(StopIteration):
            closing.send(None)
        closing.close()

    async def _close_at_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.session.close()


_registry: dict[Path | None, Session] = {}
_registry_lock = threading.Lock()


def shared_session(ca_file: Path | None = None) -> Session:
    """Return this process's session for a set of certificates; its `close` counts its users.

    Args:
        ca_file: Certificates (PEM) trusted beside the system's.
    """
    with _registry_lock:
        session = _registry.get(ca_file)
        if session is None:
            session = _registry[ca_file] = Session(ca_file=ca_file)
        else:
            session.users += 1
        return session


def _open() -> aiohttp.ClientSession:
    import aiohttp

    connector = aiohttp.TCPConnector(
        limit=0,  # whoever asks bounds the requests in flight
        keepalive_timeout=_KEEPALIVE_SECONDS,
        ttl_dns_cache=60,
        resolver=aiohttp.ThreadedResolver(),  # the system's: hosts file, search domains
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # no netrc; proxies are found here
        auto_decompress=False,  # unpacked here, within bounds
        headers={"User-Agent": f"vecmill/{__version__}", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        read_bufsize=_READ_BUFFER,
    )


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{ca_file} holds no certificates that can be read ({error}); "
                "name a PEM file in VECMILL_CA_FILE (ca_file in vecmill.toml)"
            ) from error
    return context


def _proxy(url: URL) -> tuple[URL | None, str | None]:
    """Return the proxy for an address, without its password, and what logs in to it."""
    import urllib.request

    from yarl import URL

    found = urllib.request.getproxies()
    address = found.get(url.scheme) or found.get("all")
    if not address or urllib.request.proxy_bypass(f"{url.host}:{url.port}"):
        return None, None
    try:
        proxy = URL(address if "://" in address else f"http://{address}")
        kind = f"a {proxy.scheme!r} address" if proxy.host else "no address"
    except ValueError:  # its message would show the password
        proxy, kind = URL(), "no address"
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise ConfigError(
            f"the proxy set for {url.scheme} is {kind}; HTTPS_PROXY and HTTP_PROXY take http://HOST:PORT"
        )
    if proxy.user is None:
        return proxy, None
    login = f"{unquote(proxy.raw_user or '')}:{unquote(proxy.raw_password or '')}"
    return proxy.with_user(None), f"Basic {base64.b64encode(login.encode()).decode()}"


@contextmanager
def _payload(body: bytes | None, form: FileForm | None) -> Iterator[Any]:
    if form is None:
        yield io.BytesIO(body) if body is not None and len(body) >= _WARNED_ABOVE else body
        return
    import aiohttp

    try:
        file = form.path.open("rb")
    except OSError as error:
        raise StorageError(f"{form.path} cannot be read: {error.strerror or error}") from error
    with file:
        data = aiohttp.FormData()
        for name, value in form.fields.items():
            data.add_field(name, value)
        named = form.filename or form.path.name
        data.add_field(form.name, file, filename=named, content_type=form.content_type)
        yield data


def _onward(reply: aiohttp.ClientResponse, method: str, url: URL) -> URL | None:
    """Return where a redirect leads if it may be followed, None where the reply is none.

    Raises:
        ProviderError: It leads to another origin, or would turn what is sent into something else.
    """
    from yarl import URL

    if reply.status not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
        return None
    try:
        target = url.join(URL(reply.headers["Location"]))
        origin = target.origin() if target.scheme in ("http", "https") else None
    except ValueError:
        raise ProviderError(
            f"{_place(url)} redirects to something that is no address; check the base URL",
            status=reply.status,
            code="redirect",
        ) from None
    if origin != url.origin():
        raise ProviderError(
            f"{_place(url)} redirects to {_place(target)}, which is another server; no key and no text was "
            "sent there: set that base URL yourself if you trust it",
            status=reply.status,
            code="redirect",
        )
    if reply.status not in (307, 308) and method not in ("GET", "HEAD"):
        raise ProviderError(
            f"{_place(url)} says it moved to {_place(target)}: set the base URL to that",
            status=reply.status,
            code="redirect",
        )
    return target


async def _pieces(reply: aiohttp.ClientResponse, url: URL, max_bytes: int) -> AsyncIterator[bytes]:
    """Give the reply's body piece by piece, unpacked.

    Raises:
        BadReplyError: It is larger than `max_bytes`, or packed in an unknown or broken way.
    """
    encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
    announced = reply.content_length or 0
    if announced > max_bytes:
        raise _too_large(url, max_bytes)
    unpack = None if encoding in ("identity", "") else _Unpacker(encoding, url, max_bytes)
    total = 0
    while piece := await reply.content.readany():
        if unpack is not None:
            piece = unpack.feed(piece)
        total += len(piece)
        if total > max_bytes:
            raise _too_large(url, max_bytes)
        yield piece
    if unpack is not None:
        unpack.end()


class _Unpacker:
    """Unpacks gzip and deflate, which nobody asked for, within bounds."""

    def __init__(self, encoding: str, url: URL, max_bytes: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise BadReplyError(
                f"{_place(url)} answers in {encoding[:20]!r}, though it was asked not to pack its answer",
                code="content_encoding",
            )
        self._object = zlib.decompressobj(wbits=47)  # either header
        self._url, self._room = url, max_bytes

    def feed(self, piece: bytes) -> bytes:
        if self._object.eof:
            raise self._broken()  # zlib would keep what follows, however much
        try:
            found = self._object.decompress(piece, self._room + 1)
        except zlib.error as error:
            raise self._broken() from error
        self._room -= len(found)
        if self._room < 0 or self._object.unconsumed_tail:
            raise _too_large(self._url, None)
        if self._object.unused_data:
            raise self._broken()
        return found

    def end(self) -> None:
        if not self._object.eof:
            raise self._broken()

    def _broken(self) -> BadReplyError:
        return BadReplyError(
            f"the packed answer of {_place(self._url)} is broken", retryable=True, code="content_encoding"
        )


def _too_large(url: URL, max_bytes: int | None) -> BadReplyError:
    limit = "" if max_bytes is None else f" of {max_bytes:,} bytes"
    return BadReplyError(
        f"the answer of {_place(url)} is larger than the limit{limit}", code="reply_too_large"
    )


async def _save(reply: aiohttp.ClientResponse, url: URL, max_bytes: int, to: Path) -> None:
    async with _beside_the_loop(durable.replacing(to)) as temp:
        with temp.open("wb") as file:
            async for piece in _pieces(reply, url, max_bytes):
                await asyncio.to_thread(file.write, piece)


@asynccontextmanager
async def _beside_the_loop(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a context manager that waits for the disk in a thread."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await asyncio.to_thread(manager.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def _place(url: URL) -> str:
    """Return an address for a message: no user, no query, nothing secret."""
    return str(url.with_user(None).with_query(None).with_fragment(None)) if url.host else "the address"


def _host(url: URL) -> str:
    return f"{url.host}:{url.port}" if url.port not in (80, 443) else str(url.host)


def _explained(error: Exception, url: URL, seconds: float) -> Error:
    """Return what an exchange failed with, for people and for whoever decides whether to try again."""
    import aiohttp

    host = _host(url)
    if isinstance(error, Error):  # InputError is a ValueError
        return error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(host, error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        return _no_connection(error, host)
    if isinstance(error, aiohttp.ServerTimeoutError):
        return UnavailableError(f"{host} did not take the connection in time", code="connect_timeout")
    if isinstance(error, TimeoutError):
        return UnavailableError(f"{host} did not answer within {seconds:g} seconds", code="timeout")
    if isinstance(error, aiohttp.ClientPayloadError):
        return UnavailableError(f"the answer of {host} was cut short", code="truncated")
    if isinstance(error, aiohttp.InvalidURL):
        return ConfigError(f"{_place(url)} is no address that can be asked")
    if isinstance(error, aiohttp.ClientResponseError):
        return UnavailableError(f"{host} answered something that is not HTTP", code="not_http")
    if isinstance(error, ValueError):
        return ConfigError(
            f"a header for {host} cannot be sent: a key or header holds a line break or other control "
            "character; check where it comes from"
        )
    return UnavailableError(f"{host} closed the connection before it answered", code="disconnected")


def _no_connection(error: aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError, host: str) -> Error:
    import aiohttp

    if isinstance(error, aiohttp.ClientHttpProxyError):
        message = f"the proxy refuses to reach {host}: status {error.status}"
        if error.status == 407:
            return ProviderError(
                f"{message}; put user and password into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT)",
                code="proxy",
            )
        return UnavailableError(message, code="proxy", retryable=error.status >= 500)
    cause = error.os_error
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return UnavailableError(
            f"the proxy {error.host}:{error.port} does not take connections ({cause.strerror or cause}); "
            "check HTTPS_PROXY and NO_PROXY",
            code="proxy",
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return UnavailableError(
            f"the name {error.host} cannot be found; check the address and the network", code="dns"
        )
    if isinstance(cause, ssl.SSLError):
        if cause.reason == "WRONG_VERSION_NUMBER":
            return ConfigError(f"{host} does not speak TLS: its address may begin with http:// instead")
        return UnavailableError(f"{host} broke off the TLS handshake ({cause.reason})", code="tls")
    if isinstance(cause, ConnectionRefusedError):
        return UnavailableError(
            f"{host} refused the connection: nothing listens there; check address and port", code="refused"
        )
    return UnavailableError(f"{host} cannot be reached ({cause.strerror or cause})", code="unreachable")


def _untrusted(host: str, error: Exception) -> ConfigError:
    reason = getattr(error, "verify_message", "") or str(error)
    return ConfigError(
        f"the certificate of {host} is not trusted: {reason}; behind a company's proxy name its certificates "
        "(a PEM file) in VECMILL_CA_FILE"
    )
