"""Which hosts and origins are answered."""

from __future__ import annotations

import pytest

from vecmill.server.errors import Refusal
from vecmill.server.hosts import check_host, cors_headers, is_loopback, needs_keys, preflight
from vecmill.server.options import Options

PAGE = "https://app.example"


def status_of(options: Options, *, version: str = "1.1", **headers: str) -> int:
    """Return what `check_host` answers with; 200 where it lets the request through."""
    try:
        check_host(options, headers, version=version)
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:1", 200),
        ("localhost.", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:65535", 200),
        ("127.9.9.9:80", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("notlocalhost", 421),
        ("0.0.0.0:8000", 421),
        ("169.254.169.254", 421),
        ("[fe80::1]:8000", 421),
        ("2130706433", 421),
        ("", 400),
        ("localhost:", 400),
        ("localhost:port", 400),
        ("localhost:123456", 400),
        ("user@localhost", 400),
        ("localhost/path", 400),
        ("localhost localhost", 400),
        ("[::1", 400),
        ("xn--é", 400),
        ("a" * 10_000, 400),
    ],
)
def test_a_loopback_server_answers_only_names_of_this_machine(host: str, status: int) -> None:
    assert status_of(Options(), host=host) == status


def test_only_http_1_1_must_bring_a_host() -> None:
    assert status_of(Options()) == 400
    assert status_of(Options(), version="1.0") == 200


@pytest.mark.parametrize(
    ("entry", "host", "status"),
    [
        ("api.example", "api.example", 200),
        ("api.example", "API.example:8443", 200),
        ("API.example", "api.example.", 200),
        ("api.example", "other.example", 421),
        ("api.example", "x.api.example", 421),
        ("api.example:8443", "api.example:8443", 200),
        ("api.example:8443", "api.example", 421),
        ("*.example", "a.b.example", 200),
        ("*.example", "example", 421),
        ("*.example", "badexample", 421),
        ("[fd00::1]", "[fd00::1]:80", 200),
        ("*", "anything", 200),
        ("api.example", "localhost", 200),
    ],
)
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing is bound
def test_allowed_hosts_are_answered_on_every_address(bind: str, entry: str, host: str, status: int) -> None:
    assert status_of(Options(host=bind, allowed_hosts=(entry,)), host=host) == status


@pytest.mark.parametrize(
    "options",
    [
        Options(require_keys=True),
        Options(host="0.0.0.0"),  # noqa: S104 - nothing is bound
        Options(host="::"),
        Options(oidc_issuer="https://login.example/x", oidc_audience="vecmill"),
    ],
)
def test_where_keys_are_needed_any_host_is_answered(options: Options) -> None:
    assert needs_keys(options)
    assert status_of(options, host="whatever.example") == 200
    assert status_of(options, host="what ever") == 400


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://localhost:8000", "localhost:8000", 200),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://localhost", "localhost", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://localhost", "localhost:443", 200),
        ("http://localhost:3000", "localhost:8000", 403),
        ("http://127.0.0.1:8000", "localhost:8000", 403),
        ("https://evil.example", "localhost:8000", 403),
        ("null", "localhost:8000", 403),
        ("", "localhost:8000", 403),
        ("file://", "localhost:8000", 403),
        ("localhost:8000", "localhost:8000", 403),
        ("chrome-extension://localhost:8000", "localhost:8000", 403),
        (PAGE, "localhost:8000", 403),
    ],
)
def test_only_a_page_of_the_same_origin_may_ask(origin: str, host: str, status: int) -> None:
    assert status_of(Options(), origin=origin, host=host) == status


def test_a_listed_page_may_ask_and_its_neighbours_may_not() -> None:
    options = Options(allowed_origins=(PAGE + "/",))
    assert status_of(options, origin=PAGE, host="localhost") == 200
    assert status_of(options, origin=PAGE.upper(), host="localhost") == 200
    assert status_of(options, origin=PAGE + ".evil.example", host="localhost") == 403
    assert status_of(options, origin="http://app.example", host="localhost") == 403
    assert status_of(options, origin=PAGE, host="evil.example") == 421


def test_every_page_is_allowed_only_where_keys_are_needed() -> None:
    assert status_of(Options(allowed_origins=("*",)), origin=PAGE, host="localhost") == 403
    closed = Options(allowed_origins=("*",), require_keys=True)
    assert status_of(closed, origin=PAGE, host="localhost") == 200
    assert ("access-control-allow-origin", "*") in cors_headers(closed, {"origin": PAGE})


ASK = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "Authorization, content-type, x-stainless-lang, bad name, x\r\ny",
    "access-control-request-private-network": "true",
}


@pytest.mark.parametrize(
    ("allowed", "origin", "answered"),
    [
        ((), PAGE, False),
        ((PAGE,), PAGE, True),
        ((PAGE,), "https://evil.example", False),
        ((PAGE,), "null", False),
        (("https://one.example", PAGE), PAGE, True),
        (("*",), PAGE, False),  # an open server
    ],
)
def test_preflight_answers_allowed_pages_only(allowed: tuple[str, ...], origin: str, answered: bool) -> None:
    options = Options(allowed_origins=allowed)
    headers = {**ASK, "origin": origin}
    answer = preflight(options, headers)
    said = dict((*answer.headers, *cors_headers(options, headers)))
    assert answer.status == 204
    assert "access-control-allow-credentials" not in said
    if not answered:
        assert not any(name.startswith("access-control") for name in said)
        return
    assert said["access-control-allow-origin"] == origin
    assert said["access-control-allow-methods"] == "GET, HEAD, POST"
    assert said["access-control-allow-headers"] == "authorization, content-type, x-stainless-lang"
    assert said["access-control-allow-private-network"] == "true"
    assert said["vary"] == "Origin"


def test_preflight_without_an_origin_says_nothing() -> None:
    assert preflight(Options(allowed_origins=(PAGE,)), {}).headers == ()


def test_answers_vary_by_origin_as_soon_as_one_is_allowed() -> None:
    assert cors_headers(Options(), {"origin": PAGE}) == ()
    assert cors_headers(Options(allowed_origins=(PAGE,)), {}) == (("vary", "Origin"),)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.1.2.3", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing is bound
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("myhost", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
