from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmill.core.errors import InputError, TextTooLongError, UnavailableError
from vecmill.core.types import InputType, Usage
from vecmill.models.base import Encoded, Provider, Reply
from vecmill.testing.fakes import FakeProvider, fake_vector


def ask(provider: FakeProvider, texts: list[str], input_type: InputType = InputType.DOCUMENT) -> Reply:
    return asyncio.run(provider.embed(provider.encode(texts, input_type=input_type)))


def test_it_is_a_provider() -> None:
    provider: Provider = FakeProvider()
    assert provider.info.dimensions == 8


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30))
def test_vectors_are_a_pure_function_of_the_text(texts: list[str]) -> None:
    together = FakeProvider().vectors(texts)
    alone = np.concatenate([FakeProvider().vectors([text]) for text in texts])
    assert together.tobytes() == alone.tobytes()
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_different_texts_have_different_vectors_far_apart() -> None:
    vectors = FakeProvider(dimensions=64).vectors([f"text {i}" for i in range(2000)])
    assert len({row.tobytes() for row in vectors}) == 2000
    similarity = vectors @ vectors.T - np.eye(2000, dtype=np.float32)
    assert np.abs(similarity).max() < 0.75
    assert abs(vectors.mean()) < 0.01


def test_role_name_and_dimensions_change_the_vector() -> None:
    variants = [
        fake_vector("a", dimensions=16),
        fake_vector("a", dimensions=16, input_type=InputType.QUERY),
        FakeProvider(dimensions=16, name="other").vectors(["a"])[0],
        FakeProvider(dimensions=32).vectors(["a"])[0, :16],
    ]
    for one, other in itertools.combinations(variants, 2):
        assert not np.allclose(one, other, atol=0.01)


def test_the_space_follows_from_name_and_dimensions() -> None:
    spaces = {FakeProvider(dimensions=d, name=n).info.space for d in (8, 16) for n in ("a", "b")}
    assert len(spaces) == 4
    assert FakeProvider().info.space == FakeProvider(max_tokens=3).info.space


def test_words_are_tokens_and_unknown_ones_are_counted() -> None:
    encoded = FakeProvider(unknown=["xyzzy"]).encode(
        ["one two", "", " xyzzy  and xyzzy"], input_type=InputType.DOCUMENT
    )
    assert encoded.tokens.tolist() == [2, 0, 3]
    assert encoded.unknown.tolist() == [0, 0, 2]


def test_a_query_carries_its_prefix_into_the_call() -> None:
    provider = FakeProvider()
    reply = ask(provider, ["a b"], InputType.QUERY)
    assert provider.calls == [("query: a b",)]
    assert reply.usage == Usage(1, 2, 1, 0.0)
    assert reply.vectors[0].tobytes() == fake_vector("a b", input_type=InputType.QUERY).tobytes()


@given(st.text(max_size=60), st.integers(1, 5))
def test_pieces_cover_every_word_within_the_limit(text: str, limit: int) -> None:
    provider = FakeProvider()
    spans = provider.split(text, max_tokens=limit, input_type=InputType.DOCUMENT)
    pieces = [text[span.start : span.end] for span in spans]
    assert [word for piece in pieces for word in piece.split()] == text.split()
    counted = provider.encode(pieces, input_type=InputType.DOCUMENT).tokens.tolist()
    assert counted == [span.tokens for span in spans]
    assert all(0 < tokens <= limit for tokens in counted)


def test_truncating_keeps_prefix_and_first_words() -> None:
    provider = FakeProvider(unknown=["x"])
    encoded = provider.encode(["a x  b x", "a"], input_type=InputType.QUERY)
    cut = provider.truncate(encoded, max_tokens=2)
    assert cut.texts == ("query: a x", "query: a")
    assert (cut.tokens.tolist(), cut.unknown.tolist()) == ([2, 1], [1, 0])
    assert encoded.tokens.tolist() == [4, 1]


def test_a_long_text_is_refused_with_its_count() -> None:
    with pytest.raises(TextTooLongError, match="text 1 has 3 tokens, 2 are allowed"):
        ask(FakeProvider(max_tokens=2), ["a", "a b c"])


def test_faults_strike_the_call_they_are_written_for() -> None:
    provider = FakeProvider(faults={0: UnavailableError("away"), 1: "count", 2: "width", 3: "nan"})
    with pytest.raises(UnavailableError):
        ask(provider, ["a", "b"])
    assert ask(provider, ["a", "b"]).vectors.shape == (1, 8)
    assert ask(provider, ["a", "b"]).vectors.shape == (2, 7)
    assert np.isnan(ask(provider, ["a", "b"]).vectors).sum() == 1
    assert np.isfinite(ask(provider, ["a", "b"]).vectors).all()
    assert len(provider.calls) == 5


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(InputError, match="'typo' of call 2"):
        FakeProvider(faults={2: "typo"})


def test_the_hook_is_awaited_before_the_answer() -> None:
    seen = []

    async def hook(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    provider = FakeProvider(hook=hook)
    ask(provider, ["a"])
    ask(provider, ["b"])
    assert seen == [0, 1]


def test_progress_price_and_closing_are_noted() -> None:
    provider = FakeProvider(usd_per_million_tokens=2.0)
    seen = []
    encoded = provider.encode(["a b", "c"], input_type=InputType.DOCUMENT)
    reply = asyncio.run(provider.embed(encoded, advance=lambda texts, tokens: seen.append((texts, tokens))))
    assert seen == [(2, 3)]
    assert reply.usage.usd == pytest.approx(6e-6)
    asyncio.run(provider.close())
    assert provider.closed


def test_no_texts_give_no_vectors() -> None:
    empty = Encoded((), np.empty(0, np.int64), np.empty(0, np.int64))
    assert asyncio.run(FakeProvider().embed(empty)).vectors.shape == (0, 8)
