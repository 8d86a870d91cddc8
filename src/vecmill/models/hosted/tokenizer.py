"""Exact token counts of hosted models, and long texts to pieces or to their first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vecmill.core import tokens
from vecmill.core.errors import InputError
from vecmill.core.types import IntArray
from vecmill.models.base import Encoded, Span
from vecmill.models.hosted.wire import check_unicode

_TRIES = 64
"""How many tokens less are tried until a cut text has no more tokens than allowed."""


@dataclass(frozen=True, slots=True)
class HostedTokenizer:
    """Counts and cuts texts with an encoding of `core.tokens`. No special tokens are added to a text.

    Attributes:
        encoding: Name of the encoding.
    """

    encoding: str

    def encode(self, texts: Sequence[str], *, prefix: str = "", variant: str = "") -> Encoded:
        """Put the prefix before each text and count.

        Raises:
            InputError: A text is no string, or holds half of a surrogate pair; the message has its place.
        """
        check_unicode(texts)
        sent = tuple(prefix + text for text in texts) if prefix else tuple(texts)
        counts = tokens.count(sent, self.encoding)
        return Encoded(sent, counts, np.zeros(len(sent), dtype=np.int64), None, variant)

    def split(self, text: str, *, max_tokens: int, prefix: str = "") -> list[Span]:
        """Cut a text into pieces that each encode to at most `max_tokens`, the prefix counted.

        Cuts lie at white space where a word fits, else between tokens. One pass over the text and one over
        its pieces: linear.

        Raises:
            InputError: `max_tokens` leaves no room for a character of text.
        """
        check_unicode([text])
        fixed = int(tokens.count([prefix], self.encoding)[0]) if prefix else 0
        start, end = _trimmed(text, 0, len(text))
        return self._split(text[start:end], start, max_tokens - fixed, max_tokens, prefix)

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        """Cut every text to its first tokens that fit; what is kept has at most `max_tokens` read alone.

        Raises:
            InputError: `max_tokens` is below 1, or a text's first character needs more.
        """
        long = np.flatnonzero(encoded.tokens > max_tokens)
        if not len(long):
            return encoded
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
        texts, counts = list(encoded.texts), encoded.tokens.copy()
        for row in long.tolist():
            texts[row], counts[row] = self._first(texts[row], max_tokens)
        return Encoded(tuple(texts), counts, encoded.unknown, None, encoded.variant)

    def _first(self, text: str, max_tokens: int) -> tuple[str, int]:
        ends = _ends(text, tokens.byte_lengths(text, self.encoding))
        for keep in range(max_tokens, max(0, max_tokens - _TRIES), -1):
            kept = text[: ends[keep - 1]]
            count = int(tokens.count([kept], self.encoding)[0])
            if kept and count <= max_tokens:
                return kept, count
        raise InputError(f"the text cannot be cut to {max_tokens} tokens: its first character needs more")

    def _split(self, text: str, at: int, room: int, max_tokens: int, prefix: str) -> list[Span]:
        """Cut `text`, which begins at character `at` of the whole, into pieces of about `room` tokens."""
        if not text:
            return []
        if room < 1:
            raise InputError(f"max_tokens is {max_tokens}: too little for a character of text and the prefix")
        cuts = _cuts(text, _ends(text, tokens.byte_lengths(text, self.encoding)), room)
        trimmed = (_trimmed(text, start, end) for start, end in pairwise(cuts))
        pieces = [(start, end) for start, end in trimmed if start < end]
        texts = [text[start:end] for start, end in pieces]
        own = tokens.count(texts, self.encoding)
        total = tokens.count([prefix + piece for piece in texts], self.encoding) if prefix else own
        spans: list[Span] = []
        for (start, end), count, sent in zip(pieces, own.tolist(), total.tolist(), strict=True):
            if sent <= max_tokens:
                spans.append(Span(at + start, at + end, count))
            else:  # read alone, the piece has more tokens than within its text
                less = min(room - 1, room - (sent - max_tokens))
                less = 1 if less < 1 < room else less
                spans += self._split(text[start:end], at + start, less, max_tokens, prefix)
        return spans


def _ends(text: str, lengths: IntArray) -> IntArray:
    """Return for each token the last character border at or before its end: (tokens,) int64."""
    ends = np.cumsum(lengths)  # in bytes
    if text.isascii():
        return ends
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    before = np.concatenate([[0], np.cumsum((raw & 0xC0) != 0x80)])  # characters begun in the first i bytes
    at = before[ends].astype(np.int64)
    inside = (ends < len(raw)) & ((raw[np.minimum(ends, len(raw) - 1)] & 0xC0) == 0x80)
    return np.asarray(at - inside, dtype=np.int64)


def _cuts(text: str, ends: IntArray, room: int) -> list[int]:
    """Return the characters at which to cut, from 0 to the text's length."""
    space = _last_space(text, ends)
    cuts, done = [0], 0  # done: tokens before the last cut
    while len(ends) - done > room:
        high = done + room - 1  # the last token that fits
        best = int(space[high])
        if best <= done or ends[best - 1] <= cuts[-1]:  # no word fits: between tokens
            best = high + 1
        cut = int(ends[best - 1])
        if cut <= cuts[-1]:  # one character has more tokens than fit
            best = int(np.searchsorted(ends, cuts[-1], side="right")) + 1
            cut = int(ends[best - 1])
        cuts.append(cut)
        done = best
    if cuts[-1] < len(text):
        cuts.append(len(text))
    return cuts


def _last_space(text: str, ends: IntArray) -> IntArray:
    """Return for each token how many tokens there are up to the last border at white space, itself included.

    The border lies after a token, beside a white space character; 0 where there is none. (tokens,) int64.
    """
    blank = _blanks(text)
    beside = blank[np.minimum(ends, len(text) - 1)] | blank[np.maximum(ends - 1, 0)]
    count = np.arange(1, len(ends) + 1, dtype=np.int64)
    return np.asarray(np.maximum.accumulate(np.where(beside, count, 0)), dtype=np.int64)


def _blanks(text: str) -> npt.NDArray[np.bool_]:
    return np.fromiter(map(str.isspace, text), np.bool_, len(text))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the part of text[start:end] without white space around it; empty: start == end."""
    piece = text[start:end]
    left = start + len(piece) - len(piece.lstrip())
    return left, max(left, start + len(piece.rstrip()))
