"""JSON documents and JSON lines as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.core.events import Notice
from vecmill.data.encodings import Utf8File, undecodable, utf8_file
from vecmill.data.json_values import Lenient, document_values
from vecmill.data.kinds import STRING, Values, at_path, names_in_order, type_name, value_array
from vecmill.data.sources import Source
from vecmill.data.tables import Part, ReadOptions, Survey

_CHUNK_ROWS = 4096
_CHUNK_BYTES = 4 << 20  # as Python objects they take some times as much
_BIG = float(1 << 63)

Columns = dict[str, Sequence[Any]]


class JsonTable:
    """One file of JSON lines, or one document: an array of objects or strings, or an object of columns."""

    def __init__(
        self,
        source: Source,
        options: ReadOptions,
        text_columns: Sequence[str],
        template_columns: Sequence[str],
    ) -> None:
        self._source = source
        self._options = options
        self._text_columns = text_columns
        self._template_columns = tuple(name for name in template_columns if name not in text_columns)
        self._lenient = Lenient(self._template_columns)
        self._notices: list[Notice] = []

    def survey(self, limit: int | None) -> Survey:
        """Read all records and find the kind of every column."""
        self._lenient, self._notices = Lenient(self._template_columns), []
        learners: dict[str, Values] = {}
        paths: set[str] = set()
        rows = 0
        with utf8_file(self._source, self._options.encoding) as file:
            for count, columns in self._chunks(file):
                if limit is not None and rows + count > limit:
                    count = limit - rows
                    columns = _cut(columns, count)
                for name, values in columns.items():
                    learners.setdefault(name, Values()).add(values)
                for path in self._text_columns:
                    if path not in columns and any(v is not None for v in _column(columns, path, count)):
                        paths.add(path)
                rows += count
                if limit is not None and rows >= limit:
                    break
        if self._lenient.constants:
            self._note("nan_as_null", f"{self._lenient.constants} values are NaN or Infinity, read as null")
        kinds = {name: learner.result() for name, learner in learners.items()}
        for name in kinds.keys() & set(self._template_columns):
            kind = kinds[name].type
            if not (pa.types.is_nested(kind) or pa.types.is_null(kind)):
                kinds[name] = STRING
        kinds |= {path: STRING for path in self._text_columns if path in paths and path not in kinds}
        return Survey(rows, kinds, tuple(self._notices))

    def parts(self, schema: pa.Schema, limit: int) -> Iterator[Part]:
        """Yield the records in the given schema, a few thousand at a time."""
        with utf8_file(self._source, self._options.encoding) as file:
            for size, chunk in self._chunks(file):
                count = min(size, limit)
                limit -= count
                columns = _cut(chunk, count) if count < size else chunk
                bad: dict[int, str] = {}
                arrays = [
                    self._array(name, kind, _column(columns, name, count), bad)
                    for name, kind in zip(schema.names, schema.types, strict=True)
                ]
                yield Part(pa.record_batch(arrays, schema=schema), bad)
                if limit <= 0:
                    return

    def is_exact(self, column: str) -> bool:  # noqa: ARG002 - the protocol's
        """Return True: a survey of JSON says so itself."""
        return True

    def _note(self, code: str, message: str) -> None:
        self._notices.append(Notice(code, f"{self._source.name}: {message}"))

    def _array(self, name: str, kind: pa.DataType, values: Sequence[Any], bad: dict[int, str]) -> pa.Array:
        if name in self._text_columns and pa.types.is_string(kind):
            wrong = {i: type_name(v) for i, v in enumerate(values) if v is not None and type(v) is not str}
            if wrong:
                bad.update(wrong)
                values = [None if i in wrong else v for i, v in enumerate(values)]
        try:
            return value_array(values, kind)
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{self._source.name}: column {name!r} has other values than when it was scanned ({kind} "
                "expected); "
                "leave the files alone while they are read, then start again"
            ) from error

    def _chunks(self, file: Utf8File) -> Iterator[tuple[int, Columns]]:
        if self._source.format == "jsonl":
            yield from self._line_chunks(file)
            return
        values = document_values(file, self._lenient)
        shape = next(values)
        if shape == "array":
            if self._options.records is not None:
                raise self._no_records("an array")
            yield from self._record_chunks(values, "record")
            return
        first = next(values, None)
        second = next(values, None)
        if second is not None:  # several documents, one after the other
            if not self._notices:
                self._note("json_lines", "holds several JSON values one after the other; read as JSON lines")
            yield from self._record_chunks(_chain(first, second, values), "record")
        elif first is None:
            raise InputError(f"{self._source.name} is empty; remove it from the input or write it again")
        else:
            yield from self._object_chunks(first)

    def _no_records(self, shape: str) -> InputError:
        return InputError(
            f"{self._source.name} is {shape}, so there is no {self._options.records!r} in it; leave out "
            "--records"
        )

    # Records

    def _record_chunks(self, values: Iterator[Any], unit: str) -> Iterator[tuple[int, Columns]]:
        records: list[Mapping[str, Any]] = []
        held = 0
        for number, value in enumerate(values, 1):
            records.append(self._record(value, f"{unit} {number}"))
            held += _size(value)
            if len(records) == _CHUNK_ROWS or held >= _CHUNK_BYTES:
                yield len(records), _gathered(records)
                records, held = [], 0
        if records:
            yield len(records), _gathered(records)

    def _record(self, value: Any, where: str) -> Mapping[str, Any]:
        if type(value) is dict:
            return value
        if type(value) is str:
            return {"text": value}
        if value is None:
            return {}
        raise InputError(
            f"{self._source.name}, {where}: {type_name(value)} where an object (or a bare string) should be; "
            "a table is an array of objects, an object of columns or one object per line"
        )

    # Lines

    def _line_chunks(self, file: Utf8File) -> Iterator[tuple[int, Columns]]:
        if self._options.records is not None:
            raise self._no_records("JSON lines")
        records: list[Mapping[str, Any]] = []
        lines: list[bytes] = []
        number = held = 0
        for number, line, ended in _lines(file):
            if not line or line.isspace():
                continue
            value = self._parsed(file, line, number, ended)
            records.append(value if type(value) is dict else self._record(value, f"line {number}"))
            lines.append(line)
            held += len(line)
            if len(records) == _CHUNK_ROWS or held >= _CHUNK_BYTES:
                yield len(records), self._exact(records, lines)
                records, lines, held = [], [], 0
        if records:
            yield len(records), self._exact(records, lines)
        if number == 0:
            raise InputError(f"{self._source.name} is empty; remove it from the input or write it again")

    def _parsed(self, file: Utf8File, line: bytes, number: int, ended: bool) -> Any:
        try:
            value = orjson.loads(line)
            return self._lenient.loads(line.decode()) if self._lenient.wants(value) else value
        except orjson.JSONDecodeError:
            pass  # perhaps NaN, a half surrogate or 1e400: the slower parser takes them
        try:
            return self._lenient.loads(line.decode())
        except UnicodeDecodeError as error:
            raise undecodable(file) or InputError(f"{self._source.name} changed while it was read") from error
        except (ValueError, RecursionError) as error:
            raise self._bad_line(line, number, ended, error) from error

    def _bad_line(self, line: bytes, number: int, ended: bool, error: Exception) -> Exception:
        where = f"{self._source.name}, line {number}"
        if number == 1 and line.lstrip().startswith(b"["):
            return InputError(
                f"{where}: begins an array, so it is not JSON lines; read it with --format json"
            )
        if not ended:
            return CorruptFileError(
                f"{where}: the file ends inside this record; fetch or write the file again, or remove the "
                "line"
            )
        column = f" (column {error.colno})" if hasattr(error, "colno") else ""
        what = getattr(error, "msg", "nested too deeply")
        return InputError(
            f"{where}: not JSON: {what}{column}; correct or remove the line (one record per line; a "
            "document over "
            "several lines is --format json)"
        )

    def _exact(self, records: list[Mapping[str, Any]], lines: list[bytes]) -> Columns:
        """Gather columns; where an integer beyond 64 bits was rounded to a float, parse again exactly."""
        columns = _gathered(records)
        for values in columns.values():
            if float in set(map(type, values)) and any(type(v) is float and abs(v) >= _BIG for v in values):
                exact = [self._lenient.loads(line.decode()) for line in lines]
                return _gathered([self._record(value, "record") for value in exact])
        return columns

    # One object

    def _object_chunks(self, document: Any) -> Iterator[tuple[int, Columns]]:
        if self._options.records is not None:
            found = at_path(document, self._options.records)
            if found is None:
                raise InputError(
                    f"{self._source.name} has nothing at {self._options.records!r} (--records); "
                    f"{_places(document)}"
                )
            document = found
        if type(document) is list:
            yield from self._record_chunks(iter(document), "record")
            return
        if type(document) is not dict:
            raise InputError(
                f"{self._source.name}: {type_name(document)} is no table; a table is an array of objects, an "
                "object of columns or one object per line"
            )
        columns = self._object_columns(document)
        rows = len(next(iter(columns.values()), ()))
        if rows == 0:
            yield 0, columns
        start = held = 0
        for row in range(rows):
            held += sum(_size(values[row]) for values in columns.values())
            if row + 1 == rows or row + 1 - start == _CHUNK_ROWS or held >= _CHUNK_BYTES:
                yield row + 1 - start, {name: values[start : row + 1] for name, values in columns.items()}
                start, held = row + 1, 0

    def _object_columns(self, document: dict[str, Any]) -> Columns:
        """Read an object as columns (lists, or objects with the same keys), else as one record."""
        values = list(document.values())
        lists = [v for v in values if type(v) is list]
        if values and len(lists) == len(values):
            return self._list_columns(document)
        if lists and any(v and all(type(x) is dict for x in v) for v in lists):
            raise self._nested(document)
        if values and all(type(v) is dict for v in values):
            keys = [list(v) for v in values]
            if all(k == keys[0] for k in keys) and not any(
                type(x) is dict for v in values for x in v.values()
            ):
                return {name: list(column.values()) for name, column in document.items()}
            raise self._nested(document)
        return {name: [value] for name, value in document.items()}

    def _list_columns(self, document: dict[str, list[Any]]) -> Columns:
        lengths = {name: len(values) for name, values in document.items()}
        holds_records = any(v and all(type(x) is dict for x in v) for v in document.values())
        if len(set(lengths.values())) == 1 and not (holds_records and len(document) == 1):
            if _are_vectors(document):
                raise InputError(
                    f"{self._source.name} is a file of vectors (name -> {next(iter(lengths.values()))} "
                    "numbers), not "
                    "a table of texts; it is for search and info, there is nothing to embed"
                )
            return dict(document)
        if holds_records:
            raise self._nested(document)
        longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
        raise InputError(
            f"{self._source.name}: the columns differ in length: {longest!r} has {lengths[longest]} values, "
            f"{shortest!r} {lengths[shortest]}; an object of columns needs as many values in each"
        )

    def _nested(self, document: Mapping[str, Any]) -> InputError:
        return InputError(f"{self._source.name} is one object, not a table; {_places(document)}")


def _places(document: Any) -> str:
    """Name the option that reaches the records inside an object."""
    found = list(_record_paths(document))
    if found:
        return "its records: " + " or ".join(f"--records {path}" for path in found[:3])
    return "say where its records lie with --records KEY"


def _record_paths(value: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    if type(value) is not dict or depth > 3:
        return
    for key, inner in value.items():
        path = f"{prefix}{key}"
        if type(inner) is list and inner and all(type(x) is dict for x in inner):
            yield path
        yield from _record_paths(inner, path + ".", depth + 1)


def _are_vectors(document: Mapping[str, Sequence[Any]]) -> bool:
    width = len(next(iter(document.values())))
    return width > 1 and all(
        all(type(x) in (float, int) for x in values) and any(type(x) is float for x in values)
        for values in document.values()
    )


def _size(value: Any) -> int:
    """Return about how many bytes a value takes as JSON."""
    if type(value) is str:
        return len(value)
    if type(value) is dict:
        return sum(len(key) + _size(inner) for key, inner in value.items())
    if type(value) is list:
        simple = not value or type(value[0]) in (int, float)
        return 8 * len(value) if simple else sum(map(_size, value))
    return 8


def _cut(columns: Columns, rows: int) -> Columns:
    return {name: values[:rows] for name, values in columns.items()}


def _gathered(records: Sequence[Mapping[str, Any]]) -> Columns:
    names = names_in_order(records, {})
    return {name: [record.get(name) for record in records] for name in names}


def _column(columns: Columns, name: str, rows: int) -> Sequence[Any]:
    """Return the values of a column or dotted path; nulls where there is none."""
    if name in columns:
        return columns[name]
    head, dot, rest = name.partition(".")
    while dot:
        if head in columns:
            return [at_path(value, rest) for value in columns[head]]
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return [None] * rows


def _lines(file: Utf8File) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number from 1, line without its end, whether it has an end)."""
    pieces: list[bytes] = []
    number = 0
    for chunk in file.chunks():
        head, end, rest = chunk.rpartition(b"\n")
        if not end:
            pieces.append(rest)
            continue
        for line in b"".join([*pieces, head]).split(b"\n"):
            number += 1
            yield number, line, True
        pieces = [rest]
    if last := b"".join(pieces):
        yield number + 1, last, False


def _chain(first: Any, second: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield second
    yield from rest
