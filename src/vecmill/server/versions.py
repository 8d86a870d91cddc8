"""A served name, its versions, and how far each of them is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vecmill.models.base import ModelInfo
from vecmill.server.loading import Served
from vecmill.server.options import ModelSource
from vecmill.server.repository import NOTHING, Found, Look, Stamp


class State(StrEnum):
    """How far a version is; OpenVINO Model Server's words.

    START: found, not loaded: its files are still being copied, or it waits until it is asked for. LOADING:
    being loaded, or loading it failed. AVAILABLE: it answers. UNLOADING: it answers what it began. END: gone.
    """

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True, slots=True)
class VersionState:
    """What the status says of a version. `error` is "" where all is well."""

    version: str
    state: State
    error: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A served model as `/v1/models` lists it. `created` is seconds since the epoch and does not change."""

    id: str
    created: int
    owned_by: str
    info: ModelInfo


@dataclass(slots=True, eq=False)
class Model:
    """A name and its versions.

    `folder` is looked at for versions; None where the model has none. `look` is what the last look found.
    `refused` holds versions that failed, with the stamp they failed with: other files are tried again.
    `early` says that it lay in the repository when the server started, `evicted` that the current version was
    let go of for the memory it took. `stays` is until when it is not let go of, in the loop's time;
    `unreadable` why its folder could not be read, or ""; `watched` the look at it that goes on.
    """

    source: ModelSource
    folder: Path | None
    named: bool
    early: bool = False
    look: Look = NOTHING
    looked: bool = False
    current: Served | None = None
    refused: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    ended: dict[str, State] = field(default_factory=dict)
    loading: str = ""
    evicted: bool = False
    wanted: asyncio.Task[None] | None = None
    leased: float = 0.0
    stays: float = 0.0
    unreadable: str = ""
    watched: asyncio.Task[None] | None = None
    info: ModelInfo | None = None
    created: int = 1_700_000_000
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """The id clients ask for."""
        return self.source.name

    @property
    def counts(self) -> bool:
        """Whether the server is not ready without it: a model that came later counts once it has answered."""
        if self.named:
            return True
        return bool(self.look.found or self.unreadable) and (self.early or self.info is not None)

    def state(self) -> list[VersionState]:
        """Return what is known of every version, by number."""
        found: dict[str, VersionState] = {
            version: VersionState(version, State.START if self.evicted and state is State.END else state)
            for version, state in self.ended.items()
        }
        for version in self.look.found:
            if version not in self.look.whole:
                found[version] = VersionState(version, State.START)
        for version, (_, why) in self.refused.items():
            found[version] = VersionState(version, State.LOADING, why)
        if self.loading:
            found[self.loading] = VersionState(self.loading, State.LOADING)
        if self.current is not None:
            why = self.current.failed or self.refused.get(self.current.version, ((), ""))[1]
            found[self.current.version] = VersionState(self.current.version, State.AVAILABLE, why)
        return sorted(found.values(), key=lambda state: int(state.version))

    def is_gone(self, before: Look) -> bool:
        """Say whether two looks, this one and the one before, miss the version that answers."""
        version = "" if self.current is None else self.current.version
        return version not in self.look.found and version not in before.found

    def better(self, before: Look) -> list[Found]:
        """Return the versions to try, the best first: those above the one that answers, and what it became.

        Lower ones are tried where none answers, or the one that does is gone.
        """
        current, found = self.current, list[Found]()
        for one in self.look.descending():
            if current is not None and not self.is_gone(before):
                if int(one.version) < int(current.version):
                    break
                if one.version == current.version and one.stamp == current.stamp:
                    break
            refused = self.refused.get(one.version)
            if one.version in self.look.whole and (refused is None or refused[0] != one.stamp):
                found.append(one)
        return found

    def trouble(self) -> str:
        """Say why requests cannot be answered, or "" where they are, or will be when they come."""
        if self.current is not None:
            return f"model {self.name} does not compute: {self.current.failed}" if self.current.failed else ""
        if self.evicted:
            return ""
        if self.loading or not self.looked:
            return f"model {self.name} is being loaded"
        return f"model {self.name} has no version that can be served{self._reason()}"

    def _reason(self) -> str:
        """Return ": " and what stands in the way of the highest version, or ""."""
        if self.refused:
            version = max(self.refused, key=int)
            return f": version {version}: {self.refused[version][1]}"
        if self.unreadable:
            return f": its folder cannot be read: {self.unreadable}"
        waiting = [one.version for one in self.look.descending() if one.version not in self.look.whole]
        return f": the files of version {waiting[0]} are still being copied" if waiting else ""
