"""What the simulated provider does wrong, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate

from vecmill.core.errors import InputError, unknown_name

RATE_LIMITED = (
    "rate_seconds",
    "rate_float",
    "rate_date",
    "rate_ms",
    "rate_reset",
    "rate_message",
    "rate_silent",
    "rate_200",
)
"""Status 429, and where it says how long to wait: `retry-after` in whole seconds, as a decimal or as an HTTP
date, `retry-after-ms`, `x-ratelimit-reset-requests` only, the message only, nowhere; and an error with status
200."""

UNAVAILABLE = ("500", "502", "503")
"""Server errors; 502 has a page of HTML."""

BROKEN = ("reset_before", "reset_after", "timeout", "truncated", "cut_json")
"""The connection breaks before anything is computed, or after it; no answer ever comes; half of the body
comes; half of the body comes as if it were all. What was computed is billed."""

WRONG = ("count", "missing_index", "duplicate_index", "narrow", "nan")
"""Status 200 and billed: a vector is missing, an item has no `index`, two have the same, every vector has a
quarter of its components, one is not a number."""

LEGAL = ("shuffled", "floats")
"""Unusual and right: `data` in another order, numbers where base64 was asked."""

LASTING = ("zero", "base64_refused", "401", "413", "quota", "redirect")
"""Not in the mix. A vector of zeros; 400 naming `encoding_format`, unless floats are asked; a refused key; a
body that is too large; nothing more today; 308 to another origin (see `Simulator.elsewhere`)."""

MIX = RATE_LIMITED + UNAVAILABLE + BROKEN + WRONG + LEGAL
"""What passes when the request is made again. The kind "mix" is one of these for each request, evenly."""

KINDS = (*MIX, *LASTING, "mix")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with requests for embeddings.

    Without `share` and `at` it happens to every request. Requests a limit refuses are not counted.

    Attributes:
        kind: One of `KINDS`.
        share: Of all requests, at random; shares of several faults add up.
        at: Numbers of requests, counted from 0 in the order of arrival.
        times: It happens so many times at most.
        seconds: How long a 429 says to wait.
    """

    kind: str
    share: float | None = None
    at: Collection[int] = frozenset()
    times: int | None = None
    seconds: float = 7.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("fault", self.kind, KINDS)
        if self.share is not None and not 0 <= self.share <= 1:
            raise InputError(f"share {self.share} of fault {self.kind!r} is not between 0 and 1")
        object.__setattr__(self, "at", frozenset(self.at))


class FaultPlan:
    """Decides what happens to which request: the same for the same seed and number."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self._used = [0] * len(self._faults)

    def pick(self, number: int) -> Fault | None:
        """Return what goes wrong with a request, the first that applies."""
        if not self._faults:
            return None
        dice = random.Random(f"{self._seed}/fault/{number}")  # noqa: S311 - repeatable, no secret
        drawn, passed = dice.random(), 0.0
        for position, fault in enumerate(self._faults):
            share = fault.share or 0.0
            hit = passed <= drawn < passed + share or number in fault.at
            passed += share
            hit = hit or (fault.share is None and not fault.at)
            if hit and (fault.times is None or self._used[position] < fault.times):
                self._used[position] += 1
                return replace(fault, kind=dice.choice(MIX)) if fault.kind == "mix" else fault
        return None


def retry_hint(kind: str, seconds: float, now: float) -> tuple[dict[str, str], str]:
    """Return how a 429 of a kind says to wait: (headers, end of the message).

    The kind "all" says it in `retry-after`, in `retry-after-ms` and in the message.
    """
    whole = max(1, math.ceil(seconds))
    milliseconds = {"retry-after-ms": str(max(1, math.ceil(seconds * 1000)))}
    sentence = f" Please retry after {whole} second{'' if whole == 1 else 's'}."
    match kind:
        case "rate_seconds":
            return {"retry-after": str(whole)}, ""
        case "rate_float":
            return {"retry-after": f"{math.ceil(seconds * 1000) / 1000:.3f}"}, ""
        case "rate_date":
            return {"retry-after": formatdate(math.ceil(now + seconds), usegmt=True)}, ""
        case "rate_ms":
            return milliseconds, ""
        case "rate_reset":
            return {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": go_duration(seconds),
            }, ""
        case "rate_message" | "rate_200":
            return {}, sentence
        case "all":
            return {"retry-after": str(whole), **milliseconds}, sentence
        case _:
            return {}, ""


def go_duration(seconds: float) -> str:
    """Write a duration as the headers do: "6m0s", "1.5s", "20ms"; rounded up to milliseconds."""
    milliseconds = max(0, math.ceil(seconds * 1000 - 1e-6))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    written = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{written}"
    return f"{minutes}m{written}" if minutes else written
