"""Requests stay within a provider's limits and lose nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecmill.embedder.batching import batches


def test_without_limits_everything_is_one_request() -> None:
    found = list(batches(np.array([5, 5, 5]), max_inputs=None, max_tokens=None))
    assert [list(rows) for rows in found] == [[0, 1, 2]]


def test_nothing_in_means_no_request() -> None:
    assert list(batches(np.array([], dtype=np.int64), max_inputs=None, max_tokens=None)) == []
    assert list(batches(np.array([], dtype=np.int64), max_inputs=4, max_tokens=10)) == []


def test_a_text_above_the_token_limit_goes_alone() -> None:
    found = list(batches(np.array([1, 50, 1]), max_inputs=None, max_tokens=10))
    assert [list(rows) for rows in found] == [[0], [1], [2]]


@given(
    tokens=st.lists(st.integers(1, 40), max_size=60),
    max_inputs=st.integers(1, 10),
    max_tokens=st.integers(1, 60),
)
def test_every_text_is_in_one_request_in_order_and_within_limits(
    tokens: list[int], max_inputs: int, max_tokens: int
) -> None:
    counts = np.array(tokens, dtype=np.int64)
    found = list(batches(counts, max_inputs=max_inputs, max_tokens=max_tokens))
    assert [int(i) for rows in found for i in rows] == list(range(len(tokens)))
    for rows in found:
        assert 1 <= len(rows) <= max_inputs
        assert counts[rows].sum() <= max_tokens or len(rows) == 1
