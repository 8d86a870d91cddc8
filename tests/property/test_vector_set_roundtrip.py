"""Whatever is written reads back equal, however it was cut into windows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vecmill.core.space import Manifest
from vecmill.data.vector_set import read_vectors
from vecmill.data.writers import write_set

SETS = st.tuples(st.integers(0, 12), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
        arrays.arrays(np.bool_, shape[0]),
        st.lists(st.text(max_size=8), min_size=shape[0], max_size=shape[0]),
        st.integers(1, 6),
    )
)


@pytest.mark.parametrize("name", ["a.parquet", "a", "a.arrow", "a.jsonl", "a.npy"])
@settings(max_examples=25, deadline=None)
@given(made=SETS)
def test_a_set_reads_back_whatever_its_windows(
    name: str, made: tuple[np.ndarray, np.ndarray, list[str], int]
) -> None:
    vectors, absent, ids, window = made
    n, d = vectors.shape
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), d, mask=pa.array(absent))
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": column})
    batches = [batch for at in range(0, n, window) for batch in table.slice(at, window).to_batches()]
    manifest = Manifest("m", "0" * 32, d, normalized=False, rows=n)
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder) / name, table.schema, batches, manifest, columns_json=["id"])
        found = read_vectors(Path(folder) / name)
    assert found.ids == ids
    assert found.rows.tolist() == np.flatnonzero(~absent).tolist()
    assert found.vectors.tobytes() == vectors[~absent].tobytes()
    assert found.dimensions == d
