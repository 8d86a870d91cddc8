"""The one door for all embedding: lists of texts in, vectors in the same order out.

`AsyncEmbedder` is the implementation, `Embedder` the same methods for code that does not await.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecmill._version import __version__
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, TextTooLongError
from vecmill.core.space import Manifest, short
from vecmill.core.types import EmptyText, InputType, LongText, RowError, Usage, Vectors, choice
from vecmill.embedder.background import run_sync
from vecmill.embedder.probe import fresh_probe
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
    """

    vectors: Vectors
    rows: npt.NDArray[np.int64]
    usage: Usage
    model: str
    space: str

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
        model: "minilm" (built in), "local:NAME", a model folder, or a registered name.
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
        if provider is None:
            provider = open_model(
                model,
                settings=settings or load_settings(),
                device=device,
                precision=precision,
                threads=threads,
                max_tokens=max_tokens,
            )
        elif model is not None:
            raise InputError("give a model or a provider, not both")
        self._provider = provider
        self._policy.limit(provider)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself: name, space, dimensions, limits."""
        return self._provider.info

    async def embed(self, texts: str | Sequence[str], *, input_type: str = "document") -> Embeddings:
        """Embed texts; equal texts are embedded once, order is kept.

        Args:
            texts: The texts; a single one counts as a list of one. None at all gives (0, d) and no call.
            input_type: "document" or "query"; models with prefixes embed them differently.

        Returns:
            Vectors (n, d) float32 in the order of the texts, unit length where the model normalizes.

        Raises:
            InputError: A text is empty or not a text; the message names its position.
            TextTooLongError: A text has too many tokens and long_text is "error".
            ProviderError: The provider failed.

        Warns:
            LanguageWarning: The model does not know the texts' language.
        """
        rows = _listed(texts)
        policy = replace(self._policy, input_type=choice(InputType, input_type, "input_type"))
        prepared = await prepare(self._provider, rows, policy)
        _raise_first(prepared.errors)
        if self._policy.long_text is LongText.ERROR:
            _refuse_long(prepared.encoded.tokens[prepared.distinct], policy.limit(self._provider), self.info)
        _warn_of_language(prepared, self.info)
        result = await embed_prepared(self._provider, prepared, policy)
        return Embeddings(result.vectors, result.rows, result.usage, self.info.name, self.info.space)

    async def manifest(self, *, input_type: str = "document") -> Manifest:
        """Return the manifest of vectors this embedder makes, the probe included (three short texts)."""
        return await make_manifest(self._provider, InputType(input_type))

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

    def embed(self, texts: str | Sequence[str], *, input_type: str = "document") -> Embeddings:
        """Embed texts; see `AsyncEmbedder.embed`."""
        return run_sync(self._inner.embed(texts, input_type=input_type))

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


async def make_manifest(provider: Provider, input_type: InputType) -> Manifest:
    """Return the manifest of vectors a provider makes, with the probe embedded afresh."""
    probe, _ = await fresh_probe(provider)
    return replace(manifest_of(provider.info, input_type), probe=probe)


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
    unknown = int(prepared.encoded.unknown.sum()) / content
    per_token = sum(map(len, prepared.texts)) / content
    if unknown > UNKNOWN_SHARE or (per_token < CHARACTERS_PER_TOKEN and content >= TOKENS_THAT_TELL):
        message = (
            f"{info.name} hardly knows the language of these texts ({unknown:.0%} of the tokens unknown, "
            f"{per_token:.1f} characters per token): their vectors mean little; use a multilingual model"
        )
        warnings.warn(message, LanguageWarning, stacklevel=2)


def _raise_first(errors: dict[int, RowError]) -> None:
    if errors:
        row = min(errors)
        raise InputError(
            f"text {row} is empty or blank ({len(errors)} such texts): leave it out or say empty='embed'"
        )


def _refuse_long(tokens: npt.NDArray[np.int64], limit: int, info: ModelInfo) -> None:
    long = np.flatnonzero(tokens > limit)
    if len(long):
        raise TextTooLongError(
            f"text {long[0]} has {tokens[long[0]]} tokens, {info.name} takes {limit} ({len(long)} such); "
            f"choose long_text='average', 'truncate' or 'chunks'"
        )
