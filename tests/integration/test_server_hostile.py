"""Hostile requests against the whole server, with a good client beside them that must not notice."""

from __future__ import annotations

import http.client
import json
import os
import random
import runpy
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vecmill.server.app import create_app
from vecmill.server.options import Limits, Options
from vecmill.server.run import served_in_thread

raw = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "server" / "raw_http.py"))
process = runpy.run_path(str(Path(__file__).with_name("server_process.py")))
Raw, Process = raw["Raw"], process["Process"]

MIB = 1 << 20

LIMITS = Limits(header_seconds=1.0, body_idle_seconds=1.0, body_seconds=3.0, keep_alive_seconds=2.0)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VECMILL_HOME", str(tmp_path_factory.mktemp("hostile-home")))
        with served_in_thread(create_app(Options(limits=LIMITS))) as origin:
            yield origin


class Good:
    """A client that asks the same again and again and wants the same answer each time."""

    def __init__(self, port: int) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._port = port
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Good:
        self._thread.start()
        return self

    def __exit__(self, *gone: object) -> None:
        self._enough.set()
        self._thread.join(60)
        assert self.failures == []
        assert self.answered > 0

    def _ask(self) -> None:
        body = json.dumps({"model": "minilm", "input": "the good client's text"})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        first = b""
        while True:
            try:
                connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                got = reply.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            first = first or got
            if reply.status != 200 or got != first:
                self.failures.append(f"status {reply.status}")
            self.answered += 1
            if self._enough.wait(0.005):
                connection.close()
                return


@pytest.fixture
def good(origin: str) -> Iterator[None]:
    with Good(int(origin.rsplit(":", 1)[1])):
        yield


def _post(origin: str, body: bytes, *headers: str, path: str = "/v1/embeddings") -> Any:
    with Raw(origin) as client:
        client.post(body, "content-type: application/json", *headers, path=path)
        return client.reply()


def _refused(reply: Any, *statuses: int) -> bool:
    error = reply.error
    assert sorted(error) == ["code", "message", "param", "type"]
    assert reply.headers["x-request-id"]
    return reply.status in statuses


BODIES = {
    "nested arrays": b'{"model":"minilm","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested in an unknown field": b'{"model":"minilm","input":"a","x":'
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}",
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lone surrogate": rb'{"model":"minilm","input":"\ud800"}',
    "1e999": b'{"model":"minilm","input":"a","dimensions":1e999}',
    "NaN": b'{"model":"minilm","input":"a","dimensions":NaN}',
    "many digits": b'{"model":"minilm","input":"a","dimensions":' + b"9" * 5000 + b"}",
    "bool": b'{"model":"minilm","input":"a","dimensions":true}',
    "word": b'{"model":"minilm","input":"a","dimensions":"3"}',
    "fractions": b'{"model":"minilm","input":[1.5]}',
    "ids outside": b'{"model":"minilm","input":[99999999999]}',
    "negative ids": b'{"model":"minilm","input":[-1]}',
    "mixed": b'{"model":"minilm","input":["a",1]}',
    "empty": b'{"model":"minilm","input":""}',
    "no inputs": b'{"model":"minilm","input":[]}',
    "too many": json.dumps({"model": "minilm", "input": ["a"] * 2049}).encode(),
    "a million characters": json.dumps({"model": "minilm", "input": "a" * 1_000_001}).encode(),
    "no JSON": b"\x00\xff\xfe",
    "half": b'{"model":"minilm","input":',
    "nothing": b"",
    "not UTF-8": b'{"model":"minilm","input":"\xff\xfe"}',
    "null": b"null",
    "array": b"[]",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_body_that_is_wrong_is_answered_400(origin: str, good: None, body: bytes) -> None:
    assert _refused(_post(origin, body), 400)


def test_most_inputs_of_most_tokens_are_refused_before_any_work(origin: str, good: None) -> None:
    text = "word " * 1600  # 8 KB
    body = json.dumps({"model": "minilm", "input": [text] * 2048}).encode()
    reply = _post(origin, body)
    assert _refused(reply, 400, 413)


def test_declared_body_above_the_limit_is_refused_unread(origin: str, good: None) -> None:
    with Raw(origin) as client:
        client.send(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 999999999999\r\n\r\n"
        )
        reply = client.reply()
        assert _refused(reply, 413)
        assert (reply.error["code"], reply.headers["connection"]) == ("content_too_large", "close")


def test_chunked_body_above_the_limit_is_refused_while_it_arrives(origin: str, good: None) -> None:
    with Raw(origin) as client:
        client.send(b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        sender = threading.Thread(target=lambda: all(client.send(chunk) for _ in range(400)))
        sender.start()
        assert _refused(client.reply(), 413)
        sender.join()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../../../etc/passwd",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models//etc/passwd",
        "/v1/models/" + "a" * 5000,
        "/../../etc/passwd",
        "/docs/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/minilm%0d%0ax-a:%20b",
    ],
)
def test_path_that_climbs_finds_nothing(origin: str, good: None, path: str) -> None:
    with Raw(origin) as client:
        client.get(path)
        reply = client.reply()
        assert _refused(reply, 400, 404)
        assert b"root:" not in reply.body
        assert "x-a" not in reply.headers


@pytest.mark.parametrize(
    "name", ["../minilm", "/etc/passwd", "minilm\\u0000", "\\r\\nx: y", "a" * 100_000, "", "\\u202e"]
)
def test_model_name_that_is_none_is_not_found(origin: str, good: None, name: str) -> None:
    reply = _post(origin, f'{{"model":"{name}","input":"a"}}'.encode())
    assert _refused(reply, 400, 404)
    assert len(reply.body) < 1000


def test_ten_thousand_bogus_models_leave_the_series_as_they_were(origin: str) -> None:
    before = _series(origin)
    with Raw(origin) as client:
        for number in range(10_000):
            client.post(b'{"model":"bogus-%d","input":"a"}' % number, "content-type: application/json")
            assert client.reply().status == 404
    assert len(_series(origin) - before) <= 40  # one more combination of route and status
    assert not [line for line in _series(origin) if "bogus" in line]


def _series(origin: str) -> set[str]:
    with Raw(origin) as client:
        client.get("/metrics")
        lines = client.reply().body.decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("given", ["a b", "a" * 129, "ü", "<script>", "'", "a;b"])
def test_request_id_that_is_not_plain_is_replaced(origin: str, given: str) -> None:
    with Raw(origin) as client:
        client.get("/healthz", f"x-request-id: {given}")
        assert client.reply().headers["x-request-id"].startswith("req-")


def test_compressed_body_is_refused(origin: str) -> None:
    assert _refused(_post(origin, b"\x1f\x8b" + bytes(1000), "content-encoding: gzip"), 400, 415)


def test_random_bytes_never_cost_the_good_client_anything(origin: str, good: None) -> None:
    chance = random.Random(7)
    begin = b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 30\r\n\r\n"
    for _ in range(300):
        data = bytearray(begin + chance.randbytes(30))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with Raw(origin) as client:
            client.send(bytes(data))
            if chance.random() < 0.5:
                client.sock.shutdown(socket.SHUT_WR)
            elif chance.random() < 0.5:
                client.sock.recv(1)


def _resident(pid: int) -> int:
    with Path(f"/proc/{pid}/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_under_everything_at_once() -> None:
    limits = ("header_seconds=2", "body_idle_seconds=2", "queue_seconds=60")  # no 429: other tests have it
    with Process(*(word for limit in limits for word in ("--limit", limit))) as server:
        server.until("ready")
        port = server.port
        origin = f"http://127.0.0.1:{port}"
        for _ in range(20):
            server.ask("POST", "/v1/embeddings", {"model": "minilm", "input": ["warm"] * 64})
        before = _resident(server.running.pid)
        with Good(port):
            threads = [
                threading.Thread(target=_attack, args=(origin, kind)) for kind in range(4) for _ in range(5)
            ]
            for thread in threads:
                thread.start()
            most = before
            while any(thread.is_alive() for thread in threads):
                most = max(most, _resident(server.running.pid))
                threads[0].join(0.05)
                threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
        grown = most - before
        # Five chunked bodies of 16 MiB and their copies may be there at once; what was sent is 750 MiB.
        assert grown < 320 * MIB, f"{grown / MIB:.0f} MiB"
        server.signal()
        assert server.wait() == 0


def _attack(origin: str, kind: int) -> None:
    with Raw(origin, buffer=4096 if kind == 3 else None) as client:
        megabyte = b"b" * MIB
        if kind == 0:  # a header without end
            client.send(b"GET /x HTTP/1.1\r\nhost: a\r\nx: ") and all(
                client.send(megabyte) for _ in range(50)
            )
        elif kind == 1:  # a body without end
            client.send(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            all(client.send(b"100000\r\n" + megabyte + b"\r\n") for _ in range(50))
        elif kind == 2:  # requests without a pause
            request = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
            all(client.send(request * 1000) for _ in range(100))
        else:  # answers nobody reads
            body = json.dumps({"model": "minilm", "input": [f"t{i}" for i in range(200)]}).encode()
            for _ in range(2):
                client.post(body, "content-type: application/json")
            client.sock.recv(1)
