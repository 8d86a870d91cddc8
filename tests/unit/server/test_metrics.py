from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vecmill.server.batcher import Stats
from vecmill.server.call import Noted
from vecmill.server.families import Bill, ModelNow, Now
from vecmill.server.metrics import MAX_SERIES, SECONDS, Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _by(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_counts_add_up_by_route_model_and_status() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.request("embeddings", 200, 0.004, Noted(model="m", texts=2, tokens=9, cached=1, truncated=1))
    metrics.request("embeddings", 400, 0.001, Noted(model="m"), retries=2)
    metrics.request("embeddings", 404, 0.001, Noted())
    found = _samples(metrics)
    assert found["vecmill_requests_total", _by(route="embeddings", model="m", status="200")] == 3
    assert found["vecmill_requests_total", _by(route="embeddings", model="m", status="400")] == 1
    assert found["vecmill_requests_total", _by(route="embeddings", model="", status="404")] == 1
    assert found["vecmill_texts_total", _by(route="embeddings", model="m")] == 6
    assert found["vecmill_tokens_total", _by(route="embeddings", model="m")] == 27
    assert found["vecmill_cached_total", _by(route="embeddings", model="m")] == 3
    assert found["vecmill_truncated_total", _by(route="embeddings", model="m")] == 3
    assert found["vecmill_retries_total", _by(route="embeddings", model="m")] == 1
    assert found["ovms_requests_success", _by(api="V3", interface="REST", name="m")] == 3
    assert found["ovms_requests_fail", _by(api="V3", interface="REST", name="m")] == 1


def test_histogram_is_cumulative_and_its_bounds_are_inclusive() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.0011, 1000.0):
        metrics.request("r", 200, seconds, Noted(model="m"))
    found = _samples(metrics)
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "vecmill_request_seconds_bucket"
    }
    assert sorted(buckets) == [*SECONDS, math.inf]
    assert (buckets[0.001], buckets[0.0025], buckets[60.0], buckets[math.inf]) == (2, 3, 3, 4)
    assert found["vecmill_request_seconds_count", _by(route="r", model="m")] == 4
    assert found["vecmill_request_seconds_sum", _by(route="r", model="m")] == pytest.approx(1000.0026)


def test_series_are_bounded_whatever_is_counted() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 10_000):
        metrics.request("r", 200, 0.001, Noted(model=f"m{number}"))
    counts = metrics.counts()
    assert len(counts) == MAX_SERIES + 1
    assert counts["r", "other", 200].requests == 10_000


def test_two_servers_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.request("r", 200, 0.001, Noted(model="m"))
    one.refused("headers")
    assert ("vecmill_refused_total", _by(reason="headers")) in _samples(one)
    assert not two.counts()
    assert not [
        name for name, _ in _samples(two) if name in {"vecmill_requests_total", "vecmill_refused_total"}
    ]


def test_process_tells_memory_time_and_files() -> None:
    names = {name for name, _ in _samples(Metrics())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names


def test_documentation_names_every_metric() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "server-operations.md"
    named = set(re.findall(r"`((?:vecmill|ovms)_\w+)`", page.read_text()))
    metrics = Metrics()
    metrics.request("r", 200, 0.1, Noted(model="m"))
    model = ModelNow("m", "1", {"space": "abc"}, Stats(), 0, 0, 0, 0, Bill(1.0, 2.0, 3, 4, 5))
    now = Now(True, False, 0.0, (model,), (("m", "1", "END"),))
    families = [
        (family.name, family.type)
        for family in text_string_to_metric_families(metrics.render(now).decode())
        if not family.name.startswith("process_")
    ]
    given = {f"{name}_total" if kind == "counter" else name for name, kind in families}
    assert given == named


def _told(*models: ModelNow) -> dict[tuple[str, str], float]:
    text = Metrics().render(Now(True, False, 0.0, models, ())).decode()
    return {
        (sample.name, sample.labels["model"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vecmill_upstream")
    }


def test_money_is_told_of_hosted_models_alone_and_never_guessed() -> None:
    here = ModelNow("here", "1", {}, Stats(), 0, 0, 0, 0)
    paid = ModelNow("paid", "1", {}, Stats(), 0, 0, 0, 0, Bill(0.25, 20.0, 1000, 7, 3))
    odd = ModelNow("odd", "1", {}, Stats(), 0, 0, 0, 0, Bill(None, None, 10, 0, 1))
    assert not _told(here)
    found = _told(here, paid, odd)
    assert found["vecmill_upstream_usd_total", "paid"] == 0.25
    assert found["vecmill_upstream_max_usd", "paid"] == 20.0
    assert found["vecmill_upstream_tokens_total", "paid"] == 1000
    assert found["vecmill_upstream_unsure_tokens_total", "paid"] == 7
    assert found["vecmill_upstream_requests_total", "paid"] == 3
    assert found["vecmill_upstream_tokens_total", "odd"] == 10
    assert ("vecmill_upstream_usd_total", "odd") not in found
    assert ("vecmill_upstream_max_usd", "odd") not in found
