"""Keep the best of many scores without sorting them all. Larger is nearer; ties go to the lower row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.types import IntArray

Float32Array = npt.NDArray[np.float32]

MOST_QUERIES = 256
"""Queries whose best are kept together: their places have 8 bits of a sort key."""

_PLACE_BITS = 24
"""Bits of a sort key that say which entry it is; the score has the 32 between."""

_GROUP = 32
"""Scores that share one maximum."""


def largest(scores: npt.NDArray[Any], count: int) -> IntArray:
    """Return the places of the largest scores: (min(count, n),) int64, best first, equal ones in order.

    Scores fall into groups with one maximum each; the count-th largest maximum is at most the count-th
    largest score, so one pass of maxima leaves few to select from.

    Args:
        scores: (n,) real numbers without NaN.
        count: How many, at least 1.
    """
    places = _promising(scores, count)
    kept = scores if places is None else scores[places]
    order: IntArray = np.argsort(-kept.astype(np.float64), kind="stable")[:count]
    return order if places is None else places[order]


def _promising(scores: npt.NDArray[Any], count: int) -> IntArray | None:
    """Return at most 4 count places among which the largest are, ascending; None for all."""
    width = len(scores) // _GROUP
    if width > count:
        grouped = scores[: width * _GROUP].reshape(_GROUP, width)
        floor = np.partition(grouped.max(axis=0), width - count)[width - count]
    elif len(scores) > 4 * count:
        floor = np.partition(scores, len(scores) - count)[len(scores) - count]
    else:
        return None
    places = np.flatnonzero(scores >= floor)
    if len(places) <= 4 * count:
        return places
    kept = scores[places]
    floor = np.partition(kept, len(kept) - count)[len(kept) - count]
    above, equal = np.flatnonzero(kept > floor), np.flatnonzero(kept == floor)
    return places[np.sort(np.concatenate((above, equal[: count - len(above)])))]


class Best:
    """The best rows of each query of a block, while tiles of scores pass by in row order.

    Args:
        queries: How many, at most 256.
        count: Rows kept per query; queries x count at most four million.
    """

    def __init__(self, queries: int, count: int) -> None:
        self._queries = queries
        self._count = count
        self._limits: Float32Array | None = None  # (q,) what a score must exceed; None until count are kept
        self._at = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)
        self._waiting: list[tuple[IntArray, IntArray, Float32Array]] = []
        self._size = 0

    def add(self, scores: Float32Array, rows: IntArray) -> None:
        """Look at a tile of scores.

        Args:
            scores: (q, t) finite float32; q x t at most four million.
            rows: (t,) what the columns stand for, ascending and above those of earlier tiles.
        """
        width = scores.shape[1]
        if self._limits is not None:
            passing = scores > self._limits[:, None]
        elif width > self._count:
            passing = scores >= np.partition(scores, width - self._count)[:, width - self._count, None]
        else:
            passing = np.ones(scores.shape, np.bool_)
        flat = np.flatnonzero(passing)
        at, columns = np.divmod(flat, width)
        self._waiting.append((at, rows[columns], scores.ravel()[flat]))
        self._size += len(flat)
        if self._limits is None or self._size > self._queries * self._count:
            self._settle()

    def rows(self) -> IntArray:
        """Return the best rows, best first: (q, count) int64, -1 where fewer were seen."""
        self._settle()
        out = np.full((self._queries, self._count), -1, np.int64)
        out[self._at, _ranks(self._at)] = self._rows
        return out

    def _settle(self) -> None:
        """Sort what is kept and what waits; one number holds query, score and place, so a plain sort does."""
        at = np.concatenate([self._at, *(entry[0] for entry in self._waiting)])
        rows = np.concatenate([self._rows, *(entry[1] for entry in self._waiting)])
        scores = np.concatenate([self._scores, *(entry[2] for entry in self._waiting)])
        bits = (scores + np.float32(0.0)).view(np.uint32).astype(np.uint64)
        falling = np.where(bits >> 31 == 1, bits, bits ^ 0x7FFFFFFF)  # order of floats, largest first
        keys = at.astype(np.uint64) << (_PLACE_BITS + 32) | falling << _PLACE_BITS
        keys |= np.arange(len(keys), dtype=np.uint64)
        keys.sort()
        order = (keys & ((1 << _PLACE_BITS) - 1)).astype(np.int64)
        order = order[_ranks(at[order]) < self._count]
        self._at, self._rows, self._scores = at[order], rows[order], scores[order]
        self._waiting, self._size = [], 0
        if len(order) == self._queries * self._count:
            self._limits = self._scores[self._count - 1 :: self._count]


def _ranks(groups: IntArray) -> IntArray:
    """Number the entries of each group; groups (n,) ascending."""
    ranks: IntArray = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return ranks
