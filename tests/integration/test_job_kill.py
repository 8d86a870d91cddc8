"""SIGKILL at every durable operation of a job: what follows equals an undisturbed run, byte for byte."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_job.py")
SEED = 7


def run_job(source: Path, output: Path, die_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(source), str(output), str(die_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text {i % 23}\n" for i in range(50)) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "folder"])
def test_a_job_killed_at_any_operation_resumes_to_the_same_bytes(
    source: Path, tmp_path: Path, name: str, slow: bool
) -> None:
    calm = run_job(source, tmp_path / "calm" / name, -1)
    assert calm.returncode == 0, calm.stderr
    operations = int(calm.stdout)
    moments = list(range(operations))
    if not slow:
        moments = [*sorted(random.Random(SEED).sample(moments[:-1], 3)), moments[-1]]
    for moment in moments:
        output = tmp_path / f"killed{moment}" / name
        killed = run_job(source, output, moment)
        assert killed.returncode == -signal.SIGKILL, f"operation {moment}: {killed.stderr}"
        resumed = run_job(source, output, -1)
        assert resumed.returncode == 0, f"after operation {moment}: {resumed.stderr}"
        assert tree(output.parent) == tree(tmp_path / "calm"), f"operation {moment}"


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes but the lock's and the hidden temporary ones'."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
