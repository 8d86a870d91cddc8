"""OpenTelemetry, where it is installed and its own variables name an exporter: one span per request.

Without them nothing of it is imported and a request pays one comparison with None.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vecmill.core.config import environment
from vecmill.core.extras import installed
from vecmill.server.call import Noted

log = logging.getLogger(__name__)

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
"""One of these switches tracing on; the SDK reads them and its others by itself."""

_CARRIED = ("traceparent", "tracestate")


class Tracer:
    """Makes the spans of one server.

    Args:
        provider: OpenTelemetry's tracer provider.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("vecmill")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    def begin(self, method: str, headers: Mapping[str, str]) -> Any:
        """Begin a request's span, inside the client's trace where it names one (`traceparent`)."""
        carried = {name: headers[name] for name in _CARRIED if name in headers}
        return self._tracer.start_span(method, context=self._propagator.extract(carried), kind=self._kind)

    def end(self, span: Any, *, method: str, route: str, status: int, noted: Noted) -> None:
        """Say how the request ended: names and numbers of our own, nothing a client sent."""
        span.update_name(f"{method} {route}")
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        for name in ("model", "version", "texts", "tokens", "cached", "truncated", "code"):
            if value := getattr(noted, name):
                span.set_attribute(f"vecmill.{name}", value)
        if status >= 500:
            span.set_status(self._error)
        span.end()

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def tracer() -> Tracer | None:
    """Return what the environment's variables ask for; None where they ask for nothing."""
    given = environment()
    asked = [name for name in VARIABLES if given.get(name)]
    if not asked or given.get("OTEL_TRACES_EXPORTER") == "none" or given.get("OTEL_SDK_DISABLED") == "true":
        return None
    if not installed("opentelemetry.sdk") or not installed("opentelemetry.exporter.otlp.proto.http"):
        log.warning("%s is set, but OpenTelemetry is not installed: pip install 'vecmill[otel]'", asked[0])
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
