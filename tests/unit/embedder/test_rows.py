"""Rows to vectors: order, doubles, blanks, long texts, and replies that do not answer the request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmill.core.errors import BadReplyError, InputError
from vecmill.core.types import EmptyText, InputType, LongText
from vecmill.embedder.channel import Channel, checked
from vecmill.embedder.rows import Policy, RowVectors, embed_prepared, prepare
from vecmill.testing.fakes import FakeProvider

LONG = " ".join(f"word{i}" for i in range(50))


def embed(
    texts: Sequence[str | None], provider: FakeProvider | None = None, policy: Policy | None = None
) -> RowVectors:
    provider = provider or FakeProvider(dimensions=16, max_tokens=20)
    policy = policy or Policy()

    async def both() -> RowVectors:
        return await embed_prepared(Channel(provider), await prepare(provider, texts, policy), policy)

    return asyncio.run(both())


def alone(text: str, input_type: InputType = InputType.DOCUMENT) -> np.ndarray:
    return embed([text], policy=Policy(input_type=input_type)).vectors[0]


@given(st.lists(st.sampled_from(["a", "b b", "c c c", "d", None, " "]), max_size=12))
def test_each_row_gets_the_vector_of_its_own_text(texts: list[str | None]) -> None:
    result = embed(texts)
    by_row = dict(zip(result.rows.tolist(), result.vectors, strict=True))
    for row, text in enumerate(texts):
        if text is None:
            assert row not in by_row
            assert row not in result.errors
        elif not text.strip():
            assert result.errors[row].code == "empty_text"
        else:
            assert (by_row[row] == alone(text)).all()
    assert result.sent + result.deduped == len(by_row)
    assert result.sent == len({text for text in texts if text and text.strip()})


def test_equal_texts_are_sent_once() -> None:
    provider = FakeProvider(dimensions=16, max_tokens=20)
    embed(["x", "y", "x", "x"], provider)
    assert [list(call) for call in provider.calls] == [["x", "y"]]


def test_blank_texts_can_be_skipped_or_embedded() -> None:
    skipped = embed(["a", " "], policy=Policy(empty=EmptyText.SKIP))
    assert skipped.rows.tolist() == [0]
    assert not skipped.errors
    embedded = embed(["a", " "], policy=Policy(empty=EmptyText.EMBED))
    assert embedded.rows.tolist() == [0, 1]


def test_a_long_text_is_an_error_with_its_count_by_default() -> None:
    result = embed(["a", LONG])
    assert result.rows.tolist() == [0]
    assert result.errors[1].code == "text_too_long"
    assert "takes 20" in result.errors[1].message


def test_average_is_the_token_weighted_mean_of_the_pieces_renormalized() -> None:
    provider = FakeProvider(dimensions=16, max_tokens=20)
    spans = provider.split(LONG, max_tokens=20, input_type=InputType.DOCUMENT)
    assert len(spans) > 2
    expected = sum(span.tokens * alone(LONG[span.start : span.end]).astype(np.float64) for span in spans)
    expected = expected / np.linalg.norm(expected)
    result = embed(["a", LONG, "b"], policy=Policy(long_text=LongText.AVERAGE))
    assert result.rows.tolist() == [0, 1, 2]
    assert result.pieces.tolist() == [1, len(spans), 1]
    np.testing.assert_allclose(result.vectors[1], expected, atol=1e-6)
    assert (result.vectors[0] == alone("a")).all()
    assert (result.vectors[2] == alone("b")).all()


def test_chunks_give_one_vector_per_piece_and_repeat_for_double_rows() -> None:
    result = embed([LONG, "a", LONG], policy=Policy(long_text=LongText.CHUNKS))
    assert result.spans is not None
    pieces = int(result.pieces[0])
    assert result.rows.tolist() == [0] * pieces + [1] + [2] * pieces
    for vector, row, span in zip(result.vectors, result.rows, result.spans, strict=True):
        text = [LONG, "a", LONG][row]
        assert (vector == alone(text[span.start : span.end])).all()


def test_truncate_keeps_the_first_tokens() -> None:
    result = embed([LONG], policy=Policy(long_text=LongText.TRUNCATE))
    assert result.rows.tolist() == [0]
    assert result.usage.tokens <= 20


def test_queries_and_documents_are_embedded_by_their_role() -> None:
    assert not (alone("a") == alone("a", InputType.QUERY)).all()


def test_no_texts_give_no_vectors_and_no_call() -> None:
    provider = FakeProvider(dimensions=16, max_tokens=20)
    assert embed([], provider).vectors.shape == (0, 16)
    assert embed([None, None], provider).vectors.shape == (0, 16)
    assert list(provider.calls) == []


@pytest.mark.parametrize("limit", [4, 21])
def test_a_token_limit_the_model_does_not_have_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=r"at least 8|takes 8 to 20"):
        embed(["a"], policy=Policy(max_tokens=limit))


def test_replies_are_checked_for_count_width_and_values() -> None:
    with pytest.raises(BadReplyError, match="3 vectors of 4"):
        checked(np.zeros((2, 4), dtype=np.float32), 3, 4, "m")
    with pytest.raises(BadReplyError, match="3 vectors of 4"):
        checked(np.zeros((3, 1), dtype=np.float32), 3, 4, "m")
    bad = np.zeros((3, 4), dtype=np.float32)
    bad[1, 2] = np.nan
    with pytest.raises(BadReplyError, match="position 1"):
        checked(bad, 3, 4, "m")
