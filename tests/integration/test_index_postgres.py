"""`vecmill index` on a table in PostgreSQL: built, added to, deleted from, described."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from vecmill.cli.index import index
from vecmill.collection.build import build_collection
from vecmill.core.errors import InputError, SpaceMismatchError
from vecmill.core.types import InputType
from vecmill.data.writers import write_set
from vecmill.embedder.embedder import manifest_of
from vecmill.jobs.sync import sync
from vecmill.testing.fakes import FakeProvider, fake_vector

if TYPE_CHECKING:
    from postgres_server import Postgres


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(index, [str(one) for one in arguments], standalone_mode=False)


def shown(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def write(path: Path, ids: list[str], name: str = "hash") -> Path:
    texts = [f"text of {one}" for one in ids]
    flat = np.concatenate([fake_vector(text) for text in texts])
    table = pa.table(
        {
            "id": ids,
            "text": texts,
            "stars": [len(one) for one in ids],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), 8),
        }
    )
    made = manifest_of(FakeProvider(dimensions=8, name=name).info, InputType.DOCUMENT)
    write_set(path, table.schema, table.to_batches(), replace(made, rows=len(ids), text="text"))
    return path


def test_a_set_becomes_a_table_with_an_index(postgres: Postgres, tmp_path: Path) -> None:
    source = write(tmp_path / "s.parquet", [f"i{number}" for number in range(300)])
    url = postgres.url()
    told = shown("build", source, "-o", url, "--kind", "hnsw", "--param", "M=8")
    assert (told["rows"], told["without_vector"]) == (300, 0)
    assert told["index"].startswith("hnsw float16, ")
    assert told["measured"]["recall"] > 0.9
    found = shown("info", url)
    assert (found["rows"], found["model"], found["text_column"]) == (300, "fake:hash", "text")
    assert found["index"]["described"] == told["index"]
    assert "hnsw float16" in invoke("info", url).stdout
    assert shown("build", url)["index"].startswith("hnsw float16, m 8, ef_construction 200")
    told = shown("build", url, "--param", "ef_construction=60")
    assert told["index"].startswith("hnsw float16, m 8, ef_construction 60")
    assert shown("build", url, "--exact")["index"] == "exact"
    assert shown("info", url)["index"]["exact"]


def test_a_table_that_is_there_is_kept_unless_it_is_to_be_replaced(
    postgres: Postgres, tmp_path: Path
) -> None:
    source = write(tmp_path / "s.parquet", ["a", "b"])
    url = postgres.url()
    build_collection(source, url)
    result = invoke("build", write(tmp_path / "t.parquet", ["c"]), "-o", url)
    assert isinstance(result.exception, InputError)
    assert "--overwrite" in str(result.exception)
    assert shown("info", url)["rows"] == 2
    assert shown("build", tmp_path / "t.parquet", "-o", url, "--overwrite")["rows"] == 1
    assert shown("info", url)["rows"] == 1


def test_rows_are_added_and_deleted(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url()
    shown("build", write(tmp_path / "s.parquet", ["a", "bb", "ccc"]), "-o", url)
    more = write(tmp_path / "more.parquet", ["bb", "dddd"])
    assert isinstance(invoke("add", url, more).exception, InputError)
    assert shown("add", url, more, "--replace") == {"added": 1, "replaced": 1, "without_vector": 0}
    would = {"deleted": 1, "missing": ["zz"], "dry_run": True}
    assert shown("delete", url, "--id", "a", "--id", "zz", "--dry-run") == would
    assert shown("delete", url, "--where", "stars >= 3", "--dry-run")["deleted"] == 2
    assert shown("info", url)["rows"] == 4
    assert shown("delete", url, "--id", "a", "--id", "zz") == {"deleted": 1, "missing": ["zz"]}
    assert shown("delete", url, "--where", "stars >= 4 and id <> 'x'") == {"deleted": 1, "missing": []}
    assert shown("info", url)["rows"] == 2
    other = write(tmp_path / "other.parquet", ["e"], name="other")
    assert isinstance(invoke("add", url, other).exception, SpaceMismatchError)
    assert isinstance(invoke("compact", url).exception, InputError)


@pytest.mark.parametrize(
    "options",
    [("--precision", "int8"), ("--kind", "hnsw", "--shorten", "4", "--not-mrl"), ("--originals", "float16")],
)
def test_what_the_server_has_not_is_refused_before_a_table_is_made(
    postgres: Postgres, tmp_path: Path, options: tuple[str, ...]
) -> None:
    url = postgres.url()
    result = invoke("build", write(tmp_path / "s.parquet", ["a", "b"]), "-o", url, *options)
    assert isinstance(result.exception, InputError)
    assert isinstance(invoke("info", url).exception, InputError)  # there is none


def test_no_message_has_the_password(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.guarded("nothing_there", "wrong-secret-1")
    for arguments in (("info", url), ("build", url), ("add", url, write(tmp_path / "s.parquet", ["a"]))):
        result = invoke(*arguments)
        assert result.exception is not None
        assert "wrong-secret-1" not in str(result.exception) + result.output
    with pytest.raises(InputError) as raised:
        sync(write(tmp_path / "t.parquet", ["a"]), url, id_column="id", text="text")
    assert "wrong-secret-1" not in str(raised.value)


def test_an_id_cut_into_chunks_changes_as_one(postgres: Postgres, tmp_path: Path) -> None:
    def table(*rows: tuple[str, str, int]) -> Path:
        lines = [json.dumps({"sku": a, "title": b, "stars": c}) + "\n" for a, b, c in rows]
        (tmp_path / "t.jsonl").write_text("".join(lines))
        return tmp_path / "t.jsonl"

    url, model = postgres.url(), FakeProvider(dimensions=8, max_tokens=20)
    long = " ".join(f"word{number}" for number in range(45))
    other = " ".join(f"other{number}" for number in range(25))
    first = table(("a", long, 1), ("b", "short", 2), ("c", long, 3))
    sync(first, url, id_column="sku", text="title", long_text="chunks", provider=model)
    assert shown("info", url)["rows"] == 7
    receipt = sync(
        table(("a", other, 1), ("b", "short", 2), ("c", long, 9)), url, id_column="sku", provider=model
    )
    assert (receipt.updated, receipt.columns_updated, receipt.unchanged, receipt.ids_after) == (1, 1, 1, 3)
    from vecmill.index.postgres import PostgresTable

    with PostgresTable.open(url) as there:
        found = [
            (one, chunk, stars)
            for part in there.rows(["chunk", "stars"])
            for one, chunk, stars in zip(part.ids, part.columns["chunk"], part.columns["stars"], strict=True)
        ]
    assert sorted(found) == [("a", 0, 1), ("a", 1, 1), ("b", 0, 2), ("c", 0, 9), ("c", 1, 9), ("c", 2, 9)]
