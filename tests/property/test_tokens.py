"""Counting takes a faster pattern where it may; the count is the whole pattern's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vecmill.core import tokens

PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["it's", "WE'LL", " 'Re", "\u017f'\u017f", "12345", "don't", "...", "?!\n", "\n", " ", "  ", "\r\n"]
    ),
    st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"]), max_size=12),
)


@given(st.lists(PIECES, max_size=12))
def test_a_count_is_that_of_the_whole_pattern(pieces: list[str]) -> None:
    joined = ["".join(pieces), " ".join(pieces)]
    encode = tokens._encoding("cl100k_base").any.encode_ordinary
    assert tokens.count(joined).tolist() == [len(encode(text)) for text in joined]


@given(st.lists(PIECES.filter(str.strip), max_size=12))
def test_plain_texts_fall_into_the_same_tokens(pieces: list[str]) -> None:
    text = " ".join("".join(pieces).split())
    found = tokens._encoding("cl100k_base")
    if tokens._is_plain(text):
        assert found.plain.encode_ordinary(text) == found.any.encode_ordinary(text)
