"""Exact search of many queries at once (a kNN join), beside its peers on the same vectors, core and moment.

Every way lives in a process of its own, all pinned to the same cores. They are asked in turn, in an order
drawn anew each round; the first round is thrown away. A ratio is taken inside a round. What a way needs
before its first query (an index, int8 copies) is timed apart, and once more inside where that differs.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from pathlib import Path

from vecmill.bench import peers
from vecmill.bench.report import commit, machine_record
from vecmill.bench.search_report import Built, Comparison, Part, Report, compare
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
from vecmill.core.errors import InputError
from vecmill.core.extras import installed
from vecmill.core.measure import percentile

NUMPY = "vecmill numpy"
INT8 = "vecmill int8"
INT8_WHOLE = "vecmill int8, prepared each time"
OWN_FAISS = "vecmill faiss"
FAISS = "faiss IndexFlatIP"
FAISS_KNN = "faiss.knn"
ARGPARTITION = "numpy argpartition"
SKLEARN = "scikit-learn brute"
USEARCH = "usearch exact"
LANCEDB = "LanceDB scan"

_SLOW = {USEARCH: 32, LANCEDB: 16}
"""Queries of a round for systems that take tens of milliseconds a query."""


def run_knn(
    *,
    vectors: Path | None = None,
    n: int = 100_000,
    dimensions: int = 384,
    queries: int = 1024,
    k: int = 10,
    rounds: int = 7,
    threads: int = 1,
    seed: int = 0,
    out: Path | None = None,
    peer_python: Path | None = None,
    command: str = "vecmill bench knn",
    say: Say = say_nothing,
) -> Report:
    """Measure exact search of a batch of queries by every engine of this package and by its peers.

    About two minutes at the defaults, on one core; memory about three times the vectors a process.

    Args:
        vectors: An npy file (m, d) to draw from; None makes vectors up, which is right for speed only.
        n: Vectors searched, fewer where the file has fewer.
        dimensions: Of made-up vectors.
        queries: Of a batch.
        k: Neighbours of each.
        rounds: Rounds kept, at least 1; intervals deserve 7 or more.
        threads: Threads and cores each process gets.
        seed: Of the data, the order and the intervals.
        out: The result file to write, or None.
        peer_python: Interpreter that has usearch and lancedb; None: this one.
        command: Recorded in the result file.
        say: Called with a line of progress now and then.

    Raises:
        InputError: A number is too small, or the file is not a table of numbers.
        ProviderError: One of this package's processes failed.
    """
    ensure_sizes(n=n, dimensions=dimensions, queries=queries, k=k, rounds=rounds, threads=threads)
    code = commit()  # of the code that runs: the tree may change meanwhile
    data = (
        made_up(n, dimensions, queries, seed=seed)
        if vectors is None
        else read_data(vectors, n, queries, seed=seed)
    )
    notes: list[str] = []
    used = cores(threads)
    settings = {
        "k": k,
        "rounds": rounds,
        "discarded_rounds": 1,
        "threads": threads,
        "cores": used,
        "seed": seed,
        "recall_epsilon": EPSILON,
    }
    before = load()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecmill-bench-")))
        bench = Searching(stack, folder, data, k=k, threads=threads, cores=used)
        found = _systems(queries, peer_python or peers.this_python(), notes)
        parts, built = _measure(bench, found, rounds, seed, notes, say)
    unit = "cpu" if threads == 1 else "wall"
    notes += _remarks(parts, data)
    report = Report(
        "knn",
        command,
        code,
        data.record(),
        settings,
        {**machine_record(), "load_before": before, "load_after": load()},
        built,
        parts,
        _compare(parts, unit, seed, real=data.real),
        notes,
    )
    if out is not None:
        report.write(out)
    return report


def ensure_sizes(**sizes: int) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: The message names them all.
    """
    if min(sizes.values()) < 1:
        raise InputError(", ".join(f"{name}={value}" for name, value in sizes.items()) + ": at least 1 each")


def _systems(queries: int, python: Path, notes: list[str]) -> list[Search]:
    """List what can be measured here, this package first; a note says what cannot and why."""
    here = peers.this_python()
    found = [
        Search(NUMPY, "exact", {"engine": "numpy"}, queries, own=True),
        Search(INT8, "exact", {"engine": "int8"}, queries, own=True),
        Search(INT8_WHOLE, "exact", {"engine": "int8", "prepare_each": True}, queries, own=True),
    ]
    if installed("faiss"):
        found.append(Search(OWN_FAISS, "exact", {"engine": "faiss"}, queries, own=True))
    if can_run("faiss", here, ["faiss"], "pip install 'vecmill[ann]'", notes):
        found += [
            Search(FAISS, "faiss_flat", {}, queries),
            Search(FAISS_KNN, "faiss_flat", {"way": "knn"}, queries),
        ]
    found.append(Search(ARGPARTITION, "argpartition", {}, queries))
    if can_run(SKLEARN, here, ["sklearn"], "pip install scikit-learn", notes):
        found.append(Search(SKLEARN, "sklearn", {}, queries))
    elsewhere = "name an interpreter that has it with --peer-python"
    if can_run(USEARCH, python, ["usearch", "numpy"], elsewhere, notes):
        found.append(Search(USEARCH, "usearch_exact", {}, min(queries, _SLOW[USEARCH]), python))
    if can_run(LANCEDB, python, ["lancedb", "numpy"], elsewhere, notes):
        found.append(Search(LANCEDB, "lancedb", {"index": None}, min(queries, _SLOW[LANCEDB]), python))
    return found


def _measure(
    bench: Searching, found: list[Search], rounds: int, seed: int, notes: list[str], say: Say
) -> tuple[list[Part], list[Built]]:
    kept = {one.name: one for one in found if bench.open(one, notes)}
    say(f"{len(kept)} systems are up")
    chance = random.Random(seed)  # noqa: S311 - an order
    answers: dict[str, list[Answer]] = {name: [] for name in kept}
    recalls: dict[str, float] = {}
    for number in range(rounds + 1):
        for name in shuffled(list(kept), chance):
            answer = bench.batch(name, kept[name].queries)
            if number:  # the first round warms caches and is thrown away
                answers[name].append(answer)
            else:
                recalls[name] = bench.recall(name)
        say(f"round {number} of {rounds}" if number else "first round thrown away")
    parts = [
        Part(
            name,
            name,
            {},
            one.queries,
            [answer.wall / one.queries for answer in answers[name]],
            [answer.cpu / one.queries for answer in answers[name]],
            [],
            [],
            recalls[name],
            one.queries,
        )
        for name, one in kept.items()
    ]
    return parts, built_of(bench, list(kept.values()))


def built_of(bench: Searching, found: list[Search]) -> list[Built]:
    """Return what every system said when it was up, with the memory it has come to."""
    return [
        Built(
            one.name,
            one.own,
            worker.ready["build_wall"],
            worker.ready["build_cpu"],
            worker.ready["size_bytes"],
            worker.ready["loaded_bytes"],
            worker.rss_bytes,
            worker.versions,
        )
        for one in found
        for worker in (bench.workers[one.name],)
    ]


def _compare(parts: list[Part], unit: str, seed: int, *, real: bool) -> list[Comparison]:
    """Compare ours with every peer; gates hold against the faster of faiss's two ways, and argpartition.

    The certified int8 path is judged on real vectors only: how many queries it must repeat in float32 depends
    on them.
    """
    own = [part for part in parts if part.name.startswith("vecmill")]
    theirs = [part for part in parts if not part.name.startswith("vecmill")]
    flat = [part for part in theirs if part.name in (FAISS, FAISS_KNN)]
    fastest = min(flat, key=lambda part: percentile(getattr(part, f"batch_{unit}"), 50), default=None)
    gates = {(NUMPY, ARGPARTITION): 1.5}
    if fastest is not None:
        gates[NUMPY, fastest.name] = 0.70
        if real:
            gates[INT8, fastest.name] = 1.2
    return [
        compare(one, baseline, what="batch", unit=unit, seed=seed, least=gates.get((one.name, baseline.name)))
        for one in own
        for baseline in theirs
    ]


def _remarks(parts: list[Part], data: Data) -> list[str]:
    """Say what counts and what does not, and how calm the machine was."""
    spread = max(max(part.batch_cpu) / min(part.batch_cpu) for part in parts)
    found = [
        f"{INT8_WHOLE} makes its int8 copies inside every search; elsewhere build s is apart",
        "peak MiB is the whole process: interpreter, libraries, vectors, index, scores",
        f"disturbance: CPU seconds of equal rounds differ up to {spread:.2f}-fold within a system",
    ]
    slow = [part.name for part in parts if part.batch_queries < len(data.queries)]
    if slow:
        found.append(f"{', '.join(slow)}: fewer queries a round, see the result file")
    if not data.real:
        found.append(
            "made-up vectors: right for speed, not for recall; int8 is judged on real ones (--vectors)"
        )
    return found
