"""A part and the provider: its file there, its batch, how that stands, its answers. Each step is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from vecmill.core.errors import JobError, ProviderError, RateLimitError, UnavailableError
from vecmill.core.events import Listener, Notice
from vecmill.embedder.retry import RetryPolicy, as_quota
from vecmill.jobs.batch_parts import Part, PartStore
from vecmill.models.hosted.batches import BatchClient, BatchStatus

T = TypeVar("T")

PATIENT = RetryPolicy(attempts=120, total_seconds=3_600.0, most_wait=60.0)
"""A batch takes hours: a provider that is away for one is no reason to stop."""

_WAIT_FOR_FILE = 600.0
_A_DAY = 86_400.0


@dataclass(slots=True)
class Sender:
    """Takes parts to the provider and back, and notes on disk how far each is.

    Attributes:
        client: Asks the provider. model: its name, for messages.
        store: Keeps the parts. parts: how each stands, by name.
        listen: Told what a person should know.
        now: Seconds since the epoch.
        retry, random: How long a question is asked again.
    """

    client: BatchClient
    model: str
    store: PartStore
    parts: dict[str, Part]
    listen: Listener
    now: Callable[[], float]
    retry: RetryPolicy
    random: Random

    async def note(self, part: Part, **changes: object) -> Part:
        """Note a step; on disk when this returns."""
        changed = replace(part, **changes)  # type: ignore[arg-type]  # the callers name fields
        self.parts[part.name] = changed
        return await in_thread(self.store.save, changed)

    def say(self, code: str, message: str) -> None:
        """Tell whoever listens."""
        self.listen(Notice(code, message))

    async def uploaded(self, part: Part) -> Part:
        """Have the request file at the provider, ready for use."""
        if part.step not in ("written", "uploading"):
            return part
        await in_thread(self.store.check, part)
        filename = f"vecmill-{part.digest}.jsonl"
        uncertain = part.step == "uploading"
        part = await self.note(part, step="uploading")

        async def upload() -> str:
            nonlocal uncertain
            if uncertain:
                found = await self.client.find_file(filename, part.size_bytes)
                if found is not None:
                    return found
            uncertain = True
            return await self.client.upload(self.store.requests(part), filename=filename)

        file_id = await self.patiently(upload)
        wait, since = 1.0, self.now()
        while not await self.patiently(lambda: self.client.file_is_ready(file_id)):
            if self.now() - since > _WAIT_FOR_FILE:
                raise UnavailableError(
                    f"{self.model} has not made the uploaded file {file_id} ready within "
                    f"{_WAIT_FOR_FILE:g} seconds; run the command again to go on"
                )
            await asyncio.sleep(wait)
            wait = min(wait * 2, 30.0)
        return await self.note(part, step="uploaded", file_id=file_id)

    async def created(self, part: Part) -> Part:
        """Have a batch of the file, and never two."""
        if part.step == "created":
            return part
        metadata = {"vecmill_job": part.job[:512], "vecmill_part": part.digest}
        uncertain = part.step == "creating"
        part = await self.note(part, step="creating")
        since = part.started - _A_DAY

        async def create() -> BatchStatus:
            nonlocal uncertain
            if uncertain:
                found = await self.client.find(metadata, since=since)
                if found is not None:
                    return found
            uncertain = True
            return await self.client.create(part.file_id or "", metadata)

        status = await self.patiently(create)
        part = await self.note(part, step="created", batch_id=status.id)
        self.say(
            "batch_submitted",
            f"batch {status.id} has {part.texts:,} texts in {part.lines:,} lines; it may take a day",
        )
        return part

    async def status(self, part: Part) -> BatchStatus:
        """Ask how a part's batch stands.

        Raises:
            JobError: The account knows no such batch.
            ProviderError: The provider cannot say.
        """
        try:
            return await self.patiently(lambda: self.client.status(part.batch_id or ""))
        except ProviderError as error:
            if error.status != 404:
                raise
            raise JobError(
                f"{self.model} knows no batch {part.batch_id}, which holds {part.texts:,} texts "
                f"of this job: go on with a key of the account it was made with, or remove "
                f"{self.store.folder} to lose it"
            ) from error

    async def downloaded(self, file_id: str | None, to: Path) -> bool:
        """Fetch a file; False where there is none, or none any more."""
        if file_id is None:
            return False
        try:
            await self.patiently(lambda: self.client.download(file_id, to))
        except ProviderError as error:
            if error.status != 404:
                raise
            self.say("batch_file_missing", f"file {file_id} of a finished batch is gone at the provider")
            return False
        return True

    async def clear(self, part: Part) -> None:
        """Remove the texts here and the files at the provider; the part is done."""
        await in_thread(self.store.remove_texts, part)
        for file_id in filter(None, (part.file_id, part.output_file, part.error_file)):
            try:
                await self.patiently(lambda name=file_id: self.client.delete_file(name))  # type: ignore[misc]  # the default binds the loop's variable
            except ProviderError as error:
                self.say("batch_file_kept", f"file {file_id} could not be deleted at the provider: {error}")
        await self.note(part, step="done")

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask again as long as it makes sense."""
        loop = asyncio.get_running_loop()
        started, attempt = loop.time(), 1
        while True:
            try:
                return await call()
            except ProviderError as error:
                elapsed = loop.time() - started
                wait = self.retry.wait(error, attempt=attempt, elapsed=elapsed, random=self.random)
                if wait is None:
                    raise as_quota(error, self.now()) or error from error
                await asyncio.sleep(wait)
                attempt += not isinstance(error, RateLimitError)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function in a thread; when cancelled, wait for its end, so that nothing goes on unseen."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
