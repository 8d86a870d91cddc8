"""How good a model's vectors are: search over judged collections, and similarity against people's scores."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vecmill.core.errors import InputError
from vecmill.core.measure import cosines, mean_ndcg, overlap, spearman
from vecmill.core.types import Metric, Vectors
from vecmill.core.vectors import nearest

_K = 10


class Embeds(Protocol):
    """Texts in, (n, d) float32 out, in the order of the texts."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed texts; blank ones too, long ones cut."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A judged collection.

    Attributes:
        name: The folder's name.
        documents: Document id to text: title, a space, text; blank for empty documents.
        queries: Query id to text.
        judged: Query id to (document id to grade).
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judged: dict[str, dict[str, float]]


def read_collection(folder: Path) -> Collection:
    """Read `corpus.jsonl[.gz]` (_id, title, text), `queries.jsonl` (_id, text) and `qrels.tsv` of a folder.

    Raises:
        InputError: A judgement names a query or document that is not there.
    """
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        corpus = folder / "corpus.jsonl.gz"
    documents = {row["_id"]: f"{row.get('title') or ''} {row.get('text') or ''}" for row in _lines(corpus)}
    queries = {row["_id"]: row["text"] for row in _lines(folder / "queries.jsonl")}
    judged: dict[str, dict[str, float]] = {}
    with (folder / "qrels.tsv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            query, document = row["query-id"], row["corpus-id"]
            if query not in queries or document not in documents:
                raise InputError(
                    f"{folder / 'qrels.tsv'}: judges {query} and {document}, one of which is absent"
                )
            judged.setdefault(query, {})[document] = float(row["score"])
    return Collection(folder.name, documents, queries, judged)


def _lines(path: Path) -> Iterator[dict[str, str]]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for line in raw.splitlines():
        if line.strip():
            yield json.loads(line)


def search_quality(embed: Embeds, collection: Collection) -> float:
    """Search a collection exactly by cosine and return the mean nDCG@10 over judged queries."""
    ids = list(collection.documents)
    documents = embed(list(collection.documents.values()))
    asked = list(collection.judged)
    queries = embed([collection.queries[query] for query in asked])
    found = nearest(queries, documents, _K, metric=Metric.COSINE)
    ranked = {query: [ids[at] for at in rows] for query, rows in zip(asked, found.rows.tolist(), strict=True)}
    return mean_ndcg(ranked, collection.judged, _K)


def similarity_quality(embed: Embeds, file: Path) -> float:
    """Return Spearman's correlation of cosines with people's scores, times 100.

    Args:
        embed: The model.
        file: Tab-separated with a header: score, sentence1, sentence2.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    near = cosines(embed([row["sentence1"] for row in rows]), embed([row["sentence2"] for row in rows]))
    return 100.0 * spearman(near, [float(row["score"]) for row in rows])


@dataclass(frozen=True, slots=True)
class Closeness:
    """How near vectors are to a reference of the same texts; see `closeness`."""

    cosine_min: float
    cosine_mean: float
    overlap: float


def closeness(reference: Vectors, vectors: Vectors, k: int = _K) -> Closeness:
    """Compare vectors with a reference's of the same texts.

    Args:
        reference: (n, d) float32, n at least 2.
        vectors: (n, d) float32.
        k: Neighbours looked at; capped at n - 1.

    Returns:
        The least and the mean cosine of each text's two vectors, and the share of each text's k nearest
        neighbours among the other texts that both agree on.
    """
    near = cosines(reference, vectors)
    shared = overlap(_others(reference, k), _others(vectors, k))
    return Closeness(float(near.min()), float(near.mean()), shared)


def _others(vectors: Vectors, k: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return each row's nearest other rows, (n, up to k)."""
    k = min(k, len(vectors) - 1)
    rows = nearest(vectors, vectors, k + 1, metric=Metric.COSINE).rows
    own = np.arange(len(vectors))[:, None]
    # Among equal texts the row itself may be missing: then the last goes.
    dropped = np.where((rows == own).any(axis=1), (rows == own).argmax(axis=1), k)[:, None]
    kept: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = rows[np.arange(k + 1)[None, :] != dropped]
    return kept.reshape(len(vectors), k)
