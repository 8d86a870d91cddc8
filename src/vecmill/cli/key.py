"""`vecmill key`: the API keys of `vecmill serve`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.output import count, emit, say, table, tell
from vecmill.core import clock
from vecmill.core.config import load_settings

if TYPE_CHECKING:
    from vecmill.server.keys import Key, KeyFile

_RIGHTS = ("embed", "read", "metrics", "admin")
_DAY = 86_400
_SECONDS = {"h": 3_600, "d": _DAY, "w": 7 * _DAY}
_SOON = 7 * _DAY


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a span (90d) or a day (2027-01-31, its end in UTC) as seconds since the epoch."""
    if value is None:
        return None
    if match := re.fullmatch(r"(\d{1,5})\s*([hdw])", value.strip().lower()):
        return math.floor(clock.now()) + int(match[1]) * _SECONDS[match[2]]
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no span or date; 90d or 2027-01-31 would be", ctx, param
        ) from None
    if re.fullmatch(r"[\d-]+", value.strip()):
        return found.replace(tzinfo=UTC).timestamp() + _DAY
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
    return click.option(
        "--keys-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Where the keys are, if not in keys.json of the home folder.",
    )(command)


@click.group()
def key() -> None:
    """Make, list and remove the API keys of the server.

    As soon as there is one, `vecmill serve` answers nobody without a key. A key is shown once, when it is
    made; what is kept is its SHA-256. A running server sees changes within a second.

    \b
    vecmill key add search-team
    vecmill key add prometheus --right metrics --expires 90d
    vecmill key remove search-team
    """  # noqa: D301 - the character by which click keeps the lines


@key.command()
@click.argument("name")
@click.option(
    "--right",
    "rights",
    multiple=True,
    type=click.Choice(_RIGHTS),
    help="What it may; may be given several times. Without it: embed and read.",
)
@click.option(
    "--expires", callback=_moment, metavar="WHEN", help="After 12h, 90d or 8w, or a date. Without it: never."
)
@_options
def add(
    name: str, rights: tuple[str, ...], expires: float | None, keys_file: Path | None, as_json: bool
) -> None:
    """Make a key and print it, this once.

    embed: vectors, tokens, ranking. read: models, status, documents. metrics: /metrics. admin: reload.
    """
    from vecmill.server.keys import DEFAULT_RIGHTS, Right

    file = _file(keys_file)
    given = [Right(right) for right in rights] or DEFAULT_RIGHTS
    secret, made = file.add(name, rights=given, expires=expires)
    if as_json:
        emit({"key": secret, **_record(made)})
    else:
        say(secret)
    sys.stdout.flush()
    until = "without end" if made.expires is None else f"until {_record(made)['expires']}"
    tell(
        f"key {made.id} ({made.name}) may {_rights(made)}, {until}; it is shown only here, and kept as a hash"
    )


@key.command("list")
@_options
def list_(keys_file: Path | None, as_json: bool) -> None:
    """List the keys: name, how each begins, what it may; none of them can be shown again."""
    file = _file(keys_file)
    found = file.read()
    if as_json:
        emit({"path": str(file.path), "keys": [_record(each) for each in found]})
        return
    if not found:
        tell(f"there are no keys in {file.path}; vecmill key add NAME makes one")
        return
    header = ("id", "name", "begins", "rights", "created", "expires", "state")
    say(*table([_row(each) for each in found], header))


@key.command()
@click.argument("which", metavar="NAME|ID")
@_options
def remove(which: str, keys_file: Path | None, as_json: bool) -> None:
    """Remove a key: whoever has it is refused from now on."""
    file = _file(keys_file)
    removed = file.remove(which)
    if as_json:
        emit(_record(removed))
    tell(f"removed key {removed.id} ({removed.name}); {count(len(file.read()), 'key')} left")


@key.command()
@click.argument("which", metavar="NAME|ID")
@click.option("--undo", is_flag=True, help="Switch it on again.")
@_options
def disable(which: str, undo: bool, keys_file: Path | None, as_json: bool) -> None:
    """Switch a key off without forgetting it, or on again."""
    changed = _file(keys_file).disable(which, disabled=not undo)
    if as_json:
        emit(_record(changed))
    tell(f"key {changed.id} ({changed.name}) is {'on again' if undo else 'off'}")


def _file(given: Path | None) -> KeyFile:
    from vecmill.server.keys import FILE_NAME, KeyFile

    return KeyFile(given or load_settings().home / FILE_NAME)


def _record(found: Key) -> dict[str, Any]:
    from vecmill.server.keys import moment

    record = asdict(found)
    del record["sha256"]
    return {
        **record,
        "rights": _rights(found).split(", "),
        "created": moment(found.created),
        "expires": None if found.expires is None else moment(found.expires),
        "state": _state(found),
    }


def _row(found: Key) -> tuple[str, ...]:
    record = _record(found)
    day = (record["expires"] or "never")[:16].replace("T", " ")
    begins = f"{found.prefix}…"
    return (found.id, found.name, begins, _rights(found), record["created"][:10], day, record["state"])


def _rights(found: Key) -> str:
    return ", ".join(right for right in _RIGHTS if right in found.rights)


def _state(found: Key) -> str:
    now = clock.now()
    if found.disabled:
        return "off"
    if found.expires is None or now + _SOON < found.expires:
        return "valid"
    return "ends soon" if found.is_valid(now) else "expired"
