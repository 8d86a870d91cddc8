"""What `vecmill bench server` measures the server against, each in a process of its own.

A script: `python -P server_worker.py engine|echo OPTIONS`, JSON lines on its pipes as `worker.py` has them.
`engine` is this package without HTTP; `echo` answers every request with bytes it was given, at once: what
client and loopback alone cost. Requests:

    {"do": "embed", "texts": FILE}          -> {"wall": s, "cpu": s, "rss_bytes": n, "tokens": n}
                                               with "call": n, so many texts a call, else all in one
    {"do": "save", "to": FILE}              -> {"saved": n}        vectors of the last "embed", as npy
    {"do": "alone", "text": T, "times": n}  -> {"seconds": [s, …]} one call after the other
    {"do": "answer", "file": FILE}          -> {"port": p}         of the echo: what to answer
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vecmill.bench import worker
from vecmill.embedder.embedder import Embedder


class Engine:
    """This package in one process: `Embedder.embed`, as a program calls it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._embedder = Embedder(options["model"], threads=options["threads"])
        self._vectors = np.empty((0, 0), np.float32)
        self._embedder.embed([options["first"]])

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says."""
        match request["do"]:
            case "embed":
                texts = json.loads(Path(request["texts"]).read_text("utf-8"))
                return self._embed(texts, request.get("call") or len(texts))
            case "alone":
                return {"seconds": self._alone(request["text"], request["times"])}
            case _:
                np.save(request["to"], self._vectors)
                return {"saved": len(self._vectors)}

    def _embed(self, texts: list[str], call: int) -> dict[str, Any]:
        cpu, wall = time.process_time(), time.perf_counter()
        found = [self._embedder.embed(texts[at : at + call]) for at in range(0, len(texts), call)]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._vectors = np.concatenate([one.vectors for one in found])
        tokens = sum(one.usage.tokens for one in found)
        return {"wall": wall, "cpu": cpu, "rss_bytes": worker.peak_bytes(), "tokens": tokens}

    def _alone(self, text: str, times: int) -> list[float]:
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            self._embedder.embed([text])
            seconds.append(time.perf_counter() - began)
        return seconds


class Echo:
    """Answers every request with the same bytes; a request must come in one piece."""

    def __init__(self, options: dict[str, Any]) -> None:  # noqa: ARG002 - every system has them
        self._reply = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the bytes to answer with."""
        self._reply = Path(request["file"]).read_bytes()
        return {"port": self._listener.getsockname()[1]}

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has gone
            while connection.recv(65_536):
                connection.sendall(self._reply)


SYSTEMS: dict[str, Callable[[dict[str, Any]], Engine | Echo]] = {"engine": Engine, "echo": Echo}


def serve(kind: str, options: dict[str, Any], requests: TextIO, replies: TextIO) -> None:
    """Answer until the pipe ends."""
    worker.pin(options["cores"])
    system = SYSTEMS[kind](options)
    versions = {"vecmill": worker.version_of("vecmill"), "openvino": worker.version_of("openvino")}
    ready = {"ready": True, "cpu": time.process_time(), "rss_bytes": worker.peak_bytes()}
    worker.say(replies, {**ready, "versions": versions})
    for line in requests:
        worker.say(replies, system.answer(json.loads(line)))


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]), sys.stdin, worker.answers())
