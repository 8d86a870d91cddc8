"""Texts into the parts of a Batch API job: each distinct text the cache lacks once, in lines, in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vecmill.embedder.cache.base import VectorCache, cache_keys
from vecmill.jobs.batch_parts import LineKeys, Part, PartLimits, PartStore, PartWriter
from vecmill.models.base import Encoded, ModelInfo
from vecmill.models.hosted.batches import BatchModel

_PART_DIGITS = 5


class KeySet:
    """Cache keys seen, 8 bytes each.

    It keeps half of each key: of 10 million texts, two are taken for one with a chance of 3 in a million, and
    such a text is only left to an ordinary request.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def holds(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Say which keys were added, (n,) bool."""
        halves = _halves(keys)
        found = np.zeros(len(keys), dtype=np.bool_)
        for run in self._runs:
            at = np.searchsorted(run, halves)
            found |= run[np.minimum(at, len(run) - 1)] == halves
        return found

    def add(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Add keys and say which are new, the first of equal ones only, (n,) bool."""
        halves = _halves(keys)
        new = np.zeros(len(keys), dtype=np.bool_)
        new[np.unique(halves, return_index=True)[1]] = True
        new &= ~self.holds(keys)
        if new.any():
            self._runs.append(np.sort(halves[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new


def _halves(keys: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)[:, 0].astype(np.uint64)


@dataclass(slots=True)
class Planner:
    """Writes texts into parts. Blocks: it runs in a thread, one call at a time.

    Attributes:
        info, model: Whose texts they are.
        cache: Texts it has are left out. seen: and so are these.
        store: Where the parts are written. limits: what they may hold.
        job: Whose parts they are.
        next_part: The first one's number.
        now: Seconds since the epoch.
    """

    info: ModelInfo
    model: BatchModel
    cache: VectorCache
    seen: KeySet
    store: PartStore
    limits: PartLimits
    job: str
    next_part: int
    now: Callable[[], float]
    _texts: list[str] = field(default_factory=list)
    _keys: list[bytes] = field(default_factory=list)
    _tokens: int = 0
    _variant: str = ""
    _stack: ExitStack = field(default_factory=ExitStack)
    _writer: PartWriter | None = None

    def take(self, encoded: Encoded) -> list[Part]:
        """Take the texts that are new; return the parts that are full."""
        info = self.info
        keys = cache_keys(info.space, encoded.texts, variant=encoded.variant)
        if not keys:
            return []
        wanted = ~self.cache.contains(info.space, keys, dimensions=info.width)
        wanted &= encoded.tokens <= info.max_tokens  # the ordinary run says what is wrong with longer ones
        rows = [row for row in np.flatnonzero(wanted).tolist() if _is_sendable(encoded.texts[row])]
        if not rows:
            return []
        new = self.seen.add([keys[row] for row in rows])
        full: list[Part] = []
        if encoded.variant != self._variant:
            full += self._line()
            self._variant = encoded.variant
        for row, is_new in zip(rows, new.tolist(), strict=True):
            if is_new:
                full += self._add(encoded.texts[row], keys[row], int(encoded.tokens[row]))
        return full

    def finish(self) -> list[Part]:
        """Write what is left and say that everything is written."""
        full = self._line() + self._close()
        self.store.set_planned(self.job)
        return full

    def abandon(self) -> None:
        """Leave nothing of the part being written."""
        with suppress(_Abandoned), self._stack:
            raise _Abandoned

    def _add(self, text: str, key: bytes, tokens: int) -> list[Part]:
        limits, info = self.limits, self.info
        most = min(limits.line_texts, info.max_inputs or limits.line_texts, limits.texts)
        most_tokens = min(limits.line_tokens, info.max_request_tokens or limits.line_tokens)
        full: list[Part] = []
        if len(self._texts) >= most or (self._texts and self._tokens + tokens > most_tokens):
            full = self._line()
        self._texts.append(text)
        self._keys.append(key)
        self._tokens += tokens
        return full

    def _line(self) -> list[Part]:
        """Write the texts gathered as one line; return the part that was full before it."""
        if not self._texts:
            return []
        body = self.model.body(self._texts, variant=self._variant)
        keys = LineKeys(tuple(self._keys), self._tokens)
        self._texts, self._keys, self._tokens = [], [], 0
        full: list[Part] = []
        if self._writer is not None and not self._writer.has_room(len(keys.keys), len(body), self.limits):
            full = self._close()
        if self._writer is None:
            name = f"{self.next_part:0{_PART_DIGITS}d}"
            self.next_part += 1
            space, started = self.info.space, self.now()
            self._writer = self.store.writer(name, job=self.job, space=space, started=started)
            self._stack.enter_context(self._writer)
        self._writer.add(body, keys)
        return full

    def _close(self) -> list[Part]:
        if self._writer is None:
            return []
        writer, self._writer = self._writer, None
        self._stack.close()
        return [writer.finish()]


class _Abandoned(Exception):  # noqa: N818  # a signal, not an error
    """The part being written is not wanted any more."""


def _is_sendable(text: str) -> bool:
    """Say whether a text can stand in JSON; the ordinary run says what is wrong with others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
