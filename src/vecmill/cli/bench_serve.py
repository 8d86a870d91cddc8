"""`vecmill bench serve` and `bench server`: load any server of embeddings; ours beside its peers."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vecmill.cli.exit_codes import COULD_NOT_RUN, FAILED_ROWS, OK
from vecmill.cli.output import emit, plain, say, tell

Command = TypeVar("Command", bound=Callable[..., Any])

BACKENDS = ("openai", "vecmill", "ovms-embeddings", "tei-embed", "infinity-embeddings", "vllm")
"""As `bench.serve_shapes.BACKENDS` has them; a test compares. Written out so that --help loads nothing."""


class Rate(click.ParamType[float]):
    """Requests a second, or "inf"."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number above 0."""
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not rate > 0.0:
            self.fail(f"{value!r} is no rate: give requests a second above 0, or inf", param, ctx)
        return rate


def _flag(name: str, **options: Any) -> Callable[[Command], Command]:
    """Make an option that is spelt with dashes or, as the first benchmark client has it, with underscores."""
    plain_name = name.replace("-", "_")
    names = [f"--{name}"] + ([f"--{plain_name}"] if plain_name != name else [])
    return click.option(*names, plain_name, **options)


@click.command()
@_flag("api-url", metavar="URL", help="Where requests are posted.  [default: the backend's own, on loopback]")
@_flag(
    "dataset",
    default="synthetic",
    show_default=True,
    metavar="synthetic|FILE",
    help="Documents: made up, or of a text, CSV, JSON lines or Parquet file.",
)
@_flag(
    "synthetic-length",
    type=click.IntRange(min=1),
    default=510,
    show_default=True,
    metavar="N",
    help="Tokens of a made-up document.",
)
@_flag("distinct", is_flag=True, help="Make each made-up document another text; else all are equal.")
@_flag("text", metavar="COLUMN", help="The column of the documents in a file.")
@_flag(
    "limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Documents at most.",
)
@_flag(
    "request-rate",
    type=Rate(),
    default="inf",
    show_default=True,
    metavar="N|inf",
    help="Requests a second, at random moments (Poisson); inf sends all at once.",
)
@_flag(
    "concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Closed loop instead: so many clients, each waits for its answer.",
)
@_flag(
    "batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Documents of a request.",
)
@_flag(
    "backend",
    type=click.Choice(BACKENDS),
    default="openai",
    show_default=True,
    help="What kind of server it is.",
)
@_flag("model", default="", metavar="NAME", help="As the server calls it.  [default: the only one it lists]")
@_flag(
    "encoding-format",
    type=click.Choice(["base64", "float"]),
    default="base64",
    show_default=True,
    help="How vectors are asked for.",
)
@_flag("tokenizer", metavar="MODEL", help="Counts tokens here.  [default: --model, else cl100k_base]")
@_flag("api-key-env", metavar="NAME", help="The variable that holds the key.")
@_flag(
    "api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file that holds the key.",
)
@_flag("duration", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Send for so long instead.")
@_flag(
    "warmup",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    metavar="N",
    help="Requests sent before, not counted.",
)
@_flag(
    "timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    metavar="S",
    help="Seconds a request has.",
)
@_flag(
    "deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Count answers as good only within this; the server is told.",
)
@_flag(
    "connections",
    type=click.IntRange(min=1),
    metavar="N",
    help="Connections at most.  [default: 100, or --concurrency]",
)
@_flag("seed", type=int, default=0, show_default=True, metavar="N", help="Of the moments requests leave.")
@click.option(
    "--json",
    "out",
    is_flag=False,
    flag_value="-",
    metavar="FILE",
    help="Write everything as JSON; without FILE print it instead.",
)
def serve(out: str | None, **given: Any) -> int:
    """Load a server of embeddings and measure latency, throughput and errors.

    Drives any server that speaks OpenAI's /embeddings, and text-embeddings-inference's /embed. With a rate,
    requests leave at their moments whatever the server does, and latency counts from the moment a request
    should have left, so that a stall shows in full. With --concurrency each client waits for its answer; the
    figures are then service times. Requests that fail are counted apart, with their own times.

    \b
    vecmill bench serve --api-url http://127.0.0.1:8000/v1/embeddings --model minilm --request-rate 50
    vecmill bench serve --dataset reviews.csv --text review --batch-size 1 --concurrency 32 --json result.json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.serve import Load, run_serve
    from vecmill.bench.serve_report import render
    from vecmill.core.secrets import resolve_secret

    variable, file = given.pop("api_key_env"), given.pop("api_key_file")
    if variable is not None and file is not None:
        raise click.UsageError("--api-key-env and --api-key-file are both given: use one")
    reference = f"env:{variable}" if variable is not None else f"file:{file}" if file is not None else None
    key = None if reference is None else resolve_secret(reference, what="the key of the server")
    load = Load(
        rate=given.pop("request_rate"),
        column=given.pop("text"),
        encoding=given.pop("encoding_format"),
        api_key=key,
        **given,
    )
    report = run_serve(load, command=shlex.join(["vecmill", *sys.argv[1:]]), say=tell)
    if out == "-":
        emit(report.record())
    else:
        say(*(plain(line) for line in render(report)))
        if out is not None:
            report.write(Path(out))
    if not report.good:
        return COULD_NOT_RUN
    return FAILED_ROWS if report.errors else OK


@click.command()
@_flag(
    "data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Stories, title and description, joined to mixed lengths.  [default: made-up ones]",
)
@_flag(
    "infinity-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Interpreter that has infinity-emb: measure its server too.",
)
@click.option(
    "--model",
    "model_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Full-precision weights of the built-in model, for infinity.",
)
@_flag("texts", type=click.IntRange(min=32), default=256, show_default=True, help="Texts of a round.")
@_flag("rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Rounds kept.")
@_flag("clients", type=click.IntRange(min=1), default=32, show_default=True, help="Clients at once.")
@_flag("starts", type=click.IntRange(min=0), default=3, show_default=True, help="Cold starts kept.")
@_flag(
    "alone",
    type=click.IntRange(min=0),
    default=150,
    show_default=True,
    help="Requests of a round for one short text at a time.",
)
@_flag(
    "overload",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    metavar="S",
    help="Seconds of a round at three times the peak.",
)
@_flag(
    "overload-texts",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Texts of a request of the overload.",
)
@_flag(
    "deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds an answer of the overload is worth something.",
)
@_flag("seed", type=int, default=0, show_default=True, help="Of texts, order, arrivals and intervals.")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write the result file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def server(
    data: Path | None,
    infinity_python: Path | None,
    model_folder: Path | None,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Compare this package's server with its own engine without HTTP, and with infinity's server.

    Starts everything itself, on one core; the clients have the others. Throughput of 32 clients with one text
    each, three times as much as that, one short text at a time, and the first vector of a fresh process.
    Exits with 1 where one is below its gate. Takes three minutes, one without infinity.

    \b
    vecmill bench server --data AG_news_samples.csv
    vecmill bench server --infinity-python inf/bin/python --model ./all-MiniLM-L6-v2 -o result.json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.server import Plan, run_server
    from vecmill.bench.server_report import render

    report = run_server(
        Plan(**given),
        data=data,
        infinity_python=infinity_python,
        model_folder=model_folder,
        out=out,
        command=shlex.join(["vecmill", *sys.argv[1:]]),
        say=tell,
    )
    if as_json:
        emit(report.record())
    else:
        say(*(plain(line, keep_lines=True) for line in render(report)))
    return COULD_NOT_RUN if report.missed else OK
