"""A client killed in the middle of adding leaves all or nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="needs psycopg: pip install 'vecmill[postgres]'")

from vecmill.index.postgres import PostgresTable

SCRIPT = Path(__file__).with_name("postgres_process.py")
ITEMS = 20 * 200


def test_client_killed_while_adding_leaves_all_or_nothing(postgres: Any, slow: bool) -> None:
    url, seed = postgres.url(), 20260
    print(f"seed {seed}")
    moments = random.Random(seed)
    PostgresTable.create(url, dimensions=64).close()
    whole = set[str]()
    for part in range(100 if slow else 10):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), url, str(part)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        last = moments.randrange(22)
        for _ in range(last):
            if not process.stdout.readline():
                break
        process.kill()
        told = process.stdout.read()
        process.stdout.close()
        process.wait()
        with PostgresTable.open(url) as table:
            counts = Counter(str(name).partition("-")[0] for stored in table.rows([]) for name in stored.ids)
        assert set(counts.values()) <= {ITEMS}
        assert whole <= set(counts), "what was there is gone"
        if b"done" in told or last == 21:
            assert str(part) in counts, "what was acknowledged is gone"
        whole = set(counts)
    with PostgresTable.open(url) as table:
        assert table.add(["last"], [[0.5] * 64]).added == 1
