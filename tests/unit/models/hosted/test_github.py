"""GitHub Models: its addresses, its token, its limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, InputError, MissingKeyError
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.github import connect

TOKEN = "github_pat_planted0123456789"  # noqa: S105 - planted
SMALL = "openai/text-embedding-3-small"


def opened(name: str = SMALL, **options: Any) -> Connection:
    return connect(name, settings=load_settings(), **options)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    return TOKEN


def test_a_known_model_has_its_address_limits_and_no_batch_api(token: str) -> None:
    made = opened()
    assert made.embeddings_url == "https://models.github.ai/inference/embeddings"
    assert (made.files_url, made.batches_url) == (None, None)
    assert (made.name, made.model, made.sends_model, made.vouched) == (f"github:{SMALL}", SMALL, True, True)
    assert (made.facts.catalogue_name, made.facts.dimensions) == ("text-embedding-3-small", 1536)
    assert (made.facts.max_request_tokens, made.requests_per_minute, made.max_concurrency) == (64_000, 15, 5)
    assert made.facts.usd_per_million_tokens is None

    async def login() -> dict[str, str]:
        return dict(await made.login())

    assert asyncio.run(login()) == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(made)


def test_an_organization_has_an_address_of_its_own(token: str, own_file: Path) -> None:
    own_file.write_text(
        f'[profiles.work]\nprovider = "github"\nmodel = "{SMALL}"\norganization = "mill-co"\n'
    )
    made = opened("work")
    assert made.embeddings_url == "https://models.github.ai/orgs/mill-co/inference/embeddings"
    assert made.account != opened().account
    own_file.write_text(own_file.read_text().replace("mill-co", "a/../b"))
    with pytest.raises(ConfigError, match="no name of an organization"):
        opened("work")


def test_a_missing_token_is_named() -> None:
    with pytest.raises(
        MissingKeyError, match="needs a token with the permission models: read: set GITHUB_TOKEN"
    ):
        opened()


def test_a_model_without_publisher_is_refused_with_the_right_name(token: str) -> None:
    with pytest.raises(InputError, match=r"PUBLISHER/NAME: github:openai/text-embedding-3-small, not"):
        opened("text-embedding-3-small")


def test_a_model_nobody_knows_is_not_vouched_for(token: str) -> None:
    made = opened("cohere/embed-v4")
    assert (made.vouched, made.facts.dimensions, made.facts.exact) == (False, None, False)
    assert not opened(base_url="http://localhost:1/inference").vouched


def test_a_token_may_be_missing_until_a_request_is_made() -> None:
    made = opened(needs_key=False)
    with pytest.raises(MissingKeyError, match="set GITHUB_TOKEN"):
        asyncio.run(_login(made))


async def _login(made: Connection) -> None:
    await made.login()


def test_a_profile_s_model_has_its_own_name_and_a_name_nearly_right_a_hint(
    token: str, own_file: Path
) -> None:
    own_file.write_text(f'[profiles.hub]\nprovider = "github"\nmodel = "{SMALL}"\n')
    assert opened("hub").name == f"github:{SMALL}"
    assert f"did you mean github:{SMALL}" in opened("openai/text-embedding-3-smal").unknown_hint
