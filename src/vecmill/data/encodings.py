"""Bytes to UTF-8: byte order marks, other encodings, packed files, and where a wrong byte stands."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vecmill.core.errors import CorruptFileError, Error, InputError
from vecmill.data.sources import Source

CHUNK_BYTES = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True, slots=True)
class Utf8File:
    """A text file whose bytes are (or claim to be) UTF-8: the source's own file or a converted copy."""

    source: Source
    path: Path
    compression: str | None

    def open(self) -> Any:
        """Open the unpacked bytes as an Arrow stream; a UTF-8 byte order mark is still in them."""
        try:
            return pa.input_stream(str(self.path), compression=self.compression)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            raise damaged(self.source, error) from error

    def chunks(self) -> Iterator[bytes]:
        """Yield the unpacked bytes, without a byte order mark, about 1 MiB at a time."""
        with self.open() as stream:
            try:
                first = stream.read(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
                if first:
                    yield first
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
            except OSError as error:
                raise damaged(self.source, error) from error


@contextmanager
def utf8_file(source: Source, encoding: str | None) -> Iterator[Utf8File]:
    """Give a text file as UTF-8; anything else is converted into a temporary file, removed at the end.

    Args:
        source: A text file, packed or not.
        encoding: None for UTF-8 or what the byte order mark says; else `codec` or `codec:errors`.

    Raises:
        InputError: The codec is unknown, or the bytes are not of that codec.
        CorruptFileError: The file cannot be unpacked.
    """
    own = Utf8File(source, source.path, source.compression)
    codec, errors = _codec(own, encoding)
    if codec in _UTF8 and errors == "strict":
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="vecmill-") as folder:
        path = Path(folder) / "utf8"
        _convert(own, path, codec, errors)
        yield Utf8File(source, path, None)


def damaged(source: Source, error: BaseException) -> CorruptFileError:
    """Build the error for a file whose bytes cannot be unpacked or read."""
    what = f"{source.format}, {source.compression}" if source.compression else source.format
    return CorruptFileError(
        f"{source.name} is damaged or cut short ({what}): {error}; fetch or write it again"
    )


def undecodable(file: Utf8File) -> Error | None:
    """Find the first byte that is not UTF-8 and say where it is and what to do; None if all is well."""
    offset, line = 0, 1
    pending = b""
    skipped = _bom_length(file)
    for chunk in _with_end(file.chunks()):
        data = pending + (chunk or b"")
        try:
            decoder = codecs.getincrementaldecoder("utf-8")()
            decoder.decode(data, final=chunk is None)
            pending = decoder.getstate()[0]
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            return InputError(
                f"{file.source.name}, line {line}: byte {offset + error.start + skipped} "
                f"(0x{data[error.start]:02x}) is not UTF-8; {_cure(file)}"
            )
        done = len(data) - len(pending)
        line += data.count(b"\n", 0, done)
        offset += done
    return None


def _with_end(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from chunks
    yield None


def _bom_length(file: Utf8File) -> int:
    with file.open() as stream:
        return 3 if stream.read(3) == codecs.BOM_UTF8 else 0


def _cure(file: Utf8File) -> str:
    """Name the option that reads the file: Windows-1252 if all bytes are of it and few look like UTF-8."""
    replaced = foreign = 0
    decoders = codecs.getincrementaldecoder("utf-8")("replace"), codecs.getincrementaldecoder("cp1252")()
    fits = True
    for chunk in file.chunks():
        text = decoders[0].decode(chunk)
        replaced += text.count("�")
        foreign += sum(c > "\x7f" for c in text) - text.count("�")
        try:
            decoders[1].decode(chunk)
        except UnicodeDecodeError:
            fits = False
            break
    if fits and replaced > foreign:
        return (
            "it reads as Windows-1252: --encoding cp1252 (or --encoding utf-8:replace to mark the bad bytes)"
        )
    return "mark the bad bytes with --encoding utf-8:replace, or name the right one with --encoding"


def _codec(file: Utf8File, encoding: str | None) -> tuple[str, str]:
    if encoding is None:
        with file.open() as stream:
            try:
                head = stream.read(4)
            except OSError as error:
                raise damaged(file.source, error) from error
        return next((codec for bom, codec in _BOMS if head.startswith(bom)), "utf-8"), "strict"
    name, _, errors = encoding.partition(":")
    errors = errors or "strict"
    try:
        found = codecs.lookup(name)
        codecs.lookup_error(errors)
        if not found._is_text_encoding:
            raise LookupError(f"{name} is no text encoding")
    except LookupError as error:
        raise InputError(
            f"unknown encoding {encoding!r} ({error}); examples: cp1252, latin-1, utf-16, utf-8:replace"
        ) from error
    return found.name, errors


def _convert(file: Utf8File, path: Path, codec: str, errors: str) -> None:
    decoder = codecs.getincrementaldecoder(codec)(errors)
    offset = line = 0
    with path.open("wb") as out:
        for chunk in _with_end(_raw_chunks(file)):
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk or b"", final=chunk is None)
            except UnicodeDecodeError as error:
                line += chunk.count(b"\n", 0, max(error.start - held, 0)) + 1 if chunk else 1
                raise InputError(
                    f"{file.source.name}, line {line}: byte {offset - held + error.start} is not {codec}; "
                    f"mark the bad bytes with --encoding {codec}:replace, or name the right encoding"
                ) from error
            out.write(text.encode("utf-8", "replace"))
            offset += len(chunk or b"")
            line += text.count("\n")


def _raw_chunks(file: Utf8File) -> Iterator[bytes]:
    with file.open() as stream:
        try:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
        except OSError as error:
            raise damaged(file.source, error) from error
