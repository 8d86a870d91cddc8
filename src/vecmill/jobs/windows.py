"""A job's input in windows: what is read, embedded and committed at once.

Where a window ends depends on the input alone, never on time or on what an earlier run did, so that a resumed
job makes the same windows. Windows run across files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.types import IntArray
from vecmill.data.readers import FileBatch
from vecmill.data.template import Template, TextColumn

WINDOW_ROWS = 2048
WINDOW_BYTES = 16 << 20
"""A window ends at this many rows, or before the row that would pass this many bytes of text and columns."""


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive rows of the input.

    Attributes:
        index: 0-based number of the window.
        batch: (n) rows of the input's columns.
        texts: Their texts; None where there is none.
        files: File of each row. rows: (n,) int64, its 0-based position there.
        not_text: What stands in place of a text, by position.
    """

    index: int
    batch: pa.RecordBatch
    texts: list[str | None]
    files: list[str]
    rows: IntArray
    not_text: dict[int, str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(slots=True)
class _Open:
    batches: list[pa.RecordBatch] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    rows: list[IntArray] = field(default_factory=list)
    not_text: dict[int, str] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, piece: FileBatch, texts: list[str | None], start: int, end: int) -> None:
        if start == end:
            return
        for at, what in piece.bad_texts.items():
            if start <= at < end:
                self.not_text[len(self.texts) + at - start] = what
        self.batches.append(piece.batch.slice(start, end - start))
        self.texts += texts[start:end]
        self.files += [piece.file] * (end - start)
        self.rows.append(np.arange(piece.first_row + start, piece.first_row + end, dtype=np.int64))

    def close(self, index: int) -> Window:
        table = pa.Table.from_batches(self.batches).combine_chunks()
        batches = table.to_batches()
        batch = batches[0] if batches else self.batches[0]
        return Window(index, batch, self.texts, self.files, np.concatenate(self.rows), self.not_text)


def cut(stream: Iterable[FileBatch], text: Template | TextColumn) -> Iterator[Window]:
    """Cut batches of files into windows.

    Args:
        stream: Batches in the order of the input.
        text: Makes the texts.

    Yields:
        Windows of 1 to `WINDOW_ROWS` rows, in order.
    """
    index, current = 0, _Open()
    for piece in stream:
        texts = text.texts(piece.batch)
        start = 0
        for at, size in enumerate(_row_bytes(piece.batch, texts)):
            held = len(current.texts) + at - start
            if held and (held == WINDOW_ROWS or current.size_bytes + size > WINDOW_BYTES):
                current.add(piece, texts, start, at)
                yield current.close(index)
                index, current, start = index + 1, _Open(), at
            current.size_bytes += size
        current.add(piece, texts, start, len(texts))
    if current.texts:
        yield current.close(index)


def _row_bytes(batch: pa.RecordBatch, texts: list[str | None]) -> list[int]:
    """Return about how many bytes each row holds: its text, and its columns of strings and lists."""
    sizes = np.fromiter((len(one) if one else 0 for one in texts), dtype=np.int64, count=len(texts))
    for column in batch.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            lengths = pc.binary_length(column)
        elif pa.types.is_list(column.type):
            lengths = pc.multiply(pc.list_value_length(column), 8)
        else:
            continue
        sizes += pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return [int(size) for size in sizes]
