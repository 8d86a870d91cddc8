"""Build an index in PostgreSQL and measure how many true neighbours it finds."""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import CorruptFileError, InputError, StorageError
from vecmill.core.measure import percentile
from vecmill.core.types import IntArray, Metric, Precision, Vectors, choice
from vecmill.core.vectors import pair_distances
from vecmill.index.calibrate import recall_interval
from vecmill.index.postgres_copy import vector_of
from vecmill.index.postgres_schema import ROW, VECTOR, Layout, lock, text_words, write_index
from vecmill.index.postgres_search import (
    LEAST_K,
    ON_BITS,
    OPERATORS,
    Condition,
    Found,
    Index,
    by_index,
    candidates_sql,
    expression,
    length_of,
    search,
    set_up,
)
from vecmill.index.postgres_session import Sessions, vector
from vecmill.index.postgres_url import quoted
from vecmill.index.settings import Measured

if TYPE_CHECKING:
    from psycopg import Cursor

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

LIMITS = {Precision.FLOAT32: 2_000, Precision.FLOAT16: 4_000, Precision.BINARY: 64_000}
"""Dimensions an index can take. Source: pgvector's README, "Indexing"."""

_TYPES = {Precision.FLOAT32: "vector", Precision.FLOAT16: "halfvec", Precision.BINARY: "bit"}
_OPERATOR_CLASSES = {
    Metric.COSINE: "cosine",
    Metric.DOT: "ip",
    Metric.EUCLIDEAN: "l2",
    Metric.MANHATTAN: "l1",
    Metric.HAMMING: "hamming",
    Metric.JACCARD: "jaccard",
}
_OVERSAMPLE = {Precision.FLOAT32: 1.0, Precision.FLOAT16: 2.0, Precision.BINARY: 20.0}
_EFFORTS = (40, 56, 80, 112, 160, 224, 320, 448, 640, 1000)
_QUERIES, _RUN = 400, 20
_FAR = 95.0
"""Percentile of the distances of rows to their k-th neighbour: queries farther off are unlike the rows."""

_MEASURED_BYTES = 200 << 20
"""Vectors of the copy that recall is measured in: 136,000 of 384 dimensions."""

_HALF_LARGEST, _HALF_SMALLEST = 65_000.0, 1e-3
"""Lengths outside are not kept well by 16-bit floats: overflow, or few bits left."""

_MEMORY = (64 << 20, 1 << 30)
_SAFE_PARALLEL = (0, 8, 2)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an index shall be.

    Attributes:
        kind: "hnsw", or "ivf" (built faster, found less).
        precision: float32, float16 or binary; None chooses by metric and dimensions.
        m: hnsw: links per vector and level, 2 to 100.
        ef_construction: hnsw: vectors looked at to link one, 4 to 1,000.
        nlist: ivf: lists; None for rows / 1,000, at least 10.
        recall_target: The share of true neighbours wanted.
        memory_bytes: What the server may use to build it; None for what it needs, at most 1 GiB.
    """

    kind: str = "hnsw"
    precision: Precision | None = None
    m: int = 16
    ef_construction: int = 100
    nlist: int | None = None
    recall_target: float = 0.99
    memory_bytes: int | None = None


def index_of(layout: Layout) -> Index | None:
    """Return what is kept about a table's index.

    Raises:
        CorruptFileError: It cannot be read.
    """
    if layout.index is None:
        return None
    try:
        found = dict(layout.index)
        found["precision"], found["metric"] = Precision(found["precision"]), Metric(found["metric"])
        found["notes"] = tuple(found.get("notes", ()))
        found["measured"] = None if found["measured"] is None else Measured.from_json(found["measured"])
        return Index(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptFileError(
            f"what is kept about the index of {layout.table} is damaged: build it again"
        ) from error


def kept(index: Index) -> dict[str, Any]:
    """Return an index as JSON's types."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(index)))
    return found


def build(sessions: Sessions, layout: Layout, wanted: Wanted) -> Index:
    """Build an index, in place of the one there is, and measure it. Readers go on meanwhile, writers wait.

    Args:
        sessions: The server.
        layout: The table.
        wanted: What it shall be.

    Raises:
        InputError: pgvector has no such index for this metric or these dimensions.
        StorageError, WriteError: The server could not.
    """
    with sessions.transaction(write=True) as cursor:
        lock(cursor, layout)
        sessions.notices.clear()
        precision, notes = chosen(cursor, layout, wanted)
        rows = _rows(cursor, layout)
        index = Index(
            name=_name(layout, wanted),
            kind=wanted.kind,
            precision=precision,
            metric=layout.metric,
            options=_options(wanted, rows),
            effort=_EFFORTS[0] if wanted.kind == "hnsw" else 1,
            oversample=_OVERSAMPLE[precision] if layout.metric not in ON_BITS else 1.0,
            rows=rows,
            notes=notes,
        )
        _create(cursor, layout, index, wanted)
        if layout.text_column is not None:
            words = quoted(f"{_short(layout.table)}_words_{_digest(layout.table)}")
            cursor.execute(
                f"CREATE INDEX IF NOT EXISTS {words} ON {layout.name} USING gin ({text_words(layout)})", ()
            )
        cursor.execute(f"ANALYZE {layout.name} ({ROW})", ())
        index = replace(index, notes=(*notes, *map(_told, sessions.notices)))
        write_index(cursor, layout, kept(index))
    try:
        measured = calibrated(sessions, layout, index, wanted.recall_target)
    except (InputError, StorageError) as error:
        measured = replace(index, notes=(*index.notes, f"its recall could not be measured: {error}"))
    with sessions.transaction(write=True) as cursor:
        write_index(cursor, layout, kept(measured))
    return measured


def drop(cursor: Cursor[Any], layout: Layout) -> None:
    """Drop a table's index and forget it."""
    name = (layout.index or {}).get("name")
    if name is not None:
        cursor.execute(f"DROP INDEX IF EXISTS {quoted(layout.schema)}.{quoted(str(name))}", ())
        write_index(cursor, layout, None)


def chosen(cursor: Cursor[Any], layout: Layout, wanted: Wanted) -> tuple[Precision, tuple[str, ...]]:
    """Choose the precision of an index, and say what is special about the choice.

    Raises:
        InputError: There is none for this metric, these dimensions or these vectors.
    """
    metric, d = layout.metric, layout.dimensions
    if metric not in OPERATORS:
        raise InputError(
            f"pgvector has no index for {metric.value}: searches compare with all vectors; for an index "
            f"create the table with another metric, such as euclidean"
        )
    if wanted.kind not in ("hnsw", "ivf"):
        raise InputError(f"an index in PostgreSQL is of kind hnsw or ivf, not {wanted.kind!r}")
    if wanted.kind == "ivf" and metric in (Metric.MANHATTAN, Metric.JACCARD):
        raise InputError(f"pgvector has no ivf index for {metric.value}; use hnsw")
    if metric in ON_BITS:
        return _within(Precision.BINARY, d, metric), ()
    if wanted.precision is not None:
        asked = choice(Precision, wanted.precision, "precision")
        if asked not in LIMITS:
            raise InputError(f"pgvector keeps float32, float16 or binary in an index, not {asked.value}")
        return _within(asked, d, metric), ()
    if d > LIMITS[Precision.FLOAT16]:
        _within(Precision.BINARY, d, metric)
        return Precision.BINARY, (
            f"vectors of {d:,} dimensions are too wide for an index of floats: it keeps their signs, and "
            f"{_OVERSAMPLE[Precision.BINARY]:g} candidates per neighbour are compared in full",
        )
    cursor.execute(
        f"SELECT min(size), max(size) FROM (SELECT {layout.types}vector_norm({VECTOR}) AS size "
        f"FROM {layout.name}) sizes WHERE size > 0",
        (),
    )
    least, most = cursor.fetchone() or (None, None)
    if least is not None and most is not None and not _HALF_SMALLEST <= least <= most <= _HALF_LARGEST:
        return _within(Precision.FLOAT32, d, metric), (
            f"vectors have lengths from {least:.3g} to {most:.3g}, too far from 1 for 16-bit floats: the "
            f"index keeps 32 bits",
        )
    return Precision.FLOAT16, ()


def _within(precision: Precision, d: int, metric: Metric) -> Precision:
    if d > LIMITS[precision]:
        wider = [known.value for known, most in LIMITS.items() if d <= most and metric not in ON_BITS]
        raise InputError(
            f"an index of {precision.value} takes at most {LIMITS[precision]:,} dimensions, the vectors have "
            f"{d:,}: "
            f"{'choose ' + ' or '.join(wider) if wider else 'search without one, or shorten the vectors'}"
        )
    return precision


def _rows(cursor: Cursor[Any], layout: Layout) -> int:
    cursor.execute(f"SELECT count(*) FROM {layout.name}", ())
    row = cursor.fetchone()
    return int(row[0]) if row else 0


def _name(layout: Layout, wanted: Wanted) -> str:
    """Name an index unlike the one there is: both exist for a moment."""
    before = (layout.index or {}).get("name", "")
    return f"{_short(layout.table)}_{wanted.kind}_{_digest(layout.table, str(before))}"


def _short(table: str) -> str:
    """Cut a name so that a digest fits behind it."""
    return table.encode()[:40].decode(errors="ignore")


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()


def _options(wanted: Wanted, rows: int) -> dict[str, int]:
    if wanted.kind == "hnsw":
        if not (2 <= wanted.m <= 100 and 4 <= wanted.ef_construction <= 1000):
            raise InputError(
                f"m is {wanted.m} and ef_construction {wanted.ef_construction}: pgvector takes 2 "
                f"to 100 and 4 to 1,000"
            )
        return {"m": wanted.m, "ef_construction": max(wanted.ef_construction, 2 * wanted.m)}
    nlist = max(10, rows // 1000) if wanted.nlist is None else wanted.nlist
    if not 1 <= nlist <= 32_768:
        raise InputError(f"nlist is {nlist}: pgvector takes 1 to 32,768")
    return {"nlist": nlist}


def _create(cursor: Cursor[Any], layout: Layout, index: Index, wanted: Wanted) -> None:
    metric = (
        Metric.HAMMING
        if index.precision is Precision.BINARY and index.metric not in ON_BITS
        else index.metric
    )
    operators = f"{layout.types}{_TYPES[index.precision]}_{_OPERATOR_CLASSES[metric]}_ops"
    stored = expression(layout, index.precision, VECTOR)
    method, options = (
        ("hnsw", index.options) if index.kind == "hnsw" else ("ivfflat", {"lists": index.options["nlist"]})
    )
    written = ", ".join(f"{name} = {value}" for name, value in options.items())
    needed = int(index.rows * (layout.dimensions * 4 + 32 * wanted.m + 200) * 1.2)
    memory = wanted.memory_bytes or min(max(needed, _MEMORY[0]), _MEMORY[1])
    cursor.execute("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory >> 10}kB",))
    if layout.version < _SAFE_PARALLEL:  # building by several processes writes beyond its memory there
        cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
    cursor.execute(
        f"CREATE INDEX {quoted(index.name)} ON {layout.name} USING {method} "
        f"({stored} {operators}) WITH ({written})",
        (),
    )
    before = (layout.index or {}).get("name")
    if before is not None:
        cursor.execute(f"DROP INDEX IF EXISTS {quoted(layout.schema)}.{quoted(str(before))}", ())


def _told(notice: str) -> str:
    return f"the server said: {notice}; more memory_bytes builds faster"


def calibrated(sessions: Sessions, layout: Layout, index: Index, target: float) -> Index:
    """Choose the least effort that reaches the recall wanted, measured against exact search.

    Rows that are part of a graph are easy to find in it: measured with those, an error of 2 % looked like one
    of 0.4 %. So a copy of the table without the rows that are searched for is indexed the same way, for as
    long as this takes. Of a large table it holds a part, and the effort is raised by a step per fourfold.

    Returns:
        The index with its effort and measured recall; unmeasured where there are too few rows.

    Raises:
        StorageError, WriteError: The server has no room for the copy.
    """
    with sessions.transaction(write=True) as cursor:
        copy, queries = _copied(cursor, layout, index.rows)
        apart = replace(index, name=f"{copy.table}_index", rows=_rows(cursor, copy))
        if apart.rows < LEAST_K or not len(queries):
            return replace(index, notes=(*index.notes, "too few rows to measure its recall"))
        _create(cursor, copy, apart, Wanted(kind=index.kind, m=index.options.get("m", 16)))
        measured = _least(cursor, copy, apart, queries, target)
        cursor.execute(f"DROP TABLE {copy.name}", ())
    effort, notes = measured.effort, measured.notes
    for _ in range(math.ceil(math.log(max(index.rows / apart.rows, 1.0), 4) - 0.1)):
        effort = next((more for more in _efforts(index) if more > effort), effort)
    return replace(index, effort=effort, measured=measured.measured, far=measured.far, notes=notes)


def _copied(cursor: Cursor[Any], layout: Layout, rows_now: int) -> tuple[Layout, Vectors]:
    """Copy the vectors of the table but for those held back; return the copy and the ones to be asked for.

    In the table's order: a graph that learns one kind of rows after the other finds less than one that learns
    them mixed (news before questions: 0.48 of the news' neighbours, while a shuffled copy found 0.996).
    """
    copy = replace(layout, table=f"vecmill_measured_{_digest(layout.table)}", index=None)
    held, queries = _held_back(cursor, layout, rows_now)
    cursor.execute(
        f"CREATE UNLOGGED TABLE {copy.name} AS SELECT * FROM (SELECT {ROW}, {VECTOR} FROM {layout.name} "
        f"WHERE {ROW} <> ALL(%s) ORDER BY hashint8({ROW}) "
        f"LIMIT {_MEASURED_BYTES // (4 * layout.dimensions)}) kept ORDER BY {ROW}",
        (held.tolist(),),
    )
    return copy, queries


def _least(cursor: Cursor[Any], layout: Layout, index: Index, queries: Vectors, target: float) -> Index:
    """Return an index with the least effort whose recall is surely enough, or else with the most there is.

    Surely: the lower end of its interval is. So new queries find what is claimed, not half of them. Where so
    few queries could never show that, the mean must do.
    """
    exact = search(cursor, layout, queries, LEAST_K, metric=layout.metric, condition=Condition(), index=None)
    fresh = [at for at, near in enumerate(exact) if not _is_double(near, queries[at], layout.metric)]
    if not fresh or not _is_used(cursor, layout, index, queries[0]):
        return replace(index, notes=(*index.notes, "its recall could not be measured"))
    limits = np.array([exact[at].distances[LEAST_K - 1] for at in fresh])
    lengths = np.array([length_of(queries[at], layout.metric) for at in fresh])
    index = replace(index, far=percentile(limits / lengths, _FAR))
    showable = recall_interval(np.ones(len(fresh)), LEAST_K)[0] >= target
    for effort in _efforts(index):
        index = replace(index, effort=effort)
        set_up(cursor, index, LEAST_K)
        near = [
            by_index(cursor, layout, queries[at], LEAST_K, layout.metric, Condition(), index).found
            for at in fresh
        ]
        measured = _measured(_shares(limits, near), index.rows)
        index = replace(index, measured=measured)
        if (measured.low if showable else measured.recall) >= target:
            return index
    if index.measured is None or (measured := index.measured).recall >= target:
        return index
    told = f"recall {measured.recall:.3f} is below the {target} wanted: raise m or ef_construction"
    return replace(index, notes=(*index.notes, told))


def _efforts(index: Index) -> tuple[int, ...]:
    if index.kind == "hnsw":
        return _EFFORTS
    most = index.options["nlist"]
    return tuple(sorted({min(most, 1 << power) for power in range(most.bit_length() + 1)}))


def _held_back(cursor: Cursor[Any], layout: Layout, rows: int) -> tuple[IntArray, Vectors]:
    """Return rows to be held back, and the vectors of those among them that are asked for.

    Neighbours in a table are often of one kind (five captions of one picture): one of them is found easily
    through the others. So whole runs are held back, and only their middles are asked for. The same table
    gives the same ones.
    """
    cursor.execute(f"SELECT min({ROW}), max({ROW}) FROM {layout.name}", ())
    least, most = cursor.fetchone() or (None, None)
    runs = min(_QUERIES // (_RUN // 2), rows // (4 * _RUN))
    if least is None or most is None or not runs:
        return np.empty(0, np.int64), np.empty((0, layout.dimensions), np.float32)
    span = (most - least + 1 - _RUN) / runs
    starts = least + ((np.arange(runs) + np.random.default_rng(0).random(runs)) * span).astype(np.int64)
    held = (starts[:, np.newaxis] + np.arange(_RUN)).ravel()
    middles = held.reshape(runs, _RUN)[:, _RUN // 4 : _RUN // 4 + _RUN // 2].ravel()
    cursor.execute(
        f"SELECT {VECTOR} FROM {layout.name} WHERE {ROW} = ANY(%s) ORDER BY {ROW}", (middles.tolist(),)
    )
    return held, vector_of([data for (data,) in cursor.fetchall()], layout.dimensions)


def _is_double(near: Found, query: Vectors, metric: Metric) -> bool:
    """Say whether another row has the very same vector."""
    own = pair_distances(query[np.newaxis], query[np.newaxis], metric)
    return (
        bool(near.distances[0] <= own[0]) if metric is not Metric.DOT else bool(near.distances[0] == own[0])
    )


def _is_used(cursor: Cursor[Any], layout: Layout, index: Index, query: Vectors) -> bool:
    set_up(cursor, index, LEAST_K)
    cursor.execute(f"EXPLAIN {candidates_sql(layout, index, Condition(), LEAST_K)}", (vector(query),))
    return any(index.name in str(line) for (line,) in cursor.fetchall())


def _shares(limits: Float32Array, near: list[Found]) -> Float64Array:
    """Return per query how many of the k nearest were found, equally near ones counted: 0 to 1."""
    hits = [np.count_nonzero(one.distances <= limit) for one, limit in zip(near, limits, strict=True)]
    return np.array(hits, np.float64) / LEAST_K


def _measured(shares: Float64Array, rows: int) -> Measured:
    """Return the mean with its 95 % interval, as collections have it."""
    low, high = recall_interval(shares, LEAST_K)
    return Measured(
        recall=float(shares.mean()),
        low=low,
        high=high,
        k=LEAST_K,
        queries=len(shares),
        rows=rows,
    )
