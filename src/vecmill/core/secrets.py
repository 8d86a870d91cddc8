"""Secrets: where they come from, and a value that never shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """A key or token. It prints as its origin; only `reveal` gives it out.

    Attributes:
        origin: Where it came from, such as "OPENAI_API_KEY": for messages.
    """

    _value: str = field(repr=False)
    origin: str = ""

    def reveal(self) -> str:
        """Return the secret itself, for the header of a request and for nothing else."""
        return self._value

    def __str__(self) -> str:
        return f"<secret from {self.origin or 'an argument'}>"
