"""`vecmill bench`: measurements of this machine."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click

from vecmill.cli.exit_codes import COULD_NOT_RUN, OK
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
    "--input", "inputs", multiple=True, metavar="INPUT", help="Texts to draw from, as `embed` reads."
)
@click.option("--text", "column", metavar="COLUMN", help="The column of the texts of --input.")
@click.option("--template", metavar="TEMPLATE", help="Make the texts of --input.")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE.csv",
    help="Stories, title and description, joined to mixed lengths.",
)
@click.option(
    "--texts",
    type=click.IntRange(min=2),
    default=256,
    show_default=True,
    metavar="N",
    help="Texts of a round.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True, metavar="N", help="Rounds kept."
)
@click.option(
    "--starts",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Cold starts kept.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Cores of each system.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of the order and the texts."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), metavar="FILE.json", help="Write the result file."
)
@click.option(
    "--peer-python", type=click.Path(exists=True, dir_okay=False), help="Interpreter that has the peers."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def local(
    folder: str | None,
    inputs: tuple[str, ...],
    column: str | None,
    template: str | None,
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

    The texts are synthetic ones of mixed lengths, or drawn from --input or --data.

    \b
    vecmill bench local
    vecmill bench local --input reviews.csv --text review --model ./all-MiniLM-L6-v2 -o result.json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench import workloads
    from vecmill.bench.local import run_local
    from vecmill.bench.report import render

    if inputs and data is not None:
        raise click.UsageError("--input and --data are both given: use one")
    if (column or template) and not inputs:
        raise click.UsageError("--text and --template choose from the columns of --input: give that too")
    seed = given["seed"]
    if inputs:
        drawn = workloads.read_texts(inputs, texts, text=column, template=template, seed=seed)
        source = ", ".join(Path(name).name for name in inputs)
    else:
        stories = (
            workloads.synthetic_stories(seed=seed) if data is None else workloads.read_stories(Path(data))
        )
        drawn = workloads.mixed_lengths(stories, texts, seed=seed)
        source = ("synthetic sentences" if data is None else Path(data).name) + ", mixed lengths"
    report = run_local(
        model_folder=None if folder is None else Path(folder),
        texts=drawn,
        source=source,
        files=[path for path in map(Path, [*inputs, *([data] if data else [])]) if path.is_file()],
        out=None if output is None else Path(output),
        peer_python=None if peer_python is None else Path(peer_python),
        settings=load_settings(),
        command=shlex.join(["vecmill", *sys.argv[1:]]),
        say=tell,
        **given,
    )
    if as_json:
        emit(asdict(report) if is_dataclass(report) else report)
        return
    say(*(plain(line, keep_lines=True) for line in render(report)))


@bench.command()
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests of a round, 64 texts each.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True, metavar="N", help="Rounds kept."
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="N",
    help="Rows of a round sent by a request each.",
)
@click.option("--full", is_flag=True, help="Send 2,000 rows that way too, once: 100 s.")
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Of the order and the texts."
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write the result file.",
)
@click.option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter that has the SDK.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def client(as_json: bool, **given: Any) -> int:
    """Compare what asking a hosted model costs here and through the openai SDK.

    A simulated provider answers on this machine; nothing is sent elsewhere. Prints how many times fewer CPU
    seconds a text takes the provider alone and the whole Embedder (tokens counted, replies checked, cache
    written), and how many times fewer wall seconds 2,000 rows take than a request for each, where a reply
    takes 50 ms. Exits with 1 where one is below its gate. Takes a minute; the SDK comes with `vecmill[test]`.

    \b
    vecmill bench client
    vecmill bench client --rounds 15 --full -o result.json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.client import run_client
    from vecmill.bench.client_report import render

    report = run_client(command=shlex.join(["vecmill", *sys.argv[1:]]), say=tell, **given)
    if as_json:
        emit(report.record())
    else:
        say(*(plain(line, keep_lines=True) for line in render(report)))
    return COULD_NOT_RUN if report.missed else OK
