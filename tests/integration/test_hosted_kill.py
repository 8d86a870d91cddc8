"""SIGKILL at random moments of a hosted job: the same output, and hardly anything paid twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vecmill.jobs.pipeline import COMMITTING
from vecmill.jobs.windows import WINDOW_ROWS
from vecmill.testing.scenarios import Latency, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread

SEED = 11
ROWS = 20_000
INPUTS = 256
IN_FLIGHT = (2 + COMMITTING) * WINDOW_ROWS
"""Rows on their way at most: a window waiting for its last replies, one being sent, those being written."""

SCENARIO = replace(
    Scenario(), max_inputs=INPUTS, requests_per_minute=3_000, latency=Latency("uniform", 0.02, 0.08)
)


def embed(source: Path, output: Path, simulator: Simulator, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vecmill", "embed", str(source), "-o", str(output), "--json"]
    command += ["-m", "openai:text-embedding-3-small", "--base-url", simulator.url, "--columns", "none"]
    environment = {**os.environ, "OPENAI_API_KEY": simulator.key, "VECMILL_CACHE_DIR": str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    receipt: dict[str, Any] = json.loads(out)
    return receipt


def test_a_job_killed_again_and_again_ends_the_same_and_pays_little_twice(tmp_path: Path, slow: bool) -> None:
    kills = 50 if slow else 10
    dice = random.Random(SEED)
    print(f"seed {SEED}, {kills} kills")
    source = tmp_path / "in.txt"
    source.write_text("".join(f"row number {i} of a table\n" for i in range(ROWS)))
    with simulator_thread(SCENARIO) as simulator:
        undisturbed = tmp_path / "calm" / "out.parquet"
        calm = finish(embed(source, undisturbed, simulator, tmp_path / "calm" / "cache"))
        assert calm["vectors"] == calm["sent"] == ROWS
        done = 0
        while done < kills:  # as many runs as the kills need
            folder = tmp_path / f"killed{done}"
            already, died = simulator.billed_texts, 0
            while done < kills and killed(source, folder, simulator, dice):
                died, done = died + 1, done + 1
            receipt = finish(embed(source, folder / "out.parquet", simulator, folder / "cache"))
            paid = simulator.billed_texts - already
            print(f"{died} kills: {paid - ROWS - 3} texts paid twice")
            assert paid <= ROWS + 3 + died * (IN_FLIGHT + 3)
            assert (folder / "out.parquet").read_bytes() == undisturbed.read_bytes()
            assert receipt["rows"] == receipt["vectors"] + receipt["skipped"] + receipt["errors"] == ROWS
            assert receipt["texts"] == receipt["sent"] + receipt["deduped"] + receipt["cached"]


def killed(source: Path, folder: Path, simulator: Simulator, dice: random.Random) -> bool:
    """Start the job and kill it once it has paid for some texts; say whether it still ran."""
    moment = simulator.billed_texts + dice.randrange(1, ROWS // 4)
    process = embed(source, folder / "out.parquet", simulator, folder / "cache")
    while process.poll() is None and simulator.billed_texts < moment:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL
