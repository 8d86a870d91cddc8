"""The embedding mill for Python: tables of text into vectors you can search, serve and trust.

    import vecmill

    vecmill.embed_files("reviews.csv", "reviews.parquet", template="Title: {Summary}; Content: {Text}")
    for hit in vecmill.search("reviews.parquet", "pet food", k=5).hits:
        print(hit.similarity, hit.text)

The names below load on first use; importing the package itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vecmill._version import __version__

if TYPE_CHECKING:
    from vecmill.collection.collection import Collection
    from vecmill.collection.search import SearchResult, search, search_async, similar, similar_async
    from vecmill.collection.tables import embed, embed_async
    from vecmill.core.errors import Error
    from vecmill.data.vector_set import VectorSet, read_vectors
    from vecmill.embedder.embedder import AsyncEmbedder, Embedder, Embeddings
    from vecmill.jobs.run import embed_files, embed_files_async
    from vecmill.jobs.sync import sync, sync_async
    from vecmill.jobs.verify import verify, verify_async

__all__ = [
    "AsyncEmbedder",
    "Collection",
    "Embedder",
    "Embeddings",
    "Error",
    "SearchResult",
    "VectorSet",
    "__version__",
    "embed",
    "embed_async",
    "embed_files",
    "embed_files_async",
    "read_vectors",
    "search",
    "search_async",
    "similar",
    "similar_async",
    "sync",
    "sync_async",
    "verify",
    "verify_async",
]

_HOMES = {
    "AsyncEmbedder": "vecmill.embedder.embedder",
    "Collection": "vecmill.collection.collection",
    "Embedder": "vecmill.embedder.embedder",
    "Embeddings": "vecmill.embedder.embedder",
    "Error": "vecmill.core.errors",
    "SearchResult": "vecmill.collection.search",
    "VectorSet": "vecmill.data.vector_set",
    "embed": "vecmill.collection.tables",
    "embed_async": "vecmill.collection.tables",
    "embed_files": "vecmill.jobs.run",
    "embed_files_async": "vecmill.jobs.run",
    "read_vectors": "vecmill.data.vector_set",
    "search": "vecmill.collection.search",
    "search_async": "vecmill.collection.search",
    "similar": "vecmill.collection.search",
    "similar_async": "vecmill.collection.search",
    "sync": "vecmill.jobs.sync",
    "sync_async": "vecmill.jobs.sync",
    "verify": "vecmill.jobs.verify",
    "verify_async": "vecmill.jobs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vecmill' has no attribute {name!r}")
    import importlib  # late: this is what makes the names lazy

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
