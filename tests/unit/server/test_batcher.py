"""Batches across requests, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vecmill.core.errors import InputError, ProviderError, UnavailableError
from vecmill.models.base import Encoded
from vecmill.server.batcher import Batched, Batcher, Left
from vecmill.server.errors import Refusal
from vecmill.server.options import Limits
from vecmill.testing.clock import run_virtual

LIMITS = Limits(batch_tokens=1024, queue_tokens=64 * 1024)
FAR = 1e9


def texts(*names: str, tokens: int = 8, variant: str = "") -> Encoded:
    """Return texts of so many tokens each."""
    n = len(names)
    return Encoded(names, np.full(n, tokens), np.zeros(n, dtype=np.int64), None, variant)


def row(name: str) -> float:
    """Return the number that stands for a text."""
    return float(sum(ord(letter) * 31**at for at, letter in enumerate(name[:6])) % 100_003)


def rows(work: Encoded) -> np.ndarray:
    """Return the vectors (n, 2) of texts."""
    return np.array([[row(name), 1.0] for name in work.texts], dtype=np.float32)


@dataclass
class Model:
    """A model of a fixed speed that notes what it is given and when."""

    tokens_per_second: float = 1024.0
    overhead: float = 0.0
    seen: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    wrong: Callable[[Encoded], BaseException | None] = lambda work: None

    async def __call__(self, work: Encoded) -> Batched:
        loop = asyncio.get_running_loop()
        self.seen.append((loop.time(), work.texts))
        await asyncio.sleep(self.overhead + int(work.tokens.sum()) / self.tokens_per_second)
        error = self.wrong(work)
        if error is not None:
            raise error
        return Batched(rows(work))

    @property
    def batches(self) -> list[tuple[str, ...]]:
        return [names for _, names in self.seen]


async def ask(batcher: Batcher, work: Encoded, *, key: str = "a", deadline: float = FAR) -> Batched:
    return await batcher.vectors(work, key=key, deadline=deadline)


def begin(awaitable: Awaitable[Batched]) -> asyncio.Task[Batched]:
    return asyncio.ensure_future(awaitable)


def test_lone_request_does_not_wait() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        await asyncio.sleep(5)
        found = await ask(batcher, texts("x"))
        assert model.seen == [(5.0, ("x",))]
        assert found.vectors.tolist() == [[row("x"), 1.0]]

    run_virtual(body())


def test_what_waits_while_the_model_is_busy_is_one_batch() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        first = begin(ask(batcher, texts("first", tokens=512)))
        await asyncio.sleep(0.1)
        others = [begin(ask(batcher, texts(f"{i}"))) for i in range(10)]
        found = await asyncio.gather(first, *others)
        assert model.batches == [("first",), tuple(str(i) for i in range(10))]
        assert [f.vectors[0, 0] for f in found[1:]] == [row(str(i)) for i in range(10)]

    run_virtual(body())


def test_requests_of_one_moment_go_together() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        await asyncio.gather(*(ask(batcher, texts(f"{i}")) for i in range(5)))
        assert model.batches == [("0", "1", "2", "3", "4")]
        assert model.seen[0][0] == 0.0

    run_virtual(body())


def test_large_request_is_cut_and_answered_in_its_own_order() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        names = [f"text {i}" for i in range(300)]
        tokens = np.arange(300) % 60 + 1
        work = Encoded(tuple(names), tokens, np.zeros(300, dtype=np.int64))
        found = await ask(batcher, work)
        assert len(model.batches) > 5
        assert found.vectors[:, 0].tolist() == [row(name) for name in names]
        longest_first = [tokens[int(name[5:])] for batch in model.batches for name in batch]
        assert [-(-n // 8) for n in longest_first] == sorted(
            (-(-n // 8) for n in longest_first), reverse=True
        )

    run_virtual(body())


def test_batches_keep_to_their_tokens_and_texts() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS, max_texts=20)
        works = [texts(*(f"{i}.{j}" for j in range(7)), tokens=3 + 11 * i) for i in range(12)]
        await asyncio.gather(*(ask(batcher, work, key=str(at % 3)) for at, work in enumerate(works)))
        lengths = {name: int(work.tokens[0]) for work in works for name in work.texts}
        for batch in model.batches:
            assert len(batch) <= 20
            assert sum(-(-lengths[name] // 8) * 8 for name in batch) <= LIMITS.batch_tokens
        assert sum(len(batch) for batch in model.batches) == 12 * 7

    run_virtual(body())


def test_text_larger_than_a_batch_goes_alone() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, replace(LIMITS, batch_tokens=64))
        await asyncio.gather(
            ask(batcher, texts("long", tokens=500)), *(ask(batcher, texts(f"{i}")) for i in range(3))
        )
        assert ("long",) in model.batches

    run_virtual(body())


def test_one_text_of_another_key_waits_for_about_one_batch_of_a_large_request() -> None:
    async def body(key: str) -> None:
        model = Model()
        batcher = Batcher(model, replace(LIMITS, queue_seconds=1e9))
        large = begin(ask(batcher, texts(*(f"{i}" for i in range(2048)), tokens=16)))
        await asyncio.sleep(5.5)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        await ask(batcher, texts("small"), key=key)
        assert loop.time() - asked <= 2.0  # the batch on its way and its own: a second each
        assert not large.done()
        assert len((await large).vectors) == 2048

    run_virtual(body("b"))
    run_virtual(body("a"))  # nor does it starve behind the large one of its own key


def test_keys_share_a_batch_equally() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        first = begin(ask(batcher, texts("first"), key="z"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        heavy = [begin(ask(batcher, texts(*(f"a{i}.{j}" for j in range(16)), tokens=32))) for i in range(20)]
        light = [begin(ask(batcher, texts(f"b{i}", tokens=32), key="b")) for i in range(64)]
        await asyncio.gather(first, *heavy, *light)
        for batch in model.batches[1:4]:
            assert sum(name.startswith("b") for name in batch) == 16  # half of 32 texts
            assert sum(name.startswith("a") for name in batch) == 16

    run_virtual(body())


def test_large_request_is_overtaken_by_at_most_its_own_size() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, replace(LIMITS, queue_seconds=1e9))
        loop = asyncio.get_running_loop()
        large = begin(ask(batcher, texts(*(f"{i}" for i in range(512)), tokens=16)))  # 8 s of work
        large.add_done_callback(lambda _: done.append(loop.time()))
        done: list[float] = []

        async def stream() -> None:
            while not done:  # small ones of the same key, more than the model can do
                tasks.append(begin(ask(batcher, texts("s", tokens=128))))
                await asyncio.sleep(0.1)

        tasks: list[asyncio.Task[Batched]] = []
        await stream()
        assert done[0] <= 2 * 8 + 2
        await batcher.close()

    run_virtual(body())


def test_queries_and_documents_of_a_pair_of_models_are_not_mixed() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        works = [texts(f"{i}", variant="query" if i % 2 else "") for i in range(20)]
        tasks = [begin(ask(batcher, work, key=str(at % 3))) for at, work in enumerate(works)]
        found = await asyncio.gather(*tasks)
        assert [f.vectors[0, 0] for f in found] == [row(str(i)) for i in range(20)]
        for batch in model.batches:
            assert len({int(name) % 2 for name in batch}) == 1
        assert len(model.batches) < 20

    run_virtual(body())


# The queue.


async def refused(awaitable: Awaitable[Batched]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await awaitable
    return caught.value


def seconds_of(refusal: Refusal) -> float:
    return int(dict(refusal.headers)["retry-after-ms"]) / 1000


def test_full_queue_answers_429() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), replace(LIMITS, queue_tokens=100))
        tasks = [begin(ask(batcher, texts("first")))]
        await asyncio.sleep(0.001)
        tasks.append(begin(ask(batcher, texts("a", tokens=96))))
        await asyncio.sleep(0)
        refusal = await refused(ask(batcher, texts("b")))
        assert refusal.status == 429
        assert refusal.code == "rate_limit_exceeded"
        assert batcher.stats.refused == 1
        await asyncio.gather(*tasks)

    run_virtual(body())


def test_request_larger_than_the_queue_is_taken_where_nothing_waits() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), replace(LIMITS, queue_tokens=100))
        assert len((await ask(batcher, texts(*"abcdefgh", tokens=64))).vectors) == 8

    run_virtual(body())


def test_tokens_count_and_not_how_they_are_spread_over_requests() -> None:
    async def admitted(count: int, size: int) -> int:
        batcher = Batcher(Model(), replace(LIMITS, queue_tokens=640))
        first = begin(ask(batcher, texts("first")))
        await asyncio.sleep(0.001)
        tasks = [begin(ask(batcher, texts(*(f"{j}" for j in range(size))))) for i in range(count)]
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        return sum(len(f.vectors) for f in found[1:] if isinstance(f, Batched))

    assert run_virtual(admitted(200, 1)) == run_virtual(admitted(25, 8)) == 80


def test_before_anything_is_measured_only_the_tokens_bound_the_queue() -> None:
    async def body() -> None:
        batcher = Batcher(Model(1.0), LIMITS)
        tasks = [begin(ask(batcher, texts(f"{i}", tokens=64))) for i in range(100)]
        await asyncio.sleep(0.5)
        tasks.append(begin(ask(batcher, texts("more"))))
        await asyncio.sleep(0)
        assert batcher.stats.refused == 0
        for task in tasks:
            task.cancel()
        await batcher.close()

    run_virtual(body())


def test_cold_first_text_does_not_make_the_next_ones_refused() -> None:
    async def body() -> None:
        async def supply(work: Encoded) -> Batched:
            await asyncio.sleep(1.0 if "cold" in work.texts else int(work.tokens.sum()) / 10_000)
            return Batched(rows(work))

        batcher = Batcher(supply, LIMITS)
        await ask(batcher, texts("cold"))
        await asyncio.gather(*(ask(batcher, texts(f"{i}", tokens=64)) for i in range(32)))
        assert batcher.stats.refused == 0

    run_virtual(body())


def test_expected_wait_above_the_bound_answers_429_with_the_measured_time() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), LIMITS)
        await ask(batcher, texts("measured", tokens=1024))
        tasks = [begin(ask(batcher, texts(f"{i}", tokens=256))) for i in range(4)]  # one batch, a second
        await asyncio.sleep(0.1)
        tasks += [begin(ask(batcher, texts(f"{i}", tokens=256))) for i in range(4, 9)]
        await asyncio.sleep(0)
        refusal = await refused(ask(batcher, texts("late", tokens=256)))
        assert refusal.status == 429
        assert seconds_of(refusal) == pytest.approx(0.9 + 5 * 0.25, abs=0.01)
        await asyncio.gather(*tasks)
        await ask(batcher, texts("later", tokens=256))

    run_virtual(body())


def test_retry_after_is_never_above_a_minute() -> None:
    async def body() -> None:
        batcher = Batcher(Model(1.0), LIMITS)
        await ask(batcher, texts("measured", tokens=1024))
        first = begin(ask(batcher, texts("first", tokens=1024)))
        await asyncio.sleep(0.1)
        second = begin(ask(batcher, texts("second", tokens=1024)))
        await asyncio.sleep(0)
        assert seconds_of(await refused(ask(batcher, texts("third")))) == 60.0
        first.cancel()
        second.cancel()
        await batcher.close()

    run_virtual(body())


def test_key_with_nothing_waiting_is_not_refused_for_another_ones_queue() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), LIMITS)
        await ask(batcher, texts("measured", tokens=1024))
        large = begin(ask(batcher, texts(*(f"{i}" for i in range(1000)), tokens=32)))  # 31 s
        await asyncio.sleep(0.5)
        assert (await refused(ask(batcher, texts(*(f"{i}" for i in range(1000)), tokens=32)))).status == 429
        await ask(batcher, texts("other"), key="b")
        assert not large.done()
        large.cancel()
        await batcher.close()

    run_virtual(body())


# Deadlines and clients that leave.


def test_expired_request_is_answered_504_at_its_deadline_and_never_computed() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        first = begin(ask(batcher, texts("first", tokens=1024)))
        await asyncio.sleep(0.1)
        refusal = await refused(ask(batcher, texts("late"), deadline=0.4))
        assert (refusal.status, refusal.code) == (504, "deadline_exceeded")
        assert asyncio.get_running_loop().time() == pytest.approx(0.4, abs=0.01)
        await first
        await batcher.close()
        assert model.batches == [("first",)]
        assert batcher.stats.expired == 1

    run_virtual(body())


def test_deadline_that_cannot_be_met_is_refused_at_arrival() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        await ask(batcher, texts("measured", tokens=1024))
        tasks = [begin(ask(batcher, texts(f"{i}", tokens=512))) for i in range(4)]
        await asyncio.sleep(0.5)
        now = asyncio.get_running_loop().time()
        refusal = await refused(ask(batcher, texts("hurry"), deadline=now + 0.6))
        assert refusal.status == 429
        assert asyncio.get_running_loop().time() == now
        await asyncio.gather(*tasks)
        assert ("hurry",) not in model.batches

    run_virtual(body())


def test_request_whose_rest_cannot_finish_is_given_up_whole() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        refusal = await refused(ask(batcher, texts(*(f"{i}" for i in range(1000)), tokens=32), deadline=4.0))
        assert refusal.status == 504
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)  # after its first batch
        await batcher.close()
        assert len(model.batches) == 1

    run_virtual(body())


def test_client_that_leaves_takes_what_has_not_begun_with_it() -> None:
    async def body() -> None:
        model = Model()
        batcher = Batcher(model, LIMITS)
        large = begin(ask(batcher, texts(*(f"{i}" for i in range(1000)), tokens=32)))
        await asyncio.sleep(0.1)
        waits = begin(ask(batcher, texts("waits")))
        await asyncio.sleep(0.1)
        assert batcher.waiting_tokens > 30_000
        large.cancel()
        waits.cancel()
        await asyncio.gather(large, waits, return_exceptions=True)
        assert batcher.waiting_tokens == 0
        assert batcher.waiting_requests == 0
        await ask(batcher, texts("next"))
        assert model.batches[1:] == [("next",)]
        assert batcher.stats.cancelled == 2

    run_virtual(body())


# Errors.


def test_error_reaches_only_the_requests_of_its_batch() -> None:
    async def body() -> None:
        def wrong(work: Encoded) -> BaseException | None:
            return UnavailableError("gone") if "bad" in work.texts else None

        batcher = Batcher(Model(wrong=wrong), LIMITS)
        found = await asyncio.gather(
            ask(batcher, texts("bad")), ask(batcher, texts("with it")), return_exceptions=True
        )
        assert [type(f) for f in found] == [UnavailableError, UnavailableError]
        assert len((await ask(batcher, texts("good"))).vectors) == 1
        assert batcher.stats.failed == 1

    run_virtual(body())


def test_bad_content_fails_only_its_own_request() -> None:
    async def body() -> None:
        def wrong(work: Encoded) -> BaseException | None:
            return InputError("poison") if "bad" in work.texts else None

        batcher = Batcher(Model(wrong=wrong), LIMITS)
        works = [texts("a"), texts("b", "bad", "c"), texts("d", "e")]
        found = await asyncio.gather(*(ask(batcher, work) for work in works), return_exceptions=True)
        assert isinstance(found[1], InputError)
        assert found[0].vectors.tolist() == rows(works[0]).tolist()  # type: ignore[union-attr]  # it is one
        assert found[2].vectors.tolist() == rows(works[2]).tolist()  # type: ignore[union-attr]  # it is one

    run_virtual(body())


def test_errors_of_single_texts_come_with_positions_in_their_own_request() -> None:
    async def body() -> None:
        async def supply(work: Encoded) -> Batched:
            bad = {at: ProviderError(name) for at, name in enumerate(work.texts) if name.startswith("bad")}
            return Batched(rows(work), bad)

        batcher = Batcher(supply, replace(LIMITS, batch_tokens=64))
        tokens = np.array([8, 40, 16, 24, 8])
        mixed = Encoded(("a", "bad1", "b", "bad2", "c"), tokens, np.zeros(5, dtype=np.int64))
        found = await asyncio.gather(ask(batcher, texts("x", "bad0")), ask(batcher, mixed))
        assert {at: str(error) for at, error in found[0].errors.items()} == {1: "bad0"}
        assert {at: str(error) for at, error in found[1].errors.items()} == {1: "bad1", 3: "bad2"}

    run_virtual(body())


def test_cached_texts_are_counted_for_their_own_request() -> None:
    async def body() -> None:
        async def supply(work: Encoded) -> Batched:
            free = np.array([name.startswith("had") for name in work.texts])
            return Batched(rows(work), {}, int(free.sum()), free)

        batcher = Batcher(supply, LIMITS)
        works = [texts("had1", "x"), texts("y"), texts("had2", "had3")]
        found = await asyncio.gather(*(ask(batcher, work) for work in works))
        assert [f.cached for f in found] == [1, 0, 2]

    run_virtual(body())


@pytest.mark.parametrize("kind", ["short", "wide", "cancelled"])
def test_no_failure_of_the_supply_lets_a_request_hang(kind: str) -> None:
    async def body() -> None:
        asked = 0

        async def supply(work: Encoded) -> Batched:
            nonlocal asked
            asked += 1
            if kind == "cancelled":
                raise asyncio.CancelledError
            if kind == "short":
                return Batched(rows(work)[1:])
            return Batched(np.zeros((len(work), asked), dtype=np.float32))

        batcher = Batcher(supply, replace(LIMITS, batch_tokens=16))
        with pytest.raises((ProviderError, Refusal)):
            await ask(batcher, texts("a", "b", "c", "d"))
        await batcher.close()

    run_virtual(body())


# Side by side.


def test_company_is_waited_for_only_while_another_batch_is_on_its_way() -> None:
    async def body() -> None:
        model = Model(overhead=1.0, tokens_per_second=1e9)
        batcher = Batcher(model, LIMITS, at_once=4, linger=0.005)
        tasks = [begin(ask(batcher, texts("alone")))]
        await asyncio.sleep(0.1)
        tasks.append(begin(ask(batcher, texts("a"))))
        await asyncio.sleep(0.004)
        tasks.append(begin(ask(batcher, texts("b"))))
        await asyncio.gather(*tasks)
        assert [names for _, names in model.seen] == [("alone",), ("a", "b")]
        assert [at for at, _ in model.seen] == [0.0, pytest.approx(0.105)]

    run_virtual(body())


@pytest.mark.parametrize(("rejoin", "largest"), [(0.0, 31), (0.02, 32)])
def test_clients_of_a_closed_loop_meet_in_one_batch(rejoin: float, largest: int) -> None:
    async def body() -> list[int]:
        model = Model(tokens_per_second=1024.0)
        batcher = Batcher(model, LIMITS, rejoin=rejoin)

        async def client(at: int) -> None:
            await asyncio.sleep(at * 0.01)  # at first they come one by one
            for number in range(24):
                await ask(batcher, texts(f"{at}.{number}"))
                await asyncio.sleep(0.0005 * (at % 4 + 1))

        await asyncio.gather(*(client(at) for at in range(32)))
        return [len(names) for names in model.batches]

    sizes = run_virtual(body())
    assert max(sizes) <= largest
    assert sizes.count(32) >= (16 if rejoin else 0)


def test_who_is_alone_after_a_batch_of_many_waits_a_moment_only() -> None:
    async def body() -> float:
        batcher = Batcher(Model(), LIMITS, rejoin=0.02)
        await asyncio.gather(*(ask(batcher, texts(f"x{at}")) for at in range(8)))
        started = asyncio.get_running_loop().time()
        await ask(batcher, texts("y"))
        waited = asyncio.get_running_loop().time() - started - 8 / 1024
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        await ask(batcher, texts("z"))
        assert asyncio.get_running_loop().time() - started == pytest.approx(8 / 1024)
        return waited

    assert 0 < run_virtual(body()) <= 0.0021


def test_full_batch_does_not_linger() -> None:
    async def body() -> None:
        model = Model(overhead=1.0, tokens_per_second=1e9)
        batcher = Batcher(model, LIMITS, at_once=4, linger=0.5)
        tasks = [begin(ask(batcher, texts("alone")))]
        await asyncio.sleep(0.1)
        tasks.append(begin(ask(batcher, texts("full", tokens=1024))))
        await asyncio.gather(*tasks)
        assert [at for at, _ in model.seen] == [0.0, pytest.approx(0.1)]

    run_virtual(body())


def test_no_more_batches_are_on_their_way_than_allowed() -> None:
    async def body() -> None:
        now = most = 0

        async def supply(work: Encoded) -> Batched:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(1)
            now -= 1
            return Batched(rows(work))

        batcher = Batcher(supply, replace(LIMITS, batch_tokens=64), at_once=3)
        await asyncio.gather(*(ask(batcher, texts(f"{i}")) for i in range(100)))
        assert most == 3

    run_virtual(body())


@dataclass
class Provider:
    """Lets a batch leave each second and answers a while later."""

    seen: list[tuple[str, ...]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, work: Encoded, left: Left) -> Batched:
        async with self._turn:
            await asyncio.sleep(1)
        left(0)
        self.seen.append(work.texts)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(5)
        self.now -= 1
        return Batched(rows(work))


def test_batches_begin_one_by_one_as_they_leave_and_are_on_their_way_together() -> None:
    async def body() -> None:
        provider = Provider()
        batcher = Batcher(provider, LIMITS, at_once=64, unsent=1, linger=0.005)
        tasks = [begin(ask(batcher, texts(*(f"{i}" for i in range(1280))), key=f"{i}")) for i in range(4)]
        await asyncio.sleep(10.5)
        asked = asyncio.get_running_loop().time()
        await ask(batcher, texts("small"), key="z")
        assert asyncio.get_running_loop().time() - asked <= 3 + 5  # a batch has room for two keys of five
        await asyncio.gather(*tasks)
        assert provider.most == 5
        assert all(len(names) == 128 for names in provider.seen[:40])
        assert batcher.rate == pytest.approx(1024)  # of 5 on their way none is counted twice
        assert asyncio.get_running_loop().time() == pytest.approx(41 + 5, abs=0.1)

    run_virtual(body())


def test_key_with_nothing_waiting_is_not_refused_for_what_others_have_on_the_way() -> None:
    async def body() -> None:
        batcher = Batcher(Provider(), replace(LIMITS, queue_seconds=1.0), at_once=64, unsent=1)
        large = texts(*(f"{i}" for i in range(640)))
        await ask(batcher, large)
        tasks = [begin(ask(batcher, large))]
        await asyncio.sleep(0.01)
        assert (await refused(ask(batcher, large))).status == 429
        tasks.append(begin(ask(batcher, texts("small"), key="z")))
        await asyncio.gather(*tasks)

    run_virtual(body())


def test_a_request_is_no_larger_than_the_provider_takes() -> None:
    async def body() -> None:
        provider = Provider()
        batcher = Batcher(provider, LIMITS, at_once=64, unsent=1, most_tokens=lambda: 80)
        await ask(batcher, texts(*(f"{i}" for i in range(30))))
        assert [len(names) for names in provider.seen] == [10, 10, 10]

    run_virtual(body())


def test_company_is_waited_for_as_long_after_a_queue_that_was_left() -> None:
    async def body() -> None:
        model = Model(overhead=1.0, tokens_per_second=1e9)
        batcher = Batcher(model, LIMITS, at_once=4, linger=0.005)
        tasks = [begin(ask(batcher, texts("first")))]
        await asyncio.sleep(0.1)
        left = begin(ask(batcher, texts("left")))
        await asyncio.sleep(0.001)
        left.cancel()
        await asyncio.sleep(0.2)
        tasks.append(begin(ask(batcher, texts("a"))))
        await asyncio.sleep(0.003)
        tasks.append(begin(ask(batcher, texts("b"))))
        await asyncio.gather(*tasks)
        assert model.batches == [("first",), ("a", "b")]

    run_virtual(body())


# Closing.


def test_close_answers_what_came_before_and_refuses_what_comes_after() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), LIMITS)
        tasks = [begin(ask(batcher, texts(f"{i}", tokens=512))) for i in range(4)]
        await asyncio.sleep(0.1)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        refusal = await refused(ask(batcher, texts("late")))
        assert (refusal.status, refusal.code) == (503, "shutting_down")
        await closing
        assert all(task.done() and len(task.result().vectors) == 1 for task in tasks)

    run_virtual(body())


def test_close_does_not_wait_for_a_batch_nobody_waits_for() -> None:
    async def body() -> None:
        async def supply(work: Encoded) -> Batched:
            await asyncio.Event().wait()
            raise AssertionError

        batcher = Batcher(supply, LIMITS)
        asked = begin(ask(batcher, texts("a"), deadline=3.0))
        await asyncio.sleep(1)
        await batcher.close()
        with pytest.raises(Refusal):
            await asked

    run_virtual(body())


def test_close_waits_a_moment_for_what_was_sent_and_not_for_what_was_not() -> None:
    async def body(seconds: float, *, sent: bool) -> tuple[bool, float]:
        kept = []

        async def send(work: Encoded, left: Left) -> Batched:
            if sent:
                left(0)
            await asyncio.sleep(seconds)
            kept.append(work.texts)
            return Batched(rows(work))

        batcher = Batcher(send, LIMITS, at_once=4, unsent=1, keep_seconds=3.0)
        asked = begin(ask(batcher, texts("a")))
        await asyncio.sleep(0.5)
        asked.cancel()
        await asyncio.sleep(0)
        await batcher.close()
        return bool(kept), asyncio.get_running_loop().time()

    assert run_virtual(body(2.0, sent=True)) == (True, 2.0)
    assert run_virtual(body(60.0, sent=True)) == (False, 3.5)
    assert run_virtual(body(2.0, sent=False)) == (False, 0.5)


def test_batches_of_a_slow_model_are_smaller() -> None:
    async def body() -> None:
        model = Model(8192.0)
        batcher = Batcher(model, replace(LIMITS, batch_tokens=16_384), batch_seconds=0.5)
        assert batcher.batch_tokens == 2048
        await ask(batcher, texts("measured", tokens=1024))
        assert batcher.batch_tokens == 4096
        await ask(batcher, texts(*(f"{i}" for i in range(1000)), tokens=16))
        assert {len(batch) for batch in model.batches[1:-1]} == {256}

    run_virtual(body())


def test_statistics_say_what_was_done() -> None:
    async def body() -> None:
        batcher = Batcher(Model(), replace(LIMITS, batch_tokens=2048))
        assert batcher.rate is None
        await asyncio.gather(*(ask(batcher, texts("a", "b", tokens=180)) for _ in range(3)))
        stats = batcher.stats
        assert (stats.requests, stats.begun, stats.batches) == (3, 3, 1)
        assert (stats.batch_texts, stats.batch_tokens) == (6, 6 * 184)
        assert batcher.rate == pytest.approx(1024 * 184 / 180)

    run_virtual(body())
