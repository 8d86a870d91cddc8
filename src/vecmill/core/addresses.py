"""Addresses where the path of a file is wanted: said without their passwords."""

from __future__ import annotations

import re
from pathlib import Path

from vecmill.core.errors import InputError

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]+:/{1,2}"  # a Path makes one stroke of two
_LOGIN = re.compile(rf"({_SCHEME}[^\s:@/?#]*):\S*@")
_PARAMETER = re.compile(r"(?i)([?&]\w*(?:password|secret)=)[^&\s]*")
_POSTGRES = ("postgresql:/", "postgres:/")


def without_password(text: str) -> str:
    """Return a text with the passwords of addresses in it left out: `postgresql://bob:…@host/db`.

    What stands between the user's name and the last @ of the same word counts as the password.
    """
    return _PARAMETER.sub(r"\1…", _LOGIN.sub(r"\1:…@", text))


def ensure_path(path: str | Path, *, what: str = "a vector set") -> Path:
    """Return a path, or say that an address is none; whatever exists is a path.

    Args:
        path: What somebody gave.
        what: What is wanted, for the message.

    Raises:
        InputError: It is an address, such as `postgresql://…`; the message has no password of it.
    """
    text = str(path)
    if re.match(_SCHEME, text) is None or Path(path).exists():
        return Path(path)
    name = without_password(text)
    if text.lower().startswith(_POSTGRES):
        raise InputError(
            f"{name} is a table in PostgreSQL, and here {what} is wanted, a local file or folder; tables are "
            "taken by `vecmill search`, `similar`, `sync` and `index build`, `add`, `delete` and `info`"
        )
    raise InputError(
        f"{name} is an address, and here {what} is wanted, a local file or folder; a table in PostgreSQL is "
        "named postgresql://USER@HOST/DATABASE?table=NAME, where a command takes one"
    )
