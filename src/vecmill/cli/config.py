"""`vecmill config`: the settings in force."""

from __future__ import annotations

from dataclasses import fields

import click

from vecmill.cli.output import emit, say, table
from vecmill.core.config import load_settings


@click.group()
def config() -> None:
    """Show the settings and where each comes from."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(as_json: bool) -> None:
    """Show each setting, its value and its origin.

    A value comes from the first of: an option, the environment (VECMILL_MODEL, …), vecmill.toml here,
    vecmill.toml in VECMILL_HOME, the default.
    """
    settings = load_settings()
    origins = settings.origins
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if as_json:
        emit({name: {"value": value, "origin": origins[name]} for name, value in values.items()})
        return
    say(*table([(name, str(value), origins[name]) for name, value in values.items()]))
