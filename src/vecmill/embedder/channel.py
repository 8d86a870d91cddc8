"""A provider with all that stands between it and its callers: cache, texts in flight, engine, probe.

Every vector comes through here: what the cache has is not asked for, what another call has on its way is
shared, the rest is bought (hosted models) or computed (local ones).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from vecmill.core import clock
from vecmill.core.config import Settings
from vecmill.core.errors import BadReplyError, InputError, ProviderError, SpaceMismatchError
from vecmill.core.space import PROBE_TEXTS, decode_probe, encode_probe, short
from vecmill.core.types import InputType, IntArray, Usage, Vectors
from vecmill.core.vectors import shorten
from vecmill.embedder.batching import batches
from vecmill.embedder.budget import Budget
from vecmill.embedder.cache.base import VectorCache, cache_keys
from vecmill.embedder.cache.memory import MemoryCache
from vecmill.embedder.cache.sqlite import SqliteCache, open_cache
from vecmill.embedder.engine import Bought, Engine, Left, Stop, no_left
from vecmill.embedder.flights import Flight, Flights
from vecmill.embedder.limits import limiter_for
from vecmill.embedder.probe import read_probe, write_probe
from vecmill.models.base import Advance, Encoded, HostedProvider, Provider, join, no_advance

Mask: TypeAlias = npt.NDArray[np.bool_]
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(slots=True)
class Supplied:
    """What came for n texts.

    Attributes:
        vectors: (n, width) float32, full size; rows without a vector are zeros.
        tokens: (n,) int64 billed for each; 0 where it came from the cache or another call.
        usd: (n,) float64 dollars for these; NaN where no price is known.
        sent: (n,) bool, which texts this call sent.
        errors: Why a text has no vector, by position.
        usage: What this call cost.
    """

    vectors: Vectors
    tokens: IntArray
    usd: FloatArray
    sent: Mask
    errors: dict[int, ProviderError]
    usage: Usage

    @classmethod
    def nothing(cls, n: int, width: int) -> Supplied:
        """Return the record before anything came."""
        vectors = np.zeros((n, width), dtype=np.float32)
        return cls(
            vectors, np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=np.bool_), {}, Usage()
        )

    def take(self, other: Supplied, rows: IntArray) -> None:
        """Take what came for these rows from another record."""
        self.vectors[rows] = other.vectors
        self.tokens[rows] = other.tokens
        self.usd[rows] = other.usd
        self.sent[rows] = other.sent
        self.errors.update((int(rows[at]), error) for at, error in other.errors.items())
        self.usage += other.usage


@dataclass(slots=True)
class Order:
    """Distinct texts that were asked for, and how far they are.

    Attributes:
        work: The distinct texts. keys: their cache keys. unique: the row of each text asked for.
        flight: Those of them nobody else had on the way.
        mine: Rows that are in no cache and ours to fetch. theirs: flights of the others, by row.
        supplied: What came so far.
        bought: What the engine made of `mine`; read also when it was interrupted.
        nested: Orders for texts whose flight failed.
        left: Told when requests for `mine` leave.
    """

    work: Encoded
    keys: list[bytes]
    unique: IntArray
    flight: Flight
    mine: IntArray
    theirs: dict[int, Flight]
    supplied: Supplied
    bought: Bought | None = None
    nested: list[Order] = field(default_factory=list)
    left: Left = no_left

    def spent(self) -> Usage:
        """Return what its texts cost so far, also where it was interrupted."""
        mine = Usage() if self.bought is None else self.bought.usage
        return sum((nested.spent() for nested in self.nested), mine)


@dataclass(slots=True)
class Channel:
    """What an embedder or a job asks for vectors.

    Attributes:
        provider: The model.
        engine: Sends requests; None for a model that computes here.
        cache: Where vectors are kept; None asks the provider for every text.
        probe_dir: Where probes are kept, or None.
        probe_usage: What probes cost, which no text's usage holds.
        usage: What all texts cost so far, whoever asked for them.
        bought: Says which keys of the cache this job has bought through the provider's Batch API.
    """

    provider: Provider
    engine: Engine | None = None
    cache: VectorCache | None = None
    probe_dir: Path | None = None
    probe_usage: Usage = field(default_factory=Usage)
    usage: Usage = field(default_factory=Usage)
    bought: Callable[[Sequence[bytes]], Mask] | None = None
    _flights: Flights = field(default_factory=Flights)
    _probe_rides: bool = False
    _learning: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def to(
        cls,
        provider: Provider,
        settings: Settings,
        *,
        cache: bool | None = None,
        max_usd: float | None = None,
        spent_usd: float = 0.0,
        apart: bool = False,
    ) -> Self:
        """Open the way to a provider; call it on the event loop that will use it.

        Args:
            provider: The model.
            settings: Where cache and limits lie.
            cache: Whether vectors are kept on disk; None: as the settings say, for hosted models.
            max_usd: What may be spent; None: no cap.
            spent_usd: Of it, what is spent already.
            apart: Whether what stops one call, such as a refused request, leaves the others alone.

        Raises:
            InputError: A cap was asked for and the price is not known.
        """
        info = provider.info
        wanted = {"on": True, "off": False}.get(settings.cache, info.hosted) if cache is None else cache
        probes = settings.cache_dir / "probes"
        kept = open_cache(settings) if wanted else None
        if not info.hosted:
            if max_usd is not None and info.usd_per_million_tokens is None:
                Budget(max_usd, None)
            return cls(provider, None, kept, probes)
        hosted = cast(HostedProvider, provider)
        limiter = limiter_for(hosted.endpoint, home=settings.home, now=clock.now)
        budget = Budget(max_usd, info.usd_per_million_tokens, spent_usd)
        return cls(provider, Engine(hosted, limiter, budget, apart=apart), kept or MemoryCache(), probes)

    def varied(self, settings: Settings, *, user: str | None, deployment: str | None) -> Channel:
        """Return this way for another end user or deployment: same cache, texts in flight and budget.

        Raises:
            InputError: The model runs here, or the deployment is of another space.
        """
        if user is None and deployment is None:
            return self
        if self.engine is None:
            raise InputError(
                f"{self.provider.info.name} runs here: user and deployment are for hosted models"
            )
        provider = self.engine.provider.varied(user=user, deployment=deployment)
        if provider.info.space != self.provider.info.space:
            raise SpaceMismatchError(
                f"deployment {deployment!r} is not known to run the model of {self.provider.info.name} "
                f"(space {short(self.provider.info.space)}): name its model in a profile"
            )
        limiter = limiter_for(provider.endpoint, home=settings.home, now=clock.now)
        known = self.engine
        engine = Engine(provider, limiter, known.budget, known.retry, known.random, apart=known.apart)
        return replace(self, provider=provider, engine=engine)

    async def learn(self) -> None:
        """Ask the provider for what nobody knows yet of the model; the probe is that request.

        Raises:
            ProviderError: It cannot be asked.
        """
        if self.engine is None or self.provider.info.dimensions:
            return self._name_space()
        async with self._learning:  # calls at once ask once
            if not self.provider.info.dimensions:
                reply, usage = await self.engine.learn()
                self.probe_usage += usage
                if reply is not None:
                    await self._keep_probe(reply.vectors)
        return self._name_space()

    def _name_space(self) -> None:
        """Let the cache say whose vectors it holds."""
        if isinstance(self.cache, SqliteCache):
            self.cache.name_space(self.provider.info.space, self.provider.info.name)

    async def vectors(
        self, work: Encoded, *, advance: Advance = no_advance, left: Left = no_left
    ) -> Supplied:
        """Return the vectors of texts, from wherever is cheapest, and keep new ones.

        Args:
            work: The texts.
            advance: Called with (texts, tokens) as they come.
            left: As of `Engine.embed`; called with 0 also where nothing has to be sent.

        Raises:
            ProviderError: The provider cannot be asked any more; what came before is in the cache.
            BudgetReachedError: Likewise.
        """
        if self.engine is not None:
            self.engine.revive()
        order = await self.begin(work)
        order.left = left
        try:
            return await self.finish(order, advance=advance)
        finally:
            await self.keep(order)

    async def begin(self, work: Encoded) -> Order:
        """Claim texts and look into the cache: in the order of the calls, whatever the timing.

        Each order must come to `keep`.
        """
        info = self.provider.info
        keys = cache_keys(info.space, work.texts, variant=work.variant)
        rows: dict[bytes, int] = {}
        unique = np.fromiter((rows.setdefault(key, len(rows)) for key in keys), np.int64, len(keys))
        if len(rows) < len(keys):
            work = work.take(np.unique(unique, return_index=True)[1])
        supplied = Supplied.nothing(len(rows), info.width)
        mine = np.arange(len(rows), dtype=np.int64)
        if self.cache is None:
            return Order(work, list(rows), unique, Flight({}), mine, {}, supplied)
        flight, ours, theirs = self._flights.claim(list(rows))
        order = Order(work, list(rows), unique, flight, mine[ours], theirs, supplied)
        try:
            asked = [order.keys[row] for row in ours]
            if asked:
                found, vectors = await asyncio.to_thread(
                    self.cache.get, info.space, asked, dimensions=info.width
                )
                supplied.vectors[order.mine[found]] = vectors
                self._note_bought(order, order.mine[found])
                order.mine = np.delete(order.mine, found)
        except BaseException:
            self._flights.close(flight)
            raise
        return order

    def _note_bought(self, order: Order, rows: IntArray) -> None:
        """Count texts that came through this job's batches as sent, at the batch price."""
        if self.bought is None or not len(rows):
            return
        price = self.provider.info.batch_usd_per_million_tokens
        rows = rows[self.bought([order.keys[row] for row in rows])]
        order.supplied.sent[rows] = True
        order.supplied.tokens[rows] = order.work.tokens[rows]
        order.supplied.usd[rows] = order.work.tokens[rows] * _dollars(price)

    async def finish(self, order: Order, *, advance: Advance = no_advance) -> Supplied:
        """Fetch what is missing and wait for what others fetch.

        Raises:
            ProviderError: As `vectors`.
        """
        supplied = order.supplied
        here = len(order.keys) - len(order.mine) - len(order.theirs)
        if here:
            advance(here, 0)
        try:
            stopped = await self._fetch(order, advance)
        finally:
            self._land(order)
        if stopped is not None:
            raise stopped
        left = await self._share(order, advance)
        if len(left):
            again = await self.begin(order.work.take(left))
            order.nested.append(again)
            supplied.take(await self.finish(again, advance=advance), left)
        return _spread(supplied, order.unique)

    async def keep(self, order: Order) -> None:
        """Put what was bought into the cache and close the order; not torn by a cancellation."""
        for nested in order.nested:
            await self.keep(nested)
        if self.cache is None or order.bought is None or not order.bought.done.any():
            self._flights.close(order.flight)
            return
        task = asyncio.ensure_future(asyncio.to_thread(self._put, order))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise
        finally:
            self._flights.close(order.flight)

    def _put(self, order: Order) -> None:
        if self.cache is None or order.bought is None:
            return
        done = np.flatnonzero(order.bought.done)
        if len(done):
            keys = [order.keys[row] for row in order.mine[done]]
            vectors = order.bought.vectors
            vectors = vectors if len(done) == len(vectors) else vectors[done]
            self.cache.put(self.provider.info.space, keys, vectors)

    async def _fetch(self, order: Order, advance: Advance) -> Stop | None:
        """Buy or compute the rows that are ours. Return why it ended early, if it did."""
        if not len(order.mine):
            order.left(0)
            return None
        try:
            await self._buy(order, advance)
        finally:  # also what came before a cancellation: other calls wait for it
            self._take_bought(order)
        return None if order.bought is None else order.bought.stopped

    async def _buy(self, order: Order, advance: Advance) -> None:
        work = order.work if len(order.mine) == len(order.work) else order.work.take(order.mine)
        order.bought = Bought.nothing(len(work), self.provider.info.width)
        if self.engine is None:
            await self._compute(work, order.bought, advance)
        elif self._probe_rides and work.variant == self._probe_texts().variant:
            self._probe_rides = False
            await self._buy_with_probe(self.engine, work, order, advance)
        else:
            advance = _telling(order, order.bought, advance)
            await self.engine.embed(work, into=order.bought, advance=advance, left=order.left)

    def _take_bought(self, order: Order) -> None:
        rows, bought, supplied = order.mine, order.bought, order.supplied
        if bought is None:
            return
        if len(rows) == len(order.keys):  # all of them, in order: copying 12 MB a window is worth avoiding
            supplied.vectors = bought.vectors
        else:
            supplied.vectors[rows] = bought.vectors
        supplied.tokens[rows] = bought.tokens
        supplied.usd[rows] = bought.tokens * _dollars(self.provider.info.usd_per_million_tokens)
        supplied.sent[rows] = bought.done
        supplied.errors.update((int(rows[at]), error) for at, error in bought.errors.items())
        supplied.usage += bought.usage
        self.usage += bought.usage

    async def _compute(self, work: Encoded, bought: Bought, advance: Advance) -> None:
        """Ask a provider that has no limits but its own packing."""
        info = self.provider.info
        for rows in batches(work.tokens, max_inputs=info.max_inputs, max_tokens=info.max_request_tokens):
            part = work if len(rows) == len(work) else work.take(rows)
            reply = await self.provider.embed(part, advance=advance)
            bought.vectors[rows] = checked(reply.vectors, len(rows), info.width, info.name)
            bought.done[rows] = True
            bought.tokens[rows] = part.tokens
            bought.usage += reply.usage

    def _land(self, order: Order) -> None:
        """Let other calls have what came for the keys of this one."""
        if order.flight.rows:
            have = np.ones(len(order.keys), dtype=np.bool_)
            have[order.mine] = False if order.bought is None else order.bought.done
            self._flights.land(order.flight, order.supplied.vectors, have, order.supplied.errors)

    async def _share(self, order: Order, advance: Advance) -> IntArray:
        """Wait for what other calls fetch and take it; return the rows they did not get."""
        supplied, left = order.supplied, []
        for row, flight in order.theirs.items():
            match await flight.arrival(order.keys[row]):
                case None:
                    left.append(row)
                case ProviderError() as error:
                    supplied.errors[row] = error
                case vector:
                    supplied.vectors[row] = vector
        if len(order.theirs) > len(left):
            advance(len(order.theirs) - len(left), 0)
        return np.array(left, dtype=np.int64)

    # The probe.

    async def probe(self) -> str:
        """Return the probe of the model's space; it is embedded now if it is not kept yet."""
        kept = await asyncio.to_thread(read_probe, self.probe_dir, self.provider.info)
        if kept is not None:
            return self._cut_probe(kept)
        self._probe_rides = False
        supplied = await self.vectors(self._probe_texts())
        self.probe_usage += supplied.usage
        if supplied.errors:
            raise next(iter(supplied.errors.values()))
        return await self._keep_probe(supplied.vectors)

    async def ride_probe(self) -> None:
        """Let the first request carry the probe, where it is not kept yet and requests cost money."""
        if self.engine is not None:
            kept = await asyncio.to_thread(read_probe, self.probe_dir, self.provider.info)
            self._probe_rides = kept is None

    def take_probe_usage(self) -> Usage:
        """Return what probes have cost since the last call; nothing where the model computes here."""
        usage, self.probe_usage = self.probe_usage, Usage()
        if self.engine is None:
            return Usage()
        trial, self.engine.trial_usage = self.engine.trial_usage, Usage()
        return usage + trial

    async def fresh_probe(self) -> str:
        """Embed the probe now, whatever is kept: the answer of today's model."""
        texts, info = self._probe_texts(), self.provider.info
        if self.engine is not None:
            self.engine.revive()
        bought = Bought.nothing(len(texts), info.width)
        if self.engine is None:
            await self._compute(texts, bought, no_advance)
        else:
            await self.engine.embed(texts, into=bought)
        self.probe_usage += bought.usage
        if bought.stopped is not None:
            raise bought.stopped
        if bought.errors:
            raise next(iter(bought.errors.values()))
        return encode_probe(cut_to_size(bought.vectors, info.dimensions))

    async def _buy_with_probe(self, engine: Engine, work: Encoded, order: Order, advance: Advance) -> None:
        """Buy texts with the probe before them, in the first request."""
        probe = self._probe_texts()
        n = len(probe)
        both = Bought.nothing(n + len(work), self.provider.info.width)
        try:
            await engine.embed(join([probe, work]), into=both, advance=advance, left=order.left)
        finally:
            tokens = int(both.tokens[:n].sum())
            cost = _share_of(both.usage, tokens)
            self.probe_usage += Usage(texts=int(both.done[:n].sum()), tokens=tokens, usd=cost)
            order.bought = Bought(
                both.vectors[n:],
                both.done[n:],
                both.tokens[n:],
                {at - n: error for at, error in both.errors.items() if at >= n},
                Usage(
                    int(both.done[n:].sum()),
                    both.usage.tokens - tokens,
                    both.usage.requests,
                    None if both.usage.usd is None or cost is None else both.usage.usd - cost,
                    both.usage.unsure_tokens,
                ),
                both.stopped,
            )
        if both.done[:n].all():
            await self._keep_probe(both.vectors[:n])

    def _probe_texts(self) -> Encoded:
        return self.provider.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)

    async def _keep_probe(self, vectors: Vectors) -> str:
        probe = encode_probe(vectors)
        await asyncio.to_thread(write_probe, self.probe_dir, self.provider.info, probe)
        return self._cut_probe(probe)

    def _cut_probe(self, probe: str) -> str:
        info = self.provider.info
        return encode_probe(cut_to_size(decode_probe(probe, info.width), info.dimensions))


def _telling(order: Order, bought: Bought, advance: Advance) -> Advance:
    """Let other calls that wait for texts of this one have them request by request, not at its end."""
    if not order.flight.rows:
        return advance
    flight, place = order.flight, {int(row): at for at, row in enumerate(order.mine)}

    def early(row: int) -> Vectors | ProviderError | None:
        at = place.get(row)
        if at is None:
            return None
        if bought.done[at]:
            found: Vectors = bought.vectors[at]
            return found
        return bought.errors.get(at)

    def tell(texts: int, tokens: int) -> None:
        advance(texts, tokens)
        flight.tell()

    flight.early = early
    return tell


def checked(vectors: Vectors, count: int, dimensions: int, model: str) -> Vectors:
    """Return the vectors of a reply, or raise when count, width or values are wrong.

    Raises:
        BadReplyError: They are.
    """
    if vectors.shape != (count, dimensions):
        raise BadReplyError(
            f"{model} was asked for {count} vectors of {dimensions} dimensions and answered {vectors.shape}",
            model=model,
        )
    if not np.isfinite(vectors).all():
        rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        raise BadReplyError(
            f"{model} answered vectors that are not finite, at position {rows[0]}", model=model
        )
    return vectors


def cut_to_size(vectors: Vectors, dimensions: int) -> Vectors:
    """Return full vectors (n, width) as the user asked for them: (n, dimensions), unit length where cut."""
    return vectors if vectors.shape[1] == dimensions else shorten(vectors, dimensions)


def _spread(supplied: Supplied, unique: IntArray) -> Supplied:
    """Give every text asked for what came for its distinct one; the first of equal ones bears the cost."""
    if len(unique) == len(supplied.vectors):
        return supplied
    first = np.unique(unique, return_index=True)[1]
    tokens, usd = np.zeros(len(unique), dtype=np.int64), np.zeros(len(unique))
    sent = np.zeros(len(unique), dtype=np.bool_)
    tokens[first], usd[first], sent[first] = supplied.tokens, supplied.usd, supplied.sent
    errors = {at: supplied.errors[int(row)] for at, row in enumerate(unique) if int(row) in supplied.errors}
    return Supplied(supplied.vectors[unique], tokens, usd, sent, errors, supplied.usage)


def _dollars(usd_per_million_tokens: float | None) -> float:
    """Return the price of one token, NaN where it is not known."""
    return math.nan if usd_per_million_tokens is None else usd_per_million_tokens / 1e6


def _share_of(usage: Usage, tokens: int) -> float | None:
    return None if usage.usd is None else usage.usd * tokens / max(usage.tokens, 1)
