"""Counting, cutting and splitting with a model's own tokenizer."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from vecmill.core.errors import InputError
from vecmill.models.local.files import BUILTIN_FOLDER
from vecmill.models.local.tokenizer import Tokenizer

BUILTIN = Tokenizer(BUILTIN_FOLDER / "tokenizer.json")
UNIGRAM = Tokenizer(Path(__file__).parents[3] / "data" / "models" / "roberta-cls" / "tokenizer.json")
PROSE = " ".join(f"Sentence number {i} of a long text, about mills & water;" for i in range(80))
TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab Z.,-\n\t é中文字🙂\u200b\u00a0'"), st.characters(exclude_categories=["Cs"])
    ),
    max_size=300,
)


def count(text: str, tokenizer: Tokenizer = BUILTIN) -> int:
    return int(tokenizer.encode([text]).tokens[0])


def test_counts_include_special_tokens_and_ignore_the_files_own_limit() -> None:
    encoded = BUILTIN.encode(["", "mill", "mill " * 300])
    assert encoded.tokens.tolist() == [2, 3, 302]
    assert encoded.ids is not None
    assert [len(ids) for ids in encoded.ids] == [2, 3, 302]
    assert {ids.dtype for ids in encoded.ids} == {np.dtype(np.int32)}


def test_unknown_tokens_are_counted() -> None:
    assert BUILTIN.encode(["mill", "ꙮ ꙮ mill"]).unknown.tolist() == [0, 2]


@pytest.mark.parametrize("tokenizer", [BUILTIN, UNIGRAM], ids=["wordpiece", "unigram"])
@settings(deadline=None)
@given(text=TEXTS)
def test_a_text_alone_is_read_as_among_others(tokenizer: Tokenizer, text: str) -> None:
    alone, among = tokenizer.encode([text]), tokenizer.encode([text, "mill"]).take([0])
    assert alone.ids is not None
    assert among.ids is not None
    assert np.array_equal(alone.ids[0], among.ids[0])
    assert (alone.tokens[0], alone.unknown[0]) == (among.tokens[0], among.unknown[0])
    assert (alone.ids[0].dtype, alone.tokens.dtype, alone.unknown.dtype) == (np.int32, np.int64, np.int64)


def test_more_texts_than_one_call_takes_keep_their_order() -> None:
    texts = [f"text {i}" for i in range(9000)]
    encoded = BUILTIN.encode(texts)
    some = BUILTIN.encode(texts[8990:])
    assert encoded.ids is not None
    assert some.ids is not None
    for row in range(10):
        np.testing.assert_array_equal(encoded.ids[8990 + row], some.ids[row])


def test_half_a_surrogate_is_named_by_position() -> None:
    with pytest.raises(InputError, match=r"text 1 .*character 4"):
        BUILTIN.encode(["fine", "not \ud800 fine"])


def test_split_of_a_short_text_is_the_text() -> None:
    (span,) = BUILTIN.split("  the mill turns \n", max_tokens=256)
    assert (span.start, span.end, span.tokens) == (2, 16, 3)


def test_split_of_nothing_is_nothing() -> None:
    assert BUILTIN.split(" \n\t", max_tokens=256) == []


@pytest.mark.parametrize("tokenizer", [BUILTIN, UNIGRAM])
def test_split_cuts_between_words(tokenizer: Tokenizer) -> None:
    spans = tokenizer.split(PROSE, max_tokens=40)
    assert len(spans) > 5
    for span in spans:
        assert count(PROSE[span.start : span.end], tokenizer) == span.tokens + 2 <= 40
    for left, right in itertools.pairwise(spans):
        assert PROSE[left.end : right.start].isspace()


def test_split_fills_its_pieces() -> None:
    spans = BUILTIN.split("mill " * 1000, max_tokens=102)
    assert [span.tokens for span in spans] == [100] * 10


def test_split_counts_the_prefix() -> None:
    for span in BUILTIN.split(PROSE, max_tokens=20, prefix="query: "):
        assert count("query: " + PROSE[span.start : span.end]) <= 20
        assert count(PROSE[span.start : span.end]) == span.tokens + 2


def test_word_longer_than_a_piece_is_cut_inside() -> None:
    giant = "ab-" * 400
    spans = BUILTIN.split(f"before {giant} after", max_tokens=50)
    text = f"before {giant} after"
    assert "".join(text[s.start : s.end] for s in spans).replace(" ", "") == text.replace(" ", "")
    assert all(count(text[s.start : s.end]) <= 50 for s in spans)


def test_text_without_spaces_is_cut() -> None:
    text = "粉磨坊水车" * 200
    spans = BUILTIN.split(text, max_tokens=64)
    assert "".join(text[s.start : s.end] for s in spans) == text
    assert all(count(text[s.start : s.end]) <= 64 for s in spans)


def test_split_without_room_raises() -> None:
    with pytest.raises(InputError, match="leaves no room"):
        BUILTIN.split("the mill", max_tokens=2)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(8, 40), st.sampled_from([BUILTIN, UNIGRAM]))
def test_split_covers_everything_within_the_limit(text: str, limit: int, tokenizer: Tokenizer) -> None:
    spans = tokenizer.split(text, max_tokens=limit)
    at = 0
    for span in spans:
        assert not text[at : span.start].strip()
        assert span.end > span.start
        assert count(text[span.start : span.end], tokenizer) == span.tokens + 2 <= limit
        at = span.end
    assert not text[at:].strip()


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(8, 40), st.sampled_from([BUILTIN, UNIGRAM]))
def test_truncated_text_has_the_ids_it_encodes_to(text: str, limit: int, tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode([text])
    assert encoded.ids is not None
    kept, ids = tokenizer.truncate(text, encoded.ids[0], limit)
    again = tokenizer.encode([kept]).ids
    assert text.startswith(kept)
    assert len(ids) <= limit
    assert again is not None
    np.testing.assert_array_equal(ids, again[0])


def test_truncate_keeps_the_first_tokens_and_the_special_ones() -> None:
    encoded = BUILTIN.encode([PROSE])
    assert encoded.ids is not None
    kept, ids = BUILTIN.truncate(PROSE, encoded.ids[0], 64)
    assert len(ids) == 64
    np.testing.assert_array_equal(ids[:-1], encoded.ids[0][:63])
    assert ids[-1] == encoded.ids[0][-1]
    assert PROSE.startswith(kept)


def test_lowercase_models_see_lower_case(golden: Path) -> None:
    tokenizer = Tokenizer(golden / "roberta-cls" / "tokenizer.json", lowercase=True)
    lower, upper = tokenizer.encode(["the mill", "THE MILL"]).ids or ()
    np.testing.assert_array_equal(lower, upper)
    spans = tokenizer.split("THE MİLL " * 50, max_tokens=20)
    assert all(span.tokens <= 18 for span in spans)


def test_long_line_is_split_in_time_linear_in_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    tokenizer = Tokenizer(BUILTIN_FOLDER / "tokenizer.json")
    encode, one = tokenizer.encode, tokenizer._encode_one

    def counted(texts: Any) -> Any:
        seen.append(sum(map(len, texts)))
        return encode(texts)

    def counted_one(text: str) -> Any:
        seen.append(len(text))
        return one(text)

    monkeypatch.setattr(tokenizer, "encode", counted)
    monkeypatch.setattr(tokenizer, "_encode_one", counted_one)
    text = re.sub(r"\s+", " ", PROSE * 80)[:300_000]
    assert len(tokenizer.split(text, max_tokens=256)) > 250
    assert sum(seen) <= 3 * len(text)  # characters tokenized


@pytest.mark.parametrize("text", ["naïve 漢字 🌊 \u0301x  y\n", "a-b, c's don't.  "])
def test_long_texts_are_read_as_short_ones_without_stopping_other_threads(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(BUILTIN_FOLDER / "tokenizer.json")
    whole = text * 300
    ids = tokenizer.encode([whole]).ids
    assert ids is not None

    def read() -> tuple[Any, Any]:
        return tokenizer.split(whole, max_tokens=50), tokenizer.truncate(whole, ids[0], 50)[0]

    short = read()
    monkeypatch.setattr("vecmill.models.local.tokenizer._QUICK", 10)
    assert read() == short


def test_rows_hold_the_largest_id_added_tokens_included(tmp_path: Path) -> None:
    lists = models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)
    gaps = models.WordLevel({"<unk>": 0, "a": 7}, unk_token="<unk>")  # noqa: S106 - no password
    for number, model in enumerate((lists, gaps)):
        backend = Backend(model)
        path = tmp_path / f"{number}.json"
        backend.save(str(path))
        assert Tokenizer(path).rows == 1 + max(backend.get_vocab().values())
        backend.add_special_tokens(["<extra>"])
        backend.save(str(path))
        assert Tokenizer(path).rows == 1 + max(backend.get_vocab().values())
