"""What a benchmark found: records, the result file, and the lines people read."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vecmill._version import __version__
from vecmill.bench.quality import Closeness
from vecmill.core import durable, machine
from vecmill.core.measure import Ratio, percentile

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One system's rounds; seconds.

    Attributes:
        name: The system.
        wall, cpu: Per kept round.
        start_wall, start_cpu: Per kept start of a fresh process, up to its first vector.
        rss_bytes: The most memory its process held.
        versions: Of its packages.
        tokens: Tokens of a round, where the system tells.
        agreement: With the reference; None for the reference itself, or where there is none.
    """

    name: str
    wall: list[float]
    cpu: list[float]
    start_wall: list[float]
    start_cpu: list[float]
    rss_bytes: int | None
    versions: dict[str, str]
    tokens: int | None = None
    agreement: Closeness | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times faster `name` is than `baseline`: ratios of rounds measured side by side."""

    name: str
    baseline: str
    cpu: Ratio
    wall: Ratio
    start_wall: Ratio | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        command: What was called.
        commit: The source tree's, as `commit` tells.
        data: What the texts were: where from, how many, tokens, SHA-256 of the files and of the texts (as a
            JSON list).
        model: Its name, the SHA-256 of its files, pooling and limit.
        settings: Rounds, threads, cores, seed.
        machine: Processor, cores, system, load before and after.
        measured: The systems, in the order of the table.
        comparisons: Every own system against every peer.
        notes: What was left out and why, how calm the machine was.
    """

    command: str
    commit: str | None
    data: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    measured: list[Measured]
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the result file: indented JSON with medians and 95th percentiles spelled out."""
        record = {
            "format_version": FORMAT_VERSION,
            "benchmark": "local",
            "command": self.command,
            "commit": self.commit,
            "version": __version__,
            "machine": self.machine,
            "model": self.model,
            "data": self.data,
            "settings": self.settings,
            "systems": [_summary(one, self.data["texts"]) for one in self.measured],
            "ratios": [asdict(one) for one in self.comparisons],
            "notes": self.notes,
        }
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the result file, whole or not at all."""
        durable.write_bytes(path, self.to_json().encode())


def render(report: Report) -> list[str]:
    """Return a report as lines for a terminal."""
    lines = [
        f"{report.data['texts']} texts of {report.data['source']}, "
        f"{report.settings['rounds']} rounds, {report.settings['threads']} thread(s)",
        f"{'system':34}{'texts/s':>9}{'cpu s':>9}{'first vector s':>16}{'peak MiB':>10}",
    ]
    for one in report.measured:
        median = percentile(one.wall, 50)
        start = f"{percentile(one.start_wall, 50):.2f}" if one.start_wall else "-"
        memory = f"{one.rss_bytes / 2**20:.0f}" if one.rss_bytes else "-"
        speed = report.data["texts"] / median
        cpu = percentile(one.cpu, 50)
        lines.append(f"{one.name:34}{speed:9.1f}{cpu:9.2f}{start:>16}{memory:>10}")
    lines += _agreement_lines(report) + _ratio_lines(report)
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _agreement_lines(report: Report) -> list[str]:
    known = [one for one in report.measured if one.agreement is not None]
    if not known:
        return []
    lines = [
        "",
        f"{'against ' + report.settings['reference']:34}{'cos min':>10}{'cos mean':>10}{'top-10':>9}",
    ]
    for one in known:
        agreement = one.agreement
        if agreement is not None:
            lines.append(
                f"{one.name:34}{agreement.cosine_min:10.6f}{agreement.cosine_mean:10.6f}{agreement.overlap:9.3f}"
            )
    return lines


def _ratio_lines(report: Report) -> list[str]:
    if not report.comparisons:
        return []
    lines = ["", "times as fast, median [90 % interval] of paired rounds"]
    for one in report.comparisons:
        start = f"   start {one.start_wall}" if one.start_wall is not None else ""
        lines.append(f"{one.name} : {one.baseline}   cpu {one.cpu}   wall {one.wall}{start}")
    return lines


def _summary(one: Measured, texts: int) -> dict[str, Any]:
    record = asdict(one)
    for name in ("wall", "cpu", "start_wall", "start_cpu"):
        values = getattr(one, name)
        if values:
            record[f"{name}_median"] = percentile(values, 50)
            record[f"{name}_p95"] = percentile(values, 95)
    record["texts_per_second"] = texts / percentile(one.wall, 50)
    return record


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine_record() -> dict[str, Any]:
    """Return what the machine is, for the result file."""
    cpu = machine.cpu()
    shown = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "avx_vnni", "asimd", "i8mm")
    return {
        "cpu": cpu.name,
        "flags": [name for name in shown if name in cpu.flags],
        "usable_cores": machine.usable_cores(),
        "physical_cores": machine.physical_cores(),
        "memory_bytes": machine.memory_limit_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the source tree a file belongs to, or None where it belongs to none.

    A "+" follows where tracked files of the tree differ from it; files git does not know do not count.
    """
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)  # an installed copy may lie in another's tree
        changed = _git(file, "status", "--porcelain", "--untracked-files=no")
        return _git(file, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(file: Path, *words: str) -> str:
    done = subprocess.run(  # noqa: S603 - git alone, no shell
        ["git", *words],  # noqa: S607 - wherever the user has it
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
