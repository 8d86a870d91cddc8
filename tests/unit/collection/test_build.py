"""A collection built from a set holds what the set holds, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection import build
from vecmill.collection.build import build_collection, set_rows
from vecmill.core import durable
from vecmill.core.errors import InputError, StorageError, UnknownNameError, WriteError
from vecmill.core.space import Manifest
from vecmill.core.types import InputType, Vectors
from vecmill.data.vector_set import stream_vectors
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import manifest_of
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store, is_store
from vecmill.testing.fakes import FakeProvider

ROWS = 30


def manifest(**given: Any) -> Manifest:
    made = manifest_of(FakeProvider(dimensions=8).info, InputType.DOCUMENT)
    return replace(made, **{"rows": ROWS, "text": "text", **given})


def vectors(count: int = ROWS, seed: int = 3) -> Vectors:
    made = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    unit: Vectors = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def write(path: Path, ids: list[str], *, missing: tuple[int, ...] = (), group: int = 7, **given: Any) -> Path:
    """Write a set as a job would, its rows in small groups."""
    count = len(ids)
    mask = np.zeros(count, np.bool_)
    mask[list(missing)] = True
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors(count).ravel()), 8, mask=pa.array(mask))
    table = pa.table(
        {
            "text": [f"text {number}" for number in range(count)],
            "stars": pa.array(range(count), pa.int32()),
            "id": ids,
            "file": ["in.csv"] * count,
            "row": pa.array(range(count), pa.int64()),
            "embedding": column,
            "error": pa.nulls(count, pa.string()),
        }
    )
    write_set(path, table.schema, table.to_batches(max_chunksize=group), manifest(rows=count, **given))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "s.parquet", [f"i{number}" for number in range(ROWS)], missing=(4, 11))


def test_a_collection_holds_the_sets_rows_in_order(made: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    built = build_collection(made, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    assert (built.rows, built.without_vector, built.dimensions, built.metric) == (28, 2, 8, "cosine")
    assert (built.described, built.measured) == (None, None)
    assert seen[-1] == (30, 30)
    now = Store.open(tmp_path / "c").snapshot()
    kept = [number for number in range(ROWS) if number not in (4, 11)]
    at = np.arange(len(now))
    assert now.ids(at) == [f"i{number}" for number in kept]
    assert now.fetch(at).tobytes() == vectors()[kept].tobytes()
    assert now.columns == ("text", "stars")
    assert [record["stars"] for record in now.records(at, ["stars"])] == kept
    assert now.catalogue.manifest == manifest()
    assert now.catalogue.text_column == "text"


def test_columns_metric_and_originals_are_as_asked(made: Path, tmp_path: Path) -> None:
    build_collection(made, tmp_path / "c", columns=["row"], metric="dot", originals="float16")
    now = Store.open(tmp_path / "c").snapshot()
    assert (now.columns, now.catalogue.text_column) == (("row",), None)
    assert (now.catalogue.metric, now.catalogue.precision) == ("dot", "float16")
    build_collection(made, tmp_path / "none", columns=[])
    assert Store.open(tmp_path / "none").snapshot().columns == ()
    with pytest.raises(UnknownNameError, match="star"):
        build_collection(made, tmp_path / "d", columns=["star"])


def test_the_index_is_built_and_measured(made: Path, tmp_path: Path) -> None:
    built = build_collection(made, tmp_path / "c", settings=IndexSettings(precision="int8"))  # type: ignore[arg-type]  # as people write it
    assert built.described is not None
    assert "int8" in built.described
    assert built.measured is not None
    assert Store.open(tmp_path / "c").catalogue.index is not None
    exact = build_collection(made, tmp_path / "d", settings=IndexSettings())
    assert (exact.described, exact.measured) == (None, None)


def test_ids_stand_twice_only_in_a_set_of_chunks(tmp_path: Path) -> None:
    ids = [f"i{number // 5}" for number in range(ROWS)]
    with pytest.raises(InputError, match="same id 'i0'"):
        build_collection(write(tmp_path / "s.parquet", ids), tmp_path / "c")
    assert not (tmp_path / "c").exists()
    built = build_collection(write(tmp_path / "t.parquet", ids, long_text="chunks"), tmp_path / "c")
    assert built.rows == ROWS
    assert len(Store.open(tmp_path / "c").snapshot().find(["i3"])) == 5


def test_rows_of_one_id_come_together(tmp_path: Path) -> None:
    ids = [f"i{number // 5}" for number in range(ROWS)]
    path = write(tmp_path / "s.parquet", ids, missing=(9,), long_text="chunks")
    parts = list(set_rows(stream_vectors(path), ["stars"], step=4))
    assert len(parts) > 3
    for one, next_ in pairwise(parts):
        assert one.ids[-1] != next_.ids[0]
    kept = [number for number in range(ROWS) if number != 9]
    assert [one for part in parts for one in part.ids] == [ids[number] for number in kept]
    assert np.concatenate([part.vectors for part in parts]).tobytes() == vectors()[kept].tobytes()
    assert [row for part in parts for row in part.columns["stars"].to_pylist()] == kept
    assert sum(part.read for part in parts) == ROWS


def test_files_from_elsewhere_become_collections(tmp_path: Path) -> None:
    table = pa.table({"name": ["x", "y", "z"], "v": [[1.0, 2.0], [3.0, 4.0], None]})
    pq.write_table(table, tmp_path / "theirs.parquet")
    built = build_collection(tmp_path / "theirs.parquet", tmp_path / "c", id_column="name")
    assert (built.rows, built.without_vector, built.dimensions) == (2, 1, 2)
    now = Store.open(tmp_path / "c").snapshot()
    assert now.ids(np.arange(2)) == ["x", "y"]
    assert now.catalogue.manifest is None
    np.save(tmp_path / "plain.npy", vectors())
    assert build_collection(tmp_path / "plain.npy", tmp_path / "d").rows == ROWS
    assert Store.open(tmp_path / "d").snapshot().ids(np.arange(2)) == ["0", "1"]


def test_a_set_without_any_vector_of_unknown_width_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": pa.array([None], pa.list_(pa.float32()))}), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no vector"):
        build_collection(tmp_path / "empty.parquet", tmp_path / "c")


def test_a_damaged_row_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    rows = vectors()
    rows[17, 3] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(StorageError, match="row 17"):
        build_collection(tmp_path / "bad.npy", tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npy"]


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "c"
    build_collection(made, target, columns=["stars"])
    with pytest.raises(InputError, match="--overwrite"):
        build_collection(made, target)
    assert Store.open(target).snapshot().columns == ("stars",)
    build_collection(made, target, overwrite=True)
    assert Store.open(target).snapshot().columns == ("text", "stars")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(WriteError, match="no collection"):
        build_collection(made, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "letter.txt").exists()
    (tmp_path / "empty").mkdir()
    assert build_collection(made, tmp_path / "empty").rows == 28


class Cut(BaseException):
    pass


class Cutter:
    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def before(self, operation: str, path: Path) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise Cut

    def after(self, operation: str, path: Path) -> None:
        pass


def cut_builds(made: Path, folder: Path, **given: Any) -> Iterator[Path]:
    """Build again and again, each time cut off one operation later, until it comes to its end."""
    moment = 1
    while True:
        target = folder / str(moment) / "c"
        if given.get("overwrite"):
            build_collection(made, target, columns=["stars"])
        try:
            with durable.watching(Cutter(moment)):
                build_collection(made, target, **given)
            break
        except Cut:
            yield target
        moment += 1


def test_a_build_cut_off_at_any_operation_leaves_no_half_collection(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BATCH_BYTES", 0)
    cuts = 0
    for target in cut_builds(made, tmp_path):
        cuts += 1
        if is_store(target):  # it was renamed before the cut
            assert len(Store.open(target)) == 28
        else:
            assert not target.exists()
            assert build_collection(made, target).rows == 28
        assert [path.name for path in target.parent.iterdir()] == ["c"]
    assert cuts > 20


def test_an_old_collection_stays_until_the_new_one_is_whole(made: Path, tmp_path: Path) -> None:
    old = new = 0
    for target in cut_builds(made, tmp_path, overwrite=True):
        columns = Store.open(target).snapshot().columns
        old, new = old + (columns == ("stars",)), new + (columns != ("stars",))
        build_collection(made, target, overwrite=True)
        assert [path.name for path in target.parent.iterdir()] == ["c"]
    assert old > 10
    assert new


def test_a_build_that_dies_between_its_renames_loses_neither_collection(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "c"
    build_collection(made, target, columns=["stars"])
    target.rename(tmp_path / f".c.old.0123456789ab{durable.TEMP_SUFFIX}")
    with pytest.raises(InputError, match="already"):
        build_collection(made, target)
    assert Store.open(target).snapshot().columns == ("stars",)
    target.rename(tmp_path / f".c.old.0123456789ab{durable.TEMP_SUFFIX}")
    build_collection(made, target, overwrite=True)
    assert Store.open(target).snapshot().columns == ("text", "stars")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", made.name]


def test_replacing_through_a_link_replaces_what_it_points_to(made: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "far" / "c")
    build_collection(made, tmp_path / "link", columns=["stars"])
    (tmp_path / "far" / "neighbour").write_text("mine")
    build_collection(made, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert Store.open(tmp_path / "far" / "c").snapshot().columns == ("text", "stars")
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["c", "neighbour"]
