"""A collection under SIGKILL, power cuts, full disks: what was acknowledged is there, what was deleted not.

CI kills 10 times and replays a sample of what a power cut may leave; `--slow` kills 100 times, replays all.
"""

from __future__ import annotations

import errno
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from vecmill.core import durable
from vecmill.core.errors import InputError, WriteError
from vecmill.core.types import Precision
from vecmill.index import store_index
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store, is_store
from vecmill.testing.crash import recording, replay

SCRIPT = Path(__file__).with_name("collection_process.py")
process = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
SEED = 2026


def test_a_writer_killed_at_random_moments_loses_nothing_it_had_acknowledged(
    tmp_path: Path, slow: bool
) -> None:
    folder = tmp_path / "collection"
    Store.create(folder, dimensions=process.DIMENSIONS)
    chance = random.Random(SEED)
    step, held, steps_done = 0, {}, []
    for kill in range(100 if slow else 10):
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(SEED), str(step)],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            done = [child.stdout.readline() for _ in range(chance.randrange(8))]
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=chance.uniform(0.0, 0.05))
            child.send_signal(signal.SIGKILL)
            done += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        for _ in done:
            held = process.expect(held, SEED, step)
            step += 1
        store = Store.open(folder)
        store.verify()
        now = process.held(store)
        if now != held:  # the step on its way may be there too, whole
            held = process.expect(held, SEED, step)
            step += 1
            assert now == held, f"seed {SEED}, kill {kill}, step {step}"
        steps_done.append(len(done))
    print(f"seed {SEED}: steps done before each kill: {steps_done}")
    assert sum(steps_done) > len(steps_done)
    Store.open(folder).delete([])
    named: set[str | None] = set()
    for entry in Store.open(folder).catalogue.segments:
        named |= {f"{entry.name}.vectors", f"{entry.name}.items", entry.deleted_file}
    left = {path.name for path in (folder / "segments").iterdir()} - named
    assert not left, "what crashes left is removed by the next writer"


def contents(store: Store) -> dict[object, tuple[float, ...]]:
    now = store.snapshot()
    at = np.flatnonzero(now.live)
    return dict(zip(now.ids(at), map(tuple, now.fetch(at).tolist()), strict=True))


def test_every_state_a_power_cut_may_leave_opens_with_what_was_acknowledged(
    tmp_path: Path, slow: bool
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    vectors = np.random.default_rng(SEED).normal(size=(12, 3)).astype(np.float32)
    steps = [
        lambda s: s.add(["a", "b", "c"], vectors[:3], pa.table({"x": [1, 2, 3]})),
        lambda s: s.delete(["b"]),
        lambda s: s.add(["d", "a"], vectors[3:5], replace=True),
        lambda s: s.set_columns(["c"], pa.table({"x": [9]})),
        lambda s: s.compact(),
        lambda s: s.add(["b"], vectors[5:6]),
        lambda s: s.delete(["a", "b", "c", "d"]),
        lambda s: s.compact(),
    ]
    expected: list[dict[object, tuple[float, ...]]] = []
    with recording(disk) as record:
        store = Store.create(disk / "c", dimensions=3)
        expected.append(contents(store))
        record.mark("0")
        for number, step in enumerate(steps, 1):
            step(store)
            expected.append(contents(store))
            record.mark(str(number))
    checked = 0
    every = 1 if slow else 5
    for number, (state, folder) in enumerate(replay(record, tmp_path / "states", limit=32 if slow else 8)):
        if number % every:
            continue
        done = max((int(mark) for mark in state.marks), default=-1)
        if done < 0 and not is_store(folder / "c"):
            continue
        allowed = expected[max(done, 0) : done + 2] if done >= 0 else expected[:1]
        store = Store.open(folder / "c")
        store.verify()
        assert contents(store) in allowed, state
        store.add(["new"], vectors[:1])
        assert "new" in contents(Store.open(folder / "c")), state
        checked += 1
    assert checked > 40


def test_a_power_cut_while_an_index_is_built_leaves_a_collection_that_finds_everything(
    tmp_path: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_index, "_KEPT_ROWS", 1)
    vectors = np.random.default_rng(SEED).normal(size=(60, 16)).astype(np.float32)
    disk = tmp_path / "disk"
    store = Store.create(disk, dimensions=16)
    store.add(range(40), vectors[:40])
    with recording(disk) as record:
        for precision in ("int8", "binary"):
            settings = IndexSettings(precision=Precision(precision), recall_target=0.9)
            store_index.build_index(store, settings, k=3)
            record.mark(precision)
            store.add(
                range(40 + 10 * len(record.operations), 50 + 10 * len(record.operations)), vectors[40:50]
            )
            store_index.refresh(store)
    for number, (state, folder) in enumerate(replay(record, tmp_path / "states", limit=32 if slow else 6)):
        if number % (1 if slow else 5):
            continue
        opened = Store.open(folder)
        now = opened.snapshot()
        index = store_index.SnapshotIndex(now)
        assert index.search(vectors[:40], 1).rows[:, 0].tolist() == list(range(40)), state
        if state.marks:
            assert index.settings.precision.value in ("int8", "binary"), state
        store_index.refresh(opened)


class _Full:
    """A disk that is full from some operation on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def before(self, operation: str, path: Path) -> None:
        if operation in ("create", "fsync", "rename", "mkdir"):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def after(self, operation: str, path: Path) -> None:
        pass


@pytest.mark.parametrize("what", ["add", "delete", "columns", "compact"])
def test_a_disk_that_fills_at_any_operation_changes_nothing(tmp_path: Path, what: str) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(4, 3)).astype(np.float32)

    def change(store: Store) -> None:
        match what:
            case "add":
                store.add(["c", "a"], vectors[2:], replace=True)
            case "delete":
                store.delete(["a"])
            case "columns":
                store.set_columns(["a"], pa.table({"x": [5]}))
            case "compact":
                store.compact()

    for room in range(30):
        store = Store.create(tmp_path / f"{room}", dimensions=3)
        store.add(["a"], vectors[:1], pa.table({"x": [1]}))
        store.add(["b"], vectors[1:2])
        before = contents(store), store.snapshot().table(["x"]).to_pylist()
        with durable.watching(_Full(room)):
            try:
                change(store)
            except WriteError as error:
                assert "space" in str(error)  # noqa: PT017 - the loop ends where none is raised
                failed = True
            else:
                failed = False
        again = Store.open(store.path)
        if not failed:
            assert room > 1
            break
        assert (contents(again), again.snapshot().table(["x"]).to_pylist()) == before
        assert contents(store) == before[0]
        change(store)  # with room again
    else:
        pytest.fail("it never went through")


def test_a_folder_that_is_no_collection_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a collection"):
        Store.open(tmp_path / "nothing")
