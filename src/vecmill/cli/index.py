"""`vecmill index`: collections, which are what is searched: built, changed, measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.advise import advise
from vecmill.cli.embed import listed
from vecmill.cli.output import count, duration, emit, say, table, tell, unsaid
from vecmill.cli.progress import EVERY_SECONDS
from vecmill.core.addresses import without_password

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
@click.option(
    "--kind",
    metavar="KIND",
    help="flat, hnsw or ivf; ivfflat, ivfpq, cagra.  [default: flat; of an index that is there: its own]",
)
@click.option("--exact", is_flag=True, help="No index: compare with all vectors. Removes one that is there.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "int8", "binary", "pq"]),
    help="How candidates are kept; the float originals decide.",
)
@click.option(
    "--shorten", type=click.IntRange(min=1), metavar="D", help="Find candidates by the first D components."
)
@click.option(
    "--oversample",
    type=click.FloatRange(min=1),
    metavar="X",
    help="Candidates per neighbour; --recall-target decides.",
)
@click.option(
    "--recall-target",
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of true neighbours wanted. It decides oversample, ef and nprobe.  [default: 0.99]",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="M, ef_construction, nlist, n_bits, ...; ef and nprobe are decided by --recall-target.",
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

    With -o, SET becomes a collection: a folder, or a table in PostgreSQL. Without --kind, --precision and
    --shorten it has no index: every search compares with all vectors, which is exact, and fast up to some ten
    thousand.

    Without -o, the index of COLLECTION is built anew, as one needs that is damaged or behind: what is not
    said stays as it was. With --kind it is another one, of that kind's defaults; --exact removes it.

    The recall is measured on rows held back, and printed. Rows without a vector are left out and counted.

    \b
    vecmill index build reviews.parquet -o reviews.collection
    vecmill index build reviews.parquet -o reviews.collection --precision int8
    vecmill index build reviews.collection
    vecmill index build reviews.collection --kind hnsw --param M=32 --recall-target 0.95
    vecmill index build reviews.parquet -o "postgresql://me@host/db?table=reviews" --kind hnsw
    """  # noqa: D301 - the character by which click keeps the lines
    wanted = _wanted(given)
    started = time.monotonic()
    if output is None:
        _refuse_for_rebuilding(given)
        settings = _settings_for_rebuilding(source, wanted)
        described, measured = _rebuilt(source, settings, not_mrl=not_mrl)
        told = {"target": _shown(source), "index": described, "measured": _json(measured)}
        line = f"{_shown(source)}: {described}, {duration(time.monotonic() - started)}"
    else:
        settings = wanted.settings()
        built, told = _built(source, output, settings, given, not_mrl=not_mrl)
        measured = built.measured
        without = f", {built.without_vector:,} without a vector left out" if built.without_vector else ""
        described = built.described or "exact"
        kind = built.described or "no index: every search is exact"
        took = duration(time.monotonic() - started)
        line = f"{count(built.rows, 'row')}{without}; {kind}; {took} -> {built.target}"
    if as_json:
        emit(told)
    tell(line)
    for note in wanted.notes(settings, described):
        tell(f"note: {note}")
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
    parts = [f"{count(change.added, 'row')} added"] if change.added or not change.replaced else []
    if change.replaced:
        parts.append(f"{count(change.replaced, 'row')} replaced")
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
@click.option("--dry-run", is_flag=True, help="Say how many rows would go; nothing is deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def delete(
    collection: str,
    ids: tuple[str, ...],
    ids_from: Path | None,
    where: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete items of a collection, by id or by a filter, one of both.

    What is deleted is never found again; `vecmill index compact` gives its space back. Ids that are not there
    are said and no error.
    """
    from vecmill.collection.upkeep import delete_items, would_delete

    named = list(ids)
    if ids_from is not None:
        named += [line for line in ids_from.read_text("utf-8").splitlines() if line]
    if not named and where is None:
        raise click.UsageError("say which: --id, --ids-from or --where")
    if (ids or ids_from is not None) and where is not None:
        raise click.UsageError("--where and ids exclude each other: name the items, or say what they pass")
    change = (would_delete if dry_run else delete_items)(collection, ids=named, where=where)
    missing = [str(one) for one in change.missing]
    if as_json:
        emit({"deleted": change.deleted, "missing": missing, **({"dry_run": True} if dry_run else {})})
    some = f"; not there: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}" if missing else ""
    done = "would be deleted" if dry_run else "deleted"
    tell(f"{count(change.deleted, 'row')} {done} from {_shown(collection)}{some}")


@index.command()
@click.argument("collection")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(collection: str, as_json: bool) -> None:
    """Show what a collection holds: rows, bytes, segments, its index and the recall measured."""
    from vecmill.collection.upkeep import describe

    show(describe(collection), as_json=as_json)


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print what a collection or a table in PostgreSQL holds, as `upkeep.describe` says it."""
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
        *[("note", note) for note in unsaid(found.get("notes", ()))],
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


_EFFORTS = {
    "oversample": "oversample",
    **dict.fromkeys(("ef", "efSearch", "ef_search", "itopk_size"), "ef"),
    **dict.fromkeys(("nprobe", "probes", "n_probes"), "nprobe"),
}
"""How hard to search, by all its names: what calibration decides."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was said of the index: its kind, None where nothing was, and its values by the names given."""

    kind: str | None
    values: dict[str, object]
    exact: bool

    def settings(self) -> IndexSettings:
        """Return the settings of a new index."""
        from vecmill.index.settings import parameters

        return parameters(self.kind or "flat", self.values)

    def changed(self, stored: IndexSettings | None) -> IndexSettings:
        """Return the settings of an index that is built again: what was not said stays as it was."""
        from vecmill.index.settings import changed

        if self.exact or self.kind is not None or stored is None:
            return self.settings()
        return changed(stored, self.values)

    def notes(self, settings: IndexSettings, described: str) -> Iterator[str]:
        """Say what became of what was asked for otherwise than it was."""
        if (self.kind or "").lower() == "cagra":
            yield f"cagra is for GPUs: built is a graph on the CPU, hnsw with m {settings.m}"
        chosen = described.split(", ")
        given = {_EFFORTS[name]: value for name, value in self.values.items() if name in _EFFORTS}
        over = [f"{name} {value:g}" for name, value in given.items() if isinstance(value, int | float)]
        over = [said for said in over if said not in chosen]
        if over:
            target = f"--recall-target {settings.recall_target:g}"
            yield f"{' and '.join(over)} was given; {target} decides that, and chose {described}"


def _wanted(given: dict[str, Any]) -> _Wanted:
    """Take what speaks of the index out of the options."""
    kind, exact = given.pop("kind"), given.pop("exact")
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
    if exact and (kind is not None or values):
        raise click.UsageError("--exact is search without an index: it takes no other options of one")
    return _Wanted(kind, values, exact)


def _settings_for_rebuilding(source: str, wanted: _Wanted) -> IndexSettings:
    from vecmill.collection.upkeep import stored_settings
    from vecmill.index.postgres_url import is_address
    from vecmill.index.storage import is_store

    if not is_address(source) and not is_store(source):
        raise click.UsageError(
            f"{_shown(source)} is no collection: say with -o where one is to be made of it"
        )
    stored = stored_settings(source) if wanted.kind is None and not wanted.exact else None
    if stored is None and wanted == _Wanted(None, {}, exact=False):
        tell(
            f"note: {_shown(source)} has no index, every search is exact; name one with --kind or --precision"
        )
    return wanted.changed(stored)


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
    stale = "; stale, `vecmill index build` builds the index again" if state["stale"] else ""
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

    return shown(target) if is_address(target) else without_password(target)


class _Told:
    """Says how far a long build is, a plain line every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said >= EVERY_SECONDS:
            self._said = time.monotonic()
            tell(f"{done:,} of {count(total, 'row')}")
