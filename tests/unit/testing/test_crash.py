from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vecmill.core import durable
from vecmill.testing.crash import crash_states, recording, replay

OLD, NEW = b"old content", b"the new content"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def outcomes(
    folder: Path, write: Callable[[Path], None], *, existed: bool = True
) -> dict[bool, set[bytes | None]]:
    """What NAME may hold after a power cut: while it was being written, and after the writer said done."""
    folder.mkdir()
    if existed:
        (folder / "name").write_bytes(OLD)
    with recording(folder) as record:
        write(folder / "name")
        record.mark("done")
    found: dict[bool, set[bytes | None]] = {False: set(), True: set()}
    for state in crash_states(record):
        found["done" in state.marks].add(state.files.get("name"))
    return found


def test_the_durable_writer_is_old_or_new_and_new_once_it_returned(tmp_path: Path) -> None:
    found = outcomes(tmp_path / "a", lambda path: durable.write_bytes(path, NEW))
    assert found == {False: {OLD, NEW}, True: {NEW}}
    found = outcomes(tmp_path / "b", lambda path: durable.write_bytes(path, NEW), existed=False)
    assert found == {False: {None, NEW}, True: {NEW}}


def in_place(path: Path) -> None:
    path.write_bytes(NEW)
    durable.sync_file(path)
    durable.sync_dir(path.parent)


def without_fsync(path: Path) -> None:
    temp = path.with_name("temp")
    temp.write_bytes(NEW)
    temp.replace(path)
    durable.sync_dir(path.parent)


def rename_before_fsync(path: Path) -> None:
    temp = path.with_name("temp")
    temp.write_bytes(NEW)
    durable.rename(temp, path)
    durable.sync_file(path)


def without_folder_sync(path: Path) -> None:
    temp = path.with_name("temp")
    temp.write_bytes(NEW)
    durable.sync_file(temp)
    temp.replace(path)


def removed_first(path: Path) -> None:
    durable.remove(path)
    durable.write_bytes(path, NEW)


@pytest.mark.parametrize("broken", [in_place, without_fsync, rename_before_fsync, removed_first])
def test_a_broken_writer_shows_something_neither_old_nor_new(
    tmp_path: Path, broken: Callable[[Path], None]
) -> None:
    assert outcomes(tmp_path / "a", broken)[False] - {OLD, NEW}


def test_a_missing_fsync_is_still_seen_after_the_writer_returned(tmp_path: Path) -> None:
    assert outcomes(tmp_path / "a", without_fsync)[True] == {NEW, NEW[: len(NEW) // 2], b"", bytes(len(NEW))}


def test_a_missing_folder_sync_loses_what_was_called_done(tmp_path: Path) -> None:
    found = outcomes(tmp_path / "a", without_folder_sync)
    assert found[True] == {OLD, NEW}


def test_two_unsynced_renames_may_happen_in_any_combination(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(OLD)
        (tmp_path / f"{name}.new").write_bytes(NEW)
    with recording(tmp_path) as record:
        for name in "ab":
            (tmp_path / f"{name}.new").replace(tmp_path / name)
        record.mark("both")
    found = {(state.files["a"], state.files["b"]) for state in crash_states(record) if state.marks}
    assert found == {(OLD, OLD), (OLD, NEW), (NEW, OLD), (NEW, NEW)}


def test_a_new_folder_and_its_files_are_lost_together(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        (tmp_path / "folder").mkdir()
        durable.write_bytes(tmp_path / "folder" / "name", NEW)
        record.mark("done")
    states = list(crash_states(record))
    assert any("folder" in state.folders and not state.files for state in states)
    done = [(state.files, state.folders) for state in states if state.marks]
    assert done == [({"folder/name": NEW}, ("folder",)), ({}, ())]


def test_a_made_folder_is_there_once_make_dir_returned(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        durable.make_dir(tmp_path / "a" / "b")
        record.mark("made")
    assert {state.folders for state in crash_states(record) if state.marks} == {("a", "a/b")}


def test_a_removed_tree_is_whole_or_gone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for name in ("x", "y", "deep/z"):
        (tree / name).write_bytes(OLD)
    with recording(tmp_path) as record:
        durable.remove_tree(tree)
        record.mark("gone")
    for state in crash_states(record):
        mine = {name for name in state.files if name.startswith("tree/")}
        assert mine in (set(), {"tree/x", "tree/y", "tree/deep/z"}), state.description
        assert mine == set() or not state.marks
        others = {name.split("/")[0] for name in state.files if name not in mine}
        assert all(durable.is_leftover(Path(name)) for name in others)
    assert not tree.exists()


def test_a_rename_across_folders_is_never_lost(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "name").write_bytes(OLD)
    with recording(tmp_path) as record:
        durable.rename(tmp_path / "one" / "name", tmp_path / "two" / "name")
        record.mark("done")
    for state in crash_states(record):
        assert state.files in ({"one/name": OLD}, {"two/name": OLD})
        assert not state.marks or "two/name" in state.files


def test_states_are_made_real_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with recording(tmp_path / "disk") as record:
        durable.write_bytes(tmp_path / "disk" / "name", NEW)
    seen = []
    for state, folder in replay(record, tmp_path / "states"):
        assert names(folder) == sorted(state.files)
        seen.append((state.marks, tuple(state.files.items())))
    assert len(seen) == len(set(seen)) > 3


def test_many_unsynced_changes_are_sampled_by_the_seed(tmp_path: Path) -> None:
    with recording(tmp_path) as record:
        for number in range(12):
            (tmp_path / f"{number}").write_bytes(NEW)
        record.mark("all")
    first, again, other = (
        [state.files for state in crash_states(record, limit=50, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert {} in first
    assert {str(number): NEW for number in range(12)} in first


def test_leftovers_of_every_crash_go_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with recording(tmp_path / "disk") as record:
        durable.write_bytes(tmp_path / "disk" / "name", NEW)
    for state, folder in replay(record, tmp_path / "states"):
        durable.write_bytes(folder / "name", b"later")
        assert names(folder) == ["name"], state.description
