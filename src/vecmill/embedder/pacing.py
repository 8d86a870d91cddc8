"""When a request may go: the arithmetic of limits per minute, without time, files or tasks of its own.

Providers mean three things by "600 a minute": a bucket that fills evenly, a count that starts anew each
minute, or a count over the last sixty seconds; some look at single seconds too. What all of them accept is an
even flow a little below the limit. So each limit has a `Meter`: requests are spaced evenly (one number, the
moment at which the flow so far is paid for), and a log of the last minute keeps the sum within the limit
where requests are too large to be even. What replies say about the remainder tells how much others use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

PACE = 0.975
"""Share of a limit that is used: with `_WINDOW`, 2.5 % of a minute for requests that overtake each other."""

_MINUTE = 60.0
_WINDOW = 61.0  # seconds the log looks back: a minute, and what requests may be late
_STEP = 0.5  # seconds of one entry of the log
_BURST = 0.25  # seconds of the flow that may be made up for
_LEAST = 0.05  # share of a limit that is always tried, whatever others use
_LONGEST_RESET = 75.0  # seconds; what resets later is no limit per minute
_HALF_LIFE = 90.0  # seconds after which half of what others used is forgotten
_FULL = 0.3  # of a bucket shared with others: below it the flow shrinks with the level
_RECOVERY = 0.05 / 60.0  # of the limit per second, after a 429
_MOST_AHEAD = 3600.0  # seconds; later moments come from a clock that was wrong


@dataclass(slots=True)
class Meter:
    """What was used of one limit per minute, by everybody who shares the state, and what others use.

    Moments are seconds since the epoch, amounts are requests or tokens.

    Attributes:
        limit: What replies say the limit is; None: nothing yet.
        due: The moment at which everything granted so far is paid for by the even flow.
        total: Everything ever granted.
        log: (n, 2) pairs of a half second's number and the amount granted in it, ascending.
        rival: What others were seen to use in a minute, at `rival_at`.
        allowance: The `total` that would leave nothing, by the reply to the request of `seen_at`.
        reset_at: When replies since `reset_since` say that all will be there again.
        kind: "bucket" or "fixed" where resets look like one; "" else.
    """

    limit: float | None = None
    due: float = 0.0
    total: float = 0.0
    log: list[list[float]] = field(default_factory=list)
    rival: float = 0.0
    rival_at: float = 0.0
    allowance: float = 1e300
    seen_at: float = 0.0
    reset_at: float = 0.0
    reset_since: float = 0.0
    kind: str = ""

    def used(self, at: float) -> float:
        """Return what was granted in the minute before a moment."""
        first = (at - _WINDOW) / _STEP
        return sum(amount for step, amount in self.log if step + 1 > first)

    def earliest(self, at: float, amount: float, limit: float | None) -> float:
        """Return the first moment, `at` or later, at which an amount may go. Grants nothing."""
        if limit is None:
            return at
        room = self._room(at, limit)
        at = max(at, self.due - _BURST)
        at = self._within(at, amount, room)
        if self.kind == "fixed" and at < self.reset_at:
            margin = 0.03 * self._rival(at)
            if self.total + amount + margin > self.allowance:
                at = self.reset_at
        return at

    def take(self, at: float, amount: float, limit: float | None, factor: float) -> Seen:
        """Grant an amount at a moment that `earliest` returned."""
        due = self.due
        self.total += amount
        step = math.floor(at / _STEP)
        if self.log and self.log[-1][0] >= step:
            self.log[-1][1] += amount
        else:
            self.log.append([float(step), amount])
        if limit is not None:
            self.due = max(due, at) + amount / self._flow(at, limit, factor)
        return Seen(at, amount, self.used(at), self.total, due)

    def give_back(self, seen: Seen, limit: float | None, factor: float) -> None:
        """Take a grant back."""
        is_last = self.total == seen.total
        self.correct(seen.at, -seen.amount, limit, factor)
        if is_last:
            self.due = seen.due

    def forget(self, now: float) -> None:
        """Drop what no later moment looks back at."""
        self.log = [entry for entry in self.log if (entry[0] + 1) * _STEP > now - _WINDOW]

    def correct(self, at: float, amount: float, limit: float | None, factor: float) -> None:
        """Add to what was granted at a moment, or take from it."""
        self.total += amount
        step = math.floor(at / _STEP)
        for i, entry in enumerate(self.log):
            if entry[0] >= step:
                entry[1] += amount
                if entry[1] <= 0:
                    del self.log[i]
                break
        if limit is not None:
            self.due += amount / self._flow(at, limit, factor)

    def observe(
        self,
        *,
        limit: float | None,
        remaining: float | None,
        reset: float | None,
        seen: Seen,
        now: float,
        cap: float | None = None,
    ) -> None:
        """Learn from a reply: the limit, and from the remainder what others use.

        Args:
            limit: The limit it names.
            remaining: What it says is left.
            reset: Seconds until all is there again.
            seen: What the meter said when the request went.
            now: When the reply came.
            cap: The limit somebody set, for replies that name only what is left.
        """
        if reset is not None and reset > _LONGEST_RESET:
            return
        if limit is None or limit <= 0:
            limit = cap if self.limit is None else self.limit
        else:
            self.limit = limit
        if limit is None or remaining is None or not 0 <= remaining <= limit:
            return
        if seen.at >= self.seen_at:
            self.allowance, self.seen_at = seen.total + remaining, seen.at
            self._classify(limit, remaining, reset, now)
        unexplained = limit - remaining - seen.used - 0.03 * limit - 2 * seen.amount
        self.rival = min(max(self._rival(now), unexplained, 0.0), (1 - _LEAST) * limit)
        self.rival_at = now

    def _classify(self, limit: float, remaining: float, reset: float | None, now: float) -> None:
        if reset is None:
            self.kind, self.reset_at = "", 0.0
            return
        if abs(now + reset - self.reset_at) > 2.5:
            self.reset_at, self.reset_since = now + reset, now
        if remaining > 0.1 * limit:  # below, an empty bucket and a full sliding minute look alike
            full_after = _MINUTE * (1 - remaining / limit)
            bucket = abs(reset - full_after) < 1.5 + 0.03 * full_after
            self.kind = "bucket" if bucket else "fixed" if now - self.reset_since > 6.0 else ""

    def _rival(self, at: float) -> float:
        return self.rival * math.exp2(-max(at - self.rival_at, 0.0) / _HALF_LIFE)

    def _room(self, at: float, limit: float) -> float:
        """Return what is ours in a minute: what the provider leaves us, if somebody set less then that."""
        whole = limit if self.limit is None else self.limit
        room = whole - self._rival(at)
        if self.kind == "bucket":
            level = (self.allowance - self.total) / whole + 0.5 * max(at - self.seen_at, 0.0) / _MINUTE
            room = min(room, whole * level / _FULL)
        return min(max(room, _LEAST * limit), limit)

    def _flow(self, at: float, limit: float, factor: float) -> float:
        return self._room(at, limit) * PACE * factor / _MINUTE

    def _within(self, at: float, amount: float, room: float) -> float:
        """Return the first moment from which the last minute and this amount stay within what is ours."""
        over = self.used(at) + amount - room
        for step, granted in self.log:
            if over <= 0:
                break
            gone = (step + 1) * _STEP + _WINDOW
            if gone > at:
                at, over = gone, over - granted
        return at


@dataclass(frozen=True, slots=True)
class Seen:
    """What a meter said when a request went.

    Attributes:
        at: The moment. amount: what was granted.
        used: The sum of the minute that ends with it. total: the meter's total with it.
        due: The meter's `due` before it.
    """

    at: float
    amount: float
    used: float
    total: float
    due: float


@dataclass(frozen=True, slots=True)
class Grant:
    """The moment at which a request may go, and what the meters said with it."""

    at: float
    requests: Seen
    tokens: Seen


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits per minute somebody set; replies can lower them and never raise them."""

    requests: float | None = None
    tokens: float | None = None


@dataclass(slots=True)
class State:
    """What everybody who uses an endpoint knows about its limits.

    Attributes:
        requests, tokens: The meters.
        last: The latest moment granted; later grants are not earlier.
        paused_until: No request goes before, because of a 429.
        factor: Share of the flow that is used, at `factor_at`, the moment of the last 429.
        saved_at: When the state was changed last.
    """

    requests: Meter = field(default_factory=Meter)
    tokens: Meter = field(default_factory=Meter)
    last: float = 0.0
    paused_until: float = 0.0
    factor: float = 1.0
    factor_at: float = 0.0
    saved_at: float = 0.0

    def limits(self, caps: Caps) -> tuple[float | None, float | None]:
        """Return the limits in force: (requests, tokens) per minute, None where nothing is known."""
        return _least(caps.requests, self.requests.limit), _least(caps.tokens, self.tokens.limit)

    def flow(self, at: float) -> float:
        """Return the share of the flow that is used: less after 429s, whole again after a while."""
        return min(self.factor + _RECOVERY * max(at - self.factor_at, 0.0), 1.0)

    def reserve(self, costs: Sequence[int], caps: Caps, *, now: float, horizon: float) -> list[Grant]:
        """Grant requests their moments, in order: the first always, others while they may go soon.

        Args:
            costs: Tokens of each request.
            caps: Limits somebody set.
            now: The present moment.
            horizon: Seconds from now that count as soon.
        """
        self.requests.forget(now)
        self.tokens.forget(now)
        grants: list[Grant] = []
        for tokens in costs:
            at = self._earliest(tokens, caps, now)
            if grants and at > now + horizon:
                break
            grants.append(self._take(tokens, caps, at))
        self.saved_at = now
        return grants

    def give_back(self, grant: Grant, caps: Caps, *, now: float) -> None:
        """Take a grant back that was not used."""
        requests_limit, tokens_limit = self.limits(caps)
        factor = self.flow(grant.at)
        self.requests.give_back(grant.requests, requests_limit, factor)
        self.tokens.give_back(grant.tokens, tokens_limit, factor)
        if self.last == grant.at:
            self.last = min(self.last, now)

    def correct(self, grant: Grant, tokens: float, caps: Caps) -> None:
        """Say how many tokens a request really had."""
        if tokens != grant.tokens.amount:
            _, limit = self.limits(caps)
            self.tokens.correct(grant.at, tokens - grant.tokens.amount, limit, self.flow(grant.at))

    def slow_down(self, now: float) -> None:
        """Lower the flow after a 429: a little, and more if the last one was less than a minute ago."""
        often = now - self.factor_at < _MINUTE
        self.factor = max(self.flow(now) * (0.85 if often else 0.95), _LEAST)
        self.factor_at = now

    def forget_wrong_moments(self, now: float, *, longest_pause: float) -> None:
        """Begin anew, keeping only limits, if the state comes from a clock that has been set back since."""
        ahead = max(self.last, self.requests.due, self.tokens.due, self.factor_at) - now
        if self.saved_at > now + 5.0 or ahead > _MOST_AHEAD or self.paused_until > now + longest_pause:
            requests, tokens = self.requests.limit, self.tokens.limit
            self.requests, self.tokens = Meter(limit=requests), Meter(limit=tokens)
            self.last = self.paused_until = self.factor_at = self.saved_at = 0.0
            self.factor = 1.0

    def _earliest(self, tokens: int, caps: Caps, now: float) -> float:
        requests_limit, tokens_limit = self.limits(caps)
        at = max(now, self.last, self.paused_until)
        for _ in range(8):
            later = self.requests.earliest(at, 1.0, requests_limit)
            later = self.tokens.earliest(later, float(tokens), tokens_limit)
            if later <= at:
                break
            at = later
        return at

    def _take(self, tokens: int, caps: Caps, at: float) -> Grant:
        requests_limit, tokens_limit = self.limits(caps)
        factor = self.flow(at)
        self.last = at
        return Grant(
            at,
            self.requests.take(at, 1.0, requests_limit, factor),
            self.tokens.take(at, float(tokens), tokens_limit, factor),
        )


def _least(one: float | None, other: float | None) -> float | None:
    known = [limit for limit in (one, other) if limit is not None]
    return min(known) if known else None
