"""Paths to routes."""

from __future__ import annotations

import pytest

from vecmill.server.access import Right
from vecmill.server.call import Answer, Call
from vecmill.server.errors import Refusal
from vecmill.server.routing import Route, Table


async def nothing(call: Call) -> Answer:
    return Answer(200, b"")


TABLE = Table(
    [
        Route("GET", "/v1/models", nothing, Right.READ, "list"),
        Route("GET", "/v1/models/{id:path}", nothing, Right.READ, "show"),
        Route("POST", "/deployments/{name}/embeddings", nothing, Right.EMBED, "deployment"),
        Route("GET", "/deployments/{name}/embeddings", nothing, Right.EMBED, "shown deployment"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "name", "parts"),
    [
        ("GET", "/v1/models", "list", {}),
        ("HEAD", "/v1/models", "list", {}),
        ("GET", "/v1/models/", "list", {}),
        ("GET", "/v1/models/minilm", "show", {"id": "minilm"}),
        ("GET", "/v1/models/BAAI/bge-small-en", "show", {"id": "BAAI/bge-small-en"}),
        ("POST", "/deployments/a/embeddings", "deployment", {"name": "a"}),
        ("GET", "/deployments/a/embeddings", "shown deployment", {"name": "a"}),
    ],
)
def test_a_path_finds_its_route(method: str, path: str, name: str, parts: dict[str, str]) -> None:
    route, found = TABLE.find(method, path)
    assert (route.name, dict(found)) == (name, parts)


@pytest.mark.parametrize("path", ["/", "", "/v1", "/v1/model", "/deployments/a/b/embeddings", "//v1/models"])
def test_an_unknown_path_is_404(path: str) -> None:
    with pytest.raises(Refusal) as caught:
        TABLE.find("GET", path)
    assert caught.value.status == 404


def test_another_method_is_405_and_says_which_are_allowed() -> None:
    with pytest.raises(Refusal) as caught:
        TABLE.find("DELETE", "/v1/models")
    assert caught.value.status == 405
    assert dict(caught.value.headers)["allow"] == "GET, HEAD"


def test_a_path_is_shown_cut_and_without_control_characters() -> None:
    with pytest.raises(Refusal) as caught:
        TABLE.find("GET", "/\r\nx" + "y" * 1000)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200
