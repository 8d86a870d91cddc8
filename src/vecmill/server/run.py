"""Listen: sockets, signals, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from vecmill.server.app import App


def serve(app: App) -> None:
    """Serve until a signal; returns after requests in flight are answered.

    Raises:
        InputError: The address cannot be listened at.
        Error: A model cannot be loaded.
    """
    options = app.server.options
    uvicorn.run(app, host=options.host, port=options.port, log_config=None, access_log=False)


@contextmanager
def served_in_thread(app: App) -> Iterator[str]:
    """Serve from a thread with an event loop of its own, for tests and benchmarks.

    Yields:
        The origin: "http://127.0.0.1:PORT".
    """
    options = app.server.options
    config = uvicorn.Config(app, host=options.host, port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        started.set()
        await server.main_loop()
        await server.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    started.wait()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
