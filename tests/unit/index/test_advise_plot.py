from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core import extras
from vecmill.core.errors import InputError, MissingExtraError
from vecmill.index.advise import Advice, advise
from vecmill.index.advise_plot import plot
from vecmill.index.settings import IndexKind


@pytest.fixture(scope="module")
def advice() -> Advice:
    vectors = np.random.default_rng(0).standard_normal((1500, 64)).astype(np.float32)
    return advise(vectors, sample=1000, queries=100, kinds=[IndexKind.FLAT], shorten=[32])


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_picture_is_of_the_kind_its_name_says(
    advice: Advice, tmp_path: Path, name: str, begins: bytes
) -> None:
    plot(advice, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_picture_names_the_choice_every_family_and_the_target(advice: Advice, tmp_path: Path) -> None:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # letters as letters, not as outlines
        plot(advice, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text("utf-8")
    for words in (f"advised: {advice.choice.family}", "target 0.99", *{one.family for one in advice.choices}):
        assert words in drawn
    assert "<dc:date>" not in drawn


def test_a_picture_of_an_unknown_kind_is_refused(advice: Advice, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        plot(advice, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(
    advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with pytest.raises(MissingExtraError, match=r"vecmill\[viz\]"):
        plot(advice, tmp_path / "a.png")


def test_drawing_needs_no_screen(advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        assert name != "matplotlib.pyplot"
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    plot(advice, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def drawn(advice: Advice, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw and return the axes."""
    from matplotlib.figure import Figure

    seen: list[Any] = []
    real = Figure.savefig

    def kept(self: Any, *rest: Any, **options: Any) -> None:
        seen.append(self)
        real(self, *rest, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    plot(advice, path)
    return seen[0].axes[0]


def test_every_marker_stands_at_the_bytes_of_its_choice(
    advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(advice, tmp_path / "a.png", monkeypatch)
    found = {float(x) for bars in axes.containers for x in bars.lines[0].get_xdata()}
    assert found == {choice.bytes_per_vector for choice in advice.choices}
    circle = next(line for line in axes.lines if line.get_label() == "advised")
    assert list(circle.get_xdata()) == [advice.choice.bytes_per_vector]


def test_the_front_and_the_choice_are_named_and_no_words_cover_others(
    advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = drawn(advice, tmp_path / "a.png", monkeypatch)
    assert advice.choice.family in {text.get_text() for text in axes.texts}
    assert len(axes.texts) < len(advice.choices)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])
