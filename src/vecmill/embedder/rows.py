"""Rows of texts to vectors: what is blank, what is double, what is long, what came back.

The two steps are apart so that a caller can look at the token counts before anything is computed or bought:
`prepare` tokenizes, `embed_prepared` embeds. Both keep the order of the rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import BadReplyError, InputError
from vecmill.core.types import EmptyText, InputType, IntArray, LongText, RowError, Usage, Vectors
from vecmill.embedder.batching import batches
from vecmill.models.base import Advance, Encoded, Provider, Reply, Span, no_advance

LEAST_TOKENS = 8
"""A limit below this leaves no room for a text beside prefix and special tokens."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens to long and empty texts, and the role the texts have.

    Attributes:
        max_tokens: Tokens above which a text is long; None takes the model's own limit.
    """

    long_text: LongText = LongText.ERROR
    empty: EmptyText = EmptyText.ERROR
    input_type: InputType = InputType.DOCUMENT
    max_tokens: int | None = None

    def limit(self, provider: Provider) -> int:
        """Return the tokens above which a text is long.

        Raises:
            InputError: The limit asked for is above the model's or below what a text needs.
        """
        most = provider.info.max_tokens
        limit = most if self.max_tokens is None else self.max_tokens
        if limit < LEAST_TOKENS:
            raise InputError(f"max_tokens is {limit}; it must be at least {LEAST_TOKENS} to hold a text")
        if limit > most:
            raise InputError(f"max_tokens is {limit}; {provider.info.name} takes {LEAST_TOKENS} to {most}")
        return limit


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to be embedded.

    Attributes:
        total: Rows given.
        distinct: Index into the distinct texts per row, -1 where there is nothing to embed; (total,) int64.
        encoded: The distinct texts, tokenized.
        texts: The distinct texts as given, without prefix.
        overhead: Tokens of prefix and specials in each text.
        errors: Why rows have nothing to embed; rows without text and without error are skipped.
    """

    total: int
    distinct: IntArray
    encoded: Encoded
    texts: tuple[str, ...]
    overhead: int
    errors: dict[int, RowError]

    def unknown_share(self) -> npt.NDArray[np.float64]:
        """Return the share of tokens the vocabulary lacks per distinct text, (distinct,) float64."""
        content = np.maximum(self.encoded.tokens - self.overhead, 1)
        return np.asarray(self.encoded.unknown / content, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RowVectors:
    """What became of the rows.

    Attributes:
        vectors: (m, d) float32.
        rows: (m,) int64 ascending: the row each vector belongs to; each row once unless texts were cut into
            chunks.
        spans: The characters of the text each vector stands for, where texts were cut into chunks.
        pieces: (total,) int32: from how many pieces a row's vector was made; 0 without a vector.
        errors: Why a row has no vector; a row with neither was skipped.
        sent: Rows whose text was embedded. deduped: rows that share such a text.
        usage: What it cost.
    """

    vectors: Vectors
    rows: IntArray
    spans: tuple[Span, ...] | None
    pieces: npt.NDArray[np.int32]
    errors: dict[int, RowError]
    sent: int
    deduped: int
    usage: Usage


async def prepare(provider: Provider, texts: Sequence[str | None], policy: Policy) -> Prepared:
    """Sort out empty and equal texts and tokenize the rest.

    Args:
        provider: The model.
        texts: One per row; None where a row has no text.
        policy: What happens to empty texts.
    """
    distinct = np.full(len(texts), -1, dtype=np.int64)
    positions: dict[str, int] = {}
    errors: dict[int, RowError] = {}
    for row, text in enumerate(texts):
        if text is None or (policy.empty is not EmptyText.EMBED and not text.strip()):
            if text is not None and policy.empty is EmptyText.ERROR:
                errors[row] = RowError("empty_text", "InputError", "the text is empty or blank")
            continue
        distinct[row] = positions.setdefault(text, len(positions))
    unique = tuple(positions)
    encoded = await asyncio.to_thread(provider.encode, unique, input_type=policy.input_type)
    overhead = int(provider.encode([""], input_type=policy.input_type).tokens[0])
    return Prepared(len(texts), distinct, encoded, unique, overhead, errors)


async def embed_prepared(
    provider: Provider, prepared: Prepared, policy: Policy, *, advance: Advance = no_advance
) -> RowVectors:
    """Embed prepared rows: cut what is long, call the provider, check the reply, put it back in order.

    Raises:
        BadReplyError: The reply does not answer the request.
        ProviderError: The provider failed.
    """
    limit = policy.limit(provider)
    work, pieces = await asyncio.to_thread(_cut, provider, prepared, policy, limit)
    reply = await _embed_all(provider, work, advance)
    vectors, refused = reply.vectors, pieces.refused
    if policy.long_text is LongText.AVERAGE:
        vectors = _average(vectors, pieces, normalized=provider.info.normalized)
    return _by_row(prepared, policy, pieces, vectors, refused, reply.usage)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """How distinct texts were cut: `counts` pieces each (0: refused), their `spans` one after another."""

    counts: IntArray
    spans: tuple[Span, ...]
    refused: dict[int, RowError]


def _cut(provider: Provider, prepared: Prepared, policy: Policy, limit: int) -> tuple[Encoded, _Pieces]:
    encoded, texts = prepared.encoded, prepared.texts
    counts = np.ones(len(encoded), dtype=np.int64)
    whole = [Span(0, len(text), int(n)) for text, n in zip(texts, encoded.tokens, strict=True)]
    long = np.flatnonzero(encoded.tokens > limit)
    if not len(long):
        return encoded, _Pieces(counts, tuple(whole), {})
    refused: dict[int, RowError] = {}
    if policy.long_text is LongText.ERROR:
        for i in long:
            counts[i] = 0
            message = f"the text has {encoded.tokens[i]} tokens, {provider.info.name} takes {limit}"
            refused[int(i)] = RowError("text_too_long", "TextTooLongError", message)
        keep = np.flatnonzero(counts)
        return encoded.take(keep), _Pieces(counts, tuple(whole[i] for i in keep), refused)
    if policy.long_text is LongText.TRUNCATE:
        return provider.truncate(encoded, max_tokens=limit), _Pieces(counts, tuple(whole), {})
    spans: list[Span] = []
    parts: list[Encoded] = []
    done = 0
    for i in long:
        cut = provider.split(texts[i], max_tokens=limit, input_type=policy.input_type)
        parts.append(encoded.take(range(done, i)))
        parts.append(provider.encode([texts[i][s.start : s.end] for s in cut], input_type=policy.input_type))
        spans += [*whole[done:i], *cut]
        counts[i] = len(cut)
        done = int(i) + 1
    parts.append(encoded.take(range(done, len(encoded))))
    spans += whole[done:]
    return _join(parts), _Pieces(counts, tuple(spans), {})


def _join(parts: Sequence[Encoded]) -> Encoded:
    ids = None if any(p.ids is None for p in parts) else tuple(x for p in parts for x in p.ids or ())
    return Encoded(
        tuple(text for part in parts for text in part.texts),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.unknown for part in parts]),
        ids,
    )


async def _embed_all(provider: Provider, work: Encoded, advance: Advance) -> Reply:
    info = provider.info
    vectors = np.empty((len(work), info.dimensions), dtype=np.float32)
    usage = Usage()
    for rows in batches(work.tokens, max_inputs=info.max_inputs, max_tokens=info.max_request_tokens):
        part = work if len(rows) == len(work) else work.take(rows)
        reply = await provider.embed(part, advance=advance)
        vectors[rows] = checked(reply.vectors, len(rows), info.dimensions, info.name)
        usage += reply.usage
    return Reply(vectors, usage)


def checked(vectors: Vectors, count: int, dimensions: int, model: str) -> Vectors:
    """Return the vectors of a reply, or raise when count, width or values are wrong.

    Raises:
        BadReplyError: They are.
    """
    if vectors.shape != (count, dimensions):
        raise BadReplyError(
            f"{model} was asked for {count} vectors of {dimensions} dimensions and answered {vectors.shape}",
            model=model,
        )
    if not np.isfinite(vectors).all():
        rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        raise BadReplyError(
            f"{model} answered vectors that are not finite, at position {rows[0]}", model=model
        )
    return vectors


def _average(vectors: Vectors, pieces: _Pieces, *, normalized: bool) -> Vectors:
    """Average each text's pieces, weighted by tokens, and renormalize: (pieces, d) -> (kept, d)."""
    counts = pieces.counts[pieces.counts > 0]
    if len(vectors) == len(counts):
        return vectors
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means: Vectors = vectors[starts].copy()  # texts of one piece keep their bytes
    for i in np.flatnonzero(counts > 1):
        at = slice(starts[i], starts[i] + counts[i])
        weights = np.array([span.tokens for span in pieces.spans[at]], dtype=np.float64)
        mean = np.average(vectors[at].astype(np.float64), axis=0, weights=np.maximum(weights, 1))
        norm = float(np.linalg.norm(mean))
        means[i] = mean / norm if normalized and norm > 0 else mean
    return means


def _by_row(
    prepared: Prepared,
    policy: Policy,
    pieces: _Pieces,
    vectors: Vectors,
    refused: dict[int, RowError],
    usage: Usage,
) -> RowVectors:
    errors = dict(prepared.errors)
    errors.update(
        (int(row), refused[int(at)]) for row, at in enumerate(prepared.distinct) if int(at) in refused
    )
    has_text = np.flatnonzero(prepared.distinct >= 0)
    rows = has_text[pieces.counts[prepared.distinct[has_text]] > 0]  # (r,) rows that get vectors
    at = prepared.distinct[rows]
    made_from = np.zeros(prepared.total, dtype=np.int32)
    made_from[rows] = pieces.counts[at]
    chunked = policy.long_text is LongText.CHUNKS
    outputs = pieces.counts if chunked else np.minimum(pieces.counts, 1)
    starts = np.concatenate([[0], np.cumsum(outputs)[:-1]]) if len(outputs) else outputs
    repeat = outputs[at]
    within = np.arange(repeat.sum()) - np.repeat(np.cumsum(repeat) - repeat, repeat)
    source = np.repeat(starts[at], repeat) + within  # (m,) into vectors
    spans = tuple(pieces.spans[i] for i in source) if chunked else None
    sent = len(np.unique(at))
    return RowVectors(
        vectors=np.ascontiguousarray(vectors[source]),
        rows=np.repeat(rows, repeat),
        spans=spans,
        pieces=made_from,
        errors=errors,
        sent=sent,
        deduped=len(rows) - sent,
        usage=usage,
    )
