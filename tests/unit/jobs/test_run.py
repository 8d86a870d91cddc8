"""Jobs end to end on a fake model: columns, errors, receipts, resuming, and refusing what would be lost."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import Error, InputError, JobError, StorageError, UnavailableError, UnknownNameError
from vecmill.core.events import Event, Notice, Progress
from vecmill.data.readers import ReadOptions
from vecmill.data.vector_set import read_manifest, read_vectors
from vecmill.embedder.channel import Channel
from vecmill.jobs import windows
from vecmill.jobs.estimate import Estimate, estimate
from vecmill.jobs.plan import JobOptions, Plan, make_plan
from vecmill.jobs.run import Outcome, run
from vecmill.jobs.store import list_jobs
from vecmill.testing.fakes import FakeProvider

Write = Callable[[str, Sequence[Sequence[str]]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: Sequence[Sequence[str]]) -> Path:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
        return tmp_path / name

    return write


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 4)


def embed(
    source: Path | list[Path],
    output: Path,
    provider: FakeProvider | None = None,
    listen: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> Outcome:
    provider = provider or FakeProvider(dimensions=8, max_tokens=20)

    async def both() -> Outcome:
        await Channel.to(FakeProvider(dimensions=8), load_settings()).probe()  # so that call 0 is window 0
        inputs = source if isinstance(source, list) else [source]
        plan = await make_plan(inputs, output, JobOptions(**options), provider=provider)
        return await run(plan, listen=listen)

    return asyncio.run(both())


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


REVIEWS = [["title", "body", "stars"], ["Good", "dog food", "5"], ["Bad", "cat food", "1"], ["", "fish", "3"]]


def test_a_job_keeps_all_columns_and_adds_its_own(write: Write, tmp_path: Path) -> None:
    outcome = embed(write("r.csv", REVIEWS), tmp_path / "o.parquet", text="body")
    assert (outcome.state, outcome.exit_code) == ("complete", 0)
    rows = rows_of(tmp_path / "o.parquet")
    assert list(rows[0]) == [
        *("title", "body", "stars", "id", "file", "row"),
        *("chunks", "embedding", "warning", "error"),
    ]
    assert [row["id"] for row in rows] == ["r.csv#0", "r.csv#1", "r.csv#2"]
    assert [row["body"] for row in rows] == ["dog food", "cat food", "fish"]
    assert not (tmp_path / "o.parquet.vecmill").exists()
    expected = FakeProvider(dimensions=8).vectors(["dog food"])[0]
    np.testing.assert_array_equal(np.array(rows[0]["embedding"], dtype=np.float32), expected)


def test_a_template_adds_its_text(write: Write, tmp_path: Path) -> None:
    embed(write("r.csv", REVIEWS), tmp_path / "o.parquet", template="T: {title}; {body}")
    assert [row["text"] for row in rows_of(tmp_path / "o.parquet")] == [
        *("T: Good; dog food", "T: Bad; cat food", "T: ; fish"),
    ]
    manifest = read_manifest(tmp_path / "o.parquet")
    assert manifest is not None
    assert (manifest.template, manifest.text) == ("T: {title}; {body}", "text")


def test_failed_and_empty_rows_stay_and_are_listed(write: Write, tmp_path: Path) -> None:
    long = " ".join(["w"] * 30)
    source = write("r.csv", [["text"], ["a"], [" "], [long], ["b"]])
    outcome = embed(source, tmp_path / "o.parquet", long_text="error")
    assert (outcome.state, outcome.exit_code) == ("failed rows", 3)
    rows = rows_of(tmp_path / "o.parquet")
    assert [row["embedding"] is None for row in rows] == [False, True, True, False]
    assert [row["error"] and row["error"]["code"] for row in rows] == [
        *(None, "empty_text", "text_too_long", None),
    ]
    listed = [json.loads(line) for line in (tmp_path / "o.parquet.errors.jsonl").read_text().splitlines()]
    assert [(record["id"], record["code"]) for record in listed] == [
        ("r.csv#1", "empty_text"),
        ("r.csv#2", "text_too_long"),
    ]
    assert outcome.receipt["rows"] == 4
    assert outcome.receipt["errors"] == 2


def test_null_texts_are_skipped_not_failed(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": [1]}\n')
    outcome = embed(tmp_path / "r.jsonl", tmp_path / "o.parquet", text="text")
    assert {name: outcome.receipt[name] for name in ("rows", "vectors", "skipped", "errors")} == {
        "rows": 3,
        "vectors": 1,
        "skipped": 1,
        "errors": 1,
    }
    assert rows_of(tmp_path / "o.parquet")[2]["error"]["code"] == "not_text"


def test_long_texts_are_averaged_by_default_and_counted(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], ["a"], [" ".join(f"w{i}" for i in range(50))]])
    outcome = embed(source, tmp_path / "o.parquet")
    assert outcome.receipt["long"] == 1
    assert [row["chunks"] for row in rows_of(tmp_path / "o.parquet")] == [1, 3]


def test_chunks_become_rows_that_name_their_characters(write: Write, tmp_path: Path) -> None:
    text = " ".join(f"w{i}" for i in range(50))
    outcome = embed(
        write("r.csv", [["text"], ["a"], [text], [" "]]), tmp_path / "o.parquet", long_text="chunks"
    )
    rows = rows_of(tmp_path / "o.parquet")
    assert [row["id"] for row in rows] == ["r.csv#0", *["r.csv#1"] * 3, "r.csv#2"]
    assert [row["chunk"] for row in rows] == [0, 0, 1, 2, None]
    pieces = [text[row["start"] : row["end"]] for row in rows[1:4]]
    assert " ".join(pieces) == text
    receipt = outcome.receipt
    assert receipt["rows"] == receipt["vectors"] + receipt["skipped"] + receipt["errors"] == 5


def test_the_same_command_again_says_already_complete_and_embeds_nothing(
    write: Write, tmp_path: Path
) -> None:
    source, provider = write("r.csv", REVIEWS), FakeProvider(dimensions=8, max_tokens=20)
    embed(source, tmp_path / "o.parquet", provider, text="body")
    before, asked = digest(tmp_path / "o.parquet"), len(provider.calls)
    again = embed(source, tmp_path / "o.parquet", provider, text="body")
    assert (again.state, again.exit_code) == ("already complete", 0)
    assert again.receipt["rows"] == 3
    assert digest(tmp_path / "o.parquet") == before
    texts = [text for call in provider.calls[asked:] for text in call]
    assert not {"dog food", "cat food", "fish"} & set(texts)


def test_an_output_of_other_options_is_kept_unless_overwritten(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)
    embed(source, tmp_path / "o.parquet", text="body")
    before = digest(tmp_path / "o.parquet")
    with pytest.raises(InputError, match="--overwrite"):
        embed(source, tmp_path / "o.parquet", text="title")
    assert digest(tmp_path / "o.parquet") == before
    embed(source, tmp_path / "o.parquet", text="title", overwrite=True)
    assert read_manifest(tmp_path / "o.parquet").text == "title"  # type: ignore[union-attr]


def test_a_foreign_file_at_the_output_is_kept(write: Write, tmp_path: Path) -> None:
    (tmp_path / "o.parquet").write_bytes(b"precious")
    with pytest.raises(InputError, match="there already"):
        embed(write("r.csv", REVIEWS), tmp_path / "o.parquet", text="body")
    assert (tmp_path / "o.parquet").read_bytes() == b"precious"


@pytest.mark.usefixtures("small_windows")
def test_a_resumed_job_gives_the_bytes_of_an_undisturbed_one(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], *[[f"text {i % 9}"] for i in range(30)]])
    embed(source, tmp_path / "calm.parquet")
    for call in range(8):
        output = tmp_path / f"o{call}.parquet"
        broken = FakeProvider(dimensions=8, max_tokens=20, faults={call: UnavailableError("gone")})
        with pytest.raises(UnavailableError):
            embed(source, output, broken)
        assert not output.exists()
        seen: list[Event] = []
        outcome = embed(source, output, listen=seen.append)
        assert digest(output) == digest(tmp_path / "calm.parquet")
        assert outcome.receipt["rows"] == 30
        first = next(event for event in seen if isinstance(event, Progress))
        assert first.resumed_rows == first.rows == 4 * call


@pytest.mark.usefixtures("small_windows")
def test_an_unfinished_job_with_other_options_is_not_dropped_silently(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text", "other"], *[[f"text {i}", "x"] for i in range(30)]])
    broken = FakeProvider(dimensions=8, max_tokens=20, faults={3: UnavailableError("gone")})
    with pytest.raises(UnavailableError):
        embed(source, tmp_path / "o.parquet", broken, text="text")
    with pytest.raises(InputError, match="unfinished job"):
        embed(source, tmp_path / "o.parquet", text="other")
    outcome = embed(source, tmp_path / "o.parquet", text="other", overwrite=True)
    assert outcome.state == "complete"
    assert outcome.receipt["sent"] < 30


@pytest.mark.usefixtures("small_windows")
def test_a_damaged_window_is_made_again(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], *[[f"text {i}"] for i in range(30)]])
    embed(source, tmp_path / "calm.parquet")
    broken = FakeProvider(dimensions=8, max_tokens=20, faults={4: UnavailableError("gone")})
    with pytest.raises(UnavailableError):
        embed(source, tmp_path / "o.parquet", broken)
    window = sorted((tmp_path / "o.parquet.vecmill").glob("window-*.arrow"))[1]
    raw = bytearray(window.read_bytes())
    raw[len(raw) // 2] ^= 1
    window.write_bytes(bytes(raw))
    seen: list[Event] = []
    embed(source, tmp_path / "o.parquet", listen=seen.append)
    assert any(isinstance(event, Notice) and event.code == "window_damaged" for event in seen)
    assert digest(tmp_path / "o.parquet") == digest(tmp_path / "calm.parquet")


def test_ids_come_from_the_column_named_and_must_differ(write: Write, tmp_path: Path) -> None:
    good = write("g.csv", [["id", "text"], ["x1", "a"], ["x2", "b"]])
    embed(good, tmp_path / "g.parquet", id_column="id", text="text")
    assert [row["id"] for row in rows_of(tmp_path / "g.parquet")] == ["x1", "x2"]
    double = write("d.csv", [["sku", "text"], ["7", "a"], ["8", "b"], ["7", "c"]])
    with pytest.raises(InputError, match=r"'7' stands twice: d.csv row 0 and d.csv row 2"):
        embed(double, tmp_path / "d.parquet", id_column="sku", text="text")
    assert not (tmp_path / "d.parquet").exists()


def test_an_id_column_that_is_not_the_id_is_refused_with_the_cure(write: Write, tmp_path: Path) -> None:
    source = write("g.csv", [["id", "text"], ["x1", "a"]])
    with pytest.raises(InputError, match="--id id"):
        embed(source, tmp_path / "o.parquet", text="text")
    embed(source, tmp_path / "o.parquet", text="text", output_column={"id": "key"})
    assert rows_of(tmp_path / "o.parquet")[0]["key"] == "g.csv#0"
    assert read_vectors(tmp_path / "o.parquet").vectors.shape == (1, 8)


def test_a_column_that_clashes_with_the_vectors_names_the_flag(write: Write, tmp_path: Path) -> None:
    source = write("g.csv", [["embedding", "text"], ["x", "a"]])
    with pytest.raises(InputError, match="--output-column"):
        embed(source, tmp_path / "o.parquet", text="text")
    embed(source, tmp_path / "o.parquet", text="text", output_column={"embedding": "vec"})
    assert read_vectors(tmp_path / "o.parquet").vector_column == "vec"


def test_columns_are_pruned_on_request(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)
    embed(source, tmp_path / "o.parquet", text="body", columns=("stars",))
    assert list(rows_of(tmp_path / "o.parquet")[0])[:2] == ["stars", "id"]
    with pytest.raises(UnknownNameError, match="stars"):
        embed(source, tmp_path / "p.parquet", text="body", columns=("star",))


@pytest.mark.usefixtures("small_windows")
def test_text_the_model_does_not_know_stops_the_job(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], *[["猫 狗 fish"]] * 10])
    provider = FakeProvider(dimensions=8, max_tokens=20, unknown=["猫", "狗"])
    with pytest.raises(JobError, match="--any-language"):
        embed(source, tmp_path / "o.parquet", provider)
    assert not any("fish" in text for call in provider.calls for text in call)
    embed(source, tmp_path / "o.parquet", provider, any_language=True)
    assert {row["warning"] for row in rows_of(tmp_path / "o.parquet")} == {"unknown_tokens"}


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.jsonl", "o.npy", "folder/"])
def test_every_output_format_holds_the_same_vectors(write: Write, tmp_path: Path, name: str) -> None:
    source = write("r.csv", [["text"], ["a"], [" "], ["b"]])
    target = tmp_path / name
    embed(source, target)
    found = read_vectors(target)
    assert found.rows.tolist() == [0, 2]
    assert found.ids == ["r.csv#0", "r.csv#1", "r.csv#2"]
    np.testing.assert_array_equal(found.vectors, FakeProvider(dimensions=8).vectors(["a", "b"]))
    assert embed(source, target).state == "already complete"


def test_several_files_keep_their_order_and_names(write: Write, tmp_path: Path) -> None:
    one = write("one.csv", [["text"], ["a"]])
    two = write("two.csv", [["text"], ["b"], ["a"]])
    outcome = embed([one, two], tmp_path / "o.parquet")
    assert [(row["file"], row["row"]) for row in rows_of(tmp_path / "o.parquet")] == [
        ("one.csv", 0),
        ("two.csv", 0),
        ("two.csv", 1),
    ]
    assert (outcome.receipt["sent"], outcome.receipt["deduped"]) == (2, 1)


def test_no_rows_give_an_empty_set(write: Write, tmp_path: Path) -> None:
    outcome = embed(write("r.csv", [["text"]]), tmp_path / "o.parquet", text="text")
    assert outcome.state == "complete"
    assert read_vectors(tmp_path / "o.parquet").vectors.shape == (0, 8)


def test_the_limit_bounds_the_rows(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], *[[f"t{i}"] for i in range(10)]])
    assert embed(source, tmp_path / "o.parquet", limit=3).receipt["rows"] == 3


def test_a_refused_plan_leaves_nothing_behind(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)
    with pytest.raises(Error):
        embed(source, tmp_path / "o.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_tokens_are_counted_exactly_without_embedding(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], ["a b"], ["a b"], ["c"]])
    provider = FakeProvider(dimensions=8, max_tokens=20)

    async def count() -> Estimate:
        return await estimate(await make_plan([source], tmp_path / "o.parquet", provider=provider))

    found = asyncio.run(count())
    assert (found.texts, found.distinct, found.tokens, found.send_texts) == (3, 2, 3, 2)


def test_jobs_are_listed(write: Write, tmp_path: Path) -> None:
    embed(write("r.csv", REVIEWS), tmp_path / "o.parquet", text="body")
    (job,) = list_jobs()
    assert (job.state, job.rows, job.done) == ("complete", 3, 3)
    assert job.output.endswith("o.parquet")


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.jsonl", "o.npy"])
def test_renamed_columns_are_found_again(write: Write, tmp_path: Path, name: str) -> None:
    source = write("r.csv", [["id", "row", "text"], ["7", "x", "a"], ["8", "y", " "]])
    renamed = {"row": "line", "error": "why"}
    embed(source, tmp_path / name, text="text", id_column="id", output_column=renamed)
    found = read_vectors(tmp_path / name)
    assert found.ids == ["7", "8"]
    assert found.rows.tolist() == [0]
    own = {"id": "key", "row": "line"}
    embed(source, tmp_path / name, text="text", output_column=own, overwrite=True)
    assert read_vectors(tmp_path / name).ids == ["r.csv#0", "r.csv#1"]


def test_json_lines_keep_no_input_columns_so_nothing_clashes(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["id", "text"], ["7", "a"]])
    embed(source, tmp_path / "o.jsonl", text="text")
    assert list(json.loads((tmp_path / "o.jsonl").read_text())) == ["file", "row", "embeddings"]


def test_how_the_input_is_read_belongs_to_the_plan(tmp_path: Path) -> None:
    source = tmp_path / "r.csv"
    source.write_bytes(b"text\n5 \xa4\n")
    embed(source, tmp_path / "o.parquet", read=ReadOptions(encoding="latin-1"))
    with pytest.raises(InputError, match="other options"):
        embed(source, tmp_path / "o.parquet", read=ReadOptions(encoding="iso-8859-15"))


def test_overwrite_makes_a_damaged_output_again(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)
    embed(source, tmp_path / "o.parquet", text="body")
    good = (tmp_path / "o.parquet").read_bytes()
    bad = bytearray(good)
    bad[200] ^= 255
    (tmp_path / "o.parquet").write_bytes(bytes(bad))
    assert embed(source, tmp_path / "o.parquet", text="body", overwrite=True).state == "complete"
    assert (tmp_path / "o.parquet").read_bytes() == good


def planned(source: Path, output: Path, provider: FakeProvider | None = None, **options: Any) -> Plan:
    chosen = provider or FakeProvider(dimensions=8, max_tokens=20)
    return asyncio.run(make_plan([source], output, JobOptions(**options), provider=chosen))


def test_a_job_that_another_one_finished_meanwhile_says_so(write: Write, tmp_path: Path) -> None:
    source, provider = write("r.csv", REVIEWS), FakeProvider(dimensions=8, max_tokens=20)
    late = planned(source, tmp_path / "o.parquet", provider, text="body")
    embed(source, tmp_path / "o.parquet", text="body")
    before = digest(tmp_path / "o.parquet")
    assert asyncio.run(run(late)).state == "already complete"
    assert not any("fish" in call for call in provider.calls)
    assert digest(tmp_path / "o.parquet") == before
    other = write("s.csv", REVIEWS[:3])
    with pytest.raises(InputError, match="there already"):
        asyncio.run(run(replace(planned(other, tmp_path / "p.parquet", text="body"), target=late.target)))
    assert digest(tmp_path / "o.parquet") == before


def test_a_file_that_appears_at_the_target_meanwhile_is_kept(write: Write, tmp_path: Path) -> None:
    async def appear(number: int) -> None:
        (tmp_path / "o.parquet").write_bytes(b"precious")

    provider = FakeProvider(dimensions=8, max_tokens=20, hook=appear)
    with pytest.raises(JobError, match="somebody else"):
        embed(write("r.csv", REVIEWS), tmp_path / "o.parquet", provider, text="body")
    assert (tmp_path / "o.parquet").read_bytes() == b"precious"


def test_input_that_changes_while_the_job_runs_is_refused(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], ["old one"], ["old two"]])
    plan = planned(source, tmp_path / "o.parquet")
    write("r.csv", [["text"], ["new one"], ["new two"]])
    with pytest.raises(Error, match="changed"):
        asyncio.run(run(plan))
    assert not (tmp_path / "o.parquet").exists()


def test_a_second_process_on_the_same_output_is_refused(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)

    async def second(number: int) -> None:
        inner = await make_plan(
            [source], tmp_path / "o.parquet", JobOptions(text="body"), provider=FakeProvider(dimensions=8)
        )
        with pytest.raises(StorageError, match="in use"):
            await run(inner)

    provider = FakeProvider(dimensions=8, max_tokens=20, hook=second)
    assert embed(source, tmp_path / "o.parquet", provider, text="body").state == "complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "o.parquet",
        "o.parquet.receipt.json",
        "r.csv",
    ]


def test_the_output_in_the_input_folder_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a\n")
    first = embed(tmp_path / "in", tmp_path / "in" / "o.parquet")
    assert first.receipt["rows"] == 1
    assert embed(tmp_path / "in", tmp_path / "in" / "o.parquet").state == "already complete"


def test_unknown_choices_are_named_with_those_that_exist(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", REVIEWS)
    for options in (
        {"long_text": "avg"},
        {"empty": "keep"},
        {"input_type": "doc"},
        {"output_format": "nope"},
    ):
        with pytest.raises(UnknownNameError):
            embed(source, tmp_path / "o.parquet", text="body", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_an_id_column_that_holds_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"text": "a", "tags": ["x"]}\n')
    with pytest.raises(InputError, match="tags"):
        embed(tmp_path / "r.jsonl", tmp_path / "o.parquet", text="text", id_column="tags")


@pytest.mark.usefixtures("small_windows")
def test_the_job_list_says_how_far_a_stopped_job_is(write: Write, tmp_path: Path) -> None:
    source = write("r.csv", [["text"], *[[f"text {i}"] for i in range(16)]])
    broken = FakeProvider(dimensions=8, max_tokens=20, faults={3: UnavailableError("gone")})
    with pytest.raises(UnavailableError):
        embed(source, tmp_path / "o.parquet", broken)
    (job,) = list_jobs()
    assert (job.state, job.rows, job.done) == ("stopped", 16, 12)
