"""From settings to what names candidates: codes, a graph, lists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vecmill.core.types import Metric, Precision, choice
from vecmill.index.base import Candidates, Originals
from vecmill.index.codec import CodeSpec, fit
from vecmill.index.codes import Codes
from vecmill.index.faiss_candidates import as_originals, blocks, sample
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists
from vecmill.index.settings import IndexKind, IndexSettings

_LEARNING_COMPONENTS, _FEWEST_LEARNED, _MOST_LEARNED = 1 << 24, 16_384, 65_536
"""Vectors a code is learned from, by their components together: 43,690 of 384 dimensions, 64 MiB."""

_SIGNS = ("hamming", "jaccard")


def build(
    vectors: npt.ArrayLike | Originals,
    settings: IndexSettings,
    *,
    metric: Metric | str,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Candidates:
    """Build what settings describe. It names candidates: put it into a `RescoredIndex`.

    Exact settings give codes of float32, and of one bit for hamming and jaccard, which look at signs only.

    Args:
        vectors: (n, d), or what holds them.
        settings: Kind, precision and what belongs to them.
        metric: What "near" means.
        seed: Of samples, k-means and levels; equal ones give equal indexes (see `HnswGraph`, `IvfLists`).
        progress: Told how far it is.

    Raises:
        MissingExtraError: hnsw or ivf, and faiss is not installed.
        InputError: There are no vectors, one holds NaN, or the settings do not fit them or the metric.
        UnknownNameError: No such metric.
    """
    metric, originals = choice(Metric, metric, "metric"), as_originals(vectors)
    match settings.kind:
        case IndexKind.HNSW:
            return HnswGraph.build(originals, settings, metric=metric, seed=seed, progress=counting(progress))
        case IndexKind.IVF:
            return IvfLists.build(originals, settings, metric=metric, seed=seed, progress=counting(progress))
        case IndexKind.FLAT:
            return _codes(originals, settings, metric, seed, counting(progress))


def counting(progress: Callable[[str], None] | None) -> Callable[[int, int], None] | None:
    """Turn numbers into words for a caller who wants words."""
    if progress is None:
        return None
    return lambda done, total: progress(f"built {done:,} of {total:,} vectors")


def _codes(
    originals: Originals,
    settings: IndexSettings,
    metric: Metric,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Codes:
    precision = settings.precision
    if settings.is_exact and metric.value in _SIGNS:
        precision = Precision.BINARY
    is_pq = precision is Precision.PQ
    spec = CodeSpec(
        precision,
        settings.shorten,
        parts=settings.pq_parts if is_pq else None,
        bits=settings.pq_bits if is_pq else 4,
    )
    learned = min(max(_LEARNING_COMPONENTS // originals.dimensions, _FEWEST_LEARNED), _MOST_LEARNED)
    codec = fit(sample(originals, learned, seed)[1], spec, metric=metric, seed=seed)
    codes = np.empty((len(originals), codec.size_bytes), np.uint8)
    for start, block in blocks(originals):
        codes[start : start + len(block)] = codec.encode(block)
        if progress is not None:
            progress(start + len(block), len(originals))
    return Codes(codec, codes, metric=metric)
