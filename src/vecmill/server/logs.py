"""One JSON line per request and event: ids, counts and times, never a text, key, header or query."""

from __future__ import annotations

import logging

from vecmill.server.call import Noted

log = logging.getLogger("vecmill.server")


def access(
    *, request_id: str, method: str, route: str, status: int, seconds: float, caller: str, noted: Noted
) -> None:
    """Write the line of an answered request."""
    log.info("%s %s %s %d", request_id, method, route, status)
