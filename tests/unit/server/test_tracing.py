from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vecmill.server import tracing
from vecmill.server.app import App, create_app
from vecmill.server.call import Noted
from vecmill.server.options import Options


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def _tracer(exporter: InMemorySpanExporter) -> tracing.Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return tracing.Tracer(provider)


def test_span_stands_in_the_clients_trace_and_names_what_happened(exporter: InMemorySpanExporter) -> None:
    tracer = _tracer(exporter)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    span = tracer.begin(
        "POST", {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "authorization": "Bearer planted"}
    )
    tracer.end(
        span, method="POST", route="embeddings", status=200, noted=Noted(model="minilm", texts=2, tokens=9)
    )
    (done,) = exporter.get_finished_spans()
    assert done.context is not None
    assert f"{done.context.trace_id:032x}" == trace
    assert done.name == "POST embeddings"
    assert dict(done.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "embeddings",
        "http.response.status_code": 200,
        "vecmill.model": "minilm",
        "vecmill.texts": 2,
        "vecmill.tokens": 9,
    }


def test_broken_traceparent_begins_a_trace_of_its_own(exporter: InMemorySpanExporter) -> None:
    tracer = _tracer(exporter)
    tracer.end(
        tracer.begin("GET", {"traceparent": "nonsense"}), method="GET", route="r", status=503, noted=Noted()
    )
    (done,) = exporter.get_finished_spans()
    assert done.parent is None
    assert not done.status.is_ok


def test_every_request_of_a_traced_server_has_a_span(exporter: InMemorySpanExporter) -> None:
    app = create_app(Options(models=()))
    app.server.tracer = _tracer(exporter)
    assert asyncio.run(_ask(app)) == 404
    (done,) = exporter.get_finished_spans()
    assert done.name == "GET unknown"


async def _ask(app: App) -> int:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.get("/planted")).status_code


@pytest.mark.parametrize("given", [{}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_nothing_asked_is_nothing_done(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tracing.tracer() is None


def test_server_without_tracing_imports_nothing_of_it() -> None:
    code = "import sys, vecmill.server.run; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_variables_without_the_package_are_told(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "installed", lambda name: False)
    assert tracing.tracer() is None
    assert "vecmill[otel]" in caplog.text
