"""The sync door waits for what it cancelled, and works in a forked child."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from vecmill.embedder.background import run_sync


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let SIGINT interrupt, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_until_the_coroutine_has_put_things_in_order() -> None:
    started, order = threading.Event(), []

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.to_thread(time.sleep, 0.05)
            order.append("put in order")

    def interrupt() -> None:
        started.wait()
        time.sleep(0.2)  # let the main thread come to wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_sync(work())
    order.append("raised")
    thread.join()
    assert order == ["put in order", "raised"]


def test_errors_come_through() -> None:
    async def work() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        run_sync(work())


def test_a_sync_call_on_the_loop_itself_is_refused_instead_of_waiting_for_ever() -> None:
    async def work() -> None:
        async def inner() -> None:
            pass

        run_sync(inner())

    with pytest.raises(RuntimeError, match="await"):
        run_sync(work())
