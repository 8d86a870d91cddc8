"""`vecmill bench`: measurements of this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click

from vecmill.cli.output import emit, plain, say, tell
from vecmill.core.config import load_settings


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option(
    "--model",
    "folder",
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="Full-precision weights.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE.csv",
    help="Columns title, description.",
)
@click.option("--texts", type=click.IntRange(min=2), default=256, show_default=True, help="Texts of a round.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Rounds kept.")
@click.option("--starts", type=click.IntRange(min=0), default=5, show_default=True, help="Cold starts kept.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Cores of each system."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and the texts.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE.json", help="Write the result file."
)
@click.option(
    "--peer-python", type=click.Path(exists=True, dir_okay=False), help="Interpreter that has the peers."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def local(
    folder: str | None,
    data: str | None,
    texts: int,
    output: str | None,
    peer_python: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare this package with others on the same texts, machine and moment.

    Runs our engine, sentence-transformers, and ONNX Runtime the way fastembed does, in turns; prints rates,
    ratios with their intervals, and how near the vectors are to full precision. Peers need `vecmill[bench]`
    and --model; without them the built-in model is measured alone. Takes minutes.
    """
    from vecmill.bench import workloads
    from vecmill.bench.local import run_local
    from vecmill.bench.report import render

    if data is None:
        stories, source = workloads.synthetic_stories(seed=given["seed"]), "synthetic sentences"
    else:
        stories, source = workloads.read_stories(Path(data)), Path(data).name
    report = run_local(
        model_folder=None if folder is None else Path(folder),
        texts=workloads.mixed_lengths(stories, texts, seed=given["seed"]),
        source=f"{source}, mixed lengths",
        out=None if output is None else Path(output),
        peer_python=None if peer_python is None else Path(peer_python),
        settings=load_settings(),
        command=" ".join(["vecmill", *sys.argv[1:]]),
        say=tell,
        **given,
    )
    if as_json:
        emit(asdict(report) if is_dataclass(report) else report)
        return
    say(*(plain(line, keep_lines=True) for line in render(report)))
