"""Vector sets out: Parquet (one file or a directory), Arrow, JSON lines, npy. `docs/reference/vector-set.md`.

A set appears whole or not at all, and what stood at its path stays readable until the new one is in place.
Equal input gives equal bytes: there is no clock, no random number and no thread in what is written.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from vecmill.core import durable
from vecmill.core.errors import InputError, StorageError, unknown_name
from vecmill.core.space import Manifest
from vecmill.core.types import Vectors
from vecmill.data.set_target import (
    CLASH,
    FORMATS,
    PART_NAME,
    check_target,
    ensure_ours,
    ensure_writable,
    leaves_of,
    not_vectors,
    output_format,
)
from vecmill.data.sidecar import (
    Index,
    Part,
    Sidecar,
    embedded,
    has_previous,
    read_index,
    read_sidecar,
    sidecar_path,
    write_index,
    write_sidecar,
)

PART_ROWS = 262_144
"""Rows of a directory's part at most."""

__all__ = ["FORMATS", "PART_NAME", "check_target", "finish_set", "output_format", "write_set"]

Batches: TypeAlias = Iterable[pa.RecordBatch]


def write_set(
    path: Path,
    schema: pa.Schema,
    batches: Batches,
    manifest: Manifest,
    *,
    format: str | None = None,  # noqa: A002  # the word a reader expects
    columns_json: Sequence[str] = (),
) -> None:
    """Write a vector set; what stood at `path` is readable until the new set is whole.

    Bounded memory: one batch at a time. In Parquet every batch becomes a row group.

    Args:
        path: Where; its folder exists. A directory is made.
        schema: The columns, among them `manifest.vector`: fixed_size_list<float32>[dimensions], nullable.
        batches: Rows of that schema, `manifest.rows` in all.
        manifest: What the set says about itself.
        format: One of `FORMATS`; None asks the path.
        columns_json: JSON lines: columns written besides file, row, embeddings and error. npy: with the
            column of the ids in it the sidecar lists the ids.

    Raises:
        InputError: Schema, rows and manifest do not agree; nothing has been written.
        WriteError: The disk does not take it; what was there before is intact.
    """
    layout = format or output_format(path)
    ensure_writable(Path(path), schema, layout, manifest.vector)
    kind = schema.field(manifest.vector).type
    if kind.list_size != manifest.dimensions:
        raise InputError(not_vectors(manifest.vector, str(manifest.dimensions), kind))
    job = _Job(Path(path), schema.remove_metadata(), manifest, tuple(columns_json))
    _WRITERS[layout](job, _counted(batches, job.schema, manifest))


def finish_set(path: Path, format: str) -> None:  # noqa: A002  # as above
    """Do what a crash kept `write_set` from doing after the new set was in place; then its bytes are final.

    Removes parts that `_vecmill.json` does not name, takes the replaced content out of a sidecar, and removes
    what unfinished writes left. Nothing is done twice; without a whole set at `path` nothing is done.

    Args:
        path: A set as `write_set` was told.
        format: Its layout, one of `FORMATS`.

    Raises:
        WriteError: The disk does not take it; the set stays readable.
        CorruptFileError: A sidecar does not speak of the file beside it.
    """
    if format == "directory":
        index = _readable_index(path)
        if index is not None:
            durable.remove_leftovers(path)
            _remove_parts(path, {part.name for part in index.parts})
        return
    durable.remove_leftovers(path.parent, path.name)
    if format in ("jsonl", "npy"):
        durable.remove_leftovers(path.parent, sidecar_path(path).name)
        if path.is_file() and has_previous(path):
            present = read_sidecar(path)
            if present is not None:
                write_sidecar(path, present)


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    schema: pa.Schema
    manifest: Manifest
    columns_json: tuple[str, ...]


def _counted(batches: Batches, schema: pa.Schema, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    """Pass batches on, but refuse when their rows are not those of the manifest."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if rows > manifest.rows:
            break
        if batch.num_rows:
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
    if rows != manifest.rows:
        raise InputError(
            f"the manifest says {manifest.rows} rows, but {rows} or more came; nothing is written"
        )


# Parquet.


def _write_parquet(job: _Job, batches: Iterator[pa.RecordBatch]) -> None:
    with durable.replacing(job.path) as temp:
        _parquet_file(temp, job, batches)


def _parquet_file(path: Path, job: _Job, batches: Iterable[pa.RecordBatch]) -> int:
    """Write one Parquet file with the manifest in its footer; return its rows."""
    leaves = leaves_of(job.schema)
    vector = [f"{job.manifest.vector}.list.element"]  # an input column may be named "embedding.note"
    others = [leaf for leaf in leaves if leaf not in vector]
    rows = 0
    with pq.ParquetWriter(
        str(path),
        job.schema,
        compression="zstd",
        use_dictionary=cast("bool", others),  # the stubs know only all or nothing
        column_encoding=dict.fromkeys(vector, "BYTE_STREAM_SPLIT"),
        write_statistics=others,
        write_page_checksum=True,
    ) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=batch.num_rows)
            rows += batch.num_rows
        writer.add_key_value_metadata(embedded(job.manifest))
    return rows


def _write_directory(job: _Job, batches: Iterator[pa.RecordBatch]) -> None:
    folder = job.path
    durable.make_dir(folder)
    ensure_ours(folder)
    durable.remove_leftovers(folder)
    old = _readable_index(folder)
    in_use = {part.name: part for part in old.parts} if old else {}
    tag = _tag(job.manifest)
    parts: list[Part] = []
    for windows in _by_part(batches):
        parts.append(_write_part(job, windows, f"{len(parts):05d}", tag, in_use))
    write_index(folder, Index(job.manifest, tuple(parts)))
    _remove_parts(folder, {part.name for part in parts})


def _remove_parts(folder: Path, current: set[str]) -> None:
    for entry in sorted(folder.iterdir()):
        if PART_NAME.fullmatch(entry.name) and entry.name not in current:
            durable.remove(entry)


def _write_part(
    job: _Job, windows: Iterator[pa.RecordBatch], number: str, tag: str, in_use: dict[str, Part]
) -> Part:
    """Write a part, never over one the present set reads; one that is there already in equal bytes stays."""
    wanted = name = f"part-{tag}-{number}.parquet"
    while name in in_use:
        tag = _hash8(tag)
        name = f"part-{tag}-{number}.parquet"
    with durable.replacing(job.path / name) as temp:
        rows = _parquet_file(temp, job, windows)
        digest = durable.digest_file(temp)
    there = job.path / wanted
    if name != wanted and there.is_file() and durable.digest_file(there) == digest:
        durable.remove(job.path / name)
        name = wanted
    return Part(name, rows, digest)


def _readable_index(folder: Path) -> Index | None:
    """Read the present set's index; a damaged one protects nothing."""
    try:
        return read_index(folder)
    except StorageError:
        return None


def _tag(manifest: Manifest) -> str:
    """Name the parts after the plan."""
    source = manifest.plan or manifest.to_json()
    return source[:8] if re.fullmatch(r"[0-9a-f]{8,}", source) else _hash8(source)


def _hash8(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _by_part(batches: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Group batches into parts of at most `PART_ROWS` rows; no rows make one empty part."""
    waiting = next(batches, None)

    def part() -> Iterator[pa.RecordBatch]:
        nonlocal waiting
        rows = 0
        while waiting is not None and (rows == 0 or rows + waiting.num_rows <= PART_ROWS):
            rows += waiting.num_rows
            yield waiting
            waiting = next(batches, None)

    yield part()
    while waiting is not None:
        yield part()


# Arrow.


def _write_arrow(job: _Job, batches: Iterator[pa.RecordBatch]) -> None:
    schema = job.schema.with_metadata(embedded(job.manifest))
    with (
        durable.replacing(job.path) as temp,
        pa.OSFile(str(temp), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


# JSON lines and npy: a data file and its sidecar.


def _write_jsonl(job: _Job, batches: Iterator[pa.RecordBatch]) -> None:
    for name in job.columns_json:
        if name == "embeddings":
            raise InputError(CLASH)
        if name not in job.schema.names:
            raise unknown_name("column", name, job.schema.names)

    def write(file: BinaryIO) -> dict[str, Any]:
        for batch in batches:
            file.write(b"".join(_lines(batch, job)))
        return {}

    _write_with_sidecar(job, write)


def _lines(batch: pa.RecordBatch, job: _Job) -> Iterator[bytes]:
    ours = {role: job.manifest.column(role) for role in ("file", "row", "error")}
    column_of = {key: ours[key] for key in ("file", "row") if ours[key] in batch.schema.names}
    column_of |= {name: name for name in job.columns_json if name != job.manifest.vector}
    names = list(column_of)
    columns = [batch.column(name).to_pylist() for name in column_of.values()]
    has_error = ours["error"] in batch.schema.names and "error" not in names
    errors = batch.column(ours["error"]).to_pylist() if has_error else [None] * batch.num_rows
    vectors, present = _matrix(batch.column(job.manifest.vector), job.manifest.dimensions)
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for row, cells in enumerate(zip(*columns, strict=True) if columns else [()] * batch.num_rows):
        record: dict[str, Any] = dict(zip(names, cells, strict=True))
        record["embeddings"] = vectors[row] if present[row] else None
        if errors[row] is not None:
            record["error"] = errors[row]
        yield orjson.dumps(record, default=_plain, option=options)


def _plain(value: Any) -> str:
    """Say what JSON has no word for: bytes as base64, decimals and durations as people write them."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _write_npy(job: _Job, batches: Iterator[pa.RecordBatch]) -> None:
    shape = (job.manifest.rows, job.manifest.dimensions)
    ids = _Ids(job.manifest, always=job.manifest.column("id") in job.columns_json)

    def write(file: BinaryIO) -> dict[str, Any]:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        missing: list[int] = []
        rows = 0
        for batch in batches:
            vectors, present = _matrix(batch.column(job.manifest.vector), shape[1])
            vectors[~present] = np.nan
            file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
            missing.extend((rows + np.flatnonzero(~present)).tolist())
            ids.add(batch)
            rows += batch.num_rows
        return {"missing": tuple(missing), **ids.fields()}

    _write_with_sidecar(job, write)


@dataclass(slots=True)
class _Ids:
    """Gathers ids: as runs of (file, first row, rows) while each is `file#row`, else one by one."""

    manifest: Manifest
    always: bool
    runs: list[tuple[str, int, int]] = field(default_factory=list)
    columns: list[Any] = field(default_factory=list)
    derivable: bool = True

    def add(self, batch: pa.RecordBatch) -> None:
        names = batch.schema.names
        id_, file_, row_ = (self.manifest.column(role) for role in ("id", "file", "row"))
        if id_ in names:
            self.columns.append(batch.column(id_))
        if not (file_ in names and row_ in names):
            self.derivable = False
        if self.always or not self.derivable:
            return
        ids = batch.column(id_).to_pylist() if id_ in names else None
        files: list[Any] = batch.column(file_).to_pylist()
        rows: list[Any] = batch.column(row_).to_pylist()
        for at, (file, row) in enumerate(zip(files, rows, strict=True)):
            if ids is not None and ids[at] != f"{file}#{row}":
                self.derivable = False
                return
            last = self.runs[-1] if self.runs else None
            if last is not None and last[0] == file and last[1] + last[2] == row:
                self.runs[-1] = (file, last[1], last[2] + 1)
            else:
                self.runs.append((file, row, 1))

    def fields(self) -> dict[str, Any]:
        if self.derivable and not self.always:
            return {"sources": tuple(self.runs)}
        if not self.columns:
            return {}
        return {"ids": tuple(name for column in self.columns for name in column.to_pylist())}


def _write_with_sidecar(job: _Job, write: Callable[[BinaryIO], dict[str, Any]]) -> None:
    """Replace a data file and its sidecar so that every moment between shows one whole set."""
    path, manifest = job.path, job.manifest
    with durable.replacing(path) as temp:
        with temp.open("wb") as file:
            facts = write(file)
        new = Sidecar(manifest, Part(path.name, manifest.rows, durable.digest_file(temp)), **facts)
        write_sidecar(path, new, previous=_previous(path))
    write_sidecar(path, new)


def _previous(path: Path) -> Sidecar | None:
    """What the sidecar must say about the file still in place; None where that opens no more anyway."""
    if not path.exists():
        return None
    if not sidecar_path(path).exists():
        return Sidecar(None, Part(path.name, 0, durable.digest_file(path)))
    try:
        return read_sidecar(path)
    except StorageError:
        return None


def _matrix(column: Any, dimensions: int) -> tuple[Vectors, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Return (n, d) float32, zeros where there is no vector, and (n,) whether there is one."""
    present = np.asarray(column.is_valid())
    vectors = np.zeros((len(column), dimensions), dtype=np.float32)
    vectors[present] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return vectors, present


_WRITERS: dict[str, Callable[[_Job, Iterator[pa.RecordBatch]], None]] = {
    "parquet": _write_parquet,
    "directory": _write_directory,
    "arrow": _write_arrow,
    "jsonl": _write_jsonl,
    "npy": _write_npy,
}
