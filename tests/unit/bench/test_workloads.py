from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vecmill.bench.workloads import mixed_lengths, read_stories, read_texts, synthetic_stories
from vecmill.core.errors import InputError

STORIES = [("One", "first story"), ("Two", "second story"), ("Three", "third story")]


def test_equal_seeds_give_equal_texts() -> None:
    assert mixed_lengths(STORIES, 50, seed=1) == mixed_lengths(STORIES, 50, seed=1)
    assert mixed_lengths(STORIES, 50, seed=1) != mixed_lengths(STORIES, 50, seed=2)


def test_lengths_are_mixed_as_documented() -> None:
    texts = mixed_lengths([("T", "d")], 12_000)
    counts = [texts.count(text) / 12_000 for text in ("T", "T. d", "T. d T. d", "T. d T. d T. d")]
    np.testing.assert_allclose(counts, [4 / 12, 5 / 12, 2 / 12, 1 / 12], atol=0.02)


def test_no_text_comes_twice_where_the_stories_allow_it() -> None:
    stories = [(f"title {i}", f"description {i}") for i in range(500)]
    assert len(set(mixed_lengths(stories, 300))) == 300


def test_no_stories_raise() -> None:
    with pytest.raises(InputError, match="no stories"):
        mixed_lengths([], 3)


def test_stories_come_from_the_first_two_columns(tmp_path: Path) -> None:
    file = tmp_path / "news.csv"
    file.write_text('\ufefftitle,description,label\nA,"b, c",1\n,empty,2\nD,e,3\n', "utf-8")
    assert read_stories(file) == [("A", "b, c"), ("D", "e")]


@pytest.mark.parametrize("content", ["", "only\none\n", "two,columns\n"])
def test_a_file_without_stories_raises_naming_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=r"x\.csv: needs two columns"):
        read_stories(file)


def test_synthetic_stories_differ_in_length() -> None:
    lengths = [len(text) for text in mixed_lengths(synthetic_stories(), 256)]
    assert max(lengths) > 10 * min(lengths)
    assert min(lengths) > 5


def test_texts_are_drawn_from_tables_without_doubles_and_blanks(tmp_path: Path) -> None:
    lines = [f"{n},text {n % 1500}" for n in range(3000)] + ["x,", "y,  "]
    (tmp_path / "a.csv").write_text("id,body\n" + "\n".join(lines) + "\n")
    drawn = read_texts([tmp_path / "a.csv"], 100, text="body", seed=3)
    assert len(set(drawn)) == 100
    assert drawn == read_texts([tmp_path / "a.csv"], 100, text="body", seed=3)
    assert drawn != read_texts([tmp_path / "a.csv"], 100, text="body", seed=4)
    assert set(drawn) <= {f"text {n}" for n in range(1500)}
    assert len(set(read_texts([tmp_path / "a.csv"], 1500, text="body"))) == 1500
    (one, _) = read_texts([tmp_path / "a.csv"], 2, template="no. {id}")
    assert one.startswith("no. ")
    with pytest.raises(InputError, match="1500 different texts are there, 1501 are asked for"):
        read_texts([tmp_path / "a.csv"], 1501, text="body")
