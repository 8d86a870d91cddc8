"""Scenarios are read from files, and what a file says wrongly is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core.errors import ConfigError, InputError, UnknownNameError
from vecmill.testing.scenarios import PLAIN, SCENARIOS, Latency, Model, Scenario, load
from vecmill.testing.simulator_faults import Fault

FULL = """
keys = ["first-key", "second-key"]
requests_per_minute = 600
tokens_per_minute = 100_000
requests_per_day = 5000
meaning = "sliding"
hint = "rate_ms"
rate_headers = false
max_inputs = 16
wording = "plain"
max_request_tokens = 9000
max_request_bytes = 1000
base64 = "refused"
poison = "POISON"
seed = 7
deployments = { reviews = "big/one" }

[latency]
kind = "uniform"
seconds = 1
most = 2.5

[models.tiny]
dimensions = 4
mrl = false

[models."big/one"]
dimensions = 3072
usd_per_million_tokens = 0.13

[[faults]]
kind = "500"
share = 0.1

[[faults]]
kind = "timeout"
at = [3, 7]
times = 1
"""


def test_a_file_says_everything_a_scenario_has(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(FULL)
    assert Scenario.from_toml(path) == Scenario(
        models={"tiny": Model(4, mrl=False), "big/one": Model(3072, usd_per_million_tokens=0.13)},
        deployments={"reviews": "big/one"},
        keys=("first-key", "second-key"),
        requests_per_minute=600,
        tokens_per_minute=100_000,
        meaning="sliding",
        requests_per_day=5000,
        hint="rate_ms",
        rate_headers=False,
        max_inputs=16,
        wording="plain",
        max_request_tokens=9000,
        max_request_bytes=1000,
        base64="refused",
        poison="POISON",
        latency=Latency("uniform", 1, most=2.5),
        faults=(Fault("500", share=0.1), Fault("timeout", at={3, 7}, times=1)),
        seed=7,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("request_per_minute = 3", "did you mean 'requests_per_minute'"),
        ("[latency]\nsecond = 1", "did you mean 'seconds'"),
        ("[latency]\nkind = 'normal'", "did you mean 'lognormal'"),
        ("[[faults]]\nkind = 'time_out'", "did you mean 'timeout'"),
        ("[[faults]]\nkind = '500'\nshares = 1", "did you mean 'share'"),
        ("[models.tiny]\ndimension = 4", "did you mean 'dimensions'"),
        ("meaning = 'windows'", "did you mean 'window'"),
        ("base64 = 'refuse'", "did you mean 'refused'"),
        ("deployments = { a = 'text-embedding-3-smal' }", "did you mean 'text-embedding-3-small'"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(UnknownNameError, match=message):
        Scenario.from_toml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 'seven'", "seed = 'seven' is not int"),
        ("requests_per_minute = true", "is not int"),
        ("requests_per_minute = -1", "is not int"),
        ("keys = 'one'", "is not tuple"),
        ("rate_headers = 1", "is not bool"),
        ("latency = 3", "is not Latency"),
        ("[latency]\nseconds = inf", "is not float"),
        ("[latency]\nseconds = -1.0", "is not float"),
        ("[[faults]]\nshare = 0.1", "lacks kind"),
        ("[[faults]]\nkind = '500'\nat = ['3']", "is not"),
        ("faults = ['500']", "is no table"),
        ("[models]\ntiny = 4", "is no table"),
        ("seed = ", "cannot be read"),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Scenario.from_toml(path)


def test_a_scenario_without_keys_or_models_is_refused() -> None:
    with pytest.raises(InputError, match="at least one key"):
        Scenario(keys=())
    with pytest.raises(InputError, match="at least one key and one model"):
        Scenario(models={})


def test_names_and_files_are_loaded(tmp_path: Path) -> None:
    assert load("plain") is PLAIN
    path = tmp_path / "own"
    path.write_text("seed = 3")
    assert load(str(path)) == Scenario(seed=3)
    with pytest.raises(UnknownNameError, match="rpm_bound"):
        load("rpm-bound")
    with pytest.raises(ConfigError, match="cannot be read"):
        load("absent.toml")


def test_every_named_scenario_has_its_own_character() -> None:
    assert len({repr(scenario) for scenario in SCENARIOS.values()}) == len(SCENARIOS)
