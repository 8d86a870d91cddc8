"""How components become bytes: half precision, 8 bits, 1 bit. `pq.py` has the codes of groups.

A quantizer sees vectors as `Codec.prepare` leaves them: shortened, of unit length for cosine, else around 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vecmill.core.types import Vectors

Bytes = npt.NDArray[np.uint8]
"""(n, size_bytes) uint8: one row of bytes per vector."""

Float32Array = npt.NDArray[np.float32]

_OUTLIER = 4.0
"""A component that reaches this many times the usual maximum would cost the others two of their 8 bits."""

_UNINFORMATIVE = 0.3
"""Where signs vary less than this (1: half of each kind, 0: all the same), they are taken around the mean.

Text models lie far above (MiniLM 0.95, OpenAI 0.60 to 0.81): around zero they do as well or better, and a
rotation gains nothing either.
"""


_FIT_COMPONENTS = 1 << 20
"""Components in double precision at once: 8 MiB."""


class Quantizer(Protocol):
    """Bytes for prepared vectors, and back."""

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""

    @property
    def excess(self) -> float:
        """How much longer, on average and squared, decoded vectors are than their originals."""

    def encode(self, vectors: Vectors) -> Bytes:
        """Return (n, size_bytes) uint8 of (n, w) float32."""

    def decode(self, codes: Bytes) -> Vectors:
        """Return (n, w) float32 of (n, size_bytes) uint8."""

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return what it has learned, by the names of its constructor's arguments."""


@dataclass(frozen=True, slots=True)
class Full:
    """Single precision, nothing lost: of use with shortened vectors.

    Attributes:
        width: Components of a prepared vector.
    """

    width: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""
        return 4 * self.width

    @property
    def excess(self) -> float:
        """Decoded vectors are as long as their originals."""
        return 0.0

    def encode(self, vectors: Vectors) -> Bytes:
        """Return the bytes, little-endian."""
        return np.ascontiguousarray(vectors, "<f4").view(np.uint8)

    def decode(self, codes: Bytes) -> Vectors:
        """Return the components."""
        return np.ascontiguousarray(codes).view("<f4").astype(np.float32, copy=False)

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing is learned."""
        return {}


@dataclass(frozen=True, slots=True)
class Half:
    """Half precision: 2 bytes a component, about three decimal digits.

    Attributes:
        width: Components of a prepared vector.
    """

    width: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""
        return 2 * self.width

    @property
    def excess(self) -> float:
        """Decoded vectors are as long as their originals."""
        return 0.0

    def encode(self, vectors: Vectors) -> Bytes:
        """Round to float16, little-endian; what is too large becomes the largest."""
        top = np.float32(np.finfo(np.float16).max)
        halves: Bytes = np.clip(vectors, -top, top).astype("<f2").view(np.uint8)
        return halves

    def decode(self, codes: Bytes) -> Vectors:
        """Widen to float32; by moving bits, six times as fast as NumPy's conversion."""
        halves = np.ascontiguousarray(codes).view("<i2")
        bits = halves.astype(np.int32)
        bits <<= 13
        bits &= np.int32(-0x70002000)  # keeps sign, exponent and fraction, drops the copies of the sign
        wide = bits.view(np.float32)
        wide *= np.float32(2.0**112)  # the exponents' biases are 15 and 127
        return wide

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing is learned."""
        return {}


@dataclass(frozen=True, slots=True)
class Int8:
    """One byte a component: offset + step * c, c from -127 to 127, kept as c + 128.

    Attributes:
        offset: (w,) float32, or (1,) for all components; 0 for a global scale.
        step: The same shape.
        width: Components of a prepared vector.
    """

    offset: Float32Array
    step: Float32Array
    width: int

    @classmethod
    def fit(cls, vectors: Vectors, scale: str) -> Int8:
        """Choose the scale: "global", "dimension", or by the data ("auto").

        A global scale treats all components alike and is the best where they are alike. Where one of them
        dwarfs the rest, it would spend the bits on that one: then every component gets its own range.
        """
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        reach = np.maximum(-low, high)
        if scale == "auto":
            scale = "dimension" if reach.max() > _OUTLIER * np.median(reach) else "global"
        if scale == "global":
            step = np.full(1, reach.max() / 127.0, np.float32)
            return cls(np.zeros(1, np.float32), _usable(step), vectors.shape[1])
        centre, half = low / 2 + high / 2, high / 2 - low / 2
        return cls(centre.astype(np.float32), _usable((half / 127.0).astype(np.float32)), vectors.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""
        return self.width

    @property
    def excess(self) -> float:
        """Decoded vectors are as long as their originals."""
        return 0.0

    def encode(self, vectors: Vectors) -> Bytes:
        """Round to the nearest step; what lies beyond the range gets its end."""
        with np.errstate(over="ignore"):
            steps = np.rint((vectors - self.offset) / self.step)
        codes: Bytes = (np.clip(steps, -127.0, 127.0) + 128.0).astype(np.uint8)
        return codes

    def decode(self, codes: Bytes) -> Vectors:
        """Return offset + step * c."""
        out = np.subtract(codes, np.float32(128.0), dtype=np.float32)
        out *= self.step
        if self.offset.any():
            out += self.offset
        return out

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return offset and step."""
        return {"offset": self.offset, "step": self.step}


@dataclass(frozen=True, slots=True)
class Bits:
    """One bit a component: its sign. 8 components a byte, the first in the lowest bit.

    Attributes:
        mean: (w,) float32, what signs are taken around where those around zero say nothing; else (1,) zero.
        spread: What a bit stands for: decoded is mean + or - spread. Chosen so that the inner product of a
            vector with its own code is right on average, as in Gao and Long, RaBitQ, 2024, section 3.2,
            but one number for all vectors instead of one for each.
        excess: How much longer, on average and squared, decoded vectors are than their originals.
        width: Components of a prepared vector.
    """

    mean: Float32Array
    spread: float
    excess: float
    width: int

    @classmethod
    def fit(cls, vectors: Vectors, *, plain: bool) -> Bits:
        """Choose what the signs are taken around (zero when `plain`) and the spread."""
        ones = np.mean(vectors > 0.0, axis=0)
        if plain or np.mean(4.0 * ones * (1.0 - ones)) >= _UNINFORMATIVE:
            mean = np.zeros(1, np.float32)
        else:
            mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        squares, sums = np.empty(len(vectors)), np.empty(len(vectors))
        step = max(1, _FIT_COMPONENTS // vectors.shape[1])
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            wide = vectors[part].astype(np.float64) - mean
            squares[part] = np.vecdot(wide, wide)
            sums[part] = np.abs(wide, out=wide).sum(axis=1)
        ratios = squares[sums > 0.0] / sums[sums > 0.0]
        spread = float(ratios.mean()) if len(ratios) else 1.0
        return cls(mean, spread, float(spread**2 * vectors.shape[1] - squares.mean()), vectors.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""
        return -(-self.width // 8)

    def encode(self, vectors: Vectors) -> Bytes:
        """Pack what lies above the mean; bits beyond the last component are 0."""
        return np.packbits(vectors > self.mean, axis=1, bitorder="little")

    def decode(self, codes: Bytes) -> Vectors:
        """Return mean + or - spread."""
        table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        signs = (table.astype(np.float32) * 2.0 - 1.0) * np.float32(self.spread)  # (256, 8)
        out = signs.take(codes, axis=0).reshape(len(codes), -1)
        if self.mean.any():
            out[:, : self.width] += self.mean
        return out if out.shape[1] == self.width else np.ascontiguousarray(out[:, : self.width])

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return mean, spread and excess."""
        numbers = {"spread": np.array([self.spread]), "excess": np.array([self.excess])}
        return {"mean": self.mean, **numbers}


def _usable(step: Float32Array) -> Float32Array:
    """Replace steps of components that never differ, which would divide by zero."""
    return np.where(step > np.finfo(np.float32).tiny, step, np.float32(1.0))
