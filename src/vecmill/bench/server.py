"""This package's server beside a peer's and beside its own engine without HTTP: `vecmill bench server`.

Every system lives in a process of its own, all pinned to the same core; this process, which sends the
requests, keeps to the others. They are asked in turn, in an order drawn anew each round; the first round is
thrown away. A ratio is taken inside a round.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers, workloads
from vecmill.bench.peers import FIRST_TEXT, System, Worker
from vecmill.bench.report import commit, machine_record, sha256_of
from vecmill.bench.serve import asking
from vecmill.bench.serve_http import Address, Pool
from vecmill.bench.serve_load import Ask, Run, arrivals, closed_loop, open_loop
from vecmill.bench.serve_report import Latency
from vecmill.bench.serve_shapes import Shape
from vecmill.bench.server_processes import OneByOne, ServerCommand, ServerProcess
from vecmill.bench.server_report import Alone, Comparison, Overload, Part, Report
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import cosines, paired_ratio, percentile
from vecmill.core.types import InputType, IntArray, Vectors
from vecmill.models.resolve import open_model

OWN = "vecmill serve"
ENGINE = "vecmill in one process"
CALLS = f"{ENGINE}, as many a call"
"""As many texts a call as there are clients: what can be batched at all, without HTTP."""
INFINITY = "infinity"
MODEL = "minilm"
CLIENTS = 32
SHORT = "The river is low today."
"""8 tokens with the two special ones of the built-in model."""

LEAST_OF_ENGINE = 0.9
LEAST_OF_PEER = 1.8
AIM_OF_PEER = 2.5
LEAST_OF_PEAK = 0.95
MOST_OF_ALONE = 1.10
MOST_OF_DEADLINE = 1.03
"""The deadline runs from the moment the server has read the request; the way there and back comes on top."""

_OVERLOAD = 3.0
_SETTLING = 0.5
_CONNECTIONS = 4096
_TRIVIAL = 3000
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Plan:
    """How long everything takes.

    Attributes:
        texts: Of a round. rounds: kept ones. clients: at once. starts: of fresh processes, each.
        alone: Requests of a round for one text at a time; 0: not measured.
        overload: Seconds of it in a round; 0: not measured. deadline: seconds an answer is worth something.
        overload_texts: Texts of each request of the overload.
        seed: Of texts, order, arrivals and intervals.
    """

    texts: int = 256
    rounds: int = 7
    clients: int = CLIENTS
    starts: int = 3
    alone: int = 150
    overload: float = 3.0
    overload_texts: int = 1
    deadline: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        small = {"texts": self.texts, "rounds": self.rounds, "clients": self.clients}
        small["overload_texts"] = self.overload_texts
        for name, value in small.items():
            if value < 1:
                raise InputError(f"{name}={value}: it must be at least 1")
        if min(self.starts, self.alone, self.overload) < 0 or not self.deadline > 0.0:
            raise InputError("starts, alone and overload cannot be below 0, the deadline must be above")


def run_server(
    plan: Plan | None = None,
    *,
    data: Path | None = None,
    infinity_python: Path | None = None,
    model_folder: Path | None = None,
    out: Path | None = None,
    command: str = "vecmill bench server",
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005 - reports nothing
) -> Report:
    """Measure the server with the built-in model; three minutes at the defaults, one without a peer.

    Args:
        plan: How much of everything; None: the defaults.
        data: A CSV of stories, as `workloads.read_stories` takes it; None makes texts up.
        infinity_python: An interpreter that has infinity-emb; None leaves the peer out.
        model_folder: Full-precision weights for the peer: the same model's.
        out: The result file to write, or None.
        command: Recorded in the result file.
        say: Called with a line of progress now and then.

    Raises:
        InputError: A number is wrong, or only one of `infinity_python` and `model_folder` is given.
        ProviderError: A process failed, or gave no vectors.
    """
    if (infinity_python is None) != (model_folder is None):
        raise InputError("the peer needs both: --infinity-python, and --model for its full-precision weights")
    plan = plan or Plan()
    code = commit()  # of the code that runs: the tree may change meanwhile
    texts, tokens = _texts(plan, data)
    before = _load()
    with _kept_to_other_cores() as (core, others), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecmill-bench-")))
        commands = _commands(core, folder, infinity_python, model_folder)
        starts = {one.name: _starts(one, plan.starts, say) for one in commands}
        bench = _Bench.open(stack, commands, folder, core, plan, texts, say)
        bench.measure()
        report = Report(
            command,
            code,
            _describe(texts, tokens, data),
            {
                **{name: getattr(plan, name) for name in Plan.__dataclass_fields__},
                "discarded_rounds": 1,
                "model": MODEL,
                "core": core,
                "client_cores": others,
                "threads": 1,
            },
            {**machine_record(), "load_before": before, "load_after": _load()},
            bench.versions(infinity_python),
            bench.parts(int(tokens.sum())),
            starts,
            bench.overload(),
            bench.alone(),
            bench.agreement,
            bench.memory(),
            bench.compare(),
            bench.notes(core, infinity_python),
        )
    if out is not None:
        report.write(out)
    return report


def _texts(plan: Plan, data: Path | None) -> tuple[list[str], IntArray]:
    """Draw texts of mixed lengths that the built-in model takes whole; with their tokens."""
    stories = workloads.synthetic_stories(seed=plan.seed) if data is None else workloads.read_stories(data)
    drawn = workloads.mixed_lengths(stories, 2 * plan.texts, seed=plan.seed)
    provider = open_model(MODEL)
    counts = provider.encode(drawn, input_type=InputType.DOCUMENT).tokens
    fits = np.flatnonzero(counts <= provider.info.max_tokens)[: plan.texts]
    if len(fits) < plan.texts:
        raise InputError(f"only {len(fits)} of the texts are short enough for the model: ask for fewer")
    return [drawn[i] for i in fits], counts[fits]


def _commands(
    core: list[int] | None, folder: Path, infinity_python: Path | None, model_folder: Path | None
) -> list[ServerCommand]:
    home = folder / "home"
    home.mkdir()
    limits = (f"max_connections={_CONNECTIONS}", f"max_connections_per_address={_CONNECTIONS}")
    words = [str(peers.this_python()), "-P", "-m", "vecmill", "serve", "--model", MODEL, "--port", "{port}"]
    words += [word for limit in limits for word in ("--limit", limit)]
    environment = {"VECMILL_HOME": str(home), "PYTHONPATH": str(_HERE.parents[1])}
    found = [ServerCommand(OWN, words, "/v1/embeddings", Shape("vecmill", MODEL), core, environment)]
    if infinity_python is not None and model_folder is not None:
        words = [str(infinity_python), "-P", "-c", "from infinity_emb.cli import cli; cli()", "v2"]
        words += ["--model-id", str(model_folder.resolve()), "--served-model-name", MODEL]
        words += ["--host", "127.0.0.1", "--port", "{port}", "--engine", "torch", "--device", "cpu"]
        shape = Shape("infinity-embeddings", MODEL)
        found.append(ServerCommand(INFINITY, words, "/embeddings", shape, core))
    return found


def _starts(command: ServerCommand, starts: int, say: Callable[[str], None]) -> list[float]:
    """Start a server again and again; the first fills caches and is thrown away."""
    seconds = []
    for _ in range(starts + 1 if starts else 0):
        with ServerProcess(command, first=FIRST_TEXT) as server:
            seconds.append(server.start)
    if seconds:
        say(f"{command.name}: first vector of a fresh process after {percentile(seconds[1:], 50):.2f} s")
    return seconds[1:]


@dataclass(slots=True)
class _Rounds:
    """What one system did in the kept rounds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass(slots=True)
class _Bench:
    """The processes of a run, and what they did."""

    plan: Plan
    texts: list[str]
    folder: Path
    servers: dict[str, ServerProcess]
    engine: Worker
    echo: Worker
    say: Callable[[str], None]
    agreement: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, _Rounds] = field(default_factory=dict)
    short: dict[str, list[float]] = field(default_factory=lambda: {"http": [], "engine": [], "echo": []})
    pressed: list[tuple[float, Run]] = field(default_factory=list)
    peak: float = 0.0
    ceiling: float = 0.0

    @classmethod
    def open(
        cls,
        stack: ExitStack,
        commands: Sequence[ServerCommand],
        folder: Path,
        core: list[int] | None,
        plan: Plan,
        texts: list[str],
        say: Callable[[str], None],
    ) -> _Bench:
        """Start everything."""
        options = {"model": MODEL, "threads": 1, "cores": core}
        environment = {"PYTHONPATH": str(_HERE.parents[1]), "VECMILL_HOME": str(folder / "home")}
        script, here = _HERE / "server_worker.py", peers.this_python()
        engine = System(ENGINE, "engine", here, options, script, environment)
        echo = System("echo", "echo", here, options, script, environment)
        return cls(
            plan,
            texts,
            folder,
            {one.name: stack.enter_context(ServerProcess(one, first=FIRST_TEXT)) for one in commands},
            stack.enter_context(Worker(engine)),
            stack.enter_context(Worker(echo)),
            say,
        )

    def measure(self) -> None:
        """Run all rounds."""
        self._agree()
        self.ceiling = self._ceiling()
        chance = random.Random(self.plan.seed)  # noqa: S311 - an order
        self.rounds = {name: _Rounds() for name in [*self.servers, ENGINE, CALLS]}
        for number in range(self.plan.rounds + 1):
            names = [*self.servers, ENGINE, CALLS]
            names += ["alone"] if self.plan.alone else []
            names += ["overload"] if self.plan.overload and number else []
            chance.shuffle(names)
            for name in names:
                self._ask(name, number)
            self.say(f"round {number} of {self.plan.rounds}" if number else "first round thrown away")

    def _ask(self, name: str, number: int) -> None:
        keep = number > 0
        if name == "alone":
            self._one_by_one(keep=keep)
        elif name == "overload":
            self._press(self.plan.seed + number)
        elif name in (ENGINE, CALLS):
            call = self.plan.clients if name == CALLS else None
            found = self.engine.ask({"do": "embed", "texts": str(self._texts_file()), "call": call})
            self.engine.rss_bytes = found["rss_bytes"]
            if keep:
                self.rounds[name].wall.append(found["wall"])
                self.rounds[name].cpu.append(found["cpu"])
        else:
            self._serve(name, keep=keep)

    def _serve(self, name: str, *, keep: bool) -> None:
        server = self.servers[name]
        before = server.cpu
        run = _run(self._load(server))
        after = server.cpu
        good = [sample.service for sample in run.samples if sample.outcome.good]
        failed = len(run.samples) - len(good)
        if not good:
            raise ProviderError(f"{name} answered none of {failed} requests", provider=name)
        if name == OWN:
            self.peak = max(self.peak, len(good) / run.seconds)
        if not keep:
            return
        found, times = self.rounds[name], Latency.of(good)
        found.wall.append(run.seconds * len(run.samples) / len(good))  # what failed cost no texts
        found.failed += failed
        found.p50.append(times.p50)
        found.p99.append(times.p99)
        if before is not None and after is not None:
            found.cpu.append(after - before)

    async def _load(self, server: ServerProcess) -> Run:
        return await self._with_pool(
            server, 1, self.plan.clients, {}, lambda ask, n: closed_loop(ask, self.plan.clients, n, total=n)
        )

    def _ceiling(self) -> float:
        """Return the requests a second this client could send: rate over CPU share, of a trivial server."""
        server = self.servers[OWN]
        shape = server.command.shape
        with OneByOne(Address.of(server.url)) as client:
            answer = client.exchange(client.request(shape.body([SHORT])))
        (self.folder / "answer").write_bytes(answer)
        port = self.echo.ask({"do": "answer", "file": str(self.folder / "answer")})["port"]

        async def load() -> Run:
            pool = Pool(Address.of(f"http://127.0.0.1:{port}/"), {}, self.plan.clients)
            ask = asking(pool, shape, [pool.prepare(shape.body([SHORT]))], [1])
            try:
                return await closed_loop(ask, self.plan.clients, 1, total=_TRIVIAL)
            finally:
                await pool.close()

        run = asyncio.run(load())
        return len(run.samples) / run.seconds / min(run.cpu_share, 1.0)

    async def _with_pool(
        self, server: ServerProcess, size: int, connections: int, headers: dict[str, str], run: Any
    ) -> Run:
        pool = Pool(Address.of(server.url), headers, connections)
        groups = [self.texts[at : at + size] for at in range(0, len(self.texts), size)]
        requests = [pool.prepare(server.command.shape.body(group)) for group in groups]
        ask: Ask = asking(pool, server.command.shape, requests, [len(group) for group in groups])
        try:
            found: Run = await run(ask, len(requests))
        finally:
            await pool.close()
        return found

    def _press(self, seed: int) -> None:
        """Send three times what the peak is, for some seconds, whatever comes back."""
        size, seconds = self.plan.overload_texts, self.plan.overload
        rate = _OVERLOAD * self.peak / size
        times = arrivals(int(2 * rate * seconds) + 10, rate, seed=seed)
        times = times[times < seconds]
        headers = {"x-request-timeout-ms": str(round(1000 * self.plan.deadline))}
        run = _run(
            self._with_pool(
                self.servers[OWN], size, _CONNECTIONS, headers, lambda ask, n: open_loop(ask, times, n)
            )
        )
        self.pressed.append((rate, run))

    def _one_by_one(self, *, keep: bool) -> None:
        """Ask for one short text, in turns: by HTTP, in the process, and of a server that does nothing."""
        server, times = self.servers[OWN], self.plan.alone
        body = server.command.shape.body([SHORT])
        with OneByOne(Address.of(server.url)) as client:
            request = client.request(body)
            answer = client.exchange(request)
            http = [_seconds(lambda: client.exchange(request)) for _ in range(times)]
        engine = self.engine.ask({"do": "alone", "text": SHORT, "times": times})["seconds"]
        (self.folder / "answer").write_bytes(answer)
        port = self.echo.ask({"do": "answer", "file": str(self.folder / "answer")})["port"]
        with OneByOne(Address.of(f"http://127.0.0.1:{port}/")) as client:
            echo = [_seconds(lambda: client.exchange(request)) for _ in range(times)]
        if keep:
            for name, seconds in (("http", http), ("engine", engine), ("echo", echo)):
                self.short[name].append(1000.0 * percentile(seconds, 50))

    def _agree(self) -> None:
        """Compare the vectors of all systems for the same texts."""
        self.engine.embed(self._texts_file())
        path = self.folder / "vectors.npy"
        self.engine.save(path)
        engine = np.load(path, allow_pickle=False)
        own = self._vectors(self.servers[OWN])
        if not np.array_equal(own, engine):
            worst = float(np.abs(own - engine).max())
            raise ProviderError(f"the server's vectors are not the engine's: they differ by up to {worst}")
        if INFINITY in self.servers:
            found = cosines(own, self._vectors(self.servers[INFINITY]))
            self.agreement = {"cosine_min": float(found.min()), "cosine_mean": float(found.mean())}

    def _vectors(self, server: ServerProcess) -> Vectors:
        found = []
        with OneByOne(Address.of(server.url)) as client:
            for at in range(0, len(self.texts), 32):
                shape = server.command.shape
                status, body = client.post(shape.body(self.texts[at : at + 32]))
                if status != 200:
                    raise ProviderError(f"{server.command.name} answered {status}: {body[:200]!r}")
                found.append(shape.vectors(body))
        return np.concatenate(found)

    def _texts_file(self) -> Path:
        path = self.folder / "texts.json"
        path.write_text(json.dumps(self.texts), "utf-8")
        return path

    def parts(self, tokens: int) -> list[Part]:
        """Return throughput by system."""
        return [
            Part(name, one.wall, one.cpu, len(self.texts), tokens, one.p50, one.p99, one.failed)
            for name, one in self.rounds.items()
        ]

    def overload(self) -> Overload | None:
        """Return what the overload gave."""
        if not self.pressed:
            return None
        runs = [run for _, run in self.pressed]
        size = self.plan.overload_texts
        statuses = Counter(str(sample.outcome.status) for run in runs for sample in run.samples)
        texts = len(self.texts)
        return Overload(
            [rate for rate, _ in self.pressed],
            [len(run.samples) / self.plan.overload for run in runs],
            [_goodput(run, self.plan) for run in runs],
            [texts / wall / size for wall in self.rounds[OWN].wall],
            [Latency.of(_good(run)).p99 / 1000.0 for run in runs],
            self.plan.deadline,
            dict(statuses.most_common()),
            max(run.cpu_share for run in runs),
        )

    def alone(self) -> Alone | None:
        """Return what one text at a time gave."""
        if not self.plan.alone:
            return None
        tokens = open_model(MODEL).encode([SHORT], input_type=InputType.DOCUMENT).tokens
        return Alone(int(tokens[0]), self.short["http"], self.short["engine"], self.short["echo"])

    def memory(self) -> dict[str, int | None]:
        """Return the most bytes each process held."""
        return {
            **{name: server.rss_bytes for name, server in self.servers.items()},
            ENGINE: self.engine.rss_bytes,
        }

    def versions(self, infinity_python: Path | None) -> dict[str, dict[str, str]]:
        """Return the versions of each system's packages."""
        found = {OWN: self.engine.versions}
        if infinity_python is not None:
            found[INFINITY] = _versions(infinity_python, ("infinity-emb", "torch", "transformers", "uvicorn"))
        return found

    def compare(self) -> list[Comparison]:
        """Return ratios and gates."""
        seed, own, engine = self.plan.seed, self.rounds[OWN], self.rounds[ENGINE]

        def ratio(top: Sequence[float], bottom: Sequence[float]) -> Any:
            return paired_ratio(top, bottom, seed=seed)

        name = f"{OWN} : {ENGINE}, texts a second"
        found = [Comparison(name, ratio(engine.wall, own.wall), least=LEAST_OF_ENGINE)]
        if own.cpu:
            found.append(Comparison(f"{OWN} : {ENGINE}, texts a CPU second", ratio(engine.cpu, own.cpu)))
            calls = self.rounds[CALLS]
            name = f"{OWN} : {CALLS}, texts a CPU second"
            found.append(Comparison(name, ratio(calls.cpu, own.cpu)))
        if INFINITY in self.rounds:
            peer = self.rounds[INFINITY]
            name = f"{OWN} : {INFINITY}, texts a second"
            one = ratio(peer.wall, own.wall)
            found.append(Comparison(name, one, least=LEAST_OF_PEER, aim=AIM_OF_PEER))
            if peer.cpu and own.cpu:
                found.append(Comparison(f"{OWN} : {INFINITY}, texts a CPU second", ratio(peer.cpu, own.cpu)))
        if (pressed := self.overload()) is not None:
            name = f"goodput at {_OVERLOAD:g} x the peak : peak"
            found.append(Comparison(name, ratio(pressed.goodput, pressed.peak), least=LEAST_OF_PEAK))
            late = [seconds / pressed.deadline for seconds in pressed.p99]
            found.append(
                Comparison(
                    "p99 at the overload : deadline", ratio(late, [1.0] * len(late)), most=MOST_OF_DEADLINE
                )
            )
        if self.plan.alone:
            http, alone = self.short["http"], self.short["engine"]
            name = "one short text by HTTP : Embedder.embed, p50"
            found.append(Comparison(name, ratio(http, alone), most=MOST_OF_ALONE))
            served = [x - y for x, y in zip(http, self.short["echo"], strict=True)]
            found.append(Comparison("the same without client and loopback", ratio(served, alone)))
        return found

    def notes(self, core: list[int] | None, infinity_python: Path | None) -> list[str]:
        """Return what was left out and what disturbed."""
        found = []
        if infinity_python is None:
            found.append("infinity is left out: name an interpreter that has it by --infinity-python")
        if core is None:
            found.append("processes are not pinned: this system cannot, or has one core")
        found.append(f"the load client alone could send {self.ceiling:.0f} requests a second")
        spread = max(max(one.wall) / min(one.wall) for one in self.rounds.values())
        found.append(f"disturbance: equal rounds of one system differ up to {spread:.2f}-fold")
        pressed = self.overload()
        if pressed is not None and pressed.client_cpu_share > 0.85:
            found.append(
                f"the client used {100 * pressed.client_cpu_share:.0f}% of its core in the overload: it may "
                "have sent less than asked"
            )
        return found


def _good(run: Run) -> list[float]:
    return [sample.latency for sample in run.samples if sample.outcome.good]


def _goodput(run: Run, plan: Plan) -> float:
    """Return requests a second answered in time, between settling and the end of the arrivals."""
    done = [sample.done for sample in run.samples if sample.outcome.good and sample.latency <= plan.deadline]
    begin = min(_SETTLING, plan.overload / 2)
    return max(sum(begin <= at < plan.overload for at in done), 1) / (plan.overload - begin)


def _run(coroutine: Any) -> Run:
    found: Run = asyncio.run(coroutine)
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def _kept_to_other_cores() -> Iterator[tuple[list[int] | None, list[int] | None]]:
    """Keep this process off the last core, which is the servers'; give both sets of cores."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        yield None, None
        return
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, usable[:-1])
    try:
        yield usable[-1:], usable[:-1]
    finally:
        os.sched_setaffinity(0, usable)


def _describe(texts: list[str], tokens: IntArray, data: Path | None) -> dict[str, Any]:
    return {
        "source": ("synthetic sentences" if data is None else data.name) + ", mixed lengths",
        "files_sha256": {} if data is None else {data.name: sha256_of(data)},
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "texts": len(texts),
        "distinct": len(set(texts)),
        "tokens": int(tokens.sum()),
        "tokens_mean": float(tokens.mean()),
        "tokens_p5": float(np.percentile(tokens, 5)),
        "tokens_p95": float(np.percentile(tokens, 95)),
    }


def _versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in another interpreter."""
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(  # noqa: S603 - an interpreter the caller named, no shell
        [str(python), "-P", "-c", code, *packages], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
