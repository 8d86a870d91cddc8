"""What a version must prove before it is served.

It computes, in both of its forms: finite vectors of the declared width, of unit length where the model
says so, other ones for other texts, the same bits alone, in a batch and again. Its vectors of the probe's
sentences must be those this machine once got for the same space, and those of `golden.json` in its folder
what stands there:

    {"texts": ["a text", …], "vectors": [[0.1, …], …], "atol": 0.001, "input_type": "document"}

`write` makes such a file; made on the machine a model was trained or converted on, it proves that the server
computes the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from vecmill.core import durable
from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, CorruptFileError
from vecmill.core.space import PROBE_TEXTS, PROBE_TOLERANCE, decode_probe, encode_probe
from vecmill.core.types import InputType, Vectors
from vecmill.embedder.probe import read_probe, write_probe
from vecmill.models.base import Provider

FILE = "golden.json"

ATOL = 1e-3
"""How far a component may be from the golden one, where the file says nothing."""

_UNIT = 1e-3
_OTHER = 1e-6
"""Vectors of different texts differ by more than this somewhere."""
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Golden:
    """What a model is known to answer: texts, their vectors (n, d) float32, and how far off it may be."""

    texts: tuple[str, ...]
    vectors: Vectors
    atol: float = ATOL
    input_type: InputType = InputType.DOCUMENT


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
        return _parsed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f'{path} should be {{"texts": […], "vectors": [[…], …], "atol": 0.001}}, with one vector of '
            f"finite numbers for each text ({error})"
        ) from error


async def write(
    provider: Provider,
    folder: Path,
    texts: Sequence[str] = PROBE_TEXTS,
    *,
    atol: float = ATOL,
    input_type: InputType = InputType.DOCUMENT,
) -> Path:
    """Write the vectors a model gives now into a folder, to be compared before it is served elsewhere.

    Raises:
        TextTooLongError: A text has too many tokens.
        BadReplyError: The model does not pass the check itself.
        WriteError: The file cannot be written; an earlier one is intact.
    """
    await _consistent(provider)
    vectors = await _embed(provider, texts, input_type)
    content = {"texts": list(texts), "vectors": vectors, "atol": atol, "input_type": str(input_type)}
    path = folder / FILE
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    await asyncio.to_thread(durable.write_bytes, path, raw)
    return path


def _parsed(content: Any) -> Golden:
    texts = tuple(content["texts"])
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("texts is a list of texts that are not empty")
    vectors = np.array(content["vectors"], dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise ValueError(f"{len(texts)} texts, vectors of shape {vectors.shape}")
    atol = float(content.get("atol", ATOL))
    if not 0 <= atol < 1:
        raise ValueError(f"atol {atol} is not from 0 to 1")
    return Golden(texts, vectors, atol, InputType(content.get("input_type", "document")))


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
    far = float(np.abs(decode_probe(kept, info.width) - vectors).max())
    if not far <= PROBE_TOLERANCE:
        raise _failed(provider, f"vectors that are {far:.2g} from those the same files gave earlier here")


async def _golden(provider: Provider, golden: Golden, where: str) -> None:
    if golden.vectors.shape[1] != provider.info.width:
        raise _failed(
            provider,
            f"vectors of {provider.info.width} numbers, {FILE} of {where} has {golden.vectors.shape[1]}",
        )
    found = await _embed(provider, golden.texts, golden.input_type)
    far = np.abs(found - golden.vectors).max(axis=1)
    worst = int(far.argmax())
    if not far[worst] <= golden.atol:
        raise _failed(
            provider,
            f"a vector that is {far[worst]:.2g} from the golden one of text {worst} in {FILE} (atol "
            f"{golden.atol:g}): another model, pooling or tokenizer",
        )


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
