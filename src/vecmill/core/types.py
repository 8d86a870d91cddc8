"""The records and names that pass between the parts. Letters for shapes: n, q, d, k."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import unknown_name

E = TypeVar("E", bound=StrEnum)

Vectors: TypeAlias = npt.NDArray[np.float32]
"""(n, d) float32, C order."""

IntArray: TypeAlias = npt.NDArray[np.int64]

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(n,) bool: which rows may be found."""

Id: TypeAlias = str | int | bytes
"""What names an item. 1 and "1" are two ids; whole numbers have at most 64 bits."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture to embed. No provider of this version takes one."""

    path: Path


Input: TypeAlias = str | Image
"""What can be embedded. Today every provider takes texts."""


class InputType(StrEnum):
    """The role of a text. Models with prefixes embed queries and documents differently."""

    DOCUMENT = "document"
    QUERY = "query"


class Metric(StrEnum):
    """What "near" means. Every distance is ascending: smaller is nearer.

    hamming and jaccard look at signs only: a component above 0 is a one.
    """

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"
    CHEBYSHEV = "chebyshev"
    HAMMING = "hamming"
    JACCARD = "jaccard"


class Precision(StrEnum):
    """How the components of a vector are kept. `pq` is a code of groups of components."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"
    PQ = "pq"


class LongText(StrEnum):
    """What happens to a text of more tokens than the model takes.

    error: an error with the exact count. average: cut into chunks, token-weighted mean, renormalized.
    truncate: the first tokens that fit. chunks: one output row per chunk.
    """

    ERROR = "error"
    AVERAGE = "average"
    TRUNCATE = "truncate"
    CHUNKS = "chunks"


class EmptyText(StrEnum):
    """What happens to a text without a visible character: an error, no vector, or embedded all the same."""

    ERROR = "error"
    SKIP = "skip"
    EMBED = "embed"


def choice(kind: type[E], value: str, what: str) -> E:
    """Return the member of an enumeration that a caller named.

    Args:
        kind: The enumeration.
        value: A member, or its value.
        what: What it is called in the message, such as "long_text".

    Raises:
        UnknownNameError: There is no such member; the message lists close ones.
    """
    known = [member.value for member in kind]
    if value not in known:
        raise unknown_name(what, str(value), known)
    return kind(value)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost.

    Attributes:
        texts: Texts answered. tokens: tokens billed for them.
        requests: Requests sent, those that failed too.
        usd: Dollars; None where no price is known, 0.0 for local models.
        unsure_tokens: Tokens of requests whose answer was lost or unusable: the provider may have billed
            them.
    """

    texts: int = 0
    tokens: int = 0
    requests: int = 0
    usd: float | None = 0.0
    unsure_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Add two costs; an unknown price makes the sum unknown."""
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.requests + other.requests,
            usd,
            self.unsure_tokens + other.unsure_tokens,
        )


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no vector. The same fields stand in the `error` column and in OUT.errors.jsonl."""

    code: str
    type: str
    message: str
    attempts: int = 0
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest items of each query, nearest first.

    Attributes:
        rows: (q, k) int64 positions of the neighbours, ties to the lower row.
        distances: (q, k) float32, ascending.
        complete: False when fewer than the k asked for exist.
    """

    rows: IntArray
    distances: npt.NDArray[np.float32]
    complete: bool


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `similarity` is for display: see `core.vectors.similarity`."""

    rank: int
    id: Id
    distance: float
    similarity: float
    text: str | None
    columns: dict[str, Any]
