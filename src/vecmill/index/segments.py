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
never searched.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, FormatVersionError, StorageError
from vecmill.core.types import IntArray, Mask, Precision, Vectors

MAGIC = b"VECMILLV"
VERSION = 1
HEADER_BYTES = 64
BLOCK_BYTES = 128 << 10
SEGMENT_BYTES = 64 << 20
"""Payload of a segment at most, so that rewriting one is quick and its checksums stay below 4 KiB."""

ROW, KEY = "_row", "_id"
"""Columns of the items file that are ours: the row's number, and its id as `key_of` encodes it."""

_HEADER = struct.Struct("<8sIIQII28x")
_CRC = struct.Struct("<I")
_PIECE_BYTES = 8 << 20  # components decoded from float16 at once
_DTYPES: dict[Precision, np.dtype[Any]] = {
    Precision.FLOAT32: np.dtype("<f4"),
    Precision.FLOAT16: np.dtype("<f2"),
}


def rows_per_segment(dimensions: int, precision: Precision) -> int:
    """Return how many vectors fit into one segment, at least 1."""
    return max(1, SEGMENT_BYTES // max(1, dimensions * _DTYPES[precision].itemsize))


def write_vectors(path: Path, vectors: Vectors, precision: Precision) -> int:
    """Write a segment's vectors; on disk when this returns.

    Args:
        path: Where; nothing is there yet.
        vectors: (n, d) float32, finite.
        precision: float32, or float16, which rounds to 11 bits.

    Returns:
        The file's size in bytes: 64 + n * d * 4 (or 2) + 4 for each 128 KiB + 4.

    Raises:
        StorageError: A component is beyond float16.
        WriteError: The disk is full or does not allow it.
    """
    kind = _DTYPES[precision]
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=kind)
    if precision is Precision.FLOAT16 and not np.isfinite(stored).all():
        raise StorageError("a component is above 65504, beyond float16: keep the originals as float32")
    header = _HEADER.pack(MAGIC, VERSION, kind.itemsize, len(stored), stored.shape[1], BLOCK_BYTES)
    payload = stored.reshape(-1).view(np.uint8).data
    sums = np.array([zlib.crc32(block) for block in _blocks(payload, BLOCK_BYTES)], "<u4").tobytes()
    with durable.replacing(path) as temp, temp.open("wb") as file:
        file.write(header + _CRC.pack(zlib.crc32(header)))
        file.write(payload)
        file.write(sums + _CRC.pack(zlib.crc32(sums)))
    return path.stat().st_size


class VectorsFile:
    """The vectors of a segment, memory-mapped. Safe to read from many threads.

    Args:
        path: The file.
        rows: Rows it must hold.
        dimensions: Components each must have.

    Raises:
        FileNotFoundError: It is not there.
        CorruptFileError: Header or checksums are damaged, or the file is not as long as it says.
        FormatVersionError: A later version wrote it.
    """

    def __init__(self, path: Path, *, rows: int, dimensions: int) -> None:
        self._path = path
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            item_bytes, self._block = _parse_header(path, head, rows, dimensions)
            payload = rows * dimensions * item_bytes
            count = -(-payload // self._block)
            size = HEADER_BYTES + payload + 4 * count + 4
            if os.fstat(file.fileno()).st_size != size:
                raise _damaged(path, f"it has {os.fstat(file.fileno()).st_size} bytes, not {size}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = self._map[HEADER_BYTES + payload : size - 4]
        if zlib.crc32(table) != _CRC.unpack(self._map[size - 4 : size])[0]:
            raise _damaged(path, "its checksums are not what was written")
        self._sums = np.frombuffer(table, "<u4")
        self._seen = np.zeros(count, np.bool_)
        self._lock = threading.Lock()
        self._bytes = payload
        kind = np.dtype("<f4") if item_bytes == 4 else np.dtype("<f2")
        self._stored: npt.NDArray[Any] = np.frombuffer(
            self._map, kind, count=rows * dimensions, offset=HEADER_BYTES
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
        self._seen[:] = False
        self._ensure(np.arange(len(self._sums)))

    def _read_ahead(self, offsets: IntArray, blocks: IntArray) -> None:
        """Ask for all pages before the first is touched: cold, the disk then works on them side by side."""
        if not hasattr(self._map, "madvise") or not hasattr(mmap, "MADV_WILLNEED"):
            return
        page = mmap.PAGESIZE
        unseen = blocks[~self._seen[blocks]]
        starts = HEADER_BYTES + unseen * self._block
        lengths = np.full(len(unseen), self._block)
        if not len(unseen):
            starts = HEADER_BYTES + offsets * self._stored.strides[0]
            lengths = np.full(len(offsets), self._stored.strides[0])
        with suppress(OSError):  # advice; the read itself tells
            for start, length in zip((starts // page * page).tolist(), lengths.tolist(), strict=True):
                self._map.madvise(mmap.MADV_WILLNEED, start, min(length + page, len(self._map) - start))

    def _ensure(self, blocks: IntArray) -> None:
        """Check the blocks that this process has not read yet."""
        if self._seen[blocks].all():
            return
        with self._lock:
            view = memoryview(self._map)
            try:
                for block in blocks[~self._seen[blocks]].tolist():
                    start = HEADER_BYTES + block * self._block
                    stop = min(start + self._block, HEADER_BYTES + self._bytes)
                    if zlib.crc32(view[start:stop]) != self._sums[block]:
                        raise _damaged(self._path, f"block {block} is not what was written")
                    self._seen[block] = True
            finally:
                view.release()


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
        CorruptFileError: It is not what was written.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    if durable.digest_file(path) != digest:
        raise _damaged(path, "its digest is not the one in the catalogue")
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


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
    """
    bits = path.read_bytes()
    if durable.digest_bytes(bits) != digest or len(bits) != -(-rows // 8):
        raise _damaged(path, "its digest is not the one in the catalogue")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=rows, bitorder="little").astype(np.bool_)


def _parse_header(path: Path, head: bytes, rows: int, dimensions: int) -> tuple[int, int]:
    """Return bytes per component and block size, or say what is wrong."""
    if len(head) < HEADER_BYTES or head[:8] != MAGIC:
        raise _damaged(path, "it does not begin as a file of vectors does")
    magic, version, item_bytes, n, d, block = _HEADER.unpack(head[:60])
    del magic
    if zlib.crc32(head[:60]) != _CRC.unpack(head[60:])[0]:
        raise _damaged(path, "its header is not what was written")
    if version != VERSION:
        raise FormatVersionError(
            f"{path} has format version {version}, this vecmill reads {VERSION}: upgrade"
        )
    if (n, d) != (rows, dimensions) or item_bytes not in (2, 4) or block < 1:
        raise _damaged(
            path, f"it holds {n} vectors of {d} dimensions, the catalogue says {rows} of {dimensions}"
        )
    return item_bytes, block


def _blocks(payload: memoryview, size: int) -> Iterator[memoryview]:
    for start in range(0, len(payload), size):
        yield payload[start : start + size]


def _damaged(path: Path, why: str) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is damaged: {why}; restore it from a copy, or build the collection again from its vector set"
    )
