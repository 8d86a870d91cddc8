"""A package that is not there is named with the extra that brings it; a broken one says what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vecmill.core.errors import MissingExtraError
from vecmill.core.extras import installed, require


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are imported from, with a package `tests_mill` in it."""
    (tmp_path / "tests_mill").mkdir()
    (tmp_path / "tests_mill" / "__init__.py").write_text("")
    (tmp_path / "tests_mill" / "broken.py").write_text("import tests_mill_needs_this\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("tests_mill")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_part_of_a_package_may_be_missing(packages: Path) -> None:
    assert require("tests_mill", extra="x").__name__ == "tests_mill"
    assert installed("tests_mill.broken")
    assert not installed("tests_mill.grain")
    assert not installed("tests_nowhere.grain.flour")
    with pytest.raises(MissingExtraError, match=r"'tests_mill.grain'.* pip install 'vecmill\[x\]'"):
        require("tests_mill.grain", extra="x")


def test_a_broken_package_raises_its_own_error(packages: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="tests_mill_needs_this") as caught:
        require("tests_mill.broken", extra="x")
    assert not isinstance(caught.value, MissingExtraError)
