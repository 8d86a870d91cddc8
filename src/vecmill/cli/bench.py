"""`vecmill bench`: measurements of this machine."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.bench_serve import serve, server
from vecmill.cli.exit_codes import COULD_NOT_RUN, OK
from vecmill.cli.output import emit, plain, say, tell
from vecmill.core.config import load_settings

if TYPE_CHECKING:
    from vecmill.bench.search_report import Report


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


def _search_options(command: Any) -> Any:
    """Add the options both benches of search share."""
    options = [
        click.option(
            "--vectors",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE.npy",
            help="Vectors to draw from.  [default: made-up ones]",
        ),
        click.option(
            "-d",
            "dimensions",
            type=click.IntRange(min=1),
            default=384,
            show_default=True,
            metavar="N",
            help="Dimensions of made-up vectors.",
        ),
        click.option(
            "-k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Neighbours."
        ),
        click.option(
            "--rounds",
            type=click.IntRange(min=1),
            default=7,
            show_default=True,
            metavar="N",
            help="Rounds kept.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="Threads and cores of each system.",
        ),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            metavar="N",
            help="Of the draw, the order and the intervals.",
        ),
        click.option(
            "-o",
            "--output",
            "out",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE.json",
            help="Write the result file.",
        ),
        click.option(
            "--peer-python",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Interpreter that has usearch and lancedb.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@bench.command()
@click.option(
    "-n",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Vectors searched.",
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Queries of a batch.",
)
@_search_options
def knn(as_json: bool, **given: Any) -> int:
    """Compare exact search of many queries at once with others on the same vectors, core and moment.

    Our engines (NumPy alone, certified int8 with its preparation apart and within, faiss), faiss Flat, NumPy
    with argpartition, scikit-learn, and, with --peer-python, usearch and LanceDB, each in a process of its
    own. Peak memory stands beside every speed, recall counts ties. Exits with 1 where a gate is missed: ours
    on NumPy at least 0.7 times as fast as faiss Flat and 1.5 times as argpartition, int8 1.2 times as faiss
    Flat on real vectors (--vectors). Takes about two minutes.

    \b
    vecmill bench knn
    vecmill bench knn --vectors captions.npy --peer-python peers/bin/python -o result.json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.knn import run_knn

    return _compared(run_knn(command=shlex.join(["vecmill", *sys.argv[1:]]), say=tell, **given), as_json)


@bench.command()
@click.option(
    "-n", type=click.IntRange(min=1), default=50_000, show_default=True, metavar="N", help="Vectors searched."
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Queries held back: recall is measured with them.",
)
@click.option(
    "--singles",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Queries of a round asked alone.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Measure the systems with this in their name; may be repeated.",
)
@click.option("--postgres", metavar="URL", help="A server with pgvector.  [default: one is started]")
@_search_options
def index(as_json: bool, **given: Any) -> int:
    """Compare latency and recall: our indexes, faiss's as they are, NumPy, usearch, LanceDB, pgvector.

    Every system is built once, in a process of its own, and asked at several settings: queries alone, and
    many at once. Peak memory and bytes per vector stand beside. Exits with 1 where the gate is missed: 1-bit
    codes rescored, at recall 0.998 of real vectors (--vectors), at least 8 times as fast as NumPy scores a
    query. Takes some minutes, most of them for building graphs.

    \b
    vecmill bench index --vectors captions.npy
    vecmill bench index --vectors captions.npy -n 100000 --only binary --only "faiss HNSW"
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.index import run_index

    words = ["vecmill", *sys.argv[1:]]
    if given["postgres"] is not None:
        from vecmill.index.postgres_url import shown

        words = [word.replace(given["postgres"], shown(given["postgres"])) for word in words]
    return _compared(run_index(command=shlex.join(words), say=tell, **given), as_json)


def _compared(report: Report, as_json: bool) -> int:
    from vecmill.bench.search_report import render

    if as_json:
        emit(report.record())
    else:
        say(*(plain(line, keep_lines=True) for line in render(report)))
    return COULD_NOT_RUN if report.missed else OK


bench.add_command(serve)
bench.add_command(server)
