"""How much one caller may ask: requests and tokens a minute, requests at once.

Each limit is a bucket that holds one minute's worth and fills evenly, as OpenAI's do: a caller may use a
whole minute's worth at once and then has it back bit by bit.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType

from vecmill.server.errors import Header, Refusal, wait
from vecmill.server.options import Limits

MAX_CALLERS = 10_000
"""Callers that are remembered; of more, those with nothing used are forgotten first."""

RETRY_WHEN_BUSY = 1.0
"""Seconds a caller with too many requests at once is told to wait: nobody knows when one of them ends."""

_NO_RETRY = ("x-should-retry", "false")


@dataclass(slots=True)
class _Bucket:
    """What is left of one minute's worth."""

    limit: int
    left: float
    when: float

    def fill(self, now: float) -> None:
        self.left = min(float(self.limit), self.left + (now - self.when) * self.limit / 60)
        self.when = now

    def seconds_until(self, wanted: float) -> float:
        """Return when so much is there, which may be now; call `fill` before."""
        return max(wanted - self.left, 0.0) * 60 / self.limit


@dataclass(slots=True)
class _Use:
    """What one caller has used."""

    requests: _Bucket | None
    tokens: _Bucket | None
    running: int = 0

    def fill(self, now: float) -> None:
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(now)

    @property
    def is_unused(self) -> bool:
        """Whether forgetting it changes nothing; call `fill` before."""
        buckets = (self.requests, self.tokens)
        return not self.running and all(b is None or b.left >= b.limit for b in buckets)


class Ticket:
    """One request that was let in; it runs as long as the block.

    Without limits nothing is counted.
    """

    __slots__ = ("_use",)

    def __init__(self, use: _Use | None) -> None:
        self._use = use

    def __enter__(self) -> Ticket:
        if self._use is not None:
            self._use.running += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._use is not None:
            self._use.running -= 1

    def take(self, tokens: int) -> tuple[Header, ...]:
        """Count the request's tokens, all of them or none.

        Args:
            tokens: Of the whole request, counted exactly.

        Returns:
            The `x-ratelimit-*` headers of a good answer.

        Raises:
            Refusal: 429, with `retry-after` and the same headers; the request stays counted, its tokens are
                not. One of more tokens than a whole minute's worth is told not to come again.
        """
        use = self._use
        if use is None:
            return ()
        use.fill(asyncio.get_running_loop().time())
        bucket = use.tokens
        if bucket is not None:
            if tokens > bucket.limit:
                raise _too_large(tokens, bucket.limit, use)
            if (seconds := bucket.seconds_until(tokens)) > 0:
                raise _refused(
                    f"this key may send {bucket.limit} tokens a minute; {max(int(bucket.left), 0)} are left, "
                    f"{tokens} were asked for",
                    seconds,
                    use,
                )
            bucket.left -= tokens
        return _headers(use)


FREE = Ticket(None)
"""What is not limited."""


class Rates:
    """The limits of every caller; on one event loop.

    Args:
        limits: `key_requests_per_minute`, `key_tokens_per_minute` and `key_concurrency`; each may be None.
    """

    def __init__(self, limits: Limits) -> None:
        self._requests = limits.key_requests_per_minute
        self._tokens = limits.key_tokens_per_minute
        self._concurrency = limits.key_concurrency
        self._uses: OrderedDict[str, _Use] = OrderedDict()
        self.is_on = not (self._requests is None and self._tokens is None and self._concurrency is None)

    def enter(self, caller: str) -> Ticket:
        """Count one request of a caller, before its body is read; costs nothing where there are no limits.

        Args:
            caller: `Caller.id`.

        Returns:
            What its tokens are taken from once they are counted; the request runs while the ticket's block
            does.

        Raises:
            Refusal: 429, with `retry-after`; the request is not counted then.
        """
        if not self.is_on:
            return FREE
        use = self._use(caller, asyncio.get_running_loop().time())
        self._admit(use)
        return Ticket(use)

    def _use(self, caller: str, now: float) -> _Use:
        use = self._uses.get(caller)
        if use is None:
            use = self._uses[caller] = _Use(_full(self._requests, now), _full(self._tokens, now))
            self._forget(now)
        self._uses.move_to_end(caller)
        use.fill(now)
        return use

    def _admit(self, use: _Use) -> None:
        """Take one request; who has no token left need not send one."""
        if self._concurrency is not None and use.running >= self._concurrency:
            raise _refused(
                f"this key may have {self._concurrency} requests running at once and has as many",
                RETRY_WHEN_BUSY,
                use,
            )
        if use.requests is not None and (seconds := use.requests.seconds_until(1)) > 0:
            raise _refused(f"this key may send {use.requests.limit} requests a minute", seconds, use)
        if use.tokens is not None and (seconds := use.tokens.seconds_until(1)) > 0:
            raise _refused(
                f"this key may send {use.tokens.limit} tokens a minute and has none left", seconds, use
            )
        if use.requests is not None:
            use.requests.left -= 1

    def _forget(self, now: float) -> None:
        """Keep the table within its bound: drop who has used nothing, else who came longest ago."""
        if len(self._uses) <= MAX_CALLERS:
            return
        for use in self._uses.values():
            use.fill(now)
        unused = [caller for caller, use in list(self._uses.items())[:-1] if use.is_unused]
        if not unused:
            unused = [caller for caller, use in list(self._uses.items())[:-1] if not use.running][:1]
        for caller in unused:
            del self._uses[caller]


def duration(seconds: float) -> str:
    """Return a time as Go writes it, exact to a millisecond: "0s", "250ms", "1.5s", "6m0s", "1h0m1s"."""
    millis = max(round(seconds * 1000), 0)
    if 0 < millis < 1000:
        return f"{millis}ms"
    whole, rest = divmod(millis, 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    shown = f"{second}.{rest:03d}".rstrip("0") + "s" if rest else f"{second}s"
    if hours:
        return f"{hours}h{minute}m{shown}"
    return f"{minute}m{shown}" if minute else shown


def _full(limit: int | None, now: float) -> _Bucket | None:
    return None if limit is None else _Bucket(limit, float(limit), now)


def _headers(use: _Use) -> tuple[Header, ...]:
    said: list[Header] = []
    for name, bucket in (("requests", use.requests), ("tokens", use.tokens)):
        if bucket is not None:
            said += [
                (f"x-ratelimit-limit-{name}", str(bucket.limit)),
                (f"x-ratelimit-remaining-{name}", str(max(int(bucket.left), 0))),
                (f"x-ratelimit-reset-{name}", duration(bucket.seconds_until(bucket.limit))),
            ]
    return tuple(said)


def _refused(message: str, seconds: float, use: _Use) -> Refusal:
    refusal = wait(message, seconds)
    refusal.headers = (*refusal.headers, *_headers(use))
    return refusal


def _too_large(tokens: int, limit: int, use: _Use) -> Refusal:
    return Refusal(
        429,
        f"the request has {tokens} tokens, and this key may send {limit} a minute: it can never be answered; "
        "send fewer texts in one request",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers=(_NO_RETRY, *_headers(use)),
    )
