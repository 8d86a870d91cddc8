"""A job's windows on their way: read, prepared, embedded, committed.

A model that computes here gets one window at a time. A hosted one gets the next as soon as all requests of
those before are sent, so that its limits are used; windows are started in order, one after another, so what
is sent does not depend on timing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from vecmill.core.errors import BudgetReachedError, JobError, ProviderError
from vecmill.core.events import Listener, Notice, Progress
from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import InputType, RowError, Usage
from vecmill.embedder.channel import Order
from vecmill.embedder.rows import Prepared, RowVectors, Started, cut, finish, prepare, start
from vecmill.jobs.guard import Guard, warned_rows
from vecmill.jobs.layout import output_batch
from vecmill.jobs.plan import Plan
from vecmill.jobs.state import Counts
from vecmill.jobs.store import note_job
from vecmill.jobs.windows import WINDOW_ROWS, Window
from vecmill.models.base import Encoded

T = TypeVar("T")

WINDOWS_IN_FLIGHT = 8
"""Windows of a hosted job on their way at most: enough for requests in flight."""

VECTOR_BYTES_IN_FLIGHT = 64 << 20
"""Bytes of their vectors at most, two windows at least. A window takes about six times that while its replies
are read and its file is written."""

COMMITTING = 2
"""Windows being written at most before another is begun. A killed process has paid in vain for these, and for
those with requests in flight."""

_SEEN = ("seen_tokens", "unknown_tokens", "characters")


async def embed_windows(plan: Plan, listen: Listener) -> None:
    """Embed and commit every window that is not finished, reading one ahead.

    Raises:
        ProviderError, BudgetReachedError: Nothing more can be sent; what was in flight is awaited and kept.
    """
    finished = {index: plan.state.counts(path) for index, path in plan.state.windows().items()}
    total = sum(finished.values(), plan.state.spent())
    resumed = total.input_rows
    if resumed:
        listen(Notice("resumed", f"going on after {resumed:,} of {plan.rows:,} rows, finished earlier"))
    listen(Progress(total.input_rows, plan.rows, total.tokens, resumed))
    if plan.channel.engine is not None:
        plan.channel.engine.budget.spent_usd += spent_before(plan)
    windows = _Windows(plan, listen, Guard(allow_any=plan.options.any_language), total, resumed)
    reader = plan.windows()
    ahead = asyncio.create_task(asyncio.to_thread(next, reader, None))
    try:
        while (window := await ahead) is not None:
            ahead = asyncio.create_task(asyncio.to_thread(next, reader, None))
            if window.index not in finished:
                await windows.take(window)
        await windows.to_end()
    except BaseException as error:
        await windows.halt(error)
        raise
    finally:
        ahead.cancel()
    if not plan.provider.info.hosted:
        for notice in windows.guard.notices(windows.total + windows.seen):
            listen(notice)


def spent_before(plan: Plan) -> float:
    """Return the dollars earlier runs of a job have spent on ordinary requests, lost replies included."""
    total = sum(map(plan.state.counts, plan.state.windows().values()), plan.state.spent())
    unsure = total.unsure_tokens * (plan.provider.info.usd_per_million_tokens or 0.0) / 1e6
    return (total.usd or 0.0) + (total.probe_usd or 0.0) + unsure


async def texts_of(plan: Plan) -> AsyncIterator[Encoded]:
    """Yield the texts a job will embed as they will be sent: the probe's, then each window's."""
    yield plan.provider.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)
    limit = plan.policy.limit(plan.provider)
    reader = plan.windows()
    while (window := await asyncio.to_thread(next, reader, None)) is not None:
        ready = await prepare(plan.provider, window.texts, plan.policy)
        work, _ = await asyncio.to_thread(cut, plan.provider, ready, plan.policy, limit)
        yield work


@dataclass(slots=True)
class _Windows:
    """Windows on their way.

    Attributes:
        total: What is committed; without what the guard saw, which is in `seen`.
        rows_ahead, tokens_ahead: What windows on their way have done, for the progress.
        committing: How many have their vectors and are being written.
    """

    plan: Plan
    listen: Listener
    guard: Guard
    total: Counts
    resumed: int
    seen: Counts = field(default_factory=Counts)
    rows_ahead: int = 0
    tokens_ahead: int = 0
    committing: int = 0
    running: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def most(self) -> int:
        """Windows on their way at most."""
        window_bytes = WINDOW_ROWS * max(self.plan.provider.info.width, 1) * 4
        return max(2, min(WINDOWS_IN_FLIGHT, VECTOR_BYTES_IN_FLIGHT // window_bytes))

    async def take(self, window: Window) -> None:
        """Start a window when there is room for it."""
        await self._room()
        plan, info = self.plan, self.plan.provider.info
        ready = await prepare(plan.provider, window.texts, plan.policy)
        ready = replace(ready, errors={**ready.errors, **_not_texts(window)})
        seen = Counts() if info.hosted else self.guard.look(ready, self.total + self.seen, info.name)
        self.seen += seen
        started = await start(plan.channel, ready, plan.policy)
        self.running.add(asyncio.create_task(self._finish(window, started, seen)))

    async def _room(self) -> None:
        """Wait until another window may be begun: all requests are sent, and the disk keeps up."""
        engine = self.plan.channel.engine
        while self.running:
            drained = asyncio.ensure_future(engine.drained()) if engine else None
            try:
                full = len(self.running) >= self.most or self.committing >= COMMITTING
                tasks = self.running if full or drained is None else {*self.running, drained}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if drained is None or not drained.done():
                    continue
                if len(self.running) < self.most and self.committing < COMMITTING:
                    return
            finally:
                if drained is not None:
                    drained.cancel()

    def _reap(self) -> None:
        """Forget finished windows; raise what one of them raised."""
        done = {task for task in self.running if task.done()}
        self.running -= done
        for task in done:
            task.result()

    async def to_end(self) -> None:
        """Wait for all."""
        while self.running:
            await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
            self._reap()

    async def halt(self, error: BaseException) -> None:
        """Let nothing more be sent, and wait for what is in flight; any other error ends that as well."""
        engine = self.plan.channel.engine
        if engine is not None and isinstance(error, ProviderError | BudgetReachedError):
            engine.halt(error)
        else:
            for task in self.running:
                task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        self.running.clear()

    async def _finish(self, window: Window, started: Started, seen: Counts) -> None:
        plan = self.plan
        share = _Share(self, len(window), max(len(started.order.keys), 1))
        committing = False
        try:
            result = await finish(plan.channel, started, advance=share.advance)
            self.committing, committing = self.committing + 1, True
            counts = await self._commit(window, started.prepared, result, seen)
        except BaseException:
            if window.index not in plan.state.windows():
                self._note_spent(started.order)
            raise
        finally:
            share.close()
            try:
                await plan.channel.keep(started.order)
            finally:
                self.committing -= committing
        self.total += counts
        note_job(plan, state="running", done=self.total.input_rows)
        self.report()

    async def _commit(self, window: Window, ready: Prepared, result: RowVectors, seen: Counts) -> Counts:
        """Write a window's file; return what it adds to the receipt, without what the guard saw."""
        plan, info = self.plan, self.plan.provider.info
        warnings = {} if info.hosted else warned_rows(ready)
        batch = await asyncio.to_thread(
            output_batch, window, result, warnings, plan.layout, dimensions=info.dimensions
        )
        counts = _counted(plan, ready, result, batch, warned=len(warnings))
        probe = probe_counts(plan.channel.take_probe_usage())
        try:
            if not counts.balances:
                what = counts.to_dict()
                raise JobError(f"window {window.index} does not balance: {what}; please report this")
            await whole(plan.state.commit, window.index, batch, counts + probe + seen)
        except BaseException:
            if window.index not in plan.state.windows():
                plan.state.note_spent(probe)
            raise
        return counts + probe

    def _note_spent(self, order: Order) -> None:
        """Keep what a window that ends unfinished was billed, for the receipt and the cap of the next run."""
        if self.plan.channel.engine is None:
            return
        usage, probe = order.spent(), probe_counts(self.plan.channel.take_probe_usage())
        spent = Counts(
            tokens=usage.tokens, requests=usage.requests, usd=usage.usd, unsure_tokens=usage.unsure_tokens
        )
        if usage.tokens or usage.unsure_tokens or probe.probe_tokens:
            self.plan.state.note_spent(spent + probe)

    def report(self) -> None:
        """Tell how far the job is, with what windows on their way have done."""
        done = min(self.plan.rows, self.total.input_rows + self.rows_ahead)
        self.listen(Progress(done, self.plan.rows, self.total.tokens + self.tokens_ahead, self.resumed))


@dataclass(slots=True)
class _Share:
    """A window's part of the progress: texts finished, as rows."""

    windows: _Windows
    rows: int
    distinct: int
    texts: int = 0
    as_rows: int = 0
    tokens: int = 0

    def advance(self, texts: int, tokens: int) -> None:
        self.texts += texts
        rows = min(self.rows, self.texts * self.rows // self.distinct)
        self._add(rows - self.as_rows, tokens)
        self.windows.report()

    def close(self) -> None:
        """Take it back: the window counts itself now."""
        self._add(-self.as_rows, -self.tokens)

    def _add(self, rows: int, tokens: int) -> None:
        self.as_rows += rows
        self.tokens += tokens
        self.windows.rows_ahead += rows
        self.windows.tokens_ahead += tokens


async def whole(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; when cancelled, wait for its end, so that nothing goes on unlocked."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def _not_texts(window: Window) -> dict[int, RowError]:
    return {
        at: RowError("not_text", "InputError", f"the text column holds {what}, not a text")
        for at, what in window.not_text.items()
    }


def _counted(
    plan: Plan, ready: Prepared, result: RowVectors, batch: pa.RecordBatch, *, warned: int
) -> Counts:
    has_text = ready.distinct[ready.distinct >= 0]
    without = set(np.flatnonzero(ready.distinct < 0).tolist())
    return Counts(
        input_rows=ready.total,
        rows=batch.num_rows,
        vectors=len(result.vectors),
        skipped=len(without - set(result.errors)),
        errors=len(result.errors),
        texts=len(np.unique(result.rows)),
        sent=result.sent,
        deduped=result.deduped,
        long=int((ready.encoded.tokens[has_text] > plan.policy.limit(plan.provider)).sum()),
        warned=warned,
        tokens=result.usage.tokens,
        requests=result.usage.requests,
        usd=result.usage.usd,
        cached=result.cached,
        unsure_tokens=result.usage.unsure_tokens,
    )


def probe_counts(probe: Usage) -> Counts:
    """Return what a probe cost as a part of a receipt."""
    return Counts(
        probe_tokens=probe.tokens,
        probe_usd=probe.usd,
        requests=probe.requests,
        unsure_tokens=probe.unsure_tokens,
    )
