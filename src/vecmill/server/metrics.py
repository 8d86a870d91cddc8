"""What Prometheus is told; labels are only names of our own, never what a client sent."""

from __future__ import annotations

from vecmill.server.call import Noted


class Metrics:
    """Counters, gauges and histograms of one server."""

    def request(self, route: str, status: int, seconds: float, noted: Noted, *, retries: int = 0) -> None:
        """Count an answered request.

        Args:
            route: The route's name, "unknown" where there is none.
            status: HTTP status; 499 where the client left.
            seconds: From the end of the headers to the end of the answer.
            noted: Model, texts and tokens.
            retries: What the client says of earlier tries (`x-stainless-retry-count`).
        """

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return b""
