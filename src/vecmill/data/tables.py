"""What the readers of all formats share: options, what a survey tells, and the parts of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from vecmill.core.errors import InputError
from vecmill.core.events import Notice
from vecmill.data.kinds import Kind

BATCH_BYTES = 16 << 20
"""About how much a batch of a reader holds at most; a longer row is a batch of its own."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the input files are written.

    Attributes:
        encoding: None for UTF-8, or what the byte order mark says; else `codec` or `codec:errors`, such as
            "cp1252" or "utf-8:replace".
        header: Whether csv and tsv files begin with column names. Without, columns are c0, c1, …
        quote: The quote character of csv and tsv; None turns quoting off.
        delimiter: What separates cells; None for the comma of csv and the tab of tsv.
        records: Where the records lie in a JSON document that is one object: "data" or "a.b".
    """

    encoding: str | None = None
    header: bool = True
    quote: str | None = '"'
    delimiter: str | None = None
    records: str | None = None

    def check(self) -> None:
        """Refuse options that no reader could follow.

        Raises:
            InputError: Quote or delimiter is not one ASCII character, or both are the same.
        """
        for name, value in (("quote", self.quote), ("delimiter", self.delimiter)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n\0"):
                raise InputError(f"{name} is {value!r}; it must be one ASCII character")
        if self.quote is not None and self.quote == self.delimiter:
            raise InputError(f"quote and delimiter are both {self.quote!r}")


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading one file once has shown."""

    rows: int
    columns: dict[str, Kind]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive rows of one file, and the cells of text columns that hold no text."""

    batch: pa.RecordBatch
    bad_texts: dict[int, str] = field(default_factory=dict)

    def slice(self, start: int, rows: int) -> Part:
        """Return `rows` rows from `start` on."""
        inside = {i - start: what for i, what in self.bad_texts.items() if start <= i < start + rows}
        return Part(self.batch.slice(start, rows), inside)


class Table(Protocol):
    """One file. Both methods read it from its beginning."""

    def survey(self, limit: int | None) -> Survey:
        """Count the rows (up to `limit`) and find the kind of every column."""
        ...

    def parts(self, schema: pa.Schema, limit: int) -> Iterator[Part]:
        """Yield the first `limit` rows in the given schema, in parts of any size; look at no later row."""
        ...

    def is_exact(self, column: str) -> bool:
        """Whether float64 holds every integer of the column; asked only if `Kind.exact` is None."""
        ...


def doubled(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def limited(parts: Iterator[Part], limit: int) -> Iterator[Part]:
    """Stop after `limit` rows, without asking for more than it takes."""
    while limit > 0 and (part := next(parts, None)) is not None:
        yield part if part.batch.num_rows <= limit else part.slice(0, limit)
        limit -= part.batch.num_rows


def rechunked(parts: Iterator[Part], rows: int) -> Iterator[Part]:
    """Cut and join parts so that each has `rows` rows, or fewer where they reach `BATCH_BYTES`."""
    waiting: list[Part] = []
    count = held = 0
    for part in parts:
        start, total = 0, part.batch.num_rows
        each = row_bytes(part.batch)
        while start < total:
            fitting = (BATCH_BYTES - held) // each
            if not waiting:
                fitting = max(fitting, 1)
            if fitting and count < rows:
                taken = part.slice(start, min(rows - count, total - start, fitting))
                waiting.append(taken)
                start += taken.batch.num_rows
                count += taken.batch.num_rows
                held += taken.batch.num_rows * each
                if count < rows and held < BATCH_BYTES:
                    continue
            yield _joined(waiting)
            waiting, count, held = [], 0, 0
    if waiting:
        yield _joined(waiting)


def row_bytes(batch: pa.RecordBatch) -> int:
    """Return the mean size of a row, at least 1."""
    size_bytes, rows = int(batch.nbytes), int(batch.num_rows)
    return max(1, size_bytes // max(1, rows))


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into pieces of about `BATCH_BYTES`, without copying."""
    rows = max(1, BATCH_BYTES // row_bytes(batch))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _joined(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    bad: dict[int, str] = {}
    first = 0
    for part in parts:
        bad.update({first + i: what for i, what in part.bad_texts.items()})
        first += part.batch.num_rows
    return Part(pa.concat_batches([part.batch for part in parts]), bad)
