from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill._version import __version__
from vecmill.bench import local, peers
from vecmill.bench import systems as systems_module
from vecmill.bench.local import run_local
from vecmill.bench.peers import System, Worker, missing_packages
from vecmill.bench.report import render
from vecmill.core.errors import InputError, ProviderError
from vecmill.models.local.files import BUILTIN_FOLDER

FAKE = Path(__file__).with_name("fake_worker.py")
TEXTS = [f"text {i}" for i in range(30)]


def fake(name: str, kind: str = "vecmill", **options: Any) -> System:
    # The kind "vecmill" gives the worker this package's folder to import from; the fake needs it too.
    common = {"threads": 1, "cores": None, "model": "none"}
    return System(name, kind, peers.this_python(), {**common, **options}, FAKE)


def run(monkeypatch: pytest.MonkeyPatch, systems: list[System], **options: Any) -> Any:
    monkeypatch.setattr(systems_module, "find", lambda *_, **__: systems)
    return run_local(**{"texts": TEXTS, "rounds": 3, "starts": 1, **options})


def test_ratios_say_how_many_times_faster_than_each_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(
        monkeypatch, [fake("vecmill int8", busy=0.02), fake("sentence-transformers", busy=0.2)], rounds=5
    )
    (only,) = report.comparisons
    assert (only.name, only.baseline, only.cpu.pairs) == ("vecmill int8", "sentence-transformers", 5)
    assert 4 < only.cpu.median < 14
    assert only.start_wall is not None


def test_agreement_is_measured_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = [fake("vecmill float32"), fake("vecmill int8", noise=40.0), fake("sentence-transformers")]
    same, noisy, reference = run(monkeypatch, systems, starts=0).measured
    assert same.agreement.cosine_min == pytest.approx(1.0)
    assert same.agreement.overlap == 1.0
    assert noisy.agreement.cosine_mean < 0.99
    assert noisy.agreement.overlap < 1.0
    assert reference.agreement is None
    assert same.start_wall == []


def test_the_first_round_is_thrown_away_and_every_system_runs_every_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    report = run(
        monkeypatch, [fake("vecmill int8"), fake("sentence-transformers")], starts=2, say=said.append
    )
    assert [len(one.wall) for one in report.measured] == [3, 3]
    assert [len(one.start_wall) for one in report.measured] == [2, 2]
    assert said[0] == "first round thrown away"


def test_the_result_file_records_all_that_is_needed_to_repeat_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, drawn_from = tmp_path / "result.json", tmp_path / "lines.txt"
    drawn_from.write_bytes(b"abc")
    report = run(
        monkeypatch,
        [fake("vecmill int8"), fake("sentence-transformers")],
        out=out,
        seed=7,
        source="thirty lines",
        files=[drawn_from],
    )
    record = json.loads(out.read_text("utf-8"))
    assert record["settings"]["seed"] == 7
    assert record["data"]["source"] == "thirty lines"
    assert record["data"]["texts"] == 30
    assert record["data"]["files_sha256"] == {
        "lines.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert record["data"]["texts_sha256"] == hashlib.sha256(json.dumps(TEXTS).encode()).hexdigest()
    assert record["data"]["tokens_mean"] == record["data"]["tokens_p95"] == 4  # [CLS] text 7 [SEP]
    assert record["model"]["name"] == "all-MiniLM-L6-v2"
    weights = record["model"]["sha256"]["model.safetensors"]
    assert weights == hashlib.sha256((BUILTIN_FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert record["version"] == __version__
    assert record["machine"]["cpu"]
    first = record["systems"][0]
    assert {"wall_median", "wall_p95", "cpu_median", "versions", "rss_bytes"} <= first.keys()
    assert first["versions"]["no-such-package"] == "source"
    assert first["versions"]["vecmill"] == __version__
    assert {"median", "low", "high"} <= record["ratios"][0]["cpu"].keys()
    shown = "\n".join(render(report))
    assert all(name in shown for name in ("vecmill int8", "sentence-transformers", "times as fast"))


def test_a_peer_that_does_not_load_is_left_out_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = [fake("vecmill int8"), fake("sentence-transformers", "onnxruntime", broken=True)]
    monkeypatch.setattr(peers, "_environment", lambda system: own_environment())
    report = run(monkeypatch, systems, starts=0)
    assert [one.name for one in report.measured] == ["vecmill int8"]
    assert any("left out" in note and "this system cannot load" in note for note in report.notes)
    assert not any("times as fast" in line for line in render(report))


def test_our_own_failure_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="this system cannot load"):
        run(monkeypatch, [fake("vecmill int8", broken=True)])


def test_a_worker_that_dies_while_asked_raises_with_its_last_words(tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    with (
        Worker(fake("vecmill int8", dies=True)) as worker,
        pytest.raises(ProviderError, match="in the middle"),
    ):
        worker.embed(file)


def test_a_worker_saves_the_vectors_of_its_last_texts(tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    with Worker(fake("vecmill int8")) as worker:
        worker.embed(file)
        worker.save(tmp_path / "v.npy")
    assert np.load(tmp_path / "v.npy").shape == (30, 32)


def test_missing_packages_are_found_by_the_other_interpreter() -> None:
    assert missing_packages(peers.this_python(), ["json", "no_such_module"]) == ["no_such_module"]
    with pytest.raises(ProviderError, match="does not run"):
        missing_packages(Path("no-such-python"), ["json"])


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}, {"starts": -1}, {"texts": ["one"]}])
def test_a_run_too_small_to_measure_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="too"):
        run_local(**wrong)


def own_environment() -> dict[str, str]:
    return {**peers._clean_environment(), "PYTHONPATH": str(Path(local.__file__).parents[2])}
