"""CSV and TSV: every cell read as a string first, types decided over all rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from vecmill.core.errors import Error, InputError
from vecmill.core.events import Notice
from vecmill.data.encodings import CHUNK_BYTES, Utf8File, damaged, undecodable, utf8_file
from vecmill.data.kinds import Cells, cast_cells
from vecmill.data.sources import Source
from vecmill.data.tables import Part, ReadOptions, Survey, doubled

_BLOCK_BYTES = 1 << 20
_WIDE_BLOCK_BYTES = 16 << 20
_MAX_BLOCK_BYTES = 1 << 30


# How the parser words a row of the wrong width. Its callback for such rows fails where they are no UTF-8.
_RAGGED = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")


class CsvTable:
    """One csv or tsv file.

    An empty cell is null, a quoted empty cell ("") an empty text. Empty lines are passed over.
    """

    def __init__(self, source: Source, options: ReadOptions, as_text: Collection[str]) -> None:
        self._source = source
        self._options = options
        self._as_text = as_text
        self._delimiter = options.delimiter or ("\t" if source.format == "tsv" else ",")
        self._notices: list[Notice] = []

    def survey(self, limit: int | None) -> Survey:
        """Read all cells, find the kind of every column, and look for signs of a wrong option."""
        cells: list[Cells] = []
        names: list[str] = []
        rows = suspicious = 0
        last: str | None = None
        self._notices = []
        with utf8_file(self._source, self._options.encoding) as file:
            for names, batch in self._read(file):
                cells = cells or [Cells(as_text=name in self._as_text) for name in names]
                if limit is not None and rows + batch.num_rows > limit:
                    batch = batch.slice(0, limit - rows)
                for column, learner in zip(batch.columns, cells, strict=True):
                    learner.add(column)
                if self._delimiter == "\t" and self._options.quote is not None:
                    suspicious += sum(_spanning(column) for column in batch.columns)
                rows += batch.num_rows
                if batch.num_rows:
                    last = batch.column(batch.num_columns - 1)[batch.num_rows - 1].as_py()
                if limit is not None and rows >= limit:
                    break
            else:
                self._check_end(file, last, rows)
        if suspicious:
            self._note(
                "quotes",
                f"{suspicious} cells hold both tabs and line breaks: if the file is written without quoting, "
                "rows were joined; read it with --no-quotes",
            )
        if len(names) == 1 and self._options.delimiter is None:
            self._note_delimiter(names[0])
        columns = {name: learner.result() for name, learner in zip(names, cells, strict=True)}
        return Survey(rows, columns, tuple(self._notices))

    def parts(self, schema: pa.Schema, limit: int) -> Iterator[Part]:
        """Yield the rows in the given schema, a block of the file at a time."""
        with utf8_file(self._source, self._options.encoding) as file:
            places: dict[str, int] = {}
            for names, block in self._read(file):
                places = places or {name: i for i, name in enumerate(names)}
                batch = block.slice(0, limit)
                limit -= batch.num_rows
                columns = []
                for name, kind in zip(schema.names, schema.types, strict=True):
                    if name not in places:
                        columns.append(pa.nulls(batch.num_rows, kind))
                        continue
                    columns.append(self._cast(name, batch.column(places[name]), kind))
                yield Part(pa.record_batch(columns, schema=schema))
                if limit <= 0:
                    return

    def is_exact(self, column: str) -> bool:  # noqa: ARG002 - the protocol's
        """Return True: a survey of text says so itself."""
        return True

    def _cast(self, name: str, cells: pa.Array, kind: pa.DataType) -> pa.Array:
        try:
            return cast_cells(cells, kind)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{self._source.name}: column {name!r} has other values than when it was scanned ({kind} "
                "expected); leave the files alone while they are read, then start again"
            ) from error

    def _note(self, code: str, message: str) -> None:
        self._notices.append(Notice(code, f"{self._source.name}: {message}"))

    def _note_delimiter(self, name: str) -> None:
        for other in (";", "\t", "|", ","):
            if other != self._delimiter and other in name:
                self._note(
                    "delimiter", f"one column, its name holds {other!r}: perhaps --delimiter {other!r}"
                )
                return

    def _read(self, file: Utf8File) -> Iterator[tuple[list[str], pa.RecordBatch]]:
        """Yield (column names, string cells), the header removed; at least once for a file with a header.

        A row longer than the block does not fit the parser: start again with larger blocks and pass over
        what was already given.
        """
        done = 0
        block = _BLOCK_BYTES
        while True:
            first = done
            try:
                for names, batch in self._read_blocks(file, block):
                    if first >= batch.num_rows and batch.num_rows:
                        first -= batch.num_rows
                        continue
                    yield names, batch.slice(first)
                    done += batch.num_rows - first
                    first = 0
                return
            except pa.ArrowInvalid as error:  # only those that a larger block cures come here
                if block >= _MAX_BLOCK_BYTES:
                    raise InputError(
                        f"{self._source.name}: a row after row {done} is longer than 1 GiB; most often a "
                        "quote "
                        "that is never closed: --no-quotes reads quotes as they are"
                    ) from error
                block *= 16

    def _read_blocks(self, file: Utf8File, block: int) -> Iterator[tuple[list[str], pa.RecordBatch]]:
        width = self._width(file, block)
        block = max(block, min(_WIDE_BLOCK_BYTES, width << 10))  # some rows of many columns at once
        raw = [f"f{i}" for i in range(width)]
        names: list[str] | None = None
        try:
            with self._open(file, block, raw) as reader:
                for batch in reader:
                    if names is None:
                        names, skip = self._names(batch)
                        batch = batch.slice(skip)
                    yield names, batch
        except pa.ArrowInvalid as error:
            if _is_too_small(file, block, error):
                raise
            raise self._explained(file, error) from error
        except OSError as error:
            raise damaged(self._source, error) from error

    def _width(self, file: Utf8File, block: int) -> int:
        """Return the number of cells in the first row."""
        try:
            with self._open(file, block, None) as reader:
                return len(reader.schema)
        except pa.ArrowInvalid as error:
            if _is_too_small(file, block, error):
                raise
            raise self._explained(file, error) from error
        except OSError as error:
            raise damaged(self._source, error) from error

    def _open(self, file: Utf8File, block: int, names: list[str] | None) -> Any:
        quote = self._options.quote
        return pacsv.open_csv(
            file.open(),
            read_options=pacsv.ReadOptions(
                use_threads=False,
                block_size=block,
                column_names=names,
                autogenerate_column_names=names is None,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=self._delimiter,
                quote_char=quote if quote is not None else False,
                newlines_in_values=quote is not None,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names or (), pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
                check_utf8=names is not None,
            ),
        )

    def _names(self, batch: pa.RecordBatch) -> tuple[list[str], int]:
        """Return the column names and how many rows of the batch they take."""
        if not self._options.header:
            return [f"c{i}" for i in range(batch.num_columns)], 0
        cells = [column[0].as_py() or "" for column in batch.columns]
        names = [name or f"column_{i}" for i, name in enumerate(cells)]
        unnamed = [name for name, cell in zip(names, cells, strict=True) if not cell]
        double = doubled(names)
        if double:
            raise InputError(
                f"{self._source.name}: several columns are named {', '.join(map(repr, double))}; give each "
                "its own "
                "name in the first line, or read the file without header (--no-header; columns c0, c1, …)"
            )
        if unnamed:
            self._note("unnamed_columns", f"columns without a name are called {', '.join(unnamed)}")
        return names, 1

    def _explained(self, file: Utf8File, error: pa.ArrowInvalid) -> Error:
        """Turn the parser's complaint into one with file, row and cure, and without the row's text."""
        name = self._source.name
        if (ragged := _RAGGED.match(str(error))) is not None:
            number, expected, found = map(int, ragged.groups())
            row = number - (2 if self._options.header else 1)
            return InputError(
                f"{name}, row {row} (counted from 0): {found} cells where the first row has {expected}; "
                f"{self._ragged_cure(found, expected)}"
            )
        if "UTF8" in str(error) and (wrong := undecodable(file)) is not None:
            return wrong
        if "mpty" in str(error):
            return InputError(
                f"{name} is empty: not even a header; remove it from the input or write it again"
            )
        return InputError(f"{name} is not {self._source.format}: {error}")

    def _ragged_cure(self, found: int, expected: int) -> str:
        if found < expected:
            return "complete the row, or if quotes in the file are plain characters, use --no-quotes"
        return f"put quotes around a cell that holds {self._delimiter!r}, or name the right --delimiter"

    def _check_end(self, file: Utf8File, last: str | None, rows: int) -> None:
        """Refuse a file whose last cell opens a quote and never closes it: rows would have been swallowed."""
        quote = self._options.quote
        if quote is None or not last:
            return
        end = (quote + last.replace(quote, quote * 2)).encode()
        tail, quotes = b"", 0
        for chunk in file.chunks():
            quotes += chunk.count(quote.encode())
            tail = (tail + chunk)[-len(end) :]
        if tail == end and quotes % 2:
            raise InputError(
                f"{self._source.name}, row {rows - 1} (counted from 0): a quote opens the last cell and is "
                "never closed; the file is cut short, or its quotes are plain characters: --no-quotes"
            )


def _is_too_small(file: Utf8File, block: int, error: pa.ArrowInvalid) -> bool:
    """Whether the parser failed because a row is longer than the block."""
    if "straddling" in str(error):
        return True
    return (
        "file or block" in str(error)
        and sum(map(len, islice(file.chunks(), 1 + block // CHUNK_BYTES))) > block
    )


def _spanning(cells: pa.Array) -> int:
    return pc.sum(pc.match_substring_regex(cells, r"\n(?s:.*)\t|\t(?s:.*)\n")).as_py() or 0
