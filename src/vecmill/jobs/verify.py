"""Is a vector set what it says? Count, norms, nulls, order, doubles, and a sample computed again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, ProviderError, SpaceMismatchError
from vecmill.core.space import PROBE_TOLERANCE, Manifest, ensure_comparable, probe_distance, short
from vecmill.core.types import EmptyText, InputType, LongText
from vecmill.data.vector_set import VectorSet, read_vectors
from vecmill.embedder.background import run_sync
from vecmill.embedder.channel import Channel
from vecmill.embedder.embedder import make_manifest, manifest_of
from vecmill.embedder.rows import Policy, embed_prepared, prepare
from vecmill.models.base import Encoded, Provider
from vecmill.models.resolve import open_model

NORM_TOLERANCE = 1e-3
SAMPLE_COSINE = 0.999
"""A vector computed again must agree at least so far with the stored one; local ones agree to the bit."""

_BLOCK = 8192
_PAIRS = 256
"""Pairs of texts with one vector that are shown to the model at most."""

_SEED = 20260801


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `ok` is None where it could not be asked."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """All answers about one set."""

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def describe(self) -> dict[str, Any]:
        """Return the report for people and programs."""
        return {"path": self.path, "ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def verify(
    path: str | Path,
    *,
    sample: int = 100,
    model: str | None = None,
    base_url: str | None = None,
    settings: Settings | None = None,
) -> Report:
    """Check a vector set against what it says about itself and compute a sample of it again.

    Args:
        path: The set.
        sample: Rows to compute again, drawn by a fixed seed; 0 computes none.
        model: The model to compute with; None takes the manifest's.
        base_url: Where a hosted model is, instead of its provider's own address.
        settings: None reads environment and `vecmill.toml`.

    Raises:
        StorageError: The set cannot be read at all.
    """
    return run_sync(verify_async(path, sample=sample, model=model, base_url=base_url, settings=settings))


async def verify_async(
    path: str | Path,
    *,
    sample: int = 100,
    model: str | None = None,
    base_url: str | None = None,
    settings: Settings | None = None,
) -> Report:
    """Check a vector set; see `verify`."""
    found = await asyncio.to_thread(read_vectors, path)
    checks = [await asyncio.to_thread(check, found) for check in _CHECKS]
    doubles, sharers = await asyncio.to_thread(_doubles, found)
    by_model = await _with_model(found, sharers, sample, model, base_url, settings or load_settings())
    return Report(str(path), (*checks, doubles, *by_model))


def _manifest(found: VectorSet) -> Check:
    manifest = found.manifest
    if manifest is None:
        return Check("manifest", None, "none: this set was not made by vecmill")
    detail = f"{manifest.model}, space {short(manifest.space)}, {manifest.dimensions} dimensions"
    return Check("manifest", True, detail)


def _rows(found: VectorSet) -> Check:
    if found.manifest is None:
        return Check("rows", None, f"{found.total_rows} rows, nothing to compare with")
    expected = found.manifest.rows
    if found.total_rows != expected:
        return Check("rows", False, f"{found.total_rows} rows, the manifest says {expected}")
    return Check("rows", True, f"{expected} rows, {len(found.vectors)} with a vector")


def _norms(found: VectorSet) -> Check:
    if not len(found.vectors):
        return Check("norms", None, "no vectors")
    norms = np.linalg.norm(found.vectors, axis=1)
    if found.manifest is None or not found.manifest.normalized:
        return Check("norms", None, f"{norms.min():.4g} to {norms.max():.4g}, not said to be unit length")
    off = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
    if len(off):
        worst = off[np.argmax(np.abs(norms[off] - 1))]
        where = f"id {found.ids[found.rows[worst]]!r} has {norms[worst]:.4g}"
        return Check("norms", False, f"{len(off)} vectors are not of unit length; {where}")
    return Check("norms", True, f"all of unit length, off by at most {np.abs(norms - 1).max():.1e}")


def _nulls(found: VectorSet) -> Check:
    without = np.setdiff1d(np.arange(found.total_rows), found.rows)
    if not len(without):
        return Check("nulls", True, "every row has a vector")
    name = found.manifest.column("error") if found.manifest is not None else ""
    if name not in found.columns:
        return Check("nulls", None, f"{len(without)} rows have no vector; the set does not say why")
    errors = [record[name] for record in found.records(without.tolist(), [name])]
    texts = found.texts(without.tolist())
    lost = [
        int(row)
        for row, error, text in zip(without, errors, texts, strict=True)
        if error is None and text is not None and text.strip()
    ]
    if lost:
        return Check(
            "nulls", False, f"{len(lost)} rows have a text but no vector and no error: row {lost[0]}"
        )
    failed = sum(error is not None for error in errors)
    return Check("nulls", True, f"{failed} rows failed, {len(without) - failed} have no text; none is lost")


def _ids(found: VectorSet) -> Check:
    if len(set(found.ids)) == len(found.ids):
        return Check("ids", True, f"{len(found.ids)} different ids")
    chunked = found.manifest is not None and found.manifest.long_text == LongText.CHUNKS
    if chunked:
        return Check("ids", True, f"{len(set(found.ids))} ids, repeated by the chunks of a text")
    seen: dict[str, int] = {}
    for row, id_ in enumerate(found.ids):
        if id_ in seen:
            return Check("ids", False, f"id {id_!r} stands at rows {seen[id_]} and {row}")
        seen[id_] = row
    return Check("ids", True, "")


def _order(found: VectorSet) -> Check:
    names = [found.manifest.column(role) for role in ("file", "row")] if found.manifest else []
    if not names or not set(names) <= set(found.columns):
        return Check("order", None, "the set has no columns file and row of ours")
    seen: set[str] = set()
    last_file, last_row = None, -1
    for start in range(0, found.total_rows, _BLOCK):
        block = range(start, min(start + _BLOCK, found.total_rows))
        for at, record in zip(block, found.records(block, names), strict=True):
            file, row = (record[name] for name in names)
            if file != last_file:
                if file in seen:
                    return Check("order", False, f"row {at}: file {file!r} stands in two places")
                seen.add(file)
                last_file, last_row = file, -1
            if row < last_row:
                return Check("order", False, f"row {at}: input row {row} of {file!r} comes after {last_row}")
            last_row = row
    return Check("order", True, f"as in the input, {len(seen)} files")


def _doubles(found: VectorSet) -> tuple[Check, list[tuple[int, int]]]:
    """Check that equal texts have equal vectors; also return pairs with one vector and two texts.

    A pair is two positions among the vectors. Only the model knows whether it can tell the texts apart.
    """
    if found.text_column is None or not len(found.rows):
        return Check("doubles", None, "the set has no texts"), []
    by_text: dict[bytes, tuple[bytes, int]] = {}
    by_vector: dict[bytes, tuple[bytes, int]] = {}
    sharers: list[tuple[int, int]] = []
    for at, text in zip(range(len(found.rows)), _texts(found), strict=True):
        if text is None:
            continue
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        vector = hashlib.blake2b(found.vectors[at].tobytes(), digest_size=16).digest()
        known, first = by_text.setdefault(key, (vector, at))
        if known != vector and not _close(found.vectors[first], found.vectors[at]) and not _is_chunked(found):
            one, other = found.ids[found.rows[first]], found.ids[found.rows[at]]
            said = f"ids {one!r} and {other!r} have the same text but other vectors"
            return Check("doubles", False, said), []
        same, first = by_vector.setdefault(vector, (key, at))
        if same != key and first != at and not _is_chunked(found):
            sharers.append((first, at))
    repeated = len(found.rows) - len(by_text)
    return Check("doubles", True, f"equal texts have equal vectors ({repeated} repeated)"), sharers


def _is_chunked(found: VectorSet) -> bool:
    return found.manifest is not None and found.manifest.long_text == LongText.CHUNKS


def _texts(found: VectorSet) -> Iterator[str | None]:
    for start in range(0, len(found.rows), _BLOCK):
        yield from found.texts(found.rows[start : start + _BLOCK].tolist())


def _close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return bool(np.allclose(one, other, atol=1e-4))


_CHECKS: tuple[Callable[[VectorSet], Check], ...] = (_manifest, _rows, _norms, _nulls, _ids, _order)


async def _with_model(
    found: VectorSet,
    sharers: list[tuple[int, int]],
    sample: int,
    model: str | None,
    base_url: str | None,
    settings: Settings,
) -> list[Check]:
    """Ask what only the model can answer: are equal vectors right, and does a sample come out again?"""
    manifest = found.manifest
    if manifest is None and model is not None:
        raise InputError(f"{found.path} does not say how it was made: verify it without --model")
    shared = _not_asked(found, sharers)
    if manifest is None or found.text_column is None or not len(found.rows):
        return [*shared, Check("recomputed", None, "no sample: no model or texts")]
    if sample < 1 and not sharers:
        return [*shared, Check("recomputed", None, "no sample: none asked for")]
    try:
        provider = await asyncio.to_thread(_open, model or manifest.model, manifest, base_url, settings)
    except InputError as error:
        return [*shared, Check("recomputed", False if sample else None, str(error))]
    try:
        channel = Channel.to(provider, settings, cache=False)
        await channel.learn()
        if provider.info.hosted and model is None:  # the name may mean another provider here: ask it nothing
            ensure_comparable(manifest, manifest_of(provider.info, InputType.DOCUMENT), what=found.path)
        today = await make_manifest(channel, InputType.DOCUMENT)
        ensure_comparable(manifest, today, what=found.path)
        if provider.info.hosted:
            shared = [_unchanged(manifest, today), *shared]
        if sharers:
            shared[-1:] = [await asyncio.to_thread(_shared, found, manifest, provider, sharers)]
        if sample < 1:
            return [*shared, Check("recomputed", None, "no sample: none asked for")]
        return [*shared, await _compare_sample(found, manifest, channel, sample)]
    except (SpaceMismatchError, ProviderError) as error:
        return [*shared, Check("recomputed", False, str(error))]
    finally:
        await provider.close()


def _unchanged(manifest: Manifest, today: Manifest) -> Check:
    """Say whether a hosted model still answers the probe as it did: vendors change models under one name."""
    distance = probe_distance(manifest, today)
    if distance is None:
        return Check("vendor", None, "the set has no probe to compare the model's answers of today with")
    if distance <= PROBE_TOLERANCE:
        return Check("vendor", True, f"{manifest.model} answers as it did, off by at most {distance:.1e}")
    return Check(
        "vendor",
        False,
        f"{manifest.model} was changed by its vendor: the probe's vectors are off by {distance:.3f}; new "
        f"queries do not fit this set: embed it again",
    )


def _not_asked(found: VectorSet, sharers: list[tuple[int, int]]) -> list[Check]:
    if found.text_column is None or not len(found.rows):
        return []
    if not sharers:
        return [Check("shared", True, "no two different texts share a vector")]
    return [Check("shared", None, f"{len(sharers)} texts share a vector with another; no model to ask why")]


def _shared(
    found: VectorSet, manifest: Manifest, provider: Provider, sharers: list[tuple[int, int]]
) -> Check:
    """Say whether texts that share a vector are one to the model: another case, white space, a cut end."""
    draw = np.random.default_rng(_SEED)
    drawn = draw.choice(len(sharers), size=min(_PAIRS, len(sharers)), replace=False)
    pairs = [sharers[i] for i in np.sort(drawn)]
    texts = found.texts(found.rows[np.array(pairs).reshape(-1)].tolist())
    encoded = provider.encode([text or "" for text in texts], input_type=InputType(manifest.input_type))
    if manifest.long_text == LongText.TRUNCATE:
        encoded = provider.truncate(encoded, max_tokens=manifest.max_tokens or provider.info.max_tokens)
    detail = f"{len(sharers)} texts share a vector with another; of {len(pairs)} compared"
    unlike = [pair for i, pair in enumerate(pairs) if not _one_to_model(encoded, 2 * i)]
    if not unlike:
        return Check("shared", True, f"{detail} all are the same to the model")
    if encoded.ids is None:
        return Check(
            "shared", None, f"{detail} {len(unlike)} may differ: the model does not say what it reads"
        )
    one, other = (found.ids[found.rows[at]] for at in unlike[0])
    return Check(
        "shared", False, f"{detail} {len(unlike)} are not the same to the model: {one!r} and {other!r}"
    )


def _one_to_model(encoded: Encoded, at: int) -> bool:
    if encoded.ids is None:
        return encoded.texts[at] == encoded.texts[at + 1]
    return np.array_equal(encoded.ids[at], encoded.ids[at + 1])


def _open(name: str, manifest: Manifest, base_url: str | None, settings: Settings) -> Provider:
    if manifest.provider != "local":
        return open_model(
            name,
            settings=settings,
            dimensions=manifest.dimensions,
            max_tokens=manifest.max_tokens,
            base_url=base_url,
        )
    return open_model(name, settings=settings, precision=manifest.precision, max_tokens=manifest.max_tokens)


async def _compare_sample(found: VectorSet, manifest: Manifest, channel: Channel, sample: int) -> Check:
    draw = np.random.default_rng(_SEED)
    at = np.sort(draw.choice(len(found.rows), size=min(sample, len(found.rows)), replace=False))
    texts, stored = _whole_texts(found, manifest, at)
    policy = Policy(
        LongText.TRUNCATE if manifest.long_text == LongText.CHUNKS else LongText(manifest.long_text),
        EmptyText.EMBED,
        InputType(manifest.input_type),
        manifest.max_tokens,
    )
    ready = await prepare(channel.provider, texts, policy)
    again = await embed_prepared(channel, ready, policy)
    old = found.vectors[stored[again.rows]]
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(again.vectors, axis=1)
    cosines = np.einsum("ij,ij->i", old, again.vectors) / np.maximum(norms, 1e-12)
    same = int((old == again.vectors).all(axis=1).sum())
    detail = f"{len(cosines)} rows, lowest cosine {cosines.min():.6f}, {same} equal to the bit"
    if cosines.min() >= SAMPLE_COSINE:
        return Check("recomputed", True, detail)
    worst = found.ids[found.rows[stored[again.rows[int(np.argmin(cosines))]]]]
    return Check("recomputed", False, f"{detail}; worst is id {worst!r}: order, text or model changed")


def _whole_texts(
    found: VectorSet, manifest: Manifest, at: np.ndarray[Any, Any]
) -> tuple[list[str | None], np.ndarray[Any, Any]]:
    """Return the sample's texts as they were embedded, a chunk's characters only, and their positions."""
    rows = found.rows[at].tolist()
    texts = found.texts(rows)
    first, last = manifest.column("start"), manifest.column("end")
    if manifest.long_text == LongText.CHUNKS and {first, last} <= set(found.columns):
        spans = found.records(rows, [first, last])
        texts = [
            text[span[first] : span[last]] if text is not None else None
            for text, span in zip(texts, spans, strict=True)
        ]
    return texts, at
