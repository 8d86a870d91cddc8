"""Clients nobody changed for us get what they would get from OpenAI, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vecmill
from vecmill import Embedder
from vecmill.core.types import InputType
from vecmill.models.resolve import open_model
from vecmill.server.access import Right
from vecmill.server.keys import KeyFile

harness = runpy.run_path(str(Path(__file__).parent / "server_clients" / "harness.py"))
serving, vecmill_serve = harness["serving"], harness["vecmill_serve"]
run_client, openai_folders = harness["run_client"], harness["openai_folders"]

TEXTS = [
    "the cat sat on the mat",
    "That is a happy person",
    "A second sentence, with numbers 12 and 345.",
    "  white space is part of a text\n",
    "naïve café, 5 € – and 😀",
]
SLASHED = "acme/tiny-embedder"
Vectors = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def expected() -> Vectors:
    """What the library itself says of `TEXTS`."""
    with Embedder() as embedder:
        return embedder.embed(TEXTS).vectors


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with vecmill_serve("--model", "minilm", "--model", f"{SLASHED}=minilm") as running:
        yield running.origin


def asked(origin: str, **more: Any) -> dict[str, Any]:
    return {"origin": origin, "model": "minilm", "texts": TEXTS, "key": "sk-nobody-checks-0123", **more}


def assert_same(found: Any, expected: Vectors) -> None:
    """The float32 numbers are the same to the last bit."""
    assert np.array_equal(np.asarray(found, dtype=np.float32), expected)


def packages_of(major: int) -> Path | None:
    folders = openai_folders()
    if major not in folders:
        pytest.skip(f"needs openai {major}: name a folder of it in VECMILL_TEST_OPENAI")
    return folders[major]


@pytest.fixture(scope="module", params=[1, 2, 3])
def major(request: pytest.FixtureRequest) -> int:
    packages_of(request.param)
    return int(request.param)


@pytest.fixture(scope="module")
def report(major: int, origin: str) -> dict[str, Any]:
    """What the official client of a major got for everything people do with it."""
    return run_client("openai_calls.py", asked(origin), packages=packages_of(major))


class TestOfficialClient:
    def test_it_is_the_major_that_was_meant(self, report: dict[str, Any], major: int) -> None:
        assert report["version"].startswith(f"{major}.")

    @pytest.mark.parametrize("way", ["/v1", "/v3", "/openai/v1", "float", "async", "azure"])
    def test_every_way_gives_the_librarys_own_vectors(
        self, report: dict[str, Any], expected: Vectors, way: str
    ) -> None:
        assert_same(report[way], expected)

    @pytest.mark.parametrize("way", ["one", "own_size", "raw_vector", "azure_bearer"])
    def test_one_text_gives_the_vector_it_has_among_others(
        self, report: dict[str, Any], expected: Vectors, way: str
    ) -> None:
        assert_same(report[way], expected[0])

    def test_base64_holds_the_very_bytes(self, report: dict[str, Any], expected: Vectors) -> None:
        import base64

        for coded, vector in zip(report["base64"], expected, strict=True):
            assert base64.b64decode(coded) == vector.astype("<f4").tobytes()
        assert report["stream_bytes"] == expected.shape[1] * 4

    def test_usage_model_and_order_are_right(self, report: dict[str, Any]) -> None:
        tokens = open_model("minilm").encode(TEXTS, input_type=InputType.DOCUMENT).tokens
        assert report["usage"] == {"prompt_tokens": tokens.sum(), "total_tokens": tokens.sum()}
        assert report["indexes"] == list(range(len(TEXTS)))
        assert report["objects"] == ["list", "embedding"]
        assert report["model"] == "minilm"

    def test_every_reply_has_its_request_id(self, report: dict[str, Any]) -> None:
        assert report["raw_status"] == 200
        assert report["raw_request_id"]
        assert report["request_id"]
        assert report["request_id"] != report["raw_request_id"]

    def test_models_are_listed_and_found_even_with_a_slash(self, report: dict[str, Any]) -> None:
        assert sorted(report["models"]) == sorted(report["retrieved"]) == sorted(["minilm", SLASHED])
        assert set(report["model_objects"]) == {"model"}
        assert report["created"] == report["created_again"]

    def test_what_is_wrong_raises_the_clients_own_classes(self, report: dict[str, Any]) -> None:
        errors = report["errors"]
        wanted: dict[str, tuple[str, int, str | None, str | None]] = {
            "empty": ("BadRequestError", 400, None, "input"),
            "empty_list": ("BadRequestError", 400, None, "input"),
            "too_many": ("BadRequestError", 400, "array_above_max_length", "input"),
            "unknown_model": ("NotFoundError", 404, "model_not_found", "model"),
        }
        for name, want in wanted.items():
            kind, status, code, param, has_id = errors[name]
            assert (kind, status, param, has_id) == (want[0], want[1], want[3], True), name
            assert want[2] is None or code == want[2], name
        for name in ("no_dimensions", "too_wide", "token_outside", "too_long"):
            assert errors[name][:2] == ["BadRequestError", 400], name
            assert errors[name][4], name
        assert errors["unknown_retrieved"][:3] == ["NotFoundError", 404, "model_not_found"]
        assert errors["unknown_path"][:2] == ["NotFoundError", 404]
        assert report["azure_missing"] == "DeploymentNotFound"


def test_told_to_wait_the_official_client_comes_back_and_gets_its_vectors(major: int) -> None:
    texts = [f"text number {i} " + "and more words " * 40 for i in range(48)]
    limits = {"queue_tokens": 1_200, "batch_tokens": 600}
    with serving(limits=limits) as running:
        report = run_client(
            "retries.py", asked(running.origin, texts=texts, patient=40), packages=packages_of(major)
        )
    refused = [error for error in report["hasty"]["errors"] if error]
    assert refused
    assert set(refused) == {"RateLimitError 429 rate_limit_exceeded"}
    assert all(0 < wait <= 120_000 for wait in report["hasty"]["waits"])
    assert not any(report["patient"]["errors"])
    with Embedder() as embedder:
        assert_same(report["patient"]["vectors"], embedder.embed(texts).vectors)


def test_each_key_meets_the_clients_own_class(major: int, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    right, _ = file.add("right")
    reader, _ = file.add("reader", rights=[Right.READ])
    wrong = "sk-wrong-canary-4711"
    limits = {"key_requests_per_minute": 8}
    with serving(keys_file=str(file.path), limits=limits) as running:
        keys = {"right": right, "reader": reader, "wrong": wrong}
        report = run_client(
            "openai_keys.py",
            {"origin": running.origin, "model": "minilm", "keys": keys, "until_refused": 10},
            packages=packages_of(major),
        )
        log = running.log
    assert report["right"]["embed"][0] == report["right"]["list"][0] == report["reader"]["list"][0] == "fine"
    assert report["reader"]["embed"][:2] == ["PermissionDeniedError", 403]
    for way in ("embed", "list"):
        kind, status, code, said = report["wrong"][way]
        assert (kind, status, code) == ("AuthenticationError", 401, "invalid_api_key")
        assert wrong not in said
    assert report["rates"]["x-ratelimit-limit-requests"] == "8"
    assert report["at_last"][:3] == ["RateLimitError", 429, "rate_limit_exceeded"]
    assert not any(key in log for key in keys.values())


def needs(module: str, package: str) -> None:
    """Skip where a package is not installed; nothing of it is imported here."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"needs {package}")


@pytest.fixture
def ranks(tmp_path: Path) -> dict[str, str]:
    """Where tiktoken finds the ranks of cl100k_base, which it would else download."""
    shipped = Path(vecmill.__file__).parent / "core" / "ranks" / "cl100k_base.tiktoken"
    shutil.copy(shipped, tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")  # sha1 of its address
    return {"TIKTOKEN_CACHE_DIR": str(tmp_path)}


def test_langchains_token_ids_of_another_vocabulary_give_the_texts_own_vectors(
    origin: str, expected: Vectors, ranks: dict[str, str]
) -> None:
    needs("langchain_openai", "langchain-openai")
    report = run_client("langchain_calls.py", asked(origin), env=ranks)
    for name in ("documents", "as_texts", "async", "azure"):
        assert_same(report[name], expected)
    assert_same(report["query"], expected[0])


def test_llama_index_gets_the_librarys_own_vectors(origin: str) -> None:
    needs("llama_index.embeddings.openai_like", "llama-index-embeddings-openai-like")
    with Embedder() as embedder:
        # It replaces line feeds before it asks.
        expected = embedder.embed([text.replace("\n", " ") for text in TEXTS]).vectors
    report = run_client("llama_index_calls.py", asked(origin))
    for name in ("like", "own", "async"):
        assert_same(report[name], expected)
    for name in ("like_query", "own_one"):
        assert_same(report[name], expected[0])


def test_haystack_gets_the_librarys_own_vectors(origin: str, expected: Vectors) -> None:
    needs("haystack", "haystack-ai")
    report = run_client("haystack_calls.py", asked(origin), env={"HAYSTACK_TELEMETRY_ENABLED": "false"})
    assert_same(report["query"], expected[0])
    assert report["model"] == "minilm"
    assert report["usage"]["prompt_tokens"] > 0


def test_json_module_is_all_a_script_needs(origin: str, expected: Vectors) -> None:
    import urllib.request

    body = json.dumps({"model": "minilm", "input": TEXTS}).encode()
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{origin}/v1/embeddings", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        answered = json.loads(reply.read())
    assert_same([item["embedding"] for item in answered["data"]], expected)
