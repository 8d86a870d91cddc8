"""A million short rows are planned, read and run in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_MIB = 500

SCRIPT = """
import asyncio, pathlib, resource, sys
from vecmill.jobs.plan import make_plan
from vecmill.jobs.run import run
from vecmill.testing.fakes import FakeProvider

async def main():
    plan = await make_plan([sys.argv[1]], sys.argv[2], provider=FakeProvider(dimensions=16))
    assert plan.rows == int(sys.argv[3]), plan.rows
    outcome = await run(plan)
    assert outcome.receipt["vectors"] == plan.rows, outcome.receipt

asyncio.run(main())
status = pathlib.Path("/proc/self/status")
if status.exists():  # ru_maxrss would count what the test's own process held when it started this one
    print(next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if "VmHWM" in line))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_million_rows_stay_under_500_mib(tmp_path: Path, slow: bool) -> None:
    rows = 1_000_000
    source = tmp_path / "rows.csv"
    with source.open("w", encoding="utf-8") as out:
        out.write("text,number\n")
        out.writelines(f'"row {i}, a short text with number {i * 7919 % 104729}",{i}\n' for i in range(rows))
    command = [sys.executable, "-c", SCRIPT, str(source), str(tmp_path / "out.parquet"), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak_mib = int(done.stdout)
    print(f"peak {peak_mib} MiB")
    assert peak_mib < LIMIT_MIB
