"""Which models are served, as clients see it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, application, asked = fake["Served"], fake["application"], fake["asked"]


@pytest.fixture
def app() -> Any:
    return application(Served("BAAI/bge-small-en", FakeProvider()), Served("a", FakeProvider()))


@pytest.mark.parametrize("base", ["/v1", "/v3", "/openai/v1", ""])
def test_models_are_listed_by_name_on_every_base(app: Any, base: str) -> None:
    found = asked(app, f"{base}/models").json
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == ["BAAI/bge-small-en", "a"]
    assert found["data"][1] == asked(app, f"{base}/models/a").json


@pytest.mark.parametrize("path", ["BAAI/bge-small-en", "BAAI%2Fbge-small-en"])
def test_an_id_may_hold_a_slash(app: Any, path: str) -> None:
    found = asked(app, f"/v1/models/{path}").json
    assert (found["id"], found["object"], found["owned_by"]) == ("BAAI/bge-small-en", "model", "vecmill")
    assert (found["dimensions"], found["max_tokens"], found["max_inputs"]) == (8, 256, 2048)


def test_the_time_a_model_was_made_does_not_change(app: Any) -> None:
    assert asked(app, "/v1/models").content == asked(app, "/v1/models").content
    assert asked(app, "/v1/models/a").json["created"] == 1_700_000_000


@pytest.mark.parametrize("spelling", ["all-MiniLM-L6-v2", "local:all-MiniLM-L6-v2", "minilm"])
def test_every_spelling_that_embeds_is_known_by_its_listed_id(spelling: str) -> None:
    app = application(Served("minilm", FakeProvider()))
    assert asked(app, f"/v1/models/{spelling}").json == asked(app, "/v1/models").json["data"][0]


def test_a_spelling_of_a_model_that_does_not_answer_is_a_404() -> None:
    assert asked(application(Served("other", FakeProvider())), "/v1/models/all-MiniLM-L6-v2").status == 404


@pytest.mark.parametrize("path", ["b", "BAAI", "a/b", "../a", "..%2F..%2Fetc%2Fpasswd", "a%00"])
def test_an_unknown_id_is_a_404(app: Any, path: str) -> None:
    found = asked(app, f"/v1/models/{path}")
    assert (found.status, found.error["code"]) == (404, "model_not_found")


def test_head_has_the_headers_alone(app: Any) -> None:
    found = asked(app, "/v1/models/a", method="HEAD")
    assert (found.status, found.content) == (200, b"")
    assert int(found.headers["content-length"]) > 0
