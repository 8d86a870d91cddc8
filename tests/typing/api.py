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
        assert_type(hit.id, str | int | bytes)
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


def keep_a_collection() -> None:
    notes = vecmill.Collection.create("notes.collection", model="minilm", precision="float16")
    notes.add(["a", 2, b"c"], ["one", "two", "three"], columns={"stars": [1, 2, 3]})
    notes.update([2], columns={"stars": [5]})
    assert_type(notes.delete(["a"]).deleted, int)
    assert_type(notes.search("a query", where="stars >= 4", hybrid=True), vecmill.SearchResult)
    assert_type(notes.similar(2, k=1), vecmill.SearchResult)
    state = notes.build_index(kind="hnsw", precision="int8", recall_target=0.95, m=32)
    assert_type(state.is_stale, bool)
    assert_type(notes.compact().complete, bool)
    assert_type(len(vecmill.Collection("notes.collection")), int)
    vecmill.search("notes.collection", "a query", exact=True)


def sync_a_table() -> None:
    assert_type(vecmill.sync("a.csv", "out.parquet", id_column="sku").added, int)


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
