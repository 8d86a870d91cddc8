"""What the simulated provider remembers: every request, every text computed, the bill. Never a text."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vecmill.testing.hashed import digest
from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator_model import Asked

CLIENT_LEFT = 499
"""Status in the log of a request whose client did not wait for the answer."""


@dataclass(frozen=True, slots=True)
class Logged:
    """One request for embeddings. Its texts are not kept, only their digests.

    Attributes:
        number: Counted from 0 in the order of arrival; its place in `Simulator.log`.
        path: What was posted to, without the query string.
        model: The model that was meant, "" where none was understood.
        texts, tokens: What it held.
        status: What was answered; 0 while it is answered or where nothing was; `CLIENT_LEFT`.
        fault: What went wrong on purpose, or "".
        moment: When it arrived, in seconds since the epoch.
        seconds: Until it was answered.
        digests: Of its texts, see `digest`.
        billed: Whether it was computed, and so is paid.
    """

    number: int
    path: str
    moment: float
    model: str = ""
    texts: int = 0
    tokens: int = 0
    status: int = 0
    fault: str = ""
    seconds: float = 0.0
    digests: tuple[bytes, ...] = ()
    billed: bool = False


@dataclass(slots=True)
class Visit:
    """A request while it is answered; `left` is set when its client does not wait any longer."""

    number: int
    door: str
    path: str
    moment: float
    asked: Asked | None = None
    fault: str = ""
    status: int = 0
    billed: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def logged(self, now: float) -> Logged:
        """Return what the log keeps of it."""
        asked = self.asked
        return Logged(
            self.number,
            self.path,
            self.moment,
            asked.name if asked else "",
            len(asked.tokens) if asked else 0,
            asked.total_tokens if asked else 0,
            self.status,
            self.fault,
            now - self.moment,
            asked.digests if asked else (),
            self.billed,
        )


class Ledger:
    """The book of one simulated provider.

    Attributes:
        scenario: Whose prices count.
        log: Every request for embeddings, `log[i].number == i`.
        visits: How often each method and path was asked, such as "GET /v1/models".
        peak_in_flight: The most requests for embeddings that were being answered at once.
        elsewhere: For each request that followed a redirect to another origin, whether it brought a key.
        key_seen_in_urls: Whether a key stood in a URL.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.log: list[Logged] = []
        self.visits: Counter[str] = Counter()
        self.peak_in_flight = 0
        self.elsewhere: list[bool] = []
        self.key_seen_in_urls = False
        self._in_flight = 0
        self._billed: Counter[tuple[str, bool]] = Counter()
        self._times_billed: Counter[bytes] = Counter()

    def arrive(self, door: str, path: str, now: float) -> Visit:
        """Note a request for embeddings."""
        visit = Visit(len(self.log), door, path, now)
        self.log.append(visit.logged(now))
        self._in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        return visit

    def leave(self, visit: Visit, now: float) -> None:
        """Note how a request ended."""
        self._in_flight -= 1
        self.log[visit.number] = visit.logged(now)

    def bill(self, model: str, digests: Sequence[bytes], tokens: int, *, batch: bool = False) -> None:
        """Note that texts were computed."""
        self._billed[model, batch] += tokens
        self._times_billed.update(digests)

    @property
    def requests(self) -> int:
        """Requests for embeddings that arrived, whatever became of them."""
        return len(self.log)

    @property
    def statuses(self) -> Counter[int]:
        """How often each status was answered to requests for embeddings."""
        return Counter(logged.status for logged in self.log)

    @property
    def billed_tokens(self) -> int:
        """Tokens of everything computed, delivered or not, batches too."""
        return self._billed.total()

    @property
    def billed_usd(self) -> float:
        """The bill."""
        return math.fsum(tokens * self._price(name, batch) for (name, batch), tokens in self._billed.items())

    @property
    def billed_texts(self) -> int:
        """How many texts were computed, each as often as it was."""
        return self._times_billed.total()

    @property
    def distinct_billed_texts(self) -> int:
        """How many different texts were computed."""
        return len(self._times_billed)

    def times_billed(self, text: str) -> int:
        """Return how often a text was computed."""
        return self._times_billed[digest(text)]

    def times_sent(self, text: str) -> int:
        """Return how often a text stood in a request that was understood, whatever became of it."""
        wanted = digest(text)
        return sum(logged.digests.count(wanted) for logged in self.log)

    def summary(self) -> dict[str, Any]:
        """Return the counts as one JSON object."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {
            "requests": self.requests,
            "statuses": statuses,
            "texts": self.billed_texts,
            "tokens": self.billed_tokens,
            "usd": self.billed_usd,
            "peak_in_flight": self.peak_in_flight,
        }

    def _price(self, name: str, batch: bool) -> float:
        model = self.scenario.models[name]
        return (model.batch_usd_per_million_tokens if batch else model.usd_per_million_tokens) / 1e6
