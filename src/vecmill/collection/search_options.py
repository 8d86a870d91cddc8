"""How to search: one list of options for every source and both doors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import SupportsFloat, SupportsIndex, TypedDict

from vecmill.core.config import Settings
from vecmill.core.errors import InputError, unknown_name
from vecmill.core.types import Metric, choice


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        k: Hits per query, at least 1.
        model: Embeds text queries; None takes the model that made the vectors.
        base_url: Where a hosted model is, instead of its provider's own address.
        metric: cosine, dot, euclidean, manhattan, chebyshev, hamming or jaccard; None for the one a
            collection or table is built for, else cosine. Another one than that needs `exact`.
        where: Only rows that pass this filter: "stars >= 4 and lang = 'en'". k counts among them.
        hybrid: Rank by words too (BM25) and fuse both rankings (reciprocal ranks). Hits come in the fused
            order and carry the distance of the vectors, which then is not ascending. For text queries.
        exact: Compare with every vector, whatever indexes there are.
        columns: Columns a hit carries; None for all but the vectors.
        vector_column, id_column: As `read_vectors` takes them; only for a set given by its path.
        max_distance: Leave out hits further away; the boundary is in.
        min_similarity: Leave out hits less similar; the boundary is in.
        settings: None reads environment and `vecmill.toml`.
    """

    k: int = 10
    model: str | None = None
    base_url: str | None = None
    metric: Metric | str | None = None
    where: str | None = None
    hybrid: bool = False
    exact: bool = False
    columns: Sequence[str] | None = None
    vector_column: str | None = None
    id_column: str | None = None
    max_distance: float | None = None
    min_similarity: float | None = None
    settings: Settings | None = None


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions` as keyword arguments."""

    k: int
    model: str | None
    base_url: str | None
    metric: Metric | str | None
    where: str | None
    hybrid: bool
    exact: bool
    columns: Sequence[str] | None
    vector_column: str | None
    id_column: str | None
    max_distance: float | None
    min_similarity: float | None
    settings: Settings | None


def options_of(given: SearchKeywords) -> SearchOptions:
    """Return the options of a search, checked.

    Raises:
        UnknownNameError: No such option, or no such metric.
        InputError: k is no whole number from 1 on, a threshold is not a number, or columns is a text.
    """
    for name in given:
        if name not in SearchOptions.__dataclass_fields__:
            raise unknown_name("option of a search", name, SearchOptions.__dataclass_fields__)
    asked = SearchOptions(**given)
    if isinstance(asked.k, bool) or not isinstance(asked.k, SupportsIndex) or operator.index(asked.k) < 1:
        raise InputError(f"k is {asked.k!r}: it must be a whole number, at least 1")
    if isinstance(asked.columns, str):
        raise InputError(f"columns is one text: give a list of names, such as [{asked.columns!r}]")
    asked = replace(
        asked,
        k=operator.index(asked.k),
        max_distance=_limit("max_distance", asked.max_distance),
        min_similarity=_limit("min_similarity", asked.min_similarity),
    )
    return asked if asked.metric is None else replace(asked, metric=choice(Metric, asked.metric, "metric"))


def _limit(name: str, value: object) -> float | None:
    """Return a threshold as a plain number; one of float64 would be compared with unrounded distances."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or math.isnan(value):
        raise InputError(f"{name} is {value!r}: it must be a number")
    return float(value)
