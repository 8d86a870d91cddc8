"""A collection, or a table in PostgreSQL, from a vector set: in bounded memory, whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.addresses import ensure_path
from vecmill.core.errors import InputError, WriteError, unknown_name
from vecmill.core.space import Manifest
from vecmill.core.types import Id, Metric, Precision, Vectors, choice
from vecmill.data.vector_set import SetBatch, VectorStream, stream_vectors
from vecmill.index.codec import CodeSpec, fit
from vecmill.index.faiss_candidates import faiss_metric
from vecmill.index.ivf import lists_for
from vecmill.index.postgres_url import is_address
from vecmill.index.settings import IndexKind, IndexSettings, Measured
from vecmill.index.storage import ID, Store, is_store
from vecmill.index.store_index import build_index

BOOKKEEPING = ("file", "row", "chunks", "warning", "error", "usage")
"""Columns of our sets that speak of how a row was embedded: a collection does not take them unasked."""

BATCH_BYTES = 32 << 20
"""Bytes of vectors added at once."""

Report = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""


@dataclass(frozen=True, slots=True)
class Built:
    """What was built.

    Attributes:
        target: The folder, or the address without its password.
        rows: Rows that can be found now.
        without_vector: Rows of the set that have no vector and were left out.
        dimensions: Components of a vector.
        metric: What "near" means there.
        described: What its index is, as people say it; None where every search is exact.
        measured: The recall measured on held-back rows; None where nothing was left out.
    """

    target: str
    rows: int
    without_vector: int
    dimensions: int
    metric: str
    described: str | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a set, fit to be added.

    Attributes:
        ids: (m,) their ids. vectors: (m, d) float32. columns: (m) rows of other columns.
        read: Rows of the set read for them, those without a vector included.
    """

    ids: list[str]
    vectors: Vectors
    columns: pa.Table
    read: int


def build_collection(
    source_set: str | Path,
    target: str | Path,
    *,
    metric: Metric | str = Metric.COSINE,
    settings: IndexSettings | None = None,
    originals: Precision | str = Precision.FLOAT32,
    columns: Sequence[str] | None = None,
    vector_column: str | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
    told: Callable[[str], None] | None = None,
) -> Built:
    """Build a collection or a table in PostgreSQL from a vector set, and its index.

    Memory: a batch of rows; the index takes what its kind takes. A folder is made beside and renamed, so a
    build that dies leaves nothing under the name. An old one (`overwrite`) is moved aside when the new one is
    whole, and removed after that; a link stays one, and what it points to is replaced.

    Args:
        source_set: A vector set, ours or from elsewhere.
        target: A folder that does not exist yet, or postgresql://….
        metric: What "near" means there.
        settings: The index; None: every search compares with all. In PostgreSQL a precision of float32 means
            what suits the vectors.
        originals: float32, or float16: half the disk, rounded to 11 bits. Folders only.
        columns: Columns that hits can carry; None for all but those that speak of how a row was embedded.
        vector_column: As `read_vectors` takes it.
        id_column: As `read_vectors` takes it.
        overwrite: Replace a collection that is there.
        progress: Told how far it is, in rows.
        told: Told what building the index is doing.

    Raises:
        InputError: Something is there already, or an argument does not fit the set.
        CorruptFileError: The set is damaged.
        WriteError: The disk is full or does not allow it; nothing is left behind.
    """
    stream = stream_vectors(source_set, vector_column=vector_column, id_column=id_column)
    if not stream.dimensions:
        raise InputError(
            f"{stream.path} holds no vector, so nobody knows of how many dimensions: embed it first"
        )
    kept = columns_of(stream, columns)
    if is_address(target):
        if str(originals) != Precision.FLOAT32:
            raise InputError("PostgreSQL keeps its originals as float32; leave out originals")
        from vecmill.collection.build_postgres import build_table

        return build_table(
            stream, str(target), kept, metric, settings, overwrite=overwrite, progress=progress
        )
    ensure_path(target, what="a new collection")
    if settings is not None:
        ensure_buildable(settings, metric, stream.dimensions, stream.total_rows)
    return _build_folder(
        stream, Path(os.path.realpath(target)), kept, metric, settings, originals, overwrite, progress, told
    )


def set_rows(stream: VectorStream, columns: Sequence[str], *, step: int | None = None) -> Iterator[Rows]:
    """Yield the rows of a set that have a vector, an id's rows always together where they follow another.

    Args:
        stream: The set.
        columns: Which other columns.
        step: Rows at once, about; None for `BATCH_BYTES` of vectors.
    """
    wanted = step or max(256, BATCH_BYTES // (4 * max(1, stream.dimensions)))
    waiting: list[Rows] = []
    for batch in stream.batches(columns, step=wanted):
        waiting.append(_with_vector(batch))
        if sum(len(rows.ids) for rows in waiting) >= wanted:
            whole, rest = _cut(_joined(waiting))
            waiting = [rest]
            if whole.ids:
                yield whole
    if waiting:
        yield _joined(waiting)


def ensure_buildable(settings: IndexSettings, metric: Metric | str, dimensions: int, rows: int) -> None:
    """Refuse an index that cannot be, before any work is done for it.

    Args:
        settings: What is to be built.
        metric: What "near" means.
        dimensions: Components of a vector.
        rows: Vectors there will be, at most.

    Raises:
        InputError: Kind or precision do not go with the metric, or there are fewer vectors than lists.
        MissingExtraError: A graph or lists, and faiss is not installed.
    """
    metric = choice(Metric, metric, "metric")
    if settings.is_exact:
        return
    if settings.shorten is not None and settings.shorten > dimensions:
        raise InputError(f"cannot shorten vectors of {dimensions} dimensions to {settings.shorten}")
    if settings.kind is not IndexKind.FLAT:
        faiss_metric(metric, settings)
        if settings.nlist is not None and settings.nlist > rows:
            raise InputError(
                f"nlist is {settings.nlist}, but there are {rows:,} vectors: {lists_for(rows)} would suit"
            )
    elif settings.precision is not Precision.PQ or metric in (Metric.HAMMING, Metric.JACCARD):
        one = np.ones((1, dimensions), np.float32)
        fit(one, CodeSpec(settings.precision, settings.shorten), metric=metric)


def text_column_of(stream: VectorStream, columns: Sequence[str]) -> str | None:
    """Return the column that was embedded, where it is among those kept."""
    return stream.text_column if stream.text_column in columns else None


def may_repeat(manifest: Manifest | None) -> bool:
    """Say whether ids of a set may stand at several rows: its texts were cut into chunks."""
    return manifest is not None and manifest.long_text == "chunks"


def columns_of(stream: VectorStream, asked: Sequence[str] | None) -> list[str]:
    """Return the columns a collection takes of a set; a column `id` that is the set's ids is no other column.

    Raises:
        UnknownNameError: One that was asked for is not there.
        InputError: There is a column `id` of something else: filters mean the items' ids by that name.
    """
    kept = _columns_of(stream, asked)
    if ID not in kept:
        return kept
    if stream.id_column == ID:
        return [name for name in kept if name != ID]
    raise InputError(
        f"{stream.path} has a column {ID!r} that is not its ids, and filters mean the items' ids by that "
        "name: say that it holds the ids (--id id), name the columns to take (--columns), or rename it"
    )


def _columns_of(stream: VectorStream, asked: Sequence[str] | None) -> list[str]:
    if asked is not None:
        for name in asked:
            if name not in stream.schema.names:
                raise unknown_name("column", name, stream.schema.names)
        return list(dict.fromkeys(asked))
    made = stream.manifest
    ours = set() if made is None else {made.column(role) for role in (*BOOKKEEPING, "id")}
    return [name for name in stream.schema.names if name not in ours]


def _build_folder(
    stream: VectorStream,
    folder: Path,
    columns: list[str],
    metric: Metric | str,
    settings: IndexSettings | None,
    originals: Precision | str,
    overwrite: bool,
    progress: Report | None,
    told: Callable[[str], None] | None,
) -> Built:
    durable.make_dir(folder.parent)
    with durable.lock(folder.with_name(f".{folder.name}.vecmill-lock"), what=str(folder)):
        _restore(folder)
        _ensure_free(folder, overwrite=overwrite)
        durable.remove_leftovers(folder.parent, f"{folder.name}.new")
        beside = _beside(folder, "new", secrets.token_hex(6))
        try:
            made = _filled(stream, beside, columns, metric, settings, originals, progress, told)
            _put(beside, folder)
        finally:
            durable.remove_tree(beside)
    return replace(made, target=str(folder))


def _put(made: Path, folder: Path) -> None:
    """Let a new collection take the place of an old one: two renames, between them it is missing.

    A crash between them leaves both beside, whole; `_restore` then brings the old one back.
    """
    old = _beside(folder, "old", secrets.token_hex(6))
    replaced = is_store(folder)
    try:
        if replaced:
            durable.rename(folder, old)
        else:
            durable.remove_tree(folder)  # it is empty
        durable.rename(made, folder)
    except BaseException:
        if is_store(old) and not folder.exists():
            durable.rename(old, folder)
        raise
    durable.remove_leftovers(folder.parent, f"{folder.name}.old")


def _restore(folder: Path) -> None:
    """Bring back a collection that a crash moved aside, and remove one whose successor is in its place."""
    start = f".{folder.name}.old."
    left = [path for path in folder.parent.iterdir() if path.name.startswith(start) and is_store(path)]
    if left and not folder.exists():
        durable.rename(left[0], folder)
    durable.remove_leftovers(folder.parent, f"{folder.name}.old")


def _beside(folder: Path, role: str, mark: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}.{mark}{durable.TEMP_SUFFIX}")


def _filled(
    stream: VectorStream,
    folder: Path,
    columns: list[str],
    metric: Metric | str,
    settings: IndexSettings | None,
    originals: Precision | str,
    progress: Report | None,
    told: Callable[[str], None] | None,
) -> Built:
    """Make a store of a whole set, and its index."""
    store = Store.create(
        folder,
        dimensions=stream.dimensions,
        metric=metric,
        precision=originals,
        manifest=stream.manifest,
        text_column=text_column_of(stream, columns),
    )
    repeated = may_repeat(stream.manifest)
    read = kept = 0
    for rows in set_rows(stream, columns):
        ids: list[Id] = list(rows.ids)
        store.add(ids, rows.vectors, rows.columns if columns else None, repeated=repeated)
        read, kept = read + rows.read, kept + len(ids)
        if progress is not None:
            progress(read, stream.total_rows)
    state = None
    if settings is not None and not settings.is_exact and kept:
        state = build_index(store, settings, progress=told)
    return Built(
        target=str(folder),
        rows=kept,
        without_vector=stream.total_rows - kept,
        dimensions=stream.dimensions,
        metric=store.catalogue.metric.value,
        described=None if state is None else str(state.settings),
        measured=None if state is None else state.measured,
    )


def _ensure_free(folder: Path, *, overwrite: bool) -> None:
    if is_store(folder):
        if not overwrite:
            raise InputError(
                f"{folder} is a collection already: add to it with `vecmill index add`, or --overwrite it"
            )
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise WriteError(f"{folder} is there already and is no collection: name a new folder")


def _with_vector(batch: SetBatch) -> Rows:
    table = pa.Table.from_batches([batch.columns])
    if len(batch.rows) == len(batch.ids):
        return Rows(batch.ids, batch.vectors, table, len(batch.ids))
    ids = [batch.ids[row] for row in batch.rows]
    kept = table.take(pa.array(batch.rows)) if table.num_columns else table
    return Rows(ids, batch.vectors, kept, len(batch.ids))


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        [one for part in parts for one in part.ids],
        np.concatenate([part.vectors for part in parts]),
        pa.concat_tables([part.columns for part in parts]),
        sum(part.read for part in parts),
    )


def _cut(rows: Rows) -> tuple[Rows, Rows]:
    """Cut off the rows of the last id: more of them may follow."""
    end = len(rows.ids)
    while end and rows.ids[end - 1] == rows.ids[-1]:
        end -= 1
    last: npt.NDArray[np.float32] = rows.vectors[end:]
    whole = Rows(rows.ids[:end], rows.vectors[:end], rows.columns.slice(0, end), rows.read - len(last))
    return whole, Rows(rows.ids[end:], last, rows.columns.slice(end), len(last))
