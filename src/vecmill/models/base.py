"""What a provider of vectors must be: one screen, texts in, vectors and usage out.

A provider never retries, caches, deduplicates or reorders for its caller: that is the embedder's work. It
does know its own tokenizer, so it measures texts and cuts long ones. One call of a hosted provider's `embed`
is one request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.types import InputType, IntArray, Usage, Vectors

TokenIds: TypeAlias = npt.NDArray[np.int32]
Advance: TypeAlias = Callable[[int, int], None]
"""Called during a long `embed` with (texts, tokens) finished since the last call."""


def no_advance(texts: int, tokens: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model says about itself.

    Attributes:
        name: As the user would type it: "local:all-MiniLM-L6-v2".
        provider: Who runs it: "local".
        space: Space id, 32 hex digits.
        dimensions: Components of a vector.
        max_tokens: Tokens one text may have, special tokens and prefix counted.
        normalized: Whether vectors have unit length.
        precision: What it computes in: "float32" or "int8".
        device: Where it runs, for people.
        pooling, tokenizer, revision: Where the numbers come from, for the manifest.
        languages: Two-letter codes the model was made for; empty when unknown.
        max_inputs, max_request_tokens: Limits of one call; None for a provider that packs by itself.
        usd_per_million_tokens: Price; 0.0 for local models, None when unknown.
        batch_usd_per_million_tokens: Price through the provider's Batch API; None where there is none.
        hosted: Whether it is asked over a network, for which there are limits, retries, a cache and a bill.
        reply_dimensions: Components of the vectors `embed` returns, where they are cut to `dimensions`
            afterwards; None: they are not cut.
        max_request_bytes: Limit of one request's body.
        mrl: Whether the first components are vectors themselves; None where unknown.
    """

    name: str
    provider: str
    space: str
    dimensions: int
    max_tokens: int
    normalized: bool
    precision: str = "float32"
    device: str = ""
    pooling: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    languages: tuple[str, ...] = ()
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    usd_per_million_tokens: float | None = 0.0
    batch_usd_per_million_tokens: float | None = None
    hosted: bool = False
    reply_dimensions: int | None = None
    max_request_bytes: int | None = None
    mrl: bool | None = None

    @property
    def width(self) -> int:
        """Components of the vectors `embed` returns; 0 while nobody knows (see `HostedProvider.learn`)."""
        return self.dimensions if self.reply_dimensions is None else self.reply_dimensions


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as a model's tokenizer sees them, prefix and special tokens included.

    Attributes:
        texts: The exact texts, prefix included: what the cache key is made of.
        tokens: (n,) int64 tokens per text, before any limit.
        unknown: (n,) int64 of these, tokens the vocabulary lacks.
        ids: The token ids of each text where the provider runs locally, else None. A text above the limit
            has all its ids here; embedding it is refused.
        variant: Which of a pair of models the texts go to ("" or the name of the model for queries); part of
            the cache key, because the same text has two vectors in such a space.
    """

    texts: tuple[str, ...]
    tokens: IntArray
    unknown: IntArray
    ids: tuple[TokenIds, ...] | None = None
    variant: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | IntArray) -> Encoded:
        """Return the texts at these positions, in this order."""
        at = np.asarray(rows, dtype=np.int64)
        ids = None if self.ids is None else tuple(self.ids[i] for i in at)
        return Encoded(tuple(self.texts[i] for i in at), self.tokens[at], self.unknown[at], ids, self.variant)


def join(parts: Sequence[Encoded]) -> Encoded:
    """Put texts of one role together, in order."""
    ids = None if any(p.ids is None for p in parts) else tuple(x for p in parts for x in p.ids or ())
    return Encoded(
        tuple(text for part in parts for text in part.texts),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.unknown for part in parts]),
        ids,
        next((part.variant for part in parts if len(part)), ""),
    )


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text: characters [start, end), and its tokens without prefix and special tokens."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What an answer says about limits; None where it says nothing. Resets are seconds from now."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Vectors in the order of the texts: (n, width) float32, and what they cost.

    `usage.tokens` is the provider's own count where it gives one.
    """

    vectors: Vectors
    usage: Usage
    rates: RateLimits | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whose limits a hosted provider's requests count against.

    Attributes:
        id: Hash of origin, account (never the key itself), deployment: equal ids share limits. 32 hex digits.
        name: For people and logs: "openai:text-embedding-3-small".
        requests_per_minute, tokens_per_minute: What the profile says; None: learned from replies.
        max_concurrency: Requests in flight at most.
        timeout: Seconds one request may take.
    """

    id: str
    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int = 64
    timeout: float = 120.0


class Provider(Protocol):
    """A model somebody runs."""

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        """Add the role's prefix, tokenize and measure. Costs no request and no money."""

    def split(self, text: str, *, max_tokens: int, input_type: InputType) -> list[Span]:
        """Cut a text into consecutive pieces that each encode to at most `max_tokens` tokens.

        `max_tokens` counts prefix and special tokens, as `Encoded.tokens` does. Cuts lie at word borders
        where a word fits, and the pieces cover every character but white space between words.
        """

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        """Cut every text to its first tokens that fit, special tokens kept, as the model's own tools do.

        `texts` become the exact characters the kept tokens stand for, so that a cache keyed by them is right.
        """

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        """Embed texts, each at most `info.max_tokens` tokens.

        Raises:
            TextTooLongError: A text has too many tokens.
            ProviderError: The other side failed.
        """

    async def close(self) -> None:
        """Let go of sessions and compiled models."""


class HostedProvider(Provider, Protocol):
    """A model asked over a network. `embed` is exactly one request."""

    @property
    def endpoint(self) -> Endpoint:
        """Whose limits the requests count against."""

    async def learn(self) -> Reply | None:
        """Embed the probe's sentences if dimensions or model are not known yet; None where they are.

        After it `info` is complete, its space final. One request.

        Raises:
            ProviderError: As `embed`.
        """

    def remember(
        self,
        *,
        max_inputs: int | None = None,
        max_request_tokens: int | None = None,
        max_request_bytes: int | None = None,
    ) -> None:
        """Keep a smaller limit the endpoint was found to have; `info` says it from now on."""

    def hasten(self, seconds: float) -> None:
        """Let one request take at most so many seconds from now on, where it may take longer."""

    def varied(self, *, user: str | None = None, deployment: str | None = None) -> HostedProvider:
        """Return this provider with another user or deployment in its requests; connections are shared."""
