"""A set read batch by batch is the set read at once, in every format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.core.errors import CorruptFileError, InputError, UnknownNameError
from vecmill.core.types import InputType
from vecmill.data.vector_set import read_vectors, stream_vectors
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import manifest_of
from vecmill.testing.fakes import FakeProvider

ROWS, MISSING = 25, (0, 7, 24)


def write(path: Path) -> Path:
    """Write a set of ours, rows in small groups, some without a vector."""
    absent = np.zeros(ROWS, np.bool_)
    absent[list(MISSING)] = True
    made = np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), 8, mask=pa.array(absent))
    table = pa.table(
        {
            "id": [f"i{number}" for number in range(ROWS)],
            "file": ["t.csv"] * ROWS,
            "row": pa.array(range(ROWS), pa.int64()),
            "text": [f"text {number}" for number in range(ROWS)],
            "embedding": vectors,
        }
    )
    manifest = replace(
        manifest_of(FakeProvider(dimensions=8).info, InputType.DOCUMENT), rows=ROWS, text="text"
    )
    kept = ["id", "text"]
    write_set(path, table.schema, table.to_batches(max_chunksize=6), manifest, columns_json=kept)
    return path


@pytest.mark.parametrize("name", ["s.parquet", "folder", "s.arrow", "s.jsonl", "s.npy"])
@pytest.mark.parametrize("step", [1, 4, 1000])
def test_batches_add_up_to_the_set(tmp_path: Path, name: str, step: int) -> None:
    path = write(tmp_path / name)
    whole, stream = read_vectors(path), stream_vectors(path)
    assert (stream.manifest, stream.dimensions, stream.total_rows) == (whole.manifest, 8, ROWS)
    assert (stream.vector_column, stream.text_column) == (whole.vector_column, whole.text_column)
    assert tuple(stream.schema.names) == whole.columns
    columns = [name for name in ("text",) if name in stream.schema.names]
    batches = list(stream.batches(columns, step=step))
    assert max(len(batch.ids) for batch in batches) <= step
    assert [one for batch in batches for one in batch.ids] == whole.ids
    assert np.concatenate([batch.vectors for batch in batches]).tobytes() == whole.vectors.tobytes()
    starts = np.cumsum([0, *(len(batch.ids) for batch in batches)])
    rows = np.concatenate([batch.rows + start for batch, start in zip(batches, starts, strict=False)])
    assert rows.tolist() == whole.rows.tolist()
    if columns:
        texts = [text for batch in batches for text in batch.columns.column("text").to_pylist()]
        assert texts == whole.texts(range(ROWS))


def test_lists_of_unsaid_length_get_theirs_from_the_first_vector(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text(
        "".join(json.dumps({"name": n, "v": [n, 1.5] if n else None}) + "\n" for n in range(5))
    )
    stream = stream_vectors(tmp_path / "v.jsonl", id_column="name")
    assert (stream.dimensions, stream.manifest) == (2, None)
    batches = list(stream.batches(step=2))
    assert [one for batch in batches for one in batch.ids] == ["0", "1", "2", "3", "4"]
    assert np.concatenate([batch.vectors for batch in batches])[:, 0].tolist() == [1, 2, 3, 4]


def test_rows_that_are_no_vectors_are_named(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0]] * 5 + [[1.0, 2.0, 3.0]]
    pq.write_table(pa.table({"v": vectors}), tmp_path / "wide.parquet")
    with pytest.raises(CorruptFileError, match="row 5 has 3 dimensions"):
        list(stream_vectors(tmp_path / "wide.parquet").batches(step=2))
    array = np.ones((6, 2), np.float32)
    array[3, 1] = np.inf
    np.save(tmp_path / "inf.npy", array)
    with pytest.raises(CorruptFileError, match="row 3"):
        list(stream_vectors(tmp_path / "inf.npy").batches(step=2))
    table = pa.table({"name": ["a", None], "v": [[1.0], [2.0]]})
    pq.write_table(table, tmp_path / "ids.parquet")
    with pytest.raises(InputError, match="row 1 has no id"):
        list(stream_vectors(tmp_path / "ids.parquet", id_column="name").batches(step=1))


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.parquet")
    with pytest.raises(UnknownNameError, match="txt"):
        list(stream_vectors(path).batches(["txt"]))
    with pytest.raises(UnknownNameError):
        stream_vectors(path, id_column="nobody")
    with pytest.raises(UnknownNameError):
        stream_vectors(path, vector_column="nothing")
