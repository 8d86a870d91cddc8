"""A collection that is there: sets added, items deleted, compacted, described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.build import build_collection
from vecmill.collection.upkeep import (
    add_set,
    compact,
    delete_items,
    describe,
    ensure_shortens,
    manifest_of_target,
    rebuild_index,
)
from vecmill.core.errors import InputError, SpaceMismatchError, UnknownNameError
from vecmill.core.space import Manifest
from vecmill.core.types import InputType, Precision
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import manifest_of
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store
from vecmill.testing.fakes import FakeProvider, fake_vector


def manifest(rows: int, name: str = "hash") -> Manifest:
    made = manifest_of(FakeProvider(dimensions=8, name=name).info, InputType.DOCUMENT)
    return replace(made, rows=rows, text="text")


def write(path: Path, texts: dict[str, str], name: str = "hash") -> Path:
    vectors = np.stack([fake_vector(text) for text in texts.values()])
    table = pa.table(
        {
            "id": list(texts),
            "text": list(texts.values()),
            "length": [len(text) for text in texts.values()],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8),
        }
    )
    write_set(path, table.schema, table.to_batches(), manifest(len(texts), name))
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    texts = {f"i{number}": "x" * (number + 1) for number in range(50)}
    build_collection(write(tmp_path / "s.parquet", texts), tmp_path / "c")
    return tmp_path / "c"


def texts_of(path: Path) -> dict[object, object]:
    now = Store.open(path).snapshot()
    at = np.flatnonzero(now.live)
    return dict(zip(now.ids(at), [record["text"] for record in now.records(at, ["text"])], strict=True))


def test_a_set_is_added_and_what_is_there_is_refused_before_anything_is(there: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.parquet", {"j1": "a", "j2": "b"})
    change, without = add_set(there, more)
    assert (change.added, change.replaced, without) == (2, 0, 0)
    assert len(Store.open(there)) == 52
    again = write(tmp_path / "again.parquet", {"k1": "c", "i7": "other", "j2": "b"})
    with pytest.raises(InputError, match=r"id 'i7' and 1 more .* nothing was added"):
        add_set(there, again)
    assert len(Store.open(there)) == 52
    change, without = add_set(there, again, replace=True)
    assert without == 0
    assert (change.added, change.replaced) == (1, 2)
    assert texts_of(there)["i7"] == "other"
    assert len(Store.open(there)) == 53


def test_vectors_of_another_model_or_of_none_are_refused(there: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatchError, match="fake:other"):
        add_set(there, write(tmp_path / "other.parquet", {"a": "b"}, name="other"))
    np.save(tmp_path / "plain.npy", np.ones((2, 8), np.float32))
    with pytest.raises(SpaceMismatchError, match="does not say which model"):
        add_set(there, tmp_path / "plain.npy")
    assert len(Store.open(there)) == 50


def test_a_collection_of_nobodys_vectors_takes_any_of_its_width(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 8), np.float32))
    table = pa.table({"name": ["x"], "v": [[0.5] * 8]})
    pq.write_table(table, tmp_path / "b.parquet")
    build_collection(tmp_path / "a.npy", tmp_path / "c")
    assert add_set(tmp_path / "c", tmp_path / "b.parquet", id_column="name")[0].added == 1
    assert manifest_of_target(tmp_path / "c") is None


def test_items_are_deleted_by_id_and_by_filter(there: Path) -> None:
    change = delete_items(there, ids=["i0", "i1", "nobody"])
    assert (change.deleted, change.missing) == (2, ("nobody",))
    change = delete_items(there, where="length > 30 and length <= 40")
    assert change.deleted == 10
    assert len(Store.open(there)) == 38
    assert delete_items(there, where="length = 35").deleted == 0
    with pytest.raises(UnknownNameError, match="lenght"):
        delete_items(there, where="lenght = 3")
    with pytest.raises(InputError, match="nothing to delete"):
        delete_items(there)


def test_a_text_means_a_number_only_where_no_text_is_named_so(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "c", dimensions=2)
    store.add([1, "1", 2, -3], np.ones((4, 2), np.float32))
    assert delete_items(tmp_path / "c", ids=["1", "-3", "9"]).missing == ("9",)
    now = Store.open(tmp_path / "c").snapshot()
    assert now.ids(np.flatnonzero(now.live)) == [1, 2]
    odd = ["02", "-0", "+2", " 2", "2.0", "9" * 30, str(1 << 63), "9" * 5000]
    change = delete_items(tmp_path / "c", ids=odd)
    assert (change.deleted, change.missing) == (0, tuple(odd)), "2 is not what anybody named"


def test_compacting_gives_back_the_space_and_keeps_the_items(there: Path) -> None:
    delete_items(there, where="length > 10")
    kept = texts_of(there)
    assert describe(there)["deleted"] == 40
    done = compact(there)
    assert (done.rows_removed, done.complete) == (40, True)
    assert describe(there)["deleted"] == 0
    assert texts_of(there) == kept
    assert compact(there).rows_removed == 0


def test_the_index_is_built_anew_and_described(there: Path) -> None:
    assert describe(there)["index"]["exact"]
    described, measured = rebuild_index(there, IndexSettings(precision=Precision.INT8))
    assert "int8" in described
    assert measured is not None
    found = describe(there)
    assert found["index"]["described"] == described
    assert found["index"]["measured"] == measured.to_json()
    assert not found["index"]["stale"]
    assert rebuild_index(there, IndexSettings()) == ("exact", None)
    assert describe(there)["index"]["exact"]


def test_the_description_adds_up(there: Path) -> None:
    found = describe(there)
    assert (found["rows"], found["dimensions"], found["metric"]) == (50, 8, "cosine")
    assert found["payload_bytes"] == 50 * 8 * 4
    assert all(0 < segment["overhead_bytes"] < 4096 for segment in found["segments"])
    assert sum(segment["rows"] for segment in found["segments"]) == 50
    assert (found["model"], found["text_column"]) == ("fake:hash", "text")
    assert "probe" not in found["manifest"]


def test_only_vectors_of_models_made_for_it_are_shortened() -> None:
    made = manifest(1)
    ensure_shortens(made, None, "s.parquet")
    ensure_shortens(replace(made, model="openai:text-embedding-3-small"), 256, "s.parquet")
    ensure_shortens(replace(made, model="azure:text-embedding-3-large"), 256, "s.parquet")
    for model in ("openai:text-embedding-ada-002", "local:all-MiniLM-L6-v2", "azure:mine"):
        with pytest.raises(InputError, match=r"--not-mrl"):
            ensure_shortens(replace(made, model=model), 256, "s.parquet")
    with pytest.raises(InputError, match="nobody knows"):
        ensure_shortens(None, 256, "s.parquet")
