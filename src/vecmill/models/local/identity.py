"""What decides a local model's vectors, as hashes: of its files, and the space id made from them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from vecmill.core import durable
from vecmill.core.errors import ConfigError, CorruptFileError, WriteError
from vecmill.core.space import space_id
from vecmill.core.types import InputType
from vecmill.models.local.files import ModelFiles
from vecmill.models.local.pooling import Dense, Head

log = logging.getLogger(__name__)

ENGINE_FORMAT = 1
"""Raised only when the same model gives other vectors than before; part of every space id."""

DENSE_FORMAT = 2
"""Raised only when a Dense module gives other vectors than before; part of the space of models with one."""

_SMALL_BYTES = 64 << 20
"""Files up to this size are hashed at every start: that takes milliseconds and finds damage."""
_RACY_SECONDS = 3.0
"""A file changed this recently may change again within its time stamp's grain: its hash is not kept."""


def hash_files(model: ModelFiles, *, cache_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that decide a model's vectors, by file name relative to the folder.

    Hashes of large files are kept by path, size, times and inode, so only the first start reads them whole.

    Raises:
        CorruptFileError: A file differs from the digest the folder's `vecmill.json` vouches for.
    """
    digests: dict[str, str] = {}
    for path in model.hashed:
        name = model.name_of(path)
        digests[name] = _sha256(path, cache_dir)
        expected = model.sha256.get(name)
        if expected is not None and expected != digests[name]:
            raise CorruptFileError(
                f"{path} has SHA-256 {digests[name]}, it should have {expected}: the file is damaged or was "
                "changed; "
                f"install the package again or fetch the model again"
            )
    return digests


Stamp: TypeAlias = tuple[int, int, int, int]
"""A file's size, times of change of content and of record, and inode: other content, another stamp."""


def stamps(model: ModelFiles) -> dict[Path, Stamp]:
    """Return the stamps of the files that decide a model's vectors. Take them before the files are read."""
    return {path: stamp(path) for path in model.hashed}


def stamp(path: Path) -> Stamp:
    """Return a file's stamp.

    Raises:
        ConfigError: The file is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): fetch the model again") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def refuse_changed(taken: Mapping[Path, Stamp]) -> None:
    """Refuse files that changed since their stamps were taken: their vectors are of no known space.

    Raises:
        ConfigError: A file has another stamp.
    """
    for path, before in taken.items():
        if stamp(path) != before:
            raise ConfigError(f"{path} changed while the model was being opened: open the model again")


def by_role(model: ModelFiles, digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (role, digest) of every hashed file: where a file lies decides nothing, what it is for does."""
    roles = {model.tokenizer: "tokenizer", model.config_file: "config"}
    return [(roles.get(path, "weights"), digests[model.name_of(path)]) for path in model.hashed]


def model_space(
    digests: Iterable[tuple[str, str]],
    *,
    head: Head,
    precision: str,
    prefixes: dict[InputType, str],
    lowercase: bool,
    device: str = "CPU",
) -> str:
    """Return the space id: of files, pooling, prefixes, compute precision, device and engine format."""
    parts: list[str | bytes] = ["local", f"engine {ENGINE_FORMAT}", precision, head.describe()]
    if device != "CPU":
        parts.append(f"device {device}")
    for step in head.steps:
        if isinstance(step, Dense):
            parts.append(f"dense {DENSE_FORMAT}")
            parts.append(step.weights.tobytes())
            parts.append(b"" if step.bias is None else step.bias.tobytes())
    parts.extend(f"{role} {prefixes[role]}" for role in sorted(prefixes))
    parts.append(f"lowercase {lowercase}")
    parts.extend(f"{role} {digest}" for role, digest in digests)
    return space_id(*parts)


def _sha256(path: Path, cache_dir: Path) -> str:
    size, modified, changed, inode = stamp(path)
    key = [str(path), size, modified, changed, inode]
    if size <= _SMALL_BYTES:
        return _read_sha256(path)
    kept = cache_dir / "hashes" / f"{hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()}.json"
    try:
        entry = json.loads(kept.read_bytes())
        if entry["stamp"] == key:
            return str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        log.debug("no kept hash of %s", path)
    digest = _read_sha256(path)
    if time.time() - max(modified, changed) / 1e9 > _RACY_SECONDS:
        try:
            durable.make_dir(kept.parent)
            durable.write_bytes(kept, json.dumps({"stamp": key, "sha256": digest}).encode())
        except (WriteError, OSError) as error:
            log.warning("the hash of %s is not kept, the next start will take longer: %s", path, error)
    return digest


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
