"""What a change of a collection did, and what is refused before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import Vectors
from vecmill.index.keys import ids_of

_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did.

    Attributes:
        added: Rows whose id was not there.
        replaced: Rows whose id was there: they took the place of all rows it had, or changed them.
        deleted: Rows that are gone.
        missing: Ids that were to be deleted or changed and are not there.
    """

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    missing: tuple[object, ...] = ()


def ensure_rows(count: int, columns: pa.Table | None) -> None:
    """Refuse columns of another length than the ids."""
    if columns is not None and columns.num_rows != count and columns.num_columns:
        raise InputError(f"{count} ids and {columns.num_rows} rows of columns; each item has one of both")


def ensure_float16(vectors: Vectors) -> None:
    """Refuse vectors (n, d) that float16 cannot hold, naming the first."""
    beyond = np.flatnonzero((np.abs(vectors) > _LARGEST_FLOAT16).any(axis=1))
    if len(beyond):
        raise InputError(
            f"vector {beyond[0]} has a component above 65504, beyond float16: keep the originals as float32"
        )


def not_found(keys: pa.Array, found: pa.Array) -> tuple[object, ...]:
    """Return the ids that are not among those found, each once, in their order."""
    return tuple(ids_of(pc.unique(keys.filter(pc.invert(pc.is_in(keys, value_set=found)))).to_pylist()))


def ensure_distinct(keys: pa.Array) -> None:
    """Refuse ids, as `keys_of` made them, that stand twice, naming two rows."""
    counts = pc.value_counts(keys)
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(many):
        return
    key = many.field("values")[0]
    rows = np.flatnonzero(pc.equal(keys, key).to_numpy(zero_copy_only=False))
    raise InputError(
        f"rows {rows[0]} and {rows[1]} have the same id {ids_of([key.as_py()])[0]!r}; an id names one item"
    )


def ensure_width(vectors: Vectors, dimensions: int) -> None:
    """Refuse vectors of another width than the collection's, which another may have replaced meanwhile."""
    if vectors.shape[1] != dimensions:
        raise DimensionMismatchError(
            f"vectors have {vectors.shape[1]} dimensions, the collection {dimensions}; open it again"
        )
