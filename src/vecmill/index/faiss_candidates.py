"""What the graph and the lists of faiss share: guards before it, a frame of bytes around it.

faiss ends the process on some inputs (an unknown metric in a parallel section, a damaged file), so nothing
reaches it unchecked. Classes only, never a factory string: a process that imported usearch first crashes
there.
"""

from __future__ import annotations

import hashlib
import json
import operator
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError, DimensionMismatchError, FormatVersionError, InputError
from vecmill.core.extras import require
from vecmill.core.types import IntArray, Mask, Metric, Precision, Vectors
from vecmill.core.vectors import check, normalize
from vecmill.index.base import Originals
from vecmill.index.settings import IndexKind, IndexSettings

BLOCK_ROWS = 16_384
"""Vectors handed to faiss at once. A graph depends on it: the pieces of the originals must not matter."""

_FARTHEST = np.float32(2.0**20)
"""Components so large have products far from the end of float32."""

_MAGIC = b"vmfaiss\n"
_VERSION = 1
_HEAD = struct.Struct("<8sIIQ32s")  # magic, version, bytes of the header, of the body, digest

_MOST_EXPONENT = 200  # more than numbers of single precision have

_MOST_TIMES_ITS_SIZE = 256
"""A table computed while reading is larger than the centres it is of: with pq up to 256 codes a component."""

_READING = threading.Lock()


def load_faiss() -> ModuleType:
    """Import faiss.

    Raises:
        MissingExtraError: It is not installed; the message names the extra.
    """
    return require("faiss", extra="ann")


def faiss_metric(metric: Metric, settings: IndexSettings) -> int:
    """Return faiss's number of a metric. Cosine is the inner product of unit vectors.

    Raises:
        InputError: faiss cannot do it with this kind and precision; the message says what can.
    """
    faiss = load_faiss()
    kind = settings.kind.value
    match metric.value:
        case "cosine" | "dot":
            return int(faiss.METRIC_INNER_PRODUCT)
        case "euclidean":
            return int(faiss.METRIC_L2)
        case "manhattan" | "chebyshev" if settings.precision is Precision.FLOAT32:
            return int(faiss.METRIC_L1 if metric.value == "manhattan" else faiss.METRIC_Linf)
        case "manhattan" | "chebyshev":
            raise InputError(
                f"{kind} cannot find {metric.value} neighbours by {settings.precision.value} vectors; "
                "choose precision float32, or kind 'flat'"
            )
    raise InputError(
        f"{kind} cannot find {metric.value} neighbours; choose cosine, dot, euclidean, manhattan or "
        "chebyshev, or search exactly"
    )


@dataclass(frozen=True, slots=True)
class Preparation:
    """How vectors and queries become what faiss compares.

    Attributes:
        metric: What "near" means; for cosine everything is of unit length.
        shorten: Leading components kept, None for all.
        exponent: But for cosine, everything is divided by 2 ** exponent, so that components lie around 1:
            faiss squares in float32, and ends the process where that overflows.
    """

    metric: Metric
    shorten: int | None
    exponent: int = 0

    @classmethod
    def of(cls, some: Vectors, metric: Metric, shorten: int | None) -> Preparation:
        """Learn the exponent from a sample."""
        largest = float(np.abs(some).max(initial=0.0))
        exponent = 0 if metric is Metric.COSINE or largest == 0.0 else int(np.frexp(largest)[1])
        return cls(metric, shorten, exponent)

    def __call__(self, vectors: Vectors) -> Vectors:
        """Return (n, d or shorten) float32 in C order; the input itself where nothing is to be done.

        What lies 2^20 times farther out than anything in the sample is moved there.
        """
        cut = vectors if self.shorten is None else vectors[:, : self.shorten]
        if self.metric is Metric.COSINE:
            return normalize(cut)
        if self.exponent:
            with np.errstate(over="ignore", under="ignore"):
                cut = np.ldexp(cut, -self.exponent)
        elif cut.size == 0 or float(np.abs(cut).max()) <= _FARTHEST:
            return np.ascontiguousarray(cut)
        return np.ascontiguousarray(np.clip(cut, -_FARTHEST, _FARTHEST))


def compared_dimensions(dimensions: int, settings: IndexSettings) -> int:
    """Return how many components faiss sees.

    Raises:
        InputError: The settings ask for more than there are.
    """
    if settings.shorten is not None and settings.shorten > dimensions:
        raise InputError(
            f"cannot shorten vectors of {dimensions} dimensions to {settings.shorten}; "
            f"choose from 1 to {dimensions}"
        )
    return settings.shorten or dimensions


def as_originals(vectors: npt.ArrayLike | Originals) -> Originals:
    """Return what holds the vectors: an array is checked and wrapped.

    Raises:
        InputError: There are none, or they are no table of finite numbers.
    """
    from vecmill.index.originals import ArrayOriginals

    originals = vectors if _is_originals(vectors) else ArrayOriginals(check(cast("npt.ArrayLike", vectors)))
    if not len(originals) or not originals.dimensions:
        raise InputError(f"nothing to index: {len(originals)} vectors of {originals.dimensions} dimensions")
    return originals


def _is_originals(vectors: npt.ArrayLike | Originals) -> TypeGuard[Originals]:
    return hasattr(vectors, "parts")


def blocks(originals: Originals) -> Iterator[tuple[int, Vectors]]:
    """Yield all vectors in blocks of `BLOCK_ROWS`, whatever pieces the originals come in.

    Raises:
        InputError: A vector holds NaN or infinity.
    """
    first, held, count = 0, list[Vectors](), 0
    for start, part in originals.parts():
        at = 0
        while at < len(part):
            piece = part[at : at + BLOCK_ROWS - count]
            held.append(piece)
            at, count = at + len(piece), count + len(piece)
            if count == BLOCK_ROWS or start + at == len(originals):
                whole = held[0] if len(held) == 1 else np.concatenate(held)
                yield first, check(whole, what=f"vectors from row {first} on")
                first, held, count = first + count, [], 0


def sample(originals: Originals, count: int, seed: int) -> tuple[IntArray, Vectors]:
    """Take rows at random, without repetition: (m,) ascending rows and their (m, d) vectors, m at most count.

    Raises:
        InputError: A vector holds NaN or infinity.
    """
    n = len(originals)
    rows = np.arange(n)
    if count < n:
        rows = np.sort(np.random.default_rng(seed).choice(n, count, replace=False))
    return rows, check(originals.fetch(rows), what="vectors of a sample")


def checked_queries(queries: Vectors, dimensions: int, count: int, allowed: Mask | None, n: int) -> Vectors:
    """Check what a search was given, before faiss sees it.

    Raises:
        DimensionMismatchError: A query is of another width.
        InputError: `count` is below 1, a query holds NaN, or `allowed` is no mask of the n rows.
    """
    asked = check(queries, what="queries")
    if asked.shape[1] != dimensions:
        raise DimensionMismatchError(
            f"queries have {asked.shape[1]} dimensions, the index {dimensions}; "
            "embed them with the model that made the index"
        )
    if count < 1:
        raise InputError(f"count is {count}; ask for at least 1 candidate")
    if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != (n,)):
        raise InputError(
            f"allowed has shape {allowed.shape} and dtype {allowed.dtype}, not one bool per vector, ({n},)"
        )
    return asked


def survivors_of(allowed: Mask, q: int, count: int) -> IntArray | None:
    """Return the rows allowed, for every query, where they are no more than asked for; else None."""
    rows = np.flatnonzero(allowed)
    if len(rows) > count:
        return None
    out = np.full((q, count), -1, np.int64)
    out[:, : len(rows)] = rows
    return out


def selector(allowed: Mask) -> Any:
    """Return faiss's selector of rows, a bit each."""
    return load_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def found_rows(index: Any, asked: Vectors, count: int, search_parameters: Any) -> IntArray:
    """Search: (q, count) int64, -1 where fewer were found."""
    if not len(asked):
        return np.empty((0, count), np.int64)
    _, rows = index.search(asked, count, params=search_parameters)
    out: IntArray = rows
    return out


def framed(header: Mapping[str, Any], arrays: tuple[IntArray, ...], index: Any) -> bytes:
    """Return an index as bytes.

    They are a head with a digest of all that follows, the header as JSON, the arrays (int64, little-endian;
    their lengths stand in the header), and what faiss makes of its index.
    """
    said = {**header, "arrays": [len(array) for array in arrays]}
    text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    body = [array.astype("<i8").tobytes() for array in arrays]
    body.append(load_faiss().serialize_index(index).tobytes())
    size = sum(map(len, body))
    return b"".join((_HEAD.pack(_MAGIC, _VERSION, len(text), size, _digest(text, *body)), text, *body))


def unframed(data: bytes | memoryview, where: str) -> tuple[dict[str, Any], list[IntArray], memoryview]:
    """Take apart what `framed` made; every byte is checked before anything is read.

    Returns:
        The header, the arrays, and the bytes for `revived`.

    Raises:
        CorruptFileError: It is damaged, cut short, or something else.
        FormatVersionError: Another version wrote it.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise CorruptFileError(f"{where} holds no index of this kind, or is damaged; build it again")
    _, version, text_size, body_size, digest = _HEAD.unpack_from(view)
    if version != _VERSION:
        raise FormatVersionError(
            f"{where} has format version {version}, this vecmill reads {_VERSION}; build it again"
        )
    if len(view) != _HEAD.size + text_size + body_size:
        raise CorruptFileError(
            f"{where} has {len(view):,} bytes, not the {_HEAD.size + text_size + body_size:,} it was written "
            "with; build it again"
        )
    text, body = view[_HEAD.size : _HEAD.size + text_size], view[_HEAD.size + text_size :]
    if _digest(text, body) != digest:
        raise CorruptFileError(f"{where} is damaged: its checksum does not match; build it again")
    try:
        header, arrays, at = json.loads(bytes(text)), [], 0
        for length in header["arrays"]:
            if operator.index(length) < 0:
                raise ValueError(f"an array of {length} numbers")
            arrays.append(np.frombuffer(body, "<i8", length, at).astype(np.int64))
            at += arrays[-1].nbytes
        settings, d = IndexSettings.from_json(header["settings"]), header["dimensions"]
        groups = settings.pq_parts or 1 if settings.precision is Precision.PQ else 1
        if not max(settings.shorten or 1, groups) <= operator.index(d):
            raise ValueError(f"{settings} of {d} dimensions")
        if operator.index(header["rows"]) < 0 or abs(operator.index(header["exponent"])) > _MOST_EXPONENT:
            raise ValueError(f"{header['rows']} rows, exponent {header['exponent']}")
        Metric(header["metric"])
    except (ValueError, TypeError, LookupError) as error:
        raise CorruptFileError(f"{where} is no index vecmill wrote ({error}); build it again") from error
    return header, arrays, body[at:]


def revived(payload: memoryview, where: str, *, rows: int, dimensions: int) -> Any:
    """Return faiss's index of checked bytes.

    Args:
        payload: As `unframed` returned it.
        where: Names it in messages.
        rows: Vectors it must hold.
        dimensions: Components they must have, as faiss sees them.

    Raises:
        CorruptFileError: It holds others.
        FormatVersionError: This faiss does not read what that one wrote.
    """
    faiss = load_faiss()
    try:
        with _allocating_at_most(_MOST_TIMES_ITS_SIZE * len(payload)):
            index = faiss.deserialize_index(np.frombuffer(payload, np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise FormatVersionError(
            f"{where}: faiss {faiss.__version__} cannot read it ({error}); build it again"
        ) from error
    if (index.ntotal, index.d) != (rows, dimensions):
        raise CorruptFileError(
            f"{where} holds {index.ntotal:,} vectors of {index.d} dimensions, not the {rows:,} of "
            f"{dimensions} it says; build it again"
        )
    return index


@contextmanager
def _allocating_at_most(size: int) -> Iterator[None]:
    """Let faiss reserve no more bytes for a table, whatever a file says, where this faiss can be told so.

    The limit is one of the process: reading takes turns.
    """
    faiss = load_faiss()
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    with _READING:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(min(size, before) if before else size)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before)


def ensure_kind(settings: IndexSettings, kind: IndexKind) -> None:
    """Refuse settings of another kind of index.

    Raises:
        InputError: They are.
    """
    if settings.kind is not kind:
        raise InputError(f"settings are of kind {settings.kind.value!r}, not {kind.value!r}")


def ensure_same_make(
    stored: IndexSettings,
    wanted: IndexSettings | None,
    kind: IndexKind,
    made_of: tuple[str, ...],
    where: str,
) -> IndexSettings:
    """Return the settings to search with; those an index is made of must be the stored ones.

    Raises:
        CorruptFileError: They are not: the bytes belong to another index.
    """
    if stored.kind is not kind:
        raise CorruptFileError(f"{where} holds an index of kind {stored.kind.value!r}, not {kind.value!r}")
    if wanted is None:
        return stored
    for name in ("kind", "precision", "shorten", *made_of):
        asked = getattr(wanted, name)
        if asked != getattr(stored, name) and not (name in ("nlist", "pq_parts") and asked is None):
            raise CorruptFileError(
                f"{where} was built with {name} {getattr(stored, name)}, not {asked}; build it again"
            )
    searching = {name: getattr(wanted, name) for name in ("ef", "nprobe", "oversample", "recall_target")}
    return replace(stored, **searching)


def _digest(*parts: bytes | memoryview) -> bytes:
    """Digest lengths and contents, so that no byte can move from one part to the next."""
    state = hashlib.blake2b(digest_size=32)
    state.update(struct.pack("<IQ", len(parts[0]), sum(map(len, parts[1:]))))
    for part in parts:
        state.update(part)
    return state.digest()
