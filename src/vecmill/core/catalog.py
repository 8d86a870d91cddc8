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
        name: The model's own name at its provider: "all-MiniLM-L6-v2", "openai/text-embedding-3-small".
        provider: Who runs it: "local", "openai", "github".
        dimensions: Components of a vector, in full.
        max_tokens: Tokens one text may have.
        aliases: Short names.
        description: One line for people.
        languages: Two-letter codes the model was made for; empty: unknown, or many.
        normalized: Whether vectors have unit length.
        licence: SPDX name of its licence, empty where the provider's terms rule.
        source: Where its makers publish it; of a hosted model, the page that prices and limits come from.
        mrl: Whether the first components are vectors themselves; None where unknown.
        least_dimensions: The least an MRL model is said to be good for.
        max_inputs, max_request_tokens: Limits of one request; None where there is no request.
        requests_per_minute, max_concurrency: What every account is held to; None: differs by account.
        usd_per_million_tokens, batch_usd_per_million_tokens: Prices; None where unknown.
        priced: The month of the prices, "2026-05".
        document_prefix, query_prefix: Put before texts of that role.
        query_model: The other one of a pair of models, for queries.
        tokenizer: Name of the encoding tokens are counted with.
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
    mrl: bool | None = None
    least_dimensions: int = 1
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    requests_per_minute: int | None = None
    max_concurrency: int | None = None
    usd_per_million_tokens: float | None = None
    batch_usd_per_million_tokens: float | None = None
    priced: str = ""
    document_prefix: str = ""
    query_prefix: str = ""
    query_model: str | None = None
    tokenizer: str = ""

    @property
    def spec(self) -> str:
        """The full name, "local:all-MiniLM-L6-v2"."""
        return f"{self.provider}:{self.name}"

    @property
    def model(self) -> str:
        """The name without a publisher: "text-embedding-3-small" of "openai/text-embedding-3-small".

        Vectors of equal `model` are comparable, whoever of the catalogue's providers runs it.
        """
        return self.name.rpartition("/")[2]


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
    same = candidates(name)
    return same[0] if len(same) == 1 else None


def candidates(name: str) -> list[CatalogEntry]:
    """Return the models an unprefixed name may mean: with or without publisher, of any provider."""
    return [
        known for known in entries() if name in (known.name, known.model, f"{known.provider}/{known.name}")
    ]


def facts(model: str) -> CatalogEntry | None:
    """Return what is known of a model by its own name, whoever runs it: the first such entry, or None."""
    return next((known for known in entries() if model in (known.name, known.model)), None)


def resolve_alias(name: str) -> str:
    """Return the full name a short one stands for; other names are returned as they are."""
    known = entry(name)
    return name if known is None else known.spec
