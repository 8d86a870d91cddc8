"""What commands print: JSON that stays stable, and tables no text can break out of."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import click

from vecmill.core.addresses import without_password

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]")
_LINES = re.compile(r"\s*[\r\n\x0b\x0c\x85\u2028\u2029]+\s*")
_INVISIBLE = {"\u200d", "\u200c"}
"""Joiners that belong to emoji and to several scripts: the only format characters let through."""


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Make a text harmless for a terminal: no control characters, no escapes, no direction overrides.

    Args:
        text: Anything.
        keep_lines: Keep line feeds; otherwise the result is one line.
    """
    text = _ESCAPES.sub("", text)
    if keep_lines:
        return "\n".join(_one_line(line) for line in text.split("\n"))
    return _one_line(_LINES.sub(" ", text)).strip()


def _one_line(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(_harmless(character) for character in text)


def _harmless(character: str) -> str:
    if character == "\t":
        return " "
    match unicodedata.category(character):
        case "Cc" | "Co":
            return ""
        case "Cf":
            return character if character in _INVISIBLE else ""
        case "Cs":
            return "\ufffd"
        case "Zl" | "Zp":
            return " "
    return character


def shorten(text: str, width: int) -> str:
    """Cut a text to `width` terminal cells, the last one an ellipsis; wide characters count twice."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def pad(text: str, width: int) -> str:
    """Fill a text with blanks to `width` terminal cells."""
    from rich.cells import cell_len

    return text + " " * max(width - cell_len(text), 0)


def terminal_width() -> int:
    """Return the columns of the terminal; without one, enough for most texts."""
    return shutil.get_terminal_size((100 if sys.stdout.isatty() else 160, 24)).columns


def table(
    rows: Iterable[Sequence[str]], header: Sequence[str] = (), *, right: frozenset[int] = frozenset()
) -> list[str]:
    """Lay rows out in aligned columns; the last column takes what is left of the line.

    Args:
        rows: Cells; made harmless here.
        header: Names of the columns, or none.
        right: Columns aligned to the right.
    """
    from rich.cells import cell_len

    cells = [[plain(cell) for cell in row] for row in ([header] if header else [])]
    cells += [[plain(cell) for cell in row] for row in rows]
    if not cells:
        return []
    total = terminal_width()
    last = len(cells[0]) - 1
    widths = [min(max(cell_len(row[i]) for row in cells), max(total // 3, 12)) for i in range(last)]
    left = max(total - sum(widths) - 2 * last, 20)
    lines = []
    for row in cells:
        fitted = [shorten(cell, width) for cell, width in zip(row, widths, strict=False)]
        padded = [
            " " * (width - cell_len(cell)) + cell if i in right else pad(cell, width)
            for i, (cell, width) in enumerate(zip(fitted, widths, strict=True))
        ]
        lines.append("  ".join([*padded, shorten(row[last], left)]).rstrip())
    return lines


def to_json(value: Any) -> str:
    """Return one line of JSON: NaN and infinities as null, bytes and times as text, keys in order."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(jsonable(value), ensure_ascii=not utf8, allow_nan=False)


def jsonable(value: Any) -> Any:
    """Turn a value into what JSON knows."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return value.encode("utf-8", "replace").decode()
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
        case bytes():
            return value.decode("utf-8", "backslashreplace")
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def emit(value: Any) -> None:
    """Print one result as a line of JSON on stdout."""
    _write(to_json(value))


def say(*lines: str) -> None:
    """Print lines for people on stdout; the texts in them must have been made harmless."""
    for line in lines:
        _write(line)


def tell(message: str) -> None:
    """Print one line on stderr: progress, notices, the closing summary. Nobody need be listening."""
    with suppress(OSError):
        click.echo(plain(without_password(message)), err=True)


def unsaid(notes: Iterable[str]) -> list[str]:
    """Return the notes that the log has not said already: it says what is wrong with a server's pgvector."""
    return [note for note in notes if not note.startswith("pgvector ")]


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 row", "1,000 rows"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time for people: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def quiet_stdout() -> None:
    """Point stdout at nothing, after its reader has left, so that closing it raises nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _write(line: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeError:
        line = line.encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(line + "\n")
