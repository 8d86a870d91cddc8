"""The index of a collection: built over what it holds, kept as sidecars, right for what was added since.

Rows that came after a graph was built are compared exactly and merged with what the graph finds; rows that
are gone are masked. An index that is behind is slower, never wrong; `IndexState.fresh` says how far behind.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.core import durable
from vecmill.core.errors import InputError, StorageError
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors
from vecmill.core.vectors import merged
from vecmill.index import calibrate as calibration
from vecmill.index.base import Candidates
from vecmill.index.build import calibrate
from vecmill.index.catalogue import NAME
from vecmill.index.codes import Codec, Codes, codec_from_bytes
from vecmill.index.exact import search_originals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.segments import damaged
from vecmill.index.settings import IndexKind, IndexSettings, Measured
from vecmill.index.sidecars import is_there, read_sidecar, write_sidecar
from vecmill.index.snapshot import Segment, Snapshot
from vecmill.index.storage import SIDECARS, Store

_KEPT_ROWS = 1024
"""Codes of smaller segments are made when the collection is opened: quicker than a file for each."""

_BY_LENGTH = (Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN)
_DIGEST = re.compile(r"[0-9a-f]{32}")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexState:
    """What index a collection has, and how well it fits what the collection holds now.

    Attributes:
        settings: Kind, precision and how hard it searches.
        measured: The recall measured when it was built; None for exact search, whose recall is 1.
        reached: Whether that reached the target.
        rows: Rows it was built over.
        fresh: Rows added since that no graph or list knows; they are compared exactly. Codes know all rows.
        gone: Rows a graph or lists were built over that are deleted now, and only stand in their way.
    """

    settings: IndexSettings
    measured: Measured | None
    reached: bool
    rows: int
    fresh: int
    gone: int = 0

    @property
    def is_stale(self) -> bool:
        """Whether a fifth of the rows are unknown to the graph, or of its own are gone: build it again."""
        return max(self.fresh, self.gone) > 0.2 * max(1, self.rows)


class SnapshotIndex:
    """Search in one snapshot of a collection, by its index where it has one. Any thread may use it.

    Loads codes or graph into memory; the originals stay on disk. Codes that are missing, stale or damaged are
    made again in memory; without a codec or a graph the search is exact.
    """

    def __init__(self, snapshot: Snapshot, known: SnapshotIndex | None = None) -> None:
        self.snapshot = snapshot
        self._covered: Mask | None = None
        self._candidates: Candidates | None = None
        self._found: RescoredIndex | None = None
        self._graph: tuple[IntArray, Candidates] | None = None
        described = snapshot.catalogue.index
        self.settings = _settings_of(snapshot)
        if described is None or self.settings.is_exact or not len(snapshot):
            return
        same = known is not None and known.snapshot.catalogue.index == described
        if self.settings.kind is IndexKind.FLAT:
            self._open_codes(_named(snapshot, "codec"), known if same else None)
        else:
            self._open_graph(_named(snapshot, "graph"), known._graph if same and known is not None else None)

    @property
    def metric(self) -> Metric:
        """The metric it is built for."""
        return self.snapshot.catalogue.metric

    @property
    def size_bytes(self) -> int:
        """Bytes of codes or graph in memory."""
        return 0 if self._candidates is None else self._candidates.size_bytes

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        metric: Metric | None = None,
        allowed: Mask | None = None,
        exact: bool = False,
    ) -> Neighbors:
        """Find the k nearest live rows to each query: positions of the snapshot, exact distances.

        Args:
            queries: (q, d) float32.
            k: Neighbours per query.
            metric: Another metric than the collection's means exact search.
            allowed: (n,) bool by position, the rows that may be found; live ones are meant by None.
            exact: Compare with all.
        """
        near = self.metric if metric is None else metric
        mask = self.snapshot.live if allowed is None else self.snapshot.live & allowed
        everything = None if mask.all() else mask
        if exact or self._found is None or near is not self.metric:
            return self._exact(queries, k, near, everything)
        if self._covered is None:
            return self._found.search(queries, k, allowed=everything)
        known = self._found.search(queries, k, allowed=mask & self._covered)
        fresh = mask & ~self._covered
        if not fresh.any():
            return known
        return merged([known, self._exact(queries, k, near, fresh)], k)

    def _exact(self, queries: Vectors, k: int, metric: Metric, allowed: Mask | None) -> Neighbors:
        # Lengths are kept for the next search, but nobody reads all vectors for those of a few.
        wanted = metric in _BY_LENGTH and (allowed is None or np.count_nonzero(allowed) > 0.5 * len(allowed))
        norms = self.snapshot.norms if wanted else None
        return search_originals(self.snapshot, queries, k, metric=metric, allowed=allowed, norms=norms)

    def _open_codes(self, digest: str, known: SnapshotIndex | None) -> None:
        """Load or make the codes of every segment."""
        before = known._candidates if known is not None else None
        at = {} if known is None else _places(known.snapshot)
        if isinstance(before, Codes):
            codec: Codec | None = before.codec
        else:
            codec = _read_codec(self.snapshot.folder / SIDECARS, digest)
        if codec is None:
            _LOG.warning("the codec of %s is missing or damaged: search is exact", self.snapshot.folder)
            return
        pieces = []
        for segment in self.snapshot.segments:
            if isinstance(before, Codes) and segment.identity in at:
                pieces.append(before.codes(at[segment.identity]))
                continue
            stored = _read_codes(self.snapshot.folder, segment, digest, codec)
            pieces.append(_encoded(segment, codec) if stored is None else stored)
        codes = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._found = self._rescored(Codes(codec, codes, metric=self.metric))

    def _open_graph(self, digest: str, known: tuple[IntArray, Candidates] | None) -> None:
        """Load the graph, and find which positions it knows."""
        self._graph = _read_graph(self.snapshot, digest, self.settings) if known is None else known
        if self._graph is None:
            _LOG.warning("the graph of %s is missing or damaged: search is exact", self.snapshot.folder)
            return
        rows, graph = self._graph
        at = np.searchsorted(self.snapshot.rows, rows)
        inside = at < len(self.snapshot)
        inside[inside] = self.snapshot.rows[at[inside]] == rows[inside]
        self._covered = np.zeros(len(self.snapshot), np.bool_)
        self._covered[at[inside]] = True
        positions = np.where(inside, at, -1)

        def harder(times: int) -> Candidates:
            return _Placed(calibration.harder(graph, times), positions, len(self.snapshot))

        self._found = self._rescored(_Placed(graph, positions, len(self.snapshot)), harder)

    def _rescored(
        self, candidates: Candidates, harder: Callable[[int], Candidates] | None = None
    ) -> RescoredIndex:
        self._candidates = candidates
        with _believing(self.snapshot):
            measured = Measured.from_json((self.snapshot.catalogue.index or {})["measured"])
        return RescoredIndex(
            candidates,
            self.snapshot,
            metric=self.metric,
            oversample=self.settings.oversample,
            far=measured.far,
            harder=harder,
        )


class _Placed:
    """Candidates that count the rows of a graph, as candidates that count the positions of a snapshot."""

    def __init__(self, graph: Candidates, positions: IntArray, count: int) -> None:
        self._graph = graph
        self._positions = positions
        self._count = count

    @property
    def dimensions(self) -> int:
        return self._graph.dimensions

    @property
    def size_bytes(self) -> int:
        return self._graph.size_bytes

    def __len__(self) -> int:
        return self._count

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        mask = self._positions >= 0
        if allowed is not None:
            mask &= allowed[np.maximum(self._positions, 0)]
        found = self._graph.candidates(queries, count, allowed=None if mask.all() else mask)
        placed: IntArray = np.where(found < 0, -1, self._positions[np.maximum(found, 0)])
        return placed


class _Live:
    """The live rows of a snapshot, numbered without gaps: what an index is built over."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.positions: IntArray = np.flatnonzero(snapshot.live)

    @property
    def dimensions(self) -> int:
        return self._snapshot.dimensions

    def __len__(self) -> int:
        return len(self.positions)

    def fetch(self, rows: IntArray) -> Vectors:
        return self._snapshot.fetch(self.positions[rows])

    def parts(self) -> Iterator[tuple[int, Vectors]]:
        done = 0
        for start, block in self._snapshot.parts():
            live = self._snapshot.live[start : start + len(block)]
            kept = block if live.all() else block[live]
            if len(kept):
                yield done, kept
            done += len(kept)


def build_index(
    store: Store,
    settings: IndexSettings,
    *,
    k: int = 10,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> IndexState:
    """Build a collection's index over what it holds, calibrate it, write its files and publish it.

    The collection can be searched meanwhile, and rows may be added.

    Args:
        store: The collection.
        settings: Kind, precision and the recall wanted; oversample, ef and nprobe are chosen for it.
        k: The neighbours that recall is measured at.
        seed: Of the sample of held-back rows.
        progress: Told what is being done.

    Raises:
        InputError: The collection is empty, or the settings do not fit its metric.
        MissingExtraError: A graph or lists without faiss installed.
        WriteError: The disk is full; the index before is intact.
    """
    snapshot = store.snapshot()
    live = _Live(snapshot)
    if not len(live):
        raise InputError(f"{store.path} is empty: add items before an index is built")
    if settings.is_exact:
        return _exact(store)
    made = calibrate(live, settings, metric=snapshot.catalogue.metric, k=k, seed=seed, progress=progress)
    described: dict[str, Any] = {
        "settings": made.settings.to_json(),
        "measured": made.measured.to_json(),
        "reached": made.reached,
        "rows": len(live),
        "next_row": snapshot.catalogue.next_row,
    }
    if made.settings.is_exact:
        return _exact(store)
    if isinstance(made.candidates, Codes):
        kind, data = "codec", made.candidates.codec.to_bytes()
    else:
        kind = "graph"
        data = snapshot.rows[live.positions].astype("<i8").tobytes() + made.candidates.to_bytes()  # type: ignore[attr-defined]  # graphs and lists have it
    described[kind] = durable.digest_bytes(data)
    path = store.path / SIDECARS / f"{kind}-{described[kind][:8]}"

    def write() -> None:
        durable.make_dir(path.parent)
        write_sidecar(path, {"kind": kind}, data)

    store.set_index(described, write)
    refresh(store, thorough=True)
    return state_of(store.snapshot())


def _exact(store: Store) -> IndexState:
    store.set_index(None)
    refresh(store)
    return state_of(store.snapshot())


def refresh(store: Store, *, thorough: bool = False) -> int:
    """Write the codes of segments that have none on disk, and remove sidecars nobody needs.

    What fails is noted in the log: the collection is right without them, they only make opening it quicker.

    Args:
        store: The collection.
        thorough: Compare what is there with its digest too; otherwise only what it begins with.

    Returns:
        Files written.
    """
    try:
        return _refreshed(store, thorough=thorough)
    except StorageError as error:
        _LOG.warning("the sidecars of %s were not written: %s", store.path, error)
        return 0


def _refreshed(store: Store, *, thorough: bool) -> int:
    snapshot = store.snapshot()
    folder = store.path / SIDECARS
    durable.make_dir(folder)
    described = snapshot.catalogue.index or {}
    codec = _read_codec(folder, _named(snapshot, "codec")) if "codec" in described else None
    written = 0 if codec is None else _write_codes(snapshot, described["codec"], codec, thorough=thorough)
    if any(path.name not in _wanted(snapshot) for path in folder.iterdir()):
        with store.alone() as now:  # nobody publishes an index meanwhile whose files would look unneeded
            durable.remove_leftovers(folder)
            for path in sorted(folder.iterdir()):
                ours = path.name.startswith(("graph-", "codec-")) or path.suffix == ".codes"
                if ours and path.name not in _wanted(now):
                    durable.remove(path)
    return written


def _write_codes(snapshot: Snapshot, digest: str, codec: Codec, *, thorough: bool) -> int:
    written = 0
    for segment in snapshot.segments:
        if len(segment) < _KEPT_ROWS:
            continue
        said = _codes_described(segment, digest)
        path = snapshot.folder / SIDECARS / f"{segment.name}.codes"
        sound = is_there(path, said, len(segment) * codec.size_bytes)
        if thorough:
            sound = sound and _read_codes(snapshot.folder, segment, digest, codec) is not None
        if not sound:
            write_sidecar(path, said, _encoded(segment, codec).data)
            written += 1
    return written


def _wanted(snapshot: Snapshot) -> set[str]:
    """Return the names of the sidecars that belong to a snapshot."""
    described = snapshot.catalogue.index or {}
    wanted = {f"{kind}-{described[kind][:8]}" for kind in ("graph", "codec") if kind in described}
    if "codec" in described:
        wanted |= {f"{one.name}.codes" for one in snapshot.segments if len(one) >= _KEPT_ROWS}
    return wanted


def state_of(snapshot: Snapshot) -> IndexState:
    """Return what index a snapshot has and how well it fits. Reads no sidecar.

    Raises:
        CorruptFileError: The catalogue says of its index what cannot be.
    """
    described = snapshot.catalogue.index
    settings, rows = _settings_of(snapshot), snapshot.catalogue.live
    if described is None:
        return IndexState(settings, None, reached=True, rows=rows, fresh=0)
    fresh = gone = 0
    with _believing(snapshot):
        if settings.kind is not IndexKind.FLAT:
            first = int(np.searchsorted(snapshot.rows, int(described["next_row"])))
            fresh = int(np.count_nonzero(snapshot.live[first:]))
            gone = max(0, int(described["rows"]) - (rows - fresh))
        measured = Measured.from_json(described["measured"])
        reached, over = bool(described["reached"]), int(described["rows"])
        return IndexState(settings, measured, reached, over, fresh, gone)


@contextmanager
def _believing(snapshot: Snapshot) -> Iterator[None]:
    """Say which file it is whose description of an index makes no sense."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(
            snapshot.folder / NAME, f"it says of the index what cannot be ({error or type(error).__name__})"
        ) from error


def _settings_of(snapshot: Snapshot) -> IndexSettings:
    described = snapshot.catalogue.index
    with _believing(snapshot):
        return IndexSettings() if described is None else IndexSettings.from_json(described["settings"])


def _named(snapshot: Snapshot, kind: str) -> str:
    """Return the digest of the codec or the graph that the catalogue names."""
    digest = (snapshot.catalogue.index or {}).get(kind)
    with _believing(snapshot):
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"no digest of its {kind}")
    return digest


def _read_graph(
    snapshot: Snapshot, digest: str, settings: IndexSettings
) -> tuple[IntArray, Candidates] | None:
    """Return the row numbers a graph knows, and the graph; None where it is missing or damaged."""
    where = snapshot.folder / SIDECARS / f"graph-{digest[:8]}"
    payload = read_sidecar(where, {"kind": "graph"})
    if payload is None or durable.digest_bytes(payload) != digest:
        return None
    with _believing(snapshot):
        count = int((snapshot.catalogue.index or {})["rows"])
        if not 0 <= 8 * count <= len(payload):
            raise ValueError(f"{count} rows")
    rows = np.frombuffer(payload[: 8 * count], "<i8").astype(np.int64)
    return rows, _graph_from_bytes(bytes(payload[8 * count :]), settings, str(where))


def _places(snapshot: Snapshot) -> dict[tuple[str, str, str], slice]:
    """Return the positions of each segment."""
    return {
        segment.identity: slice(int(start), int(start) + len(segment))
        for segment, start in zip(snapshot.segments, snapshot.starts, strict=False)
    }


def _read_codec(folder: Path, digest: str) -> Codec | None:
    data = read_sidecar(folder / f"codec-{digest[:8]}", {"kind": "codec"})
    if data is None or durable.digest_bytes(bytes(data)) != digest:
        return None
    return codec_from_bytes(bytes(data), where=str(folder))


def _codes_described(segment: Segment, codec: str) -> dict[str, Any]:
    _, vectors, _ = segment.identity
    return {
        "kind": "codes",
        "segment": segment.name,
        "rows": len(segment),
        "vectors": vectors,
        "codec": codec,
    }


def _read_codes(folder: Path, segment: Segment, digest: str, codec: Codec) -> Any | None:
    """Return a segment's codes as they stand on disk, (n, bytes) uint8, or None."""
    path = folder / SIDECARS / f"{segment.name}.codes"
    data = read_sidecar(path, _codes_described(segment, digest))
    if data is None or len(data) != len(segment) * codec.size_bytes:
        return None
    return np.frombuffer(data, np.uint8).reshape(len(segment), codec.size_bytes)


def _encoded(segment: Segment, codec: Codec) -> Any:
    """Make a segment's codes: (n, bytes) uint8."""
    out = np.empty((len(segment), codec.size_bytes), np.uint8)
    for start, block in segment.vectors.parts():
        step = max(1, (16 << 20) // max(1, block.shape[1] * 4))
        for first in range(0, len(block), step):
            piece = block[first : first + step]
            out[start + first : start + first + len(piece)] = codec.encode(piece)
    return out


def _graph_from_bytes(data: bytes, settings: IndexSettings, where: str) -> Candidates:
    if settings.kind is IndexKind.HNSW:
        from vecmill.index.hnsw import HnswGraph  # late: needs faiss

        return HnswGraph.from_bytes(data, settings, where=where)
    from vecmill.index.ivf import IvfLists  # late: needs faiss

    return IvfLists.from_bytes(data, settings, where=where)
