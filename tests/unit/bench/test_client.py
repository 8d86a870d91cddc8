from __future__ import annotations

import asyncio
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.bench import client, client_worker, peers
from vecmill.bench.client import (
    AT_ONCE,
    CALLS,
    ONE_CALL,
    OWN_ROWS,
    PROVIDER,
    SDK,
    SDK_ASYNC,
    SDK_FLOATS,
    SDK_ROWS,
    Way,
)
from vecmill.bench.client_report import Comparison, Part, Report, compare, render
from vecmill.cli import main
from vecmill.core import tokens
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import Ratio

OWN = (PROVIDER, CALLS, AT_ONCE, ONE_CALL, OWN_ROWS)
needs_sdk = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="needs the openai SDK")


def small(**options: Any) -> Report:
    return client.run_client(
        **{"requests": 2, "rounds": 2, "rows": 3, "latency": 0.0, "rows_embedded": 70, **options}
    )


def part(name: str, cpu: list[float], *, texts: int = 64, wall: list[float] | None = None) -> Part:
    return Part(name, texts, 1, wall or cpu, cpu, 2**20, {"numpy": "2"})


def report(comparisons: list[Comparison], **options: Any) -> Report:
    settings = {"rounds": 7, "requests": 32, "size": 64, "dimensions": 1536, "rows_embedded": 2000}
    parts = [part(PROVIDER, [1.0])]
    return Report("vecmill", None, {"tokens_mean": 80.0}, settings, {}, parts, comparisons, **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any], list[str]]:
    out, said = tmp_path_factory.mktemp("bench") / "result.json", list[str]()
    found = small(full=True, out=out, say=said.append, seed=3)
    return found, json.loads(out.read_text("utf-8")), said


@needs_sdk
def test_every_way_sends_its_texts_in_every_round(
    measured: tuple[Report, dict[str, Any], list[str]],
) -> None:
    found, _, said = measured
    assert [one.name for one in found.parts] == [SDK, SDK_ASYNC, SDK_FLOATS, SDK_ROWS, *OWN]
    assert {one.name: (one.texts, one.requests) for one in found.parts} == {
        **dict.fromkeys((SDK, SDK_ASYNC, SDK_FLOATS, PROVIDER, CALLS, AT_ONCE, ONE_CALL), (128, 2)),
        SDK_ROWS: (3, 3),
        OWN_ROWS: (70, 1),
    }
    assert all(len(one.cpu) == len(one.wall) == 2 and min(one.cpu) > 0 for one in found.parts)
    assert said == [
        "first round thrown away",
        "round 1 of 2",
        "round 2 of 2",
        "70 requests, one after the other",
    ]


@needs_sdk
def test_the_result_file_records_all_that_is_needed_to_repeat_the_run(
    measured: tuple[Report, dict[str, Any], list[str]],
) -> None:
    _, record, _ = measured
    assert record["benchmark"] == "client"
    assert (record["settings"]["seed"], record["settings"]["in_flight"]) == (3, 16)
    assert record["data"]["texts"] == record["data"]["distinct"] == 128 * 4
    assert record["machine"]["cpu"]
    first = record["parts"][0]
    assert first["versions"]["openai"] != "source"
    assert first["cpu_seconds_per_text"] * first["texts_per_cpu_second"] == pytest.approx(1)
    assert {"cpu_median", "cpu_p95", "wall_median", "rss_bytes"} <= first.keys()
    assert record["whole"]["rows"] == 70
    wall = [one for one in record["ratios"] if one["unit"] == "wall"]
    assert [(one["name"], one["baseline"], one["least"]) for one in wall] == [(OWN_ROWS, SDK_ROWS, 20.0)]


@needs_sdk
def test_a_request_a_row_takes_longer_than_one_for_all(
    measured: tuple[Report, dict[str, Any], list[str]],
) -> None:
    assert measured[0].whole["ratio"] > 1


def test_without_the_sdk_this_package_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing_packages", lambda python, modules: ["openai"])
    found = small(requests=1, rounds=1)
    assert [one.name for one in found.parts] == list(OWN)
    assert found.comparisons == found.missed == []
    assert any("the openai SDK is left out" in note and "vecmill[test]" in note for note in found.notes)


def test_a_way_that_sends_other_requests_than_it_should_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ways", lambda *_: [Way(CALLS, "embedder", 128, 1, {"call": 64})])
    with pytest.raises(ProviderError, match="was to send 128 texts in 1 requests, and sent"):
        small()


def test_a_way_that_gets_other_vectors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"model": "text-embedding-ada-002"}
    ways = [Way(PROVIDER, "provider", 128, 2), Way("another", "provider", 64, 1, other)]
    monkeypatch.setattr(client, "_ways", lambda *_: ways)
    with pytest.raises(ProviderError, match="another got other vectors than vecmill provider"):
        small()


def test_our_gates_hold_against_the_faster_default_of_the_sdk() -> None:
    cpu = {
        PROVIDER: 0.01,
        CALLS: 0.03,
        AT_ONCE: 0.02,
        ONE_CALL: 0.03,
        OWN_ROWS: 1.0,
        SDK: 0.1,
        SDK_ASYNC: 0.06,
        SDK_FLOATS: 2.0,
    }
    parts = [part(name, [seconds] * 7) for name, seconds in cpu.items()]
    parts.append(part(SDK_ROWS, [1.0] * 7, wall=[50.0] * 7))
    found = {(one.name, one.baseline): one for one in client._compare(parts, 0)}
    assert found[PROVIDER, SDK].least is None
    assert found[PROVIDER, SDK_ASYNC].ratio.median == pytest.approx(6)
    assert found[PROVIDER, SDK_ASYNC].least == 4.0
    assert (found[ONE_CALL, SDK_ASYNC].least, found[ONE_CALL, SDK_ASYNC].aim) == (2.2, 4.0)
    assert found[CALLS, SDK_ASYNC].least is None  # shown, not judged
    assert [pair for pair, one in found.items() if one.missed] == [(ONE_CALL, SDK_ASYNC)]
    assert found[OWN_ROWS, SDK_ROWS].ratio.median == pytest.approx(50)


def test_ratios_compare_seconds_a_text_whatever_the_rounds_sizes() -> None:
    one = compare(part("ours", [1.0, 2.0], texts=100), part("theirs", [2.0, 4.0], texts=10), "cpu", 0)
    assert one.ratio.median == pytest.approx(20)


def test_a_gate_is_missed_where_the_lower_end_of_the_interval_is_below_it() -> None:
    held = Comparison("a", "b", "cpu", Ratio(5.0, 4.0, 6.0, 7), 4.0)
    missed = replace(held, ratio=Ratio(5.0, 3.9, 6.0, 7))
    assert not held.missed
    assert missed.missed
    assert not replace(missed, least=None).missed


def test_the_table_shows_ratios_and_gates_and_no_seconds() -> None:
    ratio = Ratio(5.0, 3.9, 6.0, 7)
    found = report(
        [Comparison("a", "b", "cpu", ratio, 4.0, 6.0), Comparison("a", "c", "cpu", ratio)],
        whole={"rows": 2000, "ratio": 200.4},
        notes=["calm"],
    )
    shown = render(found)
    assert "a : b  cpu   5.00 [3.90, 6.00]     MISSED: 3.90 < 4, aim 6" in shown
    assert "a : c  cpu   5.00 [3.90, 6.00]" in shown
    assert shown[-2:] == ["all 2,000 rows, once: 200.4 times fewer wall seconds", "note: calm"]


@pytest.mark.parametrize(("low", "code"), [(4.1, 0), (3.9, 1)])
def test_the_command_exits_with_1_where_a_gate_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], low: float, code: int
) -> None:
    given: dict[str, Any] = {}

    def run(**options: Any) -> Report:
        given.update(options)
        return report([Comparison("a", "b", "cpu", Ratio(5.0, low, 6.0, 7), 4.0)])

    monkeypatch.setattr(client, "run_client", run)
    assert main.run(["bench", "client", "--rounds", "9", "-o", "r.json", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ratios"][0]["missed"] is bool(code)
    assert (given["rounds"], given["out"], given["full"]) == (9, Path("r.json"), False)


def test_texts_are_different_and_of_the_length_of_a_paragraph() -> None:
    texts = client.distinct_texts(3000, seed=1)
    assert len(set(texts)) == 3000
    assert texts == client.distinct_texts(3000, seed=1) != client.distinct_texts(3000, seed=2)
    counts = tokens.count(texts)
    assert np.percentile(counts, 5) >= 55
    assert np.percentile(counts, 95) <= 110


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"requests": 0}, {"rows": 0}])
def test_a_run_too_small_to_measure_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        small(**wrong)


def test_requests_at_once_are_bounded_and_answered_in_order() -> None:
    under_way = most = 0

    async def ask(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return number

    assert asyncio.run(client_worker.at_once(ask, range(20), 4)) == list(range(20))
    assert most == 4


def test_texts_are_cut_into_requests() -> None:
    assert client_worker.cut(range(5), 2) == [[0, 1], [2, 3], [4]]
