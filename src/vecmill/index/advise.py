"""Advice measured on the user's own vectors: which index is cheapest and still finds what it should.

A sample is searched with rows held back from it. Every choice (precision, shortening, oversample, kind) gets
recall with an interval, bytes, latency and build time, and what becomes of them at the size of the whole set
and at 10 and 100 times as many rows. docs/reference/advisor.md says how.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vecmill.core.errors import InputError
from vecmill.core.extras import installed
from vecmill.core.types import Metric, Precision, Vectors, choice
from vecmill.index.advise_growth import Interval, interval
from vecmill.index.advise_sample import Sample, draw, warnings_of
from vecmill.index.advise_sweep import ROUGH_BELOW, Tried, exact, flat, graph
from vecmill.index.settings import IndexKind, IndexSettings

NO_INDEX_NEEDED = 50_000
"""Rows below which exact search is advised: it answers within milliseconds (docs/reference/advisor.md)."""

_SIZES = (1, 10, 100)
"""Times the rows of the set that figures are predicted for."""

_SIGN_METRICS = (Metric.HAMMING, Metric.JACCARD)
_FLAT = (Precision.FLOAT16, Precision.INT8, Precision.BINARY, Precision.PQ)
_SHORTENED = (Precision.FLOAT32, Precision.INT8, Precision.BINARY)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a choice is expected to be at some number of rows; measured where `rows` is the sample's size.

    Attributes:
        rows: Vectors searched.
        recall: With its 95 % interval.
        memory_bytes: Codes, links and lists; float originals lie on disk, but for exact search.
        latency: Seconds of one query asked alone, median.
        build: Seconds to build.
    """

    rows: int
    recall: Interval
    memory_bytes: int
    latency: float
    build: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to search.

    Attributes:
        settings: What it is.
        measured: On the sample.
        batch_latency: Seconds a query of many asked together takes, on the sample.
        bytes_per_vector: In memory.
        predicted: At the rows of the set, 10 and 100 times as many.
        on_front: Nothing else is at least as good in memory, recall and latency, and better in one.
        reaches: The lower end of recall at the rows of the set is at least the target.
    """

    settings: IndexSettings
    measured: Estimate
    batch_latency: float
    bytes_per_vector: float
    predicted: tuple[Estimate, ...]
    on_front: bool = False
    reaches: bool = False

    @property
    def family(self) -> str:
        """What is built: kind, precision and dimensions, however hard it is searched."""
        return "exact" if self.settings.is_exact else _short(self.settings)

    @property
    def effort(self) -> str:
        """How hard it is searched: "ef 128, x2"."""
        one = self.settings
        if one.is_exact:
            return ""
        knob = {IndexKind.HNSW: f"ef {one.ef}", IndexKind.IVF: f"nprobe {one.nprobe}"}.get(one.kind)
        times = f"x{one.oversample:g}" if knob is None or one.oversample > 1.0 else None
        return ", ".join(part for part in (knob, times) if part)

    @property
    def here(self) -> Estimate:
        """What is expected at the rows of the set."""
        return self.predicted[0]


@dataclass(frozen=True, slots=True)
class Advice:
    """What was found.

    Attributes:
        k, recall_target, metric, dimensions, seed: What was asked.
        mrl: Whether the model's leading components are vectors themselves; None where nobody knows.
        max_latency: Seconds a query may take at the rows of the set, or None.
        rows: Of the whole set. distinct: different ones. sample: rows searched. queries: rows held back.
        choices: Everything that was tried, cheapest in memory first.
        chosen: Place in `choices` of the one advised.
        least_memory: Place of the one that needs least memory and reaches the target; the same but for small
            sets, where exact search is advised.
        warnings: What makes the figures doubtful, in sentences.
        notes: What was left out and why.
        seconds: What the advice took.
    """

    k: int
    recall_target: float
    metric: Metric
    dimensions: int
    seed: int
    mrl: bool | None
    max_latency: float | None
    rows: int
    distinct: int
    sample: int
    queries: int
    choices: tuple[Choice, ...]
    chosen: int
    least_memory: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def choice(self) -> Choice:
        """The one advised."""
        return self.choices[self.chosen]

    @property
    def settings(self) -> IndexSettings:
        """The settings to build what is advised with; exact search is a flat index of float32."""
        return replace(self.choice.settings, recall_target=self.recall_target)

    @property
    def original_bytes(self) -> int:
        """Bytes of one vector on disk as float32, which every choice keeps."""
        return 4 * self.dimensions

    def arguments(self, source: str, out: str, place: int | None = None) -> list[str]:
        """Return the words after `vecmill` that build a choice, the one advised unless told."""
        settings = self.choices[self.chosen if place is None else place].settings
        words = ["index", "build", source, "-o", out, *_options(settings)]
        if self.metric is not Metric.COSINE:
            words += ["--metric", self.metric.value]
        if not settings.is_exact:
            words += ["--recall-target", f"{self.recall_target:g}"]
        if settings.shorten is not None and not self.mrl:
            words.append("--not-mrl")
        return words

    def command(self, source: str, out: str, place: int | None = None) -> str:
        """Return the command that builds a choice, quoted for a shell."""
        return shlex.join(["vecmill", *self.arguments(source, out, place)])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types, times named with their unit."""
        plain = {
            name: value for name, value in asdict(self).items() if name not in ("choices", "max_latency")
        }
        return {
            **plain,
            "max_latency_ms": None if self.max_latency is None else 1000.0 * self.max_latency,
            "original_bytes": self.original_bytes,
            "chosen_name": str(self.choice.settings),
            "choices": [_told(choice, self.recall_target) for choice in self.choices],
        }


def _told(choice: Choice, target: float) -> dict[str, Any]:
    """Return a choice as JSON's types."""
    found = asdict(choice)
    found["name"] = str(choice.settings)
    found["settings"] = replace(choice.settings, recall_target=target).to_json()
    found["batch_latency_ms"] = 1000.0 * found.pop("batch_latency")
    for estimate in (found["measured"], *found["predicted"]):
        estimate["latency_ms"] = 1000.0 * estimate.pop("latency")
        estimate["build_seconds"] = estimate.pop("build")
    return found


def advise(
    vectors: Vectors,
    *,
    k: int = 10,
    recall_target: float = 0.99,
    metric: Metric | str = Metric.COSINE,
    sample: int = 20_000,
    queries: int = 1_000,
    seed: int = 0,
    mrl: bool | None = None,
    shorten: Sequence[int] = (),
    kinds: Sequence[IndexKind] = tuple(IndexKind),
    max_latency: float | None = None,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Measure which index suits these vectors, and name the cheapest that reaches the recall wanted.

    Cheapest is least memory, then least latency, among those whose recall at the size of the whole set,
    lower end of its 95 % interval, reaches the target. Below 50,000 rows exact search is advised. About a
    minute for 20,000 vectors of 384 dimensions on one core, half of it for graphs.

    Args:
        vectors: (n, d) numbers, an array or a memory-mapped one; need not be normalized.
        k: Neighbours looked for.
        recall_target: Share of true neighbours wanted, above 0 and below 1.
        metric: What "near" means.
        sample: Rows searched.
        queries: Rows held back from the sample and searched for.
        seed: Of the draw and of the indexes.
        mrl: Whether the model was trained so that leading components are vectors themselves: half and a
            quarter of the dimensions are tried then. None: nobody knows, which is no.
        shorten: Dimensions to try in any case.
        kinds: Kinds of index to try; hnsw and ivf need faiss.
        max_latency: Seconds a query asked alone may take at the size of the whole set.
        budget_s: Seconds after which nothing more is tried; what was left out is said.
        progress: Called with a line now and then.

    Raises:
        InputError: There are too few different vectors, or a value is out of range.
        UnknownNameError: No such metric or kind.
    """
    began = time.perf_counter()
    asked = choice(Metric, metric, "metric")
    _check(k, recall_target, sample, queries, max_latency)
    say = progress or _say_nothing
    drawn = draw(vectors, sample=sample, queries=queries, k=k, metric=asked, seed=seed)
    d = drawn.vectors.shape[1]
    say(f"{len(drawn.vectors):,} rows to search, {len(drawn.queries):,} held back")
    plan, notes = _plan(asked, _widths(shorten, mrl, d), [choice(IndexKind, kind, "kind") for kind in kinds])
    trial = exact(drawn, k, asked)
    tried = list(trial.exact)
    for at, settings in enumerate(plan):
        if budget_s is not None and time.perf_counter() - began > budget_s:
            left = ", ".join(dict.fromkeys(_short(one) for one in plan[at:]))
            notes.append(f"after {budget_s:g} s these were left out: {left}")
            break
        say(f"{_short(settings)} ({at + 1} of {len(plan)})")
        search = flat if settings.kind is IndexKind.FLAT else graph
        tried += search(trial, settings, recall_target=recall_target, rows=drawn.distinct, seed=seed)
    if len(drawn.vectors) < ROUGH_BELOW:
        notes.append(
            f"at {len(drawn.vectors):,} rows a search is mostly overhead: latencies at 10 and 100 times as "
            f"many are rough (off by a factor of 2 to 4); measure with {ROUGH_BELOW:,} rows or more"
        )
    choices = _judged(tried, drawn, recall_target)
    warnings = warnings_of(drawn, asked, k) + _limits(drawn, k, recall_target)
    chosen, least = _choose(choices, drawn.distinct, recall_target, max_latency, warnings)
    return Advice(
        k,
        recall_target,
        asked,
        d,
        seed,
        mrl,
        max_latency,
        drawn.rows,
        drawn.distinct,
        len(drawn.vectors),
        len(drawn.queries),
        choices,
        chosen,
        least,
        tuple(warnings),
        tuple(notes),
        time.perf_counter() - began,
    )


def _say_nothing(line: str) -> None:
    """Report no progress."""


def _check(k: int, target: float, sample: int, queries: int, max_latency: float | None) -> None:
    if k < 1 or sample < 1 or queries < 1:
        raise InputError(f"k={k}, sample={sample}, queries={queries}: each must be at least 1")
    if not 0.0 < target < 1.0:
        raise InputError(f"recall_target is {target}: it must lie between 0 and 1; for 1 no index is needed")
    if max_latency is not None and not max_latency > 0.0:
        raise InputError(f"max_latency is {max_latency}: it is in seconds, above 0")


def _widths(shorten: Sequence[int], mrl: bool | None, d: int) -> list[int]:
    wrong = [width for width in shorten if not 1 <= width < d]
    if wrong:
        raise InputError(f"cannot shorten vectors of {d} dimensions to {wrong[0]}; choose from 1 to {d - 1}")
    by_itself = [d // 2, d // 4] if mrl and not shorten and d >= 256 else []
    return sorted({*shorten, *by_itself}, reverse=True)


def _plan(
    metric: Metric, widths: list[int], kinds: Sequence[IndexKind]
) -> tuple[list[IndexSettings], list[str]]:
    """List what is tried, cheap things first, and why something is not."""
    notes: list[str] = []
    precisions = (Precision.BINARY,) if metric in _SIGN_METRICS else _FLAT
    plan: list[IndexSettings] = []
    if IndexKind.FLAT in kinds:
        plan += [IndexSettings(precision=precision) for precision in precisions]
        shortened = () if metric in _SIGN_METRICS else _SHORTENED
        plan += [
            IndexSettings(precision=precision, shorten=width) for width in widths for precision in shortened
        ]
    by_faiss = [kind for kind in kinds if kind is not IndexKind.FLAT]
    if by_faiss and not installed("faiss"):
        notes.append("graphs and lists (hnsw, ivf) are left out: pip install 'vecmill[ann]'")
    elif by_faiss and metric in _SIGN_METRICS:
        notes.append(f"graphs and lists (hnsw, ivf) are left out: they do not know {metric.value}")
    elif by_faiss:
        products = metric in (Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN)
        least = Precision.INT8 if products else Precision.FLOAT32
        plan += [IndexSettings(kind=kind, precision=least) for kind in by_faiss]
        if products and IndexKind.HNSW in by_faiss:
            plan.append(IndexSettings(kind=IndexKind.HNSW))
    return plan, notes


def _judged(tried: list[Tried], drawn: Sample, target: float) -> tuple[Choice, ...]:
    """Carry every trial on to the rows of the set, mark the front, sort by memory and recall."""
    rows = [drawn.distinct * times for times in _SIZES]
    n = len(drawn.vectors)
    choices = [
        Choice(
            one.settings,
            Estimate(n, one.recall, one.memory_at(n), one.latency_at(n), one.build_at(n)),
            one.batch_latency,
            one.memory_at(n) / n,
            tuple(
                Estimate(at, recall, one.memory_at(at), one.latency_at(at), one.build_at(at))
                for at, recall in zip(rows, one.recalls_at(rows), strict=True)
            ),
        )
        for one in tried
    ]
    choices = _never_worse(choices)
    choices.sort(key=lambda one: (one.bytes_per_vector, one.here.recall.recall, one.here.latency))
    return tuple(
        replace(one, on_front=_on_front(one, choices), reaches=one.here.recall.low >= target)
        for one in choices
    )


def _never_worse(choices: list[Choice]) -> list[Choice]:
    """Let more effort never be expected to find less: what was expected of less effort holds for it too."""
    before: dict[str, tuple[Estimate, ...]] = {}
    found = []
    for one in choices:  # of a family in the order of effort, as they were tried
        easier = before.get(one.family, one.predicted)
        grown = tuple(
            replace(
                mine,
                recall=Interval(
                    max(mine.recall.recall, other.recall.recall),
                    max(mine.recall.low, other.recall.low),
                    max(mine.recall.high, other.recall.high),
                ),
            )
            for mine, other in zip(one.predicted, easier, strict=True)
        )
        before[one.family] = grown
        found.append(replace(one, predicted=grown))
    return found


def _on_front(one: Choice, choices: Sequence[Choice]) -> bool:
    """Whether nothing is as good in memory, recall and latency and better in one; latency within a tenth."""
    for other in choices:
        if other is one:
            continue
        as_good = (
            other.bytes_per_vector <= one.bytes_per_vector
            and other.here.recall.recall >= one.here.recall.recall
            and other.here.latency <= 1.1 * one.here.latency
        )
        better = (
            other.bytes_per_vector < 0.99 * one.bytes_per_vector
            or other.here.recall.recall > one.here.recall.recall + 1e-4
            or other.here.latency < 0.9 * one.here.latency
        )
        if as_good and better:
            return False
    return True


def _choose(
    choices: Sequence[Choice], rows: int, target: float, max_latency: float | None, warnings: list[str]
) -> tuple[int, int]:
    """Return the places of the choice advised and of the least memory that reaches the target."""
    exact_at = next(at for at, one in enumerate(choices) if one.settings.is_exact)
    good = [at for at, one in enumerate(choices) if one.reaches]
    quick = [at for at in good if max_latency is None or choices[at].here.latency <= max_latency]
    if not quick:
        fastest = min(good, key=lambda at: choices[at].here.latency)
        warnings.append(
            f"nothing answers within {1000 * (max_latency or 0.0):g} ms at {rows:,} rows with recall "
            f"{target:g}: {choices[fastest].settings} is the fastest that reaches it"
        )
        return fastest, fastest
    least = _cheapest([(at, choices[at]) for at in quick])
    if rows < NO_INDEX_NEEDED and exact_at in quick:
        return exact_at, least
    if least == exact_at and len(choices) > 1:
        warnings.append(
            f"nothing but exact search surely reaches recall {target:g} at {rows:,} rows; "
            "more queries narrow the intervals"
        )
    return least, least


def _cheapest(good: list[tuple[int, Choice]]) -> int:
    """Return the place of the least memory, then latency; of those within a fifth what is built soonest.

    Latencies of a fraction of a millisecond differ by that much from run to run.
    """
    least = min(one.bytes_per_vector for _, one in good)
    small = [(at, one) for at, one in good if one.bytes_per_vector <= 1.01 * least]
    fastest = min(one.here.latency for _, one in small)
    quick = [(at, one) for at, one in small if one.here.latency <= 1.2 * fastest]
    return min(quick, key=lambda pair: (pair[1].here.build, pair[1].here.latency))[0]


def _limits(drawn: Sample, k: int, target: float) -> list[str]:
    """Say when even a perfect score of so few queries could not show the recall wanted."""
    q = len(drawn.queries)
    best = interval(np.ones(q), k).low
    if best >= target:
        return []
    needed = math.ceil(q * (1.0 - best) / (1.0 - target) * 1.1)
    return [
        f"recall {target:g} is more than {q:,} queries can tell: with every neighbour found it may still be "
        f"{best:.4f}; hold back {needed:,} (--queries), of a set that has as many to spare"
    ]


def _options(settings: IndexSettings) -> list[str]:
    """Return the options of `index build` for settings; exact search is what it makes unasked."""
    if settings.is_exact:
        return []
    words = [] if settings.kind is IndexKind.FLAT else ["--kind", settings.kind.value]
    words += ["--precision", settings.precision.value]
    if settings.shorten is not None:
        words += ["--shorten", str(settings.shorten)]
    words += ["--oversample", f"{settings.oversample:g}"]
    names = {IndexKind.HNSW: ("m", "ef_construction", "ef"), IndexKind.IVF: ("nprobe",)}
    for name in names.get(settings.kind, ()):
        words += ["--param", f"{name}={getattr(settings, name)}"]
    return words


def _short(settings: IndexSettings) -> str:
    width = "" if settings.shorten is None else f" of {settings.shorten} dimensions"
    return f"{settings.kind.value} {settings.precision.value}{width}"
