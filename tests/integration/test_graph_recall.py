"""Graphs and lists on real vectors: what calibration promises is what new queries get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vecmill.core.extras import installed, require
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest
from vecmill.index.build import calibrate
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexSettings

pytestmark = pytest.mark.skipif(not installed("faiss"), reason="needs faiss (the extra ann)")

HELD_BACK = 1000


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Equal results on every machine: several threads race for the links of a graph."""
    faiss = require("faiss", extra="ann")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def truth(real_vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    searched, asked = real_vectors[:-HELD_BACK], real_vectors[-HELD_BACK:]
    return nearest(asked, searched, 10, metric=Metric.COSINE).distances


@pytest.mark.parametrize(
    ("made_of", "most_bytes"),
    [
        ({"precision": "int8"}, 384),
        ({"precision": "binary"}, 56),
        ({"precision": "pq"}, 56),
        ({"kind": "hnsw"}, 1720),
        ({"kind": "hnsw", "precision": "int8"}, 570),
        ({"kind": "ivf", "precision": "pq"}, 130),
    ],
    ids=str,
)
def test_new_queries_get_the_recall_that_was_measured(
    real_vectors: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    made_of: dict[str, Any],
    most_bytes: int,
) -> None:
    searched, asked = real_vectors[:-HELD_BACK], real_vectors[-HELD_BACK:]
    made = calibrate(searched, IndexSettings(**made_of), metric=Metric.COSINE)
    index = RescoredIndex(
        made.candidates, ArrayOriginals(searched), metric=Metric.COSINE, oversample=made.settings.oversample
    )
    found = index.search(asked, 10)
    recall = float((found.distances <= truth[:, 9:]).mean())
    assert made.surely
    assert recall >= 0.985
    assert abs(recall - made.measured.recall) <= 0.01
    assert made.candidates.size_bytes / len(searched) <= most_bytes
