"""What comes back from one HTTP exchange: redirects, bodies within bounds, failures in words.

The other half of `core.http`, which alone uses it.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vecmill.core import durable
from vecmill.core.errors import BadReplyError, ConfigError, Error, ProviderError, UnavailableError

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

T = TypeVar("T")


def onward(reply: aiohttp.ClientResponse, method: str, url: URL) -> URL | None:
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
            f"{place(url)} redirects to something that is no address; check the base URL",
            status=reply.status,
            code="redirect",
        ) from None
    if origin != url.origin():
        raise ProviderError(
            f"{place(url)} redirects to {place(target)}, which is another server; no key and no text was "
            "sent there: set that base URL yourself if you trust it",
            status=reply.status,
            code="redirect",
        )
    if reply.status not in (307, 308) and method not in ("GET", "HEAD"):
        raise ProviderError(
            f"{place(url)} says it moved to {place(target)}: set the base URL to that",
            status=reply.status,
            code="redirect",
        )
    return target


async def pieces(reply: aiohttp.ClientResponse, url: URL, max_bytes: int) -> AsyncIterator[bytes]:
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
                f"{place(url)} answers in {encoding[:20]!r}, though it was asked not to pack its answer",
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
            f"the packed answer of {place(self._url)} is broken", retryable=True, code="content_encoding"
        )


def _too_large(url: URL, max_bytes: int | None) -> BadReplyError:
    limit = "" if max_bytes is None else f" of {max_bytes:,} bytes"
    return BadReplyError(
        f"the answer of {place(url)} is larger than the limit{limit}", code="reply_too_large"
    )


async def save(reply: aiohttp.ClientResponse, url: URL, max_bytes: int, to: Path) -> None:
    """Write the reply's body, unpacked, to a file, which is replaced when it is whole."""
    async with _beside_the_loop(durable.replacing(to)) as temp:
        with temp.open("wb") as file:
            async for piece in pieces(reply, url, max_bytes):
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


def place(url: URL) -> str:
    """Return an address for a message: no user, no query, nothing secret."""
    return str(url.with_user(None).with_query(None).with_fragment(None)) if url.host else "the address"


def _host(url: URL) -> str:
    return f"{url.host}:{url.port}" if url.port not in (80, 443) else str(url.host)


def explained(error: Exception, url: URL, seconds: float) -> Error:
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
        return ConfigError(f"{place(url)} is no address that can be asked")
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
