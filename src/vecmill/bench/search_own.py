"""This package's ways to find neighbours, as `search_peers` has those of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vecmill.bench.search_peers import Floats, Rows
from vecmill.core.types import Metric
from vecmill.index.build import build
from vecmill.index.exact import ExactIndex
from vecmill.index.originals import ArrayOriginals
from vecmill.index.rescored import RescoredIndex
from vecmill.index.settings import IndexSettings


class VecmillExact:
    """This package's exact search by one of its engines: numpy, int8, faiss.

    With `prepare_each` every search makes the index anew: what a join that is done once costs.
    """

    packages = ("vecmill", "numpy")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:
        def make() -> Any:
            return ExactIndex(vectors, metric="cosine", engine=options["engine"])

        self._make, self._index = make, make()
        self._each = bool(options.get("prepare_each"))
        extra = {"int8": ("openvino",), "faiss": ("faiss-cpu",)}
        self.packages = (*self.packages, *extra.get(options["engine"], ()))

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        if self._each:
            self._index = None
            self._index = self._make()
        rows: Rows = self._index.search(queries, k).rows
        return rows


class VecmillIndex:
    """This package's index by `settings`: candidates in memory, originals mapped from the file."""

    packages = ("vecmill", "numpy", "faiss-cpu")

    def __init__(self, vectors: Floats, options: dict[str, Any]) -> None:  # noqa: ARG002 - it maps its own
        self._metric = Metric.COSINE
        self._originals = ArrayOriginals(np.load(options["vectors"], mmap_mode="r"))
        self._settings = IndexSettings.from_json(options["settings"])
        self._candidates = build(self._originals, self._settings, metric=self._metric)
        self.size_bytes = self._candidates.size_bytes
        self.set()

    def set(self, **changes: Any) -> None:
        """Search with another oversample, ef or nprobe."""
        settings = replace(self._settings, **changes)
        retuned = getattr(self._candidates, "tuned", None)
        candidates = self._candidates if retuned is None else retuned(settings)
        self._index = RescoredIndex(
            candidates, self._originals, metric=self._metric, oversample=settings.oversample
        )

    def search(self, queries: Floats, k: int) -> Rows:
        """Search all at once."""
        rows: Rows = self._index.search(queries, k).rows
        return rows
