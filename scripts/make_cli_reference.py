"""Write docs/reference/cli.md from the commands' own help. With --check: say whether it is current."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["COLUMNS"] = "110"  # before click looks at the terminal

import click

from vecmill.cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Made from `vecmill --help` by `scripts/make_cli_reference.py`; a test keeps it current.

Results go to stdout, progress and notices to stderr. `--json` prints a stable form, one object per line.
`--debug`, before or after the command, adds the traceback of an error. Exit codes: 0 done; 1 could not run,
or a check failed; 2 wrong usage; 3 finished with failed rows; 4 parked, to be resumed; 130 interrupted, to be
resumed.
"""


def page() -> str:
    """Return the page's text."""
    return HEAD + "".join(f"\n## {title}\n\n```text\n{text}\n```\n" for title, text in sections())


def sections() -> Iterator[tuple[str, str]]:
    """Return (command line, help) of every command, groups before their members."""
    yield "vecmill", _help(cli, "vecmill")
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        if command is None:
            raise SystemExit(f"no command {name}")
        yield f"vecmill {name}", _help(command, f"vecmill {name}")
        if isinstance(command, click.Group):
            for sub, inner in command.commands.items():
                yield f"vecmill {name} {sub}", _help(inner, f"vecmill {name} {sub}")


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100)
    context.help_option_names = ["-h", "--help"]
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
