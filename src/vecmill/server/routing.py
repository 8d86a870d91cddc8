"""The route table: what is answered where, and which right it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vecmill.server.access import Right
from vecmill.server.call import Handler
from vecmill.server.errors import Refusal


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        method: "GET" or "POST"; GET answers HEAD too.
        path: With `{name}` for one part of the path and `{name:path}` for several.
        handler: What answers.
        right: What it needs; there is no default.
        name: For metrics and the OpenAPI document: "embeddings".
        summary: One line for the document.
        takes, gives: The msgspec types of body and answer, where they are JSON.
        azure: Whether errors have Azure's shape.
        listed: Whether the OpenAPI document shows it.
    """

    method: str
    path: str
    handler: Handler
    right: Right
    name: str
    summary: str = ""
    takes: type | None = None
    gives: type | None = None
    azure: bool = False
    listed: bool = True


class Table:
    """Routes by path: fixed paths by a dictionary, the rest by patterns in order."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        for route in routes:
            if "{" not in route.path:
                self._fixed.setdefault(route.path, {})[route.method] = route
                continue
            pattern = _pattern(route.path)
            known = next((methods for found, methods in self._patterns if found == pattern), None)
            if known is None:
                known = {}
                self._patterns.append((pattern, known))
            known[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route of a request and the parts of its path.

        Raises:
            Refusal: 404 no such path, 405 another method.
        """
        parts: Mapping[str, str] = {}
        methods = self._fixed.get(path)
        if methods is None and len(path) > 1 and path.endswith("/"):
            methods = self._fixed.get(path[:-1])
        if methods is None:
            for pattern, found in self._patterns:
                if match := pattern.fullmatch(path):
                    methods, parts = found, match.groupdict()
                    break
        if methods is None:
            raise Refusal(404, f"Unknown path ({method} {_shown(path)})")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
            message = f"{method[:16]} is not allowed at {_shown(path)}: {allowed}"
            raise Refusal(405, message, headers=(("allow", allowed),))
        return route, parts


def _pattern(path: str) -> re.Pattern[str]:
    """Turn "/v1/models/{id:path}" into a pattern."""
    escaped = re.sub(r"\\{(\w+):path\\}", r"(?P<\1>.+)", re.escape(path))
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", escaped))


def _shown(path: str) -> str:
    """Return a path that came from outside, cut and without control characters."""
    plain = "".join(sign if sign.isprintable() else "?" for sign in path)
    return plain if len(plain) <= 100 else plain[:97] + "…"
