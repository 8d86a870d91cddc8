"""Embed what is in memory: a list of texts or any frame, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vecmill.core.errors import InputError
from vecmill.data.frames import to_reader
from vecmill.data.template import choose_text
from vecmill.embedder.background import run_sync
from vecmill.embedder.embedder import AsyncEmbedder, Embeddings


def embed(
    table: object,
    *,
    model: str | None = None,
    text: str | None = None,
    template: str | None = None,
    input_type: str = "document",
    **options: Any,
) -> Embeddings:
    """Embed a list of texts or the rows of any frame.

    Args:
        table: A text, a list of texts, a dict of columns, a list of dicts, a pandas, polars or Arrow table,
            or anything with the Arrow C interface. It is not changed.
        model: "minilm" (built in), "local:NAME", a folder or a registered name; None takes the settings'.
        text: The column to embed; not needed where only one holds text.
        template: Joins columns: "Title: {title}; Content: {body}".
        input_type: "document" or "query".
        **options: As `Embedder` takes them: long_text, empty, max_tokens, precision, device, threads.

    Returns:
        Vectors (n, d) float32 in the order of the rows.

    Raises:
        InputError: A row has no text, or it is not clear which column holds it.
        TextTooLongError: A text has too many tokens and long_text is "error".
    """
    return run_sync(
        embed_async(table, model=model, text=text, template=template, input_type=input_type, **options)
    )


async def embed_async(
    table: object,
    *,
    model: str | None = None,
    text: str | None = None,
    template: str | None = None,
    input_type: str = "document",
    **options: Any,
) -> Embeddings:
    """Embed a list of texts or the rows of any frame; see `embed`."""
    texts = await asyncio.to_thread(_texts, table, text, template)
    embedder = await asyncio.to_thread(lambda: AsyncEmbedder(model, **options))
    async with embedder:
        return await embedder.embed(texts, input_type=input_type)


@dataclass(frozen=True, slots=True)
class _Columns:
    schema: pa.Schema
    string_columns: tuple[str, ...]


def _texts(table: object, text: str | None, template: str | None) -> Sequence[str]:
    if isinstance(table, str):
        return [table]
    if isinstance(table, list) and (not table or all(isinstance(row, str) for row in table)):
        return table
    reader = to_reader(table)
    strings = tuple(f.name for f in reader.schema if pa.types.is_string(f.type))
    chosen = choose_text(_Columns(reader.schema, strings), text=text, template=template)
    texts: list[str] = []
    for batch in reader:
        for one in chosen.texts(batch):
            if one is None:
                raise InputError(f"row {len(texts)} has no text: leave it out, or fill it")
            texts.append(one)
    return texts
