"""A collection on disk, as it is at one moment, as `Items` to search."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecmill.collection.filters import Filter, parse
from vecmill.collection.items import Near
from vecmill.collection.text_index import TextIndex
from vecmill.core.errors import InputError
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray, Mask, Metric, Vectors
from vecmill.index.keys import keys_of
from vecmill.index.snapshot import Snapshot
from vecmill.index.store_index import SnapshotIndex

_COMPARED_IDS = 100_000


@dataclass(frozen=True, slots=True)
class Item:
    """An item as it is kept, without its vector.

    Attributes:
        id: Its id.
        text: The text that was embedded; None where it was added by its vector.
        columns: Its other columns by name.
    """

    id: Id
    text: str | None
    columns: dict[str, Any]


class CollectionItems:
    """What a collection holds at one generation. Rows are positions of its snapshot.

    Args:
        snapshot: What is searched.
        known: The items of an earlier generation, whose codes and words are used again.
    """

    def __init__(self, snapshot: Snapshot, known: CollectionItems | None = None) -> None:
        self.snapshot = snapshot
        self._lock = threading.Lock()
        self._index: SnapshotIndex | None = None
        known = known if known is not None and _continues(snapshot, known.snapshot) else None
        self._index_before: SnapshotIndex | None = (
            None if known is None else known._index or known._index_before
        )
        self._words: _Words = _Words() if known is None else known._words

    @property
    def name(self) -> str:
        """Its folder."""
        return str(self.snapshot.folder)

    @property
    def manifest(self) -> Manifest | None:
        """What made the vectors; None where nobody knows."""
        return self.snapshot.catalogue.manifest

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self.snapshot.dimensions

    @property
    def metric(self) -> Metric | None:
        """The metric it is built for; without an index only what is meant unless told."""
        return self.snapshot.catalogue.metric

    @property
    def indexed(self) -> bool:
        """Whether it has an index, which answers one metric."""
        return self.snapshot.catalogue.index is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns a hit can carry."""
        return self.snapshot.columns

    @property
    def text_column(self) -> str | None:
        """The column that was embedded; None where nobody knows, or no item has brought a text yet."""
        name = self.snapshot.catalogue.text_column
        return name if name in self.columns else None

    def __len__(self) -> int:
        """Return how many items can be found."""
        return self.snapshot.catalogue.live

    @property
    def index(self) -> SnapshotIndex:
        """How it is searched; loads codes or graph the first time."""
        with self._lock:
            if self._index is None:
                self._index = SnapshotIndex(self.snapshot, self._index_before)
                self._index_before = None
            return self._index

    def nearest(
        self,
        queries: Vectors,
        k: int,
        *,
        metric: Metric,
        where: Filter | None = None,
        leave_out: IntArray | None = None,
        exact: bool = False,
    ) -> list[Near]:
        """Find the k nearest items to each query among those that pass the filter; see `Items`."""
        allowed = self._allowed(where, leave_out)
        if not len(self.snapshot):
            return [Near(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        found = self.index.search(queries, k, metric=metric, allowed=allowed, exact=exact)
        return [Near(rows, near) for rows, near in zip(found.rows, found.distances, strict=True)]

    def ranked(self, query: str, count: int, *, where: Filter | None = None) -> IntArray:
        """Rank items by the words of a query with BM25; see `Items`.

        The words are indexed in memory by the first call, some 300,000 short texts a second; later ones add
        what came since. Words of items that are gone still weigh in how rare a word is.
        """
        if self.text_column is None:
            raise InputError(f"{self.name} has no text column: hybrid search needs the words of its items")
        words = self._words.index_of(self.snapshot, self.text_column)
        allowed = self._allowed(where, None)
        mask = self.snapshot.live if allowed is None else self.snapshot.live & allowed
        by_number = np.zeros(self.snapshot.catalogue.next_row, np.bool_)
        by_number[self.snapshot.rows[mask]] = True
        found: IntArray = np.searchsorted(self.snapshot.rows, words.ranked(query, count, allowed=by_number))
        return found

    def find(self, item: Id) -> IntArray:
        """Return the rows of an id, ascending."""
        return self.snapshot.find([item])

    def vectors_of(self, rows: IntArray) -> Vectors:
        """Return the vectors of rows: (m, d) float32."""
        return self.snapshot.fetch(rows)

    def known_ids(self) -> Sequence[Id]:
        """Return ids to compare an unknown one with: the first 100,000."""
        return self.snapshot.ids(np.flatnonzero(self.snapshot.live)[:_COMPARED_IDS])

    def ids(self, rows: IntArray) -> list[Id]:
        """Return the ids of rows, in their order."""
        return self.snapshot.ids(rows)

    def records(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the named columns of rows, in their order."""
        return self.snapshot.records(rows, names)

    def get(self, ids: Sequence[object]) -> list[Item | None]:
        """Return the items of ids, in their order; None where there is none, the first row of several."""
        keys = keys_of(ids)
        at = self.snapshot.find_keys(keys)
        first: dict[bytes, int] = {}
        for place, key in enumerate(self.snapshot.keys(at)):
            first.setdefault(key, place)
        places = list(first.values())
        rows = at[np.array(places, np.int64)]
        items = dict(zip(first, self._items(rows), strict=True))
        return [items.get(key) for key in keys.to_pylist()]

    def all_ids(self) -> list[Id]:
        """Return all ids, each once, in the order of their first rows."""
        return list(dict.fromkeys(self.snapshot.ids(np.flatnonzero(self.snapshot.live))))

    def passing(self, where: str) -> list[Id]:
        """Return the ids of items with a row that passes a filter, each once.

        Raises:
            InputError: The filter is none, or does not fit the columns.
        """
        condition = parse(where)
        table = self.snapshot.table(condition.columns)
        condition.check(table.schema)
        rows = np.flatnonzero(condition.mask(table) & self.snapshot.live)
        return list(dict.fromkeys(self.snapshot.ids(rows)))

    def _items(self, rows: IntArray) -> list[Item]:
        text = self.text_column
        made: list[Item] = []
        for name, record in zip(self.ids(rows), self.records(rows, self.columns), strict=True):
            words = None if text is None else record.pop(text)
            made.append(Item(name, words, record))
        return made

    def _allowed(self, where: Filter | None, leave_out: IntArray | None) -> Mask | None:
        allowed = None if where is None else where.mask(self.snapshot.table(where.columns))
        if leave_out is not None and len(leave_out):
            allowed = np.ones(len(self.snapshot), np.bool_) if allowed is None else allowed
            allowed[leave_out] = False
        return allowed


def _continues(snapshot: Snapshot, known: Snapshot) -> bool:
    """Say whether a snapshot is a later one of the same collection, so that row numbers mean the same."""
    one, other = snapshot.catalogue, known.catalogue
    return one.identity == other.identity and one.generation >= other.generation


class _Words:
    """The text index all generations of a collection share in one process; rows count as in the catalogue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._index: TextIndex | None = None
        self._covered = 0

    def index_of(self, snapshot: Snapshot, column: str) -> TextIndex:
        """Return an index that knows every text of the snapshot, and perhaps later ones."""
        with self._lock:
            if self._index is None:
                self._index = TextIndex.build(None, ())
            if self._covered < snapshot.catalogue.next_row:
                self._index.add(_texts(snapshot, column, self._covered))
                self._covered = snapshot.catalogue.next_row
            return self._index


def _texts(snapshot: Snapshot, column: str, first_row: int) -> Iterator[tuple[int, str | None]]:
    """Yield row numbers from `first_row` on, and their texts."""
    start = int(np.searchsorted(snapshot.rows, first_row))
    rows = snapshot.rows[start:].tolist()
    texts = snapshot.table([column]).column(0).slice(start)
    at = 0
    for chunk in texts.chunks:
        for text in chunk.to_pylist():
            yield rows[at], text
            at += 1
