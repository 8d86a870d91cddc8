"""Equal vectors: found, and put back as rows."""

from __future__ import annotations

import numpy as np

from vecmill.index.copies import copies_in, hashes_of

VECTORS = np.array([[1, 0], [2, 0], [1, 0], [3, 0], [2, 0], [1, -0.0]], np.float32)


def test_rows_of_equal_vectors_come_together_in_order_of_first_rows() -> None:
    copies = copies_in(hashes_of(VECTORS))
    assert len(copies) == 3
    assert copies.members.tolist() == [0, 2, 5, 1, 4, 3]
    assert copies.starts.tolist() == [0, 3, 5, 6]
    assert copies.first_rows.tolist() == [0, 1, 3]
    assert not copies.are_none


def test_distinct_vectors_are_rows_as_they_are() -> None:
    copies = copies_in(hashes_of(np.random.default_rng(0).standard_normal((100, 3), np.float32)))
    assert copies.are_none
    assert copies.first_rows.tolist() == list(range(100))


def test_one_component_more_or_less_is_another_hash() -> None:
    vectors = np.eye(200, dtype=np.float32)
    vectors[100:] *= np.nextafter(np.float32(1), np.float32(2))
    assert len(copies_in(hashes_of(np.concatenate((vectors, np.eye(200, dtype=np.float32)))))) == 300


def test_vectors_found_become_rows_nearest_first_and_cut_to_the_count() -> None:
    copies = copies_in(hashes_of(VECTORS))
    found = np.array([[2, 0, 1], [1, -1, -1]])
    assert copies.rows(found, 3).tolist() == [[3, 0, 2], [1, 4, -1]]
    assert copies.rows(found, 6).tolist() == [[3, 0, 2, 5, 1, 4], [1, 4, -1, -1, -1, -1]]
    assert copies.rows(np.empty((0, 3), np.int64), 2).shape == (0, 2)


def test_rows_that_may_not_be_named_are_not() -> None:
    copies = copies_in(hashes_of(VECTORS)).allowed(np.array([False, False, True, True, False, True]))
    assert copies.rows(np.array([[0, 1, 2]]), 4).tolist() == [[2, 5, 3, -1]]


def test_other_order_and_head_keep_rows_with_their_vectors() -> None:
    turned = copies_in(hashes_of(VECTORS)).in_order(np.array([2, 0, 1]))
    assert turned.rows(np.array([[0], [1], [2]]), 3).tolist() == [[3, -1, -1], [0, 2, 5], [1, 4, -1]]
    assert turned.head(2).members.tolist() == [3, 0, 2, 5]
    assert turned.any_of(np.arange(6) == 4).tolist() == [False, False, True]
