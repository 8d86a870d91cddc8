"""Where a vector set may go: the layout a path asks for, and what is refused before any work begins."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vecmill.core.errors import InputError, WriteError
from vecmill.data.sidecar import INDEX_NAME, sidecar_path

FORMATS = ("parquet", "directory", "arrow", "jsonl", "npy")
"""The names of the layouts a set can be written in."""

PART_NAME = re.compile(r"part-[0-9a-f]{8}-\d{5,}\.parquet")

_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".npy": "npy",
}


def output_format(path: str | Path) -> str:
    """Name the layout a path asks for: by suffix; a folder, a trailing slash or no suffix is a directory.

    Raises:
        InputError: The suffix is of no layout.
    """
    text = str(path)
    if text.endswith(("/", "\\")) or Path(text).is_dir():
        return "directory"
    suffix = Path(text).suffix.lower()
    if not suffix:
        return "directory"
    if suffix not in _SUFFIXES:
        known = ", ".join(sorted(_SUFFIXES))
        raise InputError(
            f"{text}: no vector set is written as {suffix!r}; use one of {known}, or a folder's name"
        )
    return _SUFFIXES[suffix]


def check_target(path: Path, schema: pa.Schema, format: str, *, vector: str) -> None:  # noqa: A002  # the word a reader expects
    """Refuse, before any work, what `write_set` could not write; touches nothing.

    Args:
        path: Where the set is to go. Folders above it may be missing.
        schema: Its columns; JSON lines are taken to hold them all.
        format: One of `FORMATS`.
        vector: The column of the vectors.

    Raises:
        InputError: The format is not known, a column does not fit it, or what stands at `path` does not.
        WriteError: The place cannot be written to.
    """
    ensure_writable(path, schema, format, vector)
    if format == "jsonl" and vector != "embeddings" and "embeddings" in schema.names:
        raise InputError(CLASH)


def ensure_writable(path: Path, schema: pa.Schema, layout: str, vector: str) -> None:
    """Refuse as `check_target` does, but for what JSON lines may drop."""
    if layout not in FORMATS:
        raise InputError(f"unknown format {layout!r}; known: {', '.join(FORMATS)}")
    place = schema.get_field_index(vector)
    kind = schema.field(place).type if place >= 0 else None
    if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise InputError(not_vectors(vector, "dimensions", kind))
    if layout in ("parquet", "directory"):
        _ensure_parquet(schema)
    _ensure_free(path, folder=layout == "directory")
    if layout in ("jsonl", "npy"):
        _ensure_free(sidecar_path(path), folder=False)


CLASH = (
    "column 'embeddings' clashes with the key of the vectors in JSON lines; leave it out with --columns, or "
    "write another format"
)


def not_vectors(name: str, width: str, kind: pa.DataType | None) -> str:
    """Say what the column of the vectors should be and is."""
    is_ = "absent" if kind is None else kind
    return f"column {name!r} must be fixed_size_list<float>[{width}], but is {is_}"


def _ensure_parquet(schema: pa.Schema) -> None:
    """Refuse a column of a type that Parquet has not."""
    try:
        leaves_of(schema)
    except (pa.ArrowException, OSError):
        for entry in schema:
            try:
                leaves_of(pa.schema([entry]))
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"column {entry.name!r} is {entry.type}, which Parquet does not hold; leave it out with "
                    "--columns, or write .arrow"
                ) from error
        raise


def _ensure_free(path: Path, *, folder: bool) -> None:
    """Refuse a path at which a file or folder cannot appear."""
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            if not folder:
                raise InputError(f"{path} is a folder, and the set would be a file; name a file")
            ensure_ours(target)
            writable = target
        elif target.exists():
            if folder:
                raise InputError(f"{path} is a file, and the set would be a folder; name a folder")
            if not target.is_file():
                raise InputError(f"{path} is not a regular file; name one")
            if not os.access(target, os.W_OK):
                raise WriteError(f"{path} is write-protected; allow writing or name another file")
            writable = target.parent
        else:
            writable = next(above for above in target.parents if above.exists())
        if not writable.is_dir():
            raise WriteError(f"{path} cannot be written: {writable} is a file; choose another folder")
        if not os.access(writable, os.W_OK | os.X_OK):
            raise WriteError(
                f"{path} cannot be written: you may not write in {writable}; choose another folder"
            )
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def leaves_of(schema: pa.Schema) -> list[str]:
    """Name the columns as Parquet does: `error.code`, `embedding.list.element`."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(i).path for i in range(len(columns))]


def ensure_ours(folder: Path) -> None:
    """Refuse a folder with anything in it but a vector set: readers of `*.parquet` would mix the two."""
    for entry in sorted(folder.iterdir()):
        if not (entry.name == INDEX_NAME or PART_NAME.fullmatch(entry.name) or entry.name.startswith(".")):
            raise InputError(
                f"{folder} holds {entry.name!r}, which belongs to no vector set; name a new or empty folder"
            )
