"""`vecmill cache`: the vectors that were computed once and are kept on this machine."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.exit_codes import FAILED_ROWS, OK
from vecmill.cli.output import count, emit, say, table, tell
from vecmill.core.config import load_settings
from vecmill.core.errors import ConfigError, InputError
from vecmill.core.space import short
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.embedder.cache.pickles import ImportReport
    from vecmill.embedder.cache.sqlite import SqliteCache
    from vecmill.embedder.cache.upkeep import CacheInfo, SpaceUse

_SECONDS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}
_SHOWN_PROBLEMS = 20


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a size, such as 500MB or "5 GiB"."""
    if value is None:
        return None
    try:
        return load_settings(cache_max_bytes=value).cache_max_bytes
    except ConfigError as error:
        raise click.BadParameter(f"{value!r} is no size; 500MB, 5GiB … would be", ctx, param) from error


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read hours, days or weeks, such as 30d, as seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})\s*([hdw])", value.strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is no span of time; 12h, 30d or 8w would be", ctx, param)
    return float(int(match[1]) * _SECONDS[match[2]])


@click.group()
def cache() -> None:
    """Show, prune, clear and fill the cache of vectors.

    What a hosted model was once paid for is kept in one file and never bought again.
    """


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Show where the cache is, its size and limit, and what it holds of each model."""
    found = _open().info()
    if as_json:
        emit(_record(found))
        return
    say(
        *table(
            [
                ("path", str(found.path)),
                ("size", f"{_size(found.file_bytes)}, of it in use {_size(found.used_bytes)}"),
                ("limit", _size(found.max_bytes)),
                ("vectors", f"{found.vectors:,}"),
                *(("set aside", f"{path.name} ({_size(path.stat().st_size)})") for path in found.set_aside),
            ]
        )
    )
    if found.spaces:
        header = ("space", "model", "dimensions", "vectors", "size", "used first", "used last")
        say("", *table([_row(use) for use in found.spaces], header, right=frozenset({2, 3, 4})))


@cache.command()
@click.option(
    "--max-size", callback=_bytes, metavar="SIZE", help="Drop the least recently used above it: 5GiB."
)
@click.option("--unused-for", callback=_span, metavar="SPAN", help="Drop what was unused for: 12h, 30d, 8w.")
@click.option("--space", metavar="SPACE", help="Drop only vectors of this space, as `info` shows it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prune(max_size: int | None, unused_for: float | None, space: str | None, as_json: bool) -> None:
    """Drop vectors and give their room back to the disk.

    --space and --unused-for together drop what meets both; --max-size then drops the least recently used of
    all the rest. Without options the cache is cut to its limit.
    """
    opened = _open()
    if max_size is None and unused_for is None and space is None:
        max_size = opened.max_bytes
    pruned = opened.prune(
        max_bytes=max_size,
        unused_since=None if unused_for is None else time.time() - unused_for,
        spaces=None if space is None else [_space(opened, space)],
    )
    if as_json:
        emit(asdict(pruned))
        return
    tell(f"dropped {count(pruned.vectors, 'vector')}; {_size(pruned.freed_bytes)} are free again")


@cache.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear(yes: bool, as_json: bool) -> None:
    """Drop every vector, and remove damaged files that were set aside.

    Hosted models are paid for again afterwards. Without a terminal --yes is needed.
    """
    opened = _open()
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError("there is no terminal to ask at; say --yes to drop every vector")
        vectors = count(opened.info().vectors, "vector")
        click.confirm(f"Drop {vectors} of {opened.path}?", abort=True, err=True)
    cleared = opened.clear()
    if as_json:
        emit(asdict(cleared))
        return
    tell(f"dropped {count(cleared.vectors, 'vector')}; {_size(cleared.freed_bytes)} are free again")


@cache.command("import", short_help="Import a pickled cache, {(text, engine): vector}.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "-m", "--model", "spec", metavar="SPEC", help="The model all vectors are of, whatever FILE says."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_(file: Path, spec: str | None, as_json: bool) -> int:
    """Import the pickle of a dict {(text, engine): vector}, as notebooks of 2023 kept it.

    Nothing in FILE is executed: a pickle that asks for more than numbers and texts is refused. Entries that
    are wrong are left out and listed; the exit code is 3 then. A text counts as it stands in FILE.
    """
    report = _import(file, spec)
    if as_json:
        emit(asdict(report))
    else:
        tell(
            f"imported {count(report.imported, 'vector')} of {count(report.entries, 'entry', 'entries')}; "
            f"{report.already:,} were there, {len(report.skipped):,} left out"
        )
        for problem in report.skipped[:_SHOWN_PROBLEMS]:
            tell(f"entry {problem.position}: {problem.reason}")
        if len(report.skipped) > _SHOWN_PROBLEMS:
            tell(f"… and {len(report.skipped) - _SHOWN_PROBLEMS:,} more; --json lists all")
    return FAILED_ROWS if report.skipped else OK


def _open() -> SqliteCache:
    from vecmill.embedder.cache.sqlite import open_cache

    return open_cache(load_settings())


def _import(file: Path, spec: str | None) -> ImportReport:
    from vecmill.embedder.cache.pickles import hosted_space, import_pickle, read_pickle_cache

    opened = _open()
    engines = {engine for _, engine, _ in read_pickle_cache(file, report=lambda _: None)}
    if spec is None:
        for engine in engines:
            opened.name_space(hosted_space(engine), engine)
        return import_pickle(file, opened)
    if len(engines) > 1:
        raise InputError(
            f"{file} holds vectors of {len(engines)} engines ({', '.join(sorted(engines))}), which are not "
            "comparable: they cannot all be of one model; leave --model out"
        )
    name, space, dimensions = _model(spec)
    opened.name_space(space, name)
    return import_pickle(file, opened, spaces=lambda _: space, dimensions=lambda _: dimensions)


def _model(spec: str) -> tuple[str, str, int]:
    """Return a model's name, space and full size, without a key where the catalogue knows it."""
    from vecmill.core import catalog
    from vecmill.embedder.cache.pickles import hosted_space

    known = catalog.entry(spec)
    if known is not None and known.provider != "local":
        return known.model, hosted_space(known.model), known.dimensions
    name, space, width = run_sync(_opened(spec))
    if not width:
        raise InputError(
            f"nobody knows yet how many dimensions {name} has: say in its profile which model it serves, or "
            "embed one text with it first"
        )
    return name, space, width


async def _opened(spec: str) -> tuple[str, str, int]:
    from vecmill.models.resolve import open_model

    provider = await asyncio.to_thread(open_model, spec, settings=load_settings())
    try:
        return provider.info.name, provider.info.space, provider.info.width
    finally:
        await provider.close()


def _space(opened: SqliteCache, given: str) -> str:
    """Return the space that begins like this."""
    spaces = sorted({use.space for use in opened.info().spaces})
    found = [space for space in spaces if given and space.startswith(given.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{given} begins several spaces: {', '.join(found)}; say more of it")
    known = ", ".join(short(space) for space in spaces) or "none"
    raise InputError(f"the cache holds nothing of space {given!r}; it holds: {known}")


def _record(found: CacheInfo) -> dict[str, Any]:
    spaces = [
        {
            **asdict(use),
            "model": _name(use) or None,
            **{name: _when(getattr(use, name)) for name in ("first_seen", "oldest_use", "newest_use")},
        }
        for use in found.spaces
    ]
    return {**asdict(found), "vectors": found.vectors, "spaces": spaces}


def _row(use: SpaceUse) -> tuple[str, ...]:
    return (
        short(use.space),
        _name(use),
        str(use.dimensions),
        f"{use.vectors:,}",
        _size(use.vector_bytes),
        _when(use.oldest_use)[:10],
        _when(use.newest_use)[:10],
    )


def _name(use: SpaceUse) -> str:
    """Return the name of a space's model: as it was given, or of the catalogue's model with this space."""
    from vecmill.core import catalog
    from vecmill.embedder.cache.pickles import hosted_space

    if use.model:
        return use.model
    hosted = {known.model for known in catalog.entries() if known.provider != "local"}
    return next((model for model in sorted(hosted) if hosted_space(model) == use.space), "")


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _size(size: int) -> str:
    """Return bytes for people: "0 B", "12.3 MiB"."""
    amount, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
