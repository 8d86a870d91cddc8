"""The OpenAPI document, and a page that shows it; neither needs any other host."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

from vecmill.server import openapi
from vecmill.server.call import Answer, Call
from vecmill.server.errors import Refusal
from vecmill.server.routing import Route

_PAGE = Path(__file__).parents[1] / "static" / "docs.html"
_ROWS = "<!-- routes -->"

_SAFE = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
)


async def openapi_document(call: Call) -> Answer:
    """Answer `GET /openapi.json`."""
    _refuse_hidden(call)
    return Answer(200, openapi.document(call.server.table.routes), headers=_SAFE[:1])


async def docs(call: Call) -> Answer:
    """Answer `GET /docs`: one file, its script and style allowed by their hashes alone."""
    _refuse_hidden(call)
    body, policy = _page(call.server.table.routes)
    headers = (("content-security-policy", policy), ("cache-control", "no-cache"), *_SAFE)
    return Answer(200, body, "text/html; charset=utf-8", headers)


def _refuse_hidden(call: Call) -> None:
    if not call.server.options.docs:
        raise Refusal(404, "this server does not show its documents")


@cache
def _page(routes: tuple[Route, ...]) -> tuple[bytes, str]:
    """Return the page and the policy that keeps it from loading anything."""
    page = _PAGE.read_text("utf-8")
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    rows = "\n".join(_row(route) for route in routes if route.listed)
    return page.replace(_ROWS, rows).encode(), policy


def _hash(page: str, tag: str) -> str:
    """Return what names the only script (or style) of the page in the policy."""
    match = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    inside = "" if match is None else match[1]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


def _row(route: Route) -> str:
    path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
    cells = (route.method, path, route.summary, str(route.right))
    shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr>{shown}</tr>"
