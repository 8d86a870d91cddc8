"""Originals in one array: in memory, or memory-mapped from a file and read ahead before they are needed."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Vectors

_PART_BYTES = 16 << 20
"""Bytes of float32 given out at once by `parts`."""


class ArrayOriginals:
    """Vectors of one array. Nothing is copied or read until it is asked for.

    Args:
        vectors: (n, d) float32 or float16, in memory or an `np.memmap`; it must not change while it is used.

    Raises:
        InputError: Not a table of float32 or float16.
    """

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
            raise InputError(
                f"originals must be a table (n, d) of float32 or float16, not {vectors.dtype} of shape "
                f"{vectors.shape}"
            )
        self._vectors = vectors
        self._ahead = _ReadAhead.of(vectors)

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return int(self._vectors.shape[1])

    @property
    def vectors(self) -> npt.NDArray[Any]:
        """The array itself; do not modify it."""
        return self._vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def fetch(self, rows: IntArray) -> Vectors:
        """Return the vectors at (m,) positions: (m, d) float32, a new array.

        Of a file, all rows are announced first (`madvise`, where the system has it), so that the disk works
        on many at once instead of one after another.

        Raises:
            IndexError: There is no such position.
        """
        if self._ahead is not None:
            self._ahead.announce(rows)
        return self._vectors[rows].astype(np.float32, copy=False)

    def parts(self) -> Iterator[tuple[int, Vectors]]:
        """Yield all vectors in order, in pieces of at most 16 MiB: position of the first, (m, d) float32."""
        step = max(1, _PART_BYTES // (4 * max(1, self.dimensions)))
        for start in range(0, len(self), step):
            yield start, np.ascontiguousarray(self._vectors[start : start + step], dtype=np.float32)


class _ReadAhead:
    """Tells the system which pages of a mapped file will be read next."""

    def __init__(self, mapped: mmap.mmap, first: int, row_bytes: int) -> None:
        self._mapped = mapped
        self._first = first
        self._row_bytes = row_bytes

    @staticmethod
    def of(vectors: npt.NDArray[Any]) -> _ReadAhead | None:
        """Return one for an array whose rows lie in a mapped file; None for others, or where it cannot be."""
        base: Any = vectors
        while isinstance(base, np.ndarray):
            base = base.base
        if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
            return None
        if vectors.strides[0] <= 0 or not len(vectors):
            return None
        start = np.frombuffer(base, np.uint8, 1).ctypes.data
        return _ReadAhead(base, vectors.ctypes.data - start, int(vectors.strides[0]))

    def announce(self, rows: IntArray) -> None:
        """Ask for the pages of rows: one call per run of neighbouring pages."""
        page = mmap.PAGESIZE
        begins = self._first + np.unique(rows) * self._row_bytes
        pages = begins // page
        ends = (begins + self._row_bytes - 1) // page + 1
        if not len(pages):
            return
        fresh = np.flatnonzero(np.concatenate(([True], pages[1:] > ends[:-1])))
        lasts = np.concatenate((fresh[1:] - 1, [len(pages) - 1]))
        for begin, end in zip((pages[fresh] * page).tolist(), (ends[lasts] * page).tolist(), strict=True):
            self._mapped.madvise(mmap.MADV_WILLNEED, begin, min(end, len(self._mapped)) - begin)
