"""Tokens to vectors: asked of the model's batcher, watched, checked, averaged and cut to size."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from vecmill.core.errors import BadReplyError, ProviderError
from vecmill.core.types import Vectors
from vecmill.core.vectors import shorten
from vecmill.embedder.rows import Pieces, average
from vecmill.models.base import ModelInfo, Span
from vecmill.server.batcher import Batched
from vecmill.server.call import Call, ClientLeft
from vecmill.server.errors import SERVER, Refusal, invalid, refusal_of
from vecmill.server.reading import Work
from vecmill.server.served import Served

T = TypeVar("T")

_AT_ONCE = 200_000
"""Components worked on without leaving the event loop: well under a millisecond."""

_PATIENCE = 0.005
"""Seconds before a waiting request looks whether its client is still there; most are answered before."""


async def embed(call: Call, served: Served, work: Work) -> Vectors:
    """Return the vectors of a request's inputs, (n, info.width) float32, every one finite.

    Raises:
        Refusal: 429, 503, 504 as the batcher says; 500 or 502 an input has no vector, named by its index.
        ClientLeft: The client went away meanwhile; what has not begun is not computed.
    """
    return await unless_left(call, _vectors(call, served, work))


async def embed_each(call: Call, served: Served, works: Sequence[Work]) -> list[Vectors]:
    """Return the vectors of several works, such as a query's and those of documents; see `embed`."""

    async def every() -> list[Vectors]:
        found = await asyncio.gather(
            *(_vectors(call, served, work) for work in works), return_exceptions=True
        )  # all have ended: the lease must not end before them
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if not isinstance(one, BaseException)]

    return await unless_left(call, every())


async def _vectors(call: Call, served: Served, work: Work) -> Vectors:
    found = await _finite(call, served, work)
    call.noted.model, call.noted.version = served.name, served.version
    call.noted.texts += len(work)
    call.noted.tokens += work.tokens
    call.noted.cached += found.cached
    call.noted.truncated += len(work.cut)
    if work.counts is None:
        return found.vectors
    return await asyncio.to_thread(_averaged, found.vectors, work, served.info.normalized)


def _averaged(vectors: Vectors, work: Work, normalized: bool) -> Vectors:
    if work.counts is None or work.weights is None:
        return vectors
    spans = tuple(Span(0, 0, weight) for weight in work.weights.tolist())
    return average(vectors, Pieces(work.counts, spans, {}), normalized=normalized)


async def unless_left(call: Call, work: Awaitable[T]) -> T:
    """Wait for something as long as the client does.

    Costs a timer; a task only where it takes longer than 5 ms.

    Raises:
        ClientLeft: The client went away; the work was cancelled.
    """
    loop = asyncio.get_running_loop()
    waiting = asyncio.current_task()
    watch = _Watch(call, waiting)
    timer = loop.call_later(_PATIENCE, watch.begin)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.cancelled_it and waiting is not None and waiting.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        timer.cancel()
        watch.end()


class _Watch:
    """Looks for the end of a connection, and cancels the task that answers it."""

    def __init__(self, call: Call, waiting: asyncio.Task[object] | None) -> None:
        self._call, self._waiting = call, waiting
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.cancelled_it = False

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self._call.left())
        self._task.add_done_callback(self._left)

    def end(self) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def _left(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None and not self._over and self._waiting is not None:
            self.cancelled_it = True
            self._waiting.cancel()


async def _finite(call: Call, served: Served, work: Work) -> Batched:
    """Return the vectors of all pieces; what is not finite is tried again, together and then in halves.

    Raises:
        Refusal: 500 or 502, an input has no vector.
    """
    try:
        found = await served.vectors(work.encoded, key=call.caller.id, deadline=call.deadline)
    except BadReplyError:
        if served.info.hosted:
            raise
        rows = list(range(len(work.encoded)))
        found = Batched(np.zeros((len(rows), served.info.width), dtype=np.float32))
    else:
        rows = _unusable(found)
    _raise_first(work, {at: error for at, error in found.errors.items() if at not in rows})
    if not rows:
        return found
    again = _Again(call, served, work, found.vectors.copy())
    await again.fill(rows)
    return Batched(again.vectors, {}, found.cached)


class _Again:
    """Asks once more for vectors that were not usable.

    A batch may be spoilt by one of its texts, also by another request's: mostly all are well when they are
    asked for without the others. Otherwise the bad one of n texts is found in about log2 n calls.
    """

    def __init__(self, call: Call, served: Served, work: Work, vectors: Vectors) -> None:
        self._call, self._served, self._work = call, served, work
        self.vectors = vectors

    async def fill(self, rows: list[int], *, spoilt: bool = False) -> bool:
        """Put the vectors of rows where they belong; return whether they were well at once.

        Args:
            rows: Of pieces, at least one, ascending.
            spoilt: One of them is known to be bad: they are not asked for together.

        Raises:
            Refusal: A piece has no usable vector alone either.
        """
        alone = len(rows) == 1
        if alone or not spoilt:
            bad = await self._ask(rows)
            if not bad:
                return True
            if alone:
                raise _failed(_owner(self._work, rows[0]), BadReplyError("not finite"))
            rows = bad
        middle = (len(rows) + 1) // 2
        well = await self.fill(rows[:middle])
        if middle < len(rows):
            await self.fill(rows[middle:], spoilt=well)  # the bad one is not in the other half
        return False

    async def _ask(self, rows: list[int]) -> list[int]:
        """Ask for rows together, keep what is usable, and return the others."""
        encoded = self._work.encoded.take(rows)
        try:
            found = await self._served.vectors(
                encoded, key=self._call.caller.id, deadline=self._call.deadline
            )
        except BadReplyError:
            return rows
        bad = _unusable(found)
        _raise_first(self._work, {rows[at]: error for at, error in found.errors.items() if at not in bad})
        self.vectors[rows] = found.vectors
        return [rows[at] for at in bad]


def _unusable(found: Batched) -> list[int]:
    """Return the rows, ascending, whose vectors are not finite or which are said to be bad."""
    bad = {at for at, error in found.errors.items() if isinstance(error, BadReplyError)}
    if not _all_finite(found.vectors):
        bad.update(np.flatnonzero(~np.isfinite(found.vectors).all(axis=1)).tolist())
    return sorted(bad)


def _raise_first(work: Work, errors: Mapping[int, ProviderError]) -> None:
    """Refuse the request for the first of its pieces that failed."""
    if errors:
        at, error = min(errors.items())
        raise _failed(_owner(work, at), error)


def _all_finite(vectors: Vectors) -> bool:
    """Say whether every component is finite; one product, which is NaN or infinite where one is not."""
    flat = vectors.ravel()
    return math.isfinite(flat @ flat) or bool(np.isfinite(flat).all())


def _owner(work: Work, piece: int) -> int:
    """Return the input a piece belongs to."""
    if work.counts is None:
        return piece
    return int(np.searchsorted(np.cumsum(work.counts), piece, side="right"))


def _failed(index: int, error: ProviderError) -> Refusal:
    """Return the answer to an input without a vector."""
    if isinstance(error, BadReplyError):
        message = f"the model gave no usable vector for the input at index {index}, alone neither"
        headers = (("x-should-retry", "false"),)
        return Refusal(500, message, type=SERVER, code="no_vector", param="input", headers=headers)
    said = refusal_of(error, param="input")
    said.message = f"the input at index {index}: {said.message}"
    said.args = (said.message,)
    return said


# Dimensions.


def is_cuttable(info: ModelInfo) -> bool:
    """Say whether a model's first components are vectors themselves."""
    return info.mrl is True or info.reply_dimensions is not None


def check_dimensions(asked: int | None, info: ModelInfo, *, allow: bool) -> int:
    """Return the dimensions of the answer: the model's own unless fewer are asked and it can be cut.

    Args:
        asked: None: the model's own.
        info: The model.
        allow: Cut any model's vectors.

    Raises:
        Refusal: 400.
    """
    if asked is None or asked == info.dimensions:
        return info.dimensions
    if not (allow or is_cuttable(info)):
        raise invalid("This model does not support specifying dimensions.", param="dimensions")
    if asked > info.width:
        raise invalid(
            f"Invalid value for 'dimensions': {asked} is too large. This model gives 1 to {info.width}.",
            param="dimensions",
            code="invalid_value",
        )
    return asked


async def sized(vectors: Vectors, dimensions: int) -> Vectors:
    """Return vectors (n, width) cut to (n, dimensions), unit length where they were cut; many in a thread."""
    if vectors.shape[1] == dimensions:
        return vectors
    if vectors.size <= _AT_ONCE:
        return shorten(vectors, dimensions)
    return await asyncio.to_thread(shorten, vectors, dimensions)
