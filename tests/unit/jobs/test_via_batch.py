"""Texts through the Batch API into the cache: each paid once, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from vecmill.core import durable, http
from vecmill.core.errors import (
    AuthenticationError,
    BudgetReachedError,
    InputError,
    JobError,
    QuotaExhaustedError,
    RefusedError,
    StorageError,
)
from vecmill.core.events import Event, Notice, Progress
from vecmill.core.http import Session
from vecmill.core.types import InputType
from vecmill.embedder.budget import Budget
from vecmill.embedder.cache.base import VectorCache, cache_keys
from vecmill.embedder.cache.memory import MemoryCache
from vecmill.jobs import via_batch
from vecmill.jobs.batch_parts import Part, PartLimits, custom_id, line_number
from vecmill.jobs.batch_plan import KeySet
from vecmill.jobs.batch_room import FULL, named_limit
from vecmill.jobs.via_batch import BatchReceipt, prefetch
from vecmill.models.base import Encoded
from vecmill.models.hosted.batches import BatchClient, BatchError, BatchStatus
from vecmill.models.hosted.connection import Connection, Facts
from vecmill.models.hosted.provider import HostedProvider
from vecmill.testing.clock import run_virtual
from vecmill.testing.fakes import FakeProvider
from vecmill.testing.scenarios import TINY_MODELS, Scenario
from vecmill.testing.simulator import Simulator
from vecmill.testing.simulator_batches import BatchFault, BatchRules

MODEL = "text-embedding-3-small"
RULES = BatchRules(validating_seconds=20, seconds_per_line=10, finalizing_seconds=5)
SMALL = PartLimits(line_texts=4, line_tokens=10_000, texts=20, lines=50)
JOB = "0123abcd" * 4
TEXTS = [f"text number {i}" for i in range(50)]


@pytest.fixture(autouse=True)
def _few_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kept connections look at the time once a day: virtual days are over sooner."""
    monkeypatch.setattr(http, "_KEEPALIVE_SECONDS", 100_000.0)


@dataclass
class Desk:
    """Everything a test needs: the provider's other side, and one call of `prefetch` after another."""

    simulator: Simulator
    state: Path
    cache: VectorCache = field(default_factory=MemoryCache)
    azure: str = ""
    events: list[Event] = field(default_factory=list)
    limits: PartLimits = SMALL

    def connection(self, **changes: Any) -> Connection:
        base, query = self.simulator.url, ""
        if self.azure == "classic":
            base, query = f"{self.simulator.azure_url}/openai", "?api-version=2024-10-21"
        elif self.azure == "v1":
            base = f"{self.simulator.azure_url}/openai/v1"
        facts = Facts(
            catalogue_name=MODEL,
            dimensions=8,
            mrl=True,
            usd_per_million_tokens=0.02,
            batch_usd_per_million_tokens=0.01,
        )
        made = Connection(
            provider="azure" if self.azure else "openai",
            name=f"openai:{MODEL}",
            model=MODEL,
            embeddings_url=f"{base}/embeddings{query}",
            login=self.login,
            facts=facts,
            files_url=f"{base}/files{query}",
            batches_url=f"{base}/batches{query}",
            batch_path="/embeddings" if self.azure == "classic" else "/v1/embeddings",
            vouched=True,
        )
        if self.azure:
            made = replace(made, model="reviews")  # a deployment
        return replace(made, **changes)

    async def login(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.simulator.key}"}

    async def run(
        self,
        texts: Iterable[str] = TEXTS,
        *,
        job: str = JOB,
        provider: HostedProvider | None = None,
        changes: dict[str, Any] | None = None,
        **options: Any,
    ) -> BatchReceipt:
        own = provider or self.provider(**(changes or {}))
        options = {"limits": self.limits, "poll": (5.0, 600.0), "now": self.simulator.now} | options
        try:
            return await prefetch(
                work(own, texts), own, self.cache, self.state, job=job, listen=self.events.append, **options
            )
        finally:
            await own._session.close()

    def provider(self, **changes: Any) -> HostedProvider:
        return HostedProvider(self.connection(**changes), session=Session(), now=self.simulator.now)

    def have(self, texts: Sequence[str]) -> int:
        """Return how many of the texts have the right vector in the cache."""
        space = self.provider().info.space
        found, vectors = self.cache.get(space, cache_keys(space, texts), dimensions=8)
        right = self.simulator.vectors([texts[at] for at in found], MODEL)
        np.testing.assert_allclose(vectors, right, atol=1e-6)
        return len(found)

    def codes(self) -> list[str]:
        return [event.code for event in self.events if isinstance(event, Notice)]

    @property
    def asked(self) -> dict[str, int]:
        assert self.simulator.batches is not None
        return self.simulator.batches.requests

    def paid_twice(self) -> list[str]:
        assert self.simulator.batches is not None
        self.simulator.batches.settle()
        return [text for text, times in self.simulator.batches.computed.items() if times > 1]

    def set_faults(self, *faults: BatchFault) -> None:
        assert self.simulator.batches is not None
        self.simulator.batches.rules = replace(self.simulator.batches.rules, faults=faults)


async def work(provider: HostedProvider, texts: Iterable[str]) -> AsyncIterator[Encoded]:
    """Encode texts in pieces of 16, as a job's windows do."""
    listed = list(texts)
    for at in range(0, len(listed), 16):
        yield provider.encode(listed[at : at + 16], input_type=InputType.DOCUMENT)
        await asyncio.sleep(0)


async def nothing() -> AsyncIterator[Encoded]:
    """Fail when anybody reads."""
    raise AssertionError("the texts were read again")
    yield


def virtually(
    tmp_path: Path,
    test: Callable[[Desk], Awaitable[None]],
    rules: BatchRules = RULES,
    *,
    scenario: Scenario | None = None,
    **options: Any,
) -> None:
    async def run() -> None:
        made = scenario or Scenario(models=TINY_MODELS, deployments={"reviews": MODEL})
        async with Simulator(made, batch_rules=rules) as simulator:
            await test(Desk(simulator, tmp_path / "out.vecmill" / "batch", **options))

    run_virtual(run())


def test_every_text_is_in_the_cache_and_was_paid_once_at_the_batch_price(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run([*TEXTS, *TEXTS[:5]])
        assert desk.have(TEXTS) == 50
        assert (receipt.batches, receipt.lines, receipt.texts, receipt.failed_lines) == (3, 13, 50, 0)
        assert receipt.tokens == desk.simulator.billed_tokens
        assert receipt.usd == pytest.approx(desk.simulator.billed_usd)
        assert desk.simulator.billed_usd == pytest.approx(receipt.tokens * 0.01 / 1e6)
        assert desk.paid_twice() == []
        assert desk.simulator.requests == 0  # not one ordinary request

    virtually(tmp_path, test)


def test_the_receipt_knows_which_texts_came_through_batches(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:10])
        space = desk.provider().info.space
        bought = receipt.bought(cache_keys(space, TEXTS))
        assert bought.tolist() == [True] * 10 + [False] * 40

    virtually(tmp_path, test)


def test_texts_the_cache_has_are_not_sent(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.run(TEXTS[:20])
        durable.remove_tree(desk.state)
        receipt = await desk.run(TEXTS, job="another job")
        assert receipt.texts == 30
        assert desk.paid_twice() == []
        durable.remove_tree(desk.state)
        before = dict(desk.asked)
        assert (await desk.run(TEXTS, job="a third job")).batches == 0
        assert desk.asked == before

    virtually(tmp_path, test)


def test_the_same_call_again_tells_the_same_without_reading_or_asking(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        first = await desk.run()
        before = dict(desk.asked)
        provider = desk.provider()
        again = await prefetch(nothing(), provider, desk.cache, desk.state, job=JOB)
        assert again == first
        assert again.bought(cache_keys(provider.info.space, TEXTS)).all()
        assert desk.asked == before

    virtually(tmp_path, test)


def test_nothing_is_left_at_the_provider_and_no_text_on_disk(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.run()
        assert desk.simulator.batches is not None
        assert not desk.simulator.batches.files
        for path in desk.state.iterdir():
            assert b"text number" not in path.read_bytes()
            assert path.suffix in (".json", ".keys")

    virtually(tmp_path, test)


def test_the_request_file_is_only_its_owners_and_the_keys_hold_no_text(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run())
        await asyncio.sleep(15)
        files = {path.suffix: path for path in desk.state.iterdir()}
        assert stat.S_IMODE(files[".requests"].stat().st_mode) == 0o600
        assert b"text number" in files[".requests"].read_bytes()
        assert b"text number" not in files[".keys"].read_bytes()
        assert stat.S_IMODE(desk.state.stat().st_mode) == 0o700
        await task

    virtually(tmp_path, test)


def test_parts_keep_within_texts_lines_and_bytes(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        sizes = []
        for limits in (
            PartLimits(line_texts=3, texts=7),
            PartLimits(line_texts=3, lines=2),
            PartLimits(line_texts=3, size_bytes=900),
        ):
            desk.cache, desk.limits, desk.state = (
                MemoryCache(),
                limits,
                desk.state.with_name(f"b{len(sizes)}"),
            )
            sizes.append((await desk.run()).batches)
        assert desk.simulator.batches is not None
        for batch in desk.simulator.batches.batches.values():
            assert sum(len(line.texts) for line in batch.lines) <= 7 or len(batch.lines) <= 3
        assert sizes[:2] == [9, 9]  # 17 lines of 3 texts, two a part
        assert sizes[2] > 4

    virtually(tmp_path, test)


def test_a_line_keeps_within_the_tokens_and_the_learned_number_of_texts(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        provider = desk.provider()
        provider.remember(max_inputs=3)
        desk.limits = PartLimits(line_texts=100, line_tokens=9)
        await desk.run(provider=provider)
        assert desk.simulator.batches is not None
        lines = [line for batch in desk.simulator.batches.batches.values() for line in batch.lines]
        assert max(len(line.texts) for line in lines) == 3 or max(len(line.texts) for line in lines) == 2
        for line in lines:
            assert sum(map(desk.simulator.count, line.texts)) <= 9

    virtually(tmp_path, test)


@pytest.mark.parametrize("azure", ["classic", "v1"])
def test_azure_takes_the_same_job(tmp_path: Path, azure: str) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (50, 50, [])

    virtually(tmp_path, test, replace(RULES, processing_seconds=30), azure=azure)


def test_lines_that_fail_for_the_moment_are_sent_again_in_a_batch(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert (receipt.texts, receipt.failed_lines) == (50, 0)
        assert receipt.batches > 3
        assert (desk.have(TEXTS), desk.paid_twice()) == (50, [])
        assert "batch_lines_again" in desk.codes()

    faults = tuple(BatchFault("line", at=at, every=2, status=500) for at in range(3))
    virtually(tmp_path, test, replace(RULES, faults=faults))


def test_lines_that_keep_failing_are_left_after_three_rounds(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert receipt.texts == 0
        assert receipt.failed_lines == 13
        assert desk.asked["create"] == 9  # 3 parts, 3 rounds
        assert receipt.tokens == desk.simulator.billed_tokens == 0

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("line"),)))


def test_a_line_with_a_refused_text_is_left_at_once(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert (receipt.batches, receipt.failed_lines, receipt.texts) == (3, 1, 46)
        assert desk.have(TEXTS) == 46
        space = desk.provider().info.space
        assert receipt.bought(cache_keys(space, TEXTS)).sum() == 46
        assert "batch_lines_left" in desk.codes()

    virtually(tmp_path, test, scenario=Scenario(models=TINY_MODELS, poison="number 17"))


def test_an_answer_that_does_not_fit_its_line_is_asked_for_again(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:8])
        assert (receipt.batches, receipt.texts, receipt.failed_lines) == (2, 8, 0)
        assert desk.have(TEXTS) == 8

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("bad_reply", at=0, every=2),)))


def test_an_expired_batch_keeps_what_it_finished_and_the_rest_is_sent_again(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        start = desk.simulator.now()
        receipt = await desk.run(TEXTS[:16], poll=(5.0, 3600.0))
        assert desk.simulator.now() - start > 86_400
        assert (receipt.batches, receipt.texts, receipt.failed_lines) == (2, 16, 0)
        assert (desk.have(TEXTS), desk.paid_twice()) == (16, [])

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("expire", at=0),)))


def test_a_batch_somebody_cancelled_keeps_what_it_finished(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run(TEXTS[:16]))
        await asyncio.sleep(45)
        assert desk.simulator.batches is not None
        batch = next(iter(desk.simulator.batches.batches.values()))
        batch.cancelled = desk.simulator.now()
        receipt = await task
        assert 0 < batch.done < len(batch.lines)
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (16, 16, [])

    virtually(tmp_path, test)


@pytest.mark.parametrize("kind", ["cut", "download_reset"])
def test_an_output_file_that_came_cut_is_fetched_again(tmp_path: Path, kind: Any) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.batches, receipt.texts) == (1, 16)
        assert (desk.have(TEXTS), desk.paid_twice()) == (16, [])
        assert desk.asked["download"] == 2

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault(kind, at=0),)))


def test_an_output_file_that_stays_cut_gives_what_it_has_and_the_rest_is_sent_again(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert receipt.texts == desk.have(TEXTS) == 16
        assert receipt.batches == 2

    faults = tuple(BatchFault("cut", at=at) for at in range(3))
    virtually(tmp_path, test, replace(RULES, faults=faults))


@pytest.mark.parametrize("kind", ["create_lost", "upload_lost", "upload_reset"])
def test_a_lost_acknowledgement_makes_no_second_batch_or_file(tmp_path: Path, kind: Any) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (16, 16, [])
        assert desk.simulator.batches is not None
        assert len(desk.simulator.batches.batches) == 1
        assert not desk.simulator.batches.files

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault(kind, at=0),)))


def test_a_batch_refused_as_a_whole_stops_with_the_reason_and_can_be_run_again(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        with pytest.raises(RefusedError, match=r"line 1, invalid_json_line"):
            await desk.run(TEXTS[:16])
        desk.set_faults()
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (16, 16, [])

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("fail", at=0),)))


def test_a_reason_that_quotes_a_text_or_a_key_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'a "planted" text of a customer, long enough to be known again'

    async def test(desk: Desk) -> None:
        for words in (f"bad input: {text}", f"bad input {text[:40]}", "key sk-planted-Abcdefgh1234"):
            error = BatchError("invalid_request", words, line=1)
            status = replace(FAILED, errors=(error,))
            monkeypatch.setattr(BatchClient, "status", lambda *_, status=status: answered(status))
            with pytest.raises(RefusedError, match="in line 1, invalid_request") as caught:
                await desk.run([text, "b"])
            assert "planted" not in str(caught.value)

    virtually(tmp_path, test)


FAILED = BatchStatus("batch_1", "failed", 0, 0, 0, None, None, (), None, None, {})


async def answered(status: BatchStatus) -> BatchStatus:
    return status


def test_a_batch_that_failed_without_any_reason_is_tried_again_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(desk: Desk) -> None:
        monkeypatch.setattr(BatchClient, "status", lambda *_: answered(FAILED))
        with pytest.raises(RefusedError, match="without a reason"):
            await desk.run(TEXTS[:4])

    virtually(tmp_path, test)


def test_a_limit_of_thousands_of_digits_is_none() -> None:
    error = BatchError(FULL, f"Limit: {'9' * 5_000} enqueued tokens")
    assert named_limit(replace(FAILED, errors=(error,))) is None


@pytest.mark.parametrize("digits", ["07", "٧", "²", "7 ", "-1", "9" * 5_000, "99", ""])
def test_a_line_is_known_by_its_exact_name_only(digits: str) -> None:
    part = Part("00000", JOB, "s", "ended", 1, "", 0, 50, 50, 50, 0.0)
    assert line_number(part, custom_id("00000", 7)) == 7
    assert line_number(part, f"part-00000-line-{digits}") is None


def test_a_batch_that_fails_for_no_reason_of_ours_is_made_again(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.batches, receipt.texts, desk.paid_twice()) == (1, 16, [])
        assert desk.asked["create"] == 2

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("fail", at=0, code="server_error"),)))


def test_a_limit_of_tokens_at_once_makes_batches_wait_for_each_other(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (50, 50, [])
        assert "batch_waits" in desk.codes()

    virtually(tmp_path, test, replace(RULES, enqueued_tokens=100))


def test_a_part_above_the_limit_of_tokens_is_cut(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        receipt = await desk.run()
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (50, 50, [])
        assert receipt.batches > 3

    virtually(tmp_path, test, replace(RULES, enqueued_tokens=50))


def test_no_room_for_long_parks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(via_batch, "_WAIT_FOR_ROOM", 3_600.0)

    async def test(desk: Desk) -> None:
        with pytest.raises(QuotaExhaustedError, match="no room"):
            await desk.run(TEXTS[:4])
        assert desk.simulator.batches is not None
        desk.simulator.batches.rules = RULES
        assert (await desk.run(TEXTS[:4])).texts == 4

    virtually(tmp_path, test, replace(RULES, enqueued_tokens=5))


def test_a_budget_lets_what_is_paid_come_and_then_stops(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        tokens = sum(map(desk.simulator.count, TEXTS[:25]))
        price = tokens * 0.01 / 1e6
        with pytest.raises(BudgetReachedError):
            await desk.run(budget=Budget(price, 0.01))
        assert desk.have(TEXTS) == 20
        assert desk.simulator.billed_usd <= price
        with pytest.raises(BudgetReachedError):
            await desk.run(budget=Budget(price, 0.01))
        assert desk.simulator.billed_usd <= price
        receipt = await desk.run(budget=Budget(1.0, 0.01))
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (50, 50, [])

    virtually(tmp_path, test)


def test_a_cancelled_run_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        for seconds in (0.5, 3, 30, 60):
            task = asyncio.create_task(desk.run())
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        receipt = await desk.run()
        assert (receipt.batches, receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (3, 50, 50, [])
        assert "batches_resumed" in desk.codes()

    virtually(tmp_path, test)


class Stopper:
    """Raises before the n-th durable operation, as a crash would end it there."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def before(self, operation: str, path: Path) -> None:
        self.seen += 1
        if self.seen - 1 == self.at:
            raise Crash

    def after(self, operation: str, path: Path) -> None:
        pass


class Crash(BaseException):
    """The process is gone."""


def test_a_crash_at_any_durable_step_pays_nothing_twice(tmp_path: Path, slow: bool) -> None:
    async def test(desk: Desk) -> None:
        counter, desk.state = Stopper(-1), tmp_path / "calm"
        with durable.watching(counter):
            await desk.run(TEXTS[:24])
        assert counter.seen > 50
        moments = range(counter.seen) if slow else range(0, counter.seen, 7)
        for moment in moments:
            desk.cache, desk.state = MemoryCache(), tmp_path / f"crash{moment}"
            assert desk.simulator.batches is not None
            desk.simulator.batches.computed.clear()
            with durable.watching(Stopper(moment)):
                crashed = asyncio.create_task(desk.run(TEXTS[:24], job=f"job {moment}"))
                await asyncio.wait([crashed])
                error = crashed.exception()
            receipt = await desk.run(TEXTS[:24], job=f"job {moment}")
            assert isinstance(error, Crash), moment
            assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (24, 24, []), moment
            assert receipt.batches == 2, moment
            assert sorted({path.suffix for path in desk.state.iterdir()}) == [".json", ".keys"], moment

    virtually(tmp_path, test)


def test_batches_of_another_plan_are_gone_on_with_and_its_unsent_parts_dropped(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run(TEXTS[:20], job="first"))
        await asyncio.sleep(30)
        task.cancel()
        await asyncio.wait([task])
        receipt = await desk.run(TEXTS, job="second")
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (50, 50, [])

    virtually(tmp_path, test)


def test_batches_of_another_model_are_not_lost_silently(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run())
        await asyncio.sleep(30)
        task.cancel()
        await asyncio.wait([task])
        facts = Facts(catalogue_name="text-embedding-ada-002", dimensions=8)
        with pytest.raises(InputError, match="another model"):
            await desk.run(changes={"model": "text-embedding-ada-002", "facts": facts})

    virtually(tmp_path, test)


def test_a_provider_without_batches_is_refused_with_the_cure(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        with pytest.raises(InputError, match="leave --via batch away"):
            await desk.run(changes={"batches_url": None})
        fake: Any = FakeProvider()
        with pytest.raises(InputError, match="fake:hash has no Batch API"):
            await prefetch(nothing(), fake, desk.cache, desk.state, job=JOB)
        assert not desk.state.exists()

    virtually(tmp_path, test)


def test_without_a_cache_it_is_refused(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        none: Any = None
        desk.cache = none
        with pytest.raises(InputError, match="--no-cache"):
            await desk.run()

    virtually(tmp_path, test)


def test_a_refused_key_stops_and_the_same_call_goes_on_with_another(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        async def wrong() -> dict[str, str]:
            return {"Authorization": "Bearer sk-planted-wrong-key-0001"}

        with pytest.raises(AuthenticationError) as caught:
            await desk.run(changes={"login": wrong})
        assert "planted" not in str(caught.value)
        assert (await desk.run()).texts == 50

    virtually(tmp_path, test)


def test_a_batch_the_account_does_not_know_is_named(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run(TEXTS[:4]))
        await asyncio.sleep(30)
        task.cancel()
        await asyncio.wait([task])
        assert desk.simulator.batches is not None
        desk.simulator.batches.batches.clear()
        with pytest.raises(JobError, match="knows no batch batch_"):
            await desk.run(TEXTS[:4])

    virtually(tmp_path, test)


class Forgetful(MemoryCache):
    """Keeps nothing, as a cache on a full disk."""

    def put(self, space: str, keys: Sequence[bytes], vectors: Any) -> None:
        pass


def test_a_cache_that_keeps_nothing_is_noticed_and_nothing_is_lost(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.cache = Forgetful()
        with pytest.raises(StorageError, match="still at the provider"):
            await desk.run(TEXTS[:16])
        desk.cache = MemoryCache()
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.texts, desk.have(TEXTS), desk.paid_twice()) == (16, 16, [])

    virtually(tmp_path, test)


def test_progress_counts_texts_up_to_all_of_them(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.run()
        told = [event for event in desk.events if isinstance(event, Progress)]
        assert told[-1].rows == told[-1].total_rows == 50
        assert [event.rows for event in told] == sorted(event.rows for event in told)

    virtually(tmp_path, test)


def test_no_text_and_no_key_is_in_what_is_told_or_kept(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.run([f"planted secret text {i}" for i in range(10)])
        told = " ".join(event.message for event in desk.events if isinstance(event, Notice))
        assert "planted" not in told
        assert desk.simulator.key not in told
        for path in desk.state.iterdir():
            raw = path.read_bytes()
            assert b"planted" not in raw
            assert desk.simulator.key.encode() not in raw

    virtually(tmp_path, test, replace(RULES, faults=(BatchFault("line", every=2, status=500),)))


def test_half_a_surrogate_pair_is_left_to_the_ordinary_run(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        provider = desk.provider()

        async def odd() -> AsyncIterator[Encoded]:
            encoded = provider.encode(["a", "b"], input_type=InputType.DOCUMENT)
            yield replace(encoded, texts=("a", "b\ud800"))

        receipt = await prefetch(odd(), provider, desk.cache, desk.state, job=JOB, now=desk.simulator.now)
        await provider._session.close()
        assert receipt.texts == 1

    virtually(tmp_path, test)


def test_a_set_of_keys_finds_every_key_and_takes_equal_ones_once() -> None:
    rng = np.random.default_rng(5)
    keys = [rng.bytes(16) for _ in range(5_000)]
    found = KeySet()
    for at in range(0, len(keys), 321):
        assert found.add(keys[at : at + 321]).all()
        assert found.add([*keys[at : at + 321], keys[0]]).sum() == 0
    assert found.holds(keys).all()
    assert not found.holds([rng.bytes(16) for _ in range(100)]).any()
    assert len(found) == 5_000
    assert found.add([b"a" * 16, b"b" * 16, b"a" * 16]).tolist() == [True, True, False]
    assert found.add([]).tolist() == []
    assert KeySet().holds([b"a" * 16]).tolist() == [False]


def test_a_damaged_state_file_says_what_removing_it_costs(tmp_path: Path) -> None:
    async def test(desk: Desk) -> None:
        task = asyncio.create_task(desk.run())
        await asyncio.sleep(30)
        task.cancel()
        await asyncio.wait([task])
        next(desk.state.glob("part-*.json")).write_bytes(orjson.dumps({"version": 1, "name": "x"}))
        with pytest.raises(StorageError, match="paid in vain"):
            await desk.run()

    virtually(tmp_path, test)


def test_two_answers_to_one_line_that_differ_are_both_distrusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken as they come, the vectors of one line's texts are kept for another's."""
    download = BatchClient.download
    forged: list[str] = []

    async def forge(self: BatchClient, file_id: str, to: Path) -> None:
        await download(self, file_id, to)
        lines = [orjson.loads(line) for line in to.read_bytes().splitlines()]
        if len(lines) >= 2 and not forged:  # the second line says it is the first
            forged.append(lines[0]["custom_id"])
            lines[1]["custom_id"] = lines[0]["custom_id"]
            to.write_bytes(b"\n".join(map(orjson.dumps, reversed(lines))))

    monkeypatch.setattr(BatchClient, "download", forge)

    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert forged
        assert (receipt.texts, receipt.failed_lines, desk.have(TEXTS)) == (16, 0, 16)

    virtually(tmp_path, test)


def test_an_answer_that_comes_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = BatchClient.download

    async def double(self: BatchClient, file_id: str, to: Path) -> None:
        await download(self, file_id, to)
        to.write_bytes(to.read_bytes() * 2)

    monkeypatch.setattr(BatchClient, "download", double)

    async def test(desk: Desk) -> None:
        receipt = await desk.run(TEXTS[:16])
        assert (receipt.texts, receipt.lines, desk.have(TEXTS), desk.paid_twice()) == (16, 4, 16, [])

    virtually(tmp_path, test)


@pytest.mark.parametrize("kind", ["requests", "keys"])
def test_a_file_that_was_changed_meanwhile_is_not_used(tmp_path: Path, kind: str) -> None:
    async def wrong() -> dict[str, str]:
        return {"Authorization": "Bearer another"}

    async def test(desk: Desk) -> None:
        with pytest.raises(AuthenticationError):
            await desk.run(TEXTS[:16], changes={"login": wrong})
        path = next(desk.state.glob(f"part-*.{kind}"))
        raw = path.read_bytes()
        if kind == "requests":
            path.write_bytes(raw.replace(b"text number 3", b"text number 4"))
        else:
            found = orjson.loads(raw)
            found["lines"][0]["keys"].reverse()
            path.write_bytes(orjson.dumps(found))
        with pytest.raises(StorageError, match="is not as it was written"):
            await desk.run(TEXTS[:16])
        assert desk.have(TEXTS) == 0

    virtually(tmp_path, test)
