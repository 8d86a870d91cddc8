"""Packing: every text once, equal lengths only, and nothing but lengths decides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecmill.models.local.packing import BATCH_TOKENS, MULTIPLE, fill, pack, padded_length

LENGTHS = st.lists(st.integers(1, 600), max_size=200)


@given(LENGTHS)
def test_every_text_is_in_one_batch_of_its_own_padded_length(lengths: list[int]) -> None:
    batches = pack(np.array(lengths, dtype=np.int64))
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.array([], dtype=np.int64)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert {padded_length(lengths[row]) for row in batch.rows} == {batch.length}


@given(LENGTHS)
def test_batches_hold_no_more_than_the_budget_unless_one_text_does(lengths: list[int]) -> None:
    for batch in pack(np.array(lengths, dtype=np.int64)):
        assert len(batch.rows) * batch.length <= max(BATCH_TOKENS, batch.length)


@given(LENGTHS)
def test_longest_come_first(lengths: list[int]) -> None:
    found = [batch.length for batch in pack(np.array(lengths, dtype=np.int64))]
    assert found == sorted(found, reverse=True)


def test_padded_length_is_a_multiple_that_holds_the_text() -> None:
    assert [padded_length(n) for n in (0, 1, 8, 9, 256)] == [8, 8, 8, 16, 256]
    assert MULTIPLE == 8


def test_fill_pads_on_the_right_and_masks_it() -> None:
    ids = (np.array([5, 6, 7], dtype=np.int32), np.array([9], dtype=np.int32))
    (batch,) = pack(np.array([3, 1]))
    matrix, mask = fill(ids, batch, 1)
    assert matrix.tolist() == [[5, 6, 7, 1, 1, 1, 1, 1], [9, 1, 1, 1, 1, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert (matrix.dtype, mask.dtype) == (np.int32, np.float32)
