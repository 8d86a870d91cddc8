"""`import vecmill` costs next to nothing: everything heavy loads on first use."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

HEAVY = [
    "aiohttp",
    "click",
    "faiss",
    "numpy",
    "openvino",
    "orjson",
    "pandas",
    "polars",
    "pyarrow",
    "pydantic",
]
HEAVY += ["pyspark", "rich", "starlette", "tiktoken", "tokenizers", "torch"]
ROUNDS = 15


def cpu_seconds(code: str) -> float:
    """Return the CPU a fresh interpreter takes for `code`, start-up included."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, vecmill\n"
        f"found = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not found, found\n"
        "vecmill.Error\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_counted_as_heavy_is_noticed() -> None:
    code = f"import sys, numpy\nassert set({HEAVY!r}) & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_costs_at_most_twice_three_modules_of_the_standard_library() -> None:
    # Interleaved fresh processes; the interpreter's own start is measured and taken off both.
    codes = {"empty": "pass", "ours": "import vecmill", "theirs": "import argparse, json, sqlite3"}
    for code in codes.values():
        cpu_seconds(code)  # bytecode is written, files are in memory
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(ROUNDS):
        for name, code in codes.items():
            times[name].append(cpu_seconds(code))
    start = statistics.median(times["empty"])
    ours = statistics.median(times["ours"]) - start
    theirs = statistics.median(times["theirs"]) - start
    noise = statistics.median(abs(t - start) for t in times["empty"])
    assert ours <= 2 * theirs + noise, times
