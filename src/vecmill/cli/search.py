"""`vecmill search` and `vecmill similar`: what is near in a set, a collection or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vecmill.cli.embed import listed
from vecmill.cli.output import emit, say, table, tell, unsaid
from vecmill.core.errors import InputError
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.collection.search import SearchResult
    from vecmill.core.types import Id, Vectors

Command = TypeVar("Command", bound=Callable[..., Any])

METRICS = ("cosine", "dot", "euclidean", "manhattan", "chebyshev", "hamming", "jaccard")
"""As `core.types.Metric` has them; a test compares. Written out so that --help loads nothing."""


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
                type=click.Choice(METRICS),
                help='What "near" means.  [default: what SOURCE is built for, else cosine]',
            ),
            click.option(
                "--where",
                metavar="FILTER",
                help="Only rows that pass, such as \"stars >= 4 and lang = 'en'\".",
            ),
            click.option(
                "--exact", is_flag=True, help="Compare with every vector, whatever indexes there are."
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
@click.argument("source", metavar="SOURCE")
@click.argument("query", required=False)
@click.option("-m", "--model", metavar="MODEL", help="Embeds the query.  [default: what made the vectors]")
@click.option("--base-url", metavar="URL", help="Where the hosted model is that made the vectors.")
@click.option(
    "--vector", type=click.Path(dir_okay=False), metavar="FILE.npy", help="Search by the vectors in a file."
)
@click.option("--hybrid", is_flag=True, help="Rank by the words of QUERY too, and fuse both rankings.")
@_shared
def search(source: str, query: str | None, vector: str | None, as_json: bool, **given: Any) -> None:
    """Find the rows nearest to a text or a vector.

    SOURCE is what `vecmill embed` or `vecmill index build` wrote, any Parquet, Arrow, JSON lines or npy file
    of vectors, or a table in PostgreSQL. QUERY is a text; with --vector it is a .npy file of one vector, or
    of several, one result each.

    \b
    vecmill search reviews.parquet "pet food" -k 5 --where "Score >= 4"
    vecmill search films.parquet "a heist" -m ./my-model
    vecmill search films.collection "heist in Vienna" --hybrid
    vecmill search "postgresql://me@host/db?table=films" --vector query.npy --json

    A filter compares columns with =, <>, <, <=, >, >=, in (...), between ... and, like, is null, joined by
    and, or, not. Texts and dates take single quotes: lang = 'en' and day >= '2026-01-31'.
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.collection.search import search_many

    if (query is None) == (vector is None):
        raise click.UsageError("give a QUERY or --vector FILE.npy, one of them")
    queries: Any = [query] if vector is None else _read_queries(Path(vector))
    _print(run_sync(search_many(source, queries, **_options(given))), as_json=as_json, given=given)


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--id", "item", required=True, metavar="ID", help="The row's id, as `vecmill search` shows it.")
@_shared
def similar(source: str, item: str, as_json: bool, **given: Any) -> None:
    """Find the rows nearest to one of SOURCE's own.

    \b
    vecmill similar reviews.parquet --id "reviews.csv#17"
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.collection.search import similar_async

    found = run_sync(similar_async(source, item, **_options(given)))
    _print([found], as_json=as_json, given=given)


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


def _print(results: Sequence[SearchResult], *, as_json: bool, given: dict[str, Any]) -> None:
    for note in unsaid(dict.fromkeys(note for result in results for note in result.notes)):
        tell(f"note: {note}")
    for number, result in enumerate(results):
        which = f"query {number}" if len(results) > 1 else ""
        if as_json:
            emit(_record(result))
        else:
            say(*([which] if which else []), *_lines(result, given["columns"]))
        if why := _why_fewer(result, given):
            tell(f"{which}: {why}" if which else why)
        elif not result.hits and not as_json:
            tell("nothing found")


def _why_fewer(result: SearchResult, given: dict[str, Any]) -> str:
    """Say why there are fewer hits than asked for; nothing where nobody asked for a number."""
    found = len(result)
    match result.fewer:
        case "threshold":
            limits = [name for name in ("max_distance", "min_similarity") if given[name] is not None]
            reason = "the others do not pass " + " and ".join(
                f"--{name.replace('_', '-')}" for name in limits
            )
        case "where":
            reason = {0: "no row passes --where", 1: "only 1 row passes --where"}.get(
                found, f"only {found:,} rows pass --where"
            )
        case "size" if _was_given("k"):
            reason = "there are no more"
        case _:
            return ""
    return f"{found:,} of {given['k']:,} asked for: {reason}"


def _was_given(option: str) -> bool:
    context = click.get_current_context()
    return context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


def _record(result: SearchResult) -> dict[str, Any]:
    return {
        "query": result.query,
        "model": result.model,
        "space": None if result.space is None else result.space[:6],
        "complete": result.complete,
        "results": [
            {
                "rank": hit.rank,
                "id": _id(hit.id),
                "distance": hit.distance,
                "similarity": hit.similarity,
                "text": hit.text,
                "columns": hit.columns,
            }
            for hit in result.hits
        ],
    }


def _id(name: Id) -> str | int:
    """Return an id as JSON can have it: bytes as hexadecimal digits."""
    return name.hex() if isinstance(name, bytes) else name


def _lines(result: SearchResult, shown: str | None) -> list[str]:
    """Lay out hits for people: rank, similarity, id, asked-for columns, text."""
    names = () if shown is None else listed(shown)
    asked = any(all(hit.columns[name] == hit.text for hit in result.hits) for name in names)
    rows = [
        (
            str(hit.rank),
            f"{hit.similarity:.4f}",
            str(_id(hit.id)),
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
