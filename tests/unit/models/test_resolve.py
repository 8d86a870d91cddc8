"""A name means one model: listed names win over folders, paths say that they are paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmill.core.config import load_settings
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.models.resolve import canonical, known_models, register_model, shadowed_folder

BUILT_IN = "local:all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_listed_name_wins_over_a_folder_of_the_same_name(here: Path) -> None:
    settings = load_settings()
    register_model("mine", "minilm")
    for name in ("minilm", "all-MiniLM-L6-v2", "mine"):
        (here / name).mkdir()
        assert canonical(name, settings) == BUILT_IN
        assert canonical(f"./{name}", settings) == f"local:{here / name}"
        assert shadowed_folder(name) == Path(name)
        assert shadowed_folder(f"./{name}") is None


def test_a_folder_of_another_name_needs_no_mark(here: Path) -> None:
    (here / "models" / "x").mkdir(parents=True)
    for spec in ("models/x", "./models/x", "local:models/x", str(here / "models" / "x")):
        assert canonical(spec, load_settings()) == f"local:{here}/models/x"
        assert shadowed_folder(spec) is None
    assert shadowed_folder("nowhere") is None


def test_an_unknown_name_or_folder_is_said_with_close_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'minilmm'; did you mean 'minilm'"):
        canonical("minilmm", load_settings())
    with pytest.raises(UnknownNameError, match="unknown local model or folder 'nowhere'"):
        canonical("local:nowhere", load_settings())
    with pytest.raises(UnknownNameError, match="unknown model 'nobody:x'"):
        canonical("nobody:x", load_settings())


def test_names_that_stand_for_each_other_end_in_an_error(own_home: Path) -> None:
    (own_home / "models.toml").write_text('[models]\na = "b"\nb = "a"\n')
    with pytest.raises(UnknownNameError, match="unknown model 'a'"):
        canonical("a", load_settings())


@pytest.mark.parametrize("name", ["", "a/b", "x:y", ".x", "~x", "minilm", "all-MiniLM-L6-v2"])
def test_a_name_that_means_something_else_is_not_registered(name: str) -> None:
    with pytest.raises(InputError):
        register_model(name, "minilm")


def test_a_registered_name_is_listed_and_may_be_replaced(here: Path) -> None:
    (here / "m").mkdir()
    register_model("mine", "minilm")
    register_model("mine", "./m")
    assert [known.spec for known in known_models() if known.name == "mine"] == [f"local:{here}/m"]
