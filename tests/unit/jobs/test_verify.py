"""A right set passes, one whose vectors were moved does not; what cannot be known fails none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.core import registry
from vecmill.core.errors import InputError
from vecmill.core.types import InputType
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import run
from vecmill.jobs.verify import Check, verify
from vecmill.models.base import Encoded
from vecmill.testing.fakes import FakeProvider

Make = Callable[..., Path]


def open_fake(name: str, **_: Any) -> FakeProvider:
    """Open the fake model as the registry opens any."""
    return FakeProvider(name=name, max_tokens=20)


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.names("providers"), "fake", f"{__name__}:open_fake")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Embed texts as a job and return the set."""

    def make(texts: list[str], *, model: str = "fake:hash", **options: Any) -> Path:
        pq.write_table(pa.table({"t": texts}), tmp_path / "in.parquet")

        async def job() -> None:
            plan = await make_plan(
                [tmp_path / "in.parquet"],
                tmp_path / "o.parquet",
                JobOptions(text="t", model=model, **options),
            )
            await run(plan)

        asyncio.run(job())
        return tmp_path / "o.parquet"

    return make


def checks(path: Path, **options: Any) -> dict[str, Check]:
    return {check.name: check for check in verify(path, **options).checks}


def give(path: Path, row: int, vector_of: int) -> None:
    """Give a row of a set the vector of another."""
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    column = table.column("embedding").combine_chunks()
    rows = [vector_of if at == row else at for at in range(len(column))]
    at = table.schema.get_field_index("embedding")
    table = table.set_column(at, table.schema.field(at), column.take(pa.array(rows)))
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_whole_set_passes_every_check(make: Make) -> None:
    found = checks(make([f"text {n}" for n in range(30)] + ["text 1"]))
    assert {name: check.ok for name, check in found.items()} == dict.fromkeys(
        ("manifest", "rows", "norms", "nulls", "ids", "order", "doubles", "shared", "recomputed"), True
    )
    assert "1 repeated" in found["doubles"].detail


def test_texts_the_model_cannot_tell_apart_may_share_a_vector(make: Make) -> None:
    texts = [f"{word} {n}" for n in range(20) for word in ("Item", "item", "ITEM", " item ")]
    found = checks(make(texts, model="minilm"))
    assert found["shared"].ok is True
    assert found["shared"].detail == (
        "60 texts share a vector with another; of 60 compared all are the same to the model"
    )
    assert verify(make([*texts, "x"], model="minilm", overwrite=True), sample=0).ok


def test_texts_cut_to_one_beginning_may_share_a_vector(make: Make) -> None:
    texts = [" ".join(["same"] * 30 + [str(n)]) for n in range(5)]
    path = make(texts, long_text="truncate")
    found = checks(path)
    assert found["shared"].ok is True
    assert "4 texts share" in found["shared"].detail
    local = make(
        ["word " * 300 + str(n) for n in range(3)], model="minilm", long_text="truncate", overwrite=True
    )
    assert checks(local)["shared"].ok is True


def test_a_vector_of_another_text_is_noticed(make: Make) -> None:
    path = make([f"a text about {what}" for what in ("cats", "dogs", "tax", "rain")], model="minilm")
    give(path, 3, vector_of=0)
    found = checks(path, sample=0)
    assert found["shared"].ok is False
    assert "'in.parquet#0' and 'in.parquet#3'" in found["shared"].detail
    assert found["recomputed"].ok is None


def test_without_knowing_what_the_model_reads_nothing_is_held_against_the_set(make: Make) -> None:
    path = make(["a", "b", "c"])
    give(path, 2, vector_of=0)
    found = checks(path, sample=0)
    assert found["shared"].ok is None
    assert "1 may differ" in found["shared"].detail
    assert checks(path)["recomputed"].ok is False


def test_without_the_model_nothing_is_held_against_the_set(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(["Item 1", "b", "c"])
    give(path, 2, vector_of=0)
    monkeypatch.delitem(registry.names("providers"), "fake")
    found = checks(path)
    assert found["shared"].ok is None
    assert "no model to ask" in found["shared"].detail
    assert (found["recomputed"].ok, checks(path, sample=0)["recomputed"].ok) == (False, None)


def test_no_more_than_a_sample_is_shown_to_the_model(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make([f"{'x' * 30} {n}" for n in range(700)])
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    at = table.schema.get_field_index("embedding")
    first = table.column("embedding").combine_chunks().take(pa.array([0] * 700))
    pq.write_table(
        table.set_column(at, table.schema.field(at), first).replace_schema_metadata(metadata), path
    )
    shown: list[int] = []
    inner = FakeProvider.encode

    def counting(self: FakeProvider, texts: Any, *, input_type: InputType) -> Encoded:
        shown.append(len(texts))
        return inner(self, texts, input_type=input_type)

    monkeypatch.setattr(FakeProvider, "encode", counting)
    assert checks(path, sample=0)["shared"].detail.startswith("699 texts share a vector with another; of 256")
    assert max(shown) == 512


def test_one_text_with_two_vectors_fails(make: Make) -> None:
    path = make(["same", "other", "same"])
    give(path, 2, vector_of=1)
    found = checks(path, sample=0)
    assert found["doubles"].ok is False
    assert "'in.parquet#0' and 'in.parquet#2' have the same text" in found["doubles"].detail


def test_chunks_of_one_text_are_not_doubles(make: Make) -> None:
    path = make([" ".join(f"w{n % 25}" for n in range(60)), "short"], long_text="chunks")
    assert verify(path).ok


def test_a_set_from_elsewhere_is_looked_at_without_a_model(tmp_path: Path) -> None:
    vectors = pa.array(np.eye(3, 8).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "vector": vectors}), tmp_path / "f.parquet")
    report = verify(tmp_path / "f.parquet")
    assert report.ok
    assert {check.name: check.ok for check in report.checks}["doubles"] is True
    with pytest.raises(InputError, match="without --model"):
        verify(tmp_path / "f.parquet", model="minilm")
