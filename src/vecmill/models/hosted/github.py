"""GitHub Models: a model's name becomes a connection. Free within limits of a minute and of a day."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vecmill.core import catalog
from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, InputError
from vecmill.models.hosted import addresses, endpoints
from vecmill.models.hosted.addresses import Base, Given
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.endpoints import Sources

if TYPE_CHECKING:
    from vecmill.models.hosted.provider import HostedProvider

KEYS = ("GITHUB_TOKEN",)

HOST = "models.github.ai"
"""Source: GitHub Docs, REST API endpoints for models inference."""


def load(
    name: str,
    *,
    settings: Settings,
    max_tokens: int | None = None,
    dimensions: int | None = None,
    base_url: str | None = None,
    user: str | None = None,
    send_dimensions: bool = False,
    needs_key: bool = True,
) -> HostedProvider:
    """Open a model of GitHub Models. Asks nothing; `openai.load` has the arguments.

    Raises:
        MissingKeyError: There is no token; the message names the variable.
        ConfigError: A base URL, profile or token is not usable.
        InputError: The name has no publisher, or the dimensions are not what the model gives.
    """
    connection = connect(name, settings=settings, base_url=base_url, needs_key=needs_key)
    user = user or Sources.of("github", name, settings).profile_value("user")
    return endpoints.open_provider(
        connection,
        settings=settings,
        dimensions=dimensions,
        max_tokens=max_tokens,
        user=user,
        send_dimensions=send_dimensions,
    )


def connect(
    name: str, *, settings: Settings, base_url: str | None = None, needs_key: bool = True
) -> Connection:
    """Return how a model is reached; `load` has the arguments and errors."""
    sources = Sources.of("github", name, settings)
    model = endpoints.model_of(name, sources, example="PUBLISHER/NAME")
    if "/" not in model:
        raise InputError(f"GitHub names models PUBLISHER/NAME: github:openai/{model}, not github:{model}")
    given = Given(base_url, "base_url") if base_url else sources.find("base_url")
    base = addresses.base_url(given or _own(sources), allow_http=sources.allow_http)
    base = Base(base.url.removesuffix("/embeddings"))
    found = sources.find_key(given, *KEYS)
    endpoints.guard(sources, given, base, secret=found is not None or endpoints.has_secret_headers(sources))
    login, key, plain = endpoints.log_in(
        sources,
        found,
        what="the GitHub token",
        missing=f"github:{name} needs a token with the permission models: read: set GITHUB_TOKEN, or write "
        f'key = "env:NAME" into a profile of vecmill.toml',
        needs_key=needs_key,
    )
    known = catalog.entry(f"github:{model}")
    vouched = known is not None and addresses.is_vendors("github", base.url)
    return Connection(
        provider="github",
        name=endpoints.name_of(name, model, sources, vouched=vouched),
        model=model,
        embeddings_url=base.at("embeddings"),
        login=login,
        facts=endpoints.facts_of(sources, known),
        account=endpoints.account_of(key, base.url),
        headers=plain,
        vouched=vouched,
        unknown_hint=endpoints.unknown_hint(name, model, sources),
        learned_path=endpoints.learned_path(settings, base.url, model),
        **endpoints.limits_of(sources, known),
    )


def _own(sources: Sources) -> Given:
    organization = sources.profile_value("organization")
    if organization is None:
        return Given(f"https://{HOST}/inference", "GitHub's own address")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?", organization):
        raise ConfigError(f"organization = {organization!r} is no name of an organization")
    return Given(f"https://{HOST}/orgs/{organization}/inference", "GitHub's own address")
