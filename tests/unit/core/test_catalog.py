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
