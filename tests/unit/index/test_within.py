"""Everything within a distance: all of it, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vecmill.core.errors import InputError
from vecmill.core.types import Metric
from vecmill.core.vectors import distances
from vecmill.index.exact import ExactIndex
from vecmill.index.within import within


@pytest.mark.parametrize("metric", list(Metric))
def test_it_finds_what_comparing_all_finds_boundary_included(metric: Metric) -> None:
    vectors = np.random.default_rng(0).integers(-2, 3, (700, 4)).astype(np.float32)
    queries = np.random.default_rng(1).integers(-2, 3, (9, 4)).astype(np.float32)
    everything = distances(queries, vectors, metric=metric)
    index = ExactIndex(vectors, metric=metric)
    for limit in (float(np.sort(everything[0])[300]), float(everything.min()), -100.0, 1e9):
        found = within(index, queries, limit)
        assert len(found.offsets) == 10
        for query in range(9):
            rows, near = found.of(query)
            assert sorted(rows.tolist()) == np.flatnonzero(everything[query] <= limit).tolist()
            np.testing.assert_array_equal(near, everything[query][rows])
            assert (np.diff(near) >= 0).all()


def test_a_mask_no_queries_and_a_limit_that_is_no_number() -> None:
    index = ExactIndex(np.eye(5, dtype=np.float32))
    allowed = np.array([True, False, True, False, False])
    assert within(index, np.eye(5)[:1], 2.0, allowed=allowed).rows.tolist() == [0, 2]
    empty = within(index, np.empty((0, 5)), 1.0)
    assert (len(empty.rows), empty.offsets.tolist()) == (0, [0])
    with pytest.raises(InputError, match="nan"):
        within(index, np.eye(5)[:1], float("nan"))
