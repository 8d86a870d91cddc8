"""A table in PostgreSQL as the target of a sync; only a postgresql:// address leads here (`[postgres]`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vecmill.collection.build import build_collection, may_repeat
from vecmill.core.config import Settings
from vecmill.core.errors import InputError
from vecmill.core.space import Manifest
from vecmill.core.types import Id, IntArray
from vecmill.index.postgres import PostgresTable
from vecmill.index.postgres_schema import sql_type
from vecmill.index.postgres_url import shown
from vecmill.jobs.layout import Layout
from vecmill.jobs.sync_diff import Digester, Digests
from vecmill.jobs.sync_targets import Items, as_table


@dataclass(slots=True)
class PostgresTarget:
    """A table in PostgreSQL.

    Attributes:
        url: Its address; with a password, so it is shown to nobody.
        table: The table, None where it is not there yet.
        home: The user's own folder: the unfinished sync of an address lies there.
        rows: The server's number of each row, as `digests` read them.
    """

    url: str = field(repr=False)
    table: PostgresTable | None
    home: Path
    rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    kind: str = "postgresql"
    keeps_all: bool = False

    @classmethod
    def open(cls, url: str, settings: Settings) -> PostgresTarget:
        """Open the table of an address, or say that there will be one; an empty one may have been begun."""
        table = PostgresTable.open(url) if PostgresTable.exists(url) else None
        if table is not None and not len(table):
            table.close()
            table = None
        return cls(url, table, settings.home)

    @property
    def name(self) -> str:
        """Its address without the password."""
        return shown(self.url)

    @property
    def exists(self) -> bool:
        """Whether it is there, with rows."""
        return self.table is not None

    @property
    def manifest(self) -> Manifest | None:
        """What made its vectors."""
        return None if self.table is None else self.table.manifest

    @property
    def text_column(self) -> str | None:
        """The column that was embedded, where it is kept."""
        text = None if self.table is None else self.table.text_column
        return text if text in self.columns else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns."""
        return () if self.table is None else self.table.columns

    @property
    def state(self) -> Path:
        """In the user's own folder, named by the address without its secrets."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest()
        return self.home / "sync" / f"{digest}.vecmill"

    def numbers(self) -> bool:
        """Say whether its ids are whole numbers."""
        return self.table is not None and pa.types.is_integer(self.table.schema.field("id").type)

    def digests(self, layout: Layout) -> Digests:
        """Read ids, texts and columns, some thousand rows at a time."""
        digester, numbers = Digester(), [np.empty(0, np.int64)]
        if self.table is None:
            return digester.finish()
        text, kinds = self.text_column, self.table.schema
        kept = [name for name in layout.kept if name in self.columns]
        names = list(dict.fromkeys([*([text] if text else []), *kept]))
        for stored in self.table.rows(names):
            n = len(stored.ids)
            found = {name: _column(stored.columns[name], kinds, name) for name in kept}
            rows = pa.table(found) if found else pa.table({"": pa.nulls(n)})
            texts = stored.columns[text] if text else [None] * n
            digester.add(stored.ids, texts, as_table(rows, kept, layout.schema))
            numbers.append(stored.rows)
        self.rows = np.concatenate(numbers)
        return digester.finish()

    def create(self, changes: Path, *, metric: str) -> int:
        """Create the table and push all rows in one transaction."""
        return build_collection(changes, self.url, metric=metric).without_vector

    def put(self, rows: Iterator[Items]) -> None:
        """Add items, those that are there replaced, a transaction for some thousand."""
        table = self._open()
        for ids, vectors, columns in rows:
            table.add(ids, vectors, columns, replace=True, repeated=True)

    def set_columns(self, ids: list[Id], columns: pa.Table) -> None:
        """Change columns; of an id cut into chunks each row is written again with its vector."""
        table = self._open()
        if not may_repeat(table.manifest):
            table.set_columns(ids, columns)
            return
        rows = [table.rows_of(one) for one in ids]
        single = [at for at, found in enumerate(rows) if len(found) == 1]
        if single:
            table.set_columns([ids[at] for at in single], columns.take(pa.array(single)))
        others = [name for name in table.columns if name not in columns.column_names]
        kinds = table.schema
        for at in [at for at, found in enumerate(rows) if len(found) > 1]:
            old = table.records(rows[at], others)
            merged = columns.take(pa.array(np.full(len(rows[at]), at)))
            for name in others:
                merged = merged.append_column(name, _column([row[name] for row in old], kinds, name))
            vectors = table.vectors_of(rows[at])
            table.add([ids[at]] * len(vectors), vectors, merged, replace=True, repeated=True)

    def ensure_takes(self, schema: pa.Schema) -> None:
        """Compare with the types the server has: text stays text, numbers numbers."""
        there = pa.schema([]) if self.table is None else self.table.schema
        for entry in schema:
            sql_type(entry)
            if entry.name not in there.names:
                continue
            held = there.field(entry.name).type
            if not _fits(entry.type, held):
                raise InputError(
                    f"column {entry.name!r} holds {held} in {self.name}, in the table that is read "
                    f"{entry.type}: leave it out with --columns, or give it another name"
                )

    def finish(self) -> str | None:
        """Close the connections; say when the index should be built again."""
        if self.table is None:
            return None
        stale = self.table.stale()
        self.table.close()
        return None if stale is None else f"{self.name}: {stale}"

    def remove(self, rows: IntArray) -> None:
        """Delete the items at rows of `digests`."""
        table = self._open()
        table.delete(list(dict.fromkeys(table.ids(self.rows[rows]))))

    def _open(self) -> PostgresTable:
        if self.table is None:
            self.table = PostgresTable.open(self.url)
        return self.table


def _column(values: list[Any], kinds: pa.Schema, name: str) -> pa.Array:
    """Return a column as the server gave it; json has come as lists and records."""
    kind = kinds.field(name).type if name in kinds.names else None
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(values)


def _fits(kind: pa.DataType, held: pa.DataType) -> bool:
    """Say whether values of a type can be in a column of the server: whole numbers also among fractions."""
    mine, theirs = _family(kind), _family(held)
    return mine in (theirs, "null") or (mine == "whole" and theirs in ("fraction", "decimal"))


def _family(kind: pa.DataType) -> str:
    families = {
        "null": pa.types.is_null,
        "truth": pa.types.is_boolean,
        "whole": pa.types.is_integer,
        "fraction": pa.types.is_floating,
        "decimal": pa.types.is_decimal,
        "text": lambda one: pa.types.is_string(one) or pa.types.is_large_string(one),
        "nested": pa.types.is_nested,
        "moment": lambda one: pa.types.is_timestamp(one) or pa.types.is_date(one),
    }
    return next((name for name, matches in families.items() if matches(kind)), str(kind))
