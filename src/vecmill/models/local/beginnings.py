"""Whether the first tokens of a text can be told from its beginning alone.

Most tokenizers cut a text into words by single characters and read each word by itself. Then what follows a
finished word changes nothing before it. Where this cannot be shown, the whole text has to be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_NORMALIZERS = frozenset(
    {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Precompiled", "Strip"}
)
"""These change characters by what stands in the same word."""

_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
"""Of replacements only this one: runs of blanks to one."""

_WORDS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "ByteLevel"})
"""These end a word at every single blank between letters."""

# Letters and digits no neighbour merges with or changes; marks and the like are left out.
_PLAIN = "0-9A-Za-zÀ-ÖØ-öø-ÿΑ-Ωα-ωА-яא-תぁ-ゖァ-ヺ一-鿿가-힣"
_BLANK = re.compile(f"(?<=[{_PLAIN}]) (?=[{_PLAIN}])")


@dataclass(frozen=True, slots=True)
class Borders:
    """Where a tokenizer's words certainly end.

    Attributes:
        any_word: Words are told by single characters, so each next word ends the one before it; else only a
            single blank between plain letters does.
        margin: Characters of the longest token that is found before words are told apart.
    """

    any_word: bool
    margin: int

    def settles(self, piece: str, encoding: Any, last: int) -> bool:
        """Say whether no text that begins with `piece` is read otherwise up to a token.

        Args:
            piece: The beginning of a text, with at least one character missing after it.
            encoding: Its tokens, with special ones.
            last: The token's place.
        """
        end = encoding.token_to_chars(last)[1]
        if self.any_word:
            words = encoding.word_ids
            if words[last + 1] is not None and words[last + 1] != words[last]:
                return bool(len(piece) - end > self.margin)
        return _BLANK.search(piece, end) is not None  # looks at the letter before `end` too


def borders_of(settings: dict[str, Any]) -> Borders | None:
    """Return where the words of a tokenizer.json end; None where nobody can say."""
    normalizers = _flat(settings.get("normalizer"), "normalizers")
    words = _flat(settings.get("pre_tokenizer"), "pretokenizers")
    added = settings.get("added_tokens") or []
    names = [str(token.get("content", "")) for token in added]
    if any(set(name) & set(" \t\r\n") for name in names):
        return None
    if not all(_is_local(one) for one in normalizers):
        return None
    if not words or not all(_tells_words(one) for one in words):
        return None
    bert = [one["type"] for one in words] == ["BertPreTokenizer"] and [
        one["type"] for one in normalizers
    ] in (
        [],
        ["BertNormalizer"],
    )
    raw = not any(token.get("normalized") for token in added)
    return Borders(bert and raw, max(map(len, names), default=0))


def _flat(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [one for inner in part.get(name, ()) for one in _flat(inner, name)]
    return [part]


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer.get("type") == "Replace":
        return {name: normalizer.get(name) for name in _SPACES} == _SPACES
    return normalizer.get("type") in _NORMALIZERS


def _tells_words(one: dict[str, Any]) -> bool:
    kind = one.get("type")
    if kind == "ByteLevel":
        return one.get("use_regex") is not False
    if kind == "Metaspace":
        return one.get("split") is not False
    return kind in _WORDS
