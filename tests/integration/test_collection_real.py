"""Collections of real vectors: filters leave nothing out, indexes reach the recall they say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vecmill import Collection
from vecmill.core.measure import recall
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest

ITEMS = 21_000


@pytest.fixture(scope="module")
def collection(real_vectors: npt.NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Collection:
    made = Collection.create(tmp_path_factory.mktemp("captions") / "c", dimensions=384)
    numbers = np.random.default_rng(4).permutation(ITEMS)
    made.add(range(ITEMS), vectors=real_vectors[:ITEMS], columns={"n": numbers})
    return made


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("flat", "float32"), ("flat", "int8"), ("flat", "binary"), ("hnsw", "int8"), ("ivf", "float32")],
)
def test_recall_is_one_below_a_filter_and_what_was_measured_without(
    collection: Collection, real_vectors: npt.NDArray[np.float32], kind: str, precision: str
) -> None:
    state = collection.build_index(kind=kind, precision=precision, recall_target=0.99)
    queries = real_vectors[ITEMS:][:100]
    items = collection.items()
    numbers = np.array([record["n"] for record in items.records(np.arange(ITEMS), ["n"])])
    for limit, wanted in ((ITEMS // 100, 1.0), (ITEMS // 10, 0.98), (ITEMS, 0.98)):
        rows = np.flatnonzero(numbers < limit)
        true = nearest(queries, real_vectors[rows], 10, metric=Metric.COSINE)
        found = np.stack(
            [
                [hit.distance for hit in collection.search(query, k=10, where=f"n < {limit}").hits]
                for query in queries[:40]
            ]
        )
        reached = recall(true.distances[:40], found, 10, epsilon=0.0)
        assert reached >= wanted, f"{kind} {precision}, {limit} of {ITEMS} rows"
        if wanted == 1.0:
            np.testing.assert_array_equal(found, true.distances[:40])
    if state.measured is not None:
        assert state.measured.recall >= 0.99
        near = items.index.search(queries, 10)
        everything = nearest(queries, real_vectors[:ITEMS], 10, metric=Metric.COSINE)
        reached = recall(everything.distances, near.distances, 10, epsilon=0.0)
        assert abs(reached - state.measured.recall) < 0.02
