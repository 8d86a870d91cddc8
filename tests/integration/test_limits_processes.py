"""Processes that share `limits.sqlite` keep within one limit together and use it, and share a pause."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from vecmill.embedder.limit_store import SqliteStore
from vecmill.embedder.pacing import Caps, State

WORKER = Path(__file__).with_name("limits_process.py")


def _run(folder: Path, processes: int, *arguments: str) -> list[list[float]]:
    """Run workers at once; return the moments at which each sent its requests."""
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), *arguments], stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    moments = []
    for process in started:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        moments.append(json.loads(out))
    return moments


def test_two_processes_stay_within_one_limit_and_both_get_on(tmp_path: Path) -> None:
    limit, seconds = 3000, 3.0

    moments = _run(tmp_path, 2, str(limit), str(seconds))

    assert min(len(each) for each in moments) > 0.2 * max(len(each) for each in moments)
    together = sorted(at for each in moments for at in each)
    both = [at for at in together if max(each[0] for each in moments) <= at <= min(e[-1] for e in moments)]
    assert len(both) > 10
    allowed = (both[-1] - both[0]) * limit / 60
    assert len(both) <= allowed + limit / 60 * 0.5 + 2, "half a second of the flow may be made up for"


def test_four_processes_that_reserve_without_waiting_stay_within_the_limit(tmp_path: Path) -> None:
    """Time is each process's own number here, so nothing depends on how fast the machine is."""
    limit = 600

    moments = sorted(at for each in _run(tmp_path, 4, str(limit), "reserve", "450") for at in each)

    assert len(moments) == 1800
    for first, at in enumerate(moments):
        assert sum(1 for other in moments[first : first + limit + 1] if other < at + 60) <= limit
    assert 1800 / (moments[-1] - moments[0]) * 60 >= 0.9 * limit


def test_a_pause_reaches_a_process_that_starts_later(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "limits.sqlite")

    def pause(state: State) -> None:
        state.paused_until = 1_800_000_000.0 + 45.0
        state.saved_at = 1_800_000_000.0

    store.change("e", pause)
    store.close()

    (moments,) = _run(tmp_path, 1, "600", "reserve", "3")

    assert moments[0] == 1_800_000_045.0


def test_a_killed_process_leaves_a_file_that_works(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER), str(tmp_path), "600", "reserve", "1000000"]
    for i in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (tmp_path / "limits.sqlite").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.03 * i)
        process.kill()
        process.wait()

    store = SqliteStore(tmp_path / "limits.sqlite")
    grants = store.change("e", lambda state: state.reserve([1], Caps(600), now=0.0, horizon=0))
    assert len(grants) == 1
    assert store.blocks, "the file is still in use"
    store.close()
