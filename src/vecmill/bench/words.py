"""Word matching, the baseline a model has to beat: TF-IDF with sublinear term frequency, and cosine.

Words are runs of two or more letters, digits and underscores, in lower case; no stop words, no stems. A word
that occurs f times in a text and in m of n documents weighs (1 + ln f) * (1 + ln((1 + n) / (1 + m))), and a
text's weights are scaled to unit length. These are scikit-learn's defaults with `sublinear_tf=True`.
Source: Salton and Buckley, Term-weighting approaches in automatic text retrieval, 1988, sections 2 and 3.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vecmill.bench.quality import Collection
from vecmill.core.measure import mean_ndcg
from vecmill.core.types import IntArray

_WORD = re.compile(r"\b\w\w+\b")
_K = 10

Float64Array = npt.NDArray[np.float64]


class WordIndex:
    """Documents by their words.

    Args:
        documents: The texts searched. Memory grows with their distinct words.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        counts = [_count(text) for text in documents]
        spread = Counter(word for row in counts for word in row)
        self._rarity = {
            word: 1.0 + math.log((1 + len(documents)) / (1 + found)) for word, found in spread.items()
        }
        self._n = len(documents)
        rows: dict[str, list[int]] = {word: [] for word in spread}
        values: dict[str, list[float]] = {word: [] for word in spread}
        for row, count in enumerate(counts):
            for word, weight in self._weigh(count).items():
                rows[word].append(row)
                values[word].append(weight)
        self._lists: dict[str, tuple[IntArray, Float64Array]] = {
            word: (np.array(rows[word], np.int64), np.array(values[word])) for word in spread
        }

    def search(self, query: str, k: int) -> IntArray:
        """Return the rows of the k most similar documents, nearest first, ties to the lower row."""
        near = np.zeros(self._n)
        for word, weight in self._weigh(_count(query)).items():
            rows, values = self._lists[word]
            near[rows] += weight * values
        found: IntArray = np.argsort(-near, kind="stable")[:k]
        return found

    def _weigh(self, counts: Counter[str]) -> dict[str, float]:
        weights = {
            word: (1.0 + math.log(count)) * self._rarity[word]
            for word, count in counts.items()
            if word in self._rarity
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}


def word_quality(collection: Collection) -> float:
    """Search a collection by its words and return the mean nDCG@10 over judged queries."""
    ids = list(collection.documents)
    index = WordIndex(list(collection.documents.values()))
    ranked = {
        query: [ids[row] for row in index.search(collection.queries[query], _K).tolist()]
        for query in collection.judged
    }
    return mean_ndcg(ranked, collection.judged, _K)


def _count(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))
