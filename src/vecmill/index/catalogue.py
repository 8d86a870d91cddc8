"""The one file that says what a collection holds. A rename replaces it whole: that publishes a change.

It is JSON: people can read it, and its last field is the digest of all others, so a flipped byte is noticed.
"""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, Error, FormatVersionError, InputError, StorageError
from vecmill.core.space import Manifest
from vecmill.core.types import Metric, Precision
from vecmill.index.segments import KEY, ROW, damaged, reading

NAME = "catalogue.json"
FORMAT = "vecmill collection"
VERSION = 1
MOST_DIMENSIONS = 1 << 20

Stamp: TypeAlias = tuple[int, int, int, bytes]
"""Inode, size, time of change and last bytes of a catalogue; the last bytes hold its digest."""

_STAMP_BYTES = 64
_MOST_ROWS = 1 << 62
_NAME = re.compile(r"[0-9]{8,18}")
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A segment as the catalogue knows it.

    Attributes:
        name: Its files are segments/NAME.vectors, .items and, where rows are gone, .deleted-GENERATION.
        rows: Rows in its files, gone ones too.
        first_row, last_row: The least and greatest row number; segments do not overlap.
        vectors_bytes: Size of the vectors' file.
        vectors_digest: BLAKE2b-128 of the header and checksums of the vectors' file.
        items_digest: BLAKE2b-128 of the items' file.
        deleted: How many rows are gone.
        deleted_file, deleted_digest: Which ones; None where none is.
    """

    name: str
    rows: int
    first_row: int
    last_row: int
    vectors_bytes: int
    vectors_digest: str
    items_digest: str
    deleted: int = 0
    deleted_file: str | None = None
    deleted_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a collection holds at one moment.

    Attributes:
        identity: Drawn when the collection was made: one that takes its place is another.
        generation: Raised by one with every change.
        next_row, next_segment: Numbers never given out before.
        dimensions: Components of a vector.
        metric: What "near" means, unless a search says otherwise.
        precision: float32 or float16, how the originals are kept.
        manifest: What made the vectors; None where nobody knows.
        text_column: The column that was embedded; None where there is none.
        schema: Every column of the items but ours.
        segments: In the order of their rows.
        index: Settings of the index and what was measured when it was built; None: every search is exact.
    """

    dimensions: int
    metric: Metric
    precision: Precision
    manifest: Manifest | None = None
    text_column: str | None = None
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    identity: str = "0" * 32
    generation: int = 0
    next_row: int = 0
    next_segment: int = 1
    segments: tuple[Entry, ...] = ()
    index: dict[str, Any] | None = None

    @property
    def live(self) -> int:
        """Rows that can be found."""
        return sum(entry.rows - entry.deleted for entry in self.segments)

    def next(self, **changes: Any) -> Catalogue:
        """Return the catalogue of the next generation."""
        return replace(self, generation=self.generation + 1, **changes)


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Publish a catalogue; on disk when this returns.

    Raises:
        WriteError: It could not be written; the one before is intact.
    """
    values = {
        "format": FORMAT,
        "version": VERSION,
        "identity": catalogue.identity,
        "generation": catalogue.generation,
        "next_row": catalogue.next_row,
        "next_segment": catalogue.next_segment,
        "dimensions": catalogue.dimensions,
        "metric": catalogue.metric.value,
        "precision": catalogue.precision.value,
        "manifest": None if catalogue.manifest is None else json.loads(catalogue.manifest.to_json()),
        "text_column": catalogue.text_column,
        "columns": {field.name: str(field.type) for field in catalogue.schema},
        "schema": base64.b64encode(catalogue.schema.serialize().to_pybytes()).decode("ascii"),
        "index": catalogue.index,
        "segments": [asdict(entry) for entry in catalogue.segments],
    }
    values["digest"] = _digest(values)
    durable.write_bytes(folder / NAME, json.dumps(values, indent=1, ensure_ascii=False).encode())


def read_catalogue(folder: Path) -> Catalogue:
    """Read what a collection holds.

    Raises:
        InputError: The folder is not a collection.
        CorruptFileError: The catalogue is damaged, or says what cannot be.
        FormatVersionError: A later version wrote it.
        StorageError: It cannot be read.
    """
    return read_stamped(folder)[0]


def read_stamped(folder: Path) -> tuple[Catalogue, Stamp]:
    """Read what a collection holds, and what `stamp_of` says as long as that is so; see `read_catalogue`."""
    path = folder / NAME
    raw, stamp = _read(folder, whole=True)
    try:
        values = json.loads(raw)
        digest = values.pop("digest")
        kind, version = values["format"], values["version"]
        sound = digest == _digest(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it is not what was written ({type(error).__name__})") from error
    if not sound:
        raise damaged(path, "its digest does not match")
    if kind != FORMAT or version != VERSION:
        raise FormatVersionError(f"{path} is {kind} version {version}, this vecmill reads {VERSION}: upgrade")
    try:
        catalogue = _parsed(values, path)
        _ensure_possible(catalogue)
    except CorruptFileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, Error) as error:
        raise damaged(path, f"it says what cannot be ({error or type(error).__name__})") from error
    return catalogue, stamp


def stamp_of(folder: Path) -> Stamp:
    """Return what changes with every published catalogue. Reads its last bytes only.

    Status alone would not do: within one tick of the clock a third catalogue may have the inode and the size
    of the first.

    Raises:
        InputError: The folder is not a collection.
        StorageError: The catalogue cannot be read.
    """
    return _read(folder, whole=False)[1]


def _read(folder: Path, *, whole: bool) -> tuple[bytes, Stamp]:
    try:
        with reading(folder / NAME), (folder / NAME).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if whole:
                raw = file.readall()
            else:
                file.seek(max(0, status.st_size - _STAMP_BYTES))
                raw = file.read(_STAMP_BYTES)
    except FileNotFoundError as error:
        raise _missing(folder) from error
    except StorageError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            raise _missing(folder) from error
        raise
    return raw, (status.st_ino, status.st_size, status.st_mtime_ns, raw[-_STAMP_BYTES:])


def _missing(folder: Path) -> InputError:
    there = "it has no" if folder.is_dir() else "there is no"
    name = NAME if folder.is_dir() else "such folder"
    return InputError(f"{folder} is not a collection: {there} {name}")


def _parsed(values: dict[str, Any], path: Path) -> Catalogue:
    """Turn JSON into what it stands for; whatever is wrong raises."""
    manifest = values["manifest"]
    if not isinstance(values["segments"], list):
        raise TypeError("segments that are no list")
    return Catalogue(
        dimensions=_whole(values["dimensions"], 1, MOST_DIMENSIONS),
        metric=Metric(values["metric"]),
        precision=Precision(values["precision"]),
        manifest=None if manifest is None else Manifest.from_json(json.dumps(manifest), where=str(path)),
        text_column=values["text_column"],
        schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"], validate=True))),
        identity=_matching(_DIGEST, values["identity"]),
        generation=_whole(values["generation"], 0, _MOST_ROWS),
        next_row=_whole(values["next_row"], 0, _MOST_ROWS),
        next_segment=_whole(values["next_segment"], 1, _MOST_ROWS),
        segments=tuple(Entry(**entry) for entry in values["segments"]),
        index=values["index"],
    )


def _ensure_possible(catalogue: Catalogue) -> None:
    """Refuse what no writer of ours says, before a file is opened by its name."""
    names = catalogue.schema.names
    if len(set(names)) != len(names) or {ROW, KEY} & set(names):
        raise ValueError("columns with one name")
    if not isinstance(catalogue.text_column, str | None) or not isinstance(catalogue.index, dict | None):
        raise TypeError("text_column or index")
    if catalogue.precision not in (Precision.FLOAT32, Precision.FLOAT16):
        raise ValueError(f"precision {catalogue.precision.value}")
    if catalogue.manifest is not None and catalogue.manifest.dimensions != catalogue.dimensions:
        raise ValueError("dimensions that are not the manifest's")
    if len({entry.name for entry in catalogue.segments}) != len(catalogue.segments):
        raise ValueError("a segment twice")
    before = -1
    for entry in catalogue.segments:
        _ensure_entry(entry)
        if entry.first_row <= before:
            raise ValueError(f"rows of segment {entry.name} that overlap those before")
        before = entry.last_row
        if int(entry.name) >= catalogue.next_segment:
            raise ValueError(f"next_segment {catalogue.next_segment} beside segment {entry.name}")
    if before >= catalogue.next_row:
        raise ValueError(f"next_row {catalogue.next_row} after row {before}")


def _ensure_entry(entry: Entry) -> None:
    _matching(_NAME, entry.name)
    _whole(entry.first_row, 0, _MOST_ROWS)
    _whole(entry.last_row, entry.first_row, _MOST_ROWS)
    _whole(entry.rows, 1, entry.last_row - entry.first_row + 1)
    _whole(entry.deleted, 0, entry.rows)
    _whole(entry.vectors_bytes, 0, _MOST_ROWS)
    _matching(_DIGEST, entry.vectors_digest)
    _matching(_DIGEST, entry.items_digest)
    if entry.deleted_file is not None:
        _matching(re.compile(rf"{entry.name}\.deleted-[0-9]{{1,19}}"), entry.deleted_file)
        _matching(_DIGEST, entry.deleted_digest)
    elif entry.deleted or entry.deleted_digest is not None:
        raise ValueError(f"segment {entry.name} with deleted rows and no file of them")


def _whole(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r:.40} where a number from {least} to {most} stands")
    return value


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r:.60} where {pattern.pattern} stands")
    return value


def _digest(values: dict[str, Any]) -> str:
    return durable.digest_bytes(json.dumps(values, sort_keys=True, ensure_ascii=False).encode())
