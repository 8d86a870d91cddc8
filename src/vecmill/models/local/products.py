"""Products of integer codes on OpenVINO: exact sums of int8 products, several times as fast as float32.

A graph of one multiplication is written so that the CPU plugin runs it on its 8-bit instructions. That is its
choice, and on other processors 8-bit sums may saturate, so every compiled graph is compared with NumPy's
integers before it is used; one that differs is refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core import machine
from vecmill.core.errors import ConfigError
from vecmill.models.local.runtime import openvino

Codes = npt.NDArray[np.int8]
Float32Array = npt.NDArray[np.float32]

LARGEST_CODE = 127
"""Codes lie between -127 and 127."""

MOST_DIMENSIONS = 65_536
"""So many products of codes still sum up to less than 2^31."""

_FAST_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_CHECKED_ROWS = 48


def are_fast() -> bool:
    """Whether this processor multiplies 8-bit numbers faster than float32 ones."""
    return bool(_FAST_FLAGS & machine.cpu().flags)


class Products:
    """Multiplies a tile of items by a block of queries; shapes are fixed. Not for several threads at once.

    Args:
        items: Rows of a tile.
        queries: Queries of a block.
        dimensions: Components of a code.
        threads: Threads at most; 0 for every core the process may use.

    Attributes:
        items, queries: The shape of the table of scores.

    Raises:
        ConfigError: What the graph computes are not the exact sums, on this processor.
    """

    def __init__(self, items: int, queries: int, dimensions: int, *, threads: int = 0) -> None:
        self.items = items
        self.queries = queries
        self._tensor = openvino().Tensor
        self._held: dict[int, npt.NDArray[Any]] = {}
        self._request = _compiled(items, queries, dimensions, threads).create_infer_request()
        self._ensure_exact(dimensions)

    def ask(self, queries: Codes) -> None:
        """Set the (queries, d) int8 codes that items are multiplied by; the array is not copied."""
        self._set(1, queries)

    def multiply(self, items: Codes, scales: Float32Array, offsets: Float32Array, out: Float32Array) -> None:
        """Fill a table with the sum of products times the item's scale plus its offset.

        The sum is exact; up to three roundings to float32 follow.

        Args:
            items: (items, d) int8.
            scales: (items, 1) float32.
            offsets: (items, 1) float32.
            out: (items, queries) float32, filled.
        """
        self._set(0, items)
        self._set(2, scales)
        self._set(3, offsets)
        self._request.set_output_tensor(self._tensor(out, shared_memory=True))
        self._request.infer()

    def _set(self, position: int, array: npt.NDArray[Any]) -> None:
        self._held[position] = array  # the tensor does not keep it alive
        self._request.set_input_tensor(position, self._tensor(array, shared_memory=True))

    def _ensure_exact(self, dimensions: int) -> None:
        """Compare with NumPy on random codes, the extreme ones among them."""
        items, queries = self.items, self.queries
        numbers = np.random.default_rng(0)
        left = numbers.integers(-LARGEST_CODE, LARGEST_CODE + 1, (items, dimensions)).astype(np.int8)
        right = numbers.integers(-LARGEST_CODE, LARGEST_CODE + 1, (queries, dimensions)).astype(np.int8)
        left[0], right[0], left[-1], right[-1] = LARGEST_CODE, LARGEST_CODE, -LARGEST_CODE, LARGEST_CODE
        out = np.empty((items, queries), np.float32)
        self.ask(right)
        ones, zeros = np.ones((items, 1), np.float32), np.zeros((items, 1), np.float32)
        self.multiply(left, ones, zeros, out)
        for rows, columns in _checked(items, queries):
            want = left[rows].astype(np.float64) @ right[columns].astype(np.float64).T
            if not np.array_equal(out[rows][:, columns], want.astype(np.float32)):
                raise ConfigError(
                    "8-bit products are not exact on this processor (or with this OpenVINO): "
                    "search with engine='numpy'"
                )


def _checked(items: int, queries: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Choose some rows with all columns, and some columns with all rows, ends included."""
    rows = np.unique(np.linspace(0, items - 1, _CHECKED_ROWS).astype(np.int64))
    columns = np.unique(np.linspace(0, queries - 1, _CHECKED_ROWS).astype(np.int64))
    return [(rows, np.arange(queries)), (np.arange(items), columns)]


@lru_cache(maxsize=32)
def _compiled(items: int, queries: int, dimensions: int, threads: int) -> Any:
    """Compile the graph; kept for the next index of the same shape."""
    ov = openvino()
    from openvino import opset13 as op

    left = op.parameter([items, dimensions], ov.Type.i8)
    right = op.parameter([queries, dimensions], ov.Type.i8)
    scale, offset = op.parameter([items, 1], ov.Type.f32), op.parameter([items, 1], ov.Type.f32)
    low, high = op.constant(np.float32(-128.0)), op.constant(np.float32(127.0))

    def whole(
        codes: Any,
    ) -> Any:  # quantization that changes nothing, by which the plugin knows 8-bit numbers
        return op.fake_quantize(op.convert(codes, ov.Type.f32), low, high, low, high, 256)

    sums = op.matmul(whole(left), whole(right), False, True)
    scored = op.add(op.multiply(sums, scale), offset)
    model = ov.Model([op.result(scored)], [left, right, scale, offset], "products")
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads if threads > 0 else machine.usable_cores(),
        "ENABLE_CPU_PINNING": False,
    }
    return ov.Core().compile_model(model, "CPU", properties)
