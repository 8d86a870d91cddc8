"""A codec turns vectors into bytes of a fixed size and back; learned from a sample, kept as bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError
from vecmill.core.types import Metric, Precision, Vectors, choice
from vecmill.core.vectors import check, normalize
from vecmill.index.pq import Product
from vecmill.index.quantizers import Bits, Bytes, Full, Half, Int8, Quantizer

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_SIGN_METRICS = (Metric.HAMMING, Metric.JACCARD)
_SCALES = ("auto", "global", "dimension")
_FARTHEST = 2.0**20
"""Prepared components lie around 1; vectors farther out are pulled in, so that no product overflows."""

_MAGIC = b"VMCODEC\n"
_FORMAT = 1
_DIGEST_BYTES = 16
_TILE = 1 << 18
_MOST_DIMENSIONS, _MOST_EXPONENT = 1 << 24, 200
"""Beyond what vectors in memory and numbers of single precision can have: a file that says so is none."""


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """What codes are made of.

    Attributes:
        precision: float16, int8, binary (1 bit a component) or pq; float32 only of shortened vectors.
        shorten: Leading components kept, None for all. Right for models trained for it; the caller decides.
        scale: Of int8: one "global" scale, one per "dimension", or "auto": what suits the data.
        parts: Of pq: groups of components; None for one per 4 components (4 bits) or 8 (8 bits).
        bits: Of pq: bits of a group, 4 or 8.

    Raises:
        InputError: A value is out of range or means nothing for this precision.
        UnknownNameError: No such precision or scale.
    """

    precision: Precision
    shorten: int | None = None
    scale: str = "auto"
    parts: int | None = None
    bits: int = 4

    def __post_init__(self) -> None:
        """Check every value; the precision may be given as text."""
        object.__setattr__(self, "precision", choice(Precision, self.precision, "precision"))
        if self.scale not in _SCALES:
            raise InputError(f"scale is {self.scale!r}; choose from {', '.join(_SCALES)}")
        if self.scale != "auto" and self.precision is not Precision.INT8:
            raise InputError(f"scale={self.scale!r} is for int8, not for {self.precision.value}")
        if self.shorten is not None and self.shorten < 1:
            raise InputError(f"cannot shorten vectors to {self.shorten} dimensions; keep at least 1")
        if self.bits not in (4, 8):
            raise InputError(f"bits is {self.bits}; pq codes have 4 or 8")
        if self.precision is not Precision.PQ and (self.parts is not None or self.bits != 4):
            raise InputError(f"parts and bits are for pq, not for {self.precision.value}")


@dataclass(frozen=True, slots=True)
class Codec:
    """Turns vectors into bytes and back; made by `fit` or `codec_from_bytes`.

    Attributes:
        spec: What it was asked for.
        metric: What "near" means; cosine keeps directions only.
        dimensions: Components of the vectors it takes.
        exponent: Vectors are divided by 2 ** exponent, so that components lie around 1.
        quantizer: Does the work.
    """

    spec: CodeSpec
    metric: Metric
    dimensions: int
    exponent: int
    quantizer: Quantizer

    @property
    def size_bytes(self) -> int:
        """Bytes of one vector."""
        return self.quantizer.size_bytes

    @property
    def width(self) -> int:
        """Components left after shortening."""
        return self.spec.shorten or self.dimensions

    def prepare(self, vectors: Vectors) -> Vectors:
        """Return vectors as they are compared: shortened, scaled: (n, width) float32, a new array.

        Of unit length for cosine. For dot and euclidean, shortened vectors keep their length.

        Args:
            vectors: (n, d) float32, finite.

        Raises:
            DimensionMismatchError: Vectors are of another width.
            InputError: A component is NaN or infinite.
        """
        given = check(vectors, dimensions=self.dimensions)
        short = given[:, : self.width]
        if self.metric is Metric.COSINE:
            return normalize(short)
        if self.metric in _SIGN_METRICS:
            return short.copy()  # scaling could make the smallest ones zero
        wide = np.ldexp(short.astype(np.float64), -self.exponent)
        if self.metric in (Metric.DOT, Metric.EUCLIDEAN) and self.width < self.dimensions:
            full, kept = _lengths(given), _lengths(short)
            wide *= np.divide(full, kept, out=np.ones(len(full)), where=kept > 0.0)[:, None]
        farthest = np.abs(wide).max(axis=1, initial=_FARTHEST, keepdims=True)
        wide *= _FARTHEST / farthest
        return wide.astype(np.float32)

    def asked(self, queries: Vectors) -> Vectors:
        """Return queries as they are compared: as `prepare`, but of unit length for dot: order stays.

        Args:
            queries: (q, d) float32, finite.

        Raises:
            DimensionMismatchError: Queries are of another width.
            InputError: A component is NaN or infinite.
        """
        given = check(queries, dimensions=self.dimensions, what="queries")
        return normalize(given[:, : self.width]) if self.metric is Metric.DOT else self.prepare(given)

    def encode(self, vectors: Vectors) -> Bytes:
        """Compress vectors: (n, size_bytes) uint8, a row per vector. Works in pieces of bounded size.

        Args:
            vectors: (n, d) float32.

        Raises:
            DimensionMismatchError: Vectors are of another width.
            InputError: A component is NaN or infinite.
        """
        out = np.empty((len(vectors), self.size_bytes), np.uint8)
        step = max(1, _TILE // max(1, self.dimensions))
        for start in range(0, max(1, len(vectors)), step):
            part = slice(start, start + step)
            out[part] = self.quantizer.encode(self.prepare(vectors[part]))
        return out

    def decode(self, codes: Bytes) -> Vectors:
        """Return what is left of the vectors: (n, width) float32; of unit length (nearly) for cosine."""
        decoded = self.quantizer.decode(codes)
        if self.exponent == 0:
            return decoded
        return _rounded(np.ldexp(decoded.astype(np.float64), self.exponent))

    def estimate(self, queries: Vectors, codes: Bytes) -> Float32Array:
        """Estimate distances from codes, on the scale of the true ones.

        Args:
            queries: (q, d) float32.
            codes: (n, size_bytes) uint8.

        Returns:
            (q, n) float32. Exact for hamming and jaccard on all components; cosine lies in [0, 2].

        Raises:
            DimensionMismatchError: Queries are of another width.
        """
        asked = self.asked(queries)
        if self.metric in _SIGN_METRICS:
            return self._sign_distances(asked, codes)
        wide = asked.astype(np.float64)
        if self.metric is Metric.DOT:
            wide *= _lengths(queries)[:, None]
        out = np.empty((len(asked), len(codes)), np.float32)
        step = max(1, _TILE // max(1, self.width))
        for start in range(0, len(codes), step):
            part = slice(start, start + step)
            out[:, part] = _rounded(self._distances(wide, self.quantizer.decode(codes[part])))
        return out

    def _distances(self, asked: Float64Array, decoded: Vectors) -> Float64Array:
        tile, unit = decoded.astype(np.float64), 2.0**self.exponent
        if self.metric in (Metric.MANHATTAN, Metric.CHEBYSHEV):
            total = np.sum if self.metric is Metric.MANHATTAN else np.max
            gaps: Float64Array = np.stack([total(np.abs(tile - query), axis=1) for query in asked])
            return gaps * unit
        products = asked @ tile.T
        if self.metric is Metric.COSINE:
            return np.clip(1.0 - products, 0.0, 2.0)
        if self.metric is Metric.DOT:
            return 0.0 - products * unit
        lengths = np.vecdot(tile, tile) - self.quantizer.excess
        squares = np.vecdot(asked, asked)[:, None] + lengths - 2.0 * products
        roots: Float64Array = np.sqrt(np.maximum(squares, 0.0)) * unit
        return roots

    def _sign_distances(self, asked: Vectors, codes: Bytes) -> Float32Array:
        bits = self.quantizer.encode(asked)[:, None, :]
        if self.metric is Metric.HAMMING:
            differ = np.bitwise_count(bits ^ codes).sum(axis=2, dtype=np.int64)
            scaled: Float32Array = (differ * (self.dimensions / self.width)).astype(np.float32)
            return scaled
        both = np.bitwise_count(bits & codes).sum(axis=2, dtype=np.int64)
        either = np.bitwise_count(bits | codes).sum(axis=2, dtype=np.int64)
        shares = np.divide(both, either, out=np.ones(both.shape), where=either > 0)
        rounded: Float32Array = (1.0 - shares).astype(np.float32)
        return rounded

    def to_bytes(self) -> bytes:
        """Return the codec as bytes: a JSON header, the arrays, a digest; `codec_from_bytes` reads them."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.quantizer.arrays().items()}
        header = json.dumps(
            {
                "format": _FORMAT,
                "spec": dataclasses.asdict(self.spec),
                "metric": self.metric.value,
                "dimensions": self.dimensions,
                "exponent": self.exponent,
                "arrays": [
                    [name, value.dtype.newbyteorder("<").str, list(value.shape)]
                    for name, value in arrays.items()
                ],
            },
            sort_keys=True,
        ).encode()
        body = b"".join(value.astype(value.dtype.newbyteorder("<")).tobytes() for value in arrays.values())
        data = _MAGIC + struct.pack("<I", len(header)) + header + body
        return data + hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _lengths(vectors: Vectors) -> Float64Array:
    wide = vectors.astype(np.float64)
    lengths: Float64Array = np.sqrt(np.vecdot(wide, wide))
    return lengths


def _rounded(values: Float64Array) -> Float32Array:
    """Round to float32; what is too large becomes the largest."""
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32)


def fit(sample: Vectors, spec: CodeSpec, *, metric: Metric | str, seed: int = 0) -> Codec:
    """Learn from a sample what a code needs to know: scale, mean, centroids.

    Args:
        sample: (n, d) float32, at least one vector; some thousand typical ones are enough.
        spec: What the codes are made of.
        metric: What "near" means. hamming and jaccard look at signs: with them only binary.
        seed: Equal seeds give equal codes.

    Raises:
        InputError: There is no vector, one holds NaN or infinity, `shorten` exceeds d, or the precision does
            not go with the metric.
    """
    metric = choice(Metric, metric, "metric")
    table = check(sample, what="sample")
    dimensions = int(table.shape[1])
    if not table.size:
        raise InputError(f"nothing to learn a code from: the sample has shape {table.shape}")
    if spec.shorten is not None and spec.shorten > dimensions:
        raise InputError(f"cannot shorten vectors of {dimensions} dimensions to {spec.shorten}")
    if metric in _SIGN_METRICS and spec.precision is not Precision.BINARY:
        raise InputError(
            f"{metric.value} looks at signs only: use precision binary, not {spec.precision.value}"
        )
    largest = float(np.abs(table).max())
    exponent = 0 if metric is Metric.COSINE or largest == 0.0 else int(np.frexp(largest)[1])
    blank = Codec(spec, metric, dimensions, exponent, Half(spec.shorten or dimensions))
    return dataclasses.replace(blank, quantizer=_quantizer(blank.prepare(table), spec, metric, seed))


def _quantizer(prepared: Vectors, spec: CodeSpec, metric: Metric, seed: int) -> Quantizer:
    match spec.precision:
        case Precision.FLOAT32:
            return Full(prepared.shape[1])
        case Precision.FLOAT16:
            return Half(prepared.shape[1])
        case Precision.INT8:
            return Int8.fit(prepared, spec.scale)
        case Precision.BINARY:
            return Bits.fit(prepared, plain=metric in _SIGN_METRICS)
        case Precision.PQ:
            return Product.fit(prepared, parts=spec.parts, bits=spec.bits, seed=seed)


def codec_from_bytes(data: bytes, *, where: str = "a codec") -> Codec:
    """Read what `Codec.to_bytes` gave.

    Args:
        data: The bytes.
        where: Names their origin in messages, such as a path.

    Raises:
        CorruptFileError: They are not what was written.
        FormatVersionError: They were written by a newer version.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if not data.startswith(_MAGIC) or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise CorruptFileError(f"{where} is damaged: its {len(data)} bytes do not match their digest")
    try:
        return _read(body, where)
    except (InputError, ValueError, TypeError, LookupError, struct.error) as error:
        raise CorruptFileError(
            f"{where} is no codec vecmill wrote ({error}); make the codes again"
        ) from error


def _read(body: bytes, where: str) -> Codec:
    """Read what the digest vouches for; nothing is allocated that the bytes do not hold."""
    (length,) = struct.unpack_from("<I", body, len(_MAGIC))
    start = len(_MAGIC) + 4
    header = json.loads(body[start : start + length])
    if header["format"] > _FORMAT:
        raise FormatVersionError(
            f"{where} has format {header['format']}, this version reads up to {_FORMAT}; update vecmill"
        )
    arrays, at = {}, start + length
    for name, dtype, shape in header["arrays"]:
        if min(shape, default=1) < 1:
            raise ValueError(f"{name} has shape {shape}")
        value = np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape)
        arrays[name] = value.astype(value.dtype.newbyteorder("="))
        at += value.nbytes
    spec, dimensions, exponent = CodeSpec(**header["spec"]), header["dimensions"], header["exponent"]
    if not 1 <= (spec.shorten or 1) <= operator.index(dimensions) <= _MOST_DIMENSIONS:
        raise ValueError(f"{dimensions} dimensions, shortened to {spec.shorten}")
    if not -_MOST_EXPONENT <= operator.index(exponent) <= _MOST_EXPONENT:
        raise ValueError(f"exponent {exponent}")
    quantizer = _restored(spec, arrays, spec.shorten or dimensions)
    return Codec(spec, Metric(header["metric"]), dimensions, exponent, quantizer)


def _restored(spec: CodeSpec, arrays: dict[str, npt.NDArray[Any]], width: int) -> Quantizer:
    match spec.precision:
        case Precision.FLOAT32:
            return Full(width)
        case Precision.FLOAT16:
            return Half(width)
        case Precision.INT8:
            _ensure_shape(arrays["offset"], (1,), (width,))
            _ensure_shape(arrays["step"], arrays["offset"].shape)
            return Int8(arrays["offset"], arrays["step"], width)
        case Precision.BINARY:
            _ensure_shape(arrays["mean"], (1,), (width,))
            return Bits(arrays["mean"], float(arrays["spread"][0]), float(arrays["excess"][0]), width)
        case Precision.PQ:
            _, _, size = arrays["centroids"].shape
            _ensure_shape(arrays["centroids"], (-(-width // size), 1 << spec.bits, size))
            return Product(arrays["centroids"], width)


def _ensure_shape(values: npt.NDArray[Any], *shapes: tuple[int, ...]) -> None:
    """Refuse a table of another shape, or of anything but finite numbers of single or double precision."""
    if values.shape not in shapes or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"an array of {values.dtype} has shape {values.shape}, not {shapes[-1]}")
