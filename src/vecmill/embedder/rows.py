"""Rows of texts to vectors: what is blank, what is double, what is long, what came back.

The steps are apart so that a caller can look at the token counts before anything is computed or bought, and
can have several calls on their way: `prepare` tokenizes, `start` cuts long texts, claims them and looks into
the cache, `finish` embeds. All keep the order of the rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError, ProviderError
from vecmill.core.types import EmptyText, InputType, IntArray, LongText, RowError, Usage, Vectors
from vecmill.embedder.channel import Channel, Order, Supplied, cut_to_size
from vecmill.models.base import Advance, Encoded, Provider, Span, join, no_advance

N = TypeVar("N", np.int64, np.float64)

T = TypeVar("T")

LEAST_TOKENS = 8
"""A limit below this leaves no room for a text beside prefix and special tokens."""

_AT_ONCE_CHARACTERS, _AT_ONCE_TOKENIZED, _AT_ONCE_TEXTS = 32_768, 4_096, 1_024
"""What is counted, tokenized by a local model, and looked through for long texts without leaving the event
loop: about 1 ms. A thread and back takes a tenth of that."""


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
        sent: Distinct texts that were sent. cached: those that came from the cache or from another call.
        deduped: Rows that share a text with an earlier one.
        tokens: (total,) int64 billed for each row; equal texts are borne by the first.
        usd: (total,) float64 dollars for these, NaN where no price is known.
        usage: What it cost.
        failures: The provider's errors themselves, by row.
    """

    vectors: Vectors
    rows: IntArray
    spans: tuple[Span, ...] | None
    pieces: npt.NDArray[np.int32]
    errors: dict[int, RowError]
    sent: int
    deduped: int
    cached: int
    tokens: IntArray
    usd: npt.NDArray[np.float64]
    usage: Usage
    failures: dict[int, ProviderError]


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
    small = sum(map(len, unique)) <= (_AT_ONCE_CHARACTERS if provider.info.hosted else _AT_ONCE_TOKENIZED)
    encoded = await _aside(small, partial(provider.encode, unique, input_type=policy.input_type))
    overhead = int(provider.encode([""], input_type=policy.input_type).tokens[0])
    return Prepared(len(texts), distinct, encoded, unique, overhead, errors)


@dataclass(frozen=True, slots=True)
class Pieces:
    """How distinct texts were cut: `counts` pieces each (0: refused), their `spans` one after another."""

    counts: IntArray
    spans: tuple[Span, ...]
    refused: dict[int, RowError]


@dataclass(frozen=True, slots=True)
class Started:
    """Rows on their way. `order` must come to `Channel.keep`.

    Attributes:
        prepared: The rows. policy: what happens to long ones.
        pieces: How their texts were cut.
        order: The pieces, claimed.
    """

    prepared: Prepared
    policy: Policy
    pieces: Pieces
    order: Order


async def embed_prepared(
    channel: Channel, prepared: Prepared, policy: Policy, *, advance: Advance = no_advance
) -> RowVectors:
    """Embed prepared rows: cut what is long, get the vectors, put them back in order.

    Raises:
        ProviderError: The provider cannot be asked any more; single texts it refuses are in `errors`.
        BudgetReachedError: What may be spent is spent.
    """
    started = await start(channel, prepared, policy)
    try:
        return await finish(channel, started, advance=advance)
    finally:
        await channel.keep(started.order)


async def start(channel: Channel, prepared: Prepared, policy: Policy) -> Started:
    """Cut what is long, claim the texts and look into the cache.

    Several calls one after another send the same texts, whatever the timing of their ends.
    """
    limit = policy.limit(channel.provider)
    small = len(prepared.encoded) <= _AT_ONCE_TEXTS and not (prepared.encoded.tokens > limit).any()
    work, pieces = await _aside(small, partial(cut, channel.provider, prepared, policy, limit))
    return Started(prepared, policy, pieces, await channel.begin(work))


async def _aside(small: bool, work: Callable[[], T]) -> T:
    """Do small work here, other work in a thread."""
    return work() if small else await asyncio.to_thread(work)


async def finish(channel: Channel, started: Started, *, advance: Advance = no_advance) -> RowVectors:
    """Get the vectors of rows on their way; see `embed_prepared`."""
    prepared, policy = started.prepared, started.policy
    supplied = await channel.finish(started.order, advance=advance)
    info = channel.provider.info
    billed = (_by_text(supplied.tokens, started.pieces), _by_text(supplied.usd, started.pieces))
    pieces, supplied, failed = _without_failed(started.pieces, supplied)
    vectors = supplied.vectors
    if policy.long_text is LongText.AVERAGE:
        vectors = average(vectors, pieces, normalized=info.normalized)
    vectors = cut_to_size(vectors, info.dimensions)
    return _by_row(prepared, policy, pieces, vectors, failed, supplied, billed)


def cut(provider: Provider, prepared: Prepared, policy: Policy, limit: int) -> tuple[Encoded, Pieces]:
    """Cut texts of more than `limit` tokens as the policy says; return the pieces and whose they are."""
    encoded, texts = prepared.encoded, prepared.texts
    counts = np.ones(len(encoded), dtype=np.int64)
    whole = [Span(0, len(text), int(n)) for text, n in zip(texts, encoded.tokens, strict=True)]
    long = np.flatnonzero(encoded.tokens > limit)
    if not len(long):
        return encoded, Pieces(counts, tuple(whole), {})
    refused: dict[int, RowError] = {}
    if policy.long_text is LongText.ERROR:
        for i in long:
            counts[i] = 0
            message = f"the text has {encoded.tokens[i]} tokens, {provider.info.name} takes {limit}"
            refused[int(i)] = RowError("text_too_long", "TextTooLongError", message)
        keep = np.flatnonzero(counts)
        return encoded.take(keep), Pieces(counts, tuple(whole[i] for i in keep), refused)
    if policy.long_text is LongText.TRUNCATE:
        return provider.truncate(encoded, max_tokens=limit), Pieces(counts, tuple(whole), {})
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
    return join(parts), Pieces(counts, tuple(spans), {})


def _without_failed(pieces: Pieces, supplied: Supplied) -> tuple[Pieces, Supplied, dict[int, ProviderError]]:
    """Leave out the texts of which a piece failed; return the rest and the errors by distinct text."""
    if not supplied.errors:
        return pieces, supplied, {}
    text_of = np.repeat(np.arange(len(pieces.counts)), pieces.counts)  # (pieces,)
    failed: dict[int, ProviderError] = {}
    for at, error in sorted(supplied.errors.items()):
        failed.setdefault(int(text_of[at]), error)
    lost = np.isin(text_of, list(failed))
    counts = pieces.counts.copy()
    counts[list(failed)] = 0
    kept = np.flatnonzero(~lost)
    left = Supplied(
        supplied.vectors[kept],
        supplied.tokens[kept],
        supplied.usd[kept],
        supplied.sent[kept],
        {},
        supplied.usage,
    )
    return Pieces(counts, tuple(pieces.spans[i] for i in kept), pieces.refused), left, failed


def average(vectors: Vectors, pieces: Pieces, *, normalized: bool) -> Vectors:
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
    pieces: Pieces,
    vectors: Vectors,
    failed: dict[int, ProviderError],
    supplied: Supplied,
    billed: tuple[IntArray, npt.NDArray[np.float64]],
) -> RowVectors:
    refused = {**pieces.refused, **{at: row_error(error) for at, error in failed.items()}}
    errors = dict(prepared.errors)
    errors.update(_of_rows(prepared.distinct, refused))
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
    texts = np.unique(at)
    tokens, usd = np.zeros(prepared.total, dtype=np.int64), np.zeros(prepared.total)
    asked, bearer = np.unique(prepared.distinct[has_text], return_index=True)
    tokens[has_text[bearer]] = billed[0][asked]  # the first of equal texts bears it
    usd[has_text[bearer]] = billed[1][asked]
    sent = int(_by_text(supplied.sent.astype(np.int64), pieces)[texts].astype(bool).sum())
    return RowVectors(
        vectors=vectors if _is_each_once(source, len(vectors)) else np.ascontiguousarray(vectors[source]),
        rows=np.repeat(rows, repeat),
        spans=spans,
        pieces=made_from,
        errors=errors,
        sent=sent,
        deduped=len(rows) - len(texts),
        cached=len(texts) - sent,
        tokens=tokens,
        usd=usd,
        usage=supplied.usage,
        failures=_of_rows(prepared.distinct, failed),
    )


def _of_rows(distinct: IntArray, by_text: dict[int, T]) -> dict[int, T]:
    """Return by row what is known by distinct text."""
    if not by_text:
        return {}
    return {row: by_text[at] for row, at in enumerate(distinct.tolist()) if at in by_text}


def _is_each_once(positions: IntArray, n: int) -> bool:
    """Whether positions are 0 to n-1 in order: then taking them would only copy."""
    return len(positions) == n and bool((positions == np.arange(n)).all())


def _by_text(values: npt.NDArray[N], pieces: Pieces) -> npt.NDArray[N]:
    """Add up values of pieces by distinct text: (pieces,) -> (distinct,)."""
    sums = np.zeros(len(pieces.counts), dtype=values.dtype)
    np.add.at(sums, np.repeat(np.arange(len(pieces.counts)), pieces.counts), values)
    return sums


def row_error(error: ProviderError) -> RowError:
    """Return what stands in a row's error column for a provider's error."""
    kind = type(error).__name__
    return RowError(
        error.code or _CODES.get(kind, "provider_error"), kind, str(error), error.attempts, error.request_id
    )


_CODES = {
    "RateLimitError": "rate_limited",
    "UnavailableError": "unavailable",
    "RefusedError": "refused",
    "BadReplyError": "bad_reply",
}
