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
    """A rank file of `ranks/`, its checksum, and the pattern that cuts a text before ranks apply."""

    sha256: str
    pattern: str


# Source: checksum and pattern of cl100k_base in tiktoken 0.14, `tiktoken_ext/openai_public.py` (MIT).
_SOURCES = {
    "cl100k_base": _Source(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
        r"|\s*[\r\n]|\s+(?!\S)|\s",
    )
}


def count(texts: Sequence[str], encoding: str = DEFAULT_ENCODING) -> IntArray:
    """Count the tokens of each text, as embedding endpoints count them.

    Nothing in a text is special: "<|endoftext|>" counts as the seven tokens its characters make. The first
    call loads the ranks (about 0.2 s), then about 1 to 3 million tokens a second on one core.

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
    encode = _encoding(encoding).encode_ordinary
    return np.fromiter((len(encode(text)) for text in texts), np.int64, len(texts))


def byte_lengths(text: str, encoding: str = DEFAULT_ENCODING) -> IntArray:
    """Return how many UTF-8 bytes each token of a text stands for, (tokens,) int64; their sum is the text's.

    A character may be spread over several tokens.

    Raises:
        UnknownNameError: No such encoding is shipped.
    """
    found = _encoding(encoding)
    pieces = found.decode_tokens_bytes(found.encode_ordinary(text))
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


@cache
def _encoding(name: str) -> tiktoken.Encoding:
    if name not in _SOURCES:
        raise unknown_name("encoding", name, _SOURCES)
    import tiktoken  # on first use: most commands never count

    return tiktoken.Encoding(
        name,
        pat_str=_SOURCES[name].pattern,
        mergeable_ranks=_read_ranks(_FOLDER / f"{name}.tiktoken", _SOURCES[name].sha256),
        special_tokens={},
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
