"""Plain text: one text per line, blank lines included, in the column `text`."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from vecmill.core.errors import Error, InputError
from vecmill.data.encodings import Utf8File, undecodable, utf8_file
from vecmill.data.kinds import Kind
from vecmill.data.sources import Source
from vecmill.data.tables import Part, ReadOptions, Survey

COLUMN = "text"


class TxtTable:
    r"""One text file. Lines end with `\n` or `\r\n`; a line end at the end of the file starts no new line."""

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self._source = source
        self._options = options

    def survey(self, limit: int | None) -> Survey:
        """Count the lines and check that all bytes are text."""
        rows = 0
        with utf8_file(self._source, self._options.encoding) as file:
            for lines in self._lines(file):
                rows += len(lines)
                if limit is not None and rows >= limit:
                    rows = limit
                    break
        if rows == 0 and limit != 0:
            raise InputError(f"{self._source.name} is empty; remove it from the input or write it again")
        return Survey(rows, {COLUMN: Kind(pa.string())})

    def parts(self, schema: pa.Schema, limit: int) -> Iterator[Part]:
        """Yield the lines in the given schema, about 1 MiB of them at a time."""
        del limit  # the caller stops asking
        with utf8_file(self._source, self._options.encoding) as file:
            for lines in self._lines(file):
                columns = [
                    pa.array(lines, pa.string()) if name == COLUMN else pa.nulls(len(lines), kind)
                    for name, kind in zip(schema.names, schema.types, strict=True)
                ]
                yield Part(pa.record_batch(columns, schema=schema))

    def is_exact(self, column: str) -> bool:  # noqa: ARG002 - the protocol's
        """Return True: there are no numbers."""
        return True

    def _lines(self, file: Utf8File) -> Iterator[list[str]]:
        pieces: list[bytes] = []  # of a line that goes on in the next chunk
        for chunk in file.chunks():
            head, end, rest = chunk.rpartition(b"\n")
            if not end:
                pieces.append(rest)
                continue
            yield self._split(file, b"".join([*pieces, head]))
            pieces = [rest] if rest else []
        if pieces:
            yield self._split(file, b"".join(pieces))

    def _split(self, file: Utf8File, data: bytes) -> list[str]:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise undecodable(file) or _unstable(self._source) from error
        if "\r" not in text:
            return text.split("\n")
        return [line.removesuffix("\r") for line in text.split("\n")]


def _unstable(source: Source) -> Error:
    return InputError(f"{source.name} changed while it was read; leave it alone, then start again")
