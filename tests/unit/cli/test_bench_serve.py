from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vecmill.bench import server
from vecmill.bench.server import Plan
from vecmill.bench.server_report import Comparison, Report
from vecmill.cli import main
from vecmill.core.measure import Ratio


def report(low: float) -> Report:
    data = {"texts": 40, "source": "x", "tokens_mean": 50.0}
    gate = Comparison("ours : theirs", Ratio(1.0, low, 1.1, 7), least=0.9)
    settings = {"clients": 32, "rounds": 7}
    return Report("c", None, data, settings, {}, {}, [], {}, None, None, {}, {}, [gate])


@pytest.mark.parametrize(("low", "code"), [(0.91, 0), (0.89, 1)])
def test_a_missed_gate_is_exit_code_1(
    low: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def run(plan: Plan, **options: Any) -> Report:
        seen.append((plan, options))
        return report(low)

    monkeypatch.setattr(server, "run_server", run)
    words = ["bench", "server", "--rounds", "9", "--texts", "64", "--overload-texts", "8", "-o", "r.json"]
    assert main.run(words) == code
    plan, options = seen[0]
    assert plan == Plan(rounds=9, texts=64, overload_texts=8)
    assert options["out"] == Path("r.json")
    assert ("MISSED: 0.89 < 0.9" in capsys.readouterr().out) is bool(code)


def test_defaults_of_the_command_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []

    def run(plan: Plan, **options: Any) -> Report:
        seen.append(plan)
        return report(1.0)

    monkeypatch.setattr(server, "run_server", run)
    assert main.run(["bench", "server", "--json"]) == 0
    assert seen == [Plan()]
