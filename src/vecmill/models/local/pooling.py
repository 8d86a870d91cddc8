"""What turns token vectors into one vector per text: pooling, dense layers, normalization.

Read from a sentence-transformers folder, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Node = Any


class Pool(StrEnum):
    """How token vectors (s, h) become one: the names of sentence-transformers' own settings."""

    CLS = "cls"
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    WEIGHTED_MEAN = "weightedmean"
    LAST = "lasttoken"


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after pooling: weights (out, in), bias (out,) or None, and its activation's name."""

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    activation: str


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scale to unit length."""


@dataclass(frozen=True, slots=True)
class Head:
    """What follows the encoder: the pooled vectors put side by side, then the steps in order.

    No pools: what comes before gives one vector per text already.
    """

    pools: tuple[Pool, ...]
    steps: tuple[Dense | Normalize, ...] = ()

    @property
    def normalized(self) -> bool:
        """Whether the last step leaves unit length."""
        return bool(self.steps) and isinstance(self.steps[-1], Normalize)

    def describe(self) -> str:
        """Return the head in a few words: "mean+normalize", "inside" where the graph pools by itself."""
        steps = ("normalize" if isinstance(s, Normalize) else f"dense({s.activation})" for s in self.steps)
        return "+".join((*(self.pools or ("inside",)), *steps))


def apply(head: Head, x: Node, mask: Node, op: Any) -> Node:
    """Append the head to a graph.

    Args:
        head: What to append.
        x: Token vectors (b, s, h), or vectors (b, h) where the head pools nothing.
        mask: (b, s) float32, 1 for tokens.
        op: The operator factory.

    Returns:
        Vectors (b, d).
    """
    if head.pools:
        pooled = [_POOLS[pool](x, mask, op) for pool in head.pools]
        x = pooled[0] if len(pooled) == 1 else op.concat(pooled, -1)
    for step in head.steps:
        x = _normalize(x, op) if isinstance(step, Normalize) else _dense(step, x, op)
    return x


def _c(op: Any, value: Any, dtype: Any) -> Node:
    return op.constant(np.asarray(value, dtype=dtype))


_DENSE_ROWS = 8
"""Rows each vector is repeated to in a Dense layer, see `_dense`."""


def _dense(step: Dense, x: Node, op: Any) -> Node:
    """Multiply vectors (b, h) by the weights.

    The kernel is chosen by the number of rows, and a lone row is summed in another order than one of many
    once h is large. So that a text's bytes do not depend on its batch, every vector is repeated and one row
    is kept.
    """
    rows = op.tile(op.unsqueeze(x, _c(op, [1], np.int32)), _c(op, [1, _DENSE_ROWS, 1], np.int32))
    y = op.matmul(rows, op.constant(step.weights), False, True)
    y = op.gather(y, _c(op, 0, np.int32), _c(op, 1, np.int32))
    if step.bias is not None:
        y = op.add(y, op.constant(step.bias))
    return DENSE_ACTIVATIONS[step.activation](op, y)


def _normalize(x: Node, op: Any) -> Node:
    axis = _c(op, [-1], np.int32)
    length = op.sqrt(op.reduce_sum(op.multiply(x, x), axis, True))
    return op.divide(x, op.maximum(length, _c(op, 1e-12, np.float32)))


def _weighted(x: Node, weights: Node, op: Any) -> Node:
    """Sum the token vectors, each times its weight (b, s)."""
    row = op.unsqueeze(weights, _c(op, [1], np.int32))  # (b, 1, s)
    return op.squeeze(op.matmul(row, x, False, False), _c(op, [1], np.int32))


def _total(weights: Node, op: Any) -> Node:
    total = op.reduce_sum(weights, _c(op, [1], np.int32), True)
    return op.maximum(total, _c(op, 1e-9, np.float32))


def _mean(x: Node, mask: Node, op: Any) -> Node:
    return op.divide(_weighted(x, mask, op), _total(mask, op))


def _mean_sqrt_len(x: Node, mask: Node, op: Any) -> Node:
    return op.divide(_weighted(x, mask, op), op.sqrt(_total(mask, op)))


def _weighted_mean(x: Node, mask: Node, op: Any) -> Node:
    weights = op.multiply(op.cum_sum(mask, _c(op, 1, np.int32)), mask)  # 1, 2, 3, … over the tokens
    return op.divide(_weighted(x, weights, op), _total(weights, op))


def _max(x: Node, mask: Node, op: Any) -> Node:
    off = op.multiply(op.subtract(mask, _c(op, 1, np.float32)), _c(op, 1e9, np.float32))
    return op.reduce_max(op.add(x, op.unsqueeze(off, _c(op, [2], np.int32))), _c(op, [1], np.int32), False)


def _cls(x: Node, _mask: Node, op: Any) -> Node:
    return op.gather(x, _c(op, 0, np.int32), _c(op, 1, np.int32))


def _last(x: Node, mask: Node, op: Any) -> Node:
    after = op.cum_sum(mask, _c(op, 1, np.int32), False, True)  # 1 at the last token: only it has itself left
    return _weighted(x, op.multiply(mask, op.convert(op.equal(after, _c(op, 1, np.float32)), "f32")), op)


_POOLS: dict[Pool, Any] = {
    Pool.CLS: _cls,
    Pool.MAX: _max,
    Pool.MEAN: _mean,
    Pool.MEAN_SQRT_LEN: _mean_sqrt_len,
    Pool.WEIGHTED_MEAN: _weighted_mean,
    Pool.LAST: _last,
}

DENSE_ACTIVATIONS: dict[str, Any] = {
    "Identity": lambda _op, x: x,
    "Tanh": lambda op, x: op.tanh(x),
    "ReLU": lambda op, x: op.relu(x),
    "GELU": lambda op, x: op.gelu(x, "erf"),
    "Sigmoid": lambda op, x: op.sigmoid(x),
}
"""Activations of a Dense module, by the last part of the class name its config.json gives."""
