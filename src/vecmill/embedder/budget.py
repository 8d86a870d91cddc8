"""What may be spent: a request that would pass the cap is not sent."""

from __future__ import annotations

from dataclasses import dataclass

from vecmill.core.errors import BudgetReachedError, InputError


@dataclass(slots=True)
class Budget:
    """Dollars spent, on their way, and allowed.

    Attributes:
        max_usd: The cap; None allows everything.
        usd_per_million_tokens: The price; a cap without one is refused.
        spent_usd: Billed so far, earlier runs of the same job included.
    """

    max_usd: float | None = None
    usd_per_million_tokens: float | None = 0.0
    spent_usd: float = 0.0
    _held_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.max_usd is not None and self.usd_per_million_tokens is None:
            raise InputError(
                "the model's price is not known, so a cap in dollars cannot be kept: set "
                "usd_per_million_tokens in its profile, or leave the cap out"
            )

    def hold(self, tokens: int) -> float:
        """Set the cost of a request aside and return it.

        Raises:
            BudgetReachedError: It would pass the cap.
        """
        cost = tokens * (self.usd_per_million_tokens or 0.0) / 1e6
        if self.max_usd is not None and self.spent_usd + self._held_usd + cost > self.max_usd:
            raise BudgetReachedError(
                f"${self.spent_usd:.4f} of ${self.max_usd:.4f} are spent and the next request would cost "
                f"${cost:.4f}: paused; raise the cap to go on"
            )
        self._held_usd += cost
        return cost

    def settle(self, held: float, billed_usd: float | None) -> None:
        """Replace what was set aside by what was billed."""
        self._held_usd = max(0.0, self._held_usd - held)
        self.spent_usd += billed_usd or 0.0
