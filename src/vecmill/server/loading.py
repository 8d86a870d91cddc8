"""One version of a model: opened, checked, and ready to be asked."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vecmill.core import errors
from vecmill.core.config import Settings
from vecmill.core.space import PROBE_TEXTS, short
from vecmill.core.types import InputType, LongText, Vectors
from vecmill.embedder.channel import Channel, checked
from vecmill.embedder.engine import Left, no_left
from vecmill.models.base import Encoded, HostedProvider, ModelInfo, Provider
from vecmill.models.local import ovms_layout
from vecmill.models.resolve import open_model
from vecmill.server import golden
from vecmill.server.batcher import Batched, Batcher
from vecmill.server.options import Limits, ModelSource, Options
from vecmill.server.repository import Stamp

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Batches for a paid API on their way at once; its limiter decides how many of them leave."""

UNSENT = 1
"""Of these, how many wait in the limiter, where who came first is served first: what waits in the batcher is
served in turns. The limiter makes up for the milliseconds until the next one is there."""

KEEP_SECONDS = 5.0
"""Seconds a closing model waits for answers of a paid API nobody waits for any more, to put them into the
cache; less than a stopping server gives its models."""

TRY_SHARE = 0.4
"""Of a request's time, what one try of a paid API may take."""

LINGER = 0.005
"""Seconds a request to a paid API waits for company while others are on their way."""

BATCH_SECONDS = 0.25
"""Seconds a batch of a model that computes here may take: the next one waits for it, the texts per second
are the same from two thousand tokens on."""

REJOIN = 0.01
"""Seconds at most between two batches of many clients, for those just answered to come back: batches of
thirty-two texts where they would be of fourteen, for a tenth less CPU time each."""

BASE_BYTES = 48 << 20
WEIGHTS_FACTOR = 2.5
"""What a loaded model takes. Measured with both forms compiled: all-MiniLM-L6-v2 as float32 234 MiB (87 MiB
of weights), as int8 of the same weights 118 MiB, the built-in one 88 MiB (23 MiB)."""


@dataclass(slots=True, eq=False)
class Served:
    """One loaded version of a model.

    Attributes:
        name: The id clients ask for.
        version: "1", "2", …
        source: What the operator said of it.
        provider: The model. channel: the way to it. batcher: requests become batches.
        long_text: What happens to long texts unless the request says otherwise.
        stamp: Of the files it was made from. cost_bytes: what it is taken to cost in memory.
        probe: What it answered to the probe's sentences; None of hosted models.
        failed: Why it cannot compute any more, or "".
        answered: When it last computed something, in the loop's time.
        leases: Requests that hold it. retired: whether it closes with the last of them.
    """

    name: str
    version: str
    source: ModelSource
    provider: Provider
    channel: Channel
    batcher: Batcher
    long_text: LongText
    stamp: Stamp = ()
    cost_bytes: int = 0
    probe: Vectors | None = None
    failed: str = ""
    answered: float = 0.0
    leases: int = 0
    retired: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self.provider.info

    async def vectors(self, work: Encoded, *, key: str, deadline: float) -> Batched:
        """Return vectors (n, info.width) of texts of at most `info.max_tokens` tokens; see `Batcher`."""
        return await self.batcher.vectors(work, key=key, deadline=deadline)

    def release(self) -> None:
        """End one lease."""
        self.leases -= 1
        if self.retired and not self.leases:
            self.released.set()

    async def close(self) -> None:
        """Answer what holds it and what waits, then let go of the model."""
        self.retired = True
        if self.leases:
            await self.released.wait()
        await self.batcher.close(code="model_loading")
        await self.provider.close()

    async def probe_itself(self, seconds: float) -> None:
        """Compute one sentence of the probe and note in `failed` whether it came out as at the start.

        Args:
            seconds: How long it may take while nothing else is answered either.
        """
        if self.probe is None or self.retired:
            return
        before = self.answered
        text = self.provider.encode(PROBE_TEXTS[:1], input_type=InputType.DOCUMENT)
        work = self.provider.truncate(text, max_tokens=self.info.max_tokens)
        try:
            async with asyncio.timeout(seconds):
                found = (await self.provider.embed(work)).vectors
        except TimeoutError:
            if self.answered == before:
                self._fail(f"it has not answered for {seconds:g} s")
        except Exception as error:  # whatever it is, the model does not compute
            if not self.retired:
                self._fail(reason_of(error))
        else:
            if found.tobytes() == self.probe[:1].tobytes():
                self._succeed()
            else:
                self._fail("it gives other vectors than when it was loaded")

    async def supply(self, work: Encoded, left: Left = no_left) -> Batched:
        """Compute or buy one batch, telling `left` when it leaves, and note whether the model still can."""
        try:
            if len(work) == 1 and self.channel.cache is None:  # nothing to share or keep: the shortest way
                reply = await self.provider.embed(work)
                found = Batched(checked(reply.vectors, 1, self.info.width, self.info.name))
                self._succeed()
                return found
            supplied = await self.channel.vectors(work, left=left)
        except errors.InputError:
            raise
        except Exception as error:
            if self.probe is not None and not isinstance(error, errors.BadReplyError):
                self._fail(reason_of(error))
            raise
        self._succeed()
        free = ~supplied.sent
        free[list(supplied.errors)] = False
        return Batched(supplied.vectors, supplied.errors, int(np.count_nonzero(free)), free)

    def _fail(self, why: str) -> None:
        if not self.failed:
            log.error("model %s version %s does not compute: %s", self.name, self.version, why)
        self.failed = why

    def _succeed(self) -> None:
        self.answered = asyncio.get_running_loop().time()
        if self.failed:
            log.warning("model %s version %s computes again", self.name, self.version)
            self.failed = ""


async def load(
    source: ModelSource,
    version: str,
    folder: Path | None,
    options: Options,
    settings: Settings,
    *,
    stamp: Stamp = (),
    cost_bytes: int = 0,
) -> Served:
    """Open a version, warm it up and check it. Opening and computing happen in threads.

    Args:
        source: What the operator said of the model.
        version: Its number.
        folder: Where it lies; None: `source.spec` names a model that has no versions.
        options: Of the server.
        settings: Where compiled models, probes and the cache lie.
        stamp: Of its files, noted with it.
        cost_bytes: What it is taken to cost in memory, likewise.

    Raises:
        Error: It cannot be opened or fails its check; nothing of it is left in memory.
    """
    begun = time.perf_counter()
    given, long_text = await asyncio.to_thread(_arguments, source, folder)
    spec = source.spec if folder is None else str(folder.absolute())
    provider: Provider = await asyncio.to_thread(_open, spec, settings, given)
    try:
        if provider.info.hosted:  # one that hangs can be tried again before its clients have left
            cast(HostedProvider, provider).hasten(options.limits.request_seconds * TRY_SHARE)
        channel = Channel.to(provider, settings, cache=options.cache, max_usd=options.max_usd, apart=True)
        probe = None
        if provider.info.hosted:
            await asyncio.to_thread(provider.encode, ["ready"], input_type=InputType.DOCUMENT)  # reads ranks
            await channel.learn()
        else:
            probe = await golden.check(provider, settings, folder=folder)
        served = _served(source, version, provider, channel, options.limits, long_text)
    except BaseException:
        await asyncio.shield(provider.close())
        raise
    served.stamp, served.cost_bytes, served.probe = stamp, cost_bytes, probe
    served.answered = asyncio.get_running_loop().time()
    log.info(
        "model %s version %s passed its check: %s, %d dimensions, space %s, %.1f s",
        source.name,
        version,
        provider.info.name,
        provider.info.dimensions,
        short(provider.info.space),
        time.perf_counter() - begun,
    )
    return served


def reason_of(error: BaseException) -> str:
    """Return why something failed, on one line; our own errors name no secret, of others only the kind."""
    text = str(error) if isinstance(error, errors.Error) else ""
    line = " ".join(text.split())
    return (line if len(line) <= 500 else line[:497] + "…") or type(error).__name__


def estimated_bytes(weights_bytes: int) -> int:
    """Return what a model of so many bytes of files is taken to cost in memory once it is loaded."""
    return BASE_BYTES + int(WEIGHTS_FACTOR * weights_bytes)


def _open(spec: str, settings: Settings, given: dict[str, Any]) -> Provider:
    try:
        return open_model(spec, settings=settings, **given)
    except errors.Error:
        raise
    except Exception as error:  # a damaged file may break any reader
        raise errors.CorruptFileError(
            f"{spec} cannot be read as a model ({type(error).__name__}): fetch it again"
        ) from error


def _arguments(source: ModelSource, folder: Path | None) -> tuple[dict[str, Any], LongText]:
    """Return what the model is opened with: what the operator said, else what its folder says."""
    given: dict[str, Any] = {
        name: getattr(source, name)
        for name in ("pooling", "normalize", "streams", "device", "precision", "max_tokens")
        if getattr(source, name) is not None
    }
    long_text = LongText(source.long_text)
    said = None if folder is None else ovms_layout.read_said(folder)
    if said is None:
        return given, long_text
    if said.streams is not None:
        given.setdefault("streams", said.streams)
    if said.device is not None:
        given.setdefault("device", said.device)
    if said.truncate and long_text is LongText.ERROR:
        long_text = LongText.TRUNCATE
    if said.ignored:
        log.warning("%s: %s have no meaning here and are left out", folder, ", ".join(said.ignored))
    return given, long_text


def _served(
    source: ModelSource,
    version: str,
    provider: Provider,
    channel: Channel,
    limits: Limits,
    long_text: LongText,
) -> Served:
    info = provider.info

    async def supply(work: Encoded) -> Batched:
        return await served.supply(work)

    async def send(work: Encoded, left: Left) -> Batched:
        return await served.supply(work, left)

    def most_tokens() -> int | None:
        return None if channel.engine is None else channel.engine.limiter.most_tokens

    if info.hosted:
        if info.max_request_tokens is not None:
            limits = replace(limits, batch_tokens=min(limits.batch_tokens, info.max_request_tokens))
        batcher = Batcher(
            send,
            limits,
            at_once=AT_ONCE,
            unsent=UNSENT,
            most_tokens=most_tokens,
            linger=LINGER,
            max_texts=info.max_inputs,
            keep_seconds=KEEP_SECONDS,
        )
    else:
        batcher = Batcher(supply, limits, batch_seconds=BATCH_SECONDS, rejoin=REJOIN)
    served = Served(source.name, version, source, provider, channel, batcher, long_text)
    return served
