"""Every family and every pooling against vectors that sentence-transformers computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.types import InputType, Vectors

MODELS = (
    "bert-mean",
    "bert-last-max",
    "bert-prompts",
    "roberta-cls",
    "xlm-roberta-mean",
    "mpnet-mean",
    "distilbert-dense",
    "ir-tokens",
    "onnx-sentences",
)


def cosines(a: Vectors, b: Vectors) -> Vectors:
    return np.einsum("ij,ij->i", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_equal_the_reference(name: str, golden: Path, open_local: Any, embed: Any) -> None:
    reference = np.load(golden / name / "vectors.npy")
    texts = json.loads((golden / name / "texts.json").read_text())
    vectors = embed(open_local(golden / name), texts)
    assert vectors.dtype == np.float32
    assert cosines(vectors, reference).min() >= 0.99999
    np.testing.assert_allclose(vectors, reference, atol=1e-5)
    assert cosines(reference[:-1], reference[1:]).max() < 0.9999  # the texts differ, so a mix-up would show


def test_queries_and_documents_have_their_own_prompts(golden: Path, open_local: Any, embed: Any) -> None:
    folder = golden / "bert-prompts"
    texts = json.loads((folder / "texts.json").read_text())
    queries = embed(open_local(folder), texts, InputType.QUERY)
    assert cosines(queries, np.load(folder / "query_vectors.npy")).min() >= 0.99999
    assert cosines(queries, np.load(folder / "vectors.npy")).max() < 0.99999


@pytest.mark.parametrize("name", MODELS[:7])
def test_int8_stays_close(name: str, golden: Path, open_local: Any, embed: Any) -> None:
    reference = np.load(golden / name / "vectors.npy")
    texts = json.loads((golden / name / "texts.json").read_text())
    int8 = open_local(golden / name, precision="int8")
    assert int8.info.precision == "int8"
    vectors = embed(int8, texts)
    assert cosines(vectors, reference).min() >= 0.99
    assert not np.array_equal(vectors, embed(open_local(golden / name), texts))


@pytest.mark.parametrize("name", MODELS)
def test_info_says_what_the_model_does(name: str, golden: Path, open_local: Any) -> None:
    reference = np.load(golden / name / "vectors.npy")
    info = open_local(golden / name).info
    assert info.dimensions == reference.shape[1]
    assert info.max_tokens == 48
    assert info.normalized == np.allclose(np.linalg.norm(reference, axis=1), 1, atol=1e-5)
    assert info.name == f"local:{(golden / name).resolve()}"
