"""Syncs with a provider that counts: what did not change is never asked for, whatever the target."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vecmill.core.space import PROBE_TEXTS
from vecmill.data.vector_set import read_vectors
from vecmill.index.storage import Store
from vecmill.jobs.sync import sync
from vecmill.jobs.sync_plan import SyncReceipt
from vecmill.testing.scenarios import Latency, Scenario
from vecmill.testing.simulator import Simulator, simulator_thread

if TYPE_CHECKING:
    from postgres_server import Postgres

SEED = 5
MODEL = "openai:text-embedding-3-small"
KINDS = ("set", "folder", "collection", "postgresql")

Row = tuple[str, str, int]


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    with simulator_thread(Scenario()) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.key)
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A target of each kind; only one of them needs a server."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        return server.url()
    return str(tmp_path / {"set": "o.parquet", "folder": "o", "collection": "o.collection"}[request.param])


def rows(count: int, **texts: str) -> list[Row]:
    return [(f"s{n}", texts.get(f"s{n}", f"the text of row {n}"), n % 7) for n in range(count)]


def write(path: Path, table: Iterable[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("sku", "title", "stars"), *table])
    return path


def held(target: str) -> dict[str, tuple[str, int, bytes]]:
    """Return what a target holds: text, stars and the vector's bytes by id."""
    names = ["title", "stars"]
    if target.startswith("postgresql://"):
        from vecmill.index.postgres import PostgresTable

        found: dict[str, tuple[str, int, bytes]] = {}
        with PostgresTable.open(target) as table:
            for part in table.rows(names, with_vectors=True):
                assert part.vectors is not None
                cells = zip(*part.columns.values(), part.vectors, strict=True)
                found |= {
                    str(one): (a, b, v.tobytes()) for one, (a, b, v) in zip(part.ids, cells, strict=True)
                }
        return found
    if target.endswith(".collection"):
        now = Store.open(target).snapshot()
        at = np.flatnonzero(now.live)
        ids, records, vectors = [str(one) for one in now.ids(at)], now.records(at, names), now.fetch(at)
    else:
        there = read_vectors(target)
        ids, records, vectors = there.ids, there.records(range(len(there)), names), there.vectors
    return {
        one: (record["title"], record["stars"], vector.tobytes())
        for one, record, vector in zip(ids, records, vectors, strict=True)
    }


def run(table: Path, target: str, **options: Any) -> SyncReceipt:
    receipt = sync(table, target, id_column="sku", **options)
    assert receipt.balances
    assert receipt.ids_after == len(held(target))
    return receipt


def test_unchanged_rows_cost_no_request_and_seven_edits_seven_texts(
    simulator: Simulator, tmp_path: Path, target: str
) -> None:
    table = write(tmp_path / "in" / "t.csv", rows(1000))
    first = run(table, target, model=MODEL, text="title")
    assert (first.added, first.usage.texts) == (1000, 1000)
    assert simulator.billed_texts == 1000 + len(PROBE_TEXTS)
    before, requests = held(target), simulator.requests
    assert run(table, target).state == "up to date"
    assert simulator.requests == requests
    write(table, [(one, text, stars + 1) for one, text, stars in rows(1000)])
    assert run(table, target).columns_updated == 1000
    assert simulator.requests == requests
    edits = {f"s{n}": f"edited {n}" for n in range(100, 800, 100)}
    write(table, rows(1000, **edits))
    receipt = run(table, target)
    assert (receipt.updated, receipt.columns_updated, receipt.usage.texts) == (7, 993, 7)
    assert simulator.billed_texts == 1000 + len(PROBE_TEXTS) + 7
    after = held(target)
    assert {one for one in after if after[one][2] != before[one][2]} == set(edits)
    assert {one: cells[:2] for one, cells in after.items()} == {
        one: (text, stars) for one, text, stars in rows(1000, **edits)
    }


def test_adds_updates_and_deletes_arrive_in_every_kind_of_target(
    simulator: Simulator, tmp_path: Path, target: str
) -> None:
    table = write(tmp_path / "in" / "t.csv", rows(60))
    run(table, target, model=MODEL, text="title")
    changed = [row for row in rows(70, s4="ein anderer Text: größer") if row[0] not in ("s1", "s2", "s59")]
    random.Random(SEED).shuffle(changed)
    receipt = run(write(table, changed), target)
    counts = (receipt.added, receipt.updated, receipt.deleted, receipt.unchanged)
    assert counts == (10, 1, 3, 56)
    assert {one: cells[:2] for one, cells in held(target).items()} == {one: (t, s) for one, t, s in changed}
    kept = run(write(table, changed[:30]), target, delete=False)
    assert (kept.kept, kept.deleted, kept.ids_after) == (37, 0, 67)


def test_a_dry_run_sends_nothing_and_says_the_price(
    simulator: Simulator, tmp_path: Path, target: str
) -> None:
    table = write(tmp_path / "in" / "t.csv", rows(50))
    run(table, target, model=MODEL, text="title")
    write(table, rows(55, s3="edited"))
    before, requests = held(target), simulator.requests
    command = [
        sys.executable,
        "-m",
        "vecmill",
        "sync",
        str(table),
        target,
        "--id",
        "sku",
        "--dry-run",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    planned = json.loads(done.stdout)
    assert (planned["added"], planned["updated"], planned["estimate"]["send_texts"]) == (5, 1, 6)
    assert planned["estimate"]["usd"] > 0
    assert simulator.requests == requests
    assert held(target) == before


def test_columns_of_every_type_stay_equal(simulator: Simulator, tmp_path: Path, target: str) -> None:
    lines = [
        {
            "sku": f"s{n}",
            "title": f"text {n}",
            "price": n / 4 if n % 3 else None,
            "tags": ["a", "b"][: n % 3],
            "maker": {"name": f"m{n}", "city": None},
            "sold": n % 2 == 0,
            "count": 2**40 + n,
        }
        for n in range(20)
    ]
    table = tmp_path / "in" / "t.jsonl"
    table.parent.mkdir()
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sync(table, target, id_column="sku", model=MODEL, text="title")
    assert sync(table, target, id_column="sku").state == "up to date"
    lines[4]["tags"] = ["c"]
    lines[5]["maker"] = {"name": "m5", "city": "Ulm"}
    lines[7]["price"] = None
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    receipt = sync(table, target, id_column="sku")
    assert (receipt.columns_updated, receipt.unchanged) == (3, 17)


def test_a_sync_that_has_spent_what_it_may_pauses_and_goes_on(
    simulator: Simulator, tmp_path: Path, target: str
) -> None:
    table = write(tmp_path / "in" / "t.csv", rows(3000))
    command = [sys.executable, "-m", "vecmill", "sync", str(table), target, "--id", "sku", "--json"]
    command += ["-m", MODEL, "--text", "title"]
    capped = subprocess.run([*command, "--max-usd", "0.0003"], capture_output=True, text=True, check=False)
    assert capped.returncode == 4, capped.stderr
    assert json.loads(capped.stdout)["state"] == "paused"
    assert "the same command (with a higher --max-usd) goes on" in capped.stderr
    assert 0 < simulator.billed_texts < 3000
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ids_after"] == 3000
    assert simulator.billed_texts == 3000 + len(PROBE_TEXTS)


def test_a_sync_killed_again_and_again_ends_right_and_pays_once(
    tmp_path: Path, target: str, slow: bool
) -> None:
    kills = 30 if slow else 3
    dice = random.Random(SEED)
    print(f"seed {SEED}, {kills} kills")
    scenario = replace(Scenario(), max_inputs=64, latency=Latency("uniform", 0.01, 0.05))
    table = write(tmp_path / "in" / "t.csv", rows(3000))
    with simulator_thread(scenario) as simulator:
        environment = {**os.environ, "OPENAI_API_KEY": simulator.key, "OPENAI_BASE_URL": simulator.url}
        command = [sys.executable, "-m", "vecmill", "sync", str(table), target, "--id", "sku", "--json"]

        def start(*more: str) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            return subprocess.Popen([*command, *more], stdout=pipe, stderr=pipe, text=True, env=environment)

        out, err = start("-m", MODEL, "--text", "title").communicate(timeout=200)
        assert json.loads(out)["added"] == 3000, err
        changed = [
            (one, f"edited {text}" if n % 3 == 0 else text, 6 - stars if n % 5 == 1 else stars)
            for n, (one, text, stars) in enumerate(rows(3300))
            if n % 11
        ]
        write(table, changed)
        edited = sum(text.startswith("edited") for _, text, _ in changed)
        fresh = sum(int(one[1:]) >= 3000 and not text.startswith("edited") for one, text, _ in changed)
        paid_before, died = simulator.billed_texts, 0
        for _ in range(kills):
            moment = simulator.billed_texts + dice.randrange(0, 500)
            process = start()
            while process.poll() is None and simulator.billed_texts < moment:
                os.sched_yield()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            died += process.returncode == -signal.SIGKILL
        out, err = start().communicate(timeout=200)
        assert out, err
        receipt = json.loads(out)
        paid = simulator.billed_texts - paid_before
        print(f"{died} kills, {paid - edited - fresh} texts paid twice")
        assert paid <= edited + fresh + died * 4 * 2048
        assert receipt["ids_after"] == len(changed)
        found = held(target)
        assert {one: cells[:2] for one, cells in found.items()} == {one: (t, s) for one, t, s in changed}
        paid_before = simulator.billed_texts
        out, err = start().communicate(timeout=200)
        assert json.loads(out)["state"] == "up to date", err
        assert simulator.billed_texts == paid_before
