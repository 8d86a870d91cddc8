"""Search in PostgreSQL: an index names candidates or the server compares with all; the originals decide.

Distances that come out are always computed here, from the float32 vectors the server sent, by the one
function every other source uses. So the same pair has the same distance in a file, a collection and a table.
"""

# ruff: noqa: S608 - names go through quoted(), values are parameters of the statement
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vecmill.core.types import IntArray, Metric, Neighbors, Precision, Vectors
from vecmill.core.vectors import merged, nearest, pair_distances
from vecmill.index.postgres_copy import read_vectors, vector_of
from vecmill.index.postgres_schema import ROW, VECTOR, Layout
from vecmill.index.postgres_session import copying, vector
from vecmill.index.settings import Measured

if TYPE_CHECKING:
    from psycopg import Cursor

OPERATORS: dict[Metric, str] = {
    Metric.COSINE: "<=>",
    Metric.DOT: "<#>",
    Metric.EUCLIDEAN: "<->",
    Metric.MANHATTAN: "<+>",
    Metric.HAMMING: "<~>",
    Metric.JACCARD: "<%>",
}
"""pgvector's operators; it has none for chebyshev, which is computed here."""

ON_BITS = (Metric.HAMMING, Metric.JACCARD)

_ALIKE = {Metric.COSINE, Metric.DOT, Metric.EUCLIDEAN}

FEW = 0.05
"""Of fewer rows than this share the survivors of a filter are compared one by one."""

_MANY_QUERIES = 12
"""From so many on, sending all vectors here once is cheaper than the server reading them once per query."""

_SAMPLED_PAGES = 400

LEAST_K = 10
"""Neighbours an index is asked for at least: the recall and how far off queries are is known of so many."""

_HARDER = 4

_ROUNDOFF = 2.0**-24
_FETCHED = 4096
_MAX_EF = 1000  # Source: pgvector's README, "Query Options"
_SCAN_TUPLES = 20_000


class Found(NamedTuple):
    """What one query found: rows (m,) int64 and their distances (m,) float32, nearest first."""

    rows: IntArray
    distances: npt.NDArray[np.float32]


class Sought(NamedTuple):
    """What an index found, and how far off the query is: the distance of its 10th neighbour there."""

    found: Found
    off: float


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows may be found: SQL with %s for each parameter. Empty: all."""

    sql: str = ""
    parameters: tuple[Any, ...] = ()
    filtered: bool = False

    @classmethod
    def of(cls, where_sql: str | None, parameters: Sequence[Any], leave_out: IntArray | None) -> Condition:
        """Put a filter and rows to leave out together."""
        parts: list[str] = []
        values: list[Any] = []
        if where_sql:
            parts.append(f"({where_sql})")
            values.extend(parameters)
        if leave_out is not None and len(leave_out):
            parts.append(f"{ROW} <> ALL(%s)")
            values.append([int(row) for row in leave_out])
        return cls(f"WHERE {' AND '.join(parts)}" if parts else "", tuple(values), bool(where_sql))


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a table: what it is made of and how hard it searches.

    Attributes:
        name: Its name on the server, without the schema.
        kind: "hnsw" or "ivf".
        precision: float32 (`vector`), float16 (`halfvec`) or binary (`bit`).
        metric: What it was built for.
        options: m and ef_construction, or nlist.
        effort: ef of hnsw, nprobe of ivf.
        oversample: Candidates per neighbour.
        rows: Rows when it was built.
        measured: The recall found when it was built; None before that.
        notes: What people should know about it.
        far: The distance to its 10th neighbour within which 19 of 20 held-back rows lay, in the index's own
            metric (dot: of a query of length 1). Queries farther off are unlike the rows the recall was
            measured with. None: it was built before that was kept.
    """

    name: str
    kind: str
    precision: Precision
    metric: Metric
    options: dict[str, int]
    effort: int
    oversample: float
    rows: int
    measured: Measured | None = None
    notes: tuple[str, ...] = field(default=())
    far: float | None = None

    @property
    def symbol(self) -> str:
        """The operator it was built for: on bits that is hamming's, whatever the metric, but for jaccard."""
        if self.precision is Precision.BINARY and self.metric is not Metric.JACCARD:
            return OPERATORS[Metric.HAMMING]
        return OPERATORS[self.metric]

    def serves(self, metric: Metric, *, normalized: bool) -> bool:
        """Say whether it finds candidates for a metric.

        Args:
            metric: What "near" shall mean.
            normalized: Whether all vectors have unit length: then three metrics order alike.
        """
        return metric is self.metric or (normalized and {metric, self.metric} <= _ALIKE)


def expression(layout: Layout, precision: Precision, what: str) -> str:
    """Write vectors of a table, or a query, as an index of a precision compares them."""
    match precision:
        case Precision.FLOAT16:
            return f"({what}::{layout.types}halfvec({layout.dimensions}))"
        case Precision.BINARY:
            return f"({layout.types}binary_quantize({what})::bit({layout.dimensions}))"
    return what


def search(
    cursor: Cursor[Any],
    layout: Layout,
    queries: Vectors,
    k: int,
    *,
    metric: Metric,
    condition: Condition,
    index: Index | None,
) -> list[Found]:
    """Find the k nearest rows to each query, in one moment of the table.

    A query unlike the rows (`Index.far`) may lie where an index leads nobody: it is searched for again, four
    times as hard, and if that finds something else, it is compared with all.

    Args:
        cursor: In a transaction that sees one moment.
        layout: The table.
        queries: (q, d) float32, checked.
        k: Neighbours per query, at least 1.
        metric: What "near" means.
        condition: Which rows may be found.
        index: Names candidates; None compares with all.
    """
    if index is not None and condition.filtered:
        few = survivors(cursor, layout, condition, k)
        if few is not None:
            index, condition = None, Condition(f"WHERE {ROW} = ANY(%s)", (few,))
    if index is None:
        return _exact(cursor, layout, queries, k, metric, condition)
    set_up(cursor, index, k)
    sought = [by_index(cursor, layout, query, k, metric, condition, index) for query in queries]
    found = [one.found for one in sought]
    # Fewer than k: there are no more, or the index could not find them.
    # A zero query has no direction an index could follow.
    short = [at for at, near in enumerate(found) if len(near.rows) < k or not queries[at].any()]
    far = [at for at, one in enumerate(sought) if index.far is not None and not one.off <= index.far]
    harder = replace(index, effort=_HARDER * index.effort, oversample=_HARDER * index.oversample)
    if index.kind == "hnsw" and index.effort > _MAX_EF // 2:  # it hardly can
        short += far
    elif far:
        set_up(cursor, harder, k)
        short += [
            at
            for at in far
            if not _same(by_index(cursor, layout, queries[at], k, metric, condition, harder).found, found[at])
        ]
    short = sorted(set(short))
    if short:
        exact = _exact(cursor, layout, queries[short], k, metric, condition)
        for at, near in zip(short, exact, strict=True):
            found[at] = near
    return found


def _same(one: Found, other: Found) -> bool:
    return np.array_equal(one.distances, other.distances)


def survivors(cursor: Cursor[Any], layout: Layout, condition: Condition, k: int) -> list[int] | None:
    """Return the rows that pass a condition, where they are so few that comparing them all is best.

    A look at some random pages tells when far more pass; only then the table is not read through.
    """
    cursor.execute(
        "SELECT greatest(reltuples, 0)::bigint, greatest(relpages, 1) FROM pg_class "
        "WHERE oid = to_regclass(%s)",
        (layout.name.replace("%%", "%"),),
    )
    rows, pages = cursor.fetchone() or (0, 1)
    limit = max(int(rows * FEW), 20 * k)
    if pages > 4 * _SAMPLED_PAGES:
        cursor.execute(
            f"SELECT count(*) FILTER ({condition.sql}), count(*) FROM {layout.name} "
            f"TABLESAMPLE SYSTEM ({100 * _SAMPLED_PAGES / pages!r})",
            condition.parameters,
        )
        passed, seen = cursor.fetchone() or (0, 0)
        share = passed / max(seen, 1)
        # Rows of a page may all be alike: a page is one observation. Three standard errors are 1 in 1,000.
        if (share - 3.0 * (share * (1.0 - share) / _SAMPLED_PAGES) ** 0.5) * rows > limit:
            return None
    cursor.execute(f"SELECT {ROW} FROM {layout.name} {condition.sql} LIMIT {limit + 1}", condition.parameters)
    found = [row for (row,) in cursor.fetchall()]
    return found if len(found) <= limit else None


def set_up(cursor: Cursor[Any], index: Index, k: int) -> None:
    """Set how hard this transaction's scans look."""
    count = candidates_of(index, k)
    if index.kind == "hnsw":
        settings = {
            "hnsw.ef_search": min(_MAX_EF, max(index.effort, count)),
            "hnsw.iterative_scan": "strict_order",
            "hnsw.max_scan_tuples": max(_SCAN_TUPLES, 40 * count),
            "hnsw.scan_mem_multiplier": 4,
        }
    else:
        settings = {
            "ivfflat.probes": min(index.effort, index.options["nlist"]),
            "ivfflat.iterative_scan": "relaxed_order",
        }
    _set(cursor, {**settings, "enable_seqscan": "off", "enable_indexscan": "on"})


def _set(cursor: Cursor[Any], settings: dict[str, object]) -> None:
    calls = ", ".join("set_config(%s, %s, true)" for _ in settings)
    cursor.execute(
        f"SELECT {calls}", [part for name, value in settings.items() for part in (name, str(value))]
    )


def candidates_of(index: Index, k: int) -> int:
    """Return how many candidates are asked for."""
    return int(np.ceil(max(k, LEAST_K) * index.oversample))


def by_index(
    cursor: Cursor[Any],
    layout: Layout,
    query: Vectors,
    k: int,
    metric: Metric,
    condition: Condition,
    index: Index,
) -> Sought:
    """Find rows through an index; fewer than k where it finds no more."""
    cursor.execute(
        candidates_sql(layout, index, condition, candidates_of(index, k)),
        (*condition.parameters, vector(query)),
    )
    rows = cursor.fetchall()
    near = _best(rows, layout, query, max(k, LEAST_K), metric)
    own = near if metric is index.metric else _best(rows, layout, query, LEAST_K, index.metric)
    off = np.inf if len(own.rows) < LEAST_K else float(own.distances[LEAST_K - 1])
    return Sought(Found(near.rows[:k], near.distances[:k]), off / length_of(query, index.metric))


def length_of(query: Vectors, metric: Metric) -> float:
    """Return what a distance is to be divided by so that it is that of a query of length 1."""
    return float(np.linalg.norm(query)) or 1.0 if metric is Metric.DOT else 1.0


def candidates_sql(layout: Layout, index: Index, condition: Condition, count: int) -> str:
    """Write the statement that names candidates; its last parameter is the query."""
    asked = expression(layout, index.precision, f"%s::{layout.types}vector")
    stored = expression(layout, index.precision, VECTOR)
    return (
        f"SELECT {ROW}, {VECTOR} FROM {layout.name} {condition.sql} "
        f"ORDER BY {stored} {layout.operator(index.symbol)} {asked} LIMIT {count}"
    )


def _best(rows: list[tuple[int, bytes]], layout: Layout, query: Vectors, k: int, metric: Metric) -> Found:
    """Compute the distances of candidates from their originals and keep the k nearest."""
    if not rows:
        return Found(np.empty(0, np.int64), np.empty(0, np.float32))
    numbers = np.array([row for row, _ in rows], np.int64)
    originals = vector_of([data for _, data in rows], layout.dimensions)
    near = pair_distances(np.broadcast_to(query, originals.shape), originals, metric)
    best = np.lexsort((numbers, near))[:k]
    return Found(numbers[best], near[best])


def _exact(
    cursor: Cursor[Any], layout: Layout, queries: Vectors, k: int, metric: Metric, condition: Condition
) -> list[Found]:
    """Compare with every row that may be found: on the server for a few queries, here for many."""
    _set(cursor, {"enable_seqscan": "on", "enable_indexscan": "off"})
    if len(queries) >= _MANY_QUERIES or metric not in OPERATORS:
        return _exact_here(cursor, layout, queries, k, metric, condition)
    return [_exact_there(cursor, layout, query, k, metric, condition) for query in queries]


def _exact_here(
    cursor: Cursor[Any], layout: Layout, queries: Vectors, k: int, metric: Metric, condition: Condition
) -> list[Found]:
    """Read all vectors once and compare them here, some megabytes at a time."""
    q = len(queries)
    best = Neighbors(np.empty((q, 0), np.int64), np.empty((q, 0), np.float32), complete=False)
    statement = f"COPY (SELECT {ROW}, {VECTOR} FROM {layout.name} {condition.sql}) TO STDOUT (FORMAT binary)"
    with copying(cursor, statement, condition.parameters) as copy:
        for rows, vectors in read_vectors(copy, layout.dimensions):
            order = np.argsort(rows)  # equal distances go to the lower row
            found = nearest(queries, vectors[order], k, metric=metric)
            part = Neighbors(rows[order][found.rows], found.distances, found.complete)
            best = merged([best, part], k)
    return [Found(rows, near) for rows, near in zip(best.rows, best.distances, strict=True)]


def _exact_there(
    cursor: Cursor[Any], layout: Layout, query: Vectors, k: int, metric: Metric, condition: Condition
) -> Found:
    """Let the server compare with all, then decide among those its rounding cannot tell apart."""
    if metric in (Metric.COSINE, Metric.DOT) and not query.any():
        # A zero query is equally far from everything: the first rows.
        cursor.execute(
            f"SELECT {ROW}, {VECTOR} FROM {layout.name} {condition.sql} ORDER BY {ROW} LIMIT {k}",
            condition.parameters,
        )
        return _best(cursor.fetchall(), layout, query, k, metric)
    cursor.execute(
        _within_rounding(layout, metric, condition, k, query), (vector(query), *condition.parameters)
    )
    rows = [row for (row,) in cursor.fetchall()]
    best = Found(np.empty(0, np.int64), np.empty(0, np.float32))
    for start in range(0, len(rows), _FETCHED):
        cursor.execute(
            f"SELECT {ROW}, {VECTOR} FROM {layout.name} WHERE {ROW} = ANY(%s)",
            (rows[start : start + _FETCHED],),
        )
        part = _best(cursor.fetchall(), layout, query, k, metric)
        both = Found(np.concatenate([best.rows, part.rows]), np.concatenate([best.distances, part.distances]))
        order = np.lexsort((both.rows, both.distances))[:k]
        best = Found(both.rows[order], both.distances[order])
    return best


def _within_rounding(layout: Layout, metric: Metric, condition: Condition, k: int, query: Vectors) -> str:
    """Write the statement that names every row that may be among the k nearest.

    The server sums float32 products, so its distances are off by at most a known margin: rows within it of
    the k-th are named too. Where it says NaN (a zero vector has no cosine) the row is always named.
    Source of the bound: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    margin = 2.0 * (2 * layout.dimensions + 16) * _ROUNDOFF
    size = "0::float8"
    match metric:
        case Metric.COSINE:
            limit = f"kth.far + {margin!r}"
        case Metric.DOT:
            length = float(np.linalg.norm(query.astype(np.float64)))
            size = f"{layout.types}vector_norm({VECTOR})"
            limit = f"kth.far + {margin * length!r} * kth.size"
        case Metric.EUCLIDEAN | Metric.MANHATTAN:
            limit = f"kth.far * {1.0 + margin!r}"
        case _:
            limit = "kth.far + 1e-9"
    bits = Precision.BINARY if metric in ON_BITS else Precision.FLOAT32
    asked = expression(layout, bits, f"%s::{layout.types}vector")
    return (
        f"WITH all_rows AS MATERIALIZED (SELECT {ROW} AS r, ({expression(layout, bits, VECTOR)} "
        f"{layout.operator(OPERATORS[metric])} {asked})::float8 AS far, {size} AS size "
        f"FROM {layout.name} {condition.sql}), "
        f"kth AS (SELECT (SELECT max(far) FROM (SELECT far FROM all_rows WHERE far <> 'NaN' ORDER BY far "
        f"LIMIT {k}) near) AS far, (SELECT max(size) FROM all_rows) AS size) "
        f"SELECT r FROM all_rows, kth WHERE all_rows.far = 'NaN' OR all_rows.far <= {limit}"
    )
