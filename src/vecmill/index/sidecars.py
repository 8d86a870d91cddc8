"""Files beside a collection's segments that can always be made again: codes, a graph, a text index.

    "VECMILLS", u32 version, u32 length of the description, the description as JSON, the payload,
    16 bytes BLAKE2b of everything before

What does not match what is asked for, or is damaged, counts as missing: whoever needs it makes it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecmill.core import durable

MAGIC = b"VECMILLS"
VERSION = 1
_HEAD = struct.Struct("<8sII")
_DIGEST_BYTES = 16
_LOG = logging.getLogger(__name__)


def write_sidecar(path: Path, description: Mapping[str, Any], payload: bytes | memoryview) -> None:
    """Write a sidecar; on disk when this returns.

    Args:
        path: Where; a file there is replaced.
        description: JSON's types; who reads must ask for the same.
        payload: The content.

    Raises:
        WriteError: It could not be written; what was there before is intact.
    """
    said = _said(description)
    head = _HEAD.pack(MAGIC, VERSION, len(said)) + said
    digest = bytes.fromhex(_digest(head, payload))
    with durable.replacing(path) as temp, temp.open("wb") as file:
        file.write(head)
        file.write(payload)
        file.write(digest)


def read_sidecar(path: Path, description: Mapping[str, Any]) -> memoryview | None:
    """Return a sidecar's payload, or None where there is none that is sound and of this description."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) < _HEAD.size + _DIGEST_BYTES or bytes.fromhex(_digest(body)) != digest:
        _LOG.warning("%s is damaged and will be made again", path)
        return None
    magic, version, length = _HEAD.unpack(data[: _HEAD.size])
    said = body[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or version != VERSION or said != _said(description):
        return None
    return body[_HEAD.size + length :]


def is_there(path: Path, description: Mapping[str, Any], payload_bytes: int) -> bool:
    """Say whether there is a sidecar of this description and size. Reads its first bytes only."""
    said = _said(description)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size + len(said))
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    wanted = _HEAD.pack(MAGIC, VERSION, len(said)) + said
    return head == wanted and size == len(wanted) + payload_bytes + _DIGEST_BYTES


def _said(description: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(description), sort_keys=True, ensure_ascii=False).encode()


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
