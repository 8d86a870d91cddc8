"""Any frame as Arrow batches: lists, dicts, pandas, polars, and whatever speaks Arrow's C interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vecmill.core.errors import InputError
from vecmill.data.kinds import Values, cast_values, names_in_order, plain, settled, type_name, value_array
from vecmill.data.tables import doubled

_ACCEPTED = (
    "a list of texts, a list of dicts, a dict of columns, a pandas or polars DataFrame or Series, a "
    "pyarrow Table, "
    "RecordBatch or RecordBatchReader, or anything with __arrow_c_stream__"
)


def to_reader(frame: object) -> pa.RecordBatchReader:
    """Turn a frame into a stream of Arrow batches, without changing it.

    Strings of every kind become `string`, dictionaries their values; a column of texts alone is called `text`
    (a Series keeps its name). A pandas index is kept as a column if it has a name.

    Args:
        frame: A list of texts (None allowed), a list of dicts, a dict of columns, a pandas or polars
            DataFrame or Series, a pyarrow Table, RecordBatch or RecordBatchReader, or an object of the Arrow
            C interface.

    Returns:
        A reader; a RecordBatchReader that was passed in is read up by it.

    Raises:
        InputError: The frame is none of these, or a column has no type that Arrow knows.
    """
    if isinstance(frame, (str, bytes)) or frame is None:
        raise InputError(f"{type(frame).__name__} is no frame; pass {_ACCEPTED}")
    if (arrow := _from_arrow(frame)) is not None:
        return _normalised(arrow)
    if isinstance(frame, Mapping):
        return _from_columns(frame)
    if isinstance(frame, Iterable):
        return _from_items(frame)
    raise InputError(f"{type(frame).__name__} is no frame; pass {_ACCEPTED}")


def _from_arrow(frame: Any) -> pa.RecordBatchReader | None:
    """Return a reader of what is Arrow already or can turn itself into it; None for plain Python objects."""
    package = type(frame).__module__.partition(".")[0]
    if package == "pandas":
        frame = _from_pandas(frame)
    elif package == "polars":
        frame = _from_polars(frame)
    elif isinstance(frame, (pa.Array, pa.ChunkedArray)):
        frame = pa.table({"text": frame})
    if isinstance(frame, pa.RecordBatchReader):
        return frame
    if hasattr(frame, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(frame)
    if hasattr(frame, "__arrow_c_array__"):
        batch = pa.record_batch(frame)
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])
    return None


def _normalised(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Give every column the type that a file's column would have; batches pass through one at a time."""
    double = doubled(reader.schema.names)
    if double:
        raise InputError(f"several columns are named {', '.join(map(repr, double))}; rename them first")
    schema = pa.schema([(field.name, plain(field.type)) for field in reader.schema])
    if schema.equals(reader.schema, check_metadata=True):
        return reader

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            columns = [cast_values(c, kind) for c, kind in zip(batch.columns, schema.types, strict=True)]
            yield pa.record_batch(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _from_pandas(frame: Any) -> pa.Table:
    if not hasattr(frame, "columns"):  # a Series or an Index
        name = "text" if getattr(frame, "name", None) is None else str(frame.name)
        return pa.table({name: _pandas_array(name, frame)})
    names = [str(name) for name in frame.columns]
    columns = [(name, _pandas_array(name, frame.iloc[:, i])) for i, name in enumerate(names)]
    levels = [frame.index.get_level_values(i) for i in range(frame.index.nlevels)]
    kept = [
        (str(level.name), _pandas_array(str(level.name), level)) for level in levels if level.name is not None
    ]
    pairs = [*kept, *columns]
    return pa.Table.from_arrays([array for _, array in pairs], names=[name for name, _ in pairs])


def _pandas_array(name: str, values: Any) -> Any:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
        items = [None if value != value else value for value in values.tolist()]
        return _learned(name, items)


def _from_polars(frame: Any) -> pa.Table:
    if hasattr(frame, "collect"):
        raise InputError("a polars LazyFrame has no rows yet; pass frame.collect()")
    if hasattr(frame, "to_frame"):  # a Series
        frame = frame.to_frame(frame.name or "text")
    return frame.to_arrow()


def _from_columns(columns: Mapping[Any, Any]) -> pa.RecordBatchReader:
    arrays: dict[str, Any] = {}
    for key, values in columns.items():
        name = str(key)
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise InputError(
                f"column {name!r} is {type_name(values)}; a dict of columns needs a list in each"
            )
        arrays[name] = (
            values if isinstance(values, (pa.Array, pa.ChunkedArray)) else _learned(name, _items(values))
        )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            "the columns differ in length: " + ", ".join(f"{name!r} has {n}" for name, n in lengths.items())
        )
    return _normalised(pa.table(arrays).to_reader())


def _items(values: Iterable[Any]) -> Sequence[Any]:
    """Return plain Python values: NumPy's and pandas' own scalars become what they stand for."""
    tolist = getattr(values, "tolist", None) or getattr(values, "to_list", None)
    items = tolist() if callable(tolist) else list(values)
    return [item.item() if hasattr(item, "dtype") and hasattr(item, "item") else item for item in items]


def _from_items(frame: Iterable[Any]) -> pa.RecordBatchReader:
    items = _items(frame)
    if all(item is None or isinstance(item, str) for item in items):
        return _normalised(pa.table({"text": pa.array(_learned("text", items), pa.string())}).to_reader())
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            odd = next((at for at, one in enumerate(items) if type(one) is not type(items[0])), i)
            raise InputError(
                f"item {odd} is {type_name(items[odd])}, item 0 is {type_name(items[0])}; pass {_ACCEPTED}"
            )
    names = names_in_order(items, {})
    arrays = {str(name): _learned(str(name), [item.get(name) for item in items]) for name in names}
    return _normalised(pa.table(arrays).to_reader())


def _learned(name: str, values: Sequence[Any]) -> pa.Array:
    """Make an array of Python values, of the type JSON values would get; dates and the like as Arrow does."""
    simple = (bool, int, float, str, list, dict, type(None))
    if not all(isinstance(value, simple) for value in values):
        try:
            return pa.array(values, from_pandas=True)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise InputError(f"column {name!r} mixes types that do not go together: {error}") from error
    learner = Values()
    learner.add(values)
    return value_array(values, settled(learner.result().type))
