"""The JSON files beside vectors: `_vecmill.json` of a directory, `NAME.vecmill.json` of JSON lines and npy.

Both name the files they speak of with rows and digest, so that files and manifest of different sets are never
read as one. While a data file is being replaced its sidecar knows both the old and the new content: whichever
a power cut leaves, the sidecar has its manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, FormatVersionError
from vecmill.core.space import MANIFEST_KEY, Manifest

INDEX_NAME = "_vecmill.json"
SIDECAR_SUFFIX = ".vecmill.json"
DIGEST_KEY = f"{MANIFEST_KEY}.digest"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One data file: its name in the folder, its rows, the BLAKE2b-128 digest of its bytes."""

    name: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Index:
    """What `_vecmill.json` says: the manifest, and the parts in the order of their rows."""

    manifest: Manifest
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What `NAME.vecmill.json` says about NAME.

    Attributes:
        manifest: None for a file that came from elsewhere and is about to be replaced.
        file: The data file.
        missing: npy: rows without a vector, whose numbers are NaN.
        ids: npy: the id of each row, where it is not `file#row`.
        sources: npy: runs of rows as (file, first row, rows) from which the ids `file#row` follow.
    """

    manifest: Manifest | None
    file: Part
    missing: tuple[int, ...] = ()
    ids: tuple[str, ...] | None = None
    sources: tuple[tuple[str, int, int], ...] | None = None

    def all_ids(self) -> list[str] | None:
        """Return the id of every row, or None where the sidecar does not say."""
        if self.ids is not None:
            return list(self.ids)
        if self.sources is None:
            return None
        return [f"{file}#{row}" for file, first, rows in self.sources for row in range(first, first + rows)]


def embedded(manifest: Manifest) -> dict[str, str]:
    """Return what a Parquet footer or an Arrow schema carries: the manifest and its digest."""
    text = manifest.to_json()
    return {MANIFEST_KEY: text, DIGEST_KEY: _digest(text.encode())}


def read_embedded(metadata: Mapping[bytes, bytes] | None, path: Path) -> Manifest | None:
    """Read the manifest from a footer or schema, None where there is none.

    Raises:
        CorruptFileError: Its digest is of other bytes.
        FormatVersionError: It is of a version this one does not read.
    """
    raw = (metadata or {}).get(MANIFEST_KEY.encode())
    if raw is None:
        return None
    digest = (metadata or {}).get(DIGEST_KEY.encode())
    if digest is not None and digest.decode("ascii", "replace") != _digest(raw):
        raise CorruptFileError(f"{path} is damaged: its manifest is not what was written; embed again")
    return Manifest.from_json(raw, where=f"the manifest in {path}")


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of a data file stands."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def write_index(folder: Path, index: Index) -> None:
    """Write `_vecmill.json`: from then on the folder is this set."""
    parts = [asdict(part) for part in index.parts]
    _write(folder / INDEX_NAME, {"manifest": asdict(index.manifest), "parts": parts})


def read_index(folder: Path) -> Index | None:
    """Read `_vecmill.json`, None where there is none.

    Raises:
        FormatVersionError: It is of a version this one does not read.
        CorruptFileError: It is damaged, or its rows do not add up.
    """
    path = folder / INDEX_NAME
    values = _read(path)
    if values is None:
        return None
    try:
        parts = tuple(_part(part) for part in values["parts"])
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    manifest = _manifest(path, values)
    if manifest is None or sum(part.rows for part in parts) != manifest.rows:
        raise CorruptFileError(f"{path}: the rows of its parts do not add up to the manifest's; embed again")
    return Index(manifest, parts)


def write_sidecar(path: Path, sidecar: Sidecar, *, previous: Sidecar | None = None) -> None:
    """Write the sidecar of `path`; with `previous` it speaks for the old content as well."""
    values = _values(sidecar)
    if previous is not None:
        values["previous"] = _values(previous)
    _write(sidecar_path(path), values)


def read_sidecar(path: Path) -> Sidecar | None:
    """Read what the sidecar of a data file says about the content the file has now; None without a sidecar.

    Cost: reads the whole data file for its digest.

    Raises:
        CorruptFileError: The data file is not the one the sidecar speaks of, or the sidecar is damaged.
        FormatVersionError: The sidecar is of a version this one does not read.
    """
    values = _read(sidecar_path(path))
    if values is None:
        return None
    digest = durable.digest_file(path)
    for candidate in (values, values.get("previous")):
        if candidate is not None:
            sidecar = _sidecar(sidecar_path(path), candidate)
            if sidecar.file.digest == digest:
                return sidecar
    raise CorruptFileError(
        f"{path} is not the file {sidecar_path(path).name} was written for: it was changed or damaged since; "
        "embed again, or remove the sidecar to open the vectors without their origin"
    )


def has_previous(path: Path) -> bool:
    """Whether the sidecar of a data file also speaks for content that is being replaced, or was."""
    values = _read(sidecar_path(path))
    return values is not None and "previous" in values


def peek_sidecar(path: Path) -> Manifest | None:
    """Read the manifest of the content a data file has now; None without a sidecar. Cost: as `read_sidecar`.

    A sidecar that is ahead of its data file, because a crash or a full disk came between, does not count.
    """
    sidecar = read_sidecar(path)
    return None if sidecar is None else sidecar.manifest


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _values(sidecar: Sidecar) -> dict[str, Any]:
    values = {name: value for name, value in asdict(sidecar).items() if value not in (None, ())}
    return {"manifest": None, **values}


def _write(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps({"format_version": VERSION, **values}, sort_keys=True, ensure_ascii=False)
    durable.write_bytes(path, text.encode() + b"\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise CorruptFileError(f"{path} is not a file of vecmill's; move it away")
    if version != VERSION:
        raise FormatVersionError(
            f"{path} has format version {version}, this vecmill reads {VERSION}: upgrade vecmill"
        )
    return dict(values)


def _sidecar(path: Path, values: dict[str, Any]) -> Sidecar:
    try:
        ids, sources = values.get("ids"), values.get("sources")
        return Sidecar(
            manifest=_manifest(path, values),
            file=_part(values["file"]),
            missing=tuple(int(row) for row in values.get("missing", ())),
            ids=None if ids is None else tuple(str(name) for name in ids),
            sources=None if sources is None else tuple((str(f), int(a), int(n)) for f, a, n in sources),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _part(values: dict[str, Any]) -> Part:
    return Part(str(values["name"]), int(values["rows"]), str(values["digest"]))


def _manifest(path: Path, values: dict[str, Any]) -> Manifest | None:
    found = values.get("manifest")
    return None if found is None else Manifest.from_json(json.dumps(found), where=str(path))


def _damaged(path: Path, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"{path} is damaged ({type(error).__name__}: {error}); embed again")
