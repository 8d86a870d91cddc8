"""What `vecmill bench client` found: records, gates, the result file, and the lines people read."""

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
class Part:
    """One way to ask, round by round; seconds.

    Attributes:
        name: The way.
        texts, requests: Of a round.
        wall, cpu: Per kept round; cpu is user and system time of all threads.
        rss_bytes: The most memory its process held.
        versions: Of its packages.
    """

    name: str
    texts: int
    requests: int
    wall: list[float]
    cpu: list[float]
    rss_bytes: int | None
    versions: dict[str, str]

    def per_text(self, unit: str) -> list[float]:
        """Return the seconds a text took, "cpu" or "wall", per kept round."""
        values: list[float] = getattr(self, unit)
        return [value / self.texts for value in values]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times fewer seconds a text takes `name` than `baseline`: ratios of rounds measured together.

    Attributes:
        name, baseline: The parts.
        unit: "cpu" or "wall".
        ratio: Median and interval.
        least: The lower end that is asked for; None: nothing is.
        aim: What is hoped for.
    """

    name: str
    baseline: str
    unit: str
    ratio: Ratio
    least: float | None = None
    aim: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the lower end of the interval is below what is asked for."""
        return self.least is not None and self.ratio.low < self.least


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        command: What was called.
        commit: The source tree's, as `bench.report.commit` tells.
        data: What the texts were.
        settings: Rounds, requests, sizes, cores, seed.
        machine: Processor, cores, system, load before and after.
        parts: What was measured.
        comparisons: Every own part against every baseline.
        whole: All rows by one request each, once, where that was asked for.
        notes: What was left out and why, how calm the machine was.
    """

    command: str
    commit: str | None
    data: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    parts: list[Part]
    comparisons: list[Comparison]
    whole: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Comparison]:
        """The gates that were missed."""
        return [one for one in self.comparisons if one.missed]

    def record(self) -> dict[str, Any]:
        """Return the result file's content, with medians and 95th percentiles spelled out."""
        return {
            "format_version": FORMAT_VERSION,
            "benchmark": "client",
            "command": self.command,
            "commit": self.commit,
            "version": __version__,
            "machine": self.machine,
            "data": self.data,
            "settings": self.settings,
            "parts": [_summary(part) for part in self.parts],
            "ratios": [{**asdict(one), "missed": one.missed} for one in self.comparisons],
            "whole": self.whole,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write the result file, whole or not at all."""
        content = json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"
        durable.write_bytes(path, content.encode())


def compare(one: Part, baseline: Part, unit: str, seed: int, **gate: float) -> Comparison:
    """Compare two parts by the seconds a text takes, round by round.

    Args:
        one: Ours.
        baseline: Theirs.
        unit: "cpu" or "wall".
        seed: Of the interval.
        **gate: `least` and `aim` of the comparison.
    """
    ratio = paired_ratio(baseline.per_text(unit), one.per_text(unit), seed=seed)
    return Comparison(one.name, baseline.name, unit, ratio, **gate)


def render(report: Report) -> list[str]:
    """Return a report as lines for a terminal: ratios and gates; seconds are in the result file alone."""
    settings = report.settings
    lines = [
        f"{settings['rounds']} rounds of {settings['requests']} requests, {settings['size']} texts x "
        f"{settings['dimensions']} dimensions each, {report.data['tokens_mean']:.0f} tokens a text"
    ]
    if report.comparisons:
        lines += ["", "times fewer seconds a text, median [90 % interval] of paired rounds"]
    width = max((len(f"{one.name} : {one.baseline}") for one in report.comparisons), default=0)
    for one in report.comparisons:
        pair = f"{one.name} : {one.baseline}"
        lines.append(f"{pair:{width}}  {one.unit:4}  {one.ratio!s:22}{_verdict(one)}".rstrip())
    if report.whole:
        rows, ratio = report.whole["rows"], report.whole["ratio"]
        lines.append(f"all {rows:,} rows, once: {ratio:.1f} times fewer wall seconds")
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _verdict(one: Comparison) -> str:
    if one.least is None:
        return ""
    aim = f", aim {one.aim:g}" if one.aim is not None else ""
    sign = "<" if one.missed else ">="
    return f"{'MISSED' if one.missed else 'ok'}: {one.ratio.low:.2f} {sign} {one.least:g}{aim}"


def _summary(part: Part) -> dict[str, Any]:
    record = asdict(part)
    for name in ("wall", "cpu"):
        values = getattr(part, name)
        record[f"{name}_median"] = percentile(values, 50)
        record[f"{name}_p95"] = percentile(values, 95)
    record["cpu_seconds_per_text"] = percentile(part.per_text("cpu"), 50)
    record["wall_seconds_per_text"] = percentile(part.per_text("wall"), 50)
    record["texts_per_cpu_second"] = 1.0 / record["cpu_seconds_per_text"]
    return record
