"""Two models or servers beside each other: do they give the same vectors? `vecmill compare`.

The rule is the one of OpenVINO Model Server's accuracy check: no component differs by more than 0.01 and the
distance of the two vectors is below 0.06. It says whether two sides are one model at one precision. A model
with int8 weights differs more and still finds the same neighbours, so cosine and neighbours are told too, and
may be made the rule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vecmill.bench.quality import closeness
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import DimensionMismatchError, InputError, ProviderError
from vecmill.core.measure import cosines
from vecmill.core.types import Vectors
from vecmill.embedder.embedder import AsyncEmbedder

ATOL = 1e-2
"""Source: OpenVINO Model Server, `demos/embeddings/compare_results.py`, as is the next."""
MOST_DIFFERENCE = 0.06

SHOWN = 20
"""Components that are shown of a vector."""
NEIGHBOURS = 10
ENOUGH = 20
"""Texts from which on neighbours are compared."""

_SAME_MODEL = (0.98, 0.8)
"""Least cosine and overlap of one model at two precisions; the built-in one in int8 has 0.99 and 0.95."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When two sides agree.

    Attributes:
        atol: No component may differ by more.
        difference: The distance of two vectors must be below it.
        min_cosine: Instead of both, every cosine must reach it; None: the two above are the rule.
        min_overlap: Besides, so large a share of the 10 nearest neighbours must agree; None: any.
    """

    atol: float = ATOL
    difference: float = MOST_DIFFERENCE
    min_cosine: float | None = None
    min_overlap: float | None = None

    def __post_init__(self) -> None:
        if not (self.atol >= 0.0 and self.difference > 0.0):
            raise InputError(f"atol {self.atol} cannot be below 0, difference {self.difference} not at 0")


@dataclass(frozen=True, slots=True)
class Side:
    """One side's vectors.

    Attributes:
        name: As it was named, without secrets. vectors: (n, d) float32.
        seconds: That embedding took, opening left out. tokens: it counted.
    """

    name: str
    vectors: Vectors
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """The two vectors of one text.

    Attributes:
        difference: Their distance (L2). max_abs: the largest difference of a component. cosine: theirs.
        passed: Whether they agree by the rule.
    """

    difference: float
    max_abs: float
    cosine: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """What comparing gave.

    Attributes:
        a, b: The sides. pairs: for each text.
        overlap: Share of each text's 10 nearest others that both sides agree on; None below 20 texts.
        rule: By which it was judged.
    """

    a: Side
    b: Side
    pairs: tuple[Pair, ...]
    overlap: float | None
    rule: Rule

    @property
    def passed(self) -> bool:
        """Whether every text's vectors agree, and the neighbours where the rule asks for that."""
        near = self.rule.min_overlap is None or (
            self.overlap is not None and self.overlap >= self.rule.min_overlap
        )
        return near and all(pair.passed for pair in self.pairs)

    @property
    def looks_quantized(self) -> bool:
        """Whether the sides fail the strict rule only as one model at two precisions does."""
        cosine, overlap = _SAME_MODEL
        near = min(pair.cosine for pair in self.pairs) >= cosine
        return not self.passed and near and (self.overlap is None or self.overlap >= overlap)

    def record(self) -> dict[str, Any]:
        """Return the result as JSON has it; no text is in it."""
        return {
            "passed": self.passed,
            "rule": asdict(self.rule),
            "texts": len(self.pairs),
            "dimensions": int(self.a.vectors.shape[1]),
            "sides": {
                name: {
                    "name": side.name,
                    "seconds": side.seconds,
                    "tokens": side.tokens,
                    "first_values": side.vectors[:, :SHOWN].tolist(),
                }
                for name, side in (("a", self.a), ("b", self.b))
            },
            "difference_max": max(pair.difference for pair in self.pairs),
            "max_abs": max(pair.max_abs for pair in self.pairs),
            "cosine_min": min(pair.cosine for pair in self.pairs),
            "cosine_mean": float(np.mean([pair.cosine for pair in self.pairs])),
            "top_10_overlap": self.overlap,
            "looks_quantized": self.looks_quantized,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def compare_vectors(a: Side | Vectors, b: Side | Vectors, *, rule: Rule | None = None) -> Compared:
    """Compare two sides' vectors of the same texts.

    Args:
        a: (n, d) float32, row i for text i; n at least 1.
        b: (n, d) float32, likewise.
        rule: When they agree; None: the strict one.

    Raises:
        DimensionMismatchError: The sides differ in d.
        InputError: They differ in n, there are none, or they are not finite.
    """
    rule = rule or Rule()
    left = a if isinstance(a, Side) else Side("a", a)
    right = b if isinstance(b, Side) else Side("b", b)
    x, y = left.vectors, right.vectors
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise InputError(f"need one vector per text on both sides, got shapes {x.shape} and {y.shape}")
    if x.shape[1] != y.shape[1]:
        raise DimensionMismatchError(
            f"{left.name} gives {x.shape[1]} dimensions, {right.name} {y.shape[1]}: these are different "
            "models, or one is shortened; ask both for the same"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"the vectors of {left.name} or {right.name} hold values that are not numbers")
    apart = x.astype(np.float64) - y.astype(np.float64)
    distances = np.linalg.norm(apart, axis=1).tolist()
    largest = np.abs(apart).max(axis=1).tolist()
    near = cosines(x, y).tolist()
    close = [bool(np.allclose(one, other, atol=rule.atol)) for one, other in zip(x, y, strict=True)]
    pairs = tuple(
        Pair(distance, most, cosine, _agree(rule, distance, cosine, close=within))
        for distance, most, cosine, within in zip(distances, largest, near, close, strict=True)
    )
    overlap = closeness(x, y, NEIGHBOURS).overlap if len(x) >= ENOUGH else None
    return Compared(left, right, pairs, overlap, rule)


async def compare_models(
    a: str,
    b: str,
    texts: Sequence[str],
    *,
    model_a: str | None = None,
    model_b: str | None = None,
    rule: Rule | None = None,
    settings: Settings | None = None,
) -> Compared:
    """Embed texts with two models or servers, one after the other, and compare. Nothing comes from a cache.

    Args:
        a: A model as `Embedder` takes it, or the URL of a server: "http://HOST:PORT/v1#MODEL".
        b: The other one.
        texts: At least one.
        model_a: The model of A, where its URL does not name it.
        model_b: The model of B, likewise.
        rule: When they agree; None: the strict one.
        settings: None reads environment and `vecmill.toml`.

    Raises:
        InputError: No texts, or a URL without a model.
        DimensionMismatchError: The sides differ in width.
        ProviderError: A side does not answer.
    """
    if not texts:
        raise InputError("there is nothing to compare: give --input TEXT or --input-file FILE")
    settings = settings or load_settings()
    sides = [await _embed(spec, model, texts, settings) for spec, model in ((a, model_a), (b, model_b))]
    return compare_vectors(*sides, rule=rule)


def server_of(spec: str, model: str | None = None) -> tuple[str, str] | None:
    """Return (model, base URL) of a server named by its URL; None for anything else.

    Raises:
        InputError: The URL names no model, or carries a password.
    """
    if not spec.lower().startswith(("http://", "https://")):
        return None
    parts = urlsplit(spec)
    name = model or parts.fragment
    if parts.username or parts.password:
        raise InputError("the URL carries a user or password: give the key by a profile or variable")
    url = parts._replace(fragment="").geturl()
    if not name:
        raise InputError(
            f"{url} does not say which model is meant: write {url}#MODEL, or give --model-a or -b"
        )
    return name, url


async def _embed(spec: str, model: str | None, texts: Sequence[str], settings: Settings) -> Side:
    server = server_of(spec, model)
    if server is None and model is not None:
        raise InputError(f"{spec} is a model already: --model-a and --model-b are for URLs of servers")
    name, url = server if server is not None else (spec, None)
    opened = AsyncEmbedder(
        f"openai:{name}" if url is not None else name, base_url=url, cache=False, settings=settings
    )
    try:
        async with opened as embedder:
            await embedder.embed(texts[:1])  # loads, connects
            began = time.perf_counter()
            found = await embedder.embed(texts)
            seconds = time.perf_counter() - began
    except ProviderError as error:
        if url is None or error.status != 404:
            raise
        raise _not_there(name, url, error) from error
    side = Side(name, found.vectors, seconds, found.usage.tokens)
    return side if url is None else replace(side, name=f"{name} at {url}")


def _not_there(name: str, url: str, error: ProviderError) -> ProviderError:
    """Return what to tell whoever named a server's URL where it answers 404."""
    shown = urlsplit(url)._replace(query="").geturl().rstrip("/")
    if error.code == "model_not_found":
        message = f"the server at {shown} knows no model {name!r}: GET {shown}/models lists those it serves"
    else:
        message = (
            f"nothing answers POST {shown}/embeddings (404): before the # stands the base of an API such as "
            "http://HOST:PORT/v1, without /embeddings"
        )
    return ProviderError(message, model=name, status=404, code=error.code)


def _agree(rule: Rule, difference: float, cosine: float, *, close: bool) -> bool:
    if rule.min_cosine is not None:
        return cosine >= rule.min_cosine
    return close and difference < rule.difference


def render(compared: Compared, *, shown: int = 4) -> list[str]:
    """Return a comparison as lines: the first values of some texts' vectors, then the figures of all."""
    lines = [
        f"{side}: {one.name}, {len(one.vectors)} texts in {1000 * one.seconds:.1f} ms"
        for side, one in (("A", compared.a), ("B", compared.b))
    ]
    for at, pair in enumerate(compared.pairs[:shown]):
        lines.append(f"Text number: {at}")
        for side, one in (("A", compared.a), ("B", compared.b)):
            lines.append(f"{side}: shape: ({one.vectors.shape[1]},) first {SHOWN} values:")
            values = np.array2string(one.vectors[at, :SHOWN], precision=4, suppress_small=True)
            lines += [f" {line}" for line in values.splitlines()]
        lines.append(
            f"Difference score: {pair.difference}   max abs {pair.max_abs:.4g}, cosine {pair.cosine:.6f}: "
            f"{'PASS' if pair.passed else 'FAIL'}"
        )
    if len(compared.pairs) > shown:
        lines.append(f"… and {len(compared.pairs) - shown} more texts")
    return [*lines, *_summary(compared)]


def _summary(compared: Compared) -> list[str]:
    found = compared.record()
    failed = [at for at, pair in enumerate(compared.pairs) if not pair.passed]
    overlap = "" if compared.overlap is None else f", top-10 overlap {compared.overlap:.3f}"
    lines = [
        f"Largest difference score: {found['difference_max']:.4f}, max abs {found['max_abs']:.4g}, cosine "
        f"min {found['cosine_min']:.6f} mean {found['cosine_mean']:.6f}{overlap}",
        f"{'PASS' if compared.passed else 'FAIL'}: {_words(compared.rule)}"
        + (
            f"; {len(failed)} of {len(compared.pairs)} texts fail, the first is {failed[0]}" if failed else ""
        ),
    ]
    if compared.looks_quantized:
        lines.append(
            "note: the differences are those of one model at two precisions, such as int8 and float32; "
            "--min-cosine 0.98 judges by direction instead"
        )
    return lines


def _words(rule: Rule) -> str:
    if rule.min_cosine is not None:
        words = f"every cosine at least {rule.min_cosine:g}"
    else:
        words = f"every component within {rule.atol:g} and every difference score below {rule.difference:g}"
    return words if rule.min_overlap is None else f"{words}, top-10 overlap at least {rule.min_overlap:g}"
