"""Bearer tokens of an OpenID Connect issuer, such as Microsoft Entra, verified against the issuer's keys.

A token is believed only if one of the issuer's own keys signed it, with an algorithm that fits the key's
type, for this audience, and now. What it may do stands in its claims; a token without our words in them may
do nothing: any application of a tenant can get a token for any audience of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from vecmill.core.errors import BadReplyError, ConfigError, Error
from vecmill.core.extras import require
from vecmill.core.http import Session
from vecmill.server.hosts import is_loopback
from vecmill.server.keys import GIVEN, Right

if TYPE_CHECKING:
    import jwt
else:
    require("cryptography", extra="serve")
    jwt = require("jwt", extra="serve")

log = logging.getLogger(__name__)

ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
}
"""Which signatures are believed of which kind of key. Never "none", never a shared secret."""

MAX_TOKEN_BYTES = 16_384
LEEWAY_SECONDS = 60.0
"""By how much the clocks may differ."""

KEYS_FRESH_SECONDS = 3600.0
KEYS_KEPT_SECONDS = 24 * 3600.0
"""The keys are asked for again every hour; those known stay in force a day while the issuer is away."""

FETCHES_PER_MINUTE = 6
"""Of the issuer's keys, whatever the tokens say: unknown key ids cannot make us ask more often."""

BELIEVED_SECONDS = 60.0
"""A token that was verified is not verified again for so long, nor beyond its expiry."""

MAX_BELIEVED = 1024
MAX_KEYS_BYTES = 1024 * 1024
_FETCH_SECONDS = 10.0
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048
_WORDS = {f"vecmill.{right.value}": right for right in GIVEN}
_CLAIMS = ("scp", "scope", "roles")
_ENTRA = re.compile(
    r"https://(?:login\.microsoftonline\.com/([0-9A-Za-z.-]+)(?:/v2\.0)?|sts\.windows\.net/([0-9A-Za-z.-]+))/?"
)
_TENANT = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the body behind an address; raises one of our errors."""


class TokenRefused(Exception):  # noqa: N818 - an answer
    """The token is not believed; the message says why and shows nothing of it."""


class IssuerUnreachable(Exception):  # noqa: N818 - an answer
    """Nobody can say whether the token is right: the issuer's keys are not known."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token is of: "oidc:" and twelve hex digits of a hash of issuer and subject; and what it may."""

    id: str
    rights: frozenset[Right]


class Oidc:
    """Verifies tokens of one issuer for one audience.

    Args:
        issuer: The `iss` of its tokens, an https address. Of a Microsoft Entra tenant both forms of tokens
            (v1, v2) are taken, whichever of their issuers is given.
        audience: The `aud` of tokens for this server; several divided by blanks.
        jwks_url: Where the issuer's keys are; None: where its `/.well-known/openid-configuration` says.
        ca_file: Certificates (PEM) trusted beside the system's.
        fetch: How addresses are read; for tests.
    """

    def __init__(
        self,
        issuer: str | None,
        audience: str | None,
        *,
        jwks_url: str | None = None,
        ca_file: Path | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        """Check the options; nothing is fetched before the first token.

        Raises:
            ConfigError: Issuer or audience is missing, or an address is not safe.
        """
        audiences = (audience or "").split()
        if not issuer or not audiences:
            raise ConfigError(
                "bearer tokens need both an issuer and an audience (--oidc-issuer, --oidc-audience): a token "
                "made for somebody else must not open this server"
            )
        self._issuers, discovery = _issuers(issuer)
        self._audiences = audiences
        self._believed: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()  # by hash; until when
        if jwks_url is not None:
            _ensure_safe(jwks_url, "the address of the issuer's keys (--oidc-jwks-url)")
        self._keys = _Keys(issuer, discovery, jwks_url, fetch or _fetcher(ca_file))

    async def identify(self, token: str) -> Identity:
        """Verify a token and return who it is of.

        Cost: about 0.2 ms, nearly nothing for one verified within the last minute. The first one, and one
        with an unknown key id, may wait for the issuer's keys.

        Raises:
            TokenRefused: It is not believed.
            IssuerUnreachable: The issuer's keys cannot be had.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenRefused(f"it is longer than {MAX_TOKEN_BYTES} bytes")
        hashed = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        if (known := self._believed.get(hashed)) is not None:
            if _now() < known[1]:
                return known[0]
            del self._believed[hashed]
        identity, seconds = await self._verified(token)
        self._believed[hashed] = (identity, _now() + min(seconds, BELIEVED_SECONDS))
        if len(self._believed) > MAX_BELIEVED:
            self._believed.popitem(last=False)
        return identity

    async def _verified(self, token: str) -> tuple[Identity, float]:
        """Verify a token; return who it is of and the seconds until it expires."""
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not any(algorithm in known for known in ALGORITHMS.values()):
            raise TokenRefused("its algorithm is not accepted")
        if kid is not None and not isinstance(kid, str):
            raise TokenRefused("it is malformed")
        claims = self._claims(token, await self._keys.find(kid, algorithm), algorithm)
        hashed = hashlib.sha256(f"{claims['iss']}\0{claims['sub']}".encode("utf-8", "surrogatepass"))
        return Identity(f"oidc:{hashed.hexdigest()[:12]}", _rights(claims)), float(
            claims["exp"]
        ) - time.time()

    def _claims(self, token: str, key: Any, algorithm: str) -> Mapping[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],  # one that fits the key's type: `find` saw to that
                audience=self._audiences,
                issuer=self._issuers,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise TokenRefused(_reason(error)) from None
        except (ValueError, TypeError, RecursionError):
            raise TokenRefused("it is malformed") from None


@dataclass(frozen=True, slots=True)
class _Signer:
    """A key of the issuer's and the algorithms that fit it."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


class _Keys:
    """The issuer's keys, fetched when they are needed and no more often than allowed."""

    def __init__(self, issuer: str, discovery: str, url: str | None, fetch: Fetch) -> None:
        self._issuer, self._discovery, self._url, self._fetch = issuer, discovery, url, fetch
        self._known: tuple[_Signer, ...] = ()
        self._when = -KEYS_KEPT_SECONDS
        self._asked: deque[float] = deque(maxlen=FETCHES_PER_MINUTE)
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Any:
        """Return the key that may have signed a token.

        Raises:
            TokenRefused: The issuer has no such key.
            IssuerUnreachable: Its keys cannot be had.
        """
        age = _now() - self._when
        if age >= KEYS_KEPT_SECONDS:
            self._known = ()
        if not self._known:
            await self._ask()
        elif age >= KEYS_FRESH_SECONDS:
            self._begin()  # the known ones do meanwhile
        if not self._known:
            raise IssuerUnreachable
        found = self._pick(kid, algorithm)
        if found is None and not self._has(kid):
            await self._ask()
            found = self._pick(kid, algorithm)
        if found is None:
            raise TokenRefused("no key of the issuer's fits it")
        return found.key

    def _pick(self, kid: str | None, algorithm: str) -> _Signer | None:
        """Return the key with this id; without an id the only one there is for the algorithm."""
        fitting = [each for each in self._known if algorithm in each.algorithms]
        if kid is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((each for each in fitting if each.kid == kid), None)

    def _has(self, kid: str | None) -> bool:
        return kid is None or any(each.kid == kid for each in self._known)

    async def _ask(self) -> None:
        """Fetch the keys and wait for them, together with whoever else does; not where it is too often."""
        if (task := self._begin()) is not None:
            await asyncio.shield(task)  # who gives up does not take the keys from the others

    def _begin(self) -> asyncio.Task[None] | None:
        if self._fetching is not None:
            return self._fetching
        now = _now()
        if len(self._asked) == FETCHES_PER_MINUTE and now - self._asked[0] < 60:
            return None
        self._asked.append(now)
        self._fetching = asyncio.create_task(self._load())
        return self._fetching

    async def _load(self) -> None:
        try:
            if self._url is None:
                self._url = _discovered(await self._fetch(self._discovery), self._discovery)
            known = _signers(await self._fetch(self._url))
        except Error as error:
            log.warning("the keys of the token issuer %s cannot be had: %s", self._issuer, error)
        else:
            self._known, self._when = known, _now()
            log.info("read %d keys of the token issuer", len(known))
        finally:
            self._fetching = None


def _header(token: str) -> Mapping[str, Any]:
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("it is malformed") from None
    return header


def _reason(error: jwt.PyJWTError) -> str:
    """Say in our words why a token is not believed."""
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ExpiredSignatureError, "it has expired"),
        (jwt.ImmatureSignatureError, "it is not valid yet"),
        (jwt.InvalidAudienceError, "it is for another audience"),
        (jwt.InvalidIssuerError, "it is of another issuer"),
        (jwt.MissingRequiredClaimError, "it lacks one of the claims exp, iss, aud and sub"),
        (jwt.InvalidSignatureError, "its signature does not fit"),
    )
    return next((why for kind, why in reasons if isinstance(error, kind)), "it is malformed")


def _rights(claims: Mapping[str, Any]) -> frozenset[Right]:
    """Return what the claims allow: "vecmill.embed" and so on, as a list or divided by blanks."""
    words: set[str] = set()
    for name in _CLAIMS:
        value = claims.get(name)
        if isinstance(value, str):
            words.update(value.split())
        elif isinstance(value, list):
            words.update(word for word in value if isinstance(word, str))
    return frozenset(_WORDS[word] for word in words & _WORDS.keys())


def _issuers(issuer: str) -> tuple[list[str], str]:
    """Return the values of `iss` that are the issuer's, and the address of its configuration."""
    _ensure_safe(issuer, "the issuer (--oidc-issuer)")
    match = _ENTRA.fullmatch(issuer)
    if match is None:
        return [issuer], f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    tenant = match[1] or match[2]
    if _TENANT.fullmatch(tenant) is None:  # "common" stands for every tenant there is
        raise ConfigError(
            f"the issuer {issuer} does not name one tenant by its id: "
            "write https://login.microsoftonline.com/TENANT-ID/v2.0"
        )
    second = f"https://login.microsoftonline.com/{tenant}/v2.0"
    return [second, f"https://sts.windows.net/{tenant}/"], f"{second}/.well-known/openid-configuration"


def _ensure_safe(url: str, what: str) -> None:
    """Refuse an address somebody on the way could answer for."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    plain = parts.scheme == "http" and is_loopback(host)
    if not host or parts.username is not None or not (parts.scheme == "https" or plain):
        raise ConfigError(f"{what} is no https address; write https://NAME/…")


def _discovered(raw: bytes, where: str) -> str:
    """Return the address of the keys from an issuer's configuration.

    Raises:
        BadReplyError: It is of another issuer, or says nothing of keys.
    """
    table = _table(raw, "the issuer's configuration")
    said, url = table.get("issuer"), table.get("jwks_uri")
    if not isinstance(said, str) or f"{said.rstrip('/')}/.well-known/openid-configuration" != where:
        raise BadReplyError("its configuration names another issuer")
    try:
        _ensure_safe(url if isinstance(url, str) else "", "jwks_uri")
    except ConfigError as error:
        raise BadReplyError(f"its configuration cannot be used: {error}") from error
    return str(url)


def _signers(raw: bytes) -> tuple[_Signer, ...]:
    """Return the usable keys of a JSON Web Key Set; those of other kinds are left out.

    Raises:
        BadReplyError: It is no key set, or has no usable key.
    """
    given = _table(raw, "the key set").get("keys")
    if not isinstance(given, list):
        raise BadReplyError("it answers with no key set")
    found = tuple(signer for entry in given[:_MAX_KEYS] if (signer := _signer(entry)) is not None)
    if not found:
        raise BadReplyError(
            f"none of its {len(given)} keys can verify signatures (RSA from 2048 bits, or EC)"
        )
    return found


def _signer(entry: Any) -> _Signer | None:
    """Read one key; None where it is not one to verify signatures with."""
    if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    kind = "RSA" if entry.get("kty") == "RSA" else entry.get("crv") if entry.get("kty") == "EC" else None
    algorithms = ALGORITHMS.get(kind, ()) if isinstance(kind, str) else ()
    if "alg" in entry:
        algorithms = tuple(each for each in algorithms if each == entry["alg"])
    operations, kid = entry.get("key_ops", ["verify"]), entry.get("kid")
    if not algorithms or not isinstance(operations, list) or "verify" not in operations:
        return None
    if kid is not None and not isinstance(kid, str):
        return None
    try:
        key = jwt.PyJWK(entry, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        return None
    if kind == "RSA" and getattr(key, "key_size", 0) < _MIN_RSA_BITS:
        return None
    return _Signer(kid, algorithms, key)


def _table(raw: bytes, what: str) -> Mapping[str, Any]:
    try:
        table = orjson.loads(raw)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise BadReplyError(f"{what} is no JSON object")
    return table


def _fetcher(ca_file: Path | None) -> Fetch:
    """Return what reads an address with a connection of its own: it is needed once an hour."""

    async def fetch(url: str) -> bytes:
        session = Session(ca_file=ca_file)
        try:
            reply = await session.request(
                "GET",
                url,
                headers={"Accept": "application/json"},
                timeout=_FETCH_SECONDS,
                max_bytes=MAX_KEYS_BYTES,
            )
        finally:
            await session.close()
        if reply.status != 200:
            raise BadReplyError(f"it answers with status {reply.status}", status=reply.status)
        return reply.body

    return fetch


def _now() -> float:
    return asyncio.get_running_loop().time()
