"""What the benches of search found: records, gates, the result file, and the lines people read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vecmill._version import __version__
from vecmill.core import durable
from vecmill.core.measure import Ratio, paired_ratio, percentile

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Built:
    """A system as it stood before the first query.

    Attributes:
        name: The system.
        own: Whether it is this package.
        build_wall, build_cpu: Seconds from vectors in memory to the first query.
        size_bytes: What the system says its index takes, beside the vectors where it keeps them; None where
            it does not say.
        loaded_bytes: The most memory its process held with the vectors loaded and nothing built.
        rss_bytes: The most it ever held.
        versions: Of its packages.
    """

    name: str
    own: bool
    build_wall: float
    build_cpu: float
    size_bytes: int | None
    loaded_bytes: int | None
    rss_bytes: int | None
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """One system at one setting, round by round; seconds a query.

    Attributes:
        name: System and setting. system: the system alone.
        setting: What was set, such as {"ef": 64}.
        batch_queries, batch_wall, batch_cpu: Many queries at once: how many, and seconds for one of them.
        single_wall, single_p95: One query at a time: median and 95th percentile of each round.
        recall: recall@k, ties counted.
        recall_queries: Queries it was measured with.
    """

    name: str
    system: str
    setting: dict[str, Any]
    batch_queries: int
    batch_wall: list[float]
    batch_cpu: list[float]
    single_wall: list[float]
    single_p95: list[float]
    recall: float
    recall_queries: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times fewer seconds a query takes `name` than `baseline`: ratios of the same rounds.

    Attributes:
        name, baseline: The parts.
        what: "batch" or "single".
        unit: "cpu" or "wall".
        ratio: Median and interval.
        least: The lower end that is asked for; None: nothing is.
    """

    name: str
    baseline: str
    what: str
    unit: str
    ratio: Ratio
    least: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the interval's lower end is below what is asked for."""
        return self.least is not None and self.ratio.low < self.least


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        benchmark: "knn" or "index".
        command: What was called.
        commit: The source tree's.
        data, settings, machine: What it ran on.
        built: The systems. parts: their measurements.
        comparisons: With gates.
        notes: What was left out and why, how calm the machine was.
    """

    benchmark: str
    command: str
    commit: str | None
    data: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    built: list[Built]
    parts: list[Part]
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Comparison]:
        """The comparisons below their gates."""
        return [one for one in self.comparisons if one.missed]

    def record(self) -> dict[str, Any]:
        """Return the result file's content, with medians spelled out."""
        return {
            "format_version": FORMAT_VERSION,
            "benchmark": self.benchmark,
            "command": self.command,
            "commit": self.commit,
            "version": __version__,
            "machine": self.machine,
            "data": self.data,
            "settings": self.settings,
            "systems": [asdict(one) for one in self.built],
            "parts": [_summary(part) for part in self.parts],
            "ratios": [{**asdict(one), "missed": one.missed} for one in self.comparisons],
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write the result file, whole or not at all."""
        content = json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"
        durable.write_bytes(path, content.encode())


def compare(
    one: Part, baseline: Part, *, what: str, unit: str, seed: int, least: float | None = None
) -> Comparison:
    """Compare two parts by the seconds a query takes, round by round.

    Args:
        one: Ours.
        baseline: Theirs.
        what: "batch" or "single".
        unit: "cpu" or "wall"; single queries have wall only.
        seed: Of the interval.
        least: The gate.
    """
    field_name = f"{what}_{unit}"
    ratio = paired_ratio(getattr(baseline, field_name), getattr(one, field_name), seed=seed)
    return Comparison(one.name, baseline.name, what, unit, ratio, least)


def render(report: Report) -> list[str]:
    """Return a report as lines for a terminal: speed with peak memory beside it, ratios, gates, notes."""
    data, settings = report.data, report.settings
    lines = [
        f"{data['vectors']:,} x {data['dimensions']} of {data['source']}, {data['queries']:,} queries, "
        f"k {settings['k']}, {settings['rounds']} rounds, {settings['threads']} thread(s)",
        "",
    ]
    lines += _table(report)
    if report.comparisons:
        lines += ["", "times fewer seconds a query, median [90 % interval] of paired rounds"]
    width = max((len(_pair(one)) for one in report.comparisons), default=0)
    for one in report.comparisons:
        lines.append(f"{_pair(one):{width}}  {one.unit:4}  {one.ratio!s:22}{_verdict(one)}".rstrip())
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _table(report: Report) -> list[str]:
    built = {one.name: one for one in report.built}
    width = max((len(part.name) for part in report.parts), default=8)
    lines = [
        f"{'system':{width}}{'recall':>9}{'batch q/s':>11}{'single ms':>11}{'build s':>9}"
        f"{'index B/row':>13}{'peak MiB':>10}"
    ]
    for part in report.parts:
        system = built[part.system]
        rate = f"{1.0 / percentile(part.batch_wall, 50):,.0f}" if part.batch_wall else "-"
        single = f"{1000.0 * percentile(part.single_wall, 50):.3f}" if part.single_wall else "-"
        size = "-" if system.size_bytes is None else f"{system.size_bytes / report.data['vectors']:,.0f}"
        peak = "-" if system.rss_bytes is None else f"{system.rss_bytes / 2**20:,.0f}"
        lines.append(
            f"{part.name:{width}}{part.recall:9.4f}{rate:>11}{single:>11}{system.build_wall:9.2f}"
            f"{size:>13}{peak:>10}"
        )
    return lines


def _pair(one: Comparison) -> str:
    return f"{one.name} : {one.baseline}"


def _verdict(one: Comparison) -> str:
    if one.least is None:
        return ""
    return (
        f"{'MISSED' if one.missed else 'ok'}: {one.ratio.low:.2f} {'<' if one.missed else '>='} {one.least:g}"
    )


def _summary(part: Part) -> dict[str, Any]:
    record = asdict(part)
    for name in ("batch_wall", "batch_cpu", "single_wall", "single_p95"):
        values = getattr(part, name)
        if values:
            record[f"{name}_median"] = percentile(values, 50)
            record[f"{name}_p95_of_rounds"] = percentile(values, 95)
    if part.batch_wall:
        record["queries_per_second"] = 1.0 / percentile(part.batch_wall, 50)
    return record
