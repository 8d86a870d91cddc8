"""Tables of ours in PostgreSQL: their columns, the table of manifests, the pgvector they need."""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vecmill.core.errors import FormatVersionError, InputError, StorageError
from vecmill.core.extras import require
from vecmill.core.space import Manifest
from vecmill.core.types import Metric
from vecmill.index.postgres_url import MANIFESTS, Address, ensure_name, quoted

if TYPE_CHECKING:
    import psycopg
    from psycopg import Cursor
else:
    psycopg = require("psycopg", extra="postgres")

_log = logging.getLogger(__name__)

_LONGEST_RANKED = 200_000
"""Characters of a text that are indexed by words; a tsvector has at most 1 MiB."""

FORMAT_VERSION = 1
ROW, ID, VECTOR = "vecmill_row", "id", "embedding"
_TEXT = 'text COLLATE "C"'  # ordered by code point, as filters order texts elsewhere

RESERVED = (ROW, ID, VECTOR)

MAX_DIMENSIONS = 16_000
"""Source: pgvector's README, "vector"; so are the limits of indexes in `postgres_build`."""

_LEAST, _SOUND = (0, 8, 0), (0, 8, 7)

_TYPES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "text": pa.string(),
    "character varying": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", tz="UTC"),
    "interval": pa.duration("us"),
    "json": pa.string(),
    "jsonb": pa.string(),
}
"""What the server calls a type, and the Arrow type a column has on its way there. numeric: see `_arrow`."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, what the server calls its type, and Arrow's type for it."""

    name: str
    kind: str
    arrow: pa.DataType | None
    generated: bool = False
    collated: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """What a table is, as it was when it was opened.

    Attributes:
        schema, table: Its full name; `name` is that in SQL.
        extension: The schema pgvector lives in; `version` is pgvector's.
        dimensions, metric, text_column, manifest: As given when it was created.
        id_kind: "text" or "bigint".
        columns: All but row, id and vector.
        index: What `postgres_build` keeps about its index, or None.
    """

    schema: str
    table: str
    extension: str
    version: tuple[int, ...]
    dimensions: int
    metric: Metric
    id_kind: str
    text_column: str | None
    manifest: Manifest | None
    columns: tuple[Column, ...]
    index: dict[str, Any] | None = field(default=None)

    @property
    def name(self) -> str:
        """The table in SQL, with its schema."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def types(self) -> str:
        """The schema of pgvector's types and functions in SQL, with its dot."""
        return f"{quoted(self.extension)}."

    @property
    def manifests(self) -> str:
        """The table of manifests in SQL."""
        return f"{quoted(self.schema)}.{quoted(MANIFESTS)}"

    def operator(self, symbol: str) -> str:
        """Write one of pgvector's operators so that no search path matters."""
        return f"OPERATOR({self.types}{symbol.replace('%', '%%')})"


def extension(cursor: Cursor[Any], address: Address, *, create: bool) -> tuple[str, tuple[int, ...]]:
    """Return the schema and version of pgvector on the server.

    Args:
        cursor: In a transaction.
        address: For messages.
        create: Install it into the database where it is not yet.

    Raises:
        InputError: The server lacks it, may not install it, or has one below 0.8.0.
    """
    found = _installed(cursor)
    if found is None and create:
        try:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege as error:
            raise InputError(
                f"{address.shown}: the database lacks the extension pgvector, and this user may not install "
                f"it: ask an administrator for CREATE EXTENSION vector"
            ) from error
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            raise InputError(
                f"{address.shown}: the server has no pgvector: install version "
                f"{'.'.join(map(str, _SOUND))} or later there"
            ) from error
        found = _installed(cursor)
    if found is None:
        raise InputError(
            f"{address.shown}: the database lacks the extension pgvector, so no table of vectors is there; "
            f"name another database, or create a table (vecmill index build)"
        )
    schema, version = found
    return schema, checked_version(version, address.shown)


def _installed(cursor: Cursor[Any]) -> tuple[str, str] | None:
    cursor.execute(
        "SELECT nspname::text, extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE extname = 'vector'"
    )
    return cursor.fetchone()


def checked_version(version: str, where: str) -> tuple[int, ...]:
    """Return pgvector's version as numbers, refuse one that is too old and warn of one with known faults.

    Args:
        version: As the server says it, such as "0.8.5".
        where: The address, for the message.

    Raises:
        InputError: It is below 0.8.0.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < _LEAST:
        raise InputError(
            f"{where}: pgvector is {version}, at least 0.8.0 is needed (filters lose results before): "
            f"install 0.8.7 or later on the server, then ALTER EXTENSION vector UPDATE"
        )
    for note in version_notes(numbers):
        _warn_once(note, where.partition("?")[0])
    return numbers


def version_notes(version: tuple[int, ...]) -> tuple[str, ...]:
    """Return what people should know about a version of pgvector; nothing for one without known faults."""
    if version >= _SOUND:
        return ()
    said = ".".join(map(str, version))
    return (
        f"pgvector {said} is known to corrupt indexes in rare cases; 0.8.7 or later is sound: update the "
        f"server's package, then ALTER EXTENSION vector UPDATE",
    )


@cache
def _warn_once(note: str, where: str) -> None:
    """Say a thing once in the life of a process."""
    _log.warning("%s: %s", where, note)


def create(
    cursor: Cursor[Any],
    address: Address,
    *,
    dimensions: int,
    metric: Metric,
    manifest: Manifest | None,
    columns: pa.Schema,
    text_column: str | None,
    id_kind: str,
) -> None:
    """Create an empty table and its row in the table of manifests, in the cursor's transaction.

    Raises:
        InputError: There is a table of this name, or a column cannot be.
    """
    schema = _schema(cursor, address)
    found, _ = extension(cursor, address, create=True)
    cursor.execute(
        f"CREATE TABLE IF NOT EXISTS {quoted(schema)}.{quoted(MANIFESTS)} (table_name text PRIMARY KEY, "
        "format_version integer NOT NULL, manifest text, settings text NOT NULL)",
        (),
    )
    name = f"{quoted(schema)}.{quoted(address.table)}"
    kinds = {entry.name: sql_type(entry) for entry in columns}
    if text_column is not None and text_column not in kinds:
        raise InputError(
            f"the text column {text_column!r} is not among the columns: {', '.join(kinds) or 'none'}"
        )
    lines = [
        f"{ROW} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        f"{ID} {_TEXT if id_kind == 'text' else id_kind} NOT NULL",
        f"{VECTOR} {quoted(found)}.vector({dimensions}) NOT NULL",
        *(f"{quoted(column)} {kind}" for column, kind in kinds.items()),
    ]
    try:
        cursor.execute(f"CREATE TABLE {name} ({', '.join(lines)})", ())
    except psycopg.errors.DuplicateTable as error:
        raise InputError(
            f"{address.shown}: there is a table {address.table!r} already: open it to add to it, name "
            f"another with ?table=, or drop it"
        ) from error
    cursor.execute(f"CREATE INDEX ON {name} ({ID})", ())
    settings = {
        "dimensions": dimensions,
        "metric": metric.value,
        "id": id_kind,
        "text": text_column,
        "index": None,
    }
    cursor.execute(
        f"INSERT INTO {quoted(schema)}.{quoted(MANIFESTS)} VALUES (%s, %s, %s, %s) ON CONFLICT (table_name) "
        "DO UPDATE SET format_version = excluded.format_version, manifest = excluded.manifest, "
        "settings = excluded.settings",
        (
            address.table,
            FORMAT_VERSION,
            None if manifest is None else manifest.to_json(),
            json.dumps(settings),
        ),
    )


def _schema(cursor: Cursor[Any], address: Address) -> str:
    """Return the schema a table lies in, or would be created in."""
    if address.schema is not None:
        return address.schema
    cursor.execute(
        "SELECT nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = to_regclass(%s)",
        (quoted(address.table).replace("%%", "%"),),
    )
    found = cursor.fetchone() or cursor.execute("SELECT current_schema()::text").fetchone()
    if found is None or found[0] is None:
        raise InputError(f"{address.shown}: the search path names no schema: write ?table=SCHEMA.NAME")
    return str(found[0])


def read(cursor: Cursor[Any], address: Address) -> Layout:
    """Read what a table is.

    Raises:
        InputError: There is no such table, or it is not one of ours.
        FormatVersionError: A later version made it.
        StorageError: It is not what its settings say.
    """
    where, version = extension(cursor, address, create=False)
    schema = _schema(cursor, address)
    full = f"{quoted(schema)}.{quoted(address.table)}".replace("%%", "%")
    manifests = f"{quoted(schema)}.{quoted(MANIFESTS)}"
    cursor.execute(
        "SELECT to_regclass(%s) IS NOT NULL, to_regclass(%s) IS NOT NULL",
        (full, manifests.replace("%%", "%")),
    )
    there, kept = cursor.fetchone() or (False, False)
    if not there:
        raise InputError(
            f"{address.shown}: there is no table {address.table!r} in the schema {schema!r}: name it with "
            f"?table=, or create it (vecmill index build)"
        )
    row = None
    if kept:
        cursor.execute(
            f"SELECT format_version, manifest, settings FROM {manifests} WHERE table_name = %s",
            (address.table,),
        )
        row = cursor.fetchone()
    if row is None:
        raise InputError(
            f"{address.shown}: the table {address.table!r} is not ours: {MANIFESTS} has no row for it; name "
            f"another with ?table="
        )
    if row[0] != FORMAT_VERSION:
        raise FormatVersionError(
            f"{address.shown}: the table has format version {row[0]}, this vecmill reads "
            f"{FORMAT_VERSION}: upgrade"
        )
    try:
        settings = json.loads(row[2])
        made = None if row[1] is None else Manifest.from_json(row[1], where=address.shown)
        return Layout(
            schema=schema,
            table=address.table,
            extension=where,
            version=version,
            dimensions=int(settings["dimensions"]),
            metric=Metric(settings["metric"]),
            id_kind=str(settings["id"]),
            text_column=settings["text"],
            manifest=made,
            columns=_columns(cursor, full, address),
            index=settings["index"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{address.shown}: its row in {MANIFESTS} is damaged ({error}); push it again"
        ) from error


def exists(cursor: Cursor[Any], address: Address) -> bool:
    """Say whether a table of this name is there, ours or not."""
    full = f"{quoted(_schema(cursor, address))}.{quoted(address.table)}".replace("%%", "%")
    row = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (full,)).fetchone()
    return row is not None and bool(row[0])


def text_words(layout: Layout) -> str:
    """Write the words of a table's text column, as its index has them."""
    return f"to_tsvector('simple', left(coalesce({quoted(str(layout.text_column))}, ''), {_LONGEST_RANKED}))"


def lock(cursor: Cursor[Any], layout: Layout) -> None:
    """Wait for the other writers of ours, then be the only one until the transaction ends."""
    cursor.execute(f"SELECT 1 FROM {layout.manifests} WHERE table_name = %s FOR UPDATE", (layout.table,))


def write_index(cursor: Cursor[Any], layout: Layout, index: dict[str, Any] | None) -> None:
    """Keep what is known about a table's index in its row of manifests."""
    cursor.execute(
        f"UPDATE {layout.manifests} SET settings = jsonb_set(settings::jsonb, '{{index}}', %s::jsonb)::text "
        "WHERE table_name = %s",
        (json.dumps(index), layout.table),
    )


def _columns(cursor: Cursor[Any], full: str, address: Address) -> tuple[Column, ...]:
    cursor.execute(
        "SELECT attname::text, format_type(atttypid, atttypmod), attgenerated <> '' OR attidentity <> '', "
        "coalesce(collname = 'C', true) FROM pg_attribute LEFT JOIN pg_collation c ON c.oid = attcollation "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (full,),
    )
    found = [Column(name, kind, _arrow(kind), made, c) for name, kind, made, c in cursor.fetchall()]
    missing = set(RESERVED) - {column.name for column in found}
    if missing:
        raise StorageError(
            f"{address.shown}: the table lacks {', '.join(sorted(missing))}: it was changed by "
            f"others; push it again"
        )
    return tuple(column for column in found if column.name not in RESERVED)


def _arrow(kind: str) -> pa.DataType | None:
    """Return the Arrow type for what the server calls a type; None where we cannot write it."""
    numeric = re.fullmatch(r"numeric\((\d+),(\d+)\)", kind)
    if numeric:
        precision, scale = int(numeric[1]), int(numeric[2])
        return (
            pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(min(precision, 76), scale)
        )
    return _TYPES.get(re.sub(r"\(\d+\)", "", kind))


def sql_type(entry: pa.Field) -> str:
    """Return the SQL type for a column: lists and records become json, everything else its own kind.

    Raises:
        InputError: The name is taken or too long, or the type has no counterpart.
    """
    ensure_name(entry.name, "column")
    if entry.name in RESERVED:
        raise InputError(
            f"the column {entry.name!r} clashes with one of the table's own ({', '.join(RESERVED)}): rename "
            f"it or leave it out"
        )
    kind = entry.type
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    found = _sql_type(kind)
    if found is None:
        raise InputError(
            f"the column {entry.name!r} of type {entry.type} has no counterpart in PostgreSQL: cast it"
        )
    return found


def _sql_type(kind: pa.DataType) -> str | None:
    types = pa.types
    if types.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})" if kind.scale >= 0 else None
    if types.is_timestamp(kind):
        return f"timestamp with{'out' if kind.tz is None else ''} time zone"
    for matches, name in (
        (types.is_string, _TEXT),
        (types.is_large_string, _TEXT),
        (types.is_string_view, _TEXT),
        (types.is_null, _TEXT),
        (types.is_boolean, "boolean"),
        (types.is_uint64, "numeric(20,0)"),
        (types.is_date, "date"),
        (types.is_time, "time without time zone"),
        (types.is_duration, "interval"),
        (types.is_nested, "json"),
        (types.is_float64, "double precision"),
        (types.is_floating, "real"),
    ):
        if matches(kind):
            return name
    if types.is_integer(kind):
        narrow = kind.bit_width + types.is_unsigned_integer(kind)
        return "smallint" if narrow <= 16 else "integer" if narrow <= 32 else "bigint"
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return "bytea" if any(matches(kind) for matches in binary) else None
