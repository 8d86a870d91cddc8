"""What Prometheus is told; labels are only names of our own, never what a client sent.

Requests add to plain numbers on the event loop (about a microsecond each); names, sums and text are made when
somebody asks for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from vecmill.server.call import Noted

if TYPE_CHECKING:
    from vecmill.server.families import Now

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the request histogram's buckets."""

MAX_SERIES = 4096
"""Combinations of route, model and status counted apart; later ones are counted as model "other"."""

Key: TypeAlias = tuple[str, str, int]
"""Route, model, status."""


class Count:
    """What one combination of route, model and status adds up to."""

    __slots__ = ("buckets", "cached", "requests", "retries", "seconds", "texts", "tokens", "truncated")

    def __init__(self) -> None:
        self.requests = 0
        self.retries = 0
        self.texts = 0
        self.tokens = 0
        self.cached = 0
        self.truncated = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(SECONDS) + 1)

    def add(self, other: Count) -> None:
        """Add another's numbers."""
        self.requests += other.requests
        self.retries += other.retries
        self.texts += other.texts
        self.tokens += other.tokens
        self.cached += other.cached
        self.truncated += other.truncated
        self.seconds += other.seconds
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


class Metrics:
    """Counters, gauges and histograms of one server; nothing of it is shared by the process.

    Everything but `render` is called on the server's event loop.

    Attributes:
        running: Requests being answered now.
        connections: Open connections. accepted: all there ever were.
    """

    def __init__(self) -> None:
        self.running = 0
        self.connections = 0
        self.accepted = 0
        self._counts: dict[Key, Count] = {}
        self._refused: dict[str, int] = {}

    def request(self, route: str, status: int, seconds: float, noted: Noted, *, retries: int = 0) -> None:
        """Count an answered request.

        Args:
            route: The route's name, "unknown" where there is none.
            status: HTTP status; 499 where the client left.
            seconds: From the end of the headers to the end of the answer.
            noted: Model, texts and tokens.
            retries: What the client says of earlier tries (`x-stainless-retry-count`).
        """
        count = self._counts.get((route, noted.model, status))
        if count is None:
            count = self._new(route, noted.model, status)
        count.requests += 1
        count.retries += retries > 0
        count.texts += noted.texts
        count.tokens += noted.tokens
        count.cached += noted.cached
        count.truncated += noted.truncated
        count.seconds += seconds
        count.buckets[bisect_left(SECONDS, seconds)] += 1

    def refused(self, reason: str) -> None:
        """Count a connection or request that ended before it reached a route; `reason` is a word of ours."""
        self._refused[reason] = self._refused.get(reason, 0) + 1

    def render(self, now: Now | None = None) -> bytes:
        """Return everything in Prometheus' text format; milliseconds of work, made for a thread.

        Args:
            now: State of server and models, taken on the loop; None leaves it out.

        Raises:
            MissingExtraError: prometheus-client is not installed.
        """
        from vecmill.server.families import written  # needs prometheus-client, which only this does

        return written(self, now)

    def _new(self, route: str, model: str, status: int) -> Count:
        if len(self._counts) >= MAX_SERIES:
            model = "other"
        return self._counts.setdefault((route, model, status), Count())

    def counts(self) -> Mapping[Key, Count]:
        """Return what was counted by (route, model, status); a copy that no request changes in size."""
        return dict(self._counts)

    def refusals(self) -> Mapping[str, int]:
        """Return how many were refused, by reason."""
        return dict(self._refused)
