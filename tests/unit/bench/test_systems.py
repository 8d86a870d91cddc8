"""What the peers are told about a model; those tests that run a peer need its packages.

VECMILL_TEST_PEER_PYTHON names an interpreter that has them, where this one has not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vecmill.bench import peers, systems
from vecmill.bench.peers import System, Worker
from vecmill.bench.systems import ORT, REFERENCE
from vecmill.core.config import load_settings
from vecmill.core.errors import InputError

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "models"
PEER_PYTHON = Path(os.environ.get("VECMILL_TEST_PEER_PYTHON", peers.this_python()))
PACKAGES = ["torch", "transformers", "sentence_transformers", "onnxruntime", "tokenizers", "onnxscript"]


def find(name: str, *, python: Path = PEER_PYTHON) -> tuple[dict[str, System], list[str]]:
    notes: list[str] = []
    found = systems.find(
        systems.inspect(GOLDEN / name),
        threads=1,
        cores=None,
        python=python,
        settings=load_settings(),
        notes=notes,
    )
    return {system.name: system for system in found}, notes


@pytest.mark.parametrize(
    ("name", "padding", "limit", "token_types", "prompt", "normalize"),
    [
        ("bert-mean", 0, 48, True, "", False),
        ("bert-prompts", 0, 48, True, "document: ", True),
        ("distilbert-dense", 0, 48, False, "", False),
        ("mpnet-mean", 1, 48, False, "", False),
        ("xlm-roberta-mean", 1, 48, True, "", True),
    ],
)
def test_peers_are_told_what_the_folder_says(
    name: str, padding: int, limit: int, token_types: bool, prompt: str, normalize: bool
) -> None:
    options = systems.inspect(GOLDEN / name).peer_options()
    assert (options["padding_id"], options["max_tokens"]) == (padding, limit)
    assert options["token_types"] is token_types
    assert options["prompt"] == prompt
    assert options["normalize"] is normalize
    assert json.loads(json.dumps(options)) == options


def test_a_folder_of_its_own_layout_tells_limit_prompt_and_pooling(tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(GOLDEN / "bert-mean" / file, tmp_path)
    own = {"pooling": ["cls"], "normalize": True, "max_tokens": 7, "document_prefix": "passage: "}
    (tmp_path / "vecmill.json").write_text(json.dumps(own))
    model = systems.inspect(tmp_path)
    options = model.peer_options()
    assert (options["max_tokens"], options["prompt"], options["normalize"]) == (7, "passage: ", True)
    assert "fastembed's is the mean" in (model.reason_against(ORT) or "")
    assert "without modules.json" in (model.reason_against(REFERENCE) or "")
    assert model.count_tokens(["a", "a " * 40]).max() == 7


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert-last-max", "its pooling is"),
        ("roberta-cls", "its pooling is cls"),
        ("distilbert-dense", "has a Dense module"),
    ],
)
def test_onnxruntime_is_left_out_of_what_fastembed_does_not_do(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "missing_packages", lambda *_: [])
    found, notes = find(name)
    assert list(found) == ["vecmill float32", "vecmill int8", REFERENCE]
    (note,) = notes
    assert note.startswith(f"{ORT} is left out: ")
    assert reason in note


def test_the_mean_is_what_both_peers_run() -> None:
    model = systems.inspect(GOLDEN / "bert-mean")
    assert model.reason_against(ORT) is None
    assert model.reason_against(REFERENCE) is None


def test_a_folder_without_full_precision_weights_is_refused_naming_its_file() -> None:
    with pytest.raises(InputError, match=r"openvino_model\.xml: systems are compared on full-precision"):
        systems.inspect(GOLDEN / "ir-tokens")


def test_peers_that_are_not_installed_are_left_out_naming_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing_packages", lambda python, modules: modules[:1])
    found, notes = find("bert-mean", python=peers.this_python())
    assert list(found) == ["vecmill float32", "vecmill int8"]
    assert len(notes) == 2
    assert all("vecmill[bench]" in note and "torch" in note for note in notes)


def test_without_a_folder_only_the_built_in_model_is_measured() -> None:
    notes: list[str] = []
    model = systems.inspect(None)
    found = systems.find(
        model, threads=1, cores=None, python=peers.this_python(), settings=load_settings(), notes=notes
    )
    assert [system.options["model"] for system in found] == ["minilm"]
    assert "--model FOLDER" in notes[0]
    assert model.record()["name"] == "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def peer_vectors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[System, Path], np.ndarray]:
    missing = peers.missing_packages(PEER_PYTHON, PACKAGES)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: set VECMILL_TEST_PEER_PYTHON")
    folder = tmp_path_factory.mktemp("peers")

    def run(system: System, texts: Path) -> np.ndarray:
        with Worker(system) as worker:
            worker.embed(texts)
            worker.save(folder / "vectors.npy")
        vectors: np.ndarray = np.load(folder / "vectors.npy", allow_pickle=False)
        return vectors

    return run


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("bert-mean", ORT),
        ("mpnet-mean", ORT),
        ("xlm-roberta-mean", ORT),
        ("bert-mean", REFERENCE),
        ("bert-prompts", REFERENCE),
        ("distilbert-dense", REFERENCE),
        ("xlm-roberta-mean", REFERENCE),
    ],
)
def test_peers_give_the_vectors_of_the_model(
    name: str, peer: str, peer_vectors: Callable[[System, Path], np.ndarray]
) -> None:
    found, notes = find(name)
    assert peer in found, notes
    vectors = peer_vectors(found[peer], GOLDEN / name / "texts.json")
    expected = np.load(GOLDEN / name / "vectors.npy", allow_pickle=False)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
