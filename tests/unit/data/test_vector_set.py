from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError, UnknownNameError
from vecmill.core.space import Manifest
from vecmill.data import writers
from vecmill.data.vector_set import read_columns, read_manifest, read_vectors
from vecmill.data.writers import write_set

D = 4


def own_set(path: Path, n: int = 10, *, seed: int = 0, layout: str | None = None, **fields: Any) -> Manifest:
    """Write a set of n rows in row groups of 3; row 1 has no vector."""
    vectors = np.random.default_rng(seed).standard_normal((n, D), dtype=np.float32)
    schema = pa.schema(
        [
            ("body", pa.string()),
            ("id", pa.string()),
            ("file", pa.string()),
            ("row", pa.int64()),
            ("embedding", pa.list_(pa.float32(), D)),
        ]
    )
    mask = np.arange(n) == 1
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), D, mask=pa.array(mask))
    table = pa.table(
        [[f"text {i}" for i in range(n)], [f"a#{i}" for i in range(n)], ["a"] * n, list(range(n)), column],
        schema=schema,
    )
    manifest = Manifest(
        "fake:a", "0" * 32, D, normalized=False, rows=n, text="body", plan="ab" * 16, **fields
    )
    batches = [batch for start in range(0, n, 3) for batch in table.slice(start, 3).to_batches()]
    write_set(path, schema, batches, manifest, format=layout)
    return manifest


@pytest.mark.parametrize("suffix", ["arrow", "jsonl", "npy", "parquet"])
def test_the_same_vectors_in_every_foreign_format(data_dir: Path, suffix: str) -> None:
    titles = (data_dir / "formats" / "films256.titles.txt").read_text("utf-8").splitlines()
    expected = np.load(data_dir / "formats" / "films256.npy")
    found = read_vectors(data_dir / "formats" / f"films256.{suffix}")
    assert found.manifest is None
    assert found.vectors.dtype == np.float32
    assert found.vectors.flags.c_contiguous
    assert found.vectors.tobytes() == expected.tobytes()
    assert found.rows.tolist() == list(range(62))
    assert found.ids == [str(row) for row in range(62)]
    if suffix != "npy":
        assert [record["title"] for record in found.records(range(62))] == titles
        by_title = read_vectors(data_dir / "formats" / f"films256.{suffix}", id_column="title")
        assert by_title.ids == titles


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("peliculas_text-embedding-3-small-256.json", (62, 256)),
        ("peliculas_text-embedding-3-small-1536.json", (62, 1536)),
        ("peliculas_text-embedding-ada-002.json", (62, 1536)),
        ("images_ai-vision.json", (37, 1024)),
    ],
)
def test_an_object_of_id_and_numbers_opens_under_its_keys(
    data_dir: Path, name: str, shape: tuple[int, int]
) -> None:
    found = read_vectors(data_dir / "vectors" / name)
    raw = json.loads((data_dir / "vectors" / name).read_text("utf-8"))
    assert found.vectors.shape == shape
    assert found.ids == list(raw)
    assert np.array_equal(found.vectors, np.array(list(raw.values()), dtype=np.float32))


def test_vectors_of_another_kind_open_with_their_texts(data_dir: Path) -> None:
    found = read_vectors(data_dir / "vectors" / "sotu_chunks_4096d.parquet")
    assert found.vectors.shape == (90, 4096)
    assert (found.vector_column, found.text_column) == ("vector", "text")
    assert (found.texts([0])[0] or "").startswith("Madam Speaker")


@pytest.mark.parametrize("dimensions", [256, 1536])
def test_vectors_as_json_in_a_csv_cell_open_by_name(data_dir: Path, dimensions: int) -> None:
    path = data_dir / "reviews" / f"embedded_reviews_10rows_{dimensions}.csv"
    with pytest.raises(InputError, match=r"no column of vectors.*ada_embedding.*vector_column"):
        read_vectors(path)
    found = read_vectors(path, vector_column="ada_embedding")
    assert found.vectors.shape == (10, dimensions)
    assert found.records([0], ["Summary"]) == [{"Summary": "Good Quality Dog Food"}]


def test_records_come_in_the_order_asked_from_any_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 6)
    for name in ("a.parquet", "a", "a.arrow"):
        own_set(tmp_path / name, 20)
        found = read_vectors(tmp_path / name)
        rows = [19, 0, 7, 7, 6, 1]
        assert found.texts(rows) == [f"text {row}" for row in rows]
        assert found.records([5], ["row", "id"]) == [{"row": 5, "id": "a#5"}]
        assert found.columns == ("body", "id", "file", "row")
        assert set(found.records([3])[0]) == {"body", "id", "file", "row"}
        assert found.records([]) == []
        with pytest.raises(InputError, match="row 20 is outside"):
            found.records([20])
        with pytest.raises(InputError, match="row -1 is outside"):
            found.records([-1])
        with pytest.raises(UnknownNameError, match="'bodi'; did you mean 'body'"):
            found.records([0], ["bodi"])
        assert len(list(read_columns(tmp_path / name, ["row", "body"]))) >= 1
        rows_read = [v for b in read_columns(tmp_path / name, ["row"]) for v in b.column(0).to_pylist()]
        assert rows_read == list(range(20))


def test_a_row_without_vector_keeps_its_place(tmp_path: Path) -> None:
    own_set(tmp_path / "a.parquet")
    found = read_vectors(tmp_path / "a.parquet")
    assert found.total_rows == len(found) == 10
    assert found.rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(found.ids) == 10


def test_the_manifest_speaks_for_its_own_column_of_vectors_only(tmp_path: Path) -> None:
    own = pa.array([[1.0] * D, None], pa.list_(pa.float32(), D))
    table = pa.table({"body": ["x", "y"], "id": ["i", "j"], "theirs": [[1.0, 2.0]] * 2, "embedding": own})
    manifest = Manifest("m", "0" * 32, D, normalized=True, rows=2, text="body")
    for name in ("a.parquet", "a", "a.arrow"):
        write_set(tmp_path / name, table.schema, table.to_batches(), manifest)
        found = read_vectors(tmp_path / name, vector_column="theirs")
        assert found.manifest is None
        assert (found.dimensions, found.ids, found.text_column) == (2, ["i", "j"], "body")
        assert found.columns == ("body", "id", "embedding")
        assert read_vectors(tmp_path / name, vector_column="embedding").manifest == manifest
    nulls = table.set_column(2, "theirs", pa.nulls(2, pa.list_(pa.float32(), 3)))
    write_set(tmp_path / "b.parquet", nulls.schema, nulls.to_batches(), manifest)
    assert read_vectors(tmp_path / "b.parquet", vector_column="theirs").vectors.shape == (0, 3)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), str(path))
    return path


def test_of_several_columns_the_one_with_the_usual_name_is_taken(tmp_path: Path) -> None:
    floats = pa.array([[1.0, 2.0]])
    path = parquet(tmp_path / "a.parquet", other=floats, embeddings=floats, tags=pa.array([[1, 2]]))
    assert read_vectors(path).vector_column == "embeddings"
    assert read_vectors(path, vector_column="other").vector_column == "other"
    both = parquet(tmp_path / "b.parquet", vector=floats, embedding=floats, x=floats)
    with pytest.raises(InputError, match=r"several columns of vectors: vector, embedding, x; name one"):
        read_vectors(both)
    with pytest.raises(UnknownNameError, match="'vectors'; did you mean 'vector'"):
        read_vectors(both, vector_column="vectors")


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float16()),
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float64(), 2),
        pa.fixed_shape_tensor(pa.float32(), [2]),
    ],
    ids=str,
)
def test_every_kind_of_float_list_becomes_float32(tmp_path: Path, kind: pa.DataType) -> None:
    storage = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    values = pa.array([[1.0, 2.0], None, [3.0, 0.5]], pa.list_(pa.float64())).cast(storage)
    column = pa.ExtensionArray.from_storage(kind, values) if isinstance(kind, pa.ExtensionType) else values
    table = pa.table({"v": column}).slice(0, 3)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 2))
        writer.write_table(table.slice(2, 1))
    found = read_vectors(tmp_path / "a.arrow")
    assert found.vectors.tolist() == [[1.0, 2.0], [3.0, 0.5]]
    assert found.rows.tolist() == [0, 2]


def test_whole_numbers_are_vectors_only_by_name(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", tags=pa.array([[1, 2], [3, 4]]))
    with pytest.raises(InputError, match="no column of vectors"):
        read_vectors(path)
    assert read_vectors(path, vector_column="tags").vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [1.0]], "row 1 has 1 dimensions, those before it 2"),
        ([[1.0, 2.0], None, [1.0, None]], "row 2: a component is null"),
        ([[1.0, 2.0], None, [1.0, float("nan")]], "row 2: NaN or infinity"),
        ([[1.0, float("-inf")]], "row 0: NaN or infinity"),
        ([[1.0, 1e300]], "row 0: NaN or infinity"),
        ([None, []], "row 1: the vector is empty"),
    ],
)
def test_numbers_that_are_no_vector_name_their_row(tmp_path: Path, values: list[Any], message: str) -> None:
    path = parquet(tmp_path / "a.parquet", v=pa.array(values, pa.list_(pa.float64())))
    with pytest.raises(CorruptFileError, match=message) as caught:
        read_vectors(path)
    assert str(path) in str(caught.value)


def test_finite_vectors_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", v=pa.array([[3e38, 3e38]], pa.list_(pa.float32())))
    assert read_vectors(path).vectors.shape == (1, 2)


def test_widths_that_change_between_row_groups_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"v": pa.array([[1.0, 2.0]] * 3 + [[1.0, 2.0, 3.0]])})
    pq.write_table(table, str(path), row_group_size=3)
    with pytest.raises(CorruptFileError, match="row 3 has 3 dimensions, those before it 2"):
        read_vectors(path)


def test_json_lines_of_many_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": 7, "embedding": [1, 0], "n": 1}\n\n'
        '{"embedding": [0.5, 1], "n": "x"}\n{"id": 9, "embedding": null}\n'
    )
    found = read_vectors(path)
    assert found.vectors.tolist() == [[1, 0], [0.5, 1]]
    assert found.records([0, 1, 2], ["id", "n"]) == [
        {"id": 7, "n": "1"},
        {"id": None, "n": "x"},
        {"id": 9, "n": None},
    ]
    with pytest.raises(InputError, match="row 1 has no id in column 'id'"):
        read_vectors(path, id_column="id")
    path.write_text('{"embedding": [0.5, 1]}\n{"embedding": [0.5, NaN]}\n')
    with pytest.raises(CorruptFileError, match="row 1: NaN"):
        read_vectors(path)
    path.write_text('{"embedding": [0.5, 1]}\n{"embedding": [0.5, ')
    with pytest.raises(CorruptFileError, match="line 2 is not JSON"):
        read_vectors(path)


def test_array_of_objects_and_cells_that_are_not_lists(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"t": "x", "v": [0.5, 1]}, {"t": "y", "v": [1.5, 2]}]')
    assert read_vectors(tmp_path / "a.json").vectors.tolist() == [[0.5, 1], [1.5, 2]]
    (tmp_path / "a.csv").write_text('t,v\nx,"[1, 2]"\ny,\nz,oops\n')
    with pytest.raises(CorruptFileError, match=r"'v', row 2 is not a JSON list"):
        read_vectors(tmp_path / "a.csv", vector_column="v")


def test_nothing_there_and_nothing_known_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_vectors(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "absent.jsonl")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"not read from '.xlsx'; known: .*\.parquet"):
        read_vectors(tmp_path / "a.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no Parquet file"):
        read_vectors(tmp_path / "empty")
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(InputError, match=r"int64 of shape \(3,\)"):
        read_vectors(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match=r"b\.npy"):
        read_vectors(tmp_path / "b.npy")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.npy", "a.jsonl"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    own_set(tmp_path / name, 40)
    whole = (tmp_path / name).read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(CorruptFileError, match=name):
            read_vectors(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.npy", "a.jsonl", "a"])
def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path, name: str) -> None:
    own_set(tmp_path / name, 40)
    target = next((tmp_path / name).glob("part-*")) if name == "a" else tmp_path / name
    whole = target.read_bytes()
    sound = read_vectors(tmp_path / name)
    random = np.random.default_rng(1)
    refused = 0
    for at in random.choice(len(whole), 300, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        target.write_bytes(damaged)
        try:
            found = read_vectors(tmp_path / name)
        except (CorruptFileError, FormatVersionError, InputError):
            refused += 1
        else:
            assert found.vectors.tobytes() == sound.vectors.tobytes(), at
            assert found.ids == sound.ids, at
    assert refused == 300 or name == "a.parquet"
    assert refused > 50  # the others struck statistics, or columns that were not read


def index(folder: Path) -> Any:
    return json.loads((folder / "_vecmill.json").read_bytes())


def test_parts_that_disagree_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 6)
    part = "part-abababab-00001.parquet"

    def spoiled(change: Callable[[Path], None]) -> str:
        folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        own_set(folder, 20)
        change(folder)
        with pytest.raises(CorruptFileError) as caught:
            read_vectors(folder)
        return str(caught.value)

    def other_manifest(folder: Path) -> None:
        own_set(tmp_path / "other", 20, precision="int8")
        values = index(folder)
        (folder / part).write_bytes((tmp_path / "other" / part).read_bytes())
        values["parts"][1]["digest"] = index(tmp_path / "other")["parts"][1]["digest"]
        (folder / "_vecmill.json").write_text(json.dumps(values))

    def wrong_rows(folder: Path) -> None:
        values = index(folder)
        values["parts"][1]["rows"] -= 1
        values["parts"][0]["rows"] += 1
        (folder / "_vecmill.json").write_text(json.dumps(values))

    def wrong_total(folder: Path) -> None:
        values = index(folder)
        del values["parts"][1]
        (folder / "_vecmill.json").write_text(json.dumps(values))

    assert f"the part {part} is missing" in spoiled(lambda folder: (folder / part).unlink())
    assert f"{part} is not the part" in spoiled(lambda folder: (folder / part).write_bytes(b"PAR1"))
    assert f"{part} belongs to another set" in spoiled(other_manifest)
    assert "rows, _vecmill.json says" in spoiled(wrong_rows)
    assert "do not add up" in spoiled(wrong_total)
    assert "did not come to its end" in spoiled(lambda folder: (folder / "_vecmill.json").unlink())


def test_a_part_alone_says_that_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 6)
    own_set(tmp_path / "set", 20)
    with pytest.raises(CorruptFileError, match="open the directory"):
        read_vectors(tmp_path / "set" / "part-abababab-00001.parquet")


def test_folders_from_elsewhere_open_if_their_columns_agree(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "b.parquet", v=pa.array([[3.0, 4.0]]))
    parquet(folder / "a.parquet", v=pa.array([[1.0, 2.0]]))
    assert read_vectors(folder).vectors.tolist() == [[1, 2], [3, 4]]
    assert read_manifest(folder) is None
    parquet(folder / "c.parquet", w=pa.array([[3.0, 4.0]]))
    with pytest.raises(InputError, match=r"c\.parquet has other columns"):
        read_vectors(folder)
    (folder / "c.parquet").unlink()
    own_set(folder / "c.parquet")
    with pytest.raises(InputError, match="several vector sets"):
        read_vectors(folder)


@pytest.mark.parametrize("name", ["a.jsonl", "a.npy"])
def test_a_changed_data_file_does_not_pass_for_the_set(tmp_path: Path, name: str) -> None:
    own_set(tmp_path / name)
    own_set(tmp_path / f"other.{name}", seed=1)
    (tmp_path / name).write_bytes((tmp_path / f"other.{name}").read_bytes())
    with pytest.raises(CorruptFileError, match="remove the sidecar"):
        read_vectors(tmp_path / name)
    (tmp_path / f"{name}.vecmill.json").unlink()
    if name == "a.jsonl":
        assert read_vectors(tmp_path / name).manifest is None
    else:
        with pytest.raises(CorruptFileError, match="row 1: NaN"):
            read_vectors(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a", "a.arrow", "a.npy"])
def test_later_format_versions_are_refused(tmp_path: Path, name: str) -> None:
    own_set(tmp_path / name, format_version=2)
    with pytest.raises(FormatVersionError, match="version 2"):
        read_manifest(tmp_path / name)
    with pytest.raises(FormatVersionError, match="version 2"):
        read_vectors(tmp_path / name)


def test_a_manifest_is_given_only_for_the_content_it_speaks_of(tmp_path: Path) -> None:
    for name in ("a.parquet", "a", "a.arrow", "a.jsonl", "a.npy"):
        manifest = own_set(tmp_path / name)
        assert read_manifest(tmp_path / name) == manifest
    (tmp_path / "a.npy").write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match="was written for"):
        read_manifest(tmp_path / "a.npy")


def test_the_manifest_of_a_directory_is_read_only_if_its_parts_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "PART_ROWS", 6)
    own_set(tmp_path / "a", 20)
    part = tmp_path / "a" / "part-abababab-00001.parquet"
    whole = part.read_bytes()
    part.unlink()
    with pytest.raises(CorruptFileError, match=f"the part {part.name} is missing"):
        read_manifest(tmp_path / "a")
    part.write_bytes(whole[:-50])
    with pytest.raises(CorruptFileError, match=part.name):
        read_manifest(tmp_path / "a")
    own_set(tmp_path / "b", 7)
    part.write_bytes((tmp_path / "b" / part.name).read_bytes())
    with pytest.raises(CorruptFileError, match=part.name):
        read_manifest(tmp_path / "a")


@pytest.mark.parametrize("layout", ["parquet", "arrow", "npy", "jsonl"])
@pytest.mark.parametrize("name", ["o.dat", "o"])
def test_a_set_under_any_name_opens_by_its_first_bytes(tmp_path: Path, layout: str, name: str) -> None:
    manifest = own_set(tmp_path / name, layout=layout)
    assert read_manifest(tmp_path / name) == manifest
    found = read_vectors(tmp_path / name)
    assert (found.manifest, len(found), found.dimensions) == (manifest, 10, D)
    assert found.ids[3] == "a#3"


def test_a_long_list_of_strings_is_not_read_as_vectors(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", names=pa.array([["a"], ["b"]]))
    with pytest.raises(InputError, match="not vectors"):
        read_vectors(path, vector_column="names")


def test_sets_with_columns_of_any_type_keep_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([0, 1], pa.timestamp("us", tz="UTC")),
            "tags": pa.array([["a"], None]),
            "kind": pc.dictionary_encode(pa.array(["x", "y"])),
            "nothing": pa.nulls(2),
            "embedding": pa.array([[1.0] * D, None], pa.list_(pa.float32(), D)),
        }
    )
    manifest = Manifest("m", "0" * 32, D, normalized=False, rows=2)
    for name in ("a.parquet", "a", "a.arrow"):
        write_set(tmp_path / name, table.schema, table.to_batches(), manifest)
        records = read_vectors(tmp_path / name).records([0, 1])
        assert records == table.drop(["embedding"]).to_pylist()
