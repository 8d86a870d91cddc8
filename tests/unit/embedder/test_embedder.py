"""The library's door: what it refuses, what it returns, and that both doors are the same."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from vecmill.core.errors import InputError, TextTooLongError
from vecmill.embedder.embedder import AsyncEmbedder, Embedder, LanguageWarning
from vecmill.testing.fakes import FakeProvider


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(dimensions=16, max_tokens=20)


def test_vectors_come_in_the_order_of_the_texts(provider: FakeProvider) -> None:
    with Embedder(provider=provider) as embedder:
        found = embedder.embed(["one", "two", "one"])
        assert found.vectors.shape == (3, 16)
        assert found.vectors.dtype == np.float32
        assert (found.vectors[0] == found.vectors[2]).all()
        assert (np.asarray(found) == found.vectors).all()
        assert found.space == provider.info.space
        assert found.usage.texts == 2


def test_a_single_text_is_a_list_of_one(provider: FakeProvider) -> None:
    assert Embedder(provider=provider).embed("one").vectors.shape == (1, 16)


def test_no_texts_give_an_empty_matrix(provider: FakeProvider) -> None:
    assert Embedder(provider=provider).embed([]).vectors.shape == (0, 16)


def test_blank_texts_raise_with_their_position(provider: FakeProvider) -> None:
    with pytest.raises(InputError, match="text 1 is empty"):
        Embedder(provider=provider).embed(["a", "  ", ""])


def test_what_is_not_a_text_raises_with_its_position(provider: FakeProvider) -> None:
    with pytest.raises(InputError, match="text 1 is int"):
        Embedder(provider=provider).embed(["a", 3])  # type: ignore[list-item]


def test_long_texts_raise_with_the_exact_count(provider: FakeProvider) -> None:
    long = " ".join(["word"] * 40)
    with pytest.raises(TextTooLongError, match=r"text 1 has 4\d tokens"):
        Embedder(provider=provider).embed(["a", long])
    averaged = Embedder(provider=provider, long_text="average").embed(["a", long])
    assert averaged.vectors.shape == (2, 16)


def test_unknown_policies_are_refused(provider: FakeProvider) -> None:
    with pytest.raises(ValueError, match="shred"):
        Embedder(provider=provider, long_text="shred")
    with pytest.raises(InputError, match="skip"):
        Embedder(provider=provider, empty="skip")


def test_model_and_provider_exclude_each_other(provider: FakeProvider) -> None:
    with pytest.raises(InputError, match="not both"):
        Embedder("minilm", provider=provider)


def test_both_doors_give_the_same(provider: FakeProvider) -> None:
    async def embed() -> np.ndarray:
        async with AsyncEmbedder(provider=provider) as embedder:
            inside = Embedder(provider=provider).embed(["a", "b"])  # sync in a running loop, as in a notebook
            awaited = await embedder.embed(["a", "b"])
            assert (inside.vectors == awaited.vectors).all()
            return awaited.vectors

    assert asyncio.run(embed()).shape == (2, 16)


def test_the_two_doors_have_the_same_methods() -> None:
    public = {name for name in dir(AsyncEmbedder) if not name.startswith("_")}
    assert public == {name for name in dir(Embedder) if not name.startswith("_")}


def test_the_manifest_carries_the_probe(provider: FakeProvider) -> None:
    manifest = Embedder(provider=provider).manifest()
    probe = manifest.probe_vectors()
    assert probe is not None
    assert probe.shape == (3, 16)
    assert manifest.space == provider.info.space


def test_texts_in_a_language_the_model_does_not_know_warn() -> None:
    with Embedder("minilm") as embedder:
        for text in ("我喜欢猫, 今天天气很好", "Ο μύλος στέκεται δίπλα στο ποτάμι και αλέθει"):
            with pytest.warns(LanguageWarning, match="multilingual"):
                embedder.embed([text])
        embedder.embed(["The mill stands beside the river.", "Die Mühle steht am Fluss."])


def test_embeddings_show_themselves_in_one_line(provider: FakeProvider) -> None:
    assert repr(Embedder(provider=provider).embed(["a"])).startswith(
        "Embeddings(1 vectors of 16 dimensions, fake:"
    )
