"""Compiled models on disk: found again, checked, and never needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import load_settings
from vecmill.models.local import graph, runtime
from vecmill.models.local.provider import load

TEXTS = ("the mill turns", "grain into flour")


def blobs(cache: Path) -> list[Path]:
    return sorted((cache / "compiled").glob("*.blob"))


@pytest.fixture
def fresh(tmp_path: Path, golden: Path) -> Any:
    """Open a golden model as a new process would, with a cache of its own."""
    cache = tmp_path / "cache"

    def opened(name: str = "bert-mean", **options: Any) -> Any:
        return load(str(golden / name), settings=load_settings(cache_dir=cache), **options)

    return opened


def test_second_start_builds_no_graph(
    fresh: Any, embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(fresh(), TEXTS)
    assert len(blobs(tmp_path / "cache")) == 1
    monkeypatch.setattr(graph, "build", None)
    assert embed(fresh(), TEXTS).tobytes() == first.tobytes()


def test_each_precision_has_its_own_compiled_model(fresh: Any, embed: Any, tmp_path: Path) -> None:
    for precision in ("float32", "int8"):
        embed(fresh(precision=precision), TEXTS)
    assert len(blobs(tmp_path / "cache")) == 2


def test_one_compiled_model_serves_every_number_of_threads(
    fresh: Any, embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS * 300  # more than one batch, so that streams are used
    first = embed(fresh(threads=1), texts)
    monkeypatch.setattr(graph, "build", None)
    provider = fresh(threads=2)
    assert embed(provider, texts).tobytes() == first.tobytes()
    assert embed(provider, texts[:1]).tobytes() == first[:1].tobytes()
    assert len(blobs(tmp_path / "cache")) == 1


@pytest.mark.parametrize("where", [0, 20, 60, 64, 100, 5000, -1])
def test_flipped_byte_is_noticed_and_mended(
    fresh: Any, embed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: int
) -> None:
    first = embed(fresh(), TEXTS)
    (path,) = blobs(tmp_path / "cache")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[where] ^= 0x40
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert embed(fresh(), TEXTS).tobytes() == first.tobytes()
    assert "damaged" in caplog.text
    assert path.read_bytes() != bytes(damaged)
    assert embed(fresh(), TEXTS).tobytes() == first.tobytes()


@pytest.mark.parametrize("size", [0, 10, 63, 64, 3000])
def test_truncated_file_is_noticed_and_mended(fresh: Any, embed: Any, tmp_path: Path, size: int) -> None:
    first = embed(fresh(), TEXTS)
    (path,) = blobs(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:size])
    assert embed(fresh(), TEXTS).tobytes() == first.tobytes()
    assert path.stat().st_size > 3000


def test_blob_the_library_refuses_is_made_again(
    fresh: Any, embed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = embed(fresh(), TEXTS)
    (path,) = blobs(tmp_path / "cache")
    runtime.write_blob(path, b"another library's format")
    assert embed(fresh(), TEXTS).tobytes() == first.tobytes()
    assert "made again" in caplog.text


def test_folder_that_cannot_be_written_costs_a_warning_only(
    fresh: Any, embed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert embed(fresh(), TEXTS).shape == (2, 32)
    assert "not kept" in caplog.text


def test_one_thread_is_one_stream(fresh: Any, embed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(runtime.machine, "physical_cores", lambda: 4)
    provider = fresh()
    engine = provider._engine
    assert (engine._threads(), engine._streams()) == (8, 4)
    assert (fresh(threads=3)._engine._threads(), fresh(threads=3)._engine._streams()) == (3, 3)
    assert (fresh(threads=1)._engine._threads(), fresh(threads=99)._engine._threads()) == (1, 8)


def test_compute_precision_is_always_asked_for(fresh: Any) -> None:
    properties = fresh()._engine._properties(1, 1)
    assert properties["INFERENCE_PRECISION_HINT"] == "f32"


def test_failing_build_reaches_the_caller_and_leaves_nothing(
    fresh: Any, embed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ValueError("no graph today")

    monkeypatch.setattr(graph, "build", broken)
    provider = fresh()
    with pytest.raises(ValueError, match="no graph today"):
        embed(provider, TEXTS)
    monkeypatch.undo()
    assert blobs(tmp_path / "cache") == []
    assert np.isfinite(embed(provider, TEXTS)).all()
    assert len(blobs(tmp_path / "cache")) == 1
