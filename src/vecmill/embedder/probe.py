"""The probe: three fixed sentences whose vectors tell whether a space is still the one it was.

Embedded once per space and kept in `VECMILL_CACHE_DIR/probes/`; a file there that is damaged is made again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from vecmill.core import durable
from vecmill.core.errors import StorageError
from vecmill.core.space import PROBE_TEXTS, encode_probe
from vecmill.core.types import InputType, Usage
from vecmill.embedder.rows import checked
from vecmill.models.base import Provider

_log = logging.getLogger(__name__)


async def fresh_probe(provider: Provider) -> tuple[str, Usage]:
    """Embed the probe and return it as the manifest keeps it, with what it cost."""
    encoded = provider.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)
    reply = await provider.embed(encoded)
    info = provider.info
    return encode_probe(checked(reply.vectors, len(PROBE_TEXTS), info.dimensions, info.name)), reply.usage


async def cached_probe(provider: Provider, cache_dir: Path) -> tuple[str, Usage]:
    """Return the probe of a provider's space, embedded the first time only."""
    path = cache_dir / "probes" / f"{provider.info.space}-{provider.info.dimensions}.json"
    kept = await asyncio.to_thread(_read, path)
    if kept is not None:
        return kept, Usage()
    probe, usage = await fresh_probe(provider)
    await asyncio.to_thread(_write, path, probe)
    return probe, usage


def _read(path: Path) -> str | None:
    try:
        kept = json.loads(path.read_bytes())
        return str(kept["probe"]) if durable.digest_bytes(kept["probe"].encode()) == kept["digest"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, probe: str) -> None:
    try:
        durable.make_dir(path.parent)
        content = {"probe": probe, "digest": durable.digest_bytes(probe.encode())}
        durable.write_bytes(path, json.dumps(content).encode())
    except StorageError as error:
        _log.warning("the probe cannot be kept: %s", error)
