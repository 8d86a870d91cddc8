"""The quantizations of the "vector embeddings" demo notebooks, byte for byte.

For comparing with what the notebooks print. To search, use `vecmill.index.codes`: there int8 keeps zero at
zero, so that similarities survive, and a bit takes a bit. Here zero lies where the range puts it, which lifts
all cosines (0.55 becomes 0.90 where values reach from -0.25 to 0.15), and a bit takes a byte.
Source: pamelafox/vector-embeddings-demos, `quantization.ipynb`, as of 2025.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import InputError

Int8Array = npt.NDArray[np.int8]


def scalar_quantization(
    embeddings: npt.ArrayLike,
    num_levels: int = 256,
    min_level: int = -128,
    max_level: int = 127,
    *,
    value_range: tuple[float, float] | None = None,
) -> Int8Array:
    """Spread all values evenly over the levels between the smallest and the largest of them.

    Args:
        embeddings: (n, d) numbers.
        num_levels: Levels, at least 2.
        min_level: The level of the smallest value, at least -128.
        max_level: The level of the largest value, above `min_level`, at most 127.
        value_range: Smallest and largest value, where the vectors are only some of those they belong to; what
            lies outside gets the end.

    Returns:
        (n, d) int8. Halves go to the even level, levels towards zero, as with Python's `round` and `int`.

    Raises:
        InputError: Not a table of finite numbers, all values are equal, or the levels are none of int8.
    """
    table = _checked(embeddings)
    if num_levels < 2 or not -128 <= min_level < max_level <= 127:
        raise InputError(
            f"need at least 2 levels within -128 to 127, not {num_levels} from {min_level} to {max_level}"
        )
    low, high = (float(table.min()), float(table.max())) if value_range is None else value_range
    if not low < high:
        raise InputError(f"values from {low} to {high} cannot be spread over levels")
    shares = np.clip((table - low) / (high - low), 0.0, 1.0)
    steps = np.rint(shares * (num_levels - 1))
    return np.trunc(steps * (max_level - min_level) / (num_levels - 1) + min_level).astype(np.int8)


def binary_quantization(embeddings: npt.ArrayLike, *, threshold: float | None = None) -> Int8Array:
    """Give every value above the mean of all values a 1, the others a 0.

    Args:
        embeddings: (n, d) numbers.
        threshold: Used in place of the mean, where the vectors are only some of those they belong to.

    Returns:
        (n, d) int8 of zeros and ones, a byte each; `packed` makes bits of them.

    Raises:
        InputError: Not a table of finite numbers.
    """
    table = _checked(embeddings)
    mean = math.fsum(table.ravel()) / table.size if threshold is None else threshold
    return (table > mean).astype(np.int8)


def packed(bits: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Pack zeros and ones: (n, d) to (n, ceil(d / 8)) uint8, the first component in the highest bit.

    1,536 components take 192 bytes, not the notebook's 1,536.
    """
    return np.packbits(np.asarray(bits) > 0, axis=1)


def _checked(embeddings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        table = np.asarray(embeddings, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"embeddings must be a table of numbers: {error}") from error
    if table.ndim != 2 or not table.size:
        raise InputError(f"embeddings must be a table (n, d) of numbers, not of shape {table.shape}")
    if not np.isfinite(table).all():
        raise InputError("embeddings hold NaN or infinity; drop such rows")
    return table
