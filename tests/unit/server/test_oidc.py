"""Bearer tokens: what is believed, and what no forger gets through."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.server
import importlib.util
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from vecmill.core import extras
from vecmill.core.errors import ConfigError, MissingExtraError, UnavailableError
from vecmill.server import oidc as oidc_module
from vecmill.server.keys import Right
from vecmill.server.oidc import (
    FETCHES_PER_MINUTE,
    KEYS_FRESH_SECONDS,
    KEYS_KEPT_SECONDS,
    MAX_TOKEN_BYTES,
    Fetch,
    IssuerUnreachable,
    Oidc,
    TokenRefused,
)
from vecmill.testing.clock import run_virtual

ISSUER = "https://issuer.example/tenant"
AUDIENCE = "api://vecmill"
TENANT = "11111111-2222-3333-4444-555555555555"

RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505 - refused for it
EC = ec.generate_private_key(ec.SECP256R1())
EC384 = ec.generate_private_key(ec.SECP384R1())


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """Return the public half of a key as an issuer publishes it."""
    algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    made = dict(json.loads(algorithm.to_jwk(key.public_key())))
    made.pop("key_ops", None)
    return {**made, **({} if kid is None else {"kid": kid}), **more}


KEYS = [jwk(RSA, "rsa", use="sig"), jwk(EC, "ec", alg="ES256"), jwk(EC384, "ec384", use="sig", crv="P-384")]


def claims(**changes: Any) -> dict[str, Any]:
    now = time.time()
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "somebody",
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "scp": "vecmill.embed vecmill.read other",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def token(
    key: Any = RSA, algorithm: str = "RS256", kid: Any = "rsa", *, header: Any = None, **changes: Any
) -> str:
    headers = {**({} if kid is None else {"kid": kid}), **(header or {})}
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: Any, payload: Any, sign: Callable[[bytes], bytes] = lambda _: b"") -> str:
    """Make a token a library would not."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{b64(head)}.{b64(body)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


class Issuer:
    """Answers for the addresses of an issuer, and counts."""

    def __init__(self, keys: Any = None) -> None:
        self.keys: Any = KEYS if keys is None else keys
        self.down = False
        self.asked: list[str] = []
        self.configuration: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": "https://keys.example/jwks"}

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        await asyncio.sleep(0.01)
        if self.down:
            raise UnavailableError("nobody answers")
        if url.endswith("openid-configuration"):
            return orjson.dumps(self.configuration)
        return self.keys if isinstance(self.keys, bytes) else orjson.dumps({"keys": self.keys})


def oidc(at: Issuer | None = None, /, **changes: Any) -> Oidc:
    given: dict[str, Any] = {"jwks_url": "https://keys.example/jwks", **changes}
    fetch: Fetch = (at or Issuer()).fetch
    return Oidc(given.pop("issuer", ISSUER), given.pop("audience", AUDIENCE), fetch=fetch, **given)


def refused(given: str, which: Oidc | None = None) -> str:
    """Return why a token is not believed."""
    with pytest.raises(TokenRefused) as caught:
        run_virtual((which or oidc()).identify(given))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "rsa"), (RSA, "PS384", "rsa"), (EC, "ES256", "ec"), (EC384, "ES384", "ec384")],
)
def test_a_token_of_the_issuer_is_believed(key: Any, algorithm: str, kid: str) -> None:
    found = run_virtual(oidc().identify(token(key, algorithm, kid)))
    assert found.rights == frozenset({Right.EMBED, Right.READ})
    hashed = hashlib.sha256(f"{ISSUER}\0somebody".encode()).hexdigest()
    assert found.id == f"oidc:{hashed[:12]}"


PUBLIC_PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def hs256_with_the_public_key() -> str:
    sign = lambda signed: hmac.new(PUBLIC_PEM, signed, "sha256").digest()  # noqa: E731
    return by_hand({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, claims(), sign)


def broken(change: Callable[[str, str, str], str]) -> str:
    return change(*token().split("."))


FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "alg none": (lambda: by_hand({"alg": "none", "kid": "rsa"}, claims()), "algorithm is not accepted"),
    "alg None": (lambda: by_hand({"alg": "NoNe", "kid": "rsa"}, claims()), "algorithm is not accepted"),
    "alg missing": (lambda: by_hand({"kid": "rsa"}, claims()), "algorithm is not accepted"),
    "alg a list": (lambda: by_hand({"alg": ["RS256"], "kid": "rsa"}, claims()), "algorithm is not accepted"),
    "HS256 with the public key": (hs256_with_the_public_key, "algorithm is not accepted"),
    "HS256 with nothing": (
        lambda: by_hand({"alg": "HS256"}, claims(), lambda s: hmac.new(b"", s, "sha256").digest()),
        "algorithm is not accepted",
    ),
    "another key": (lambda: token(OTHER), "its signature does not fit"),
    "another key of the issuer": (lambda: token(EC, "ES256", "rsa"), "no key of the issuer's fits"),
    "RSA under an EC key's id": (lambda: token(RSA, "RS256", "ec"), "no key of the issuer's fits"),
    "a key of its own": (lambda: token(OTHER, header={"jwk": jwk(OTHER, "rsa")}), "signature does not fit"),
    "a key set of its own": (
        lambda: token(OTHER, header={"jku": "https://evil.example/jwks"}),
        "signature does not fit",
    ),
    "an unknown kid": (lambda: token(kid="nobody's"), "no key of the issuer's fits"),
    "a kid that is a path": (lambda: token(kid="../../dev/null"), "no key of the issuer's fits"),
    "a kid that is a number": (lambda: by_hand({"alg": "RS256", "kid": 5}, claims()), "malformed"),
    "no signature": (lambda: broken(lambda h, p, _: f"{h}.{p}."), "signature does not fit"),
    "a changed signature": (lambda: broken(lambda h, p, s: f"{h}.{p}.{b64(b'x' * 256)}"), "does not fit"),
    "a changed payload": (
        lambda: broken(lambda h, _, s: f"{h}.{b64(json.dumps(claims(sub='admin')).encode())}.{s}"),
        "signature does not fit",
    ),
    "truncated": (lambda: token()[:-10], "signature does not fit"),
    "two parts": (lambda: token().rpartition(".")[0], "malformed"),
    "no base64": (lambda: "a.b.c", "malformed"),
    "only dots": (lambda: "..", "malformed"),
    "non-ASCII": (lambda: "é.é.é", "malformed"),
    "a header that is a list": (lambda: by_hand([], claims()), "malformed"),
    "a deep header": (lambda: by_hand(b"[" * 5000, claims()), "malformed"),
    "huge": (lambda: token(sub="x" * MAX_TOKEN_BYTES), f"longer than {MAX_TOKEN_BYTES} bytes"),
    "a critical extension": (lambda: token(header={"crit": ["exp"], "exp": 1}), "malformed"),
    "another audience": (lambda: token(aud="api://other"), "another audience"),
    "audiences without ours": (lambda: token(aud=["a", "b"]), "another audience"),
    "no audience": (lambda: token(aud=...), "lacks one of the claims"),
    "an empty audience": (lambda: token(aud=[]), "lacks one of the claims"),
    "another issuer": (lambda: token(iss="https://issuer.example/other"), "another issuer"),
    "an issuer with more": (lambda: token(iss=ISSUER + "/"), "another issuer"),
    "no issuer": (lambda: token(iss=...), "lacks one of the claims"),
    "expired": (lambda: token(exp=time.time() - 61), "expired"),
    "no expiry": (lambda: token(exp=...), "lacks one of the claims"),
    "an expiry in words": (lambda: token(exp="tomorrow"), "malformed"),
    "nbf in the future": (lambda: token(nbf=time.time() + 120), "not valid yet"),
    "iat in the future": (lambda: token(iat=time.time() + 120), "not valid yet"),
    "no subject": (lambda: token(sub=...), "lacks one of the claims"),
    "a subject that is a number": (lambda: token(sub=5), "malformed"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_refused(name: str) -> None:
    make, reason = FORGED[name]
    assert reason in refused(make())


def test_clocks_may_differ_by_a_minute() -> None:
    now = time.time()
    run_virtual(oidc().identify(token(exp=now - 50, nbf=now - 100)))
    run_virtual(oidc().identify(token(nbf=now + 50, iat=now + 50)))


def test_several_audiences_may_be_meant() -> None:
    which = oidc(audience=f"other {AUDIENCE}")
    run_virtual(which.identify(token()))
    run_virtual(oidc(audience="other").identify(token(aud=["x", "other"])))


@pytest.mark.parametrize(
    ("changes", "rights"),
    [
        ({"scp": "vecmill.embed"}, {Right.EMBED}),
        ({"scp": ..., "scope": "openid vecmill.metrics"}, {Right.METRICS}),
        ({"scp": ..., "roles": ["vecmill.admin", "vecmill.embed", 7]}, {Right.ADMIN, Right.EMBED}),
        ({"scp": "vecmill.read", "roles": ["vecmill.embed"]}, {Right.READ, Right.EMBED}),
        ({"scp": ...}, set()),
        ({"scp": "embed read Vecmill.Embed vecmill.open vecmill.* vecmill."}, set()),
        ({"scp": {"vecmill.embed": 1}}, set()),
        ({"scp": None, "roles": "vecmill.embed"}, {Right.EMBED}),
    ],
)
def test_rights_stand_in_the_claims_and_nowhere_else(changes: dict[str, Any], rights: set[Right]) -> None:
    assert run_virtual(oidc().identify(token(**changes))).rights == frozenset(rights)


@pytest.mark.parametrize(
    "entry",
    [
        jwk(RSA, "rsa", use="enc"),
        jwk(RSA, "rsa", key_ops=["encrypt"]),
        jwk(RSA, "rsa", key_ops="verify"),
        jwk(RSA, "rsa", alg="RS512"),
        jwk(RSA, "rsa", alg="none"),
        jwk(RSA, "rsa", d="AQAB"),
        jwk(RSA, 7),  # type: ignore[arg-type]  # what nobody should publish
        jwk(RSA, "rsa", n="!!"),
        jwk(RSA, "rsa", n=5),
        {"kty": "oct", "kid": "rsa", "k": b64(PUBLIC_PEM), "alg": "HS256"},
        {"kty": "EC", "kid": "rsa", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "EC", "kid": "rsa", "crv": ["P-256"]},
        {"kid": "rsa"},
        "rsa",
        None,
    ],
)
def test_published_keys_of_the_wrong_kind_verify_nothing(entry: Any) -> None:
    assert "no key of the issuer's fits" in refused(token(), oidc(Issuer([entry, jwk(OTHER, "other")])))


def test_short_rsa_keys_are_not_used() -> None:
    which = oidc(Issuer([jwk(SMALL, "rsa"), jwk(OTHER, "other")]))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        given = token(SMALL)
    assert "no key of the issuer's fits" in refused(given, which)


def test_without_a_kid_the_only_fitting_key_is_meant() -> None:
    run_virtual(oidc().identify(token(kid=None)))
    assert "no key" in refused(token(kid=None), oidc(Issuer([jwk(RSA, "a"), jwk(OTHER, "b")])))


def test_the_configuration_says_where_the_keys_are() -> None:
    issuer = Issuer()
    run_virtual(oidc(issuer, jwks_url=None).identify(token()))
    assert issuer.asked == [f"{ISSUER}/.well-known/openid-configuration", "https://keys.example/jwks"]


@pytest.mark.parametrize(
    "configuration",
    [
        {"issuer": "https://evil.example", "jwks_uri": "https://keys.example/jwks"},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": "http://keys.example/jwks"},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        {"issuer": ISSUER, "jwks_uri": 5},
        {"jwks_uri": "https://keys.example/jwks"},
    ],
)
def test_a_configuration_that_cannot_be_trusted_is_not_followed(configuration: dict[str, Any]) -> None:
    issuer = Issuer()
    issuer.configuration = configuration
    with pytest.raises(IssuerUnreachable):
        run_virtual(oidc(issuer, jwks_url=None).identify(token()))
    assert len(issuer.asked) == 1


@pytest.mark.parametrize("form", ["v1", "v2"])
@pytest.mark.parametrize(
    "given",
    [
        f"https://login.microsoftonline.com/{TENANT}/v2.0",
        f"https://login.microsoftonline.com/{TENANT}",
        f"https://sts.windows.net/{TENANT}/",
    ],
)
def test_both_forms_of_entra_tokens_are_taken(given: str, form: str) -> None:
    issuer = Issuer()
    second = f"https://login.microsoftonline.com/{TENANT}/v2.0"
    issuer.configuration["issuer"] = second
    which = oidc(issuer, issuer=given, jwks_url=None)
    iss = f"https://sts.windows.net/{TENANT}/" if form == "v1" else second
    run_virtual(which.identify(token(iss=iss)))
    assert issuer.asked[0] == f"{second}/.well-known/openid-configuration"
    assert "another issuer" in refused(token(iss=iss.replace("1111", "9999")), which)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"issuer": None}, "both an issuer and an audience"),
        ({"audience": None}, "both an issuer and an audience"),
        ({"audience": "  "}, "both an issuer and an audience"),
        ({"issuer": "http://issuer.example"}, "no https address"),
        ({"issuer": "issuer.example"}, "no https address"),
        ({"issuer": "https://user:secret@issuer.example"}, "no https address"),
        ({"issuer": "https://["}, "no https address"),
        ({"jwks_url": "http://keys.example/jwks"}, "no https address"),
        ({"issuer": "https://login.microsoftonline.com/common/v2.0"}, "one tenant by its id"),
        ({"issuer": "https://login.microsoftonline.com/contoso.example/v2.0"}, "one tenant by its id"),
    ],
)
def test_options_that_would_let_others_in_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        oidc(**changes)
    assert "secret" not in str(caught.value)


def test_a_token_is_verified_once_a_minute_and_again_when_it_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[str] = []
    genuine = jwt.decode

    def counting(given: str, *args: Any, **more: Any) -> Any:
        decoded.append(given)
        return genuine(given, *args, **more)

    monkeypatch.setattr(jwt, "decode", counting)

    async def main() -> None:
        which, long, short = oidc(), token(), token(exp=time.time() + 20)
        for _ in range(5):
            await which.identify(long)
            await which.identify(short)
        assert decoded == [long, short]
        await asyncio.sleep(20)
        await which.identify(long)
        await which.identify(short)
        assert decoded == [long, short, short]
        await asyncio.sleep(40)
        await which.identify(long)
        assert decoded[3:] == [long]
        with pytest.raises(TokenRefused):
            await which.identify(long[:-4])

    run_virtual(main())


def test_few_verified_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc_module, "MAX_BELIEVED", 3)

    async def main() -> None:
        which = oidc()
        for i in range(9):
            await which.identify(token(sub=f"s{i}"))
        assert len(which._believed) == 3

    run_virtual(main())


def test_a_flood_of_unknown_kids_asks_the_issuer_a_few_times_a_minute() -> None:
    async def main() -> None:
        issuer = Issuer()
        which = oidc(issuer)
        await which.identify(token())
        forged = [token(OTHER, kid=f"forged{i}") for i in range(200)]
        for each in forged:
            with pytest.raises(TokenRefused):
                await which.identify(each)
        assert len(issuer.asked) == FETCHES_PER_MINUTE
        await which.identify(token())  # who has a good one notices nothing
        issuer.keys = [jwk(OTHER, "new")]
        with pytest.raises(TokenRefused):
            await which.identify(token(OTHER, kid="new"))
        await asyncio.sleep(60)
        await which.identify(token(OTHER, kid="new"))

    run_virtual(main())


def test_tokens_at_once_share_one_fetch_and_one_that_gives_up_spoils_nothing() -> None:
    async def main() -> None:
        issuer = Issuer()
        which = oidc(issuer)
        given = token()
        tasks = [asyncio.create_task(which.identify(given)) for _ in range(50)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert len({task.result().id for task in tasks[1:]}) == 1
        assert len(issuer.asked) == 1

    run_virtual(main())


def test_keys_that_were_withdrawn_open_nothing_after_an_hour() -> None:
    async def main() -> None:
        issuer = Issuer()
        which = oidc(issuer)
        await which.identify(token())
        issuer.keys = [jwk(OTHER, "other")]
        await asyncio.sleep(KEYS_FRESH_SECONDS)
        await which.identify(token(jti="another"))  # this one notices the hour; it is not kept waiting
        await asyncio.sleep(1)
        with pytest.raises(TokenRefused):
            await which.identify(token())
        await which.identify(token(OTHER, kid="other"))

    run_virtual(main())


def test_known_keys_stay_in_force_for_a_day_without_the_issuer(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        issuer = Issuer()
        which = oidc(issuer)
        await which.identify(token())
        issuer.down = True
        for _ in range(23):
            await asyncio.sleep(3600)
            await which.identify(token())
        await asyncio.sleep(3601)
        with pytest.raises(IssuerUnreachable):
            await which.identify(token())
        issuer.down = False
        await asyncio.sleep(60)
        await which.identify(token())

    assert KEYS_KEPT_SECONDS == 24 * 3600
    run_virtual(main())
    assert "cannot be had: nobody answers" in caplog.text


def test_without_any_keys_nothing_is_believed_and_the_issuer_not_stormed() -> None:
    async def main() -> None:
        issuer = Issuer()
        issuer.down = True
        which = oidc(issuer)
        for _ in range(100):
            with pytest.raises(IssuerUnreachable):
                await which.identify(token())
        assert len(issuer.asked) == FETCHES_PER_MINUTE
        issuer.down = False
        await asyncio.sleep(60)
        await which.identify(token())

    run_virtual(main())


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"keys":5}', b'{"keys":[]}', b"<html>", b"\xff"])
def test_a_key_set_that_is_none_leaves_the_known_keys(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        issuer = Issuer()
        which = oidc(issuer)
        await which.identify(token())
        issuer.keys = raw
        with pytest.raises(TokenRefused):
            await which.identify(token(kid="new"))
        await which.identify(token())

    run_virtual(main())
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_without_its_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: module != "jwt")
    spec = importlib.util.find_spec("vecmill.server.oidc")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtraError, match=r"vecmill\[serve\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# Over real HTTP.

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def served(answers: Callable[[str], Answer]) -> Iterator[str]:
    """Serve what `answers` says on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def identify_over_http(answers: Callable[[str], Answer], path: str = "/jwks") -> Awaitable[Any]:
    async def main() -> Any:
        with served(answers) as origin:
            return await Oidc(ISSUER, AUDIENCE, jwks_url=origin + path).identify(token())

    return main()


def test_keys_are_fetched_over_http() -> None:
    body = orjson.dumps({"keys": KEYS})

    async def main() -> None:
        found = await identify_over_http(lambda _: (200, {"content-type": "application/json"}, body))
        assert Right.EMBED in found.rights

    asyncio.run(main())


def test_no_redirect_to_another_host_is_followed_and_no_large_answer_read() -> None:
    good = orjson.dumps({"keys": KEYS})
    reached: list[str] = []

    def elsewhere(path: str) -> Answer:
        reached.append(path)
        return (200, {}, good)

    async def main() -> None:
        with served(elsewhere) as other:
            wrong: list[Answer] = [
                (302, {"location": f"{other.replace('127.0.0.1', 'localhost')}/jwks"}, b""),
                (200, {}, good + b" " * 2_000_000),
                (404, {}, good),
                (500, {}, good),
            ]
            for answer in wrong:
                with pytest.raises(IssuerUnreachable):
                    await identify_over_http(lambda _, answer=answer: answer)  # type: ignore[misc]  # bound now
        assert not reached

    asyncio.run(main())
