"""Hours in minutes: mixed traffic with errors and clients that leave, and memory that must stop growing.

The engine keeps compiled kernels of every shape of batch it met, up to a bound: that takes minutes with texts
of all lengths, so the short run asks for a few lengths only.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import runpy
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

process = runpy.run_path(str(Path(__file__).with_name("server_process.py")))
Process = process["Process"]

SECONDS, SLOW_SECONDS = 120.0, 1800.0
"""The whole run; its first third is warm-up. The second is what --slow runs."""

GROWTH = 0.02
"""What a straight line through memory after the warm-up may rise by, from its begin to its end."""

WINDOWS = 3
"""So often it is looked at whether memory has stopped growing: what leaks never does, while on a busy machine
what the engine keeps for each shape it meets comes late."""

WORDS = ("river", "water", "stone", "light", "house", "green", "table", "music")


class Traffic:
    """Threads that ask until told to stop; what a client must never see is a failure."""

    def __init__(self, port: int, *, seed: int, lengths: Sequence[int]) -> None:
        self.failures: list[str] = []
        self.asked = 0
        self._port = port
        self._lengths = lengths
        self._enough = threading.Event()
        kinds = (self._good, self._good, self._wrong, self._leaving, self._scrape)
        self._threads = [
            threading.Thread(target=self._run, args=(kind, random.Random(seed + number)))
            for number, kind in enumerate(kinds)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(60)

    def _run(
        self, kind: Callable[[http.client.HTTPConnection, random.Random], None], chance: random.Random
    ) -> None:
        while not self._enough.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                for _ in range(chance.randrange(1, 30)):
                    kind(connection, chance)
                    self.asked += 1
                    if self._enough.is_set():
                        break
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(f"{kind.__name__}: {error!r}")
            finally:
                connection.close()

    def _good(self, connection: http.client.HTTPConnection, chance: random.Random) -> None:
        texts = [self._text(chance) for _ in range(chance.choice((1, 1, 1, 4)))]
        form = chance.choice(("float", "base64"))
        status, body = _ask(connection, {"model": "minilm", "input": texts, "encoding_format": form})
        assert status == 200
        assert len(json.loads(body)["data"]) == len(texts)

    def _wrong(self, connection: http.client.HTTPConnection, chance: random.Random) -> None:
        bodies = (
            {"model": f"bogus-{chance.random()}", "input": "a"},
            {"model": "minilm", "input": []},
            {"model": "minilm", "input": "a " * 3000},
            {"model": "minilm", "input": ["a"] * 2049},
            "no object",
        )
        status, _ = _ask(connection, chance.choice(bodies))
        assert status in {400, 404}

    def _leaving(self, connection: http.client.HTTPConnection, chance: random.Random) -> None:
        connection.close()
        body = json.dumps({"model": "minilm", "input": [self._text(chance)] * 8}).encode()
        connection.putrequest("POST", "/v1/embeddings")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        connection.send(body[: chance.choice((len(body) // 2, len(body)))])
        self._enough.wait(chance.random() * 0.02)
        connection.close()

    def _text(self, chance: random.Random) -> str:
        return " ".join(chance.choices(WORDS, k=chance.choice(self._lengths)))

    def _scrape(self, connection: http.client.HTTPConnection, chance: random.Random) -> None:
        connection.request(
            "GET", chance.choice(("/metrics", "/v1/models", "/readyz", "/v1/config", "/nowhere"))
        )
        reply = connection.getresponse()
        reply.read()
        assert reply.status in {200, 404}
        self._enough.wait(0.1)


def _ask(connection: http.client.HTTPConnection, body: object) -> tuple[int, bytes]:
    connection.request("POST", "/v1/embeddings", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    return reply.status, reply.read()


def _warm(port: int, lengths: Sequence[int]) -> None:
    """Ask for batches of every size the traffic makes: the engine keeps something for each shape it met."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for words in lengths:
        for count in range(1, 33):
            text = " ".join(WORDS[at % len(WORDS)] for at in range(words))
            inputs = [text + f" {number}" for number in range(count)]
            assert _ask(connection, {"model": "minilm", "input": inputs})[0] == 200
    connection.close()


def _growth(pid: int, seconds: float) -> float:
    """Return by what share a straight line through memory rises in this time."""
    begun = time.monotonic()
    at: list[float] = []
    sizes: list[int] = []
    while (now := time.monotonic() - begun) < seconds:
        at.append(now)
        sizes.append(_resident(pid))
        threading.Event().wait(min(1.0, seconds / 60))
    slope, _ = np.polyfit(at, sizes, 1)
    return float(slope * (at[-1] - at[0]) / sizes[0])


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stops_growing_under_mixed_traffic(slow: bool) -> None:
    seconds = SLOW_SECONDS if slow else SECONDS
    with Process("--limit", "drain_notice_seconds=0.01", "--limit", "keep_alive_seconds=5") as server:
        server.until("ready")
        lengths = range(1, 100) if slow else (2, 8, 60)
        _warm(server.port, lengths)
        traffic = Traffic(server.port, seed=5, lengths=lengths)
        threading.Event().wait(seconds / 3)
        growths = []
        while len(growths) < WINDOWS and (not growths or growths[-1] >= GROWTH):
            growths.append(_growth(server.running.pid, seconds * 2 / 3))
            print(f"{traffic.asked} requests, growth {growths[-1]:+.3%}")
        traffic.stop()
        assert traffic.failures == []
        assert growths[-1] < GROWTH
        server.signal()
        assert server.wait() == 0
        errors = [
            line for line in server.lines if line.get("level") == "error" or line.get("status", 0) >= 500
        ]
        assert errors == []
