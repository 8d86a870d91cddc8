"""Open what is to be searched: a vector set, a collection, a table in PostgreSQL, or items already open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from vecmill.collection.items import Items
from vecmill.collection.set_items import SetItems
from vecmill.core.errors import InputError
from vecmill.data.vector_set import VectorSet, read_vectors


class Holder(Protocol):
    """What holds items that change, as a `Collection` does."""

    def items(self) -> Items:
        """Return what it holds now."""


Searchable: TypeAlias = str | Path | VectorSet | Items | Holder
"""A path of a set or a collection, a `postgresql://` URL, an open `Collection` or set, open items."""

SCHEMES = ("postgresql://", "postgres://")


@asynccontextmanager
async def opened(
    source: Searchable, *, vector_column: str | None = None, id_column: str | None = None
) -> AsyncIterator[Items]:
    """Open a source for one search; what is opened here is closed afterwards, what was open stays so.

    Args:
        source: What is searched.
        vector_column: As `read_vectors` takes it; only for a file of vectors given by its path.
        id_column: The same.

    Raises:
        InputError: There is nothing of that name, or it has no columns to choose from.
        StorageError: What is there is damaged.
    """
    named = {"vector_column": vector_column, "id_column": id_column}
    chosen = [name for name, column in named.items() if column is not None]
    items = await asyncio.to_thread(_open, source, named, chosen)
    try:
        yield items
    finally:
        close = getattr(items, "close", None)
        if items is not source and close is not None:
            await asyncio.to_thread(close)


def _open(source: Searchable, named: dict[str, str | None], chosen: list[str]) -> Items:
    if isinstance(source, str) and source.startswith(SCHEMES):
        _refuse(chosen, "a table in PostgreSQL")
        from vecmill.collection.postgres_items import PostgresItems  # late: needs psycopg

        return PostgresItems(source)
    if isinstance(source, str | Path):
        from vecmill.index.storage import Store, is_store  # late: a set needs none of it

        if not is_store(source):
            return SetItems(read_vectors(source, **named))
        _refuse(chosen, "a collection")
        from vecmill.collection.collection_items import CollectionItems

        return CollectionItems(Store.open(source).snapshot())
    if isinstance(source, VectorSet):
        _refuse(chosen, "a set that is already open")
        return SetItems(source)
    holds = getattr(source, "items", None)
    if callable(holds) and not hasattr(source, "nearest") and not isinstance(source, Mapping):
        _refuse(chosen, "a collection")
        return _ready(holds(), source)
    items = _ready(source, source)
    _refuse(chosen, "items that are already open")
    return items


def _ready(items: Any, given: object) -> Items:
    """Return items that can be searched, or say what is right instead of what was given."""
    if not hasattr(items, "nearest") or not hasattr(items, "records"):
        raise InputError(
            f"cannot search a {type(given).__name__}: give a path, a postgresql:// URL, a Collection, or "
            "what read_vectors returns"
        )
    ready: Items = items
    return ready


def _refuse(chosen: list[str], what: str) -> None:
    if chosen:
        raise InputError(f"{chosen[0]} is for a file of vectors; {what} has its own")
