"""Outputs on other file systems: uploaded whole, complete only with the receipt, repeated after a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from vecmill.core.errors import InputError, WriteError
from vecmill.data.vector_set import read_vectors
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import Outcome, run
from vecmill.testing.fakes import FakeProvider


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("a\nb\n\nc\n", encoding="utf-8")
    return tmp_path / "in.txt"


def embed(source: Path, output: str, provider: FakeProvider | None = None, **options: Any) -> Outcome:
    async def both() -> Outcome:
        chosen = provider or FakeProvider(dimensions=4)
        return await run(await make_plan([source], output, JobOptions(**options), provider=chosen))

    return asyncio.run(both())


@pytest.mark.parametrize("name", ["set.parquet", "set.npy", "folder"])
def test_a_remote_output_equals_a_local_one(memory: Any, source: Path, tmp_path: Path, name: str) -> None:
    outcome = embed(source, f"memory://bucket/{name}")
    assert outcome.output == f"memory://bucket/{name}"
    embed(source, str(tmp_path / "local" / name))
    memory.get("/bucket", str(tmp_path / "fetched"), recursive=True)
    local = {p.relative_to(tmp_path / "local"): p for p in (tmp_path / "local").rglob("*") if p.is_file()}
    for path, file in local.items():
        assert (tmp_path / "fetched" / path).read_bytes() == file.read_bytes()
    assert len(read_vectors(tmp_path / "fetched" / name).vectors) == 3


def test_the_same_command_again_is_complete_and_another_is_refused(memory: Any, source: Path) -> None:
    provider = FakeProvider(dimensions=4)
    embed(source, "memory://bucket/set.parquet", provider)
    asked = len(provider.calls)
    again = embed(source, "memory://bucket/set.parquet", provider)
    assert again.state == "already complete"
    assert again.receipt["vectors"] == 3
    assert not any("a" in call for call in provider.calls[asked:])
    with pytest.raises(InputError, match="--overwrite"):
        embed(source, "memory://bucket/set.parquet", empty="skip")
    assert embed(source, "memory://bucket/set.parquet", empty="skip", overwrite=True).exit_code == 0
    assert not memory.exists("/bucket/set.parquet.errors.jsonl")


def test_a_failed_upload_is_said_and_repeated_without_embedding_again(
    memory: Any, source: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("connection reset")

    provider = FakeProvider(dimensions=4)
    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", broken)
        with pytest.raises(WriteError, match="connection reset"):
            embed(source, "memory://bucket/set.parquet", provider)
    asked = len(provider.calls)
    assert embed(source, "memory://bucket/set.parquet", provider).receipt["vectors"] == 3
    assert not any("a" in call for call in provider.calls[asked:])
    assert not list((own_home / "outputs").rglob("*.parquet"))
