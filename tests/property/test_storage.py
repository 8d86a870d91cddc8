"""A collection beside a dictionary: whatever is done to both, they hold the same and find the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vecmill.core.errors import InputError
from vecmill.core.types import Metric
from vecmill.core.vectors import nearest
from vecmill.index.exact import search_originals
from vecmill.index.storage import Store

D = 3
IDS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(["", "1", "-1", "a", "a b", "é", "\x00", "9007199254740993"]),
    st.sampled_from([b"", b"1", b"\xff"]),
    st.sampled_from([9_007_199_254_740_993, 9_007_199_254_740_992, -(1 << 63)]),
)
Rows = st.lists(IDS, min_size=0, max_size=5, unique_by=lambda value: (type(value), value))


class Beside(RuleBasedStateMachine):
    """The collection, and the dictionary id -> (vector, column)."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.create(self.folder / "c", dimensions=D, metric="euclidean")
        self.held: dict[object, tuple[list[float], int | None]] = {}
        self.chance = np.random.default_rng(7)
        self.step = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def vectors(self, n: int) -> Any:
        # Few distinct values, so that distances tie.
        return self.chance.integers(-2, 3, (n, D)).astype(np.float32)

    @rule(ids=Rows, replace=st.booleans())
    def add(self, ids: list[object], replace: bool) -> None:
        given = self.vectors(len(ids))
        self.step += 1
        table = pa.table({"x": pa.array([self.step] * len(ids), pa.int64())})
        if not replace and any(name in self.held for name in ids):
            try:
                self.store.add(ids, given, table)
            except InputError:
                return
            raise AssertionError("an id that is there was added")
        self.store.add(ids, given, table, replace=replace)
        for name, vector in zip(ids, given.tolist(), strict=True):
            self.held.pop(name, None)  # a replaced item moves to the end
            self.held[name] = (vector, self.step)

    @rule(ids=Rows)
    def delete(self, ids: list[object]) -> None:
        change = self.store.delete(ids)
        assert set(change.missing) == {name for name in ids if name not in self.held}
        assert change.deleted == sum(self.held.pop(name, None) is not None for name in ids)

    @rule(ids=Rows)
    def set_columns(self, ids: list[object]) -> None:
        self.step += 1
        self.store.set_columns(ids, pa.table({"x": pa.array([self.step] * len(ids), pa.int64())}))
        there = [name for name in self.held if name in ids]
        for name in there:
            self.held[name] = (self.held.pop(name)[0], self.step)

    @rule(bound=st.sampled_from([1, 100, 1 << 20]))
    def compact(self, bound: int) -> None:
        self.store.compact(max_bytes=bound)

    @rule()
    def reopen(self) -> None:
        self.store = Store.open(self.folder / "c")

    @invariant()
    def holds_the_same_in_the_same_order(self) -> None:
        now = self.store.snapshot()
        at = np.flatnonzero(now.live)
        assert now.ids(at) == list(self.held)
        assert now.fetch(at).tolist() == [vector for vector, _ in self.held.values()]
        if self.held:
            assert [record["x"] for record in now.records(at, ["x"])] == [x for _, x in self.held.values()]
        assert len(self.store) == len(self.held)

    @invariant()
    def finds_the_same(self) -> None:
        now = self.store.snapshot()
        queries = np.array([[0.0, 1.0, 0.0], [2.0, 2.0, -1.0]], np.float32)
        found = search_originals(now, queries, 3, metric=Metric.EUCLIDEAN, allowed=now.live)
        held = np.array([vector for vector, _ in self.held.values()], np.float32).reshape(-1, D)
        expected = nearest(queries, held, 3, metric=Metric.EUCLIDEAN)
        assert found.complete == expected.complete
        np.testing.assert_array_equal(found.distances, expected.distances)
        np.testing.assert_array_equal(
            found.rows, np.flatnonzero(now.live)[expected.rows] if held.size else expected.rows
        )


TestBeside = Beside.TestCase
TestBeside.settings = settings(
    deadline=None, max_examples=25, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
