"""The public names exist, load on first use, and say what they do."""

from __future__ import annotations

import pytest

import vecmill


@pytest.mark.parametrize("name", vecmill.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(vecmill, name)
    assert name == "__version__" or value.__doc__


def test_names_that_do_not_exist_raise() -> None:
    with pytest.raises(AttributeError, match="embedd"):
        vecmill.embedd  # noqa: B018 - the access is the test


def test_dir_lists_the_public_names() -> None:
    assert set(dir(vecmill)) == set(vecmill.__all__)
