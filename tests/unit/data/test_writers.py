from __future__ import annotations

import dataclasses
import datetime
import decimal
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.core import durable
from vecmill.core.errors import CorruptFileError, InputError, WriteError
from vecmill.core.space import Manifest
from vecmill.data import writers
from vecmill.data.vector_set import VectorSet, read_manifest, read_vectors
from vecmill.data.writers import check_target, finish_set, output_format, write_set
from vecmill.testing.crash import recording, replay

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


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("name", TARGETS)
def test_a_power_cut_leaves_the_old_set_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, existed: bool
) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 4)
    disk = tmp_path / "disk"
    disk.mkdir()
    if existed:
        write(disk / name, 12, seed=1)
    with recording(disk) as record:
        write(disk / name)
        record.mark("published")
    for state, folder in replay(record, tmp_path / "states"):
        found = opened(folder / name)
        assert found is not None or not (existed or state.marks), state.description
        if found is not None:
            new = len(found) == 10
            random = np.random.default_rng(0 if new else 1)
            expected = random.standard_normal((len(found), D), dtype=np.float32)
            assert found.manifest == (manifest() if new else manifest(12, seed=1)), state.description
            assert found.vectors.tobytes() == expected[found.rows].tobytes(), state.description
            assert new or (existed and not state.marks), state.description
        write(folder / name)
        assert tree(folder) == tree(disk), state.description


def opened(path: Path) -> VectorSet | None:
    """The set at a path, None where it is absent or says that writing it was cut short."""
    try:
        return read_vectors(path)
    except (InputError, CorruptFileError) as error:
        if any(words in str(error) for words in ("does not exist", "holds no", "did not come to its end")):
            return None
        raise


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("name", TARGETS)
def test_a_set_that_came_into_place_before_a_power_cut_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, existed: bool
) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 4)
    disk = tmp_path / "disk"
    disk.mkdir()
    if existed:
        write(disk / name, 12, seed=1)
    with recording(disk) as record:
        write(disk / name)
    unfinished = 0
    for state, folder in replay(record, tmp_path / "states"):
        found = opened(folder / name)
        if found is None or len(found) != 10:
            continue
        unfinished += tree(folder) != tree(disk)
        finish_set(folder / name, output_format(name))
        assert tree(folder) == tree(disk), state.description
        with durable.watching(Failing(0)):  # nothing is left to do
            finish_set(folder / name, output_format(name))
    assert unfinished or not existed or name in ("set.parquet", "set.arrow")


def test_nothing_is_finished_where_no_set_is(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "part-00000001-00000.parquet").write_bytes(b"part")
    for name in ("set", "absent", "absent.jsonl", "absent.parquet"):
        finish_set(tmp_path / name, output_format(tmp_path / name))
    assert tree(tmp_path) == {"set/part-00000001-00000.parquet": b"part"}


@pytest.mark.parametrize("name", ["set.jsonl", "set.npy"])
def test_a_foreign_file_stays_readable_until_ours_is_in_place(tmp_path: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if name.endswith("npy"):
        np.save(disk / name, np.ones((3, D), dtype=np.float32))
    else:
        (disk / name).write_bytes(orjson.dumps({"embeddings": [1.0] * D}) + b"\n")
    with recording(disk) as record:
        write(disk / name)
    kinds = set()
    for state, folder in replay(record, tmp_path / "states"):
        found = read_vectors(folder / name)
        kinds.add(found.manifest)
        assert (found.manifest is None) == (found.vectors[0] == 1).all(), state.description
    assert kinds == {None, manifest()}


class Failing:
    """Let one operation of a run fail with a full disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def before(self, operation: str, path: Path) -> None:
        self.left -= 1
        if self.left == -1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def after(self, operation: str, path: Path) -> None:
        pass


@pytest.mark.parametrize("name", TARGETS)
def test_a_disk_that_fails_at_any_operation_leaves_one_whole_set(tmp_path: Path, name: str) -> None:
    for at in range(100):
        folder = tmp_path / str(at)
        folder.mkdir()
        write(folder / name, 12, seed=1)
        try:
            with durable.watching(Failing(at)):
                write(folder / name)
        except WriteError:
            found = read_vectors(folder / name)
            assert found.manifest in (manifest(), manifest(12, seed=1))
            assert len(found) == found.manifest.rows
            write(folder / name)
        else:
            break
    assert 3 < at < 99
    assert tree(folder).keys() == tree(tmp_path / "0").keys()


_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from vecmill.core.errors import WriteError
from vecmill.core.space import Manifest
from vecmill.data.writers import write_set
n, d = 4096, 64
schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), d))])
vectors = np.random.default_rng(5).standard_normal((n, d), dtype=np.float32)
batch = pa.record_batch([pa.array([str(i) for i in range(n)]),
    pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), d)], schema=schema)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_set(Path(sys.argv[1]), schema, [batch], Manifest("m", "0" * 32, d, True, rows=n))
except WriteError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
@pytest.mark.parametrize("name", TARGETS)
def test_a_real_full_disk_is_a_write_error_and_the_old_set_opens(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    before = tree(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / name)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 7, done.stderr
    assert str(tmp_path / name) in done.stdout
    assert tree(tmp_path) == before


def test_rows_that_are_not_the_manifests_are_refused(tmp_path: Path) -> None:
    for told in (9, 11):
        with pytest.raises(InputError, match=f"says {told} rows"):
            write_set(tmp_path / "a.parquet", schema(), batches(10), manifest(told))
    assert tree(tmp_path) == {}


def test_a_schema_without_the_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'embedding' must be fixed_size_list"):
        write_set(tmp_path / "a.parquet", pa.schema([("id", pa.string())]), [], manifest(0))
    with pytest.raises(InputError, match=rf"\[{D + 1}\], but is fixed_size_list"):
        write_set(tmp_path / "a.parquet", schema(), [], Manifest("m", "0" * 32, D + 1, False))
    with pytest.raises(InputError, match="unknown format 'xml'"):
        write(tmp_path / "a.parquet", format="xml")


def target(path: Path, layout: str | None = None, *columns: pa.Field, vector: str = "embedding") -> None:
    fields = [*columns, pa.field(vector, pa.list_(pa.float32(), D))]
    check_target(path, pa.schema(fields), layout or output_format(path), vector=vector)


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_target_is_accepted_and_untouched(tmp_path: Path, name: str) -> None:
    target(tmp_path / "new" / "deep" / name)
    write(tmp_path / name)
    before = tree(tmp_path)
    target(tmp_path / name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "layout", "error", "message"),
    [
        (
            "a.parquet",
            "xml",
            InputError,
            "unknown format 'xml'; known: parquet, directory, arrow, ",
        ),
        ("full", "directory", InputError, "holds 'notes.txt', which belongs to no vector set"),
        ("full", "parquet", InputError, "is a folder, and the set would be a file"),
        ("file", "directory", InputError, "is a file, and the set would be a folder"),
        ("pipe", "npy", InputError, "is not a regular file"),
        ("file/deep/a.npy", None, WriteError, "file is a file; choose another folder"),
        ("odd.npy", None, InputError, r"odd\.npy\.vecmill\.json is a folder"),
        ("locked/a.npy", None, WriteError, "you may not write in"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    layout: str | None,
    error: type[Exception],
    message: str,
) -> None:
    for folder in ("full", "odd.npy.vecmill.json", "locked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "notes.txt").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    os.mkfifo(tmp_path / "pipe")
    allowed = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name != "locked" and allowed(p, mode))
    with pytest.raises(error, match=message):
        target(tmp_path / name, layout)
    with pytest.raises(error, match=message):
        write(tmp_path / name, format=layout)
    (tmp_path / "pipe").unlink()
    assert tree(tmp_path) == {"full/notes.txt": b"mine", "file": b"mine"}


def test_columns_that_do_not_fit_the_format_are_refused_before_any_work(tmp_path: Path) -> None:
    embeddings = pa.field("embeddings", pa.string())
    with pytest.raises(InputError, match="'embeddings' clashes"):
        target(tmp_path / "a.jsonl", None, embeddings)
    target(tmp_path / "a.jsonl", vector="embeddings")
    target(tmp_path / "a.npy", None, embeddings)
    odd = pa.field("odd", pa.month_day_nano_interval())
    for name in ("a.parquet", "set"):
        with pytest.raises(InputError, match="'odd' is month_day_nano_interval, which Parquet does not hold"):
            target(tmp_path / name, None, pa.field("fine", pa.string()), odd)
    target(tmp_path / "a.arrow", None, odd)
    lists = pa.schema([("embedding", pa.list_(pa.float32()))])
    with pytest.raises(InputError, match=r"'embedding' must be fixed_size_list.*but is list"):
        check_target(tmp_path / "a.npy", lists, "npy", vector="embedding")


def test_json_lines_do_not_clash_with_a_column_they_drop(tmp_path: Path) -> None:
    vectors = pa.array([[0.5] * D], pa.list_(pa.float32(), D))
    batch = pa.record_batch({"embeddings": ["x"], "embedding": vectors})
    write_set(tmp_path / "a.jsonl", batch.schema, [batch], manifest(1))
    assert orjson.loads((tmp_path / "a.jsonl").read_bytes()) == {"embeddings": [0.5] * D}


@pytest.mark.parametrize("vector", ["embedding", "my.vector"])
def test_a_column_named_as_if_inside_the_vectors_is_written(tmp_path: Path, vector: str) -> None:
    vectors = pa.array([[0.5] * D], pa.list_(pa.float32(), D))
    batch = pa.record_batch({f"{vector}.note": ["x"], f"{vector}.n": [1], vector: vectors})
    told = dataclasses.replace(manifest(1), vector=vector)
    for name in ("a.parquet", "set"):
        write_set(tmp_path / name, batch.schema, [batch], told)
        found = read_vectors(tmp_path / name)
        assert found.records([0]) == [{f"{vector}.note": "x", f"{vector}.n": 1}]
        assert found.vectors.tolist() == [[0.5] * D]
    chunk = pq.ParquetFile(str(tmp_path / "a.parquet")).metadata.row_group(0).column(2)
    assert "BYTE_STREAM_SPLIT" in chunk.encodings


def test_parquet_stores_vectors_split_by_byte_and_checks_its_pages(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    footer = pq.ParquetFile(str(tmp_path / "a.parquet")).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [4, 4, 2]
    leaves = {footer.row_group(0).column(i).path_in_schema: i for i in range(footer.num_columns)}
    vector = footer.row_group(0).column(leaves["embedding.list.element"])
    assert "BYTE_STREAM_SPLIT" in vector.encodings
    assert vector.compression == "ZSTD"
    assert not vector.has_dictionary_page
    assert "RLE_DICTIONARY" in footer.row_group(0).column(leaves["review"]).encodings
    assert json.loads(footer.metadata[b"vecmill"])["rows"] == 10


def test_other_tools_read_the_parquet(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert frame["embedding"][0].dtype == np.float32
    assert frame["embedding"][1] is None
    assert frame["error"][1]["code"] == "empty_text"
    assert polars.read_parquet(tmp_path / "a.parquet").schema["embedding"] == polars.Array(polars.Float32, D)


def test_a_directory_is_cut_into_parts_that_name_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 8)
    write(tmp_path / "set", seed=7)
    parts = ["part-00000007-00000.parquet", "part-00000007-00001.parquet"]
    assert sorted(tree(tmp_path / "set")) == ["_vecmill.json", *parts]
    index = json.loads((tmp_path / "set" / "_vecmill.json").read_bytes())
    assert [(part["name"], part["rows"]) for part in index["parts"]] == [(parts[0], 8), (parts[1], 2)]
    assert index["parts"][0]["digest"] == durable.digest_file(tmp_path / "set" / parts[0])
    for part in parts:
        assert b"vecmill" in pq.read_metadata(str(tmp_path / "set" / part)).metadata


def test_parts_of_an_older_plan_go_and_those_of_the_same_plan_are_not_written_over(tmp_path: Path) -> None:
    write(tmp_path / "set", seed=1)
    write(tmp_path / "set", seed=2)
    assert sorted(tree(tmp_path / "set")) == ["_vecmill.json", "part-00000002-00000.parquet"]
    write(tmp_path / "set", seed=2)
    assert sorted(tree(tmp_path / "set")) == ["_vecmill.json", "part-00000002-00000.parquet"]
    write_set(tmp_path / "set", schema(), batches(seed=3), manifest(seed=2))
    assert "part-00000002-00000.parquet" not in tree(tmp_path / "set")
    assert len(tree(tmp_path / "set")) == 2
    assert len(read_vectors(tmp_path / "set")) == 10


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_set_can_be_overwritten(tmp_path: Path, name: str) -> None:
    for damaged in (".", "_vecmill.json", "part-00000001-00000.parquet"):
        write(tmp_path / name, seed=1)
        path = tmp_path / name / damaged
        if path.is_file():
            path.write_bytes(b"{")
        elif not path.exists():
            continue
        elif path.parent.is_file() or (tmp_path / name).is_file():
            (tmp_path / name).write_bytes(b"{")
        write(tmp_path / name)
        assert read_vectors(tmp_path / name).manifest == manifest()


def test_a_folder_with_other_things_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt'"):
        write(tmp_path)
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_json_lines_hold_what_was_asked_and_errors(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", columns_json=["id", "review"])
    lines = [orjson.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    assert list(lines[0]) == ["file", "row", "id", "review", "embeddings"]
    assert list(lines[1]) == ["file", "row", "id", "review", "embeddings", "error"]
    assert lines[1]["embeddings"] is None
    assert lines[1]["error"]["code"] == "empty_text"
    assert lines[2]["embeddings"] is None
    assert "error" not in lines[2]
    write(tmp_path / "b.jsonl")
    assert list(orjson.loads((tmp_path / "b.jsonl").read_bytes().splitlines()[0])) == [
        "file",
        "row",
        "embeddings",
    ]


def test_json_lines_numbers_are_the_shortest_that_read_back(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    first = (tmp_path / "a.jsonl").read_bytes().splitlines()[0].decode()
    numbers = first[first.index("[") + 1 : first.index("]")].split(",")
    expected = np.random.default_rng(0).standard_normal((10, D), dtype=np.float32)[0]
    assert numbers == [np.format_float_positional(x, unique=True) for x in expected]


def test_json_lines_refuse_columns_they_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown column 'reviews'; did you mean 'review'"):
        write(tmp_path / "a.jsonl", columns_json=["reviews"])
    with pytest.raises(InputError, match="clashes"):
        write(tmp_path / "a.jsonl", columns_json=["embeddings"])


def test_values_json_has_no_word_for_are_written_for_people(tmp_path: Path) -> None:
    columns = {
        "raw": pa.array([b"\x00\xff"]),
        "price": pa.array([decimal.Decimal("1.50")]),
        "day": pa.array([datetime.date(2026, 1, 2)]),
        "embedding": pa.array([[0.5] * D], pa.list_(pa.float32(), D)),
    }
    batch = pa.record_batch(columns)
    write_set(tmp_path / "a.jsonl", batch.schema, [batch], manifest(1), columns_json=["raw", "price", "day"])
    line = orjson.loads((tmp_path / "a.jsonl").read_bytes())
    assert (line["raw"], line["price"], line["day"]) == ("AP8=", "1.50", "2026-01-02")


def test_npy_opens_with_numpy_and_its_sidecar_names_the_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.npy")
    array = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert array.shape == (10, D)
    assert array.dtype == np.float32
    assert np.flatnonzero(np.isnan(array).any(axis=1)).tolist() == [1, 2]
    sidecar = json.loads((tmp_path / "a.npy.vecmill.json").read_bytes())
    assert sidecar["missing"] == [1, 2]
    assert sidecar["sources"] == [["a.csv", 0, 10]]
    assert "ids" not in sidecar
    assert "previous" not in sidecar


def test_npy_lists_ids_that_were_given(tmp_path: Path) -> None:
    for name, asked in (("a.npy", ["id"]), ("b.npy", [])):
        own = batches(ids="sku-{}")
        write_set(tmp_path / name, schema(), own, manifest(), columns_json=asked)
        assert json.loads((tmp_path / f"{name}.vecmill.json").read_bytes())["ids"][3] == "sku-3"
        assert read_vectors(tmp_path / name).ids[3] == "sku-3"
