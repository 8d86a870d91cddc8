"""What was learned of an endpoint by asking it: one small JSON file each, never a key, never a text."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vecmill.core import durable
from vecmill.core.errors import StorageError

_log = logging.getLogger(__name__)

_VERSION = 1
_LIMITS = ("max_inputs", "max_request_tokens", "max_request_bytes")
_LIKE_A_KEY = re.compile(r"\b[spr]k-[\w-]{12}|\bgh[a-z]_\w{12}|\bgithub_pat_|\beyJ\w{12}", re.ASCII)
_NAME = re.compile(r"[\w./:@+-]{1,120}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Learned:
    """Facts of an endpoint that replies and refusals told; None where they did not.

    Attributes:
        dimensions: Components of its full vectors.
        model: What it calls its model.
        normalized: Whether its vectors have unit length.
        base64: Whether it gives vectors as base64.
        max_inputs, max_request_tokens, max_request_bytes: Limits smaller than those known before.
    """

    dimensions: int | None = None
    model: str | None = None
    normalized: bool | None = None
    base64: bool | None = None
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    max_request_bytes: int | None = None

    def limited(self, **limits: int | None) -> Learned:
        """Return this with limits that are smaller than the present ones; others are left out."""
        smaller = {
            name: limit
            for name, limit in limits.items()
            if limit is not None and limit >= 1 and limit < (getattr(self, name) or limit + 1)
        }
        return replace(self, **smaller)  # type: ignore[arg-type]  # names of limits only


def read_learned(path: Path | None) -> Learned:
    """Return what a file keeps; one that is damaged or missing keeps nothing."""
    if path is None:
        return Learned()
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or values.get("version") != _VERSION:
            return Learned()
        return replace(Learned(), **{entry.name: _valid(entry.name, values) for entry in fields(Learned)})
    except (OSError, ValueError):
        return Learned()


def write_learned(path: Path | None, learned: Learned) -> None:
    """Keep what was learned. A place that cannot be written is logged, not raised: it is learned again."""
    if path is None:
        return
    values = {name: value for name, value in asdict(learned).items() if value is not None}
    try:
        durable.make_dir(path.parent)
        durable.write_bytes(path, json.dumps({"version": _VERSION, **values}, sort_keys=True).encode())
    except StorageError as error:
        _log.warning("what was learned of an endpoint cannot be kept: %s", error)


def plain_name(name: str) -> str | None:
    """Return a model's name as a server gave it, None where it does not look like one, or like a key."""
    return name if _NAME.fullmatch(name) and not _LIKE_A_KEY.search(name) else None


def _valid(name: str, values: dict[str, Any]) -> Any:
    value = values.get(name)
    if value is None:
        return None
    if name in ("normalized", "base64"):
        kind_is_right = isinstance(value, bool)
    elif name == "model":
        kind_is_right = isinstance(value, str) and plain_name(value) is not None
    else:
        kind_is_right = type(value) is int and value >= 1
    if not kind_is_right:
        raise ValueError(name)
    return value
