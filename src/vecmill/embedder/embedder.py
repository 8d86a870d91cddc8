"""The one door for all embedding: lists of texts in, vectors in the same order out.

`AsyncEmbedder` is the implementation, `Embedder` the same methods for code that does not await.
"""

from __future__ import annotations

import asyncio
import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from vecmill._version import __version__
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, ProviderError, TextTooLongError
from vecmill.core.space import Manifest, short
from vecmill.core.types import EmptyText, InputType, LongText, RowError, Usage, Vectors, choice
from vecmill.embedder.background import run_sync
from vecmill.embedder.channel import Channel
from vecmill.embedder.rows import Policy, Prepared, embed_prepared, prepare
from vecmill.models.base import ModelInfo, Provider
from vecmill.models.resolve import open_model

UNKNOWN_SHARE = 0.5
"""Above this share of tokens its vocabulary lacks, a model knows too little of a text."""

CHARACTERS_PER_TOKEN = 2.0
"""Below this, a text falls into hardly more than letters; English has 3.5 to 5.4. See `jobs.guard`."""

TOKENS_THAT_TELL = 20


class LanguageWarning(UserWarning):
    """Most of the text is unknown to the model, or falls into single letters: its vectors mean little."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors with their origin; `np.asarray(embeddings)` gives the vectors.

    Attributes:
        vectors: (n, d) float32, row i for text i. With long_text="chunks" a text may have several rows.
        rows: (n,) int64: which text a vector belongs to.
        usage: Texts, tokens, requests and dollars it cost.
        model: The model's name.
        space: Its space id: only vectors of equal spaces may be compared.
        tokens: (texts,) int64 billed for each text; adds up to `usage.tokens`. Of equal texts the first
            bears it, what came from the cache cost nothing.
    """

    vectors: Vectors
    rows: npt.NDArray[np.int64]
    usage: Usage
    model: str
    space: str
    tokens: npt.NDArray[np.int64]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.vectors, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        n, d = self.vectors.shape
        return f"Embeddings({n} vectors of {d} dimensions, {self.model}, space {short(self.space)})"


class AsyncEmbedder:
    """Embeds texts with one model.

    Args:
        model: "minilm" (built in), "local:NAME", a model folder, "openai:NAME", "azure:DEPLOYMENT",
            "github:PUBLISHER/NAME", a profile or a registered name.
        dimensions: Fewer dimensions than the model's, for models that allow it (MRL): the full vector is
            asked, kept in the cache and cut here, as the provider would cut it.
        base_url: Where the hosted model is, instead of its provider's own address.
        user: End user named in requests, for the provider's abuse monitoring; never part of the vector.
        cache: Whether vectors are kept on disk; None: for hosted models, unless the settings say otherwise.
        max_usd: What this embedder may spend.
        device: Where a local model runs: "CPU" (default), "GPU", "NPU", "AUTO".
        precision: "float32" or "int8"; None takes the model's own.
        threads: Threads of local inference; None takes every core the process may use.
        long_text: "error" (default), "truncate", "average" or "chunks".
        empty: "error" (default) or "embed". "skip" is for jobs only: every text here gets its vector.
        max_tokens: Tokens above which a text is long; None takes the model's limit.
        settings: None reads environment and `vecmill.toml`.
        provider: A provider already open, instead of `model`.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        dimensions: int | None = None,
        base_url: str | None = None,
        user: str | None = None,
        cache: bool | None = None,
        max_usd: float | None = None,
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        long_text: str = "error",
        empty: str = "error",
        max_tokens: int | None = None,
        settings: Settings | None = None,
        provider: Provider | None = None,
    ) -> None:
        self._policy = Policy(
            choice(LongText, long_text, "long_text"), choice(EmptyText, empty, "empty"), max_tokens=max_tokens
        )
        if self._policy.empty is EmptyText.SKIP:
            raise InputError('empty="skip" would leave texts without vectors: use "error" or "embed"')
        self._settings = settings or load_settings()
        if provider is None:
            provider = open_model(
                model,
                settings=self._settings,
                device=device,
                precision=precision,
                threads=threads,
                max_tokens=max_tokens,
                dimensions=dimensions,
                base_url=base_url,
                user=user,
                cached=cache is not False,
            )
        elif model is not None:
            raise InputError("give a model or a provider, not both")
        self._provider = provider
        self._cache, self._max_usd = cache, max_usd
        self._open: tuple[asyncio.AbstractEventLoop, Channel] | None = None
        self._policy.limit(provider)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself: name, space, dimensions, limits."""
        return self._provider.info

    async def learn(self) -> ModelInfo:
        """Return what the model says about itself; a hosted one nobody knows is asked: one request."""
        await self._channel()
        return self.info

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        input_type: str | Sequence[str] = "document",
        user: str | Sequence[str | None] | None = None,
        deployment: str | Sequence[str | None] | None = None,
    ) -> Embeddings:
        """Embed texts; equal texts are embedded once, order is kept.

        Args:
            texts: The texts; a single one counts as a list of one. None at all gives (0, d) and no call.
            input_type: "document" or "query"; models with prefixes embed them differently. One for all
                texts, or one for each, as for `user` and `deployment`.
            user: End user named in requests. Hosted models only.
            deployment: Another deployment (Azure) or model name of the same space. Hosted models only.

        Returns:
            Vectors (n, d) float32 in the order of the texts, unit length where the model normalizes.

        Raises:
            InputError: A text is empty or not a text; the message names its position.
            TextTooLongError: A text has too many tokens and long_text is "error".
            ProviderError: The provider failed, or refused a text; `args[0]` names its position.
            BudgetReachedError: It would cost more than `max_usd`.

        Warns:
            LanguageWarning: The model does not know the texts' language.
        """
        rows = _listed(texts)
        given = (input_type, user, deployment)
        if any(value is not None and not isinstance(value, str) for value in given):
            return await self._embed_groups(rows, *(_per_row(value, len(rows)) for value in given))
        kind = (cast(str, input_type), cast("str | None", user), cast("str | None", deployment))
        return await self._embed_kind(rows, range(len(rows)), *kind)

    async def _embed_kind(
        self, rows: list[str], at: Sequence[int], input_type: str, user: str | None, deployment: str | None
    ) -> Embeddings:
        """Embed texts of one role, user and deployment; `at` is where the caller has them."""
        channel = (await self._channel()).varied(self._settings, user=user, deployment=deployment)
        policy = replace(self._policy, input_type=choice(InputType, input_type, "input_type"))
        prepared = await prepare(channel.provider, rows, policy)
        _raise_first(prepared.errors, at)
        info = channel.provider.info
        if self._policy.long_text is LongText.ERROR:
            tokens = prepared.encoded.tokens[prepared.distinct]
            _refuse_long(tokens, at, policy.limit(channel.provider), info)
        if not info.hosted:
            _warn_of_language(prepared, info)
        result = await embed_prepared(channel, prepared, policy)
        if result.failures:
            row = min(result.failures)
            error = result.failures[row]
            raise _at_position(error, at[row], len(result.failures)) from error
        # another call may still take what it shares with this one: what goes out is the caller's own
        vectors = result.vectors if channel.cache is None else result.vectors.copy()
        return Embeddings(vectors, result.rows, result.usage, info.name, info.space, result.tokens)

    async def _embed_groups(
        self,
        rows: list[str],
        input_types: Sequence[str | None],
        users: Sequence[str | None],
        deployments: Sequence[str | None],
    ) -> Embeddings:
        """Embed texts that differ in role, user or deployment: one call for each kind, put back in order."""
        groups: dict[tuple[str | None, str | None, str | None], list[int]] = {}
        for at, kind in enumerate(zip(input_types, users, deployments, strict=True)):
            groups.setdefault(kind, []).append(at)
        parts = [
            (
                at,
                await self._embed_kind([rows[i] for i in at], at, role or "document", who, where),
            )
            for (role, who, where), at in groups.items()
        ]
        if not parts:
            return await self.embed(rows)
        origin = np.concatenate([np.array(at, dtype=np.int64)[part.rows] for at, part in parts])
        order = np.argsort(origin, kind="stable")
        tokens = np.zeros(len(rows), dtype=np.int64)
        for group, part in parts:
            tokens[group] = part.tokens
        return Embeddings(
            np.concatenate([part.vectors for _, part in parts])[order],
            origin[order],
            sum((part.usage for _, part in parts), Usage()),
            self.info.name,
            self.info.space,
            tokens,
        )

    async def manifest(self, *, input_type: str = "document") -> Manifest:
        """Return the manifest of vectors this embedder makes; its probe is asked once per space."""
        channel = await self._channel()
        return replace(manifest_of(self.info, InputType(input_type)), probe=await channel.probe())

    async def _channel(self) -> Channel:
        """Return the way to the model on this event loop."""
        loop = asyncio.get_running_loop()
        if self._open is None or self._open[0] is not loop:
            before = self._open[1].engine if self._open is not None else None
            channel = Channel.to(
                self._provider,
                self._settings,
                cache=self._cache,
                max_usd=self._max_usd,
                spent_usd=0.0 if before is None else before.budget.spent_usd,
            )
            self._open = (loop, channel)
        channel = self._open[1]
        await channel.learn()
        return channel

    async def close(self) -> None:
        """Let go of the model."""
        await self._provider.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Embedder:
    """`AsyncEmbedder` for code that does not await; same arguments, same methods."""

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._inner = AsyncEmbedder(model, **options)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself: name, space, dimensions, limits."""
        return self._inner.info

    def learn(self) -> ModelInfo:
        """Return what the model says about itself; see `AsyncEmbedder.learn`."""
        return run_sync(self._inner.learn())

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        input_type: str | Sequence[str] = "document",
        user: str | Sequence[str | None] | None = None,
        deployment: str | Sequence[str | None] | None = None,
    ) -> Embeddings:
        """Embed texts; see `AsyncEmbedder.embed`."""
        return run_sync(self._inner.embed(texts, input_type=input_type, user=user, deployment=deployment))

    def manifest(self, *, input_type: str = "document") -> Manifest:
        """Return the manifest of vectors this embedder makes; see `AsyncEmbedder.manifest`."""
        return run_sync(self._inner.manifest(input_type=input_type))

    def close(self) -> None:
        """Let go of the model."""
        run_sync(self._inner.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


async def make_manifest(channel: Channel, input_type: InputType) -> Manifest:
    """Return the manifest of vectors that come through a channel, the probe embedded afresh."""
    probe = await channel.fresh_probe()
    return replace(manifest_of(channel.provider.info, input_type), probe=probe)


def manifest_of(info: ModelInfo, input_type: InputType) -> Manifest:
    """Return the manifest of vectors a model makes, without the probe."""
    return Manifest(
        model=info.name,
        space=info.space,
        dimensions=info.dimensions,
        normalized=info.normalized,
        input_type=str(input_type),
        provider=info.provider,
        revision=info.revision,
        pooling=info.pooling,
        tokenizer=info.tokenizer,
        precision=info.precision,
        max_tokens=info.max_tokens,
        tool_version=__version__,
    )


def _listed(texts: str | Sequence[str]) -> list[str]:
    rows = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(rows):
        if not isinstance(text, str):
            raise InputError(f"text {position} is {type(text).__name__}, not str: leave it out or convert it")
    return rows


def _warn_of_language(prepared: Prepared, info: ModelInfo) -> None:
    content = max(int((prepared.encoded.tokens - prepared.overhead).sum()), 1)
    unknown, characters = int(prepared.encoded.unknown.sum()), sum(map(len, prepared.texts))
    if is_hardly_known(unknown, content, characters):
        message = (
            f"{info.name} hardly knows the language of these texts ({unknown / content:.0%} of the tokens "
            f"unknown, {characters / content:.1f} characters per token): their vectors mean little; use a "
            "multilingual model"
        )
        warnings.warn(message, LanguageWarning, stacklevel=2)


def is_hardly_known(unknown: int, content: int, characters: int) -> bool:
    """Say whether a model knows too little of texts for their vectors to mean much.

    Args:
        unknown: Tokens its vocabulary lacks.
        content: All tokens without prefix and special ones, at least 1.
        characters: Of the texts.
    """
    few = characters / content < CHARACTERS_PER_TOKEN and content >= TOKENS_THAT_TELL
    return unknown / content > UNKNOWN_SHARE or few


def _raise_first(errors: dict[int, RowError], at: Sequence[int]) -> None:
    if errors:
        row = at[min(errors)]
        raise InputError(
            f"text {row} is empty or blank ({len(errors)} such texts): leave it out or say empty='embed'"
        )


def _refuse_long(tokens: npt.NDArray[np.int64], at: Sequence[int], limit: int, info: ModelInfo) -> None:
    long = np.flatnonzero(tokens > limit)
    if len(long):
        raise TextTooLongError(
            f"text {at[long[0]]} has {tokens[long[0]]} tokens, {info.name} takes {limit} ({len(long)} such); "
            f"choose long_text='average', 'truncate' or 'chunks'"
        )


def _per_row(value: str | Sequence[str | None] | None, n: int) -> Sequence[str | None]:
    if value is None or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise InputError(f"{len(value)} values were given for {n} texts: give one for each, or one for all")
    return value


def _at_position(error: ProviderError, row: int, failed: int) -> ProviderError:
    """Return the provider's error with the text's position before it; other calls may share the error."""
    others = f" ({failed} such texts)" if failed > 1 else ""
    found = copy.copy(error)
    found.args = (f"text {row}{others}: {error}",)
    return found
