"""A collection and the model that embeds for it: texts in, texts out, on disk between the calls.

`Collection` keeps what it is given as soon as a method returns. Other processes may search the same folder at
any time, and write to it one after another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy.typing as npt
import pyarrow as pa

from vecmill.collection.collection_items import CollectionItems, Item
from vecmill.collection.given import as_table, listed_texts, long_text_of, with_texts
from vecmill.core.config import Settings
from vecmill.core.errors import Error, InputError, TextTooLongError
from vecmill.core.space import Manifest, ensure_comparable
from vecmill.core.types import Id, LongText, Metric, Precision
from vecmill.embedder.background import run_sync
from vecmill.embedder.embedder import AsyncEmbedder
from vecmill.index.keys import listed
from vecmill.index.settings import IndexKind
from vecmill.index.settings import parameters as settings_of
from vecmill.index.storage import Change, Compaction, Store
from vecmill.index.store_index import IndexState, build_index, refresh, state_of

if TYPE_CHECKING:
    from vecmill.collection.search import SearchResult
    from vecmill.collection.search_options import SearchKeywords

TEXT = "text"


class Collection:
    """Items on disk that can be added, changed, deleted and searched.

    Any thread may use it. One that another process replaces (`--overwrite`) is the new one from the next call
    on. Opening costs reading the catalogue and the items' columns once; vectors stay on
    disk, codes and graphs are loaded by the first search.

    Args:
        path: The folder of an existing collection; `Collection.create` makes one.
        settings: None reads environment and `vecmill.toml`.

    Raises:
        InputError: The folder is not a collection.
        CorruptFileError: A file is damaged; the message says which, and the cure.
    """

    def __init__(self, path: str | Path, *, settings: Settings | None = None) -> None:
        self._store = Store.open(path)
        self._settings = settings
        self._lock = threading.Lock()
        self._items = CollectionItems(self._store.snapshot())

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        dimensions: int | None = None,
        metric: Metric | str = Metric.COSINE,
        precision: Precision | str = Precision.FLOAT32,
        long_text: str = "error",
        settings: Settings | None = None,
    ) -> Self:
        """Make an empty collection.

        Args:
            path: A folder that does not exist yet, or is empty.
            model: Embeds its texts; None takes the settings' model, unless `dimensions` alone are given.
            dimensions: Without `model`: it takes vectors of this width, from anywhere. With it: fewer than
                the model's, for models that allow it.
            metric: What "near" means.
            precision: float32, or float16: half the disk.
            long_text: What becomes of texts of more tokens than the model takes: "error" (with the exact
                count), "average" (of their parts) or "truncate". Kept: every `add` and `update` does so.
            settings: None reads environment and `vecmill.toml`.

        Raises:
            InputError: The folder holds something, or `long_text` is "chunks".
            UnknownNameError: No such model or metric.
            ProviderError: A hosted model had to be asked for its size, and failed.
        """
        policy, manifest = long_text_of(None, long_text), None
        if model is not None or dimensions is None:
            manifest = replaced(run_sync(_manifest(model, dimensions, settings)), long_text=policy.value)
        elif policy is not LongText.ERROR:
            raise InputError("long_text is for texts, and vectors from anywhere have none: name a model")
        Store.create(
            path,
            dimensions=manifest.dimensions if manifest is not None else dimensions or 0,
            metric=metric,
            precision=precision,
            manifest=manifest,
            text_column=None if manifest is None else TEXT,
        )
        return cls(path, settings=settings)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._store.path

    @property
    def manifest(self) -> Manifest | None:
        """What makes its vectors; None where they may come from anywhere."""
        return self._store.catalogue.manifest

    def __len__(self) -> int:
        """Return how many rows can be found now."""
        return len(self._store)

    def items(self) -> CollectionItems:
        """Return what it holds now; later changes do not show in it."""
        snapshot = self._store.snapshot()
        with self._lock:
            if self._items.snapshot is not snapshot:
                self._items = CollectionItems(snapshot, self._items)
            return self._items

    def add(
        self,
        ids: Sequence[object],
        texts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        columns: object | None = None,
        replace: bool = False,
        long_text: str | None = None,
        empty: str = "error",
    ) -> Change:
        """Add items by their texts or their vectors, all or none. On disk when this returns.

        Args:
            ids: (n,) text, whole numbers of 64 bits, UUIDs or bytes, each once.
            texts: (n,) embedded by the collection's model, and kept in its text column.
            vectors: (n, d) instead of embedding; with `texts` too, the texts are kept beside them.
            columns: n rows of other columns: a dict of lists, or any frame.
            replace: Items with the same id give way; otherwise they are an error.
            long_text: "error", "average" or "truncate" for this call; None does what the collection was made
                with (`create`, or the job whose set it was built from).
            empty: "error", or "embed" for texts without a letter.

        Raises:
            TextTooLongError: A text has too many tokens, and `long_text` is "error".
            InputError: Ids are repeated or there already, lengths differ, or nothing says how to embed.
            ProviderError: The model failed; nothing was added.
            WriteError: The disk is full; nothing was added.
        """
        return run_sync(
            self.add_async(
                ids,
                texts,
                vectors=vectors,
                columns=columns,
                replace=replace,
                long_text=long_text,
                empty=empty,
            )
        )

    async def add_async(
        self,
        ids: Sequence[object],
        texts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        columns: object | None = None,
        replace: bool = False,
        long_text: str | None = None,
        empty: str = "error",
    ) -> Change:
        """Add items; see `add`."""
        policy, named = long_text_of(self.manifest, long_text), listed(ids)
        texts = listed_texts(texts, len(named))
        self._ensure_embeds(texts, vectors)
        table = self._given(texts, columns)
        if vectors is None:  # before anything is paid for
            await asyncio.to_thread(self._store.ensure_addable, named, table, replace=replace)
        made = await self._vectors(texts, vectors, policy, empty)
        change = await asyncio.to_thread(self._store.add, named, made, table, replace=replace)
        await asyncio.to_thread(refresh, self._store)
        return change

    def update(
        self,
        ids: Sequence[object],
        texts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        columns: object | None = None,
        long_text: str | None = None,
        empty: str = "error",
    ) -> Change:
        """Change items that are there: texts with their vectors, or columns alone. On disk when this returns.

        Columns that are not given keep their values. Arguments as `add`.

        Raises:
            UnknownNameError: An id is not there; nothing was changed.
        """
        return run_sync(
            self.update_async(ids, texts, vectors=vectors, columns=columns, long_text=long_text, empty=empty)
        )

    async def update_async(
        self,
        ids: Sequence[object],
        texts: Sequence[str] | None = None,
        *,
        vectors: npt.ArrayLike | None = None,
        columns: object | None = None,
        long_text: str | None = None,
        empty: str = "error",
    ) -> Change:
        """Change items that are there; see `update`."""
        if texts is None and vectors is None and columns is None:
            raise InputError("nothing to update: give texts, vectors or columns")
        changes_vectors = texts is not None or vectors is not None
        policy, named = long_text_of(self.manifest, long_text), listed(ids)
        texts = listed_texts(texts, len(named))
        if changes_vectors:
            self._ensure_embeds(texts, vectors)
        table, made = self._given(texts, columns), None
        if changes_vectors:
            if vectors is None:  # before anything is paid for
                await asyncio.to_thread(self._store.ensure_there, named, table)
            made = await self._vectors(texts, vectors, policy, empty)
        change = await asyncio.to_thread(
            self._store.update, named, vectors=made, columns=table, all_or_none=True
        )
        await asyncio.to_thread(refresh, self._store)
        return change

    def delete(self, ids: Sequence[object] | None = None, *, where: str | None = None) -> Change:
        """Delete items by their ids, or those that pass a filter. On disk when this returns.

        Args:
            ids: Those that are not there are listed in `Change.missing`.
            where: `stars < 2 and lang = 'en'`: items with a row that passes.

        Raises:
            InputError: Both are given, or neither, or the filter does not fit the columns.
        """
        if (ids is None) == (where is None):
            raise InputError("give ids or where (a filter), one of them: it says what is deleted")
        return self._store.delete(self.items().passing(where) if where is not None else listed(ids or []))

    def get(self, ids: Sequence[object]) -> list[Item | None]:
        """Return the items of ids, in their order: `Item(id, text, columns)`, None for an id nobody has.

        Of an id with several rows (the chunks of a text) it is the first.
        """
        return self.items().get(ids)

    def ids(self) -> list[Id]:
        """Return all ids, each once, oldest rows first."""
        return self.items().all_ids()

    def __contains__(self, item: object) -> bool:
        """Say whether an id is there; 1 and "1" are two ids. What can be no id is not there."""
        try:
            return bool(len(self.items().snapshot.find([item])))
        except InputError:
            return False

    def __repr__(self) -> str:
        try:
            made, known = self._store.catalogue, self.manifest
        except Error as error:
            return f"<Collection {self.path}: {type(error).__name__}>"
        model = "" if known is None else f", {known.model}"
        return f"<Collection {self.path}: {made.live:,} rows, {made.dimensions} dimensions{model}>"

    def search(self, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]) -> SearchResult:
        """Find the items nearest to a text or a vector; options as `vecmill.search`."""
        return run_sync(self.search_async(query, **options))

    async def search_async(
        self, query: str | npt.ArrayLike, **options: Unpack[SearchKeywords]
    ) -> SearchResult:
        """Find the items nearest to a text or a vector; see `search`."""
        from vecmill.collection.search import search_async  # late: it opens collections itself

        options.setdefault("settings", self._settings)
        return await search_async(self.items(), query, **options)

    def similar(self, item: Id, **options: Unpack[SearchKeywords]) -> SearchResult:
        """Find the items nearest to one of its own; options as `vecmill.similar`."""
        from vecmill.collection.search import similar

        return similar(self.items(), item, **options)

    def build_index(
        self,
        *,
        kind: IndexKind | str = IndexKind.FLAT,
        precision: Precision | str | None = None,
        recall_target: float = 0.99,
        k: int = 10,
        progress: Callable[[str], None] | None = None,
        **parameters: Any,
    ) -> IndexState:
        """Compress or index what the collection holds, to find neighbours faster; measured on its own rows.

        Args:
            kind: "flat" (codes scanned one by one), "hnsw" or "ivf" (`[ann]`), or as other libraries name
                them: "ivfflat", "ivfpq", "cagra".
            precision: How candidates are kept: "int8", "binary", "pq", "float16", "float32"; None: int8, or
                what the name of another library means.
            recall_target: The share of true neighbours wanted at `k`; how hard to search is chosen for it.
            k: Neighbours recall is measured at.
            progress: Told what is being done.
            **parameters: Other fields of `IndexSettings` (shorten, m, ef_construction, nlist) by these names
                or those of hnswlib, faiss, pgvector, Spark RAPIDS ML: M, efConstruction, lists, n_bits.

        Raises:
            UnknownNameError: No such kind, precision or parameter; the message lists close ones.
            InputError: The collection is empty, or settings do not fit together.
            MissingExtraError: A graph or lists without faiss installed.
        """
        given: dict[str, Any] = {"recall_target": recall_target, **parameters}
        if precision is not None or str(kind).lower() in list(IndexKind):
            given["precision"] = Precision.INT8 if precision is None else precision
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k is {k!r}: recall is measured at a whole number of neighbours, 1 or more")
        return build_index(self._store, settings_of(kind, given), k=k, progress=progress)

    def index_state(self) -> IndexState:
        """Return what index it has, its measured recall, and how well it fits what is held now."""
        return state_of(self._store.snapshot())

    def compact(self) -> Compaction:
        """Give back the space of deleted items and gather small segments; bounded, call again for more."""
        done = self._store.compact()
        refresh(self._store)
        return done

    def verify(self) -> None:
        """Check every byte against its checksum.

        Raises:
            CorruptFileError: A file is not what was written; the message says which, and the cure.
        """
        self._store.verify()

    def _given(self, texts: list[str] | None, columns: object | None) -> pa.Table | None:
        """Return the columns that are kept, texts among them."""
        table = as_table(columns)
        return table if texts is None else with_texts(table, self._text_column(), texts)

    def _text_column(self) -> str:
        column = self._store.catalogue.text_column
        if column is None:
            raise InputError(
                f"{self.path} keeps vectors from anywhere and has no text column: pass the texts as a column"
            )
        return column

    def _ensure_embeds(self, texts: Sequence[str] | None, vectors: npt.ArrayLike | None) -> None:
        if vectors is None and (texts is None or self.manifest is None):
            raise self._cannot_embed(texts)

    def _cannot_embed(self, texts: Sequence[str] | None) -> InputError:
        if texts is None:
            return InputError("give texts to embed, or vectors")
        return InputError(f"{self.path} does not say which model made its vectors: give vectors")

    async def _vectors(
        self, texts: Sequence[str] | None, vectors: npt.ArrayLike | None, long_text: LongText, empty: str
    ) -> npt.ArrayLike:
        if vectors is not None:
            return vectors
        manifest = self.manifest
        if texts is None or manifest is None:
            raise self._cannot_embed(texts)
        hosted = manifest.provider != "local"
        async with AsyncEmbedder(
            manifest.model,
            dimensions=manifest.dimensions if hosted else None,
            precision=None if hosted else manifest.precision,
            long_text=long_text,
            empty=empty,
            max_tokens=manifest.max_tokens,
            settings=self._settings,
        ) as embedder:
            try:
                made = await embedder.embed(list(texts), input_type=manifest.input_type)
            except TextTooLongError as error:
                what = str(error).partition("; choose ")[0]
                raise TextTooLongError(f"{what}; choose long_text='average' or 'truncate'") from error
            if embedder.info.space != manifest.space:
                ensure_comparable(manifest, await embedder.manifest(), what=str(self.path))
            return made.vectors


async def _manifest(model: str | None, dimensions: int | None, settings: Settings | None) -> Manifest:
    async with AsyncEmbedder(model, dimensions=dimensions, settings=settings) as embedder:
        return await embedder.manifest()
