"""Run as a process by the tests of the cache in a file: puts vectors that follow from their numbers alone.

Arguments: path, seed, puts, texts to choose from, bytes a file may have (0: any), limit of the cache. Waits
for a line on stdin, then says the numbers of each put once it is done.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np

from vecmill.core.types import IntArray, Vectors
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.sqlite import SqliteCache

SPACE = "ab" * 16
DIMENSIONS = 512
BATCH = 40


def vectors_of(numbers: IntArray) -> Vectors:
    """Return (n, 512) vectors; each follows from its number."""
    steps = np.arange(1, DIMENSIONS + 1, dtype=np.float64)
    return np.sin(np.outer(numbers + 1, steps)).astype(np.float32)


def keys_of(numbers: IntArray) -> list[bytes]:
    """Return the keys of the numbers."""
    return cache_keys(SPACE, [f"text {number}" for number in numbers])


def wrong_among(cache: SqliteCache, numbers: IntArray) -> tuple[int, int]:
    """Return how many of the numbers' vectors the cache has, and how many of these are wrong."""
    at, found = cache.get(SPACE, keys_of(numbers), dimensions=DIMENSIONS)
    return len(at), int((found != vectors_of(numbers[at])).any(axis=1).sum())


def main(path: str, seed: int, puts: int, texts: int, file_bytes: int, max_bytes: int) -> None:
    """Put batches of random texts and report."""
    if file_bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    cache = SqliteCache(Path(path), max_bytes=max_bytes)
    chance = np.random.default_rng(seed)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    for _ in range(puts):
        numbers = chance.choice(texts, BATCH, replace=False)
        cache.put(SPACE, keys_of(numbers), vectors_of(numbers))
        print(json.dumps(numbers.tolist()), flush=True)
    print(json.dumps(wrong_among(cache, np.arange(texts))), flush=True)
    cache.close()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
