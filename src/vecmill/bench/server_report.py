"""What `vecmill bench server` found: records, gates, the result file, and the lines people read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vecmill._version import __version__
from vecmill.core import durable
from vecmill.core.measure import Ratio, percentile

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One system under one kind of load, round by round.

    Attributes:
        name: The system and the load.
        wall: Seconds of each kept round. cpu: of the system's process; empty where it does not tell.
        texts, tokens: Of a round; tokens as this package's model counts them, special ones included.
        p50, p99: Milliseconds of a request, per kept round.
        failed: Requests without vectors, in all rounds.
    """

    name: str
    wall: list[float]
    cpu: list[float]
    texts: int
    tokens: int
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    failed: int = 0

    def record(self) -> dict[str, Any]:
        """Return the part for the result file, with rates and medians spelled out."""
        wall = percentile(self.wall, 50)
        found = {
            **asdict(self),
            "wall_median": wall,
            "wall_p95": percentile(self.wall, 95),
            "texts_per_second": self.texts / wall,
            "tokens_per_second": self.tokens / wall,
        }
        if self.cpu:
            found["cpu_median"] = percentile(self.cpu, 50)
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio of two things measured in the same rounds, and what is asked of it.

    Attributes:
        what: In words.
        ratio: Median and 90 % interval.
        least: The lower end must reach it. most: the upper end must not be above it. None: nothing is asked.
        aim: What is hoped for.
    """

    what: str
    ratio: Ratio
    least: float | None = None
    most: float | None = None
    aim: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the interval reaches where it must not."""
        low = self.least is not None and self.ratio.low < self.least
        return low or (self.most is not None and self.ratio.high > self.most)

    @property
    def verdict(self) -> str:
        """Return "ok" or "MISSED" with the bound; "" where nothing is asked."""
        if self.least is None and self.most is None:
            return ""
        aim = f", aim {self.aim:g}" if self.aim is not None else ""
        if self.least is not None:
            sign = "<" if self.missed else ">="
            bound = f"{self.ratio.low:.2f} {sign} {self.least:g}"
        else:
            sign = ">" if self.missed else "<="
            bound = f"{self.ratio.high:.2f} {sign} {self.most:g}"
        return f"{'MISSED' if self.missed else 'ok'}: {bound}{aim}"


@dataclass(frozen=True, slots=True)
class Overload:
    """Several times the peak, round by round.

    Attributes:
        asked: Requests a second. left: what this client really sent.
        goodput: Requests a second answered in time. peak: of the closed loop, in the same round.
        p99: Seconds from the intended moment, of answers with vectors.
        deadline: Seconds, as the server was told.
        statuses: Requests by what became of them, in all rounds.
        client_cpu_share: Of this process, the highest.
    """

    asked: list[float]
    left: list[float]
    goodput: list[float]
    peak: list[float]
    p99: list[float]
    deadline: float
    statuses: dict[str, int]
    client_cpu_share: float


@dataclass(frozen=True, slots=True)
class Alone:
    """One short text at a time, round by round: medians in milliseconds.

    Attributes:
        tokens: Of the text.
        http: Client, loopback, server and inference. engine: `Embedder.embed` in a process.
        echo: Client and loopback alone: the same bytes answered at once.
    """

    tokens: int
    http: list[float]
    engine: list[float]
    echo: list[float]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        command, commit: What was called, on which code.
        data, settings, machine: What was embedded, how, where.
        versions: Of each system's packages.
        parts: Throughput of each system. starts: seconds to the first vector, by system.
        overload, alone: The other two loads; None: not measured.
        agreement: Cosine between our vectors and the peer's.
        memory: Most bytes each process held.
        comparisons: Ratios and gates.
        notes: What was left out, what disturbed.
    """

    command: str
    commit: str | None
    data: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    parts: list[Part]
    starts: dict[str, list[float]]
    overload: Overload | None
    alone: Alone | None
    agreement: dict[str, float]
    memory: dict[str, int | None]
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> list[Comparison]:
        """The gates that were missed."""
        return [one for one in self.comparisons if one.missed]

    def record(self) -> dict[str, Any]:
        """Return the result file's content."""
        return {
            "format_version": FORMAT_VERSION,
            "benchmark": "server",
            "command": self.command,
            "commit": self.commit,
            "version": __version__,
            "machine": self.machine,
            "data": self.data,
            "settings": self.settings,
            "versions": self.versions,
            "parts": [part.record() for part in self.parts],
            "starts": self.starts,
            "overload": None if self.overload is None else asdict(self.overload),
            "alone": None if self.alone is None else asdict(self.alone),
            "agreement": self.agreement,
            "memory": self.memory,
            "ratios": [
                {**asdict(one), "missed": one.missed, "verdict": one.verdict} for one in self.comparisons
            ],
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write the result file, whole or not at all."""
        content = json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"
        durable.write_bytes(path, content.encode())


def render(report: Report) -> list[str]:
    """Return a report as lines for a terminal."""
    lines = [
        f"{report.data['texts']} texts of {report.data['source']}, {report.data['tokens_mean']:.0f} tokens a "
        f"text; {report.settings['clients']} clients x 1 text, {report.settings['rounds']} rounds",
        f"{'system':38}{'texts/s':>9}{'tokens/s':>10}{'p50 ms':>8}{'p99 ms':>8}{'peak MiB':>10}",
    ]
    for part in report.parts:
        found = part.record()
        times = [f"{percentile(x, 50):.0f}" if x else "-" for x in (part.p50, part.p99)]
        memory = report.memory.get(part.name)
        held = "-" if memory is None else f"{memory / 2**20:.0f}"
        lines.append(
            f"{part.name:38}{found['texts_per_second']:9.1f}{found['tokens_per_second']:10.0f}"
            f"{times[0]:>8}{times[1]:>8}{held:>10}"
        )
    lines += [*_alone_lines(report), *_overload_lines(report), *_start_lines(report)]
    if report.agreement:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in report.agreement.items())
        lines.append(f"vectors beside the peer's: {shown}")
    width = max((len(one.what) for one in report.comparisons), default=0)
    lines += ["", "median [90 % interval] of paired rounds"] if report.comparisons else []
    lines += [f"{one.what:{width}}  {one.ratio!s:22}{one.verdict}".rstrip() for one in report.comparisons]
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _alone_lines(report: Report) -> list[str]:
    if report.alone is None:
        return []
    http, engine, echo = (
        percentile(x, 50) for x in (report.alone.http, report.alone.engine, report.alone.echo)
    )
    return [
        f"one text of {report.alone.tokens} tokens: {http:.3f} ms by HTTP = {engine:.3f} Embedder.embed "
        f"+ {echo:.3f} client and loopback + {http - engine - echo:.3f} server"
    ]


def _overload_lines(report: Report) -> list[str]:
    found = report.overload
    if found is None:
        return []
    statuses = ", ".join(f"{number} x {status}" for status, number in found.statuses.items())
    left, asked, goodput, peak, p99 = (
        percentile(values, 50) for values in (found.left, found.asked, found.goodput, found.peak, found.p99)
    )
    return [
        f"overload: {left:.0f} requests/s left of {asked:.0f} asked; goodput {goodput:.0f} of {peak:.0f} at "
        f"the peak; p99 {p99:.2f} s, at most {max(found.p99):.2f} s (deadline {found.deadline:g} s); "
        f"{statuses}"
    ]


def _start_lines(report: Report) -> list[str]:
    return [
        f"first vector of a fresh process: {name} {percentile(seconds, 50):.2f} s"
        for name, seconds in report.starts.items()
        if seconds
    ]
