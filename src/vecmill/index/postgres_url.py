"""Addresses of tables, `postgresql://user:secret@host/db?table=films`, also for people: without secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from vecmill.core.errors import InputError

SCHEMES = ("postgresql", "postgres")
DEFAULT_TABLE = "vecmill"
MANIFESTS = "vecmill_manifests"
"""The table that says of every other table of ours what made its vectors."""

MAX_NAME_BYTES = 63
"""Longer names are cut by the server without an error. Source: PostgreSQL manual, 4.1.1."""

_SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
_PARTS = re.compile(r"(?P<authority>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?", re.DOTALL)
_NAME = r'(?:"(?:[^"]|"")+"|[^".]+)'
_TABLE = re.compile(rf"(?:(?P<schema>{_NAME})\.)?(?P<table>{_NAME})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a table is.

    Attributes:
        parameters: What libpq is given, by its own names; secrets are among them.
        schema: The schema named, or None for the first of the server's search path.
        table: The table's name as it is, without quotes.
        shown: The address for people, without secrets.
    """

    parameters: dict[str, str] = field(repr=False)
    schema: str | None
    table: str
    shown: str

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may contain."""
        return tuple(value for name, value in self.parameters.items() if name in _SECRETS and value)


def is_address(source: object) -> bool:
    """Say whether something names a table in PostgreSQL: a text that begins with `postgresql://`."""
    return isinstance(source, str) and source.partition("://")[0].lower() in SCHEMES and "://" in source


def shown(url: str) -> str:
    """Return an address for people: no password, whatever else is wrong with it."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        scheme, rest = "postgresql", url
    address, _, query = rest.partition("?")
    parts = query.split("&")
    kept = [part for part in parts if "=" in part and unquote(part.partition("=")[0]).lower() not in _SECRETS]
    if any("@" in part for part in parts if part not in kept):
        return f"{scheme}://…"  # it may all be one password
    before, at, after = "?".join(filter(None, (address, "&".join(kept)))).rpartition("@")
    hosts = re.split(r"[/?]", after, maxsplit=1)[0]
    hosts, after = ",".join(map(_without_secret, hosts.split(","))), after[len(hosts) :]
    text = f"{scheme}://{before.partition(':')[0]}{at}{hosts}{after}"
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _without_secret(host: str) -> str:
    """Hide what stands where a port should: `user:secret/db` forgets its host."""
    name, colon, port = host.rpartition(":")
    return host if not colon or host.endswith("]") or port.isdigit() or not port else f"{name}:…"


def parse(url: str) -> Address:
    """Read the address of a table.

    Args:
        url: `postgresql://user:secret@host:port/db?table=films`. The table may be `schema.table`; names with
            a dot stand in double quotes. All other parameters are libpq's (sslmode, host, options, …).

    Raises:
        InputError: It is not such an address; the message shows it without its password.
    """
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.lower() not in SCHEMES:
        raise InputError(
            f"{shown(url)} is not the address of a table: write postgresql://USER:PASSWORD@HOST/DATABASE?table=NAME"
        )
    match = _PARTS.fullmatch(rest)
    authority, database, query = (
        (match[name] or "" for name in ("authority", "database", "query")) if match else ("",) * 3
    )
    if authority.count("@") > 1 or "@" in database or "@" in query:
        raise InputError(
            f"{shown(url)} has an @ where none can be: write special characters of a password by their code, "
            f"%40 for @, %2F for /, %3F for ?"
        )
    parameters = _authority(authority, url)
    if database:
        parameters["dbname"] = unquote(database)
    table = None
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        name, value = unquote(name), unquote(value)
        if not equals or not name:
            raise InputError(f"{shown(url)}: every parameter behind ? is NAME=VALUE, as in ?table=films")
        if name == "table":
            if table is not None:
                raise InputError(f"{shown(url)} names two tables; name one")
            table = value
        else:
            parameters[name] = value
    schema, table = _table(DEFAULT_TABLE if table is None else table, url)
    return Address(parameters, schema, table, shown(url))


def _authority(authority: str, url: str) -> dict[str, str]:
    userinfo, at, hosts = authority.rpartition("@")
    parameters = {}
    user, colon, password = userinfo.partition(":")
    if at and user:
        parameters["user"] = unquote(user)
    if colon:
        parameters["password"] = unquote(password)
    names, ports = [], []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not colon:
            name, port = host, ""
        if port and not port.isdigit():
            raise InputError(
                f"{shown(url)}: what follows the : of the host is no port; a password stands before the "
                f"host, as in postgresql://USER:PASSWORD@HOST/DATABASE"
            )
        names.append(unquote(name.strip("[]")))
        ports.append(port)
    if any(names):
        parameters["host"] = ",".join(names)
    if any(ports):
        parameters["port"] = ",".join(ports)
    return parameters


def _table(name: str, url: str) -> tuple[str | None, str]:
    match = _TABLE.fullmatch(name)
    if match is None:
        raise InputError(
            f"{shown(url)}: {name!r} is not the name of a table; write ?table=films, ?table=public.films, or "
            f'?table="with.dots"'
        )
    schema, table = (_unquoted(match[part]) for part in ("schema", "table"))
    for part in (schema, table):
        if part is not None:
            ensure_name(part, "table or schema")
    if table is None or table == MANIFESTS:
        raise InputError(f"{shown(url)}: {MANIFESTS} holds the manifests of tables; name another")
    return schema, table


def _unquoted(name: str | None) -> str | None:
    return name[1:-1].replace('""', '"') if name is not None and name.startswith('"') else name


def ensure_name(name: str, what: str) -> None:
    """Refuse a name the server would cut or cannot hold.

    Args:
        name: The name of a table or column.
        what: What it names, for the message.

    Raises:
        InputError: It is empty, longer than 63 bytes, or has a zero byte.
    """
    if not name or "\0" in name:
        raise InputError(
            f"{name!r} cannot name a {what} in PostgreSQL: it is empty or has a zero byte; rename it"
        )
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} cannot name a {what}: it is not valid Unicode") from error
    if size > MAX_NAME_BYTES:
        raise InputError(
            f"{name!r} cannot name a {what} in PostgreSQL: it has {size} bytes, {MAX_NAME_BYTES} are kept "
            f"and the rest would be cut off; rename it or leave it out"
        )


def quoted(name: str) -> str:
    """Write a name as a quoted SQL identifier, % doubled: every statement here has parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'
