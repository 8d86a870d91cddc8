"""Every command loads, every error has an exit code, and nothing prints a traceback unasked."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from vecmill import __version__
from vecmill.cli import exit_codes, main
from vecmill.core import errors


def every_error(kind: type[errors.Error] = errors.Error) -> Iterator[type[errors.Error]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith("vecmill."):
            yield from every_error(child)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `vecmill fail` that raises what the list holds."""
    raised: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise raised[0]

    module = type(sys)("tests_failing_command")
    module.fail = fail  # type: ignore[attr-defined]  # a module made for this test
    monkeypatch.setitem(sys.modules, "tests_failing_command", module)
    monkeypatch.setitem(main.COMMANDS, "fail", ("tests_failing_command:fail", "Fail."))
    return raised


@pytest.mark.parametrize("kind", sorted(set(every_error()), key=lambda kind: kind.__name__))
def test_every_error_has_its_own_exit_code(kind: type[errors.Error]) -> None:
    assert exit_codes.EXIT_CODES[kind] in (exit_codes.COULD_NOT_RUN, exit_codes.PARKED)


def test_the_table_is_complete() -> None:
    assert set(exit_codes.EXIT_CODES) == set(every_error())


@pytest.mark.parametrize("kind", sorted(exit_codes.EXIT_CODES, key=lambda kind: kind.__name__))
def test_an_error_is_one_line_and_its_exit_code(
    kind: type[errors.Error], failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(kind("the mill stands still"))
    assert main.run(["fail"]) == exit_codes.EXIT_CODES[kind]
    said = capsys.readouterr()
    assert said.err == "error: the mill stands still\n"
    assert said.out == ""


def test_an_error_of_another_package_takes_its_parents_code(failing: list[BaseException]) -> None:
    class Elsewhere(errors.QuotaExhaustedError):
        pass

    assert exit_codes.exit_code(Elsewhere("x")) == exit_codes.PARKED


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_adds_the_traceback(
    arguments: list[str], failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(errors.InputError("no such thing"))
    assert main.run(arguments) == exit_codes.COULD_NOT_RUN
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error: no such thing\n")


def test_an_unexpected_exception_is_one_line_that_names_debug(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(ZeroDivisionError("division by zero"))
    assert main.run(["fail"]) == exit_codes.COULD_NOT_RUN
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in said
    assert "--debug" in said


def test_control_characters_in_an_error_do_not_reach_the_terminal(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(errors.InputError("file \x1b[2Jevil\x07.csv"))
    main.run(["fail"])
    assert capsys.readouterr().err == "error: file evil.csv\n"


def test_an_interrupt_is_130(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(KeyboardInterrupt())
    assert main.run(["fail"]) == main.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nosuchcommand"], ["embed"], ["embed", "x.csv"], ["search", "a", "--nosuchoption"], []]
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == main.USAGE
    assert "vecmill" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_loads_and_its_help_begins_with_the_tables_line(name: str) -> None:
    module, _, attribute = main.COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    assert command.help.startswith(main.COMMANDS[name][1])


def test_plurals_are_understood_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "list"]) == 0
    assert "all-MiniLM-L6-v2" in capsys.readouterr().out
    assert main.run(["--help"]) == 0
    assert "\n  models " not in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vecmill, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom vecmill.cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        "heavy = {'numpy', 'openvino', 'pyarrow', 'tokenizers', 'rich', 'aiohttp', 'pydantic', 'tiktoken'}\n"
        "found = heavy & set(sys.modules)\nassert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), name)
            assert child is not None
            yield from every_command(child, (*path, name))


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main.cli
    for name in path:
        assert isinstance(command, click.Group)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    return command


@pytest.mark.parametrize("path", list(every_command(main.cli)), ids=" ".join)
def test_a_help_page_has_its_examples_one_per_line(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main.run([*path, "--help"]) == 0
    said = capsys.readouterr().out
    assert "\\b" not in said
    assert "\b" not in said
    starts = ("  vecmill ", "  zcat ")
    shown = [line for line in said.splitlines() if line.startswith(starts)]
    lines = [f"  {line.strip()}" for line in (command_at(path).help or "").splitlines()]
    assert shown == [line for line in lines if line.startswith(starts)]
    assert path not in ((), ("embed",), ("search",), ("sync",)) or len(shown) >= 3


def test_an_interrupt_says_what_is_kept_where_something_is(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(KeyboardInterrupt())
    assert main.run(["fail"]) == main.INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted"
    failing[0] = KeyboardInterrupt("half of it is kept")
    assert main.run(["fail"]) == main.INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted; half of it is kept"


def test_a_mistyped_command_is_answered_with_a_close_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["serach", "x"]) == main.USAGE
    assert "unknown command 'serach'; did you mean 'search'" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(PermissionError(13, "Permission denied", "/closed/file"))
    assert main.run(["fail"]) == exit_codes.COULD_NOT_RUN
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: '/closed/file'\n"
