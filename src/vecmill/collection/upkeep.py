"""What is done to a collection that is there: sets added, items deleted, space given back; what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from dataclasses import replace as replace_in
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.collection.build import Report, columns_of, ensure_buildable, may_repeat, set_rows
from vecmill.collection.filters import parse
from vecmill.core import catalog
from vecmill.core.addresses import ensure_path
from vecmill.core.errors import InputError, SpaceMismatchError, StorageError
from vecmill.core.space import Manifest, ensure_comparable
from vecmill.core.types import Id, Metric, Vectors
from vecmill.data.vector_set import VectorStream, stream_vectors
from vecmill.index.ivf import lists_for
from vecmill.index.postgres_url import is_address
from vecmill.index.settings import IndexSettings, Measured
from vecmill.index.storage import SEGMENTS, SIDECARS, Change, Compaction, Store
from vecmill.index.store_index import build_index, refresh, state_of

_AT_ONCE = 65_536


def add_set(
    path: str | Path,
    source_set: str | Path,
    *,
    replace: bool = False,
    columns: Sequence[str] | None = None,
    vector_column: str | None = None,
    id_column: str | None = None,
    progress: Report | None = None,
) -> tuple[Change, int]:
    """Add the rows of a vector set to a collection, in bounded memory; on disk when this returns.

    A batch at a time: where a crash comes between two of them, the same call with `replace` goes on.

    Args:
        path: The collection's folder, or postgresql://… (then all in one transaction).
        source_set: A set of vectors of the same model.
        replace: Items whose id is there give way; otherwise they are an error, before anything is added.
        columns: Columns to take; None for all but those that speak of how a row was embedded.
        vector_column: As `read_vectors` takes it.
        id_column: As `read_vectors` takes it.
        progress: Told how far it is.

    Returns:
        What changed, and how many rows of the set have no vector.

    Raises:
        SpaceMismatchError: The vectors are of another model, or nobody knows of which.
        InputError: An id is there already, or stands twice in the set.
    """
    stream = stream_vectors(source_set, vector_column=vector_column, id_column=id_column)
    names = columns_of(stream, columns)
    if is_address(path):
        from vecmill.collection import build_postgres

        change = build_postgres.add_to_table(str(path), stream, names, replace=replace, progress=progress)
        return change, stream.total_rows - change.added - change.replaced
    store = _store(path)
    ensure_same_space(store.catalogue.manifest, stream, str(path))
    repeated = may_repeat(stream.manifest)
    if not replace:
        _ensure_new(store, stream)
    added = replaced = read = 0
    for rows in set_rows(stream, names):
        done = store.add(
            rows.ids, rows.vectors, rows.columns if names else None, replace=replace, repeated=repeated
        )
        added, replaced, read = added + done.added, replaced + done.replaced, read + rows.read
        if progress is not None:
            progress(read, stream.total_rows)
    refresh(store)
    return Change(added=added, replaced=replaced), stream.total_rows - added - replaced


def ensure_same_space(made: Manifest | None, stream: VectorStream, name: str) -> None:
    """Refuse vectors of another model than those that are there.

    Raises:
        SpaceMismatchError: They are, or nobody knows.
    """
    if made is None:
        return
    if stream.manifest is None:
        raise SpaceMismatchError(
            f"{stream.path} does not say which model made its vectors, {name} holds those of {made.model}: "
            f"embed its texts with -m {made.model}"
        )
    ensure_comparable(made, stream.manifest, what=name)


def delete_items(path: str | Path, *, ids: Sequence[Id] = (), where: str | None = None) -> Change:
    """Delete items of a collection by id or by a filter on their columns; on disk when this returns.

    Args:
        path: The collection's folder, or postgresql://….
        ids: Which items. A text that no item is named, but a whole number is, means that number.
        where: `stars < 2 and lang = 'en'`: items with a row that passes.

    Raises:
        InputError: Neither is given, or both, or the filter does not fit the columns.
    """
    _ensure_one(ids, where)
    if is_address(path):
        from vecmill.collection import build_postgres

        return build_postgres.delete_from_table(str(path), ids, where)
    store = _store(path)
    chosen: list[Id] = list(ids)
    if where is not None:
        chosen += _passing(store, where)
    deleted, missing = 0, list[Any]()
    for start in range(0, len(chosen), _AT_ONCE):
        done = store.delete(chosen[start : start + _AT_ONCE])
        deleted += done.deleted
        missing += done.missing
    numbers = {int(one): one for one in missing if _is_number(one)}
    if numbers:
        again = store.delete(list(numbers))
        deleted += again.deleted
        still = {numbers[int(str(one))] for one in again.missing}
        missing = [one for one in missing if not _is_number(one) or one in still]
    refresh(store)
    return Change(deleted=deleted, missing=tuple(missing))


def would_delete(path: str | Path, *, ids: Sequence[Id] = (), where: str | None = None) -> Change:
    """Say what `delete_items` would do with the same arguments; nothing is changed."""
    _ensure_one(ids, where)
    if is_address(path):
        from vecmill.collection import build_postgres

        return build_postgres.would_delete_from_table(str(path), ids, where)
    store = _store(path)
    now = store.snapshot()
    chosen = list(ids) if where is None else _passing(store, where)
    rows, missing = set[int](), list[Id]()
    for one in dict.fromkeys(chosen):
        found = now.find([one])
        if not len(found) and _is_number(one):
            found = now.find([int(one)])
        rows.update(found.tolist())
        missing += [] if len(found) else [one]
    return Change(deleted=len(rows), missing=tuple(missing))


def _ensure_one(ids: Sequence[Id], where: str | None) -> None:
    if not ids and where is None:
        raise InputError("nothing to delete: name ids, or a filter (--where)")
    if ids and where is not None:
        raise InputError(
            "ids and a filter (where) are two ways to say what goes: give one of them, or delete twice"
        )


def _store(path: str | Path) -> Store:
    """Open a collection's folder; an address is none, and its password is not said."""
    return Store.open(ensure_path(path, what="a collection or a table"))


def compact(path: str | Path) -> Compaction:
    """Give back the space of deleted items and gather small segments, to the end.

    Bounded steps, each on disk when it ends: a crash between two loses nothing.
    """
    if is_address(path):
        raise InputError("PostgreSQL gives back the space of deleted rows by itself (autovacuum)")
    store = _store(path)
    first = done = store.compact()
    removed, written = done.rows_removed, done.bytes_written
    while not done.complete:
        done = store.compact()
        removed, written = removed + done.rows_removed, written + done.bytes_written
    refresh(store)
    return Compaction(first.segments_before, done.segments_after, removed, written, complete=True)


def rebuild_index(
    path: str | Path, settings: IndexSettings, *, progress: Callable[[str], None] | None = None
) -> tuple[str, Measured | None]:
    """Build the index of a collection that is there anew; what is there can be searched meanwhile.

    Args:
        path: A collection's folder, or postgresql://….
        settings: What it is made of; exact ones remove the index.
        progress: Told what is being done.

    Returns:
        What the index is, as people say it, and the recall measured on held-back rows.

    Raises:
        InputError: The collection is empty, or the settings do not fit it.
    """
    if is_address(path):
        from vecmill.collection import build_postgres
        from vecmill.index.postgres import PostgresTable

        with PostgresTable.open(str(path)) as table:
            index = build_postgres.index_table(table, settings)
        return ("exact", None) if index is None else (build_postgres.describe_index(index), index.measured)
    store = _store(path)
    made = store.catalogue
    ensure_buildable(settings, made.metric, made.dimensions, made.live)
    state = build_index(store, settings, progress=progress)
    return str(state.settings), state.measured


def stored_settings(path: str | Path) -> IndexSettings | None:
    """Return what the index of a collection was built of, to build it again; None where it has none.

    How many lists suited the rows there were is left to be chosen anew. A server's index is told by its own
    words: the precision it chose by itself is left to it.
    """
    if is_address(path):
        from vecmill.collection import build_postgres

        return build_postgres.settings_of_table(str(path))
    state = state_of(_store(path).snapshot())
    if state.settings.is_exact:
        return None
    if state.settings.nlist is not None and state.settings.nlist == lists_for(state.rows):
        return replace_in(state.settings, nlist=None)
    return state.settings


def verify_collection(path: str | Path) -> dict[str, Any]:
    """Compare every byte of a collection with its checksums.

    Returns:
        path, ok, rows, segments, and `damage`: what is wrong in words, None where nothing is.

    Raises:
        InputError: There is no collection.
    """
    try:
        store = _store(path)
        store.verify()
    except StorageError as error:
        return {"path": str(path), "ok": False, "rows": None, "segments": None, "damage": str(error)}
    made = store.catalogue
    segments = len(made.segments)
    return {"path": str(path), "ok": True, "rows": made.live, "segments": segments, "damage": None}


def vectors_of(path: str | Path) -> tuple[Vectors, Manifest | None, Metric]:
    """Read all vectors of a collection into memory: (n, d) float32, what made them, what near means."""
    now = _store(path).snapshot()
    return now.fetch(np.flatnonzero(now.live)), now.catalogue.manifest, now.catalogue.metric


def manifest_of_target(path: str | Path) -> Manifest | None:
    """Return what made the vectors of a collection, or of a table in PostgreSQL."""
    if is_address(path):
        from vecmill.index.postgres import PostgresTable

        with PostgresTable.open(str(path)) as table:
            return table.manifest
    return _store(path).catalogue.manifest


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a collection holds: rows, bytes, segments, index and its recall, model. No texts in it."""
    if is_address(path):
        from vecmill.collection import build_postgres

        return build_postgres.describe_table(str(path))
    folder = Path(path)
    store = _store(path)
    now = store.snapshot()
    catalogue, state = now.catalogue, state_of(now)
    item_bytes = 2 if catalogue.precision.value == "float16" else 4
    segments = []
    for entry in catalogue.segments:
        payload = entry.rows * catalogue.dimensions * item_bytes
        segments.append(
            {
                "name": entry.name,
                "rows": entry.rows,
                "deleted": entry.deleted,
                "payload_bytes": payload,
                "overhead_bytes": entry.vectors_bytes - payload,
                "items_bytes": _size(folder / SEGMENTS / f"{entry.name}.items"),
            }
        )
    made = catalogue.manifest
    return {
        "path": str(folder),
        "rows": catalogue.live,
        "deleted": sum(entry.deleted for entry in catalogue.segments),
        "dimensions": catalogue.dimensions,
        "metric": catalogue.metric.value,
        "originals": catalogue.precision.value,
        "generation": catalogue.generation,
        "payload_bytes": sum(segment["payload_bytes"] for segment in segments),
        "sidecar_bytes": sum(_size(file) for file in sorted((folder / SIDECARS).glob("*"))),
        "segments": segments,
        "index": {
            "exact": state.settings.is_exact,
            "settings": state.settings.to_json(),
            "described": str(state.settings),
            "measured": None if state.measured is None else state.measured.to_json(),
            "reached": state.reached,
            "built_over": state.rows,
            "fresh": state.fresh,
            "gone": state.gone,
            "stale": state.is_stale,
        },
        "model": None if made is None else made.model,
        "space": None if made is None else made.space,
        "text_column": catalogue.text_column,
        "columns": list(now.columns),
        "manifest": None if made is None else {k: v for k, v in asdict(made).items() if k != "probe"},
    }


def ensure_shortens(manifest: Manifest | None, shorten: int | None, where: str) -> None:
    """Refuse to shorten vectors of a model that is not known to put what matters into its first components.

    Raises:
        InputError: The model is not one of those (MRL), or nobody knows which model it is.
    """
    if shorten is None:
        return
    if manifest is None:
        who = f"nobody knows which model made the vectors of {where}"
    else:
        name = manifest.model.partition(":")[2]
        known = catalog.entry(manifest.model) or catalog.facts(name)
        if known is not None and known.mrl:
            return
        who = f"{manifest.model} is not known to put what matters into its first {shorten} components"
    raise InputError(
        f"{who} (MRL): leave out --shorten, or say --not-mrl to have it tried; recall is measured either way"
    )


def _ensure_new(store: Store, stream: VectorStream) -> None:
    """Refuse before anything is added what could not all be added."""
    now = store.snapshot()
    for rows in set_rows(stream, ()):
        there = now.find(rows.ids)
        if len(there):
            more = f" and {len(there) - 1:,} more" if len(there) > 1 else ""
            raise InputError(
                f"id {now.ids(there[:1])[0]!r}{more} of {stream.path} is in {store.path} already: say "
                "--replace to have the new rows take their place; nothing was added"
            )


def _passing(store: Store, where: str) -> list[Id]:
    now = store.snapshot()
    condition = parse(where)
    table = now.table(condition.columns)
    condition.check(table.schema)
    return list(dict.fromkeys(now.ids(np.flatnonzero(condition.mask(table) & now.live))))


def _is_number(one: Any) -> bool:
    """Say whether a text is a whole number as ids have them: of 64 bits, and written as they are shown."""
    if not isinstance(one, str) or not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", one):
        return False
    return -(1 << 63) <= int(one) < 1 << 63


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
