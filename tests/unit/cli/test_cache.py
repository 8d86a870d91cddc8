"""`vecmill cache`: what it shows, drops and imports."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from vecmill.cli.cache import cache
from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, InputError, StorageError
from vecmill.core.space import space_id
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.cache.sqlite import SqliteCache, open_cache

ADA = "text-embedding-ada-002"
SMALL = "text-embedding-3-small"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteCache]:
    monkeypatch.setenv("VECMILL_CACHE_DIR", str(tmp_path / "cache"))
    opened = open_cache(load_settings())
    yield opened
    opened.close()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cache, arguments, standalone_mode=False)


def shown(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def fill(kept: SqliteCache, model: str, n: int, d: int = 1536) -> list[bytes]:
    space = space_id("hosted", model)
    keys = cache_keys(space, [f"planted {i}" for i in range(n)])
    kept.put(space, keys, np.random.default_rng(n).standard_normal((n, d), dtype=np.float32))
    return keys


def test_info_of_a_cache_that_is_not_there_yet(kept: SqliteCache) -> None:
    found = shown("info")
    assert (found["vectors"], found["file_bytes"], found["spaces"]) == (0, 0, [])
    assert found["path"] == str(kept.path)
    assert not kept.path.exists()


def test_info_names_the_models_of_spaces(kept: SqliteCache) -> None:
    fill(kept, ADA, 3)
    kept.name_space(space_id("hosted", "own"), "azure:own")
    fill(kept, "own", 2, 8)
    fill(kept, "nobody-knows", 1, 8)
    found = shown("info")
    assert [(use["model"], use["dimensions"], use["vectors"]) for use in found["spaces"]] == [
        (ADA, 1536, 3),
        ("azure:own", 8, 2),
        (None, 8, 1),
    ]
    assert found["spaces"][0]["newest_use"].endswith("Z")
    text = invoke("info").stdout
    assert ADA in text
    assert space_id("hosted", ADA)[:6] in text
    assert "10.0 GiB" in text
    assert "planted" not in text


def test_prune_drops_a_space_named_by_its_short_id(kept: SqliteCache) -> None:
    ada, small = fill(kept, ADA, 20), fill(kept, SMALL, 30)
    before = kept.info().file_bytes
    found = shown("prune", "--space", space_id("hosted", ADA)[:6])
    assert found["vectors"] == 20
    assert 0 < found["freed_bytes"] < before
    assert not kept.contains(space_id("hosted", ADA), ada, dimensions=1536).any()
    assert kept.contains(space_id("hosted", SMALL), small, dimensions=1536).all()


def test_prune_to_a_size_gives_the_room_back(kept: SqliteCache) -> None:
    fill(kept, ADA, 1_000)
    found = shown("prune", "--max-size", "2 MiB")
    assert kept.path.stat().st_size <= 2 << 20
    assert 650 < found["vectors"] < 800
    assert kept.info().vectors == 1_000 - found["vectors"]


def test_prune_keeps_what_was_used_lately(kept: SqliteCache, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(kept, "_now", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])
    fill(kept, ADA, 5)
    now[0] += 40 * 86_400
    small = fill(kept, SMALL, 7)
    assert shown("prune", "--unused-for", "30d", "--space", space_id("hosted", SMALL))["vectors"] == 0
    assert shown("prune", "--unused-for", "30d")["vectors"] == 5
    assert kept.contains(space_id("hosted", SMALL), small, dimensions=1536).all()


def test_prune_without_options_cuts_to_the_limit(kept: SqliteCache) -> None:
    fill(kept, ADA, 5)
    assert shown("prune")["vectors"] == 0
    assert kept.info().vectors == 5


@pytest.mark.parametrize(
    "arguments", [["--max-size", "many"], ["--unused-for", "30"], ["--unused-for", "1y"]]
)
def test_sizes_and_spans_that_are_none_are_wrong_usage(kept: SqliteCache, arguments: list[str]) -> None:
    result = invoke("prune", *arguments)
    assert type(result.exception).__name__ == "BadParameter"


def test_an_unknown_space_is_said_with_those_there_are(kept: SqliteCache) -> None:
    fill(kept, ADA, 1)
    result = invoke("prune", "--space", "zzzzzz")
    assert isinstance(result.exception, InputError)
    assert space_id("hosted", ADA)[:6] in str(result.exception)


def test_clear_needs_yes_without_a_terminal(kept: SqliteCache) -> None:
    fill(kept, ADA, 3)
    result = invoke("clear")
    assert type(result.exception).__name__ == "UsageError"
    assert "--yes" in str(result.exception)
    assert kept.info().vectors == 3


def test_clear_drops_everything_and_what_was_set_aside(kept: SqliteCache) -> None:
    fill(kept, ADA, 300)
    aside = kept.path.with_name(kept.path.name + ".damaged-1")
    aside.write_bytes(b"x" * 1000)
    assert shown("info")["set_aside"] == [str(aside)]
    found = shown("clear", "--yes")
    assert found["vectors"] == 300
    assert found["freed_bytes"] > 300 * 6144
    assert not aside.exists()
    assert kept.info().vectors == 0
    fill(kept, ADA, 3)
    assert kept.info().vectors == 3


def test_clear_of_a_damaged_file_begins_anew(kept: SqliteCache) -> None:
    kept.path.parent.mkdir()
    kept.path.write_bytes(b"no database" * 100)
    assert shown("clear", "--yes")["vectors"] == 0
    assert not list(kept.path.parent.glob("*.damaged-*"))


def test_clear_of_a_cache_that_is_not_there_makes_none(kept: SqliteCache) -> None:
    assert shown("clear", "--yes") == {"vectors": 0, "freed_bytes": 0}
    assert not kept.path.exists()


def pickled(path: Path, entries: dict[Any, Any]) -> str:
    path.write_bytes(pickle.dumps(entries))
    return str(path)


def test_import_fills_the_cache_and_names_the_spaces(kept: SqliteCache, tmp_path: Path) -> None:
    old = "text-similarity-babbage-001"
    file = pickled(tmp_path / "c.pkl", {("a", ADA): [0.5] * 1536, ("b", old): [1.0] * 8})
    found = shown("import", file)
    assert (found["imported"], found["already"], found["skipped"]) == (2, 0, [])
    assert {use["model"] for use in shown("info")["spaces"]} == {ADA, old}
    result = invoke("import", file)
    assert result.return_value == 0
    assert "imported 0 vectors of 2 entries; 2 were there" in result.stderr


def test_import_lists_what_it_leaves_out_and_exits_with_3(kept: SqliteCache, tmp_path: Path) -> None:
    file = pickled(
        tmp_path / "c.pkl", {("a", ADA): [0.5] * 1536, ("secret words", ADA): [float("nan")] * 1536}
    )
    result = invoke("import", file)
    assert result.return_value == 3
    assert "entry 1: its vector has a component that is not finite" in result.stderr
    assert "secret" not in result.stderr


def test_import_into_the_space_of_another_name(kept: SqliteCache, tmp_path: Path) -> None:
    file = pickled(tmp_path / "c.pkl", {("a", "my-deployment"): [0.5] * 1536})
    shown("import", file, "--model", f"openai:{SMALL}")
    space = space_id("hosted", SMALL)
    assert kept.contains(space, cache_keys(space, ["a"]), dimensions=1536).all()


def test_vectors_of_several_engines_are_not_of_one_model(kept: SqliteCache, tmp_path: Path) -> None:
    file = pickled(tmp_path / "c.pkl", {("a", ADA): [0.5] * 1536, ("b", SMALL): [0.5] * 1536})
    result = invoke("import", file, "--model", f"openai:{SMALL}")
    assert isinstance(result.exception, InputError)
    assert not kept.path.exists()


def test_a_model_nobody_knows_is_said_before_anything_is_imported(kept: SqliteCache, tmp_path: Path) -> None:
    file = pickled(tmp_path / "c.pkl", {("a", ADA): [0.5] * 1536})
    result = invoke("import", file, "--model", "no-such-model")
    assert isinstance(result.exception, InputError | ConfigError)
    assert not kept.path.exists()


def test_a_pickle_that_would_run_something_is_refused(kept: SqliteCache, tmp_path: Path) -> None:
    (tmp_path / "c.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    result = invoke("import", str(tmp_path / "c.pkl"))
    assert isinstance(result.exception, StorageError)
    assert "posix.system" in str(result.exception)
