"""A planted key and a planted text: over a whole faulty run they appear nowhere they do not belong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vecmill.testing.scenarios import POISONED, Model
from vecmill.testing.simulator import simulator_thread
from vecmill.testing.simulator_faults import MIX, Fault

KEY = "sk-planted-K3yThatMustNotShow-0123456789"
TEXT = "plantedtextthatmustnotshow"
POISON = "plantedPOISONtext"
EVERYTHING = tuple(Fault(kind, share=0.02, seconds=0.1) for kind in MIX if kind != "timeout")
"""All faults at once, but for the one that takes minutes of real time."""


@pytest.mark.parametrize(
    ("faults", "code"),
    [(EVERYTHING, 3), ((Fault("quota", at=range(3, 99)),), 4), ((Fault("401", at=range(3, 99)),), 1)],
)
def test_neither_key_nor_text_appears_where_it_does_not_belong(
    tmp_path: Path, faults: tuple[Fault, ...], code: int
) -> None:
    source = tmp_path / "in.txt"
    lines = [f"{TEXT} number {i}" for i in range(600)]
    lines[77] = POISON
    source.write_text("\n".join(lines))
    home, cache, out = tmp_path / "home", tmp_path / "cache", tmp_path / "out.parquet"
    scenario = replace(POISONED, models={"tiny": Model(8)}, keys=(KEY,), max_inputs=32, faults=faults, seed=3)
    with simulator_thread(scenario) as simulator:
        command = [sys.executable, "-m", "vecmill", "embed", str(source), "-o", str(out), "--debug"]
        command += ["-m", "openai:tiny", "--base-url", simulator.url, "--json"]
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "VECMILL_HOME": str(home)}
        environment["VECMILL_CACHE_DIR"] = str(cache)
        ran = subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)
        assert not simulator.key_seen_in_urls
    assert ran.returncode == code, ran.stderr.decode()
    said = ran.stdout + ran.stderr
    names = "\n".join(str(path) for path in tmp_path.rglob("*")).encode()
    kept = b"".join(p.read_bytes() for d in (home, cache) for p in d.rglob("*") if p.is_file())
    receipts = b"".join(p.read_bytes() for p in tmp_path.glob("out.parquet.*") if p.is_file())
    beside = b"".join(p.read_bytes() for p in tmp_path.glob("out.parquet*/**/*") if p.is_file())
    assert len(kept) > 1000  # there is something to look through
    for planted in (TEXT, POISON):
        for where in (said, names, kept, receipts):
            assert planted.encode() not in where
    for where in (said, names, kept, receipts, beside, out.read_bytes() if out.exists() else b""):
        assert KEY.encode() not in where
