"""Measure how long an answer of many vectors takes to write, beside pydantic and FastAPI.

    python benchmarks/server_replies.py --peer-python PEERS/bin/python [-o RESULT.json]

1,000 vectors of 1,536 dimensions, and one of 384, become the body of an embeddings reply:

- `vecmill`: `server.replies.json_reply` on an event loop, piece by piece: as numbers, as base64;
- `pydantic`: lists of floats into models, `model_dump_json`;
- `fastapi`: an application whose route returns these models, called without a socket.

The peers run in another interpreter with fastapi and numpy, in a process pinned to the same core, and are
asked in turn, in an order drawn anew every round; the first round is thrown away. Exit code 1 where the large
answer as numbers is not written 5 times as fast as by the faster peer (lower end of the 90 % interval).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vecmill._version import __version__
from vecmill.bench.report import commit, machine_record
from vecmill.core import durable
from vecmill.core.measure import paired_ratio, percentile
from vecmill.server.replies import json_reply

SEED, ROUNDS, GATE = 0, 15, 5.0
SHAPES = {"1000x1536": (1000, 1536, 1), "1x384": (1, 384, 200)}
"""Rows, dimensions, and how often one measurement writes the answer."""

PEERS = ("pydantic", "fastapi")

_WORKER = Path(__file__).with_name("server_replies_peer.py")


def main() -> None:
    """Print and write the figures; see the file's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    code, core = commit(Path(__file__)), max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    with subprocess.Popen(
        [arguments.peer_python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        peers = _answer(worker, {"seed": SEED})
        measured = {name: _measure(name, worker) for name in SHAPES}
        if worker.stdin is not None:
            worker.stdin.close()
    record = {
        "format_version": 1,
        "benchmark": "server-replies",
        "command": shlex.join(["python", *sys.argv]),
        "commit": code,
        "version": __version__,
        "versions": {name: version(name) for name in ("numpy", "orjson", "pybase64")} | peers["versions"],
        "machine": machine_record(),
        "core": core,
        "seed": SEED,
        "repeats": ROUNDS,
        "results": measured,
    }
    for shape, result in measured.items():
        for name, one in result["systems"].items():
            print(f"{shape:10} {name:16} {1000 * one['cpu_median']:9.3f} ms CPU {one['bytes']:>10} bytes")
        for name, ratio in result["times_as_fast"].items():
            print(f"{shape:10} {name:38} {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    if arguments.output is not None:
        durable.write_bytes(arguments.output, (json.dumps(record, indent=1) + "\n").encode())
    large = measured["1000x1536"]["times_as_fast"]
    slowest = min(large[f"vecmill float : {peer}"]["low"] for peer in PEERS)
    if slowest < GATE:
        print(f"missed: {slowest:.2f} is below {GATE}", file=sys.stderr)
        raise SystemExit(1)


def _measure(shape: str, worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Let every system write the answer in turn; seconds are of one answer."""
    rows, dimensions, times = SHAPES[shape]
    chance = np.random.default_rng(SEED)
    vectors = chance.standard_normal((rows, dimensions), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def ours(encoding: str) -> Callable[[], dict[str, Any]]:
        return lambda: _timed(lambda: json_reply(vectors, encoding, model="m", tokens=1), times)

    def theirs(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: _answer(
            worker, {"system": name, "rows": rows, "dimensions": dimensions, "times": times}
        )

    systems = {
        "vecmill float": ours("float"),
        "vecmill base64": ours("base64"),
        **{name: theirs(name) for name in PEERS},
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in systems}
    sizes: dict[str, int] = {}
    for number in range(ROUNDS + 1):
        for name in chance.permutation(list(systems)):
            found = systems[name]()
            sizes[name] = found["bytes"]
            if number:
                for kind in ("cpu", "wall"):
                    seconds[name][kind].append(found[kind])
    return {
        "systems": {
            name: {
                "bytes": sizes[name],
                **kept,
                **{f"{kind}_median": percentile(values, 50) for kind, values in kept.items()},
                **{f"{kind}_p95": percentile(values, 95) for kind, values in kept.items()},
            }
            for name, kept in seconds.items()
        },
        "times_as_fast": {
            f"{own} : {peer}": asdict(paired_ratio(seconds[peer]["cpu"], seconds[own]["cpu"], seed=SEED))
            for own in ("vecmill float", "vecmill base64")
            for peer in PEERS
        },
    }


def _timed(work: Callable[[], Any], times: int) -> dict[str, Any]:
    async def repeat() -> int:
        size = 0
        for _ in range(times):
            body = work().body
            size = len(body) if isinstance(body, bytes) else sum([len(piece) async for piece in body])
        return size

    wall, cpu = time.perf_counter(), time.process_time()
    size = asyncio.run(repeat())
    return {
        "bytes": size,
        "cpu": (time.process_time() - cpu) / times,
        "wall": (time.perf_counter() - wall) / times,
    }


def _answer(worker: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    if worker.stdin is None or worker.stdout is None:
        raise RuntimeError("the peer has no pipes")
    worker.stdin.write(json.dumps(question) + "\n")
    worker.stdin.flush()
    found: dict[str, Any] = json.loads(worker.stdout.readline())
    return found


if __name__ == "__main__":
    main()
