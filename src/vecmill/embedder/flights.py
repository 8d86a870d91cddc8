"""Texts on their way: a text asked for while another call fetches it is not fetched again.

A flight is one call's texts. It is open from the moment they are claimed until their vectors are kept in the
cache (or given up), so that between two calls a text is always either in a flight or in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import ProviderError
from vecmill.core.types import Vectors

Early: TypeAlias = Callable[[int], Vectors | ProviderError | None]


@dataclass(slots=True, eq=False)
class Flight:
    """One call's texts by key.

    Attributes:
        rows: Row of each key in `vectors` of the call that owns it.
        vectors: (n, width) float32, once landed. done: which rows have one.
        errors: Why a row has none.
        early: Before it landed: what a row has already, its vector, its error, or None.
    """

    rows: dict[bytes, int]
    vectors: Vectors | None = None
    done: npt.NDArray[np.bool_] | None = None
    errors: dict[int, ProviderError] = field(default_factory=dict)
    early: Early | None = None
    _landed: asyncio.Event = field(default_factory=asyncio.Event)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def land(
        self,
        vectors: Vectors,
        done: npt.NDArray[np.bool_],
        errors: dict[int, ProviderError],
    ) -> None:
        """Let those who wait have what came; use `Flights.land`."""
        self.vectors, self.done, self.errors = vectors, done, errors
        self.crash()

    def crash(self) -> None:
        """Let those who wait go on by themselves."""
        self._landed.set()
        self._news.set()

    def tell(self) -> None:
        """Let those who wait look whether their row is there: a request of the call was answered."""
        self._news.set()
        if not self._landed.is_set():
            self._news = asyncio.Event()

    async def arrival(self, key: bytes) -> Vectors | ProviderError | None:
        """Return what came for a key as soon as it is there; None where the call ended without it."""
        row = self.rows[key]
        while not self._landed.is_set():
            found = None if self.early is None else self.early(row)
            if found is not None:
                return found
            await self._news.wait()
        return self.came(key)

    def came(self, key: bytes) -> Vectors | ProviderError | None:
        """Return what came for a key: its vector, its error, or None where it was not come to."""
        row = self.rows[key]
        if self.vectors is not None and self.done is not None and self.done[row]:
            found: Vectors = self.vectors[row]
            return found
        return self.errors.get(row)


class Flights:
    """The open flights of one event loop."""

    def __init__(self) -> None:
        self._open: dict[bytes, Flight] = {}

    def claim(self, keys: Sequence[bytes]) -> tuple[Flight, list[int], dict[int, Flight]]:
        """Take the keys nobody else has on the way.

        Returns:
            A flight of the keys that are ours now, their positions in `keys`, and for each other position
            the flight it is on.
        """
        mine: list[int] = []
        theirs: dict[int, Flight] = {}
        rows: dict[bytes, int] = {}
        for at, key in enumerate(keys):
            flight = self._open.get(key)
            if flight is None:
                rows[key] = at
                mine.append(at)
            else:
                theirs[at] = flight
        flight = Flight(rows)
        self._open.update(dict.fromkeys(rows, flight))
        return flight, mine, theirs

    def land(
        self,
        flight: Flight,
        vectors: Vectors,
        done: npt.NDArray[np.bool_],
        errors: dict[int, ProviderError],
    ) -> None:
        """Let those who wait have what came, and claim for themselves what was not come to."""
        flight.land(vectors, done, errors)
        left = [key for key, row in flight.rows.items() if not done[row] and row not in errors]
        self._release(flight, left)

    def close(self, flight: Flight) -> None:
        """Forget a flight; whoever asks for its keys from now on looks into the cache."""
        flight.crash()
        self._release(flight, flight.rows)

    def _release(self, flight: Flight, keys: Iterable[bytes]) -> None:
        for key in keys:
            if self._open.get(key) is flight:
                del self._open[key]
