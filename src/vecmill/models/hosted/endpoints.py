"""What the vendors' pages share: values from several places, logins, trust, facts, and opening.

Each value comes from the first of: the argument, the profile that was named, the environment, the profile
that bears the provider's name, the catalogue. What a profile that was named says counts as said by the
caller: its key and its address belong together, so a key that lies in the environment must not take the place
of its own, nor an address there take its key elsewhere. Likewise the address of the provider's profile gets
that profile's own key, if it has one.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecmill.core import catalog, durable, trust
from vecmill.core.catalog import CatalogEntry
from vecmill.core.config import Profile, Settings, environment, is_reference
from vecmill.core.errors import ConfigError, MissingKeyError
from vecmill.core.secrets import Secret, resolve_secret, secret_of
from vecmill.models.hosted import addresses
from vecmill.models.hosted.addresses import Base, Given
from vecmill.models.hosted.connection import Connection, Facts, Login

if TYPE_CHECKING:
    from vecmill.models.hosted.provider import HostedProvider


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the values of one connection are looked for.

    Attributes:
        provider: "openai", "azure" or "github".
        named: The profile that was asked for by name.
        default: The profile that bears the provider's name, if it is not the one named.
        settings: For `ca_file` and the folder of learned facts.
    """

    provider: str
    named: Profile | None
    default: Profile | None
    settings: Settings

    @classmethod
    def of(cls, provider: str, name: str, settings: Settings) -> Sources:
        """Find the profiles that concern a model of this name."""
        named = settings.profiles.get(name)
        named = named if named is not None and named.provider == provider else None
        default = settings.profiles.get(provider)
        if default is not None and (default is named or default.provider != provider):
            default = None
        return cls(provider, named, default, settings)

    def find(self, field: str, *variables: str) -> Given | None:
        """Return the first value of a profile's field or of variables; empty ones count as not given."""
        return _said(self.named, field) or from_environment(*variables) or _said(self.default, field)

    def find_url(self, *variables: str) -> Given | None:
        """Return the base URL; a named profile with a key of its own takes none from the environment."""
        if self.named is not None and self.named.key:
            return _said(self.named, "base_url") or _said(self.default, "base_url")
        return self.find("base_url", *variables)

    def find_key(self, url: Given | None, *variables: str) -> Given | None:
        """Return the key for an address: of two, that of the profile the address comes from."""
        if (own := _said(self.named, "key")) is not None:
            return own
        beside = None if url is None else _said(url.profile, "key")
        return beside or self.find("key", *variables)

    def profile_value(self, field: str) -> Any:
        """Return a field of the profiles, the named one first; None where neither says it."""
        for profile in (self.named, self.default):
            if profile is not None and (value := getattr(profile, field)) is not None:
                return value
        return None

    @property
    def allow_http(self) -> bool:
        """Whether a profile allows plain http:// to anywhere."""
        return any(profile.allow_http for profile in (self.named, self.default) if profile is not None)


def model_of(name: str, sources: Sources, *, example: str) -> str:
    """Return the model that is asked: the name itself, or what the profile of that name says.

    Raises:
        ConfigError: The profile names no model, or bears the name of another model of the catalogue.
    """
    if sources.named is None:
        return name
    known = catalog.entry(f"{sources.provider}:{name}")
    model = sources.named.model or (None if known is None else name)
    if model is None:
        raise ConfigError(f'profile {name!r} does not name its model: write model = "{example}"')
    if known is not None and model != name:
        raise ConfigError(f"profile {name!r} is model {model!r}, but bears another model's name: rename it")
    return model


_SENT_OTHERWISE = ("document_prefix", "query_prefix", "query_model")


def name_of(name: str, model: str, sources: Sources, *, vouched: bool) -> str:
    """Return what sets call their model: its own name where the vendor vouches for it, else as it was named.

    A profile's name means nothing in another folder. It stays where the profile alters what is sent.
    """
    alters = any(getattr(sources.named, field, None) for field in _SENT_OTHERWISE)
    return f"{sources.provider}:{model if vouched and not alters else name}"


def unknown_hint(name: str, model: str, sources: Sources) -> str:
    """Return what to say where a server knows no such model; "" for one of the catalogue.

    Args:
        name: As it was named.
        model: What is asked for.
        sources: Where profiles were looked for.
    """
    provider, named = sources.provider, sources.named
    if provider != "azure" and catalog.entry(f"{provider}:{model}") is not None:
        return ""
    known = [entry.name for entry in catalog.entries() if entry.provider == provider]
    if named is None:
        profiles = sources.settings.profiles.values()
        known += [profile.name for profile in profiles if profile.provider == provider]
    close = difflib.get_close_matches(model[:_LONGEST_NAME], known, n=3, cutoff=0.75)
    prefix = "" if named is not None else f"{provider}:"
    mean = f"did you mean {' or '.join(f'{prefix}{one}' for one in close)}?" if close else ""
    if named is not None:
        return f"{mean} (profile {named.name!r})" if mean else ""
    where = f"{name!r} is no profile here: they are looked for in ./vecmill.toml and VECMILL_HOME"
    return f"{mean} {where}".strip()


_LONGEST_NAME = 200


def _said(profile: Profile | None, field: str) -> Given | None:
    value = None if profile is None else getattr(profile, field)
    if profile is None or not value:
        return None
    return Given(str(value), f"{field} of profile {profile.name!r} ({profile.origin})", profile)


def from_environment(*variables: str) -> Given | None:
    """Return the first of these variables that is set and not empty."""
    env = environment()
    for name in variables:
        if value := env.get(name, "").strip():
            return Given(value, name)
    return None


def secret_from(given: Given, *, what: str) -> Secret:
    """Return the secret: a profile's reference is resolved, a variable's value is the secret itself."""
    if given.profile is not None:
        return resolve_secret(given.value, what=f"{what} ({given.origin})")
    return secret_of(given.value, origin=given.origin, what=what)


_VARIABLES = {
    "openai": ("OPENAI_API_KEY",),
    "github": ("GITHUB_TOKEN",),
}
_URL_VARIABLES = {"openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE")}


def key_status(sources: Sources, *variables: str, urls: tuple[str, ...] = ()) -> str:
    """Say whether there is a key, without asking a keyring, a vault or the network: "OPENAI_API_KEY: set".

    Args:
        sources: Whose key.
        variables: Where it may lie; none: the provider's own.
        urls: Variables of the address; none: the provider's own.
    """
    if sources.profile_value("auth") == "none":
        return "none needed"
    variables = variables or _VARIABLES[sources.provider]
    urls = urls or _URL_VARIABLES.get(sources.provider, ())
    found = sources.find_key(sources.find("base_url", *urls), *variables)
    if found is None:
        return f"{variables[0]}: missing"
    if found.profile is None:
        return f"{found.origin}: set"
    scheme, _, rest = found.value.partition(":")
    if scheme == "env":
        return f"{rest}: {'set' if from_environment(rest) else 'missing'}"
    if scheme == "file":
        return f"{found.value}: {'there' if Path(rest).expanduser().is_file() else 'missing'}"
    return f"{found.value}: not looked up"


# Logins.


@dataclass(frozen=True, slots=True)
class KeyLogin:
    """Log in by secrets that do not change.

    Attributes:
        origin: Where the key came from, for messages; "" where none is sent.
    """

    headers: Callable[[], Mapping[str, str]] = field(repr=False)
    extra: Mapping[str, Secret] = field(repr=False)
    origin: str = ""

    async def __call__(self) -> Mapping[str, str]:
        """Return the headers."""
        return {**self.headers(), **{name: secret.reveal() for name, secret in self.extra.items()}}


def bearer(secret: Secret, extra: Mapping[str, Secret] | None = None, *, origin: str = "") -> Login:
    """Log in by `Authorization: Bearer`; `origin` is where the key came from, as people named it."""
    return KeyLogin(
        lambda: {"Authorization": f"Bearer {secret.reveal()}"}, dict(extra or {}), origin or secret.origin
    )


def api_key(secret: Secret, extra: Mapping[str, Secret] | None = None, *, origin: str = "") -> Login:
    """Log in by Azure's `api-key`; `origin` as for `bearer`."""
    return KeyLogin(lambda: {"api-key": secret.reveal()}, dict(extra or {}), origin or secret.origin)


def keyless(extra: Mapping[str, Secret] | None = None) -> Login:
    """Log in by nothing but, where there are any, the profile's secret headers."""
    origin = " and ".join(f"{secret.origin} (header {name})" for name, secret in (extra or {}).items())
    return KeyLogin(dict, dict(extra or {}), origin)


def absent(error: MissingKeyError) -> Login:
    """Log in not at all: a request raises that the key is missing, until then none is needed."""
    message = str(error)

    async def login() -> Mapping[str, str]:
        raise MissingKeyError(message)

    return login


def log_in(
    sources: Sources, found: Given | None, *, what: str, missing: str | None, needs_key: bool
) -> tuple[Login, Secret | None, dict[str, str]]:
    """Return the login by a bearer key, the key, and the headers that are no secrets.

    Args:
        sources: Whose headers are sent.
        found: The key, or None.
        what: What the key is called in messages.
        missing: What to say without a key; None where it is not needed.
        needs_key: Whether it must be there now; else a request raises that it is not.

    Raises:
        MissingKeyError: There is no key.
        ConfigError: It is not usable.
    """
    try:
        if found is None and missing is not None:
            raise MissingKeyError(missing)
        plain, hidden = split_headers(sources)
        if found is None:
            return keyless(hidden), None, plain
        key = secret_from(found, what=what)
    except MissingKeyError as error:
        if needs_key:
            raise
        return absent(error), None, {}
    return bearer(key, hidden, origin=origin_of(found)), key, plain


def origin_of(found: Given) -> str:
    """Return where a key came from, as people wrote it: "OPENAI_API_KEY", or a profile's reference."""
    return found.origin if found.profile is None else f"{found.value} (key of profile {found.profile.name!r})"


_LEAST_KEY = 16


def account_of(secret: Secret | None, *others: str | None) -> str:
    """Return 12 hex digits that tell accounts apart and do not give the key away.

    A key of fewer than 16 characters could be guessed from them, so it counts as none.

    Args:
        secret: The key, or None.
        others: What else divides an account, such as an organization.
    """
    digest = hashlib.blake2b(digest_size=6, person=b"vecmill account")
    raw = b"" if secret is None else secret.reveal().encode("utf-8", "surrogatepass")
    parts = [raw if len(raw) >= _LEAST_KEY else b"", *((other or "").encode() for other in others)]
    if not any(parts):
        return ""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def split_headers(sources: Sources) -> tuple[dict[str, str], dict[str, Secret]]:
    """Return the profiles' headers: those to be seen, and those that hold a secret, resolved."""
    plain: dict[str, str] = {}
    secret: dict[str, Secret] = {}
    for profile in (sources.default, sources.named):
        for name, value in (profile.headers if profile is not None else {}).items():
            plain.pop(name, None)
            secret.pop(name, None)
            if is_reference(value):
                what = f"header {name} of profile {profile.name!r}" if profile else name
                secret[name] = resolve_secret(value, what=what)
            else:
                plain[name] = value
    return plain, secret


def has_secret_headers(sources: Sources) -> bool:
    """Say whether a profile's header is a reference to a secret."""
    profiles = (profile for profile in (sources.named, sources.default) if profile is not None)
    return any(is_reference(value) for profile in profiles for value in profile.headers.values())


def guard(sources: Sources, url: Given | None, base: Base, *, secret: bool) -> None:
    """Refuse that a project's file says where texts or a secret go or what is paid, unless it is trusted.

    To be called before secrets are fetched: to look into a keyring or vault for such a file is too much.

    Args:
        sources: Whose headers and permissions are used.
        url: Where the base URL came from, or None for the vendor's own.
        base: What it is: without a secret, a server on this machine needs no trust.
        secret: Whether a key or token goes along.

    Raises:
        ConfigError: The file is not trusted.
    """
    away = secret or not addresses.is_loopback(base.host)
    if away and url is not None and url.profile is not None and url.profile.project:
        _ensure(url.profile, "base_url")
    if secret:
        _guard_secret(sources)


def _guard_secret(sources: Sources) -> None:
    for profile in (sources.named, sources.default):
        if profile is not None and profile.project:
            for field in ("headers", "allow_http"):
                if getattr(profile, field):
                    _ensure(profile, field)
            for field in ("usd_per_million_tokens", "batch_usd_per_million_tokens"):
                if getattr(profile, field) is not None:  # they decide about questions and budgets
                    _ensure(profile, field)
    said = sources.settings.said_by_project
    for name, value in said.values.items() if said is not None else ():
        if said is not None and getattr(sources.settings, name) == value:
            trust.ensure_trusted(said.path, said.digest, why=name)


def _ensure(profile: Profile, field: str) -> None:
    trust.ensure_trusted(Path(profile.origin), profile.digest, why=f"{field} of profile {profile.name!r}")


# Facts.

_FACTS = {entry.name for entry in fields(Facts)}


def facts_of(sources: Sources, known: CatalogEntry | None, *, price: bool = True) -> Facts:
    """Return what is known of a model: what profiles say, else the catalogue.

    Args:
        sources: Whose profiles count.
        known: The catalogue's entry, or None.
        price: Whether the catalogue's price holds for who runs the model.
    """
    values: dict[str, Any] = {}
    if known is not None:
        values = {name: getattr(known, name) for name in _FACTS if hasattr(known, name)}
        values = {name: value for name, value in values.items() if value is not None and value != ""}
        values["catalogue_name"] = known.model
        if not price:
            values["usd_per_million_tokens"] = values["batch_usd_per_million_tokens"] = None
    for name in _FACTS:
        if name in _PROFILE_FACTS and (value := sources.profile_value(name)) is not None:
            values[name] = value
    return Facts(**{**values, **_prices_said(sources)}, exact=known is not None)


def _prices_said(sources: Sources) -> dict[str, float | None]:
    """Return the prices profiles say. A price one says of its own voids the batch price of others."""
    batch: float | None = None
    for profile in (sources.named, sources.default):
        if profile is None:
            continue
        batch = profile.batch_usd_per_million_tokens if batch is None else batch
        if (usd := profile.usd_per_million_tokens) is not None:
            return {"usd_per_million_tokens": usd, "batch_usd_per_million_tokens": batch}
    return {} if batch is None else {"batch_usd_per_million_tokens": batch}


_PROFILE_FACTS = {entry.name for entry in fields(Profile)} & _FACTS


def limits_of(sources: Sources, known: CatalogEntry | None) -> dict[str, Any]:
    """Return the limits of an account as `Connection` names them, where they are known."""
    limits = {}
    for name in ("requests_per_minute", "tokens_per_minute", "max_concurrency", "timeout"):
        value = sources.profile_value(name)
        if value is None and known is not None:
            value = getattr(known, name, None)
        if value is not None:
            limits[name] = value
    return limits


def learned_path(settings: Settings, *parts: str) -> Path:
    """Return where facts learned of an endpoint are kept; the parts tell endpoints apart."""
    return settings.home / "endpoints" / f"{durable.digest_bytes(chr(0).join(parts).encode())}.json"


def open_provider(
    connection: Connection,
    *,
    settings: Settings,
    dimensions: int | None,
    max_tokens: int | None,
    user: str | None,
    send_dimensions: bool,
) -> HostedProvider:
    """Open the provider of a connection; asks nothing."""
    from vecmill.models.hosted.provider import HostedProvider  # loads aiohttp: only where one is opened

    return HostedProvider(
        connection,
        dimensions=dimensions,
        max_tokens=max_tokens,
        user=user,
        send_dimensions=send_dimensions,
        ca_file=settings.ca_file,
    )
