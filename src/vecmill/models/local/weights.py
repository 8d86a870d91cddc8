"""Read weights: safetensors files, whole or in shards, without a library.

A safetensors file is a little-endian u64 (the header's length), a JSON header (name -> dtype, shape, byte
range) and the bytes. Files are memory-mapped, so opening one costs nothing and a tensor is read when it is
used.
Source: the safetensors format description, 2026-11.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError

Array = npt.NDArray[Any]

SCALE_SUFFIX = ".scale"
"""An int8 tensor `name` has its float32 row scales beside it, as `name.scale`."""

_MAX_HEADER_BYTES = 100_000_000
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the upper half of a float32; widened on reading
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CURE = "the download was cut short or the file is damaged: fetch the model again"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: its type as the file names it, its shape, and its bytes [start, end) in `file`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    file: Path


class Weights(Mapping[str, Array]):
    """The tensors of one or several safetensors files, by name.

    Values are read-only views of the mapped file, except bfloat16, which is widened to float32.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        raw = np.frombuffer(
            self._map(tensor.file),
            dtype=_DTYPES[tensor.dtype],
            count=int(np.prod(tensor.shape, dtype=np.int64)),
            offset=tensor.start,
        )
        if tensor.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor as float32; one stored as int8 with row scales is multiplied out."""
        array = self[name]
        if array.dtype == np.int8:
            return array.astype(np.float32) * self.scale(name)
        return np.ascontiguousarray(array, dtype=np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return self._tensors[name].shape

    def file(self, name: str) -> Path:
        """Return the file a tensor lies in."""
        return self._tensors[name].file

    def scale(self, name: str) -> npt.NDArray[np.float32]:
        """Return the row scales (rows, 1) of a tensor stored as int8."""
        return np.asarray(self[name + SCALE_SUFFIX], dtype=np.float32).reshape(-1, 1)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]


def open_weights(paths: tuple[Path, ...]) -> Weights:
    """Open safetensors files as one mapping of names to tensors.

    Raises:
        CorruptFileError: A header is damaged, or a file is shorter or longer than its header says.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise CorruptFileError(
                    f"tensor {name!r} is in {tensors[name].file} and again in {path}; {_CURE}"
                )
            tensors[name] = tensor
    return Weights(tensors)


def read_header(path: Path) -> dict[str, Tensor]:
    """Read and check the header of one safetensors file.

    Raises:
        CorruptFileError: It is not a whole safetensors file; the message names the file and what is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CorruptFileError(
                f"{path} is not a safetensors file: {size} bytes, a header of {length} claimed; {_CURE}"
            )
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"the header of {path} is damaged ({error}); {_CURE}") from error
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _tensor(path: Path, entry: dict[str, Any], base: int) -> Tensor:
    dtype, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
    start, end = (int(offset) for offset in entry["data_offsets"])
    if dtype not in _DTYPES:
        raise ValueError(f"tensor type {dtype} is not one of {', '.join(_DTYPES)}")
    count = 1
    for n in shape:
        if n < 0:
            raise ValueError(f"negative shape {shape}")
        count *= n
    if start < 0 or end - start != count * _DTYPES[dtype].itemsize:
        raise ValueError(f"a tensor of shape {shape} and type {dtype} has {end - start} bytes")
    return Tensor(dtype, shape, base + start, base + end, path)


def _check_layout(path: Path, tensors: dict[str, Tensor], base: int, size: int) -> None:
    at = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at:
            raise CorruptFileError(
                f"{path}: tensor {name!r} begins at byte {tensor.start}, not {at}; {_CURE}"
            )
        at = tensor.end
    if at != size:
        raise CorruptFileError(f"{path} has {size} bytes, its header describes {at}; {_CURE}")
