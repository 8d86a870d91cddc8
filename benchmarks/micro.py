"""Measure the small figures that comments in the code give, and write the result file.

    python benchmarks/micro.py NEWS.csv [-o RESULT.json]

- `padding_share`: share of padding when 2,000 texts of mixed lengths, drawn from NEWS.csv (title,
  description), are packed for the built-in model (`models/local/packing.py`).
- `one_query`: seconds NumPy's vecdot and matmul take, in turns, to score one query against 100,000 vectors of
  384 dimensions (`core/vectors.py`).

Run it with OPENBLAS_NUM_THREADS=1: how fast matmul is depends on the threads of the BLAS. Takes a minute.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vecmill._version import __version__
from vecmill.bench import systems
from vecmill.bench.report import commit, machine_record, sha256_of
from vecmill.bench.workloads import mixed_lengths, read_stories
from vecmill.core import durable
from vecmill.core.config import environment
from vecmill.core.measure import paired_ratio, percentile
from vecmill.models.local.packing import padded_length

SEED, TEXTS, ROUNDS = 0, 2000, 21
N, DIMENSIONS = 100_000, 384


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("news", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    code = commit()
    share, one = padding_share(arguments.news), one_query()
    record = {
        "format_version": 1,
        "benchmark": "micro",
        "command": shlex.join(["python", *sys.argv]),
        "commit": code,
        "version": __version__,
        "versions": {"numpy": np.__version__},
        "machine": machine_record(),
        "blas_threads": environment().get("OPENBLAS_NUM_THREADS"),
        "data_sha256": {arguments.news.name: sha256_of(arguments.news)},
        "seed": SEED,
        "repeats": ROUNDS,
        "padding_share": share,
        "one_query": one,
    }
    print(f"padding: {100 * share:.1f} % of tokens")
    print(f"one query: vecdot is {one['vecdot_times_as_fast']['median']:.2f} times as fast")
    if arguments.output is not None:
        durable.write_bytes(arguments.output, (json.dumps(record, indent=1) + "\n").encode())


def padding_share(news: Path) -> float:
    """Return the share of padding among the tokens the engine computes for mixed texts."""
    texts = mixed_lengths(read_stories(news), TEXTS, seed=SEED)
    tokens = systems.inspect(None).count_tokens(texts)
    padded = sum(padded_length(int(count)) for count in tokens)
    return 1.0 - float(tokens.sum()) / padded


def one_query() -> dict[str, Any]:
    """Score one query against random vectors both ways, in turns; the first round is thrown away."""
    chance = np.random.default_rng(SEED)
    vectors = chance.standard_normal((N, DIMENSIONS), dtype=np.float32)
    query = chance.standard_normal((1, DIMENSIONS), dtype=np.float32)
    out = np.empty((1, N), np.float32)
    seconds: dict[str, list[float]] = {"vecdot": [], "matmul": []}
    for number in range(ROUNDS + 1):
        for name in ("vecdot", "matmul") if number % 2 else ("matmul", "vecdot"):
            began = time.perf_counter()
            if name == "vecdot":
                np.vecdot(vectors, query[0], out=out[0])
            else:
                np.matmul(query, vectors.T, out=out)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {
        **{f"{name}_seconds_median": percentile(values, 50) for name, values in seconds.items()},
        **{f"{name}_seconds_p95": percentile(values, 95) for name, values in seconds.items()},
        "vecdot_times_as_fast": asdict(paired_ratio(seconds["matmul"], seconds["vecdot"], seed=SEED)),
    }


if __name__ == "__main__":
    main()
