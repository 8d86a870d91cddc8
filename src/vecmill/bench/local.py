"""Local inference against its peers, side by side on this machine.

Each system lives in a process of its own, so that thread pools and heaps do not mix, pinned to the same
cores. They are asked in turn, in an order drawn anew each round; the first round is thrown away. A ratio is
taken inside a round, so that a disturbance longer than a round hits both sides.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers, systems, workloads
from vecmill.bench.peers import System, Timing, Worker
from vecmill.bench.quality import Closeness, closeness
from vecmill.bench.report import Comparison, Measured, Report, commit, machine_record, sha256_of
from vecmill.bench.systems import REFERENCE, Model
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import paired_ratio
from vecmill.core.types import Vectors


def _say_nothing(line: str) -> None:
    """Report no progress."""


def run_local(
    *,
    model_folder: Path | None = None,
    texts: Sequence[str] | None = None,
    rounds: int = 7,
    threads: int = 1,
    out: Path | None = None,
    source: str | None = None,
    files: Sequence[Path] = (),
    starts: int = 5,
    peer_python: Path | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    command: str = "vecmill bench local",
    say: Callable[[str], None] = _say_nothing,
) -> Report:
    """Measure this package, sentence-transformers, and ONNX Runtime as fastembed runs it, in one run.

    Peers need the extra `vecmill[bench]` and a folder of full-precision weights; those that cannot run are
    left out with a note. Takes minutes: `rounds` + 1 times all texts, `starts` + 1 times every start.

    Args:
        model_folder: Sentence-transformers folder with float32 weights; None: the built-in model alone.
        texts: What to embed; None takes 256 synthetic texts of mixed lengths.
        rounds: Rounds kept, at least 1; intervals deserve 7 or more.
        threads: Threads and cores each system gets.
        out: The result file to write, or None.
        source: Says where `texts` come from, for the record.
        files: The files the texts were drawn from: their SHA-256 is recorded.
        starts: Cold starts kept per system; 0 measures none.
        peer_python: Interpreter that has the peers' packages; None: this one.
        seed: Of the order, the synthetic texts and the intervals.
        settings: None reads environment and `vecmill.toml`.
        command: Recorded in the result file.
        say: Called with a line of progress now and then.

    Raises:
        InputError: `rounds`, `threads` or `starts` is too small, or there are fewer than two texts.
        ProviderError: This package's own worker failed.
    """
    if rounds < 1 or threads < 1 or starts < 0:
        raise InputError(f"rounds={rounds}, threads={threads}, starts={starts}: too small to measure")
    if texts is None:
        texts = workloads.mixed_lengths(workloads.synthetic_stories(seed=seed), 256, seed=seed)
        source = "synthetic sentences of mixed lengths"
    if len(texts) < 2:
        raise InputError(f"{len(texts)} texts are too few to measure: give at least 2")
    settings = settings or load_settings()
    cores = _cores(threads)
    notes: list[str] = []
    code = commit()  # of the code that runs: the tree may change meanwhile
    model = systems.inspect(model_folder)
    python = peer_python or peers.this_python()
    found = systems.find(model, threads=threads, cores=cores, python=python, settings=settings, notes=notes)
    data = _describe(texts, source or "texts given by the caller", files, model)
    before = _load()
    measured = _measure(found, list(texts), rounds, starts, seed, notes, say)
    record = {**machine_record(), "load_before": before, "load_after": _load()}
    notes += _disturbance(measured)
    report = Report(
        command=command,
        commit=code,
        data=data,
        model=model.record(),
        settings={
            "rounds": rounds,
            "discarded_rounds": 1,
            "starts": starts,
            "threads": threads,
            "cores": cores,
            "seed": seed,
            "reference": REFERENCE,
        },
        machine=record,
        measured=measured,
        comparisons=_compare(measured, seed),
        notes=notes,
    )
    if out is not None:
        report.write(out)
    return report


def _measure(
    systems: list[System],
    texts: list[str],
    rounds: int,
    starts: int,
    seed: int,
    notes: list[str],
    say: Callable[[str], None],
) -> list[Measured]:
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecmill-bench-")))
        file = folder / "texts.json"
        file.write_text(json.dumps(texts), "utf-8")
        workers = _open_all(systems, stack, notes)
        steady = _rounds(workers, file, rounds, chance, say)
        vectors = {name: _fetch(worker, folder / "vectors.npy") for name, worker in workers.items()}
        memory = {name: worker.rss_bytes for name, worker in workers.items()}
        versions = {name: worker.versions for name, worker in workers.items()}
        tokens = {name: worker.tokens for name, worker in workers.items()}
        kept = [worker.system for worker in workers.values()]
    cold = _starts(kept, starts, chance, say)
    return [
        Measured(
            name=name,
            wall=[timing.wall for timing in steady[name]],
            cpu=[timing.cpu for timing in steady[name]],
            start_wall=[timing.wall for timing in cold[name]],
            start_cpu=[timing.cpu for timing in cold[name]],
            rss_bytes=memory[name],
            versions=versions[name],
            tokens=tokens[name],
            agreement=_agreement(vectors, name),
        )
        for name in (system.name for system in kept)
    ]


def _open_all(systems: list[System], stack: ExitStack, notes: list[str]) -> dict[str, Worker]:
    """Start every worker. A peer that does not come up is left out; this package's failure is an error."""
    workers: dict[str, Worker] = {}
    for system in systems:
        try:
            workers[system.name] = stack.enter_context(Worker(system))
        except ProviderError as error:
            if system.kind == "vecmill":
                raise
            notes.append(f"{system.name} is left out: {error}")
    return workers


def _rounds(
    workers: dict[str, Worker], file: Path, rounds: int, chance: random.Random, say: Callable[[str], None]
) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        order = list(workers)
        chance.shuffle(order)
        for name in order:
            timing = workers[name].embed(file)
            if number:  # the first round warms caches and is thrown away
                timings[name].append(timing)
        say(f"round {number} of {rounds}" if number else "first round thrown away")
    return timings


def _starts(
    systems: list[System], starts: int, chance: random.Random, say: Callable[[str], None]
) -> dict[str, list[Timing]]:
    """Start every system afresh, files in the page cache and compiled models in ours."""
    timings: dict[str, list[Timing]] = {system.name: [] for system in systems}
    for number in range(starts + 1 if starts else 0):
        order = list(systems)
        chance.shuffle(order)
        for system in order:
            with Worker(system) as worker:
                if number:
                    timings[system.name].append(worker.start)
        say(f"start {number} of {starts}" if number else "first start thrown away")
    return timings


def _fetch(worker: Worker, path: Path) -> Vectors:
    worker.save(path)
    vectors: Vectors = np.load(path, allow_pickle=False)
    return vectors


def _agreement(vectors: dict[str, Vectors], name: str) -> Closeness | None:
    if name == REFERENCE or REFERENCE not in vectors:
        return None
    return closeness(vectors[REFERENCE], vectors[name])


def _compare(measured: list[Measured], seed: int) -> list[Comparison]:
    own = [one for one in measured if one.name.startswith("vecmill")]
    others = [one for one in measured if not one.name.startswith("vecmill")]
    return [
        Comparison(
            one.name,
            peer.name,
            paired_ratio(peer.cpu, one.cpu, seed=seed),
            paired_ratio(peer.wall, one.wall, seed=seed),
            paired_ratio(peer.start_wall, one.start_wall, seed=seed) if one.start_wall else None,
        )
        for one in own
        for peer in others
    ]


def _describe(texts: Sequence[str], source: str, files: Sequence[Path], model: Model) -> dict[str, Any]:
    characters = np.array([len(text) for text in texts])
    tokens = model.count_tokens(texts)
    return {
        "source": source,
        "files_sha256": {path.name: sha256_of(path) for path in files},
        "texts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "texts": len(texts),
        "distinct": len(set(texts)),
        "characters_mean": float(characters.mean()),
        "characters_p95": float(np.percentile(characters, 95)),
        "tokens_mean": float(tokens.mean()),
        "tokens_p95": float(np.percentile(tokens, 95)),
    }


def _disturbance(measured: list[Measured]) -> list[str]:
    """Say how calm the machine was: rounds of equal work should take equally long."""
    spread = max(max(one.cpu) / min(one.cpu) for one in measured)
    waiting = max(float(np.median(np.array(one.wall) / np.array(one.cpu))) for one in measured)
    return [
        f"disturbance: CPU seconds of equal rounds differ up to {spread:.2f}-fold within a system, "
        f"wall is up to {waiting:.2f} times CPU"
    ]


def _cores(threads: int) -> list[int] | None:
    """Choose the cores every worker is pinned to: the last ones this process may use, or None."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))[-threads:]


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
