"""Texts for a load test: made up, or the first ones of a file; and how many tokens they are."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecmill.core import tokens as counting
from vecmill.core.config import Settings
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.core.types import InputType, IntArray
from vecmill.data.readers import batches, scan
from vecmill.data.sources import resolve
from vecmill.data.template import choose_text
from vecmill.models.resolve import open_model

SYNTHETIC = "synthetic"

_WORDS = (
    "one two three four five six seven eight nine ten red blue green black white gold "
    "cat dog fish bird tree leaf rain snow sun moon star sky sea land hill rock"
)
_DIGITS = _WORDS.split()
"""Words that are one token in common vocabularies; a document's number is written in them."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is sent.

    Attributes:
        texts: The documents. tokens: (n,) of each, without special tokens.
        source: Where they are from. tokenizer: whose tokens these are.
    """

    texts: list[str]
    tokens: IntArray
    source: str
    tokenizer: str

    @property
    def different(self) -> int:
        """How many of the documents differ."""
        return len(set(self.texts))


def read(
    dataset: str,
    *,
    synthetic_length: int,
    distinct: bool = False,
    limit: int,
    column: str | None,
    tokenizer: str | None,
    model: str,
    settings: Settings,
) -> Texts:
    """Make or read the documents of a run and count their tokens.

    Args:
        dataset: "synthetic", or a file, folder or glob as `vecmill embed` reads. Nothing is downloaded.
        synthetic_length: Words of a synthetic document: each is one token of common vocabularies.
        distinct: Whether synthetic documents all differ, by the words they begin with.
        limit: Documents at most.
        column: Which column holds the text; None where only one can.
        tokenizer: A model whose tokens are counted; None: `model`, where this machine knows it, else
            cl100k_base.
        model: As the server calls it.
        settings: For finding models.

    Raises:
        InputError: The dataset is the name of one elsewhere, or has no text; `distinct` with a file.
        UnknownNameError: `tokenizer` is not a model that can be opened here.
    """
    if min(limit, synthetic_length) < 1:
        raise InputError(f"limit {limit} and synthetic length {synthetic_length} must be at least 1")
    if dataset == SYNTHETIC:
        made = _numbered(limit, synthetic_length) if distinct else ["hi " * synthetic_length] * limit
        counts = np.full(limit, made[0].count(" "), np.int64)
        return Texts(made, counts, SYNTHETIC, "one word is one token")
    if distinct:
        raise InputError(f"--distinct is of made-up documents: {dataset} is sent as it is")
    texts = first(dataset, limit=limit, column=column)
    counts, whose = count(texts, tokenizer, model, settings)
    return Texts(texts, counts, Path(dataset).name, whose)


def _numbered(n: int, words: int) -> list[str]:
    """Return n documents of so many words, or as many as it takes, that begin with their number in words."""
    width = 1
    while len(_DIGITS) ** width < n:
        width += 1
    rest = "hi " * (words - width)
    powers = [len(_DIGITS) ** place for place in reversed(range(width))]
    return ["".join(f"{_DIGITS[at // power % len(_DIGITS)]} " for power in powers) + rest for at in range(n)]


def count(texts: list[str], tokenizer: str | None, model: str, settings: Settings) -> tuple[IntArray, str]:
    """Return the tokens of each text without special tokens, and whose they are.

    Raises:
        UnknownNameError: `tokenizer` is not a model that can be opened here.
    """
    try:
        provider = open_model(tokenizer or model, settings=settings, needs_key=False)
    except UnknownNameError:
        if tokenizer is not None:
            raise
        return counting.count(texts), counting.DEFAULT_ENCODING
    specials = provider.encode([""], input_type=InputType.DOCUMENT).tokens[0]
    counts = provider.encode(texts, input_type=InputType.DOCUMENT).tokens - specials
    return counts, provider.info.name


def first(dataset: str, *, limit: int, column: str | None) -> list[str]:
    """Return the first documents of files, blank ones left out.

    Raises:
        InputError: There is no such file, or no text in it; which column holds it is not clear.
    """
    if not _is_here(dataset):
        raise InputError(
            f"there is no file {dataset!r} here, and data sets are not downloaded: give {SYNTHETIC!r}, or a "
            "file with the texts (text, CSV, JSON lines or Parquet)"
        )
    columns = () if column is None else (column,)
    texts: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vecmill-bench-") as folder:
        sources = resolve([dataset], spool_dir=Path(folder))
        seen = scan(sources, text_columns=columns)
        chosen = choose_text(seen, text=column, template=None)
        for batch in batches(sources, seen, text_columns=columns):
            found = (text for text in chosen.texts(batch.batch) if text is not None and text.strip())
            texts += found
            if len(texts) >= limit:
                break
    if not texts:
        raise InputError(f"{dataset} holds no text")
    return texts[:limit]


def _is_here(dataset: str) -> bool:
    return Path(dataset).exists() or any(sign in dataset for sign in "*?[") or "://" in dataset
