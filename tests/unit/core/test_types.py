"""Names of choices are checked where they are given."""

from __future__ import annotations

import pytest

from vecmill.core.errors import UnknownNameError
from vecmill.core.types import EmptyText, LongText, choice


def test_a_choice_is_taken_by_value_or_member() -> None:
    assert choice(LongText, "average", "long_text") is LongText.AVERAGE
    assert choice(EmptyText, EmptyText.SKIP, "empty") is EmptyText.SKIP


def test_an_unknown_choice_names_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown long_text 'avrage'; did you mean 'average'"):
        choice(LongText, "avrage", "long_text")
    with pytest.raises(UnknownNameError, match="unknown empty 'x'; known: embed, error, skip"):
        choice(EmptyText, "x", "empty")


def test_a_value_of_another_kind_is_no_choice() -> None:
    with pytest.raises(UnknownNameError, match="unknown empty 'None'"):
        choice(EmptyText, None, "empty")  # type: ignore[arg-type]  # on purpose
