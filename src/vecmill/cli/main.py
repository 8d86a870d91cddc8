"""The command line: which commands there are, and what becomes of their errors.

`vecmill --help` imports no command: each is loaded when it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from vecmill._version import __version__
from vecmill.cli.exit_codes import COULD_NOT_RUN, INTERRUPTED, OK, USAGE, exit_code
from vecmill.cli.output import plain, quiet_stdout
from vecmill.core import errors
from vecmill.core.addresses import without_password

COMMANDS: dict[str, tuple[str, str]] = {
    "embed": ("vecmill.cli.embed:embed", "Embed every row of tables into one vector set."),
    "search": ("vecmill.cli.search:search", "Find the rows nearest to a text or a vector."),
    "similar": ("vecmill.cli.search:similar", "Find the rows nearest to one of SOURCE's own."),
    "index": ("vecmill.cli.index:index", "Build, change and measure collections: what is searched."),
    "sync": (
        "vecmill.cli.sync:sync",
        "Bring a set, collection or PostgreSQL table up to date with a table that changed.",
    ),
    "info": ("vecmill.cli.sets:info", "Show what a vector set or a collection says about itself."),
    "verify": (
        "vecmill.cli.sets:verify",
        "Check a vector set against itself and its model, or the bytes of a collection.",
    ),
    "model": ("vecmill.cli.model:model", "List, show and register models."),
    "job": ("vecmill.cli.job:job", "List the jobs of this machine, and go on with one."),
    "cache": ("vecmill.cli.cache:cache", "Show, prune, clear and fill the cache of vectors."),
    "config": ("vecmill.cli.config:config", "Show the settings and where each comes from."),
    "serve": ("vecmill.cli.serve:serve", "Serve models over HTTP as OpenAI does."),
    "compare": (
        "vecmill.cli.compare:compare",
        "Check that two models or servers give the same vectors.",
    ),
    "bench": ("vecmill.cli.bench:bench", "Measure this machine."),
    "key": ("vecmill.cli.key:key", "Make, list and remove the API keys of the server."),
    "simulate": (
        "vecmill.cli.simulate:simulate",
        "Serve made-up vectors as OpenAI, Azure OpenAI and GitHub Models would.",
    ),
    "demo": ("vecmill.cli.demo:demo", "Embed a small table that comes with the package, and search it."),
}
"""name -> ("module:attribute", first line of its help), in the order of the help page."""

ALIASES = {"models": "model", "jobs": "job", "caches": "cache", "indexes": "index", "keys": "key"}
"""Plurals people type; understood, not shown."""


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command of this name, or return None."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(str(errors.unknown_name("command", args[0], COMMANDS)), ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader of its output who leaves early is no error."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            quiet_stdout()
            return OK
        return result

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="vecmill")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Turn tables of text into vectors you can search, serve and trust.

    A model comes with the package and runs here; hosted ones are named with -m. Results go to stdout,
    progress to stderr.

    \b
    vecmill demo
    vecmill embed reviews.csv --text review -o reviews.parquet
    vecmill search reviews.parquet "arrived broken"
    """  # noqa: D301 - the character by which click keeps the lines


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one line on stderr."""
    _replace_closed_streams()
    given, debug = _without_debug(list(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    try:
        result: Any = cli.main(args=given, prog_name="vecmill", standalone_mode=False)
        return result if isinstance(result, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        vars(error)["message"] = without_password(error.message)
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        why = str(error.__cause__ or error)
        _say(f"interrupted; {why}" if why else "interrupted")
        return INTERRUPTED
    except errors.Error as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {error}")
        return exit_code(error)
    except OSError as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {error}")
        return COULD_NOT_RUN
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            _say(f"unexpected error: {what}; run it again with --debug for the details")
        return COULD_NOT_RUN


def main() -> NoReturn:
    """Run the command line and leave the process.

    After an interrupt it is left at once: a thread that waits for more of standard input would hold it
    until the end of that. What must not be torn was waited for by `run_sync`.
    """
    warnings.showwarning = _note
    code = run()
    if code == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Open the null device for a standard stream that is closed, lest a file of ours takes its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - to the end


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take `--debug` out, wherever it stands before a `--`, so that it works after the command too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head = [argument for argument in arguments[:end] if argument != "--debug"]
    return head + arguments[end:], len(head) < end


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - as `warnings.showwarning` has it
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Show a warning meant for users as one line; those meant for programmers are theirs."""
    if issubclass(category, UserWarning):
        _say(f"note: {message}")
    else:
        logging.getLogger(__name__).debug("%s: %s %s", category.__name__, message, (filename, lineno))


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        click.echo(plain(without_password(message), keep_lines=True), err=True)
