from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vecmill.bench.compare import Rule, compare_models, compare_vectors, render, server_of
from vecmill.cli import main
from vecmill.core.errors import DimensionMismatchError, InputError
from vecmill.core.types import Vectors
from vecmill.core.vectors import normalize
from vecmill.embedder.background import run_sync
from vecmill.testing.scenarios import Model, Scenario
from vecmill.testing.simulator import simulator_thread


def vectors(n: int = 30, d: int = 384, *, seed: int = 0) -> Vectors:
    return normalize(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


def quantized(x: Vectors) -> Vectors:
    """Round to 127 steps a vector, as int8 vectors are."""
    scale = np.abs(x).max(axis=1, keepdims=True) / 127.0
    rounded: Vectors = (np.round(x / scale) * scale).astype(np.float32)
    return rounded


def noisy(x: Vectors, cosine: float, *, seed: int = 1) -> Vectors:
    """Turn each vector by a fixed angle, as coarser weights do."""
    aside = vectors(*x.shape, seed=seed)
    aside = normalize(aside - (aside * x).sum(axis=1, keepdims=True) * x)
    turned: Vectors = (cosine * x + np.sqrt(1 - cosine**2) * aside).astype(np.float32)
    return turned


def test_equal_vectors_pass_with_a_difference_of_zero() -> None:
    found = compare_vectors(vectors(), vectors())
    assert found.passed
    assert {pair.difference for pair in found.pairs} == {0.0}
    assert found.overlap == 1.0


def test_int8_vectors_of_the_same_floats_pass() -> None:
    found = compare_vectors(vectors(), quantized(vectors()))
    assert found.passed
    assert 0.0 < max(pair.difference for pair in found.pairs) < 0.06


def test_permuted_dimensions_fail() -> None:
    order = np.random.default_rng(3).permutation(384)
    found = compare_vectors(vectors(), vectors()[:, order])
    assert not found.passed
    assert not found.looks_quantized


@pytest.mark.parametrize(("off", "passes"), [(0.0099, True), (0.0101, False)])
def test_one_component_may_differ_by_a_hundredth(off: float, passes: bool) -> None:
    b = vectors(1)
    b[0, 5] += off
    assert compare_vectors(vectors(1), b).passed is passes


@pytest.mark.parametrize(("length", "passes"), [(0.0599, True), (0.0601, False)])
def test_the_difference_score_must_be_below_six_hundredths(length: float, passes: bool) -> None:
    b = vectors(1) + np.float32(length / np.sqrt(384))
    found = compare_vectors(vectors(1), b)
    assert found.pairs[0].difference == pytest.approx(length, abs=1e-5)
    assert found.passed is passes


def test_a_model_at_two_precisions_fails_strictly_is_recognized_and_passes_by_cosine() -> None:
    a, b = vectors(), noisy(vectors(), 0.997)
    strict = compare_vectors(a, b)
    assert not strict.passed
    assert strict.looks_quantized
    assert "--min-cosine 0.98" in "\n".join(render(strict))
    assert compare_vectors(a, b, rule=Rule(min_cosine=0.98)).passed
    assert not compare_vectors(a, b, rule=Rule(min_cosine=0.999)).passed


def test_neighbours_are_compared_from_twenty_texts_on() -> None:
    assert compare_vectors(vectors(19), vectors(19)).overlap is None
    assert compare_vectors(vectors(20), vectors(20)).overlap == 1.0
    assert not compare_vectors(vectors(19), vectors(19), rule=Rule(min_overlap=0.5)).passed
    other = compare_vectors(vectors(40), vectors(40, seed=9), rule=Rule(min_cosine=-1.0, min_overlap=0.9))
    assert not other.passed


def test_other_widths_are_said_by_name() -> None:
    with pytest.raises(DimensionMismatchError, match=r"384 dimensions.*256"):
        compare_vectors(vectors(), vectors(d=256))


@pytest.mark.parametrize("b", [vectors(29), vectors(0), np.full((30, 384), np.nan, np.float32)])
def test_sides_that_cannot_be_compared_are_refused(b: Vectors) -> None:
    with pytest.raises(InputError):
        compare_vectors(vectors(), b)


def test_twenty_values_of_both_sides_and_the_scores_are_shown() -> None:
    lines = render(compare_vectors(vectors(3), quantized(vectors(3))))
    text = "\n".join(lines)
    assert lines[0].startswith("A: a, 3 texts in ")
    assert text.count("shape: (384,) first 20 values:") == 6
    assert text.count("Difference score: 0.0") == 3
    assert lines[-1].startswith("PASS: every component within 0.01 and every difference score below 0.06")


def test_the_record_is_json_without_texts() -> None:
    record = json.loads(json.dumps(compare_vectors(vectors(), quantized(vectors())).record()))
    assert record["passed"] is True
    assert len(record["sides"]["a"]["first_values"][0]) == 20
    assert record["texts"] == len(record["pairs"]) == 30
    assert record["cosine_min"] <= record["cosine_mean"] <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("spec", "model", "found"),
    [
        ("minilm", None, None),
        ("./folder", None, None),
        ("openai:text-embedding-3-small", None, None),
        ("http://h:1/v1#m/x", None, ("m/x", "http://h:1/v1")),
        ("https://h/v3", "m", ("m", "https://h/v3")),
    ],
)
def test_urls_of_servers_name_their_model(
    spec: str, model: str | None, found: tuple[str, str] | None
) -> None:
    assert server_of(spec, model) == found


@pytest.mark.parametrize("spec", ["http://h/v1", "http://me:hidden@h/v1#m"])
def test_a_url_without_model_or_with_a_password_is_refused(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        server_of(spec)
    assert "hidden" not in str(caught.value)


def test_a_model_of_a_model_is_refused() -> None:
    with pytest.raises(InputError, match="for URLs of servers"):
        run_sync(compare_models("minilm", "minilm", ["x"], model_b="m"))


def compared(*words: str) -> int:
    return main.run(["compare", *words])


def test_two_servers_of_one_model_pass_and_the_key_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with simulator_thread(Scenario()) as one, simulator_thread(Scenario()) as other:
        assert one.key == other.key
        monkeypatch.setenv("OPENAI_API_KEY", one.key)
        sides = [f"{sim.url}#text-embedding-3-small" for sim in (one, other)]
        assert compared(*sides, "--input", "hello world", "--input", "goodbye world", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] is True
    assert record["difference_max"] == 0.0
    assert record["sides"]["a"]["name"] == f"text-embedding-3-small at {one.url}"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("{url}#nobody", r"the server at {url} knows no model 'nobody': GET {url}/models"),
        ("{url}/v9#text-embedding-3-small", r"nothing answers POST {url}/v9/embeddings (404)"),
    ],
)
def test_what_a_server_does_not_know_is_told_of_its_url(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with simulator_thread(Scenario()) as sim:
        monkeypatch.setenv("OPENAI_API_KEY", sim.key)
        assert compared("minilm", url.format(url=sim.url), "--input", "hello world") == 1
        said = capsys.readouterr().err
        assert told.format(url=sim.url) in " ".join(said.split())
        assert "profile" not in said


def test_another_model_of_the_same_width_fails_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"text {i}" for i in range(25)), "utf-8")
    with simulator_thread(Scenario(models={"m": Model(384)})) as sim:
        monkeypatch.setenv("OPENAI_API_KEY", sim.key)
        words = ["minilm", sim.url, "--model-b", "m", "--input-file", str(tmp_path / "texts.txt")]
        assert compared(*words) == 1
    out = capsys.readouterr().out
    assert "FAIL: " in out
    assert "25 of 25 texts fail, the first is 0" in out
    assert "top-10 overlap" in out


def test_a_model_equals_itself_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert compared("minilm", "local:all-MiniLM-L6-v2", "--input", "hello world") == 0
    assert "Difference score: 0.0 " in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("--input", "x", "--input-file", __file__)])
def test_texts_come_from_one_place(words: tuple[str, ...]) -> None:
    assert compared("minilm", "minilm", *words) == 2
