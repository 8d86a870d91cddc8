"""Settings come from argument, environment, file, default; what does not fit is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vecmill.toml"


def test_the_first_of_argument_environment_file_and_default_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (load_settings().threads, load_settings().origins["threads"]) == (0, "default")
    file.write_text("threads = 2\n")
    assert (load_settings().threads, load_settings().origins["threads"]) == (2, "vecmill.toml")
    monkeypatch.setenv("VECMILL_THREADS", "3")
    assert (load_settings().threads, load_settings().origins["threads"]) == (3, "VECMILL_THREADS")
    assert (load_settings(threads=4).threads, load_settings(threads=4).origins["threads"]) == (4, "argument")


def test_the_file_in_home_is_read_after_the_one_here(file: Path, own_home: Path) -> None:
    (own_home / "vecmill.toml").write_text('threads = 5\nmodel = "there"\n')
    file.write_text('model = "here"\n')
    assert (load_settings().model, load_settings().threads) == ("here", 5)


def test_an_unknown_key_is_refused_and_the_known_ones_listed(file: Path) -> None:
    file.write_text('modle = "minilm"\n')
    with pytest.raises(ConfigError, match=r"vecmill\.toml: 'modle' is no setting; known: home, .*model"):
        load_settings()


def test_profiles_and_aliases_are_tables(file: Path) -> None:
    file.write_text('threads = 1\n[aliases]\na = "b"\n[profiles.work]\nkey = "env:X"\n')
    assert load_settings().threads == 1
    file.write_text('aliases = "b"\n')
    with pytest.raises(ConfigError, match="'aliases' is no setting"):
        load_settings()


@pytest.mark.parametrize(
    "line",
    [
        "threads = true",
        "threads = 1.5",
        "threads = -1",
        "model = 3",
        "home = 1",
        'threads = "two"',
        "confirm_above_usd = nan",
        "confirm_above_usd = [1]",
    ],
)
def test_a_value_of_another_kind_is_refused_naming_file_and_value(
    file: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECMILL_HOME")
    file.write_text(line + "\n")
    name = line.partition(" = ")[0]
    with pytest.raises(ConfigError, match=rf"^{name} = .* from vecmill\.toml is not a"):
        load_settings()


def test_paths_given_as_strings_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Settings(home=str(tmp_path / "a"), cache_dir="~/b")  # type: ignore[arg-type]  # on purpose
    assert (made.home, made.cache_dir) == (tmp_path / "a", tmp_path / "b")
