"""Whatever requests, keys, failures and departures meet: each request ends once, with its own rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmill.core.errors import InputError, ProviderError, UnavailableError
from vecmill.models.base import Encoded
from vecmill.server.batcher import Batched, Batcher
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.testing.clock import run_virtual


@dataclass(frozen=True)
class Ask:
    """A request: when, who, its texts' lengths, what is wrong, its patience, when its client leaves."""

    at: float
    key: str
    tokens: tuple[int, ...]
    variant: str
    kind: str
    patience: float
    leaves: float | None


asks = st.lists(
    st.builds(
        Ask,
        at=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 2.5]),
        key=st.sampled_from("abc"),
        tokens=st.lists(st.integers(1, 300), min_size=1, max_size=12).map(tuple),
        variant=st.sampled_from(["", "", "", "query"]),
        kind=st.sampled_from(["good", "good", "good", "good", "poison", "down", "row"]),
        patience=st.sampled_from([0.05, 1.0, 5.0, 1e6]),
        leaves=st.sampled_from([None, None, None, 0.0, 0.2, 2.0]),
    ),
    min_size=1,
    max_size=25,
)


def work_of(number: int, ask: Ask) -> Encoded:
    names = tuple(f"{number}.{at}.{ask.kind}.{ask.variant}" for at in range(len(ask.tokens)))
    tokens = np.array(ask.tokens)
    return Encoded(names, tokens, np.zeros_like(tokens), None, ask.variant)


def rows_of(work: Encoded) -> np.ndarray:
    return np.array([[float(x) for x in name.split(".")[:2]] for name in work.texts], dtype=np.float32)


@dataclass
class Model:
    """Computes, and fails as the texts say; checks what a batch may be."""

    batch_tokens: int
    max_texts: int | None
    given: Counter[str] = field(default_factory=Counter)

    async def __call__(self, work: Encoded) -> Batched:
        kinds = [name.split(".")[2] for name in work.texts]
        assert {name.split(".")[3] for name in work.texts} == {work.variant}
        cost = sum(-(-int(tokens) // 8) * 8 for tokens in work.tokens)
        assert len(work) == 1 or (cost <= self.batch_tokens and len(work) <= (self.max_texts or len(work)))
        await asyncio.sleep(0.01 + cost / 2000)
        if "poison" in kinds:
            raise InputError("poison")
        if "down" in kinds:
            raise UnavailableError("down")
        self.given.update(work.texts)
        errors = {at: ProviderError(work.texts[at]) for at, kind in enumerate(kinds) if kind == "row"}
        return Batched(rows_of(work), errors)


def check(ask: Ask, work: Encoded, ended: Batched | BaseException) -> None:
    """Look whether a request may end so."""
    match ended:
        case asyncio.CancelledError():
            assert ask.leaves is not None
        case Refusal():
            assert ended.status in {429, 504}
        case InputError():
            assert ask.kind == "poison"
        case UnavailableError():
            pass  # it shared a batch with one that brought the model down
        case Batched():
            assert ask.kind not in {"poison", "down"}
            assert ended.vectors.tolist() == rows_of(work).tolist()
            bad = range(len(work)) if ask.kind == "row" else range(0)
            assert {at: str(error) for at, error in ended.errors.items()} == {
                at: work.texts[at] for at in bad
            }
        case _:
            raise ended


async def client(batcher: Batcher, number: int, ask: Ask) -> int:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(ask.at)
    work, deadline = work_of(number, ask), loop.time() + ask.patience
    asked = asyncio.ensure_future(batcher.vectors(work, key=ask.key, deadline=deadline))
    if ask.leaves is not None:
        loop.call_later(ask.leaves, asked.cancel)
    (ended,) = await asyncio.gather(asked, return_exceptions=True)
    assert loop.time() <= deadline + 0.01
    check(ask, work, ended)
    return number


@settings(deadline=None, max_examples=200)
@given(
    asks=asks,
    batch_tokens=st.sampled_from([8, 256, 1024, 16_384]),
    max_texts=st.sampled_from([None, 1, 5]),
    queue_tokens=st.sampled_from([512, 1 << 20]),
    at_once=st.sampled_from([1, 2, 4]),
    linger=st.sampled_from([0.0, 0.1]),
)
def test_every_request_ends_once_with_its_own_rows(
    asks: list[Ask],
    batch_tokens: int,
    max_texts: int | None,
    queue_tokens: int,
    at_once: int,
    linger: float,
) -> None:
    limits = replace(Limits(), batch_tokens=batch_tokens, queue_tokens=queue_tokens)
    model = Model(batch_tokens, max_texts)

    async def body() -> list[int]:
        batcher = Batcher(model, limits, at_once=at_once, linger=linger, max_texts=max_texts)
        ends = await asyncio.gather(*(client(batcher, number, ask) for number, ask in enumerate(asks)))
        await asyncio.wait_for(batcher.close(), 1e7)
        assert (batcher.waiting_tokens, batcher.waiting_requests) == (0, 0)
        return ends

    assert run_virtual(body()) == list(range(len(asks)))
    assert all(count == 1 for count in model.given.values())  # nothing is computed twice
