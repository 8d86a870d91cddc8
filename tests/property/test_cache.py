"""Whatever happens to the cache's files, a vector that comes out of it is the one that was put in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecmill.core.types import Vectors
from vecmill.embedder.cache import database
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.sqlite import SqliteCache

SPACE = "cd" * 16
WIDTHS = {48: 300, 1536: 40}
KEYS = {d: cache_keys(SPACE, [f"{d} {i}" for i in range(n)]) for d, n in WIDTHS.items()}


def vectors(d: int) -> Vectors:
    return np.random.default_rng(d).standard_normal((WIDTHS[d], d), dtype=np.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file most of which is in place, and a WAL with the rest."""
    live, kept = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("kept")
    cache = SqliteCache(live / "vectors.sqlite")
    for half in (0, 1):
        for d, n in WIDTHS.items():
            part = slice(half * n // 2, (half + 1) * n // 2)
            cache.put(SPACE, KEYS[d][part], vectors(d)[part])
        if half == 0:
            cache.close()
    for name in ("vectors.sqlite", "vectors.sqlite-wal"):
        shutil.copy(live / name, kept / name)
    cache.close()
    return kept


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, float, int, bytes]:
    """A file, what is done to it, where (as a share of its length or of the first page), and with what."""
    name = draw(st.sampled_from(["vectors.sqlite", "vectors.sqlite", "vectors.sqlite-wal"]))
    kind = draw(st.sampled_from(["flip", "write", "cut", "copy"]))
    share = draw(st.floats(0, 1, exclude_max=True))
    reach = draw(st.sampled_from([100, 4096, database.PAGE_BYTES, 10**9]))
    content = draw(st.binary(min_size=1, max_size=64) | st.sampled_from([bytes(5000), b"\xff" * 5000]))
    return name, kind, share, reach, content


def apply(folder: Path, damage: tuple[str, str, float, int, bytes]) -> None:
    name, kind, share, reach, new = damage
    content = bytearray((folder / name).read_bytes())
    at = int(share * min(reach, len(content)))
    if not content:
        return  # an earlier damage has cut all of it
    if kind == "flip":
        content[at] ^= new[0] or 1
    elif kind == "write":
        content[at : at + len(new)] = new[: len(content) - at]
    elif kind == "cut":
        del content[at:]
    else:
        page = database.PAGE_BYTES
        source, target = at // page * page, new[0] * page % max(len(content) // page * page, 1)
        content[target : target + page] = content[source : source + page]
    (folder / name).write_bytes(content)


def assert_right(cache: SqliteCache) -> int:
    total = 0
    for d in WIDTHS:
        at, found = cache.get(SPACE, KEYS[d], dimensions=d)
        assert found.tobytes() == vectors(d)[at].tobytes()
        total += len(at)
    return total


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(damages(), min_size=1, max_size=3))
def test_a_damaged_file_gives_the_right_vector_or_none(
    original: Path, tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str, float, int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(original, folder, dirs_exist_ok=True)
    for damage in done:
        apply(folder, damage)
    cache = SqliteCache(folder / "vectors.sqlite")
    for _ in range(4):  # a get or a put may be the one that finds the damage
        assert_right(cache)
        for d in WIDTHS:
            cache.put(SPACE, KEYS[d], vectors(d))
    assert assert_right(cache) == sum(WIDTHS.values()), "it keeps vectors again"
    cache.close()
    again = SqliteCache(folder / "vectors.sqlite")
    assert_right(again)
    again.close()
    shutil.rmtree(folder)


def test_without_damage_all_of_it_is_found(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    cache = SqliteCache(tmp_path / "vectors.sqlite")
    assert assert_right(cache) == sum(WIDTHS.values())
    cache.close()
