"""How fast a model is, measured from its batches."""

from __future__ import annotations

MEMORY = 8.0
"""Seconds of work after which a measurement counts half."""

ENOUGH = 1024
"""Padded tokens before which nothing is believed: the first texts pay for what is made on first use."""

_TELLING = 0.05
"""Seconds from which a batch of fewer tokens says something too: it is more than a call's fixed cost."""

_OUTLIER = 4.0


class Pace:
    """Padded tokens a second, from batches of many sizes.

    A batch counts by the square of its tokens (least squares through zero), and not at all where it is both
    small and quick: lone short texts, each mostly fixed cost, say nothing about how fast a full queue is
    worked off, however many they are. Time without work changes nothing, and a batch counts as at most four
    times slower or faster than expected.

    Args:
        at_once: Batches that run side by side; each is measured from its own begin to its own end.
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
