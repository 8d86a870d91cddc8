"""Names, labels and sums of what Prometheus is told, made when it asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecmill.core.extras import require
from vecmill.core.space import short
from vecmill.server.batcher import Stats
from vecmill.server.metrics import SECONDS, Count, Metrics

if TYPE_CHECKING:
    from vecmill.embedder.channel import Channel
    from vecmill.server.app import Server
    from vecmill.server.loading import Served

require("prometheus_client", extra="serve")

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: E402
from prometheus_client.core import (  # noqa: E402
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    UnknownMetricFamily,
)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a hosted model has cost since it was loaded.

    Attributes:
        usd: Dollars that count against the cap, those of requests whose answer was lost included; None where
            no price is known.
        max_usd: The cap; None: there is none.
        tokens: Billed by the provider. unsure_tokens: of requests whose answer was lost.
        requests: Sent, those that failed too.
    """

    usd: float | None
    max_usd: float | None
    tokens: int
    unsure_tokens: int
    requests: int


@dataclass(frozen=True, slots=True)
class ModelNow:
    """One version that answers: who it is, what its batcher did, what waits for it, what it cost."""

    model: str
    version: str
    about: dict[str, str]
    stats: Stats
    waiting_tokens: int
    waiting_requests: int
    leases: int
    cost_bytes: int
    bill: Bill | None = None


@dataclass(frozen=True, slots=True)
class Now:
    """The state of a server, taken on its event loop.

    Attributes:
        ready, draining: As readiness says.
        started: Seconds since the epoch.
        models: Versions that answer.
        states: (model, version, state) of every known version.
    """

    ready: bool
    draining: bool
    started: float
    models: tuple[ModelNow, ...]
    states: tuple[tuple[str, str, str], ...]


def now_of(server: Server) -> Now:
    """Take the state of a server; call it on the server's loop."""
    models = tuple(_now(served) for served in server.models.current())
    states = tuple(
        (name, version.version, version.state.value)
        for name, versions in server.models.states().items()
        for version in versions
    )
    return Now(server.ready, server.draining, server.started, models, states)


def _now(served: Served) -> ModelNow:
    info, batcher = served.info, served.batcher
    about = {"space": short(info.space), "precision": info.precision, "device": info.device}
    return ModelNow(
        served.name,
        served.version,
        about,
        batcher.stats,
        batcher.waiting_tokens,
        batcher.waiting_requests,
        served.leases,
        served.cost_bytes,
        _bill(served.channel),
    )


def _bill(channel: Channel) -> Bill | None:
    """Return what a hosted model has cost; None of one that computes here."""
    engine = channel.engine
    if engine is None:
        return None
    budget, usage = engine.budget, channel.usage + channel.probe_usage + engine.trial_usage
    return Bill(
        None if budget.usd_per_million_tokens is None else budget.spent_usd,
        budget.max_usd,
        usage.tokens,
        usage.unsure_tokens,
        usage.requests,
    )


def written(metrics: Metrics, now: Now | None) -> bytes:
    """Return everything in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(metrics, now))
    return generate_latest(registry)


class _Scrape:
    """One answer; what prometheus-client calls a collector."""

    def __init__(self, metrics: Metrics, now: Now | None) -> None:
        self._metrics = metrics
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Say nothing: names are made when they are asked for."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return every family."""
        joined = _joined(self._metrics)
        yield from _requests(self._metrics, joined)
        yield from _connections(self._metrics)
        if self._now is not None:
            yield from _server(self._now)
            yield from _models(self._now.models)
            yield from _bills(self._now.models)
        yield from _ovms(self._metrics, self._now)
        yield from ProcessCollector(registry=None).collect()


def _joined(metrics: Metrics) -> dict[tuple[str, str], Count]:
    """Add up over statuses."""
    joined: dict[tuple[str, str], Count] = {}
    for (route, model, _), count in metrics.counts().items():
        joined.setdefault((route, model), Count()).add(count)
    return joined


_SUMS = {
    "texts": "Texts asked for.",
    "tokens": "Tokens of these texts.",
    "cached": "Texts that cost nothing: computed or paid for earlier.",
    "truncated": "Texts that were cut.",
    "retries": "Requests that say they are another try.",
}


def _requests(metrics: Metrics, joined: dict[tuple[str, str], Count]) -> Iterator[Metric]:
    answered = CounterMetricFamily(
        "vecmill_requests", "Requests answered; 499: the client left.", labels=("route", "model", "status")
    )
    for (route, model, status), count in metrics.counts().items():
        answered.add_metric((route, model, str(status)), count.requests)
    yield answered
    seconds = HistogramMetricFamily(
        "vecmill_request_seconds", "From end of headers to end of answer.", labels=("route", "model")
    )
    for labels, count in joined.items():
        seconds.add_metric(labels, _cumulated(count.buckets, SECONDS), count.seconds)
    yield seconds
    for name, says in _SUMS.items():
        family = CounterMetricFamily(f"vecmill_{name}", says, labels=("route", "model"))
        for labels, count in joined.items():
            family.add_metric(labels, getattr(count, name))
        yield family
    yield GaugeMetricFamily("vecmill_requests_running", "Requests being answered now.", metrics.running)


def _connections(metrics: Metrics) -> Iterator[Metric]:
    yield GaugeMetricFamily("vecmill_connections", "Open connections.", metrics.connections)
    yield CounterMetricFamily("vecmill_connections_accepted", "Connections so far.", metrics.accepted)
    refused = CounterMetricFamily(
        "vecmill_refused", "Connections and requests refused before a route.", labels=("reason",)
    )
    for reason, number in metrics.refusals().items():
        refused.add_metric((reason,), number)
    yield refused


def _server(now: Now) -> Iterator[Metric]:
    yield GaugeMetricFamily("vecmill_ready", "Whether requests should be sent here.", int(now.ready))
    yield GaugeMetricFamily("vecmill_draining", "Whether the server is stopping.", int(now.draining))
    yield GaugeMetricFamily("vecmill_start_time_seconds", "When the server began.", now.started)
    state = GaugeMetricFamily(
        "vecmill_model_state", "1 for the state a version is in.", labels=("model", "version", "state")
    )
    for labels in now.states:
        state.add_metric(labels, 1)
    yield state


_GAUGES = {
    "waiting_tokens": ("vecmill_queue_tokens", "Tokens that wait, padded."),
    "waiting_requests": ("vecmill_queue_requests", "Requests of which something waits."),
    "leases": ("vecmill_model_requests_running", "Requests that hold this version."),
    "cost_bytes": ("vecmill_model_bytes", "What the version is taken to cost in memory."),
}
_COUNTERS = {
    "requests": ("vecmill_queue_admitted", "Requests that entered the queue."),
    "begun": ("vecmill_queue_begun", "Requests whose first batch began."),
    "wait_seconds": ("vecmill_queue_wait_seconds", "Waited by these, together."),
    "refused": ("vecmill_queue_refused", "Requests answered 429: the queue was full."),
    "expired": ("vecmill_queue_expired", "Requests answered 504: their deadline passed."),
    "cancelled": ("vecmill_queue_cancelled", "Requests whose client left."),
    "batches": ("vecmill_batches", "Batches given to the model."),
    "batch_texts": ("vecmill_batch_texts", "Texts of these batches."),
    "batch_tokens": ("vecmill_batch_tokens", "Tokens of these batches, padded."),
    "failed": ("vecmill_batches_failed", "Batches that raised."),
    "busy_seconds": ("vecmill_batch_seconds", "Spent by these batches, together."),
}


def _models(models: Sequence[ModelNow]) -> Iterator[Metric]:
    labels = ("model", "version")
    info = InfoMetricFamily("vecmill_model", "Versions that answer.", labels=labels)
    for one in models:
        info.add_metric((one.model, one.version), one.about)
    yield info
    for attribute, (name, says) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, says, labels=labels)
        for one in models:
            gauge.add_metric((one.model, one.version), getattr(one, attribute))
        yield gauge
    for attribute, (name, says) in _COUNTERS.items():
        counter = CounterMetricFamily(name, says, labels=labels)
        for one in models:
            counter.add_metric((one.model, one.version), getattr(one.stats, attribute))
        yield counter


_BILLS: dict[str, tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str]] = {
    "usd": (CounterMetricFamily, "vecmill_upstream_usd", "Dollars that count against the cap."),
    "max_usd": (GaugeMetricFamily, "vecmill_upstream_max_usd", "The cap (--max-usd)."),
    "tokens": (CounterMetricFamily, "vecmill_upstream_tokens", "Tokens the provider billed."),
    "unsure_tokens": (
        CounterMetricFamily,
        "vecmill_upstream_unsure_tokens",
        "Tokens of requests whose answer was lost: they may have been billed.",
    ),
    "requests": (CounterMetricFamily, "vecmill_upstream_requests", "Requests sent, failed ones too."),
}


def _bills(models: Sequence[ModelNow]) -> Iterator[Metric]:
    """Say what hosted models have cost; nothing where every model computes here."""
    hosted = [(one, one.bill) for one in models if one.bill is not None]
    for attribute, (kind, name, says) in _BILLS.items() if hosted else ():
        family = kind(name, says, labels=("model", "version"))
        for one, bill in hosted:
            value = getattr(bill, attribute)
            if value is not None:
                family.add_metric((one.model, one.version), value)
        yield family


def _ovms(metrics: Metrics, now: Now | None) -> Iterator[Metric]:
    """Say the same under OpenVINO Model Server's names, for dashboards that know them."""
    labels = ("api", "interface", "name")
    good = UnknownMetricFamily("ovms_requests_success", "As vecmill_requests_total below 400.", labels=labels)
    bad = UnknownMetricFamily("ovms_requests_fail", "As vecmill_requests_total from 400.", labels=labels)
    took = HistogramMetricFamily("ovms_request_time_us", "As vecmill_request_seconds.", labels=labels[1:])
    passed: dict[str, int] = {}
    failed: dict[str, int] = {}
    times: dict[str, Count] = {}
    for (_, model, status), count in metrics.counts().items():
        if model:
            into = passed if status < 400 else failed
            into[model] = into.get(model, 0) + count.requests
            times.setdefault(model, Count()).add(count)
    for model, count in times.items():
        good.add_metric(("V3", "REST", model), passed.get(model, 0))
        bad.add_metric(("V3", "REST", model), failed.get(model, 0))
        bounds = [bound * 1e6 for bound in SECONDS]
        took.add_metric(("REST", model), _cumulated(count.buckets, bounds), count.seconds * 1e6)
    yield from (good, bad, took)
    running = GaugeMetricFamily("ovms_current_requests", "Requests it answers.", labels=("name", "version"))
    for one in () if now is None else now.models:
        running.add_metric((one.model, one.version), one.leases)
    yield running


def _cumulated(buckets: Sequence[int], bounds: Sequence[float]) -> list[tuple[str, float]]:
    total = 0.0
    found = []
    for bound, number in zip((*map(str, bounds), "+Inf"), buckets, strict=True):
        total += number
        found.append((bound, total))
    return found
