"""What both benches of search share: vectors, held-back queries, the workers' processes, recall with ties."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers
from vecmill.bench.peers import System, Worker
from vecmill.bench.report import sha256_of
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import recall
from vecmill.core.types import IntArray, Metric, Vectors
from vecmill.core.vectors import check, nearest, normalize, pair_distances

EPSILON = 1e-6
"""Distances this close count as equal: what a float32 product of unit vectors is off by."""

_HERE = Path(__file__).parent
_LATENT, _NOISE = 32, 0.3


@dataclass(frozen=True, slots=True)
class Data:
    """Vectors to search and queries that are not among them, all of unit length.

    Attributes:
        vectors: (n, d) float32. queries: (q, d) float32.
        source: Where they come from.
        real: Whether a model made them from texts; figures on made-up ones prove nothing about recall.
        repeated: Rows left out because an equal one is there.
        files_sha256: Of the files read.
    """

    vectors: Vectors
    queries: Vectors
    source: str
    real: bool
    repeated: int = 0
    files_sha256: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what the result file says about the data."""
        return {
            "source": self.source,
            "real": self.real,
            "files_sha256": dict(self.files_sha256),
            "vectors": len(self.vectors),
            "queries": len(self.queries),
            "dimensions": int(self.vectors.shape[1]),
            "repeated_left_out": self.repeated,
            "sha256": hashlib.sha256(
                b"".join(hashlib.sha256(part.data).digest() for part in (self.vectors, self.queries))
            ).hexdigest(),
        }


def read_data(path: Path, n: int, queries: int, *, seed: int = 0) -> Data:
    """Draw vectors and held-back queries from an npy file; rows equal to another are left out.

    Args:
        path: (m, d) numbers, as `np.save` writes them.
        n: Vectors to search; fewer where the file has fewer.
        queries: Rows held back.
        seed: Of the draw.

    Raises:
        InputError: Not such a file, or it has too few different rows.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a table of numbers as np.save writes it: {error}") from error
    whole = normalize(check(mapped, what=str(path)))
    _, first = np.unique(whole.view([("row", f"V{4 * whole.shape[1]}")]).ravel(), return_index=True)
    if len(first) < queries + 2:
        raise InputError(f"{path} has {len(first)} different rows: too few for {queries} held-back queries")
    order = np.random.default_rng(seed).permutation(np.sort(first))
    return Data(
        np.ascontiguousarray(whole[np.sort(order[queries : queries + n])]),
        np.ascontiguousarray(whole[order[:queries]]),
        path.name,
        real=True,
        repeated=len(whole) - len(first),
        files_sha256={path.name: sha256_of(path)},
    )


def made_up(n: int, dimensions: int, queries: int, *, seed: int = 0) -> Data:
    """Make unit vectors for measuring speed: 32 hidden dimensions, spread over all, and noise.

    Neighbourhoods are as dense as those of texts (local dimension about 20), so that no method gains by
    clusters no text has; recall on them still proves nothing.
    """
    chance = np.random.default_rng(seed)
    spread = chance.standard_normal((_LATENT, dimensions), dtype=np.float32) / np.float32(np.sqrt(_LATENT))
    total = n + queries
    made = np.empty((total, dimensions), np.float32)
    for at in range(0, total, 65_536):
        stop = min(at + 65_536, total)
        made[at:stop] = chance.standard_normal((stop - at, _LATENT), dtype=np.float32) @ spread
        noise = chance.standard_normal((stop - at, dimensions), dtype=np.float32)
        made[at:stop] += np.float32(_NOISE) * noise
    made = normalize(made)
    return Data(made[:n], made[n:], f"made up: {_LATENT} hidden dimensions and noise", real=False)


@dataclass(frozen=True, slots=True)
class Search:
    """A system under measurement.

    Attributes:
        name: As results show it. kind: the worker's name for it.
        options: What the worker needs besides.
        queries: Of a batch in a round; slow systems get fewer.
        python: The interpreter that has its packages.
        own: Whether it is this package.
        address: Of a server, or None.
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    queries: int = 0
    python: Path = field(default_factory=peers.this_python)
    own: bool = False
    address: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request took; seconds.

    Attributes:
        wall, cpu: For all queries together.
        each: For each query, where they were asked alone.
        queries: How many.
    """

    wall: float
    cpu: float
    queries: int
    each: tuple[float, ...] = ()


class Searching:
    """The workers of a run and their files. Use inside an `ExitStack`.

    Args:
        stack: Closes the processes.
        folder: For the files.
        data: What is searched.
        k: Neighbours.
        threads: Of each process.
        cores: Each is pinned to, or None.
    """

    def __init__(
        self, stack: ExitStack, folder: Path, data: Data, *, k: int, threads: int, cores: list[int] | None
    ) -> None:
        self._stack = stack
        self._folder = folder
        self._data = data
        self._common = {"k": k, "threads": threads, "cores": cores, "vectors": str(folder / "vectors.npy")}
        np.save(folder / "vectors.npy", data.vectors)
        np.save(folder / "queries.npy", data.queries)
        self.k = k
        self.workers: dict[str, Worker] = {}
        self._true = nearest(data.queries, data.vectors, k, metric=Metric.COSINE).distances

    def open(self, search: Search, notes: list[str]) -> bool:
        """Start a system's process, which builds; a peer that does not come up is left out with a note.

        Raises:
            ProviderError: This package's own process failed.
        """
        home = self._folder / f"home-{len(self.workers)}"
        home.mkdir(exist_ok=True)
        options = {**self._common, "home": str(home), **search.options}
        if search.address is not None:  # may hold a password, which other users see on a command line
            (home.parent / f"{home.name}.address").write_text(search.address, "utf-8")
            options["address"] = str(home.parent / f"{home.name}.address")
        environment = {"PYTHONPATH": str(_HERE.parents[1])}
        system = System(
            search.name, search.kind, search.python, options, _HERE / "search_worker.py", environment
        )
        try:
            self.workers[search.name] = self._stack.enter_context(Worker(system))
        except ProviderError as error:
            if search.own:
                raise
            notes.append(f"{search.name} is left out: {error}")
            return False
        return True

    def batch(self, name: str, queries: int, settings: Mapping[str, Any] | None = None) -> Answer:
        """Let a system answer the first queries at once."""
        return self._ask("batch", name, queries, settings)

    def single(self, name: str, queries: int, settings: Mapping[str, Any] | None = None) -> Answer:
        """Let a system answer the first queries one by one."""
        return self._ask("single", name, queries, settings)

    def _ask(self, what: str, name: str, queries: int, settings: Mapping[str, Any] | None) -> Answer:
        worker = self.workers[name]
        reply = worker.ask(
            {
                "do": what,
                "queries": str(self._folder / "queries.npy"),
                "count": queries,
                "set": dict(settings or {}),
            }
        )
        worker.rss_bytes = reply["rss_bytes"]
        return Answer(reply["wall"], reply["cpu"], queries, tuple(reply.get("each", ())))

    def recall(self, name: str) -> float:
        """Return the recall@k of a system's last answer, ties counted.

        Raises:
            ProviderError: It named a row that is not there.
        """
        path = self._folder / "rows.npy"
        self.workers[name].ask({"do": "save", "to": str(path)})
        rows = np.load(path, allow_pickle=False)
        n = len(self._data.vectors)
        if rows.ndim != 2 or rows.shape[1] > self.k or (rows >= n).any():
            raise ProviderError(
                f"{name} answered with rows of shape {rows.shape}, or beyond {n}", provider=name
            )
        return recall(self._true[: len(rows)], self._distances(rows), min(self.k, n), epsilon=EPSILON)

    def _distances(self, rows: IntArray) -> Vectors:
        """Compute the true distances of the rows found; infinity for those missing and for repeated ones."""
        q, k = rows.shape
        order = np.sort(rows, axis=1)
        repeated = (order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)
        if repeated.any():
            rows = rows.copy()
            for at in np.flatnonzero(repeated.any(axis=1)):
                _, first = np.unique(rows[at], return_index=True)
                rows[at, np.setdiff1d(np.arange(k), first)] = -1
        flat = rows.ravel()
        asked = np.repeat(self._data.queries[:q], k, axis=0)
        near = pair_distances(asked, self._data.vectors[np.maximum(flat, 0)], Metric.COSINE)
        near[flat < 0] = np.inf
        return near.reshape(q, k)


def shuffled(names: Sequence[str], chance: random.Random) -> list[str]:
    """Return the names in an order drawn anew."""
    order = list(names)
    chance.shuffle(order)
    return order


def can_run(name: str, python: Path, modules: Sequence[str], install: str, notes: list[str]) -> bool:
    """Say whether an interpreter has a peer's packages; a note says why not.

    Args:
        name: The peer.
        python: The interpreter.
        modules: What it imports.
        install: How to get it, for the note.
        notes: A line is appended.
    """
    missing = peers.missing_packages(python, modules)
    if missing:
        notes.append(f"{name} is left out: {python.name} has no {', '.join(missing)}; {install}")
    return not missing


def cores(threads: int) -> list[int] | None:
    """Choose the cores every worker is pinned to: the last ones this process may use, or None."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))[-threads:]


def load() -> list[float] | None:
    """Return the load of the machine, where it tells."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def say_nothing(line: str) -> None:
    """Report no progress."""


Say = Callable[[str], None]
