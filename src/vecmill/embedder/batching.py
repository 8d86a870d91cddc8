"""Texts into requests: within a provider's limits, in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vecmill.core.types import IntArray


def batches(tokens: IntArray, *, max_inputs: int | None, max_tokens: int | None) -> Iterator[IntArray]:
    """Cut texts into requests of at most `max_inputs` texts and `max_tokens` tokens, keeping the order.

    Args:
        tokens: (n,) tokens per text. A text above `max_tokens` gets a request of its own.
        max_inputs: None for no limit.
        max_tokens: None for no limit.

    Yields:
        Positions of one request's texts, (b,) int64.
    """
    if max_inputs is None and max_tokens is None:
        if len(tokens):
            yield np.arange(len(tokens), dtype=np.int64)
        return
    most = max_inputs or len(tokens)
    start, total = 0, 0
    for i, count in enumerate(tokens):
        full = i - start >= most or (max_tokens is not None and total + int(count) > max_tokens)
        if full and i > start:
            yield np.arange(start, i, dtype=np.int64)
            start, total = i, 0
        total += int(count)
    if start < len(tokens):
        yield np.arange(start, len(tokens), dtype=np.int64)
