"""What a version must prove before it is served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, CorruptFileError
from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import Vectors
from vecmill.embedder.probe import read_probe
from vecmill.models.base import Advance, Encoded, ModelInfo, Reply, no_advance
from vecmill.models.resolve import open_model
from vecmill.server import golden
from vecmill.testing.fakes import FakeProvider

Change = Callable[[Vectors, Sequence[str]], Vectors]


class Bent(FakeProvider):
    """A model whose vectors something has happened to."""

    def __init__(self, change: Change | None = None, **info: Any) -> None:
        super().__init__()
        self.change = change
        self.said = info

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, **self.said)

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        reply = await super().embed(encoded, advance=advance)
        if self.change is None:
            return reply
        return replace(reply, vectors=self.change(reply.vectors.copy(), encoded.texts))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


def check(provider: Any, settings: Settings, folder: Path | None = None) -> Vectors:
    return asyncio.run(golden.check(provider, settings, folder=folder))


def nan_in_one(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    vectors[-1, 3] = np.nan
    return vectors


def other_alone(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    return vectors if len(texts) > 1 else vectors + np.float32(1e-6)


def by_position(vectors: Vectors, texts: Sequence[str]) -> Vectors:
    return vectors + np.arange(len(vectors), dtype=np.float32)[:, None] * np.float32(1e-6)


def test_a_good_model_passes_and_its_probe_is_kept(settings: Settings) -> None:
    provider = Bent()
    vectors = check(provider, settings)
    assert vectors.shape == (3, provider.info.width)
    assert read_probe(settings.cache_dir / "probes", provider.info) is not None
    assert check(provider, settings).tobytes() == vectors.tobytes()


@pytest.mark.parametrize(
    ("provider", "why"),
    [
        (Bent(nan_in_one), "not finite"),
        (Bent(other_alone), "other vectors for the same text"),
        (Bent(by_position), "other vectors for the same text"),
        (Bent(lambda vectors, _: vectors[:, :4]), "vectors of 4 numbers instead of"),
        (Bent(lambda vectors, _: vectors * 2, normalized=True), "no unit length"),
        (Bent(lambda vectors, _: np.ones_like(vectors) * 0.1, normalized=False), "one vector for different"),
    ],
)
def test_a_bad_model_does_not_pass(provider: Bent, why: str, settings: Settings) -> None:
    with pytest.raises(BadReplyError, match=f"failed its check: it gave .*{why}"):
        check(provider, settings)


def test_other_vectors_than_the_same_space_once_gave_do_not_pass(settings: Settings) -> None:
    check(Bent(), settings)
    with pytest.raises(BadReplyError, match="from those the same files gave earlier"):
        check(Bent(lambda vectors, _: -vectors), settings)
    check(Bent(lambda vectors, _: -vectors, space="5" * 32), settings)


def test_a_golden_file_holds_the_model_to_its_vectors(settings: Settings, tmp_path: Path) -> None:
    texts = ["one", "two words"]
    path = asyncio.run(golden.write(Bent(), tmp_path, texts, atol=1e-4))
    assert json.loads(path.read_text())["texts"] == texts
    check(Bent(), settings, tmp_path)
    slightly = Bent(lambda vectors, _: vectors + np.float32(5e-4), normalized=False, space="1" * 32)
    with pytest.raises(BadReplyError, match=r"0\.0005 from the golden one of text \d in golden\.json"):
        check(slightly, settings, tmp_path)


def test_the_golden_vectors_of_another_width_are_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text('{"texts": ["a"], "vectors": [[1, 2]]}')
    with pytest.raises(BadReplyError, match=r"golden\.json of .* has 2"):
        check(Bent(), settings, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"texts": ["a"], "vectors": []}',
        '{"texts": [], "vectors": []}',
        '{"texts": [""], "vectors": [[1]]}',
        '{"texts": ["a"], "vectors": [["x"]]}',
        '{"texts": ["a", "b"], "vectors": [[1], [1, 2]]}',
        '{"texts": ["a"], "vectors": [[1]], "atol": 7}',
        '{"texts": ["a"], "vectors": [[1]], "input_type": "song"}',
    ],
)
def test_a_damaged_golden_file_is_refused(settings: Settings, tmp_path: Path, content: str) -> None:
    (tmp_path / "golden.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"golden\.json"):
        check(Bent(), settings, tmp_path)


def test_a_model_for_very_short_texts_can_pass(settings: Settings) -> None:
    provider = open_model("minilm", settings=settings, max_tokens=6)
    check(provider, settings)
    assert read_probe(settings.cache_dir / "probes", provider.info) is None
    whole = open_model("minilm", settings=settings)
    check(whole, settings)
    assert len(PROBE_TEXTS) == 3
