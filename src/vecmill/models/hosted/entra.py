"""Microsoft Entra ID: a token instead of a key, fetched when it is needed and again before it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from vecmill.core.errors import AuthenticationError, Error
from vecmill.core.extras import installed, require
from vecmill.core.secrets import Secret

_log = logging.getLogger(__name__)

SCOPE = "https://cognitiveservices.azure.com/.default"
"""What a token must be good for. Source: Azure OpenAI data plane reference, Authentication."""

_SCOPES = {
    ".azure.us": "https://cognitiveservices.azure.us/.default",
    ".azure.cn": "https://cognitiveservices.azure.cn/.default",
}

EARLY = 300.0
"""Seconds before its end at which a token is replaced."""

AGAIN = 30.0
"""Seconds after a renewal that failed before the next one, as long as the token holds."""


class Token(Protocol):
    """What a credential gives: `azure.core.credentials.AccessToken`."""

    @property
    def token(self) -> str:
        """The token itself."""

    @property
    def expires_on(self) -> int:
        """When it ends, seconds since the epoch."""


class Credential(Protocol):
    """What gives tokens; blocks. `azure.identity.DefaultAzureCredential` and its like."""

    def get_token(self, *scopes: str) -> Token:
        """Fetch a token, or return one of its own cache."""


def available() -> bool:
    """Say whether azure-identity is installed."""
    return installed("azure.identity")


def scope_of(host: str) -> str:
    """Return the scope of an Azure host; the clouds of governments and of China have their own."""
    return next((scope for ending, scope in _SCOPES.items() if host.endswith(ending)), SCOPE)


def default_credential() -> Credential:
    """Return the credential that tries environment, managed identity, `az login` and so on.

    Raises:
        MissingExtraError: azure-identity is not installed.
    """
    identity: Any = require("azure.identity", extra="azure")
    credential: Credential = identity.DefaultAzureCredential()
    return credential


class EntraLogin:
    """Gives `Authorization: Bearer` with a token that still holds for a while.

    Many requests at once fetch one token, in a thread of its own, so the event loop never waits. A renewal
    that fails is tried again after half a minute while the token still holds: each try may take seconds.

    Args:
        make: Makes the credential, on first use: that imports a large package.
        scope: What tokens are for.
        extra: Other secret headers, by name.
        now: Seconds since the epoch.
    """

    origin = "the login by Microsoft Entra ID, its role"

    def __init__(
        self,
        make: Callable[[], Credential] = default_credential,
        *,
        scope: str = SCOPE,
        extra: Mapping[str, Secret] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._make = make
        self._scope = scope
        self._extra = dict(extra or {})
        self._now = now
        self._lock = threading.Lock()
        self._credential: Credential | None = None
        self._token: tuple[Secret, float] | None = None
        self._fetching: Future[Secret] | None = None
        self._patient_until = 0.0

    async def __call__(self) -> Mapping[str, str]:
        """Return the headers; waits only while there is no token that holds.

        Raises:
            AuthenticationError: There is no token to be had; the message says what to do.
        """
        secret = await self._current()
        extra = {name: value.reveal() for name, value in self._extra.items()}
        return {"Authorization": f"Bearer {secret.reveal()}", **extra}

    async def _current(self) -> Secret:
        with self._lock:
            if self._token is not None:
                now, end = self._now(), self._token[1]
                if now < end - EARLY or (now < end and now < self._patient_until):
                    return self._token[0]
            if self._fetching is None:
                self._fetching = Future()
                threading.Thread(
                    target=self._fetch, args=(self._fetching,), name="vecmill-entra", daemon=True
                ).start()
            fetching = self._fetching
        # Shielded: a request that is given up must not take the token from those that wait beside it.
        return await asyncio.shield(asyncio.wrap_future(fetching))

    def _fetch(self, fetching: Future[Secret]) -> None:
        try:
            if self._credential is None:
                self._credential = self._make()
            found = self._credential.get_token(self._scope)
            token = (Secret(found.token, "Microsoft Entra ID"), float(found.expires_on))
        except BaseException as error:
            self._settle(fetching, None, error)
        else:
            self._settle(fetching, token, None)

    def _settle(
        self, fetching: Future[Secret], token: tuple[Secret, float] | None, error: BaseException | None
    ) -> None:
        with self._lock:
            self._fetching = None
            if token is not None:
                self._token = token
            kept = self._token if self._token is not None and self._now() < self._token[1] else None
        if kept is not None:
            if error is not None:
                self._patient_until = self._now() + AGAIN
                _log.warning("the Entra token could not be renewed yet: %s", type(error).__name__)
            fetching.set_result(kept[0])
        else:
            fetching.set_exception(_for_people(error))


def _for_people(error: BaseException | None) -> BaseException:
    """Turn what a credential raises into an error for people; ours are passed on as they are."""
    if isinstance(error, Error):
        return error
    what = "it had ended already" if error is None else type(error).__name__
    wrapped = AuthenticationError(
        f"no token of Microsoft Entra ID could be had ({what}): log in with `az login`, or set "
        f"AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; a role such as Cognitive Services OpenAI "
        f"User is needed; or set AZURE_OPENAI_API_KEY",
        provider="azure",
        code="entra_login",
    )
    wrapped.__cause__ = error
    return wrapped
