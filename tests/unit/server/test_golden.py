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
from vecmill.core.errors import BadReplyError, ConfigError, CorruptFileError
from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import InputType, Vectors
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
    with pytest.raises(
        BadReplyError, match=r"0\.0005 .*from the golden one of text \d as a document in golden\.json"
    ):
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
        '{"texts": ["a"], "vectors": [[1]], "atol": "x"}',
        '{"texts": ["a"], "vectors": [[1]], "query_vectors": []}',
        '{"texts": ["a"], "vectors": [[1]], "input_type": "song"}',
    ],
)
def test_a_damaged_golden_file_is_refused(settings: Settings, tmp_path: Path, content: str) -> None:
    (tmp_path / "golden.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"golden\.json"):
        check(Bent(), settings, tmp_path)


@pytest.mark.parametrize("atol", ["0.051", "7", "-0.1", "NaN"])
def test_a_tolerance_that_proves_nothing_is_refused(settings: Settings, tmp_path: Path, atol: str) -> None:
    written = '{"texts": ["a"], "vectors": [[1]], "atol": ' + atol.replace("NaN", '"NaN"') + "}"
    (tmp_path / "golden.json").write_text(written)
    with pytest.raises(ConfigError, match=r"golden\.json: atol .* proves nothing"):
        check(Bent(), settings, tmp_path)
    with pytest.raises(ConfigError, match="proves nothing"):
        asyncio.run(golden.write(Bent(), tmp_path, ["a"], atol=float(atol)))


def test_no_tolerance_lets_another_model_of_many_dimensions_pass(settings: Settings, tmp_path: Path) -> None:
    asyncio.run(golden.write(FakeProvider(dimensions=4096), tmp_path, ["a"], atol=golden.MOST_ATOL))
    other = Shifted(dimensions=4096)
    kept = json.loads((tmp_path / "golden.json").read_text())
    there = other.vectors(("other a",))
    assert np.abs(there - np.array(kept["vectors"], np.float32)).max() < 0.1
    with pytest.raises(BadReplyError, match="cosine"):
        check(other, settings, tmp_path)


class Shifted(FakeProvider):
    """A model that puts another prefix before documents."""

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        prefix = "other " if input_type is InputType.DOCUMENT else ""
        return super().encode([prefix + text for text in texts], input_type=input_type)


class OtherQueries(FakeProvider):
    """A model whose documents are right and whose queries have another prefix."""

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        prefix = "" if input_type is InputType.DOCUMENT else "q: "
        return super().encode([prefix + text for text in texts], input_type=input_type)


def test_a_wrong_prefix_of_queries_is_found(settings: Settings, tmp_path: Path) -> None:
    asyncio.run(golden.write(FakeProvider(), tmp_path))
    check(FakeProvider(), settings, tmp_path)
    with pytest.raises(BadReplyError, match="as a query"):
        check(OtherQueries(), settings, tmp_path)


def test_a_file_of_one_role_only_is_still_read(settings: Settings, tmp_path: Path) -> None:
    vectors = FakeProvider().vectors(("query: a",)).tolist()
    (tmp_path / "golden.json").write_text(
        json.dumps({"texts": ["a"], "vectors": vectors, "atol": 0.001, "input_type": "query"})
    )
    check(FakeProvider(), settings, tmp_path)
    with pytest.raises(BadReplyError, match="as a query"):
        check(OtherQueries(), settings, tmp_path)


def test_the_texts_taken_by_themselves_reach_the_models_limit() -> None:
    for most in (3, 40, 256, 100_000):
        provider = FakeProvider(max_tokens=most)
        texts = golden.telling_texts(provider)
        longest = provider.encode(texts, input_type=InputType.QUERY).tokens.max()
        assert longest == min(most, golden.LONG_TOKENS)


def test_golden_texts_above_the_operators_limit_are_left_out(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(golden.write(FakeProvider(), tmp_path, ["a b c d", "a"]))
    check(FakeProvider(max_tokens=3), settings, tmp_path)
    assert "1 texts of its golden.json are longer" in caplog.text
    asyncio.run(golden.write(FakeProvider(), tmp_path, ["a b c d"]))
    with pytest.raises(BadReplyError, match="more than the 3 tokens"):
        check(FakeProvider(max_tokens=3), settings, tmp_path)


def test_a_kept_probe_that_differs_as_processors_do_is_only_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    check(Bent(normalized=False), settings)
    check(Bent(lambda vectors, _: vectors + np.float32(0.02), normalized=False), settings)
    assert "as on another processor" in caplog.text
    with pytest.raises(BadReplyError, match="from those the same files gave earlier"):
        check(Bent(lambda vectors, _: vectors + np.float32(0.06), normalized=False), settings)


def test_a_model_for_very_short_texts_can_pass(settings: Settings) -> None:
    provider = open_model("minilm", settings=settings, max_tokens=6)
    check(provider, settings)
    assert read_probe(settings.cache_dir / "probes", provider.info) is None
    whole = open_model("minilm", settings=settings)
    check(whole, settings)
    assert len(PROBE_TEXTS) == 3
