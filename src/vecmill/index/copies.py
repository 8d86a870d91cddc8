"""Rows with equal vectors: found by a hash, kept together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError
from vecmill.core.types import IntArray, Mask, Vectors

Hashes = npt.NDArray[np.uint64]
"""(n, 2) uint64, equal for equal vectors."""

_ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows, by distinct vector.

    Attributes:
        members: (n,) int64 rows, those of one vector next to each other and ascending.
        starts: (u + 1,) int64: rows of vector i are members[starts[i]:starts[i + 1]].
    """

    members: IntArray
    starts: IntArray

    def __len__(self) -> int:
        """Return how many distinct vectors there are."""
        return len(self.starts) - 1

    @property
    def first_rows(self) -> IntArray:
        """The lowest row of each vector: (u,). Every vector must have one."""
        return self.members[self.starts[:-1]]

    @property
    def are_none(self) -> bool:
        """Whether every row has a vector of its own, and vector i is row i."""
        return len(self) == len(self.members) and bool((self.members == np.arange(len(self))).all())

    def head(self, count: int) -> Copies:
        """Return the first vectors only."""
        return Copies(self.members[: self.starts[count]], self.starts[: count + 1])

    def allowed(self, mask: Mask) -> Copies:
        """Leave out rows that may not be named; vectors may remain without any."""
        kept = mask[self.members]
        before = np.concatenate(([0], np.cumsum(kept)))
        return Copies(self.members[kept], before[self.starts])

    def any_of(self, mask: Mask) -> Mask:
        """Say which vectors have a row in a mask: (u,) bool. Every vector must have a row."""
        out: Mask = np.logical_or.reduceat(mask[self.members], self.starts[:-1])
        return out

    def in_order(self, order: IntArray) -> Copies:
        """Return the vectors in another order: (u,) positions."""
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        shift = np.repeat(self.starts[:-1][order] - starts[:-1], sizes)
        return Copies(self.members[np.arange(len(shift)) + shift], starts)

    def rows(self, found: IntArray, count: int) -> IntArray:
        """Return the rows of the vectors found for each query, in their order.

        Args:
            found: (q, c) vectors, -1 for none.
            count: Rows per query.

        Returns:
            (q, count) int64, -1 where there are fewer.
        """
        q, c = found.shape
        flat = found.ravel()
        sizes = np.where(flat < 0, 0, np.minimum(self.starts[flat + 1] - self.starts[flat], count))
        at = np.repeat(np.arange(len(flat)), sizes)
        within = np.arange(len(at)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        by_query = sizes.reshape(q, c)
        place = (np.cumsum(by_query, axis=1) - by_query).ravel()[at] + within
        kept = place < count
        out = np.full((q, count), -1, np.int64)
        out[at[kept] // max(c, 1), place[kept]] = self.members[(self.starts[flat[at]] + within)[kept]]
        return out


def copies_of(arrays: Sequence[IntArray], rows: int, where: str) -> Copies:
    """Return the copies that were kept as `members` and `starts`.

    Args:
        arrays: The two, as they were read.
        rows: Rows there must be, each of one vector.
        where: Names them in messages.

    Raises:
        CorruptFileError: They are not copies of so many rows.
    """
    if len(arrays) == 2:
        members, starts = arrays
        begins_and_ends = len(starts) > 1 and starts[0] == 0 and starts[-1] == rows
        if begins_and_ends and (np.diff(starts) > 0).all() and _is_each_once(members, rows):
            return Copies(members, starts)
    raise CorruptFileError(f"{where} does not say which of its {rows:,} rows are equal; build it again")


def _is_each_once(members: IntArray, rows: int) -> bool:
    if len(members) != rows or not ((members >= 0) & (members < rows)).all():
        return False
    return bool((np.bincount(members, minlength=rows) == 1).all())


def hashes_of(vectors: Vectors) -> Hashes:
    """Hash each vector linearly into 128 bits: vectors that differ share them with a chance of 2^-64 at most.

    Args:
        vectors: (n, d) float32; 0.0 and -0.0 are equal.
    """
    weights = np.random.default_rng(0).integers(0, _ALL_BITS, (vectors.shape[1], 2), np.uint64, endpoint=True)
    bits = (vectors + np.float32(0.0)).view(np.uint32).astype(np.uint64)
    out: Hashes = bits @ (weights | np.uint64(1))
    return out


def copies_in(hashes: Hashes) -> Copies:
    """Put rows of equal hashes together, vectors in the order of their first rows."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: rows ascend among equals
    ordered = hashes[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.append(np.flatnonzero(begins), len(order))
    return Copies(order, starts).in_order(np.argsort(order[starts[:-1]]))
