"""Listen: sockets, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate

from vecmill.core.errors import ConfigError, InputError
from vecmill.core.extras import installed, require
from vecmill.server import logs, tracing
from vecmill.server.app import App
from vecmill.server.door import MAX_LINGERING, Door
from vecmill.server.guard import Guard, guarded
from vecmill.server.options import Limits, Options

require("uvicorn", extra="serve")

from uvicorn.config import Config  # noqa: E402 - after the words for who lacks it
from uvicorn.server import ServerState  # noqa: E402

BACKLOG = 2048

OTHER_FILES = 256
"""Open files beside connections: models, caches, keys, the log."""

_CLOSE_SECONDS = 10.0
"""What models may take to close, after the last answer."""


def serve(
    app: App,
    *,
    on_start: Callable[[str], None] | None = None,
    on_ready: Callable[[], None] | None = None,
    log_level: str | None = "info",
) -> None:
    """Serve until a signal; returns after requests in flight are answered.

    The address answers at once; models are loaded meanwhile. SIGTERM and SIGINT begin the end: readiness says
    so for `drain_notice_seconds` (not after Ctrl-C, nor before it was ready), then nobody new is let in, and
    what was sent before is answered within `drain_seconds`. A second signal ends the process at once.

    Args:
        app: What is served.
        on_start: Called with the origin, "http://127.0.0.1:8000", once it answers.
        on_ready: Called when readiness first turns true: every model is loaded, the repository's too.
        log_level: Of the JSON lines on stderr, see `logs.to_stderr`; None leaves logging as it is.

    Raises:
        InputError: The address cannot be listened at.
        ConfigError: Certificate or key cannot be used.
        Error: A model cannot be loaded.
    """
    with contextlib.ExitStack() as stack:
        tls = _tls(app.server.options)  # before anybody can connect
        sockets = listen(app.server.options)
        stack.callback(_close_all, sockets)
        if log_level is not None:
            stack.enter_context(logs.to_stderr(log_level))
        _allow_files(app.server.options.limits)
        listener = _Listener(app, sockets, tls)
        if (tracer := tracing.tracer()) is not None:
            app.server.tracer = tracer
            stack.callback(tracer.close)
        runner = stack.enter_context(asyncio.Runner(loop_factory=_new_loop()))
        runner.run(_until_a_signal(listener, on_start, on_ready))


@contextmanager
def served_in_thread(app: App) -> Iterator[str]:
    """Serve from a thread with an event loop of its own, for tests and benchmarks.

    Yields:
        The origin, "http://127.0.0.1:PORT", once the models are loaded; the port is free, not the options'.

    Raises:
        Error: A model cannot be loaded.
    """
    with contextlib.ExitStack() as stack:
        tls = _tls(app.server.options)
        sockets = listen(app.server.options, port=0)
        stack.callback(_close_all, sockets)
        listener = _Listener(app, sockets, tls)
        begun = threading.Event()
        failed: list[BaseException] = []
        ends: list[Callable[[], object]] = []

        async def run() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            ends.append(lambda: loop.call_soon_threadsafe(stop.set))
            try:
                await listener.open()
                await app.server.start()
                begun.set()
                await stop.wait()
            finally:
                await listener.drain(notice=0.0)

        def work() -> None:
            try:
                with asyncio.Runner(loop_factory=_new_loop()) as runner:
                    runner.run(run())
            except BaseException as error:  # raised in the thread that waits
                failed.append(error)
            finally:
                begun.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        begun.wait()
        try:
            if not failed:
                yield listener.origin
        finally:
            if thread.is_alive():
                ends[0]()
            thread.join()
        if failed:
            raise failed[0]


def listen(options: Options, *, port: int | None = None) -> list[socket.socket]:
    """Bind every address the options' host stands for.

    Args:
        options: Host and port.
        port: Instead of the options'.

    Raises:
        InputError: It cannot be bound, and why.
    """
    host = options.host
    port = options.port if port is None else port
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InputError(
            f"host {host!r} has no address ({error.strerror}): name one of this machine"
        ) from error
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        where = (address[0], sockets[0].getsockname()[1]) if sockets else (address[0], port)
        try:
            sockets.append(_bound(family, (*where, *address[2:])))
        except OSError as error:
            failure = error
    if sockets and (failure is None or failure.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}):
        return sockets
    _close_all(sockets)
    raise InputError(_why_not(failure, host, port)) from failure


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setblocking(False)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _why_not(error: OSError | None, host: str, port: int) -> str:
    number = error.errno if error else None
    if number == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken: stop who listens there, or choose another port (0: a free one)"
        )
    if number == errno.EACCES:
        return f"port {port} of {host} needs more rights: choose a port above 1023"
    if number == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: 127.0.0.1 is for this machine alone, 0.0.0.0 for all"
    return f"{host}:{port} cannot be listened at: {error.strerror if error else 'it has no address'}"


def _close_all(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _allow_files(limits: Limits) -> None:
    """Let the process have as many open files as its connections need, or say that it may not."""
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    needed = limits.max_connections + MAX_LINGERING + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    with contextlib.suppress(ValueError, OSError):
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if (soft := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < needed:
        logs.event(
            "too few open files allowed: raise the limit (ulimit -n), or lower max_connections",
            level=logging.WARNING,
            allowed=soft,
            needed=needed,
        )


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop's where it is installed."""
    if not installed("uvloop"):
        return asyncio.new_event_loop
    import uvloop

    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


def _tls(options: Options) -> ssl.SSLContext | None:
    """Return what https needs; None: plain http.

    Raises:
        ConfigError: Certificate or key cannot be used.
    """
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise ConfigError("a TLS key needs its certificate: name both")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"TLS certificate {options.tls_cert} and key {options.tls_key or options.tls_cert} cannot be "
            f"used: {error.strerror or error}; PEM files that belong together are needed"
        ) from error
    return context


class _Listener:
    """The sockets of a server and everything behind them, on one event loop.

    Attributes:
        origin: Where it is reached.
    """

    def __init__(self, app: App, sockets: list[socket.socket], tls: ssl.SSLContext | None) -> None:
        server = app.server
        self.app = app
        self._sockets = sockets
        self._door = Door(server.options.limits, server.metrics)
        self._protocol = guarded(self._door)
        self._tls = tls
        self._state = ServerState()
        self._config = Config(
            app,
            http=self._protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._servers: list[asyncio.Server] = []
        self._clock: asyncio.Task[None] | None = None
        scheme = "http" if self._tls is None else "https"
        host, port = sockets[0].getsockname()[:2]
        self.origin = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def open(self) -> None:
        """Begin to accept."""
        self._config.load()
        self._tell_time()
        self._clock = asyncio.create_task(self._tick())
        loop = asyncio.get_running_loop()
        seconds = None if self._tls is None else self._door.limits.header_seconds
        for one in self._sockets:
            server = await loop.create_server(
                self._new, sock=one.dup(), ssl=self._tls, backlog=BACKLOG, ssl_handshake_timeout=seconds
            )
            self._servers.append(server)

    async def drain(self, *, notice: float) -> None:
        """End: tell, wait, stop accepting, answer what was sent, close the models.

        Args:
            notice: Seconds between the news and the end of accepting.
        """
        server, limits = self.app.server, self._door.limits
        server.draining = True
        logs.event("draining", connections=len(self._door.open), notice_seconds=notice)
        await asyncio.sleep(notice)
        await self._stop_accepting()
        self._door.stop()
        until = time.monotonic() + limits.drain_seconds
        while self._door.open and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if left := len(self._door.open):
            logs.event("connections broken", count=left, after_seconds=limits.drain_seconds)
        self._door.abort()
        for task in tuple(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.close(), _CLOSE_SECONDS)
        if self._clock is not None:
            self._clock.cancel()
        logs.event("stopped")

    async def _stop_accepting(self) -> None:
        """Close the sockets, but let in who was already connected and waits in the system's queue."""
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)
        for one in self._sockets:
            while True:
                try:
                    accepted, _ = one.accept()
                except OSError:  # nobody waits
                    break
                accepted.setblocking(False)
                with contextlib.suppress(OSError):
                    await loop.connect_accepted_socket(self._new, accepted, ssl=self._tls)
            one.close()

    def _new(self) -> Guard:
        return self._protocol(self._config, self._state, {}, asyncio.get_running_loop())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._tell_time()

    def _tell_time(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]


async def _until_a_signal(
    listener: _Listener,
    on_start: Callable[[str], None] | None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Load the models while the address answers; drain after a signal."""
    began = time.perf_counter()
    got = _Signals()
    await listener.open()
    logs.event("listening", origin=listener.origin)
    if on_start is not None:
        on_start(listener.origin)
    ready = asyncio.create_task(_get_ready(listener.app, began, on_ready))
    stop = asyncio.create_task(got.first.wait())
    await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
    was_ready = ready.done()
    if not was_ready:
        ready.cancel()
    (outcome,) = await asyncio.gather(ready, return_exceptions=True)
    if isinstance(outcome, BaseException) and not got.first.is_set():
        stop.cancel()
        await listener.drain(notice=0.0)
        raise outcome
    await stop
    limits = listener.app.server.options.limits
    noticed = was_ready and not got.by_hand  # before it was ready, nobody sent requests here
    await listener.drain(notice=limits.drain_notice_seconds if noticed else 0.0)


async def _get_ready(app: App, began: float, on_ready: Callable[[], None] | None) -> None:
    """Load the models, and tell when all of them answer, which may be long after those named do."""
    await app.server.start()
    await app.server.models.until_ready()
    logs.event("ready", ms=round((time.perf_counter() - began) * 1000))
    if on_ready is not None:
        on_ready()
    gc.collect()
    gc.freeze()  # what lives as long as the server is not looked at again


class _Signals:
    """The first SIGTERM or SIGINT is told, the second ends the process.

    Attributes:
        first: Set at the first.
        by_hand: Whether it was Ctrl-C at a terminal: nobody balances load there.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.by_hand = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self._came, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda given, _: loop.call_soon_threadsafe(self._came, given))

    def _came(self, number: int) -> None:
        if self.first.is_set():
            logs.event("ended by a second signal", signal=number)
            time.sleep(0.1)  # for the writer of the log
            os._exit(128 + number)
        self.by_hand = number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()
        self.first.set()
