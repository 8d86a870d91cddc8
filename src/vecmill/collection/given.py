"""What callers of a collection hand over: columns and texts as a table, long texts as a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vecmill.core.errors import InputError
from vecmill.core.space import Manifest
from vecmill.core.types import LongText, choice


def as_table(columns: object | None) -> pa.Table | None:
    """Return columns as a table: a dict of lists of one length each, or any frame.

    Raises:
        InputError: They make no table.
    """
    if columns is None or isinstance(columns, pa.Table):
        return columns
    if isinstance(columns, Mapping):
        lengths = {name: _length(name, values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise InputError(f"columns have different lengths: {listed[:200]}; each item has a value of each")
        try:
            return pa.table(dict(columns))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the columns make no table: {error}; give lists of one length each") from error
    from vecmill.data.frames import to_reader  # late: knows every kind of frame

    return to_reader(columns).read_all()


def with_texts(table: pa.Table | None, column: str, texts: Sequence[str]) -> pa.Table:
    """Return columns with the texts as one more.

    Raises:
        InputError: The texts are no list of str, the column is there, or the lengths differ.
    """
    try:
        words = pa.array(texts, pa.string())
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise InputError(f"texts must be a list of str: {error}") from error
    if table is None or not table.num_columns:
        return pa.table({column: words})
    if column in table.column_names:
        raise InputError(f"the columns have {column!r} already, which holds the texts; leave one of them out")
    if len(words) != table.num_rows:
        raise InputError(
            f"{len(words)} texts and {table.num_rows} rows of columns; each item has one of both"
        )
    return table.append_column(column, words)


def listed_texts(texts: Iterable[str] | None, count: int) -> list[str] | None:
    """Return texts as a list that can be read more than once.

    Raises:
        InputError: It is one text alone, or there is not one for each of `count` ids.
    """
    if texts is None:
        return None
    if isinstance(texts, str):
        raise InputError("texts is one text: put it into a list")
    try:
        rows = texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else list(texts)
    except TypeError as error:
        raise InputError(f"texts must be a list of str, not {type(texts).__name__}") from error
    if len(rows) != count:
        raise InputError(f"{count} ids and {len(rows)} texts; each item has one of both")
    return rows


def long_text_of(manifest: Manifest | None, asked: str | None) -> LongText:
    """Return what becomes of texts that are too long: what was asked for, else what the collection keeps.

    A collection of chunks keeps an error: which of its ids a new text's chunks belong to only a set knows.

    Raises:
        UnknownNameError: No such policy.
        InputError: "chunks".
    """
    if asked is None:
        kept = choice(LongText, "error" if manifest is None else manifest.long_text, "long_text")
        return LongText.ERROR if kept is LongText.CHUNKS else kept
    policy = choice(LongText, asked, "long_text")
    if policy is LongText.CHUNKS:
        raise InputError(
            "long_text='chunks' makes several vectors of a text, and an id given here names one: choose "
            "'average' or 'truncate', or embed chunks with `vecmill embed` and add them with `vecmill index "
            "add`"
        )
    return policy


def _length(name: Any, values: Any) -> int:
    if not isinstance(name, str):
        raise InputError(f"a column is named {name!r}: names are text")
    kind = "one text" if isinstance(values, str) else type(values).__name__
    try:
        if not isinstance(values, str | bytes):
            return len(values)
    except TypeError:  # a number, or an array of no dimension
        kind = f"one {kind}"
    raise InputError(f"column {name!r} is {kind}: put it into a list, with a value for each item")
