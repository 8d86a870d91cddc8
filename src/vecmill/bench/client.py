"""What asking a hosted model costs the client: this package beside the openai SDK, side by side.

Every way to ask lives in a process of its own, all pinned to the same core; the provider is simulated in
another process on the other cores. They are asked in turn, in an order drawn anew each round, for the same
texts, which no earlier round has had; the first round is thrown away. A ratio is taken inside a round. The
simulator's books say that each way really sent each text, and the vectors of all ways must be equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers
from vecmill.bench.client_report import Comparison, Part, Report, compare
from vecmill.bench.peers import System, Timing, Worker
from vecmill.bench.report import commit, machine_record
from vecmill.bench.workloads import SENTENCES
from vecmill.core import tokens
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import percentile
from vecmill.core.types import Vectors

MODEL = "text-embedding-3-small"
DIMENSIONS = 1536
SIZE = 64
IN_FLIGHT = 16
ROWS = 2000
LATENCY = 0.05

SDK = "openai SDK"
SDK_ASYNC = f"openai SDK, {IN_FLIGHT} at once"
SDK_FLOATS = "openai SDK, floats"
SDK_ROWS = "openai SDK, a request a row"
PROVIDER = "vecmill provider"
CALLS = f"vecmill Embedder, calls of {SIZE}"
AT_ONCE = f"vecmill AsyncEmbedder, {IN_FLIGHT} calls at once"
ONE_CALL = "vecmill Embedder, one call"
OWN_ROWS = f"vecmill Embedder, {ROWS:,} rows"

LEAST = {
    PROVIDER: (4.0, None),
    ONE_CALL: (2.2, 4.0),
    OWN_ROWS: (20.0, None),
}
"""Gates, and what is aimed at: times fewer seconds than the faster of the SDK's defaults.

The Embedder is judged by one call for many texts, as jobs and lists ask. Calls of 64 each pay for a turn in
the limits that processes share and for a transaction of the cache; they are shown beside it.
"""

_FLOAT_REQUESTS = 2
"""Of a round with floats: one costs the SDK as much as a dozen others."""

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Way:
    """A way to ask.

    Attributes:
        name: As results show it. kind: the worker's name for it.
        texts: Of a round. requests: what they must come to.
        options: What the worker needs besides.
        address: Which of the simulator's addresses.
    """

    name: str
    kind: str
    texts: int
    requests: int
    options: Mapping[str, Any] = field(default_factory=dict)
    address: str = "url"


def _say_nothing(line: str) -> None:
    """Report no progress."""


def run_client(
    *,
    requests: int = 64,
    rounds: int = 7,
    rows: int = 30,
    full: bool = False,
    seed: int = 0,
    out: Path | None = None,
    peer_python: Path | None = None,
    command: str = "vecmill bench client",
    say: Callable[[str], None] = _say_nothing,
    latency: float = LATENCY,
    rows_embedded: int = ROWS,
) -> Report:
    """Measure what a text costs this package and the openai SDK, in CPU seconds and at 50 ms a reply in wall.

    The SDK comes with `vecmill[test]` or lives in another interpreter; without it a note says so and this
    package is measured alone. About a minute at the defaults.

    Args:
        requests: Requests of a round, 64 texts each.
        rounds: Rounds kept, at least 1; intervals deserve 7 or more.
        rows: Rows of a round that are sent by a request each, one after the other, at 50 ms.
        full: Send all 2,000 rows that way too, once: 100 s.
        seed: Of the order, the texts and the intervals.
        out: The result file to write, or None.
        peer_python: Interpreter that has the SDK and NumPy; None: this one.
        command: Recorded in the result file.
        say: Called with a line of progress now and then.
        latency: Seconds a reply takes where wall seconds are compared.
        rows_embedded: Rows of a round that the embedder is given at once, at that latency.

    Raises:
        InputError: `requests`, `rounds` or `rows` is too small.
        ProviderError: A process failed, sent other requests than it should, or got other vectors.
    """
    if min(requests, rounds, rows, rows_embedded) < 1:
        raise InputError(f"requests={requests}, rounds={rounds}, rows={rows}: each must be at least 1")
    python = peer_python or peers.this_python()
    notes: list[str] = []
    code = commit()  # of the code that runs: the tree may change meanwhile
    ways = _ways(requests, rows, rows_embedded, python, notes)
    needed = max(way.texts for way in ways)
    texts = distinct_texts(needed * (rounds + 1 + full), seed=seed)
    own, others = _cores()
    settings = {
        "rounds": rounds,
        "discarded_rounds": 1,
        "requests": requests,
        "size": SIZE,
        "dimensions": DIMENSIONS,
        "in_flight": IN_FLIGHT,
        "rows": rows,
        "rows_embedded": rows_embedded,
        "latency": latency,
        "cores": own,
        "simulator_cores": others,
        "seed": seed,
    }
    before = _load()
    with ExitStack() as stack:
        bench = _Bench.open(stack, ways, python, settings, say)
        parts = bench.measure(texts, needed)
        whole = bench.measure_whole(texts[-needed:], rows_embedded) if full else {}
    notes += _remarks(parts, own)
    report = Report(
        command,
        code,
        _describe(texts),
        settings,
        {**machine_record(), "load_before": before, "load_after": _load()},
        parts,
        _compare(parts, seed),
        whole,
        notes,
    )
    if out is not None:
        report.write(out)
    return report


def distinct_texts(n: int, *, seed: int = 0) -> list[str]:
    """Draw n different texts of 5 to 7 sentences, about 60 to 105 tokens each; equal for equal seeds."""
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    drawn: dict[str, None] = {}
    while len(drawn) < n:
        drawn[" ".join(chance.sample(SENTENCES, chance.randint(5, 7)))] = None
    return list(drawn)


def _ways(requests: int, rows: int, embedded: int, python: Path, notes: list[str]) -> list[Way]:
    """List what is measured; the SDK's ways only where there is one."""
    texts = requests * SIZE
    own = [
        Way(PROVIDER, "provider", texts, requests),
        Way(CALLS, "embedder", texts, requests, {"call": SIZE}),
        Way(AT_ONCE, "async_calls", texts, requests),
        Way(ONE_CALL, "embedder", texts, requests, {"call": texts}),
        Way(
            OWN_ROWS, "embedder", embedded, -(-embedded // 2048), {"call": embedded, "size": None}, "slow_url"
        ),
    ]
    if missing := peers.missing_packages(python, ["openai", "numpy"]):
        notes.append(
            f"the openai SDK is left out: {python} has no {', '.join(missing)}; pip install 'vecmill[test]', "
            "or name an interpreter that has it with --peer-python"
        )
        return own
    floats = min(requests, _FLOAT_REQUESTS)
    sdk = [
        Way(SDK, "sdk_sync", texts, requests),
        Way(SDK_ASYNC, "sdk_async", texts, requests),
        Way(SDK_FLOATS, "sdk_sync", floats * SIZE, floats, {"floats": True}),
        Way(SDK_ROWS, "sdk_sync", rows, rows, {"size": 1}, "slow_url"),
    ]
    return sdk + own


@dataclass(slots=True)
class _Bench:
    """The processes of a run.

    Attributes:
        ways: What is measured. workers: their processes, by name.
        server: The simulator's. folder: for files.
        settings: Of the run. say: reports progress.
    """

    ways: list[Way]
    workers: dict[str, Worker]
    server: Worker
    folder: Path
    settings: dict[str, Any]
    say: Callable[[str], None]

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        ways: list[Way],
        python: Path,
        settings: dict[str, Any],
        say: Callable[[str], None],
    ) -> _Bench:
        """Start the simulator and a worker for each way."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecmill-bench-")))
        options = {
            "threads": 1,
            "cores": settings["simulator_cores"],
            "dimensions": settings["dimensions"],
            "latency": settings["latency"],
        }
        environment = {"PYTHONPATH": str(_HERE.parents[1])}
        script = _HERE / "client_server.py"
        here = peers.this_python()
        server = stack.enter_context(
            Worker(System("the simulator", "simulator", here, options, script, environment))
        )
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        environment |= {"OPENAI_API_KEY": server.ready["key"]}
        workers = {}
        for number, way in enumerate(ways):
            home = folder / f"home-{number}"
            home.mkdir()
            options = {
                "threads": 1,
                "cores": settings["cores"],
                "url": server.ready[way.address],
                "key": server.ready["key"],
                "model": MODEL,
                "size": SIZE,
                "in_flight": IN_FLIGHT,
                "home": str(home),
                **way.options,
            }
            interpreter = python if way.kind.startswith("sdk") else here
            system = System(way.name, way.kind, interpreter, options, _HERE / "client_worker.py", environment)
            workers[way.name] = stack.enter_context(Worker(system))
        return cls(ways, workers, server, folder, settings, say)

    def measure(self, texts: Sequence[str], needed: int) -> list[Part]:
        """Run all rounds; each has texts of its own."""
        rounds, chance = self.settings["rounds"], random.Random(self.settings["seed"])  # noqa: S311 - an order
        timings: dict[str, list[Timing]] = {way.name: [] for way in self.ways}
        for number in range(rounds + 1):
            drawn = texts[number * needed : (number + 1) * needed]
            order = list(self.ways)
            chance.shuffle(order)
            for way in order:
                timing = self.ask(way, drawn[: way.texts])
                if number:  # the first round warms caches and is thrown away
                    timings[way.name].append(timing)
            if not number:
                self._check_vectors()
            self.say(f"round {number} of {rounds}" if number else "first round thrown away")
        return [
            Part(
                way.name,
                way.texts,
                way.requests,
                [timing.wall for timing in timings[way.name]],
                [timing.cpu for timing in timings[way.name]],
                self.workers[way.name].rss_bytes,
                self.workers[way.name].versions,
            )
            for way in self.ways
        ]

    def measure_whole(self, texts: Sequence[str], rows: int) -> dict[str, float]:
        """Send every row by a request of its own, once, beside the embedder: wall seconds."""
        found = {way.name: way for way in self.ways}
        if SDK_ROWS not in found:
            return {}
        self.say(f"{rows:,} requests, one after the other")
        own = self.ask(found[OWN_ROWS], texts[:rows]).wall
        theirs = self.ask(found[SDK_ROWS], texts[:rows], requests=rows).wall
        return {"rows": rows, "wall_one_by_one": theirs, "wall_embedder": own, "ratio": theirs / own}

    def ask(self, way: Way, texts: Sequence[str], requests: int | None = None) -> Timing:
        """Let a way embed texts.

        Raises:
            ProviderError: The simulator saw other requests or texts than it should have.
        """
        file = self.folder / "texts.json"
        file.write_text(json.dumps(list(texts)), "utf-8")
        before = self._seen(way)
        timing = self.workers[way.name].embed(file)
        after = self._seen(way)
        sent = {name: after[name] - before[name] for name in after}
        wanted = way.requests if requests is None else requests
        if (sent["requests"], sent["texts"], sent["failed"]) != (wanted, len(texts), 0):
            raise ProviderError(
                f"{way.name} was to send {len(texts)} texts in {wanted} requests, and sent {sent}",
                provider=way.name,
            )
        return timing

    def _seen(self, way: Way) -> dict[str, int]:
        seen: dict[str, int] = self.server.ask({})[way.address]
        return seen

    def _check_vectors(self) -> None:
        """Raise unless every way got the same vectors for the texts of this round."""
        first: tuple[str, Vectors] | None = None
        for way in sorted(self.ways, key=lambda way: -way.texts):
            path = self.folder / "vectors.npy"
            self.workers[way.name].save(path)
            vectors = np.load(path, allow_pickle=False).reshape(way.texts, DIMENSIONS).astype(np.float32)
            if first is None:
                first = (way.name, vectors)
            elif not np.array_equal(first[1][: way.texts], vectors):
                raise ProviderError(f"{way.name} got other vectors than {first[0]}", provider=way.name)


def _compare(parts: list[Part], seed: int) -> list[Comparison]:
    """Compare ours with the SDK's; gates hold against the faster of its defaults."""
    found = {part.name: part for part in parts}
    if SDK not in found:
        return []
    defaults = [found[SDK], found[SDK_ASYNC]]
    fastest = min(defaults, key=lambda part: percentile(part.per_text("cpu"), 50))
    comparisons = []
    for name in (PROVIDER, CALLS, AT_ONCE, ONE_CALL):
        for baseline in (*defaults, found[SDK_FLOATS]):
            least, aim = LEAST.get(name, (None, None)) if baseline is fastest else (None, None)
            one = compare(found[name], baseline, "cpu", seed)
            comparisons.append(Comparison(one.name, one.baseline, one.unit, one.ratio, least, aim))
    one = compare(found[OWN_ROWS], found[SDK_ROWS], "wall", seed)
    return [*comparisons, Comparison(one.name, one.baseline, one.unit, one.ratio, *LEAST[OWN_ROWS])]


def _describe(texts: Sequence[str]) -> dict[str, Any]:
    counts = tokens.count(texts)
    return {
        "source": "sentences of our own, 5 to 7 a text, drawn anew each round",
        "texts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "texts": len(texts),
        "distinct": len(set(texts)),
        "characters_mean": float(np.mean([len(text) for text in texts])),
        "tokens_mean": float(counts.mean()),
        "tokens_p5": float(np.percentile(counts, 5)),
        "tokens_p95": float(np.percentile(counts, 95)),
    }


def _remarks(parts: list[Part], cores: list[int] | None) -> list[str]:
    """Say what counts and what does not, and how calm the machine was."""
    spread = max(max(part.cpu) / min(part.cpu) for part in parts)
    found = [
        "the SDK returns lists of floats, which are left as they are; it counts, checks and keeps nothing",
        f"{PROVIDER}: tokens are counted before the clock runs, {IN_FLIGHT} requests at once; the Embedder's "
        "ways count, check, and write the cache within it",
        f"disturbance: CPU seconds of equal rounds differ up to {spread:.2f}-fold within a way",
    ]
    if cores is None:
        found.append("processes are not pinned: this system cannot")
    return found


def _cores() -> tuple[list[int] | None, list[int] | None]:
    """Choose the core of what is measured, the last one, and those of the simulator: the others."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1:], usable[:-1] or usable


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
