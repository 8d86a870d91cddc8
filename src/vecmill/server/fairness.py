"""Whose texts come next: keys take turns by tokens, and within a key short requests overtake long ones."""

from __future__ import annotations

import heapq
from asyncio import Future
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vecmill.core.errors import ProviderError
from vecmill.core.types import IntArray, Vectors
from vecmill.models.base import Encoded

if TYPE_CHECKING:
    from vecmill.server.batcher import Batched

MULTIPLE = 8
"""A text counts its tokens rounded up to a multiple of this, as local models pad them."""

QUANTUM = 512
"""Tokens a key may take before the next key's turn; a longer text waits for several turns."""

_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(slots=True, eq=False)
class Waiting:
    """One request, from its arrival to its answer.

    A request of several texts is cut where a batch is full; its texts go longest first, so that those of
    equal length meet in one batch.

    Attributes:
        work: Its texts. key: who asks. deadline: the loop's time after which the answer is worth nothing.
        future: The answer.
        arrived: The loop's time.
        cost: Padded tokens of all texts. left: of those that wait.
        rows: Positions of the texts in the order they are taken; empty for a single text.
        ends: The cost of the texts up to and including each, in that order.
        taken: Texts that are in batches. landed: texts that came back.
        vectors: (n, width) what came so far, where it comes in several parts. errors: by position.
        cached: Texts that cost nothing.
        over: Whether it is answered, or nobody waits for it.
    """

    work: Encoded
    key: str
    deadline: float
    future: Future[Batched]
    arrived: float
    cost: int = 0
    left: int = 0
    rows: IntArray = field(default_factory=lambda: _NOTHING)
    ends: IntArray = field(default_factory=lambda: _NOTHING)
    taken: int = 0
    landed: int = 0
    vectors: Vectors | None = None
    errors: dict[int, ProviderError] = field(default_factory=dict)
    cached: int = 0
    over: bool = False
    finish: int = 0

    def __post_init__(self) -> None:
        if len(self.work) == 1:
            self.cost = padded(int(self.work.tokens[0]))
        else:
            costs = np.maximum(-(-self.work.tokens // MULTIPLE), 1) * MULTIPLE
            self.rows = np.argsort(-costs, kind="stable")
            self.ends = np.cumsum(costs[self.rows])
            self.cost = int(self.ends[-1])
        self.left = self.cost

    def fitting(self, room: int, texts: int) -> tuple[int, int]:
        """Return how many of the texts that wait fit, and what they cost."""
        if not len(self.rows):
            return (1, self.left) if self.left <= room and texts >= 1 else (0, 0)
        gone = self.cost - self.left
        count = int(np.searchsorted(self.ends, gone + room, side="right")) - self.taken
        count = min(count, texts)
        return (count, int(self.ends[self.taken + count - 1]) - gone) if count > 0 else (0, 0)

    def next_cost(self) -> int:
        """Return the padded tokens of the text that comes next."""
        if not len(self.rows):
            return self.left
        return int(self.ends[self.taken]) - (self.cost - self.left)

    def part(self, start: int, end: int) -> Encoded:
        """Return the texts `start` to `end` in the order they are taken; all of them come as they are."""
        if end - start == len(self.work):
            return self.work
        return self.work.take(self.rows[start:end])

    def position(self, at: int, *, whole: bool) -> int:
        """Return the position in the request of the text taken as number `at`; `whole`: all in one batch."""
        return at if whole else int(self.rows[at])

    def cost_of(self, start: int, end: int) -> int:
        """Return the padded tokens of the texts `start` to `end` in the order they are taken."""
        if end - start == len(self.work):
            return self.cost
        return int(self.ends[end - 1]) - (int(self.ends[start - 1]) if start else 0)


def padded(tokens: int) -> int:
    """Return the tokens a text counts as."""
    return max(-(-tokens // MULTIPLE), 1) * MULTIPLE


Piece: TypeAlias = tuple[Waiting, int, int]
"""A request, and which of its texts, in the order they are taken."""


@dataclass(slots=True, eq=False)
class _Line:
    """What one key has waiting: (virtual finish, arrival number, request), the next first."""

    key: str
    heap: list[tuple[int, int, Waiting]] = field(default_factory=list)
    served: int = 0
    deficit: int = 0
    left: int = 0
    short: int = 0
    long: dict[Waiting, None] = field(default_factory=dict)
    over: int = 0


class Turns:
    """The requests that wait, in the order they are served.

    Between keys: deficit round robin by padded tokens (Shreedhar and Varghese, Efficient fair queueing using
    deficit round robin, 1995). Within a key: by virtual finish, the tokens the key had been served when the
    request came plus the request's own. Equal requests are served in the order they came, a short one
    overtakes a long one, and nobody starves: a request is overtaken by at most as many tokens as it has.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._turns: deque[_Line] = deque()
        self._number = 0
        self.tokens = 0
        self.texts = 0
        self.requests = 0

    def add(self, request: Waiting) -> None:
        """Let a request wait."""
        line = self._lines.get(request.key)
        if line is None:
            line = self._lines[request.key] = _Line(request.key)
            self._turns.append(line)
        self._number += 1
        request.finish = line.served + request.cost
        heapq.heappush(line.heap, (request.finish, self._number, request))
        self._count(line, request, request.left)
        if request.cost > QUANTUM:
            line.long[request] = None
        self.requests += 1
        self.texts += len(request.work)

    def discard(self, request: Waiting) -> None:
        """Let a request go that is over; what is in batches already is not touched."""
        if not request.left:
            return
        line = self._lines[request.key]
        self._count(line, request, -request.left)
        request.left = 0
        self.requests -= 1
        self.texts -= len(request.work) - request.taken
        line.long.pop(request, None)
        line.over += 1
        if 2 * line.over > len(line.heap):  # the dead would keep their texts in memory
            line.heap = [entry for entry in line.heap if entry[2].left]
            heapq.heapify(line.heap)
            line.over = 0
        if not line.left:
            self._turns.remove(line)
            del self._lines[line.key]

    def has(self, key: str) -> bool:
        """Say whether something of this key waits."""
        return key in self._lines

    def waiting(self) -> list[Waiting]:
        """Return the requests that wait, in no order."""
        return [entry[2] for line in self._turns for entry in line.heap if entry[2].left]

    def ahead(self, key: str, cost: int) -> tuple[int, int]:
        """Return the tokens that would be served before the first and the last text of a new request."""
        mine = self._lines.get(key)
        before = 0
        if mine is not None:
            finish = mine.served + cost
            before = mine.short + sum(request.left for request in mine.long if request.finish <= finish)
        others = [line.left for line in self._turns if line is not mine]
        first = before + sum(min(left, before + QUANTUM) for left in others)
        last = before + sum(min(left, before + cost + QUANTUM) for left in others)
        return first, last

    def take(self, room: int, texts: int, usable: Callable[[Waiting], bool]) -> list[Piece]:
        """Take the next batch.

        Args:
            room: Padded tokens of a batch; a longer text is a batch of its own.
            texts: Texts of a batch.
            usable: Asked of each request before its texts are taken; where it says no, it has discarded it.

        Returns:
            Requests of one variant, each once, in the order they were reached.
        """
        starts: dict[Waiting, int] = {}
        aside: list[_Line] = []
        variant = ""
        while self._turns:
            line = self._turns[0]
            alone = len(self._turns) == 1 and not aside
            line.deficit = line.left if alone else line.deficit + QUANTUM
            full = False
            while (request := self._first(line)) is not None:
                if not usable(request):
                    continue
                if not starts:
                    variant = request.work.variant
                elif request.work.variant != variant:
                    break
                most = room if starts else max(room, request.next_cost())
                count, cost = request.fitting(min(most, line.deficit), texts)
                if not count:
                    full = not texts or request.next_cost() > most
                    break
                starts.setdefault(request, request.taken)
                request.taken += count
                self._served(line, request, cost)
                room, texts = room - cost, texts - count
                self.texts -= count
            if not line.left:
                continue
            other = request is not None and bool(starts) and request.work.variant != variant
            if full or other:  # its turn goes on with the next batch
                line.deficit = 0 if alone else line.deficit - QUANTUM
            if full:
                break
            self._turns.popleft()
            (aside if other else self._turns).append(line)
        self._turns.extendleft(reversed(aside))
        return [(request, start, request.taken) for request, start in starts.items()]

    def _first(self, line: _Line) -> Waiting | None:
        while line.heap:
            request = line.heap[0][2]
            if request.left:
                return request
            heapq.heappop(line.heap)
            line.over -= 1
        return None

    def _served(self, line: _Line, request: Waiting, cost: int) -> None:
        line.served += cost
        line.deficit -= cost
        request.left -= cost
        self._count(line, request, -cost)
        if request.left:
            return
        heapq.heappop(line.heap)
        line.long.pop(request, None)
        self.requests -= 1
        if not line.left:
            self._turns.remove(line)
            del self._lines[line.key]

    def _count(self, line: _Line, request: Waiting, tokens: int) -> None:
        line.left += tokens
        self.tokens += tokens
        if request.cost <= QUANTUM:
            line.short += tokens
