"""The columns of a job's output, and a window's rows in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vecmill.core.errors import InputError, unknown_name
from vecmill.core.types import IntArray, LongText, RowError
from vecmill.embedder.rows import RowVectors
from vecmill.jobs.windows import Window

ERROR_TYPE = pa.struct(
    [
        ("code", pa.string()),
        ("type", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("request_id", pa.string()),
    ]
)
"""The same fields in every output, whether rows failed or not."""

USAGE_TYPE = pa.struct([("tokens", pa.int64()), ("usd", pa.float64())])
"""What a row cost: tokens billed for it, and dollars (null where no price is known)."""

WARNING_UNKNOWN = "unknown_tokens"
"""In the `warning` column: at least half of the text's tokens are not in the model's vocabulary."""

WARNING_SHORT = "short_tokens"
"""In the `warning` column: the text falls into pieces of hardly more than a letter, as foreign scripts do."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns the output has.

    Attributes:
        kept: Columns of the input that are kept, in order.
        names: Column name by role: id, file, row, embedding, error, warning, and where they apply usage, text
            (made by a template), chunks (pieces averaged), chunk, start and end (of a text cut into rows).
        schema: The output's schema.
        id_column: The input column whose values are the ids, or None.
    """

    kept: tuple[str, ...]
    names: Mapping[str, str]
    schema: pa.Schema
    id_column: str | None


def make_layout(
    source: pa.Schema,
    *,
    dimensions: int,
    has_template: bool,
    id_column: str | None,
    columns: Iterable[str] | None,
    renamed: Mapping[str, str],
    long_text: LongText,
    usage: bool = False,
) -> Layout:
    """Decide the output's columns.

    Args:
        source: The input's schema.
        dimensions: Components of a vector.
        has_template: Whether the texts are made by a template, and so get a column of their own.
        id_column: The input column whose values are the ids.
        columns: Input columns to keep; None keeps all.
        renamed: Names for output columns by role, such as {"embedding": "vec"}.
        long_text: The policy, for the columns it adds.
        usage: Whether each row says what it cost.

    Raises:
        InputError: An input column and an output column have the same name, or a role is not known.
        UnknownNameError: A column is not in the input.
    """
    known = set(source.names)
    wanted = list(source.names) if columns is None else list(columns)
    for name in [*wanted, *([id_column] if id_column is not None else [])]:
        if name not in known:
            raise unknown_name("column", name, known)
    if id_column is not None and pa.types.is_nested(source.field(id_column).type):
        kind = source.field(id_column).type
        raise InputError(f"the id column {id_column!r} is {kind}: an id is a text or a number")
    fields = _added_fields(dimensions, has_template=has_template, long_text=long_text, usage=usage)
    for role in renamed:
        if role not in fields:
            raise unknown_name("output column", role, fields)
    names = {role: renamed.get(role, role) for role in fields}
    _refuse_twice(names)
    kept = [name for name in wanted if not (name == id_column and name == names["id"])]
    taken = set(kept)
    clash = next((role for role in names if names[role] in taken), None)
    if clash is not None:
        raise InputError(_clash_message(clash, names[clash]))
    text = [role for role in ("text",) if role in fields]
    order = [*text, *(role for role in fields if role not in text)]
    schema = pa.schema(
        [source.field(name) for name in kept] + [fields[role].with_name(names[role]) for role in order]
    )
    return Layout(tuple(kept), names, schema.remove_metadata(), id_column)


def _added_fields(
    dimensions: int, *, has_template: bool, long_text: LongText, usage: bool
) -> dict[str, pa.Field]:
    fields = {
        "id": pa.field("id", pa.string(), nullable=False),
        "file": pa.field("file", pa.string(), nullable=False),
        "row": pa.field("row", pa.int64(), nullable=False),
    }
    if has_template:
        fields["text"] = pa.field("text", pa.string())
    if long_text is LongText.AVERAGE:
        fields["chunks"] = pa.field("chunks", pa.int32(), nullable=False)
    if long_text is LongText.CHUNKS:
        fields |= {role: pa.field(role, pa.int32()) for role in ("chunk", "start", "end")}
    fields["embedding"] = pa.field("embedding", pa.list_(pa.float32(), dimensions))
    fields["warning"] = pa.field("warning", pa.string())
    fields["error"] = pa.field("error", ERROR_TYPE)
    if usage:
        fields["usage"] = pa.field("usage", USAGE_TYPE, nullable=False)
    return fields


def _refuse_twice(names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for role, name in names.items():
        if name in seen:
            raise InputError(f"output columns {seen[name]!r} and {role!r} would both be named {name!r}")
        seen[name] = role


def _clash_message(role: str, name: str) -> str:
    cures = [f"--output-column {role}=OTHER_NAME"]
    if role == "id":
        cures.insert(0, "--id id to use its values as the ids")
    if role == "embedding":
        cures[0] = "--output-column OTHER_NAME"
    cures.append("--columns to leave it out")
    return f"the input has a column {name!r}, and the output adds one of that name; say {', or '.join(cures)}"


def ids_of(window: Window, layout: Layout) -> list[str]:
    """Return the ids of a window's rows: the id column's values as text, else "file#row".

    Raises:
        InputError: A row has no id.
    """
    if layout.id_column is None:
        return [f"{file}#{row}" for file, row in zip(window.files, window.rows, strict=True)]
    values = window.batch.column(layout.id_column).cast(pa.string()).to_pylist()
    for at, value in enumerate(values):
        if value is None:
            raise InputError(
                f"{window.files[at]} row {window.rows[at]} has no value in the id column {layout.id_column!r}"
            )
    return [str(value) for value in values]


def output_batch(
    window: Window, result: RowVectors, warnings: Mapping[int, str], layout: Layout, *, dimensions: int
) -> pa.RecordBatch:
    """Put a window's rows and what became of them into the output's columns.

    A row without a vector stays, once; a row cut into chunks has one output row per chunk.

    Args:
        window: The rows.
        result: Their vectors and errors.
        warnings: By position in the window.
        layout: The columns.
        dimensions: Components of a vector.
    """
    from_row, vector_at = _arrange(len(window), result)
    take = pa.array(from_row)
    names = layout.names
    made: dict[str, pa.Array] = {
        names["id"]: pa.array(ids_of(window, layout), pa.string()).take(take),
        names["file"]: pa.array(window.files, pa.string()).take(take),
        names["row"]: pa.array(window.rows[from_row]),
        names["embedding"]: _vectors(result, vector_at, dimensions),
        names["warning"]: pa.array([warnings.get(int(row)) for row in from_row], pa.string()),
        names["error"]: pa.array([_error(result.errors.get(int(row))) for row in from_row], ERROR_TYPE),
    }
    if "text" in names:
        made[names["text"]] = pa.array(window.texts, pa.string()).take(take)
    if "chunks" in names:
        made[names["chunks"]] = pa.array(result.pieces[from_row], pa.int32())
    if "usage" in names:
        made[names["usage"]] = _usage(result, from_row)
    if "chunk" in names:
        made |= _chunk_columns(names, result, from_row, vector_at)
    source = dict(zip(window.batch.schema.names, window.batch.columns, strict=True))
    arrays = [made[name] if name in made else source[name].take(take) for name in layout.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


def _arrange(total: int, result: RowVectors) -> tuple[IntArray, IntArray]:
    """Return per output row its input row and its vector's position, -1 without one; both (m',) int64."""
    per_row = np.bincount(result.rows, minlength=total)  # (n,)
    from_row = np.repeat(np.arange(total), np.maximum(per_row, 1))
    vector_at = np.full(len(from_row), -1, dtype=np.int64)
    vector_at[per_row[from_row] > 0] = np.arange(len(result.rows))
    return from_row, vector_at


def _vectors(result: RowVectors, vector_at: IntArray, dimensions: int) -> pa.Array:
    missing = vector_at < 0
    if missing.any() or len(vector_at) != len(result.vectors):
        values = np.zeros((len(vector_at), dimensions), dtype=np.float32)
        values[~missing] = result.vectors[vector_at[~missing]]
    else:  # every row has one, in order: Arrow takes them as they are
        values = result.vectors
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimensions, mask=mask)


def _usage(result: RowVectors, from_row: IntArray) -> pa.Array:
    """Return what each output row cost; of a text cut into rows the first bears it."""
    tokens, usd = result.tokens[from_row], result.usd[from_row]
    later = np.searchsorted(from_row, from_row) != np.arange(len(from_row))
    tokens[later], usd[later] = 0, 0.0
    fields = [pa.array(tokens), pa.array(usd, mask=np.isnan(usd))]
    return pa.StructArray.from_arrays(fields, fields=list(USAGE_TYPE))


def _chunk_columns(
    names: Mapping[str, str], result: RowVectors, from_row: IntArray, vector_at: IntArray
) -> dict[str, pa.Array]:
    first = np.searchsorted(from_row, from_row)  # position of the row's first output row
    number = np.arange(len(from_row)) - first
    none = vector_at < 0
    spans = result.spans or ()
    ends = {"start": [0] * len(none), "end": [0] * len(none)}
    for at in np.flatnonzero(~none):
        span = spans[vector_at[at]]
        ends["start"][at], ends["end"][at] = span.start, span.end
    columns = {names["chunk"]: pa.array(number, pa.int32(), mask=none)}
    return columns | {names[role]: pa.array(np.array(ends[role]), pa.int32(), mask=none) for role in ends}


def _error(error: RowError | None) -> dict[str, object] | None:
    if error is None:
        return None
    return {
        "code": error.code,
        "type": error.type,
        "message": error.message,
        "attempts": error.attempts,
        "request_id": error.request_id,
    }
