"""Never run: every public name, used as its types promise. Checked by mypy."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

import vecmill


def embed_texts() -> None:
    with vecmill.Embedder("minilm", long_text="average", threads=2) as embedder:
        made = embedder.embed(["a", "b"], input_type="query")
        assert_type(made, vecmill.Embeddings)
        assert_type(made.vectors, npt.NDArray[np.float32])
        assert_type(len(made), int)
        assert_type(made.usage.tokens, int)
        assert_type(made.model, str)
        assert_type(embedder.info.dimensions, int)
    np.asarray(made)
    assert_type(vecmill.embed({"t": ["a"]}, text="t"), vecmill.Embeddings)


async def embed_texts_without_blocking() -> None:
    async with vecmill.AsyncEmbedder() as embedder:
        assert_type(await embedder.embed("a"), vecmill.Embeddings)
    assert_type(await vecmill.embed_async(["a"]), vecmill.Embeddings)


def search_a_set() -> None:
    found = vecmill.search("set.parquet", "a query", k=3, metric="dot", columns=["title"])
    assert_type(found, vecmill.SearchResult)
    for hit in found.hits:
        assert_type(hit.id, str)
        assert_type(hit.similarity, float)
        assert_type(hit.text, str | None)
    opened = vecmill.read_vectors(Path("set.parquet"))
    assert_type(opened, vecmill.VectorSet)
    assert_type(opened.vectors, npt.NDArray[np.float32])
    vecmill.search(opened, np.zeros(384), min_similarity=0.3)
    assert_type(vecmill.similar(opened, "row1"), vecmill.SearchResult)
    vecmill.search(opened, "a query", top_k=3)  # type: ignore[call-arg]  # unknown options are refused


async def search_without_blocking() -> None:
    assert_type(await vecmill.search_async("set.parquet", "a query"), vecmill.SearchResult)
    assert_type(await vecmill.similar_async("set.parquet", "row1", k=1), vecmill.SearchResult)


def run_a_job() -> None:
    outcome = vecmill.embed_files(["a.csv", Path("b.csv")], "out.parquet", template="{a}: {b}")
    assert_type(outcome.exit_code, int)
    report = vecmill.verify("out.parquet", sample=10)
    assert_type(report.ok, bool)


async def run_a_job_without_blocking() -> None:
    await vecmill.embed_files_async("a.csv", "out.parquet", text="a")
    assert_type((await vecmill.verify_async("out.parquet")).ok, bool)


def errors() -> str:
    try:
        vecmill.read_vectors("gone")
    except vecmill.Error as error:
        return f"{vecmill.__version__}: {error}"
    return ""
