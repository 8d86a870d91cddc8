"""Base URLs as people write them: checked, tidied, and refused where one would give something away."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlsplit

from vecmill.core.config import Profile
from vecmill.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Given:
    """A value and where it came from, for messages. `profile` is the one that says it, if one does.

    The value may be a key, so it does not print.
    """

    value: str = field(repr=False)
    origin: str
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A base URL without trailing slash, apart from its query."""

    url: str
    query: str = ""

    @property
    def host(self) -> str:
        """The host, lower case, without port."""
        return (urlsplit(self.url).hostname or "").lower()

    def at(self, path: str, **query: str) -> str:
        """Return the URL of a path under this one, with the query and these parameters."""
        pairs = "&".join([*filter(None, [self.query]), *(f"{key}={value}" for key, value in query.items())])
        return f"{self.url}/{path}?{pairs}" if pairs else f"{self.url}/{path}"


_OWN_HOSTS = {"openai": ("api.openai.com",), "github": ("models.github.ai",)}
_OWN_ENDINGS = {
    "openai": (".api.openai.com",),
    "azure": tuple(
        f".{service}.azure.{cloud}"
        for service in ("openai", "cognitiveservices", "services.ai")
        for cloud in ("com", "us", "cn")
    ),
}


def is_vendors(provider: str, url: str) -> bool:
    """Say whether an address is the vendor's own, so that what it says of its models is believed.

    It is asked over https at a host of the vendor's. A gateway may call any model by any name, and so may one
    that is rented from the vendor (azure-api.net).

    Args:
        provider: "openai", "azure" or "github".
        url: Any URL there.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    ours = host in _OWN_HOSTS.get(provider, ()) or host.endswith(_OWN_ENDINGS.get(provider, ()))
    return parts.scheme == "https" and ours


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, whatever a name server says: what goes there does not leave it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_url(given: Given, *, allow_http: bool = False, keep_query: bool = False) -> Base:
    """Check and tidy a base URL.

    Args:
        given: The URL and where it came from.
        allow_http: Allow plain http:// to anywhere; otherwise only to this machine and private addresses.
        keep_query: Keep the query string; otherwise one is refused.

    Raises:
        ConfigError: It is no such URL; the message shows at most scheme, host and path.
    """
    text = given.value.strip()
    wrong = f"{given.origin} is not a base URL"
    if any(sign.isspace() or not sign.isprintable() for sign in text):
        raise ConfigError(f"{wrong}: it holds blanks or control characters")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise ConfigError(f"{wrong}: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{wrong}: leave out what stands before '@'; keys are given by reference")
    if parts.scheme not in ("https", "http") or not host:
        raise ConfigError(f'{wrong}: write it as "https://HOST/v1"')
    host = _plain_host(host, wrong)
    if parts.fragment or (parts.query and not keep_query):
        raise ConfigError(f"{wrong}: leave out what follows '?' or '#' after {_shown(parts)}")
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if any(word in key.lower() for word in ("key", "token", "secret", "sig", "password")):
            raise ConfigError(f"{wrong}: leave {key!r} out of its query; keys are given by reference")
    if parts.scheme == "http" and not allow_http and not _is_private(host):
        raise ConfigError(
            f"{wrong}: {_shown(parts)} would be asked without encryption; write https://, or set "
            f"allow_http = true in the profile"
        )
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != {"https": 443, "http": 80}[parts.scheme]:
        netloc = f"{netloc}:{port}"
    return Base(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}", parts.query)


_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_.])?")


def _plain_host(host: str, wrong: str) -> str:
    """Return a host in plain letters; refuse one that other readers of URLs might read as another."""
    if ":" in host:
        return str(ipaddress.ip_address(host.partition("%")[0]))  # in brackets: checked by urlsplit
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        plain = ""
    if not _HOST.fullmatch(plain):
        raise ConfigError(f"{wrong}: its host has characters no host has")
    return plain


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


_PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_ENDINGS)
    return address.is_loopback or (address.is_private and not address.is_link_local)
