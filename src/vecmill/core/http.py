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
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from vecmill._version import __version__
from vecmill.core.errors import ConfigError, Error, InputError, ProviderError, StorageError
from vecmill.core.http_replies import explained, onward, pieces, place, save

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

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
                f"{place(target)} is no address of a server: it begins with https:// or http://"
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
            failure = ProviderError(f"{place(target)} redirects again and again; check the base URL")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = explained(error, target, timeout)
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
                moved = onward(reply, method, url)
                if moved is not None:
                    return moved
                if to is not None and 200 <= reply.status < 300:
                    await save(reply, url, max_bytes, to)
                    return Response(reply.status, reply.headers, b"")
                parts = [piece async for piece in pieces(reply, url, max_bytes)]
        content = parts[0] if len(parts) == 1 else b"".join(parts)
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
