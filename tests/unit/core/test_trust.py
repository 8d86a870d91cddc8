"""Trust is of a file's path and content, and lies where no project can reach it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core import durable
from vecmill.core.errors import ConfigError, StorageError
from vecmill.core.trust import distrust, ensure_trusted, trust, trusted


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "vecmill.toml"
    made.write_text("threads = 1\n")
    return made


def test_a_file_is_trusted_as_it_was(file: Path, own_home: Path) -> None:
    digest = durable.digest_file(file)
    assert not trusted(file, digest)
    assert trust(file) == digest
    assert trusted(file, digest)
    assert not trusted(file.with_name("other.toml"), digest)
    assert not trusted(file, "0" * 32)
    assert (own_home / "trusted.json").is_file()


def test_the_same_file_by_another_path_is_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(file)
    monkeypatch.chdir(file.parent)
    assert trusted(Path("vecmill.toml"), durable.digest_file(file))


def test_trust_is_taken_back(file: Path) -> None:
    trust(file)
    assert distrust(file)
    assert not trusted(file, durable.digest_file(file))
    assert not distrust(file)


def test_what_is_not_trusted_is_refused_with_the_command(file: Path) -> None:
    digest = durable.digest_file(file)
    with pytest.raises(
        ConfigError, match=r"sets base_url, .* not trusted: read it, then run `vecmill config"
    ):
        ensure_trusted(file, digest, why="base_url")
    trust(file)
    ensure_trusted(file, digest, why="base_url")
    with pytest.raises(ConfigError, match="has changed since it was trusted"):
        ensure_trusted(file, "0" * 32, why="base_url")


def test_what_is_no_file_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a file: name a vecmill.toml"):
        trust(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_record_trusts_nothing(file: Path, own_home: Path, content: str) -> None:
    (own_home / "trusted.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StorageError, match=r"trusted\.json"):
        trusted(file, durable.digest_file(file))
