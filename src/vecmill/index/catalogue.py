"""The one file that says what a collection holds. A rename replaces it whole: that publishes a change.

It is JSON: people can read it, and its last field is the digest of all others, so a flipped byte is noticed.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError
from vecmill.core.space import Manifest
from vecmill.core.types import Metric, Precision

NAME = "catalogue.json"
FORMAT = "vecmill collection"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A segment as the catalogue knows it.

    Attributes:
        name: Its files are segments/NAME.vectors, .items and, where rows are gone, .deleted-GENERATION.
        rows: Rows in its files, gone ones too.
        first_row, last_row: The least and greatest row number; segments do not overlap.
        vectors_bytes: Size of the vectors' file.
        items_digest: BLAKE2b-128 of the items' file.
        deleted: How many rows are gone.
        deleted_file, deleted_digest: Which ones; None where none is.
    """

    name: str
    rows: int
    first_row: int
    last_row: int
    vectors_bytes: int
    items_digest: str
    deleted: int = 0
    deleted_file: str | None = None
    deleted_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a collection holds at one moment.

    Attributes:
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
        CorruptFileError: The catalogue is damaged.
        FormatVersionError: A later version wrote it.
    """
    path = folder / NAME
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is not a collection: it has no {NAME}") from error
    try:
        values = json.loads(raw)
        digest = values.pop("digest")
        kind, version = values["format"], values["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"it is not what was written ({type(error).__name__})") from error
    if digest != _digest(values):
        raise _damaged(path, "its digest does not match")
    if kind != FORMAT or version != VERSION:
        raise FormatVersionError(f"{path} is {kind} version {version}, this vecmill reads {VERSION}: upgrade")
    manifest = values["manifest"]
    return Catalogue(
        dimensions=values["dimensions"],
        metric=Metric(values["metric"]),
        precision=Precision(values["precision"]),
        manifest=None if manifest is None else Manifest.from_json(json.dumps(manifest), where=str(path)),
        text_column=values["text_column"],
        schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"]))),
        generation=values["generation"],
        next_row=values["next_row"],
        next_segment=values["next_segment"],
        segments=tuple(Entry(**entry) for entry in values["segments"]),
        index=values["index"],
    )


def generation_of(folder: Path) -> tuple[int, int, int]:
    """Return what changes with every published catalogue: inode, size and time of change. No file is read."""
    try:
        status = (folder / NAME).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is not a collection: it has no {NAME}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest(values: dict[str, Any]) -> str:
    return durable.digest_bytes(json.dumps(values, sort_keys=True, ensure_ascii=False).encode())


def _damaged(path: Path, why: str) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is damaged: {why}; restore it from a copy, or build the collection again from its vector set"
    )
