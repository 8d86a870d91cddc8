"""One JSON line per request and event: ids, counts and times, never a text, key, header or query."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import orjson

from vecmill.core.errors import Error, InputError
from vecmill.server.call import Noted

log = logging.getLogger("vecmill.server")

LEVELS = ("debug", "info", "warning", "error")

MAX_WAITING = 20_000
"""Lines that may wait for a reader of stderr who is slow; later ones are counted instead."""

_TOGETHER_SECONDS = 0.02
"""How long lines are collected before they are written at once."""

_NAMES = ("vecmill", "uvicorn", "asyncio")
"""Loggers whose records become lines."""


def access(
    *, request_id: str, method: str, route: str, status: int, seconds: float, caller: str, noted: Noted
) -> None:
    """Write the line of an answered request; a few microseconds.

    Args:
        request_id: As the answer says it.
        method: As sent.
        route: The route's name; never the path a client sent.
        status: HTTP status; 499 where the client left.
        seconds: From the end of the headers to the end of the answer.
        caller: The id of who asked, never a key.
        noted: Model and counts.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "request_id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 3),
        "caller": caller,
    }
    if noted.model:
        fields["model"] = noted.model
        fields["version"] = noted.version
    if noted.texts:
        fields["texts"] = noted.texts
        fields["tokens"] = noted.tokens
        fields["cached"] = noted.cached
        fields["truncated"] = noted.truncated
    if noted.code:
        fields["code"] = noted.code
    if noted.warning:
        fields["warning"] = noted.warning
    _handle(logging.INFO, "request", fields)


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line about the server itself.

    Args:
        name: What happened: "ready".
        level: How serious it is.
        fields: Numbers and words of our own.
    """
    if log.isEnabledFor(level):
        _handle(level, name, fields)


def _handle(level: int, message: str, fields: dict[str, Any]) -> None:
    record = logging.LogRecord(log.name, level, __file__, 0, message, (), None)  # finding the caller costs
    record.fields = fields
    log.handle(record)


class JsonFormatter(logging.Formatter):
    """Turns a record into one line of JSON.

    Of an exception that is not ours only type and place are told: its message may hold a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        whole, part = divmod(record.created, 1)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(part * 1000):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if fields is None:
            line["logger"] = record.name
        else:
            line.update(fields)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = told(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


def told(error: BaseException) -> dict[str, Any]:
    """Return what may be said of an exception: type and places, and the message only of our own."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    said: dict[str, Any] = {
        "type": type(error).__name__,
        "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, Error):
        said["message"] = str(error)
    if error.__cause__ is not None:
        said["cause"] = type(error.__cause__).__name__
    return said


class Lines(logging.Handler):
    """Writes records from a thread of its own, so that a slow terminal or pipe holds no request up.

    Args:
        stream: Where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._some = threading.Event()
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write, name="vecmill-log", daemon=True)
        self._writer.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record without a lock: adding to the queue is one step."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(self.format(record))
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what waits, for at most a second, and end the thread."""
        self._ending.set()
        self._some.set()
        self._writer.join(timeout=1.0)
        super().close()

    def _write(self) -> None:
        while True:
            self._some.wait()
            ending = self._ending.wait(_TOGETHER_SECONDS)
            self._some.clear()
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines.append(orjson.dumps({"event": "log lines dropped", "count": dropped}).decode())
            if lines:
                with contextlib.suppress(OSError, ValueError):  # nobody reads: nothing is left to tell it to
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()
            if ending:
                return


@contextmanager
def to_stderr(level: str = "info", *, stream: TextIO | None = None) -> Iterator[None]:
    """Write the lines of this process's server while the context lasts.

    Args:
        level: One of `LEVELS`.
        stream: None: stderr.

    Raises:
        InputError: Such a level does not exist.
    """
    if level not in LEVELS:
        raise InputError(f"log level {level!r} does not exist: {', '.join(LEVELS)}")
    lines = Lines(stream or sys.stderr)
    loggers = [logging.getLogger(name) for name in _NAMES]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [lines], False
            logger.setLevel(level.upper() if logger.name == "vecmill" else logging.WARNING)
        yield
    finally:
        for logger, (handlers, propagate, old) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(old)
        lines.close()
