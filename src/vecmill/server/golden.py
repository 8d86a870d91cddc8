"""What a version must prove before it is served.

It computes, in both of its forms: finite vectors of the declared width, of unit length where the model
says so, other ones for other texts, the same bits alone, in a batch and again. Its vectors of the probe's
sentences must be those this machine once got for the same space, and those of `golden.json` in its folder
what stands there:

    {"texts": ["a text", …], "vectors": [[0.1, …], …], "query_vectors": [[0.1, …], …], "atol": 0.001}

`vectors` are those of the texts as documents, or of the role "input_type" names; `query_vectors`, which may
be left out, are those of the same texts as queries. `write` makes such a file; made on the machine a model
was trained or converted on, it proves that the server computes the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from vecmill.core import durable
from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, ConfigError, CorruptFileError
from vecmill.core.space import PROBE_TEXTS, PROBE_TOLERANCE, decode_probe, encode_probe
from vecmill.core.types import InputType, Vectors
from vecmill.embedder.probe import read_probe, write_probe
from vecmill.models.base import Provider

log = logging.getLogger(__name__)

FILE = "golden.json"

ATOL = 1e-3
"""How far a component may be from the golden one, where the file says nothing."""

MOST_ATOL = 0.05
"""More proves nothing: the numbers of a unit vector of 384 dimensions are about 0.05 themselves."""

MIN_COSINE = 0.99
"""The least cosine of a vector and its golden one, whatever `atol` allows."""

TEXTS: tuple[str, ...] = (
    "The mill turns grain into flour.",
    "THE MILL TURNS GRAIN INTO FLOUR",
    "Polish the Polish silver in August, said August.",
    "Crème brûlée für Ærøskøbing: naïve façades, señor Nuñez, smörgåsbord",
    "cre\u0300me bru\u0302le\u0301e",
    "水車は穀物を小麦粉にする。",
    "今天北京的气温是二十八度，湿度60%。",
    "Мельница мелет зерно, а Ёлка стоит.",
    "المطحنة تطحن الحبوب",
    "Invoice 4711-B: $1,234.56 (incl. 19% VAT) @ 12:30, 2024-02-29; ask info@example.org!",
    "  two  blanks,\ta tab\nand a new line ",
    "don't stop: e.g. x**2 != 3.14e-10 && foo_bar[0] <= #7 ☕",
    "query",
)
"""What `write` takes unless it is told: each of them shows another mistake of a tokenizer or a prefix."""

LONG_TOKENS = 512
"""The longest text `write` adds by itself; a model for less gets one as long as it takes."""

_UNIT = 1e-3
_OTHER = 1e-6
"""Vectors of different texts differ by more than this somewhere."""
_OTHER_PROCESSOR = 0.05
"""How far a right model may be from what another processor gave: int8 is rounded otherwise."""
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Golden:
    """What a model is known to answer: texts, their vectors (n, d) float32 by role, how far off it may be."""

    texts: tuple[str, ...]
    vectors: Mapping[InputType, Vectors]
    atol: float = ATOL


async def check(provider: Provider, settings: Settings, *, folder: Path | None) -> Vectors:
    """Warm a local model up and prove it; what passed is safe to serve.

    Args:
        provider: The model, which nobody else uses yet.
        settings: Where probes of earlier times are kept.
        folder: Where `golden.json` may be.

    Returns:
        The probe's vectors (3, width).

    Raises:
        BadReplyError: It did not pass; the message says what was wrong.
        CorruptFileError: `golden.json` cannot be read.
        ConfigError: Its `atol` is so large that it proves nothing.
        Error: The model cannot be run.
    """
    probe = await asyncio.to_thread(provider.encode, PROBE_TEXTS, input_type=InputType.DOCUMENT)
    vectors = await _consistent(provider)
    if probe.tokens.max() <= provider.info.max_tokens:
        await asyncio.to_thread(_known, provider, settings, vectors)
    golden = None if folder is None else await asyncio.to_thread(read, folder)
    if golden is not None:
        await _golden(provider, golden, str(folder))
    return vectors


def read(folder: Path) -> Golden | None:
    """Read a folder's `golden.json`; None where there is none.

    Raises:
        CorruptFileError: It is not what it should be.
        ConfigError: Its `atol` is so large that it proves nothing.
    """
    path = folder / FILE
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CorruptFileError(f"{path} has more than {_MOST_BYTES >> 20} MiB: fewer texts would do")
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON ({error})") from error
    try:
        golden = _parsed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f'{path} should be {{"texts": […], "vectors": [[…], …], "atol": 0.001}}, with one vector of '
            f"finite numbers for each text ({error})"
        ) from error
    check_atol(golden.atol, str(path))
    return golden


def check_atol(atol: float, where: str) -> None:
    """Refuse a tolerance that says nothing.

    Raises:
        ConfigError: It is not from 0 to `MOST_ATOL`.
    """
    if not 0 <= atol <= MOST_ATOL:
        raise ConfigError(
            f"{where}: atol {atol:g} is not from 0 to {MOST_ATOL:g}; the numbers of a unit vector of 384 "
            f"dimensions are about {MOST_ATOL:g} themselves, so that a larger one proves nothing: {ATOL:g} "
            "is usual, 0.02 allows for another precision"
        )


async def write(
    provider: Provider, folder: Path, texts: Sequence[str] | None = None, *, atol: float = ATOL
) -> Path:
    """Write the vectors a model gives now into a folder, to be compared before it is served elsewhere.

    Args:
        provider: The model, which is right as it is here.
        folder: Its folder.
        texts: Embedded as documents and as queries; None: `TEXTS`, and a long one.
        atol: How far a number may be off later.

    Raises:
        ConfigError: `atol` is so large that it proves nothing.
        TextTooLongError: A text has too many tokens.
        BadReplyError: The model does not pass the check itself.
        WriteError: The file cannot be written; an earlier one is intact.
    """
    check_atol(atol, FILE)
    await _consistent(provider)
    if texts is None:
        texts = await asyncio.to_thread(telling_texts, provider)
    content = {
        "texts": list(texts),
        "vectors": await _embed(provider, texts, InputType.DOCUMENT),
        "query_vectors": await _embed(provider, texts, InputType.QUERY),
        "atol": atol,
        "input_type": str(InputType.DOCUMENT),
    }
    path = folder / FILE
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    await asyncio.to_thread(durable.write_bytes, path, raw)
    return path


def telling_texts(provider: Provider) -> list[str]:
    """Return those of `TEXTS` a model takes, and one near its limit or `LONG_TOKENS`, whichever is less."""
    most = provider.info.max_tokens
    limit = min(most, LONG_TOKENS)
    words = " ".join(f"{TEXTS[number % 3]} ({number})" for number in range(limit))
    ends = (provider.split(words, max_tokens=limit, input_type=role)[0].end for role in InputType)
    texts = [*TEXTS, words[: min(ends)]]
    tokens = [provider.encode(texts, input_type=role).tokens for role in InputType]
    return [text for text, *counts in zip(texts, *tokens, strict=True) if max(counts) <= most]


def _parsed(content: Any) -> Golden:
    texts = tuple(content["texts"])
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("texts is a list of texts that are not empty")
    vectors = {InputType(content.get("input_type", "document")): _rows(content["vectors"], len(texts))}
    if content.get("query_vectors") is not None:
        vectors[InputType.QUERY] = _rows(content["query_vectors"], len(texts))
    return Golden(texts, vectors, float(content.get("atol", ATOL)))


def _rows(content: Any, n: int) -> Vectors:
    vectors = np.array(content, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != n or not np.isfinite(vectors).all():
        raise ValueError(f"{n} texts, vectors of shape {vectors.shape}")
    return vectors


async def _consistent(provider: Provider) -> Vectors:
    """Return the probe's vectors after comparing what the model says with what it does."""
    info = provider.info
    alone = [await _probe(provider, [text]) for text in PROBE_TEXTS]
    together = await _probe(provider, PROBE_TEXTS)
    again = await _probe(provider, [*reversed(PROBE_TEXTS), *PROBE_TEXTS])
    n = len(PROBE_TEXTS)
    if together.shape != (n, info.width):
        raise _failed(provider, f"vectors of {together.shape[-1]} numbers instead of {info.width}")
    if not all(np.isfinite(vectors).all() for vectors in (*alone, together, again)):
        raise _failed(provider, "vectors that are not finite: its weights are damaged")
    for row, vector in enumerate(together):
        same = (alone[row][0], again[n + row], again[n - 1 - row])
        if any(other.tobytes() != vector.tobytes() for other in same):
            raise _failed(provider, "other vectors for the same text alone, in a batch or again")
    if info.normalized and np.abs(np.linalg.norm(together, axis=1) - 1).max() > _UNIT:
        raise _failed(provider, "vectors that have no unit length although it normalizes")
    for row in range(n):
        for other in range(row):
            if np.abs(together[row] - together[other]).max() <= _OTHER:
                raise _failed(provider, "one vector for different texts: its weights are damaged")
    return together


def _known(provider: Provider, settings: Settings, vectors: Vectors) -> None:
    """Compare with the probe kept for the space; keep this one where there is none."""
    info = provider.info
    folder = settings.cache_dir / "probes"
    kept = read_probe(folder, info)
    if kept is None:
        write_probe(folder, info, encode_probe(vectors))
        return
    known = decode_probe(kept, info.width)
    scale = np.maximum(np.linalg.norm(known, axis=1, keepdims=True), np.float32(1e-12))
    far, cosine = _apart(vectors / scale, known / scale)
    worst, least = float(far.max()), float(cosine.min())
    if worst <= PROBE_TOLERANCE:
        return
    if not (worst < _OTHER_PROCESSOR and least > MIN_COSINE):
        raise _failed(provider, f"vectors that are {worst:.2g} from those the same files gave earlier here")
    log.warning(
        "%s gives vectors that are %.2g (cosine %.5f) from those the same files gave earlier, as on another "
        "processor; golden.json in its folder would tell whether they are right",
        *(info.name, worst, least),
    )


async def _golden(provider: Provider, golden: Golden, where: str) -> None:
    for role, vectors in golden.vectors.items():
        if vectors.shape[1] != provider.info.width:
            raise _failed(
                provider,
                f"vectors of {provider.info.width} numbers, {FILE} of {where} has {vectors.shape[1]}",
            )
        await _as_golden(provider, golden, role, vectors)


async def _as_golden(provider: Provider, golden: Golden, role: InputType, vectors: Vectors) -> None:
    work = await asyncio.to_thread(provider.encode, golden.texts, input_type=role)
    rows = np.flatnonzero(work.tokens <= provider.info.max_tokens)
    if not len(rows):
        raise _failed(
            provider,
            f"no vector of a text in {FILE}: each has more than the {provider.info.max_tokens} tokens it "
            "takes",
        )
    if len(rows) < len(golden.texts):
        log.warning(
            "%s takes %d tokens: %d texts of its %s are longer and not compared",
            *(provider.info.name, provider.info.max_tokens, len(golden.texts) - len(rows), FILE),
        )
    found = (await provider.embed(work.take(rows))).vectors
    far, cosine = _apart(found, vectors[rows])
    good = (far <= golden.atol) & (cosine >= MIN_COSINE)
    if good.all():
        return
    worst = int(np.where(good, -1.0, np.nan_to_num(far, nan=np.inf)).argmax())
    raise _failed(
        provider,
        f"a vector that is {far[worst]:.2g} (cosine {cosine[worst]:.4f}) from the golden one of text "
        f"{rows[worst]} as a {role} in {FILE} (atol {golden.atol:g}, cosine at least {MIN_COSINE:g}): "
        "another model, pooling, prefix or tokenizer",
    )


def _apart(found: Vectors, known: Vectors) -> tuple[Vectors, Vectors]:
    """Return the largest difference of a number and the cosine of each pair of rows, both (n,)."""
    far: Vectors = np.abs(found - known).max(axis=1)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(known, axis=1)
    cosine: Vectors = np.einsum("ij,ij->i", found, known) / np.maximum(norms, np.float32(1e-12))
    return far, cosine


async def _embed(
    provider: Provider, texts: Sequence[str], input_type: InputType = InputType.DOCUMENT
) -> Vectors:
    work = await asyncio.to_thread(provider.encode, texts, input_type=input_type)
    return (await provider.embed(work)).vectors


async def _probe(provider: Provider, texts: Sequence[str]) -> Vectors:
    """Embed sentences of the probe, cut where the model takes only very short texts."""
    work = provider.encode(texts, input_type=InputType.DOCUMENT)
    return (await provider.embed(provider.truncate(work, max_tokens=provider.info.max_tokens))).vectors


def _failed(provider: Provider, gave: str) -> BadReplyError:
    return BadReplyError(f"{provider.info.name} failed its check: it gave {gave}", model=provider.info.name)
