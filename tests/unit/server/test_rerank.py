"""Documents in the order of their similarity to a query."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.testing.fakes import FakeProvider

fake = runpy.run_path(str(Path(__file__).with_name("fake_models.py")))
Served, application, asked = fake["Served"], fake["application"], fake["asked"]

DOCUMENTS = ["one", "two words", "three", "one"]


@pytest.fixture
def app() -> Any:
    return application(Served("m", FakeProvider(max_tokens=3)))


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "query": "a query", "documents": DOCUMENTS, **more}


@pytest.mark.parametrize("base", ["/v1", "/v3"])
def test_scores_are_cosines_of_query_and_documents(app: Any, base: str) -> None:
    found = asked(app, f"{base}/rerank", body()).json
    vectors = FakeProvider().vectors(DOCUMENTS).astype(float)
    query = FakeProvider().vectors(["query: a query"])[0].astype(float)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines, kind="stable").tolist()
    assert [item["index"] for item in found["results"]] == order
    assert [item["relevance_score"] for item in found["results"]] == pytest.approx(cosines[order].tolist())
    assert found["usage"]["total_tokens"] == 2 + 5
    assert found["model"] == "m"


def test_equal_documents_keep_their_order(app: Any) -> None:
    places = [item["index"] for item in asked(app, "/v1/rerank", body()).json["results"]]
    assert places.index(0) + 1 == places.index(3)


def test_top_n_leaves_the_rest_out(app: Any) -> None:
    whole = asked(app, "/v1/rerank", body()).json["results"]
    assert asked(app, "/v1/rerank", body(top_n=2)).json["results"] == whole[:2]
    assert asked(app, "/v1/rerank", body(top_n=99)).json["results"] == whole
    assert asked(app, "/v1/rerank", body(top_n=0)).status == 400


def test_documents_come_back_where_asked(app: Any) -> None:
    given = [{"text": "one"}, "two words"]
    found = asked(app, "/v1/rerank", body(documents=given, return_documents=True)).json["results"]
    assert {item["index"]: item["document"]["text"] for item in found} == {0: "one", 1: "two words"}
    assert "document" not in asked(app, "/v1/rerank", body()).json["results"][0]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": 3}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents"),
        ({"documents": ["a", 3]}, "documents"),
        ({"documents": [{"title": "a"}]}, "documents"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"top_n": 1.5}, "top_n"),
    ],
)
def test_wrong_requests_are_told_which_field(app: Any, more: dict[str, Any], param: str) -> None:
    found = asked(app, "/v1/rerank", body(**more))
    assert found.status == 400
    assert found.error["param"].startswith(param)


def test_a_long_document_is_an_error_unless_it_may_be_cut(app: Any) -> None:
    given = body(documents=["a b c d e"])
    found = asked(app, "/v1/rerank", given)
    assert (found.status, "index 0 of documents" in found.error["message"]) == (400, True)
    assert asked(app, "/v1/rerank", {**given, "truncate": "end"}).json["usage"]["total_tokens"] == 5
    assert asked(app, "/v1/rerank", {**given, "truncate": "average"}).json["usage"]["total_tokens"] == 7


def test_a_zero_vector_is_similar_to_nothing() -> None:
    class Zero(FakeProvider):
        def vectors(self, texts: Any) -> Any:
            return np.zeros((len(texts), self.dimensions), np.float32)

    found = asked(application(Served("m", Zero())), "/v1/rerank", body()).json["results"]
    assert {item["relevance_score"] for item in found} == {0.0}
