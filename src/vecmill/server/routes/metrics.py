"""What monitoring asks for."""

from __future__ import annotations

import asyncio
from importlib import import_module

from vecmill.server.call import Answer, Call
from vecmill.server.errors import Refusal

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


async def metrics(call: Call) -> Answer:
    """Answer `GET /metrics`; needs `Right.METRICS`."""
    if not call.server.options.metrics:
        raise Refusal(404, "metrics are switched off here")
    families = await asyncio.to_thread(import_module, "vecmill.server.families")  # slow the first time
    text = await asyncio.to_thread(call.server.metrics.render, families.now_of(call.server))
    return Answer(200, text, media_type=TEXT)
