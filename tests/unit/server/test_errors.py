"""Which of our errors ends in which answer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import orjson
import pytest

from vecmill.core import errors
from vecmill.server.errors import (
    MAX_RETRY_AFTER,
    STATUSES,
    Refusal,
    late,
    refusal_of,
    unavailable,
    unknown_model,
    wait,
)

ROOT = Path(__file__).parents[3]


def _all_errors(kind: type[errors.Error] = errors.Error) -> set[type[errors.Error]]:
    return {kind}.union(*(_all_errors(child) for child in kind.__subclasses__()))


def test_every_error_of_the_package_has_a_status() -> None:
    ours = {kind for kind in _all_errors() if kind.__module__ == "vecmill.core.errors"}
    assert set(STATUSES) == ours


def test_no_error_ends_in_a_status_clients_do_not_expect() -> None:
    assert {status for status, _, _ in STATUSES.values()} <= {400, 429, 500, 502, 503}


def test_the_error_object_has_all_four_keys() -> None:
    said = orjson.loads(unknown_model("x").body())
    assert set(said) == {"error"}
    assert said["error"] == {
        "message": "The model `x` does not exist or you do not have access to it."
        " The models served here are listed at /v1/models.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_azures_error_always_has_a_code() -> None:
    assert orjson.loads(Refusal(404, "no").body(azure=True))["error"]["code"] == "404"


def test_a_long_name_of_a_model_is_shown_cut() -> None:
    assert len(unknown_model("x" * 10_000).message) < 250


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "whole"), [(0.25, "250", "1"), (0.0, "1", "1"), (1e9, "120000", "120")]
)
def test_waits_are_said_in_both_headers_and_never_beyond_what_clients_obey(
    seconds: float, milliseconds: str, whole: str
) -> None:
    headers = dict(wait("busy", seconds).headers)
    assert headers == {"retry-after-ms": milliseconds, "retry-after": whole}
    assert int(headers["retry-after"]) <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("/secret/path is missing"),
        errors.AuthenticationError("key sk-123 refused at https://inside.example"),
        errors.CorruptFileError("/secret/path is damaged"),
        errors.UnavailableError("https://inside.example does not answer"),
    ],
)
def test_what_is_not_the_callers_doing_is_not_shown(error: errors.Error) -> None:
    refusal = refusal_of(error)
    assert refusal.status >= 500
    assert str(error) not in refusal.message


def test_what_is_the_callers_doing_is_shown() -> None:
    refusal = refusal_of(errors.TextTooLongError("text 3 has 513 tokens"), param="input")
    assert (refusal.status, refusal.message, refusal.param) == (400, "text 3 has 513 tokens", "input")


def test_a_refused_upstream_key_is_not_taken_for_the_clients() -> None:
    refusal = refusal_of(errors.AuthenticationError("no"))
    assert refusal.status == 502
    assert ("x-should-retry", "false") in refusal.headers


def test_an_upstream_limit_says_when_to_come_back() -> None:
    refusal = refusal_of(errors.RateLimitError("slow down", retry_after=3.0))
    assert refusal.status == 429
    assert dict(refusal.headers)["retry-after-ms"] == "3000"


def test_a_spent_budget_is_not_worth_another_try() -> None:
    refusal = refusal_of(errors.BudgetReachedError("all spent"))
    assert (refusal.status, refusal.code) == (429, "budget_reached")
    assert ("x-should-retry", "false") in refusal.headers


def test_a_missed_deadline_and_an_absent_model_are_the_servers_errors() -> None:
    assert (late().status, late().type) == (504, "server_error")
    assert unavailable("loading", "model_loading").status == 503
    assert dict(unavailable("loading", "model_loading", seconds=2).headers)["retry-after"] == "2"


def _documented() -> dict[str, set[str]]:
    """Return the codes of each status as the reference lists them."""
    page = (ROOT / "docs" / "reference" / "server-api.md").read_text("utf-8")
    section = page.partition("\n## Errors\n")[2].partition("\n## ")[0]
    found: dict[str, set[str]] = {}
    for statuses, codes in re.findall(r"^\| ([\d, ]+) \| (.*?) \|", section, re.MULTILINE):
        for status in statuses.split(", "):
            found.setdefault(status, set()).update(re.findall(r"`(\w+)`", codes))
    return found


def _given(node: ast.AST) -> list[ast.expr]:
    """Return what a node passes as `code`, as its default, or as the second argument of `unavailable`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        return [default for argument, default in pairs if argument.arg == "code" and default is not None]
    if not isinstance(node, ast.Call):
        return []
    second = isinstance(node.func, ast.Name) and node.func.id == "unavailable"
    return [word.value for word in node.keywords if word.arg == "code"] + node.args[1:2] * second


def _codes(source: Path) -> set[str]:
    """Return the codes a module answers with; constants of the module are looked up."""
    tree = ast.parse(source.read_text("utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    parts = [part for node in ast.walk(tree) for given in _given(node) for part in ast.walk(given)]
    values = [constants.get(part.id) if isinstance(part, ast.Name) else part for part in parts]
    words = [value.value for value in values if isinstance(value, ast.Constant)]
    return {word for word in words if isinstance(word, str) and word}


def test_the_reference_lists_every_code_with_its_status() -> None:
    documented = _documented()
    missing = {
        (status, code)
        for status, _, code in STATUSES.values()
        if code is not None and code not in documented[str(status)]
    }
    assert not missing
    sources = (ROOT / "src" / "vecmill" / "server").rglob("*.py")
    used = {code for source in sources for code in _codes(source)}
    assert {"model_loading", "invalid_api_key", "deadline_exceeded", "too_many_connections"} <= used
    known = {code for codes in documented.values() for code in codes}
    assert not used - known
    assert not known - used - {code for _, _, code in STATUSES.values()}, "documented, and never sent"
