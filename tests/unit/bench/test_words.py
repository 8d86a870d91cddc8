from __future__ import annotations

from collections import Counter

import numpy as np

from vecmill.bench.quality import Collection
from vecmill.bench.words import WordIndex, word_quality

DOCUMENTS = ["the mill by the river", "The river", "bread and rye", ""]


def test_shared_rare_words_bring_documents_near() -> None:
    assert WordIndex(DOCUMENTS).search("RIVER", 2).tolist() == [1, 0]
    assert WordIndex(DOCUMENTS).search("rye bread", 1).tolist() == [2]


def test_ties_go_to_the_lower_row_and_unknown_words_change_nothing() -> None:
    assert WordIndex(DOCUMENTS).search("a swallow", 9).tolist() == [0, 1, 2, 3]
    assert WordIndex(DOCUMENTS).search("swallow rye", 1).tolist() == [2]


def test_weights_are_the_formula() -> None:
    weights = WordIndex(["aa aa bb", "bb"])._weigh(Counter({"aa": 2, "bb": 1}))
    raw = np.array([(1 + np.log(2)) * (1 + np.log(3 / 2)), 1.0])
    np.testing.assert_allclose(list(weights.values()), raw / np.linalg.norm(raw))


def test_quality_is_the_mean_over_judged_queries() -> None:
    texts = {"a": "mill", "b": "bread"}
    right = Collection("x", texts, {"1": "mill", "2": "bread"}, {"1": {"a": 1.0}, "2": {"b": 1.0}})
    half = Collection("x", texts, {"1": "mill", "2": "bread"}, {"1": {"a": 1.0}, "2": {"a": 1.0}})
    assert word_quality(right) == 1.0
    assert word_quality(half) == (1 + 1 / np.log2(3)) / 2
