"""Sixteen processes that write overlapping keys into one file at once: every vector is there, and right."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vecmill.embedder.cache.sqlite import SqliteCache

SCRIPT = Path(__file__).with_name("cache_process.py")
cache_process = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

PROCESSES = 16


def start(path: Path, seed: int, *, puts: int, texts: int, max_bytes: int) -> subprocess.Popen[str]:
    numbers = (seed, puts, texts, 0, max_bytes)
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_together(path: Path, *, puts: int, texts: int, max_bytes: int, said: str = "") -> set[int]:
    """Let them all begin at one moment; return the numbers they put.

    Together they log one line with `said` in it, or, without that, nothing.
    """
    processes = [start(path, seed, puts=puts, texts=texts, max_bytes=max_bytes) for seed in range(PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    put: set[int] = set()
    logged = ""
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        logged += errors
        *numbers, (_, wrong) = [json.loads(line) for line in output.splitlines()]
        assert wrong == 0
        put.update(*numbers)
    assert logged.splitlines() == [line for line in logged.splitlines() if said and said in line][:1]
    return put


def test_sixteen_processes_writing_at_once_lose_and_spoil_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "vectors.sqlite"
    put = run_together(path, puts=12, texts=2_000, max_bytes=1 << 30)
    cache = SqliteCache(path)
    assert cache_process.wrong_among(cache, np.array(sorted(put))) == (len(put), 0)
    assert cache.info().vectors == len(put)
    cache.close()
    assert [file.name for file in path.parent.iterdir()] == ["vectors.sqlite"]


def test_sixteen_processes_over_the_limit_evict_together_and_spoil_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite"
    limit = 2 << 20  # about 950 vectors
    put = run_together(path, puts=12, texts=2_000, max_bytes=limit)
    cache = SqliteCache(path, max_bytes=limit)
    there, wrong = cache_process.wrong_among(cache, np.array(sorted(put)))
    assert wrong == 0
    assert 400 < there < 1_000
    assert cache.info().used_bytes <= limit
    cache.close()


def test_sixteen_processes_that_find_a_damaged_file_set_it_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"\x55" * 100_000)
    put = run_together(path, puts=6, texts=1_000, max_bytes=1 << 30, said="is damaged")
    cache = SqliteCache(path)
    assert cache_process.wrong_among(cache, np.array(sorted(put))) == (len(put), 0)
    cache.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.damaged-1"]
