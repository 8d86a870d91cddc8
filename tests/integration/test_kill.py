"""SIGKILL at random moments of a real job on real rows: the final file equals an undisturbed run's.

CI kills 10 times, `--slow` 50 times; a run that comes to its end is followed by another.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROWS = 20_000
SEED = 2026


def command(data_dir: Path, output: Path, rows: int) -> list[str]:
    source = data_dir / "scale" / "multi30k_captions_en.parquet"
    return [
        *(sys.executable, "-m", "vecmill", "embed", str(source), "--text", "text"),
        *("--limit", str(rows), "-o", str(output)),
    ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_job_killed_at_random_moments_ends_with_the_same_bytes(
    data_dir: Path, tmp_path: Path, slow: bool
) -> None:
    rows, kills, reach = (ROWS, 50, 0.22) if slow else (ROWS // 2, 10, 0.4)
    calm = tmp_path / "calm.parquet"
    started = time.monotonic()
    subprocess.run(command(data_dir, calm, rows), check=True, capture_output=True, env=os.environ)
    seconds = time.monotonic() - started
    expected = digest(calm)
    chance = random.Random(SEED)
    windows_left: list[int] = []
    runs = 0
    while len(windows_left) < kills:
        output = tmp_path / f"killed{runs}.parquet"
        runs += 1
        while len(windows_left) < kills:
            process = subprocess.Popen(
                command(data_dir, output, rows), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            try:
                process.wait(timeout=chance.uniform(0.3, 0.3 + reach * seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            if process.wait() == 0:
                break  # it came to its end before the moment did
            assert process.returncode == -signal.SIGKILL
            state = output.with_name(output.name + ".vecmill")
            windows_left.append(len(list(state.glob("window-*.arrow"))) if state.is_dir() else 0)
        subprocess.run(command(data_dir, output, rows), check=True, capture_output=True)
        assert digest(output) == expected, f"seed {SEED}, run {runs}"
        assert not output.with_name(output.name + ".vecmill").exists()
    print(
        f"seed {SEED}: {len(windows_left)} kills in {runs} runs, windows standing after each: {windows_left}"
    )
    assert any(windows_left), "no kill found a half-finished job"
