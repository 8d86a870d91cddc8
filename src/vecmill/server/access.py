"""Who asks, and with which rights."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecmill.core import clock
from vecmill.core.config import Settings
from vecmill.server.door import whose
from vecmill.server.errors import Refusal, unavailable, wait
from vecmill.server.hosts import needs_keys
from vecmill.server.keys import FILE_NAME, Key, KeyStore, Right, given_keys, masked
from vecmill.server.options import Options
from vecmill.server.rates import Rates

if TYPE_CHECKING:
    from vecmill.server.oidc import Oidc

__all__ = ["ANONYMOUS", "Caller", "Gate", "Right"]

MAX_ADDRESSES = 4096
"""Addresses whose wrong keys are counted; of more the one seen longest ago is forgotten."""

_CHALLENGE = ("www-authenticate", 'Bearer realm="vecmill"')
_INVALID_KEY = "invalid_api_key"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        id: For fairness, limits and the log: "key:3f9a", "oidc:SUBJECT hashed", or "anonymous". Never a key.
        rights: What they may.
    """

    id: str
    rights: frozenset[Right]


ANONYMOUS = Caller("anonymous", frozenset(Right))
"""Whoever asks an open server."""

_NOBODY = Caller("anonymous", frozenset({Right.OPEN}))


class Gate:
    """Lets requests in.

    It is closed, so that every route but the open ones needs a key, when the options ask for that, when other
    machines reach the address, when an OIDC issuer is set, or when there is any key at all, expired ones
    included. Once closed it stays so until the process ends.

    Args:
        options: What the operator said.
        settings: Where the keys are, unless the options say it.

    Attributes:
        rates: How much one caller may ask; routes enter it when they have counted tokens.
    """

    def __init__(self, options: Options, settings: Settings) -> None:
        """Read the keys.

        Raises:
            StorageError: The file of keys is there and cannot be read, or is not whole.
            ConfigError: Half an issuer of tokens, or an unsafe one.
        """
        self.rates = Rates(options.limits)
        self._keys = KeyStore(
            options.keys_file or settings.home / FILE_NAME, extra=given_keys(options.key_hashes)
        )
        self._oidc = _issuer(options, settings)
        self._closed = needs_keys(options)
        self._failures = _Failures(options.limits.failed_keys_per_minute)
        self._reading = False

    @property
    def is_closed(self) -> bool:
        """Whether a key is needed."""
        return self._closed or self._keys.has_keys

    async def check(self, headers: Mapping[str, str], right: Right, *, address: str) -> Caller:
        """Return who asks.

        Args:
            headers: The request's, by lower-case name.
            right: What the route needs.
            address: The client's.

        Raises:
            Refusal: 401 no or a wrong key, 403 a key without the right, 429 too many wrong keys.
        """
        if right is Right.OPEN:
            return _NOBODY
        if self._keys.is_due and not self._reading:
            await self._read()
        if not self.is_closed:
            return ANONYMOUS
        given = _given(headers)
        if given is None:
            raise _missing()
        caller = await self._known(given)
        if isinstance(caller, Refusal):
            seconds = self._failures.count(address, asyncio.get_running_loop().time())
            if seconds is not None:
                raise wait("too many wrong API keys from this address; wait, then use a valid one", seconds)
            raise caller
        if right not in caller.rights:
            raise _forbidden(right, caller.rights)
        return caller

    async def _read(self) -> None:
        """Look at the file of keys; one request waits for it, the others go on with what is known."""
        self._reading = True
        try:
            await asyncio.to_thread(self._keys.refresh)
        finally:
            self._reading = False

    async def _known(self, given: str) -> Caller | Refusal:
        """Return whose key or token it is, or the answer to a wrong one."""
        key = self._keys.find(given)
        if key is None and self._oidc is not None and given.count(".") == 2:
            return await _identified(self._oidc, given)
        if key is None:
            return _wrong(given)
        if not key.is_valid(clock.now()):
            return _over(key, given)
        return Caller(f"key:{key.id}", key.rights)


def _issuer(options: Options, settings: Settings) -> Oidc | None:
    """Return what verifies bearer tokens, None where none are believed."""
    if not (options.oidc_issuer or options.oidc_audience or options.oidc_jwks_url):
        return None
    from vecmill.server.oidc import Oidc  # needs packages that servers without an issuer do not

    return Oidc(
        options.oidc_issuer,
        options.oidc_audience,
        jwks_url=options.oidc_jwks_url,
        ca_file=settings.ca_file,
    )


async def _identified(oidc: Oidc, token: str) -> Caller | Refusal:
    from vecmill.server.oidc import IssuerUnreachable, TokenRefused

    try:
        found = await oidc.identify(token)
    except TokenRefused as refused:
        challenge = (_CHALLENGE[0], _CHALLENGE[1] + ', error="invalid_token"')
        message = f"Incorrect bearer token provided: {refused}."
        return Refusal(401, message, code="invalid_token", headers=(challenge,))
    except IssuerUnreachable:
        raise unavailable(
            "the keys of the token issuer cannot be had at the moment, so the token cannot be checked",
            "issuer_unreachable",
            seconds=5.0,
        ) from None
    return Caller(found.id, found.rights)


def _given(headers: Mapping[str, str]) -> str | None:
    """Return the key of a request, None where there is none.

    Raises:
        Refusal: 401, two headers bring different ones.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    other = headers.get("api-key", "").strip()
    if bearer and other and bearer != other:
        raise _unauthorized("Authorization and api-key bring different API keys; send one of them")
    return bearer or other or None


class _Failures:
    """Wrong keys by address: so many at once, then one each time a share of the minute has passed.

    Args:
        per_minute: How many an address may send.
    """

    def __init__(self, per_minute: int) -> None:
        self._most = max(per_minute, 1)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # network -> (left, when)

    def count(self, address: str, now: float) -> float | None:
        """Count a wrong key. Return None, or the seconds to wait where there were too many."""
        network = whose(address)
        left, when = self._left.pop(network, (float(self._most), now))
        left = min(left + (now - when) * self._most / 60, float(self._most))
        if left < 1:
            self._left[network] = (left, now)
            return (1 - left) * 60 / self._most
        self._left[network] = (left - 1, now)
        if len(self._left) > MAX_ADDRESSES:
            self._left.popitem(last=False)
        return None


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, message, code=_INVALID_KEY, headers=(_CHALLENGE,))


def _missing() -> Refusal:
    return _unauthorized(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using "
        "Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or in an api-key header."
    )


def _wrong(given: str) -> Refusal:
    return _unauthorized(
        f"Incorrect API key provided: {masked(given)}. Ask who runs this server for a key; it is made with "
        "`vecmill key add NAME`."
    )


def _over(key: Key, given: str) -> Refusal:
    what = "is switched off" if key.disabled else "has expired"
    return _unauthorized(f"Incorrect API key provided: {masked(given)}. This key {what}; ask for a new one.")


def _forbidden(right: Right, has: frozenset[Right]) -> Refusal:
    rights = ", ".join(each.value for each in Right if each in has) or "none"
    message = f"This API key lacks the right '{right.value}', which this request needs; it has: {rights}."
    return Refusal(403, message, type="permission_error", code="insufficient_permissions")
