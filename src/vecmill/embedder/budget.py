"""What may be spent: a request that would pass the cap is not sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from vecmill.core.errors import BudgetReachedError, InputError


@dataclass(slots=True)
class Budget:
    """Dollars spent, on their way, and allowed.

    Attributes:
        max_usd: The cap; None allows everything.
        usd_per_million_tokens: The price; a cap without one is refused.
        spent_usd: Billed so far, earlier runs of the same job included, and requests whose answer was lost:
            they may have been billed.
    """

    max_usd: float | None = None
    usd_per_million_tokens: float | None = 0.0
    spent_usd: float = 0.0
    _held_usd: float = 0.0
    _holders: int = 0
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.max_usd is not None and self.usd_per_million_tokens is None:
            raise InputError(
                "the model's price is not known, so a cap in dollars cannot be kept: set "
                "usd_per_million_tokens in its profile, or leave the cap out"
            )

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be bought, or None: any number, or more may turn out to be left.

        While requests are on their way nobody knows: cutting the next ones to the rest of the moment would
        make many small ones of what fits once those are settled. They wait in `hold` instead.
        """
        if self.max_usd is None or not self.usd_per_million_tokens or self._holders:
            return None
        return int((self.max_usd - self.spent_usd) * 1e6 / self.usd_per_million_tokens)

    async def hold(self, tokens: int) -> float:
        """Set the cost of a request aside and return it; wait where only what is on its way is too much.

        Raises:
            BudgetReachedError: It would pass the cap, and nothing on its way may turn out cheaper.
        """
        while True:
            try:
                return self.hold_now(tokens)
            except BudgetReachedError:
                if not self._holders:
                    raise
            self._settled.clear()
            await self._settled.wait()

    def hold_now(self, tokens: int) -> float:
        """Set the cost of a request aside and return it.

        Raises:
            BudgetReachedError: It would pass the cap, what is on its way included.
        """
        cost = tokens * (self.usd_per_million_tokens or 0.0) / 1e6
        if self.max_usd is not None and self.spent_usd + self._held_usd + cost > self.max_usd:
            raise BudgetReachedError(
                f"{_dollars(self.spent_usd + self._held_usd)} of {_dollars(self.max_usd)} are spent, and the "
                f"next request would cost {_dollars(cost)}: raise the cap to go on"
            )
        self._held_usd += cost
        self._holders += 1
        return cost

    def settle(self, held: float, billed_usd: float | None) -> None:
        """Replace what was set aside by what was billed."""
        self._holders -= 1
        self._held_usd = self._held_usd - held if self._holders else 0.0
        self._settled.set()
        self.spend(billed_usd)

    def spend(self, usd: float | None) -> None:
        """Note what was billed without having been set aside; None where no price is known."""
        self.spent_usd += usd or 0.0


def _dollars(usd: float) -> str:
    """Return an amount with as many digits as it takes to see it."""
    return f"${usd:.2f}" if usd >= 1 or usd == 0 else f"${usd:.6f}"
