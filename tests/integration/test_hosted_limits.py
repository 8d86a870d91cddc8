"""A hosted job uses the limits it is given and does not break them: virtual time, real HTTP."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from vecmill.testing.scenarios import RPM_BOUND, TPM_BOUND, Model

WORDS = [
    "the",
    "mill",
    "turns",
    "grain",
    "into",
    "flour",
    "and",
    "the",
    "river",
    "drives",
    "it",
    "all",
    "day",
    "long",
    "under",
    "a",
    "grey",
    "sky",
]


def steady_minutes(log: Any, what: str) -> list[float]:
    """Return requests or tokens accepted in each full minute, the first and the last left out."""
    start = log[0].moment
    per_minute: Counter[int] = Counter()
    for logged in log:
        if logged.status == 200:
            per_minute[int((logged.moment - start) // 60)] += 1 if what == "requests" else logged.tokens
    return [per_minute[minute] for minute in range(1, max(per_minute))]


@pytest.mark.parametrize("meaning", ["bucket", "window", "sliding"])
@pytest.mark.parametrize("bound", ["requests", "tokens"])
def test_a_job_uses_95_percent_of_the_limit_and_hardly_passes_it(
    hosted: Any, slow: bool, bound: str, meaning: str
) -> None:
    rows = 100_000 if slow or meaning == "bucket" or bound == "requests" else 50_000
    dice = random.Random(1)
    length = (lambda: 4) if bound == "requests" else (lambda: 60 + dice.randrange(200))
    source = hosted.texts(
        f"{row} {' '.join(dice.choice(WORDS) for _ in range(length()))}" for row in range(rows)
    )
    scenario = RPM_BOUND if bound == "requests" else TPM_BOUND
    limit = scenario.requests_per_minute if bound == "requests" else scenario.tokens_per_minute
    hosted.model = "openai:tiny"
    ran = hosted.job(replace(scenario, models={"tiny": Model(8)}, meaning=meaning), source)
    assert ran.error is None
    assert ran.receipt["vectors"] == rows
    assert ran.simulator.billed_texts == rows + 3  # and the probe: nothing twice
    used = steady_minutes(ran.simulator.log, bound)
    assert used
    assert limit is not None
    assert sum(used) / len(used) >= 0.95 * limit
    assert ran.simulator.statuses[429] < 0.01 * ran.simulator.requests


def test_moments_of_the_log_are_in_order(hosted: Any) -> None:
    hosted.model = "openai:tiny"
    ran = hosted.job(
        replace(RPM_BOUND, models={"tiny": Model(8)}), hosted.texts(f"text {i}" for i in range(500))
    )
    assert all(one.moment <= two.moment for one, two in pairwise(ran.simulator.log))
