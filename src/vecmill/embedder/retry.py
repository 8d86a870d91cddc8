"""How long to wait after which error, and when to give up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from vecmill.core.errors import BadReplyError, ProviderError, QuotaExhaustedError, RateLimitError

_SHORT_QUOTA = 60.0
"""A wait of up to a minute is a limit per minute, however little time remains; longer ones are quotas."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Decides whether and when a failed request is tried again. Seconds throughout.

    What the provider asks to wait is waited, and up to a tenth more. Otherwise the wait is drawn evenly from
    between half of a bound and the bound, which doubles from try to try: a server that breaks under many
    clients is given time, and they do not come back together.

    A `RateLimitError` is no failed attempt: only the total time bounds those. A reply that is wrong may have
    been billed, so `reply_attempts` bounds how often it is asked again.

    Attributes:
        attempts: Tries of one request, the first included, rate limits not counted.
        reply_attempts: The same for wrong replies.
        total_seconds: Time from the first failure to the beginning of the last try.
        first_wait: Bound of the first wait without advice.
        most_wait: Bound of any wait without advice.
        least_wait: Shortest wait: however often an error comes, tries are bounded by the total time.
    """

    attempts: int = 8
    reply_attempts: int = 3
    total_seconds: float = 600.0
    first_wait: float = 0.5
    most_wait: float = 30.0
    least_wait: float = 0.05

    def wait(self, error: ProviderError, *, attempt: int, elapsed: float, random: Random) -> float | None:
        """Return the seconds to wait before the next try, or None to give up.

        Args:
            error: What the last try ended with.
            attempt: Which try that was, from 1; rate limits do not count.
            elapsed: Seconds since the first failure.
            random: Where the jitter comes from.
        """
        wrong_reply = isinstance(error, BadReplyError)
        if not error.retryable:
            return None
        most = min(self.attempts, self.reply_attempts) if wrong_reply else self.attempts
        if attempt >= most and not isinstance(error, RateLimitError):
            return None
        wait = self._advised(error, random)
        if wait is None:
            wait = self._own(attempt, random)
        wait = max(wait, self.least_wait)
        return wait if elapsed + wait <= self.total_seconds else None

    def _advised(self, error: ProviderError, random: Random) -> float | None:
        after = error.retry_after
        if after is None or not math.isfinite(after) or after < 0:
            return None
        return after * random.uniform(1.0, 1.1)

    def _own(self, attempt: int, random: Random) -> float:
        bound = min(self.first_wait * 2.0 ** min(attempt - 1, 30), self.most_wait)
        return random.uniform(bound / 2, bound)


def as_quota(error: ProviderError, now: float) -> QuotaExhaustedError | None:
    """Return the quota behind a rate limit that was given up, or None where it is none.

    A provider that asks to wait for longer than a minute has no limit per minute in mind but one per day,
    or an account that is used up.

    Args:
        error: What the last try ended with.
        now: Seconds since the epoch.
    """
    after = error.retry_after
    if not isinstance(error, RateLimitError) or after is None or not _SHORT_QUOTA < after < math.inf:
        return None
    quota = QuotaExhaustedError(
        f"{error.model or error.provider or 'the provider'} asks to wait {after:.0f} seconds, longer "
        f"than requests wait; resume then. It said: {error}",
        until=now + after,
        provider=error.provider,
        model=error.model,
        status=error.status,
        request_id=error.request_id,
        code=error.code,
        rates=error.rates,
    )
    quota.attempts = error.attempts
    return quota
