"""Known models: what a name stands for. The table is `catalog.toml` beside this file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("catalog.toml")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model somebody need not describe.

    Attributes:
        name: The model's own name, "all-MiniLM-L6-v2".
        provider: Who runs it, "local".
        dimensions: Components of a vector.
        max_tokens: Tokens one text may have.
        aliases: Short names.
        description: One line for people.
        languages: Two-letter codes the model was made for; empty: unknown.
        normalized: Whether vectors have unit length.
        licence: SPDX name of its licence, empty where the provider's terms rule.
        source: Where its makers publish it.
    """

    name: str
    provider: str
    dimensions: int
    max_tokens: int
    aliases: tuple[str, ...] = ()
    description: str = ""
    languages: tuple[str, ...] = ()
    normalized: bool = True
    licence: str = ""
    source: str = ""

    @property
    def spec(self) -> str:
        """The full name, "local:all-MiniLM-L6-v2"."""
        return f"{self.provider}:{self.name}"


@cache
def entries() -> tuple[CatalogEntry, ...]:
    """Return every known model in the table's order."""
    tables: list[dict[str, Any]] = tomllib.loads(_FILE.read_text("utf-8"))["model"]
    return tuple(CatalogEntry(**{key: _frozen(value) for key, value in table.items()}) for table in tables)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def entry(name: str) -> CatalogEntry | None:
    """Return the model of a name, or None where there is none or more than one.

    Args:
        name: "provider:model", an alias, or the model's own name if only one provider has it.
    """
    for known in entries():
        if name == known.spec or name in known.aliases:
            return known
    same = [known for known in entries() if known.name == name]
    return same[0] if len(same) == 1 else None


def resolve_alias(name: str) -> str:
    """Return the full name a short one stands for; other names are returned as they are."""
    known = entry(name)
    return name if known is None else known.spec
