"""Search by text, by vector or by an item of its own: a set, a collection, a table in PostgreSQL alike."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from vecmill.collection.filters import Filter, parse
from vecmill.collection.items import Items, Near
from vecmill.collection.opening import Searchable, opened
from vecmill.collection.query_vectors import QueryModel, QueryVectors, one_vector, query_vectors, texts_of
from vecmill.collection.search_options import SearchKeywords, SearchOptions, options_of
from vecmill.collection.text_index import fused
from vecmill.core.errors import InputError, unknown_name
from vecmill.core.types import Hit, Id, IntArray, Metric, Vectors
from vecmill.core.vectors import pair_distances, similarity
from vecmill.embedder.background import run_sync

_OURS = ("id", "error", "warning")
"""Columns of our own sets that say nothing about a hit: it has an id, and a vector."""

_CANDIDATES = 10
_LEAST_CANDIDATES, _MOST_CANDIDATES = 100, 1 << 31
"""A hybrid search fuses the best 10 k of each ranking, at least 100; databases count no further than 2^63."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        query: The text searched for; None for a vector or an item.
        model: The model whose vectors were compared; None where nobody knows.
        space: Its space id; None where nobody knows.
        complete: False when there are fewer hits than the k asked for.
        metric: What "near" meant: "cosine", "dot" and so on.
        hits: Nearest first, equal distances in row order; of a hybrid search best first.
        fewer: Why there are fewer than k: "threshold", "where" (no more rows pass the filter) or "size" (no
            more are there); None when complete.
        notes: What people should know about the source, such as an index that is out of date.
    """

    query: str | None
    model: str | None
    space: str | None
    complete: bool
    metric: str
    hits: tuple[Hit, ...]
    fewer: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)


def search(source: Searchable, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]) -> SearchResult:
    """Find the items nearest to a text or a vector; see `search_async`."""
    return run_sync(search_async(source, query, **options))


def similar(source: Searchable, id: Id, **options: Unpack[SearchKeywords]) -> SearchResult:  # noqa: A002 - the word for it
    """Find the items nearest to one of the source's own; see `similar_async`."""
    return run_sync(similar_async(source, id, **options))


async def search_async(
    source: Searchable, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]
) -> SearchResult:
    """Find the items nearest to a text or a vector.

    A text is embedded as a query by the model that made the vectors, or by `model`, whose vectors must be
    comparable with them. A set from elsewhere does not say what made it: text queries then need `model`.

    Args:
        source: A path of a vector set or a collection, a `postgresql://` URL, or what `read_vectors` returns.
            Of a set all rows are compared. Wrap an open set in `SetItems` to search it often: it keeps what
            one search computed for the next.
        query: A text, or one vector (d,).
        **options: Fields of `SearchOptions`.

    Raises:
        InputError: The query is empty, k is below 1, the filter does not fit the columns, an index is for
            another metric, or a set that names no model is searched by text.
        SpaceMismatchError: `model` is not the one that made the vectors.
        DimensionMismatchError: Query and vectors differ in dimensions.
        StorageError: The source is damaged.
    """
    one = [query] if isinstance(query, str) else one_vector(query)
    return (await search_many(source, one, **options))[0]


async def search_many(
    source: Searchable, queries: Sequence[str] | npt.ArrayLike, **options: Unpack[SearchKeywords]
) -> list[SearchResult]:
    """Answer several queries; result i answers queries[i]. Errors as `search_async`.

    Args:
        source: As `search_async` takes it.
        queries: Texts, or vectors (q, d).
        **options: Fields of `SearchOptions`.
    """
    asked = options_of(options)
    where = None if asked.where is None else parse(asked.where)
    texts = texts_of(queries)
    if asked.hybrid and texts is None:
        raise InputError("a hybrid search ranks by words too: give the query as a text, or leave hybrid out")
    model = QueryModel(asked.model, asked.base_url, asked.settings)
    async with opened(source, vector_column=asked.vector_column, id_column=asked.id_column) as items:
        metric = _metric(items, asked)
        ready = await query_vectors(items, queries, texts, model)

        def answer() -> list[SearchResult]:
            found = _found(items, ready, metric, where, asked)
            return _results(items, found, ready, metric, asked)

        return await asyncio.to_thread(answer)


async def similar_async(source: Searchable, id: Id, **options: Unpack[SearchKeywords]) -> SearchResult:  # noqa: A002 - as above
    """Find the items nearest to one of the source's own items, which is left out itself. No model is needed.

    An item of several vectors (a text cut into chunks) is as near as its nearest vector.

    Args:
        source: As `search_async` takes it.
        id: The item's id, as `search` shows it. A text that is no id is tried as the whole number or the
            bytes (in hexadecimal digits) it spells.
        **options: Fields of `SearchOptions` but `model` and `hybrid`.

    Raises:
        UnknownNameError: There is no such id; the message lists close ones.
        InputError: The item has no vector.
    """
    asked = options_of(options)
    if asked.hybrid:
        raise InputError("similar compares vectors only: search for the item's text to use hybrid")
    where = None if asked.where is None else parse(asked.where)

    async with opened(source, vector_column=asked.vector_column, id_column=asked.id_column) as items:
        metric = _metric(items, asked)
        made = items.manifest

        def answer() -> SearchResult:
            rows, own = _own(items, id)
            near = items.nearest(own, asked.k, metric=metric, where=where, leave_out=rows, exact=asked.exact)
            found = _kept(items, _merged(near, asked.k), metric, where, asked)
            model, space = (None, None) if made is None else (made.model, made.space)
            ready = QueryVectors(own[:1], None, model, space)
            return _results(items, [found], ready, metric, asked)[0]

        return await asyncio.to_thread(answer)


def _metric(items: Items, asked: SearchOptions) -> Metric:
    """Return what "near" means: what was asked for, else what the items are built for, else cosine."""
    if asked.metric is None:
        return items.metric or Metric.COSINE
    wanted = Metric(asked.metric)
    indexed = getattr(items, "indexed", items.metric is not None)  # without an index it is but the default
    if indexed and items.metric not in (None, wanted) and not asked.exact:
        raise InputError(
            f"{items.name} is built for the metric {items.metric}, not {wanted}; leave metric out, or "
            "compare with every vector: exact=True (--exact)"
        )
    return wanted


@dataclass(frozen=True, slots=True)
class _Found:
    """What one query found and what was left of it: rows in order, their distances, why fewer than k."""

    near: Near
    fewer: str | None


def _found(
    items: Items, ready: QueryVectors, metric: Metric, where: Filter | None, asked: SearchOptions
) -> list[_Found]:
    """Find the rows of each query that pass filter and thresholds."""
    count = asked.k
    if asked.hybrid:
        count = min(max(_CANDIDATES * asked.k, _LEAST_CANDIDATES), _MOST_CANDIDATES)
    near = items.nearest(ready.vectors, count, metric=metric, where=where, exact=asked.exact)
    if asked.hybrid and ready.texts is not None:
        near = [
            _fused(items, one, items.ranked(text, count, where=where), vector, metric)
            for one, text, vector in zip(near, ready.texts, ready.vectors, strict=True)
        ]
    return [_kept(items, one, metric, where, asked) for one in near]


def _fused(items: Items, near: Near, worded: IntArray, vector: Vectors, metric: Metric) -> Near:
    """Fuse the ranking by vectors with the one by words; rows only the words found get their distance."""
    known = dict(zip(near.rows.tolist(), near.distances.tolist(), strict=True))
    known |= _distances(items, [row for row in worded.tolist() if row not in known], vector, metric)
    worded = np.array([row for row in worded.tolist() if row in known], np.int64)
    order = fused([near.rows, worded], max(len(known), 1))
    return Near(order, np.array([known[row] for row in order.tolist()], np.float32))


def _distances(items: Items, rows: list[int], vector: Vectors, metric: Metric) -> dict[int, float]:
    """Return the distance of each row that has a vector."""
    held = items.vectors_of(np.array(rows, np.int64)) if rows else np.empty((0, len(vector)), np.float32)
    if len(held) < len(rows):  # which ones have none can only be asked one by one
        each = [(row, items.vectors_of(np.array([row], np.int64))) for row in rows]
        rows = [row for row, found in each if len(found)]
        held = np.concatenate([found[:1] for _, found in each if len(found)] or [held[:0]])
    pairs = np.broadcast_to(vector, held.shape)
    return dict(zip(rows, pair_distances(pairs, held, metric).tolist(), strict=True))


def _kept(items: Items, near: Near, metric: Metric, where: Filter | None, asked: SearchOptions) -> _Found:
    """Leave out what the thresholds exclude, and all but the first k."""
    passes = np.ones(len(near.rows), dtype=np.bool_)
    if asked.max_distance is not None:
        passes &= near.distances <= asked.max_distance
    if asked.min_similarity is not None:
        farthest = _distance_of(asked.min_similarity, metric, items.dimensions)
        passes &= (near.distances <= farthest) | (
            similarity(near.distances, metric, items.dimensions) >= asked.min_similarity
        )
    kept = np.flatnonzero(passes)[: asked.k]
    fewer = None
    if len(kept) < asked.k:
        fewer = "threshold" if not passes.all() else "size" if where is None else "where"
    return _Found(Near(near.rows[kept], near.distances[kept]), fewer)


def _distance_of(likeness: float, metric: Metric, dimensions: int) -> np.float32:
    """Turn a similarity into the distance it is shown for, rounded as distances are: the boundary is in."""
    match metric:
        case Metric.DOT:
            far = -likeness
        case Metric.HAMMING:
            far = (1.0 - likeness) * dimensions
        case Metric.COSINE | Metric.JACCARD:
            far = 1.0 - likeness
        case _:
            far = np.inf if likeness <= 0.0 else 1.0 / likeness - 1.0
    with np.errstate(over="ignore"):
        return np.float32(far)


def _own(items: Items, name: Id) -> tuple[IntArray, Vectors]:
    """Return the rows of an item and its vectors (m, d), m at least 1."""
    rows = items.find(name)
    for other in _other_readings(name):
        if not len(rows):
            rows = items.find(other)
    shown = name.hex() if isinstance(name, bytes) else str(name)
    if not len(rows):
        raise unknown_name("id", shown, [_shown(known) for known in items.known_ids()])
    own = items.vectors_of(rows)
    if not len(own):
        raise InputError(
            f"the item {shown!r} has no vector (row {rows.min()} of {items.name}); choose another"
        )
    return rows, own


def _shown(name: Id) -> str:
    return name.hex() if isinstance(name, bytes) else str(name)


def _other_readings(name: Id) -> list[Id]:
    """Return what else a text may stand for: commands know texts only."""
    readings: list[Id] = []
    if isinstance(name, str) and name.isascii() and len(name) < 200:
        if name.removeprefix("-").isdigit() and str(int(name)) == name:
            readings.append(int(name))
        try:
            readings.append(bytes.fromhex(name))
        except ValueError:
            return readings
    return readings


def _merged(near: list[Near], k: int) -> Near:
    """Put the answers of an item's several vectors together: each row once, at its least distance."""
    rows = np.concatenate([one.rows for one in near])
    distances = np.concatenate([one.distances for one in near])
    order = np.lexsort((rows, distances))
    _, first = np.unique(rows[order], return_index=True)
    best = order[np.sort(first)][:k]
    return Near(rows[best], distances[best])


def _results(
    items: Items,
    found: list[_Found],
    ready: QueryVectors,
    metric: Metric,
    asked: SearchOptions,
) -> list[SearchResult]:
    """Fetch what the hits carry, in one pass, and lay them out."""
    if not found:
        return []
    hits = iter(_hits(items, [one.near for one in found], metric, asked))
    labels: Sequence[str | None] = ready.texts or [None] * len(found)
    notes = tuple(getattr(items, "notes", ()))  # not every source has something to say
    return [
        SearchResult(
            query=label,
            model=ready.model,
            space=ready.space,
            complete=one.fewer is None,
            metric=metric.value,
            hits=next(hits),
            fewer=one.fewer,
            notes=notes,
        )
        for label, one in zip(labels, found, strict=True)
    ]


def _hits(items: Items, near: list[Near], metric: Metric, asked: SearchOptions) -> list[tuple[Hit, ...]]:
    rows = np.concatenate([one.rows for one in near])
    distances = np.concatenate([one.distances for one in near])
    parts = zip(
        distances.tolist(),
        similarity(distances, metric, items.dimensions).tolist(),
        items.ids(rows),
        _carried(items, rows, asked),
        strict=True,  # a source that loses a row must not pass for one that found less
    )
    return [
        tuple(
            Hit(rank, id_, distance, likeness, text, columns)
            for rank, (distance, likeness, id_, (text, columns)) in enumerate(
                itertools.islice(parts, len(one.rows)), 1
            )
        )
        for one in near
    ]


def _carried(items: Items, rows: IntArray, asked: SearchOptions) -> list[tuple[str | None, dict[str, Any]]]:
    """Read text and columns of the hits, all in one pass."""
    made, text = items.manifest, items.text_column
    ours = {made.column(role) for role in _OURS} if made is not None else set()
    wanted = [name for name in items.columns if name not in ours and name != text]
    if asked.columns is not None:
        wanted = list(asked.columns)
    names = wanted if text is None or text in wanted else [*wanted, text]
    records = items.records(rows, names)
    return [
        (None if text is None else record[text], {name: record[name] for name in wanted})
        for record in records
    ]
