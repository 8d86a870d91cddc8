"""Access over real HTTP: every route is closed once a key exists, and clients see what they expect."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from vecmill.core.config import load_settings
from vecmill.server import keys as keys_module
from vecmill.server.access import Right
from vecmill.server.app import App, create_app
from vecmill.server.keys import KeyFile
from vecmill.server.options import Limits, Options
from vecmill.server.run import served_in_thread

LIVENESS = {"/livez", "/healthz", "/health", "/health/live", "/v2/health/live"}
"""What may be asked without a key. A route that is to be open is added here, for its reviewer to see."""


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


def ask(at: str, method: str, path: str, /, *, body: Any = None, **headers: str) -> Got:
    """Send one request; underscores of header names stand for hyphens."""
    connection = http.client.HTTPConnection(at.removeprefix("http://"), timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, body=raw, headers={"content-type": "application/json", **given})
        reply = connection.getresponse()
        said = {name.lower(): value for name, value in reply.getheaders()}
        return Got(reply.status, said, reply.read())
    finally:
        connection.close()


def embed(at: str, /, text: str = "a text", **headers: str) -> Got:
    return ask(at, "POST", "/v1/embeddings", body={"model": "minilm", "input": text}, **headers)


@pytest.fixture
def file(own_home: Path) -> KeyFile:
    return KeyFile(own_home / "keys.json")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of keys is looked at by every request."""
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)


def app_of(**options: Any) -> App:
    return create_app(Options(**options), settings=load_settings())


@pytest.fixture
def closed(file: KeyFile) -> Iterator[tuple[str, App, str]]:
    """A server with one key, for embedding only: origin, application, key."""
    secret, _ = file.add("embedder", rights=[Right.EMBED])
    app = app_of(limits=Limits(failed_keys_per_minute=100_000))
    with served_in_thread(app) as origin:
        yield origin, app, secret


def examples(app: App) -> list[tuple[str, str, Right]]:
    """Return method, a path and the right of every route."""
    return [
        (route.method, re.sub(r"\{[^}]*\}", "x", route.path), route.right)
        for route in app.server.table.routes
    ]


def test_only_liveness_is_open_in_the_route_table() -> None:
    routes = app_of().server.table.routes
    assert len(routes) > 10
    assert {route.path for route in routes if route.right is Right.OPEN} <= LIVENESS


def test_every_route_but_liveness_needs_a_key(closed: tuple[str, App, str]) -> None:
    origin, app, _ = closed
    for method, path, right in examples(app):
        for asked in ("GET", "HEAD") if method == "GET" else (method,):
            for headers in ({}, {"authorization": "Bearer vm-wrong"}, {"api_key": "x" * 600}):
                got = ask(origin, asked, path, **headers)
                if right is Right.OPEN:
                    assert got.status == 200, path
                    continue
                assert got.status == 401, f"{asked} {path} answers {got.status} without a key"
                assert got.headers["www-authenticate"].startswith("Bearer")
                if asked != "HEAD":
                    assert got.error["code"] == "invalid_api_key"


def test_a_key_opens_no_route_it_has_no_right_for(closed: tuple[str, App, str]) -> None:
    origin, app, secret = closed
    for method, path, right in examples(app):
        got = ask(origin, method, path, authorization=f"Bearer {secret}")
        if right in (Right.EMBED, Right.OPEN):
            assert got.status not in (401, 403), path
        else:
            assert got.status == 403, f"{path} answers {got.status} to a key for embedding"
            assert got.error["type"] == "permission_error"


@pytest.mark.parametrize(
    "path", ["//v1/embeddings", "/v1//embeddings", "/V1/embeddings", "/v1/embeddings/", "/%76"]
)
def test_no_other_spelling_of_a_path_gets_past_the_gate(closed: tuple[str, App, str], path: str) -> None:
    got = ask(closed[0], "POST", path, body={"model": "minilm", "input": "x"})
    assert got.status in (401, 404)


def test_both_headers_work_over_http_and_a_wrong_key_is_masked(closed: tuple[str, App, str]) -> None:
    origin, _, secret = closed
    assert embed(origin, authorization=f"Bearer {secret}").status == 200
    assert embed(origin, api_key=secret).status == 200
    got = embed(origin, authorization=f"Bearer {secret[:-1]}")
    assert got.status == 401
    assert got.error["message"].startswith(f"Incorrect API key provided: {secret[:4]}****{secret[-5:-1]}.")
    assert embed(origin, authorization=f"Bearer {secret}", api_key="other").status == 401
    raw = "ключ".encode().decode("latin-1")
    assert embed(origin, authorization=f"Bearer {raw}").status == 401


def test_the_official_client_raises_its_own_errors_and_does_not_retry(
    closed: tuple[str, App, str], file: KeyFile
) -> None:
    origin, app, secret = closed
    reader, _ = file.add("reader", rights=[Right.READ])
    app.server.gate._keys.refresh()
    with openai.OpenAI(base_url=f"{origin}/v1", api_key=secret) as client:
        assert client.embeddings.create(model="minilm", input="x").data
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list()
    with openai.OpenAI(base_url=f"{origin}/v1", api_key="vm-wrong-wrong-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.embeddings.create(model="minilm", input="x")
        assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{origin}/v1", api_key=reader) as client:
        assert [model.id for model in client.models.list()] == ["minilm"]


def test_a_running_server_closes_when_a_key_is_made_beside_it(file: KeyFile, at_once: None) -> None:
    with served_in_thread(app_of()) as origin:
        assert embed(origin).status == 200
        command = [sys.executable, "-m", "vecmill", "key", "add", "first"]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        secret = made.stdout.strip()
        assert embed(origin).status == 401
        assert embed(origin, api_key=secret).status == 200
        file.remove("first")
        assert embed(origin, api_key=secret).status == 401
        assert embed(origin).status == 401


def test_ten_wrong_keys_then_429_and_a_valid_one_still_passes(file: KeyFile) -> None:
    secret, _ = file.add("one")
    with served_in_thread(app_of()) as origin:
        found = [embed(origin, api_key="vm-wrong").status for _ in range(12)]
        assert found == [401] * 10 + [429] * 2
        assert int(embed(origin, api_key="vm-wrong").headers["retry-after"]) <= 6
        assert embed(origin, api_key=secret).status == 200


def test_limits_of_a_key_stand_in_the_headers(file: KeyFile) -> None:
    one, _ = file.add("one")
    two, _ = file.add("two")
    limits = Limits(key_requests_per_minute=2, key_tokens_per_minute=1000)
    with served_in_thread(app_of(limits=limits)) as origin:
        got = embed(origin, api_key=one)
        assert got.status == 200
        assert got.headers["x-ratelimit-limit-requests"] == "2"
        assert got.headers["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"30s|29\.\d+s", got.headers["x-ratelimit-reset-requests"])
        assert got.headers["x-ratelimit-limit-tokens"] == "1000"
        embed(origin, api_key=one)
        got = embed(origin, api_key=one)
        assert got.status == 429
        assert got.error["type"] == "rate_limit_error"
        assert 0 < int(got.headers["retry-after-ms"]) <= 30_000
        assert got.headers["x-ratelimit-remaining-requests"] == "0"
        assert embed(origin, api_key=two).status == 200


def test_a_page_of_another_site_cannot_use_an_open_server() -> None:
    with served_in_thread(app_of()) as origin:
        host = origin.removeprefix("http://")
        assert embed(origin, origin=origin).status == 200
        assert embed(origin, origin="https://evil.example").status == 403
        assert embed(origin, host="evil.example").status == 421
        assert embed(origin, host=host.replace("127.0.0.1", "localhost")).status == 200
        page = ask(origin, "GET", "/docs")
        assert page.status == 200
        asked = {"access_control_request_method": "POST", "origin": "https://evil.example"}
        assert ask(origin, "OPTIONS", "/v1/embeddings", **asked).status == 403


def test_an_allowed_page_may_ask_and_read_errors_too(file: KeyFile) -> None:
    file.add("one")
    page = "https://app.example"
    with served_in_thread(app_of(allowed_origins=(page,))) as origin:
        asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
        got = ask(origin, "OPTIONS", "/v1/embeddings", origin=page, **asked)
        assert got.status == 204
        assert got.headers["access-control-allow-origin"] == page
        assert got.headers["access-control-allow-headers"] == "authorization"
        got = embed(origin, origin=page)
        assert got.status == 401
        assert got.headers["access-control-allow-origin"] == page
        assert "access-control-allow-credentials" not in got.headers
