"""Inverted lists (IVF) of faiss as candidates: vectors in lists by nearest centre, a few lists searched.

Source: Sivic and Zisserman, Video Google, 2003; Jegou et al., Product quantization for nearest neighbor
search, 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Mask, Metric, Precision, Vectors, choice
from vecmill.index.base import Originals
from vecmill.index.faiss_candidates import (
    Preparation,
    as_originals,
    blocks,
    checked_queries,
    compared_dimensions,
    ensure_kind,
    ensure_same_make,
    faiss_metric,
    found_rows,
    framed,
    load_faiss,
    revived,
    sample,
    selector,
    survivors_of,
    unframed,
)
from vecmill.index.settings import IndexKind, IndexSettings

_ROWS_PER_LIST = 39
"""Source: faiss, `ClusteringParameters.min_points_per_centroid`: fewer make centres of chance."""

_TRAINING_ROWS_PER_LIST = 64
_PQ_TRAINING_ROWS = 65_536


def lists_for(n: int) -> int:
    """Return how many lists suit n vectors: 4 sqrt(n), as long as a list has 39 vectors on average.

    Below 39 vectors that is one list, which is exact but for its precision.
    Source: faiss, "Guidelines to choose an index" (4 to 16 sqrt(n)).
    """
    return max(1, min(round(4.0 * math.sqrt(n)), n // _ROWS_PER_LIST))


class IvfLists:
    """Lists of vectors around centres found by k-means. Smaller and sooner built than a graph, but slower.

    Made by `build` or `from_bytes`. Precision pq keeps codes of groups of components, 4 bits each unless told
    otherwise: the smallest of all.

    What holds for repetition: equal vectors, settings and seed give the same lists, byte for byte, with the
    same number of threads; another number may round the centres differently.
    """

    def __init__(self, index: Any, settings: IndexSettings, prepared: Preparation, dimensions: int) -> None:
        self._index = index
        self._settings = settings
        self._prepared = prepared
        self._dimensions = dimensions

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike | Originals,
        settings: IndexSettings,
        *,
        metric: Metric | str,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> IvfLists:
        """Find centres by k-means of a sample (64 vectors per list), then put every vector into its list.

        Memory: the vectors in the lists' precision, 8 bytes more each, the sample, blocks of 16,384 vectors.

        Args:
            vectors: (n, d), or what holds them.
            settings: Of kind ivf. `nlist` (None: `lists_for`), `precision`, `shorten`, `pq_parts` and
                `pq_bits` are built in; `settings` of the result say which nlist it was.
            metric: cosine, dot, euclidean; with float32 also manhattan and chebyshev.
            seed: Of the sample and of k-means.
            progress: Called with vectors added and vectors in all.

        Raises:
            MissingExtraError: faiss is not installed.
            InputError: There are no vectors, one holds NaN, there are fewer than lists, or faiss cannot do
                this metric.
        """
        ensure_kind(settings, IndexKind.IVF)
        metric, originals = choice(Metric, metric, "metric"), as_originals(vectors)
        n = len(originals)
        chosen = replace(settings, nlist=lists_for(n) if settings.nlist is None else settings.nlist)
        if (nlist := chosen.nlist or 1) > n:
            raise InputError(f"nlist is {nlist}, but there are {n} vectors; {lists_for(n)} would suit them")
        d = compared_dimensions(originals.dimensions, chosen)
        index = _empty(d, nlist, chosen, faiss_metric(metric, chosen))
        quantizing = _PQ_TRAINING_ROWS if chosen.precision is Precision.PQ else 0
        _, some = sample(originals, max(nlist * _TRAINING_ROWS_PER_LIST, quantizing), seed)
        prepared = Preparation.of(some, metric, chosen.shorten)
        _train(index, _padded(prepared(some), index.d), chosen, seed)
        del some
        for start, block in blocks(originals):
            index.add(_padded(prepared(block), index.d))
            if progress is not None:
                progress(start + len(block), n)
        return cls(index, chosen, prepared, originals.dimensions)

    @property
    def dimensions(self) -> int:
        """Components of a query, before any shortening."""
        return self._dimensions

    @property
    def metric(self) -> Metric:
        """What "near" means here."""
        return self._prepared.metric

    @property
    def settings(self) -> IndexSettings:
        """What it is made of, nlist as it was chosen, and how hard it searches."""
        return self._settings

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory: codes and row numbers of all lists, the centres, the books of pq."""
        index, lists = self._index, self._index.invlists
        block = getattr(index, "bbs", 1)  # lists scanned in registers are filled up to whole blocks
        sizes = np.array([lists.list_size(at) for at in range(index.nlist)], np.int64)
        books = 4 * index.d * index.pq.ksub if self._settings.precision is Precision.PQ else 0
        codes = int((-(-sizes // block) * block).sum()) * index.code_size
        return int(codes + 8 * index.ntotal + 4 * index.nlist * index.d + books)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def tuned(self, settings: IndexSettings) -> IvfLists:
        """Return the same lists searched with the `nprobe` of other settings; nothing is copied."""
        same = replace(
            self._settings,
            nprobe=settings.nprobe,
            oversample=settings.oversample,
            recall_target=settings.recall_target,
        )
        return IvfLists(self._index, same, self._prepared, self._dimensions)

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        """Name rows that are probably among the nearest, nearest first by the lists' own precision.

        With a filter more lists are searched, in proportion to what it leaves. Where no more rows are allowed
        than asked for, all of them are named.

        Args:
            queries: (q, d) float32.
            count: Rows per query, at least 1.
            allowed: (n,) bool, the rows that may be named; None for all.

        Returns:
            (q, min(count, n)) int64, each row at most once per query; -1 where the lists searched hold fewer.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: `count` is below 1, a query holds NaN, or `allowed` is of another length.
        """
        asked = checked_queries(queries, self._dimensions, count, allowed, len(self))
        wanted = min(count, len(self))
        nprobe, sel = self._settings.nprobe, None
        if allowed is not None and not allowed.all():
            if (few := survivors_of(allowed, len(asked), wanted)) is not None:
                return few
            nprobe = round(nprobe * len(self) / int(np.count_nonzero(allowed)))
            sel = selector(allowed)
        nprobe = min(nprobe, self._index.nlist)
        hard = load_faiss().SearchParametersIVF(nprobe=nprobe, sel=sel)
        compared = _padded(self._prepared(asked), self._index.d)
        return found_rows(self._index, compared, wanted, hard)

    def to_bytes(self) -> bytes:
        """Return the lists as bytes with a digest; `from_bytes` is the way back. Holds them twice then."""
        header = {
            "settings": self._settings.to_json(),
            "metric": self.metric.value,
            "exponent": self._prepared.exponent,
            "dimensions": self._dimensions,
            "rows": len(self),
        }
        return framed(header, (), self._index)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, settings: IndexSettings | None = None, *, where: str = "the lists"
    ) -> IvfLists:
        """Read what `to_bytes` gave. Every byte is checked before faiss sees any.

        Args:
            data: The bytes.
            settings: How to search them (nprobe, oversample); None for the stored ones.
            where: Names the bytes in messages, such as a path.

        Raises:
            MissingExtraError: faiss is not installed.
            CorruptFileError: They are damaged, or of another index.
            FormatVersionError: Another version wrote them.
        """
        header, _, payload = unframed(data, where)
        stored = IndexSettings.from_json(header["settings"])
        used = ensure_same_make(stored, settings, IndexKind.IVF, ("nlist", "pq_parts", "pq_bits"), where)
        d = compared_dimensions(header["dimensions"], used)
        if used.precision is Precision.PQ:
            d = _pq_width(d, used)[1]
        index = revived(payload, where, rows=header["rows"], dimensions=d)
        prepared = Preparation(Metric(header["metric"]), used.shorten, header["exponent"])
        return cls(index, used, prepared, header["dimensions"])


def _empty(d: int, nlist: int, settings: IndexSettings, metric: int) -> Any:
    """Make lists without centres. For pq the width grows to a multiple of the groups, filled with zeros."""
    faiss = load_faiss()
    if settings.precision is Precision.PQ:
        parts, wide = _pq_width(d, settings)
        centres = faiss.IndexFlat(wide, metric)
        if settings.pq_bits == 4:
            index = faiss.IndexIVFPQFastScan(centres, wide, nlist, parts, 4, metric)
        else:
            index = faiss.IndexIVFPQ(centres, wide, nlist, parts, settings.pq_bits, metric)
        index.pq.cp.min_points_per_centroid = 1  # a warning on stderr is no way to speak; calibration tells
        return index
    centres = faiss.IndexFlat(d, metric)
    if settings.precision is Precision.FLOAT32:
        return faiss.IndexIVFFlat(centres, d, nlist, metric)
    quantizer = faiss.ScalarQuantizer
    kind = quantizer.QT_8bit if settings.precision is Precision.INT8 else quantizer.QT_fp16
    return faiss.IndexIVFScalarQuantizer(centres, d, nlist, kind, metric)


def _pq_width(d: int, settings: IndexSettings) -> tuple[int, int]:
    """Return the groups of components, and d filled up to a multiple of them."""
    parts = settings.pq_parts or max(1, d // 4)
    if parts > d:
        raise InputError(f"pq_parts is {parts}, but there are {d} components; a group has at least one")
    return parts, -(-d // parts) * parts


def _train(index: Any, some: Vectors, settings: IndexSettings, seed: int) -> None:
    """Find the centres. pq needs as many vectors as it has codes: few are repeated."""
    index.cp.seed = seed % (1 << 31)
    index.cp.min_points_per_centroid = 1
    if settings.precision is Precision.PQ:
        index.pq.cp.seed = seed % (1 << 31)
        some = np.tile(some, (-(-index.pq.ksub // len(some)), 1)) if len(some) < index.pq.ksub else some
    index.train(some)


def _padded(vectors: Vectors, wide: int) -> Vectors:
    """Fill up with zeros: neither inner product nor distance changes."""
    missing = wide - vectors.shape[1]
    return vectors if missing == 0 else np.pad(vectors, ((0, 0), (0, missing)))
