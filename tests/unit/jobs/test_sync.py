"""A table synced into sets and collections on a fake model: the target ends as if made anew, for less."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vecmill.collection.build import build_collection
from vecmill.core import durable
from vecmill.core.config import load_settings
from vecmill.core.errors import InputError, SpaceMismatchError, StorageError, UnknownNameError
from vecmill.core.events import Event, Notice
from vecmill.data.set_files import open_set_file
from vecmill.data.vector_set import read_manifest, read_vectors
from vecmill.embedder.channel import Channel
from vecmill.index.settings import IndexSettings
from vecmill.index.storage import Store
from vecmill.index.store_index import build_index
from vecmill.jobs import windows
from vecmill.jobs.plan import JobOptions, make_plan
from vecmill.jobs.run import run
from vecmill.jobs.store import list_jobs
from vecmill.jobs.sync import sync_async
from vecmill.jobs.sync_plan import SyncReceipt, prepare_sync
from vecmill.testing.fakes import FakeProvider, fake_vector

SETS = ("o.parquet", "folder", "o.arrow")
TARGETS = (*SETS, "o.collection")

Row = tuple[str, str, str]
ROWS: list[Row] = [(f"p{number}", f"text {number}", str(number % 5)) for number in range(11)]
CHANGED: list[Row] = [
    ("new1", "a new first row", "1"),
    *[
        (one, f"another {text}" if one in ("p1", "p8") else text, "9" if one == "p5" else stars)
        for one, text, stars in ROWS
        if one != "p3"
    ],
    ("new2", "text 4", "3"),  # a text that is there already
]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 4)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Iterable[Row]], Path]:
    def write(rows: Iterable[Row]) -> Path:
        path = tmp_path / "in" / "table.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("sku", "title", "stars"), *rows])
        return path

    return write


Write = Callable[[Iterable[Row]], Path]


def provider(**given: Any) -> FakeProvider:
    return FakeProvider(**{"dimensions": 8, "max_tokens": 20, **given})


def sync(
    table: Path,
    target: Path,
    model: FakeProvider | None = None,
    listen: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> SyncReceipt:
    """Sync with the probe known, so that calls are texts of the table alone."""

    async def both() -> SyncReceipt:
        await Channel.to(provider(), load_settings()).probe()
        given = {"id_column": "sku", **options}
        return await sync_async(table, target, provider=model or provider(), listen=listen, **given)

    receipt = asyncio.run(both())
    assert receipt.balances
    return receipt


def embed(table: Path, output: Path, **options: Any) -> None:
    async def go() -> None:
        plan = await make_plan([table], output, JobOptions(**options), provider=provider())
        await run(plan)

    asyncio.run(go())


def texts_of(model: FakeProvider) -> list[str]:
    return [text for call in model.calls for text in call]


def held(target: Path) -> dict[str, tuple[str, int, bytes]]:
    """Return what a target holds: text, stars and the vector's bytes by id."""
    if target.suffix == ".collection":
        now = Store.open(target).snapshot()
        at = np.flatnonzero(now.live)
        records, vectors, ids = now.records(at, ["title", "stars"]), now.fetch(at), now.ids(at)
    else:
        found = read_vectors(target)
        records, vectors = found.records(found.rows.tolist(), ["title", "stars"]), found.vectors
        ids = [found.ids[row] for row in found.rows]
    assert len(set(ids)) == len(ids)
    rows = zip(ids, records, vectors, strict=True)
    return {str(one): (record["title"], record["stars"], vector.tobytes()) for one, record, vector in rows}


def expected(rows: Iterable[Row]) -> dict[str, tuple[str, int, bytes]]:
    return {one: (text, int(stars), fake_vector(text).tobytes()) for one, text, stars in rows}


def leftovers(folder: Path) -> list[str]:
    ours = (".receipt.json", ".parquet", ".arrow", "folder", ".collection", "in")
    return [path.name for path in folder.iterdir() if not path.name.endswith(ours)]


@pytest.mark.parametrize("name", TARGETS)
def test_only_what_changed_is_embedded_and_the_target_is_as_the_table(
    write: Write, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    first = sync(write(ROWS), target, text="title")
    assert (first.state, first.added, first.ids_after) == ("complete", 11, 11)
    assert held(target) == expected(ROWS)
    model = provider()
    receipt = sync(write(CHANGED), target, model)
    assert sorted(texts_of(model)) == ["a new first row", "another text 1", "another text 8", "text 4"]
    counts = (receipt.added, receipt.updated, receipt.columns_updated, receipt.unchanged, receipt.deleted)
    assert counts == (2, 2, 1, 7, 1)
    assert receipt.rows == len(CHANGED)
    assert receipt.ids_after == len(held(target)) == 12
    assert held(target) == expected(CHANGED)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_is_up_to_date_is_left_alone(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    model = provider()
    receipt = sync(write(ROWS), target, model)
    assert (receipt.state, receipt.unchanged, model.calls) == ("up to date", 11, [])
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.parent.name != "in"}
    assert {path for path in after if path.is_file() and after[path] != before[path]} == set()


def test_a_column_no_collection_can_keep_is_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,sku,title\n1,a,one cat\n2,b,two dogs\n")
    model, target = provider(), tmp_path / "o.collection"
    with pytest.raises(InputError, match="a column cannot be named 'id'"):
        sync(table, target, model, text="title", output_column={"id": "name"})
    assert model.calls == []
    assert not target.exists()


@pytest.mark.parametrize("name", SETS)
def test_a_synced_set_equals_one_embedded_anew_byte_for_byte(write: Write, tmp_path: Path, name: str) -> None:
    sync(write(ROWS), tmp_path / name, text="title")
    sync(write(CHANGED), tmp_path / name)
    embed(write(CHANGED), tmp_path / "anew" / name, text="title", id_column="sku")

    def files(path: Path) -> dict[str, bytes]:
        found = [path] if path.is_file() else sorted(path.iterdir())
        return {one.name: one.read_bytes() for one in found}

    if name == "o.arrow":  # equal rows; Arrow may lay out nulls in several ways
        assert (
            pa.ipc.open_file(tmp_path / name).read_all()
            == pa.ipc.open_file(tmp_path / "anew" / name).read_all()
        )
    else:
        assert files(tmp_path / name) == files(tmp_path / "anew" / name)


@pytest.mark.parametrize("name", TARGETS)
def test_texts_of_a_template_are_compared_as_they_were_made(write: Write, tmp_path: Path, name: str) -> None:
    template = "{title}, {stars} stars"
    target = tmp_path / name
    sync(write(ROWS), target, template=template)
    model = provider()
    receipt = sync(write([*ROWS[:4], ("p4", "text 4", "5"), *ROWS[5:]]), target, model)
    assert (receipt.updated, receipt.unchanged) == (1, 10)
    assert texts_of(model) == ["text 4, 5 stars"]
    if name != "o.collection":
        assert read_vectors(target).texts([4]) == ["text 4, 5 stars"]


@pytest.mark.parametrize("name", TARGETS)
def test_ids_that_are_gone_stay_where_that_is_wanted(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    model = provider()
    receipt = sync(write(ROWS[:2]), target, model, delete=False)
    assert (receipt.deleted, receipt.kept, receipt.unchanged) == (0, 9, 2)
    assert model.calls == []
    receipt = sync(write([ROWS[1], ("p20", "text 20", "1")]), target, delete=False)
    assert (receipt.added, receipt.kept, receipt.ids_after) == (1, 10, 12)
    assert held(target) == expected([*ROWS, ("p20", "text 20", "1")])


@pytest.mark.parametrize("name", TARGETS)
def test_most_of_a_target_is_deleted_only_where_that_is_meant(
    write: Write, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    before = held(target)
    with pytest.raises(InputError, match=r"6 of the 11 ids .* --delete-most"):
        sync(write(ROWS[:5]), target)
    assert held(target) == before
    assert sync(write(ROWS[:6]), target).deleted == 5  # less than half
    assert sync(write(ROWS[:1]), target, delete_most=True).deleted == 5
    assert held(target) == expected(ROWS[:1])


@pytest.mark.parametrize("name", TARGETS)
def test_a_table_without_rows_empties_a_target_only_where_that_is_meant(
    write: Write, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    with pytest.raises(InputError, match=r"11 of the 11 ids .* --delete-most"):
        sync(write([]), target)
    assert held(target) == expected(ROWS)
    receipt = sync(write([]), target, delete_most=True)
    assert (receipt.deleted, receipt.ids_after) == (11, 0)
    assert not held(target)


@pytest.mark.parametrize("name", TARGETS)
def test_a_sync_that_was_refused_leaves_nothing_behind(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    with pytest.raises(InputError, match="--delete-most"):
        sync(write([*CHANGED[:1], ROWS[0]]), target)

    async def declined() -> None:
        await Channel.to(provider(), load_settings()).probe()
        async with prepare_sync([write(CHANGED)], target, provider=provider(), id_column="sku") as plan:
            assert plan.work is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(declined())
    assert leftovers(tmp_path) == []
    assert sync(write(CHANGED), target).added == 2


def test_columns_keep_the_names_a_set_has(write: Write, tmp_path: Path) -> None:
    target, names = tmp_path / "o.parquet", {"embedding": "vec"}
    sync(write(ROWS), target, text="title", output_column=names)
    assert sync(write(ROWS), target, output_column=names).state == "up to date"
    with pytest.raises(InputError, match=r"'vec', not 'other': leave out --output-column"):
        sync(write(ROWS), target, output_column={"embedding": "other"})


@pytest.mark.parametrize("name", TARGETS)
def test_two_rows_of_one_id_are_refused_by_name(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    with pytest.raises(InputError, match=r"id 'p0' stands twice: table.csv row 0 and table.csv row 11"):
        sync(write([*ROWS, ROWS[0]]), target)
    assert held(target) == expected(ROWS)


def test_rows_without_text_stay_in_a_set_and_leave_a_collection(write: Write, tmp_path: Path) -> None:
    def table(texts: list[str | None]) -> Path:
        path = tmp_path / "in" / "table.parquet"
        path.parent.mkdir(exist_ok=True)
        ids = [f"p{number}" for number in range(len(texts))]
        pq.write_table(pa.table({"sku": ids, "title": pa.array(texts, pa.string())}), path)
        return path

    for name in ("o.parquet", "o.collection"):
        target = tmp_path / name
        first = sync(table(["a", None, "b", "c"]), target, text="title")
        second = sync(table([None, None, "b", "ü"]), target)
        again = sync(table([None, None, "b", "ü"]), target)
        assert again.state == "up to date"
        if name == "o.parquet":
            assert (first.added, first.skipped, second.updated, second.deleted) == (4, 0, 2, 0)
            found = read_vectors(target)
            assert (found.ids, found.rows.tolist()) == (["p0", "p1", "p2", "p3"], [2, 3])
        else:
            assert (first.added, first.skipped) == (3, 1)
            assert (second.updated, second.deleted, second.skipped, second.unchanged) == (1, 1, 2, 1)
            now = Store.open(target).snapshot()
            assert sorted(map(str, now.ids(np.flatnonzero(now.live)))) == ["p2", "p3"]


@pytest.mark.parametrize("name", TARGETS)
def test_an_id_cut_into_chunks_changes_as_one(write: Write, tmp_path: Path, name: str) -> None:
    long = " ".join(f"word{number}" for number in range(45))
    other = " ".join(f"other{number}" for number in range(25))
    target = tmp_path / name
    sync(
        write([("a", long, "1"), ("b", "short", "2"), ("c", long, "3")]),
        target,
        text="title",
        long_text="chunks",
    )

    def rows() -> list[tuple[str, int, str, int]]:
        if name == "o.collection":
            now = Store.open(target).snapshot()
            at = np.flatnonzero(now.live)
            records = [
                {"id": one, **r}
                for one, r in zip(now.ids(at), now.records(at, ["chunk", "title", "stars"]), strict=True)
            ]
        else:
            found = read_vectors(target)
            records = [
                {"id": one, **record}
                for one, record in zip(
                    found.ids, found.records(range(len(found)), ["chunk", "title", "stars"]), strict=True
                )
            ]
        return sorted((r["id"], r["chunk"], r["title"], r["stars"]) for r in records)

    assert [row[:2] for row in rows()] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("c", 0),
        ("c", 1),
        ("c", 2),
    ]
    model = provider()
    receipt = sync(write([("a", other, "1"), ("b", "short", "2"), ("c", long, "9")]), target, model)
    assert (receipt.updated, receipt.columns_updated, receipt.unchanged) == (1, 1, 1)
    assert len(texts_of(model)) == 2
    wanted = [("a", chunk, other, 1) for chunk in range(2)] + [("b", 0, "short", 2)]
    assert rows() == wanted + [("c", chunk, long, 9) for chunk in range(3)]


@pytest.mark.parametrize("name", TARGETS)
def test_columns_that_come_and_go_are_named(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    table = tmp_path / "in" / "table.csv"
    lines = [f"{one},{text},red" for one, text, _ in ROWS]
    table.write_text("\n".join(["sku,title,colour", *lines]) + "\n")

    async def planned() -> tuple[tuple[str, ...], tuple[str, ...]]:
        async with prepare_sync([table], target, provider=provider(), id_column="sku") as plan:
            return plan.new_columns, plan.lost_columns

    assert asyncio.run(planned()) == (("colour",), ("stars",))
    model = provider()
    assert sync(table, target, model).columns_updated == 11
    assert model.calls == []
    columns = (
        Store.open(target).snapshot().columns if name == "o.collection" else read_vectors(target).columns
    )
    assert "colour" in columns
    assert ("stars" in columns) == (name == "o.collection")  # a collection keeps what it has


@pytest.mark.parametrize("name", TARGETS)
def test_a_column_of_another_type_but_equal_values_changes_no_row(
    write: Write, tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title")
    model = provider()
    with_half = [*ROWS[:10], ("p10", "text 10", "2.5")]
    receipt = sync(write(with_half), target, model)
    assert (receipt.columns_updated, receipt.unchanged, model.calls) == (1, 10, [])
    assert held(target)["p10"][1] == 2.5
    assert held(target)["p1"][1] == 1


def test_ids_of_a_collection_that_are_numbers_stay_numbers(write: Write, tmp_path: Path) -> None:
    sync(write([("1", "one", "1")]), tmp_path / "text.collection", text="title")
    made = Store.open(tmp_path / "text.collection").catalogue
    store = Store.create(tmp_path / "o.collection", dimensions=8, manifest=made.manifest, text_column="title")
    vectors = np.stack([fake_vector(text) for text in ("one", "two", "three")])
    columns = {"sku": [1, 2, 3], "title": ["one", "two", "three"], "stars": [1, 2, 3]}
    store.add([1, 2, 3], vectors, pa.table(columns))
    table = write([("1", "one", "1"), ("2", "zwei", "2"), ("4", "four", "4")])
    receipt = sync(table, tmp_path / "o.collection")
    assert (receipt.added, receipt.updated, receipt.unchanged, receipt.deleted) == (1, 1, 1, 1)
    now = Store.open(tmp_path / "o.collection").snapshot()
    assert sorted(now.ids(np.flatnonzero(now.live)), key=str) == [1, 2, 4]
    with pytest.raises(InputError, match="whole numbers"):
        sync(write([("one", "one", "1")]), tmp_path / "o.collection", columns=("title", "stars"))


@pytest.mark.parametrize("name", TARGETS)
def test_another_model_template_or_text_is_refused(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    table = write(ROWS)
    sync(table, target, text="title")
    others: list[dict[str, Any]] = [{"text": "sku"}, {"template": "{title}"}]
    for given in [*others, {"long_text": "truncate"}, {"input_type": "query"}]:
        with pytest.raises(SpaceMismatchError):
            sync(table, target, **given)
    with pytest.raises(SpaceMismatchError, match="fake:other"):
        sync(table, target, provider(name="other"))
    with pytest.raises(SpaceMismatchError, match="fake:hash"):
        sync(table, target, provider(dimensions=4))


@pytest.mark.parametrize("name", ["o.parquet", "o.collection"])
def test_rows_that_fail_are_told_and_tried_again(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    sync(write(ROWS), target, text="title", long_text="error")
    too_long = "many " * 30
    changed = [("p0", too_long, "0"), *ROWS[1:], ("p11", too_long, "1"), ("p12", "text 12", "2")]
    receipt = sync(write(changed), target)
    assert (receipt.state, receipt.exit_code) == ("failed rows", 3)
    assert (receipt.failed, receipt.failed_new, receipt.added, receipt.unchanged) == (2, 1, 1, 10)
    assert {error["id"] for error in receipt.errors} == {"p0", "p11"}
    if name == "o.parquet":
        assert receipt.ids_after == len(read_vectors(target)) == 13
        assert pq.read_table(target)["error"].to_pylist()[0]["code"] == "text_too_long"
        assert sync(write(changed), target).state == "up to date"  # it would fail again
    else:
        assert receipt.ids_after == 12
        assert held(target)["p0"][0] == "text 0"  # as it was
        assert sync(write(changed), target).failed == 2
    mended = [("p0", "short", "0"), *ROWS[1:], ("p11", "short", "1"), ("p12", "text 12", "2")]
    assert sync(write(mended), target).exit_code == 0
    assert held(target) == expected(mended)


def test_a_row_that_failed_for_a_passing_reason_is_tried_again(write: Write, tmp_path: Path) -> None:
    target = tmp_path / "o.parquet"
    sync(write(ROWS), target, text="title")
    found = pq.read_table(target)
    error = {"code": "rate_limited", "type": "RateLimitError", "message": "busy", "attempts": 3}
    errors = pa.array([None, {**error, "request_id": None}, *[None] * 9], found.schema.field("error").type)
    spoilt = found.set_column(found.schema.get_field_index("error"), "error", errors)
    manifest = read_manifest(target)
    assert manifest is not None
    from vecmill.data.writers import write_set

    schema = open_set_file(target).schema.remove_metadata()
    batches = [pa.RecordBatch.from_arrays([c.combine_chunks() for c in spoilt.columns], schema=schema)]
    write_set(target, schema, batches, manifest)
    receipt = sync(write(ROWS), target)
    assert (receipt.updated, receipt.unchanged) == (1, 10)
    assert pq.read_table(target)["error"].null_count == 11


@pytest.mark.parametrize("name", TARGETS)
def test_a_dry_run_changes_and_leaves_nothing(write: Write, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    table = write(ROWS)
    sync(table, target, text="title")
    write(CHANGED)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    model = provider(usd_per_million_tokens=1.0)

    async def dry() -> tuple[SyncReceipt, Any]:
        options: dict[str, Any] = {"id_column": "sku", "ask": False}
        async with prepare_sync([table], target, provider=model, **options) as plan:
            return plan.receipt(), await plan.estimate()

    receipt, cost = asyncio.run(dry())
    assert (receipt.state, receipt.added, receipt.updated, receipt.deleted) == ("planned", 2, 2, 1)
    assert (cost.send_texts, cost.send_tokens, model.calls) == (4, 12, [])
    assert cost.usd == pytest.approx(12e-6)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("name", TARGETS)
def test_a_sync_cut_off_at_any_durable_operation_is_finished_by_the_next(
    write: Write, tmp_path: Path, name: str, slow: bool
) -> None:
    class Cut(BaseException):
        pass

    class Cutter:
        def __init__(self, at: int) -> None:
            self.at, self.seen = at, 0

        def before(self, operation: str, path: Path) -> None:
            if "jobs.sqlite" not in path.name:
                self.seen += 1
            if self.seen == self.at:
                raise Cut

        def after(self, operation: str, path: Path) -> None:
            pass

    moment, step = 1, 1 if slow else 7
    while True:
        target = tmp_path / str(moment) / name
        target.parent.mkdir()
        sync(write(ROWS), target, text="title")
        table, cutter = write(CHANGED), Cutter(moment)
        try:
            with durable.watching(cutter):
                sync(table, target)
            break
        except Cut:
            pass
        receipt = sync(table, target)
        assert receipt.ids_after == 12
        assert held(target) == expected(CHANGED), moment
        assert leftovers(target.parent) == [], moment
        moment += step
    assert moment > 20


def test_a_target_that_keeps_no_texts_cannot_be_made(write: Write, tmp_path: Path) -> None:
    table = write(ROWS)
    with pytest.raises(InputError, match="does not keep every text"):
        sync(table, tmp_path / "o.npy", text="title")
    with pytest.raises(InputError, match="--columns name title too"):
        sync(table, tmp_path / "o.parquet", text="title", columns=("stars",))
    embed(table, tmp_path / "o.parquet", text="title", id_column="sku", columns=())
    with pytest.raises(InputError, match="does not keep its texts"):
        sync(table, tmp_path / "o.parquet")


def test_what_is_not_ours_or_has_no_ids_is_refused(write: Write, tmp_path: Path) -> None:
    table = write(ROWS)
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0, 2.0]]}), tmp_path / "theirs.parquet")
    with pytest.raises(InputError, match="does not say which model"):
        sync(table, tmp_path / "theirs.parquet")
    with pytest.raises(InputError, match="--id"):
        sync(table, tmp_path / "o.parquet", id_column=None)
    with pytest.raises(UnknownNameError, match="colour"):
        sync(table, tmp_path / "o.parquet", colour="red")
    with pytest.raises(InputError, match="postgresql://"):
        sync(table, "s3://bucket/o.parquet")  # type: ignore[arg-type]  # what a command line passes


def test_a_table_whose_column_does_not_fit_the_collection_is_refused_before_anything_is_paid(
    write: Write, tmp_path: Path
) -> None:
    target = tmp_path / "o.collection"
    sync(write(ROWS), target, text="title")
    model = provider()
    with pytest.raises(InputError, match="stars"):
        sync(write([(one, text, "many") for one, text, _ in CHANGED]), target, model)
    assert model.calls == []


def test_a_text_that_is_none_counts_as_no_text_and_is_told(write: Write, tmp_path: Path) -> None:
    table = tmp_path / "in" / "table.jsonl"
    table.parent.mkdir(exist_ok=True)
    table.write_text('{"sku": "a", "title": "one"}\n{"sku": "b", "title": ["two"]}\n')
    seen: list[Event] = []
    receipt = sync(table, tmp_path / "o.collection", listen=seen.append, text="title")
    assert (receipt.added, receipt.skipped) == (1, 1)
    assert any(isinstance(event, Notice) and event.code == "not_text" for event in seen)


def test_two_syncs_of_one_target_do_not_meet(write: Write, tmp_path: Path) -> None:
    table = write(ROWS)

    async def both() -> None:
        async with prepare_sync(
            [table], tmp_path / "o.collection", provider=provider(), id_column="sku", text="title"
        ):
            with pytest.raises(StorageError, match="in use"):
                async with prepare_sync(
                    [table], tmp_path / "o.collection", provider=provider(), id_column="sku", text="title"
                ):
                    pass

    asyncio.run(both())


def test_a_collection_inside_the_folder_that_is_read_is_refused(write: Write, tmp_path: Path) -> None:
    table = write(ROWS)
    with pytest.raises(InputError, match="lies inside"):
        sync(table.parent, table.parent / "o.collection", text="title")


def test_a_sync_leaves_no_job_behind(write: Write, tmp_path: Path) -> None:
    target = tmp_path / "o.collection"
    sync(write(ROWS), target, text="title")
    sync(write(CHANGED), target)
    assert list_jobs() == []


def test_a_collection_built_from_a_set_is_synced_as_the_set_would_be(write: Write, tmp_path: Path) -> None:
    embed(write(ROWS), tmp_path / "o.parquet", text="title", id_column="sku")
    build_collection(tmp_path / "o.parquet", tmp_path / "folder")
    model = provider()
    sync(write(CHANGED), tmp_path / "folder", model)
    assert len(texts_of(model)) == 4
    target = tmp_path / "folder"
    renamed = target.rename(tmp_path / "o.collection")
    assert held(renamed) == expected(CHANGED)


def test_an_index_that_lags_behind_is_told(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    target = tmp_path / "o.collection"
    many: list[Row] = [(f"m{number}", f"one of many: {number}", "1") for number in range(60)]
    sync(write(many), target, text="title")
    build_index(Store.open(target), IndexSettings(kind="hnsw"))  # type: ignore[arg-type]  # as people write it
    seen: list[Event] = []
    sync(write([*many, ROWS[0]]), target, listen=seen.append)
    assert not any(isinstance(event, Notice) for event in seen)
    sync(write([*many, *ROWS, *CHANGED[:1], *CHANGED[-1:]]), target, listen=seen.append)
    assert any(isinstance(event, Notice) and event.code == "index_stale" for event in seen)


def test_a_collection_filled_by_hand_is_synced_from_the_column_of_its_texts(
    write: Write, tmp_path: Path
) -> None:
    sync(write(ROWS), tmp_path / "made.collection", text="title")
    made = Store.open(tmp_path / "made.collection").catalogue.manifest
    assert made is not None
    target = tmp_path / "o.collection"
    store = Store.create(target, dimensions=8, manifest=replace(made, text=None), text_column="title")
    store.add(["p0"], [fake_vector("text 0")], pa.table({"title": ["text 0"]}))
    model = provider()
    assert sync(write(ROWS), target, model).added == 10
    assert len(texts_of(model)) == 10
    assert held(target) == expected(ROWS)
    with pytest.raises(SpaceMismatchError, match="'title'"):
        sync(write(ROWS), target, text="sku")


def test_a_manifest_says_of_what_table_a_set_is(write: Write, tmp_path: Path) -> None:
    target = tmp_path / "o.parquet"
    sync(write(ROWS), target, text="title")
    before = read_manifest(target)
    sync(write(CHANGED), target)
    after = read_manifest(target)
    assert before is not None
    assert after is not None
    assert before.source != after.source
    assert replace(before, rows=12, source=after.source, plan=after.plan) == after
