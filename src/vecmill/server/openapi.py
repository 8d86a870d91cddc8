"""The OpenAPI 3.1 document, made of the route table and the types: what it says is what is served."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec
import orjson

from vecmill import __version__
from vecmill.server.access import Right
from vecmill.server.routing import Route
from vecmill.server.schemas import EXACTLY, EmbeddingsReply, ErrorReply

_ERRORS = {
    400: "The request is wrong in itself; `param` names the field where one is to blame.",
    401: "No key, or a wrong one.",
    403: "The key has not the right, or the page may not ask.",
    404: "No such model or path.",
    405: "The path takes another method: `allow` names it.",
    408: "The request came too slowly.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    421: "The Host is none of this server's.",
    429: "Too much at the moment: `retry-after-ms` says when to come back.",
    431: "The request line or the headers are too large.",
    500: "The server failed.",
    502: "The provider behind the server failed.",
    503: "The model is being loaded, or the server stops.",
    504: "The request's deadline passed.",
    505: "This is not HTTP/1.1.",
}
_BODY_ERRORS = {408, 413, 415}
_WORK_ERRORS = {502, 504}

_MEDIA = {"metrics": "text/plain", "docs": "text/html"}
"""Answers that are no JSON, by the route's name."""

_STATUSES = {"reload": (200, 201)}
"""Successes that are not 200 alone, by the route's name."""

_RAW_ROWS = (
    "Rows one after another, all numbers little-endian. float: d float32. int8: the scale as a float32, then "
    "d int8. ubinary: ceil(d / 8) bytes, the first component's bit the highest."
)


@cache
def document(routes: tuple[Route, ...]) -> bytes:
    """Return the document of a route table as JSON.

    Args:
        routes: All routes; those with `listed` False are left out.
    """
    listed = [route for route in routes if route.listed]
    types = {kind for route in listed for kind in (route.takes, route.gives) if kind is not None}
    ordered = sorted({*types, ErrorReply}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in listed:
        path = re.sub(r"\{(\w+)(?::path)?\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    found = {
        "openapi": "3.1.0",
        "info": {
            "title": "vecmill",
            "version": __version__,
            "summary": "Embedding models behind OpenAI's API.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _exact(schemas),
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
            "headers": {"RequestId": _header("The request's id, also in the server's log.")},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
    }
    return orjson.dumps(found)


def _exact(node: Any) -> Any:
    """Put what annotations say in place of what follows from the types."""
    if isinstance(node, list):
        return [_exact(one) for one in node]
    if not isinstance(node, dict):
        return node
    if EXACTLY in node:
        return {**node[EXACTLY], **({"default": node["default"]} if "default" in node else {})}
    return {name: _exact(one) for name, one in node.items()}


def _operation(route: Route) -> dict[str, Any]:
    slug = re.sub(r"\W+", "_", f"{route.method.lower()}_{route.path}").strip("_")
    found: dict[str, Any] = {
        "operationId": slug,
        "tags": [route.name],
        "summary": route.summary or route.name,
        "responses": _responses(route),
    }
    if doc := (route.handler.__doc__ or "").strip():
        found["description"] = " ".join(doc.split())
    if route.right is Right.OPEN:
        found["security"] = []
    if parameters := _parameters(route):
        found["parameters"] = parameters
    if route.takes is not None:
        schema = {"$ref": f"#/components/schemas/{route.takes.__name__}"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _parameters(route: Route) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)(?::path)?\}", route.path)
    ]
    if route.azure:
        schema = {"type": "string", "minLength": 1}
        found.append({"name": "api-version", "in": "query", "required": True, "schema": schema})
    return found


def _responses(route: Route) -> dict[str, Any]:
    headers = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    found: dict[str, Any] = {
        str(status): {"description": "Done.", "headers": headers, "content": _content(route)}
        for status in _STATUSES.get(route.name, (200,))
    }
    for status in _ERRORS:
        if status in _BODY_ERRORS and route.method != "POST":
            continue
        if status in _WORK_ERRORS and route.right is not Right.EMBED:
            continue
        found[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    return found


def _content(route: Route) -> dict[str, Any]:
    media = _MEDIA.get(route.name, "application/json")
    if media != "application/json":
        return {media: {"schema": {"type": "string"}}}
    if route.gives is None:
        return {media: {"schema": {"type": "object"}}}
    found: dict[str, Any] = {media: {"schema": {"$ref": f"#/components/schemas/{route.gives.__name__}"}}}
    if route.gives is EmbeddingsReply:
        found["application/octet-stream"] = {"schema": {"type": "string", "description": _RAW_ROWS}}
    return found


def _error(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _ERRORS[status],
        "headers": {"x-request-id": {"$ref": "#/components/headers/RequestId"}},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    if status in (429, 503):
        found["headers"]["retry-after-ms"] = _header("Milliseconds after which to come back.")
        found["headers"]["retry-after"] = _header("The same in seconds, rounded up.")
    return found


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}
