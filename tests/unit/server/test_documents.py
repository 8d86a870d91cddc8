"""The OpenAPI document and its page."""

from __future__ import annotations

import base64
import hashlib
import re
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vecmill.server.access import Right
from vecmill.server.errors import STATUSES
from vecmill.server.openapi import document
from vecmill.server.options import Options
from vecmill.server.routes.table import ROUTES
from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, application, asked = fake["Served"], fake["application"], fake["asked"]


@pytest.fixture
def app() -> Any:
    return application(Served("m", FakeProvider()))


@pytest.fixture
def shown(app: Any) -> Any:
    return asked(app, "/openapi.json").json


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return {found for one in node for found in references(one)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own | {found for one in node.values() for found in references(one)}


def test_every_listed_route_is_described(shown: Any) -> None:
    for route in ROUTES:
        path = route.path.replace(":path}", "}")
        if not route.listed:
            assert route.method.lower() not in shown["paths"].get(path, {})
            continue
        operation = shown["paths"][path][route.method.lower()]
        assert operation["summary"]
        assert set(re.findall(r"\{(\w+)\}", path)) <= {
            parameter["name"] for parameter in operation.get("parameters", ())
        }


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(shown: Any) -> None:
    assert shown["openapi"] == "3.1.0"
    for reference in references(shown):
        node = shown
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        assert node


def test_every_status_an_error_may_have_is_described_where_vectors_are_made(shown: Any) -> None:
    told = shown["paths"]["/v1/embeddings"]["post"]["responses"]
    assert {str(status) for status, _, _ in STATUSES.values()} <= told.keys()
    assert {"200", "401", "403", "404", "408", "413", "415", "429", "503", "504"} <= told.keys()
    assert "422" not in told


def test_no_word_of_the_annotations_is_left(shown: Any) -> None:
    assert b"x-exactly" not in document(ROUTES)
    inputs = shown["components"]["schemas"]["EmbeddingsRequest"]["properties"]["input"]
    assert len(inputs["anyOf"]) == 4


def test_replies_are_as_the_types_say(app: Any) -> None:
    ask = {"model": "m", "input": ["a b c", "d"], "truncate": True}
    for path, body in (
        ("/v1/embeddings", ask),
        ("/v1/embeddings", {**ask, "encoding_format": "base64"}),
        ("/v1/embeddings", {**ask, "encoding_format": "int8"}),
        ("/v1/tokenize", {"model": "m", "text": "a"}),
        ("/v1/rerank", {"model": "m", "query": "a", "documents": ["b"], "return_documents": True}),
        ("/v1/models", None),
        ("/v1/models/m", None),
    ):
        (gives,) = {
            route.gives for route in ROUTES if re.fullmatch(re.sub(r"\{.*\}", ".+", route.path), path)
        }
        found = asked(app, path, body)
        assert gives is not None
        msgspec.json.decode(
            found.content, type=msgspec.defstruct("T", [], bases=(gives,), forbid_unknown_fields=True)
        )


def test_the_page_loads_nothing_and_runs_only_what_it_brings(app: Any) -> None:
    found = asked(app, "/docs")
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    page = found.content.decode()
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://|<link|<img|@import|url\(|\son\w+=|style=", page)


def test_the_page_lists_the_routes(app: Any) -> None:
    page = asked(app, "/docs").content.decode()
    for route in ROUTES:
        assert (f"<td>{route.path.replace(':path}', '}')}</td>" in page) is route.listed


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_an_operator_may_hide_them(path: str) -> None:
    hidden = application(Served("m", FakeProvider()), options=Options(docs=False))
    assert asked(hidden, path).status == 404


def test_no_route_of_this_group_is_open() -> None:
    for route in ROUTES:
        if route.name in ("embeddings", "models", "model", "tokenize", "rerank", "openapi", "docs"):
            assert route.right is (Right.EMBED if route.method == "POST" else Right.READ)
