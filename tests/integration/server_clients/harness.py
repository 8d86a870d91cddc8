"""Servers and clients as processes, for the tests beside this folder; loaded with `runpy`."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

PATIENCE = 120.0
"""Seconds until something that should happen is given up: no test expects it to take long."""


@dataclass(slots=True)
class Serving:
    """A server that runs.

    Attributes:
        origin: "http://127.0.0.1:PORT".
        process: The server itself.
        log: What it wrote so far on stderr.
    """

    origin: str
    process: subprocess.Popen[str]
    _log: Path
    ended: bool = field(default=False)

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """End it as a lack of power would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(*, env: Mapping[str, str] | None = None, **options: Any) -> Iterator[Serving]:
    """Serve from a process; `options` are the fields of `Options` as JSON has them."""
    command = [sys.executable, str(FOLDER / "serve_process.py"), json.dumps(options)]
    with _process(command, env) as (process, log):
        assert process.stdout is not None
        origin = process.stdout.readline().strip()
        assert origin, log.read_text("utf-8", "replace")
        yield Serving(origin, process, log)


@contextmanager
def vecmill_serve(
    *arguments: str, env: Mapping[str, str] | None = None, port: int | None = None
) -> Iterator[Serving]:
    """Run `vecmill serve ARGUMENTS` and wait until it is ready."""
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "vecmill", "serve", *arguments, "--port", str(port)]
    command += ["--limit", "drain_notice_seconds=0.01"]  # nobody balances load here
    with _process(command, env, interrupt=True) as (process, log):
        running = Serving(f"http://127.0.0.1:{port}", process, log)
        wait_ready(running)
        yield running


@contextmanager
def _process(
    command: Sequence[str], env: Mapping[str, str] | None, *, interrupt: bool = False
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with log.open("w") as written:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                text=True,
                env={**os.environ, **(env or {})},
                cwd=folder,
            )
        try:
            yield process, log
        finally:
            _end(process, interrupt=interrupt)


def _end(process: subprocess.Popen[str], *, interrupt: bool) -> None:
    """End a server as it likes: by the end of its stdin, or by Ctrl-C."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None and interrupt:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def wait_ready(running: Serving) -> None:
    """Return when the server says that it is ready."""
    give_up = time.monotonic() + PATIENCE
    while True:
        assert running.process.poll() is None, f"the server ended:\n{running.log[-3000:]}"
        assert time.monotonic() < give_up, f"the server is not ready:\n{running.log[-3000:]}"
        try:
            with urllib.request.urlopen(f"{running.origin}/readyz", timeout=PATIENCE) as reply:  # noqa: S310
                if reply.status == 200:
                    return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.05)  # polling a process


@dataclass(frozen=True, slots=True)
class Got:
    """An answer: status, headers by lower-case name, the body's bytes."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error


def request(
    origin: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    key: str | None = None,
) -> Got:
    """Send one request on a connection of its own; `body` is bytes or what becomes JSON."""
    host, port = origin.removeprefix("http://").rsplit(":", 1)
    given = dict(headers or {})
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        given.setdefault("content-type", "application/json")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request(method, path, body, given)
        reply = connection.getresponse()
        raw = reply.read()
        return Got(reply.status, {name.lower(): value for name, value in reply.getheaders()}, raw)
    finally:
        connection.close()


def free_port() -> int:
    """Return a port nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def openai_folders() -> dict[int, Path | None]:
    """Return where each major of the official client is: None stands for this environment itself.

    `VECMILL_TEST_OPENAI` lists folders made by `pip install --target FOLDER openai==…`.
    """
    found: dict[int, Path | None] = {}
    own = [d.version for d in distributions(name="openai")]
    if own:
        found[int(own[0].split(".")[0])] = None
    for name in filter(None, os.environ.get("VECMILL_TEST_OPENAI", "").split(os.pathsep)):
        folder = Path(name).resolve()
        versions = [d.version for d in distributions(name="openai", path=[str(folder)])]
        assert versions, f"VECMILL_TEST_OPENAI: there is no openai in {folder}"
        found.setdefault(int(versions[0].split(".")[0]), folder)
    return found


def run_client(
    script: str,
    asked: Mapping[str, Any],
    *,
    packages: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a script of this folder with a JSON object on stdin; return the object it prints."""
    environment = {**os.environ, **(env or {})}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        [sys.executable, str(FOLDER / script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tempfile.gettempdir(),
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{script} ended with {done.returncode}\n{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
