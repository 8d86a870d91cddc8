"""`vecmill search` and `vecmill similar`: what a set holds that is near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vecmill.cli.embed import listed
from vecmill.cli.output import emit, say, table, tell
from vecmill.core.errors import InputError
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.collection.search import SearchResult
    from vecmill.core.types import Vectors

Command = TypeVar("Command", bound=Callable[..., Any])


def _shared(command: Command) -> Command:
    """Add the options both commands have."""
    for option in reversed(
        [
            click.option(
                "-k",
                type=click.IntRange(min=1),
                default=10,
                show_default=True,
                metavar="N",
                help="How many to find.",
            ),
            click.option(
                "--metric",
                type=click.Choice(["cosine", "dot", "euclidean"]),
                default="cosine",
                show_default=True,
                help='What "near" means.',
            ),
            click.option("--columns", metavar="A,B|none", help="Columns to show.  [default: all in --json]"),
            click.option("--vector-column", metavar="COLUMN", help="The column of the vectors."),
            click.option(
                "--id-column", metavar="COLUMN", help="The column of the ids, in a file from elsewhere."
            ),
            click.option("--max-distance", type=float, metavar="X", help="Leave out what is further away."),
            click.option("--min-similarity", type=float, metavar="X", help="Leave out what is less similar."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query."),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("vector_set", metavar="SET")
@click.argument("query", required=False)
@click.option("-m", "--model", metavar="MODEL", help="Embeds the query.  [default: the model that made SET]")
@click.option("--base-url", metavar="URL", help="Where the hosted model is that made SET.")
@click.option(
    "--vector", type=click.Path(dir_okay=False), metavar="FILE.npy", help="Search by the vectors in a file."
)
@_shared
def search(vector_set: str, query: str | None, vector: str | None, as_json: bool, **given: Any) -> None:
    """Find the rows of a set nearest to a text or a vector.

    All rows are compared. SET is what `vecmill embed` wrote, or any Parquet, Arrow, JSON lines or npy file of
    vectors. QUERY is a text; with --vector it is a .npy file of one vector, or of several, one result each.

    \b
    vecmill search reviews.parquet "pet food" -k 5
    vecmill search films.parquet "a heist" -m ./my-model
    vecmill search films.parquet --vector query.npy --json
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.collection.search import search_many

    if (query is None) == (vector is None):
        raise click.UsageError("give a QUERY or --vector FILE.npy, one of them")
    queries: Any = [query] if vector is None else _read_queries(Path(vector))
    _print(
        run_sync(search_many(vector_set, queries, **_options(given))),
        as_json=as_json,
        shown=given["columns"],
    )


@click.command()
@click.argument("vector_set", metavar="SET")
@click.option("--id", "item", required=True, metavar="ID", help="The row's id, as `vecmill search` shows it.")
@_shared
def similar(vector_set: str, item: str, as_json: bool, **given: Any) -> None:
    """Find the rows of a set nearest to one of its own.

    \b
    vecmill similar reviews.parquet --id "reviews.csv#17"
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.collection.search import similar_async

    found = run_sync(similar_async(vector_set, item, **_options(given)))
    _print([found], as_json=as_json, shown=given["columns"])


def _options(given: dict[str, Any]) -> Any:
    columns = given["columns"]
    if columns is None:
        return given
    return {**given, "columns": listed(columns)}


def _read_queries(path: Path) -> Vectors:
    """Read one vector or several from a .npy file, as (q, d)."""
    import numpy as np

    from vecmill.core.vectors import check

    try:
        numbers = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, ValueError, EOFError) as error:
        why = "" if "pickle" in str(error) else f": {error}"  # numpy would advise to trust it
        raise InputError(f"{path} is not a .npy file of numbers{why}") from error
    if not isinstance(numbers, np.ndarray) or numbers.ndim not in (1, 2):
        shape = getattr(numbers, "shape", "an archive")
        raise InputError(f"{path} holds {shape}; a query is one vector (d,) or several (q, d)")
    return check(np.atleast_2d(numbers), what=str(path))


def _print(results: Sequence[SearchResult], *, as_json: bool, shown: str | None) -> None:
    for number, result in enumerate(results):
        if as_json:
            emit(_record(result))
            continue
        if len(results) > 1:
            say(f"query {number}")
        say(*_lines(result, shown))
        if not result.hits:
            tell("nothing found")


def _record(result: SearchResult) -> dict[str, Any]:
    return {
        "query": result.query,
        "model": result.model,
        "space": None if result.space is None else result.space[:6],
        "complete": result.complete,
        "results": [
            {
                "rank": hit.rank,
                "id": hit.id,
                "distance": hit.distance,
                "similarity": hit.similarity,
                "text": hit.text,
                "columns": hit.columns,
            }
            for hit in result.hits
        ],
    }


def _lines(result: SearchResult, shown: str | None) -> list[str]:
    """Lay out hits for people: rank, similarity, id, asked-for columns, text."""
    names = () if shown is None else listed(shown)
    asked = any(all(hit.columns[name] == hit.text for hit in result.hits) for name in names)
    rows = [
        (
            str(hit.rank),
            f"{hit.similarity:.4f}",
            str(hit.id),
            *("" if hit.columns[name] is None else str(hit.columns[name]) for name in names),
            *(() if asked else (_said(hit.text, hit.columns if shown is None else {}),)),
        )
        for hit in result.hits
    ]
    header = ("rank", "similarity", "id", *names, *(() if asked else ("text",)))
    return table(rows, header if names else (), right=frozenset({0, 1}))


def _said(text: str | None, columns: dict[str, Any]) -> str:
    """Return the text, or what else says most about a row that has none."""
    if text is not None:
        return text
    words = [value for name, value in columns.items() if isinstance(value, str) and name != "file"]
    return " · ".join(words)
