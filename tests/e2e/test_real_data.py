"""The promises of the first release on real files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vecmill as package

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_thousand_reviews(vecmill: Run, data_dir: Path, tmp_path: Path) -> None:
    command = (
        "embed",
        data_dir / "reviews" / "fine_food_reviews_1k.csv",
        "--template",
        "Title: {Summary}; Content: {Text}",
        "-o",
        "reviews.parquet",
    )
    first = vecmill(*command)
    assert first.returncode == 0, first.stderr
    assert "1,000 rows, 1,000 vectors, 43 long texts (averaged)" in first.stderr
    found = package.read_vectors(tmp_path / "reviews.parquet")
    assert found.vectors.shape == (1000, 384)
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-5

    again = vecmill(*command)
    assert again.returncode == 0
    assert "already complete" in again.stderr

    result = json.loads(vecmill("search", "reviews.parquet", "pet food", "-k", "5", "--json").stdout)
    texts = [hit["text"].lower() for hit in result["results"]]
    assert len(texts) == 5
    assert all("cat" in text or "dog" in text for text in texts)
    assert all(text.startswith("title: ") for text in texts)

    report = json.loads(vecmill("verify", "reviews.parquet", "--sample", "50", "--json").stdout)
    assert report["ok"] is True


def test_three_text_columns_are_asked_about(vecmill: Run, data_dir: Path) -> None:
    asked = vecmill("embed", data_dir / "batch" / "billsum-0.csv", "-o", "bills.parquet")
    assert asked.returncode == 1
    assert all(name in asked.stderr for name in ("text", "summary", "title", "--text", "--template"))


def test_a_language_the_model_does_not_know_is_refused_unless_wanted(vecmill: Run, data_dir: Path) -> None:
    command = (
        "embed",
        data_dir / "retrieval" / "xquad-zh" / "corpus.jsonl",
        "--text",
        "text",
        "--limit",
        "40",
    )
    refused = vecmill(*command, "-o", "zh.parquet")
    assert refused.returncode == 1
    assert "unknown to local:all-MiniLM-L6-v2" in refused.stderr
    assert "--any-language" in refused.stderr
    taken = vecmill(*command, "-o", "zh2.parquet", "--any-language")
    assert taken.returncode == 0
    assert "marked in the column warning" in taken.stderr


def test_vectors_from_elsewhere_are_searched(vecmill: Run, data_dir: Path, tmp_path: Path) -> None:
    films = data_dir / "formats" / "films256.parquet"
    found = package.read_vectors(films)
    assert found.manifest is None
    np.save(tmp_path / "query.npy", found.vectors[3])
    done = vecmill("search", films, "--vector", "query.npy", "-k", "1", "--json")
    (hit,) = json.loads(done.stdout)["results"]
    assert hit["id"] == found.ids[3]
    refused = vecmill("search", films, "heist")
    assert refused.returncode == 1
    assert "-m" in refused.stderr
