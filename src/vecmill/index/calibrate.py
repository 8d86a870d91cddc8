"""How hard an index must search to find what it should: measured on rows of the data that are held back.

Rows of the set itself flatter an index. A graph leads from every row of its own straight to that row's
neighbours: with ef 32 it found 0.995 of them, but 0.982 of those of rows it did not hold (20,000 captions).
So the rows asked for are in no graph while it is measured, they and every row equal to them cannot be found,
and they are added when the measuring is over.

Rows still flatter where queries are unlike them. Calibrated for 0.99 on 30,000 captions, codes, graphs and
lists found 0.993 to 0.995 of what captions never seen look for, but (all except int8) only 0.78 to 0.90 of
what news titles do: their neighbours are scattered. Who has queries of the kind that will be asked gives them
as `asked`; then those are what is measured. Nobody else is left alone: how far the neighbours of the queries
were is kept, and `RescoredIndex` searches harder for a query whose neighbours are farther.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError
from vecmill.core.types import Mask, Metric, Precision, Vectors, choice
from vecmill.core.vectors import check
from vecmill.index.base import Candidates, Originals
from vecmill.index.construct import build, counting
from vecmill.index.copies import Hashes, hashes_of
from vecmill.index.exact import search_originals
from vecmill.index.faiss_candidates import Preparation, as_originals, blocks, sample
from vecmill.index.hnsw import HnswGraph
from vecmill.index.ivf import IvfLists
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexKind, IndexSettings, Measured

Float64Array = npt.NDArray[np.float64]

_OVERSAMPLE = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100)
_EF = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_NPROBE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_MOST_SEEN_AT_ONCE = 8.0
"""A graph of compressed vectors is asked for at most this many candidates per neighbour, if not shortened."""

_USUAL_PERCENT = 95.0
"""A query whose neighbours are farther than those of so many queries is unlike them: search harder.

In 14,772 rows, of which 14 % are news and the others a bank's questions, any of ten neighbours was farther
for 5 % of queries like the rows, for 90 % of text messages, and for 98 % of news where only the bank's rows
may be found. At the 90th percentile of the tenth neighbour alone it was 8, 87 and 97 %.
"""

_SHARE_HELD_BACK = 5
_FEWEST_QUERIES = 5

_Z95 = 1.959964

_EF_COST, _RESCORING_COST = 4.5, 1.0
_SCAN_COST = {Precision.FLOAT32: 0.4, Precision.FLOAT16: 0.4, Precision.INT8: 0.26, Precision.PQ: 0.13}
"""Microseconds: per vector kept in sight by a graph, per original read; nanoseconds per byte of a list.

Rough, of one core and 384 dimensions; only their ratios matter, where fewer lists and more candidates reach
the same.
"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """An index with the least effort that reaches the recall wanted.

    Attributes:
        settings: With oversample, ef, nprobe and nlist as chosen. Exact search where the rows are too few to
            measure anything: `settings.is_exact`.
        measured: The recall with these settings, on held-back rows or on the queries given.
        candidates: The index, over all rows.
        reached: Whether the mean recall is at least the target. If not, the settings are the best found.
        surely: Whether even the lower end of the 95 % interval is.
    """

    settings: IndexSettings
    measured: Measured
    candidates: Candidates
    reached: bool
    surely: bool

    def __str__(self) -> str:
        """Say what was chosen, what was measured, and whether it is enough."""
        if self.settings.is_exact and not self.measured.queries:
            return f"exact: recall is 1 ({self.measured.rows:,} rows need no other index)"
        target = f"the target {self.settings.recall_target:g}"
        if self.surely:
            verdict = f"{target} is reached at the lower end of the interval"
        elif self.reached:
            verdict = f"{target} is reached on average; the interval reaches below it"
        else:
            verdict = f"{target} is not reached; keep more bytes per vector, or search exactly"
        return f"{self.settings}: {self.measured}; {verdict}"


def calibrate(
    vectors: npt.ArrayLike | Originals,
    settings: IndexSettings,
    *,
    metric: Metric | str,
    k: int = 10,
    queries: int = 200,
    seed: int = 0,
    asked: npt.ArrayLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Build an index and choose the least oversample, ef or nprobe that reaches `settings.recall_target`.

    Codes: the least oversample. Graphs: the least ef, with compressed vectors also oversample. Lists: the
    least nprobe, with compressed vectors also oversample. Reached means: at the lower end of the 95 %
    interval; where no effort gives that (200 queries cannot show more than 0.998), on average, and `surely`
    is False. Recall is counted as `RescoredIndex` answers: whatever is exactly as near as the k-th true
    neighbour counts, with no allowance beyond (1e-3, usual elsewhere, is the distance between neighbours
    of one text and those of another in some models).

    Cost beside building: two passes over the vectors, one exact search of the queries, at most some 25
    searches of them by the index.

    Args:
        vectors: (n, d), or what holds them.
        settings: What to build; its oversample, ef and nprobe are not looked at.
        metric: What "near" means.
        k: Neighbours recall is measured at.
        queries: Rows held back, at most a fifth of all.
        seed: Of everything.
        asked: (q, d) queries of the kind that will be asked, at least 5: measured with in place of rows, none
            of which is held back then. Without them the recall is that of queries like the rows.
        progress: Told what is being done.

    Raises:
        MissingExtraError: hnsw or ivf, and faiss is not installed.
        InputError: There are no vectors, one holds NaN, k or queries is below 1, or the settings do not fit
            the vectors or the metric, or `asked` holds fewer than 5 queries.
        DimensionMismatchError: `asked` is of another width.
        UnknownNameError: No such metric.
    """
    if k < 1 or queries < 1:
        raise InputError(f"k is {k} and queries {queries}; both must be at least 1")
    say = progress or (lambda _: None)
    metric, originals = choice(Metric, metric, "metric"), as_originals(vectors)
    if asked is not None:
        held = _given(originals, asked, k)
    else:
        say("holding back rows to ask for")
        held = None if settings.is_exact else _held_back(originals, metric, k, queries, seed)
    if held is None or settings.is_exact:
        return _exact(originals, settings, metric, k, seed, progress)
    sought, searched = held
    whose = "of them" if asked is None else "queries"
    say(f"searching {len(originals):,} vectors exactly for {len(sought)} {whose}")
    truth = search_originals(originals, sought, k, metric=metric, allowed=searched)
    left_out = None if asked is not None else ~searched
    made = _built(originals, settings, metric, seed, progress, left_out)
    trials = _Trials(originals, made, sought, searched, truth.distances, metric, say)
    chosen, shares = _choose(trials, settings)
    final = trials.tuned(chosen)
    if isinstance(final, HnswGraph) and left_out is not None:
        say(f"adding the {int(left_out.sum())} rows held back")
        final.complete(originals)
    if isinstance(final, HnswGraph | IvfLists):
        chosen = final.settings
    low, high = recall_interval(shares, k)
    far = _far(truth.distances)
    measured = Measured(float(shares.mean()), low, high, k, len(sought), int(searched.sum()), far)
    target = settings.recall_target
    return Calibration(chosen, measured, final, reached=measured.recall >= target, surely=low >= target)


def _far(true_distances: npt.NDArray[np.float32]) -> tuple[float, ...] | None:
    """Return the distance of the first, ..., k-th neighbour that one query in twenty exceeds."""
    with np.errstate(over="ignore", invalid="ignore"):
        far = np.percentile(true_distances, _USUAL_PERCENT, axis=0)
    return tuple(float(np.float32(one)) for one in far) if np.isfinite(far).all() else None


def harder(candidates: Candidates, times: int) -> Candidates:
    """Return the same candidates found with so many times the effort; codes are scanned whole anyway.

    Args:
        candidates: Codes, a graph or lists.
        times: How many times the `ef` or `nprobe` they were tuned to, at least 1.
    """
    if not isinstance(candidates, HnswGraph | IvfLists):
        return candidates
    tuned, most = candidates.settings, max(1, len(candidates))
    return candidates.tuned(
        replace(tuned, ef=max(tuned.ef, min(times * tuned.ef, most)), nprobe=min(times * tuned.nprobe, most))
    )


def recall_interval(shares: Float64Array, k: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean recall.

    Wilson's, with as many trials as the queries are worth: neighbours of one query are missed together, so
    q queries of k neighbours are fewer than q k trials, by the ratio of the variance seen between queries
    to that of independent trials. Where nothing was missed, q k trials: 200 queries of 10 give 0.998 to 1.
    Sources: Wilson, Probable inference, 1927; Kish, Survey sampling, 1965 (design effect).

    Args:
        shares: (q,) found of each query's k neighbours, 0 to 1.
        k: Neighbours of a query.
    """
    q, mean = len(shares), float(shares.mean())
    trials = float(q * k)
    expected = mean * (1.0 - mean) / k
    if q > 1 and expected > 0.0:
        trials /= min(float(k), max(1.0, float(shares.var(ddof=1)) / expected))
    square = _Z95 * _Z95
    centre = (mean + square / (2.0 * trials)) / (1.0 + square / trials)
    half = _Z95 * math.sqrt(mean * (1.0 - mean) / trials + square / (4.0 * trials * trials))
    half /= 1.0 + square / trials
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def _held_back(
    originals: Originals, metric: Metric, k: int, queries: int, seed: int
) -> tuple[Vectors, Mask] | None:
    """Choose distinct rows to ask for, and say what may be found: all rows not equal to one of them.

    None where so few rows would be left that exact search costs nothing.
    """
    n = len(originals)
    _, some = sample(originals, min(queries, n // _SHARE_HELD_BACK), seed)
    if len(some) < _FEWEST_QUERIES:
        return None
    prepared = Preparation(metric, None)
    hashes = hashes_of(prepared(some))
    _, first = np.unique(hashes, axis=0, return_index=True)
    first.sort()
    searched = np.empty(n, np.bool_)
    for start, block in blocks(originals):
        searched[start : start + len(block)] = ~_equal(hashes_of(prepared(block)), hashes)
    if len(first) < _FEWEST_QUERIES or searched.sum() < 2 * k:
        return None
    return some[first], searched


def _given(originals: Originals, asked: npt.ArrayLike, k: int) -> tuple[Vectors, Mask] | None:
    """Check the queries to measure with; all rows may be found. None where exact search costs nothing."""
    sought = check(asked, dimensions=originals.dimensions, what="asked")
    if len(sought) < _FEWEST_QUERIES:
        raise InputError(f"asked holds {len(sought)} queries; give at least {_FEWEST_QUERIES}")
    return (sought, np.ones(len(originals), np.bool_)) if len(originals) >= 2 * k else None


def _equal(hashes: Hashes, to: Hashes) -> Mask:
    """Say which hashes are among others: (n,) bool."""
    found: Mask = np.isin(hashes[:, 0], to[:, 0]) & np.isin(hashes[:, 1], to[:, 1])
    return found


def _exact(
    originals: Originals,
    settings: IndexSettings,
    metric: Metric,
    k: int,
    seed: int,
    progress: Callable[[str], None] | None,
) -> Calibration:
    plain = replace(settings, kind=IndexKind.FLAT, precision=Precision.FLOAT32, shorten=None, oversample=1.0)
    n = len(originals)
    made = build(originals, plain, metric=metric, seed=seed, progress=progress)
    return Calibration(plain, Measured(1.0, 1.0, 1.0, min(k, n), 0, n), made, reached=True, surely=True)


def _built(
    originals: Originals,
    settings: IndexSettings,
    metric: Metric,
    seed: int,
    progress: Callable[[str], None] | None,
    left_out: Mask | None,
) -> Candidates:
    """Build what is measured; a graph without the rows left out, which codes and lists mask instead."""
    if settings.kind is not IndexKind.HNSW:
        return build(originals, settings, metric=metric, seed=seed, progress=progress)
    counted = counting(progress)
    return HnswGraph.build(
        originals, settings, metric=metric, seed=seed, progress=counted, leave_out=left_out
    )


class _Trials:
    """Searches with one setting after another; what was measured once is remembered."""

    def __init__(
        self,
        originals: Originals,
        candidates: Candidates,
        asked: Vectors,
        searched: Mask,
        true_distances: npt.NDArray[np.float32],
        metric: Metric,
        say: Callable[[str], None],
    ) -> None:
        self.candidates = candidates
        self.rows = int(searched.sum())
        self.k = true_distances.shape[1]
        self._originals = originals
        self._asked = asked
        self._allowed = None if isinstance(candidates, HnswGraph) or searched.all() else searched
        self._limits = true_distances[:, -1:]
        self._metric = metric
        self._say = say
        self._known: dict[IndexSettings, Float64Array] = {}

    def tuned(self, settings: IndexSettings) -> Candidates:
        """Return the index as it searches with these settings."""
        if isinstance(self.candidates, HnswGraph | IvfLists):
            return self.candidates.tuned(settings)
        return self.candidates

    def shares(self, settings: IndexSettings) -> Float64Array:
        """Return the share of true neighbours found for each query: (q,)."""
        if settings not in self._known:
            index = RescoredIndex(
                self.tuned(settings), self._originals, metric=self._metric, oversample=settings.oversample
            )
            found = index.search(self._asked, self.k, allowed=self._allowed)
            self._known[settings] = (found.distances <= self._limits).sum(axis=1) / self.k
            self._say(f"measured {settings}: recall {self._known[settings].mean():.4f}")
        return self._known[settings]

    def best(self) -> IndexSettings:
        """Return the settings that found most, of equals the first tried."""
        return max(self._known, key=lambda settings: float(self._known[settings].mean()))


def _choose(trials: _Trials, settings: IndexSettings) -> tuple[IndexSettings, Float64Array]:
    """Return the cheapest settings that reach the target, surely or else on average; or the best found."""
    target, k = settings.recall_target, trials.k
    efforts = _efforts(trials, settings)
    best_possible = recall_interval(np.ones(len(trials._asked)), k)[0]

    def surely(tried: IndexSettings) -> bool:
        return recall_interval(trials.shares(tried), k)[0] >= target

    def on_average(tried: IndexSettings) -> bool:
        return float(trials.shares(tried).mean()) >= target

    for enough in (surely, on_average) if best_possible >= target else (on_average,):
        first = _first([row[-1] for row in efforts], enough)
        if first is None:
            continue
        good = []
        for row in efforts[first : first + 3]:
            least = _first(row, enough)
            if least is not None:
                good.append(row[least])
        chosen = min(good, key=lambda tried: _cost(tried, trials))
        return chosen, trials.shares(chosen)
    chosen = trials.best()
    return chosen, trials.shares(chosen)


def _efforts(trials: _Trials, settings: IndexSettings) -> list[list[IndexSettings]]:
    """Return settings by rising effort: rows of rising ef or nprobe, in each rising oversample."""
    most = max(1.0, trials.rows / trials.k)
    plain = settings.precision is Precision.FLOAT32 and settings.shorten is None
    overs = [1.0] if plain else [float(over) for over in _OVERSAMPLE if over <= most]
    match settings.kind:
        case IndexKind.FLAT:
            return [[replace(settings, oversample=over) for over in overs]]
        case IndexKind.HNSW:
            efs = [ef for ef in _EF if trials.k <= ef <= trials.rows] or [trials.k]
            limit = math.inf if settings.shorten else _MOST_SEEN_AT_ONCE
            return [
                [
                    replace(settings, ef=ef, oversample=over)
                    for over in overs
                    if over == 1.0 or over <= min(limit, ef / trials.k)
                ]
                for ef in efs
            ]
        case IndexKind.IVF:
            nlist = _lists(trials)
            probes = [*(probe for probe in _NPROBE if probe < nlist), nlist]
            return [
                [replace(settings, nlist=nlist, nprobe=probe, oversample=over) for over in overs]
                for probe in probes
            ]


def _first(tried: Sequence[IndexSettings], enough: Callable[[IndexSettings], bool]) -> int | None:
    """Find the first of rising efforts that is enough: in growing strides, then by halving."""
    below, step = -1, 1
    for at in itertools.count():
        at = min(below + step, len(tried) - 1)
        if enough(tried[at]):
            break
        if at == len(tried) - 1:
            return None
        below, step = at, 2 * step
    while at - below > 1:
        middle = (below + at) // 2
        if enough(tried[middle]):
            at = middle
        else:
            below = middle
    return at


def _lists(trials: _Trials) -> int:
    made = trials.candidates
    return made.settings.nlist or 1 if isinstance(made, IvfLists) else 1


def _cost(settings: IndexSettings, trials: _Trials) -> float:
    """Estimate microseconds of a search; good to compare settings of one index."""
    rescoring = float(_RESCORING_COST * settings.oversample * trials.k)
    match settings.kind:
        case IndexKind.FLAT:
            return rescoring
        case IndexKind.HNSW:
            return float(_EF_COST * max(settings.ef, settings.oversample * trials.k)) + rescoring
        case IndexKind.IVF:
            row_bytes = trials.candidates.size_bytes / len(trials.candidates)
            scanned = settings.nprobe / _lists(trials) * trials.rows
            return float(1e-3 * _SCAN_COST[settings.precision] * row_bytes * scanned) + rescoring
