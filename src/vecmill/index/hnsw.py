"""Graphs (HNSW) of faiss as candidates: fast above some hundred thousand vectors, at 130 bytes of links each.

Source: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using hierarchical
navigable small world graphs, 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import IntArray, Mask, Metric, Precision, Vectors, choice
from vecmill.index.base import Originals
from vecmill.index.copies import Copies, copies_in, copies_of, hashes_of
from vecmill.index.faiss_candidates import (
    BLOCK_ROWS,
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

_TRAINING_ROWS = 32_768
"""Vectors that fix the range of each component's int8 code; what lies beyond it is clipped."""


class HnswGraph:
    """A graph whose links lead from far to near. Searching looks at some thousand vectors, not at all.

    Made by `build` or `from_bytes`. Every equal vector is in the graph once: hundreds of copies would link to
    nothing but each other and cut off what lies behind them (recall 0.65 instead of 0.99 was measured with
    copies making up two thirds).

    What holds for repetition: equal vectors, settings and seed give the same graph, byte for byte, where
    faiss has one thread (OMP_NUM_THREADS=1). With more, threads race for links: graphs differ in details,
    their recall does not. Searching gives the same rows with any number of threads.
    """

    def __init__(
        self,
        index: Any,
        settings: IndexSettings,
        prepared: Preparation,
        dimensions: int,
        copies: Copies | None,
    ) -> None:
        self._index = index
        self._settings = settings
        self._prepared = prepared
        self._dimensions = dimensions
        self._copies = copies
        self._all_copies = copies
        self._rows = int(index.ntotal) if copies is None else len(copies.members)

    @classmethod
    def build(
        cls,
        vectors: npt.ArrayLike | Originals,
        settings: IndexSettings,
        *,
        metric: Metric | str,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        leave_out: Mask | None = None,
    ) -> HnswGraph:
        """Build a graph. Reads the vectors twice; takes about 0.5 ms per vector of 384 dimensions and core.

        Memory: the vectors in the graph's precision, 8 m + 12 bytes of links each, blocks of 16,384 vectors.

        Args:
            vectors: (n, d), or what holds them.
            settings: Of kind hnsw. `m`, `ef_construction`, `precision` and `shorten` are built in.
            metric: cosine, dot, euclidean; with float32 also manhattan and chebyshev.
            seed: Of the levels.
            progress: Called with vectors added and vectors in all.
            leave_out: (n,) bool: rows to be added later by `complete`; rows with equal vectors stay out too.

        Raises:
            MissingExtraError: faiss is not installed.
            InputError: There are no vectors, one holds NaN, none is left, or faiss cannot do this metric.
        """
        ensure_kind(settings, IndexKind.HNSW)
        metric, originals = choice(Metric, metric, "metric"), as_originals(vectors)
        d = compared_dimensions(originals.dimensions, settings)
        index = _empty(d, settings, faiss_metric(metric, settings))
        index.hnsw.rng = load_faiss().RandomGenerator(seed % (1 << 31))
        index.hnsw.efConstruction = max(settings.ef_construction, settings.m)
        _, some = sample(originals, _TRAINING_ROWS, seed)
        prepared = Preparation.of(some, metric, settings.shorten)
        copies, count = _ordered(_copies(originals, prepared), leave_out)
        if not index.is_trained:
            index.train(prepared(some))
        del some
        _add(index, originals, prepared, copies.head(count).first_rows, progress)
        graph = cls(index, settings, prepared, originals.dimensions, None if copies.are_none else copies)
        if leave_out is not None:
            graph._copies = copies.head(count)
        return graph

    def complete(self, vectors: npt.ArrayLike | Originals) -> None:
        """Add the rows that were left out. Nobody may search meanwhile.

        Args:
            vectors: (n, d), those it was built from.
        """
        if self._copies is self._all_copies or self._all_copies is None:
            return
        rows = self._all_copies.first_rows[int(self._index.ntotal) :]
        originals = as_originals(vectors)
        for start in range(0, len(rows), BLOCK_ROWS):
            some = originals.fetch(rows[start : start + BLOCK_ROWS])
            self._index.add(self._prepared(some))
        self._copies = self._all_copies

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
        """What it is made of and how hard it searches."""
        return self._settings

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory: links, the graph's own vectors, and the rows of copies."""
        hnsw = self._index.hnsw
        links = 4 * hnsw.neighbors.size() + 8 * hnsw.offsets.size() + 4 * hnsw.levels.size()
        copies = 0 if self._copies is None else self._copies.members.nbytes + self._copies.starts.nbytes
        return int(links + self._index.ntotal * _code_bytes(self._index) + copies)

    def __len__(self) -> int:
        return self._rows

    def tuned(self, settings: IndexSettings) -> HnswGraph:
        """Return the same graph searched with the `ef` of other settings; nothing is copied."""
        same = replace(
            self._settings,
            ef=settings.ef,
            oversample=settings.oversample,
            recall_target=settings.recall_target,
        )
        graph = HnswGraph(self._index, same, self._prepared, self._dimensions, self._all_copies)
        graph._copies = self._copies
        return graph

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        """Name rows that are probably among the nearest, nearest first by the graph's own precision.

        At least `count` vectors are kept in sight, however small `ef` is; with a filter in proportion more,
        so that as many remain. Where no more rows are allowed than asked for, all of them are named.

        Args:
            queries: (q, d) float32.
            count: Rows per query, at least 1.
            allowed: (n,) bool, the rows that may be named; None for all.

        Returns:
            (q, min(count, n)) int64, each row at most once per query; -1 where fewer were found.

        Raises:
            DimensionMismatchError: A query is of another width.
            InputError: `count` is below 1, a query holds NaN, or `allowed` is of another length.
        """
        asked = checked_queries(queries, self._dimensions, count, allowed, len(self))
        wanted = min(count, len(self))
        copies, chosen = self._copies, None
        if allowed is not None:
            if (few := survivors_of(allowed, len(asked), wanted)) is not None:
                return few
            if copies is not None:
                copies = copies.allowed(allowed)
                allowed = np.diff(copies.starts) > 0
            chosen = None if allowed.all() else allowed
        total = int(self._index.ntotal)
        ef, sel = max(self._settings.ef, wanted), None
        if chosen is not None:
            sel = selector(chosen)
            ef = round(ef * total / int(np.count_nonzero(chosen)))
        hard = load_faiss().SearchParametersHNSW(efSearch=min(ef, total), sel=sel)
        found = found_rows(self._index, self._prepared(asked), min(wanted, total), hard)
        return found if copies is None else copies.rows(found, wanted)

    def to_bytes(self) -> bytes:
        """Return the graph as bytes with a digest; `from_bytes` is the way back. Holds it twice meanwhile.

        Raises:
            InputError: Rows are left out of it still.
        """
        if len(self) != (int(self._index.ntotal) if self._copies is None else len(self._copies.members)):
            raise InputError("rows are left out of the graph: complete it before it is kept")
        header = {
            "settings": self._settings.to_json(),
            "metric": self.metric.value,
            "exponent": self._prepared.exponent,
            "dimensions": self._dimensions,
            "rows": len(self),
        }
        copies = () if self._copies is None else (self._copies.members, self._copies.starts)
        return framed(header, copies, self._index)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, settings: IndexSettings | None = None, *, where: str = "the graph"
    ) -> HnswGraph:
        """Read what `to_bytes` gave. Every byte is checked before faiss sees any.

        Args:
            data: The bytes.
            settings: How to search it (ef, oversample); None for the stored ones.
            where: Names the bytes in messages, such as a path.

        Raises:
            MissingExtraError: faiss is not installed.
            CorruptFileError: They are damaged, or of another index.
            FormatVersionError: Another version wrote them.
        """
        header, arrays, payload = unframed(data, where)
        stored = IndexSettings.from_json(header["settings"])
        used = ensure_same_make(stored, settings, IndexKind.HNSW, ("m", "ef_construction"), where)
        rows, d = header["rows"], header["dimensions"]
        copies = copies_of(arrays, rows, where) if arrays else None
        index = revived(
            payload,
            where,
            rows=rows if copies is None else len(copies),
            dimensions=compared_dimensions(d, used),
        )
        prepared = Preparation(Metric(header["metric"]), used.shorten, header["exponent"])
        return cls(index, used, prepared, d, copies)


def _empty(d: int, settings: IndexSettings, metric: int) -> Any:
    faiss = load_faiss()
    match settings.precision:
        case Precision.INT8:
            return faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_8bit, settings.m, metric)
        case Precision.FLOAT16:
            return faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_fp16, settings.m, metric)
    return faiss.IndexHNSWFlat(d, settings.m, metric)


def _code_bytes(index: Any) -> int:
    return int(load_faiss().downcast_index(index.storage).sa_code_size())


def _add(
    index: Any,
    originals: Originals,
    prepared: Preparation,
    rows: IntArray,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Add the vectors of ascending rows, block by block."""
    new = np.zeros(len(originals), np.bool_)
    new[rows] = True
    for start, block in blocks(originals):
        if (chosen := new[start : start + len(block)]).any():
            index.add(prepared(block if chosen.all() else block[chosen]))
        if progress is not None:
            progress(start + len(block), len(originals))


def _ordered(copies: Copies, leave_out: Mask | None) -> tuple[Copies, int]:
    """Put the vectors to be left out last; return how many come before them."""
    if leave_out is None:
        return copies, len(copies)
    out = copies.any_of(leave_out)
    if out.all():
        raise InputError(f"nothing to index: all {len(leave_out)} vectors are left out")
    return copies.in_order(np.argsort(out, kind="stable")), int((~out).sum())


def _copies(originals: Originals, prepared: Preparation) -> Copies:
    """Find equal vectors, compared as faiss will see them. One pass over the originals."""
    hashes = np.empty((len(originals), 2), np.uint64)
    for start, block in blocks(originals):
        hashes[start : start + len(block)] = hashes_of(prepared(block))
    return copies_in(hashes)
