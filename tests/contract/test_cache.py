"""What every cache of vectors does, run on each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.types import Vectors
from vecmill.embedder.cache.base import VectorCache, cache_keys
from vecmill.embedder.cache.memory import MemoryCache
from vecmill.embedder.cache.sqlite import SqliteCache

SPACE = "0" * 32
D = 24


def vectors(texts: list[str], dimensions: int = D) -> Vectors:
    """Vectors that follow from their texts alone, so that a mix-up shows."""
    rows = [np.frombuffer(key, np.uint8) for key in cache_keys("made up", texts)]
    return np.resize(np.array(rows, dtype=np.float32) / 7, (len(texts), dimensions))


def rows(texts: list[str], dimensions: int = D) -> Vectors:
    return np.concatenate([vectors([text], dimensions) for text in texts])


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], VectorCache]]:
    made: list[VectorCache] = []

    def build(max_bytes: int) -> VectorCache:
        path = tmp_path / f"{len(made)}.sqlite"
        cache: VectorCache = (
            MemoryCache(max_bytes) if request.param == "memory" else SqliteCache(path, max_bytes=max_bytes)
        )
        made.append(cache)
        return cache

    yield build
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make: Callable[[int], VectorCache]) -> VectorCache:
    return make(64 << 20)


def test_a_new_cache_has_nothing(cache: VectorCache) -> None:
    at, found = cache.get(SPACE, cache_keys(SPACE, ["a"]), dimensions=D)
    assert at.dtype == np.int64
    assert at.shape == (0,)
    assert found.shape == (0, D)
    assert found.dtype == np.float32
    assert cache.contains(SPACE, cache_keys(SPACE, ["a"]), dimensions=D).tolist() == [False]


def test_no_keys_find_nothing(cache: VectorCache) -> None:
    cache.put(SPACE, [], np.empty((0, D), np.float32))
    at, found = cache.get(SPACE, [], dimensions=D)
    assert at.shape == (0,)
    assert found.shape == (0, D)
    assert cache.contains(SPACE, [], dimensions=D).shape == (0,)


@pytest.mark.parametrize("count", [1, 8, 9, 64, 65, 511, 512, 513, 1500])
def test_found_vectors_are_the_bytes_that_were_put_in_the_order_of_the_keys(
    cache: VectorCache, count: int
) -> None:
    texts = [f"text {i}" for i in range(count)]
    keys, put = cache_keys(SPACE, texts), rows(texts)
    cache.put(SPACE, keys, put)
    order = np.random.default_rng(count).permutation(count)
    at, found = cache.get(SPACE, [keys[i] for i in order], dimensions=D)
    assert at.tolist() == list(range(count))
    assert found.tobytes() == put[order].tobytes()


def test_positions_tell_which_keys_were_found(cache: VectorCache) -> None:
    texts = [f"text {i}" for i in range(200)]
    keys, put = cache_keys(SPACE, texts), rows(texts)
    some = [3, 5, 77, 150, 199]
    cache.put(SPACE, [keys[i] for i in some], put[some])
    at, found = cache.get(SPACE, keys, dimensions=D)
    assert at.tolist() == some
    assert found.tobytes() == put[some].tobytes()
    assert np.flatnonzero(cache.contains(SPACE, keys, dimensions=D)).tolist() == some


def test_a_key_asked_for_twice_is_found_twice(cache: VectorCache) -> None:
    keys, put = cache_keys(SPACE, ["a", "b"]), rows(["a", "b"])
    cache.put(SPACE, keys, put)
    at, found = cache.get(SPACE, [keys[1], keys[0], keys[1]], dimensions=D)
    assert at.tolist() == [0, 1, 2]
    assert found.tobytes() == put[[1, 0, 1]].tobytes()


def test_a_key_that_is_there_stays_as_it_is(cache: VectorCache) -> None:
    keys, put = cache_keys(SPACE, ["a"]), rows(["a"])
    cache.put(SPACE, keys, put)
    cache.put(SPACE, keys, put + 1)
    assert cache.get(SPACE, keys, dimensions=D)[1].tobytes() == put.tobytes()


def test_of_a_key_put_twice_in_one_call_the_first_vector_is_kept(cache: VectorCache) -> None:
    keys, put = cache_keys(SPACE, ["a", "a"]), rows(["a", "b"])
    cache.put(SPACE, keys, put)
    assert cache.get(SPACE, keys[:1], dimensions=D)[1].tobytes() == put[:1].tobytes()


def test_another_width_counts_as_not_there(cache: VectorCache) -> None:
    keys = cache_keys(SPACE, ["a"])
    cache.put(SPACE, keys, rows(["a"]))
    assert cache.get(SPACE, keys, dimensions=D // 2)[0].size == 0
    assert not cache.contains(SPACE, keys, dimensions=D // 2).any()


def test_the_same_text_in_another_space_is_another_vector(cache: VectorCache) -> None:
    other = "f" * 32
    cache.put(SPACE, cache_keys(SPACE, ["a"]), rows(["a"]))
    cache.put(other, cache_keys(other, ["a"]), rows(["b"]))
    assert cache.get(other, cache_keys(other, ["a"]), dimensions=D)[1].tobytes() == rows(["b"]).tobytes()
    assert cache.get(SPACE, cache_keys(SPACE, ["a"]), dimensions=D)[1].tobytes() == rows(["a"]).tobytes()


def test_the_callers_array_is_not_kept(cache: VectorCache) -> None:
    keys, put = cache_keys(SPACE, ["a"]), rows(["a"])
    given = put.copy()
    cache.put(SPACE, keys, given)
    given[:] = 0
    _, found = cache.get(SPACE, keys, dimensions=D)
    assert found.tobytes() == put.tobytes()
    found[:] = 0
    assert cache.get(SPACE, keys, dimensions=D)[1].tobytes() == put.tobytes()


def test_vectors_that_are_not_contiguous_are_kept_right(cache: VectorCache) -> None:
    wide = np.arange(4 * D * 2, dtype=np.float32).reshape(4, D * 2)[:, ::2]
    keys = cache_keys(SPACE, list("abcd"))
    cache.put(SPACE, keys, wide)
    assert cache.get(SPACE, keys, dimensions=D)[1].tolist() == wide.tolist()


def test_as_many_vectors_as_keys_are_needed(cache: VectorCache) -> None:
    with pytest.raises(ValueError, match=r"2|shorter|longer"):
        cache.put(SPACE, cache_keys(SPACE, ["a", "b"]), rows(["a"]))


def test_the_limit_holds_and_the_newest_stay(make: Callable[[int], VectorCache]) -> None:
    limit, wide = 4 << 20, 1_500
    cache = make(limit)
    texts = [f"text {i}" for i in range(1_280)]  # 7.7 MB
    keys = cache_keys(SPACE, texts)
    for at in range(0, len(texts), 64):
        cache.put(SPACE, keys[at : at + 64], rows(texts[at : at + 64], wide))
    there = cache.contains(SPACE, keys, dimensions=wide)
    assert 0.5 * limit < there.sum() * wide * 4 <= limit
    assert there[-64:].all()
    assert not there[:64].any()
    at, found = cache.get(SPACE, keys[-64:], dimensions=wide)
    assert at.size == 64
    assert found.tobytes() == rows(texts[-64:], wide).tobytes()


def test_a_closed_cache_may_be_used_again(cache: VectorCache) -> None:
    cache.close()
    keys = cache_keys(SPACE, ["a"])
    cache.put(SPACE, keys, rows(["a"]))
    assert cache.get(SPACE, keys, dimensions=D)[0].tolist() == [0]


def test_many_threads_at_once_get_only_right_vectors(cache: VectorCache) -> None:
    texts = [f"text {i}" for i in range(400)]
    keys, put = cache_keys(SPACE, texts), rows(texts)
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(12):
            some = chance.choice(400, 60, replace=False)
            asked = [keys[i] for i in some]
            at, found = cache.get(SPACE, asked, dimensions=D)
            if found.tobytes() != put[some[at]].tobytes():
                wrong.append(f"thread {seed}")
            missing = np.setdiff1d(np.arange(60), at)
            cache.put(SPACE, [asked[i] for i in missing], put[some[missing]])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.contains(SPACE, keys, dimensions=D).all()
