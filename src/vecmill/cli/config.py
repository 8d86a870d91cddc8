"""`vecmill config`: the settings in force, the profiles, and which projects' files are trusted."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from vecmill.cli.output import emit, say, table, tell
from vecmill.core.config import FILE_NAME, Profile, Settings, load_settings


@click.group()
def config() -> None:
    """Show the settings and where each comes from."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(as_json: bool) -> None:
    """Show each setting, its value and its origin, then profiles and aliases.

    A value comes from the first of: an option, the environment (VECMILL_MODEL, …), vecmill.toml here,
    vecmill.toml in VECMILL_HOME, the default. Keys are shown by reference, never themselves.
    """
    settings = load_settings()
    origins = settings.origins
    values = {
        field.name: getattr(settings, field.name) for field in fields(settings) if field.name in origins
    }
    if as_json:
        shown: dict[str, Any] = {
            name: {"value": value, "origin": origins[name]} for name, value in values.items()
        }
        shown["profiles"] = {name: _record(profile) for name, profile in settings.profiles.items()}
        shown["aliases"] = dict(settings.aliases)
        emit(shown)
        return
    say(*table([(name, _cell(value), origins[name]) for name, value in values.items()]))
    _say_profiles(settings)
    if settings.aliases:
        say("", *table(list(settings.aliases.items()), ("alias", "stands for")))


def _say_profiles(settings: Settings) -> None:
    for profile in settings.profiles.values():
        record = _record(profile)
        trusted = {True: " (trusted)", False: " (not trusted)", None: ""}[record.pop("trusted")]
        say("", *table([(f"profile {profile.name}", f"{record.pop('origin')}{trusted}")]))
        say(*table([(f"  {name}", _cell(value)) for name, value in record.items()]))


def _record(profile: Profile) -> dict[str, Any]:
    """Return what a profile says; `trusted` is None for the user's own file, which needs no trust."""
    from vecmill.core.trust import trusted

    said = {
        name: value
        for name, value in asdict(profile).items()
        if name not in ("name", "origin", "project", "digest")
        and value not in (None, {})
        and (name, value) != ("allow_http", False)
    }
    own = None if not profile.project else trusted(Path(profile.origin), profile.digest)
    return {"origin": profile.origin, "trusted": own, **said}


@config.command(short_help="Let a project's file say where texts and keys go.")
@click.argument("path", type=click.Path(path_type=Path), default=FILE_NAME)
@click.option("--remove", is_flag=True, help="Trust it no longer.")
def trust(path: Path, remove: bool) -> None:
    """Let PATH, a project's vecmill.toml, say where texts and keys go: base URLs, headers, certificates.

    Read the file first. Its present content is trusted; once it changes, you are asked again.
    """
    from vecmill.core import trust as trusts

    path = path / FILE_NAME if path.is_dir() else path
    if remove:
        was = trusts.distrust(path)
        tell(f"{path.resolve()} is trusted no longer" if was else f"{path.resolve()} was not trusted")
        return
    trusts.trust(path)
    tell(f"trusted as it is now: {path.resolve()}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return str(value)
