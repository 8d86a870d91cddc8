"""A cache for the lifetime of a process, for `--no-cache` runs and tests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vecmill.core.types import IntArray, Vectors


class MemoryCache:
    """Keeps the vectors used last, at most `max_bytes` of them.

    Args:
        max_bytes: Bytes of vectors kept; the least recently used go first.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> tuple[IntArray, Vectors]:
        """Look keys up; see `VectorCache.get`."""
        del space  # the keys hold it
        found, vectors = [], []
        with self._lock:
            for at, key in enumerate(keys):
                vector = self._vectors.get(key)
                if vector is not None and len(vector) == dimensions:
                    self._vectors.move_to_end(key)
                    found.append(at)
                    vectors.append(vector)
        stacked = np.stack(vectors) if vectors else np.empty((0, dimensions), dtype=np.float32)
        return np.array(found, dtype=np.int64), stacked

    def contains(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> npt.NDArray[np.bool_]:
        """Say which keys are there; see `VectorCache.contains`."""
        del space
        with self._lock:
            held = [key in self._vectors and len(self._vectors[key]) == dimensions for key in keys]
        return np.array(held, dtype=np.bool_)

    def put(self, space: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors; see `VectorCache.put`."""
        del space
        with self._lock:
            for key, vector in zip(keys, vectors, strict=True):
                if key not in self._vectors:
                    self._vectors[key] = vector.copy()
                    self._held += vector.nbytes
            while self._held > self._max_bytes and self._vectors:
                _, dropped = self._vectors.popitem(last=False)
                self._held -= dropped.nbytes

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self._held = 0
