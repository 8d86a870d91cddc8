"""What `vecmill embed --via batch` does first: texts through the provider's Batch API into the cache.

Every distinct text the cache lacks goes into a line of a part (`batch_parts`); each part is uploaded, made
a batch, waited for, and its vectors put into the cache. The ordinary run that follows finds them there, and
asks the provider itself only for what batches could not do. Every step is noted on disk before the next one:
a process that dies at any moment goes on with the same batches and pays for none twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import BudgetReachedError, InputError, QuotaExhaustedError, RefusedError
from vecmill.core.events import Listener, Progress, ignore
from vecmill.core.space import short
from vecmill.embedder.budget import Budget
from vecmill.embedder.cache.base import VectorCache
from vecmill.embedder.retry import RetryPolicy
from vecmill.jobs.batch_answers import Answers
from vecmill.jobs.batch_parts import Part, PartLimits, PartStore, pieces_of
from vecmill.jobs.batch_plan import KeySet, Planner
from vecmill.jobs.batch_room import FULL, Room
from vecmill.jobs.batch_sending import PATIENT, Sender, in_thread
from vecmill.models.base import Encoded, HostedProvider
from vecmill.models.hosted.batches import BatchModel, BatchStatus
from vecmill.models.hosted.errors import shown

ROUNDS = 3
"""Lines that fail are sent so often in batches; then they are left to ordinary requests."""

_DOWNLOADS = 3
_WAIT_FOR_ROOM = 86_400.0
_POLLS_A_SECOND = 2.0
_BROKEN_FOR_GOOD = frozenset(
    {
        "duplicate_custom_id",
        "empty_batch",
        "empty_file",
        "input_modified",
        "input_no_permissions",
        "invalid_json_line",
        "invalid_request",
        "invalid_url",
        "missing_required_parameter",
        "model_mismatch",
        "model_not_found",
        "too_many_tasks",
        "too_many_tokens",
        "url_mismatch",
    }
)
"""Codes of a file that will not be better the next time."""

_LOST_FILE = frozenset({"file_id", "input_file_id"})


@dataclass(frozen=True, slots=True)
class BatchReceipt:
    """What came through batches, earlier runs of the same job included.

    Attributes:
        batches: How many were run. lines: requests in them that were answered.
        texts: Texts whose vectors they brought. tokens: what the provider counted for these.
        usd: At the batch price; None where that is unknown.
        failed_lines: Requests that failed for good; their texts are left to ordinary requests.
    """

    batches: int = 0
    lines: int = 0
    texts: int = 0
    tokens: int = 0
    usd: float | None = 0.0
    failed_lines: int = 0
    _bought: KeySet = field(default_factory=KeySet, repr=False, compare=False)

    def bought(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Say which cache keys came through these batches, (n,) bool: such texts were sent, not cached."""
        return self._bought.holds(keys)


async def prefetch(
    work: AsyncIterable[Encoded],
    provider: HostedProvider,
    cache: VectorCache | None,
    state: Path,
    *,
    job: str,
    listen: Listener = ignore,
    now: Callable[[], float] = time.time,
    poll: tuple[float, float] = (5.0, 60.0),
    limits: PartLimits | None = None,
    retry: RetryPolicy | None = None,
    budget: Budget | None = None,
    random: Random | None = None,
) -> BatchReceipt:
    """Bring the vectors of texts into the cache through the provider's Batch API.

    The caller holds the job's lock. Interrupted, it keeps its state: the same call goes on. When everything
    has been written to parts once, `work` is not read again.

    Args:
        work: The job's texts, in pieces of some thousands; equal ones may come again.
        provider: The model.
        cache: Where the vectors go.
        state: The folder of this step, `OUT.vecmill/batch`.
        job: The plan's fingerprint.
        listen: Told how far it is: `Progress` counts texts here.
        now: Seconds since the epoch.
        poll: Seconds between questions how a batch stands, at first and at most.
        limits: What a line and a part may hold.
        retry: How long a question is asked again.
        budget: What may be spent, at the batch price; a batch that would pass it is not made.
        random: For the jitter of waits.

    Returns:
        What came, which the same call tells again as long as the folder is there.

    Raises:
        InputError: The provider has no Batch API, there is no cache, or the folder holds batches of another
            model.
        RefusedError: The provider refuses a batch as a whole; what is under way is kept.
        QuotaExhaustedError: There was no room for a batch for a day.
        ProviderError: The provider cannot be asked any more; the same call goes on.
        BudgetReachedError: The next batch would cost more than is allowed; likewise.
        StorageError: The state is damaged, or the cache keeps nothing.
    """
    if cache is None:
        raise InputError("--via batch brings vectors into the cache, which is off: leave --no-cache away")
    model = BatchModel.of(provider)
    store = PartStore(state, model.path)
    run = _Run(
        provider,
        model,
        cache,
        store,
        job,
        listen,
        now,
        poll,
        limits or PartLimits(),
        budget or Budget(),
        Sender(
            model.client(),
            provider.info.name,
            store,
            {},
            listen,
            now,
            retry or PATIENT,
            random or Random(),  # noqa: S311  # jitter
        ),
    )
    return await run.to_end(work)


@dataclass(slots=True)
class _Run:
    """One call of `prefetch`."""

    provider: HostedProvider
    model: BatchModel
    cache: VectorCache
    store: PartStore
    job: str
    listen: Listener
    now: Callable[[], float]
    poll: tuple[float, float]
    limits: PartLimits
    budget: Budget
    sender: Sender
    room: Room = field(default_factory=Room)
    group: asyncio.TaskGroup | None = None
    paused: BudgetReachedError | None = None
    estimated: dict[str, int] = field(default_factory=dict)
    told: tuple[int, int] = (-1, -1)
    resumed_texts: int = 0
    whole: bool = False

    @property
    def parts(self) -> dict[str, Part]:
        return self.sender.parts

    async def to_end(self, work: AsyncIterable[Encoded]) -> BatchReceipt:
        self.parts.update(await in_thread(self._open))
        planned = self.store.planned() == self.job
        self.whole = planned
        self.resumed_texts = sum(part.bought_texts for part in self.parts.values())
        running = [part for part in self.parts.values() if part.is_paid and part.batch_id]
        if running:
            texts = sum(part.texts for part in running)
            self.sender.say(
                "batches_resumed", f"going on with {len(running)} batches of {texts:,} texts sent earlier"
            )
        try:
            async with asyncio.TaskGroup() as self.group:
                for part in list(self.parts.values()):
                    self._start(part)
                if not planned:
                    self.group.create_task(self._plan(work))
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            raise first from first.__cause__
        if self.paused is not None:
            raise self.paused
        return await in_thread(self._receipt)

    def _open(self) -> dict[str, Part]:
        parts = self.store.open()
        space = self.provider.info.space
        for part in list(parts.values()):
            if part.space != space and part.step != "done":
                if part.is_paid:
                    raise InputError(
                        f"{self.store.folder} holds batches of another model (space {short(part.space)}) "
                        f"that are under way and paid: run that command to its end, or remove the folder and "
                        f"lose them"
                    )
                self.store.forget(parts.pop(part.name))
            elif part.job != self.job and part.step in ("written", "uploading", "uploaded") and part.is_whole:
                self.store.forget(parts.pop(part.name))  # another plan's, never sent
        return parts

    async def _plan(self, work: AsyncIterable[Encoded]) -> None:
        """Write the texts into parts and start each as soon as it is full."""
        seen = await in_thread(self._seen)
        tops = [int(part.name) for part in self.parts.values() if part.is_whole]
        planner = Planner(
            self.provider.info,
            self.model,
            self.cache,
            seen,
            self.store,
            self.limits,
            self.job,
            max(tops, default=-1) + 1,
            self.now,
        )
        try:
            async for encoded in work:
                for part in await in_thread(planner.take, encoded):
                    self._start(part)
            for part in await in_thread(planner.finish):
                self._start(part)
        except BaseException:
            planner.abandon()
            raise
        self.whole = True
        self._tell()

    def _seen(self) -> KeySet:
        seen = KeySet()
        for part in self.parts.values():
            if part.is_whole and part.space == self.provider.info.space:
                seen.add([key for line in self.store.keys(part) for key in line.keys])
        return seen

    def _start(self, part: Part) -> None:
        self.parts[part.name] = part
        if part.bought_tokens:
            self.budget.spend(self._usd(part.bought_tokens))
        if part.step != "done" and self.group is not None:
            self.group.create_task(self._drive(part))

    # One part, from step to step.

    async def _drive(self, part: Part) -> None:
        """Take a part from where it is to its end."""
        held: float | None = None
        try:
            if not part.is_paid:
                await self.room.enter(part)
                held = self.budget.hold_now(part.tokens)
            part = await self._ended(part)
            if part.step == "ended":
                part = await self._merged(part)
        except BudgetReachedError as error:
            self.paused = error  # raised when what is under way, and paid, has come
            return
        finally:
            if held is not None:
                self.budget.settle(held, None)
            await self.room.leave(part, ended=False)
        if part.step == "splitting":
            await self._split(part)
        else:
            await self._finished(part)

    async def _ended(self, part: Part) -> Part:
        """Send a part until a batch of it has run to its end, or it is to be cut."""
        full_since: float | None = None
        while part.step in ("written", "uploading", "uploaded", "creating", "created"):
            if self.room.is_too_large(part):
                return await self.sender.note(part, step="splitting", split_tokens=self.room.named or 0)
            await self.room.enter(part)
            ended = False
            try:
                part = await self.sender.uploaded(part)
                part = await self.sender.created(part)
                status = await self._until_ended(part)
                ended = status.state != "failed"
                part = await self._judged(part, status)
            finally:
                await self.room.leave(part, ended=ended)
            if part.step == "uploaded":  # refused for want of room, alone: others use this account
                full_since = self.now() if full_since is None else full_since
                await self._wait_for_room(part, full_since)
        return part

    async def _until_ended(self, part: Part) -> BatchStatus:
        """Ask how the batch stands, less and less often, until it has ended."""
        wait, most = self.poll
        while True:
            status = await self.sender.status(part)
            if status.total:
                self.estimated[part.name] = part.texts * status.completed // status.total
                self._tell()
            if status.has_ended:
                return status
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, max(most, len(self.room.held) / _POLLS_A_SECOND))

    async def _judged(self, part: Part, status: BatchStatus) -> Part:
        """Say what follows from how a batch ended."""
        if status.state != "failed":
            self.sender.say(
                "batch_ended",
                f"batch {status.id} {status.state}: {status.completed:,} of {part.lines:,} lines answered",
            )
            return await self.sender.note(
                part,
                step="ended",
                output_file=status.output_file,
                error_file=status.error_file,
                completed=status.completed,
                batches=1,
            )
        codes = {error.code for error in status.errors}
        if FULL in codes:
            return await self._without_room(part, status)
        lost = any(error.param in _LOST_FILE for error in status.errors)
        if part.round >= ROUNDS or (codes <= _BROKEN_FOR_GOOD and not lost):
            await self._refused(part, status)
        again, file_id = ("written", None) if lost else ("uploaded", part.file_id)
        return await self.sender.note(part, step=again, file_id=file_id, batch_id=None, round=part.round + 1)

    async def _refused(self, part: Part, status: BatchStatus) -> None:
        """Forget a part the provider will never take, so that its texts are planned anew, and say why."""
        first = status.errors[0] if status.errors else None
        code = shown(first.code) if first else ""
        words = await in_thread(lambda: shown(first.message, texts=self.store.texts(part))) if first else ""
        await in_thread(self.store.set_planned, None)
        await in_thread(self.store.forget, part)
        why = ": ".join(filter(None, (code, words))) or "without a reason that can be shown."
        at = f" in line {first.line}" if first and first.line else ""
        raise RefusedError(
            f"{self.provider.info.name} refuses batch {status.id}{at}, {why} Nothing was paid for it; leave "
            f"--via batch away, or run the command again to try once more",
            provider=self.provider.info.provider,
            model=self.provider.info.name,
            code=code,
        )

    async def _without_room(self, part: Part, status: BatchStatus) -> Part:
        """Send fewer tokens at once, or less in one piece."""
        self.room.refused(part, status)
        self.sender.say(
            "batch_waits",
            f"the provider takes no more tokens at once; {part.texts:,} texts wait for other batches",
        )
        size = self.room.piece_tokens(part)
        if size is None:
            return await self.sender.note(part, step="uploaded", batch_id=None)
        return await self.sender.note(part, step="splitting", split_tokens=size, batch_id=None)

    async def _wait_for_room(self, part: Part, since: float) -> None:
        if self.room.others(part):
            return
        if self.now() - since > _WAIT_FOR_ROOM:
            raise QuotaExhaustedError(
                f"{self.provider.info.name} has had no room for a batch of {part.tokens:,} tokens for a day; "
                f"run the command again later",
                provider=self.provider.info.provider,
                model=self.provider.info.name,
                code=FULL,
            )
        await asyncio.sleep(min(900.0, max(60.0, (self.now() - since) / 4)))

    async def _split(self, part: Part) -> None:
        """Cut a part into pieces of fewer tokens and start each."""
        size = part.split_tokens or max(part.tokens // 2, 1)

        def cut() -> list[Part]:
            pieces = pieces_of(self.store.keys(part), size)
            return self.store.derive(part, {f"s{i}": rows for i, rows in enumerate(pieces)}, round=part.round)

        children = await in_thread(cut)
        await self.sender.clear(part)
        self._start_all(children)

    async def _merged(self, part: Part) -> Part:
        """Bring a batch's vectors into the cache."""
        keys = await in_thread(self.store.keys, part)
        answers = Answers(self.provider.info, self.model, self.cache, part, keys)
        output, errors = self.store.output(part), self.store.errors(part)
        for _ in range(_DOWNLOADS):
            if not await self.sender.downloaded(part.output_file, output):
                break
            await in_thread(answers.read_output, output)
            if answers.read >= part.completed:
                break
        if await self.sender.downloaded(part.error_file, errors):
            await in_thread(answers.read_errors, errors)
        await in_thread(answers.sync)
        retry, given_up = answers.left()
        if retry and part.round >= ROUNDS:
            retry, given_up = [], sorted((*retry, *given_up))
        self.estimated.pop(part.name, None)
        part = await self.sender.note(
            part,
            step="merged",
            bought_texts=sum(len(keys[number].keys) for number in answers.bought),
            bought_tokens=sum(answers.bought.values()),
            retry=tuple(retry),
            given_up=tuple(given_up),
        )
        self.budget.spend(self._usd(part.bought_tokens))
        self._tell()
        return part

    async def _finished(self, part: Part) -> None:
        """Send again what failed for the moment, and clear away what is not needed any more."""
        if part.step == "merged":
            if part.given_up:
                self.sender.say(
                    "batch_lines_left",
                    f"{len(part.given_up):,} lines of batch {part.batch_id} failed; ordinary requests follow",
                )
            if part.retry:
                pieces = {"r": part.retry}
                children = await in_thread(lambda: self.store.derive(part, pieces, round=part.round + 1))
                self.sender.say(
                    "batch_lines_again",
                    f"{len(part.retry):,} lines of batch {part.batch_id} have no answer and are sent again",
                )
                await self.sender.clear(part)
                self._start_all(children)
                return
        await self.sender.clear(part)

    def _start_all(self, children: Sequence[Part]) -> None:
        """Start parts that come from another one; after a crash they may have been started already."""
        for child in children:
            if child.name not in self.parts:
                self._start(child)

    # What came of it.

    def _tell(self) -> None:
        done = sum(part.bought_texts for part in self.parts.values()) + sum(self.estimated.values())
        total = sum(part.texts for part in self.parts.values() if part.is_whole)
        if (done, total) != self.told:
            self.told = (done, total)
            tokens = sum(part.bought_tokens for part in self.parts.values())
            self.listen(Progress(done, total if self.whole else None, tokens, self.resumed_texts))

    def _usd(self, tokens: int) -> float | None:
        price = self.provider.info.batch_usd_per_million_tokens
        return None if price is None else tokens * price / 1e6

    def _receipt(self) -> BatchReceipt:
        """Add up the parts of this space."""
        bought, counts = KeySet(), Counter[str]()
        for part in self.parts.values():
            if not part.batches or part.space != self.provider.info.space:
                continue
            missing = {*part.retry, *part.given_up}
            lines = [line for number, line in enumerate(self.store.keys(part)) if number not in missing]
            bought.add([key for line in lines for key in line.keys])
            counts.update(
                batches=1,
                lines=len(lines),
                texts=part.bought_texts,
                tokens=part.bought_tokens,
                failed_lines=len(part.given_up),
            )
        usd = self._usd(counts["tokens"]) if counts["batches"] else 0.0
        return BatchReceipt(usd=usd, _bought=bought, **counts)
