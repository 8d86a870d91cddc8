"""The gate: who is let in, and what the others are told."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.config import Settings
from vecmill.core.errors import ConfigError, CorruptFileError
from vecmill.server import access as access_module
from vecmill.server import keys as keys_module
from vecmill.server import oidc as oidc_module
from vecmill.server.access import ANONYMOUS, Caller, Gate, Right
from vecmill.server.errors import Refusal
from vecmill.server.keys import KeyFile, plain_key
from vecmill.server.oidc import Identity, IssuerUnreachable, TokenRefused
from vecmill.server.options import Limits, Options
from vecmill.testing.clock import START, run_virtual

OPEN_TO_ALL = "0.0.0.0"  # noqa: S104 - nothing is bound


@dataclass(slots=True)
class House:
    """A folder with keys, and gates to it."""

    settings: Settings

    @property
    def file(self) -> KeyFile:
        return KeyFile(self.settings.home / "keys.json")

    def gate(self, **options: Any) -> Gate:
        return Gate(Options(**options), self.settings)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache"))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(main, start=START)


async def asked(
    gate: Gate, headers: dict[str, str], right: Right = Right.EMBED, address: str = "192.0.2.1"
) -> Caller | Refusal:
    try:
        return await gate.check(headers, right, address=address)
    except Refusal as refusal:
        return refusal


async def refused(
    gate: Gate, headers: dict[str, str], status: int, right: Right = Right.EMBED, address: str = "192.0.2.1"
) -> Refusal:
    found = await asked(gate, headers, right, address)
    assert isinstance(found, Refusal), f"{headers} was let in"
    assert found.status == status, found.message
    return found


def test_a_loopback_server_without_keys_is_open_whatever_is_sent(house: House) -> None:
    async def main() -> None:
        for headers in ({}, bearer("unused"), {"api-key": "x", **bearer("y")}):
            for right in Right:
                caller = await asked(house.gate(), headers, right)
                assert isinstance(caller, Caller)
                assert caller.id == "anonymous"

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"require_keys": True},
        {"host": OPEN_TO_ALL},
        {"host": "::"},
        {"host": "192.0.2.7"},
        {"oidc_issuer": "https://issuer.example", "oidc_audience": "vecmill"},
        {"key_hashes": (plain_key("a-key-of-another-tool"),)},
    ],
)
def test_a_closed_server_answers_nobody_but_the_open_right(house: House, options: dict[str, Any]) -> None:
    gate = house.gate(**options)
    assert gate.is_closed

    async def main() -> None:
        for right in Right:
            if right is Right.OPEN:
                caller = await asked(gate, {}, right)
                assert isinstance(caller, Caller)
                assert caller.rights == frozenset({Right.OPEN})
            else:
                await refused(gate, {}, 401, right)
                await refused(gate, bearer("vm-wrong"), 401, right)

    run(main())


def test_an_open_address_is_open_only_by_name_and_not_once_there_is_a_key(house: House) -> None:
    assert not house.gate(host=OPEN_TO_ALL, insecure_no_keys=True).is_closed
    house.file.add("one")
    assert house.gate(host=OPEN_TO_ALL, insecure_no_keys=True).is_closed


@pytest.mark.parametrize("what", ["valid", "expired", "disabled"])
def test_any_key_closes_the_server_expired_ones_too(house: House, what: str) -> None:
    house.file.add("one", expires=START if what == "expired" else None)
    if what == "disabled":
        house.file.disable("one")
    gate = house.gate()
    assert gate.is_closed
    run(refused(gate, {}, 401))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer {key}"},
        {"authorization": "bearer {key}"},
        {"authorization": "BEARER   {key} "},
        {"api-key": "{key}"},
        {"api-key": " {key} "},
        {"authorization": "Bearer {key}", "api-key": "{key}"},
        {"authorization": "Bearer ", "api-key": "{key}"},
        {"authorization": "Basic dXNlcjpwYXNz", "api-key": "{key}"},
    ],
)
def test_a_key_may_come_in_either_header(house: House, headers: dict[str, str]) -> None:
    secret, key = house.file.add("one")
    given = {name: value.format(key=secret) for name, value in headers.items()}
    found = run(asked(house.gate(), given))
    assert found == Caller(f"key:{key.id}", frozenset({Right.EMBED, Right.READ}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "{key}"},
        {"authorization": "Basic {key}"},
        {"api-key": ""},
        {"x-api-key": "{key}"},
    ],
)
def test_without_a_key_the_answer_says_how_to_send_one(house: House, headers: dict[str, str]) -> None:
    secret, _ = house.file.add("one")
    given = {name: value.format(key=secret) for name, value in headers.items()}
    found = run(refused(house.gate(), given, 401))
    assert found.message.startswith("You didn't provide an API key.")
    assert (found.type, found.code) == ("invalid_request_error", "invalid_api_key")
    assert dict(found.headers)["www-authenticate"].startswith("Bearer")
    assert secret not in found.message


def test_two_different_keys_in_one_request_are_refused(house: House) -> None:
    one, _ = house.file.add("one")
    two, _ = house.file.add("two")
    found = run(refused(house.gate(), {**bearer(one), "api-key": two}, 401))
    assert "different" in found.message
    assert one[-4:] not in found.message


@pytest.mark.parametrize(
    "given",
    ["vm-wrong-key-wrong-key-wrong", "sk-0123456789abcdef", "ключ".encode().decode("latin-1"), "x" * 9999],
)
def test_a_wrong_key_is_answered_in_openais_words_and_masked(house: House, given: str) -> None:
    house.file.add("one")
    found = run(refused(house.gate(), bearer(given), 401))
    assert re.match(r"Incorrect API key provided: [ -~]{0,4}\*\*\*\*[ -~]{0,4}\. ", found.message)
    assert (found.type, found.code) == ("invalid_request_error", "invalid_api_key")
    assert given not in found.message
    assert dict(found.headers)["www-authenticate"].startswith("Bearer")


def test_a_key_that_is_over_opens_nothing_and_its_owner_is_told(house: House) -> None:
    secret, _ = house.file.add("one", expires=START + 10)
    other, _ = house.file.add("two")
    house.file.disable("two")

    async def main() -> None:
        gate = house.gate()
        assert isinstance(await asked(gate, bearer(secret)), Caller)
        await asyncio.sleep(10)
        assert "has expired" in (await refused(gate, bearer(secret), 401)).message
        assert "switched off" in (await refused(gate, bearer(other), 401)).message

    run(main())


@pytest.mark.parametrize("right", [right for right in Right if right is not Right.OPEN])
def test_a_key_opens_what_it_has_the_right_for_and_nothing_else(house: House, right: Right) -> None:
    secret, _ = house.file.add("one", rights=[right])

    async def main() -> None:
        gate = house.gate()
        for each in Right:
            if each in (right, Right.OPEN):
                assert isinstance(await asked(gate, bearer(secret), each), Caller)
                continue
            found = await refused(gate, bearer(secret), 403, each)
            assert found.type == "permission_error"
            assert f"'{each.value}'" in found.message

    run(main())


def test_a_running_server_closes_when_the_first_key_is_made_and_sees_changes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)

    async def main() -> None:
        gate = house.gate()
        assert await asked(gate, {}) is ANONYMOUS
        secret, _ = house.file.add("one")
        await refused(gate, {}, 401)
        assert isinstance(await asked(gate, bearer(secret)), Caller)
        house.file.disable("one")
        await refused(gate, bearer(secret), 401)
        house.file.disable("one", disabled=False)
        assert isinstance(await asked(gate, bearer(secret)), Caller)
        house.file.path.write_bytes(b"{")
        assert isinstance(await asked(gate, bearer(secret)), Caller)
        await refused(gate, {}, 401)
        house.file.path.unlink()
        await refused(gate, bearer(secret), 401)
        await refused(gate, {}, 401)

    run(main())


def test_the_file_is_looked_at_once_a_second_and_by_one_request(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.file.add("one")
    looked: list[float] = []
    now = 1000.0
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: now)  # type: ignore[attr-defined]  # its clock

    async def main() -> None:
        nonlocal now
        gate = house.gate()
        monkeypatch.setattr(gate._keys, "refresh", lambda: looked.append(now))
        await asyncio.gather(*(asked(gate, {}) for _ in range(20)))
        assert looked == []
        now += 1.0
        await asyncio.gather(*(asked(gate, {}) for _ in range(20)))
        assert len(looked) == 1

    run(main())


def test_a_damaged_file_of_keys_stops_the_start(house: House) -> None:
    house.file.add("one")
    house.file.path.write_bytes(b"{")
    with pytest.raises(CorruptFileError):
        house.gate()


def test_another_file_of_keys_can_be_named(house: House, tmp_path: Path) -> None:
    secret, _ = KeyFile(tmp_path / "other.json").add("one")
    assert not house.gate().is_closed
    assert isinstance(run(asked(house.gate(keys_file=tmp_path / "other.json"), bearer(secret))), Caller)


# Guessing.


def test_after_ten_wrong_keys_an_address_waits_and_its_valid_keys_pass(house: House) -> None:
    secret, _ = house.file.add("one")

    async def main() -> None:
        gate = house.gate()
        for i in range(10):
            await refused(gate, bearer(f"vm-guess{i}"), 401)
        found = await refused(gate, bearer("vm-guess"), 429)
        assert found.type == "rate_limit_error"
        assert dict(found.headers)["retry-after"] == "6"
        assert isinstance(await asked(gate, bearer(secret)), Caller)
        await refused(gate, {}, 401)  # no key is no guess
        await refused(gate, bearer("vm-guess"), 401, address="192.0.2.2")
        await asyncio.sleep(6)
        await refused(gate, bearer("vm-guess"), 401)
        await refused(gate, bearer("vm-guess"), 429)
        await asyncio.sleep(3600)
        for _ in range(10):
            await refused(gate, bearer("vm-guess"), 401)
        await refused(gate, bearer("vm-guess"), 429)

    run(main())


def test_one_ipv6_network_counts_as_one_address(house: House) -> None:
    house.file.add("one")

    async def main() -> None:
        gate = house.gate(limits=Limits(failed_keys_per_minute=2))
        await refused(gate, bearer("x"), 401, address="2001:db8::1")
        await refused(gate, bearer("x"), 401, address="2001:db8::2:3")
        await refused(gate, bearer("x"), 429, address="2001:db8::ffff%eth0")
        await refused(gate, bearer("x"), 401, address="2001:db8:0:1::1")
        for address in ("::ffff:192.0.2.9", "192.0.2.9"):
            await refused(gate, bearer("x"), 401, address=address)
        await refused(gate, bearer("x"), 429, address="192.0.2.9")
        for address in ("", "a:b", "not an address"):
            await refused(gate, bearer("x"), 401, address=address)

    run(main())


def test_the_table_of_addresses_stays_small(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.file.add("one")
    monkeypatch.setattr(access_module, "MAX_ADDRESSES", 50)

    async def main() -> None:
        gate = house.gate(limits=Limits(failed_keys_per_minute=1))
        for i in range(500):
            await refused(gate, bearer("x"), 401, address=f"10.0.{i // 250}.{i % 250}")
            await refused(gate, bearer("x"), 401 if i == 0 else 429, address="192.0.2.1")
        assert len(gate._failures._left) == 50

    run(main())


# Tokens.


class Issuer:
    """Believes what the test says."""

    def __init__(self, found: Identity | Exception) -> None:
        self.found = found

    async def identify(self, token: str) -> Identity:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def gate_with(house: House, found: Identity | Exception, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(oidc_module, "Oidc", lambda *_, **__: Issuer(found))
    return house.gate(oidc_issuer="https://issuer.example", oidc_audience="vecmill")


TOKEN = "eyJhbGciOi.eyJpc3MiOi.c2lnbmF0dXJl"  # noqa: S105 - of nobody


def test_a_token_brings_the_rights_of_its_claims(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_with(house, Identity("oidc:abc", frozenset({Right.READ})), monkeypatch)

    async def main() -> None:
        assert await asked(gate, bearer(TOKEN), Right.READ) == Caller("oidc:abc", frozenset({Right.READ}))
        assert isinstance(await asked(gate, {"api-key": TOKEN}, Right.READ), Caller)
        assert "'embed'" in (await refused(gate, bearer(TOKEN), 403)).message

    run(main())


def test_keys_work_beside_tokens(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, key = house.file.add("one")
    gate = gate_with(house, TokenRefused("it has expired"), monkeypatch)

    async def main() -> None:
        found = await asked(gate, bearer(secret))
        assert isinstance(found, Caller)
        assert found.id == f"key:{key.id}"
        assert "Incorrect API key" in (await refused(gate, bearer("vm-wrong"), 401)).message

    run(main())


def test_a_refused_token_counts_as_a_wrong_key(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_with(house, TokenRefused("it has expired"), monkeypatch)

    async def main() -> None:
        for _ in range(10):
            found = await refused(gate, bearer(TOKEN), 401)
            assert found.message == "Incorrect bearer token provided: it has expired."
            assert 'error="invalid_token"' in dict(found.headers)["www-authenticate"]
        await refused(gate, bearer(TOKEN), 429)

    run(main())


def test_an_issuer_that_cannot_be_reached_is_503_and_nobodys_guess(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gate_with(house, IssuerUnreachable(), monkeypatch)

    async def main() -> None:
        for _ in range(20):
            found = await refused(gate, bearer(TOKEN), 503)
            assert found.code == "issuer_unreachable"
            assert "retry-after" in dict(found.headers)

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"oidc_issuer": "https://issuer.example"},
        {"oidc_audience": "x"},
        {"oidc_jwks_url": "https://x.example"},
    ],
)
def test_half_an_issuer_stops_the_start(house: House, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="both an issuer and an audience"):
        house.gate(**options)


def test_nothing_of_a_key_is_logged_by_the_gate(house: House, caplog: pytest.LogCaptureFixture) -> None:
    secret, key = house.file.add("one")
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        gate = house.gate()
        await asked(gate, bearer(secret))
        await refused(gate, bearer("vm-planted-wrong-key-0123456789"), 401)
        await refused(gate, bearer(secret), 403, Right.ADMIN)

    run(main())
    assert replace(key, name="x").sha256.hex() not in caplog.text
    assert secret not in caplog.text
    assert "planted" not in caplog.text
