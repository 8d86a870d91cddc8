"""Vectors made from hashes: the same for the same text, different for different ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.types import Vectors

Seeds: TypeAlias = npt.NDArray[np.uint64]

_BLOCK = 128  # rows stretched at once, so that they stay in the processor's cache


def digest(text: str) -> bytes:
    """Return the 16 bytes a text's vector is made from; nobody reads the text out of them."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def seeds_of(digests: Sequence[bytes]) -> Seeds:
    """Return digests of 16 bytes as (n, 2) uint64."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def vectors_of(seeds: Seeds, dimensions: int) -> Vectors:
    """Stretch 128 bits a row into (n, dimensions) float32 of unit length.

    The first components do not depend on how many are asked for, but for their common length: cut and
    normalized, a long vector is the short one, as with models that can be shortened.
    """
    vectors = np.empty((len(seeds), dimensions), dtype=np.float32)
    for at in range(0, len(seeds), _BLOCK):
        vectors[at : at + _BLOCK] = _expand(seeds[at : at + _BLOCK], dimensions)
    return vectors


def _expand(seeds: Seeds, dimensions: int) -> Vectors:
    """Stretch 128 bits a row into `dimensions` numbers in [-1, 1), then to unit length.

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    """
    steps = np.arange(1, dimensions + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = seeds[:, :1] + steps  # (n, d), wraps around
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed += seeds[:, 1:]
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    vectors = (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    vectors /= np.maximum(norms, np.float32(1e-6))
    return vectors
