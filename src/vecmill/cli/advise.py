"""`vecmill index advise`: which index suits a set, measured on it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.output import count, duration, emit, say, table, tell

if TYPE_CHECKING:
    from vecmill.core.space import Manifest
    from vecmill.core.types import Vectors
    from vecmill.index.advise import Advice, Estimate

_METRICS = ("cosine", "dot", "euclidean", "manhattan", "chebyshev", "hamming", "jaccard")


@click.command()
@click.argument("vector_set", metavar="SET|COLLECTION")
@click.option(
    "--recall-target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.99,
    show_default=True,
    help="The share of true neighbours wanted.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Neighbours looked for.",
)
@click.option(
    "--max-latency", type=click.FloatRange(0, min_open=True), metavar="MS", help="The most a query may take."
)
@click.option(
    "--metric", type=click.Choice(_METRICS), help="What near means.  [default: COLLECTION's, else cosine]"
)
@click.option(
    "--shorten", metavar="D,D", help="Try these leading dimensions too.  [default: of MRL models 1/2 and 1/4]"
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["flat", "hnsw", "ivf"]),
    help="Try only this kind; may be repeated.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    metavar="N",
    help="Rows searched.",
)
@click.option(
    "--queries",
    type=click.IntRange(min=1),
    default=1_000,
    show_default=True,
    metavar="N",
    help="Rows held back and searched for.",
)
@click.option(
    "--budget", type=click.FloatRange(0, min_open=True), metavar="S", help="Try nothing new after so long."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the draw.")
@click.option("--vector-column", metavar="COLUMN", help="The column of the vectors.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw it: png, svg or pdf.",
)
@click.option("--build", "build_to", metavar="COLLECTION", help="Build the choice, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def advise(
    vector_set: str,
    plot: Path | None,
    build_to: str | None,
    as_json: bool,
    vector_column: str | None,
    **given: Any,
) -> None:
    """Measure which index suits a set or a collection, and name the cheapest that finds enough.

    Searches a sample of SET for rows held back from it, by codes of every precision, graphs and lists, and
    says for each: bytes in memory, recall with its 95 % interval, latency, build time, and what becomes of
    them as rows are added. Cheapest is least memory, then least latency. About a minute; nothing is sent.

    \b
    vecmill index advise reviews.parquet
    vecmill index advise reviews.parquet --recall-target 0.95 --plot advice.png
    vecmill index advise reviews.parquet --max-latency 1 --build reviews.collection
    """  # noqa: D301 - the character by which click keeps the lines
    from vecmill.index.advise import advise as measure

    if plot is not None:
        from vecmill.index.advise_plot import kind_of

        kind_of(plot)
    vectors, manifest, metric = _read(vector_set, vector_column, build_to, given["metric"])
    given["metric"] = given["metric"] or metric
    advice = measure(vectors, progress=tell, **_options(given, manifest))
    out = None if _is_collection(vector_set) else build_to or f"{Path(vector_set).stem}.collection"
    if plot is not None:
        from vecmill.index.advise_plot import plot as draw

        draw(advice, plot)
        tell(f"picture -> {plot}")
    if as_json:
        emit({**advice.to_json(), "set": vector_set, "command": _command(advice, vector_set, out)})
    else:
        say(*_lines(advice, vector_set, out))
    if build_to is not None:
        _build(advice, vector_set, build_to, vector_column)


def _read(
    source: str, vector_column: str | None, build_to: str | None, asked: str | None
) -> tuple[Vectors, Manifest | None, str]:
    """Return the vectors of a set or a collection, what made them, and what near means there."""
    from vecmill.data.vector_set import read_vectors

    if not _is_collection(source):
        found = read_vectors(source, vector_column=vector_column)
        return found.vectors, found.manifest, "cosine"
    from vecmill.collection.upkeep import vectors_of

    if vector_column is not None or build_to is not None:
        raise click.UsageError(
            f"{source} is a collection: it has its own column of vectors, and its index is built by the "
            "command that is advised; leave out --vector-column and --build"
        )
    vectors, manifest, metric = vectors_of(source)
    if asked not in (None, metric.value):
        raise click.UsageError(f"{source} is built for {metric.value}: leave out --metric")
    return vectors, manifest, metric.value


def _is_collection(source: str) -> bool:
    from vecmill.index.storage import is_store

    return is_store(source)


def _command(advice: Advice, source: str, out: str | None, place: int | None = None) -> str:
    """Return the command that builds a choice: out of a set, or anew in a collection, `out` None."""
    if out is not None:
        return advice.command(source, out, place)
    words = advice.arguments(source, "", place)
    for option in ("-o", "--metric"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    if not {"--kind", "--precision", "--shorten"} & set(words):
        words.append("--exact")
    elif "--kind" not in words:
        words += ["--kind", "flat"]  # without, that of the index that is there would stay
    return shlex.join(["vecmill", *words])


def _options(given: dict[str, Any], manifest: Manifest | None) -> dict[str, Any]:
    """Turn the command's options into those of `vecmill.index.advise.advise`."""
    from vecmill.core.catalog import facts
    from vecmill.index.settings import IndexKind

    shorten, latency, kinds = given.pop("shorten"), given.pop("max_latency"), given.pop("kinds")
    try:
        widths = [int(width) for width in shorten.split(",")] if shorten else []
    except ValueError:
        raise click.UsageError(f"--shorten {shorten!r}: whole numbers with commas, such as 256,512") from None
    name = "" if manifest is None else manifest.model.rpartition(":")[2].rpartition("/")[2]
    known = facts(name)
    budget = given.pop("budget")
    return {
        **given,
        "budget_s": budget,
        "shorten": widths,
        "kinds": [IndexKind(kind) for kind in kinds] or tuple(IndexKind),
        "max_latency": None if latency is None else latency / 1000.0,
        "mrl": None if known is None else known.mrl,
    }


def _build(advice: Advice, vector_set: str, target: str, vector_column: str | None) -> None:
    from vecmill.collection.build import build_collection

    built = build_collection(
        vector_set,
        target,
        metric=advice.metric,
        settings=advice.settings,
        vector_column=vector_column,
        told=tell,
    )
    tell(f"{count(built.rows, 'row')} -> {built.target}")
    if built.measured is not None:
        tell(str(built.measured))


def _lines(advice: Advice, source: str, out: str | None) -> Iterator[str]:
    """Lay the advice out: the table, the choice, how it grows, doubts, the command."""
    yield (
        f"{count(advice.distinct, 'different vector')} of {advice.dimensions} dimensions; {advice.sample:,} "
        f"of them searched for {advice.queries:,} held back, {duration(advice.seconds)}"
    )
    yield ""
    header = (
        "",
        "index",
        "effort",
        "B/row",
        f"recall@{advice.k}",
        "95 % interval",
        "ms",
        "ms in batch",
        "build",
    )
    rows = []
    for at, choice in enumerate(advice.choices):
        mark = ">" if at == advice.chosen else "*" if choice.on_front else ""
        here = choice.here
        rows.append(
            (
                mark,
                choice.family,
                choice.effort,
                f"{choice.bytes_per_vector:,.0f}",
                f"{here.recall.recall:.4f}",
                f"{here.recall.low:.4f} to {here.recall.high:.4f}",
                f"{1000 * here.latency:.2f}",
                f"{1000 * choice.batch_latency:.2f}",
                duration(here.build),
            )
        )
    yield from table(rows, header, right=frozenset({3, 4, 6, 7}))
    yield ""
    yield (
        f"figures are for {count(advice.distinct, 'row')} (ms in batch: for the sample); * nothing is as "
        "good in memory, recall and latency; > the choice"
    )
    yield (f"the float32 originals, {advice.original_bytes:,} B/row, stay on disk, but for exact search")
    yield ""
    yield from _choice(advice, source, out)
    for line in advice.notes:
        yield f"note: {line}"
    for line in advice.warnings:
        yield f"warning: {line}"


def _choice(advice: Advice, source: str, out: str | None) -> Iterator[str]:
    from vecmill.index.advise import NO_INDEX_NEEDED

    chosen = advice.choice
    effort = f", {chosen.effort}" if chosen.effort else ""
    yield f"advised: {chosen.family}{effort}"
    if chosen.settings.is_exact and advice.distinct < NO_INDEX_NEEDED:
        yield (
            f"  below {NO_INDEX_NEEDED:,} rows no index is needed: comparing with all takes "
            f"{1000 * chosen.here.latency:.1f} ms and misses nothing"
        )
    header = ("  rows", "recall", "95 % interval", "memory", "ms", "build")
    yield from table([_grown(one) for one in chosen.predicted], header, right=frozenset({0, 1, 3, 4}))
    yield ""
    yield f"  {_command(advice, source, out)}"
    if advice.least_memory != advice.chosen:
        yield "  or, for least memory:"
        yield f"  {_command(advice, source, out, advice.least_memory)}"


def _grown(one: Estimate) -> tuple[str, ...]:
    return (
        f"{one.rows:,}",
        f"{one.recall.recall:.4f}",
        f"{one.recall.low:.4f} to {one.recall.high:.4f}",
        _size(one.memory_bytes),
        f"{1000 * one.latency:.2f}",
        duration(one.build),
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:,.1f} MiB"
