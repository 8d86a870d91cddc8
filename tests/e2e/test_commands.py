"""The main job and every way it is refused, with the built-in model, as processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecmill as package

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.csv"
    path.write_text(
        "id,text\ncat,The cat sleeps on the warm windowsill.\ntax,Send the tax return before May is over.\n"
        "soup,Simmer the lentils with cumin and lemon.\n"
    )
    return path


def test_embed_search_similar_info_verify(vecmill: Run, notes: Path) -> None:
    command = ("embed", notes, "--text", "text", "--id", "id", "-o", "notes.parquet")
    first = vecmill(*command)
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr.startswith("complete: 3 rows, 3 vectors")
    made = notes.with_suffix(".parquet").read_bytes()

    again = vecmill(*command, "--json")
    assert again.returncode == 0
    assert "already complete" in again.stderr
    receipt = json.loads(again.stdout)
    assert receipt["state"] == "already complete"
    assert receipt["rows"] == receipt["vectors"] + receipt["skipped"] + receipt["errors"] == 3
    assert notes.with_suffix(".parquet").read_bytes() == made

    found = vecmill("search", "notes.parquet", "a pet", "-k", "2")
    assert found.returncode == 0
    assert found.stdout.splitlines()[0].split()[0::2][:2] == ["1", "cat"]

    near = json.loads(vecmill("similar", "notes.parquet", "--id", "cat", "--json").stdout)
    assert {hit["id"] for hit in near["results"]} == {"tax", "soup"}

    info = json.loads(vecmill("info", "notes.parquet", "--json").stdout)
    assert (info["rows"], info["vectors"], info["dimensions"], info["normalized"]) == (3, 3, 384, True)
    assert info["manifest"]["model"] == "local:all-MiniLM-L6-v2"

    verified = vecmill("verify", "notes.parquet")
    assert verified.returncode == 0, verified.stdout
    assert "FAILED" not in verified.stdout

    jobs = json.loads(vecmill("job", "list", "--json").stdout)
    assert [(job["state"], job["rows"], job["done"]) for job in jobs] == [("complete", 3, 3)]


def test_the_json_of_a_search_is_stable(vecmill: Run, notes: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "notes.parquet")
    found = vecmill("search", "notes.parquet", "cooking", "-k", "5", "--json")
    assert found.stdout.count("\n") == 1
    result = json.loads(found.stdout)
    assert list(result) == ["query", "model", "space", "complete", "results"]
    assert (result["query"], result["complete"], len(result["results"])) == ("cooking", False, 3)
    assert len(result["space"]) == 6
    best = result["results"][0]
    assert list(best) == ["rank", "id", "distance", "similarity", "text", "columns"]
    assert (best["rank"], best["id"]) == (1, "soup")
    assert best["text"].startswith("Simmer")
    assert best["similarity"] == pytest.approx(1 - best["distance"])
    assert {"file", "row"} <= set(best["columns"])


def test_the_dry_run_counts_and_writes_nothing(vecmill: Run, notes: Path) -> None:
    before = sorted(notes.parent.iterdir())
    planned = vecmill(
        "embed", notes, "--text", "text", "--id", "id", "-o", "n.parquet", "--dry-run", "--json"
    )
    assert planned.returncode == 0
    plan = json.loads(planned.stdout)
    assert (plan["rows"], plan["texts"], plan["long"], plan["usd"]) == (3, 3, 0, 0.0)
    assert plan["tokens"] > 20
    assert sorted(notes.parent.iterdir()) == before


def test_standard_input_is_read_when_its_format_is_named(vecmill: Run, tmp_path: Path) -> None:
    done = vecmill("embed", "-", "--format", "txt", "-o", "lines.jsonl", stdin="one line\nand another\n")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [(record["file"], record["row"], len(record["embeddings"])) for record in records] == [
        ("-", 0, 384),
        ("-", 1, 384),
    ]
    refused = vecmill("embed", "-", "-o", "x.parquet", stdin="x")
    assert refused.returncode == 1
    assert "--format" in refused.stderr


def test_failed_rows_are_kept_and_the_code_is_3(vecmill: Run, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"t": "fine"}\n{"t": "  "}\n{"t": null}\n')
    done = vecmill("embed", "in.jsonl", "--text", "t", "-o", "out.parquet", "--json")
    assert done.returncode == 3
    receipt = json.loads(done.stdout)
    assert (receipt["rows"], receipt["vectors"], receipt["skipped"], receipt["errors"]) == (3, 1, 1, 1)
    assert "1 failed, see" in done.stderr
    errors = [json.loads(line) for line in (tmp_path / "out.parquet.errors.jsonl").read_text().splitlines()]
    assert [(error["row"], error["code"]) for error in errors] == [(1, "empty_text")]
    skipped = vecmill("embed", "in.jsonl", "--text", "t", "-o", "o2.parquet", "--empty", "skip")
    assert skipped.returncode == 0


def test_the_json_of_a_job_names_the_output_as_it_was_given(vecmill: Run, notes: Path) -> None:
    made = vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "n.parquet", "--json")
    assert Path(json.loads(made.stdout)["output"]) == notes.with_name("n.parquet")


def test_a_column_of_the_texts_is_shown_once(vecmill: Run, notes: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "n.parquet")
    shown = vecmill("search", "n.parquet", "a pet", "--columns", "row,text").stdout
    assert shown.splitlines()[0].split() == ["rank", "similarity", "id", "row", "text"]
    assert vecmill("search", "n.parquet", "a pet", "--columns", "row,").returncode == 2


def test_a_vector_file_searches_one_result_per_vector(vecmill: Run, notes: Path, tmp_path: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "notes.npy")
    vectors = np.load(tmp_path / "notes.npy")
    np.save(tmp_path / "one.npy", vectors[2])
    np.save(tmp_path / "two.npy", vectors[:2].astype(np.float64))
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "notes.parquet")
    one = vecmill("search", "notes.parquet", "--vector", "one.npy", "-k", "1", "--json").stdout.splitlines()
    assert [json.loads(line)["results"][0]["id"] for line in one] == ["soup"]
    two = vecmill("search", "notes.parquet", "--vector", "two.npy", "-k", "1", "--json").stdout.splitlines()
    assert [json.loads(line)["results"][0]["id"] for line in two] == ["cat", "tax"]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused = vecmill("search", "notes.parquet", "--vector", "objects.npy")
    assert refused.returncode == 1
    assert "objects.npy is not a .npy file of numbers" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["embed", "notes.csv", "--text", "txet", "-o", "o.parquet"], 1, "did you mean 'text'"),
        (["embed", "notes.csv", "--template", "{txet}", "-o", "o.parquet"], 1, "'text'"),
        (["embed", "gone.csv", "--text", "text", "-o", "o.parquet"], 1, "gone.csv"),
        (["embed", "notes.csv", "--text", "text", "-o", "o.parquet"], 1, "--id id"),
        (["embed", "notes.csv", "--text", "text", "--id", "id", "-o", "o.exe"], 1, "o.exe"),
        (
            ["embed", "notes.csv", "--text", "text", "--id", "id", "-o", "o.parquet", "-m", "minilmm"],
            1,
            "did you mean 'minilm'",
        ),
        (["embed", "notes.csv", "--text", "text", "--id", "id", "-o", "notes.csv/o.parquet"], 1, "notes.csv"),
        (["embed", "notes.csv", "--columns", "a,,b", "-o", "o.parquet"], 2, "--columns"),
        (["embed", "notes.csv", "--output-column", "=x", "-o", "o.parquet"], 2, "--output-column"),
        (["embed", "notes.csv", "--long-text", "cut", "-o", "o.parquet"], 2, "average"),
        (["search", "gone.parquet", "x"], 1, "gone.parquet"),
        (["search", "notes.csv", "x"], 1, "vector"),
        (["search", "gone.parquet"], 2, "QUERY or --vector"),
        (["search", "gone.parquet", "x", "-k", "0"], 2, "-k"),
        (["verify", "gone.parquet"], 1, "gone.parquet"),
        (["info", "notes.csv"], 1, "vector"),
        (["model", "show", "nosuchmodel"], 1, "nosuchmodel"),
        (["model", "register", "a/b", "minilm"], 1, "a/b"),
        (["config", "show"], 0, ""),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    vecmill: Run, notes: Path, arguments: list[str], code: int, said: str
) -> None:
    done = vecmill(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    if code == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert not list(notes.parent.glob("o.parquet*"))


def test_an_output_of_other_input_is_kept_without_overwrite(vecmill: Run, notes: Path) -> None:
    command = ("embed", notes, "--text", "text", "--id", "id", "-o", "notes.parquet")
    vecmill(*command)
    before = notes.with_suffix(".parquet").read_bytes()
    notes.write_text(notes.read_text() + "new,One more row.\n")
    refused = vecmill(*command)
    assert refused.returncode == 1
    assert "--overwrite" in refused.stderr
    assert notes.with_suffix(".parquet").read_bytes() == before
    assert vecmill(*command, "--overwrite").returncode == 0
    assert json.loads(vecmill("info", "notes.parquet", "--json").stdout)["rows"] == 4


def test_a_registered_name_stands_for_its_model(vecmill: Run, notes: Path) -> None:
    assert vecmill("model", "register", "mine", "minilm").returncode == 0
    assert '"mine"' in vecmill("model", "list", "--json").stdout
    done = vecmill("embed", notes, "--text", "text", "--id", "id", "-m", "mine", "-o", "n.parquet")
    assert done.returncode == 0, done.stderr
    assert vecmill("search", "n.parquet", "cat").returncode == 0


def test_hostile_texts_reach_no_terminal(vecmill: Run, tmp_path: Path) -> None:
    texts = [
        "\x1b[2Jclear",
        "bell\x07",
        "two\nlines",
        "\u202egnp.exe",
        "a\ttab",
        "</script>",
        "\x9b31mred",
        "%s%n",
    ]
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["text"], *([text] for text in texts)])
    assert vecmill("embed", "in.csv", "--text", "text", "-o", "o.parquet").returncode == 0
    shown = vecmill("search", "o.parquet", "clear", "-k", "20").stdout
    assert shown.count("\n") == len(texts)
    assert not {character for character in shown if ord(character) < 32} - {"\n"}
    assert "\u202e" not in shown
    assert "\x9b" not in shown
    exact = json.loads(vecmill("search", "o.parquet", "clear", "-k", "20", "--json").stdout)
    assert {hit["text"] for hit in exact["results"]} == set(texts)


def test_json_survives_an_ascii_terminal(vecmill: Run, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Grüße 日本\n", encoding="utf-8")
    vecmill("embed", "in.txt", "-o", "o.parquet")
    done = vecmill("search", "o.parquet", "ü", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["results"][0]["text"] == "Grüße 日本"
    assert vecmill("search", "o.parquet", "ü", PYTHONIOENCODING="ascii").returncode == 0


def test_a_reader_who_leaves_early_is_no_error(vecmill: Run, notes: Path, tmp_path: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "notes.parquet")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vecmill", "search", "notes.parquet", "x", "--json"],
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_and_full_streams_stop_no_job(notes: Path, tmp_path: Path) -> None:
    """Nobody hears the closing line; what was asked for is there all the same."""
    for number, ending in enumerate(
        ("2>&-", ">&-", "2>&- >&- <&-", *(["2>/dev/full"] * Path("/dev/full").exists()))
    ):
        command = f'"$0" -m vecmill embed notes.csv --text text --id id -o {number}.parquet {ending}'
        done = subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, check=False)
        assert (ending, done.returncode) == (ending, 0)
        assert package.read_vectors(tmp_path / f"{number}.parquet").total_rows == 3


def test_a_warning_is_one_line_for_people(vecmill: Run, notes: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "n.parquet")
    done = vecmill("search", "n.parquet", "窓の外で猫が眠っている。静かな夏の午後に、誰も邪魔をしない。")
    assert done.returncode == 0
    assert done.stderr.startswith("note: local:all-MiniLM-L6-v2 hardly knows the language")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_keeps_what_is_done_and_the_same_command_goes_on(vecmill: Run, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text"])
        rows.writerows([f"row {number}"] for number in range(100_000))
    embed = ["embed", "in.csv", "--text", "text", "-o", "o.parquet"]
    command = [sys.executable, "-m", "vecmill", *embed]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if int(line.partition(" of 100,000 rows")[0].replace(",", "")) > 2048:
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, (lines, said)
    assert "interrupted" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "o.parquet").exists()
    plan = json.loads(vecmill(*embed, "--dry-run", "--json").stdout)
    assert plan["resumed_windows"] >= 1
    assert not plan["complete"]


def test_an_interrupt_ends_the_wait_for_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vecmill", "embed", "-", "--format", "txt", "-o", "o.parquet"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("one line\n" * 100_000)  # more than a pipe holds: now it is being read
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)  # the pipe stays open all the time
        finally:
            process.kill()
        said = process.stderr.read()
    assert (process.returncode, said.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_demo_shows_the_main_job(vecmill: Run, tmp_path: Path) -> None:
    done = vecmill("demo", "here")
    assert done.returncode == 0, done.stderr
    assert "88 rows, 88 vectors" in done.stderr
    blocks = done.stdout.split("$ vecmill search")[1:]
    assert len(blocks) == 3
    assert [block.splitlines()[1].split()[2].partition("-")[0] for block in blocks] == [
        "pets",
        "support",
        "recipe",
    ]
    assert (tmp_path / "here" / "notes.parquet").is_file()
    assert vecmill("demo", "here").returncode == 0


def test_the_sample_comes_with_the_package_and_is_whole() -> None:
    text = (files("vecmill.cli") / "sample" / "notes.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 88
    assert len({row["id"] for row in rows}) == 88
    assert all(row["title"] and row["text"] and len(row["text"]) < 400 for row in rows)


def test_another_column_of_vectors_has_no_model(vecmill: Run, notes: Path) -> None:
    vecmill("embed", notes, "--text", "text", "--id", "id", "-o", "n.parquet")
    path = notes.with_name("n.parquet")
    table = pq.read_table(path)
    theirs = pa.array([[1.0] * 384] * 3, pa.list_(pa.float32(), 384))
    wider = table.append_column("theirs", theirs)
    pq.write_table(wider.replace_schema_metadata(pq.read_metadata(path).metadata), path)
    refused = vecmill("search", path, "a cat", "--vector-column", "theirs")
    assert refused.returncode == 1
    assert "which model made its column 'theirs': name the model with -m" in refused.stderr
    assert vecmill("search", path, "a cat", "--vector-column", "theirs", "-m", "minilm").returncode == 0
    shown = vecmill("info", path, "--vector-column", "theirs").stdout
    assert "unknown: the manifest is about the column 'embedding'" in shown
    assert vecmill("verify", path).returncode == 0


def test_bench_takes_the_texts_it_is_given(vecmill: Run, notes: Path) -> None:
    short = ("--rounds", "1", "--starts", "0", "--json")
    done = vecmill("bench", "local", "--input", notes, "--text", "text", "--texts", "3", *short)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["data"]
    assert (data["source"], data["texts"]) == ("notes.csv", 3)
    few = vecmill("bench", "local", "--input", notes, "--template", "{id}: {text}", "--texts", "4", *short)
    assert few.returncode == 1
    assert "3 different texts are there, 4 are asked for" in few.stderr
    for wrong in (("--text", "text"), ("--input", notes, "--data", notes)):
        assert vecmill("bench", "local", *wrong).returncode == 2


def test_bench_measures_this_machine_and_writes_the_result_file(vecmill: Run, tmp_path: Path) -> None:
    done = vecmill("bench", "local", "--texts", "8", "--rounds", "1", "--starts", "0", "-o", "result.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 texts of synthetic sentences")
    assert "\nvecmill int8  " in done.stdout
    assert "bench local --texts 8" in json.loads((tmp_path / "result.json").read_text())["command"]
