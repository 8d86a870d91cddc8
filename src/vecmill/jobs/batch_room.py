"""How many tokens of batches a provider takes at once: unknown until it refuses one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from vecmill.jobs.batch_parts import Part
from vecmill.models.hosted.batches import BatchStatus

FULL = "token_limit_exceeded"
"""The code of a batch that failed because there was no room for its tokens."""


@dataclass(slots=True)
class Room:
    """Tokens of batches the provider takes at once.

    Attributes:
        most: What was found out. named: what the provider said.
        held: Tokens of the parts under way, by name.
    """

    most: float = float("inf")
    named: int | None = None
    held: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def enter(self, part: Part) -> None:
        """Wait until a part may be sent; one that was sent before does not wait, and one alone neither."""
        async with self.changed:
            if part.name in self.held:
                return
            if not part.is_paid:
                await self.changed.wait_for(
                    lambda: not self.held or sum(self.held.values()) + part.tokens <= self.most
                )
            self.held[part.name] = part.tokens

    async def leave(self, part: Part, *, ended: bool) -> None:
        """Make room. A batch that ran to its end makes it worth trying a little more."""
        async with self.changed:
            self.held.pop(part.name, None)
            if ended:
                self.most = self.most * 1.25 if self.named is None else max(self.most, self.named)
            self.changed.notify_all()

    def refused(self, part: Part, status: BatchStatus) -> None:
        """Learn from a batch that failed because there was no room, while it is still held."""
        self.named = named_limit(status) or self.named
        if self.named is not None:
            self.most = min(self.most, self.named)
        if others := self.others(part):
            self.most = min(self.most, others)

    def is_too_large(self, part: Part) -> bool:
        """Say whether a part that is not sent yet has more tokens than the provider ever takes at once."""
        return self.named is not None and part.tokens > self.named and part.lines > 1 and not part.is_paid

    def piece_tokens(self, part: Part) -> int | None:
        """Return how large pieces of a refused part may be; None: it is to be sent again as it is."""
        if self.others(part) or part.lines == 1:
            return None
        if self.named is None:
            return max(part.tokens // 2, 1)
        return self.named if part.tokens > self.named else None

    def others(self, part: Part) -> int:
        """Return the tokens of the other batches under way."""
        return sum(tokens for name, tokens in self.held.items() if name != part.name)


def named_limit(status: BatchStatus) -> int | None:
    """Return the number of tokens a refusal names: "Limit: 3,000,000 enqueued tokens"."""
    for error in status.errors:
        _, found, rest = error.message.partition("Limit: ")
        digits = rest.split(" ")[0].replace(",", "").rstrip(".") if found else ""
        if digits.isdecimal() and len(digits) <= 15 and int(digits) > 0:
            return int(digits)
    return None
