"""Exact search by faiss's flat scan: the error bound proves its float32 answer, or NumPy gives another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vecmill.core.distances import normalize, norms_of
from vecmill.core.extras import require
from vecmill.core.scan import Best, Table
from vecmill.core.scores import are_unit, margins
from vecmill.core.types import Metric, Neighbors, Vectors
from vecmill.core.vectors import nearest

_faiss = require("faiss", extra="ann")

_SPARE = 8  # neighbours asked for beyond k, so that the last of them lies clearly behind the k-th


def can_serve(table: Table) -> bool:
    """Whether the scan knows the metric and can read these vectors where they are."""
    if table.metric is Metric.COSINE:
        return are_unit(table)
    return table.metric in (Metric.DOT, Metric.EUCLIDEAN)


def search(queries: Vectors, table: Table, k: int) -> Neighbors:
    """Find the k nearest vectors to each query; the answer is that of `core.vectors.nearest`, bit for bit.

    The vectors are read where they are, nothing is kept. Threads are those faiss is set to.

    Args:
        queries: (q, d) float32.
        table: All vectors; see `can_serve`.
        k: Neighbours per query, at least 1.
    """
    norms, n = norms_of(queries, what="queries"), len(table)
    euclidean = table.metric is Metric.EUCLIDEAN
    asked = queries if euclidean else normalize(queries)
    wanted = min(n, k + max(_SPARE, k // 4))
    kind = _faiss.METRIC_L2 if euclidean else _faiss.METRIC_INNER_PRODUCT
    scores, rows = _faiss.knn(asked, np.asarray(table.vectors), wanted, metric=kind)
    if euclidean:
        scores = scores * np.float32(-0.5)  # |q|^2 / 2 apart from the score the margins are for
    sure = _proved(scores, margins(norms, table), min(k, n), whole=wanted == n)
    sure &= euclidean | (norms > 0.0)
    sure &= (rows >= 0).all(axis=1)
    out = Neighbors(
        np.empty((len(queries), min(k, n)), np.int64),
        np.empty((len(queries), min(k, n)), np.float32),
        complete=k <= n,
    )
    places = np.flatnonzero(sure)
    if len(places):
        best = Best(queries[places], table, min(k, n))
        best.add(np.repeat(np.arange(len(places)), wanted), rows[places].ravel())
        out.rows[places], out.distances[places] = best.result()
    rest = np.flatnonzero(~sure)
    if len(rest):
        answer = nearest(queries[rest], table.vectors, k, metric=table.metric, norms=table.norms)
        out.rows[rest], out.distances[rest] = answer.rows, answer.distances
    return out


def _proved(
    scores: npt.NDArray[np.float32], errors: npt.NDArray[np.float64], k: int, *, whole: bool
) -> npt.NDArray[np.bool_]:
    """Say for which queries nothing that was left out can be as near as the k-th: (q,).

    faiss sums in an order of its own, and euclidean distances twice, so the bound counts four times.
    """
    if whole:
        return np.isfinite(errors)
    gaps = scores[:, k - 1].astype(np.float64) - scores[:, -1]
    sure: npt.NDArray[np.bool_] = np.isfinite(errors) & (gaps > 4.0 * errors)
    return sure
