"""Servers under measurement: started on a core of their own, asked until the first vector, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from vecmill.bench import peers
from vecmill.bench.serve_http import Address
from vecmill.bench.serve_shapes import Shape
from vecmill.core.config import environment
from vecmill.core.errors import ProviderError

_PINNED = """
import json, os, sys
cores = json.loads(sys.argv[1])
if cores and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command on some cores; what it starts inherits them."""

_START_SECONDS = 180.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started.

    Attributes:
        name: As results show it.
        words: The command; "{port}" stands for the port it shall listen at.
        path: Of its embeddings route.
        shape: How it is asked.
        cores: Where it runs; None: anywhere.
        environment: Variables it has besides.
    """

    name: str
    words: Sequence[str]
    path: str
    shape: Shape
    cores: list[int] | None
    environment: Mapping[str, str] = field(default_factory=dict)


class ServerProcess:
    """A running server; use `with`.

    Args:
        command: How it is started.
        first: The text of the first request.

    Attributes:
        url: Of its embeddings route.
        start: Seconds from the start of the process to its first vector.

    Raises:
        ProviderError: It ended, or gave no vector within three minutes.
    """

    def __init__(self, command: ServerCommand, *, first: str) -> None:
        self.command = command
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}{command.path}"
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        words = [word.replace("{port}", str(port)) for word in command.words]
        began = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            [str(peers.this_python()), "-P", "-c", _PINNED, json.dumps(command.cores), *words],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=_environment(command),
        )
        try:
            self._wait(Address.of(self.url), command.shape.body([first]), began)
        except BaseException:
            self.close()
            raise
        self.start = time.perf_counter() - began

    @property
    def cpu(self) -> float | None:
        """CPU seconds of the process so far, all threads; None where the system does not tell."""
        try:
            words = Path(f"/proc/{self._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            return None
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_bytes(self) -> int | None:
        """The most memory the process held; None where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text("ascii", "replace").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

    def close(self) -> None:
        """End the process, politely first."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wait(self, address: Address, body: bytes, began: float) -> None:
        """Ask until a vector comes."""
        while time.perf_counter() - began < _START_SECONDS:
            if self._process.poll() is not None:
                raise self._failure(f"ended with status {self._process.returncode}")
            try:
                with OneByOne(address) as client:
                    status, found = client.post(body)
                if status == 200:
                    self.command.shape.read(found, {}, 1)
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.005)
        raise self._failure(f"gave no vector within {_START_SECONDS:g} s")

    def _failure(self, what: str) -> ProviderError:
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return ProviderError(
            f"{self.command.name} {what}: {said[-1] if said else 'it said nothing'}",
            provider=self.command.name,
        )


class OneByOne:
    """A bare client on one connection: one request, one answer with a length. Use `with`.

    It costs a few microseconds where an HTTP library costs hundreds, so that the server's part shows.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket = socket.create_connection((address.host, address.port), timeout=60.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, body: bytes) -> bytes:
        """Return the bytes of a request."""
        head = (
            f"POST {self._address.target} HTTP/1.1\r\nhost: {self._address.shown}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Send a body and return status and body of the answer."""
        answer = self.exchange(self.request(body))
        head, _, found = answer.partition(b"\r\n\r\n")
        return int(head[9:12]), found

    def exchange(self, request: bytes) -> bytes:
        """Send a request's bytes and return the answer's.

        Raises:
            OSError: The connection ended, or the answer has no length.
        """
        self._socket.sendall(request)
        found, missing = b"", 1
        while missing > 0:
            piece = self._socket.recv(262_144)
            if not piece:
                raise OSError("the server closed the connection")
            found += piece
            end = found.find(b"\r\n\r\n")
            if end >= 0:
                missing = end + 4 + _length(found[:end]) - len(found)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise OSError("the answer has no length")
    return int(lower[at + 17 :].partition(b"\r\n")[0])


def _environment(command: ServerCommand) -> dict[str, str]:
    """Return a server's environment: no network, no telemetry, as many threads as cores."""
    kept = {
        name: value
        for name, value in environment().items()
        if not name.startswith(("VECMILL_SERVE_", "INFINITY_", "PYTHON"))
    }
    cores = str(len(command.cores)) if command.cores else None
    threads: dict[str, Any] = dict.fromkeys(_THREADS, cores) if cores else {}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return {**kept, **threads, **offline, "TOKENIZERS_PARALLELISM": "false", **command.environment}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
