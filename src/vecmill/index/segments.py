"""The files of a segment: vectors with block checksums, items as Arrow, and the bits of rows that are gone.

    offset 0    8 bytes   "VECMILLV"
           8    u32       format version, 1
          12    u32       bytes per component: 4 (float32) or 2 (float16)
          16    u64       rows n
          24    u32       dimensions d
          28    u32       block size in bytes
          60    u32       CRC-32 of the 60 bytes before
          64    n * d components, row after row
           …    u32       CRC-32 of each block of the components, the last one shorter
           …    u32       CRC-32 of these checksums

All numbers are little-endian. A file is written once, whole, and never changed; the specification is
`docs/reference/collection.md`. Blocks are checked when they are first read in a process, so a flipped bit is
never searched. Files are mapped without keeping a descriptor: a collection may have more segments than a
process may have files open.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError, StorageError
from vecmill.core.types import IntArray, Mask, Precision, Vectors

MAGIC = b"VECMILLV"
VERSION = 1
HEADER_BYTES = 64
BLOCK_BYTES = 128 << 10
SEGMENT_BYTES = 64 << 20
"""Payload of a segment at most, so that rewriting one is quick and its checksums stay below 4 KiB."""

SEGMENT_ROWS = 1 << 20
"""Rows of a segment at most: short vectors may have long texts beside them."""

ROW, KEY = "_row", "_id"
"""Columns of the items file that are ours: the row's number, and its id as `key_of` encodes it."""

_HEADER = struct.Struct("<8sIIQII28x")
_CRC = struct.Struct("<I")
_PIECE_BYTES = 8 << 20  # components decoded from float16 at once
_FEW_ROWS = 4  # are read as quickly without asking for them first
_DTYPES: dict[Precision, np.dtype[Any]] = {
    Precision.FLOAT32: np.dtype("<f4"),
    Precision.FLOAT16: np.dtype("<f2"),
}


def rows_per_segment(dimensions: int, precision: Precision) -> int:
    """Return how many vectors fit into one segment, at least 1."""
    return min(SEGMENT_ROWS, max(1, SEGMENT_BYTES // max(1, dimensions * _DTYPES[precision].itemsize)))


def write_vectors(path: Path, vectors: Vectors, precision: Precision) -> tuple[int, str]:
    """Write a segment's vectors; on disk when this returns.

    Args:
        path: Where; nothing is there yet.
        vectors: (n, d) float32, finite.
        precision: float32, or float16, which rounds to 11 bits.

    Returns:
        The file's size in bytes: 64 + n * d * 4 (or 2) + 4 for each 128 KiB + 4; and the BLAKE2b-128 of its
        header and checksums, 32 hex digits, which stands for the content.

    Raises:
        InputError: A component is beyond float16.
        WriteError: The disk is full or does not allow it.
    """
    kind = _DTYPES[precision]
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=kind)
    if precision is Precision.FLOAT16 and not np.isfinite(stored).all():
        raise InputError("a component is above 65504, beyond float16: keep the originals as float32")
    header = _HEADER.pack(MAGIC, VERSION, kind.itemsize, len(stored), stored.shape[1], BLOCK_BYTES)
    payload = stored.reshape(-1).view(np.uint8).data
    sums = np.array([zlib.crc32(block) for block in _blocks(payload, BLOCK_BYTES)], "<u4").tobytes()
    head, tail = header + _CRC.pack(zlib.crc32(header)), sums + _CRC.pack(zlib.crc32(sums))
    with durable.replacing(path) as temp, temp.open("wb") as file:
        file.write(head)
        file.write(payload)
        file.write(tail)
    return len(head) + len(payload) + len(tail), durable.digest_bytes(head + tail)


class VectorsFile:
    """The vectors of a segment, memory-mapped. Safe to read from many threads.

    Args:
        path: The file.
        rows: Rows it must hold.
        dimensions: Components each must have.
        precision: How they must be kept.
        digest: What `write_vectors` returned.

    Raises:
        FileNotFoundError: It is not there.
        CorruptFileError: Header or checksums are damaged, or the file is not the one that was written.
        FormatVersionError: A later version wrote it.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path, *, rows: int, dimensions: int, precision: Precision, digest: str) -> None:
        self._path = path
        with reading(path):
            self._inode = path.stat().st_ino
        data = _mapped(path)
        kind = _DTYPES[precision]
        self._block = _parse_header(path, bytes(data[:HEADER_BYTES]), rows, dimensions, kind.itemsize)
        payload = rows * dimensions * kind.itemsize
        count = -(-payload // self._block)
        size = HEADER_BYTES + payload + 4 * count + 4
        if len(data) != size:
            raise damaged(path, f"it has {len(data)} bytes, not {size}")
        tail = bytes(data[HEADER_BYTES + payload :])
        if zlib.crc32(tail[:-4]) != _CRC.unpack(tail[-4:])[0]:
            raise damaged(path, "its checksums are not what was written")
        if durable.digest_bytes(bytes(data[:HEADER_BYTES]) + tail) != digest:
            raise damaged(path, "it is a file of other vectors than those the catalogue names")
        self._data = data
        self._sums = np.frombuffer(tail[:-4], "<u4")
        self._seen = np.zeros(count, np.bool_)
        self._lock = threading.Lock()
        self._bytes = payload
        self._stored: npt.NDArray[Any] = np.frombuffer(
            data, kind, count=rows * dimensions, offset=HEADER_BYTES
        ).reshape(rows, dimensions)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the components alone."""
        return self._bytes

    def fetch(self, offsets: IntArray) -> Vectors:
        """Return vectors by their place: (m, d) float32, a new array. All pages are asked for at once.

        Raises:
            CorruptFileError: A block does not have the checksum it was written with.
        """
        self._ensure_whole()
        width = self._stored.strides[0]
        first = offsets * width // self._block
        last = (offsets * width + max(width, 1) - 1) // self._block
        blocks = np.unique(np.concatenate((first, last)))
        if width > self._block:
            blocks = np.unique(
                np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])
            )
        self._read_ahead(offsets, blocks)
        self._ensure(blocks)
        return np.asarray(self._stored[offsets], np.float32)

    def parts(self) -> Iterator[tuple[int, Vectors]]:
        """Yield all vectors in order: place of the first, (m, d) float32; float32 ones without a copy.

        Raises:
            CorruptFileError: A block does not have the checksum it was written with.
        """
        self._ensure_whole()
        self._ensure(np.arange(len(self._sums)))
        if self._stored.dtype.itemsize == 4:
            if len(self._stored):
                yield 0, self._stored
            return
        step = max(1, _PIECE_BYTES // max(1, self._stored.strides[0]))
        for start in range(0, len(self._stored), step):
            yield start, self._stored[start : start + step].astype(np.float32)

    def verify(self) -> None:
        """Check every block again, whatever was checked before.

        Raises:
            CorruptFileError: A block does not have the checksum it was written with.
        """
        self._ensure_whole()
        self._seen[:] = False
        self._ensure(np.arange(len(self._sums)))

    def _read_ahead(self, offsets: IntArray, blocks: IntArray) -> None:
        """Ask for all pages before the first is touched: cold, the disk then works on them side by side."""
        if not hasattr(os, "posix_fadvise") or len(offsets) < _FEW_ROWS:
            return
        unseen = blocks[~self._seen[blocks]]
        starts = HEADER_BYTES + unseen * self._block
        length = self._block
        if not len(unseen):
            starts, length = HEADER_BYTES + offsets * self._stored.strides[0], self._stored.strides[0]
        with suppress(OSError):  # advice; the file may be gone and is mapped all the same
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                for start in starts.tolist():
                    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def _ensure_whole(self) -> None:
        """Notice that somebody has cut the file short: touching what is no longer there ends the process."""
        with suppress(OSError):  # removed or moved: what is mapped stays
            status = self._path.stat()
            if status.st_ino == self._inode and status.st_size < len(self._data):
                raise damaged(self._path, f"somebody has cut it short, to {status.st_size} bytes")

    def _ensure(self, blocks: IntArray) -> None:
        """Check the blocks that this process has not read yet."""
        if self._seen[blocks].all():
            return
        with self._lock:
            for block in blocks[~self._seen[blocks]].tolist():
                start = HEADER_BYTES + block * self._block
                stop = min(start + self._block, HEADER_BYTES + self._bytes)
                if zlib.crc32(self._data[start:stop]) != self._sums[block]:
                    raise damaged(self._path, f"block {block} is not what was written")
                self._seen[block] = True


def write_items(path: Path, items: pa.Table) -> str:
    """Write a segment's row numbers, ids and columns as an Arrow file; on disk when this returns.

    Args:
        path: Where; nothing is there yet.
        items: One row per vector, with the columns `ROW` (int64, ascending) and `KEY` (binary).

    Returns:
        BLAKE2b-128 of the file, 32 hex digits.
    """
    with durable.replacing(path) as temp:
        with pa.OSFile(str(temp), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
            writer.write_table(items.combine_chunks())
        return durable.digest_file(temp)


def read_items(path: Path, digest: str) -> pa.Table:
    """Open a segment's items, memory-mapped, after comparing the whole file with its digest.

    Raises:
        FileNotFoundError: It is not there.
        CorruptFileError: It is not what was written, or no sound Arrow file.
        StorageError: It cannot be read.
    """
    data = _mapped(path)
    if durable.digest_bytes(data) != digest:
        raise damaged(path, "its digest is not the one in the catalogue")
    try:
        items = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        items.validate(full=True)
        items.schema.names  # noqa: B018 - names are decoded when they are asked for
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"it is no sound Arrow file ({type(error).__name__})") from error
    return items


def write_deleted(path: Path, deleted: Mask) -> str:
    """Write which rows of a segment are gone, a bit each; on disk when this returns. Returns the digest."""
    bits = np.packbits(deleted, bitorder="little").tobytes()
    durable.write_bytes(path, bits)
    return durable.digest_bytes(bits)


def read_deleted(path: Path, digest: str, rows: int) -> Mask:
    """Return which rows of a segment are gone: (rows,) bool.

    Raises:
        FileNotFoundError: It is not there.
        CorruptFileError: It is not what was written.
        StorageError: It cannot be read.
    """
    with reading(path):
        bits = path.read_bytes()
    if durable.digest_bytes(bits) != digest or len(bits) != -(-rows // 8):
        raise damaged(path, "its digest is not the one in the catalogue")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=rows, bitorder="little").astype(np.bool_)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in a message of ours why a file cannot be read; that it is not there passes through."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        hint = ""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "; allow more open files (ulimit -n)"
        elif error.errno == errno.EACCES:
            hint = "; ask its owner for the right to read it"
        raise StorageError(f"{path} cannot be read: {error.strerror or error}{hint}") from error


def damaged(path: Path, why: str) -> CorruptFileError:
    """Return the error that says what is wrong with a file, and the cure."""
    return CorruptFileError(
        f"{path} is damaged: {why}; restore it from a copy, or build the collection again from its vector set"
    )


def _mapped(path: Path) -> memoryview:
    """Map a whole file. The map keeps no descriptor and lives as long as what it is read by."""
    with reading(path):
        if not path.stat().st_size:
            return memoryview(b"")
        with pa.memory_map(str(path)) as source:
            return memoryview(source.read_buffer())


def _parse_header(path: Path, head: bytes, rows: int, dimensions: int, item_bytes: int) -> int:
    """Return the block size, or say what is wrong."""
    if len(head) < HEADER_BYTES or head[:8] != MAGIC:
        raise damaged(path, "it does not begin as a file of vectors does")
    _, version, size, n, d, block = _HEADER.unpack(head[:60])
    if zlib.crc32(head[:60]) != _CRC.unpack(head[60:])[0]:
        raise damaged(path, "its header is not what was written")
    if version != VERSION:
        raise FormatVersionError(
            f"{path} has format version {version}, this vecmill reads {VERSION}: upgrade"
        )
    if (n, d, size) != (rows, dimensions, item_bytes) or block < 1:
        raise damaged(
            path,
            f"it holds {n} vectors of {d} components of {size} bytes, the catalogue says {rows} of "
            f"{dimensions} of {item_bytes}",
        )
    return int(block)


def _blocks(payload: memoryview, size: int) -> Iterator[memoryview]:
    for start in range(0, len(payload), size):
        yield payload[start : start + size]
