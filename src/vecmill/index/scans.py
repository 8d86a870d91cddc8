"""Look through codes for candidates with NumPy alone: tiles become floats again and meet BLAS."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vecmill.core.types import IntArray, Metric, Vectors
from vecmill.index.codec import Codec
from vecmill.index.quantizers import Bytes
from vecmill.index.selection import MOST_QUERIES, Best, largest

Words = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]

_TILE_COMPONENTS, _SMALL_TILE = 1 << 20, 1 << 18
"""Components decoded at once: 4 MiB for many queries, 1 MiB (what caches hold) for few."""

_TILE_SCORES = 1 << 20
_MOST_KEPT = 1 << 22

_BITS_TILE = 1 << 13
"""Words compared at once, so that they stay in the nearest caches."""

_FEW_QUERIES = 8
"""Up to so many, small tiles are faster."""

_COUNTED_QUERIES = 24
"""Up to so many, counting bits for each is faster than decoding once for all."""

_FIRST_PASS, _FIRST_PASS_SHARE = 16, 64
"""Rows that pass the count of bits: 16 times the candidates wanted, and at least one row in 64.

Beside scoring all rows nothing of recall@10 is lost for queries like the rows (200 captions in 30,000 and
120,000), up to 0.018 for others (200 news titles in the captions, where all rows give 0.76 to 0.86); half as
many rows lose up to 0.048 there and save a tenth of the time.
"""


class Held(Protocol):
    """Codes in memory, in whatever order of bytes they are looked through fastest."""

    @property
    def size_bytes(self) -> int:
        """Bytes held."""

    def __len__(self) -> int:
        """Return how many vectors there are."""

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows as the codec made them: (m, size_bytes) uint8."""

    def best(self, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
        """Name the best rows of each query, best first.

        Args:
            asked: (q, w) float32, prepared queries.
            count: Rows per query.
            rows: (m,) the only rows looked at, ascending; None for all.

        Returns:
            (q, count) int64, -1 where there are fewer.
        """


class RowCodes:
    """Codes row after row, as the codec gives them; may be memory-mapped.

    Args:
        codec: What made them.
        codes: (n, size_bytes) uint8.
    """

    def __init__(self, codec: Codec, codes: Bytes) -> None:
        self._codec = codec
        self._codes = codes

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return int(self._codes.nbytes)

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows."""
        return self._codes[rows]

    def best(self, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
        """Name the best rows of each query; see `Held`."""
        return scan(self._codec, self, asked, count, rows)


class SignColumns:
    """One-bit codes, 64 components a word, word after word: made for counting bits.

    Few queries are answered in two passes: bits that differ are counted for all rows, the rows with the
    fewest are scored with the float query. hamming and jaccard are the counts themselves.

    Args:
        codec: A codec of precision binary.
        codes: (n, size_bytes) uint8; copied.
    """

    def __init__(self, codec: Codec, codes: Bytes) -> None:
        self._codec = codec
        n, size = codes.shape
        self._words = np.zeros((-(-size // 8), n), np.uint64)
        step = 1 << 16
        for start in range(0, n, step):
            padded = np.zeros((len(codes[start : start + step]), 8 * len(self._words)), np.uint8)
            padded[:, :size] = codes[start : start + step]
            self._words[:, start : start + step] = padded.view(np.uint64).T

    @property
    def size_bytes(self) -> int:
        """Bytes held: whole words."""
        return int(self._words.nbytes)

    def __len__(self) -> int:
        return int(self._words.shape[1])

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows."""
        words = np.ascontiguousarray(self._words[:, rows].T)
        return words.view(np.uint8)[:, : self._codec.size_bytes]

    def best(self, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
        """Name the best rows of each query; see `Held`. Equal hamming and jaccard distances in row order."""
        by_signs = self._codec.metric in (Metric.HAMMING, Metric.JACCARD)
        if not by_signs and len(asked) > _COUNTED_QUERIES:
            return scan(self._codec, self, asked, count, rows)
        words = self._words if rows is None else self._words[:, rows]
        out = np.full((len(asked), count), -1, np.int64)
        for at in range(len(asked)):
            query = asked[at : at + 1]
            if by_signs:
                places = self._by_signs(query, words, count)
                found = places if rows is None else rows[places]
            else:
                found = self._in_two_passes(query, words, count, rows)
            out[at, : len(found)] = found
        return out

    def _by_signs(self, asked: Vectors, words: Words, count: int) -> IntArray:
        query = self._query_words(asked)
        if self._codec.metric is Metric.HAMMING:
            return largest(-_counts(words, query, np.bitwise_xor).astype(np.int32), count)
        both = _counts(words, query, np.bitwise_and)
        either = _counts(words, query, np.bitwise_or)
        shares: npt.NDArray[np.float64] = np.divide(both, either, out=np.ones(len(both)), where=either > 0)
        return largest(shares, count)

    def _in_two_passes(self, asked: Vectors, words: Words, count: int, rows: IntArray | None) -> IntArray:
        n = words.shape[1]
        first = max(_FIRST_PASS * count, n // _FIRST_PASS_SHARE)
        if first < n // 2:
            # A score is the sum of what agrees less what differs: bits alone say most of it.
            differ = _counts(words, self._query_words(asked), np.bitwise_xor)
            places = np.sort(largest(-differ.astype(np.int32), first))
            rows = places if rows is None else rows[places]
        found: IntArray = scan(self._codec, self, asked, min(count, n), rows)[0]
        return found

    def _query_words(self, asked: Vectors) -> Words:
        """Pack the signs of one query: (words,) uint64."""
        padded = np.zeros(8 * len(self._words), np.uint8)
        packed = np.packbits(asked[0] > 0.0, bitorder="little")
        padded[: len(packed)] = packed
        return padded.view(np.uint64)


def scan(codec: Codec, held: Held, asked: Vectors, count: int, rows: IntArray | None) -> IntArray:
    """Decode codes tile by tile and compare them with all queries of a block at once.

    Peak memory is about 16 MiB beside input and output.

    Args:
        codec: What made the codes.
        held: Where they are.
        asked: (q, w) float32, prepared queries.
        count: Rows per query.
        rows: (m,) the only rows looked at, ascending; None for all.

    Returns:
        (q, count) int64, best first, equal scores in row order; -1 where there are fewer.
    """
    n = len(held) if rows is None else len(rows)
    out = np.full((len(asked), count), -1, np.int64)
    step = max(1, min(MOST_QUERIES, _MOST_KEPT // count))
    for top in range(0, len(asked), step):
        block = asked[top : top + step]
        components = _SMALL_TILE if len(block) <= _FEW_QUERIES else _TILE_COMPONENTS
        tile = max(1, min(components // codec.width, _TILE_SCORES // len(block)))
        best = Best(len(block), count)
        for start in range(0, n, tile):
            here = np.arange(start, min(start + tile, n)) if rows is None else rows[start : start + tile]
            chosen = slice(start, start + len(here)) if rows is None else here
            decoded = codec.quantizer.decode(held.codes(chosen))
            best.add(_scores(block, decoded, codec.metric), here)
        out[top : top + step] = best.rows()
    return out


def _scores(block: Vectors, decoded: Vectors, metric: Metric) -> Float32Array:
    """Score a tile, larger is nearer: (q, t) float32. Directions have unit length, so cos is the product."""
    if metric in (Metric.MANHATTAN, Metric.CHEBYSHEV):
        return np.stack([_gaps(query, decoded, metric) for query in block])
    # One query: reads at memory speed, with one BLAS thread twice as fast as gemv.
    scores: Float32Array = np.vecdot(decoded, block) if len(block) == 1 else block @ decoded.T
    if metric is Metric.EUCLIDEAN:
        scores = scores - np.vecdot(decoded, decoded) * np.float32(0.5)
    return scores.reshape(len(block), -1)


def _gaps(query: Float32Array, decoded: Vectors, metric: Metric) -> Float32Array:
    gaps = np.abs(decoded - query)
    total: Float32Array = gaps.sum(axis=1) if metric is Metric.MANHATTAN else gaps.max(axis=1)
    return -total


def _counts(words: Words, query: Words, combine: np.ufunc) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Count the ones of every row combined with the query: (n,)."""
    n = words.shape[1]
    kind = np.uint16 if 64 * len(words) < 1 << 16 else np.uint32
    out: npt.NDArray[np.unsignedinteger[Any]] = np.zeros(n, kind)
    bits, ones = np.empty(_BITS_TILE, np.uint64), np.empty(_BITS_TILE, np.uint8)
    for start in range(0, n, _BITS_TILE):
        total = out[start : start + _BITS_TILE]
        size = len(total)
        for column, word in zip(words, query, strict=True):
            combine(column[start : start + size], word, out=bits[:size])
            np.bitwise_count(bits[:size], out=ones[:size])
            np.add(total, ones[:size], out=total)
    return out
