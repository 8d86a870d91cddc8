"""Columns of new rows beside those of older ones: one type that holds both, or an error."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.types as kinds

from vecmill.core.errors import InputError
from vecmill.index.segments import KEY, ROW
from vecmill.index.snapshot import ID, Snapshot

_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""What not every function of Arrow knows, as what all do."""


def plain(columns: pa.Table | None) -> pa.Table | None:
    """Return columns as they are kept: views and dictionaries as what they stand for.

    Raises:
        InputError: Two columns have one name, or one has a name of ours.
    """
    if columns is None:
        return None
    names = columns.column_names
    for name in names:
        if name in (ROW, KEY):
            raise InputError(
                f"a column cannot be named {name!r}, that name is the collection's own: rename it"
            )
        if name == ID:
            raise InputError(
                f"a column cannot be named {ID!r}, filters mean the item's id by it: rename it, or leave it "
                "out where it holds the ids"
            )
        if names.count(name) > 1:
            raise InputError(f"two columns are named {name!r}; give one of them another name")
    return columns.cast(pa.schema([pa.field(field.name, _plain(field.type)) for field in columns.schema]))


def _plain(kind: pa.DataType) -> pa.DataType:
    stands_for = kind.value_type if kinds.is_dictionary(kind) else kind
    return _VIEWS.get(stands_for, stands_for)


def unified(now: Snapshot, columns: pa.Table | None, where: Path) -> pa.Schema:
    """Return the schema that holds the columns of a collection and new ones.

    Whole numbers and fractions become fractions, narrower types wider ones, null columns whatever comes.
    Where the type of older rows changes, every value is tried: what is written can always be read.

    Args:
        now: What is there.
        columns: The new rows', as `plain` returns them.
        where: The collection, for messages.

    Raises:
        InputError: No type holds both.
    """
    merged: pa.Schema = now.catalogue.schema
    if columns is None:
        return merged
    for field in columns.schema:
        before = merged.field(field.name).type if field.name in merged.names else field.type
        try:
            merged = pa.unify_schemas([merged, pa.schema([field])], promote_options="permissive")
            after = merged.field(field.name).type
            _ensure_same_meaning(before, field.type, after)
            if after != field.type:
                columns.column(field.name).cast(after)
            if after != before:
                for segment in now.segments:
                    if field.name in segment.items.column_names:
                        segment.items.column(field.name).cast(after)
        except (pa.ArrowException, pa.ArrowTypeError) as error:
            raise InputError(
                f"column {field.name!r} holds {before} in {where}, the new rows have {field.type}, and no "
                "type holds the values of both; make them alike, or give the column another name"
            ) from error
    return merged


def _ensure_same_meaning(one: pa.DataType, other: pa.DataType, after: pa.DataType) -> None:
    """Refuse what Arrow would unify at a price: text as bytes, exact decimals as fractions."""
    for kind in (one, other):
        text = kinds.is_string(kind) or kinds.is_large_string(kind)
        if (text and (kinds.is_binary(after) or kinds.is_large_binary(after))) or (
            kinds.is_decimal(kind) and kinds.is_floating(after)
        ):
            raise pa.ArrowTypeError(f"{kind} as {after}")
