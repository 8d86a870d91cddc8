"""Pooling, normalization and streams said by the caller instead of by the folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, InputError, UnknownNameError
from vecmill.core.types import InputType, Vectors
from vecmill.models.base import ModelInfo
from vecmill.models.resolve import open_model

MODELS = Path(__file__).parents[3] / "data" / "models"
TEXTS = [
    "a mill",
    "the quick brown fox jumps over the lazy dog",
    "one two three four five six seven eight nine ten",
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


def embedded(model: str, settings: Settings, **more: Any) -> tuple[ModelInfo, Vectors]:
    async def run() -> tuple[ModelInfo, Vectors]:
        provider = open_model(model, settings=settings, **more)
        try:
            work = provider.encode(TEXTS, input_type=InputType.DOCUMENT)
            return provider.info, (await provider.embed(work)).vectors
        finally:
            await provider.close()

    return asyncio.run(run())


def test_another_pooling_is_another_space_with_other_vectors(settings: Settings) -> None:
    folder = str(MODELS / "bert-mean")
    own, mean = embedded(folder, settings)
    info, cls = embedded(folder, settings, pooling="cls")
    assert (info.pooling, own.pooling) == ("cls", "mean")
    assert info.space != own.space
    assert not np.allclose(cls, mean, atol=1e-3)


def test_the_folders_own_pooling_said_again_changes_nothing(settings: Settings) -> None:
    folder = str(MODELS / "bert-mean")
    own, vectors = embedded(folder, settings)
    info, again = embedded(folder, settings, pooling="mean", normalize=False)
    assert info == own
    assert again.tobytes() == vectors.tobytes()


def test_normalize_gives_unit_length_and_no_normalize_takes_it_away(settings: Settings) -> None:
    plain, vectors = embedded(str(MODELS / "bert-mean"), settings)
    unit, scaled = embedded(str(MODELS / "bert-mean"), settings, normalize=True)
    assert unit.normalized
    assert not plain.normalized
    assert unit.space != plain.space
    np.testing.assert_allclose(scaled, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-5)
    bare, long = embedded("minilm", settings, normalize=False)
    assert not bare.normalized
    assert np.abs(np.linalg.norm(long, axis=1) - 1).min() > 0.1


@pytest.mark.parametrize("streams", [1, 2, 7])
def test_streams_do_not_change_a_bit(settings: Settings, streams: int) -> None:
    own, vectors = embedded("minilm", settings)
    info, again = embedded("minilm", settings, streams=streams)
    assert info == own
    assert again.tobytes() == vectors.tobytes()


def test_an_ir_of_token_vectors_takes_another_pooling(settings: Settings) -> None:
    own, mean = embedded(str(MODELS / "ir-tokens"), settings)
    info, cls = embedded(str(MODELS / "ir-tokens"), settings, pooling="cls")
    assert info.pooling == "cls+normalize"
    assert info.space != own.space
    assert not np.allclose(cls, mean, atol=1e-3)


def test_a_graph_that_pools_by_itself_refuses_a_pooling(settings: Settings) -> None:
    with pytest.raises(InputError, match="pools by itself"):
        embedded(str(MODELS / "onnx-sentences"), settings, pooling="mean")


def test_a_graph_that_pools_by_itself_takes_normalize(settings: Settings) -> None:
    info, vectors = embedded(str(MODELS / "onnx-sentences"), settings, normalize=True)
    assert info.normalized
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_unknown_pooling_and_no_streams_are_refused(settings: Settings) -> None:
    with pytest.raises(UnknownNameError, match="unknown pooling 'means'"):
        embedded(str(MODELS / "bert-mean"), settings, pooling="means")
    with pytest.raises(InputError, match="streams 0"):
        embedded("minilm", settings, streams=0)


def test_normalize_alone_does_not_make_up_a_pooling(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((MODELS / "bert-mean" / name).read_bytes())
    with pytest.raises(ConfigError, match="does not say how token vectors are pooled"):
        embedded(str(folder), settings, normalize=True)
    info, _ = embedded(str(folder), settings, pooling="mean")
    assert info.pooling == "mean"


@pytest.mark.parametrize("more", [{"pooling": "mean"}, {"normalize": True}, {"streams": 2}])
def test_a_hosted_model_refuses_them(settings: Settings, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"leave out {next(iter(more))}"):
        open_model("openai:text-embedding-3-small", settings=settings, needs_key=False, **more)
