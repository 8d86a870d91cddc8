"""`vecmill simulate` serves until it is interrupted, and then says what was asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from vecmill.cli.simulate import simulate
from vecmill.core.errors import InputError, UnknownNameError

SCENARIO = (
    'keys = ["own-key-0123456789"]\nmodels = { tiny = { dimensions = 2, usd_per_million_tokens = 1.0 } }\n'
)
RUN = "import sys; from vecmill.cli.simulate import simulate; simulate(sys.argv[1:], standalone_mode=False)"


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command as a process; gives it and what it said until it served."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if line.startswith("base_url ="):  # the last one
                break
        yield process, said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_sums_up_when_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    with serving("--scenario", str(path)) as (process, said):
        found = re.search(r"OPENAI_BASE_URL=(\S+) OPENAI_API_KEY=(\S+)", said)
        assert found is not None, said
        url, key = found.groups()
        body = json.dumps({"model": "tiny", "input": ["hello world", "hello"]}).encode()
        request = urllib.request.Request(f"{url}/embeddings", body)  # noqa: S310 - http
        request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
            assert len(json.load(reply)["data"]) == 2
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
    summary = json.loads(out)
    assert (summary["requests"], summary["texts"], summary["tokens"]) == (1, 2, 3)
    assert summary["statuses"] == {"200": 1}
    assert summary["usd"] == pytest.approx(3e-6)


def test_it_names_every_door(tmp_path: Path) -> None:
    with serving() as (_, said):
        for line in (
            "/v1\n",
            "/inference\n",
            "AZURE_OPENAI_ENDPOINT=http://127.0.0.1:",
            "text-embedding-3-small",
        ):
            assert line in said


def test_an_unknown_scenario_is_refused_with_close_names() -> None:
    done = CliRunner().invoke(simulate, ["--scenario", "rpm_bond"])
    assert isinstance(done.exception, UnknownNameError)
    assert "rpm_bound" in str(done.exception)


def test_the_help_names_every_scenario() -> None:
    from vecmill.testing.scenarios import SCENARIOS

    text = " ".join(CliRunner().invoke(simulate, ["--help"]).output.split())
    for name in SCENARIOS:
        assert re.search(rf"\b{name}\b", text), name


def test_it_says_what_it_is_like_and_its_profile_is_a_file_of_settings() -> None:
    with serving("--scenario", "github") as (_, said):
        first, limits = said.splitlines()[0], next(line for line in said.splitlines() if "limits " in line)
        assert "text-embedding-3-small (1536 dimensions)" in first
        assert "15 requests a minute" in limits
        assert re.search(r"requests a day; [\d,]+ texts and 64,000 tokens a request", limits)
        assert "vecmill config trust" in said
        profile = tomllib.loads(said[said.index("\n[profiles.github]\n") :])
        assert re.fullmatch(r"http://127.0.0.1:\d+/inference", profile["profiles"]["github"]["base_url"])


def test_a_port_that_is_taken_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(simulate, ["--port", str(port)])
    assert isinstance(done.exception, InputError)
    assert f"port {port} of 127.0.0.1 is taken: choose another --port" in str(done.exception)


def test_a_host_that_is_not_here_is_named() -> None:
    done = CliRunner().invoke(simulate, ["--host", "192.0.2.1", "--port", "0"])
    assert isinstance(done.exception, InputError)
    assert "cannot serve at 192.0.2.1" in str(done.exception)
