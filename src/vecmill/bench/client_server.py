"""The other side of `vecmill bench client`: a simulated provider in a process of its own.

A script: `python -P client_server.py simulator OPTIONS`. Options: `cores` (where it runs), `dimensions` (of
its vectors), `latency` (seconds). It serves two addresses, one that answers at once and one that takes its
time, says so in one JSON line, and then answers each line of its input with what was asked so far.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from typing import Any, TextIO

from vecmill.bench import worker
from vecmill.testing.scenarios import OPENAI_MODELS, Latency, Model, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread

MODEL = "text-embedding-3-small"


def serve(options: dict[str, Any], requests: TextIO, replies: TextIO) -> None:
    """Serve until the input ends."""
    worker.pin(options["cores"])
    models = {**OPENAI_MODELS, MODEL: Model(options["dimensions"])}
    prompt = Scenario(models=models)
    slow = replace(prompt, latency=Latency(seconds=options["latency"]))
    with simulator_thread(prompt) as first, simulator_thread(slow) as second:
        _say(
            replies,
            {
                "ready": True,
                "cpu": time.process_time(),
                "rss_bytes": None,
                "versions": {},
                "url": first.url,
                "slow_url": second.url,
                "key": first.key,
            },
        )
        for _ in requests:
            _say(replies, {"url": _seen(first), "slow_url": _seen(second)})


def _seen(simulator: Simulator) -> dict[str, int]:
    statuses = simulator.statuses
    return {
        "requests": simulator.requests,
        "failed": simulator.requests - statuses[200],
        "texts": simulator.billed_texts,
        "distinct_texts": simulator.distinct_billed_texts,
    }


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[2]), sys.stdin, sys.stdout)
