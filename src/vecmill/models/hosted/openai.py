"""OpenAI, and every server that speaks its language: a name becomes a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmill.core import catalog
from vecmill.core.config import Settings
from vecmill.models.hosted import addresses, endpoints
from vecmill.models.hosted.addresses import Base, Given
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.endpoints import Sources

if TYPE_CHECKING:
    from vecmill.models.hosted.provider import HostedProvider

KEYS = ("OPENAI_API_KEY",)
URLS = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
ORGANIZATIONS = ("OPENAI_ORG_ID", "OPENAI_ORGANIZATION")
PROJECTS = ("OPENAI_PROJECT_ID",)

_OWN = Given("https://api.openai.com/v1", "OpenAI's own address")


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
    """Open a model of OpenAI or of a compatible server. Asks nothing.

    Args:
        name: The model, or a profile.
        settings: Gives profiles, certificates and the folder of learned facts.
        max_tokens: A lower limit of tokens per text.
        dimensions: Components of the vectors given out; None takes all.
        base_url: Where it is asked: "http://localhost:11434/v1".
        user: Told to the provider as the end user.
        send_dimensions: Let the provider cut vectors, instead of cutting full ones here.
        needs_key: Whether a key must be there now; else a request raises MissingKeyError.

    Raises:
        MissingKeyError: There is no key; the message names the variables.
        ConfigError: A base URL, profile or key is not usable.
        InputError: The dimensions are not what the model gives.
    """
    connection = connect(name, settings=settings, base_url=base_url, needs_key=needs_key)
    user = user or Sources.of("openai", name, settings).profile_value("user")
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
    sources = Sources.of("openai", name, settings)
    model = endpoints.model_of(name, sources, example="text-embedding-3-small")
    argument = Given(base_url, "base_url") if base_url else None
    url = argument or sources.find_url(*URLS)
    base = _base(url or _OWN, allow_http=sources.allow_http)
    own = is_own(base)
    found = None if sources.profile_value("auth") == "none" else sources.find_key(url, *KEYS)
    hint = endpoints.unknown_hint(name, model, sources)
    if found is not None or not own or endpoints.has_secret_headers(sources):
        secret = found is not None or endpoints.has_secret_headers(sources)
        endpoints.guard(sources, url, base, secret=secret)
    login, key, plain = endpoints.log_in(
        sources,
        found,
        what="the OpenAI key",
        missing=_missing(name, model, sources, hint) if own else None,
        needs_key=needs_key,
    )
    organization = sources.find("organization", *ORGANIZATIONS)
    project = sources.find("project_id", *PROJECTS)
    headers = {
        **plain,
        **_told("OpenAI-Organization", organization, own),
        **_told("OpenAI-Project", project, own),
    }
    known = catalog.entry(f"openai:{model}")
    vouched = known is not None and addresses.is_vendors("openai", base.url)
    account = endpoints.account_of(key, headers.get("OpenAI-Organization"), headers.get("OpenAI-Project"))
    return Connection(
        provider="openai",
        name=endpoints.name_of(name, model, sources, vouched=vouched),
        model=model,
        embeddings_url=base.at("embeddings"),
        login=login,
        facts=endpoints.facts_of(sources, known),
        files_url=base.at("files"),
        batches_url=base.at("batches"),
        account=account,
        headers=headers,
        vouched=vouched,
        unknown_hint=hint,
        learned_path=endpoints.learned_path(settings, base.url, model),
        **endpoints.limits_of(sources, known),
    )


def is_own(base: Base) -> bool:
    """Say whether an address is OpenAI's, of any region."""
    return base.host == "api.openai.com" or base.host.endswith(".api.openai.com")


def _told(header: str, value: Given | None, own: bool) -> dict[str, str]:
    """Return a header; what the environment says of OpenAI's accounts is told to OpenAI alone."""
    return {header: value.value} if value is not None and (own or value.profile is not None) else {}


def _base(given: Given, *, allow_http: bool) -> Base:
    base = addresses.base_url(given, allow_http=allow_http)
    if base.url.endswith("/embeddings"):  # somebody pasted the whole address
        return Base(base.url.removesuffix("/embeddings"))
    return Base(f"{base.url}/v1") if base.url.count("/") == 2 else base


def _missing(name: str, model: str, sources: Sources, hint: str) -> str:
    running = [
        profile.name
        for profile in sources.settings.profiles.values()
        if profile.provider == "openai" and profile.model == model and profile.name != name
    ]
    here = f"; of the profiles here {' and '.join(running)} asks for this model" if running else ""
    return (
        f'openai:{name} needs a key: set OPENAI_API_KEY, or write key = "env:NAME" into a profile of '
        f"vecmill.toml; for another server set OPENAI_BASE_URL{here}{f'; {hint}' if hint else ''}"
    )
