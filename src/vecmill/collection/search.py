"""Open a vector set and search it by text, by vector or by one of its own items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import (
    DimensionMismatchError,
    InputError,
    TextTooLongError,
    UnknownNameError,
    unknown_name,
)
from vecmill.core.space import Manifest, ensure_comparable
from vecmill.core.types import Hit, InputType, IntArray, Metric, Vectors, choice
from vecmill.core.vectors import check
from vecmill.data.vector_set import VectorSet, read_vectors
from vecmill.embedder.background import run_sync
from vecmill.embedder.embedder import AsyncEmbedder, manifest_of
from vecmill.index.exact import ExactIndex
from vecmill.models.base import ModelInfo
from vecmill.models.resolve import canonical, known_models

Searchable: TypeAlias = str | Path | VectorSet
"""A vector set's path, or one already opened by `read_vectors`."""

_OURS = ("id", "error", "warning")
"""Columns of our own sets that say nothing about a hit: it has an id, and a vector."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        query: The text searched for; None for a vector or an item.
        model: The model whose vectors were compared; None where nobody knows.
        space: Its space id; None where nobody knows.
        complete: False when there are fewer hits than the k asked for.
        metric: What "near" meant: "cosine", "dot" or "euclidean".
        hits: Nearest first; equal distances in row order.
    """

    query: str | None
    model: str | None
    space: str | None
    complete: bool
    metric: str
    hits: tuple[Hit, ...]

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        k: Hits per query, at least 1.
        model: Embeds text queries; None takes the model of the set's manifest.
        base_url: Where a hosted model is, instead of its provider's own address.
        metric: "cosine", "dot" or "euclidean".
        columns: Columns a hit carries; None for all but the vectors.
        vector_column, id_column: As `read_vectors` takes them; only for a set given by its path.
        max_distance: Leave out hits further away; the boundary is in.
        min_similarity: Leave out hits less similar; the boundary is in.
        settings: None reads environment and `vecmill.toml`.
    """

    k: int = 10
    model: str | None = None
    base_url: str | None = None
    metric: Metric | str = Metric.COSINE
    columns: Sequence[str] | None = None
    vector_column: str | None = None
    id_column: str | None = None
    max_distance: float | None = None
    min_similarity: float | None = None
    settings: Settings | None = None


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions` as keyword arguments."""

    k: int
    model: str | None
    base_url: str | None
    metric: Metric | str
    columns: Sequence[str] | None
    vector_column: str | None
    id_column: str | None
    max_distance: float | None
    min_similarity: float | None
    settings: Settings | None


def search(source: Searchable, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]) -> SearchResult:
    """Find the items of a vector set nearest to a text or a vector; see `search_async`."""
    return run_sync(search_async(source, query, **options))


def similar(source: Searchable, id: str, **options: Unpack[SearchKeywords]) -> SearchResult:  # noqa: A002 - the word for it
    """Find the items of a vector set nearest to one of its own; see `similar_async`."""
    return run_sync(similar_async(source, id, **options))


async def search_async(
    source: Searchable, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]
) -> SearchResult:
    """Find the items of a vector set nearest to a text or a vector, by comparing with all of them.

    A text is embedded as a query by the model that made the set, or by `model`, whose vectors must be
    comparable with the set's. A set from elsewhere does not say what made it: text queries then need `model`.

    Args:
        source: A vector set, or its path.
        query: A text, or one vector (d,).
        **options: Fields of `SearchOptions`.

    Raises:
        InputError: The query is empty, k is below 1, or a set that names no model is searched by text.
        SpaceMismatchError: `model` is not the one that made the set.
        DimensionMismatchError: Query and set differ in dimensions.
        StorageError: The set is damaged.
    """
    one = [query] if isinstance(query, str) else _one_vector(query)
    return (await search_many(source, one, **options))[0]


async def search_many(
    source: Searchable, queries: Sequence[str] | npt.ArrayLike, **options: Unpack[SearchKeywords]
) -> list[SearchResult]:
    """Answer several queries; result i answers queries[i]. Errors as `search_async`.

    Args:
        source: A vector set, or its path.
        queries: Texts, or vectors (q, d).
        **options: Fields of `SearchOptions`.
    """
    asked = _options(options)
    texts = _texts(queries)
    found = await _open(source, asked)
    if texts is None:
        vectors = check(np.asarray(queries), what="queries")
        _ensure_width(found, vectors.shape[1], "the query vectors have")
        made = found.manifest
        model, space = (None, None) if made is None else (made.model, made.space)
    else:
        vectors, model, space = await _embedded(found, texts, asked)
    labels: list[str | None] = [None] * len(vectors) if texts is None else [*texts]

    def answer() -> list[SearchResult]:
        return _results(found, _nearest(found, vectors, asked), labels, model, space, asked)

    return await asyncio.to_thread(answer)


async def similar_async(source: Searchable, id: str, **options: Unpack[SearchKeywords]) -> SearchResult:  # noqa: A002 - as above
    """Find the items nearest to one of the set's own items, which is left out itself. No model is needed.

    An item of several vectors (a text cut into chunks) is as near as its nearest vector.

    Args:
        source: A vector set, or its path.
        id: The item's id, as `search` shows it.
        **options: Fields of `SearchOptions` but `model`.

    Raises:
        UnknownNameError: The set has no such id; the message lists close ones.
        InputError: The item has no vector.
    """
    asked = _options(options)
    found = await _open(source, asked)
    rows = {row for row, name in enumerate(found.ids) if name == id}
    if not rows:
        raise unknown_name("id", id, found.ids)
    own = np.flatnonzero(np.isin(found.rows, list(rows)))
    if not len(own):
        raise InputError(f"the item {id!r} has no vector (row {min(rows)} of {found.path}); choose another")
    others = np.delete(np.arange(len(found.rows)), own)
    rest = replace(found, vectors=found.vectors[others], rows=found.rows[others])
    made = found.manifest
    model, space = (None, None) if made is None else (made.model, made.space)

    def answer() -> SearchResult:
        near = _merged(_nearest(rest, found.vectors[own], asked), asked.k)
        return _results(found, [near], [None], model, space, asked)[0]

    return await asyncio.to_thread(answer)


def _options(given: SearchKeywords) -> SearchOptions:
    for name in given:
        if name not in SearchOptions.__dataclass_fields__:
            raise unknown_name("option of a search", name, SearchOptions.__dataclass_fields__)
    asked = SearchOptions(**given)
    if asked.k < 1:
        raise InputError(f"k is {asked.k}: it must be at least 1")
    for name in ("max_distance", "min_similarity"):
        if (limit := getattr(asked, name)) is not None and np.isnan(limit):
            raise InputError(f"{name} is {limit}: it must be a number")
    return replace(asked, metric=choice(Metric, asked.metric, "metric"))


def _one_vector(query: npt.ArrayLike) -> Vectors:
    vector = np.asarray(query)
    if vector.ndim == 2 and len(vector) == 1:
        return vector
    if vector.ndim != 1:
        raise InputError(f"a query is one text or one vector (d,), not shape {vector.shape}: see search_many")
    return vector[np.newaxis, :]


def _texts(queries: Sequence[str] | npt.ArrayLike) -> list[str] | None:
    """Return the queries if they are texts, None if they are vectors."""
    if isinstance(queries, str):
        raise InputError("queries is one text: put it into a list, or call search_async")
    if not isinstance(queries, Sequence) or not any(isinstance(query, str) for query in queries):
        return None
    texts = []
    for position, query in enumerate(queries):
        which = "the query" if len(queries) == 1 else f"query {position}"
        if not isinstance(query, str):
            raise InputError(f"{which} is {type(query).__name__}, others are texts")
        if not query.strip():
            raise InputError(f"{which} is empty: search for a word or a sentence")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{which} is not valid Unicode: {error.reason}") from error
        texts.append(query)
    return texts


async def _open(source: Searchable, asked: SearchOptions) -> VectorSet:
    if isinstance(source, VectorSet):
        return source
    return await asyncio.to_thread(
        read_vectors, source, vector_column=asked.vector_column, id_column=asked.id_column
    )


async def _embedded(
    found: VectorSet, texts: list[str], asked: SearchOptions
) -> tuple[Vectors, str | None, str | None]:
    """Embed the queries with the model that made the set; return vectors (q, d), model, space id."""
    async with await asyncio.to_thread(_embedder, found, asked) as embedder:
        if found.manifest is not None and asked.model is None:
            _ensure_same_address(found.manifest, embedder.info, found.path)
        info = await embedder.learn()
        if found.manifest is None:
            _ensure_width(found, info.dimensions, f"{info.name} makes vectors of")
        elif (info.space, info.dimensions) != (found.manifest.space, found.manifest.dimensions):
            ensure_comparable(found.manifest, await embedder.manifest(), what=found.path)
        try:
            made = await embedder.embed(texts, input_type="query")
        except TextTooLongError as error:
            raise TextTooLongError(f"a query is too long for {info.name}: {error}; shorten it") from error
        return made.vectors, info.name, info.space


def _ensure_same_address(manifest: Manifest, info: ModelInfo, what: str | Path) -> None:
    """Refuse, before anything is sent, a model of this name at another address than made the set."""
    unknown_yet = info.provider == "azure" and not info.dimensions  # its reply will say which model it is
    if info.hosted and info.space != manifest.space and not unknown_yet:
        ensure_comparable(manifest, manifest_of(info, InputType.QUERY), what=str(what))


def _embedder(found: VectorSet, asked: SearchOptions) -> AsyncEmbedder:
    settings = asked.settings or load_settings()
    manifest = found.manifest
    if manifest is None:
        if asked.model is None:
            names = ", ".join(known.name for known in known_models(settings))
            raise InputError(
                f"{found.path} does not say which model made its column {found.vector_column!r}: name the "
                f"model with -m (model= in Python) to search it by text, or search it by a vector; "
                f"known here: {names}"
            )
        return AsyncEmbedder(asked.model, base_url=asked.base_url, settings=settings)
    hosted = manifest.provider != "local"
    size = manifest.dimensions if hosted else None
    if asked.model is not None and canonical(asked.model, settings) != manifest.model:
        return AsyncEmbedder(asked.model, dimensions=size, base_url=asked.base_url, settings=settings)
    precision = None if hosted else manifest.precision
    try:
        return AsyncEmbedder(
            manifest.model, dimensions=size, base_url=asked.base_url, precision=precision, settings=settings
        )
    except UnknownNameError as error:
        raise InputError(
            f"{found.path} was made with {manifest.model}, which is not here: say where it is with -m "
            f"(model= in Python), or search by a vector ({error})"
        ) from error


def _ensure_width(found: VectorSet, dimensions: int, who: str) -> None:
    if found.dimensions != dimensions and len(found.vectors):
        raise DimensionMismatchError(
            f"{who} {dimensions} dimensions, those of {found.path} have {found.dimensions}: "
            f"they are not of one model"
        )


@dataclass(frozen=True, slots=True)
class _Near:
    """What one query found: (m,) rows of the set, nearest first, and their distances."""

    rows: IntArray
    distances: npt.NDArray[np.float32]


def _nearest(found: VectorSet, vectors: Vectors, asked: SearchOptions) -> list[_Near]:
    """Find the rows nearest to each query that pass the thresholds."""
    metric = Metric(asked.metric)
    if not len(found.vectors):
        return [_Near(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in vectors]
    near = ExactIndex(found.vectors, metric=metric).search(vectors, asked.k)
    kept = [_within(distances, metric, asked) for distances in near.distances]
    return [
        _Near(found.rows[near.rows[query, :count]], near.distances[query, :count])
        for query, count in enumerate(kept)
    ]


def _merged(near: list[_Near], k: int) -> _Near:
    """Put the answers of an item's several vectors together: each row once, at its least distance."""
    rows = np.concatenate([one.rows for one in near])
    distances = np.concatenate([one.distances for one in near])
    order = np.lexsort((rows, distances))
    _, first = np.unique(rows[order], return_index=True)
    best = order[np.sort(first)][:k]
    return _Near(rows[best], distances[best])


def _results(
    found: VectorSet,
    near: list[_Near],
    labels: Sequence[str | None],
    model: str | None,
    space: str | None,
    asked: SearchOptions,
) -> list[SearchResult]:
    """Fetch what the hits carry, in one pass over the set, and lay them out."""
    metric = Metric(asked.metric)
    carried = iter(_carried(found, np.concatenate([one.rows for one in near]), asked) if near else ())
    return [
        SearchResult(
            query=label,
            model=model,
            space=space,
            complete=len(one.rows) == asked.k,
            metric=metric.value,
            hits=tuple(
                Hit(
                    rank=rank,
                    id=found.ids[row],
                    distance=distance,
                    similarity=_similarity(distance, metric),
                    text=text,
                    columns=columns,
                )
                for rank, (row, distance, (text, columns)) in enumerate(
                    zip(one.rows.tolist(), one.distances.tolist(), carried, strict=False), 1
                )
            ),
        )
        for label, one in zip(labels, near, strict=True)
    ]


def _within(distances: npt.NDArray[np.float32], metric: Metric, asked: SearchOptions) -> int:
    """Return how many of the ascending distances pass the thresholds."""
    passes = np.ones(len(distances), dtype=bool)
    if asked.max_distance is not None:
        passes &= distances <= asked.max_distance
    if asked.min_similarity is not None:
        passes &= np.array([_similarity(float(d), metric) >= asked.min_similarity for d in distances], bool)
    return int(passes.sum())


def _carried(
    found: VectorSet, rows: npt.NDArray[np.int64], asked: SearchOptions
) -> list[tuple[str | None, dict[str, Any]]]:
    """Read text and columns of the hits, all in one pass."""
    made = found.manifest
    ours = {made.column(role) for role in _OURS} if made is not None else set()
    wanted = [name for name in found.columns if name not in ours and name != found.text_column]
    if asked.columns is not None:
        wanted = list(asked.columns)
    text = found.text_column
    names = wanted if text is None or text in wanted else [*wanted, text]
    records = found.records(rows.tolist(), names)
    return [
        (None if text is None else record[text], {name: record[name] for name in wanted})
        for record in records
    ]


def _similarity(distance: float, metric: Metric) -> float:
    match metric:
        case Metric.COSINE:
            return 1.0 - distance
        case Metric.DOT:
            return -distance
        case _:
            return 1.0 / (1.0 + distance)
