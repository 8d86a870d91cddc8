"""An unknown name is answered by close ones, at a cost that does not grow with how many there are."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from typing import Any

import pytest

from vecmill.core.errors import unknown_name


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many names each call compares letter by letter."""
    counts: list[int] = []
    inner = difflib.get_close_matches

    def counting(word: str, possibilities: Sequence[str], **options: Any) -> list[str]:
        counts.append(len(possibilities))
        return inner(word, possibilities, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counting)
    return counts


def test_close_names_come_first_else_all_are_listed() -> None:
    assert str(unknown_name("column", "prize", ["price", "id"])) == (
        "unknown column 'prize'; did you mean 'price'?"
    )
    assert str(unknown_name("column", "xyz", ["b", "a"])) == "unknown column 'xyz'; known: a, b"
    assert str(unknown_name("column", "xyz", [])) == "unknown column 'xyz'; none is known"


def test_of_many_names_twenty_are_listed_in_order(compared: list[int]) -> None:
    names = [f"{number:05}" for number in range(5000)]
    said = str(unknown_name("id", "a long one that is like none", reversed(names)))
    assert said == f"unknown id 'a long one that is like none'; known: {', '.join(names[:20])}, …"


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ("https://example.org/items/0123x56", "https://example.org/items/0123456"),
        ("https://example.org/items/01234567", "https://example.org/items/0123456"),
        ("https://example.org/itms/0123456", "https://example.org/items/0123456"),
        ("ttps://example.org/items/0123456", "https://example.org/items/0123456"),
    ],
)
def test_of_many_alike_names_the_close_ones_are_found_without_comparing_all(
    asked: str, right: str, compared: list[int]
) -> None:
    names = [f"https://example.org/items/{number:07}" for number in range(0, 400_000, 8)]
    random.Random(1).shuffle(names)
    said = str(unknown_name("id", asked, names))
    assert f"{right[:-3]}" in said
    assert right in said or asked.endswith("x56")
    assert max(compared) <= 200


def test_names_without_end_are_not_compared(compared: list[int]) -> None:
    assert "known: " in str(unknown_name("id", "x" * 100_000, ["y" * 100_000]))
    assert compared == [0]


def test_a_name_is_suggested_once() -> None:
    assert str(unknown_name("id", "row11", ["row1", "row1"])).endswith("did you mean 'row1'?")
