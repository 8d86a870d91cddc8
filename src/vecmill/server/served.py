"""The models a server serves: which versions there are, and which one answers.

Each name has at most one version that answers. A look at its folder finds others; a better one is loaded and
checked beside it (`loading.load`) and then takes its place between two requests. Requests hold a lease: the
version they began with answers them, and closes after the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from vecmill.core import errors
from vecmill.core.config import Settings
from vecmill.core.space import short
from vecmill.server import loading, memory, names, remarks, repository
from vecmill.server.errors import Refusal, unavailable, unknown_model
from vecmill.server.loading import Served, reason_of
from vecmill.server.memory import Room
from vecmill.server.options import Options
from vecmill.server.remarks import Remarks
from vecmill.server.repository import NOTHING, Found, Look, Stamp
from vecmill.server.versions import Listed, Model, State, VersionState

log = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["Listed", "Served", "ServedModels", "State", "VersionState"]

SELF_PROBE_SECONDS = 15.0
"""A model that computed nothing for so long computes one sentence of the probe, to know that it still can."""

_SECOND_LOOK = 0.25
"""Seconds between the two looks of a reload: what changed meanwhile is not whole."""
_MOMENT = 0.02
"""Seconds between two questions whether the server is ready yet."""
_AT_ONCE = 2
"""Models looked at, and loaded, side by side: a long load of one does not hold up all others."""
_REMEMBERED = 16
"""Versions that ended, which the status still shows."""


Load: TypeAlias = Callable[..., Awaitable[Served]]


class Lease:
    """One request's hold on the version that answers it: `async with models.lease(name) as served`."""

    __slots__ = ("_models", "_name", "_served")

    def __init__(self, models: ServedModels, name: str) -> None:
        self._models = models
        self._name = name
        self._served: Served | None = None

    async def __aenter__(self) -> Served:
        served = self._models._take(self._name)
        while served is None:
            await self._models._bring(self._name)
            served = self._models._take(self._name)
        self._served = served
        return served

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._served is not None:
            self._served.release()


class ServedModels:
    """The served models by name.

    Args:
        options: What is served, and how much memory there is.
        settings: Where compiled models, probes and the cache lie; aliases.
        load: Opens one version; tests give another.
    """

    def __init__(self, options: Options, settings: Settings, *, load: Load = loading.load) -> None:
        self._options = options
        self._settings = settings
        self._load = load
        self._models: dict[str, Model] = {}
        self._names: dict[str, Model] = {}
        self._spelt: dict[str, str] = {}
        self._missing: frozenset[str] = frozenset()
        self._reloading: asyncio.Task[bool] | None = None
        self._room = Room(options.memory_bytes, self._evict)
        self._looking = asyncio.Lock()
        self._searching = asyncio.Lock()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._unreadable = ""
        self._remarks: Remarks | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._started = False
        self._searched = False

    # What is asked

    def lease(self, name: str) -> Lease:
        """Take the version that serves a name now; it stays until the lease ends, whatever is switched.

        Entering waits only where the model was let go of for its memory and is loaded again.

        Raises:
            Refusal: On entering: 404 nobody serves the name, 503 it is being loaded or has no good version.
        """
        return Lease(self, name)

    @property
    def ready(self) -> bool:
        """Whether every model answers, or will when it is asked."""
        return not self.trouble()

    async def until_ready(self) -> None:
        """Return once every model answers; never, where one cannot be loaded."""
        while self.trouble():
            await asyncio.sleep(_MOMENT)

    def trouble(self) -> str:
        """Say why the server is not ready, or ""; costs a pass over the models."""
        if not self._started:
            return "the models are being loaded"
        if not self._searched:
            return "the models of the repository are being loaded"
        counted = (model for model in self._models.values() if model.counts)
        return next((why for model in counted if (why := model.trouble())), "")

    def model_trouble(self, name: str) -> str | None:
        """Say why a model is not ready, "" where it is, None where nobody serves it."""
        model = self._names.get(name)
        return None if model is None else model.trouble()

    def listed(self) -> list[Listed]:
        """Return the models that answer, by name."""
        return [
            Listed(name, model.created, model.info.provider if model.info.hosted else "vecmill", model.info)
            for name, model in sorted(self._models.items())
            if model.info is not None and (model.current is not None or model.evicted)
        ]

    def current(self) -> list[Served]:
        """Return the versions that answer now, by name."""
        found = (model.current for _, model in sorted(self._models.items()))
        return [served for served in found if served is not None]

    def states(self) -> Mapping[str, list[VersionState]]:
        """Return what is known of every version of every model."""
        return {name: model.state() for name, model in sorted(self._models.items())}

    # Life

    async def start(self) -> None:
        """Load what the operator named and check it; call it on the loop that will serve.

        The models of the repository follow while the server already answers for the others.

        Raises:
            Error: A named model cannot be loaded or fails its check.
            ConfigError: The repository is no folder, or has a model of the same name.
        """
        root = self._options.repository
        if root is not None and not await asyncio.to_thread(root.is_dir):
            raise errors.ConfigError(f"the repository {root} is no folder: make it, or name another")
        for source in self._options.models:
            folder = await asyncio.to_thread(names.folder_of, source, self._settings)
            self._models[source.name] = Model(source, folder, named=True)
        if root is not None:
            named = {model.name: (model.source.spec, model.folder) for model in self._models.values()}
            await asyncio.to_thread(remarks.refuse_namesakes, root, named)
            self._remarks = Remarks(root, named)
        self._spelt = await asyncio.to_thread(names.spellings, self._options.models, self._settings)
        self._name()
        for model in list(self._models.values()):
            await self._first(model)
        self._searched = self._options.repository is None
        self._started = True
        self._spawn(self._watch())
        self._spawn(self._probe())

    async def reload(self) -> bool:
        """Look for new versions now, switch to them, and say whether anything changed.

        Two looks a quarter of a second apart tell what is still being copied. Whoever asks meanwhile gets the
        answer of the same two looks, and cancelling stops none of it: a model may take longer to load than a
        request may take.
        """
        if self._reloading is None:
            self._reloading = self._spawn(self._reload())
            self._reloading.add_done_callback(self._reloaded)
        return await asyncio.shield(self._reloading)

    async def _reload(self) -> bool:
        before = self._print()
        await self._look(switch=False)
        await asyncio.sleep(_SECOND_LOOK)
        await self._look(switch=True)
        return self._print() != before

    def _reloaded(self, task: asyncio.Task[bool]) -> None:
        self._reloading = None
        _read(task)

    async def close(self) -> None:
        """Answer what was begun, then let go of every model."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for model in self._models.values():
            self._retire(model)
        while self._closing:
            await asyncio.wait(set(self._closing))

    # Leases

    def _take(self, name: str) -> Served | None:
        """Return a leased version, or None where it has to be brought back first."""
        model = self._names.get(name)
        if model is None:
            if not (self._started and self._searched):  # its name may still come
                raise unavailable(self.trouble(), "model_loading", seconds=1.0)
            raise unknown_model(name)
        served = model.current
        if served is None:
            if model.evicted:
                return None
            raise self._absent(model)
        served.leases += 1
        model.leased = asyncio.get_running_loop().time()
        return served

    def _absent(self, model: Model) -> Refusal:
        if model.loading or not model.looked:
            return unavailable(f"model {model.name} is being loaded", "model_loading", seconds=1.0)
        return unavailable(
            f"model {model.name} has no version that can be served: GET /v1/config says why",
            "model_unavailable",
            seconds=30.0,
        )

    async def _bring(self, name: str) -> None:
        """Load an evicted model again, once for all who wait."""
        model = self._names[name]
        if model.wanted is None:
            model.wanted = self._spawn(self._again(model))
            model.wanted.add_done_callback(partial(_brought, model))
        await asyncio.shield(model.wanted)

    async def _again(self, model: Model) -> None:
        async with model.lock:
            if not model.evicted:
                return
            await self._see(model)
            await self._settle(model)
            if model.current is None:
                model.evicted = False
                raise self._absent(model)

    # Looking

    async def _first(self, model: Model) -> None:
        """Load a named model, or raise what stands in its way."""
        async with model.lock:
            if model.folder is None:
                await self._switch(model, "1", None)
                model.looked = True
                return
            await self._see(model)
            if len(model.look.whole) < len(model.look.found):
                await asyncio.sleep(_SECOND_LOOK)
                await self._see(model)
            failure = await self._settle(model)
            model.looked = True
        if model.current is None:
            raise failure or errors.ConfigError(
                f"{model.folder} holds no version of model {model.name} that is whole: a version is a folder "
                "whose name is a number above 0"
            )

    async def _watch(self) -> None:
        """Look for new versions as long as the server runs."""
        await self._guarded(self._look(switch=False))
        if not self._searched:
            await asyncio.sleep(_SECOND_LOOK)
            await self._guarded(self._look(switch=True))
            self._searched = True
        while self._options.poll_seconds > 0:
            await asyncio.sleep(self._options.poll_seconds)
            await self._guarded(self._poll())

    async def _guarded(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something that must never end the watch."""
        try:
            await work
        except Exception:
            log.exception("looking for versions failed and will be tried again")

    async def _look(self, *, switch: bool) -> None:
        """Look at every model once; with `switch` also act on it."""
        async with self._looking:
            await self._search(switch=switch)
            for model in list(self._models.values()):
                await self._look_at(model, switch=switch)

    async def _poll(self) -> None:
        """Begin to look at every model that is not being looked at, without waiting for what it leads to."""
        await self._search(switch=True)
        for model in self._models.values():
            if model.folder is not None and (model.watched is None or model.watched.done()):
                model.watched = self._spawn(self._guarded(self._in_turn(model)))

    async def _in_turn(self, model: Model) -> None:
        async with self._slots:
            await self._look_at(model, switch=True)

    async def _look_at(self, model: Model, *, switch: bool) -> None:
        """Look at one model; with `switch` also act on it."""
        if model.folder is None:
            return
        async with model.lock:
            if self._models.get(model.name) is not model:  # it went meanwhile
                return
            before = model.look
            await self._see(model)
            if not switch:
                return
            if not (model.evicted and model.look.found):  # those are loaded when they are asked for
                await self._settle(model, before, quietly=True)
            model.looked = True

    async def _search(self, *, switch: bool) -> None:
        """Find the models of the repository; one that is gone in two looks goes."""
        root = self._options.repository
        if root is not None:
            async with self._searching:
                await self._search_in(root, switch=switch)

    async def _search_in(self, root: Path, *, switch: bool) -> None:
        try:
            held = {name: model.folder for name, model in self._models.items() if model.folder is not None}
            found = await asyncio.to_thread(repository.names, root, held)
            if self._remarks is not None:
                await asyncio.to_thread(self._remarks.look, found)
        except OSError as error:
            reason = _said_by_system(error)
            if reason != self._unreadable:
                log.warning("the repository cannot be read, its models stay: %s", reason)
            self._unreadable = reason
            return
        self._unreadable = ""
        for name, folder in found.items():
            known = self._models.get(name)
            if known is None:
                pinned = self._options.memory_bytes is None
                source = replace(self._options.common, name=name, spec=str(folder), pinned=pinned)
                self._add(Model(source, folder, named=False, early=not self._searched))
        gone = frozenset(n for n, model in self._models.items() if not model.named and n not in found)
        for name in gone & self._missing if switch else ():
            log.info("model %s is gone from the repository", name)
            self._retire(self._models.pop(name))
            self._name()
        self._missing = gone

    async def _see(self, model: Model) -> None:
        if model.folder is None:
            return
        try:
            if not await asyncio.to_thread(model.folder.parent.is_dir):
                return  # what it lies in is not there at the moment, which says nothing about it
            model.look = await asyncio.to_thread(repository.look, model.folder, model.look)
        except OSError as error:
            reason = _said_by_system(error)
            if reason != model.unreadable:
                log.warning("model %s: its folder cannot be read: %s", model.name, reason)
            model.unreadable = reason
        else:
            model.unreadable = ""

    async def _settle(
        self, model: Model, before: Look = NOTHING, *, quietly: bool = False
    ) -> errors.Error | None:
        """Bring the best version into service; return why better ones were refused.

        A version that is gone stays in service until the second look that misses it.

        Raises:
            Refusal: There is no memory for it now; `quietly` waits for the next look instead.
        """
        for version in [v for v in model.refused if v not in model.look.found]:
            del model.refused[version]
        failure: errors.Error | None = None
        for found in model.better(before):
            try:
                await self._switch(model, found.version, found)
            except errors.Error as error:
                failure = error
                model.refused[found.version] = (found.stamp, reason_of(error))
                log.error("model %s version %s is not served: %s", model.name, found.version, error)
                continue
            except Refusal:
                if not quietly:
                    raise
            except Exception as error:  # whatever it is, the other models do not wait for this one
                model.refused[found.version] = (found.stamp, reason_of(error))
                log.exception("model %s version %s is not served", model.name, found.version)
                continue
            return None
        if model.current is not None and model.is_gone(before):
            log.warning("model %s has no version left", model.name)
            self._retire(model)
        return failure

    # Switching

    async def _switch(self, model: Model, version: str, found: Found | None) -> None:
        """Load a version beside the current one and let it take its place.

        Raises:
            Error: It cannot be loaded or fails its check; the current one stays.
        """
        model.loading = version
        brought = model.evicted
        try:
            size = None if found is None else await asyncio.to_thread(repository.loaded_bytes, found)
            cost = 0 if size is None else loading.estimated_bytes(size)
            if model.current is None:
                await self._room.make(model, cost, self._models.values())
            begun = asyncio.get_running_loop().time()
            served = await self._load(
                model.source,
                version,
                None if found is None else found.folder,
                self._options,
                self._settings,
                stamp=() if found is None else found.stamp,
                cost_bytes=cost,
            )
        finally:
            model.loading = ""
            self._room.done(model)
        if self._models.get(model.name) is not model:  # its folder vanished meanwhile
            self._let_go(model, served)
            raise unknown_model(model.name)
        if found is not None and not model.info:
            model.created = min(entry[2] for entry in found.stamp) // 10**9
        old, model.current, model.info = model.current, served, served.info
        model.evicted = False
        model.refused.pop(version, None)
        model.ended.pop(version, None)
        model.leased = now = asyncio.get_running_loop().time()
        if brought:
            model.stays = now + max(memory.STAY_SECONDS, now - begun)
        if old is not None:
            log.info("model %s: version %s answers, version %s ends", model.name, version, old.version)
            _tell_other_space(old, served)
            self._let_go(model, old)

    def _retire(self, model: Model) -> None:
        """Take the current version out of service."""
        old, model.current = model.current, None
        if old is not None:
            self._let_go(model, old)

    def _let_go(self, model: Model, old: Served) -> None:
        """Close a version after its last lease, without waiting for it."""
        cost = 0 if model.source.pinned else old.cost_bytes
        self._room.leaving(cost)

        async def close() -> None:
            try:
                await old.close()
            except Exception:
                log.exception("model %s version %s did not close well", model.name, old.version)
            finally:
                self._room.left(cost)
            if model.ended.get(old.version) is State.UNLOADING:
                model.ended[old.version] = State.END

        old.retired = True
        for version in list(model.ended)[: 1 - _REMEMBERED]:
            del model.ended[version]
        model.ended[old.version] = State.UNLOADING
        task = asyncio.get_running_loop().create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _evict(self, model: Model) -> None:
        """Let go of a model until it is asked for again."""
        model.evicted = True
        self._retire(model)

    # Names and tasks

    def _add(self, model: Model) -> None:
        self._models[model.name] = model
        self._name()

    def _name(self) -> None:
        """Let every spelling of a served name find its model; a model's own name comes first."""
        spelt = {other: self._models[name] for other, name in self._spelt.items() if name in self._models}
        self._names = {**spelt, **self._models}

    def _print(self) -> list[tuple[str, str, Stamp]]:
        return [(n, m.current.version, m.current.stamp) for n, m in self._models.items() if m.current]

    async def _probe(self) -> None:
        """Ask models that computed nothing for a while whether they still can."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SELF_PROBE_SECONDS)
            seconds, since = self._options.limits.request_seconds, loop.time() - SELF_PROBE_SECONDS
            served = [model.current for model in self._models.values() if model.current is not None]
            idle = [one for one in served if one.failed or one.answered <= since]
            await asyncio.gather(*(self._guarded(one.probe_itself(seconds)) for one in idle))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _brought(model: Model, task: asyncio.Task[None]) -> None:
    model.wanted = None
    _read(task)


def _said_by_system(error: OSError) -> str:
    """Return why the system refused, without the path."""
    return error.strerror or type(error).__name__


def _read(task: asyncio.Task[Any]) -> None:
    """Look at what a task ended with, also where nobody is left who waits for it."""
    if not task.cancelled():
        task.exception()


def _tell_other_space(old: Served, new: Served) -> None:
    """Warn of vectors that are not comparable with those the clients of this name have stored."""
    if old.info.space != new.info.space:
        log.warning(
            "model %s: vectors of version %s (space %s, %d dimensions) and of version %s (space %s, %d "
            "dimensions) are not comparable: what was stored has to be embedded again",
            *(new.name, old.version, short(old.info.space), old.info.dimensions),
            *(new.version, short(new.info.space), new.info.dimensions),
        )
