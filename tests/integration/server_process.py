"""`vecmill serve` as a process of its own; run with `runpy`."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from typing import Any

PATIENT = 60.0
"""Seconds after which a test gives a process up."""


class Process:
    """A server and what it says.

    Attributes:
        lines: The JSON lines of its log so far.
        plain: Everything else on stderr.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "vecmill", "serve", "--port", "0", *arguments]
        self.running = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.lines: list[dict[str, Any]] = []
        self.plain: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *gone: object) -> None:
        self.running.kill()
        self.wait()
        if self.running.stderr is not None:
            self.running.stderr.close()

    def until(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log."""
        with self._came:
            if not self._came.wait_for(lambda: self._said(event) or not self._reader.is_alive(), PATIENT):
                raise TimeoutError(f"it never said {event!r}: {self.lines} {self.plain}")
            found = self._said(event)
        if not found:
            raise EOFError(f"it ended without saying {event!r}: {self.lines} {self.plain}")
        return found[0]

    @property
    def port(self) -> int:
        return int(self.until("listening")["origin"].rsplit(":", 1)[1])

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.running.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        code = self.running.wait(PATIENT)
        self._reader.join(PATIENT)
        return code

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask once, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENT)
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def _said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == event]

    def _read(self) -> None:
        assert self.running.stderr is not None
        for raw in self.running.stderr:
            with self._came:
                try:
                    self.lines.append(json.loads(raw))
                except ValueError:
                    self.plain.append(raw.decode())
                self._came.notify_all()
        with self._came:
            self._came.notify_all()
