"""Which hosts and which pages' origins are answered: what keeps a browser from being used against the server.

A page of any site may make its visitor's browser send requests to this machine, and with a name that
resolves to 127.0.0.1 (DNS rebinding) even read the answers. So a server on a loopback address answers only to
names that can mean nothing else, and a page of another origin only where it was allowed by name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache

from vecmill.server.call import Answer
from vecmill.server.errors import Header, Refusal, invalid
from vecmill.server.options import Options

MAX_AGE = 600
"""Seconds a browser may remember the answer to its preflight."""

EXPOSED = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)
"""Headers of an answer that an allowed page may read."""

_METHODS = "GET, HEAD, POST"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_LONGEST = 300
_MOST_NAMES = 64
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class _Verdict(Enum):
    ANSWERED = "answered"
    FOREIGN = "foreign"
    MALFORMED = "malformed"


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Say whether an address or name means this machine only: "localhost", "127.0.0.1", "[::1]"."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def needs_keys(options: Options) -> bool:
    """Say whether the options alone close the server: asked for, reachable from outside, or issuer set."""
    if options.require_keys or options.oidc_issuer is not None:
        return True
    return not (options.insecure_no_keys or is_loopback(options.host))


def check_host(options: Options, headers: Mapping[str, str], *, version: str = "") -> None:
    """Refuse a Host that is not ours (DNS rebinding) and a page's Origin that is not allowed.

    Names of this machine (localhost, 127.0.0.0/8, [::1]) with any port are always answered, and
    `Options.allowed_hosts`; where that is empty and keys are needed or others reach the address, all are.

    Args:
        options: Who is allowed.
        headers: The request's, by lower-case name.
        version: HTTP's: "1.1" must bring a Host; others, such as probes of 1.0, need not.

    Raises:
        Refusal: 400 no or a malformed Host, 421 another host, 403 another origin.
    """
    given = headers.get("host")
    if given is None:
        if version == "1.1":
            raise invalid("the request has no Host header, which HTTP/1.1 asks for")
    else:
        verdict = _judged(given, options) if len(given) <= _LONGEST else _Verdict.MALFORMED
        if verdict is _Verdict.MALFORMED:
            raise invalid("the Host header is malformed: write NAME or NAME:PORT")
        if verdict is _Verdict.FOREIGN:
            raise Refusal(
                421,
                "this server does not answer to the name in the Host header; ask for localhost, or let its "
                "operator allow the name: --allowed-host NAME",
                code="unknown_host",
            )
    origin = headers.get("origin")
    if origin is not None and not _is_same(origin, given) and not _is_allowed(origin, options):
        raise Refusal(
            403,
            "pages of other origins may not use this server; its operator can allow one: "
            "--allowed-origin https://NAME",
            type="permission_error",
            code="origin_not_allowed",
        )


def cors_headers(options: Options, headers: Mapping[str, str]) -> tuple[Header, ...]:
    """Return what an allowed page's browser needs to see; nothing for others. Never allows credentials."""
    if not options.allowed_origins:
        return ()
    vary = ("vary", "Origin")
    origin = headers.get("origin")
    if origin is None or not _is_allowed(origin, options):
        return (vary,)
    return (
        ("access-control-allow-origin", "*" if "*" in options.allowed_origins else origin),
        ("access-control-expose-headers", ", ".join(EXPOSED)),
        vary,
    )


def preflight(options: Options, headers: Mapping[str, str]) -> Answer:
    """Answer a browser's question before its request; `check_host` and `cors_headers` do the rest of it."""
    origin = headers.get("origin")
    if origin is None or not _is_allowed(origin, options):
        return Answer(204, b"")
    asked = headers.get("access-control-request-headers", "").split(",")[:_MOST_NAMES]
    names = [name.strip().lower() for name in asked if _HEADER_NAME.fullmatch(name.strip())]
    said = [("access-control-allow-methods", _METHODS), ("access-control-max-age", str(MAX_AGE))]
    if names:
        said.append(("access-control-allow-headers", ", ".join(names)))
    if headers.get("access-control-request-private-network") == "true":
        said.append(("access-control-allow-private-network", "true"))
    return Answer(204, b"", headers=tuple(said))


def _judged(given: str, options: Options) -> _Verdict:
    any_host = not options.allowed_hosts and (needs_keys(options) or not is_loopback(options.host))
    return _verdict(given, options.allowed_hosts, any_host)


@lru_cache(maxsize=256)
def _verdict(given: str, allowed: tuple[str, ...], any_host: bool) -> _Verdict:
    match = _HOST.fullmatch(given)
    if match is None:
        return _Verdict.MALFORMED
    name, port = match[1].lower().removesuffix("."), match[2]
    if any_host or is_loopback(name):
        return _Verdict.ANSWERED
    return _Verdict.ANSWERED if any(_names(entry, name, port) for entry in allowed) else _Verdict.FOREIGN


def _names(entry: str, name: str, port: str | None) -> bool:
    """Say whether an allowed entry ("NAME", "NAME:PORT", "*.NAME", "*") means a host."""
    if entry == "*":
        return True
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]+))?", entry.lower())
    if match is None or (match[2] is not None and match[2] != port):
        return False
    wanted = match[1].removesuffix(".")
    if wanted.startswith("*."):
        return name.endswith(wanted[1:])
    return name == wanted


def _is_allowed(origin: str, options: Options) -> bool:
    """Say whether a page's origin is on the list; "*" stands for all and only where keys are needed."""
    allowed = options.allowed_origins
    if not allowed:
        return False
    if "*" in allowed and needs_keys(options):
        return True
    return origin.lower() in {entry.lower().rstrip("/") for entry in allowed}


def _is_same(origin: str, host: str | None) -> bool:
    """Say whether a page came under the name the request is sent to; a proxy may have spoken TLS for us."""
    scheme, _, authority = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    if port is None or host is None:
        return False
    return authority.removesuffix(f":{port}") == host.lower().removesuffix(f":{port}")
