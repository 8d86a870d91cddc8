"""`vecmill compare`: do two models or servers give the same vectors?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vecmill.cli.exit_codes import COULD_NOT_RUN, OK
from vecmill.cli.output import emit, plain, say
from vecmill.embedder.background import run_sync


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--input", "inputs", multiple=True, metavar="TEXT", help="A text; may be repeated.")
@click.option(
    "--input-file",
    "--input_file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Texts of a text, CSV, JSON lines or Parquet file.",
)
@click.option("--text", "column", metavar="COLUMN", help="The column of the texts of --input-file.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Texts of --input-file at most.",
)
@click.option("--model-a", metavar="NAME", help="The model of A, where A is a URL that does not name it.")
@click.option("--model-b", metavar="NAME", help="The model of B, likewise.")
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    metavar="X",
    help="No component may differ by more.",
)
@click.option(
    "--difference",
    type=click.FloatRange(min=0, min_open=True),
    default=0.06,
    show_default=True,
    metavar="X",
    help="The difference score (L2) must be below.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(-1, 1),
    metavar="X",
    help="Judge by cosine instead: each must reach this.",
)
@click.option(
    "--min-overlap",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Neighbours that must agree too: 20 texts or more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def compare(
    a: str,
    b: str,
    inputs: tuple[str, ...],
    file: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Check that two models or servers give the same vectors.

    A and B are models as `vecmill embed -m` takes them, or URLs of servers with the model behind a #. Shows
    the first values of both sides and their difference score; exits with 1 unless every text passes. Vectors
    of one model in int8 and in float32 differ by more than the strict rule allows: see --min-cosine.

    \b
    vecmill compare minilm http://127.0.0.1:8000/v3#minilm --input "hello world" --input "goodbye world"
    vecmill compare minilm ./all-MiniLM-L6-v2 --input-file texts.txt --min-cosine 0.98 --min-overlap 0.9
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.bench.compare import Rule, compare_models, render
    from vecmill.bench.serve_texts import first

    limit, column = given.pop("limit"), given.pop("column")
    models = {name: given.pop(name) for name in ("model_a", "model_b")}
    if bool(inputs) == (file is not None):
        raise click.UsageError("give --input TEXT or --input-file FILE, one of them")
    texts = list(inputs) if file is None else first(str(file), limit=limit, column=column)
    compared = run_sync(compare_models(a, b, texts, rule=Rule(**given), **models))
    if as_json:
        emit(compared.record())
    else:
        say(*(plain(line, keep_lines=True) for line in render(compared)))
    return OK if compared.passed else COULD_NOT_RUN
