"""What is asked of models, at the edges."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from vecmill.models.base import Encoded
from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, Words, application, asked = (fake[name] for name in ("Served", "Words", "application", "asked"))


class Own(FakeProvider):
    """A model with token ids of its own; see `Words`."""

    vocabulary = Words()

    def encode(self, texts: Any, *, input_type: Any) -> Encoded:
        found: Encoded = self.vocabulary.encode(texts)
        return found


def test_an_empty_text_as_ids_is_refused_as_an_empty_text_is() -> None:
    app = application(Served("m", Own()))
    for value in ([1, 2], [[1, 17, 2], [1, 2]]):
        found = asked(app, "/v1/embeddings", {"model": "m", "input": value})
        assert (found.status, found.error["param"]) == (400, "input")
        assert "stands for no text" in found.error["message"]
    assert asked(app, "/v1/embeddings", {"model": "m", "input": [1, 17, 2]}).status == 200


def test_azures_path_gives_azures_code_also_for_a_name_with_a_slash() -> None:
    path = "/openai/deployments/a%2Fb/embeddings?api-version=2024-10-21"
    found = asked(application(Served("m", FakeProvider())), path, {"input": "a"})
    assert (found.status, found.error["code"]) == (404, "DeploymentNotFound")
    served = application(Served("a/b", FakeProvider()))
    assert asked(served, path, {"input": "a"}).status == 200
