"""What a cache of vectors is: keys, and the three things it can do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vecmill.core.types import IntArray, Vectors


def cache_keys(space: str, texts: Sequence[str], *, variant: str = "") -> list[bytes]:
    """Return the 16-byte keys of texts: BLAKE2b-128 of the space and the exact bytes sent.

    Args:
        space: Space id.
        texts: Exactly what is sent, prefix included.
        variant: Which of a pair of models, "" for the usual one.
    """
    start = hashlib.blake2b(digest_size=16)
    for part in (space.encode(), variant.encode()):
        start.update(len(part).to_bytes(8, "little"))
        start.update(part)
    keys = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        keys.append(digest.digest())
    return keys


class VectorCache(Protocol):
    """Vectors by key. Methods block (a few ms for thousands of keys) and may be called from any thread."""

    def get(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> tuple[IntArray, Vectors]:
        """Look keys up.

        A vector that is damaged, or has another width than `dimensions`, counts as not there.

        Returns:
            Positions in `keys` that were found, (h,) int64 ascending, and their vectors,
            (h, dimensions) float32.
        """

    def contains(self, space: str, keys: Sequence[bytes], *, dimensions: int) -> npt.NDArray[np.bool_]:
        """Say which keys are there, (n,) bool, without reading vectors and without counting as use."""

    def put(self, space: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors (n, d) float32 under keys; a key that is there stays as it is.

        A cache that cannot be written (full disk) warns once and keeps nothing: it never fails a job.
        """

    def close(self) -> None:
        """Let go of files."""
