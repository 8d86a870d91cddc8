from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.bench import serve_texts
from vecmill.bench.serve import Load, serve_load
from vecmill.bench.serve_report import Report, render
from vecmill.bench.serve_shapes import BACKENDS, Shape
from vecmill.cli import bench_serve, main
from vecmill.core import tokens as counting
from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, InputError, ProviderError, UnknownNameError
from vecmill.core.secrets import Secret
from vecmill.testing.clock import run_virtual


def _fake_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_fake", Path(__file__).with_name("serve_fake.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["serve_fake"] = module
    spec.loader.exec_module(module)
    return module


fakes = _fake_module()


def loaded(fake: Any, path: str = "/v1/embeddings", **options: Any) -> Report:
    """Load a fake server in virtual time."""

    async def work(served: Any) -> Report:
        given = {"model": "m", "batch_size": 1, "synthetic_length": 5, "warmup": 0, **options}
        return await serve_load(Load(api_url=served.url + path, **given))

    report: Report = run_virtual(fakes.against(fake, work))
    return report


def test_seven_lines_are_those_of_the_first_benchmark_client() -> None:
    report = loaded(fakes.Fake(delay=0.010), rate=100.0)
    lines = render(report)[:7]
    assert lines[0] == "Number of documents: 1000"
    assert lines[1] == "Tokens: 5000"
    assert lines[2] == "Success rate: 100.0%. (1000/1000)"
    assert lines[3].startswith("Throughput - Tokens per second: ")
    assert float(lines[3].rpartition(" ")[2]) == pytest.approx(5000 / report.run.seconds)
    assert lines[4] == "Mean latency: 10 ms"
    assert lines[5] == "Median latency: 10 ms"
    assert lines[6] == "Average document length: 5.0 tokens"


def test_a_server_with_a_fixed_delay_has_that_median_and_one_connection_follows_the_other() -> None:
    fake = fakes.Fake(delay=0.010)
    report = loaded(fake, rate=20.0, limit=200)
    record = report.record()
    assert record["latency_ms"]["median"] == pytest.approx(10.0, abs=2.0)
    assert record["latency_ms"]["p99"] == pytest.approx(10.0, abs=2.0)
    assert record["achieved_rate"] == pytest.approx(20.0, rel=0.2)
    assert record["asked_rate"] == 20.0
    assert fake.connections < 10  # kept and used again
    assert fake.requests[0] == {"model": "m", "input": ["hi " * 5], "encoding_format": "base64"}


def test_all_at_once_counts_the_wait_for_a_connection() -> None:
    report = loaded(fakes.Fake(delay=0.1), limit=50, connections=10)
    record = report.record()
    assert report.waited == 40
    assert record["latency_ms"]["max"] == pytest.approx(500.0, abs=5.0)
    assert any("waited for one of 10 connections" in line for line in render(report))


def test_batches_and_both_counts_of_tokens_are_told() -> None:
    report = loaded(fakes.Fake(), batch_size=32, limit=1000, rate=50.0)
    record = report.record()
    assert record["requests"] == 32
    assert (record["tokens"], record["texts"], record["server_tokens"]) == (5000, 1000, 7000)
    assert "Tokens counted by the server: 7000; here: 5000" in "\n".join(render(report))
    assert record["dimensions"] == [fakes.DIMENSIONS]


def test_errors_are_counted_apart_by_status_and_touch_no_figure_of_the_others() -> None:
    fake = fakes.Fake(delay=0.05, statuses=[429] * 3 + [200] + [500] * 2)
    report = loaded(fake, concurrency=1, limit=20)
    record = report.record()
    assert (record["successes"], record["requests"]) == (15, 20)
    assert record["tokens"] == 75
    assert {status: found["requests"] for status, found in record["errors"].items()} == {"429": 3, "500": 2}
    assert record["errors"]["429"]["latency_ms"]["p50"] == pytest.approx(50.0, abs=2.0)
    assert record["errors"]["429"]["detail"] == "no: 429"
    lines = "\n".join(render(report))
    assert "Success rate: 75.0%. (15/20)" in lines
    assert "Errors HTTP 429: 3, " in lines
    assert "service time, closed loop of 1" in lines


def test_a_stalled_server_shows_in_the_p99_of_the_open_loop() -> None:
    fake = fakes.Fake(delay=0.005, stall=(3.0, 4.0))
    report = loaded(fake, limit=500, rate=100.0, connections=500)
    times = report.record()["latency_ms"]
    assert times["p50"] == pytest.approx(5.0, abs=2.0)
    assert times["p99"] > 800.0


def test_a_run_of_a_duration_repeats_the_documents() -> None:
    report = loaded(fakes.Fake(), rate=100.0, duration=3.0, limit=10)
    assert len(report.run.samples) == pytest.approx(300, rel=0.2)
    assert {sample.request for sample in report.run.samples} == set(range(10))
    assert max(sample.intended for sample in report.run.samples) < 3.0


def test_goodput_counts_only_what_came_within_the_deadline_and_the_server_is_told() -> None:
    fake = fakes.Fake(delay=0.2)
    report = loaded(fake, rate=10.0, limit=50, deadline=0.1)
    assert report.goodput == 0.0
    assert len(report.good) == 50
    assert "x-request-timeout-ms: 100\r\n" in fake.heads[0]


def test_requests_of_the_warm_up_are_not_counted() -> None:
    fake = fakes.Fake()
    report = loaded(fake, rate=100.0, limit=20, warmup=5)
    assert len(fake.requests) == 25
    assert len(report.run.samples) == 20


def test_text_embeddings_inference_is_asked_and_read_in_its_own_shape() -> None:
    fake = fakes.Fake(answer=fakes.tei_answer)
    report = loaded(fake, "/embed", backend="tei-embed", model="", batch_size=4, limit=8, rate=100.0)
    assert fake.requests[0] == {"inputs": ["hi " * 5] * 4}
    assert len(report.good) == 2
    assert report.record()["server_tokens"] is None
    assert "Tokens counted by the server: not told" in "\n".join(render(report))


def test_a_server_with_one_model_needs_no_name_of_it() -> None:
    fake = fakes.Fake()
    report = loaded(fake, "/embeddings", backend="infinity-embeddings", model="", rate=100.0, limit=3)
    assert fake.heads[0].startswith("GET /models ")
    assert report.settings["model"] == "the-model"
    assert fake.requests[0]["model"] == "the-model"


def test_an_answer_with_too_few_vectors_is_no_success() -> None:
    def short(body: Any) -> Any:
        return fakes.openai_answer({**body, "input": body["input"][1:]})

    report = loaded(fakes.Fake(answer=short), batch_size=3, limit=9, rate=100.0)
    assert not report.good
    assert list(report.errors) == ["bad_reply"]


def test_a_request_that_takes_too_long_is_a_timeout() -> None:
    report = loaded(fakes.Fake(delay=9.0), limit=3, rate=10.0, timeout=1.0)
    assert {s: len(found) for s, found in report.errors.items()} == {"timeout": 3}
    assert report.record()["errors"]["timeout"]["latency_ms"]["p50"] == pytest.approx(1000.0, abs=5.0)


def test_nobody_there_is_said_with_the_address_and_what_to_look_at() -> None:
    with pytest.raises(ProviderError, match=r"none of the first 4 requests \(connect\).*--api_url"):
        asyncio.run(serve_load(Load(api_url="http://127.0.0.1:9/v1/embeddings", model="m")))


def test_the_key_is_sent_and_stands_in_no_result() -> None:
    fake = fakes.Fake()
    report = loaded(fake, rate=100.0, limit=2, api_key=Secret("sk-very-secret", "X"))
    assert "authorization: Bearer sk-very-secret\r\n" in fake.heads[0]
    assert "very-secret" not in json.dumps(report.record()) + "\n".join(render(report))


def test_a_data_set_of_elsewhere_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match="data sets are not downloaded: give 'synthetic', or a file"):
        loaded(fakes.Fake(), dataset="Cohere/wikipedia-22-12-simple-embeddings")


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_documents_of_a_file_are_sent_in_its_order(tmp_path: Path, suffix: str) -> None:
    texts = [f"text number {i}" for i in range(5)]
    path = tmp_path / f"texts.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts, "n": [1, 2, 3, 4, 5]}), path)
    else:
        head = ["text"] if suffix == "csv" else []
        path.write_text("\n".join([*head, *texts]) + "\n", "utf-8")
    fake = fakes.Fake()
    report = loaded(fake, dataset=str(path), limit=3, rate=100.0, tokenizer="minilm")
    assert [body["input"] for body in fake.requests] == [[text] for text in texts[:3]]
    assert report.record()["tokens"] == 9
    assert report.data["tokenizer"] == "local:all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 5.0, "concurrency": 2}, "choose one"),
        ({"duration": 2.0}, "needs a rate or a concurrency"),
        ({"rate": 0.0}, "sends nothing"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"timeout": float("inf"), "rate": 1.0}, "timeout is inf"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Load(**options)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        asyncio.run(serve_load(Load(api_url="http://me:hidden@127.0.0.1:1/v1/embeddings", model="m")))
    assert "hidden" not in str(caught.value)


def test_an_unknown_backend_names_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="tei-embed"):
        Shape("tei-embeds")


def test_the_command_line_knows_the_same_backends() -> None:
    assert tuple(BACKENDS) == bench_serve.BACKENDS


def test_base64_and_floats_are_read_alike() -> None:
    import base64

    import numpy as np

    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    rows = [
        {"index": 1, "embedding": vectors[1].tolist()},
        {"index": 0, "embedding": base64.b64encode(vectors[0].tobytes()).decode()},
    ]
    shape, body = Shape(), json.dumps({"data": rows, "usage": None}).encode()
    read = shape.read(body, {}, 2)
    assert (read.vectors, read.dimensions, read.tokens) == (2, 3, None)
    np.testing.assert_array_equal(shape.vectors(body), vectors)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data": 1}', b'{"data":[{"index":7,"embedding":[1.0]}]}', b'{"data":[1]}']
)
def test_an_answer_of_another_shape_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReplyError):
        Shape().read(body, {}, 1)


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """A fake server on a thread, in real time."""
    fake, up, stop = fakes.Fake(delay=0.001), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with fakes.serving(fake):
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    up.wait()
    yield fake.url
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


def test_the_seeds_command_runs_as_it_is_written(
    running: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    words = [
        *("bench", "serve", "--api_url", f"{running}/v3/embeddings", "--dataset", "synthetic"),
        *("--synthetic_length", "5", "--request_rate", "inf", "--batch_size", "32"),
        *("--model", "Alibaba-NLP/gte-large-en-v1.5", "--backend", "ovms-embeddings", "--json", str(out)),
    ]
    assert main.run(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Number of documents: 1000\nTokens: 5000\nSuccess rate: 100.0%. (32/32)\n")
    assert "p50/p90/p95/p99/max: " in printed
    record = json.loads(out.read_text("utf-8"))
    assert (record["benchmark"], record["requests"], record["server_tokens"]) == ("serve", 32, 7000)


def test_dashes_do_too_and_json_goes_to_stdout(running: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "serve", "--api-url", f"{running}/v1/embeddings", "--synthetic-length", "2"]
    words += ["--limit", "6", "--batch-size", "2", "--concurrency", "2", "--model", "m", "--json"]
    assert main.run(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["requests"], record["tokens"]) == (3, 12)


def test_a_key_comes_from_a_variable_or_file_alone(
    running: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["bench", "serve", "--api-url", f"{running}/v1/embeddings", "--limit", "1", "--model", "m"]
    monkeypatch.setenv("MY_KEY", "abc")
    (tmp_path / "key").write_text("abc\n")
    assert main.run([*words, "--api-key-env", "MY_KEY"]) == 0
    assert main.run([*words, "--api-key-env", "MY_KEY", "--api-key-file", str(tmp_path / "key")]) == 2
    assert main.run([*words, "--api-key-env", "NOT_THERE"]) == 1
    assert "NOT_THERE" in capsys.readouterr().err
    assert main.run([*words, "--request-rate", "none"]) == 2


def test_distinct_documents_all_differ_and_are_as_long_as_asked() -> None:
    settings = Settings(Path("unused"), Path("unused"))
    given = {"limit": 3000, "column": None, "tokenizer": None, "model": "minilm", "settings": settings}
    made = serve_texts.read("synthetic", synthetic_length=9, distinct=True, **given)  # type: ignore[arg-type]
    assert made.different == len(made.texts) == 3000
    assert set(made.tokens.tolist()) == {9}
    assert set(counting.count(made.texts).tolist()) == set(counting.count(["hi " * 9]).tolist())
    own, _ = serve_texts.count(made.texts[:40], None, "minilm", settings)
    assert set(own.tolist()) == {9}
    short = serve_texts.read("synthetic", synthetic_length=1, distinct=True, **given)  # type: ignore[arg-type]
    assert short.different == 3000
    assert set(short.tokens.tolist()) == {3}  # as long as it takes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 4, "rate": 100.0}, True),
        ({"concurrency": 2}, True),
        ({"concurrency": 1}, False),
        ({"concurrency": 2, "distinct": True}, False),
    ],
)
def test_documents_that_repeat_are_told_where_a_server_may_compute_them_once(
    options: dict[str, Any], *, told: bool
) -> None:
    said: list[str] = []

    async def work(served: Any) -> Report:
        given = {"model": "m", "batch_size": 1, "synthetic_length": 5, "warmup": 0, "limit": 20, **options}
        return await serve_load(Load(api_url=f"{served.url}/v1/embeddings", **given), say=said.append)

    report = run_virtual(fakes.against(fakes.Fake(), work))
    assert any("distinct texts: 1 of 20;" in line for line in said) is told
    assert report.record()["data"]["different"] == (20 if options.get("distinct") else 1)


def test_documents_of_a_file_are_sent_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n", "utf-8")
    with pytest.raises(InputError, match="--distinct is of made-up documents"):
        loaded(fakes.Fake(), dataset=str(tmp_path / "texts.txt"), distinct=True)


def test_an_address_that_ends_too_early_is_told_what_is_missing() -> None:
    with pytest.raises(
        ProviderError, match=r"does not end with /embeddings.*--api_url http://\S+/v1/embeddings"
    ):
        loaded(fakes.Fake(statuses=[404] * 4), "/v1", warmup=1)
    notes = loaded(fakes.Fake(statuses=[404] * 4), "/v1", limit=4, rate=100.0).record()["notes"]
    assert any("does not end with /embeddings" in note for note in notes)
    with pytest.raises(ProviderError) as caught:
        loaded(fakes.Fake(statuses=[404] * 4), warmup=1)
    assert "does not end" not in str(caught.value)
