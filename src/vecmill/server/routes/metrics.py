"""What monitoring asks for."""

from __future__ import annotations

import asyncio

from vecmill.server.call import Answer, Call

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


async def metrics(call: Call) -> Answer:
    """Answer `GET /metrics`; needs `Right.METRICS`."""
    text = await asyncio.to_thread(call.server.metrics.render, call.server)
    return Answer(200, text, media_type=TEXT)
