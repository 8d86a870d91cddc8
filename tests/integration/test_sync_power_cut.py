"""A power cut at any moment of a build or a sync: what the disk shows reopens, the next run ends right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from vecmill.collection.build import build_collection
from vecmill.core.config import load_settings
from vecmill.core.errors import Error
from vecmill.data.vector_set import read_manifest, read_vectors
from vecmill.embedder.channel import Channel
from vecmill.index.storage import Store, is_store
from vecmill.jobs import windows
from vecmill.jobs.sync import sync_async
from vecmill.testing.crash import recording, replay
from vecmill.testing.fakes import FakeProvider

OLD = {"a": "one", "b": "two", "c": "three", "d": "four", "e": "five"}
NEW = {"f": "six", "a": "one", "b": "zwei", "c": "three", "d": "vier"}


def provider() -> FakeProvider:
    return FakeProvider(dimensions=4, max_tokens=20)


def sync(rows: dict[str, str], table: Path, target: Path) -> None:
    table.write_text("id,text\n" + "".join(f"{one},{text}\n" for one, text in rows.items()), "utf-8")

    async def both() -> None:
        await Channel.to(provider(), load_settings()).probe()
        await sync_async(table, target, provider=provider(), id_column="id", text="text")

    asyncio.run(both())


def held(target: Path) -> dict[str, str]:
    """Return what a target holds, every byte of it checked."""
    if target.suffix == ".collection":
        store = Store.open(target)
        store.verify()
        now = store.snapshot()
        at = np.flatnonzero(now.live)
        pairs = zip(now.ids(at), now.records(at, ["text"]), strict=True)
        return {str(one): record["text"] for one, record in pairs}
    found = read_vectors(target)
    texts = found.texts(range(len(found)))
    return {one: str(text) for one, text in zip(found.ids, texts, strict=True)}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 2)


@pytest.mark.parametrize("name", ["o.parquet", "folder", "o.collection"])
@pytest.mark.parametrize("first", [True, False], ids=["made", "changed"])
def test_a_sync_cut_off_by_a_power_cut_is_finished_by_the_next(
    tmp_path: Path, name: str, first: bool, slow: bool
) -> None:
    disk, table = tmp_path / "disk", tmp_path / "t.csv"
    disk.mkdir()
    if not first:
        sync(OLD, table, disk / name)
    with recording(disk) as record:
        sync(NEW, table, disk / name)
        record.mark("done")
    every, tried = 1 if slow else 13, 0
    for number, (state, folder) in enumerate(replay(record, tmp_path / "states", limit=16 if slow else 4)):
        if number % every and "done" not in state.marks:
            continue
        if not first and name != "o.collection":
            assert held(folder / name) in (OLD, NEW), state
        if "done" in state.marks:
            assert held(folder / name) == NEW, state
        sync(NEW, table, folder / name)
        assert held(folder / name) == NEW, state
        assert not [path.name for path in folder.iterdir() if path.name.endswith(".vecmill")], state
        tried += 1
    assert tried > 5


def test_a_power_cut_leaves_a_collection_whole_or_not_there(tmp_path: Path, slow: bool) -> None:
    source, disk = tmp_path / "s.parquet", tmp_path / "disk"
    sync(OLD, tmp_path / "t.csv", source)
    disk.mkdir()
    with recording(disk) as record:
        build_collection(source, disk / "c")
        record.mark("done")
    whole = 0
    for state, folder in replay(record, tmp_path / "states", limit=256 if slow else 4):
        target = folder / "c"
        if not is_store(target):
            assert "done" not in state.marks, state
            assert not target.exists() or not any(target.iterdir()), state
            build_collection(source, target)
        else:
            whole += 1
        renamed = target.rename(folder / "c.collection")
        assert held(renamed) == OLD, state
    assert whole
    assert read_manifest(source) is not None
    with pytest.raises(Error):
        Store.open(disk / "nothing")
