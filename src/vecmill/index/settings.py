"""What an index is made of and how hard it searches; the names other libraries use for the same things."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, SupportsIndex

from vecmill.core.errors import CorruptFileError, FormatVersionError, InputError, unknown_name
from vecmill.core.types import Precision, choice


class IndexKind(StrEnum):
    """How candidates are found: codes scanned one by one, a graph (HNSW), inverted lists (IVF)."""

    FLAT = "flat"
    HNSW = "hnsw"
    IVF = "ivf"


PRECISIONS: Mapping[IndexKind, tuple[Precision, ...]] = {
    IndexKind.FLAT: tuple(Precision),
    IndexKind.HNSW: (Precision.FLOAT32, Precision.FLOAT16, Precision.INT8),
    IndexKind.IVF: (Precision.FLOAT32, Precision.FLOAT16, Precision.INT8, Precision.PQ),
}
"""Precisions each kind can keep its vectors in."""

_RANGES: Mapping[str, tuple[int, int]] = {
    "shorten": (1, 1 << 20),
    "m": (2, 512),  # one link a level would make no graph: faiss divides by log(m)
    "ef_construction": (1, 1 << 20),
    "ef": (1, 1 << 24),
    "nlist": (1, 1 << 24),
    "nprobe": (1, 1 << 24),
    "pq_parts": (1, 1 << 16),
}
_OPTIONAL = frozenset({"shorten", "nlist", "pq_parts"})
_ALWAYS = ("precision", "shorten", "oversample", "recall_target")
_OWN: Mapping[IndexKind, tuple[str, ...]] = {
    IndexKind.FLAT: ("pq_parts", "pq_bits", *_ALWAYS),
    IndexKind.HNSW: ("m", "ef_construction", "ef", *_ALWAYS),
    IndexKind.IVF: ("nlist", "nprobe", "pq_parts", "pq_bits", *_ALWAYS),
}


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What an index is made of. `calibrate` chooses oversample, ef and nprobe for the recall wanted.

    Attributes:
        kind: flat (codes scanned one by one; with float32 and no `shorten` that is exact search), hnsw, ivf.
        precision: How the candidates' vectors are kept; the float originals decide in the end.
        shorten: Leading components the candidates are found by, None for all.
        oversample: Candidates asked for, as a multiple of k, at least 1.
        m: hnsw: links of a vector on every level but the lowest, which has twice as many. 2 to 512.
        ef_construction: hnsw: vectors looked at to link a new one.
        ef: hnsw: vectors kept in sight while searching, at least the number of candidates asked for.
        nlist: ivf: lists; None for a number that suits the rows (`ivf.lists_for`).
        nprobe: ivf: lists searched.
        pq_parts: pq: groups of components with a code each; None for one per four components.
        pq_bits: pq: bits of a code, 4 (scanned in registers, fast) or 8.
        recall_target: The share of true neighbours wanted, above 0, at most 1.

    Raises:
        InputError: A value is out of range, or the kind cannot keep vectors in that precision.
        UnknownNameError: No such kind or precision.
    """

    kind: IndexKind = IndexKind.FLAT
    precision: Precision = Precision.FLOAT32
    shorten: int | None = None
    oversample: float = 1.0
    m: int = 16
    ef_construction: int = 200
    ef: int = 64
    nlist: int | None = None
    nprobe: int = 8
    recall_target: float = 0.99
    pq_parts: int | None = field(default=None, kw_only=True)
    pq_bits: int = field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        """Check every value; names may be given as text."""
        put = object.__setattr__
        put(self, "kind", choice(IndexKind, self.kind, "kind of index"))
        put(self, "precision", choice(Precision, self.precision, "precision"))
        for name in _RANGES:
            put(self, name, _whole(name, getattr(self, name)))
        put(self, "oversample", _number("oversample", self.oversample))
        put(self, "recall_target", _number("recall_target", self.recall_target))
        if not 1.0 <= self.oversample < math.inf:
            raise InputError(f"oversample is {self.oversample}: ask for at least 1 candidate per neighbour")
        if not 0.0 < self.recall_target <= 1.0:
            raise InputError(f"recall_target is {self.recall_target}: it is a share, above 0 and at most 1")
        if self.pq_bits not in (4, 8):
            raise InputError(f"pq_bits is {self.pq_bits}: codes have 4 bits (fast) or 8")
        if self.precision not in PRECISIONS[self.kind]:
            raise InputError(
                f"an index of kind {self.kind.value!r} cannot keep {self.precision.value}; it keeps "
                f"{_listed([known.value for known in PRECISIONS[self.kind]])}"
            )

    @property
    def is_exact(self) -> bool:
        """Whether these settings mean exact search: nothing is compressed and nothing left out."""
        return self.kind is IndexKind.FLAT and self.precision is Precision.FLOAT32 and self.shorten is None

    def __str__(self) -> str:
        """Say what applies, for people: `hnsw int8, m 16, ef_construction 200, ef 128, oversample 2`."""
        if self.is_exact:
            return "exact"
        said = [f"{self.kind.value} {self.precision.value}"]
        for name in ("shorten", *_OWN[self.kind][: -len(_ALWAYS)]):
            value = getattr(self, name)
            if value is not None and not (name == "pq_bits" and self.precision is not Precision.PQ):
                said.append(f"{name} {value}")
        return ", ".join([*said, f"oversample {self.oversample:g}"])

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON's types; `from_json` is the way back."""
        return {
            entry.name: value.value if isinstance(value := getattr(self, entry.name), StrEnum) else value
            for entry in fields(self)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> IndexSettings:
        """Read what `to_json` gave; fields that are missing have their defaults.

        Raises:
            FormatVersionError: There is a field this version does not know.
            CorruptFileError: A value cannot be.
        """
        _ensure_known(cls, data)
        try:
            return cls(**data)
        except (InputError, TypeError) as error:
            raise CorruptFileError(f"settings of an index are damaged: {error}; build it again") from error


@dataclass(frozen=True, slots=True)
class Measured:
    """The recall measured when an index was built, on held-back rows of the data itself.

    It holds for queries like those rows. A query farther from what is found than they were is searched for
    harder (`RescoredIndex`); nothing was measured for it.

    Attributes:
        recall: Mean recall@k over the queries, 0 to 1.
        low, high: Its 95 % interval.
        k: Neighbours looked at.
        queries: Rows held back and searched for, or queries given.
        rows: Rows that were searched.
        far: The distance of the first, ..., k-th neighbour that one query in twenty exceeded; None where
            nobody looked.
    """

    recall: float
    low: float
    high: float
    k: int
    queries: int
    rows: int
    far: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return (
            f"recall@{self.k} {self.recall:.4f} [{self.low:.4f}, {self.high:.4f}] "
            f"measured with {self.queries:,} held-back queries in {self.rows:,} rows"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON's types; `from_json` is the way back."""
        return {**dataclasses.asdict(self), "far": None if self.far is None else list(self.far)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """Read what `to_json` gave.

        Raises:
            FormatVersionError: There is a field this version does not know.
            CorruptFileError: A field is missing or not a number.
        """
        _ensure_known(cls, data)
        try:
            recall, low, high = (_number(name, data[name]) for name in ("recall", "low", "high"))
            k, queries, rows = (operator.index(data[name]) for name in ("k", "queries", "rows"))
            far = data.get("far")  # indexes of before have none
            far = None if far is None else tuple(_number("far", distance) for distance in far)
        except (InputError, KeyError, TypeError) as error:
            raise CorruptFileError(f"the recall of an index is damaged: {error!r}; build it again") from error
        return cls(recall, low, high, k, queries, rows, far)


ALGORITHMS: Mapping[str, tuple[IndexKind, Precision]] = {
    "flat": (IndexKind.FLAT, Precision.FLOAT32),
    "brute": (IndexKind.FLAT, Precision.FLOAT32),
    "exact": (IndexKind.FLAT, Precision.FLOAT32),
    "hnsw": (IndexKind.HNSW, Precision.FLOAT32),
    "cagra": (IndexKind.HNSW, Precision.FLOAT32),
    "ivf": (IndexKind.IVF, Precision.FLOAT32),
    "ivfflat": (IndexKind.IVF, Precision.FLOAT32),
    "ivf_flat": (IndexKind.IVF, Precision.FLOAT32),
    "ivfpq": (IndexKind.IVF, Precision.PQ),
    "ivf_pq": (IndexKind.IVF, Precision.PQ),
}
"""What other libraries call the kinds of index, and what that is here."""

_HNSW_NAMES = {
    "M": "m",  # hnswlib, faiss
    "efConstruction": "ef_construction",  # faiss
    "efSearch": "ef",  # faiss
    "ef_search": "ef",  # pgvector
    "itopk_size": "ef",  # cuVS: candidates kept in sight
    "intermediate_graph_degree": "ef_construction",  # cuVS: neighbours looked at before links are pruned
    "graph_degree": "graph_degree",  # cuVS: links of the only level; here the lowest level has 2 m
}
_IVF_NAMES = {
    "lists": "nlist",  # pgvector
    "probes": "nprobe",
    "M": "pq_parts",  # cuML, Spark RAPIDS ML
    "n_bits": "pq_bits",
    "n_lists": "nlist",  # cuVS
    "n_probes": "nprobe",
    "pq_dim": "pq_parts",
}
_NAMES: Mapping[IndexKind, Mapping[str, str]] = {
    IndexKind.FLAT: {},
    IndexKind.HNSW: _HNSW_NAMES,
    IndexKind.IVF: _IVF_NAMES,
}
_PQ_ONLY = frozenset({"pq_parts", "pq_bits"})

_MEANINGLESS: Mapping[str, str] = {
    "max_elements": "an index here grows by itself",
    "allow_replace_deleted": "deleted rows are left out of results and leave when the index is built again",
    "num_threads": "set OMP_NUM_THREADS for the process",
    "random_seed": "pass it as seed to build or calibrate",
    "space": "name it as the metric",
    "metric": "it is no parameter of the kind: pass it as metric",
    "dim": "the vectors say how many dimensions they have",
    "build_algo": "a graph here is built by adding one vector after another",
    "usePrecomputedTables": "nothing here has such tables",
    **dict.fromkeys(
        ("search_width", "max_iterations", "min_iterations", "num_random_samplings"),
        "a search here ends when nothing nearer is in sight; itopk_size (ef) says how much is kept in sight",
    ),
    "nn_descent_niter": "a graph here is built by adding one vector after another",
    "compression": "name the precision, such as int8",
}
"""Parameters of other libraries that cannot mean anything here, and what to do instead."""


def parameters(kind: IndexKind | str, given: Mapping[str, object]) -> IndexSettings:
    """Read settings by the names people know from hnswlib, faiss, pgvector and Spark RAPIDS ML.

    Own names (`m`, `ef`, `nlist`, ...) are taken as they are. hnsw takes `M`, `ef_construction`, `ef`,
    `efSearch`; ivf takes `nlist`, `nprobe`, with pq also `M` (groups of components) and `n_bits`. `cagra` is
    hnsw here: `graph_degree` is twice `m`, `intermediate_graph_degree` is `ef_construction`, `itopk_size` is
    `ef`.

    Args:
        kind: A kind of index, or an algorithm of Spark RAPIDS ML: ivfflat, ivfpq, cagra.
        given: Name to value.

    Raises:
        UnknownNameError: No such kind, or a name nobody uses; the message lists close ones.
        InputError: A name does not apply to this kind (the message says which do), two names mean the same,
            or a value is out of range.
    """
    name = str(kind).lower()
    if name not in ALGORITHMS:
        raise unknown_name("kind of index", str(kind), ALGORITHMS)
    what, precision = ALGORITHMS[name]
    values, taken = _own_values(name, what, given)
    settings = IndexSettings(**{"precision": precision, **values, "kind": what})
    if name in ("ivfpq", "ivf_pq") and settings.precision is not Precision.PQ:
        raise InputError(f"{kind} keeps pq codes; for precision {settings.precision.value!r} name kind 'ivf'")
    _refuse_pq_only(settings, taken)
    return settings


def changed(stored: IndexSettings, given: Mapping[str, object]) -> IndexSettings:
    """Return settings of the same kind with some values changed; what is not given stays as it was.

    Args:
        stored: What there is.
        given: Name to value, by the names `parameters` takes.

    Raises:
        UnknownNameError, InputError: As `parameters`.
    """
    values, taken = _own_values(stored.kind.value, stored.kind, given)
    if choice(Precision, values.get("precision", stored.precision), "precision") is not Precision.PQ:
        values = {"pq_parts": None, "pq_bits": 4, **values}
    settings = dataclasses.replace(stored, **values)
    _refuse_pq_only(settings, taken)
    return settings


def _own_values(
    algorithm: str, kind: IndexKind, given: Mapping[str, object]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values by our names, and by what name each was given."""
    values: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for theirs, value in given.items():
        ours = _own_name(algorithm, kind, theirs)
        if ours == "graph_degree":
            ours, value = "m", _half(value)
        if ours in taken:
            raise InputError(f"{taken[ours]!r} and {theirs!r} mean the same; give one of them")
        taken[ours] = theirs
        values[ours] = value
    return values, taken


def _refuse_pq_only(settings: IndexSettings, taken: Mapping[str, str]) -> None:
    extra = [theirs for ours, theirs in taken.items() if ours in _PQ_ONLY]
    if extra and settings.precision is not Precision.PQ:
        raise InputError(f"{extra[0]!r} applies to pq codes only; name kind 'ivfpq', or leave it out")


def _own_name(algorithm: str, kind: IndexKind, theirs: str) -> str:
    """Return the field a name stands for, "graph_degree" as it is; or say why it stands for none."""
    if theirs in _OWN[kind]:
        return theirs
    if theirs in _NAMES[kind]:
        return _NAMES[kind][theirs]
    if theirs in _MEANINGLESS:
        raise InputError(f"{theirs!r} has no meaning here: {_MEANINGLESS[theirs]}; leave it out")
    elsewhere = [other.value for other in IndexKind if theirs in (*_OWN[other], *_NAMES[other])]
    if elsewhere:
        raise InputError(
            f"{theirs!r} does not apply to {algorithm!r}, only to {_listed(elsewhere)}; "
            f"{algorithm!r} takes {_listed(_OWN[kind])}"
        )
    raise unknown_name(f"parameter of {algorithm!r}", theirs, [*_OWN[kind], *_NAMES[kind]])


def _half(degree: object) -> int:
    whole = _whole("graph_degree", degree, (4, 1024))
    if whole is None or whole % 2:
        raise InputError(f"graph_degree is {degree}: it must be even, the graph has twice m links per vector")
    return whole // 2


def _whole(name: str, value: object, limits: tuple[int, int] | None = None) -> int | None:
    """Check one whole number against its range."""
    if value is None and name in _OPTIONAL:
        return None
    low, high = limits or _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InputError(f"{name} is {value!r}: it must be a whole number from {low} to {high}")
    whole = operator.index(value)
    if not low <= whole <= high:
        raise InputError(f"{name} is {whole}: it must be from {low} to {high}")
    return whole


def _number(name: str, value: object) -> float:
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # whatever is no number raises
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}: it must be a number") from None
    if math.isnan(number):
        raise InputError(f"{name} is {value!r}: it must be a number")
    return number


def _ensure_known(record: type, data: Mapping[str, Any]) -> None:
    known = {entry.name for entry in fields(record)}
    if more := sorted(set(data) - known):
        raise FormatVersionError(
            f"an index was written with {more[0]!r}, which this version does not know; "
            "update vecmill, or build the index again"
        )


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
