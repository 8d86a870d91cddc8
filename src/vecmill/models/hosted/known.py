"""What is known of a hosted model: from its connection, the caller's wishes, what was learned."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import quote, urlsplit

from vecmill.core import catalog, durable
from vecmill.core.errors import InputError
from vecmill.core.space import space_id
from vecmill.models.base import ModelInfo
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.learned import Learned


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for."""

    dimensions: int | None
    max_tokens: int | None
    user: str | None
    send_dimensions: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What follows from connection, options and what was learned.

    Attributes:
        facts: Of the model, the learned ones included.
        info: What the provider says about itself.
        sent_dimensions: The `dimensions` of each request, or None.
        complete: Whether width and space are final; if not, `learn` is to be called.
    """

    facts: Facts
    info: ModelInfo
    sent_dimensions: int | None
    complete: bool


def know(connection: Connection, options: Options, learned: Learned) -> Known:
    """Put together what is known of a model.

    Raises:
        InputError: It does not give the dimensions asked for, or not take so many tokens.
    """
    if options.dimensions is not None and options.dimensions < 1:
        raise InputError(f"dimensions is {options.dimensions}; it must be at least 1")
    facts, is_known = _facts(connection, learned)
    complete = facts.dimensions is not None and is_known
    sent, cut = _dimensions(connection.name, facts, options) if facts.dimensions else (None, False)
    full = facts.dimensions or 0
    info = ModelInfo(
        name=connection.name,
        provider=connection.provider,
        space=_space(connection, facts, sent),
        dimensions=(options.dimensions or full) if complete else 0,
        max_tokens=_max_tokens(connection.name, facts, options.max_tokens),
        normalized=facts.normalized,
        device=urlsplit(connection.embeddings_url).netloc,
        tokenizer=facts.tokenizer,
        languages=facts.languages,
        max_inputs=_least(facts.max_inputs, learned.max_inputs),
        max_request_tokens=_least(facts.max_request_tokens, learned.max_request_tokens),
        max_request_bytes=_least(facts.max_request_bytes, learned.max_request_bytes),
        usd_per_million_tokens=facts.usd_per_million_tokens,
        batch_usd_per_million_tokens=facts.batch_usd_per_million_tokens,
        hosted=True,
        reply_dimensions=full if cut and complete else None,
        mrl=facts.mrl,
    )
    return Known(facts, info, sent, complete)


def _facts(connection: Connection, learned: Learned) -> tuple[Facts, bool]:
    """Return the facts of a model, and whether there is nothing to be learned any more.

    Azure's replies name the model behind a deployment: what the catalogue knows of it fills what the
    profile left open. Prices are not taken from there, they differ.
    """
    facts = connection.facts
    if facts.catalogue_name is not None:
        return facts, True
    named = catalogue_name(learned.model or "") if connection.provider == "azure" else None
    known = catalog.facts(named) if named is not None else None
    if known is not None and learned.dimensions == known.dimensions:
        open_facts = {
            name: getattr(known, name)
            for name, default in _DEFAULTS.items()
            if getattr(facts, name) == default and getattr(known, name, None) not in (None, "")
        }
        return replace(facts, **open_facts, catalogue_name=named, exact=True), True
    width = facts.dimensions if facts.dimensions is not None else learned.dimensions
    normalized = facts.normalized and learned.normalized is not False
    return replace(facts, dimensions=width, normalized=normalized), learned.dimensions is not None


_DEFAULTS: dict[str, Any] = {
    entry.name: getattr(Facts(), entry.name)
    for entry in fields(Facts)
    if entry.name not in ("catalogue_name", "exact") and not entry.name.endswith("usd_per_million_tokens")
}


def catalogue_name(model: str) -> str | None:
    """Return the catalogue's name of a model a reply names: "text-embedding-ada-002-v2" has a version."""
    bare = model.rpartition("/")[2]
    for name in (bare, re.sub(r"-v?\d{1,2}$", "", bare)):
        known = catalog.facts(name) if name else None
        if known is not None and known.provider != "local":
            return known.model
    return None


def _dimensions(name: str, facts: Facts, options: Options) -> tuple[int | None, bool]:
    """Return the `dimensions` to send, if any, and whether full vectors are cut afterwards.

    Raises:
        InputError: The model does not give so many.
    """
    asked, full = options.dimensions, facts.dimensions or 0
    if asked is None or asked == full:
        return None, False
    if not 1 <= asked < full:
        raise InputError(f"dimensions is {asked}; {name} gives 1 to {full}")
    if facts.mrl is False:
        raise InputError(
            f"dimensions is {asked}; {name} gives {full} and its vectors cannot be cut: leave dimensions "
            f"out, or take a model whose vectors can: {', '.join(_cuttable())}"
        )
    if facts.mrl is None or options.send_dimensions:
        return asked, False
    return None, True


def _cuttable() -> list[str]:
    return [f"{known.provider}:{known.name}" for known in catalog.entries() if known.mrl]


def _max_tokens(name: str, facts: Facts, asked: int | None) -> int:
    if asked is None:
        return facts.max_tokens
    if asked < 1 or (facts.exact and asked > facts.max_tokens):
        raise InputError(f"max_tokens is {asked}; {name} takes 1 to {facts.max_tokens}")
    return asked


def _space(connection: Connection, facts: Facts, sent: int | None) -> str:
    """Return the space id: the model's own where the vendor vouches for it, else that of the address.

    Behind an Azure address that is not Azure's, what a deployment is said to serve is part of it.
    """
    if connection.vouched and facts.catalogue_name is not None:
        return space_id("hosted", facts.catalogue_name)
    parts = urlsplit(connection.embeddings_url)
    where = f"{parts.scheme}://{parts.netloc}{parts.path}"
    served = facts.catalogue_name if connection.provider == "azure" else None
    own = [connection.model] if served is None else [connection.model, served]
    if sent is not None and not facts.mrl:
        own.append(f"dimensions={sent}")
    return space_id("hosted", where, *own)


def _least(known: int | None, learned: int | None) -> int | None:
    found = [limit for limit in (known, learned) if limit is not None]
    return min(found, default=None)


def redeployed(connection: Connection, facts: Facts, deployment: str) -> Connection:
    """Return the connection to another deployment, or another model of the same server."""
    path = connection.learned_path
    if path is not None:
        name = durable.digest_bytes(f"{path.stem}\0{deployment}".encode())
        path = path.with_name(f"{name}.json")
    azure = connection.provider == "azure"
    known = None if azure else catalog.entry(f"{connection.provider}:{deployment}")
    if known is not None:
        found = {name: getattr(known, name, None) for name in (*_DEFAULTS, *_PRICES)}
        facts = Facts(
            catalogue_name=known.model,
            **{name: value for name, value in found.items() if value is not None and value != ""},
        )
    elif not azure:
        facts = Facts(exact=False)
    return replace(
        connection,
        name=f"{connection.provider}:{deployment}",
        model=deployment,
        embeddings_url=url_of(connection, deployment),
        facts=facts,
        unknown_hint="",
        vouched=connection.vouched and (azure or known is not None),
        learned_path=path,
    )


_PRICES = ("usd_per_million_tokens", "batch_usd_per_million_tokens")


def url_of(connection: Connection, deployment: str) -> str:
    """Return where another deployment is asked: classic Azure URLs name it in the path."""
    if connection.sends_model:
        return connection.embeddings_url
    old, new = (f"/deployments/{quote(name, safe='')}/" for name in (connection.model, deployment))
    if old not in connection.embeddings_url:
        raise InputError(f"the address of {connection.name} names no deployment that could be replaced")
    return connection.embeddings_url.replace(old, new, 1)
