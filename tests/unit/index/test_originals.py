from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.errors import InputError
from vecmill.index import originals as originals_module
from vecmill.index.base import Originals
from vecmill.index.originals import ArrayOriginals


def random(n: int, d: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


def mapped(tmp_path: Path, vectors: np.ndarray) -> np.ndarray:
    np.save(tmp_path / "vectors.npy", vectors)
    return np.load(tmp_path / "vectors.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_fetch_gives_rows_in_the_order_asked_for(tmp_path: Path, dtype: type, on_disk: bool) -> None:
    vectors = random(300, 5, dtype)
    originals: Originals = ArrayOriginals(mapped(tmp_path, vectors) if on_disk else vectors)
    rows = np.array([7, 299, 7, 0, 150, 151, 152])
    got = originals.fetch(rows)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, vectors[rows].astype(np.float32))
    assert (len(originals), originals.dimensions) == (300, 5)
    assert originals.fetch(np.empty(0, np.int64)).shape == (0, 5)
    got[:] = 0.0
    assert originals.fetch(rows).any()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_row_that_is_not_there_raises(tmp_path: Path, on_disk: bool) -> None:
    vectors = random(10, 3)
    with pytest.raises(IndexError):
        ArrayOriginals(mapped(tmp_path, vectors) if on_disk else vectors).fetch(np.array([10]))


def test_parts_are_all_vectors_in_order_and_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals_module, "_PART_BYTES", 1000)
    vectors = random(101, 10, np.float16)
    parts = list(ArrayOriginals(vectors).parts())
    assert [start for start, _ in parts] == list(range(0, 101, 25))
    assert all(part.dtype == np.float32 and part.nbytes <= 1000 for _, part in parts)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), vectors.astype(np.float32))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="this system has no madvise")
def test_pages_of_rows_are_announced_where_they_lie_in_the_file(tmp_path: Path) -> None:
    view = mapped(tmp_path, random(4000, 64))[100:]  # rows of 256 bytes, 128 bytes of header
    ahead = ArrayOriginals(view)._ahead
    assert ahead is not None
    runs = list(ahead.runs(np.array([3000, 0, 1, 17, 3000])))
    page = mmap.PAGESIZE
    for row in (0, 1, 17, 3000):
        at = 128 + 256 * (100 + row)
        assert any(begin <= at and at + 256 <= end for begin, end in runs)
    assert all(begin % page == 0 for begin, _ in runs)
    assert sum(end - begin for begin, end in runs) <= 5 * page
    assert list(ahead.runs(np.arange(3900)))[-1][1] <= 128 + 256 * 4000
    ahead.announce(np.array([3000, 0]))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="this system has no madvise")
@pytest.mark.parametrize("slow", [False, True])
def test_rows_are_announced_once_the_first_turn_out_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    vectors = random(500, 8)
    originals = ArrayOriginals(mapped(tmp_path, vectors))
    assert originals._ahead is not None
    announced: list[int] = []
    monkeypatch.setattr(originals_module._ReadAhead, "announce", lambda self, rows: announced.extend(rows))
    monkeypatch.setattr(originals_module, "_SLOW_SECONDS", -1.0 if slow else 1e9)
    rows = np.arange(0, 500, 5)
    np.testing.assert_array_equal(originals.fetch(rows), vectors[rows])
    assert announced == (rows[2:].tolist() if slow else [])


def test_without_madvise_a_mapped_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_WILLNEED", raising=False)
    vectors = random(50, 4)
    originals = ArrayOriginals(mapped(tmp_path, vectors))
    assert originals._ahead is None
    np.testing.assert_array_equal(originals.fetch(np.array([49, 3])), vectors[[49, 3]])


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros((3, 2)), np.zeros((3, 2), np.int8)])
def test_what_is_no_table_of_floats_raises(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="float32 or float16, not"):
        ArrayOriginals(wrong)
