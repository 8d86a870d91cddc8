"""The sync door: one background loop on which every synchronous call runs its coroutine.

So synchronous methods also work where a loop already runs, as in a notebook, and sessions and limiters keep
to one loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it.

    An interrupt cancels it, waits until it has put its things in order, and is raised.

    Raises:
        RuntimeError: Called from the background loop itself, where waiting would never end.
    """
    loop = _running_loop()
    if threading.current_thread().name == _THREAD:
        coroutine.close()
        raise RuntimeError("a synchronous call inside an asynchronous one: await the async method instead")
    task: concurrent.futures.Future[T] | None = None
    ended = threading.Event()

    async def watched() -> T:
        try:
            return await coroutine
        finally:
            ended.set()

    try:
        task = asyncio.run_coroutine_threadsafe(watched(), loop)
        return task.result()
    except BaseException:
        if task is not None and not ended.is_set():
            task.cancel()
            ended.wait(_PATIENCE_SECONDS)
        raise


_PATIENCE_SECONDS = 60.0  # for what must not be torn; a second interrupt ends the wait at once
_THREAD = "vecmill-loop"


def _forget_loop() -> None:
    global _loop
    _loop = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_loop)


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
        return _loop
