"""Texts to tokens with one model: what is too long is refused, cut or split; parts become one work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from vecmill.core.errors import InputError
from vecmill.core.types import InputType, IntArray, LongText
from vecmill.models.base import Encoded, Provider, Span, join
from vecmill.server.errors import Refusal, invalid
from vecmill.server.options import Limits
from vecmill.server.parsing import refuse_tokens


class Vocabulary(Protocol):
    """A model's own tokens.

    Attributes:
        specials: Special tokens before and after every text.
        rows: Ids are below this.
        padding_id: What fills rows up, where the model says it.
    """

    specials: tuple[int, int]
    rows: int
    padding_id: int | None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts as they are, special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return a text of these tokens, special ones left out."""

    def split(self, text: str, *, max_tokens: int) -> list[Span]:
        """Cut a text into pieces that each encode to at most `max_tokens`."""


def vocabulary_of(provider: Provider) -> Vocabulary | None:
    """Return the tokens of a model that computes here; None: it is asked, and reads cl100k_base."""
    return cast("Vocabulary | None", getattr(provider, "vocabulary", None))


@dataclass(frozen=True, slots=True)
class Work:
    """The texts of a request, ready to be embedded.

    Attributes:
        encoded: p pieces, none above the model's limit.
        tokens: Tokens of all of them.
        counts: (n,) int64 pieces of each input; None: one each.
        weights: (p,) int64 tokens of each piece without specials and prefix; None: inputs are one piece each.
        cut: Inputs that lost text.
    """

    encoded: Encoded
    tokens: int
    counts: IntArray | None = None
    weights: IntArray | None = None
    cut: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.encoded) if self.counts is None else len(self.counts)


@dataclass(frozen=True, slots=True)
class Asked:
    """How texts are to be read.

    Attributes:
        role: What the texts are.
        long_text: What happens to long ones: ERROR, TRUNCATE or AVERAGE.
        ids_of: Whose vocabulary token ids are in: "auto", "own" or "cl100k"; see `Options.token_ids`.
        param: The field they come from, for messages.
    """

    role: InputType
    long_text: LongText
    ids_of: str = "auto"
    param: str = "input"


def refuse_characters(lengths: Sequence[int], limits: Limits, param: str) -> None:
    """Refuse a text too long to be tokenized.

    Raises:
        Refusal: 400, it names the first.
    """
    most = limits.max_characters
    if max(lengths) > most:
        at = next(i for i, length in enumerate(lengths) if length > most)
        raise invalid(
            f"Invalid '{param}': string too long. Expected a string with maximum length {most}, but got a "
            f"string with length {lengths[at]} instead, at index {at}.",
            param=param,
            code="string_above_max_length",
        )


def too_long(count: int, limit: int, index: int, param: str) -> Refusal:
    """Return the answer to a text of more tokens than the model takes."""
    return invalid(
        f"This model's maximum context length is {limit} tokens, however you requested {count} tokens "
        f"({count} in your prompt; 0 for the completion). Please reduce your prompt; or completion length. "
        f"It is at index {index} of {param}."
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Some inputs of a request: `rows` are their places in it; the rest as in `Work`."""

    rows: Sequence[int]
    encoded: Encoded
    counts: Sequence[int] | None = None
    weights: Sequence[int] | None = None
    cut: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """Texts to tokens; `own` reads them as they are, without the prefix of a role."""

    provider: Provider
    asked: Asked
    own: Vocabulary | None = None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenize texts."""
        if self.own is not None:
            return self.own.encode(texts)
        return self.provider.encode(texts, input_type=self.asked.role)

    def split(self, text: str, limit: int) -> list[Span]:
        """Cut a text into pieces of at most `limit` tokens."""
        if self.own is not None:
            return self.own.split(text, max_tokens=limit)
        return self.provider.split(text, max_tokens=limit, input_type=self.asked.role)

    def read(self, texts: Sequence[str], rows: Sequence[int]) -> Part:
        """Tokenize texts that stand at these places of a request, and do with long ones what was asked."""
        if self.asked.long_text is LongText.TRUNCATE and self.own is None:
            cut = getattr(self.provider, "encode_beginnings", None)  # of models that compute here
            if cut is not None and (part := self._begun(cut, texts, rows)) is not None:
                return part
        return self.fit(texts, rows, self.encode(texts))

    def _begun(
        self, cut: Callable[..., tuple[Encoded, list[int]]], texts: Sequence[str], rows: Sequence[int]
    ) -> Part | None:
        """Cut texts without reading long ones whole; None where one of them cannot be cut."""
        try:
            encoded, long = cut(texts, max_tokens=self.provider.info.max_tokens, input_type=self.asked.role)
        except InputError:  # `fit` says it
            return None
        return Part(rows, encoded, cut=tuple(rows[at] for at in long))

    def fit(self, texts: Sequence[str], rows: Sequence[int], encoded: Encoded) -> Part:
        """Do with long texts what was asked."""
        limit = self.provider.info.max_tokens
        if max(_few(encoded.tokens), default=0) <= limit:
            return Part(rows, encoded)
        long = np.flatnonzero(encoded.tokens > limit).tolist()
        match self.asked.long_text:
            case LongText.TRUNCATE:
                shorter = self._truncated(encoded, limit, rows[long[0]])
                return Part(rows, shorter, cut=tuple(rows[at] for at in long))
            case LongText.AVERAGE:
                return self._pieces(texts, rows, encoded, long)
            case _:
                raise too_long(int(encoded.tokens[long[0]]), limit, rows[long[0]], self.asked.param)

    def _truncated(self, encoded: Encoded, limit: int, row: int) -> Encoded:
        try:
            return self.provider.truncate(encoded, max_tokens=limit)
        except InputError as error:
            raise invalid(f"{error} (at or after index {row})", param=self.asked.param) from error

    def _pieces(self, texts: Sequence[str], rows: Sequence[int], encoded: Encoded, long: list[int]) -> Part:
        limit = self.provider.info.max_tokens
        counts = [1] * len(encoded)
        weights = encoded.tokens.tolist()
        parts: list[Encoded] = []
        flat: list[int] = []
        done = 0
        for at in long:
            spans = self.split(texts[at], limit)
            if not spans:
                raise too_long(int(encoded.tokens[at]), limit, rows[at], self.asked.param)
            parts.append(encoded.take(range(done, at)))
            parts.append(self.encode([texts[at][span.start : span.end] for span in spans]))
            flat += [*weights[done:at], *(span.tokens for span in spans)]
            counts[at] = len(spans)
            done = at + 1
        parts.append(encoded.take(range(done, len(encoded))))
        flat += weights[done:]
        return Part(rows, join([part for part in parts if len(part)]), counts, flat)


def put_together(parts: list[Part], limits: Limits) -> Work:
    """Put the parts of a request together, in the order of its inputs."""
    encoded = parts[0].encoded if len(parts) == 1 else join([part.encoded for part in parts])
    total = sum(_few(encoded.tokens))
    refuse_tokens(total, limits)
    if len(parts) == 1 and parts[0].counts is None:
        return Work(encoded, total, cut=parts[0].cut)
    rows = [row for part in parts for row in part.rows]
    counts = np.array([n for p in parts for n in (p.counts or [1] * len(p.rows))], dtype=np.int64)
    listed = [p.weights if p.weights is not None else p.encoded.tokens.tolist() for p in parts]
    weights = np.array([weight for part in listed for weight in part], dtype=np.int64)
    if rows != sorted(rows):
        owner = np.repeat(np.array(rows), counts)
        order = np.argsort(owner, kind="stable")
        encoded, weights = encoded.take(order), weights[order]
        counts = counts[np.argsort(rows)]
    cut = tuple(sorted(row for part in parts for row in part.cut))
    if len(encoded) == len(counts):
        return Work(encoded, total, cut=cut)
    return Work(encoded, total, counts, weights, cut)


def _few(counts: IntArray) -> list[int]:
    """Return counts for Python's sum and max, which are faster than NumPy's for what one request has."""
    found: list[int] = counts.tolist()
    return found
