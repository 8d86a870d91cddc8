"""A provider without a model: its vectors are a pure function of the text, so that every mix-up shows.

Tests of this package use it, and so may tests of code that uses this package: pass it to `Embedder`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from vecmill.core.errors import InputError, TextTooLongError
from vecmill.core.space import space_id
from vecmill.core.types import InputType, Usage, Vectors
from vecmill.models.base import Advance, Encoded, ModelInfo, Reply, Span, no_advance
from vecmill.testing.hashed import seeds_of, vectors_of

Fault: TypeAlias = BaseException | str
"""What goes wrong with a call: an exception to raise, or "count", "width" or "nan" for a wrong reply."""

FAULTS = ("count", "width", "nan")

_WORD = re.compile(r"\S+")
_ROLES = {InputType.DOCUMENT: "", InputType.QUERY: "query: "}


@dataclass(slots=True)
class FakeProvider:
    """A model of whitespace tokens whose vector for a text is made from a hash of it.

    Equal texts have equal vectors, different ones different vectors, all of unit length. The role counts, as
    with models that have prefixes: a query is embedded as "query: " and the text.

    Attributes:
        dimensions: Components of a vector, at least 2.
        max_tokens: Words a text may have; the role's prefix is not counted.
        name: The model's name after "fake:".
        unknown: Words the vocabulary lacks, for tests of the language guard.
        faults: What goes wrong with which call; calls are counted from 0.
        hook: Awaited at the start of every call with its number: to wait, to count, to stop.
        max_inputs, max_request_tokens: Limits a hosted model would announce.
        usd_per_million_tokens: The price; 0 as for a local model.
        calls: What was asked: the texts of each call, prefix included, also of calls that failed.
        closed: Whether `close` was called.
    """

    dimensions: int = 8
    max_tokens: int = 256
    name: str = "hash"
    unknown: Iterable[str] = ()
    faults: Mapping[int, Fault] = field(default_factory=dict)
    hook: Callable[[int], Awaitable[None]] | None = None
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    usd_per_million_tokens: float | None = 0.0
    calls: list[tuple[str, ...]] = field(default_factory=list)
    closed: bool = False
    _lacking: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._lacking = frozenset(self.unknown)
        if self.dimensions < 2:
            raise InputError(f"dimensions is {self.dimensions}; a fake vector has at least 2")
        for number, fault in self.faults.items():
            if isinstance(fault, str) and fault not in FAULTS:
                raise InputError(f"fault {fault!r} of call {number} is none of {', '.join(FAULTS)}")

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself; the space follows from name and dimensions."""
        return ModelInfo(
            name=f"fake:{self.name}",
            provider="fake",
            space=space_id("fake", self.name, str(self.dimensions)),
            dimensions=self.dimensions,
            max_tokens=self.max_tokens,
            normalized=True,
            device="nowhere",
            pooling="hash",
            tokenizer="whitespace",
            revision="1",
            max_inputs=self.max_inputs,
            max_request_tokens=self.max_request_tokens,
            usd_per_million_tokens=self.usd_per_million_tokens,
        )

    def encode(self, texts: Sequence[str], *, input_type: InputType) -> Encoded:
        """Add the role's prefix and count words."""
        prefix = _ROLES[input_type]
        words = [text.split() for text in texts]
        tokens = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        if self._lacking:
            lacking = [sum(word in self._lacking for word in line) for line in words]
            unknown = np.array(lacking, dtype=np.int64)
        else:
            unknown = np.zeros(len(words), dtype=np.int64)
        return Encoded(tuple(prefix + text for text in texts) if prefix else tuple(texts), tokens, unknown)

    def split(self, text: str, *, max_tokens: int, input_type: InputType) -> list[Span]:
        """Cut a text into pieces of at most `max_tokens` words."""
        del input_type  # the prefix is not counted
        words = [match.span() for match in _WORD.finditer(text)]
        groups = [words[at : at + max_tokens] for at in range(0, len(words), max_tokens)]
        return [Span(group[0][0], group[-1][1], len(group)) for group in groups]

    def truncate(self, encoded: Encoded, *, max_tokens: int) -> Encoded:
        """Cut every text to its first `max_tokens` words; the role's prefix stays."""
        texts = list(encoded.texts)
        unknown = encoded.unknown.copy()
        for row in np.flatnonzero(encoded.tokens > max_tokens).tolist():
            words = [match.span() for match in _WORD.finditer(texts[row])]
            start = len(words) - int(encoded.tokens[row])  # words of the prefix
            kept = words[start : start + max_tokens]
            unknown[row] = sum(texts[row][a:b] in self._lacking for a, b in kept)
            texts[row] = texts[row][: kept[-1][1]] if kept else ""
        return Encoded(tuple(texts), np.minimum(encoded.tokens, max_tokens), unknown)

    async def embed(self, encoded: Encoded, *, advance: Advance = no_advance) -> Reply:
        """Give each text its vector, or go wrong as `faults` says for this call.

        Raises:
            TextTooLongError: A text has too many words.
        """
        number = len(self.calls)
        self.calls.append(encoded.texts)
        if self.hook is not None:
            await self.hook(number)
        fault = self.faults.get(number)
        if isinstance(fault, BaseException):
            raise fault
        if len(encoded) and int(encoded.tokens.max()) > self.max_tokens:
            row = int(encoded.tokens.argmax())
            raise TextTooLongError(
                f"text {row} has {encoded.tokens[row]} tokens, {self.max_tokens} are allowed"
            )
        vectors = self.vectors(encoded.texts)
        tokens = int(encoded.tokens.sum())
        advance(len(encoded), tokens)
        price = self.usd_per_million_tokens
        usd = None if price is None else tokens * price / 1e6
        return Reply(_spoil(vectors, fault), Usage(len(encoded), tokens, 1, usd))

    async def close(self) -> None:
        """Note that the provider was closed."""
        self.closed = True

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return what `embed` answers for texts (prefix included): (n, dimensions) float32, unit length.

        Cost: one hash a text, the rest is arithmetic on all of them at once.
        """
        salt = f"{self.name}\0{self.dimensions}\0".encode()[:16]
        start = hashlib.blake2b(digest_size=16, salt=salt)
        digests = []
        for text in texts:
            digest = start.copy()
            digest.update(text.encode("utf-8", "surrogatepass"))
            digests.append(digest.digest())
        return vectors_of(seeds_of(digests), self.dimensions)


def fake_vector(text: str, *, dimensions: int = 8, input_type: InputType = InputType.DOCUMENT) -> Vectors:
    """Return the (dimensions,) vector a plain `FakeProvider` gives a text in a role."""
    vectors = FakeProvider(dimensions=dimensions).vectors([_ROLES[input_type] + text])
    return vectors.reshape(-1)


def _spoil(vectors: Vectors, fault: Fault | None) -> Vectors:
    if fault == "count":
        return vectors[:-1]
    if fault == "width":
        return vectors[:, :-1]
    if fault == "nan" and len(vectors):
        vectors[-1, 0] = np.nan
    return vectors
