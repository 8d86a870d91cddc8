"""What is told of a repository that is not what the operator thinks it is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vecmill.core.errors import ConfigError
from vecmill.server import repository
from vecmill.server.remarks import Remarks, refuse_namesakes
from vecmill.server.repository import names


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def told(caplog: pytest.LogCaptureFixture, remarks: Remarks, root: Path) -> list[str]:
    """Return what one more look tells."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        remarks.look(names(root))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("spec", ["minilm", "./other/minilm"])
def test_two_models_of_one_name_are_refused_and_both_are_named(root: Path, spec: str) -> None:
    put(root / "minilm" / "1")
    put(root / "fine" / "1")
    folder = put(root.parent / "other" / "minilm") if spec.startswith(".") else None
    with pytest.raises(ConfigError) as raised:
        refuse_namesakes(root, {"minilm": (spec, folder), "other": ("x", None)})
    assert f"two models are called minilm: {spec}, " in str(raised.value)
    assert str(root / "minilm") in str(raised.value)
    assert f"--model NAME={spec}" in str(raised.value)


def test_a_model_of_the_repository_may_be_named_to_stay_in_memory(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "m" / "1")
    named = {"m": ("link", root.parent / "link")}
    (root.parent / "link").symlink_to(root / "m")
    refuse_namesakes(root, named)
    assert told(caplog, Remarks(root, named), root) == []


def test_a_repository_that_cannot_be_read_is_not_refused(root: Path) -> None:
    refuse_namesakes(root / "missing", {"m": ("m", None)})


def test_a_namesake_that_appears_is_told_once_for_each_time(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "fine" / "1")
    remarks = Remarks(root, {"minilm": ("minilm", None)})
    assert told(caplog, remarks, root) == []
    for _ in range(2):
        put(root / "minilm" / "1")
        (said,) = told(caplog, remarks, root)
        assert said.startswith("model minilm of the repository is not served: ")
        assert told(caplog, remarks, root) == []
        (root / "minilm").rename(root.parent / "away")
        assert told(caplog, remarks, root) == []
        (root.parent / "away").rename(root.parent / f"gone{_}")


def test_a_folder_without_any_model_is_told_at_the_start_only(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "notes" / "of" / "mine").mkdir(parents=True)
    remarks = Remarks(root, {})
    (said,) = told(caplog, remarks, root)
    assert said.startswith(f"no model in {root}: expected NAME/VERSION/…")
    assert told(caplog, remarks, root) == []


def test_one_model_instead_of_a_repository_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root / "m" / "1")
    assert told(caplog, Remarks(root, {}), root) == []
    (said,) = told(caplog, Remarks(root / "m", {}), root / "m")
    assert f"serve it with --model {root / 'm'}" in said
    put(root / "7" / "1")  # a model may be called so
    assert told(caplog, Remarks(root, {}), root) == []


@pytest.mark.parametrize(
    ("name", "right"),
    [("v1", "1"), ("V2", "2"), ("version-3", "3"), ("01", "1"), ("1.0", "1"), ("v0", "1"), ("0", "1")],
)
def test_versions_that_are_no_whole_numbers_are_told_once(
    root: Path, name: str, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "m" / "9")
    put(root / "BAAI" / "bge" / "1")
    remarks = Remarks(root, {})
    assert told(caplog, remarks, root) == []
    put(root / "m" / name)
    put(root / "BAAI" / "bge" / name)
    lines = told(caplog, remarks, root)
    assert lines == [
        f"{folder}/{name} is no version and is not served: versions are whole numbers above 0, such as "
        f"{folder}/{right}"
        for folder in ("BAAI/bge", "m")
    ]
    assert told(caplog, remarks, root) == []


def test_what_cannot_be_read_hides_no_other_remark(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "a" / "v1")
    put(root / "b" / "v1")
    found, folders = names(root), repository._folders

    def refuse(folder: Path) -> list[Path]:
        if folder == root / "a":
            raise PermissionError(13, "Permission denied")
        return folders(folder)

    monkeypatch.setattr(repository, "_folders", refuse)
    remarks = Remarks(root, {})
    remarks.look(found)
    assert [one.getMessage()[:4] for one in caplog.records] == ["b/v1"]


def test_a_version_taken_for_a_model_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root / "m" / "v1")
    assert told(caplog, Remarks(root, {}), root) == [
        "m/v1 is taken for a model of this name: versions are whole numbers above 0, a version of m would be "
        "m/1"
    ]


def test_names_of_models_and_folders_of_their_files_are_not_taken_for_versions(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root / "jina" / "v3" / "1")
    for inner in ("1_Pooling", "onnx", "2_Normalize", ".2"):
        put(root / "m" / "1" / inner)
        put(root / "plain" / inner)
    put(root / "old" / "embeddings" / "1")
    (root / "old" / "graph.pbtxt").write_text("")
    (root / "plain" / "config.json").write_text("{}")
    assert told(caplog, Remarks(root, {}), root) == []
