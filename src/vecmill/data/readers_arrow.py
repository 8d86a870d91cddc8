"""Parquet and Arrow: files that carry their own types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from vecmill.core.errors import CorruptFileError, Error, InputError
from vecmill.core.events import Notice
from vecmill.data.encodings import damaged
from vecmill.data.kinds import MAX_EXACT_INT, STRING, Kind, cast_values, field_at, is_text, plain, plain_texts
from vecmill.data.sources import Source
from vecmill.data.tables import BATCH_BYTES, Part, Survey, doubled, pieces

_ROWS = 1024  # of Parquet at once: equal long texts are stored once, so their size says little
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_FEATHER_1_MAGIC = b"FEA1"
_NO_END = "{}: the Arrow stream has no end mark; if it was cut short, its last rows are missing"


class TypedTable:
    """What Parquet and Arrow have in common: types are known, texts must be texts."""

    def __init__(self, source: Source, text_columns: Sequence[str], template_columns: Sequence[str]) -> None:
        self._source = source
        self._text_columns = text_columns
        self._template_columns = frozenset(template_columns)

    def parts(self, schema: pa.Schema, limit: int) -> Iterator[Part]:
        """Yield the rows in the given schema."""
        del limit  # the caller stops asking
        with self._guarded():
            for batch in self._batches():
                for piece in pieces(batch):
                    places = {name: place for place, name in enumerate(piece.schema.names)}
                    columns = [
                        self._column(piece, places, name, kind)
                        for name, kind in zip(schema.names, schema.types, strict=True)
                    ]
                    yield Part(pa.record_batch(columns, schema=schema))

    def is_exact(self, column: str) -> bool:
        """Whether every integer of a column is exact as float64. Reads the column."""
        with self._guarded():
            for batch in self._batches([column]):
                limits = pc.min_max(batch.column(column))
                low, high = limits["min"].as_py(), limits["max"].as_py()
                if low is not None and (low < -MAX_EXACT_INT or high > MAX_EXACT_INT):
                    return False
        return True

    def _batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches that hold these columns (None: all), and perhaps others."""
        raise NotImplementedError

    def _kinds(self, schema: pa.Schema) -> dict[str, Kind]:
        double = doubled(schema.names)
        if double:
            raise InputError(
                f"{self._source.name}: several columns are named {', '.join(map(repr, double))}; rename "
                "them first"
            )
        kinds = {}
        for name, kind in zip(schema.names, schema.types, strict=True):
            read_as = plain(kind)
            kinds[name] = Kind(read_as, None if pa.types.is_integer(read_as) else True)
        for name in self._text_columns:
            kind = field_at(schema, name)
            if kind is None:
                continue
            if not (is_text(kind) or pa.types.is_null(kind)):
                raise InputError(
                    f"{self._source.name}: column {name!r} is {kind}, not text; name a column of strings "
                    "with --text"
                )
            kinds.setdefault(name, STRING)
        return kinds

    def _column(
        self, batch: pa.RecordBatch, places: Mapping[str, int], name: str, kind: pa.DataType
    ) -> pa.Array:
        if name in places:
            column = batch.column(places[name])
        elif name in self._text_columns and field_at(batch.schema, name) is not None:
            head, *rest = name.split(".")
            column = batch.column(head)
            for part in rest:
                column = pc.struct_field(column, part)
        else:
            return pa.nulls(batch.num_rows, kind)
        if name in self._template_columns and pa.types.is_string(kind) and not is_text(column.type):
            return pa.array(plain_texts(cast_values(column, plain(column.type))), kind)
        return cast_values(column, kind)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what the file libraries say of a broken file into an error with its name and a cure."""
        try:
            yield
        except (FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._explained(error) from error

    def _explained(self, error: BaseException) -> Error:
        return damaged(self._source, error)


class ParquetTable(TypedTable):
    """One Parquet file."""

    def survey(self, limit: int | None) -> Survey:
        """Read the footer; the types and the number of rows stand there."""
        with self._guarded(), self._file() as file:
            rows = file.metadata.num_rows
            return Survey(rows if limit is None else min(rows, limit), self._kinds(file.schema_arrow))

    def _file(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(str(self._source.path), buffer_size=1 << 20, pre_buffer=False)

    def _batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        with self._file() as file:
            rows = _rows_at_once(file.metadata)
            for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                batch.validate(full=True)  # texts that are not UTF-8, which Parquet itself does not check
                yield batch

    def _explained(self, error: BaseException) -> Error:
        with self._source.path.open("rb") as file:
            if file.read(4) != b"PAR1":
                return CorruptFileError(
                    f"{self._source.name} is not a Parquet file (its first bytes are not PAR1); name its "
                    "real "
                    "format with --format, or write it again"
                )
        return super()._explained(error)


def _rows_at_once(metadata: Any) -> int:
    """Return how many rows to read so that they stay below `BATCH_BYTES`, by what the footer says."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    each = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return int(min(_ROWS, max(1, BATCH_BYTES // max(1, each))))


class ArrowTable(TypedTable):
    """One Arrow file: IPC file (also Feather 2) or IPC stream, told by its first bytes."""

    def survey(self, limit: int | None) -> Survey:
        """Count the rows and check every buffer, so that damage is found before anything is embedded."""
        rows = 0
        kinds: dict[str, Kind] = {}
        notices: tuple[Notice, ...] = ()
        with self._guarded():
            for batch in self._batches(with_schema=kinds):
                batch.validate(full=True)
                rows += batch.num_rows
                if limit is not None and rows >= limit:
                    rows = limit
                    break
            else:
                if not self._has_end():
                    notices = (Notice("no_end_mark", _NO_END.format(self._source.name)),)
        return Survey(rows, kinds, notices)

    def _has_end(self) -> bool:
        """Whether the file ends as a finished writer leaves it."""
        with self._source.path.open("rb") as file:
            file.seek(-8, 2)
            tail = file.read()
        return tail.endswith(_FILE_MAGIC) or tail == _STREAM_END

    def _batches(
        self, columns: Sequence[str] | None = None, *, with_schema: dict[str, Kind] | None = None
    ) -> Iterator[pa.RecordBatch]:
        del columns  # what is mapped and not looked at costs nothing
        with pa.memory_map(str(self._source.path)) as data:
            head = data.read(6)
            data.seek(0)
            if head.startswith(_FEATHER_1_MAGIC):
                raise InputError(
                    f"{self._source.name} is Feather version 1, which is no Arrow file; write it again as "
                    "version 2"
                )
            if head == _FILE_MAGIC:
                with ipc.open_file(data) as file:
                    if with_schema is not None:
                        with_schema.update(self._kinds(file.schema))
                    for i in range(file.num_record_batches):
                        yield file.get_batch(i)
                return
            with ipc.open_stream(data) as stream:
                if with_schema is not None:
                    with_schema.update(self._kinds(stream.schema))
                yield from stream
            if data.tell() < data.size():
                raise CorruptFileError(
                    f"{self._source.name}: the Arrow stream ends {data.size() - data.tell()} bytes before "
                    "the file "
                    "does; fetch or write it again"
                )
