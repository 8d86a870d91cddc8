"""What a load test found: the lines of the first benchmark client, percentiles, errors, and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecmill._version import __version__
from vecmill.bench.serve_load import Run, Sample
from vecmill.core import durable

FORMAT_VERSION = 1
PERCENTS = (50, 90, 95, 99)
BUSY = 0.85
"""CPU seconds a second above which this process, one thread, may have been what was slow."""
_TELLING = 0.5
"""Seconds a run must last before its share of CPU says anything: a burst is always busy."""
LATE = 0.02
"""Seconds the event loop may be late, 99th percentile, before that is said."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of some requests in milliseconds; NaN where there are none."""

    mean: float
    median: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Summarize times in seconds."""
        if not len(seconds):
            return cls(*[float("nan")] * 7)
        values = 1000.0 * np.asarray(seconds, np.float64)
        p50, p90, p95, p99 = np.percentile(values, PERCENTS).tolist()
        return cls(float(values.mean()), p50, p50, p90, p95, p99, float(values.max()))

    def record(self) -> dict[str, float | None]:
        """Return the times as JSON has them: no NaN."""
        names = ("mean", "median", "p50", "p90", "p95", "p99", "max")
        return {name: _number(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class Report:
    """A whole load test.

    Attributes:
        command: What was called.
        settings: Address (without a query), backend, model, loop, rate, batch size, seed, limits.
        data: What was sent: source, documents, tokens, tokenizer.
        machine: Of the client.
        run: Every request.
        sizes: Documents of each prepared request. tokens: of each prepared request, as counted here.
        documents: Distinct documents the run draws from.
        connections, waited: Opened, and requests that had to wait for one.
        deadline: Seconds after which an answer is worth nothing; None: none is.
        notes: What to know of the figures.
    """

    command: str
    settings: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, Any]
    run: Run
    sizes: Sequence[int]
    tokens: Sequence[int]
    documents: int
    connections: int
    waited: int
    deadline: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> list[Sample]:
        """Requests that were answered with vectors."""
        return [sample for sample in self.run.samples if sample.outcome.good]

    @property
    def errors(self) -> dict[str, list[Sample]]:
        """Requests that were not, by status or reason, the most frequent first."""
        failed = [sample for sample in self.run.samples if not sample.outcome.good]
        order = Counter(str(sample.outcome.status) for sample in failed).most_common()
        return {
            status: [sample for sample in failed if str(sample.outcome.status) == status]
            for status, _ in order
        }

    @property
    def open(self) -> bool:
        """Whether requests left at their times, whatever became of others."""
        return bool(self.settings["loop"] == "open")

    @property
    def goodput(self) -> float:
        """Requests a second that were answered with vectors, in time where there is a deadline."""
        in_time = [s for s in self.good if self.deadline is None or s.latency <= self.deadline]
        return _rate(len(in_time), self.run.seconds)

    @property
    def achieved_rate(self) -> float:
        """Requests a second that left."""
        sent = [sample.sent for sample in self.run.samples]
        return _rate(len(sent) - 1, max(sent) - min(sent)) if len(sent) > 1 else 0.0

    def record(self) -> dict[str, Any]:
        """Return the JSON of the result: everything `lines` says and more."""
        good, seconds = self.good, self.run.seconds
        tokens = sum(self.tokens[sample.request] for sample in good)
        texts = sum(self.sizes[sample.request] for sample in good)
        late = [sample.sent - sample.intended for sample in self.run.samples]
        return {
            "format_version": FORMAT_VERSION,
            "benchmark": "serve",
            "command": self.command,
            "version": __version__,
            "machine": self.machine,
            "settings": self.settings,
            "data": self.data,
            "documents": self.documents,
            "requests": len(self.run.samples),
            "successes": len(good),
            "success_rate": _share(len(good), len(self.run.samples)),
            "seconds": seconds,
            "tokens": tokens,
            "texts": texts,
            "tokens_per_second": _rate(tokens, seconds),
            "texts_per_second": _rate(texts, seconds),
            "requests_per_second": _rate(len(good), seconds),
            "goodput_requests_per_second": self.goodput,
            "deadline": self.deadline,
            "asked_rate": self.settings["request_rate"],
            "achieved_rate": self.achieved_rate,
            "average_document_tokens": _rate(sum(self.tokens), sum(self.sizes)),
            "server_tokens": server_tokens(good),
            "dimensions": sorted({sample.outcome.dimensions for sample in good}),
            "latency_ms": Latency.of([sample.latency for sample in good]).record(),
            "service_ms": Latency.of([sample.service for sample in good]).record(),
            "errors": {
                status: {
                    "requests": len(samples),
                    "latency_ms": Latency.of([sample.latency for sample in samples]).record(),
                    "detail": next((s.outcome.detail for s in samples if s.outcome.detail), ""),
                }
                for status, samples in self.errors.items()
            },
            "client": {
                "cpu_share": self.run.cpu_share,
                "lag_p99_ms": 1000.0 * float(np.percentile(self.run.lags, 99)),
                "sent_late_p50_ms": _number(1000.0 * float(np.median(late))) if late else None,
                "sent_late_max_ms": _number(1000.0 * max(late)) if late else None,
                "connections": self.connections,
                "waited_for_a_connection": self.waited,
                "was_the_bottleneck": bool(bottleneck(self)),
            },
            "notes": [*self.notes, *bottleneck(self)],
        }

    def write(self, path: Path) -> None:
        """Write the result file, whole or not at all."""
        content = json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n"
        durable.write_bytes(path, content.encode())


def server_tokens(good: Sequence[Sample]) -> int | None:
    """Return what the server counted over all answers; None where one of them did not say."""
    counts = [sample.outcome.tokens for sample in good]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def render(report: Report) -> list[str]:
    """Return a report as lines: first the seven known from the first benchmark client, then the rest."""
    return [*_first_lines(report), *_more_lines(report), *(f"note: {one}" for one in _notes(report))]


def _first_lines(report: Report) -> list[str]:
    """Return the seven lines other tools read; `Number of documents` is what the data held."""
    record = report.record()
    times = Latency.of([sample.latency for sample in report.good])
    rate = round(100.0 * record["success_rate"], 2)
    return [
        f"Number of documents: {report.documents}",
        f"Tokens: {record['tokens']}",
        f"Success rate: {rate}%. ({record['successes']}/{record['requests']})",
        f"Throughput - Tokens per second: {record['tokens_per_second']}",
        f"Mean latency: {_milliseconds(times.mean)} ms",
        f"Median latency: {_milliseconds(times.median)} ms",
        f"Average document length: {record['average_document_tokens']} tokens",
    ]


def _more_lines(report: Report) -> list[str]:
    record, settings = report.record(), report.settings
    what = (
        "latency from the intended moment, open loop"
        if report.open
        else f"service time, closed loop of {settings['concurrency']}: a stall delays the requests too"
    )
    lines = [f"{_percentiles(record['latency_ms'])}   ({what})"]
    for status, found in record["errors"].items():
        said = f": {found['detail']}" if found["detail"] else ""
        name = f"HTTP {status}" if status.isdigit() else status
        lines.append(f"Errors {name}: {found['requests']}, {_percentiles(found['latency_ms'])}{said}")
    asked = settings["request_rate"]
    shown = "inf" if asked is None else f"{asked:g}"
    rates = f"{record['achieved_rate']:.1f} requests/s left"
    if report.open:
        rates += f" of {shown} asked"
    in_time = "" if report.deadline is None else f" within {report.deadline:g} s"
    lines.append(
        f"Rate: {rates}; goodput {record['goodput_requests_per_second']:.1f} requests/s{in_time}, "
        f"{record['texts_per_second']:.1f} texts/s, over {record['seconds']:.2f} s"
    )
    counted = record["server_tokens"]
    server = "not told" if counted is None else str(counted)
    lines.append(
        f"Tokens counted by the server: {server}; here: {record['tokens']} ({report.data['tokenizer']})"
    )
    client = record["client"]
    lines.append(
        f"Client: {100.0 * client['cpu_share']:.0f}% of a core, {client['connections']} connections, "
        f"event loop late by {client['lag_p99_ms']:.1f} ms (p99)"
    )
    return lines


def _notes(report: Report) -> list[str]:
    return [*report.notes, *bottleneck(report)]


def bottleneck(report: Report) -> list[str]:
    """Say where this client, not the server, may have set the figures; empty where it did not."""
    found = []
    run = report.run
    if run.cpu_share >= BUSY and run.seconds >= _TELLING:
        found.append(
            f"the client itself may be the bottleneck: it used {100 * run.cpu_share:.0f}% of a core; start "
            "more of it, or send more texts a request (--batch-size)"
        )
    late = float(np.percentile(run.lags, 99))
    if late >= LATE:
        found.append(
            f"the client's event loop was {1000 * late:.0f} ms late (p99): other work on its core adds to "
            "the latencies"
        )
    return found


def _percentiles(times: dict[str, float | None]) -> str:
    shown = [_short(times[name]) for name in ("p50", "p90", "p95", "p99", "max")]
    return f"p50/p90/p95/p99/max: {'/'.join(shown)} ms"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _milliseconds(value: float) -> str:
    return "-" if value != value else str(round(value))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0.0 else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
