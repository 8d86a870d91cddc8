"""The answers of a batch: good lines into the cache, the others to be sent again or given up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import orjson

from vecmill.core.errors import BadReplyError, StorageError
from vecmill.embedder.cache.base import VectorCache
from vecmill.jobs.batch_parts import LineKeys, Part, line_number
from vecmill.models.base import ModelInfo
from vecmill.models.hosted.batches import BatchModel

_RETRIED = frozenset({408, 409, 429})


@runtime_checkable
class Syncing(Protocol):
    """A cache that can be told to bring what was put to the disk."""

    def sync(self) -> None:
        """Return when everything that was put survives a power cut."""


@dataclass(slots=True)
class Answers:
    """What became of a part's lines. Blocks: it runs in a thread.

    Attributes:
        info, model: Whose answers they are.
        cache: Where the vectors go.
        part: What was asked. keys: its lines' cache keys.
        bought: Tokens billed for each line whose vectors are in the cache.
        failed: Lines that failed, and whether they may succeed another time.
        read: Lines of the output file that could be read, when it was last read.
    """

    info: ModelInfo
    model: BatchModel
    cache: VectorCache
    part: Part
    keys: Sequence[LineKeys]
    bought: dict[int, int] = field(default_factory=dict)
    failed: dict[int, bool] = field(default_factory=dict)
    read: int = 0

    def read_output(self, path: Path) -> None:
        """Put the vectors of good lines into the cache; note which lines came, and the tokens billed.

        Raises:
            StorageError: The cache keeps nothing.
            RefusedError: Another model answered than the one known.
        """
        self.read = 0
        doubtful = self._doubtful(path)
        for number, status, body, code in self._lines(path):
            self.read += 1
            if number in self.bought:
                continue
            if number in doubtful:
                self.failed[number] = True
                continue
            keys = self.keys[number].keys
            if status != 200:
                self.failed[number] = _may_succeed(status, code)
                continue
            try:
                reply = self.model.reply(body, len(keys))
            except BadReplyError:
                self.failed[number] = True
                continue
            self.cache.put(self.info.space, keys, reply.vectors)
            if not self.cache.contains(self.info.space, keys, dimensions=self.info.width).all():
                raise StorageError(
                    "the cache does not keep the vectors of a batch: free some disk space, or allow it more, "
                    "and run the command again; the answers are still at the provider"
                )
            self.bought[number] = self.keys[number].tokens if reply.tokens is None else reply.tokens

    def read_errors(self, path: Path) -> None:
        """Note which lines failed, and whether they may succeed another time."""
        for number, status, _, code in self._lines(path):
            if number not in self.bought:
                self.failed[number] = _may_succeed(status, code)

    def sync(self) -> None:
        """Make what was put survive a power cut, before the provider is told to forget its copy."""
        if isinstance(self.cache, Syncing):
            self.cache.sync()

    def left(self) -> tuple[list[int], list[int]]:
        """Return the lines to send again, and those that will not succeed."""
        left = [number for number in range(len(self.keys)) if number not in self.bought]
        again = [number for number in left if self.failed.get(number, True)]
        return again, [number for number in left if not self.failed.get(number, True)]

    def _doubtful(self, path: Path) -> set[int]:
        """Return the lines that have two answers with other vectors: one of them is another line's."""
        first: dict[int, bytes] = {}
        doubtful = set()
        for number, status, body, _ in self._lines(path):
            if status != 200 or not isinstance(body, dict):
                continue
            digest = hashlib.blake2b(orjson.dumps(body.get("data")), digest_size=16).digest()
            if first.setdefault(number, digest) != digest:
                doubtful.add(number)
        return doubtful

    def _lines(self, path: Path) -> Iterator[tuple[int, int, object, str]]:
        """Yield (line, status, body, error's code) of what can be read; a torn line is passed over."""
        with path.open("rb") as file:
            for raw in file:
                try:
                    found = orjson.loads(raw)
                    response, error = found.get("response") or {}, found.get("error") or {}
                    number = line_number(self.part, found.get("custom_id"))
                    status, body = int(response.get("status_code") or 0), response.get("body")
                except (ValueError, TypeError, AttributeError):
                    continue
                if number is not None:
                    inner = body.get("error") if isinstance(body, dict) else None
                    code = error.get("code") or (inner.get("code") if isinstance(inner, dict) else None)
                    yield number, status, body, str(code or "")


def _may_succeed(status: int, code: str) -> bool:
    """Say whether a failed line is worth another batch: whether the server or the moment was to blame."""
    if code == "insufficient_quota":
        return False
    return status in _RETRIED or status >= 500 or status == 0
