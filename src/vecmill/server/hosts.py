"""Which hosts and which pages' origins are answered: what keeps a browser from being used against the server."""

from __future__ import annotations

from collections.abc import Mapping

from vecmill.server.call import Answer
from vecmill.server.errors import Header
from vecmill.server.options import Options


def check_host(options: Options, headers: Mapping[str, str]) -> None:
    """Refuse a Host that is not ours (DNS rebinding) and a page's Origin that is not allowed.

    Raises:
        Refusal: 421 another host, 403 another origin.
    """


def cors_headers(options: Options, headers: Mapping[str, str]) -> tuple[Header, ...]:
    """Return what an allowed page's browser needs to see; nothing for others."""
    return ()


def preflight(options: Options, headers: Mapping[str, str]) -> Answer:
    """Answer a browser's question before its request."""
    return Answer(204, b"")
