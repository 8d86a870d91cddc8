"""What other servers of embeddings do wrong, each as a test that ours does not.

The numbers are those of our list of verified defects: OpenVINO Model Server (1-6), text-embeddings-inference
(7-10), infinity (11-13), Ollama (14), vLLM (15, 16), Triton's OpenAI frontend (17), llama-stack (18).
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill import Embedder
from vecmill.core import tokens
from vecmill.core.types import InputType
from vecmill.models.base import Reply
from vecmill.models.local.provider import LocalProvider
from vecmill.models.resolve import open_model
from vecmill.server.access import Right
from vecmill.server.app import create_app
from vecmill.server.keys import KeyFile
from vecmill.server.options import Options
from vecmill.server.routes import table
from vecmill.server.run import served_in_thread
from vecmill.testing.scenarios import Latency, Model, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread

harness = runpy.run_path(str(Path(__file__).parent / "server_clients" / "harness.py"))
serving, request, PATIENCE = (harness[n] for n in ("serving", "request", "PATIENCE"))

TEXT = "That is a happy person"
WRONG_KEY = "sk-wrong-canary-7d20e1"


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with serving(limits={"queue_seconds": 60.0}) as running:
        yield running.origin


def embed(origin: str, given: Any, **more: Any) -> Any:
    """Post to /v1/embeddings and return the answer."""
    headers = more.pop("headers", None)
    body = {"model": "minilm", "input": given, **more}
    return request(origin, "POST", "/v1/embeddings", body, headers=headers)


def vectors(got: Any) -> Any:
    assert got.status == 200, got.raw[:500]
    data = got.json["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Closed:
    """A server with keys: one that opens everything, one that may embed and read."""

    running: Any
    key: str
    plain: str

    @property
    def origin(self) -> str:
        found: str = self.running.origin
        return found


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    key, _ = file.add("all", rights=[right for right in Right if right is not Right.OPEN])
    plain, _ = file.add("plain")
    limits = {"failed_keys_per_minute": 100_000}
    with serving(keys_file=str(file.path), limits=limits) as running:
        yield Closed(running, key, plain)


def routes() -> list[tuple[str, str, Right]]:
    """Every route with something harmless in its path."""
    return [
        (route.method, route.path.replace("{", "").replace("}", "").replace(":path", ""), route.right)
        for route in table.ROUTES
    ]


def test_01_every_reply_names_the_model_that_was_asked(origin: str) -> None:
    for form in ("float", "base64"):
        answered = embed(origin, TEXT, encoding_format=form).json
        assert answered["model"] == "minilm"
        assert set(answered) >= {"object", "data", "model", "usage"}
        assert set(answered["data"][0]) >= {"object", "index", "embedding"}


def test_02_token_ids_have_the_vector_of_the_text_they_stand_for(origin: str) -> None:
    expected = vectors(embed(origin, TEXT))[0]
    own = open_model("minilm").encode([TEXT], input_type=InputType.DOCUMENT).ids
    assert own is not None
    cl100k = tokens.encode(TEXT)
    for ids in (own[0].tolist(), cl100k):
        for given in (ids, [ids], [ids, ids]):
            assert (vectors(embed(origin, given)) == expected).all()


@pytest.mark.parametrize("header", ["Bearer", "api-key"])
def test_03_a_wrong_key_is_401_and_not_tried_again(closed: Closed, header: str) -> None:
    headers = {"authorization": f"Bearer {WRONG_KEY}"} if header == "Bearer" else {"api-key": WRONG_KEY}
    got = embed(closed.origin, TEXT, headers=headers)
    assert got.status == 401
    assert (got.error["type"], got.error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert WRONG_KEY not in got.raw.decode()
    right = {name: value.replace(WRONG_KEY, closed.plain) for name, value in headers.items()}
    assert embed(closed.origin, TEXT, headers=right).status == 200


def test_04_an_unknown_model_is_404_wherever_it_is_named(origin: str) -> None:
    for path in ("/v1/models/nothing", "/v3/models/some/body", "/v1/models/nothing%2Fhere"):
        got = request(origin, "GET", path)
        assert (got.status, got.error["code"]) == (404, "model_not_found"), path
    assert request(origin, "GET", "/v2/models/nothing/ready").status == 404


def test_05_the_key_guards_every_route_and_is_never_written_down(closed: Closed) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/config"),
        ("POST", "/v1/config/reload"),
        ("GET", "/metrics"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/minilm/ready"),
    ):
        without = request(closed.origin, method, path)
        assert without.status == 401, (method, path, without.raw)
        assert request(closed.origin, method, path, key=WRONG_KEY).status == 401
        assert request(closed.origin, method, path, key=closed.key).status < 300, (method, path)
    got = request(
        closed.origin, "GET", "/v1/models", key=closed.key, headers={"origin": "http://evil.example"}
    )
    assert "access-control-allow-origin" not in got.headers
    assert closed.key not in closed.running.log
    assert WRONG_KEY not in closed.running.log


def test_06_a_slow_request_keeps_nobody_from_being_heard() -> None:
    """While a large batch is computed, new connections are accepted and answered."""
    with serving(limits={"request_seconds": 600.0}) as running, ThreadPoolExecutor() as pool:
        big = pool.submit(embed, running.origin, [f"{i} {TEXT} " * 30 for i in range(200)])
        answered = 0
        while not big.done():
            assert request(running.origin, "GET", "/healthz").status == 200
            answered += not big.done()
        assert vectors(big.result()).shape == (200, 384)
        assert answered >= 3


def test_06_a_client_that_leaves_is_noticed_and_its_queued_work_dropped(tmp_path: Path) -> None:
    with upstream(tmp_path, latency=Latency(seconds=1.0)) as (origin, simulator):
        with socket.create_connection(("127.0.0.1", int(origin.rsplit(":", 1)[1]))) as leaving:
            body = json.dumps({"model": "up", "input": "nobody waits for this"}).encode()
            head = f"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
            leaving.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            wait_for(lambda: simulator.requests == 1)
        wait_for(lambda: 'status="499"' in request(origin, "GET", "/metrics").raw.decode())
        assert request(origin, "GET", "/healthz").status == 200


def test_07_too_many_inputs_have_the_documented_status_and_code(origin: str) -> None:
    got = embed(origin, ["x"] * 2049)
    assert (got.status, got.error["code"], got.error["param"]) == (400, "array_above_max_length", "input")
    assert "2048" in got.error["message"]
    assert "2049" in got.error["message"]
    document = request(origin, "GET", "/openapi.json").json
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
    assert "400" in document["paths"]["/v1/embeddings"]["post"]["responses"]


def test_08_a_model_nobody_serves_gets_no_other_models_vectors(origin: str) -> None:
    for name in ("all-mpnet-base-v2", "text-embedding-3-small", "", "MINILM", "minilm ", "minilm/1"):
        got = request(origin, "POST", "/v1/embeddings", {"model": name, "input": TEXT})
        assert got.status in {400, 404}, name
        assert "data" not in got.json
        if name:
            assert (got.status, got.error["code"]) == (404, "model_not_found")


def test_09_limits_count_tokens_so_that_one_request_of_many_texts_is_many_requests() -> None:
    words = [f"number {i}" for i in range(60)]
    with serving(
        limits={"queue_tokens": 600, "max_connections_per_address": 500, "queue_seconds": 60.0}
    ) as running:
        together = embed(running.origin, words)
        with ThreadPoolExecutor(len(words)) as pool:
            single = list(pool.map(lambda text: embed(running.origin, text), words))
        assert {got.status for got in single} == {200}
        assert (np.concatenate([vectors(got) for got in single]) == vectors(together)).all()


def test_10_a_batch_smaller_than_a_text_does_not_turn_in_circles() -> None:
    long = "word " * 200
    with serving(limits={"batch_tokens": 16}) as running:
        found = vectors(embed(running.origin, [long, "short", long]))
    with Embedder() as embedder:
        assert (found == embedder.embed([long, "short", long]).vectors).all()


def test_11_texts_are_embedded_as_they_were_sent(tmp_path: Path) -> None:
    """What a provider behind us gets is every character, white space too."""
    sent = ["  white space \n", "white space", "\ttabs\u00a0and blanks ", "e\u0301 is not \u00e9"]
    with upstream(tmp_path) as (origin, simulator):
        got = request(origin, "POST", "/v1/embeddings", {"model": "up", "input": sent})
        assert np.allclose(vectors(got), simulator.vectors(sent, "tiny"), atol=1e-6)
        assert [simulator.times_sent(text) for text in sent] == [1] * len(sent)


@pytest.mark.parametrize(("method", "path", "right"), routes())
def test_12_without_a_key_every_route_but_liveness_is_401(
    closed: Closed, method: str, path: str, right: Right
) -> None:
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": f"Basic {WRONG_KEY}"}):
        got = request(closed.origin, method, path, headers=headers)
        if right is Right.OPEN:
            assert got.status == 200, (path, headers)
        else:
            assert got.status == 401, (path, headers, got.raw)
            assert got.error["code"], path
    body = {} if method == "POST" else None
    assert request(closed.origin, method, path, body, key=closed.key).status != 401


def test_13_readiness_fails_where_the_server_cannot_answer() -> None:
    """Liveness and readiness differ, and readiness tells of models and of the end."""
    app = create_app(Options())
    with served_in_thread(app) as origin:
        for path in ("/readyz", "/v2/health/ready"):
            assert request(origin, "GET", path).status == 200
        app.server.draining = True
        for path in ("/readyz", "/v2/health/ready"):
            assert request(origin, "GET", path).status == 503
        assert request(origin, "GET", "/healthz").status == 200
        app.server.draining = False
        assert request(origin, "GET", "/readyz").status == 200


def test_13_a_dead_engine_is_not_healthy_until_it_computes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(*asked: Any, **more: Any) -> Reply:
        raise RuntimeError("the engine is gone")

    with served_in_thread(create_app(Options())) as origin:
        assert vectors(embed(origin, TEXT)).shape == (1, 384)
        with monkeypatch.context() as broken:
            broken.setattr(LocalProvider, "embed", dead)
            got = embed(origin, TEXT)
            assert (got.status, got.error["type"]) == (500, "server_error")
            for path in ("/readyz", "/v2/health/ready", "/v2/models/minilm/ready"):
                assert request(origin, "GET", path).status == 503
            assert request(origin, "GET", "/healthz").status == 200
        assert vectors(embed(origin, TEXT)).shape == (1, 384)
        wait_for(lambda: request(origin, "GET", "/readyz").status == 200)


def test_13_a_model_that_is_not_there_is_not_ready() -> None:
    app = create_app(Options())

    async def asked(path: str) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

        headers = [(b"host", b"127.0.0.1")]
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": headers,
            "client": ("127.0.0.1", 1),
        }
        await app({**scope, "query_string": b"", "scheme": "http"}, receive, send)
        return statuses[0]

    assert asyncio.run(asked("/readyz")) == 503
    assert asyncio.run(asked("/healthz")) == 200


@pytest.mark.parametrize("given", ["", [], [""], [[]], ["x", ""], [[], [1]], None])
def test_14_nothing_to_embed_is_400_and_never_a_success_without_vectors(origin: str, given: Any) -> None:
    got = embed(origin, given)
    assert got.status == 400
    assert (got.error["type"], got.error["param"]) == ("invalid_request_error", "input")


def test_15_no_path_beside_the_api_is_open(closed: Closed) -> None:
    paths = ["/tokenize", "/detokenize", "/pooling", "/invocations", "/score", "/rerank", "/embed", "/info"]
    paths += ["/embeddings", "/v2/embed", "/docs", "/redoc", "/openapi.json", "/ping", "/version", "/load"]
    paths += ["/", "/v1/../v1/embeddings", "//v1/embeddings", "/v1/embeddings/", "/V1/embeddings"]
    paths += ["/v1%2fembeddings", "/v1/embeddings?api-key=x", "/openai/deployments/minilm/embeddings"]
    body = {"model": "minilm", "input": TEXT, "query": TEXT, "documents": [TEXT]}
    for path in paths:
        for method in ("GET", "POST"):
            got = request(closed.origin, method, path, body if method == "POST" else None)
            assert got.status in {401, 404, 405}, (method, path, got.status)
            assert TEXT not in got.raw.decode()


def test_16_the_native_number_of_dimensions_is_always_accepted(origin: str) -> None:
    native = embed(origin, TEXT, dimensions=384)
    assert (vectors(native) == vectors(embed(origin, TEXT))).all()
    less = embed(origin, TEXT, dimensions=128)  # nobody trained this model to be cut
    assert (less.status, less.error["param"]) == (400, "dimensions")


def test_17_lists_of_texts_and_fields_nobody_knows_are_taken(origin: str) -> None:
    texts = [f"text {i}" for i in range(2048)]
    got = embed(origin, texts, user="somebody", an_argument_of_tomorrow={"x": 1})
    found = vectors(got)
    assert found.shape == (2048, 384)
    for at in (0, 1024, 2047):
        assert (vectors(embed(origin, texts[at]))[0] == found[at]).all()


def test_18_a_job_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """Batches over HTTP do not exist yet; what will run them is the job behind `vecmill embed`."""
    rows = [f"row number {i} of a table" for i in range(3000)]
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{row}\n" for row in rows))
    with simulator_thread(
        replace(SCENARIO, max_inputs=100, latency=Latency("uniform", 0.02, most=1.0))
    ) as simulator:

        def start(name: str) -> subprocess.Popen[bytes]:
            cache = {"OPENAI_API_KEY": simulator.key, "VECMILL_CACHE_DIR": str(tmp_path / name)}
            command = [sys.executable, "-m", "vecmill", "embed", str(source), "-o", str(output(name))]
            command += ["-m", "openai:tiny", "--base-url", simulator.url, "--columns", "none"]
            return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, **cache})

        def output(name: str) -> Path:
            return tmp_path / f"{name}.parquet"

        def finish(process: subprocess.Popen[bytes]) -> None:
            said = process.communicate()[1]
            assert process.returncode == 0, said

        killed = start("killed")
        wait_for(lambda: simulator.billed_texts >= 200 or killed.poll() is not None)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert not output("killed").exists()
        finish(start("killed"))
        counts = [simulator.times_billed(row) for row in rows]
        assert (min(counts), max(counts) <= 2) == (1, True)
        finish(start("calm"))
        assert output("killed").read_bytes() == output("calm").read_bytes()


SCENARIO = Scenario(models={"tiny": Model(8)})


class upstream:  # noqa: N801 - used as a function
    """Serve a simulated provider's model as "up"; gives the origin and the simulator."""

    def __init__(self, home: Path, **scenario: Any) -> None:
        self._scenario = replace(SCENARIO, **scenario)
        self._home = home
        self._simulator = simulator_thread(self._scenario)
        self._serving: Any = None

    def __enter__(self) -> tuple[str, Simulator]:
        simulator = self._simulator.__enter__()
        profile = f'[profiles.up]\nprovider = "openai"\nmodel = "tiny"\nbase_url = "{simulator.url}"\n'
        profile += 'key = "env:UPSTREAM_KEY"\ndimensions = 8\nmax_tokens = 8192\n'
        (self._home / "vecmill.toml").write_text(profile)
        env = {"VECMILL_HOME": str(self._home), "UPSTREAM_KEY": simulator.key}
        env["VECMILL_CACHE_DIR"] = str(self._home / "cache")
        self._serving = serving(models=[{"name": "up", "spec": "up"}], env=env)
        return self._serving.__enter__().origin, simulator

    def __exit__(self, *error: Any) -> None:
        self._serving.__exit__(*error)
        self._simulator.__exit__(*error)


def wait_for(happened: Any) -> None:
    """Return when something is true, polled."""
    give_up = time.monotonic() + PATIENCE
    waiting = threading.Event()
    while not happened():
        assert time.monotonic() < give_up
        waiting.wait(0.01)
