"""Measures one way to search after the other on the advisor's sample, at several sizes of it.

Candidates are looked at before they are rescored: a neighbour among them will be found, since exact distances
of the originals decide. Latencies are of whole searches, rescoring included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vecmill.core.types import Metric, Neighbors, Precision, Vectors
from vecmill.core.vectors import nearest, pair_distances
from vecmill.index.advise_growth import Interval, interval, predicted
from vecmill.index.advise_sample import Sample
from vecmill.index.base import Candidates, Index
from vecmill.index.build import build
from vecmill.index.codes import Codes, CodeSpec, fit
from vecmill.index.exact import ExactIndex
from vecmill.index.ivf import lists_for
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexKind, IndexSettings

Float64Array = npt.NDArray[np.float64]

_PARTS = (16, 8, 4, 2, 1)
"""The sample is searched whole and cut into so many pieces, all of them: small pieces average over many."""

_GRAPH_PARTS = {IndexKind.HNSW: (8, 4, 1), IndexKind.IVF: (8, 4, 2, 1)}
"""Of these only the first piece: graphs take long to build."""

_LISTS_PER_PROBE = 4
_ROWS_PER_EF = 40
"""A piece counts where effort is so small a part of it; below, everything is found and the line bends."""

_STREAMED = 1 << 26
"""Bytes read once to see how fast memory is where nothing is cached; more than caches hold."""

ROUGH_BELOW = 10_000
"""Rows of a sample below which a search is mostly overhead: latencies of many more rows are rough."""

_ROOM = 8
_WIDE = 32
"""A piece counts where it has so many times the candidates asked for: 32, a quarter of the sample and more 8.

Where candidates are a large part of the rows nearly all is found, and the line would fall too steeply.
"""

_OVERSAMPLES = {
    Precision.FLOAT32: (1, 2, 4, 10, 20, 50),
    Precision.FLOAT16: (1, 2),
    Precision.INT8: (1, 2, 4, 10, 20, 50),
    Precision.BINARY: (4, 10, 20, 30, 50, 100),
    Precision.PQ: (4, 10, 20, 30, 50, 100),
}
_EFS = (32, 64, 128, 256, 512)
_NPROBES = (4, 8, 16, 32, 64, 128)
_SINGLES = 60
_SHOWN_BELOW = 2
"""Choices kept below the first that reaches the target: more would crowd the table."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What was measured of one choice.

    Attributes:
        settings: What was tried.
        k: Neighbours looked for.
        sizes: Rows searched, ascending. hits: (sizes, q) share of each query's neighbours found.
        latencies: (rows, seconds of a query asked alone) at two sizes, ascending.
        batch_latency: Seconds a query of many takes, at the largest size.
        memory: (rows, bytes) at the largest size.
        build: (rows, seconds) at the largest size.
        seed: Of the bootstrap.
        bandwidth: Bytes a second that memory gives where nothing is cached.
        overhead: Seconds of a search among k rows: what does not grow with the rows.
    """

    settings: IndexSettings
    k: int
    sizes: tuple[int, ...]
    hits: Float64Array
    latencies: tuple[tuple[int, float], ...]
    batch_latency: float
    memory: tuple[int, int]
    build: tuple[int, float]
    seed: int
    bandwidth: float
    overhead: float

    @property
    def recall(self) -> Interval:
        """Recall on the whole sample."""
        return _SURE if self.settings.is_exact else interval(self.hits[-1], self.k)

    def recalls_at(self, rows: Sequence[int]) -> list[Interval]:
        """Return the recalls expected at other sizes."""
        if self.settings.is_exact:
            return [_SURE for _ in rows]
        return predicted(self.sizes, self.hits, self.k, rows, seed=self.seed)

    def latency_at(self, rows: int) -> float:
        """Return the latency expected: a + b g(rows); g is the rows scanned, log for graphs, root for lists.

        What every search takes, however few rows there are, does not grow: `a` is at least the overhead. A
        scan is not faster than memory, however fast the small sample in the caches was.
        """
        (n0, t0), (n1, t1) = self.latencies[0], self.latencies[-1]
        g = _GROWTH[self.settings.kind]
        if rows == n1:
            return t1
        slope = max(0.0, t1 - self.overhead) / g(n1)
        if n0 < n1:
            slope = min(slope, max(0.0, (t1 - t0) / (g(n1) - g(n0))))
        scanned = self.memory_at(rows) if self.settings.kind is IndexKind.FLAT else 0
        floor = scanned / self.bandwidth if scanned > _STREAMED or n1 < ROUGH_BELOW else 0.0
        return max(t1 + slope * (g(rows) - g(n1)), floor)

    def memory_at(self, rows: int) -> int:
        """Return the bytes expected: as many a row as measured."""
        return round(self.memory[1] * rows / self.memory[0])

    def build_at(self, rows: int) -> float:
        """Return the seconds expected: linear, n log n for graphs, n root n for lists."""
        n, seconds = self.build
        more = {IndexKind.FLAT: 1.0, IndexKind.HNSW: math.log(rows) / math.log(n)}
        return seconds * rows / n * more.get(self.settings.kind, math.sqrt(rows / n))


def _as_many(rows: int) -> float:
    return float(rows)


_GROWTH: dict[IndexKind, Callable[[int], float]] = {
    IndexKind.FLAT: _as_many,
    IndexKind.HNSW: math.log,
    IndexKind.IVF: math.sqrt,
}
_SURE = Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """The sample with what is true of it.

    Attributes:
        drawn: Vectors and queries. k, metric: what is looked for.
        pieces: Number of pieces -> for each piece its rows and the true neighbours within.
        exact: Exact search, measured.
        bandwidth: Bytes a second read from memory.
        overhead: Seconds of a search among k rows.
    """

    drawn: Sample
    k: int
    metric: Metric
    pieces: dict[int, list[tuple[slice, Neighbors]]]
    exact: list[Tried]
    bandwidth: float
    overhead: float


def exact(drawn: Sample, k: int, metric: Metric) -> Trial:
    """Find the true neighbours in the sample and in its pieces, and time exact search."""
    vectors, n = drawn.vectors, len(drawn.vectors)
    pieces: dict[int, list[tuple[slice, Neighbors]]] = {}
    for count in _PARTS:
        size = n // count
        if size < _ROOM * k and count > 1:
            continue
        cuts = [slice(at * size, (at + 1) * size) for at in range(count)]
        pieces[count] = [(cut, nearest(drawn.queries, vectors[cut], k, metric=metric)) for cut in cuts]
    latencies = tuple(
        (size, _latency(ExactIndex(vectors[:size], metric=metric), drawn.queries, k)) for size in _two(n)
    )
    began = time.perf_counter()
    index = ExactIndex(vectors, metric=metric)
    made = time.perf_counter() - began
    tried = Tried(
        IndexSettings(),
        k,
        (n,),
        np.ones((1, len(drawn.queries))),
        latencies,
        _batch_latency(index, drawn.queries, k),
        (n, 4 * vectors.size),
        (n, made),
        0,
        (bandwidth := _bandwidth()),
        (overhead := _latency(ExactIndex(vectors[:k], metric=metric), drawn.queries, k)),
    )
    return Trial(drawn, k, metric, pieces, [tried], bandwidth, overhead)


def flat(trial: Trial, settings: IndexSettings, *, recall_target: float, rows: int, seed: int) -> list[Tried]:
    """Try codes of one precision with several oversamples: one scan of each piece tells all of them."""
    vectors, k, n = trial.drawn.vectors, trial.k, len(trial.drawn.vectors)
    began = time.perf_counter()
    spec = CodeSpec(settings.precision, shorten=settings.shorten)
    codec = fit(vectors, spec, metric=trial.metric, seed=seed)
    encoded = codec.encode(vectors)
    whole = Codes(codec, encoded, metric=trial.metric)
    made = time.perf_counter() - began
    grid = [times for times in _OVERSAMPLES[settings.precision] if _ROOM * k * times <= n or times <= 4]
    places: dict[int, list[Float64Array]] = {}
    for count, cuts in trial.pieces.items():
        places[n // count] = [
            _places(
                whole if count == 1 else Codes(codec, encoded[cut], metric=trial.metric),
                trial,
                (cut, true),
                min(k * grid[-1], max(k, (cut.stop - cut.start) // _ROOM)) if count > 1 else k * grid[-1],
            )
            for cut, true in cuts
        ]
    found = []
    for times in grid:
        sizes = [size for size in sorted(places) if _counts(size, n, k * times)]
        hits = np.stack(
            [np.mean([(p < k * times).mean(axis=1) for p in places[size]], axis=0) for size in sizes]
        )
        one = replace(settings, oversample=float(times))
        found.append((one, tuple(sizes), hits))
    kept = _worth_showing(found, k, rows, recall_target, seed)
    return [
        _timed(trial, (one, sizes, hits), (codec, encoded), whole, made, seed) for one, sizes, hits in kept
    ]


def _counts(size: int, n: int, candidates: int) -> bool:
    """Whether recall on so many rows says something about more."""
    return size == n or size >= (_ROOM if size >= n // 4 else _WIDE) * candidates


_Found = tuple[IndexSettings, tuple[int, ...], Float64Array]


def _worth_showing(found: list[_Found], k: int, rows: int, target: float, seed: int) -> list[_Found]:
    """Keep the first choice that surely reaches the target, the next harder one, and two below."""
    for at, (_, sizes, hits) in enumerate(found):
        if predicted(sizes, hits, k, [rows], seed=seed)[0].low >= target:
            return found[max(0, at - _SHOWN_BELOW) : at + 2]
    return found[-_SHOWN_BELOW - 1 :]


def _timed(
    trial: Trial,
    found: _Found,
    coded: tuple[object, npt.NDArray[np.uint8]],
    whole: Codes,
    made: float,
    seed: int,
) -> Tried:
    settings, sizes, hits = found
    vectors, queries, k = trial.drawn.vectors, trial.drawn.queries, trial.k
    n = len(vectors)

    def index(size: int) -> Index:
        part = whole if size == n else Codes(whole.codec, coded[1][:size], metric=trial.metric)
        return RescoredIndex(
            part, ArrayOriginals(vectors[:size]), metric=trial.metric, oversample=settings.oversample
        )

    latencies = tuple((size, _latency(index(size), queries, k)) for size in _two(n))
    return Tried(
        settings,
        k,
        sizes,
        hits,
        latencies,
        _batch_latency(index(n), queries, k),
        (n, whole.size_bytes),
        (n, made),
        seed,
        trial.bandwidth,
        trial.overhead,
    )


def graph(
    trial: Trial, settings: IndexSettings, *, recall_target: float, rows: int, seed: int
) -> list[Tried]:
    """Try a graph or lists at three sizes with several efforts; it is built once for each size."""
    vectors, queries, k, n = trial.drawn.vectors, trial.drawn.queries, trial.k, len(trial.drawn.vectors)
    counts = [
        count
        for count in _GRAPH_PARTS[settings.kind]
        if count in trial.pieces and (count == 1 or n // count >= 1000)
    ]
    made: dict[int, tuple[Candidates, float]] = {}
    for count in counts:
        began = time.perf_counter()
        cut = trial.pieces[count][0][0]
        like = _alike(settings, n // count, n)
        candidates = build(ArrayOriginals(vectors[cut]), like, metric=trial.metric, seed=seed)
        made[n // count] = (candidates, time.perf_counter() - began)
    truths = {n // count: trial.pieces[count][0] for count in counts}
    found = []
    for effort in _efforts(settings):
        sizes = tuple(size for size in sorted(made) if size == n or _tells(effort, size, n))
        count = math.ceil(k * effort.oversample)
        places = [_places(_tuned(made[size][0], effort), trial, truths[size], count) for size in sizes]
        found.append((effort, sizes, np.stack([(place < count).mean(axis=1) for place in places])))
    kept = _worth_showing(found, k, rows, recall_target, seed)
    answers = []
    for one, sizes, hits_of in kept:
        indexes = {
            size: RescoredIndex(
                _tuned(made[size][0], one),
                ArrayOriginals(vectors[:size]),
                metric=trial.metric,
                oversample=one.oversample,
            )
            for size in sizes
        }
        latencies = tuple((size, _latency(indexes[size], queries, k)) for size in sizes[-2:])
        answers.append(
            Tried(
                one,
                k,
                sizes,
                hits_of,
                latencies,
                _batch_latency(indexes[n], queries, k),
                (n, made[n][0].size_bytes),
                (n, made[n][1]),
                seed,
                trial.bandwidth,
                trial.overhead,
            )
        )
    return answers


def _efforts(settings: IndexSettings) -> list[IndexSettings]:
    """List how hard to search: what keeps int8 is asked for twice the neighbours, to be rescored."""
    times = 1.0 if settings.precision is Precision.FLOAT32 else 2.0
    if settings.kind is IndexKind.HNSW:
        return [replace(settings, ef=ef, oversample=times) for ef in _EFS]
    return [replace(settings, nprobe=nprobe, oversample=times) for nprobe in _NPROBES]


def _alike(settings: IndexSettings, size: int, n: int) -> IndexSettings:
    """Return settings for a piece: lists grow with the root of the rows, as they do in large sets."""
    if settings.kind is not IndexKind.IVF or size == n:
        return settings
    return replace(settings, nlist=max(1, round(lists_for(n) * math.sqrt(size / n))))


def _tells(settings: IndexSettings, size: int, n: int) -> bool:
    """Whether recall on so few rows says something about more."""
    lists = _alike(settings, size, n).nlist
    if lists is None:
        return size >= _ROWS_PER_EF * min(settings.ef, n // (4 * _ROWS_PER_EF))
    return lists >= _LISTS_PER_PROBE * settings.nprobe


def _tuned(candidates: Candidates, settings: IndexSettings) -> Candidates:
    tuned: Candidates = candidates.tuned(settings)  # type: ignore[attr-defined]  # graphs and lists have it
    return tuned


def _places(
    candidates: Candidates, trial: Trial, piece: tuple[slice, Neighbors], count: int
) -> npt.NDArray[np.float64]:
    """Return where among the candidates each true neighbour stands: (q, k), infinity where it is missing.

    A candidate as near as the k-th true neighbour counts as one: ties are found in whatever order.
    """
    _, true = piece
    named = candidates.candidates(trial.drawn.queries, count)  # (q, c), best first
    q, k = true.rows.shape
    out = np.full((q, k), np.inf)
    if trial.metric in (Metric.HAMMING, Metric.JACCARD):
        return _tied_places(named, trial, piece)
    step = max(1, (1 << 22) // max(1, k * named.shape[1]))
    for start in range(0, q, step):
        part = slice(start, start + step)
        same = true.rows[part][:, :, None] == named[part][:, None, :]  # (b, k, c)
        at = same.argmax(axis=2).astype(np.float64)
        out[part] = np.where(same.any(axis=2), at, np.inf)
    return out


def _tied_places(named: npt.NDArray[np.int64], trial: Trial, piece: tuple[slice, Neighbors]) -> Float64Array:
    """Do the same by distance, for metrics with few different distances."""
    cut, true = piece
    vectors = trial.drawn.vectors[cut]
    q, k = true.rows.shape
    out = np.full((q, k), np.inf)
    for at in range(q):
        rows = named[at][named[at] >= 0]
        asked = np.broadcast_to(trial.drawn.queries[at], (len(rows), vectors.shape[1]))
        near = pair_distances(asked, vectors[rows], trial.metric)
        good = np.flatnonzero(near <= true.distances[at, -1])[:k]
        out[at, : len(good)] = good
    return out


def _bandwidth() -> float:
    """Return how many bytes a second one thread reads from memory."""
    table = np.ones(_STREAMED // 4, np.float32)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        table.max()
        took.append(time.perf_counter() - began)
    return table.nbytes / min(took)


def _two(n: int) -> tuple[int, ...]:
    """Return the sizes latency is measured at: a quarter and all."""
    return (n // 4, n) if n >= 8 else (n,)


def _latency(index: Index, queries: Vectors, k: int) -> float:
    """Return the median seconds of queries asked one by one, in the calmest third of them."""
    index.search(queries[:1], k)
    took = []
    for at in range(min(_SINGLES, len(queries))):
        began = time.perf_counter()
        index.search(queries[at : at + 1], k)
        took.append(time.perf_counter() - began)
    calm = [float(np.median(part)) for part in np.array_split(took, min(3, len(took)))]
    return min(calm)  # what else the machine does comes and goes


def _batch_latency(index: Index, queries: Vectors, k: int) -> float:
    """Return the seconds a query of a batch of all of them takes."""
    began = time.perf_counter()
    index.search(queries, k)
    return (time.perf_counter() - began) / len(queries)
