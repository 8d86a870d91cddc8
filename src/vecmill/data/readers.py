"""Tables in, at bounded memory: scanned once for their types, then streamed in exactly those."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from vecmill.core.errors import Error, InputError, StorageError, unknown_name
from vecmill.core.events import Notice
from vecmill.data.kinds import NULL, Kind, is_text, settled, unify
from vecmill.data.sources import Source, Sources
from vecmill.data.tables import Part, ReadOptions, Survey, Table, limited, rechunked

__all__ = ["FileBatch", "ReadOptions", "Scan", "batches", "scan"]

_DEFAULTS = ReadOptions()


@dataclass(frozen=True, slots=True)
class Scan:
    """What `scan` learned about all files.

    Attributes:
        schema: The columns of every batch that follows, unified over all files.
        rows: Rows per source, in the order of the sources.
        string_columns: Columns that may be the text: strings with at least one value (or no rows at all).
        notices: What a person should know about how the files were read.
    """

    schema: pa.Schema
    rows: tuple[int, ...]
    string_columns: tuple[str, ...]
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Consecutive rows of one file.

    Attributes:
        file: The source's name.
        first_row: 0-based row in the file of the batch's first row.
        batch: The rows, in the schema of the scan.
        bad_texts: Position in the batch -> what stands in a text column instead of a text ("a list",
            "a number"). That cell is null in the batch.
    """

    file: str
    first_row: int
    batch: pa.RecordBatch
    bad_texts: dict[int, str]


def scan(
    sources: Sources,
    *,
    text_columns: Sequence[str] = (),
    template_columns: Sequence[str] = (),
    options: ReadOptions = _DEFAULTS,
    limit: int | None = None,
) -> Scan:
    """Read all files once: count the rows and find for each column the narrowest type that loses nothing.

    Memory is bounded by one block of a file (a JSON document that is one object is held whole). A column that
    some files lack is null there; one whose types conflict becomes string, with a notice.

    Args:
        sources: What to read.
        text_columns: Columns that hold the text as they are (`--text`): read as string, never as a number.
            A dotted path into objects ("doc.text") becomes a column of that name.
        template_columns: Columns a template mentions (`template.template_columns`): those of text files and
            JSON are read as strings, as they are written; any other type is kept. One may be missing.
        options: How the files are written.
        limit: Look at the first `limit` rows of all files together only.

    Raises:
        InputError: A file is not what its format says; the message names file, row and cure.
        UnknownNameError: A text column is in no file.
        CorruptFileError: A file is damaged or cut short.
    """
    options.check()
    surveys: list[tuple[Table, Survey]] = []
    left = limit
    for source in sources.files:
        table = _table(source, options, text_columns, template_columns)
        with _named(source):
            survey = table.survey(left)
        surveys.append((table, survey))
        left = None if left is None else left - survey.rows
    rows = tuple(survey.rows for _, survey in surveys)
    kinds = _unified(surveys)
    for name in text_columns:
        if name not in kinds:
            raise unknown_name("column", name, kinds)
    fields = [(name, pa.string() if name in text_columns else settled(k.type)) for name, k in kinds.items()]
    schema = pa.schema(fields)
    candidates = [
        name
        for name, kind in kinds.items()
        if pa.types.is_string(schema.field(name).type) and (is_text(kind.type) or not any(rows))
    ]
    as_text = {*text_columns, *template_columns}
    return Scan(schema, rows, tuple(candidates), _notices(surveys, kinds, as_text))


def batches(
    sources: Sources,
    scan: Scan,
    *,
    text_columns: Sequence[str] = (),
    template_columns: Sequence[str] = (),
    options: ReadOptions = _DEFAULTS,
    batch_rows: int = 2048,
    limit: int | None = None,
) -> Iterator[FileBatch]:
    """Stream the rows of all files in the schema of the scan, in order, `batch_rows` at a time.

    A batch is shorter at a file's end and where its rows reach about 16 MiB (`tables.BATCH_BYTES`). The same
    input gives the same batches every time.

    Args:
        sources: The sources that were scanned.
        scan: What `scan` returned for them.
        text_columns: As given to `scan`.
        template_columns: As given to `scan`.
        options: As given to `scan`.
        batch_rows: Rows per batch at most, at least 1.
        limit: Stop after this many rows of all files together.

    Raises:
        InputError: A file changed since it was hashed (its stamp is compared when it is opened and when it
            is read up), or `batch_rows` is below 1.
        CorruptFileError: A file is damaged.
    """
    if batch_rows < 1:
        raise InputError(f"batch_rows is {batch_rows}; it must be at least 1")
    options.check()
    left = limit
    for source, expected in zip(sources.files, scan.rows, strict=True):
        wanted = expected if left is None else min(expected, left)
        if wanted == 0:
            continue
        table = _table(source, options, text_columns, template_columns)
        first = 0
        source.ensure_unchanged()
        parts = rechunked(limited(table.parts(scan.schema, wanted), wanted), batch_rows)
        with _named(source):
            while (part := _next(parts, source)) is not None:
                yield FileBatch(source.name, first, part.batch, part.bad_texts)
                first += part.batch.num_rows
        source.ensure_unchanged()
        if first != wanted:
            raise InputError(
                f"{source.name} had {wanted} rows when it was scanned and has {first} now; "
                "leave the files alone while they are read, then start again"
            )
        left = None if left is None else left - first


def _next(parts: Iterator[Part], source: Source) -> Part | None:
    """Return the next part; of a failure it first asks whether the file changed, which would explain it."""
    try:
        return next(parts, None)
    except Error:
        source.ensure_unchanged()
        raise


def _table(
    source: Source, options: ReadOptions, text_columns: Sequence[str], template_columns: Sequence[str]
) -> Table:
    if source.format in ("csv", "tsv"):
        from vecmill.data.readers_csv import CsvTable

        return CsvTable(source, options, {*text_columns, *template_columns})
    if source.format == "txt":
        from vecmill.data.readers_txt import TxtTable

        return TxtTable(source, options)
    if source.format in ("json", "jsonl"):
        from vecmill.data.readers_json import JsonTable

        return JsonTable(source, options, text_columns, template_columns)
    from vecmill.data.readers_arrow import ArrowTable, ParquetTable

    return (ParquetTable if source.format == "parquet" else ArrowTable)(
        source, text_columns, template_columns
    )


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Give a failure of the operating system the name of the file it happened to."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{source.name} is gone; it existed when the inputs were listed") from error
    except PermissionError as error:
        raise InputError(f"{source.name} may not be read ({error.strerror})") from error
    except OSError as error:
        raise StorageError(f"{source.name} cannot be read: {error}") from error


def _unified(surveys: Sequence[tuple[Table, Survey]]) -> dict[str, Kind]:
    """Return the kinds of all columns over all files, in the order they first appear."""
    parts: dict[str, list[tuple[Table, Kind]]] = {}
    for table, survey in surveys:
        for name, kind in survey.columns.items():
            parts.setdefault(name, []).append((table, kind))
    return {name: _unified_column(name, kinds) for name, kinds in parts.items()}


def _unified_column(name: str, kinds: Sequence[tuple[Table, Kind]]) -> Kind:
    floats = any(pa.types.is_floating(kind.type) for _, kind in kinds)
    total = NULL
    for table, kind in kinds:
        if floats and kind.exact is None:  # typed integers beside floats: now the values matter
            kind = replace(kind, exact=table.is_exact(name))
        total = unify(total, kind)
    return total


def _notices(
    surveys: Sequence[tuple[Table, Survey]], kinds: dict[str, Kind], as_text: Collection[str]
) -> tuple[Notice, ...]:
    notices = [notice for _, survey in surveys for notice in survey.notices]
    mixed = [name for name, kind in kinds.items() if kind.mixed and name not in as_text]
    if mixed:
        notices.append(
            Notice(
                "mixed_types", f"read as text, because their values are of several types: {', '.join(mixed)}"
            )
        )
    return tuple(notices)
