"""Texts to token ids, and long texts to pieces, with a model's own tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as _Backend

from vecmill.core.errors import ConfigError, CorruptFileError, InputError
from vecmill.models.base import Encoded, Span, TokenIds
from vecmill.models.local.beginnings import borders_of

_CHUNK = 4096
"""Texts per call of the backend: enough to keep its threads busy, little enough to bound memory."""


_QUICK = 8192
"""Characters, or tokens, up to which a call of the backend that stops all other threads is taken: 2 ms."""


_CHARACTERS_PER_TOKEN = 6
"""How many characters of a long text are read first to fill a token; a little more than most texts have."""


class Tokenizer:
    """A model's tokenizer with padding and truncation switched off.

    Attributes:
        padding_id: The id that fills rows, where the file names one.
        unknown_id: The id of what the vocabulary lacks; None where nothing is unknown (byte-level models).
        specials: Tokens put before and after every text.
        rows: Rows a table of word embeddings needs: the largest id, added tokens included, + 1.
    """

    def __init__(self, path: Path, *, lowercase: bool = False) -> None:
        """Read a tokenizer.json, and what tokenizer_config.json beside it says otherwise.

        Raises:
            CorruptFileError: It is no tokenizer.json.
            ConfigError: tokenizer_config.json asks for another normalization than tokenizer.json does.
        """
        try:
            raw = path.read_text("utf-8")
            settings = json.loads(raw)
            self._backend: Any = _Backend.from_str(raw)
        except Exception as error:  # the library raises bare Exception
            raise CorruptFileError(
                f"{path} is not a tokenizer.json ({error}): fetch the model again"
            ) from error
        self.padding_id: int | None = (settings.get("padding") or {}).get("pad_id")
        self._backend.no_padding()
        self._backend.no_truncation()
        self._lowercase = lowercase
        self._borders = borders_of(settings)
        unknown = settings["model"].get("unk_token")
        self.unknown_id: int | None = (
            self._backend.token_to_id(unknown)
            if isinstance(unknown, str)
            else settings["model"].get("unk_id")
        )
        mask = self._backend.encode("a").special_tokens_mask
        head = next((i for i, special in enumerate(mask) if not special), len(mask))
        self.specials = (head, sum(mask) - head)
        self.rows = 1 + max(_largest(settings["model"]), *self._backend.get_added_tokens_decoder(), -1)
        overrides = _overrides(path.with_name("tokenizer_config.json"))
        _refuse_overrides(overrides, settings.get("normalizer"), path)
        self._keeps_ends = path if overrides.get("truncation_side") == "left" else None

    def id_of(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return a text of these tokens, special ones left out; what was lost in reading stays lost."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts as they are, special tokens added.

        Raises:
            InputError: A text holds half of a surrogate pair, which no encoding can carry.
        """
        if len(texts) == 1:  # what a server is mostly asked for: a third of the time
            alone = np.array(self._batch(texts, 0)[0].ids, dtype=np.int32)
            lost = 0 if self.unknown_id is None else int(np.count_nonzero(alone == self.unknown_id))
            return Encoded(tuple(texts), np.array([len(alone)]), np.array([lost]), (alone,))
        ids: list[TokenIds] = []
        counts = np.zeros(len(texts), dtype=np.int64)
        unknown = np.zeros(len(texts), dtype=np.int64)
        for start in range(0, len(texts), _CHUNK):
            some = [encoding.ids for encoding in self._batch(texts[start : start + _CHUNK], start)]
            lengths = np.fromiter(map(len, some), dtype=np.int64, count=len(some))
            flat = np.fromiter(chain.from_iterable(some), dtype=np.int32, count=int(lengths.sum()))
            ends = np.cumsum(lengths)
            ids.extend(flat[end - length : end] for end, length in zip(ends, lengths, strict=True))
            counts[start : start + len(some)] = lengths
            if self.unknown_id is not None:
                running = np.concatenate([[0], np.cumsum(flat == self.unknown_id)])
                unknown[start : start + len(some)] = running[ends] - running[ends - lengths]
        return Encoded(tuple(texts), counts, unknown, tuple(ids))

    def encode_beginnings(self, texts: Sequence[str], max_tokens: int) -> tuple[Encoded, list[int]]:
        """Tokenize texts and cut the long ones; of these no more is read than is needed.

        The result is that of `encode` and `truncate`, to the last byte: where a beginning does not settle it,
        twice as much is read, at last the whole text.

        Returns:
            The texts, none above `max_tokens`; and the places of those that were cut.

        Raises:
            InputError: As `encode` and `truncate`.
            ConfigError: The model's own tokenizer keeps ends of texts.
        """
        size = _CHARACTERS_PER_TOKEN * max_tokens
        whole = [row for row, text in enumerate(texts) if len(text) <= size or not self._is_settled(text)]
        rest = sorted(set(range(len(texts))) - set(whole))
        found: dict[int, tuple[str, TokenIds]] = {}
        while rest:
            found |= self._settled({row: texts[row][:size] for row in rest}, max_tokens)
            size *= 2
            whole += [row for row in rest if row not in found and len(texts[row]) <= size]
            rest = [row for row in rest if row not in found and len(texts[row]) > size]
        cut = sorted(found)
        read = self.encode([texts[row] for row in whole]).ids or ()
        for row, ids in zip(whole, read, strict=True):
            found[row] = self.truncate(texts[row], ids, max_tokens)
            if len(ids) > max_tokens:
                cut.append(row)
        kept = [found[row] for row in range(len(texts))]
        counts = np.fromiter((len(ids) for _, ids in kept), dtype=np.int64, count=len(kept))
        unknown = np.zeros(len(kept), dtype=np.int64)
        if self.unknown_id is not None:
            unknown[:] = [np.count_nonzero(ids == self.unknown_id) for _, ids in kept]
        return Encoded(
            tuple(text for text, _ in kept), counts, unknown, tuple(ids for _, ids in kept)
        ), sorted(cut)

    def _is_settled(self, text: str) -> bool:
        """Say whether a beginning can settle how a text begins: not where its lower case looks ahead."""
        if self._borders is None:
            return False
        if text.isascii():
            return True
        try:
            text.encode()
        except UnicodeEncodeError:  # is told where the whole text is read
            return False
        return not self._lowercase

    def _settled(self, pieces: dict[int, str], max_tokens: int) -> dict[int, tuple[str, TokenIds]]:
        """Return the cut texts of those beginnings that are enough."""
        head, tail = self.specials
        last = max_tokens - tail - 1
        found: dict[int, tuple[str, TokenIds]] = {}
        if self._borders is None or last < head:
            return found
        lowered = [piece.lower() if self._lowercase else piece for piece in pieces.values()]
        encodings: list[Any] = self._backend.encode_batch(lowered)
        for (row, piece), encoding in zip(pieces.items(), encodings, strict=True):
            if len(encoding) > max_tokens and self._borders.settles(piece, encoding, last):
                ids = np.array(encoding.ids, dtype=np.int32)
                places = _places(encoding)[head : len(encoding) - tail]
                found[row] = self.truncate(piece, ids, max_tokens, ends=places[:, 1])
        return found

    def truncate(
        self, text: str, ids: TokenIds, max_tokens: int, *, ends: npt.NDArray[np.int64] | None = None
    ) -> tuple[str, TokenIds]:
        """Cut a text to its first tokens that fit, special tokens kept.

        Args:
            text: What `ids` were made of.
            ids: All its tokens, special ones included.
            max_tokens: How many fit.
            ends: The character after each token of text, where it is known.

        Returns:
            The characters kept and their ids. Where the tokenizer would read the kept characters otherwise
            than it read them in the whole text, tokens are dropped until it does not: the result depends on
            the kept characters alone.
        """
        head, tail = self.specials
        room = max_tokens - head - tail
        if room < 1:
            raise InputError(f"max_tokens {max_tokens} leaves no room beside {head + tail} special tokens")
        if len(ids) <= max_tokens:
            return text, ids
        if self._keeps_ends is not None:
            raise ConfigError(
                f"{self._keeps_ends.with_name('tokenizer_config.json')}: truncation_side 'left' (a long "
                "text keeps "
                "its end) is not built here: split long texts"
            )
        if ends is None:
            ends = self._offsets(text)[:, 1]
        for keep in range(min(room, len(ends)), 0, -1):
            kept = text[: ends[keep - 1]]
            again = self.encode([kept]).ids
            if again is not None and np.array_equal(again[0][head : -tail or None], ids[head : head + keep]):
                return kept, again[0]
        raise InputError(f"the text cannot be cut to {max_tokens} tokens: its first character needs more")

    def split(self, text: str, *, max_tokens: int, prefix: str = "") -> list[Span]:
        """Cut a text into pieces that each encode to at most `max_tokens`, prefix and special tokens counted.

        Cuts lie at white space where a word fits, else between the tokenizer's words, else between tokens.
        One pass over the text and one over its pieces: linear.

        Raises:
            InputError: `max_tokens` leaves no room for a token of text.
        """
        if not text.strip():
            return []
        fixed = int(self.encode([prefix]).tokens[0]) if prefix else sum(self.specials)
        return self._split(text, 0, max_tokens - fixed, max_tokens, prefix)

    def _split(self, text: str, at: int, room: int, max_tokens: int, prefix: str) -> list[Span]:
        """Cut `text`, which begins at character `at` of the whole, into pieces of about `room` tokens."""
        if room < 1:
            raise InputError(
                f"max_tokens {max_tokens} leaves no room for text beside prefix and special tokens"
            )
        cuts = self._cuts(text, room)
        pieces = [p for p in (_trim(text, a, b) for a, b in pairwise(cuts)) if p is not None]
        texts = [text[start:end] for start, end in pieces]
        sent = self.encode([prefix + piece for piece in texts]).tokens
        bare = self.encode(texts).tokens - sum(self.specials) if prefix else sent - sum(self.specials)
        spans: list[Span] = []
        for (start, end), total, own in zip(pieces, sent, bare, strict=True):
            if total <= max_tokens:
                spans.append(Span(at + start, at + end, int(own)))
            else:  # read alone, the piece has more tokens than within its text
                less = min(room - 1, room - int(total - max_tokens))
                if less < 1 and room > 1:
                    less = 1
                spans.extend(self._split(text[start:end], at + start, less, max_tokens, prefix))
        return spans

    def _cuts(self, text: str, room: int) -> list[int]:
        """Return the characters at which to cut, from 0 to the text's length."""
        lowered = _lower_in_place(text) if self._lowercase else text
        encoding = self._encode_one(lowered)
        borders = _borders(text, _places(encoding), encoding.word_ids)
        cuts, at, count = [0], 0, len(borders.starts)
        while count - at > room:
            cut = borders.last(at + 1, at + room)
            cuts.append(int(borders.starts[cut]))
            at = cut
        cuts.append(len(text))
        return cuts

    def _offsets(self, text: str) -> npt.NDArray[np.int64]:
        lowered = _lower_in_place(text) if self._lowercase else text
        return _places(self._encode_one(lowered))

    def _encode_one(self, text: str) -> Any:
        try:
            if len(text) <= _QUICK:
                return self._backend.encode(text, add_special_tokens=False)
            return self._backend.encode_batch([text], add_special_tokens=False)[0]
        except (TypeError, UnicodeEncodeError) as error:
            raise _unencodable([text], 0) from error

    def _batch(self, texts: Sequence[str], start: int) -> list[Any]:
        batch = [text.lower() for text in texts] if self._lowercase else list(texts)
        try:
            encodings: list[Any] = self._backend.encode_batch_fast(batch)
        except (TypeError, UnicodeEncodeError) as error:
            raise _unencodable(batch, start) from error
        return encodings


def _largest(model: Any) -> int:
    """Return the largest id of a vocabulary, -1 without any.

    It is read from the file: the library's own copy of a large vocabulary holds up every other thread.
    """
    vocabulary = model["vocab"]
    return len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values(), default=-1)


def _overrides(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}): fetch the model again") from error
    return found if isinstance(found, dict) else {}


_NORMALIZER_FIELDS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _refuse_overrides(overrides: dict[str, Any], normalizer: dict[str, Any] | None, path: Path) -> None:
    """Refuse settings that BERT's tokenizer would put in the place of those of tokenizer.json."""
    parts = [normalizer, *(normalizer or {}).get("normalizers", ())]
    bert = next((part for part in parts if part and part.get("type") == "BertNormalizer"), None)
    if bert is None:
        return
    asked = dict(bert)
    asked.update({field: overrides[name] for name, field in _NORMALIZER_FIELDS.items() if name in overrides})
    for state in (bert, asked):
        if state.get("strip_accents") is None:  # then it follows the lower case
            state["strip_accents"] = state.get("lowercase")
    for name, field in _NORMALIZER_FIELDS.items():
        if asked.get(field) != bert.get(field):
            raise ConfigError(
                f"{path.with_name('tokenizer_config.json')}: {name} {overrides.get(name)!r} contradicts "
                f"{path.name}, whose normalizer has {field} {bert.get(field)!r}: make them agree (save the "
                "model "
                "again with a current transformers)"
            )


@dataclass(frozen=True, slots=True)
class _Borders:
    """Where a text may be cut: before token i at character starts[i], if allowed; white space is best.

    `space`, `word` and `token` give for every i the last such border at or before it, -1 where there is none.
    """

    starts: npt.NDArray[np.int64]
    space: npt.NDArray[np.int64]
    word: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]

    def last(self, low: int, high: int) -> int:
        """Return the best border in low..high, or the first one after where there is none."""
        for borders in (self.space, self.word, self.token):
            if borders[high] >= low:
                return int(borders[high])
        later = np.flatnonzero(self.token[high:] > high)
        return high + int(later[0]) if len(later) else len(self.starts) - 1


def _places(encoding: Any) -> npt.NDArray[np.int64]:
    """Return the characters each token stands for, (tokens, 2) int64: first, and one after the last."""
    count = len(encoding)
    if count <= _QUICK:
        return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    places = chain.from_iterable(encoding.token_to_chars(at) for at in range(count))
    return np.fromiter(places, dtype=np.int64, count=2 * count).reshape(-1, 2)


def _borders(text: str, offsets: npt.NDArray[np.int64], word_ids: list[int | None]) -> _Borders:
    count = len(offsets)
    starts, ends = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    before = np.concatenate([[0], ends[:-1]])
    token = (starts >= before) & (starts > 0)  # tokens of one character share its place
    blank = np.array([character.isspace() for character in text], dtype=bool)
    gap = np.concatenate([[0], np.cumsum(blank)])
    space = token & ((gap[starts] > gap[before]) | blank[np.minimum(starts, len(text) - 1)])
    space |= token & (before > 0) & blank[np.maximum(before - 1, 0)]
    words = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    word = token & np.concatenate([[False], words[1:] != words[:-1]])
    at = np.arange(count)
    last = [np.maximum.accumulate(np.where(kind, at, -1)) for kind in (space, word, token)]
    return _Borders(starts, *last)


def _trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    piece = text[start:end]
    left = start + len(piece) - len(piece.lstrip())
    right = start + len(piece.rstrip())
    return (left, right) if right > left else None


def _lower_in_place(text: str) -> str:
    """Lowercase character by character, leaving those whose lower case is longer, so that places keep."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _unencodable(texts: Sequence[str], start: int) -> InputError:
    for row, text in enumerate(texts, start):
        if not isinstance(text, str):
            return InputError(f"text {row} is {type(text).__name__}, not str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InputError(
                f"text {row} holds half of a surrogate pair at character {error.start}, which is not valid "
                "Unicode: "
                f"read the file with its right encoding, or replace the character"
            )
    return InputError(f"texts {start} to {start + len(texts) - 1} cannot be tokenized")
