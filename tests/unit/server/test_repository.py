"""Which versions a folder holds, and when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from vecmill.server.repository import APART, NOTHING, has_versions, loaded_bytes, look, names


def version(folder: Path, number: str, content: str = "{}") -> Path:
    place = folder / number
    place.mkdir(parents=True)
    (place / "config.json").write_text(content)
    return place


def later() -> float:
    """A clock by which every file has been left alone for long."""
    return time.time() + 60


def test_versions_are_whole_numbers_and_the_highest_comes_first(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "v3", "0", "01", "-1", ".4", "1_Pooling"):
        version(tmp_path, name)
    seen = look(tmp_path, now=later)
    assert [found.version for found in seen.descending()] == ["10", "2", "1"]
    assert seen.whole == {"1", "2", "10"}


def test_a_model_folder_is_version_1_of_itself(tmp_path: Path) -> None:
    version(tmp_path, "model")
    (found,) = look(tmp_path / "model", now=later).descending()
    assert (found.version, found.folder) == ("1", tmp_path / "model")
    assert not has_versions(tmp_path / "model")


def test_fresh_files_are_whole_only_at_the_second_look_that_finds_them_alike(tmp_path: Path) -> None:
    place = version(tmp_path, "1")
    first = look(tmp_path)
    assert first.found
    assert not first.whole
    (place / "model.safetensors").write_bytes(b"half")
    second = look(tmp_path, first)
    assert not second.whole
    seen = min(second.since.values())
    third = look(tmp_path, second, now=lambda: seen + APART / 2)
    assert not third.whole  # two looks of one moment, as of a poll and a reload, prove nothing
    fourth = look(tmp_path, third, now=lambda: seen + 2 * APART)
    assert fourth.whole == {"1"}


def test_a_file_that_grows_between_looks_is_never_whole(tmp_path: Path) -> None:
    place = version(tmp_path, "1")
    seen = NOTHING
    for size in range(1, 5):
        (place / "model.safetensors").write_bytes(b"x" * size)
        seen = look(tmp_path, seen)
        assert not seen.whole


def test_a_folder_renamed_into_place_is_whole_at_once(tmp_path: Path) -> None:
    place = version(tmp_path / "elsewhere", "1")
    written = (place / "config.json").stat().st_ctime
    (tmp_path / "model").mkdir()
    place.rename(tmp_path / "model" / "1")
    seen = look(tmp_path / "model", now=lambda: written + 1.5)
    assert seen.whole == {"1"}


def test_an_empty_folder_is_no_version(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert not look(tmp_path, now=later).found
    assert not look(tmp_path / "missing", now=later).found


def test_other_files_are_another_stamp(tmp_path: Path) -> None:
    place = version(tmp_path, "1")
    before = look(tmp_path, now=later).found["1"]
    assert look(tmp_path, now=later).found["1"].stamp == before.stamp
    (place / "config.json").write_text("[]")
    after = look(tmp_path, now=later).found["1"]
    assert after.stamp != before.stamp


def test_names_may_have_one_slash_and_nothing_odd(tmp_path: Path) -> None:
    for name in ("plain", "org/model", ".hidden", "bad name", "org/..x", "a/b/c"):
        version(tmp_path / name, "1")
    version(tmp_path, "single")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert list(names(tmp_path)) == ["org/model", "plain", "single"]


def test_the_older_layout_of_openvino_model_server_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "Alibaba-NLP" / "gte"
    version(folder / "embeddings", "1")
    version(folder / "tokenizer", "1")
    (folder / "graph.pbtxt").write_text("")
    assert list(names(tmp_path)) == ["Alibaba-NLP/gte"]
    before = look(folder, now=later).found["1"]
    assert before.folder == folder / "embeddings" / "1"
    (folder / "tokenizer" / "1" / "config.json").write_text("[1]")
    assert look(folder, now=later).found["1"].stamp != before.stamp


def test_a_repository_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        names(tmp_path / "missing")


def test_a_link_that_leads_upwards_ends(tmp_path: Path) -> None:
    place = version(tmp_path, "1")
    (place / "loop").symlink_to(tmp_path)
    assert look(tmp_path, now=later).whole == {"1"}


def test_what_cannot_be_read_hides_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good/1", "locked/1", "team/one/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "good" / "1" / "loop").symlink_to("loop")
    known = names(tmp_path)
    assert set(known) == {"good", "locked", "team/one"}
    assert set(look(tmp_path / "good").found) == {"1"}
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path) in (tmp_path / "locked", tmp_path / "team"):
            raise PermissionError(errno.EACCES, "refused", str(path))
        return scandir(path)

    monkeypatch.setattr("vecmill.server.repository.os.scandir", refuse)
    assert set(names(tmp_path)) == {"good"}
    assert names(tmp_path, known) == known


def test_weights_in_a_format_that_is_not_opened_do_not_count(tmp_path: Path) -> None:
    models = Path(__file__).parents[2] / "data" / "models"
    folder = Path(shutil.copytree(models / "bert-mean", tmp_path / "m" / "1"))
    before = look(tmp_path / "m").found["1"]
    size = loaded_bytes(before)
    assert 0 < size <= before.size_bytes
    (folder / "pytorch_model.bin").write_bytes(bytes(1 << 20))
    after = look(tmp_path / "m").found["1"]
    assert after.size_bytes == before.size_bytes + (1 << 20)
    assert loaded_bytes(after) == size
    (folder / "config.json").unlink()
    assert loaded_bytes(after) == after.size_bytes
