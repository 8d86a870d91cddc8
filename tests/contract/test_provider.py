"""What every provider promises, asked of local and hosted ones and of the fake that stands in for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import TextTooLongError
from vecmill.core.types import InputType
from vecmill.models.base import Encoded, Provider
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.provider import HostedProvider
from vecmill.models.local.provider import load
from vecmill.testing.fakes import FakeProvider
from vecmill.testing.simulator import Simulator, simulator_thread

GOLDEN = Path(__file__).parents[1] / "data" / "models"
TEXTS = ("the mill turns", "grain into flour and flour into bread", "", "old stone bridge", "the mill turns")
NAMES = (
    "fake",
    "hosted",
    "all-MiniLM-L6-v2",
    *(str(GOLDEN / name) for name in ("bert-prompts", "roberta-cls", "onnx-sentences")),
)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with simulator_thread() as running:
        yield running


@pytest.fixture(params=NAMES, ids=lambda name: Path(name).name)
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """Every kind of provider, without a network."""
    if request.param == "fake":
        made: Provider = FakeProvider()
    elif request.param == "hosted":
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        made = hosted(request.getfixturevalue("simulator"))
    else:
        made = load(request.param, settings=load_settings())
    yield made
    if request.param == "hosted":
        asyncio.run(made.close())


def hosted(simulator: Simulator) -> HostedProvider:
    """A hosted model with a prefix: without one an empty text is refused by the other side."""

    async def login() -> Mapping[str, str]:
        return {"Authorization": f"Bearer {simulator.key}"}

    name = "text-embedding-3-small"
    facts = Facts(catalogue_name=name, dimensions=1536, mrl=True, document_prefix="text: ")
    url = f"{simulator.url}/embeddings"
    return HostedProvider(Connection("openai", f"openai:{name}", name, url, login, facts), max_tokens=64)


def encode(provider: Provider, *texts: str, input_type: InputType = InputType.DOCUMENT) -> Encoded:
    return provider.encode(texts, input_type=input_type)


def test_info_is_whole(provider: Provider) -> None:
    info = provider.info
    assert len(info.space) == 32
    assert info.name.startswith(f"{info.provider}:")
    assert info.dimensions > 0
    assert info.max_tokens > 2


def test_encoded_measures_every_text(provider: Provider) -> None:
    encoded = encode(provider, *TEXTS)
    assert len(encoded) == len(TEXTS)
    assert encoded.tokens.dtype == encoded.unknown.dtype == np.int64
    if encoded.ids is not None:
        assert [len(ids) for ids in encoded.ids] == encoded.tokens.tolist()
    assert np.all(encoded.unknown <= encoded.tokens)
    for sent, text in zip(encoded.texts, TEXTS, strict=True):
        assert sent.endswith(text)


def test_vectors_come_in_the_order_of_the_texts(provider: Provider) -> None:
    encoded = encode(provider, *TEXTS)
    whole = asyncio.run(provider.embed(encoded)).vectors
    assert whole.shape == (len(TEXTS), provider.info.dimensions)
    assert whole.dtype == np.float32
    assert whole.flags.c_contiguous
    assert np.isfinite(whole).all()
    for row in range(len(TEXTS)):
        alone = asyncio.run(provider.embed(encoded.take([row]))).vectors[0]
        assert alone.tobytes() == whole[row].tobytes()
    assert whole[0].tobytes() == whole[4].tobytes()
    assert whole[0].tobytes() != whole[1].tobytes()


def test_normalized_is_what_info_says(provider: Provider) -> None:
    norms = np.linalg.norm(asyncio.run(provider.embed(encode(provider, *TEXTS))).vectors, axis=1)
    if provider.info.normalized:
        np.testing.assert_allclose(norms, 1, atol=1e-5)
    else:
        assert np.abs(norms - 1).max() > 1e-3


def test_long_text_is_refused_and_its_pieces_fit(provider: Provider) -> None:
    text = "grain into flour and flour into bread " * 200
    encoded = encode(provider, text)
    with pytest.raises(TextTooLongError, match="text 0"):
        asyncio.run(provider.embed(encoded))
    limit = provider.info.max_tokens
    spans = provider.split(text, max_tokens=limit, input_type=InputType.DOCUMENT)
    pieces = encode(provider, *(text[span.start : span.end] for span in spans))
    assert pieces.tokens.max() <= limit
    assert " ".join(text[span.start : span.end] for span in spans) == text.strip()
    assert np.isfinite(asyncio.run(provider.embed(pieces)).vectors).all()


def test_truncated_text_fits_and_is_keyed_by_what_is_kept(provider: Provider) -> None:
    encoded = encode(provider, "grain into flour " * 300, "mill")
    limit = provider.info.max_tokens
    cut = provider.truncate(encoded, max_tokens=limit)
    assert cut.tokens.max() <= limit
    assert encoded.texts[0].startswith(cut.texts[0])
    assert cut.texts[1] == encoded.texts[1]
    assert asyncio.run(provider.embed(cut)).vectors.shape[0] == 2


def test_progress_adds_up(provider: Provider) -> None:
    seen: list[tuple[int, int]] = []
    encoded = encode(provider, *TEXTS)
    reply = asyncio.run(provider.embed(encoded, advance=lambda texts, tokens: seen.append((texts, tokens))))
    assert sum(texts for texts, _ in seen) == reply.usage.texts == len(TEXTS)
    assert sum(tokens for _, tokens in seen) == reply.usage.tokens == encoded.tokens.sum()


def test_nothing_in_gives_nothing_out(provider: Provider) -> None:
    reply = asyncio.run(provider.embed(encode(provider)))
    assert reply.vectors.shape == (0, provider.info.dimensions)


def test_closes_unused(provider: Provider) -> None:
    asyncio.run(provider.close())
