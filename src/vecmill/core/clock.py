"""What time it is: the system's clock, or that of an event loop that has one of its own."""

from __future__ import annotations

import asyncio
import time


def now() -> float:
    """Return seconds since the epoch.

    On an event loop with a method `now`, such as `vecmill.testing.clock.VirtualLoop`, it is that loop's time,
    so that limits, waits and dates agree in tests that do not sleep.
    """
    try:
        clock = getattr(asyncio.get_running_loop(), "now", None)
    except RuntimeError:
        clock = None
    return time.time() if clock is None else float(clock())
