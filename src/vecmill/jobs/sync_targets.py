"""What a table is brought into: a vector set, a collection, a table in PostgreSQL.

A target is read once, in bounded memory. Changes to a collection or a table in PostgreSQL are steps that can
be repeated: a sync that was killed finds what is left to do and does that. A set is written whole beside and
renamed (`sync_sets`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vecmill.collection.build import build_collection, columns_of, set_rows
from vecmill.core import durable
from vecmill.core.addresses import ensure_path
from vecmill.core.config import Settings
from vecmill.core.errors import InputError
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray, Mask, Vectors
from vecmill.data.set_files import SetFile, open_set_file
from vecmill.data.set_target import PART_NAME, output_format
from vecmill.data.vector_set import stream_vectors
from vecmill.index.schema import plain
from vecmill.index.snapshot import Snapshot
from vecmill.index.storage import Store, is_store
from vecmill.index.store_index import refresh, state_of
from vecmill.jobs.layout import Layout
from vecmill.jobs.sync_diff import Digester, Digests, aligned
from vecmill.jobs.windows import Window

STEP = 16_384
"""Rows read, changed or deleted at once."""

SETTLED_ERRORS = ("empty_text", "text_too_long", "not_text")
"""Failed rows with one of these fail again until their text changes; all others are tried again."""

SET_FORMATS = ("parquet", "directory", "arrow")


Items: TypeAlias = tuple[list[Id], Vectors, pa.Table]
"""Ids (m,), vectors (m, d) float32, and m rows of columns."""


class SyncTarget(Protocol):
    """What is brought up to date."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def kind(self) -> str:
        """One of "set", "collection" and "postgresql"."""

    @property
    def exists(self) -> bool:
        """Whether it is there already."""

    @property
    def manifest(self) -> Manifest | None:
        """What made its vectors; None where it does not exist or does not say."""

    @property
    def text_column(self) -> str | None:
        """The column of the texts, None where it keeps none."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns, vectors left out."""

    @property
    def state(self) -> Path:
        """The folder that holds an unfinished sync."""

    @property
    def keeps_all(self) -> bool:
        """Whether rows without a vector stay, as they do in a set."""

    def digests(self, layout: Layout) -> Digests:
        """Read what it holds, in its own order: ids, texts, and those columns the table has."""

    def numbers(self) -> bool:
        """Say whether its ids are whole numbers; else they are text.

        Raises:
            InputError: They are of several kinds, or bytes.
        """


class ChangingTarget(SyncTarget, Protocol):
    """A target that is changed row by row; every step may be repeated."""

    def create(self, changes: Path, *, metric: str) -> int:
        """Make it from a set of all rows; return how many have no vector."""

    def put(self, rows: Iterator[Items]) -> None:
        """Add items; those whose id is there are replaced."""

    def set_columns(self, ids: list[Id], columns: pa.Table) -> None:
        """Give items other columns and keep their vectors."""

    def finish(self) -> str | None:
        """Do what comes after the last change; may be repeated. Return what people should know, or None."""

    def ensure_takes(self, schema: pa.Schema) -> None:
        """Refuse, before anything is spent, columns of types it cannot take.

        Raises:
            InputError: A column of the table does not fit the one of that name.
        """

    def remove(self, rows: IntArray) -> None:
        """Delete rows, as numbered in `digests`."""


def open_target(target: str | Path, settings: Settings) -> SyncTarget:
    """Find out what a target is; it need not exist.

    A name that ends in `.collection` is a collection, a URL a table in PostgreSQL, all else a vector set.

    Raises:
        InputError: It is of a kind that cannot be synced; the message says which can.
    """
    text = str(target)
    if text.startswith(("postgresql://", "postgres://")):
        from vecmill.jobs.sync_postgres import PostgresTarget

        return PostgresTarget.open(text, settings)
    path = ensure_path(target, what="a set, a collection or a table").absolute()
    if is_store(path) or (path.suffix == ".collection" and not path.exists()):
        return StoreTarget.open(path)
    return SetTarget.open(path)


def state_beside(path: Path) -> Path:
    """Return the folder of an unfinished sync; readers of folders pass over such names."""
    return path.with_name(f"{path.name}.sync.vecmill")


@dataclass(slots=True)
class SetTarget:
    """A vector set: written whole by `sync_sets`."""

    path: Path
    format: str
    file: SetFile | None
    kind: str = "set"
    keeps_all: bool = True

    @classmethod
    def open(cls, path: Path) -> SetTarget:
        """Open the set at a path, or say that there will be one.

        Raises:
            InputError: What is there, or the suffix, is not of a set that keeps texts.
        """
        format_ = output_format(path)
        if format_ not in SET_FORMATS:
            raise InputError(
                f"{path}: a set of {format_} does not keep every text, so nobody can see what changed; sync "
                "into .parquet, .arrow, a folder, a .collection or a postgresql:// URL"
            )
        there = path.exists() and not (path.is_dir() and _is_only_begun(path))
        return cls(path, format_, open_set_file(path) if there else None)

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        return self.file is not None

    @property
    def manifest(self) -> Manifest | None:
        """What it says about itself."""
        return None if self.file is None else self.file.manifest

    @property
    def text_column(self) -> str | None:
        """The column of the texts, where it is kept."""
        made = self.manifest
        kept = made is not None and self.file is not None and made.text in self.file.schema.names
        return made.text if made is not None and kept else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns but the vectors."""
        if self.file is None or self.manifest is None:
            return ()
        return tuple(name for name in self.file.schema.names if name != self.manifest.vector)

    @property
    def state(self) -> Path:
        """Beside it."""
        return state_beside(self.path)

    def numbers(self) -> bool:
        """Ids of a set are text."""
        return False

    def digests(self, layout: Layout) -> Digests:
        """Read ids, texts and columns; failed rows that may succeed now are marked."""
        made, file = self.manifest, self.file
        digester = Digester()
        if file is None or made is None:
            return digester.finish()
        id_, text, error = made.column("id"), self.text_column, made.column("error")
        kept = [name for name in layout.kept if name in file.schema.names]
        has_error = error in file.schema.names
        wanted = [id_, *([text] if text else []), *([error] if has_error else []), *kept]
        for batch in file.batches(list(dict.fromkeys(wanted))):
            digester.add(
                batch.column(id_).to_pylist(),
                batch.column(text).cast(pa.string()).to_pylist() if text else [None] * batch.num_rows,
                as_table(batch, kept, layout.schema),
                _to_retry(batch.column(error)) if has_error else None,
            )
        return digester.finish()


@dataclass(slots=True)
class StoreTarget:
    """A collection on disk."""

    path: Path
    store: Store | None
    positions: IntArray
    seen: Snapshot | None = None
    kind: str = "collection"
    keeps_all: bool = False

    @classmethod
    def open(cls, path: Path) -> StoreTarget:
        """Open the collection at a path, or say that there will be one."""
        return cls(path, Store.open(path) if path.exists() else None, np.empty(0, np.int64))

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        return self.store is not None

    @property
    def manifest(self) -> Manifest | None:
        """What made its vectors."""
        return None if self.store is None else self.store.catalogue.manifest

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is kept."""
        text = None if self.store is None else self.store.catalogue.text_column
        return text if text in self.columns else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns, ids left out."""
        return () if self.store is None else self.store.snapshot().columns

    @property
    def state(self) -> Path:
        """Beside it."""
        return state_beside(self.path)

    def numbers(self) -> bool:
        """Look at every id."""
        if self.store is None:
            return False
        now, found = self.store.snapshot(), set[type]()
        live = np.flatnonzero(now.live)
        for start in range(0, len(live), STEP):
            found |= set(map(type, now.ids(live[start : start + STEP])))
        if found <= {str}:
            return False
        if found == {int}:
            return True
        kinds = ", ".join(sorted(kind.__name__ for kind in found))
        raise InputError(f"{self.path} has ids of {kinds}: only text or whole numbers alone are synced")

    def digests(self, layout: Layout) -> Digests:
        """Read ids, texts and columns of the live rows."""
        digester = Digester()
        if self.store is None:
            return digester.finish()
        now, text = self.store.snapshot(), self.text_column
        kept = [name for name in layout.kept if name in now.columns]
        names = list(dict.fromkeys([*([text] if text else []), *kept]))
        self.positions, self.seen = np.flatnonzero(now.live), now
        for start in range(0, len(self.positions), STEP):
            at = self.positions[start : start + STEP]
            found = now.stored(at, names)
            digester.add(
                now.ids(at),
                found.column(text).cast(pa.string()).to_pylist() if text else [None] * len(at),
                as_table(found, kept, layout.schema),
            )
        return digester.finish()

    def create(self, changes: Path, *, metric: str) -> int:
        """Build it beside and rename it."""
        return build_collection(changes, self.path, metric=metric).without_vector

    def put(self, rows: Iterator[Items]) -> None:
        """Add items, a few thousand at once, replacing those that are there."""
        store = self._open()
        for ids, vectors, columns in rows:
            store.add(ids, vectors, columns, replace=True, repeated=True)

    def finish(self) -> str | None:
        """Write what makes opening it quick; say when the index should be built again."""
        store = self._open()
        refresh(store)
        state = state_of(store.snapshot())
        if not state.is_stale:
            return None
        changed = f"{state.fresh:,} rows came and {state.gone:,} went"
        return (
            f"{changed} since the index of {self.path} was built, and searches are slower for it: `vecmill "
            f"index build {self.path}` builds it again"
        )

    def set_columns(self, ids: list[Id], columns: pa.Table) -> None:
        """Change columns in place; of an id cut into chunks each row is written again with its vector."""
        store = self._open()
        now = store.snapshot()
        at = now.find(ids)
        of = {one: row for row, one in enumerate(ids)}
        found = now.ids(at)
        place = np.array([of[one] for one in found], np.int64)
        counts = np.bincount(place, minlength=len(ids))
        single = np.flatnonzero(counts == 1)
        if len(single):
            store.set_columns([ids[row] for row in single], columns.take(pa.array(single)))
        several = np.flatnonzero(counts[place] > 1)
        if not len(several):
            return
        others = [name for name in now.columns if name not in columns.column_names]
        merged = now.stored(at[several], others)
        for name in columns.column_names:
            merged = merged.append_column(name, columns.column(name).take(pa.array(place[several])))
        vectors = now.fetch(at[several])
        store.add([found[row] for row in several], vectors, merged, replace=True, repeated=True)

    def ensure_takes(self, schema: pa.Schema) -> None:
        """Compare names and types with what a collection can keep, and with those it has."""
        plain(schema.empty_table())
        if self.store is None:
            return
        there = self.store.catalogue.schema
        for entry in schema:
            if entry.name not in there.names:
                continue
            kinds = [pa.schema([there.field(entry.name)]), pa.schema([entry])]
            try:
                pa.unify_schemas([one.remove_metadata() for one in kinds], promote_options="permissive")
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise InputError(
                    f"column {entry.name!r} holds {there.field(entry.name).type} in {self.path}, in the "
                    f"table {entry.type}: leave it out with --columns, or give it another name"
                ) from error

    def remove(self, rows: IntArray) -> None:
        """Delete the items at rows of `digests`."""
        if self.seen is None:
            return
        store = self._open()
        ids = list(dict.fromkeys(self.seen.ids(self.positions[rows])))  # positions as they were then
        for start in range(0, len(ids), STEP):
            store.delete(ids[start : start + STEP])

    def _open(self) -> Store:
        if self.store is None:
            self.store = Store.open(self.path)
        return self.store


def changed_rows(changes: Path, *, numbers: bool) -> Iterator[Items]:
    """Yield what a set of changes holds, ids as the target has them; rows without a vector are left out."""
    stream = stream_vectors(changes)
    for rows in set_rows(stream, columns_of(stream, None), step=STEP):
        yield [int(one) for one in rows.ids] if numbers else list(rows.ids), rows.vectors, rows.columns


def table_ids(window: Window, layout: Layout, ids: list[str], *, numbers: bool) -> list[Id]:
    """Return the ids of a window's rows as the target has them.

    Raises:
        InputError: The target's ids are whole numbers, those of the table are not.
    """
    if not numbers:
        return list(ids)
    kind = window.batch.schema.field(layout.id_column).type
    if not pa.types.is_integer(kind):
        raise InputError(
            f"the ids of the target are whole numbers, those in column {layout.id_column!r} are {kind}; "
            "name a column of whole numbers with --id"
        )
    return [int(one) for one in ids]


def as_table(found: pa.RecordBatch | pa.Table, names: list[str], schema: pa.Schema) -> pa.Table:
    """Return columns as the table has them, so that equal cells give equal digests."""
    if isinstance(found, pa.RecordBatch):
        found = pa.Table.from_batches([found])
    columns = [aligned(found.column(name).combine_chunks(), schema.field(name).type) for name in names]
    return pa.table(columns, names=names) if names else found.select([])


def _is_only_begun(folder: Path) -> bool:
    """Say whether a folder is empty, or holds what a crash left of the first writing of a set."""
    names = [entry.name for entry in folder.iterdir() if not durable.is_leftover(entry)]
    return all(PART_NAME.fullmatch(name) for name in names)


def _to_retry(errors: pa.Array) -> Mask:
    codes = pc.struct_field(errors, "code")
    settled = pc.is_in(codes, value_set=pa.array(SETTLED_ERRORS))
    retry = pc.and_(pc.is_valid(errors), pc.invert(settled))
    return np.asarray(retry.to_numpy(zero_copy_only=False), np.bool_)
