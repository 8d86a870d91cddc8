"""Queries become vectors: checked, and texts embedded by the model that made what is searched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.collection.items import Items
from vecmill.collection.set_items import SetItems
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import DimensionMismatchError, InputError, TextTooLongError, UnknownNameError
from vecmill.core.space import Manifest, ensure_comparable
from vecmill.core.types import InputType, Vectors
from vecmill.core.vectors import check
from vecmill.embedder.embedder import AsyncEmbedder, manifest_of
from vecmill.models.base import ModelInfo
from vecmill.models.resolve import canonical, known_models


@dataclass(frozen=True, slots=True)
class QueryVectors:
    """Queries ready to be compared.

    Attributes:
        vectors: (q, d) float32.
        texts: (q,) the texts they were; None for vectors.
        model: Whose vectors are compared; None where nobody knows.
        space: Its space id; None where nobody knows.
    """

    vectors: Vectors
    texts: list[str] | None
    model: str | None
    space: str | None


@dataclass(frozen=True, slots=True)
class QueryModel:
    """What embeds the texts; fields as those of `SearchOptions`."""

    name: str | None
    base_url: str | None
    settings: Settings | None


def one_vector(query: npt.ArrayLike) -> Vectors:
    """Return one query vector as (1, d).

    Raises:
        InputError: It is several, or none.
    """
    vector = np.asarray(query)
    if vector.ndim == 2 and len(vector) == 1:
        return vector
    if vector.ndim != 1:
        raise InputError(f"a query is one text or one vector (d,), not shape {vector.shape}: see search_many")
    return vector[np.newaxis, :]


def texts_of(queries: Sequence[str] | npt.ArrayLike) -> list[str] | None:
    """Return the queries if they are texts, None if they are vectors.

    Raises:
        InputError: Some are texts and some are not, or a text is empty or no Unicode.
    """
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


async def query_vectors(
    items: Items, queries: Sequence[str] | npt.ArrayLike, texts: list[str] | None, model: QueryModel
) -> QueryVectors:
    """Check vectors, or embed texts as queries.

    Args:
        items: What is searched.
        queries: Vectors (q, d), or the texts.
        texts: The queries as `texts_of` returned them.
        model: None of a name takes the model that made the items.

    Raises:
        InputError: No model is named and the items name none.
        SpaceMismatchError: The model is not the one that made the items.
        DimensionMismatchError: Queries and items differ in dimensions.
        TextTooLongError: A query has more tokens than the model takes.
    """
    if texts is not None:
        return await _embedded(items, texts, model)
    none_given = isinstance(queries, Sequence) and not len(queries)
    vectors = np.empty((0, items.dimensions), np.float32) if none_given else check(queries, what="queries")
    _ensure_width(items, vectors.shape[1], "the query vectors have")
    made = items.manifest
    return QueryVectors(
        vectors, None, None if made is None else made.model, None if made is None else made.space
    )


async def _embedded(items: Items, texts: list[str], model: QueryModel) -> QueryVectors:
    async with await asyncio.to_thread(_embedder, items, model) as embedder:
        if items.manifest is not None and model.name is None:
            _ensure_same_address(items.manifest, embedder.info, items.name)
        info = await embedder.learn()
        if items.manifest is None:
            _ensure_width(items, info.dimensions, f"{info.name} makes vectors of")
        elif (info.space, info.dimensions) != (items.manifest.space, items.manifest.dimensions):
            ensure_comparable(items.manifest, await embedder.manifest(), what=items.name)
        try:
            made = await embedder.embed(texts, input_type="query")
        except TextTooLongError as error:
            raise TextTooLongError(f"a query is too long for {info.name}: {error}; shorten it") from error
        return QueryVectors(made.vectors, texts, info.name, info.space)


def _ensure_same_address(manifest: Manifest, info: ModelInfo, what: str) -> None:
    """Refuse, before anything is sent, a model of this name at another address than made the items."""
    unknown_yet = info.provider == "azure" and not info.dimensions  # its reply will say which model it is
    if info.hosted and info.space != manifest.space and not unknown_yet:
        ensure_comparable(manifest, manifest_of(info, InputType.QUERY), what=what)


def _embedder(items: Items, model: QueryModel) -> AsyncEmbedder:
    settings = model.settings or load_settings()
    manifest = items.manifest
    if manifest is None:
        if model.name is None:
            raise _nobody_knows(items, settings)
        return AsyncEmbedder(model.name, base_url=model.base_url, settings=settings)
    hosted = manifest.provider != "local"
    size = manifest.dimensions if hosted else None
    if model.name is not None and canonical(model.name, settings) != manifest.model:
        return AsyncEmbedder(model.name, dimensions=size, base_url=model.base_url, settings=settings)
    precision = None if hosted else manifest.precision
    try:
        return AsyncEmbedder(
            manifest.model, dimensions=size, base_url=model.base_url, precision=precision, settings=settings
        )
    except UnknownNameError as error:
        raise InputError(
            f"{items.name} was made with {manifest.model}, which is not here: say where it is with -m "
            f"(model= in Python), or search by a vector ({error})"
        ) from error


def _nobody_knows(items: Items, settings: Settings) -> InputError:
    names = ", ".join(known.name for known in known_models(settings))
    what = f"column {items.vector_column!r}" if isinstance(items, SetItems) else "vectors"
    return InputError(
        f"{items.name} does not say which model made its {what}: name the model with -m (model= in Python) "
        f"to search it by text, or search it by a vector; known here: {names}"
    )


def _ensure_width(items: Items, dimensions: int, who: str) -> None:
    if items.dimensions != dimensions and len(items):
        raise DimensionMismatchError(
            f"{who} {dimensions} dimensions, those of {items.name} have {items.dimensions}: "
            f"they are not of one model"
        )
