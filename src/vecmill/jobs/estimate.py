"""What a job will cost, counted before anything is spent: texts, tokens, requests, dollars, minutes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from vecmill.core.space import PROBE_TEXTS
from vecmill.core.types import InputType, IntArray
from vecmill.embedder.batching import batches
from vecmill.embedder.cache.base import cache_keys
from vecmill.embedder.probe import read_probe
from vecmill.embedder.rows import cut, prepare
from vecmill.jobs.batch_plan import KeySet
from vecmill.jobs.plan import Plan
from vecmill.models.base import Encoded


@dataclass(frozen=True, slots=True)
class Estimate:
    """A job's size, exact as far as the model's tokenizer is known.

    Attributes:
        texts: Rows that have a text. distinct: different texts among them.
        long: Rows whose text is above the limit.
        tokens: Tokens of the different texts; unknown: of these, those the vocabulary lacks.
        cached: Different texts whose vectors are in the cache; with `cached_share` of the tokens to embed.
        send_texts, send_tokens, requests: What is left to send; a long text counts as its pieces.
        usd: Dollars for that, the probe included; None where no price is known. batch_usd: through the
            provider's Batch API; None where there is none.
        minutes: How long it takes at the limits known; None where none is known.
    """

    texts: int
    distinct: int
    long: int
    tokens: int
    unknown: int
    cached: int
    cached_share: float
    send_texts: int
    send_tokens: int
    requests: int
    usd: float | None
    batch_usd: float | None
    minutes: float | None


async def estimate(plan: Plan) -> Estimate:
    """Tokenize the whole input and add up. Costs a pass over it, 16 bytes a different text, no request."""
    channel, info = plan.channel, plan.provider.info
    limit = plan.policy.limit(plan.provider)
    seen, whole = KeySet(), KeySet()
    totals = dict.fromkeys(("texts", "distinct", "long", "tokens", "unknown"), 0)
    cached = cached_tokens = send_texts = send_tokens = requests = 0
    for window in plan.windows():
        ready = await prepare(plan.provider, window.texts, plan.policy)
        with_text = ready.distinct[ready.distinct >= 0]
        new = _new(ready.encoded, info.space, whole)
        totals["texts"] += len(with_text)
        totals["long"] += int((ready.encoded.tokens[with_text] > limit).sum())
        totals["distinct"] += len(new)
        totals["tokens"] += int(ready.encoded.tokens[new].sum())
        totals["unknown"] += int(ready.encoded.unknown[new].sum())
        work, _ = await asyncio.to_thread(cut, plan.provider, ready, plan.policy, limit)
        work = work.take(_new(work, info.space, seen))
        keys = cache_keys(info.space, work.texts, variant=work.variant)
        have = np.zeros(len(work), dtype=np.bool_)
        if channel.cache is not None and len(work) and info.width:
            have = await asyncio.to_thread(channel.cache.contains, info.space, keys, dimensions=info.width)
        cached += int(have.sum())
        cached_tokens += int(work.tokens[have].sum())
        left = work.tokens[~have]
        send_texts += len(left)
        send_tokens += int(left.sum())
        requests += sum(1 for _ in batches(left, max_inputs=info.max_inputs, max_tokens=_most_tokens(plan)))
    probe = await asyncio.to_thread(_probe_tokens, plan, rides=send_texts > 0)
    requests += bool(probe and not send_texts)  # else it rides with the first texts
    price, batch_price = info.usd_per_million_tokens, info.batch_usd_per_million_tokens
    engine = channel.engine
    return Estimate(
        **totals,
        cached=cached,
        cached_share=cached_tokens / max(cached_tokens + send_tokens, 1),
        send_texts=send_texts,
        send_tokens=send_tokens,
        requests=requests,
        usd=None if price is None else price * (send_tokens + probe) / 1e6,
        batch_usd=None if batch_price is None else batch_price * (send_tokens + probe) / 1e6,
        minutes=None if engine is None else engine.limiter.estimate_minutes(requests, send_tokens + probe),
    )


def _new(encoded: Encoded, space: str, seen: KeySet) -> IntArray:
    """Return the positions of texts not seen before, and note them."""
    return np.flatnonzero(seen.add(cache_keys(space, encoded.texts, variant=encoded.variant)))


def _most_tokens(plan: Plan) -> int | None:
    engine, limit = plan.channel.engine, plan.provider.info.max_request_tokens
    most = None if engine is None else engine.limiter.most_tokens
    known = [value for value in (limit, most) if value is not None]
    return min(known) if known else None


def _probe_tokens(plan: Plan, *, rides: bool) -> int:
    """Tokens of the probe, where the job will have to embed it; it rides with the first texts sent."""
    channel, info = plan.channel, plan.provider.info
    if channel.engine is None or read_probe(channel.probe_dir, info) is not None:
        return 0
    probe = plan.provider.encode(PROBE_TEXTS, input_type=InputType.DOCUMENT)
    if rides or channel.cache is None or not info.width:
        return int(probe.tokens.sum())
    keys = cache_keys(info.space, probe.texts, variant=probe.variant)
    return int(probe.tokens[~channel.cache.contains(info.space, keys, dimensions=info.width)].sum())
