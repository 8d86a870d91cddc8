"""A name means one model: listed names win over folders, paths say that they are paths."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from vecmill.core import registry
from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, InputError, MissingKeyError, UnknownNameError
from vecmill.core.types import InputType
from vecmill.models.base import ModelInfo
from vecmill.models.resolve import (
    canonical,
    describe_model,
    known_models,
    open_model,
    register_model,
    shadowed_folder,
)
from vecmill.testing.simulator import Simulator

BUILT_IN = "local:all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_listed_name_wins_over_a_folder_of_the_same_name(here: Path) -> None:
    settings = load_settings()
    register_model("mine", "minilm")
    for name in ("minilm", "all-MiniLM-L6-v2", "mine"):
        (here / name).mkdir()
        assert canonical(name, settings) == BUILT_IN
        assert canonical(f"./{name}", settings) == f"local:{here / name}"
        assert shadowed_folder(name) == Path(name)
        assert shadowed_folder(f"./{name}") is None


def test_a_folder_of_another_name_needs_no_mark(here: Path) -> None:
    (here / "models" / "x").mkdir(parents=True)
    for spec in ("models/x", "./models/x", "local:models/x", str(here / "models" / "x")):
        assert canonical(spec, load_settings()) == f"local:{here}/models/x"
        assert shadowed_folder(spec) is None
    assert shadowed_folder("nowhere") is None


def test_an_unknown_name_or_folder_is_said_with_close_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'minilmm'; did you mean 'minilm'"):
        canonical("minilmm", load_settings())
    with pytest.raises(UnknownNameError, match="unknown local model or folder 'nowhere'"):
        canonical("local:nowhere", load_settings())
    with pytest.raises(UnknownNameError, match="unknown model 'nobody:x'"):
        canonical("nobody:x", load_settings())


def test_names_that_stand_for_each_other_end_in_an_error(own_home: Path) -> None:
    (own_home / "models.toml").write_text('[models]\na = "b"\nb = "a"\n')
    with pytest.raises(UnknownNameError, match="unknown model 'a'"):
        canonical("a", load_settings())


@pytest.mark.parametrize("name", ["", "a/b", "x:y", ".x", "~x", "minilm", "all-MiniLM-L6-v2"])
def test_a_name_that_means_something_else_is_not_registered(name: str) -> None:
    with pytest.raises(InputError):
        register_model(name, "minilm")


def test_a_registered_name_is_listed_and_may_be_replaced(here: Path) -> None:
    (here / "m").mkdir()
    register_model("mine", "minilm")
    register_model("mine", "./m")
    assert [known.spec for known in known_models() if known.name == "mine"] == [f"local:{here}/m"]


# Hosted models.

KEY = "sk-planted-0123456789abcdefghij"


def info_of(spec: str, **options: Any) -> ModelInfo:
    """Open a model, close it again, and return what it says about itself."""
    opened = open_model(spec, **options)
    asyncio.run(opened.close())
    return opened.info


@pytest.fixture
def file(own_home: Path) -> Path:
    """The user's own vecmill.toml."""
    return own_home / "vecmill.toml"


@pytest.fixture(autouse=True)
def no_vendors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "AZURE_", "GITHUB_TOKEN"))]:
        monkeypatch.delenv(name)


def test_a_name_that_two_providers_run_is_refused_naming_both() -> None:
    with pytest.raises(UnknownNameError, match=r"say openai:text-\S+ or github:openai/text-\S+"):
        canonical("text-embedding-3-small", load_settings())
    assert canonical("text-embedding-ada-002", load_settings()) == "openai:text-embedding-ada-002"


@pytest.mark.parametrize(
    "spec",
    ["openai:text-embedding-3-small", "openai:anything", "azure:rev", "github:openai/text-embedding-3-large"],
)
def test_a_name_that_is_spelt_out_stays_as_it_is(spec: str) -> None:
    assert canonical(spec, load_settings()) == spec
    register_model("mine", spec)
    assert canonical("mine", load_settings()) == spec


def test_a_profile_is_a_model_s_name(file: Path) -> None:
    file.write_text('[profiles.reviews]\nprovider = "azure"\n[profiles.local-llm]\nmodel = "nomic"\n')
    settings = load_settings()
    assert canonical("reviews", settings) == "azure:reviews"
    assert canonical("local-llm", settings) == "openai:local-llm"
    with pytest.raises(UnknownNameError, match="the profile 'reviews' is of azure; say reviews"):
        canonical("openai:reviews", settings)
    with pytest.raises(InputError, match="the name of a profile"):
        register_model("reviews", "minilm")
    with pytest.raises(UnknownNameError, match="did you mean 'reviews'"):
        canonical("review", settings)


def test_azure_alone_is_the_environment_s_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="AZURE_OPENAI_EMBEDDING_DEPLOYMENT"):
        canonical("azure", load_settings())
    monkeypatch.setenv("AZURE_OPENAI_EMBEDDING_DEPLOYMENT", "rev")
    assert canonical("azure", load_settings()) == "azure:rev"
    with pytest.raises(InputError, match="the name of a provider"):
        register_model("azure", "minilm")


def test_an_alias_stands_for_a_foreign_name_but_never_for_a_local_model(file: Path) -> None:
    file.write_text(
        '[aliases]\n"text-embedding-ada-002" = "azure:rev"\n"text-embedding-3-small" = "two"\ntwo = "one"\n'
        'one = "minilm"\nminilm = "openai:x"\n"openai:text-embedding-3-large" = "minilm"\nround = "round"\n'
    )
    settings = load_settings()
    assert canonical("text-embedding-ada-002", settings) == "azure:rev"
    assert canonical("text-embedding-3-small", settings) == BUILT_IN
    assert canonical("minilm", settings) == BUILT_IN
    assert canonical("openai:text-embedding-3-large", settings) == "openai:text-embedding-3-large"
    with pytest.raises(UnknownNameError, match="unknown model 'round'"):
        canonical("round", settings)


def test_a_registered_name_comes_before_a_profile_of_a_project(here: Path) -> None:
    register_model("mine", "minilm")
    (here / "vecmill.toml").write_text('[profiles.mine]\nmodel = "x"\n[aliases]\nmine = "openai:x"\n')
    assert canonical("mine", load_settings()) == BUILT_IN


def test_a_hosted_name_wins_over_a_folder_of_the_same_name(here: Path, file: Path) -> None:
    file.write_text('[profiles.reviews]\nprovider = "azure"\n')
    for name in ("reviews", "text-embedding-3-small", "text-embedding-ada-002", "azure"):
        (here / name).mkdir()
        assert shadowed_folder(name) == Path(name)
        assert canonical(f"./{name}", load_settings()) == f"local:{here / name}"


def test_a_key_in_the_environment_never_changes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = load_settings()
    assert canonical(settings.model, settings) == BUILT_IN


def test_a_hosted_model_opens_without_being_asked_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    info = info_of("openai:text-embedding-3-small", dimensions=256)
    assert (info.hosted, info.dimensions, info.reply_dimensions) == (True, 256, 1536)
    info = info_of("openai:text-embedding-3-small", dimensions=256, cached=False)
    assert (info.dimensions, info.reply_dimensions) == (256, None)
    here = info_of("openai:text-embedding-3-small", base_url="http://localhost:1/v1", max_tokens=100)
    assert (here.max_tokens, here.device) == (100, "localhost:1")
    assert here.space != info.space


@pytest.mark.parametrize("given", [{"device": "CPU"}, {"precision": "int8"}, {"threads": 2}])
def test_what_means_nothing_for_a_hosted_model_is_refused(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=f"is a hosted model; leave out {next(iter(given))}"):
        open_model("openai:text-embedding-3-small", **given)


@pytest.mark.parametrize("given", [{"base_url": "http://localhost:1/v1"}, {"user": "me"}])
def test_what_means_nothing_for_a_local_model_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"is a local model; leave out {next(iter(given))}"):
        open_model("minilm", **given)


def test_a_local_model_has_the_dimensions_it_has() -> None:
    assert info_of("minilm", dimensions=384).dimensions == 384
    with pytest.raises(InputError, match="384 dimensions, not 128: it cannot be shortened"):
        open_model("minilm", dimensions=128)


def test_listed_models_say_price_and_key_and_never_show_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        '[profiles.priced]\nmodel = "text-embedding-3-small"\nusd_per_million_tokens = 0.5\n'
        'key = "keyring:openai/me"\n[profiles.rev]\nprovider = "azure"\nmodel = "text-embedding-3-small"\n'
        'key = "file:/nowhere"\n[aliases]\nfar = "azure:rev"\n'
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    models = {known.spec if known.hosted else known.name: known for known in known_models()}
    small = models["openai:text-embedding-3-small"]
    assert (small.usd_per_million_tokens, small.priced, small.key) == (0.02, "2026-05", "OPENAI_API_KEY: set")
    assert models["github:openai/text-embedding-3-small"].key == "GITHUB_TOKEN: missing"
    assert models["github:openai/text-embedding-3-small"].usd_per_million_tokens is None
    priced = models["openai:priced"]
    assert (priced.usd_per_million_tokens, priced.priced, priced.key) == (
        0.5,
        "",
        "keyring:openai/me: not looked up",
    )
    rev = models["azure:rev"]
    assert (rev.dimensions, rev.usd_per_million_tokens, rev.key) == (1536, None, "file:/nowhere: missing")
    assert (rev.name, rev.origin) == ("rev", str(file))
    assert (models["far"].spec, models["far"].origin) == ("azure:rev", "alias")
    assert KEY not in repr(models)


def test_a_hosted_model_is_described_without_a_key(file: Path) -> None:
    known = describe_model("openai:text-embedding-3-large")
    assert (known.dimensions, known.mrl, known.key) == (3072, True, "OPENAI_API_KEY: missing")
    unknown = describe_model("openai:nomic")
    assert (unknown.dimensions, unknown.mrl, unknown.usd_per_million_tokens) == (None, None, None)
    with pytest.raises(InputError, match="is a local model"):
        describe_model("minilm")


def test_every_provider_of_the_table_loads() -> None:
    for name in registry.names("providers"):
        assert callable(registry.load("providers", name))


def test_the_vendors_pages_end_at_a_provider_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> list[tuple[str, int, str]]:
        async with Simulator() as provider:
            for variable in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "GITHUB_TOKEN"):
                monkeypatch.setenv(variable, provider.key)
            doors = {
                "openai:text-embedding-3-small": provider.url,
                "azure:text-embedding-3-small": provider.azure_url,
                "azure:text-embedding-3-large": f"{provider.azure_url}/openai/v1",
                "github:openai/text-embedding-3-small": provider.github_url,
            }
            replies = []
            for spec, url in doors.items():
                opened: Any = open_model(spec, base_url=url)
                await opened.learn()
                reply = await opened.embed(opened.encode(["grain"], input_type=InputType.DOCUMENT))
                replies.append((spec, reply.vectors.shape[1], opened.info.space))
                await opened.close()
            return replies

    replies = asyncio.run(asked())
    assert [width for _, width, _ in replies] == [1536, 1536, 3072, 1536]
    spaces = {space for _, _, space in replies}
    assert len(spaces) == 4  # nobody vouches for a server on this machine
    monkeypatch.setattr("vecmill.models.hosted.addresses.is_vendors", lambda provider, url: True)
    shared = {spec: space for spec, _, space in asyncio.run(asked())}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert shared["azure:text-embedding-3-small"] == info_of("openai:text-embedding-3-small").space
    assert not spaces & set(shared.values())


def test_a_base_url_said_by_the_caller_is_not_azure_s_because_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_TYPE", "azure")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_BASE", "https://mill.openai.azure.com")
    for url, name in (
        ("http://localhost:11434/v1", "openai:nomic"),
        ("https://other.openai.azure.com", "azure:nomic"),
        (None, "azure:nomic"),
    ):
        model = open_model("openai:nomic", base_url=url)
        asyncio.run(model.close())
        assert model.info.name == name


def test_a_model_opened_without_its_key_says_so_when_it_is_asked() -> None:
    model = open_model("openai:text-embedding-3-small", needs_key=False)
    assert (model.info.dimensions, model.info.usd_per_million_tokens) == (1536, 0.02)
    encoded = model.encode(["grain"], input_type=InputType.DOCUMENT)
    with pytest.raises(MissingKeyError, match="set OPENAI_API_KEY"):
        asyncio.run(asked(model, encoded))


async def asked(model: Any, encoded: Any) -> None:
    try:
        await model.embed(encoded)
    finally:
        await model.close()
