from __future__ import annotations

import io
import json
import logging
import re
import threading
from typing import Any

import pytest

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.server import logs
from vecmill.server.call import Noted

PLANTED = "planted text that must not show"


def _written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _access(noted: Noted, status: int = 200) -> None:
    logs.access(
        request_id="req-1",
        method="POST",
        route="embeddings",
        status=status,
        seconds=0.0123456,
        caller="key:3f9a",
        noted=noted,
    )


def test_request_is_one_line_of_json() -> None:
    stream = io.StringIO()
    with logs.to_stderr(stream=stream):
        _access(Noted(model="minilm", version="2", texts=3, tokens=21, cached=1, truncated=0))
    (line,) = _written(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "req-1",
        "method": "POST",
        "route": "embeddings",
        "status": 200,
        "ms": 12.346,
        "caller": "key:3f9a",
        "model": "minilm",
        "version": "2",
        "texts": 3,
        "tokens": 21,
        "cached": 1,
        "truncated": 0,
    }


def test_refusal_names_its_code_and_no_model() -> None:
    stream = io.StringIO()
    with logs.to_stderr(stream=stream):
        _access(Noted(code="model_not_found"), status=404)
    (line,) = _written(stream)
    assert line["code"] == "model_not_found"
    assert "model" not in line


def test_other_records_become_lines_with_their_logger() -> None:
    stream = io.StringIO()
    with logs.to_stderr(stream=stream):
        logging.getLogger("vecmill.jobs.store").warning("%d rows were skipped", 3)
    (line,) = _written(stream)
    assert (line["level"], line["event"], line["logger"]) == (
        "warning",
        "3 rows were skipped",
        "vecmill.jobs.store",
    )


def test_foreign_exception_shows_type_and_place_but_no_words() -> None:
    stream = io.StringIO()
    with logs.to_stderr(stream=stream):
        try:
            raise ValueError(PLANTED)
        except ValueError:
            logging.getLogger("vecmill.server").exception("request %s failed", "req-1")
    (line,) = _written(stream)
    assert line["error"]["type"] == "ValueError"
    assert "test_logs.py" in line["error"]["where"][0]
    assert PLANTED not in stream.getvalue()


def test_own_exception_shows_its_message() -> None:
    stream = io.StringIO()
    with logs.to_stderr(stream=stream):
        try:
            raise CorruptFileError("keys.json is no JSON")
        except CorruptFileError:
            logging.getLogger("vecmill.server").exception("reload")
    assert _written(stream)[0]["error"]["message"] == "keys.json is no JSON"


def test_level_decides_and_loggers_are_left_as_they_were() -> None:
    stream, logger = io.StringIO(), logging.getLogger("vecmill")
    before = (logger.handlers, logger.propagate, logger.level)
    with logs.to_stderr("warning", stream=stream):
        _access(Noted())
        logs.event("trouble", level=logging.WARNING, count=2)
    assert [line["event"] for line in _written(stream)] == ["trouble"]
    assert (logger.handlers, logger.propagate, logger.level) == before
    with pytest.raises(InputError, match="debug, info, warning, error"), logs.to_stderr("loud"):
        pass


class Blocked(io.StringIO):
    """A pipe nobody reads until `flow` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = threading.Event()
        self.asked = threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        self.flow.wait(30)
        return super().write(text)


def test_reader_who_does_not_read_holds_nobody_up_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    stream = Blocked()
    with logs.to_stderr(stream=stream):
        logs.event("first")
        assert stream.asked.wait(30)
        for _ in range(25):
            logs.event("more")
        stream.flow.set()
    events = [line["event"] for line in _written(stream)]
    assert events == ["first", *["more"] * 10, "log lines dropped"]
    assert _written(stream)[-1]["count"] == 15
