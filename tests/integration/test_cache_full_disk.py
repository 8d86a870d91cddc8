"""A disk that is full at any point: the cache says so once, keeps nothing more, and finds what it had."""

from __future__ import annotations

import json
import logging
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vecmill.embedder.cache import database
from vecmill.embedder.cache.sqlite import SqliteCache

SCRIPT = Path(__file__).with_name("cache_process.py")
cache_process = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

TEXTS = 400


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("room", [100, 5_000, 60_000, 200_000, 500_000, 1_000_000])
def test_a_file_that_cannot_grow_is_said_once_and_the_process_goes_on(tmp_path: Path, room: int) -> None:
    path = tmp_path / "vectors.sqlite"
    arguments = [str(path), "1", "40", str(TEXTS), str(room), str(1 << 30)]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        input="\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    there, wrong = json.loads(process.stdout.splitlines()[-1])
    assert wrong == 0
    assert there < TEXTS
    assert process.stderr.count("new vectors are not kept") == 1
    assert process.stderr.count("cannot be read") <= 1
    assert process.stderr.count("\n") == 1 + process.stderr.count("cannot be read")
    cache = SqliteCache(path)  # there is room again
    numbers = np.arange(TEXTS)
    assert cache_process.wrong_among(cache, numbers) == (there, 0)
    cache.put(cache_process.SPACE, cache_process.keys_of(numbers), cache_process.vectors_of(numbers))
    assert cache_process.wrong_among(cache, numbers) == (TEXTS, 0)
    cache.close()
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_full_database_keeps_what_it_has_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect = database._connect
    pages = [30]

    def with_little_room(path: Path, mode: str, *, create: bool) -> sqlite3.Connection:
        db = connect(path, mode, create=create)
        db.execute(f"PRAGMA max_page_count = {pages[0]}")
        return db

    monkeypatch.setattr(database, "_connect", with_little_room)
    clock = [1_800_000_000.0]
    cache = SqliteCache(tmp_path / "vectors.sqlite", now=lambda: clock[0])
    numbers = np.arange(2_000)
    with caplog.at_level(logging.WARNING):
        for at in range(0, 2_000, 100):
            some = numbers[at : at + 100]
            cache.put(cache_process.SPACE, cache_process.keys_of(some), cache_process.vectors_of(some))
            clock[0] += 61
    there, wrong = cache_process.wrong_among(cache, numbers)
    assert wrong == 0
    assert 200 <= there <= 450
    assert [record.message.count("new vectors are not kept") for record in caplog.records] == [1]
    cache.close()
    pages[0] = 10_000
    clock[0] += 61
    cache.put(cache_process.SPACE, cache_process.keys_of(numbers), cache_process.vectors_of(numbers))
    assert cache_process.wrong_among(cache, numbers) == (2_000, 0)
    cache.close()
