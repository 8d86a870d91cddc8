"""Vector sets in, vectors from our files and anybody's. `docs/reference/vector-set.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.addresses import ensure_path
from vecmill.core.errors import CorruptFileError, InputError, unknown_name
from vecmill.core.space import Manifest
from vecmill.core.types import IntArray, Vectors
from vecmill.data.set_files import SetFile, open_set_file, peek_manifest, reading

USUAL_NAMES = ("embedding", "embeddings", "vector")
"""Of several columns that could be vectors, the only one with such a name is taken."""


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Vectors, what they stand for, and where they come from.

    Attributes:
        path: The file or folder.
        manifest: What the set says about these vectors; None for a file from elsewhere, and for a column of
            vectors in a set of ours that its manifest does not speak of.
        ids: The id of every row, also of those without a vector.
        vectors: (m, d) float32, C order: the rows that have a vector.
        rows: (m,) int64, ascending: the position in the set of each vector.
        total_rows: Rows of the set.
        dimensions: Components of a vector.
        vector_column: The column the vectors were read from.
        text_column: The column of the texts, None where none is known.
        columns: The other columns.
    """

    path: str
    manifest: Manifest | None
    ids: list[str]
    vectors: Vectors
    rows: IntArray
    total_rows: int
    dimensions: int
    vector_column: str
    text_column: str | None
    columns: tuple[str, ...]
    _file: SetFile = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.total_rows

    def records(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Read the other columns of some rows; of a file on disk only what they need is read.

        Args:
            rows: Positions in the set, in any order, repeated or not.
            columns: Which columns; None for all but the vectors.

        Raises:
            UnknownNameError: The set has no such column.
            InputError: A position is outside the set.
        """
        names = list(self.columns if columns is None else columns)
        for name in names:
            if name not in self.columns:
                raise unknown_name("column", name, self.columns)
        at = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(at) and (at.min() < 0 or at.max() >= self.total_rows):
            wrong = at.min() if at.min() < 0 else at.max()
            raise InputError(f"row {wrong} is outside the set: it has {self.total_rows} rows")
        if not names:
            return [{} for _ in range(len(at))]
        records: list[dict[str, Any]] = self._file.take(at, names).to_pylist()
        return records

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Read other columns of all rows, in order; of a file on disk only those are read.

        Raises:
            UnknownNameError: The set has no such column.
            CorruptFileError: The file is damaged, or has other rows than when it was opened.
        """
        names = list(dict.fromkeys(columns))
        for name in names:
            if name not in self.columns:
                raise unknown_name("column", name, self.columns)
        if not names:
            return pa.table({"row": np.arange(self.total_rows)}).select([])
        batches = list(self._file.batches(names))
        if not batches:
            return self._file.schema.empty_table().select(names)
        table = pa.Table.from_batches(batches).select(names)
        if len(table) != self.total_rows:
            raise CorruptFileError(
                f"{self.path} has changed since it was opened: {len(table):,} rows now, "
                f"{self.total_rows:,} then; open it again"
            )
        return table

    def texts(self, rows: Sequence[int]) -> list[str | None]:
        """Read the texts of some rows; None for each where the set has no text column."""
        if self.text_column is None:
            return [None] * len(rows)
        return [record[self.text_column] for record in self.records(rows, [self.text_column])]


def read_vectors(
    path: str | Path, *, vector_column: str | None = None, id_column: str | None = None
) -> VectorSet:
    """Open a vector set: one of ours, or any Parquet, Arrow, JSON, JSON lines, CSV or npy file with vectors.

    The column of the vectors is the one asked for; else the manifest's; else the only list of floats; else
    the only one named embedding, embeddings or vector. A column of strings holds each vector as a JSON list
    and must be asked for. Ids are the set's own; in a file from elsewhere they are row numbers unless
    `id_column` names better ones. A null is a row without a vector. Cost: the vectors in memory once, as
    float32.

    Raises:
        InputError: Nothing is there, or it is not clear which column holds vectors.
        UnknownNameError: There is no such column.
        CorruptFileError: The file is damaged, or a row has numbers that cannot be a vector.
        FormatVersionError: A later version of this package wrote it.
    """
    file = open_set_file(ensure_path(path))
    column = _vector_column(file, vector_column)
    vectors, rows = _gather(file, column)
    dimensions = vectors.shape[1]
    manifest = _speaking_of(file, column)
    if manifest is not None and dimensions != manifest.dimensions:
        raise CorruptFileError(
            f"{path}: vectors have {dimensions} dimensions, the manifest says {manifest.dimensions}"
        )
    others = tuple(name for name in file.schema.names if name != column)
    return VectorSet(
        path=str(path),
        manifest=manifest,
        ids=_ids(file, id_column),
        vectors=vectors,
        rows=rows,
        total_rows=file.rows,
        dimensions=dimensions,
        vector_column=column,
        text_column=_text_column(file),
        columns=others,
        _file=file,
    )


def read_manifest(path: str | Path) -> Manifest | None:
    """Read what a set says about itself without reading its vectors; None for a file from elsewhere.

    Raises:
        InputError: Nothing is there.
        CorruptFileError: The file is damaged.
        FormatVersionError: A later version of this package wrote it.
    """
    return peek_manifest(ensure_path(path))


def read_columns(path: str | Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of all rows in order, in bounded memory where the file allows it.

    Raises:
        UnknownNameError: There is no such column.
        CorruptFileError: The file is damaged.
    """
    file = open_set_file(ensure_path(path))
    for name in columns:
        if name not in file.schema.names:
            raise unknown_name("column", name, file.schema.names)
    return file.batches(columns)


@dataclass(frozen=True, slots=True)
class SetBatch:
    """Consecutive rows of a set.

    Attributes:
        ids: (n,) the id of every row.
        vectors: (m, d) float32: the rows that have a vector. rows: (m,) int64, their places in the batch.
        columns: (n) rows of the columns asked for.
    """

    ids: list[str]
    vectors: Vectors
    rows: IntArray
    columns: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class VectorStream:
    """A vector set to be read batch by batch; fields as those of `VectorSet`.

    Attributes:
        schema: The columns but the vectors, with their types.
    """

    path: str
    manifest: Manifest | None
    total_rows: int
    dimensions: int
    vector_column: str
    text_column: str | None
    schema: pa.Schema
    _file: SetFile = field(repr=False, compare=False)
    _id_column: str | None = field(repr=False, compare=False)

    @property
    def id_column(self) -> str | None:
        """The column of the ids; None where they stand elsewhere or are row numbers."""
        return _id_column(self._file, self._id_column)

    def batches(self, columns: Sequence[str] = (), *, step: int = 16_384) -> Iterator[SetBatch]:
        """Read all rows in order, at most `step` at once, in bounded memory where the file allows it.

        Raises:
            UnknownNameError: The set has no such column.
            InputError: A row has no id.
            CorruptFileError: The file is damaged, or a row has numbers that cannot be a vector.
        """
        for name in columns:
            if name not in self.schema.names:
                raise unknown_name("column", name, self.schema.names)
        id_column = _id_column(self._file, self._id_column)
        wanted = [*columns, self.vector_column, *([] if id_column is None else [id_column])]
        missing = np.asarray(self._file.missing, dtype=np.int64)
        row = 0
        for whole in self._file.batches(list(dict.fromkeys(wanted))):
            for start in range(0, whole.num_rows, step):
                part = whole.slice(start, step)
                absent = missing[(missing >= row) & (missing < row + part.num_rows)] - row
                vectors, present = self._vectors(part.column(self.vector_column), absent, row)
                ids = self._ids(part, id_column, row)
                yield SetBatch(ids, vectors, present, part.select(list(columns)))
                row += part.num_rows
        if row != self.total_rows:
            raise CorruptFileError(
                f"{self.path} has {row} rows where {self.total_rows} were announced; embed again"
            )

    def _vectors(self, values: Any, absent: IntArray, row: int) -> tuple[Vectors, IntArray]:
        where = f"{self.path}, column {self.vector_column!r}"
        with reading(self._file.path):
            block, present = _block(values, absent, row, where)
        if not len(present):
            return np.empty((0, self.dimensions), dtype=np.float32), present
        if block.shape[1] != self.dimensions:
            raise _not_a_vector(where, row + int(present[0]), block.shape[1], self.dimensions)
        with np.errstate(over="ignore"):
            vectors = np.ascontiguousarray(block, dtype=np.float32)
        _ensure_finite(vectors, present + row, where)
        return vectors, present

    def _ids(self, part: pa.RecordBatch, column: str | None, row: int) -> list[str]:
        if column is None:
            ids = self._file.ids
            there = range(row, row + part.num_rows)
            return [str(at) for at in there] if ids is None else ids[row : row + part.num_rows]
        values = part.column(column).to_pylist()
        if None in values:
            raise InputError(f"{self.path}: row {row + values.index(None)} has no id in column {column!r}")
        return [str(value) for value in values]


def stream_vectors(
    path: str | Path, *, vector_column: str | None = None, id_column: str | None = None
) -> VectorStream:
    """Open a vector set for reading batch by batch. Arguments and errors as `read_vectors`.

    Cost: the manifest and the schema; of a file that does not say how long its vectors are, the first ones.
    """
    file = open_set_file(ensure_path(path))
    column = _vector_column(file, vector_column)
    _id_column(file, id_column)
    manifest = _speaking_of(file, column)
    others = [entry for entry in file.schema if entry.name != column]
    return VectorStream(
        path=str(path),
        manifest=manifest,
        total_rows=file.rows,
        dimensions=_declared_width(file, column) or _first_width(file, column),
        vector_column=column,
        text_column=_text_column(file),
        schema=pa.schema(others),
        _file=file,
        _id_column=id_column,
    )


def _first_width(file: SetFile, column: str) -> int:
    """Return the width of the first vector; 0 where there is none."""
    for batch in file.batches([column]):
        with reading(file.path):
            block, present = _block(
                batch.column(0), np.empty(0, dtype=np.int64), 0, f"{file.path}, column {column!r}"
            )
        if len(present):
            return int(block.shape[1])
    return 0


def _vector_column(file: SetFile, asked: str | None) -> str:
    names = file.schema.names
    if asked is not None:
        if asked not in names:
            raise unknown_name("column", asked, names)
        return asked
    if file.manifest is not None:
        if file.manifest.vector not in names:
            raise CorruptFileError(
                f"{file.path} lacks the column {file.manifest.vector!r} its manifest names"
            )
        return file.manifest.vector
    found = [entry.name for entry in file.schema if _is_vectors(entry.type)]
    usual = [name for name in found if name in USUAL_NAMES]
    if len(found) == 1 or len(usual) == 1:
        return str(found[0] if len(found) == 1 else usual[0])
    if found:
        raise InputError(
            f"{file.path} has several columns of vectors: {', '.join(found)}; name one with "
            "vector_column (--vector-column)"
        )
    raise InputError(
        f"{file.path} has no column of vectors; its columns: {', '.join(names) or 'none'}; if one holds them "
        "as JSON lists, name it with vector_column (--vector-column)"
    )


def _speaking_of(file: SetFile, column: str) -> Manifest | None:
    """Return the manifest if it describes this column's vectors."""
    return file.manifest if file.manifest is not None and file.manifest.vector == column else None


def _is_vectors(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _text_column(file: SetFile) -> str | None:
    name = file.manifest.text if file.manifest is not None else "text"
    if name is None or name not in file.schema.names:
        return None
    kind = file.schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return name if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _id_column(file: SetFile, asked: str | None) -> str | None:
    """Return the column of the ids, None where they stand elsewhere or are row numbers."""
    if asked is not None:
        if asked not in file.schema.names:
            raise unknown_name("column", asked, file.schema.names)
        return asked
    if file.ids is None and file.manifest is not None and file.manifest.column("id") in file.schema.names:
        return file.manifest.column("id")
    return None


def _ids(file: SetFile, asked: str | None) -> list[str]:
    column = _id_column(file, asked)
    if column is None:
        return [str(row) for row in range(file.rows)] if file.ids is None else file.ids
    ids: list[str] = []
    for batch in file.batches([column]):
        values = batch.column(0)
        ids.extend(values.to_pylist() if values.type == pa.string() else map(_as_id, values.to_pylist()))
    if len(ids) != file.rows:
        raise CorruptFileError(f"{file.path} has {len(ids)} ids for {file.rows} rows; embed again")
    if None in ids:
        raise InputError(f"{file.path}: row {ids.index(None)} has no id in column {column!r}")  # type: ignore[arg-type]  # looked for on purpose
    return ids


def _as_id(value: Any) -> Any:
    return None if value is None else str(value)


def _gather(file: SetFile, column: str) -> tuple[Vectors, IntArray]:
    """Read the vectors into one block: (m, d) float32 and the (m,) rows they stand at."""
    out: Vectors | None = None
    at: list[IntArray] = []
    row = filled = 0
    missing = np.asarray(file.missing, dtype=np.int64)
    for batch in file.batches([column]):
        values = batch.column(0)
        absent = missing[(missing >= row) & (missing < row + len(values))] - row
        where = f"{file.path}, column {column!r}"
        with reading(file.path):
            block, present = _block(values, absent, row, where)
        if len(present):
            if out is None:
                out = np.empty((file.rows, block.shape[1]), dtype=np.float32)
            if block.shape[1] != out.shape[1]:
                raise _not_a_vector(where, row + int(present[0]), block.shape[1], out.shape[1])
            with np.errstate(over="ignore"):
                out[filled : filled + len(block)] = block
            _ensure_finite(out[filled : filled + len(block)], present + row, where)
        at.append(present + row)
        filled += len(present)
        row += len(values)
    if row != file.rows:
        raise CorruptFileError(f"{file.path} has {row} rows where {file.rows} were announced; embed again")
    if out is None:
        out = np.empty((0, _declared_width(file, column)), dtype=np.float32)
    return out[:filled], np.concatenate(at) if at else np.empty(0, dtype=np.int64)


def _declared_width(file: SetFile, column: str) -> int:
    kind = file.schema.field(column).type
    manifest = _speaking_of(file, column)
    if manifest is not None:
        return manifest.dimensions
    return kind.list_size if pa.types.is_fixed_size_list(kind) else 0


def _block(
    values: Any, absent: IntArray, row: int, where: str
) -> tuple[npt.NDArray[np.floating[Any]], IntArray]:
    """Turn a column's piece into (m, d) numbers and the (m,) places in it that have any."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_null(kind):
        return np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = _parsed(values, row, where)
        kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(
            f"{where} holds {kind}, not vectors; name another with vector_column (--vector-column)"
        )
    if len(absent):
        mask = np.zeros(len(values), dtype=bool)
        mask[absent] = True
        values = pc.if_else(pa.array(mask), pa.scalar(None, kind), values)
    present = np.flatnonzero(np.asarray(values.is_valid()))
    if not len(present):
        return np.empty((0, 0), dtype=np.float32), present
    width = _width(values, present, row, where)
    flat = values.flatten()
    if flat.null_count:
        bad = present[int(np.flatnonzero(np.asarray(flat.is_null()))[0]) // width] + row
        raise CorruptFileError(
            f"{where}, row {bad}: a component is null; a vector has a number in each place"
        )
    numbers = flat.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "fiu":
        raise InputError(
            f"{where} holds {kind}, not vectors; name another with vector_column (--vector-column)"
        )
    return numbers.reshape(-1, width), present


def _width(values: Any, present: IntArray, row: int, where: str) -> int:
    if pa.types.is_fixed_size_list(values.type):
        width = int(values.type.list_size)
    else:
        lengths = pc.list_value_length(values).drop_null().to_numpy()
        width = int(lengths[0])
        if (lengths != width).any():
            bad = int(np.flatnonzero(lengths != width)[0])
            raise _not_a_vector(where, int(present[bad]) + row, int(lengths[bad]), width)
    if width == 0:
        raise CorruptFileError(f"{where}, row {present[0] + row}: the vector is empty; null stands for none")
    return width


def _parsed(values: Any, row: int, where: str) -> Any:
    """Read vectors written as JSON lists into strings."""
    vectors: list[Any] = []
    for at, cell in enumerate(values.to_pylist()):
        if cell is None or not cell.strip():
            vectors.append(None)
            continue
        try:
            with np.errstate(over="ignore"):
                vectors.append(np.array(orjson.loads(cell), dtype=np.float32).reshape(-1))
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"{where}, row {row + at} is not a JSON list of numbers") from error
    return pa.array(vectors, pa.list_(pa.float32()))


def _ensure_finite(block: Vectors, rows: IntArray, where: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = np.flatnonzero(~np.isfinite(block.sum(axis=1)))  # a sum may overflow: look closer
    for at in suspicious:
        if not np.isfinite(block[at]).all():
            raise CorruptFileError(
                f"{where}, row {rows[at]}: NaN or infinity in the vector (or beyond float32); "
                "make it null if the row has none"
            )


def _not_a_vector(where: str, row: int, width: int, expected: int) -> CorruptFileError:
    return CorruptFileError(f"{where}, row {row} has {width} dimensions, those before it {expected}")
