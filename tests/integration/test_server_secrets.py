"""A planted key and a planted text go through every error path and show up nowhere they do not belong."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import BadReplyError, CorruptFileError, UnavailableError
from vecmill.server.access import Right
from vecmill.server.app import App, create_app
from vecmill.server.call import Answer, Call
from vecmill.server.keys import KeyFile, masked
from vecmill.server.options import Limits, ModelSource, Options
from vecmill.server.routing import Route, Table
from vecmill.server.run import served_in_thread
from vecmill.testing.scenarios import Model, Scenario
from vecmill.testing.simulator import simulator_thread
from vecmill.testing.simulator_faults import Fault

TEXT = "planted-text-that-must-not-show"
WRONG = "vm-planted-WRONG-key-that-must-not-show-0123"
UPSTREAM = "sk-planted-upstream-key-that-must-not-show"
QUERY = "planted-query-that-must-not-show"


@dataclass(slots=True)
class Asker:
    """Asks a server and keeps every answer."""

    origin: str
    secret: str
    answers: list[tuple[int, bytes]] = field(default_factory=list)

    def ask(self, body: Any, *, path: str = "/v1/embeddings", key: str | None = None, **headers: str) -> int:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.origin.removeprefix("http://"), timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given.setdefault("content-type", "application/json")
        if key is not None or self.secret:
            given["authorization"] = f"Bearer {self.secret if key is None else key}"
        try:
            connection.request("POST", path, body=raw, headers=given)
            reply = connection.getresponse()
            self.answers.append((reply.status, repr(reply.getheaders()).encode() + reply.read()))
        finally:
            connection.close()
        return self.answers[-1][0]

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.origin.removeprefix("http://"), timeout=60)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {self.secret}"})
            return connection.getresponse().read()
        finally:
            connection.close()


async def boom(call: Call) -> Answer:
    """Fail as a library may: with the text in the message."""
    body = json.loads(await call.body(10_000))
    raise RuntimeError(f"cannot tokenize {body['input']!r} for {call.headers['authorization']}")


async def boom_bad_reply(call: Call) -> Answer:
    raise BadReplyError("the reply has 3 vectors for 4 texts")


async def boom_unavailable(call: Call) -> Answer:
    raise UnavailableError("nobody answers", retry_after=1.0)


async def never(call: Call) -> Answer:
    await call.body(10_000)
    await asyncio.Event().wait()
    raise AssertionError


BOOMS = {"/boom": boom, "/bad-reply": boom_bad_reply, "/unavailable": boom_unavailable, "/never": never}


@contextmanager
def asked(app: App, secret: str) -> Iterator[Asker]:
    routes = app.server.table.routes
    more = [Route("POST", path, handler, Right.EMBED, path[1:]) for path, handler in BOOMS.items()]
    app.server.table = Table([*routes, *more])
    with served_in_thread(app) as origin:
        yield Asker(origin, secret)


def test_neither_key_nor_text_shows_in_any_error_log_or_metric(
    own_home: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    file = KeyFile(own_home / "keys.json")
    secret, _ = file.add("all", rights=[Right.EMBED, Right.READ, Right.METRICS, Right.ADMIN])
    reader, _ = file.add("reader", rights=[Right.READ])
    limits = Limits(
        max_body_bytes=20_000, key_tokens_per_minute=400, failed_keys_per_minute=3, max_request_tokens=300
    )
    good = {"model": "minilm", "input": TEXT}
    with asked(create_app(Options(limits=limits), settings=load_settings()), secret) as to:
        statuses = [
            to.ask(good),
            to.ask(f'{{"input": "{TEXT}", '.encode()),
            to.ask(f'"{TEXT}"'.encode()),
            to.ask({**good, "input": {TEXT: TEXT}}),
            to.ask({**good, "input": [TEXT, 5]}),
            to.ask({**good, "input": [TEXT, ""]}),
            to.ask({**good, "dimensions": TEXT}),
            to.ask({**good, "encoding_format": TEXT}),
            to.ask({**good, "input_type": TEXT}),
            to.ask({**good, "input": " ".join([TEXT] * 200)}),
            to.ask({**good, "input": [TEXT] * 200}),
            to.ask({**good, "input": TEXT * 2000}),
            to.ask(good, content_type="text/plain"),
            to.ask(good, x_request_timeout_ms=TEXT),
            to.ask(good, x_request_timeout_ms="1", path="/never"),
            to.ask(good, key=WRONG),
            to.ask(good, key=WRONG, api_key=secret),
            to.ask(good, key="", api_key=WRONG),
            to.ask(good, key=reader),
            *(to.ask(good, key=WRONG) for _ in range(5)),
            to.ask(good, host=f"{TEXT}.example:80:80"),
            to.ask(good, origin=f"https://{TEXT}.example"),
            to.ask(good, path=f"/v1/embeddings?api-key={QUERY}"),
            to.ask(good, path=f"/v1/tokenize?text={QUERY}"),
            *(to.ask(good, path=path) for path in BOOMS if path != "/never"),
            *(to.ask({**good, "input": [TEXT] * 30}) for _ in range(4)),
        ]
        metrics = to.get("/metrics")
    for expected in (200, 400, 401, 403, 413, 415, 429, 500, 502, 503, 504):
        assert expected in statuses, f"no {expected} among {statuses}"
    said = capfd.readouterr()
    logged = "\n".join((caplog.text, *(repr(vars(record)) for record in caplog.records)))
    assert "boom" in logged or "RuntimeError" in logged, "the failure left no trace at all"
    places = {
        "log": logged,
        "stdout": said.out,
        "stderr": said.err,
        "metrics": metrics.decode(),
        "key file": file.path.read_text(),
    }
    for status, raw in to.answers:
        if status >= 400:
            places[f"answer {status} {raw[:200]!r}"] = raw.decode()
    for planted in (TEXT, WRONG, secret, reader, QUERY):
        for place, content in places.items():
            assert planted not in content.replace(masked(planted), ""), f"{planted[:12]}… in {place}"
    assert len(metrics) > 1000


def test_the_key_for_a_provider_and_the_texts_stay_out_of_a_proxys_errors(
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM)
    faults = (Fault("401", at=range(1, 3)), Fault("500", at=range(3, 99)))
    scenario = Scenario(models={"tiny": Model(8)}, keys=(UPSTREAM,), faults=faults)
    with simulator_thread(scenario) as simulator:
        (own_home / "vecmill.toml").write_text(
            f'[profiles.up]\nprovider = "openai"\nmodel = "tiny"\nbase_url = "{simulator.url}"\n'
            'key = "env:UPSTREAM_KEY"\n'
        )
        options = Options(models=(ModelSource("up", "up"),), limits=Limits(request_seconds=3.0))
        with asked(create_app(options, settings=load_settings()), "") as to:
            statuses = [to.ask({"model": "up", "input": [f"{TEXT} {i}"]}) for i in range(4)]
            metrics = to.get("/metrics").decode()
    assert max(statuses) >= 500
    said = capfd.readouterr()
    logged = "\n".join((caplog.text, *(repr(vars(record)) for record in caplog.records)))
    answers = "".join(raw.decode() for status, raw in to.answers if status >= 400)
    for planted in (TEXT, UPSTREAM):
        for place in (logged, said.out, said.err, metrics, answers):
            assert planted not in place
    assert simulator.url not in answers, "who is behind the proxy is nobody's business"


def test_a_process_killed_while_adding_keys_leaves_a_whole_file(own_home: Path, slow: bool) -> None:
    file = KeyFile(own_home / "keys.json")
    file.add("first")
    program = (
        "import sys, pathlib\n"
        "from vecmill.server.keys import KeyFile\n"
        "file = KeyFile(pathlib.Path(sys.argv[1]))\n"
        "for i in range(100_000):\n"
        "    secret, key = file.add(f'{sys.argv[2]}-{i}')\n"
        "    print(key.id, flush=True)\n"
        "    if i % 3 == 2:\n"
        "        file.remove(key.id)\n"
        "        print('-' + key.id, flush=True)\n"
    )
    chance = random.Random(2026)
    told: set[str] = set()
    for run in range(50 if slow else 10):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(file.path), str(run)], stdout=subprocess.PIPE, env=os.environ
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(chance.randint(1, 12))]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        for line in lines:
            if line.endswith(b"\n"):
                name = line.decode().strip()
                told = told - {name[1:]} if name.startswith("-") else told | {name}
        try:
            found = {key.id for key in file.read()}
        except CorruptFileError as error:  # pragma: no cover - what must not be
            pytest.fail(f"run {run}, seed 2026: {error}")
        missing = told - found
        assert len(missing) <= 1, f"run {run}, seed 2026"  # at most one was removed and not told any more
        told = found
        assert all(key.name for key in file.read())
    file.add("last")  # neither a lock nor a leftover is in the way
    assert [path.name for path in own_home.iterdir() if path.name.endswith(".vecmill-tmp")] == []


def test_a_broken_request_line_says_nothing_of_itself(
    own_home: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    KeyFile(own_home / "keys.json").add("one")
    with served_in_thread(create_app(Options(), settings=load_settings())) as origin:
        host, port = origin.removeprefix("http://").split(":")
        for raw in (
            f"GET /{TEXT} HTTP/9.9\r\nAuthorization: Bearer {WRONG}\r\n\r\n",
            f"{TEXT}\r\n\r\n",
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {WRONG}\r\n\r\n",
            f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{TEXT}",
        ):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(raw.encode())
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := connection.recv(65_536):
                    answer += piece
            assert TEXT.encode() not in answer
            assert WRONG.encode() not in answer
    said = capfd.readouterr()
    for place in (caplog.text, said.out, said.err):
        assert TEXT not in place
        assert WRONG not in place
