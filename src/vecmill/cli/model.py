"""`vecmill model`: which models there are, and names for one's own."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vecmill.cli.output import emit, say, table, tell
from vecmill.core.config import load_settings
from vecmill.core.errors import InputError
from vecmill.core.space import short
from vecmill.embedder.background import run_sync


@click.group()
def model() -> None:
    """List, show and register models."""


@model.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def list_(as_json: bool) -> None:
    """List the models that have a name here."""
    from vecmill.models.resolve import known_models

    models = known_models(load_settings())
    if as_json:
        emit([asdict(known) for known in models])
        return
    header = ("name", "also", "dimensions", "tokens", "price", "key", "origin", "what it is")
    rows = [
        (
            known.spec if known.hosted else known.name,
            " ".join(known.aliases),
            str(known.dimensions or ""),
            str(known.max_tokens or ""),
            _price(known.usd_per_million_tokens) if known.provider else "",
            known.key,
            known.origin,
            known.description or known.spec,
        )
        for known in models
    ]
    say(*table(rows, header, right=frozenset({2, 3})))


@model.command()
@click.argument("name", metavar="MODEL")
@click.option("--device", metavar="DEVICE", help="Where it runs: CPU, GPU, NPU, AUTO.")
@click.option("--precision", type=click.Choice(["float32", "int8"]), help="What it computes in.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, device: str | None, precision: str | None, as_json: bool) -> None:
    """Show what is known of MODEL; a local one is opened, a hosted one is not asked.

    MODEL is a name of `vecmill model list`, provider:model, or a folder. A listed name wins over a folder
    of the same name here, which is then meant by ./NAME.
    """
    from vecmill.models.resolve import HOSTED, canonical, shadowed_folder

    settings = load_settings()
    hosted = canonical(name, settings).partition(":")[0] in HOSTED
    if hosted and (device or precision):
        raise click.UsageError("--device and --precision are for local models")
    described = _describe_hosted(name) if hosted else run_sync(_describe(name, device, precision))
    if (folder := shadowed_folder(name)) is not None:
        tell(f"note: {name} is a name of `vecmill model list`; the folder here is meant by ./{folder}")
    if as_json:
        emit(described)
        return
    shown = _for_people(described) if hosted else {**described, "space": short(described["space"])}
    rows = [
        (key.replace("_", " "), _cell(value)) for key, value in shown.items() if value not in (None, (), "")
    ]
    say(*table(rows))


@model.command(short_help="Give a model a name of your own.")
@click.argument("name", metavar="NAME")
@click.argument("spec", metavar="SPEC")
def register(name: str, spec: str) -> None:
    """Give a model a name of your own: NAME then stands for SPEC, a folder or provider:model."""
    from vecmill.models.resolve import register_model

    register_model(name, spec, settings=load_settings())
    tell(f"registered: {name} stands for {spec}; use it with -m {name}")


@model.command(short_help="Write what a model folder must answer before it is served.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--texts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with a text on each line. [default: texts of many scripts and lengths]",
)
@click.option("--atol", default=1e-3, show_default=True, help="How far a number may be off later.")
def golden(folder: Path, texts: Path | None, atol: float) -> None:
    """Write FOLDER's golden.json: texts and the vectors this machine computes for them.

    `vecmill serve` embeds the texts of a new version before it serves it, and refuses the version where a
    number differs by more. Each text is embedded as a document and as a query.
    """
    from vecmill.models.resolve import open_model
    from vecmill.server import golden as files

    lines = None if texts is None else [t for t in texts.read_text("utf-8").splitlines() if t.strip()]
    if lines == []:
        raise InputError(f"{texts} holds no text: write one on each line")
    files.check_atol(atol, "--atol")

    async def write() -> Path:
        provider = open_model(str(folder.absolute()), settings=load_settings())
        try:
            return await files.write(provider, folder, lines, atol=atol)
        finally:
            await provider.close()

    path = asyncio.run(write())
    written = files.read(folder)
    count = 0 if written is None else len(written.texts)
    say(f"{path}: {count} texts as documents and as queries, each number to be within {atol:g}")


def _describe_hosted(name: str) -> dict[str, Any]:
    from vecmill.models.resolve import describe_model

    return asdict(describe_model(name, settings=load_settings()))


def _for_people(described: dict[str, Any]) -> dict[str, Any]:
    """Say of a hosted model what is unknown, and of when a price is."""
    shown = dict(described)
    for key in ("usd_per_million_tokens", "batch_usd_per_million_tokens", "priced", "source"):
        shown.pop(key)
    shown["dimensions"] = described["dimensions"] or "unknown until it is asked"
    shown["mrl"] = "unknown" if described["mrl"] is None else described["mrl"]
    shown["price"] = _price(described["usd_per_million_tokens"])
    if (batch := described["batch_usd_per_million_tokens"]) is not None:
        shown["price"] += f"; by the Batch API {_price(batch)}"
    if described["priced"]:
        shown["price"] += f" ({described['source']}, {described['priced']})"
    return shown


def _price(usd: float | None) -> str:
    if usd is None:
        return "unknown"
    return f"${usd:g} per million tokens" if usd else "free"


async def _describe(name: str, device: str | None, precision: str | None) -> dict[str, Any]:
    from vecmill.models.resolve import open_model

    provider = await asyncio.to_thread(
        open_model, name, settings=load_settings(), device=device, precision=precision
    )
    try:
        return asdict(provider.info)
    finally:
        await provider.close()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(value) if isinstance(value, tuple) else str(value)
