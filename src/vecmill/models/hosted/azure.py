"""Azure OpenAI: a deployment's name becomes a connection, in the classic form or the v1 form."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

from vecmill.core import catalog
from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, MissingExtraError, MissingKeyError
from vecmill.core.secrets import Secret
from vecmill.models.hosted import addresses, endpoints, entra
from vecmill.models.hosted.addresses import Base, Given
from vecmill.models.hosted.connection import Connection, Login
from vecmill.models.hosted.endpoints import Sources, from_environment

if TYPE_CHECKING:
    from vecmill.models.hosted.provider import HostedProvider

KEYS = ("AZURE_OPENAI_API_KEY",)
ENDPOINTS = ("AZURE_OPENAI_ENDPOINT",)
VERSIONS = ("OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION")
DEPLOYMENT = "AZURE_OPENAI_EMBEDDING_DEPLOYMENT"
DIMENSIONS = "AZURE_OPENAI_EMBEDDING_DIMENSIONS"
TOKEN = "AZURE_OPENAI_AD_TOKEN"  # noqa: S105 - a variable's name
TYPE = "OPENAI_API_TYPE"

DEFAULT_VERSION = "2024-10-21"
"""The latest of the classic form that is no preview. Source: Azure OpenAI data plane reference."""


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
    """Open a deployment of Azure OpenAI. Asks nothing; `openai.load` has the arguments.

    `dimensions` is AZURE_OPENAI_EMBEDDING_DIMENSIONS where that speaks of this deployment.

    Raises:
        MissingKeyError: There is no key, and Entra ID cannot be asked; the message names the variables.
        ConfigError: Endpoint, version, profile or key are missing or not usable.
        InputError: The dimensions are not what the model gives.
    """
    connection = connect(name, settings=settings, base_url=base_url, needs_key=needs_key)
    sources = Sources.of("azure", name, settings)
    return endpoints.open_provider(
        connection,
        settings=settings,
        dimensions=_dimensions(connection.model, sources) if dimensions is None else dimensions,
        max_tokens=max_tokens,
        user=user or sources.profile_value("user"),
        send_dimensions=send_dimensions,
    )


def connect(
    name: str,
    *,
    settings: Settings,
    base_url: str | None = None,
    credential: Callable[[], entra.Credential] | None = None,
    needs_key: bool = True,
) -> Connection:
    """Return how a deployment is reached.

    Args:
        name: The deployment, or a profile.
        settings: Gives profiles and the folder of learned facts.
        base_url: The endpoint: "https://RESOURCE.openai.azure.com", with or without "/openai/v1".
        credential: Makes the credential of Entra ID; None is `DefaultAzureCredential`.
        needs_key: Whether there must be a way to log in now; else a request raises that there is none.
    """
    sources = Sources.of("azure", name, settings)
    given = Given(base_url, "base_url") if base_url else sources.find("base_url", *_endpoint_variables())
    hint = endpoints.unknown_hint(name, name, sources) if sources.named is None else ""
    if given is None:
        raise ConfigError(
            f"azure:{name} needs an endpoint: set {' or '.join(_endpoint_variables())} to "
            f"https://RESOURCE.openai.azure.com, or write base_url into a profile of vecmill.toml"
            f"{f'; {hint}' if hint else ''}"
        )
    place = _place(given, sources)
    deployment = _deployment(name, sources, place)
    secret = _auth(sources) != "none" or endpoints.has_secret_headers(sources)
    endpoints.guard(sources, given, place.base, secret=secret)
    plain: dict[str, str] = {}
    try:
        plain, hidden = endpoints.split_headers(sources)
        login, key = _login(name, sources, given, place, hidden, credential)
    except MissingKeyError as error:
        if needs_key:
            raise
        login, key = endpoints.absent(error), None
    served = sources.profile_value("model")
    known = catalog.facts(served) if served else None
    return Connection(
        provider="azure",
        name=f"azure:{name}",
        model=deployment,
        embeddings_url=place.embeddings(deployment),
        login=login,
        facts=endpoints.facts_of(sources, known, price=False),
        files_url=place.at("files"),
        batches_url=place.at("batches"),
        batch_path="/v1/embeddings" if place.version is None else "/embeddings",
        account=endpoints.account_of(key) if key is not None else "entra",
        headers=plain,
        sends_model=place.version is None,
        unknown_hint=hint,
        vouched=addresses.is_vendors("azure", place.base.url),
        learned_path=endpoints.learned_path(settings, place.base.url, deployment),
        **endpoints.limits_of(sources, None),
    )


def is_meant() -> bool:
    """Say whether OPENAI_API_TYPE says that the OPENAI_… variables are Azure's, as older programs have it."""
    return _type() in ("azure", "azure_ad", "azuread")


def default_deployment(settings: Settings) -> str:
    """Return the name that "azure" alone stands for: the profile of that name, else the variable's.

    Raises:
        ConfigError: There is neither.
    """
    if "azure" in settings.profiles:
        return "azure"
    found = from_environment(DEPLOYMENT)
    if found is None:
        raise ConfigError(f"azure needs a deployment: say azure:DEPLOYMENT, or set {DEPLOYMENT}")
    return found.value


# Addresses.


@dataclass(frozen=True, slots=True)
class _Place:
    """An endpoint; `version` is None in the v1 form, `deployment` what the address itself names."""

    base: Base
    version: str | None
    deployment: str | None = None

    def at(self, path: str) -> str:
        if self.version is None:
            return self.base.at(path)
        return self.base.at(path, **{"api-version": self.version})

    def embeddings(self, deployment: str) -> str:
        if self.version is None:
            return self.at("embeddings")
        return self.at(f"deployments/{quote(deployment, safe='')}/embeddings")


_RESOURCE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", re.IGNORECASE)
_DEPLOYED = re.compile(r"/deployments/([^/]+)(?:/embeddings)?")


def _place(given: Given, sources: Sources) -> _Place:
    """Read an endpoint as people write it: a resource's name, its address, or that of a request."""
    if _RESOURCE.fullmatch(given.value) and given.value.lower() != "localhost":
        given = Given(f"https://{given.value}.openai.azure.com", given.origin, given.profile)
    base = addresses.base_url(given, allow_http=sources.allow_http, keep_query=True)
    kept = [(key, value) for key, value in parse_qsl(base.query) if key != "api-version"]
    query = "&".join(f"{quote(key)}={quote(value)}" for key, value in kept)
    said = dict(parse_qsl(base.query)).get("api-version")
    version = said or _version(sources)
    url, deployment = base.url, None
    if match := _DEPLOYED.search(url):
        deployment, url = unquote(match[1]), url[: match.start()]
    url = url.removesuffix("/embeddings")
    if deployment is None and url.endswith("/v1"):
        return _Place(Base(url, base.query), None)
    if version == "v1":
        return _Place(Base(f"{url.removesuffix('/openai')}/openai/v1", query), None, deployment)
    return _Place(Base(f"{url.removesuffix('/openai')}/openai", query), version, deployment)


def _version(sources: Sources) -> str:
    found = sources.find("api_version", *VERSIONS)
    if found is None:
        return DEFAULT_VERSION
    if found.value != "v1" and not re.fullmatch(r"\d{4}-\d{2}-\d{2}(-preview)?", found.value):
        raise ConfigError(
            f"{found.origin} = {found.value!r} is no version of Azure's: write {DEFAULT_VERSION}, or v1"
        )
    return found.value


def _deployment(name: str, sources: Sources, place: _Place) -> str:
    if sources.named is None:
        deployment: str | None = name
    else:
        deployment = sources.named.deployment or place.deployment
        if deployment is None and (found := from_environment(DEPLOYMENT)) is not None:
            deployment = found.value
    if not deployment:
        raise ConfigError(
            f'profile {name!r} does not name its deployment: write deployment = "NAME", or set {DEPLOYMENT}'
        )
    if place.deployment not in (None, deployment):
        raise ConfigError(
            f"azure:{name} is deployment {deployment!r}, but the endpoint names {place.deployment!r}: leave "
            f"/deployments/… out of the endpoint"
        )
    return deployment


# Logins.


def _login(
    name: str,
    sources: Sources,
    given: Given,
    place: _Place,
    hidden: dict[str, Secret],
    credential: Callable[[], entra.Credential] | None,
) -> tuple[Login, Secret | None]:
    """Decide how to log in: as the profile says, else a key, else a token, else Entra ID if installed."""
    auth = _auth(sources)
    if auth == "none":
        return endpoints.keyless(hidden), None
    if auth != "entra" and (found := sources.find_key(given, *_key_variables())) is not None:
        key = endpoints.secret_from(found, what="the Azure OpenAI key")
        return endpoints.api_key(key, hidden, origin=endpoints.origin_of(found)), key
    if sources.profile_value("auth") is None and (token := from_environment(TOKEN)) is not None:
        bearer = endpoints.secret_from(token, what="the Entra token")
        return endpoints.bearer(bearer, hidden), None
    if auth == "key" or (auth is None and credential is None and not entra.available()):
        raise MissingKeyError(
            f"azure:{name} needs a key: set {' or '.join(_key_variables())}, or write key = 'env:NAME' into "
            f"a profile of vecmill.toml; to log in by Entra ID instead, pip install 'vecmill[azure]'"
        )
    if credential is None and not entra.available():
        raise MissingExtraError(
            f"azure:{name} logs in by Entra ID, for which azure-identity is missing: pip install "
            f"'vecmill[azure]'"
        )
    make = credential or entra.default_credential
    return entra.EntraLogin(make, scope=entra.scope_of(place.base.host), extra=hidden), None


def key_status(sources: Sources) -> str:
    """Say whether there is a key or who else is asked, as `endpoints.key_status` does."""
    if _auth(sources) == "entra":
        token = None if sources.profile_value("auth") else from_environment(TOKEN)
        return "Entra ID" if token is None else f"{TOKEN}: set"
    status = endpoints.key_status(sources, *_key_variables(), TOKEN, urls=_endpoint_variables())
    if _auth(sources) is None and status == f"{KEYS[0]}: missing" and entra.available():
        return f"{status}; Entra ID is asked"
    return status


def _auth(sources: Sources) -> str | None:
    said: str | None = sources.profile_value("auth")
    if said is not None or (sources.named is not None and sources.named.key):
        return said  # the environment does not overrule a profile that was named
    return "entra" if _type() in ("azure_ad", "azuread") else None


def _type() -> str:
    found = from_environment(TYPE)
    return "" if found is None else found.value.lower()


def _key_variables() -> tuple[str, ...]:
    return (*KEYS, "OPENAI_API_KEY") if is_meant() else KEYS


def _endpoint_variables() -> tuple[str, ...]:
    return (*ENDPOINTS, "OPENAI_API_BASE", "OPENAI_BASE_URL") if is_meant() else ENDPOINTS


def _dimensions(deployment: str, sources: Sources) -> int | None:
    """Return the variable's dimensions where it speaks of this deployment."""
    found, other = from_environment(DIMENSIONS), from_environment(DEPLOYMENT)
    if found is None or (other is not None and other.value != deployment):
        return None
    if other is None and sources.named is not None:
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", found.value):
        raise ConfigError(f"{DIMENSIONS} = {found.value!r} is not a whole number of at least 1")
    return int(found.value)
