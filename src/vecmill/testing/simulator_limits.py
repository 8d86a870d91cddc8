"""Limits of the simulated provider: three meanings of "per minute", and a quota of the day."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from vecmill.testing.simulator_faults import go_duration

MINUTE = 60.0
DAY = 86_400.0

_NEARLY = 1e-6  # of a request or token: what rounding of times may cost


class Meter(Protocol):
    """A limit on what passes in a period."""

    limit: int

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may pass: 0.0 now, infinity never."""

    def take(self, amount: float, now: float) -> None:
        """Count what passes."""

    def remaining(self, now: float) -> int:
        """Return what may pass now."""

    def reset(self, now: float) -> float:
        """Return the seconds until the whole limit may pass again, if nothing passes until then."""


class Bucket:
    """Refilled evenly, the limit at once at most."""

    def __init__(self, limit: int, period: float = MINUTE) -> None:
        self.limit = limit
        self._rate = limit / period
        self._level = float(limit)
        self._moment = -math.inf

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may pass."""
        missing = amount - self._fill(now)
        if missing <= _NEARLY:
            return 0.0
        return missing / self._rate if amount <= self.limit else math.inf

    def take(self, amount: float, now: float) -> None:
        """Count what passes."""
        self._level = self._fill(now) - amount
        self._moment = now

    def remaining(self, now: float) -> int:
        """Return what may pass now."""
        return max(0, math.floor(self._fill(now) + _NEARLY))

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        return (self.limit - self._fill(now)) / self._rate

    def _fill(self, now: float) -> float:
        if self._moment == -math.inf:
            return self._level
        return min(float(self.limit), self._level + max(0.0, now - self._moment) * self._rate)


class Window:
    """Counted from the start of each minute (or day) of the wall clock."""

    def __init__(self, limit: int, period: float = MINUTE) -> None:
        self.limit = limit
        self._period = period
        self._number = -1
        self._used = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may pass."""
        self._turn(now)
        if self._used + amount <= self.limit + _NEARLY:
            return 0.0
        return self._left(now) if amount <= self.limit else math.inf

    def take(self, amount: float, now: float) -> None:
        """Count what passes."""
        self._turn(now)
        self._used += amount

    def remaining(self, now: float) -> int:
        """Return what may pass now."""
        self._turn(now)
        return max(0, math.floor(self.limit - self._used + _NEARLY))

    def reset(self, now: float) -> float:
        """Return the seconds until the next window begins."""
        self._turn(now)
        return self._left(now) if self._used else 0.0

    def _turn(self, now: float) -> None:
        number = math.floor(now / self._period)
        if number != self._number:
            self._number, self._used = number, 0.0

    def _left(self, now: float) -> float:
        return (self._number + 1) * self._period - now


class Sliding:
    """Counted over the last 60 seconds, whenever one looks."""

    def __init__(self, limit: int, period: float = MINUTE) -> None:
        self.limit = limit
        self._period = period
        self._log: deque[tuple[float, float]] = deque()
        self._used = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` may pass."""
        self._forget(now)
        if amount > self.limit:
            return math.inf
        excess = self._used + amount - self.limit
        if excess <= _NEARLY:
            return 0.0
        for moment, passed in self._log:
            excess -= passed
            if excess <= _NEARLY:
                return moment + self._period - now
        return self._period

    def take(self, amount: float, now: float) -> None:
        """Count what passes."""
        self._forget(now)
        self._log.append((now, amount))
        self._used += amount

    def remaining(self, now: float) -> int:
        """Return what may pass now."""
        self._forget(now)
        return max(0, math.floor(self.limit - self._used + _NEARLY))

    def reset(self, now: float) -> float:
        """Return the seconds until nothing counts any more."""
        self._forget(now)
        return self._log[-1][0] + self._period - now if self._log else 0.0

    def _forget(self, now: float) -> None:
        while self._log and self._log[0][0] <= now - self._period + _NEARLY:
            self._used -= self._log.popleft()[1]


METERS: dict[str, type[Bucket] | type[Window] | type[Sliding]] = {
    "bucket": Bucket,
    "window": Window,
    "sliding": Sliding,
}


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request may not pass now.

    Attributes:
        what: "requests", "tokens" or "day".
        wait: Seconds until it may; infinity for more tokens than a minute has.
        limit, used, asked: In requests or tokens.
    """

    what: str
    wait: float
    limit: int
    used: int
    asked: int


class Limits:
    """The limits of one key and model."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        requests_per_day: int | None = None,
        meaning: str = "bucket",
    ) -> None:
        make = METERS[meaning]
        self._requests: Meter | None = make(requests_per_minute) if requests_per_minute else None
        self._tokens: Meter | None = make(tokens_per_minute) if tokens_per_minute else None
        self._day: Meter | None = Window(requests_per_day, DAY) if requests_per_day else None

    def ask(self, tokens: int, now: float) -> Refused | None:
        """Count a request, or say why it may not pass; a refused one is not counted."""
        asked = (("day", self._day, 1), ("requests", self._requests, 1), ("tokens", self._tokens, tokens))
        worst: Refused | None = None
        for what, meter, amount in asked:
            if meter is None or not (wait := meter.wait(amount, now)):
                continue
            used = meter.limit - meter.remaining(now)
            if worst is None or (worst.what != "day" and wait > worst.wait):
                worst = Refused(what, wait, meter.limit, used, amount)
        if worst is None:
            for _, meter, amount in asked:
                if meter is not None:
                    meter.take(amount, now)
        return worst

    def headers(self, now: float) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers: what is left after the requests that passed."""
        found: dict[str, str] = {}
        for what, meter in (("requests", self._requests), ("tokens", self._tokens)):
            if meter is not None:
                found[f"x-ratelimit-limit-{what}"] = str(meter.limit)
                found[f"x-ratelimit-remaining-{what}"] = str(meter.remaining(now))
                found[f"x-ratelimit-reset-{what}"] = go_duration(meter.reset(now))
        return found
