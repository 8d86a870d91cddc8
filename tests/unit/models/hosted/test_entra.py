"""Tokens are fetched once for many requests, in good time again, and a failure says what to do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from vecmill.core.errors import AuthenticationError
from vecmill.core.secrets import Secret
from vecmill.models.hosted.entra import (
    AGAIN,
    EARLY,
    SCOPE,
    EntraLogin,
    available,
    default_credential,
    scope_of,
)


@dataclass
class Made:
    token: str
    expires_on: int


class Credential:
    """Counts what is asked of it; a token holds for an hour of the fake clock."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.clock = 1_000.0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def now(self) -> float:
        return self.clock

    def get_token(self, *scopes: str) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        self.asked.append(scopes)
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return Made(f"token-{len(self.asked)}", int(self.clock + 3600))


@pytest.fixture
def credential() -> Credential:
    return Credential()


@pytest.fixture
def login(credential: Credential) -> EntraLogin:
    return EntraLogin(lambda: credential, now=credential.now)


def ask(login: EntraLogin) -> Mapping[str, str]:
    async def once() -> Mapping[str, str]:
        return await login()

    return asyncio.run(once())


def test_a_token_is_kept_until_five_minutes_before_its_end(login: EntraLogin, credential: Credential) -> None:
    assert ask(login) == {"Authorization": "Bearer token-1"}
    credential.clock += 3600 - EARLY - 1
    assert ask(login) == {"Authorization": "Bearer token-1"}  # also from another event loop
    credential.clock += 1
    assert ask(login) == {"Authorization": "Bearer token-2"}
    assert credential.asked == [(SCOPE,), (SCOPE,)]


def test_many_requests_at_once_fetch_one_token(login: EntraLogin, credential: Credential) -> None:
    credential.gate.clear()

    async def many() -> list[Mapping[str, str]]:
        waiting = [asyncio.ensure_future(login()) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # one that is given up does not take the token from the others
        await asyncio.sleep(0)
        credential.gate.set()
        return await asyncio.gather(*waiting[1:])

    assert asyncio.run(many()) == [{"Authorization": "Bearer token-1"}] * 49
    assert len(credential.asked) == 1


def test_a_token_that_cannot_be_renewed_is_used_until_it_ends(
    login: EntraLogin, credential: Credential, caplog: pytest.LogCaptureFixture
) -> None:
    ask(login)
    credential.error = RuntimeError("no network")
    credential.clock += 3600 - EARLY
    assert ask(login) == {"Authorization": "Bearer token-1"}
    assert "could not be renewed yet: RuntimeError" in caplog.text
    credential.clock += EARLY
    with pytest.raises(AuthenticationError, match=r"\(RuntimeError\): log in with `az login`"):
        ask(login)
    credential.error = None
    assert ask(login) == {"Authorization": "Bearer token-4"}


def test_a_renewal_that_fails_is_not_tried_for_each_request(
    login: EntraLogin, credential: Credential
) -> None:
    """A try may take ten seconds, and each request would wait for one while a good token is there."""
    ask(login)
    credential.error = RuntimeError("no network")
    credential.clock += 3600 - EARLY
    for _ in range(20):
        assert ask(login) == {"Authorization": "Bearer token-1"}
    assert len(credential.asked) == 2
    credential.clock += AGAIN
    credential.error = None
    assert ask(login) == {"Authorization": "Bearer token-3"}


def test_a_token_that_has_ended_already_is_not_used(login: EntraLogin, credential: Credential) -> None:
    credential.get_token = lambda *scopes: Made("old", 1)  # type: ignore[method-assign]  # a fake
    with pytest.raises(AuthenticationError, match="it had ended already"):
        ask(login)


def test_other_secret_headers_go_along(credential: Credential) -> None:
    login = EntraLogin(lambda: credential, now=credential.now, extra={"X-Pass": Secret("hush", "PASS")})
    assert ask(login) == {"Authorization": "Bearer token-1", "X-Pass": "hush"}
    assert "hush" not in repr(login)
    assert "token-1" not in repr(vars(login))


def test_clouds_of_governments_have_their_own_scope() -> None:
    assert scope_of("mill.openai.azure.com") == SCOPE
    assert scope_of("mill.openai.azure.us") == "https://cognitiveservices.azure.us/.default"
    assert scope_of("mill.openai.azure.cn") == "https://cognitiveservices.azure.cn/.default"


def test_the_default_credential_is_azure_identity_s() -> None:
    pytest.importorskip("azure.identity")
    assert available()
    credential: Any = default_credential()
    assert type(credential).__name__ == "DefaultAzureCredential"
    credential.close()
