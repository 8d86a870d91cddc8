"""What a running job tells whoever watches: one small record at a time, no texts in it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        rows: Rows finished, of `total_rows` (None while unknown).
        tokens: Tokens embedded so far.
        resumed_rows: Of `rows`, those an earlier run had finished; rates leave them out.
    """

    rows: int
    total_rows: int | None
    tokens: int
    resumed_rows: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know: `code` is stable, `message` is for reading."""

    code: str
    message: str


Event: TypeAlias = Progress | Notice
Listener: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


@dataclass(slots=True)
class Rates:
    """Rates and a range for the remaining time, from progress over a sliding window.

    The range is honest about uncertainty: remaining rows over the fastest and the slowest rate seen lately.
    """

    clock: Callable[[], float] = time.monotonic
    window_seconds: float = 30.0
    _seen: deque[tuple[float, int, int]] = field(default_factory=deque)
    _total: int | None = None

    def add(self, progress: Progress) -> None:
        """Note a progress event at the present moment."""
        now = self.clock()
        self._total = progress.total_rows
        self._seen.append((now, progress.rows, progress.tokens))
        while len(self._seen) > 2 and now - self._seen[0][0] > self.window_seconds:
            self._seen.popleft()

    def per_second(self) -> tuple[float, float]:
        """Return (rows, tokens) per second over the window, zeros before there are two events."""
        if len(self._seen) < 2:
            return 0.0, 0.0
        (t0, r0, k0), (t1, r1, k1) = self._seen[0], self._seen[-1]
        elapsed = max(t1 - t0, 1e-9)
        return (r1 - r0) / elapsed, (k1 - k0) / elapsed

    def remaining_seconds(self) -> tuple[float, float] | None:
        """Return the (least, most) seconds that remain, or None in the first seconds."""
        if self._total is None or len(self._seen) < 3 or self._seen[-1][0] - self._seen[0][0] < 3.0:
            return None
        left = self._total - self._seen[-1][1]
        middle = len(self._seen) // 2
        pieces = [(self._seen[0], self._seen[middle]), (self._seen[middle], self._seen[-1])]
        speeds = [(b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in pieces if b[1] > a[1]]
        if not speeds:
            return None
        return left / max(speeds), left / min(speeds)
