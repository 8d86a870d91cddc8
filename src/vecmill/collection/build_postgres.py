"""Tables in PostgreSQL from vector sets, and what is done to them: the counterpart of folders in `build`.

Only whoever was given a postgresql:// address imports this: it needs `[postgres]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from vecmill.collection.build import Built, Report, may_repeat, set_rows, text_column_of
from vecmill.collection.filters import parse
from vecmill.core.errors import InputError
from vecmill.core.types import Id, IntArray, Metric, Precision
from vecmill.data.vector_set import VectorStream
from vecmill.index.postgres import Batch, PostgresTable
from vecmill.index.postgres_search import Index
from vecmill.index.settings import PRECISIONS, IndexKind, IndexSettings
from vecmill.index.storage import Change


def build_table(
    stream: VectorStream,
    url: str,
    columns: Sequence[str],
    metric: Metric | str,
    settings: IndexSettings | None,
    *,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Built:
    """Create a table, push a vector set into it in one transaction, and build its index.

    A build that died left an empty table: that is filled.

    Raises:
        InputError: The table is there already, and is not to be overwritten.
        StorageError: The server could not; what was there is as it was, or the table is empty.
    """
    if settings is not None:
        _ensure_possible(settings)
    with _fresh(stream, url, columns, metric, overwrite=overwrite) as table:
        change = table.add_batches(
            _batches(stream, columns, progress),
            repeated=may_repeat(stream.manifest),
            manifest=stream.manifest,
        )
        index = None
        if settings is not None and not settings.is_exact and change.added:
            index = index_table(table, settings)
        return Built(
            target=table.name,
            rows=change.added,
            without_vector=stream.total_rows - change.added,
            dimensions=table.dimensions,
            metric=table.metric.value,
            described=None if index is None else describe_index(index),
            measured=None if index is None else index.measured,
        )


def index_table(table: PostgresTable, settings: IndexSettings) -> Index | None:
    """Build a table's index anew, or drop it where the settings mean exact search.

    A precision of float32 means what suits the vectors: float16 where they fit, the signs alone beyond 4,000
    dimensions. The originals decide in any case.

    Raises:
        InputError: pgvector has no such index.
    """
    _ensure_possible(settings)
    if settings.is_exact:
        table.drop_index()
        return None
    return table.build_index(
        kind=settings.kind.value,
        precision=None if settings.precision is Precision.FLOAT32 else settings.precision,
        m=settings.m,
        ef_construction=settings.ef_construction,
        nlist=settings.nlist,
        recall_target=settings.recall_target,
    )


def add_to_table(
    url: str, stream: VectorStream, columns: Sequence[str], *, replace: bool, progress: Report | None
) -> Change:
    """Add a vector set to a table in one transaction: all of it or nothing."""
    with PostgresTable.open(url) as table:
        return table.add_batches(
            _batches(stream, columns, progress),
            replace=replace,
            repeated=may_repeat(stream.manifest),
            manifest=stream.manifest,
        )


def delete_from_table(url: str, ids: Sequence[Id], where: str | None) -> Change:
    """Delete items by id, or by a filter."""
    with PostgresTable.open(url) as table:
        chosen: list[Id] = [_as_kept(one, table) for one in ids]
        if where is not None:
            condition = parse(where)
            condition.check(table.schema)
            chosen += _passing(table, where)
        return table.delete(list(dict.fromkeys(chosen)))


def would_delete_from_table(url: str, ids: Sequence[Id], where: str | None) -> Change:
    """Say what `delete_from_table` would do; nothing is changed."""
    with PostgresTable.open(url) as table:
        chosen: list[Id] = [_as_kept(one, table) for one in ids]
        if where is not None:
            condition = parse(where)
            condition.check(table.schema)
            chosen = _passing(table, where)
            if not may_repeat(table.manifest):
                return Change(deleted=len(chosen))
        rows = {one: len(table.rows_of(one)) for one in dict.fromkeys(chosen)}
        missing = tuple(one for one, found in rows.items() if not found)
        return Change(deleted=sum(rows.values()), missing=missing)


def settings_of_table(url: str) -> IndexSettings | None:
    """Return what a table's index was built of, to build it again; None where it has none.

    The recall wanted is the usual one: the server keeps what was found, not what was asked for.
    """
    with PostgresTable.open(url) as table:
        index = table.index
    if index is None:
        return None
    kind = IndexKind(index.kind)
    options = {
        name: value for name, value in index.options.items() if name in ("m", "ef_construction", "nlist")
    }
    if options.get("nlist") == max(10, index.rows // 1000):
        del options["nlist"]
    kept = index.precision if index.precision in PRECISIONS[kind] else Precision.FLOAT32
    return IndexSettings(kind, kept, **options)


def describe_table(url: str) -> dict[str, Any]:
    """Return what a table holds: rows, bytes, index and its recall, model. No texts and no password in it."""
    with PostgresTable.open(url) as table:
        index, made, sizes = table.index, table.manifest, table.sizes()
        return {
            "path": table.name,
            "rows": len(table),
            "dimensions": table.dimensions,
            "metric": table.metric.value,
            "originals": "float32",
            "table_bytes": sizes["table"],
            "index_bytes": sizes["indexes"],
            "index": {
                "exact": index is None,
                "described": "exact" if index is None else describe_index(index),
                "measured": None if index is None or index.measured is None else index.measured.to_json(),
                "built_over": None if index is None else index.rows,
                "stale": table.stale() is not None,
            },
            "model": None if made is None else made.model,
            "space": None if made is None else made.space,
            "text_column": table.text_column,
            "columns": list(table.columns),
            "manifest": None if made is None else {k: v for k, v in asdict(made).items() if k != "probe"},
            "notes": list(table.notes),
        }


def describe_index(index: Index) -> str:
    """Say what an index is: `hnsw float16, m 16, ef_construction 100, ef 64, oversample 2`."""
    effort = "ef" if index.kind == "hnsw" else "nprobe"
    options = [f"{name} {value}" for name, value in index.options.items()]
    said = [f"{index.kind} {index.precision.value}", *options, f"{effort} {index.effort}"]
    return ", ".join([*said, f"oversample {index.oversample:g}"])


def _fresh(
    stream: VectorStream, url: str, columns: Sequence[str], metric: Metric | str, *, overwrite: bool
) -> PostgresTable:
    """Create the table; one that is there must be empty, or is dropped where that is meant."""
    if PostgresTable.exists(url):
        table = PostgresTable.open(url)
        if len(table) and not overwrite:
            raise InputError(
                f"{table.name} is there already and has rows: add to it with `vecmill index add`, name "
                "another with ?table=, or --overwrite it"
            )
        table.drop()
    schema = pa.schema([stream.schema.field(name) for name in columns])
    return PostgresTable.create(
        url,
        dimensions=stream.dimensions,
        metric=metric,
        manifest=stream.manifest,
        columns=schema,
        text_column=text_column_of(stream, columns),
    )


def _batches(stream: VectorStream, columns: Sequence[str], progress: Report | None) -> Iterator[Batch]:
    read = 0
    for rows in set_rows(stream, columns):
        yield Batch(rows.ids, rows.vectors, rows.columns if columns else None)
        read += rows.read
        if progress is not None:
            progress(read, stream.total_rows)


def _ensure_possible(settings: IndexSettings) -> None:
    if settings.is_exact:
        return
    if settings.kind is IndexKind.FLAT:
        raise InputError("PostgreSQL scans no codes: name the kind hnsw or ivf, or none for exact search")
    if settings.shorten is not None:
        raise InputError("PostgreSQL indexes whole vectors: leave out shorten")
    if settings.oversample != 1.0:
        raise InputError("PostgreSQL's index finds its own oversample for the recall wanted: leave it out")


def _as_kept(one: Id, table: PostgresTable) -> Id:
    """Take a text for the whole number it is, where the table's ids are numbers."""
    numbers = pa.types.is_integer(table.schema.field("id").type)
    return int(one) if numbers and isinstance(one, str) and one.removeprefix("-").isdecimal() else one


def _passing(table: PostgresTable, where: str) -> list[Id]:
    """Return the ids of the rows that pass a filter."""
    condition = parse(where)
    wanted = [name for name in condition.columns if name != "id"]
    found: list[Id] = []
    kinds = table.schema
    for stored in table.rows(wanted):
        columns = {name: pa.array(stored.columns[name], kinds.field(name).type) for name in wanted}
        if "id" in condition.columns:
            columns["id"] = pa.array(stored.ids, kinds.field("id").type)
        rows: IntArray = condition.mask(pa.table(columns)).nonzero()[0]
        found += [stored.ids[row] for row in rows]
    return found
