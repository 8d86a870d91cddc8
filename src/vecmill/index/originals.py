"""Originals in one array: in memory, or memory-mapped from a file and read ahead before they are needed."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Vectors

_PART_BYTES = 16 << 20
"""Bytes of float32 given out at once by `parts`."""

_FIRST_ROWS = 2
_SLOW_SECONDS, _SLOW_SECONDS_PER_BYTE = 50e-6, 3e-9
"""A fetch that takes longer than both together waited for a disk."""


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
        self._vectors = np.asarray(vectors)
        self._ahead = _ReadAhead.of(self._vectors)

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

        When the first ones of a mapped file turn out to come from the disk, the others are announced to the
        system (`madvise`, where it has it) before they are read: the disk then works on many at once.

        Raises:
            IndexError: There is no such position.
        """
        if self._ahead is None:
            return self._vectors[rows].astype(np.float32, copy=False)
        out = np.empty((len(rows), self.dimensions), np.float32)
        start, size = 0, _FIRST_ROWS
        while start < len(rows):
            part = slice(start, start + size)
            begun = time.perf_counter()
            out[part] = self._vectors[rows[part]]
            start += size
            patience = _SLOW_SECONDS + _SLOW_SECONDS_PER_BYTE * size * self._vectors.strides[0]
            size *= 2
            if time.perf_counter() - begun > patience and start < len(rows):
                self._ahead.announce(rows[start:])
                out[start:] = self._vectors[rows[start:]]
                break
        return out

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
        if vectors.strides[0] <= 0 or not vectors.size:
            return None
        start = np.frombuffer(base, np.uint8, 1).ctypes.data
        return _ReadAhead(base, vectors.ctypes.data - start, int(vectors.strides[0]))

    def announce(self, rows: IntArray) -> None:
        """Ask for the pages of rows (m,) from 0: one call per run of neighbouring pages."""
        for begin, end in self.runs(rows):
            self._mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def runs(self, rows: IntArray) -> Iterator[tuple[int, int]]:
        """Yield where in the file the pages of rows begin and end, ascending, runs put together."""
        page = mmap.PAGESIZE
        begins = self._first + np.unique(rows) * self._row_bytes
        pages = begins // page
        ends = (begins + self._row_bytes - 1) // page + 1
        fresh = np.flatnonzero(np.concatenate(([True], pages[1:] > ends[:-1])))
        lasts = np.concatenate((fresh[1:] - 1, [len(pages) - 1]))
        for begin, end in zip((pages[fresh] * page).tolist(), (ends[lasts] * page).tolist(), strict=True):
            yield begin, min(end, len(self._mapped))
