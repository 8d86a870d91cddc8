"""A secret comes from where its reference says, shows itself nowhere, and a useless one is refused unseen."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vecmill.core.errors import ConfigError, Error, MissingExtraError, MissingKeyError
from vecmill.core.secrets import MAX_BYTES, Secret, resolve_secret

PLANTED = "sk-planted-0123456789abcdefghij"


def resolved(reference: str) -> Secret:
    return resolve_secret(reference, what="the key of profile 'work'")


def test_a_secret_never_shows_itself() -> None:
    secret = Secret(PLANTED, "OPENAI_API_KEY")
    shown = [repr(secret), str(secret), f"{secret} {secret!r}", "%s %r" % (secret, secret)]  # noqa: UP031 - logging formats like this
    shown += [repr([secret]), repr({"key": secret})]
    assert PLANTED not in "".join(shown)
    assert "OPENAI_API_KEY" in shown[0]
    assert secret.reveal() == PLANTED


@pytest.mark.parametrize("spread", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_refuses_to_be_pickled_or_copied(spread: Any) -> None:
    with pytest.raises(TypeError, match="<secret from X> cannot be pickled") as caught:
        spread(Secret(PLANTED, "X"))
    assert PLANTED not in str(caught.value)


def test_a_variable_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", f" {PLANTED}\n")
    secret = resolved("env:TEAM_KEY")
    assert (secret.reveal(), secret.origin) == (PLANTED, "TEAM_KEY")
    monkeypatch.delenv("TEAM_KEY")
    with pytest.raises(MissingKeyError, match=r"the key of profile .work. is missing: set .* TEAM_KEY"):
        resolved("env:TEAM_KEY")


def test_a_file_holds_it_and_one_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xef\xbb\xbf" + PLANTED.encode() + b"\r\n")
    file.chmod(0o600)
    assert resolved(f"file:{file}").reveal() == PLANTED
    assert not caplog.records
    file.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolved("file:~/key").reveal() == PLANTED
    if sys.platform != "win32":
        assert f"{file} can be read by others" in caplog.text
    assert PLANTED not in caplog.text
    with pytest.raises(MissingKeyError, match=r"from .*nowhere: No such file"):
        resolved(f"file:{tmp_path}/nowhere")
    for reference in (f"file:{tmp_path}", "file:~nobody-of-that-name/key", "file:a\x00b"):
        with pytest.raises(MissingKeyError, match="cannot be read from"):
            resolved(reference)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo-" + PLANTED.encode(), "more than one line"),
        (PLANTED.encode() + "\u20ac".encode(), "no header can carry"),
        (PLANTED.encode() + b"\x07", "no header can carry"),
        (PLANTED.encode() * (MAX_BYTES // 10), "that is no key"),
        (b"\xff\xfe" + PLANTED.encode(), "is not text"),
    ],
)
def test_what_no_header_can_carry_is_refused_unseen(
    tmp_path: Path, raw: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "key"
    file.write_bytes(raw)
    with pytest.raises((ConfigError, MissingKeyError), match=said) as caught:
        resolved(f"file:{file}")
    assert PLANTED not in f"{caught.value}{caught.value.__cause__}{caplog.text}"


@pytest.mark.parametrize("reference", [PLANTED, "", "env:", "env: ", "vault:x", f"Env:{PLANTED}", "x"])
def test_what_is_no_reference_is_refused_unseen(reference: str) -> None:
    with pytest.raises(ConfigError, match='write "env:NAME"') as caught:
        resolved(reference)
    assert PLANTED not in str(caught.value)


# The keyring.


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    pytest.importorskip("keyring")
    fake: Any = types.ModuleType("keyring")
    fake.entries = {("openai", "me"): PLANTED, ("a/b", "me"): "other-key"}
    fake.get_password = lambda service, user: fake.entries.get((service, user))
    monkeypatch.setitem(sys.modules, "keyring", fake)
    monkeypatch.setattr("vecmill.core.secrets.require", lambda module, extra: sys.modules[module])
    return fake  # type: ignore[no-any-return]  # a module made for this test


def test_the_keyring_holds_it(keyring: Any) -> None:
    assert resolved("keyring:openai/me").reveal() == PLANTED
    assert resolved("keyring:a/b/me").reveal() == "other-key"
    with pytest.raises(MissingKeyError, match="run `keyring set openai you`"):
        resolved("keyring:openai/you")
    with pytest.raises(ConfigError, match='write "keyring:SERVICE/USER"'):
        resolved("keyring:openai")


def test_a_keyring_that_does_not_answer_is_said(keyring: Any) -> None:
    def locked(service: str, user: str) -> str:
        raise OSError("locked")

    keyring.get_password = locked
    with pytest.raises(ConfigError, match=r"keyring does not answer \(OSError\): unlock it"):
        resolved("keyring:openai/me")


# The vault.


class Vault:
    """Stands for azure-identity and azure-keyvault-secrets."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.error: Exception | None = None
        vault = self

        class Client:
            def __init__(self, url: str, credential: object) -> None:
                self.url = url

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *given: object) -> None:
                return None

            def get_secret(self, name: str, version: str | None) -> Any:
                vault.asked.append((self.url, name, version))
                if vault.error is not None:
                    raise vault.error
                return types.SimpleNamespace(value=PLANTED)

        class Credential:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *given: object) -> None:
                return None

        self.SecretClient = Client
        self.DefaultAzureCredential = Credential


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Vault:
    made = Vault()
    monkeypatch.setattr("vecmill.core.secrets.require", lambda module, extra: made)
    return made


@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        ("mill/openai", ("https://mill.vault.azure.net", "openai", None)),
        ("mill/openai/17", ("https://mill.vault.azure.net", "openai", "17")),
        ("https://mill.vault.azure.net/openai", ("https://mill.vault.azure.net", "openai", None)),
        ("https://mill.vault.azure.net/secrets/openai/17", ("https://mill.vault.azure.net", "openai", "17")),
        ("https://mill.vault.azure.cn/openai", ("https://mill.vault.azure.cn", "openai", None)),
    ],
)
def test_the_vault_holds_it(vault: Vault, reference: str, asked: tuple[str, str, str | None]) -> None:
    assert resolved(f"keyvault:{reference}").reveal() == PLANTED
    assert vault.asked == [asked]


@pytest.mark.parametrize(
    "reference",
    [
        "mill",
        "https://mill.vault.azure.net",
        "https://evil.example/openai",
        "https://mill.vault.azure.net.evil.example/openai",
        "https://evil.example#.vault.azure.net/openai",
        "http://mill.vault.azure.net/openai",
        "https://me@mill.vault.azure.net/openai",
    ],
)
def test_other_hosts_are_never_given_a_token_that_opens_vaults(vault: Vault, reference: str) -> None:
    with pytest.raises(ConfigError, match="does not name a secret"):
        resolved(f"keyvault:{reference}")
    assert vault.asked == []


def test_a_vault_that_refuses_is_said(vault: Vault) -> None:
    vault.error = RuntimeError("403")
    with pytest.raises(MissingKeyError, match=r"mill.vault.azure.net/openai \(RuntimeError\): log in"):
        resolved("keyvault:mill/openai")


@pytest.mark.parametrize("reference", ["keyring:a/b", "keyvault:mill/openai"])
def test_a_missing_package_names_its_extra(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmill.core.extras.installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'vecmill\[(keyring|azure)\]'"):
        resolved(reference)


def test_every_refusal_is_one_of_ours() -> None:
    for reference in ("env:NOWHERE", "file:/nowhere", "keyring:x", "keyvault:x", "x"):
        with pytest.raises(Error):
            resolved(reference)
