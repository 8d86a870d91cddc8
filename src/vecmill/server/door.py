"""Which connections a server has: how many, from where, and which of them are late."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Protocol

from vecmill.server.metrics import Metrics
from vecmill.server.options import Limits

MAX_LINGERING = 256
"""Refused connections that are answered at once; beyond, they are only closed."""

GRACE_SECONDS = 0.5
"""How long a silent connection is kept once the server stops: a request may be on its way."""

REFUSED = "vecmill.refused"
"""Where the scope says with which status the protocol answered a request instead of the application."""

REQUEST_ID = "vecmill.request_id"
"""Where the scope holds the request's id, put there by who needs it first: answer and log say the same."""


class Connection(Protocol):
    """What the door knows of a connection.

    Attributes:
        due: The loop's time by which the client must have sent something.
        write_due: The loop's time by which it must have read something.
    """

    due: float
    write_due: float
    loop: asyncio.AbstractEventLoop

    def late(self, now: float) -> None:
        """End or break it: one of its deadlines has passed."""

    def shutdown(self) -> None:
        """End it with the answer that is due."""

    def abort(self) -> None:
        """Break it."""


class Door:
    """The connections of one server: how many, from where, and which of them are late.

    Attributes:
        limits: How much of everything. metrics: what is counted.
        stopping: Whether connections are to end with their next answer.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.stopping = False
        self.lingering = 0
        self.open: set[Connection] = set()
        self._addresses: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        shortest = min(limits.header_seconds, limits.body_idle_seconds, limits.keep_alive_seconds)
        self._tick = min(max(shortest / 8, 0.01), 0.5)

    def enter(self, connection: Connection, address: str) -> str:
        """Count a connection; return why it must not stay, or ""."""
        metrics, limits = self.metrics, self.limits
        metrics.accepted += 1
        here = self._addresses.get(address, 0)
        self._addresses[address] = here + 1
        full = len(self.open) >= limits.max_connections
        self.open.add(connection)
        metrics.connections = len(self.open)
        if self._timer is None:
            self._timer = connection.loop.call_later(self._tick, self._sweep, connection.loop)
        if full:
            return "connections"
        return "connections_per_address" if address and here >= limits.max_connections_per_address else ""

    def leave(self, connection: Connection, address: str) -> None:
        """Forget a connection that has ended."""
        self.open.discard(connection)
        self.metrics.connections = len(self.open)
        left = self._addresses.get(address, 1) - 1
        if left > 0:
            self._addresses[address] = left
        else:
            self._addresses.pop(address, None)

    def stop(self) -> None:
        """Let every connection end: after the answer that is due, or soon where nothing is."""
        self.stopping = True
        for connection in tuple(self.open):
            connection.shutdown()

    def abort(self) -> None:
        """Break every connection that is left."""
        for connection in tuple(self.open):
            connection.abort()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self.open):
            if connection.due <= now or connection.write_due <= now:
                connection.late(now)
        self._timer = loop.call_later(self._tick, self._sweep, loop) if self.open else None


def whose(address: str) -> str:
    """Return what connections and wrong keys are counted by.

    That is an IPv4 address, or the network of 64 bits that one IPv6 customer has.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped) if found.ipv4_mapped else found.exploded[:19]
