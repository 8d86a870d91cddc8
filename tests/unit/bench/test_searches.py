from __future__ import annotations

import json
import random
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.bench import index as bench_index
from vecmill.bench import knn, search_peers, searches
from vecmill.bench.search_report import Built, Comparison, Part, Report, render
from vecmill.bench.searches import Data, Search, Searching, made_up, read_data, shuffled
from vecmill.cli import main
from vecmill.core.errors import InputError, ProviderError, UnknownNameError
from vecmill.core.measure import Ratio
from vecmill.core.vectors import normalize

TINY = {"n": 600, "dimensions": 24, "queries": 40, "rounds": 2}


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any]]:
    out = tmp_path_factory.mktemp("bench") / "knn.json"
    return knn.run_knn(**TINY, out=out), json.loads(out.read_text("utf-8"))


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bench")
    np.save(folder / "v.npy", np.concatenate((made_up(640, 24, 1).vectors,) * 2))
    found = bench_index.run_index(
        vectors=folder / "v.npy",
        n=600,
        queries=40,
        singles=10,
        rounds=2,
        only=["binary"],
        out=folder / "r.json",
    )
    return found, json.loads((folder / "r.json").read_text("utf-8"))


def part(name: str, seconds: list[float], *, recall: float = 1.0, system: str = "") -> Part:
    return Part(name, system or name, {}, 10, seconds, seconds, seconds, seconds, recall, 10)


def test_every_exact_way_finds_everything(joined: tuple[Report, dict[str, Any]]) -> None:
    found, _ = joined
    names = {one.name for one in found.parts}
    assert {knn.NUMPY, knn.INT8, knn.INT8_WHOLE, knn.ARGPARTITION} <= names
    assert {one.name: one.recall for one in found.parts} == dict.fromkeys(names, 1.0)
    assert all(len(one.batch_cpu) == len(one.batch_wall) == 2 for one in found.parts)


def test_the_result_file_records_what_is_needed_to_repeat_the_run(
    joined: tuple[Report, dict[str, Any]],
) -> None:
    _, record = joined
    assert record["benchmark"] == "knn"
    assert set(record) >= {"command", "commit", "version", "machine", "data", "settings", "systems", "parts"}
    assert record["data"]["vectors"] == 600
    assert record["data"]["queries"] == 40
    assert len(record["data"]["sha256"]) == 64
    assert record["settings"]["rounds"] == 2
    assert all(one["rss_bytes"] and one["versions"]["numpy"] for one in record["systems"])
    gates = {(one["name"], one["baseline"]): one["least"] for one in record["ratios"]}
    assert gates[knn.NUMPY, knn.ARGPARTITION] == 1.5
    assert not any(least for (name, _), least in gates.items() if name == knn.INT8)  # made-up vectors


def test_lines_show_memory_beside_speed_and_the_verdicts(joined: tuple[Report, dict[str, Any]]) -> None:
    lines = render(joined[0])
    assert "batch q/s" in lines[2]
    assert "peak MiB" in lines[2]
    assert any(("ok:" in line or "MISSED:" in line) and knn.ARGPARTITION in line for line in lines)
    assert any(line.startswith("note: made-up vectors") for line in lines)


def test_int8_is_judged_on_real_vectors_against_the_faster_faiss() -> None:
    parts = [
        part(knn.NUMPY, [2.0] * 3),
        part(knn.INT8, [1.0] * 3),
        part(knn.FAISS, [2.2] * 3),
        part(knn.FAISS_KNN, [1.1] * 3),
        part(knn.ARGPARTITION, [3.0] * 3),
    ]
    found = knn._compare(parts, "cpu", 0, real=True)
    gates = {(one.name, one.baseline): one for one in found if one.least is not None}
    assert set(gates) == {
        (knn.NUMPY, knn.ARGPARTITION),
        (knn.NUMPY, knn.FAISS_KNN),
        (knn.INT8, knn.FAISS_KNN),
    }
    assert gates[knn.INT8, knn.FAISS_KNN].missed  # 1.1 < 1.2
    assert gates[knn.NUMPY, knn.FAISS_KNN].missed  # 0.55 < 0.7
    assert not gates[knn.NUMPY, knn.ARGPARTITION].missed  # 1.5


def test_an_index_is_measured_at_every_setting_alone_and_together(
    indexed: tuple[Report, dict[str, Any]],
) -> None:
    found, record = indexed
    names = [one.name for one in found.parts]
    assert names[:2] == [bench_index.GEMV, bench_index.VECDOT]
    assert names[2:] == [f"vecmill binary x{times}" for times in (10, 20, 30, 50)]
    recalls = [one.recall for one in found.parts[2:]]
    assert recalls == sorted(recalls)
    assert all(len(one.single_wall) == len(one.batch_wall) == 2 for one in found.parts)
    assert record["data"]["repeated_left_out"] == 640
    assert record["data"]["files_sha256"].keys() == {"v.npy"}
    size = next(one["size_bytes"] for one in record["systems"] if one["name"] == bench_index.BINARY)
    assert size / 600 < 24 / 8 + 4


def test_the_gate_is_for_the_fastest_setting_that_finds_enough() -> None:
    parts = [
        part(bench_index.GEMV, [10.0] * 3),
        part(bench_index.VECDOT, [9.0] * 3),
        part("vecmill binary x10", [0.5] * 3, recall=0.99, system=bench_index.BINARY),
        part("vecmill binary x20", [1.0] * 3, recall=0.999, system=bench_index.BINARY),
        part("vecmill binary x50", [2.0] * 3, recall=1.0, system=bench_index.BINARY),
    ]
    points = [bench_index.Point(Search(name, "gemv")) for name in dict.fromkeys(one.system for one in parts)]
    (real,) = bench_index._compare(parts, points, 0, real=True)
    assert (real.name, real.baseline, real.least) == ("vecmill binary x20", bench_index.VECDOT, 8.0)
    assert not real.missed
    assert bench_index._compare(parts, points, 0, real=False)[0].least is None


def test_only_names_of_systems_are_understood() -> None:
    with pytest.raises(UnknownNameError, match="binary"):
        bench_index.run_index(**TINY, only=["binery"])


def test_a_missed_gate_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Comparison("a", "b", "batch", "cpu", Ratio(1.0, 0.9, 1.1, 7), 1.2)
    data = {"vectors": 1, "dimensions": 1, "queries": 1, "source": "s"}
    settings = {"k": 1, "rounds": 1, "threads": 1}
    report = Report("knn", "c", None, data, settings, {}, [], [], [missed])
    monkeypatch.setattr(knn, "run_knn", lambda **given: report)
    assert main.run(["bench", "knn"]) == 1
    assert "MISSED: 0.90 < 1.2" in capsys.readouterr().out
    monkeypatch.setattr(knn, "run_knn", lambda **given: replace(report, comparisons=[]))
    assert main.run(["bench", "knn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark"] == "knn"


def test_a_password_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(bench_index, "run_index", lambda **options: given.update(options))
    monkeypatch.setattr("vecmill.cli.bench._compared", lambda report, as_json: 0)
    url = "postgresql://me:hunter2@host/db"
    monkeypatch.setattr("sys.argv", ["vecmill", "bench", "index", "--postgres", url])
    assert main.run(["bench", "index", "--postgres", url]) == 0
    assert given["postgres"] == url
    assert "hunter2" not in given["command"]
    assert "host/db" in given["command"]
    assert "hunter2" not in repr(Search("pgvector", "pgvector", address=url))


def test_vectors_and_queries_of_a_file_share_no_row(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", np.concatenate((rows, rows[:50])))
    found = read_data(tmp_path / "v.npy", 1000, 100)
    assert (len(found.vectors), len(found.queries), found.repeated) == (200, 100, 50)
    assert len(np.unique(np.concatenate((found.vectors, found.queries)), axis=0)) == 300
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1.0, atol=1e-6)
    again = read_data(tmp_path / "v.npy", 1000, 100)
    assert again.record() == found.record()
    with pytest.raises(InputError, match="too few"):
        read_data(tmp_path / "v.npy", 10, 300)
    (tmp_path / "t.npy").write_text("no table")
    with pytest.raises(InputError, match=r"t\.npy"):
        read_data(tmp_path / "t.npy", 10, 3)


class _Answers:
    """Stands in for a worker: the rows of its last answer."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        np.save(request["to"], self.rows)
        return {}


def test_recall_counts_ties_and_neither_copies_nor_what_is_missing(tmp_path: Path) -> None:
    base = normalize(np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [-1, 0]], np.float32))
    data = Data(base, normalize(np.array([[1, 0]], np.float32)), "a test", real=False)
    with ExitStack() as stack:
        bench = Searching(stack, tmp_path, data, k=1, threads=1, cores=None)
        for rows, expected in (([[0]], 1.0), ([[1]], 1.0), ([[2]], 0.0), ([[-1]], 0.0)):
            bench.workers["x"] = _Answers(np.array(rows))  # type: ignore[assignment]
            assert bench.recall("x") == expected
        bench = Searching(stack, tmp_path, data, k=3, threads=1, cores=None)
        for rows, expected in (
            ([[0, 1, 2]], 1.0),
            ([[0, 0, 0]], 1 / 3),
            ([[2, 2, 1]], 2 / 3),
            ([[0, 3, 4]], 1 / 3),
        ):
            bench.workers["x"] = _Answers(np.array(rows))  # type: ignore[assignment]
            assert bench.recall("x") == pytest.approx(expected)
        bench.workers["x"] = _Answers(np.array([[0, 1, 5]]))  # type: ignore[assignment]
        with pytest.raises(ProviderError, match="beyond 5"):
            bench.recall("x")


def test_a_peer_that_fails_is_left_out_and_our_own_failure_is_an_error(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = Searching(stack, tmp_path, made_up(50, 8, 5), k=3, threads=1, cores=None)
        notes: list[str] = []
        assert not bench.open(Search("broken", "faiss_graph", {"precision": "none"}), notes)
        assert len(notes) == 1
        assert notes[0].startswith("broken is left out: ")
        with pytest.raises(ProviderError):
            bench.open(Search("ours", "exact", {"engine": "none"}, own=True), notes)


@pytest.mark.parametrize("n", [400, 5000])
def test_plain_numpy_finds_what_is_true(n: int) -> None:
    data = made_up(n, 16, 30)
    true = np.argsort(-(data.queries @ data.vectors.T), axis=1)[:, :5]
    ways = [search_peers.Argpartition(data.vectors, {})]
    ways += [search_peers.Gemv(data.vectors, {"way": way}) for way in ("matmul", "vecdot")]
    for way in ways:
        assert np.array_equal(way.search(data.queries, 5), true)


def test_orders_are_drawn_anew() -> None:
    chance = random.Random(0)
    orders = {tuple(shuffled("abcd", chance)) for _ in range(20)}
    assert len(orders) > 5


@pytest.mark.parametrize("name", ["n", "queries", "rounds", "k", "threads"])
def test_numbers_below_1_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=0"):
        knn.run_knn(**{**TINY, name: 0})


@pytest.mark.skipif(sys.platform != "linux", reason="others count it into the starter's")
def test_memory_is_the_worker_s_own_not_that_of_whoever_started_it(tmp_path: Path) -> None:
    held = np.ones(50_000_000, np.float32)  # 200 MB, touched
    with ExitStack() as stack:
        bench = Searching(stack, tmp_path, made_up(200, 8, 5), k=3, threads=1, cores=None)
        assert bench.open(Search("numpy", "argpartition"), [])
        bench.batch("numpy", 5)
        peak = bench.workers["numpy"].rss_bytes
    assert peak is None or peak < held.nbytes


def test_memory_and_size_have_a_place_in_every_record() -> None:
    assert {"size_bytes", "rss_bytes", "loaded_bytes"} <= set(Built.__dataclass_fields__)
    assert searches.EPSILON < 1e-5
