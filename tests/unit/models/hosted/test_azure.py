"""Both of Azure's forms, however the endpoint was written; key or Entra ID; what is missing is named."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, MissingExtraError, MissingKeyError
from vecmill.core.space import space_id
from vecmill.models import resolve
from vecmill.models.base import ModelInfo
from vecmill.models.hosted import azure, entra
from vecmill.models.hosted.azure import connect
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.endpoints import Sources

KEY = "azure-planted-0123456789abcdef"
HOME = "https://mill.openai.azure.com"
CLASSIC = f"{HOME}/openai/deployments/rev/embeddings?api-version=2024-10-21"
V1 = f"{HOME}/openai/v1/embeddings"


def opened(name: str = "rev", **options: Any) -> Connection:
    return connect(name, settings=load_settings(), **options)


def headers(connection: Connection) -> dict[str, str]:
    async def login() -> dict[str, str]:
        return dict(await connection.login())

    return asyncio.run(login())


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, key: str) -> str:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"{HOME}/")
    return HOME


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("mill", CLASSIC),  # the name of a custom service
        (HOME, CLASSIC),
        (f"{HOME}/", CLASSIC),
        (f"{HOME}/openai", CLASSIC),
        (f"{HOME}/openai/", CLASSIC),
        (f"{HOME}/openai/deployments/rev", CLASSIC),
        (f"{HOME}/openai/deployments/rev/embeddings?api-version=2024-10-21", CLASSIC),
        (f"{HOME}?api-version=2024-02-01", CLASSIC.replace("2024-10-21", "2024-02-01")),
        (
            f"{HOME}/?team=a&api-version=2024-02-01",
            CLASSIC.replace("?api-version=2024-10-21", "?team=a&api-version=2024-02-01"),
        ),
        (f"{HOME}/openai/v1", V1),
        (f"{HOME}/openai/v1/", V1),
        (f"{HOME}/openai/v1/embeddings", V1),
        (f"{HOME}/openai/v1?api-version=preview", f"{V1}?api-version=preview"),
        ("https://gateway.example/team/v1", "https://gateway.example/team/v1/embeddings"),
        ("https://gateway.example/team", CLASSIC.replace(HOME, "https://gateway.example/team")),
        ("http://localhost:7071", CLASSIC.replace(HOME, "http://localhost:7071")),
    ],
)
def test_an_endpoint_may_be_written_as_people_have_it(given: str, url: str, key: str) -> None:
    assert opened(base_url=given).embeddings_url == url


def test_the_classic_form_names_the_deployment_in_the_path_and_a_version_in_the_query(endpoint: str) -> None:
    made = opened("rev views/2")
    assert (
        made.embeddings_url == f"{HOME}/openai/deployments/rev%20views%2F2/embeddings?api-version=2024-10-21"
    )
    assert made.files_url == f"{HOME}/openai/files?api-version=2024-10-21"
    assert made.batches_url == f"{HOME}/openai/batches?api-version=2024-10-21"
    assert made.batch_path == "/embeddings"
    assert not made.sends_model
    assert made.model == "rev views/2"
    assert headers(made) == {"api-key": KEY}


def test_the_v1_form_names_the_deployment_in_the_body(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "v1")
    made = opened()
    assert made.embeddings_url == V1
    assert made.files_url == f"{HOME}/openai/v1/files"
    assert made.batches_url == f"{HOME}/openai/v1/batches"
    assert made.batch_path == "/v1/embeddings"
    assert made.sends_model
    assert headers(made) == {"api-key": KEY}


def test_a_version_is_taken_from_the_environment_and_must_be_one(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2023-03-15-preview")
    assert opened().embeddings_url.endswith("?api-version=2023-03-15-preview")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21&x=y")
    with pytest.raises(ConfigError, match=r"OPENAI_API_VERSION = .* is no version"):
        opened()


def test_an_endpoint_that_names_another_deployment_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="is deployment 'rev', but the endpoint names 'other'"):
        opened(base_url=f"{HOME}/openai/deployments/other/embeddings")


def test_a_key_in_the_query_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="leave 'subscription-key' out") as caught:
        opened(base_url=f"{HOME}?subscription-key=hush")
    assert "hush" not in str(caught.value)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, own_file: Path) -> None:
    with pytest.raises(ConfigError, match="azure:rev needs an endpoint: set AZURE_OPENAI_ENDPOINT to"):
        opened()
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", HOME)
    monkeypatch.setattr(entra, "available", lambda: False)
    with pytest.raises(MissingKeyError, match=r"azure:rev needs a key: set AZURE_OPENAI_API_KEY, .*Entra"):
        opened()
    own_file.write_text('[profiles.work]\nprovider = "azure"\nauth = "entra"\n')
    with pytest.raises(ConfigError, match='deployment = "NAME", or set AZURE_OPENAI_EMBEDDING_DEPLOYMENT'):
        opened("work")
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "rev")
    with pytest.raises(MissingExtraError, match=r"pip install 'vecmill\[azure\]'"):
        opened("work")


def test_an_openai_key_is_not_sent_to_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-azure-0123456789")
    monkeypatch.setattr(entra, "available", lambda: False)
    with pytest.raises(MissingKeyError):
        opened(base_url=HOME)


@pytest.mark.parametrize("kind", ["azure", "azure_ad", "Azure"])
def test_older_programs_variables_mean_azure(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("OPENAI_API_TYPE", kind)
    monkeypatch.setenv("OPENAI_API_BASE", HOME)
    monkeypatch.setenv("OPENAI_API_VERSION", "2023-05-15")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = opened("text-embedding-ada-002", credential=FakeCredential)
    assert made.embeddings_url.endswith("/text-embedding-ada-002/embeddings?api-version=2023-05-15")
    assert headers(made) == ({"Authorization": "Bearer t1"} if kind == "azure_ad" else {"api-key": KEY})
    for spec in ("openai:text-embedding-ada-002", "text-embedding-ada-002"):
        model = resolve.open_model(spec)
        asyncio.run(model.close())
        assert model.info.name == "azure:text-embedding-ada-002"


class FakeCredential:
    def get_token(self, *scopes: str) -> entra.Token:
        assert scopes == (entra.SCOPE,)

        class Made:
            token = "t1"  # noqa: S105 - a fake
            expires_on = 2**40

        return Made()


def test_without_a_key_entra_id_is_asked_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made = opened(base_url=HOME, credential=FakeCredential)
    assert headers(made) == {"Authorization": "Bearer t1"}
    assert made.account == "entra"
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "given-token-0123456789")
    assert headers(opened(base_url=HOME)) == {"Authorization": "Bearer given-token-0123456789"}


def test_a_given_token_is_used_where_older_programs_say_entra_id(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("OPENAI_API_TYPE", "azure_ad")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "given-token-0123456789")
    assert headers(opened(credential=FakeCredential)) == {"Authorization": "Bearer given-token-0123456789"}
    assert azure.key_status(Sources.of("azure", "rev", load_settings())) == "AZURE_OPENAI_AD_TOKEN: set"


def test_the_environment_s_way_to_log_in_does_not_overrule_a_named_profile_s_key(
    monkeypatch: pytest.MonkeyPatch, own_file: Path, endpoint: str
) -> None:
    own_file.write_text('[profiles.work]\nprovider = "azure"\ndeployment = "rev"\nkey = "env:WORK_KEY"\n')
    monkeypatch.setenv("WORK_KEY", "work-key-0123456789")
    monkeypatch.setenv("OPENAI_API_TYPE", "azure_ad")
    assert headers(opened("work", credential=FakeCredential)) == {"api-key": "work-key-0123456789"}
    assert azure.key_status(Sources.of("azure", "work", load_settings())) == "WORK_KEY: set"


@pytest.mark.parametrize("odd", ["9" * 5_000, "٢٥٦", "1e3", "256.0", "0", "-1"])
def test_dimensions_that_are_no_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, odd: str
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DIMENSIONS", odd)
    with pytest.raises(ConfigError, match="AZURE_OPENAI_EMBEDDING_DIMENSIONS"):
        azure.load("rev", settings=load_settings())


def test_a_profile_says_how_to_log_in(own_file: Path, endpoint: str) -> None:
    own_file.write_text(
        '[profiles.work]\nprovider = "azure"\ndeployment = "rev"\nauth = "entra"\n'
        '[profiles.bykey]\nprovider = "azure"\ndeployment = "rev"\nauth = "key"\nkey = "env:NOWHERE"\n'
    )
    assert headers(opened("work", credential=FakeCredential)) == {"Authorization": "Bearer t1"}
    with pytest.raises(MissingKeyError, match="set the environment variable NOWHERE"):
        opened("bykey", credential=FakeCredential)


def test_a_profile_names_deployment_endpoint_version_and_model(own_file: Path, key: str) -> None:
    own_file.write_text(
        '[profiles.reviews]\nprovider = "azure"\nbase_url = "mill"\ndeployment = "rev"\n'
        'api_version = "v1"\nmodel = "text-embedding-3-small"\nusd_per_million_tokens = 0.02\n'
    )
    made = opened("reviews")
    assert (made.name, made.model, made.embeddings_url) == ("azure:reviews", "rev", V1)
    assert (made.facts.catalogue_name, made.facts.dimensions) == ("text-embedding-3-small", 1536)
    assert made.facts.usd_per_million_tokens == 0.02
    assert made.vouched


SERVES_SMALL = (
    '[profiles.reviews]\nprovider = "azure"\nbase_url = "{}"\ndeployment = "rev"\n'
    'model = "text-embedding-3-small"\n'
)


def known_at(url: str, own_file: Path) -> ModelInfo:
    own_file.write_text(SERVES_SMALL.format(url))
    model = azure.load("reviews", settings=load_settings())
    asyncio.run(model.close())
    return model.info


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8099", "https://gateway.example", "https://mill.azure-api.net/team"]
)
def test_a_profile_s_model_at_a_host_that_is_not_azure_s_gives_facts_but_no_shared_space(
    url: str, own_file: Path, key: str
) -> None:
    info = known_at(url, own_file)
    assert (info.dimensions, info.max_tokens) == (1536, 8192)
    shared = known_at(HOME, own_file).space
    assert shared == space_id("hosted", "text-embedding-3-small")
    assert info.space != shared
    other = SERVES_SMALL.replace("3-small", "ada-002").format(url)
    own_file.write_text(other)
    ada = azure.load("reviews", settings=load_settings())
    asyncio.run(ada.close())
    assert ada.info.space not in (info.space, shared)  # what it is said to serve counts too


def test_of_a_deployment_nothing_is_known_before_it_is_asked_and_no_price_is_guessed(endpoint: str) -> None:
    facts = opened("text-embedding-3-small").facts
    assert (facts.catalogue_name, facts.dimensions, facts.mrl, facts.exact) == (None, None, None, False)
    assert facts.usd_per_million_tokens is None


def test_a_project_s_file_does_not_say_where_a_token_goes_either(here: Path) -> None:
    (here / "vecmill.toml").write_text(
        '[profiles.work]\nprovider = "azure"\ndeployment = "rev"\nbase_url = "evil"\nauth = "entra"\n'
    )
    with pytest.raises(ConfigError, match=r"base_url of profile 'work'.*vecmill config trust"):
        opened("work", credential=FakeCredential)


def test_azure_alone_is_the_deployment_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    with pytest.raises(ConfigError, match="say azure:DEPLOYMENT, or set AZURE_OPENAI_EMBEDDING_DEPLOYMENT"):
        azure.default_deployment(load_settings())
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "rev")
    assert azure.default_deployment(load_settings()) == "rev"
    own_file.write_text('[profiles.azure]\ndeployment = "mine"\n')
    assert azure.default_deployment(load_settings()) == "azure"


def test_dimensions_of_the_environment_are_those_of_its_deployment(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    own_file.write_text(
        '[profiles.known]\nprovider = "azure"\ndeployment = "rev"\nmodel = "text-embedding-3-small"\n'
    )
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "rev")
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DIMENSIONS", "256")

    def dimensions(**options: int) -> int:
        model = azure.load("known", settings=load_settings(), **options)  # type: ignore[arg-type]  # dimensions
        asyncio.run(model.close())
        return model.info.dimensions

    assert dimensions() == 256
    assert dimensions(dimensions=512) == 512
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "another")
    assert dimensions() == 1536
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "rev")
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DIMENSIONS", "many")
    with pytest.raises(ConfigError, match="AZURE_OPENAI_EMBEDDING_DIMENSIONS = 'many' is not a whole number"):
        dimensions()


def test_a_deployment_nobody_set_up_may_be_a_profile_mistyped(own_file: Path, key: str) -> None:
    own_file.write_text('[profiles.reviews]\nprovider = "azure"\nbase_url = "mill"\ndeployment = "rev"\n')
    with pytest.raises(ConfigError, match=r"azure:revews needs an endpoint.*did you mean azure:reviews\?"):
        opened("revews")
    assert "did you mean azure:reviews?" in opened("revews", base_url=HOME).unknown_hint
    assert opened("reviews").unknown_hint == ""


def test_a_key_may_be_missing_until_a_request_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entra, "available", lambda: False)
    with pytest.raises(MissingKeyError):
        opened(base_url=HOME)
    made = opened(base_url=HOME, needs_key=False)
    assert made.embeddings_url == CLASSIC
    with pytest.raises(MissingKeyError, match="set AZURE_OPENAI_API_KEY"):
        headers(made)


def test_a_project_s_keyless_server_on_this_machine_needs_no_trust(here: Path) -> None:
    text = '[profiles.sim]\nprovider = "azure"\ndeployment = "rev"\nauth = "none"\nbase_url = "{}"\n'
    (here / "vecmill.toml").write_text(text.format("http://localhost:8099"))
    assert headers(opened("sim")) == {}
    (here / "vecmill.toml").write_text(text.format("https://evil.example"))
    with pytest.raises(ConfigError, match="vecmill config trust"):
        opened("sim")
