"""Cutting long texts for hosted models: pieces that fit, first tokens that fit, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core import tokens
from vecmill.core.errors import InputError
from vecmill.models.hosted.tokenizer import HostedTokenizer

CL100K = HostedTokenizer("cl100k_base")
PARTS = [
    "word",
    "Mühle",
    "麻辣火锅",
    "👩‍👩‍👧‍👦",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    " ",
    "  ",
    "\n\n",
    "\t",
    "x" * 40,
    "…",
    "é",
    "\u3000",
    "1234567",
    "!!!",
    "if x:\n    y",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=8)), max_size=40).map("".join)


def count(text: str) -> int:
    return int(tokens.count([text])[0])


def test_counts_are_exact_and_the_prefix_is_counted() -> None:
    encoded = CL100K.encode(["AGI " * 5000, ""], prefix="query: ", variant="other")
    assert encoded.texts == ("query: " + "AGI " * 5000, "query: ")
    assert encoded.tokens.tolist() == [count(text) for text in encoded.texts]
    assert encoded.tokens.dtype == np.int64
    assert encoded.variant == "other"
    assert not encoded.unknown.any()


def test_known_long_text_becomes_two_pieces() -> None:
    text = "AGI " * 5000
    assert count(text) == 10_001
    spans = CL100K.split(text, max_tokens=8191)
    assert len(spans) == 2
    assert [count(text[span.start : span.end]) for span in spans] == [span.tokens for span in spans]
    assert spans[0].tokens >= 8189


@given(text=TEXTS, limit=st.integers(8, 40), prefix=st.sampled_from(["", "search_query: "]))
@settings(deadline=None, max_examples=200)
def test_pieces_fit_and_cover_all_but_white_space(text: str, limit: int, prefix: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    spans = CL100K.split(text, max_tokens=limit, prefix=prefix)
    at = 0
    for span in spans:
        assert not text[at : span.start].strip()
        piece = text[span.start : span.end]
        assert piece == piece.strip()
        assert count(prefix + piece) <= limit
        assert count(piece) == span.tokens
        at = span.end
    assert not text[at:].strip()


@given(text=TEXTS, limit=st.integers(8, 40))
@settings(deadline=None, max_examples=200)
def test_cut_texts_are_beginnings_that_fit(text: str, limit: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    cut = CL100K.truncate(CL100K.encode([text, "short"]), max_tokens=limit)
    assert text.startswith(cut.texts[0])
    assert cut.texts[1] == "short"
    assert cut.tokens.tolist() == [count(kept) for kept in cut.texts]
    assert cut.tokens.max() <= limit
    if count(text) <= limit:
        assert cut.texts[0] == text
    else:
        assert cut.tokens[0] > limit - 8 or cut.texts[0]


def test_first_tokens_are_kept_exactly_where_they_can_be() -> None:
    text = "one two three four five six seven eight nine ten"
    assert CL100K.truncate(CL100K.encode([text]), max_tokens=3).texts == ("one two three",)


def test_words_stay_whole_where_one_fits() -> None:
    text = "international understanding " * 40
    words = set(text.split())
    for span in CL100K.split(text, max_tokens=9):
        assert set(text[span.start : span.end].split()) <= words


def test_word_that_does_not_fit_is_cut() -> None:
    text = "a " + "ξυλουργός" * 30
    spans = CL100K.split(text, max_tokens=10)
    assert "".join(text[span.start : span.end] for span in spans) == text.replace(" ", "")


def test_nothing_but_white_space_has_no_piece() -> None:
    assert CL100K.split(" \n\t ", max_tokens=8) == CL100K.split("", max_tokens=8) == []


@pytest.mark.parametrize(("text", "limit", "prefix"), [("🏴", 1, ""), ("word", 2, "search_query: ")])
def test_limit_below_one_character_is_refused(text: str, limit: int, prefix: str) -> None:
    with pytest.raises(InputError, match="max_tokens"):
        CL100K.split(text, max_tokens=limit, prefix=prefix)


def test_character_that_does_not_fit_cannot_be_kept() -> None:
    with pytest.raises(InputError, match="first character"):
        CL100K.truncate(CL100K.encode(["🏴" * 9]), max_tokens=1)


def test_half_of_a_surrogate_pair_is_refused_everywhere() -> None:
    for call in (
        lambda: CL100K.encode(["fine", "\ud800"]),
        lambda: CL100K.split("\ud800", max_tokens=8),
    ):
        with pytest.raises(InputError, match="surrogate"):
            call()
