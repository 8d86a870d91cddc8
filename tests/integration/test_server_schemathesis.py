"""Made-up requests of every kind, from our own OpenAPI document: no 5xx, nothing it does not say."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("schemathesis") is None:
    pytest.skip("needs schemathesis", allow_module_level=True)

harness = runpy.run_path(str(Path(__file__).parent / "server_clients" / "harness.py"))
serving, request = harness["serving"], harness["request"]

SEED = 20261121
CASES, SLOW_CASES = 500, 5_000
METHODS = ("get", "post", "put", "patch", "delete")

NOT_CHECKED = {
    "positive_data_acceptance": "limits of tokens and served names cannot stand in a schema",
}
"""Checks of schemathesis that are left out, and why."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A server that wants a key, and a key that opens everything."""

    origin: str
    key: str


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    from vecmill.server.access import Right
    from vecmill.server.keys import KeyFile

    path = tmp_path_factory.mktemp("keys") / "keys.json"
    rights = [right for right in Right if right is not Right.OPEN]
    key, _ = KeyFile(path).add("schemathesis", rights=rights)
    limits = {"failed_keys_per_minute": 1_000_000}
    with serving(keys_file=str(path), limits=limits) as running:
        yield Closed(running.origin, key)


@pytest.fixture(scope="module")
def document(closed: Closed) -> dict[str, Any]:
    got = request(closed.origin, "GET", "/openapi.json", key=closed.key)
    assert got.status == 200, got.raw
    found: dict[str, Any] = got.json
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]


def test_every_listed_operation_says_what_it_answers(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len({operation["operationId"] for _, _, operation in found}) == len(found)
    for method, path, operation in found:
        assert operation["responses"], (method, path)
        assert "422" not in operation["responses"], f"{method} {path}: the original answers 400"


def test_made_up_requests_are_answered_as_the_document_says(
    closed: Closed, document: dict[str, Any], tmp_path: Path, slow: bool
) -> None:
    cases = SLOW_CASES if slow else CASES
    listed = operations(document)
    with_body = sum("requestBody" in operation for _, _, operation in listed)
    each = max(10, cases // max(with_body, 1))
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["run", f"{closed.origin}/openapi.json", "--no-color", "--seed", str(SEED)]
    command += ["--header", f"Authorization: Bearer {closed.key}", "--max-examples", str(each)]
    command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink"]
    command += ["--checks", "all", "--exclude-checks", ",".join(NOT_CHECKED)]
    command += ["--report", "json", "--report-json-path", str(report), "--generation-database", "none"]
    command += ["--request-timeout", "60", "--suppress-health-check", "all", "--output-truncate", "true"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(hooks(tmp_path))},
        check=False,
        timeout=600,
    )
    said = done.stdout[-20_000:]
    found = json.loads(report.read_text())
    made = found["test_cases"]
    print(f"seed {SEED}: {made['generated']} requests to {found['operations']['tested']} operations")
    print(Counter({failure["title"]: failure["count"] for failure in found["failures"]}))
    assert done.returncode == 0, f"{said}\n{done.stderr[-2_000:]}"
    assert made["unique_failures"] == made["errored"] == 0
    assert made["generated"] >= cases
    assert found["operations"]["tested"] == found["operations"]["total"]
    assert found["operations"]["total"] >= len(listed) - 1  # it does not try where the document itself is
    accepted = sum(phase["accepted"] for rates in found["valid_rates"].values() for phase in rates.values())
    assert accepted > cases // 20, "hardly any made-up request was a good one: nothing was tried"


def hooks(folder: Path) -> Path:
    """Copy our hooks to where schemathesis runs: it looks for them by a path or a module's name."""
    path = folder / "vecmill_hooks.py"
    path.write_bytes((Path(__file__).parent / "server_clients" / "schemathesis_hooks.py").read_bytes())
    return path
