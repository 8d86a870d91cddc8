"""SIGKILL at random moments of a process that writes: what it said it had put is there, and right.

CI kills 10 times, `--slow` 50 times.
"""

from __future__ import annotations

import json
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vecmill.embedder.cache.sqlite import SqliteCache

SCRIPT = Path(__file__).with_name("cache_process.py")
cache_process = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

SEED = 2026
TEXTS = 4_000


@pytest.mark.parametrize("limit", [1 << 30, 2 << 20], ids=["room", "evicting"])
def test_a_writer_killed_at_random_moments_loses_nothing_it_had_put(
    tmp_path: Path, slow: bool, limit: int
) -> None:
    path = tmp_path / "vectors.sqlite"
    chance = random.Random(SEED)
    put: set[int] = set()
    killed_at: list[int] = []
    for kill in range((50 if slow else 10) // 2):
        arguments = [str(path), str(kill), "100000", str(TEXTS), "0", str(limit)]
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert json.loads(process.stdout.readline()) == "ready"
            process.stdin.write("\n")
            process.stdin.flush()
            put.update(json.loads(process.stdout.readline()))
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=chance.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            done = [json.loads(line) for line in process.stdout.read().splitlines() if line.endswith("]")]
        put.update(*done)
        killed_at.append(len(done))
        cache = SqliteCache(path, max_bytes=limit)
        there, wrong = cache_process.wrong_among(cache, np.array(sorted(put)))
        assert wrong == 0, f"seed {SEED}, kill {kill}"
        if limit == 1 << 30:
            assert there == len(put), f"seed {SEED}, kill {kill}"
        assert cache_process.wrong_among(cache, np.arange(TEXTS))[1] == 0
        assert not list(tmp_path.glob("*.damaged-*"))
        cache.close()
    print(f"seed {SEED}: puts done before each kill: {killed_at}")
    assert any(killed_at)
