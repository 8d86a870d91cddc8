"""Search by distance instead of by number: everything that is near enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Mask
from vecmill.core.vectors import check
from vecmill.index.base import Index

_FIRST, _MORE = 64, 8


@dataclass(frozen=True, slots=True)
class Within:
    """What lies within a distance of each query, nearest first.

    Attributes:
        rows: (m,) int64, the answers to all queries one after another.
        distances: (m,) float32, ascending within each query.
        offsets: (q + 1,) int64: query i's answer is `rows[offsets[i]:offsets[i + 1]]`.
    """

    rows: IntArray
    distances: npt.NDArray[np.float32]
    offsets: IntArray

    def of(self, query: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """Return rows and distances of one query."""
        part = slice(int(self.offsets[query]), int(self.offsets[query + 1]))
        return self.rows[part], self.distances[part]


def within(
    index: Index, queries: npt.ArrayLike, max_distance: float, *, allowed: Mask | None = None
) -> Within:
    """Find all vectors that are no further from a query than a distance, the boundary included.

    Asks for the 64 nearest, then for eight times as many wherever those all were near enough. So it costs as
    much as searching for up to eight times what it finds, and is as exact as the index.

    Args:
        index: What is searched.
        queries: (q, d) numbers.
        max_distance: In units of the index's metric; negative ones make sense for dot.
        allowed: (n,) bool, the rows that may be found; None for all.

    Raises:
        InputError: `max_distance` is not a number, or a query holds NaN.
        DimensionMismatchError: Queries and vectors differ in d.
    """
    if np.isnan(max_distance):
        raise InputError(f"max_distance is {max_distance}: it must be a number")
    asked = check(queries, what="queries")
    found: list[tuple[IntArray, npt.NDArray[np.float32]]] = [
        (np.empty(0, np.int64), np.empty(0, np.float32))
    ] * len(asked)
    open_ones, k = np.arange(len(asked)), _FIRST
    while len(open_ones):
        near = index.search(asked[open_ones], k, allowed=allowed)
        fits = near.distances <= max_distance
        for at, query in enumerate(open_ones.tolist()):
            found[query] = near.rows[at, fits[at]], near.distances[at, fits[at]]
        everything = near.rows.shape[1] < k
        open_ones = open_ones[:0] if everything else open_ones[fits.all(axis=1)]
        k *= _MORE
    return Within(
        np.concatenate([rows for rows, _ in found] or [np.empty(0, np.int64)]),
        np.concatenate([distances for _, distances in found] or [np.empty(0, np.float32)]),
        np.concatenate(([0], np.cumsum([len(rows) for rows, _ in found], dtype=np.int64))),
    )
