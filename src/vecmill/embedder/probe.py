"""The probe: three fixed sentences whose vectors tell whether a space is still the one it was.

Embedded once per space (`Channel.probe`) and kept in `VECMILL_CACHE_DIR/probes/`; a file there that is
damaged is made again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from vecmill.core import durable
from vecmill.core.errors import StorageError
from vecmill.models.base import ModelInfo

_log = logging.getLogger(__name__)


def read_probe(folder: Path | None, info: ModelInfo) -> str | None:
    """Return the probe kept for a model's space at full size, encoded as in a manifest, or None."""
    if folder is None:
        return None
    try:
        kept = json.loads(_path(folder, info).read_bytes())
        return str(kept["probe"]) if durable.digest_bytes(kept["probe"].encode()) == kept["digest"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_probe(folder: Path | None, info: ModelInfo, probe: str) -> None:
    """Keep a probe. A folder that cannot be written is logged, not raised."""
    if folder is None:
        return
    try:
        durable.make_dir(folder)
        content = {"probe": probe, "digest": durable.digest_bytes(probe.encode())}
        durable.write_bytes(_path(folder, info), json.dumps(content).encode())
    except StorageError as error:
        _log.warning("the probe cannot be kept: %s", error)


def _path(folder: Path, info: ModelInfo) -> Path:
    return folder / f"{info.space}-{info.width}.json"
