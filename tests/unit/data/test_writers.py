from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vecmill.core.errors import InputError
from vecmill.core.space import Manifest
from vecmill.data.vector_set import read_manifest, read_vectors
from vecmill.data.writers import output_format, write_set

ERROR = pa.struct(
    [
        ("code", pa.string()),
        ("type", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("request_id", pa.string()),
    ]
)
D = 8
TARGETS = ["set.parquet", "set", "set.arrow", "set.jsonl", "set.npy"]


def schema() -> pa.Schema:
    return pa.schema(
        [
            ("review", pa.string()),
            ("id", pa.string()),
            ("file", pa.string()),
            ("row", pa.int64()),
            ("chunks", pa.int32()),
            ("embedding", pa.list_(pa.float32(), D)),
            ("error", ERROR),
        ]
    )


def batches(
    n: int = 10, *, seed: int = 0, window: int = 4, ids: str = "a.csv#{}"
) -> Iterator[pa.RecordBatch]:
    """n rows; row 1 failed, row 2 was skipped."""
    vectors = np.random.default_rng(seed).standard_normal((n, D), dtype=np.float32)
    for start in range(0, n, window):
        rows = range(start, min(n, start + window))
        absent = np.array([row in (1, 2) for row in rows])
        failed = {"code": "empty_text", "type": "InputError", "message": "blank", "attempts": 0}
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([f"text {row} of {seed}" for row in rows]),
                pa.array([ids.format(row) for row in rows]),
                pa.array(["a.csv"] * len(rows)),
                pa.array(list(rows)),
                pa.array([1] * len(rows), pa.int32()),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors[start : start + len(rows)].ravel()), D, mask=pa.array(absent)
                ),
                pa.array([failed if row == 1 else None for row in rows], ERROR),
            ],
            schema=schema(),
        )


def manifest(n: int = 10, *, seed: int = 0) -> Manifest:
    return Manifest(
        "fake:a", f"{seed:032x}", D, normalized=False, rows=n, text="review", plan=f"{seed:08x}" + "ab" * 12
    )


def write(path: Path, n: int = 10, *, seed: int = 0, **options: Any) -> None:
    write_set(path, schema(), batches(n, seed=seed), manifest(n, seed=seed), **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("path", "layout"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.jsonl", "jsonl"),
        ("a.npy", "npy"),
        ("out/", "directory"),
        ("out.parquet/", "directory"),
        ("out", "directory"),
    ],
)
def test_the_path_names_the_layout(path: str, layout: str) -> None:
    assert output_format(path) == layout


def test_an_existing_folder_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    assert output_format(tmp_path / "a.parquet") == "directory"


def test_an_unknown_suffix_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'.xlsx'.*\.jsonl.*\.parquet"):
        output_format("a.xlsx")


@pytest.mark.parametrize("name", TARGETS)
def test_a_set_reads_back_equal(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    expected = np.random.default_rng(0).standard_normal((10, D), dtype=np.float32)
    found = read_vectors(tmp_path / name)
    assert found.rows.tolist() == [0, 3, 4, 5, 6, 7, 8, 9]
    assert found.vectors.tobytes() == expected[found.rows].tobytes()
    assert found.ids == [f"a.csv#{row}" for row in range(10)]
    assert found.manifest == manifest() == read_manifest(tmp_path / name)
    assert (found.total_rows, found.dimensions, found.vector_column) == (10, D, "embedding")


@pytest.mark.parametrize("name", TARGETS)
def test_a_set_without_rows_reads_back(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 0)
    found = read_vectors(tmp_path / name)
    assert found.vectors.shape == (0, D)
    assert found.ids == []


@pytest.mark.parametrize("name", TARGETS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("name", TARGETS)
def test_overwriting_gives_the_bytes_of_a_fresh_set(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "one" / name, 12, seed=1)
    write(tmp_path / "one" / name)
    write(tmp_path / "two" / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
