"""How fast a model is, measured from its batches."""

from __future__ import annotations

MEMORY = 8.0
"""Seconds of work after which a measurement counts half."""

ENOUGH = 1024
"""Padded tokens before which nothing is believed: the first texts pay for what is made on first use."""

_TELLING = 0.05
"""Seconds from which a batch of fewer tokens says something too: it is more than a call's fixed cost."""

_OUTLIER = 4.0

FLOW_SECONDS = 1.0
"""Seconds batches must have waited to leave before a `Flow` is believed: the first ones may leave at once."""


class Pace:
    """Padded tokens a second, from batches of many sizes.

    A batch counts by the square of its tokens (least squares through zero), and not at all where it is both
    small and quick: lone short texts, each mostly fixed cost, say nothing about how fast a full queue is
    worked off, however many they are. Time without work changes nothing, and a batch counts as at most four
    times slower or faster than expected.

    Args:
        at_once: Batches that run side by side; each is measured from its own begin to its own end. See `Flow`
            for those whose number is not what bounds them.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._squares = 0.0
        self._products = 0.0
        self._tokens = 0

    @property
    def rate(self) -> float | None:
        """Padded tokens a second of all batches together; None before `ENOUGH` were measured."""
        return self._at_once * self._squares / self._products if self._tokens >= ENOUGH else None

    def measured(self, tokens: int, seconds: float) -> None:
        """Count one batch."""
        if tokens < ENOUGH and seconds < _TELLING:
            return
        seconds = max(seconds, 1e-6)
        self._tokens += tokens
        if self._products > 0:
            expected = tokens * self._products / self._squares
            seconds = min(max(seconds, expected / _OUTLIER), expected * _OUTLIER)
        kept = 0.5 ** (seconds / MEMORY)
        self._squares = self._squares * kept + float(tokens) * tokens
        self._products = self._products * kept + tokens * seconds


class Flow:
    """Padded tokens a second that leave for a provider, whose limiter lets batches go one after another.

    What is measured is the time from a batch's begin until it has left, so that the answers on their way at
    once, however many, and how long they take count for nothing. Some leave at once and the next has to wait
    for a second, so what counts is the sum: tokens and seconds, of which a half is forgotten each `MEMORY`
    seconds. One batch counts as at most four times slower than expected: a pause ends.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def rate(self) -> float | None:
        """Padded tokens a second; None before `FLOW_SECONDS` were measured."""
        return self._tokens / self._seconds if self._seconds >= FLOW_SECONDS else None

    def measured(self, tokens: int, seconds: float) -> None:
        """Count one batch that was as large as it might be."""
        if self.rate is not None:
            seconds = min(seconds, _OUTLIER * tokens / self.rate)
        kept = 0.5 ** (seconds / MEMORY)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + seconds
