from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vecmill.bench import server
from vecmill.bench.serve_shapes import Shape
from vecmill.bench.server import CALLS, ENGINE, OWN, Plan
from vecmill.bench.server_processes import ServerCommand, ServerProcess
from vecmill.bench.server_report import Comparison, Report, render
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.measure import Ratio


@pytest.mark.parametrize(
    ("ratio", "bounds", "missed", "verdict"),
    [
        (Ratio(1.0, 0.91, 1.1, 7), {"least": 0.9}, False, "ok: 0.91 >= 0.9"),
        (Ratio(1.0, 0.89, 1.1, 7), {"least": 0.9}, True, "MISSED: 0.89 < 0.9"),
        (Ratio(1.05, 1.0, 1.09, 7), {"most": 1.1}, False, "ok: 1.09 <= 1.1"),
        (Ratio(1.05, 1.0, 1.2, 7), {"most": 1.1}, True, "MISSED: 1.20 > 1.1"),
        (Ratio(2.6, 2.5, 2.7, 7), {"least": 1.8, "aim": 2.5}, False, "ok: 2.50 >= 1.8, aim 2.5"),
        (Ratio(1.0, 0.1, 9.0, 7), {}, False, ""),
    ],
)
def test_a_gate_holds_for_the_end_of_the_interval(
    ratio: Ratio, bounds: dict[str, float], missed: bool, verdict: str
) -> None:
    found = Comparison("x : y", ratio, **bounds)
    assert (found.missed, found.verdict) == (missed, verdict)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any]]:
    out = tmp_path_factory.mktemp("server") / "result.json"
    plan = Plan(texts=40, rounds=2, clients=4, starts=1, alone=3, overload=0.6, seed=5)
    return server.run_server(plan, out=out), json.loads(out.read_text("utf-8"))


def test_every_load_is_measured_in_every_round(measured: tuple[Report, dict[str, Any]]) -> None:
    report, record = measured
    assert [part.name for part in report.parts] == [OWN, ENGINE, CALLS]
    assert all(len(part.wall) == 2 and min(part.wall) > 0 for part in report.parts)
    assert len(report.starts[OWN]) == 1
    assert report.overload is not None
    assert len(report.overload.goodput) == len(report.overload.p99) == 2
    assert report.alone is not None
    assert report.alone.tokens == 8
    assert len(report.alone.http) == len(report.alone.engine) == len(report.alone.echo) == 2
    assert record["benchmark"] == "server"
    assert record["parts"][0]["texts_per_second"] > 0
    assert record["settings"]["clients"] == 4


def test_gates_are_the_promises_of_the_server(measured: tuple[Report, dict[str, Any]]) -> None:
    asked = {one.what: (one.least, one.most) for one in measured[0].comparisons}
    assert asked[f"{OWN} : {ENGINE}, texts a second"] == (0.9, None)
    assert asked["goodput at 3 x the peak : peak"] == (0.95, None)
    assert asked["one short text by HTTP : Embedder.embed, p50"] == (None, 1.1)


def test_the_lines_name_all_parts(measured: tuple[Report, dict[str, Any]]) -> None:
    lines = "\n".join(render(measured[0]))
    for words in (
        "40 texts of synthetic sentences",
        OWN,
        "overload: ",
        "one text of 8 tokens: ",
        "first vector",
    ):
        assert words in lines
    assert "infinity is left out" in lines


def test_a_peer_needs_its_weights() -> None:
    with pytest.raises(InputError, match="--model"):
        server.run_server(infinity_python=Path("python"))


@pytest.mark.parametrize("field", ["texts", "rounds", "clients"])
def test_nothing_can_be_measured_with_nothing(field: str) -> None:
    with pytest.raises(InputError, match=f"{field}=0"):
        replace(Plan(), **{field: 0})


def test_a_server_that_ends_says_its_last_words() -> None:
    words = [str(server.peers.this_python()), "-c", "import sys; sys.exit('no such model')"]
    command = ServerCommand("peer", words, "/v1/embeddings", Shape(model="m"), None)
    with pytest.raises(ProviderError, match="peer ended with status 1: no such model"):
        ServerProcess(command, first="x")
