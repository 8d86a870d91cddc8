"""Exact search: every query is compared with every vector. Right up to some hundred thousand vectors."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from vecmill.core import machine
from vecmill.core.config import environment
from vecmill.core.errors import ConfigError, DimensionMismatchError, InputError, unknown_name
from vecmill.core.scan import Table
from vecmill.core.types import IntArray, Mask, Metric, Neighbors, Vectors, choice
from vecmill.core.vectors import check, merged, nearest, norms_of
from vecmill.index.base import Originals
from vecmill.index.certified import METRICS, CertifiedCodes, can_certify
from vecmill.models.local.products import are_fast

ENGINES = ("auto", "numpy", "faiss", "int8")

# What 8-bit codes cost and save, in seconds; measured on one core with AVX-512 VNNI: see docs/design/0003.
_CODES_START = 0.1  # compiling and checking the product
_CODES_PER_COMPONENT = 2.5e-9  # coding the vectors
_CODES_SAVE = 12e-12  # per component of a pair
_LEAST_BATCH = 6  # queries below which the products do not pay
_FEW_NEIGHBOURS = 256  # of n rows at most n / 256; with more, comparing candidates takes what products save
_LEAST_PROVED = 0.75  # of the queries; below, comparing twice costs more than the codes save
_JUDGED_AFTER = 512  # queries
_MEMORY_SHARE = 8  # codes take at most an eighth of the memory
_DENSE = 0.5  # share of rows allowed from which all are scored

_FEW_SURVIVORS = 0.25  # below this share fetching the survivors reads less than passing over everything
_MOST_FETCHED = 1 << 22  # components fetched at once: 16 MiB


class ExactIndex:
    """Search by comparing with all vectors; recall is 1 by construction, and so is every distance.

    Keeps the array it is given (no copy where it is float32 in C order, so a memory-mapped one stays on disk)
    and one length per vector. A search reads the vectors once per block of 1,024 queries. Several threads may
    search at once.

    All engines give the same rows and distances to the last bit; they differ in time and memory only:

    - numpy: products of float32 in BLAS. Every metric.
    - int8: products of 8-bit codes that prove what may be among the nearest; the processor needs 8-bit
      instructions (VNNI) to gain. cosine, dot, euclidean. Keeps a byte per component.
    - faiss: the flat scan of faiss (`[ann]`). dot, euclidean, and cosine of vectors of length one. On par
      with numpy for large batches and single queries, several times slower in between, so not for auto.
    - auto: numpy, and int8 from the search on where the time lost without codes would have paid for them.

    Args:
        vectors: (n, d), at least one; need not be normalized.
        metric: What "near" means.
        engine: One of the above.
        threads: Threads of 8-bit products; 0 for as many as OMP_NUM_THREADS grants BLAS, else every core the
            process may use. BLAS and faiss have their own settings, which are not touched.

    Raises:
        InputError: There are no vectors, one holds NaN or infinity, or the engine does not know the metric.
        UnknownNameError: No such metric or engine.
        MissingExtraError: engine="faiss" without faiss.
        ConfigError: engine="int8" on a processor whose 8-bit products are not exact.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike,
        *,
        metric: Metric | str = Metric.COSINE,
        engine: str = "auto",
        threads: int = 0,
    ) -> None:
        kind = choice(Metric, metric, "metric")
        if engine not in ENGINES:
            raise unknown_name("engine", engine, ENGINES)
        table = check(vectors)
        if table.size == 0:
            raise InputError(f"nothing to search: vectors have shape {table.shape}")
        self._table = Table(table, norms_of(table), kind)
        self._engine = engine
        self._threads = threads if threads > 0 else _granted()
        self._codes: CertifiedCodes | None = None
        self._codes_pay = engine == "auto" and _codes_can_pay(self._table)
        self._seconds_lost = 0.0
        self._building = threading.Lock()
        if engine == "int8":
            self._codes = self._coded()
        elif engine == "faiss":
            self._ensure_faiss_serves()

    @property
    def dimensions(self) -> int:
        """Components of a vector, and of every query."""
        return int(self._table.vectors.shape[1])

    @property
    def metric(self) -> Metric:
        """What "near" means here."""
        return self._table.metric

    @property
    def vectors(self) -> Vectors:
        """The (n, d) float32 array searched; do not modify it."""
        return self._table.vectors

    @property
    def engine(self) -> str:
        """What answers a large batch now: numpy, int8 or faiss."""
        if self._engine == "auto":
            return "numpy" if self._codes is None else "int8"
        return self._engine

    @property
    def proved(self) -> float | None:
        """Share of the queries so far that 8-bit codes decided; None where they answered none."""
        return (
            self._codes.proved / self._codes.asked if self._codes is not None and self._codes.asked else None
        )

    @property
    def size_bytes(self) -> int:
        """Bytes held beside the vectors: lengths, and codes where there are any."""
        codes = 0 if self._codes is None else self._codes.size_bytes
        return int(self._table.norms.nbytes) + codes

    def __len__(self) -> int:
        return len(self._table)

    def search(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> Neighbors:
        """Find the k nearest vectors to each query.

        Args:
            queries: (q, d) numbers; need not be normalized.
            k: Neighbours per query, at least 1; above n it gives n and `complete` is False.
            allowed: (n,) bool, the rows that may be found; None for all.

        Returns:
            Row i answers queries[i]: rows and distances (q, min(k, rows allowed)), ascending, ties to the
            lower row.

        Raises:
            DimensionMismatchError: Queries and vectors differ in d.
            InputError: k is below 1, a query holds NaN or infinity, or `allowed` is of another length.
        """
        asked = check(queries, what="queries")
        if asked.shape[1] != self.dimensions:
            raise DimensionMismatchError(
                f"queries have {asked.shape[1]} dimensions, the index {self.dimensions}; "
                "embed them with the model that made the index"
            )
        table = self._table
        mask = None if allowed is None else _mask(allowed, len(table))
        dense = mask is None or np.count_nonzero(mask) >= _DENSE * len(table)
        if k >= 1 and dense:
            codes = self._codes_for(len(asked), k)
            if codes is not None:
                return codes.search(asked, k, allowed=mask)
            if self._engine == "faiss" and mask is None:
                from vecmill.index import flat_faiss

                return flat_faiss.search(asked, table, k)
        return nearest(asked, table.vectors, k, metric=table.metric, norms=table.norms, allowed=mask)

    def _codes_for(self, q: int, k: int) -> CertifiedCodes | None:
        """Return the codes if they are to answer so many queries with k neighbours each."""
        if self._engine == "int8":
            return self._codes
        if not self._codes_pay or q < _LEAST_BATCH or k > len(self._table) // _FEW_NEIGHBOURS:
            return None
        if self._codes is None:
            with self._building:
                if self._codes is None and self._codes_pay:
                    self._consider(q)
        elif self._codes.asked >= _JUDGED_AFTER and self._codes.proved < _LEAST_PROVED * self._codes.asked:
            self._codes_pay, self._codes = False, None
        return self._codes

    def _consider(self, q: int) -> None:
        """Make the codes once the time that searches lost without them would have paid for them."""
        components = self._table.vectors.size
        self._seconds_lost += _CODES_SAVE * components * q
        if self._seconds_lost < _CODES_START + _CODES_PER_COMPONENT * components:
            return
        try:
            self._codes = self._coded()
        except ConfigError:
            self._codes_pay = False

    def _coded(self) -> CertifiedCodes:
        if not can_certify(self._table):
            known = ", ".join(sorted(METRICS))
            raise InputError(
                f"engine='int8' serves {known} of vectors shorter than 1e15, not {self.metric.value} of "
                "these: use engine='auto'"
            )
        return CertifiedCodes(self._table, threads=self._threads)

    def _ensure_faiss_serves(self) -> None:
        from vecmill.index import flat_faiss

        if not flat_faiss.can_serve(self._table):
            raise InputError(
                f"engine='faiss' serves dot, euclidean, and cosine of vectors of length one, not "
                f"{self.metric.value} of these: use engine='auto'"
            )


def _codes_can_pay(table: Table) -> bool:
    """Whether 8-bit codes may be worth making at all, on this machine and for these vectors."""
    limit = machine.memory_limit_bytes()
    fits = limit is None or table.vectors.size <= limit // _MEMORY_SHARE
    return fits and can_certify(table) and are_fast()


def _granted() -> int:
    """Return the threads that OMP_NUM_THREADS grants, 0 where it says nothing."""
    said = environment().get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(said), machine.usable_cores()) if said.isdecimal() else 0


def _mask(allowed: Mask, n: int) -> Mask:
    mask = np.asarray(allowed)
    if mask.shape != (n,) or mask.dtype != np.bool_:
        raise InputError(
            f"allowed has shape {mask.shape} and dtype {mask.dtype}; it must hold one bool for each of the "
            f"{n} vectors"
        )
    return mask


def search_originals(
    originals: Originals,
    queries: Vectors,
    k: int,
    *,
    metric: Metric,
    allowed: Mask | None = None,
    norms: npt.NDArray[np.float32] | None = None,
) -> Neighbors:
    """Find the k nearest of vectors that lie in pieces, on disk or elsewhere, by comparing with all of them.

    Passes over the pieces once for all queries. Where few rows may be found only those are fetched.

    Args:
        originals: The vectors.
        queries: (q, d) float32.
        k: Neighbours per query, at least 1.
        metric: What "near" means.
        allowed: (n,) bool, the rows that may be found; None for all.
        norms: (n,) lengths of the vectors, where the caller keeps them.

    Returns:
        As `core.vectors.nearest`, whose answer over the whole table it equals.

    Raises:
        DimensionMismatchError: Queries and vectors differ in d.
        InputError: k is below 1, a component is NaN or infinite, or `allowed` is of another length.
        CorruptFileError: What lies there is not what was written.
    """
    n, d = len(originals), originals.dimensions
    answers = [nearest(queries, np.empty((0, d), np.float32), k, metric=metric)]
    survivors = None if allowed is None else np.flatnonzero(_mask(allowed, n))
    if survivors is not None and len(survivors) < _FEW_SURVIVORS * n:
        step = max(1, _MOST_FETCHED // max(d, 1))
        for start in range(0, len(survivors), step):
            rows = survivors[start : start + step]
            lengths = None if norms is None else norms[rows]
            found = nearest(queries, originals.fetch(rows), k, metric=metric, norms=lengths)
            answers = [_joined(answers, found, rows, k)]
        return answers[0]
    for first, vectors in originals.parts():
        here = slice(first, first + len(vectors))
        found = nearest(
            queries,
            vectors,
            k,
            metric=metric,
            norms=None if norms is None else norms[here],
            allowed=None if allowed is None else allowed[here],
        )
        answers = [_joined(answers, found, np.arange(here.start, here.stop), k)]
    return answers[0]


def _joined(answers: list[Neighbors], found: Neighbors, rows: IntArray, k: int) -> Neighbors:
    """Put what a piece gave beside what was found before it."""
    return merged([*answers, Neighbors(rows[found.rows], found.distances, found.complete)], k)
