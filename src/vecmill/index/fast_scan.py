"""Look through codes with faiss (`[ann]`): 4-bit groups in registers, 8 bits and half precision one by one.

One-bit codes are 4-bit codes of four components whose sixteen centroids are the sixteen patterns of signs: so
a float query meets packed bits through the tables of a product quantizer; nothing is kept beside the bits.
Source: Andre et al., Cache locality is not enough, 2015 (tables in registers).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.extras import require
from vecmill.core.types import IntArray, Metric, Vectors
from vecmill.index.codec import Codec
from vecmill.index.pq import Product
from vecmill.index.quantizers import Bits, Bytes, Half, Int8
from vecmill.index.scans import scan

_BLOCK = 32
"""Vectors whose codes faiss keeps side by side."""

_SIDE_BY_SIDE = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
"""Where in half a block the vectors stand. Source: faiss, `impl/pq4_fast_scan.cpp`, `pq4_pack_codes`."""

_MARGIN = 1.5
"""Rows asked for beyond what a filter leaves on average."""

_LEAST_SHARE = 0.02
"""Below this share of allowed rows, those are looked at one by one."""

_FEW_QUERIES, _FEW_WHOLE_QUERIES = 16, 48
"""Up to so many, faiss's loop over rows is faster than decoding once for all queries; more whole ones."""


def fits(codec: Codec) -> bool:
    """Say whether `held` takes such codes."""
    if codec.metric not in (Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN):
        return False
    quantizer = codec.quantizer
    return isinstance(quantizer, Bits | Half | Int8) or (
        isinstance(quantizer, Product) and quantizer.bits == 4
    )


def held(codec: Codec, codes: Bytes) -> GroupCodes | ScalarCodes:
    """Hold codes the way faiss searches them; they are copied.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    if isinstance(codec.quantizer, Bits | Product):
        return GroupCodes(codec, codes)
    return ScalarCodes(codec, codes)


class GroupCodes:
    """One-bit codes and 4-bit groups, scanned in registers.

    Args:
        codec: Of precision binary or pq.
        codes: (n, size_bytes) uint8.
    """

    def __init__(self, codec: Codec, codes: Bytes) -> None:
        self._faiss: Any = require("faiss", extra="ann")
        self._codec = codec
        self._count = len(codes)
        centroids = _centroids(codec)
        parts, _, size = centroids.shape
        self._width = parts * size
        euclidean = codec.metric is Metric.EUCLIDEAN and isinstance(codec.quantizer, Product)
        metric = self._faiss.METRIC_L2 if euclidean else self._faiss.METRIC_INNER_PRODUCT
        plain = self._faiss.IndexPQ(self._width, parts, 4, metric)
        self._faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), plain.pq.centroids)
        plain.is_trained = True
        self._faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), plain.codes)
        plain.ntotal = self._count
        self._index: Any = self._faiss.IndexPQFastScan(plain, _BLOCK)

    @property
    def size_bytes(self) -> int:
        """Bytes held: blocks of 32 vectors."""
        return int(self._index.codes.size())

    def __len__(self) -> int:
        return self._count

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows, taken out of their blocks again."""
        wanted = np.arange(self._count)[rows]
        blocks = self._faiss.rev_swig_ptr(self._index.codes.get(), self.size_bytes)
        size = self._codec.size_bytes
        table = blocks.reshape(-1, self._index.M2 // 2, 2, 16)
        block, place = np.divmod(wanted, _BLOCK)
        column = np.argsort(_SIDE_BY_SIDE)[place % 16]
        shift = (4 * (place // 16)).astype(np.uint8)[:, None]
        low = table[block, :size, 0, column] >> shift & 15
        high = table[block, :size, 1, column] >> shift & 15
        codes: Bytes = low | high << 4
        return codes

    def best(self, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
        """Name the best rows of each query; see `scans.Held`.

        With a filter more rows are asked for and those that fail it dropped; where too few are left, the rows
        allowed are decoded.
        """
        if rows is None:
            found = self._search(asked, count)
            short = np.flatnonzero((found < 0).any(axis=1))  # faiss leaves out what scores lowest of all
            if len(short):
                found[short] = scan(self._codec, self, asked[short], count, None)
            return found
        share = len(rows) / max(1, self._count)
        if share < _LEAST_SHARE:
            return scan(self._codec, self, asked, count, rows)
        found = self._search(asked, min(self._count, int(_MARGIN * count / share) + _BLOCK))
        allowed = np.zeros(self._count + 1, np.bool_)  # the last one is -1's
        allowed[rows] = True
        passed = allowed[found]
        order = np.argsort(~passed, axis=1, kind="stable")[:, :count]
        out = np.full((len(asked), count), -1, np.int64)
        out[:, : order.shape[1]] = np.where(
            np.take_along_axis(passed, order, axis=1), np.take_along_axis(found, order, axis=1), -1
        )
        short = np.flatnonzero((out >= 0).sum(axis=1) < min(count, len(rows)))
        if len(short):
            out[short] = scan(self._codec, self, asked[short], count, rows)
        return out

    def _search(self, asked: Vectors, count: int) -> IntArray:
        quantizer = self._codec.quantizer
        queries = np.zeros((len(asked), self._width), np.float32)
        queries[:, : asked.shape[1]] = asked
        if isinstance(quantizer, Bits) and self._codec.metric is Metric.EUCLIDEAN:
            # |q - m - r|^2 = const - 2 (q - m).r, the lengths of all r being taken as equal
            queries[:, : asked.shape[1]] -= quantizer.mean
        rows: IntArray = self._index.search(queries, count)[1]
        return rows


class ScalarCodes:
    """Half precision and 8 bits: few queries by faiss, which decodes in registers, many by BLAS.

    With one scale for all components, codes meet queries of 8 bits in whole numbers: three times as fast as
    decoding, and the rounding of the query is about as large as that of the codes.

    Args:
        codec: Of precision float16 or int8.
        codes: (n, size_bytes) uint8.
    """

    def __init__(self, codec: Codec, codes: Bytes) -> None:
        self._faiss: Any = require("faiss", extra="ann")
        self._codec = codec
        self._count = len(codes)
        kinds = self._faiss.ScalarQuantizer
        euclidean = codec.metric is Metric.EUCLIDEAN
        metric = self._faiss.METRIC_L2 if euclidean else self._faiss.METRIC_INNER_PRODUCT
        quantizer = codec.quantizer
        self._whole = isinstance(quantizer, Int8) and len(quantizer.step) == 1 and not euclidean
        kind = kinds.QT_fp16 if isinstance(quantizer, Half) else kinds.QT_8bit
        kind = kinds.QT_8bit_direct_signed if self._whole else kind
        self._index: Any = self._faiss.IndexScalarQuantizer(codec.width, kind, metric)
        if isinstance(quantizer, Int8) and not self._whole:
            # faiss decodes low + (c + 1/2) / 255 * range, we offset + step * (c - 128)
            step = np.broadcast_to(quantizer.step, codec.width).astype(np.float32)
            low = quantizer.offset - np.float32(128.5) * step
            self._faiss.copy_array_to_vector(np.concatenate((low, 255 * step)), self._index.sq.trained)
        self._index.is_trained = True
        self._faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), self._index.codes)
        self._index.ntotal = self._count

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return int(self._index.codes.size())

    def __len__(self) -> int:
        return self._count

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows."""
        held = self._faiss.rev_swig_ptr(self._index.codes.data(), self.size_bytes)
        codes: Bytes = held.reshape(self._count, -1)[rows]
        return codes

    def best(self, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
        """Name the best rows of each query; see `scans.Held`."""
        if len(asked) > (_FEW_WHOLE_QUERIES if self._whole else _FEW_QUERIES):
            return scan(self._codec, self, asked, count, rows)
        if self._whole:
            reach = np.abs(asked).max(axis=1, initial=0.0, keepdims=True)
            asked = np.rint(asked * np.divide(127.0, reach, out=np.zeros_like(reach), where=reach > 0.0))
        parameters = None
        if rows is not None:
            mask = np.zeros(self._count, np.bool_)
            mask[rows] = True
            bitmap = np.packbits(mask, bitorder="little")
            parameters = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bitmap))
        found: IntArray = self._index.search(asked, count, params=parameters)[1]
        return found


def _centroids(codec: Codec) -> npt.NDArray[np.float32]:
    """Return the centroids of the groups: (parts, 16, components of a part), an even number of parts."""
    quantizer = codec.quantizer
    if isinstance(quantizer, Product):
        learned = quantizer.centroids
        filler = np.zeros((len(learned) % 2, *learned.shape[1:]), np.float32)
        return np.concatenate((learned, filler))
    patterns = np.unpackbits(np.arange(16, dtype=np.uint8)[:, None], axis=1, bitorder="little")[:, :4]
    signs = patterns.astype(np.float32) * 2.0 - 1.0
    return np.broadcast_to(signs, (2 * codec.size_bytes, 16, 4))
