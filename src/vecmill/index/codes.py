"""Compressed vectors: bytes that name candidates, to be judged by the originals (`rescored.py`)."""

from __future__ import annotations

import numpy as np

from vecmill.core.errors import InputError
from vecmill.core.extras import installed
from vecmill.core.types import IntArray, Mask, Metric, Vectors, choice
from vecmill.index.codec import Codec, CodeSpec, codec_from_bytes, fit
from vecmill.index.quantizers import Bits, Bytes
from vecmill.index.scans import Held, RowCodes, SignColumns

__all__ = ["CodeSpec", "Codec", "Codes", "codec_from_bytes", "fit"]

_ENGINES = ("auto", "numpy", "faiss")


class Codes:
    """The codes of many vectors, searched with float queries. A `Candidates`.

    faiss searches where it is installed and has a way to: it keeps its own copy of the codes, so drop yours.
    NumPy keeps one-bit codes in columns (a copy too) and all others as they are given, mapped or not.

    Args:
        codec: What made the codes.
        codes: (n, size_bytes) uint8, row i for vector i.
        metric: What "near" means; the codec's own.
        engine: "numpy", "faiss", or "auto" for what is there.

    Raises:
        InputError: The codes are not of this codec, or faiss has no way to search them.
        MissingExtraError: faiss is asked for and not installed.
    """

    def __init__(self, codec: Codec, codes: Bytes, *, metric: Metric | str, engine: str = "auto") -> None:
        if choice(Metric, metric, "metric") is not codec.metric:
            raise InputError(f"the codes were made for {codec.metric.value}, not for {metric}; make new ones")
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != codec.size_bytes:
            raise InputError(
                f"codes must be a table (n, {codec.size_bytes}) of uint8, not {codes.dtype} of shape "
                f"{codes.shape}"
            )
        if engine not in _ENGINES:
            raise InputError(f"engine is {engine!r}; choose from {', '.join(_ENGINES)}")
        self._codec = codec
        self._held = _held(codec, codes, engine)

    @property
    def codec(self) -> Codec:
        """What made the codes."""
        return self._codec

    @property
    def metric(self) -> Metric:
        """What "near" means here."""
        return self._codec.metric

    @property
    def dimensions(self) -> int:
        """Components of a query, before any shortening."""
        return self._codec.dimensions

    @property
    def size_bytes(self) -> int:
        """Bytes held in memory (or mapped) for all rows together."""
        return self._held.size_bytes

    def __len__(self) -> int:
        return len(self._held)

    def codes(self, rows: IntArray | slice) -> Bytes:
        """Return the codes of rows: (m, size_bytes) uint8."""
        return self._held.codes(rows)

    def candidates(self, queries: Vectors, count: int, *, allowed: Mask | None = None) -> IntArray:
        """Name rows that are probably among the nearest, best first.

        Args:
            queries: (q, d) float32.
            count: Rows per query, at least 1.
            allowed: (n,) bool, the rows that may be named; None for all.

        Returns:
            (q, min(count, n)) int64, each row at most once per query; -1 where fewer are allowed.

        Raises:
            DimensionMismatchError: Queries are of another width.
            InputError: count is below 1, a query holds NaN or infinity, or `allowed` is of another length.
        """
        if count < 1:
            raise InputError(f"count is {count}; ask for at least 1 candidate")
        asked = self._codec.asked(queries)
        n = len(self)
        count = min(count, n)
        rows = None
        if allowed is not None:
            if np.shape(allowed) != (n,) or allowed.dtype != np.bool_:
                raise InputError(
                    f"allowed has shape {np.shape(allowed)}; it must hold one bool for each of {n}"
                )
            rows = None if allowed.all() else np.flatnonzero(allowed)
        if rows is not None and len(rows) <= count:
            out = np.full((len(asked), count), -1, np.int64)
            out[:, : len(rows)] = rows
            return out
        if not len(asked) or not count:
            return np.empty((len(asked), count), np.int64)
        return self._held.best(asked, count, rows)


def _held(codec: Codec, codes: Bytes, engine: str) -> Held:
    if engine != "numpy" and (engine == "faiss" or installed("faiss")):
        from vecmill.index import fast_scan  # the one user of an optional package

        if fast_scan.fits(codec):
            return fast_scan.held(codec, codes)
        if engine == "faiss":
            raise InputError(
                f"faiss has no way to search {codec.spec.precision.value} codes by {codec.metric.value}"
            )
    return SignColumns(codec, codes) if isinstance(codec.quantizer, Bits) else RowCodes(codec, codes)
