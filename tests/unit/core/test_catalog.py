from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core import catalog
from vecmill.core.catalog import CatalogEntry, entries, entry, resolve_alias
from vecmill.core.config import Settings


@pytest.mark.parametrize("name", ["minilm", "all-MiniLM-L6-v2", "local:all-MiniLM-L6-v2"])
def test_every_name_of_the_built_in_model_finds_it(name: str) -> None:
    known = entry(name)
    assert known is not None
    assert (known.spec, known.dimensions, known.max_tokens) == ("local:all-MiniLM-L6-v2", 384, 256)
    assert resolve_alias(name) == "local:all-MiniLM-L6-v2"


def test_the_default_model_is_in_the_catalogue() -> None:
    assert entry(Settings(Path(), Path()).model) is not None


@pytest.mark.parametrize("name", ["", "minil", "openai:all-MiniLM-L6-v2", "local:minilm"])
def test_other_names_find_nothing_and_stay_as_they_are(name: str) -> None:
    assert entry(name) is None
    assert resolve_alias(name) == name


def test_a_name_that_two_providers_share_must_be_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = tuple(CatalogEntry("same", provider, 8, 8) for provider in ("a", "b"))
    monkeypatch.setattr(catalog, "entries", lambda: twins)
    assert entry("same") is None
    assert entry("b:same") is twins[1]


def test_full_names_and_aliases_are_unique_and_everything_is_described() -> None:
    names = [name for known in entries() for name in (known.spec, *known.aliases)]
    assert len(names) == len(set(names))
    assert all(known.description and known.dimensions > 0 and known.max_tokens > 0 for known in entries())


def test_a_hosted_name_without_provider_is_several_models() -> None:
    for name in ("text-embedding-3-small", "openai/text-embedding-3-small"):
        assert entry(name) is None
        assert [known.spec for known in catalog.candidates(name)] == [
            "openai:text-embedding-3-small",
            "github:openai/text-embedding-3-small",
        ]
    only = entry("text-embedding-ada-002")
    assert only is not None
    assert only.spec == "openai:text-embedding-ada-002"


def test_what_every_hosted_model_must_say() -> None:
    hosted = [known for known in entries() if known.provider != "local"]
    assert {known.provider for known in hosted} == {"openai", "github"}
    for known in hosted:
        assert known.mrl is not None
        assert known.max_inputs == 2048
        assert known.max_request_tokens
        assert known.tokenizer == "cl100k_base"
        assert known.source
        assert "://" not in known.source
        assert bool(known.priced) == (known.usd_per_million_tokens is not None)
        if known.mrl:
            assert known.least_dimensions < known.dimensions


def test_prices_are_those_of_their_month() -> None:
    prices = {
        known.spec: (known.usd_per_million_tokens, known.batch_usd_per_million_tokens, known.priced)
        for known in entries()
        if known.provider == "openai"
    }
    assert prices == {
        "openai:text-embedding-3-small": (0.02, 0.01, "2026-05"),
        "openai:text-embedding-3-large": (0.13, 0.065, "2026-05"),
        "openai:text-embedding-ada-002": (0.1, 0.05, "2026-05"),
    }


def test_facts_are_found_by_the_model_s_own_name_whoever_runs_it() -> None:
    for name in ("text-embedding-3-large", "openai/text-embedding-3-large"):
        known = catalog.facts(name)
        assert known is not None
        assert (known.model, known.dimensions) == ("text-embedding-3-large", 3072)
    assert catalog.facts("openai:text-embedding-3-large") is None
    assert catalog.facts("") is None
