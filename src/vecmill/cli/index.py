"""`vecmill index`: collections, which are what is searched: built, changed, measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.advise import advise
from vecmill.cli.embed import listed
from vecmill.cli.output import count, duration, emit, say, table, tell
from vecmill.cli.progress import EVERY_SECONDS

if TYPE_CHECKING:
    from vecmill.index.settings import IndexSettings, Measured

_METRICS = ("cosine", "dot", "euclidean", "manhattan", "chebyshev", "hamming", "jaccard")


@click.group()
def index() -> None:
    """Build, change and measure collections: what is searched."""


@index.command()
@click.argument("source", metavar="SET|COLLECTION")
@click.option(
    "-o", "--output", metavar="COLLECTION", help="A folder to be made, or postgresql://...?table=NAME."
)
@click.option("--kind", metavar="KIND", help="flat, hnsw or ivf; ivfflat, ivfpq, cagra.  [default: flat]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "int8", "binary", "pq"]),
    help="How candidates are kept; the float originals decide.",
)
@click.option(
    "--shorten", type=click.IntRange(min=1), metavar="D", help="Find candidates by the first D components."
)
@click.option(
    "--oversample", type=click.FloatRange(min=1), metavar="X", help="Candidates per neighbour, to begin with."
)
@click.option(
    "--recall-target",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="The share of true neighbours wanted: how hard to search is chosen for it.",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="M, ef_construction, ef, nlist, nprobe, n_bits, ...",
)
@click.option(
    "--metric", type=click.Choice(_METRICS), help="What near means in a new collection.  [default: cosine]"
)
@click.option(
    "--originals",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="How a new collection keeps the vectors themselves.",
)
@click.option("--columns", metavar="A,B|none", help="Columns that hits can carry.  [default: all]")
@click.option("--vector-column", metavar="COLUMN", help="The column of the vectors.")
@click.option("--id", "id_column", metavar="COLUMN", help="The column of the ids, in a set from elsewhere.")
@click.option("--overwrite", is_flag=True, help="Replace a collection that is there.")
@click.option("--not-mrl", is_flag=True, help="Shorten vectors of a model that was not made for it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(source: str, output: str | None, as_json: bool, not_mrl: bool, **given: Any) -> None:
    """Build a collection from a vector set, or the index of a collection anew.

    With -o, SET becomes a collection: a folder, or a table in PostgreSQL. Without, the index of COLLECTION is
    built anew. Without --kind, --precision and --shorten there is no index: every search compares with all
    vectors, which is exact, and fast up to some ten thousand.

    The recall is measured on rows held back, and printed. Rows without a vector are left out and counted.

    \b
    vecmill index build reviews.parquet -o reviews.collection
    vecmill index build reviews.parquet -o reviews.collection --precision int8
    vecmill index build reviews.collection --kind hnsw --param M=32 --recall-target 0.95
    vecmill index build reviews.parquet -o "postgresql://me@host/db?table=reviews" --kind hnsw
    """  # noqa: D301 - the character by which click keeps the lines
    settings = _settings(given)
    started = time.monotonic()
    if output is None:
        _refuse_for_rebuilding(given)
        described, measured = _rebuilt(source, settings, not_mrl=not_mrl)
        told = {"target": _shown(source), "index": described, "measured": _json(measured)}
        line = f"{_shown(source)}: {described}, {duration(time.monotonic() - started)}"
    else:
        built, told = _built(source, output, settings, given, not_mrl=not_mrl)
        measured = built.measured
        without = f", {built.without_vector:,} without a vector left out" if built.without_vector else ""
        kind = built.described or "no index: every search is exact"
        took = duration(time.monotonic() - started)
        line = f"{count(built.rows, 'row')}{without}; {kind}; {took} -> {built.target}"
    if as_json:
        emit(told)
    tell(line)
    if measured is not None:
        tell(str(measured))
        if measured.recall < settings.recall_target:
            tell(f"note: that is below the {settings.recall_target} wanted; ask for more precision")


@index.command()
@click.argument("collection")
@click.argument("vector_set", metavar="SET")
@click.option("--replace", is_flag=True, help="Rows whose id is there take its place.")
@click.option("--columns", metavar="A,B|none", help="Columns to take.  [default: all]")
@click.option("--vector-column", metavar="COLUMN", help="The column of the vectors.")
@click.option("--id", "id_column", metavar="COLUMN", help="The column of the ids, in a set from elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def add(
    collection: str, vector_set: str, replace: bool, columns: str | None, as_json: bool, **given: Any
) -> None:
    """Add the rows of a vector set to a collection.

    The vectors must be of the model that made the collection's. An id that is there already is an error, and
    nothing is added, unless --replace says that the new row takes its place.
    """
    from vecmill.collection.upkeep import add_set

    wanted = None if columns is None else listed(columns)
    change, without = add_set(
        collection, vector_set, replace=replace, columns=wanted, progress=_Told(), **given
    )
    if as_json:
        emit({"added": change.added, "replaced": change.replaced, "without_vector": without})
    parts = [f"{count(change.added, 'row')} added"]
    if change.replaced:
        parts.append(f"{change.replaced:,} of them in place of {count(change.replaced, 'old one')}")
    if without:
        parts.append(f"{without:,} without a vector left out")
    tell(f"{', '.join(parts)} -> {_shown(collection)}")


@index.command()
@click.argument("collection")
@click.option("--id", "ids", multiple=True, metavar="ID", help="An item to delete; may be repeated.")
@click.option(
    "--ids-from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Ids to delete, one a line.",
)
@click.option("--where", metavar="EXPR", help="Delete items that pass: \"stars < 2 and lang = 'en'\".")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def delete(
    collection: str, ids: tuple[str, ...], ids_from: Path | None, where: str | None, as_json: bool
) -> None:
    """Delete items of a collection, by id or by a filter.

    What is deleted is never found again; `vecmill index compact` gives its space back. Ids that are not there
    are said and no error.
    """
    from vecmill.collection.upkeep import delete_items

    named = list(ids)
    if ids_from is not None:
        named += [line for line in ids_from.read_text("utf-8").splitlines() if line]
    if not named and where is None:
        raise click.UsageError("say which: --id, --ids-from or --where")
    change = delete_items(collection, ids=named, where=where)
    missing = [str(one) for one in change.missing]
    if as_json:
        emit({"deleted": change.deleted, "missing": missing})
    some = f"; not there: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}" if missing else ""
    tell(f"{count(change.deleted, 'row')} deleted from {_shown(collection)}{some}")


@index.command()
@click.argument("collection")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(collection: str, as_json: bool) -> None:
    """Show what a collection holds: rows, bytes, segments, its index and the recall measured."""
    from vecmill.collection.upkeep import describe

    found = describe(collection)
    if as_json:
        emit(found)
        return
    state = found["index"]
    rows = [
        ("collection", found["path"]),
        ("rows", f"{found['rows']:,}" + (f", {found['deleted']:,} deleted" if found.get("deleted") else "")),
        ("dimensions", str(found["dimensions"])),
        ("metric", found["metric"]),
        ("originals", found["originals"]),
        ("index", state["described"]),
        ("recall", _recall(state)),
        *_bytes(found),
        ("model", found["model"] or "unknown"),
        ("space", (found["space"] or "unknown")[:6] if found["space"] else "unknown"),
        ("texts in", found["text_column"] or "none"),
        ("columns", ", ".join(found["columns"]) or "none"),
        *[("note", note) for note in found.get("notes", ())],
    ]
    say(*table(rows))
    if found.get("segments"):
        say("")
        header = ("segment", "rows", "deleted", "payload bytes", "overhead bytes", "ids and columns")
        names = ("rows", "deleted", "payload_bytes", "overhead_bytes", "items_bytes")
        cells = [(entry["name"], *(f"{entry[name]:,}" for name in names)) for entry in found["segments"]]
        say(*table(cells, header, right=frozenset(range(1, 6))))


@index.command()
@click.argument("collection")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compact(collection: str, as_json: bool) -> None:
    """Give back the space of deleted rows, and gather small segments into few.

    Readers go on meanwhile. Each step is on disk when it ends, so it may be stopped at any time.
    """
    from vecmill.collection.upkeep import compact as gather

    done = gather(collection)
    if as_json:
        emit(
            {
                "segments_before": done.segments_before,
                "segments_after": done.segments_after,
                "rows_removed": done.rows_removed,
                "bytes_written": done.bytes_written,
            }
        )
    before = count(done.segments_before, "segment")
    removed = count(done.rows_removed, "deleted row")
    tell(f"{before} -> {done.segments_after:,}; {removed} removed, {done.bytes_written:,} bytes written anew")


index.add_command(advise)


def _settings(given: dict[str, Any]) -> IndexSettings:
    """Take what speaks of the index out of the options."""
    from vecmill.index.settings import parameters

    kind = given.pop("kind") or "flat"
    values: dict[str, object] = {}
    for item in given.pop("params"):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--param {item!r}: NAME=VALUE, such as M=16")
        values[name] = _value(value)
    for name in ("precision", "shorten", "oversample", "recall_target"):
        value = given.pop(name)
        if value is not None:
            values[name] = value
    return parameters(kind, values)


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _refuse_for_rebuilding(given: dict[str, Any]) -> None:
    """Refuse options that mean something only where a collection is made."""
    said = [name for name in ("metric", "columns", "vector_column", "id_column") if given[name] is not None]
    said += ["overwrite"] if given["overwrite"] else []
    if given["originals"] != "float32":
        said.append("originals")
    if said:
        name = said[0].replace("_", "-").replace("id-column", "id")
        raise click.UsageError(f"--{name} is for a new collection: name it with -o")


def _rebuilt(source: str, settings: IndexSettings, *, not_mrl: bool) -> tuple[str, Measured | None]:
    from vecmill.collection.upkeep import ensure_shortens, manifest_of_target, rebuild_index
    from vecmill.index.postgres_url import is_address
    from vecmill.index.storage import is_store

    if not is_address(source) and not is_store(source):
        raise click.UsageError(f"{source} is no collection: say with -o where one is to be made of it")
    if not not_mrl:
        ensure_shortens(manifest_of_target(source), settings.shorten, _shown(source))
    return rebuild_index(source, settings, progress=tell)


def _built(
    source: str, output: str, settings: IndexSettings, given: dict[str, Any], *, not_mrl: bool
) -> tuple[Any, dict[str, Any]]:
    from vecmill.collection.build import build_collection
    from vecmill.collection.upkeep import ensure_shortens
    from vecmill.data.vector_set import read_manifest
    from vecmill.index.storage import is_store

    if is_store(source):
        raise click.UsageError(f"{source} is a collection already: leave out -o to build its index anew")
    if settings.shorten is not None and not not_mrl:
        ensure_shortens(read_manifest(source), settings.shorten, source)
    columns = given.pop("columns")
    built = build_collection(
        source,
        output,
        metric=given.pop("metric") or "cosine",
        settings=settings,
        columns=None if columns is None else listed(columns),
        progress=_Told(),
        told=tell,
        **given,
    )
    told = {
        "target": built.target,
        "rows": built.rows,
        "without_vector": built.without_vector,
        "dimensions": built.dimensions,
        "metric": built.metric,
        "index": built.described or "exact",
        "measured": _json(built.measured),
    }
    return built, told


def _json(measured: Measured | None) -> dict[str, Any] | None:
    return None if measured is None else measured.to_json()


def _recall(state: dict[str, Any]) -> str:
    if state["exact"]:
        return "1: every search compares with all"
    if state["measured"] is None:
        return "not measured"
    found = state["measured"]
    stale = "; stale, build the index again" if state["stale"] else ""
    return (
        f"{found['recall']:.4f} [{found['low']:.4f}, {found['high']:.4f}] @{found['k']}, measured at "
        f"{state['built_over']:,} rows{stale}"
    )


def _bytes(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Say where the bytes are: in files here, or on the server."""
    names = {
        "payload_bytes": "vectors",
        "sidecar_bytes": "index files",
        "table_bytes": "table",
        "index_bytes": "indexes",
    }
    return [(name, f"{found[key]:,} bytes") for key, name in names.items() if key in found]


def _shown(target: str) -> str:
    """Return a collection's name for people: an address without its password."""
    from vecmill.index.postgres_url import is_address, shown

    return shown(target) if is_address(target) else target


class _Told:
    """Says how far a long build is, a plain line every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said >= EVERY_SECONDS:
            self._said = time.monotonic()
            tell(f"{done:,} of {count(total, 'row')}")
