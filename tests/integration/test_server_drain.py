"""The end of a server: what it announces, what it still answers, and what a killed one leaves behind."""

from __future__ import annotations

import http.client
import json
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

process = runpy.run_path(str(Path(__file__).with_name("server_process.py")))
Process = process["Process"]

ONE = {"model": "minilm", "input": "a text"}


class Hammer:
    """Clients that ask as fast as they can, until nobody listens any more."""

    def __init__(self, port: int, clients: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._lock = threading.Lock()
        self._enough = threading.Event()
        self._some = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def wait_for(self, answers: int) -> None:
        for _ in range(answers):
            assert self._some.acquire(timeout=60)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _ask(self) -> None:
        body = json.dumps(ONE)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionError:
                return  # nobody listens: the end
            try:
                connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                reply.read()
                failure = "" if reply.status == 200 else f"status {reply.status}"
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
                connection.close()
            with self._lock:
                self.answered += not failure
                if failure:
                    self.failures.append(failure)
            self._some.release()


def test_sigterm_under_load_fails_no_request_that_was_sent() -> None:
    with Process("--limit", "drain_notice_seconds=0.5") as server:
        server.until("ready")
        hammer = Hammer(server.port, 16)
        hammer.wait_for(50)
        server.signal()
        hammer.join()
        assert server.wait() == 0
        assert hammer.failures == []
        assert server.until("stopped")
        answers = [line for line in server.lines if line["event"] == "request"]
        assert [line["status"] for line in answers] == [200] * hammer.answered


def test_long_request_in_flight_is_answered_after_sigterm() -> None:
    with Process("--limit", "drain_notice_seconds=0.01") as server:
        server.until("ready")
        port = server.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        texts = [f"text number {i} " + "with more words in it " * 10 for i in range(400)]
        connection.request(
            "POST",
            "/v1/embeddings",
            json.dumps({"model": "minilm", "input": texts}),
            {"content-type": "application/json"},
        )
        server.ask("POST", "/v1/embeddings", ONE)
        server.signal()
        server.until("draining")
        reply = connection.getresponse()
        assert reply.status == 200
        assert reply.getheader("connection") == "close"
        assert len(json.loads(reply.read())["data"]) == 400
        connection.close()
        assert server.wait() == 0


def test_readiness_tells_the_end_while_requests_are_still_answered() -> None:
    with Process("--limit", "drain_notice_seconds=30") as server:
        server.until("ready")
        assert server.ask("GET", "/readyz")[0] == 200
        server.signal()
        server.until("draining")
        assert server.ask("GET", "/readyz")[0] == 503
        assert server.ask("GET", "/healthz")[0] == 200
        status, headers, _ = server.ask("POST", "/v1/embeddings", ONE)
        assert (status, headers["connection"]) == (200, "close")
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM  # the second one ends it at once


def test_silent_connections_do_not_hold_the_end_up() -> None:
    with Process("--limit", "drain_notice_seconds=0.01") as server:
        server.until("ready")
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        idle = http.client.HTTPConnection("127.0.0.1", server.port)
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        server.signal()
        assert server.wait() == 0
        assert not any(line["event"] == "connections broken" for line in server.lines)
        idle.close()
        for one in silent:
            one.close()


def test_client_that_does_not_end_is_cut_off_after_the_drain() -> None:
    with Process("--limit", "drain_notice_seconds=0.01", "--limit", "drain_seconds=0.5") as server:
        server.until("ready")
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
            server.ask("GET", "/healthz")
            server.signal()
            assert server.wait() == 0
        assert server.until("connections broken")["count"] == 1


def test_address_answers_before_the_models_are_loaded_and_says_so() -> None:
    with Process() as server:
        server.until("listening")
        assert server.ask("GET", "/healthz")[0] == 200
        status, headers, body = server.ask("POST", "/v1/embeddings", ONE)
        if status != 200:  # else the model was quicker than we
            assert (status, json.loads(body)["error"]["code"]) == (503, "model_loading")
            assert int(headers["retry-after-ms"]) > 0
        server.until("ready")
        assert server.ask("GET", "/readyz")[0] == 200
        assert server.ask("POST", "/v1/embeddings", ONE)[0] == 200


def test_named_model_that_cannot_be_loaded_ends_the_process_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Process("--model", f"broken={tmp_path}") as server:
        assert server.wait() == 1
        assert "broken" in "".join(server.plain) or str(tmp_path) in "".join(server.plain)
        assert "Traceback" not in "".join(server.plain)


def test_taken_port_is_told_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "vecmill", "serve", "--port", str(port)],
            capture_output=True,
            timeout=60,
            check=False,
        )
    said = done.stderr.decode()
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in said
    assert "Traceback" not in said


@pytest.fixture
def key() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vecmill", "key", "add", "drain"], capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode().split()[0]


def test_killed_server_leaves_cache_and_keys_whole(key: str) -> None:
    texts = {"model": "minilm", "input": [f"text {i}" for i in range(64)]}
    with Process("--cache") as server:
        server.until("ready")
        assert server.ask("POST", "/v1/embeddings", texts)[0] == 401
        status, _, first = server.ask("POST", "/v1/embeddings", texts, key=key)
        assert status == 200
        server.ask("POST", "/v1/embeddings", texts, key=key)
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
    with Process("--cache") as server:
        server.until("ready")
        assert server.ask("POST", "/v1/embeddings", texts)[0] == 401
        status, _, again = server.ask("POST", "/v1/embeddings", texts, key=key)
        assert status == 200
        assert again == first
        assert _cached(server) == 64


def _cached(server: Any) -> int:
    server.signal()
    assert server.wait() == 0
    return sum(line.get("cached", 0) for line in server.lines)
