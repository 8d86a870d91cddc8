"""Secrets: where they come from, and a value that never shows itself.

A reference names a secret without holding it: "env:NAME", "file:PATH", "keyring:SERVICE/USER",
"keyvault:VAULT/SECRET". No message of this page contains a secret, also not one that is refused.
"""

from __future__ import annotations

import logging
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from vecmill.core.config import SECRET_SCHEMES, environment
from vecmill.core.errors import ConfigError, MissingKeyError
from vecmill.core.extras import require

_log = logging.getLogger(__name__)

MAX_BYTES = 16_384
"""A longer one is no key but a file that was named by mistake."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A key or token. It prints as its origin; only `reveal` gives it out.

    Attributes:
        origin: Where it came from, such as "OPENAI_API_KEY": for messages.
    """

    _value: str = field(repr=False)
    origin: str = ""

    def reveal(self) -> str:
        """Return the secret itself, for the header of a request and for nothing else."""
        return self._value

    def __str__(self) -> str:
        return f"<secret from {self.origin or 'an argument'}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be pickled or copied: what is written to a pipe or file is out of sight."""
        raise TypeError(f"{self} cannot be pickled: pass its reference and resolve it there")

    def __getstate__(self) -> NoReturn:
        """Refuse, as `__reduce_ex__` does."""
        raise TypeError(f"{self} cannot be pickled: pass its reference and resolve it there")


def resolve_secret(reference: str, *, what: str) -> Secret:
    """Fetch the secret that a reference names.

    "env:NAME" is a variable, "file:PATH" a file (white space around it is taken off), "keyring:SERVICE/USER"
    an entry of the system's keyring (extra `keyring`), "keyvault:VAULT/SECRET[/VERSION]" or
    "keyvault:https://VAULT.vault.azure.net/SECRET" one of Azure Key Vault (extra `azure`; asks the network).

    Args:
        reference: As above.
        what: What it is for, such as "the key of profile 'work'": begins the message.

    Raises:
        MissingKeyError: The variable, file or entry is not there or empty.
        ConfigError: It is not a reference, or what it names cannot be a key.
        MissingExtraError: Its extra is not installed.
    """
    scheme, colon, rest = reference.partition(":")
    rest = rest.strip()
    if not colon or scheme not in SECRET_SCHEMES or not rest:
        raise ConfigError(
            f'{what} is not given by a reference: write "env:NAME", "file:PATH", "keyring:SERVICE/USER" or '
            f'"keyvault:VAULT/SECRET"'
        )
    fetch = {"env": _from_env, "file": _from_file, "keyring": _from_keyring, "keyvault": _from_keyvault}
    return fetch[scheme](rest, what)


def secret_of(value: str, *, origin: str, what: str) -> Secret:
    """Wrap a value as a secret, if a header can carry it.

    Args:
        value: The secret; white space around it is taken off.
        origin: Where it came from, for messages.
        what: What it is for: begins the message.

    Raises:
        MissingKeyError: It is empty.
        ConfigError: It has several lines, or characters no header can carry.
    """
    value = value.strip()
    if not value:
        raise MissingKeyError(f"{what} is empty ({origin}): put the key there")
    if len(value) > MAX_BYTES:
        raise ConfigError(
            f"{what} ({origin}) has {len(value):,} characters: that is no key; check what it names"
        )
    if "\n" in value or "\r" in value:
        raise ConfigError(f"{what} ({origin}) has more than one line: a key is one line; check what it names")
    if not value.isprintable() or any(ord(sign) > 255 for sign in value):
        raise ConfigError(f"{what} ({origin}) has characters no header can carry: copy the key again")
    return Secret(value, origin)


def _from_env(name: str, what: str) -> Secret:
    value = environment().get(name)
    if value is None:
        raise MissingKeyError(f"{what} is missing: set the environment variable {name}")
    return secret_of(value, origin=name, what=what)


def _from_file(name: str, what: str) -> Secret:
    path = Path(name)
    try:
        path = path.expanduser()
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            raw = file.read(MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise MissingKeyError(f"{what} cannot be read from {path}: {why}; put the key there") from error
    if sys.platform != "win32" and mode & stat.S_IROTH:
        _log.warning("%s can be read by others than you: chmod 600 %s", path, path)
    try:
        value = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{what} ({path}) is not text: check what it names") from None
    return secret_of(value, origin=str(path), what=what)


def _from_keyring(name: str, what: str) -> Secret:
    service, slash, user = name.rpartition("/")
    if not slash or not service or not user:
        raise ConfigError(f'{what}: "keyring:{name}" does not name an entry: write "keyring:SERVICE/USER"')
    keyring: Any = require("keyring", extra="keyring")
    try:
        value = keyring.get_password(service, user)
    except Exception as error:
        raise ConfigError(
            f"{what}: the system's keyring does not answer ({type(error).__name__}): unlock it, or use "
            f'"env:NAME" or "file:PATH"'
        ) from None
    if value is None:
        raise MissingKeyError(f"{what} is not in the keyring: run `keyring set {service} {user}`")
    return secret_of(value, origin=f"keyring {service}/{user}", what=what)


_VAULT_HOST = re.compile(
    r"[a-z][a-z0-9-]{1,30}\.(vault\.azure\.net|vault\.azure\.cn|vault\.usgovcloudapi\.net|"
    r"managedhsm\.azure\.net)",
    re.IGNORECASE,
)
"""Only these hosts are ever given a token that opens vaults."""

_VAULT_SECRET = re.compile(
    r"(?:https://)?(?P<vault>[^/]+)/(?:secrets/)?(?P<name>[^/]+)(?:/(?P<version>[^/]+))?/?"
)


def _from_keyvault(name: str, what: str) -> Secret:
    match = _VAULT_SECRET.fullmatch(name)
    host = "" if match is None else match["vault"]
    host = host if "." in host else f"{host}.vault.azure.net"
    if match is None or not _VAULT_HOST.fullmatch(host):
        raise ConfigError(
            f'{what}: "keyvault:{name}" does not name a secret: write "keyvault:VAULT/SECRET" or '
            f'"keyvault:https://VAULT.vault.azure.net/SECRET"'
        )
    vaults: Any = require("azure.keyvault.secrets", extra="azure")
    identity: Any = require("azure.identity", extra="azure")
    origin = f"{host}/{match['name']}"
    try:
        with (
            identity.DefaultAzureCredential() as credential,
            vaults.SecretClient(f"https://{host}", credential) as client,
        ):
            value = client.get_secret(match["name"], match["version"]).value
    except Exception as error:
        raise MissingKeyError(
            f"{what} could not be had from {origin} ({type(error).__name__}): log in (`az login`), check the "
            f"name, and that you may read secrets of the vault"
        ) from None
    return secret_of(value or "", origin=origin, what=what)
