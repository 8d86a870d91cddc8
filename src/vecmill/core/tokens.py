"""Exact token counts, offline: the rank files lie in the package, nothing is ever downloaded.

This counts for hosted models. A local model counts with its own tokenizer (`Provider.encode`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vecmill.core.errors import CorruptFileError, InputError, unknown_name
from vecmill.core.types import IntArray

if TYPE_CHECKING:
    import tiktoken

DEFAULT_ENCODING = "cl100k_base"

_FOLDER = Path(__file__).parent / "ranks"


@dataclass(frozen=True, slots=True)
class _Source:
    """A rank file of `ranks/`: its checksum, and the pattern that cuts a text before ranks apply.

    `plain` cuts texts without two white space characters side by side into the same pieces: what the pattern
    has for such runs is left out, and with it what keeps the regex engine from compiling it whole.
    """

    sha256: str
    pattern: str
    plain: str


@dataclass(frozen=True, slots=True)
class _Encodings:
    """An encoding by its pattern, for any text, and by its plain one."""

    any: tiktoken.Encoding
    plain: tiktoken.Encoding


# Source: checksum and pattern of cl100k_base in tiktoken 0.14, `tiktoken_ext/openai_public.py` (MIT).
_SOURCES = {
    "cl100k_base": _Source(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
        r"|\s*[\r\n]|\s+(?!\S)|\s",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s",
    )
}


def count(texts: Sequence[str], encoding: str = DEFAULT_ENCODING) -> IntArray:
    """Count the tokens of each text, as embedding endpoints count them.

    Nothing in a text is special: "<|endoftext|>" counts as the seven tokens its characters make. The first
    call loads the ranks (about 0.2 s), then about 2 to 8 million tokens a second on one core: the more, the
    fewer texts have white space of several characters, or other than blanks and line feeds.

    Args:
        texts: A sequence of texts, not one text.
        encoding: Name of the encoding.

    Returns:
        (n,) int64.

    Raises:
        InputError: `texts` is a single text.
        UnknownNameError: No such encoding is shipped.
        CorruptFileError: The shipped rank file was altered.
    """
    if isinstance(texts, str):
        raise InputError("count takes a sequence of texts; for one text pass [text]")
    found = _encoding(encoding)
    encode, encode_plain = found.any.encode_ordinary, found.plain.encode_ordinary
    counts = (len(encode_plain(text) if _is_plain(text) else encode(text)) for text in texts)
    return np.fromiter(counts, np.int64, len(texts))


def _is_plain(text: str) -> bool:
    """Say whether a text has no white space but blanks and line feeds, no two of them side by side.

    Of all white space only the blank is printable.
    """
    if not text.isprintable():
        text = text.replace("\n", " ")
        if not text.isprintable():
            return False
    return "  " not in text


def byte_lengths(text: str, encoding: str = DEFAULT_ENCODING) -> IntArray:
    """Return how many UTF-8 bytes each token of a text stands for, (tokens,) int64; their sum is the text's.

    A character may be spread over several tokens.

    Raises:
        UnknownNameError: No such encoding is shipped.
    """
    found = _encoding(encoding).any
    pieces = found.decode_tokens_bytes(found.encode_ordinary(text))
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def encode(text: str, encoding: str = DEFAULT_ENCODING) -> list[int]:
    """Return the token ids of a text; nothing in it is special.

    Raises:
        UnknownNameError: No such encoding is shipped.
    """
    return _encoding(encoding).any.encode_ordinary(text)


def decode(ids: Sequence[int], encoding: str = DEFAULT_ENCODING) -> str:
    """Return the text token ids stand for.

    Raises:
        InputError: An id is not in the vocabulary, or the bytes are no UTF-8: part of a character is missing.
        UnknownNameError: No such encoding is shipped.
    """
    found = _encoding(encoding).any
    try:
        return found.decode_bytes(ids).decode("utf-8")
    except (KeyError, OverflowError) as error:
        raise InputError(f"a token id is not in the vocabulary of {encoding}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the token ids are no whole text in {encoding}: a character is cut") from error


def is_loaded() -> bool:
    """Say whether ranks are in memory: the first use takes about 0.2 s, too long for an event loop."""
    return _encoding.cache_info().currsize > 0


@cache
def _encoding(name: str) -> _Encodings:
    if name not in _SOURCES:
        raise unknown_name("encoding", name, _SOURCES)
    import tiktoken  # on first use: most commands never count

    source = _SOURCES[name]
    ranks = _read_ranks(_FOLDER / f"{name}.tiktoken", source.sha256)
    return _Encodings(
        tiktoken.Encoding(name, pat_str=source.pattern, mergeable_ranks=ranks, special_tokens={}),
        tiktoken.Encoding(f"{name} plain", pat_str=source.plain, mergeable_ranks=ranks, special_tokens={}),
    )


def _read_ranks(path: Path, sha256: str) -> dict[bytes, int]:
    """Read a rank file: on each line base64 of a token's bytes, a space, its rank."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); install vecmill again") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise CorruptFileError(f"{path} was altered: SHA-256 {found}, not {sha256}; install vecmill again")
    pairs = (line.split() for line in raw.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}
