"""The files a vector set can be read from, behind one interface: columns as Arrow, rows by position.

Parquet and Arrow stay on disk and are read as far as asked. JSON, CSV and npy are read whole.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, InputError, StorageError
from vecmill.core.space import Manifest
from vecmill.core.types import IntArray
from vecmill.data.set_target import PART_NAME
from vecmill.data.sidecar import (
    INDEX_NAME,
    Index,
    Part,
    peek_sidecar,
    read_embedded,
    read_index,
    read_sidecar,
    sidecar_path,
)


class SetFile(Protocol):
    """A file, or a folder of them, with vectors in a column."""

    @property
    def path(self) -> Path:
        """As the user named it."""

    @property
    def manifest(self) -> Manifest | None:
        """None for a file from elsewhere."""

    @property
    def schema(self) -> pa.Schema:
        """Every column."""

    @property
    def rows(self) -> int:
        """Rows in all."""

    @property
    def ids(self) -> list[str] | None:
        """The id of each row where they stand outside the columns, else None."""

    @property
    def missing(self) -> tuple[int, ...]:
        """Rows whose numbers stand for no vector."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of all rows, in order.

        Raises:
            CorruptFileError: The file is damaged.
        """

    def take(self, rows: IntArray, columns: Sequence[str]) -> pa.Table:
        """Read columns of these rows, in the order asked, reading no more than needed."""


def open_set_file(path: Path, *, check: bool = True) -> SetFile:
    """Open whatever holds vectors.

    Args:
        path: A file, or a folder of Parquet files.
        check: Compare a directory's parts with their digests, which reads them once more.

    Raises:
        InputError: There is nothing, or nothing of a known format.
        CorruptFileError: It is damaged, or its parts belong to different sets.
        FormatVersionError: A later version of this package wrote it.
    """
    if path.is_dir():
        return _open_folder(path, check=check)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    with reading(path):
        return _opener(path)(path)


def peek_manifest(path: Path) -> Manifest | None:
    """Read only the manifest: a footer, a schema or a sidecar."""
    if path.is_dir():
        return _open_folder(path, check=False).manifest
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if _opener(path) in (_open_parquet, _open_arrow):
        return open_set_file(path, check=False).manifest
    return peek_sidecar(path)


def _opener(path: Path) -> Callable[[Path], SetFile]:
    """Choose by suffix; where that says nothing, by the first bytes."""
    suffix = _suffix(path)
    if suffix in _OPENERS:
        return _OPENERS[suffix]
    with path.open("rb") as file:
        head = file.read(6)
    for magic, opener in _BY_MAGIC.items():
        if head.startswith(magic):
            return opener
    if head.startswith(b"{") and sidecar_path(path).exists():
        return _open_jsonl
    raise InputError(f"{path}: vectors are not read from {suffix!r}; known: {', '.join(sorted(_OPENERS))}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the libraries raise on a damaged file into one error that names it."""
    try:
        yield
    except (InputError, StorageError, FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, EOFError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CorruptFileError(f"{path} is damaged or cut short: {lines[0][:200]}") from error


@dataclass(frozen=True, slots=True)
class ParquetSet:
    """One Parquet file or several, read by row group."""

    path: Path
    manifest: Manifest | None
    schema: pa.Schema
    rows: int
    parts: tuple[Path, ...]
    starts: IntArray
    ids: list[str] | None = None
    missing: tuple[int, ...] = ()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read columns of all rows, a row group at a time."""
        for part in self.parts:
            with reading(part), _parquet(part) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns=list(columns)).to_batches()

    def take(self, rows: IntArray, columns: Sequence[str]) -> pa.Table:
        """Read columns of some rows; only the row groups they stand in are read."""
        at = np.searchsorted(self.starts, rows, side="right") - 1
        pieces: list[pa.Table] = []
        taken: list[IntArray] = []
        for number in np.unique(at).tolist():
            with reading(self.parts[number]), _parquet(self.parts[number]) as file:
                wanted = np.flatnonzero(at == number)
                local = rows[wanted] - self.starts[number]
                sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
                groups = np.searchsorted(starts, local, side="right") - 1
                for group in np.unique(groups).tolist():
                    mine = groups == group
                    table = file.read_row_group(group, columns=list(columns))
                    pieces.append(table.take(pa.array(local[mine] - starts[group])))
                    taken.append(wanted[mine])
        if not pieces:
            return self.schema.empty_table().select(list(columns))
        order = np.argsort(np.concatenate(taken), kind="stable")
        return pa.concat_tables(pieces).take(pa.array(order))


@dataclass(frozen=True, slots=True)
class TableSet:
    """A set in memory, or mapped into it."""

    path: Path
    manifest: Manifest | None
    table: pa.Table
    ids: list[str] | None = None
    missing: tuple[int, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Every column."""
        return self.table.schema

    @property
    def rows(self) -> int:
        """Rows in all."""
        return int(self.table.num_rows)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Give columns of all rows."""
        with reading(self.path):
            yield from self.table.select(list(columns)).to_batches()

    def take(self, rows: IntArray, columns: Sequence[str]) -> pa.Table:
        """Give columns of some rows."""
        return self.table.select(list(columns)).take(pa.array(rows))


# Parquet.


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(str(path), page_checksum_verification=True, memory_map=False)


def _open_parquet(path: Path) -> ParquetSet:
    with _parquet(path) as file:
        manifest = read_embedded(file.metadata.metadata, path)
        rows, schema = file.metadata.num_rows, file.schema_arrow
    if manifest is not None and manifest.rows != rows:
        raise CorruptFileError(
            f"{path} has {rows} rows, its manifest says {manifest.rows}: if it is a part of a directory, "
            "open the directory; otherwise embed again"
        )
    return ParquetSet(path, manifest, schema, rows, (path,), np.zeros(1, dtype=np.int64))


def _open_folder(folder: Path, *, check: bool) -> ParquetSet:
    index = read_index(folder)
    if index is not None:
        for part in index.parts:
            _check_part(folder / part.name, part, index, digest=check)
        return _parts(folder, index.manifest, [folder / part.name for part in index.parts])
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".parquet", ".pq") and p.is_file()]
    paths = [path for path in paths if not durable.is_leftover(path)]
    if any(PART_NAME.fullmatch(path.name) for path in paths):
        raise CorruptFileError(
            f"{folder} has parts but no {INDEX_NAME}: writing it did not come to its end; run the job again"
        )
    if not paths and (folder / "catalogue.json").is_file():
        raise InputError(f"{folder} is a collection, not a vector set: `vecmill index info {folder}`")
    if not paths:
        raise InputError(f"{folder} holds no Parquet file and no {INDEX_NAME}")
    manifests = []
    for path in paths:
        with reading(path), _parquet(path) as file:
            manifests.append(read_embedded(file.metadata.metadata, path))
    if any(manifest is not None for manifest in manifests):
        raise InputError(f"{folder} holds several vector sets ({paths[0].name}, …); open one of them")
    return _parts(folder, None, paths)


def _check_part(path: Path, part: Part, index: Index, *, digest: bool) -> None:
    if not path.is_file():
        raise CorruptFileError(f"{path.parent}: the part {part.name} is missing; embed again")
    if digest and durable.digest_file(path) != part.digest:
        raise CorruptFileError(
            f"{path} is not the part {INDEX_NAME} speaks of: it was changed or damaged; embed again"
        )
    with reading(path), _parquet(path) as file:
        manifest = read_embedded(file.metadata.metadata, path)
        rows = file.metadata.num_rows
    if manifest != index.manifest:
        raise CorruptFileError(f"{path} belongs to another set than {INDEX_NAME}: their manifests differ")
    if rows != part.rows:
        raise CorruptFileError(f"{path} has {rows} rows, {INDEX_NAME} says {part.rows}; embed again")


def _parts(folder: Path, manifest: Manifest | None, paths: list[Path]) -> ParquetSet:
    schema: pa.Schema | None = None
    starts, rows = [], 0
    for path in paths:
        with reading(path), _parquet(path) as file:
            if schema is None:
                schema = file.schema_arrow
            elif not schema.equals(file.schema_arrow):
                raise InputError(f"{path} has other columns than {paths[0].name}; parts have equal ones")
            starts.append(rows)
            rows += file.metadata.num_rows
    if schema is None:
        raise CorruptFileError(f"{folder / INDEX_NAME} names no part; embed again")
    return ParquetSet(folder, manifest, schema, rows, tuple(paths), np.array(starts, dtype=np.int64))


# Arrow.


def _open_arrow(path: Path) -> TableSet:
    source = pa.memory_map(str(path))
    magic = source.read(6)
    source.seek(0)
    reader = pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)
    table = reader.read_all()
    table.validate(full=True)  # offsets that point nowhere end the process otherwise
    manifest = read_embedded(dict(reader.schema.metadata or {}), path)
    if manifest is not None and manifest.rows != table.num_rows:
        raise CorruptFileError(
            f"{path} has {table.num_rows} rows, its manifest says {manifest.rows}; embed again"
        )
    return TableSet(path, manifest, table)


# npy.


def _open_npy(path: Path) -> TableSet:
    sidecar = read_sidecar(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {what}; vectors are a float array of shape (rows, dimensions)")
    name = "embedding" if sidecar is None or sidecar.manifest is None else sidecar.manifest.vector
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    table = pa.table({name: column})
    if sidecar is None:
        return TableSet(path, None, table)
    ids = sidecar.all_ids()
    if ids is not None and len(ids) != len(array):
        raise CorruptFileError(f"{path} has {len(array)} rows, its sidecar {len(ids)} ids; embed again")
    return TableSet(path, sidecar.manifest, table, ids, sidecar.missing)


# JSON and CSV.


def _open_jsonl(path: Path) -> TableSet:
    sidecar = read_sidecar(path)
    columns = _Columns(path)
    with _binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                columns.add(_json(line, f"{path}, line {number}"))
    manifest = None if sidecar is None else sidecar.manifest
    table = columns.table()
    if manifest is not None and manifest.vector not in table.column_names:
        if not table.column_names:  # a set without rows
            table = pa.table({manifest.vector: pa.array([], pa.list_(pa.float32()))})
        names = [manifest.vector if name == "embeddings" else name for name in table.column_names]
        table = table.rename_columns(names)
    ids = None
    named = set(table.column_names)
    if manifest is not None and manifest.column("id") not in named and {"file", "row"} <= named:
        pairs = zip(table.column("file").to_pylist(), table.column("row").to_pylist(), strict=True)
        ids = [f"{file}#{row}" for file, row in pairs]
    return TableSet(path, manifest, table, ids)


def _open_json(path: Path) -> TableSet:
    with _binary(path) as file:
        value = _json(file.read(), str(path))
    if isinstance(value, dict) and value and all(isinstance(item, list) for item in value.values()):
        keys, vectors = list(value), list(value.values())
        if all(not item or isinstance(item[0], (int, float)) for item in vectors):
            return _keyed(path, keys, vectors)
    if not isinstance(value, list):
        raise InputError(f"{path}: vectors are read from an array of objects, or an object of id: [numbers]")
    columns = _Columns(path)
    for record in value:
        columns.add(record)
    return TableSet(path, None, columns.table())


def _keyed(path: Path, keys: list[str], vectors: list[list[float]]) -> TableSet:
    columns = _Columns(path)
    for key, vector in zip(keys, vectors, strict=True):
        columns.add({"id": key, "embedding": vector})
    return TableSet(path, None, columns.table(), keys)


def _open_csv(path: Path) -> TableSet:
    delimiter = "\t" if _suffix(path) == ".tsv" else ","
    with _binary(path) as file:
        text = file.read().decode("utf-8-sig")
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise CorruptFileError(f"{path} is damaged or cut short: {error}") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise InputError(f"{path} is empty")
    header, *body = rows
    for number, row in enumerate(body):
        if len(row) != len(header):
            raise CorruptFileError(f"{path}, row {number} has {len(row)} cells, the header {len(header)}")
    cells = list(zip(*body, strict=True)) if body else [()] * len(header)
    return TableSet(path, None, pa.table([pa.array(c, pa.string()) for c in cells], names=header))


class _Columns:
    """Records to a table. Lists of numbers become float32 at once: as objects they take 8 times as much."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.columns: dict[str, list[Any]] = {}

    def add(self, record: Any) -> None:
        if not isinstance(record, dict):
            raise InputError(f"{self.path}, row {self.rows} is not an object of columns")
        for name, value in record.items():
            if name not in self.columns:
                self.columns[name] = [None] * self.rows
            self.columns[name].append(_numbers(value))
        self.rows += 1
        for column in self.columns.values():
            if len(column) < self.rows:
                column.append(None)

    def table(self) -> pa.Table:
        return pa.table({name: _column(values) for name, values in self.columns.items()})


def _numbers(value: Any) -> Any:
    if not (isinstance(value, list) and value and isinstance(value[0], float)):
        return value
    try:
        with np.errstate(over="ignore"):
            array = np.array(value, dtype=np.float32)
    except (TypeError, ValueError):
        return value
    return array if array.ndim == 1 and None not in value else value


def _column(values: list[Any]) -> Any:
    if any(isinstance(value, np.ndarray) for value in values):
        rows = [_late_numbers(value) for value in values]
        if all(row is None or isinstance(row, np.ndarray) for row in rows):
            return _lists(rows)
        values = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a column of many types: each as JSON
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())


def _late_numbers(value: Any) -> Any:
    """Take a list that began with a whole number, in a column of vectors, for a vector."""
    if not isinstance(value, list) or None in value:
        return value
    try:
        with np.errstate(over="ignore"):
            return np.array(value, dtype=np.float32)
    except (TypeError, ValueError):
        return value


def _lists(rows: list[Any]) -> Any:
    """Join vectors, None where a row has none, into a column of lists."""
    lengths = np.array([0 if row is None else len(row) for row in rows], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate([row for row in rows if row is not None])
    mask = pa.array([row is None for row in rows])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def _json(raw: bytes, where: str) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw)  # takes NaN, which is refused later with its row
    except ValueError as error:
        raise CorruptFileError(f"{where} is not JSON: {error}") from error


def _binary(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


_OPENERS: dict[str, Callable[[Path], SetFile]] = {
    ".parquet": _open_parquet,
    ".pq": _open_parquet,
    ".arrow": _open_arrow,
    ".arrows": _open_arrow,
    ".feather": _open_arrow,
    ".jsonl": _open_jsonl,
    ".json": _open_json,
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".npy": _open_npy,
}
_BY_MAGIC: dict[bytes, Callable[[Path], SetFile]] = {
    b"PAR1": _open_parquet,
    b"ARROW1": _open_arrow,
    b"\x93NUMPY": _open_npy,
}
