"""Files of segments as they are written: rows added, marked as gone, gathered. Nothing here publishes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.errors import StorageError
from vecmill.core.types import IntArray, Precision, Vectors
from vecmill.index.catalogue import Catalogue, Entry
from vecmill.index.segments import KEY, ROW, rows_per_segment, write_deleted, write_items, write_vectors
from vecmill.index.snapshot import Snapshot


def with_rows(
    folder: Path, catalogue: Catalogue, keys: pa.Array, vectors: Vectors, columns: pa.Table | None
) -> Catalogue:
    """Write new rows as segments; return the catalogue that names them."""
    step = rows_per_segment(catalogue.dimensions, catalogue.precision)
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        count = len(vectors[part])
        rows = np.arange(catalogue.next_row, catalogue.next_row + count)
        items = pa.table([pa.array(rows), keys.slice(start, step)], names=[ROW, KEY])
        if columns is not None:
            for name in columns.column_names:
                items = items.append_column(name, columns.column(name).slice(start, step))
        catalogue = replace(
            catalogue,
            segments=(*catalogue.segments, _segment(folder, catalogue, vectors[part], items)),
            next_row=catalogue.next_row + count,
            next_segment=catalogue.next_segment + 1,
        )
    return catalogue


def without_rows(folder: Path, now: Snapshot, catalogue: Catalogue, positions: IntArray) -> Catalogue:
    """Write which rows are gone (positions, ascending); return the catalogue that says so."""
    entries = list(catalogue.segments)
    for number in np.unique(np.searchsorted(now.starts, positions, side="right") - 1).tolist():
        start, stop = now.starts[number], now.starts[number + 1]
        first, last = np.searchsorted(positions, (start, stop))
        gone = ~now.live[start:stop]
        gone[positions[first:last] - start] = True
        file = f"{entries[number].name}.deleted-{catalogue.generation}"
        entries[number] = replace(
            entries[number],
            deleted=int(gone.sum()),
            deleted_file=file,
            deleted_digest=write_deleted(folder / file, gone),
        )
    return replace(catalogue, segments=tuple(entries))


def gathered(folder: Path, now: Snapshot, names: Collection[str]) -> tuple[Catalogue, int]:
    """Write neighbouring segments anew without their deleted rows.

    Args:
        folder: That of the segments.
        now: What is published.
        names: Segments next to each other.

    Returns:
        The catalogue that names the new ones instead, and the bytes of their vectors.
    """
    chosen = [number for number, entry in enumerate(now.catalogue.segments) if entry.name in names]
    first, last = chosen[0], chosen[-1]
    positions = np.arange(now.starts[first], now.starts[last + 1])
    positions = positions[now.live[positions]]
    catalogue = now.catalogue.next()
    step = rows_per_segment(now.dimensions, catalogue.precision)
    made: list[Entry] = []
    for start in range(0, len(positions), step):
        part = positions[start : start + step]
        items = pa.table([pa.array(now.rows[part])], names=[ROW])
        stored = now.stored(part, [KEY, *now.columns])
        for name in stored.column_names:
            items = items.append_column(name, stored.column(name))
        made.append(_segment(folder, catalogue, now.fetch(part), items))
        catalogue = replace(catalogue, next_segment=catalogue.next_segment + 1)
    entries = catalogue.segments
    catalogue = replace(catalogue, segments=(*entries[:first], *made, *entries[last + 1 :]))
    item_bytes = 4 if catalogue.precision is Precision.FLOAT32 else 2
    return catalogue, len(positions) * now.dimensions * item_bytes


def sweep(folder: Path, catalogue: Catalogue) -> None:
    """Remove files that no catalogue names. Readers that have them open keep what they see."""
    names = {f"{entry.name}.{kind}" for entry in catalogue.segments for kind in ("vectors", "items")}
    names |= {entry.deleted_file for entry in catalogue.segments if entry.deleted_file is not None}
    durable.remove_leftovers(folder)
    for path in sorted(folder.iterdir()):
        if path.name not in names and not durable.is_leftover(path):
            with suppress(StorageError):  # open elsewhere, on Windows: the next writer removes it
                durable.remove(path)


def _segment(folder: Path, catalogue: Catalogue, vectors: Vectors, items: pa.Table) -> Entry:
    """Write the files of one segment; nothing names them yet."""
    name = f"{catalogue.next_segment:08d}"
    size, digest = write_vectors(folder / f"{name}.vectors", vectors, catalogue.precision)
    rows = items.column(ROW)
    return Entry(
        name=name,
        rows=len(vectors),
        first_row=rows[0].as_py(),
        last_row=rows[-1].as_py(),
        vectors_bytes=size,
        vectors_digest=digest,
        items_digest=write_items(folder / f"{name}.items", items),
    )
