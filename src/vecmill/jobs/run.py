"""Run a plan: embed window after window, commit each, publish the output, leave a receipt.

After a crash the same plan goes on with the first window that is not committed. The published bytes are
those of an undisturbed run. One process at a time works on an output; a lock says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.config import Settings
from vecmill.core.errors import InputError, JobError, StorageError
from vecmill.core.events import Listener, Notice, Progress, ignore
from vecmill.core.space import short
from vecmill.core.types import RowError
from vecmill.data.writers import finish_set, write_set
from vecmill.embedder.background import run_sync
from vecmill.embedder.probe import cached_probe
from vecmill.embedder.rows import Prepared, RowVectors, embed_prepared, prepare
from vecmill.jobs.guard import Guard, warned_rows
from vecmill.jobs.layout import output_batch
from vecmill.jobs.plan import JobOptions, Plan, make_plan
from vecmill.jobs.state import Counts
from vecmill.jobs.store import note_job
from vecmill.jobs.windows import Window

T = TypeVar("T")

RECEIPT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "complete", "already complete" or "failed rows".
        exit_code: 0, or 3 where rows failed.
        output: What was written.
        receipt: The receipt's content, as in `receipt_file`; empty where that is gone.
        receipt_file: `OUT.receipt.json`.
        errors_file: `OUT.errors.jsonl`, the failed rows, or None where none failed.
    """

    state: str
    exit_code: int
    output: str
    receipt: dict[str, Any]
    receipt_file: str
    errors_file: str | None


def embed_files(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    settings: Settings | None = None,
    listen: Listener = ignore,
    **options: Any,
) -> Outcome:
    """Embed tables of text into a vector set; the same call again continues or says it is complete.

    Args:
        inputs: A file, folder, glob or URL, or several.
        output: A file (.parquet, .arrow, .jsonl, .npy) or a folder.
        settings: None reads environment and `vecmill.toml`.
        listen: Called with `Progress` and `Notice` events, from any thread.
        **options: Fields of `JobOptions`, such as text="review" or template="Title: {title}".

    Returns:
        State, exit code and receipt.

    Raises:
        InputError: The input or an option does not fit; nothing was written.
        JobError: The job cannot go on; the same call resumes it.
    """
    return run_sync(embed_files_async(inputs, output, settings=settings, listen=listen, **options))


async def embed_files_async(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    settings: Settings | None = None,
    listen: Listener = ignore,
    **options: Any,
) -> Outcome:
    """Embed tables of text into a vector set; see `embed_files`."""
    unknown = set(options) - set(JobOptions.__dataclass_fields__)
    if unknown:
        raise InputError(f"embed_files has no option {', '.join(sorted(unknown))}")
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    plan = await make_plan(listed, output, JobOptions(**options), settings=settings)
    try:
        return await run(plan, listen=listen)
    finally:
        await plan.provider.close()


async def run(plan: Plan, *, listen: Listener = ignore) -> Outcome:
    """Run a plan to its end.

    Raises:
        JobError: Most of the text is in a language the model does not know, or the input changed meanwhile.
        StorageError: Another process works on this output.
        ProviderError: The provider failed; what is finished is kept and the same plan goes on from there.
        WriteError: The disk is full or not writable; likewise.
    """
    for notice in plan.notices:
        listen(notice)
    try:
        if plan.complete and plan.state.fingerprint() != plan.fingerprint:
            return _already_complete(plan)
        durable.make_dir(plan.output.parent)
        with durable.lock(plan.target.lock_path, what=plan.target.name):
            return await _run_locked(plan, listen)
    finally:
        plan.discard()


async def _run_locked(plan: Plan, listen: Listener) -> Outcome:
    if plan.target.complete(
        plan.fingerprint, overwrite=plan.options.overwrite
    ):  # perhaps since the plan was made
        if _rows_finished(plan) != plan.rows:
            plan.state.remove()
            return _already_complete(plan)
        receipt = await _whole(_finish, plan)
    else:
        receipt = await _make(plan, listen)
    plan.state.remove()
    if plan.target.remote is not None:
        durable.remove_tree(plan.output.parent)
    outcome = _outcome(plan, receipt)
    note_job(plan, state=outcome.state, done=plan.rows)
    return outcome


async def _make(plan: Plan, listen: Listener) -> dict[str, Any]:
    """Embed what is not finished, publish, upload; return the receipt."""
    plan.target.resumable(plan.fingerprint, overwrite=plan.options.overwrite)
    before = plan.target.stamp()
    durable.make_dir(plan.state.path)
    for index in await asyncio.to_thread(plan.state.begin, plan.fingerprint, plan.describe()):
        listen(Notice("window_damaged", f"window {index} of an earlier run is damaged and is made again"))
    try:
        probe, _ = await cached_probe(plan.provider, plan.settings.cache_dir)
        await _embed_windows(plan, listen)
        if plan.target.stamp() != before:
            raise JobError(
                f"{plan.target.name} was written by somebody else while the job ran, and is left as it is; "
                f"run the command again, with --overwrite to replace it"
            )
        return await _whole(_publish, plan, probe)
    except BaseException:
        done = _rows_finished(plan)
        if not done:
            plan.state.remove()  # nothing to resume, so nothing stays
        note_job(plan, state="stopped", done=done)
        raise


async def _whole(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; when cancelled, wait for its end, so that nothing goes on unlocked."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def _already_complete(plan: Plan) -> Outcome:
    with suppress(StorageError):  # somebody else's, or read-only: it harms nobody
        if plan.target.lock_path.exists():  # a crash left it
            durable.remove(plan.target.lock_path)
    receipt = plan.target.remote.receipt() if plan.target.remote else _read_receipt(plan)
    return _outcome(plan, receipt, already=True)


def _rows_finished(plan: Plan) -> int:
    if plan.state.fingerprint() != plan.fingerprint:
        return 0
    return sum(plan.state.counts(path).input_rows for path in plan.state.windows().values())


async def _embed_windows(plan: Plan, listen: Listener) -> None:
    """Embed and commit every window that is not finished, reading one ahead."""
    finished = {index: plan.state.counts(path) for index, path in plan.state.windows().items()}
    total = sum(finished.values(), Counts())
    resumed, guard = total.input_rows, Guard(allow_any=plan.options.any_language)
    if resumed:
        listen(Notice("resumed", f"going on after {resumed:,} of {plan.rows:,} rows, finished earlier"))
    listen(Progress(total.input_rows, plan.rows, total.tokens, resumed))
    reader = plan.windows()
    ahead = asyncio.create_task(asyncio.to_thread(next, reader, None))
    try:
        while (window := await ahead) is not None:
            ahead = asyncio.create_task(asyncio.to_thread(next, reader, None))
            if window.index in finished:
                continue
            reporter = _Reporter(plan, listen, total, resumed, len(window))
            total += await _embed_window(plan, window, total, guard, reporter)
            note_job(plan, state="running", done=total.input_rows)
            listen(Progress(total.input_rows, plan.rows, total.tokens, resumed))
    finally:
        ahead.cancel()
    for notice in guard.notices(total):
        listen(notice)


@dataclass(slots=True)
class _Reporter:
    """Turns what a provider finishes inside a window into the job's progress."""

    plan: Plan
    listen: Listener
    before: Counts
    resumed: int
    rows: int
    distinct: int = 1
    texts: int = 0
    tokens: int = 0

    def advance(self, texts: int, tokens: int) -> None:
        self.texts += texts
        self.tokens += tokens
        part = min(self.rows, self.texts * self.rows // max(self.distinct, 1))
        done = self.before.input_rows + part
        self.listen(Progress(done, self.plan.rows, self.before.tokens + self.tokens, self.resumed))


async def _embed_window(
    plan: Plan, window: Window, before: Counts, guard: Guard, reporter: _Reporter
) -> Counts:
    ready = await prepare(plan.provider, window.texts, plan.policy)
    ready = replace(ready, errors={**ready.errors, **_not_texts(window)})
    seen = guard.look(ready, before, plan.provider.info.name)
    reporter.distinct = len(ready.encoded)
    result = await embed_prepared(plan.provider, ready, plan.policy, advance=reporter.advance)
    warnings = warned_rows(ready)
    batch = await asyncio.to_thread(
        output_batch, window, result, warnings, plan.layout, dimensions=plan.provider.info.dimensions
    )
    counts = _counted(plan, ready, result, batch, warned=len(warnings)) + seen
    if not counts.balances:
        raise JobError(f"window {window.index} does not balance: {counts.to_dict()}; please report this")
    await _whole(plan.state.commit, window.index, batch, counts)
    return counts


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
    )


def _publish(plan: Plan, probe: str) -> dict[str, Any]:
    """Write output, receipt and errors from the finished windows; return the receipt."""
    total = _totals(plan)
    plan.sources.ensure_unchanged()
    write_set(
        plan.output,
        plan.layout.schema,
        plan.state.batches(),
        replace(plan.manifest, rows=total.rows, probe=probe),
        format=plan.target.format,
        columns_json=plan.json_columns,
    )
    return _account(plan, total)


def _finish(plan: Plan) -> dict[str, Any]:
    """Do what an earlier run left to do when it had written its output."""
    finish_set(plan.output, plan.target.format)
    return _account(plan, _totals(plan))


def _totals(plan: Plan) -> Counts:
    total = sum(map(plan.state.counts, plan.state.windows().values()), Counts())
    if total.input_rows != plan.rows:
        raise JobError(
            f"{total.input_rows} rows were embedded but the input had {plan.rows} when the job was planned: "
            f"it changed meanwhile; run the command again"
        )
    return total


def _account(plan: Plan, total: Counts) -> dict[str, Any]:
    """Write the receipt and the failed rows, and upload all where the target is remote."""
    receipt = {
        "receipt_version": RECEIPT_VERSION,
        "output": plan.output.name,
        "plan": plan.fingerprint,
        "model": plan.manifest.model,
        "space": short(plan.manifest.space),
        **total.to_dict(),
    }
    durable.write_bytes(_beside(plan, "receipt.json"), json.dumps(receipt, indent=1).encode() + b"\n")
    errors = _beside(plan, "errors.jsonl")
    if total.errors:
        with durable.replacing(errors) as temp, temp.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in _failed(plan))
    else:
        durable.remove(errors)
    if plan.target.remote is not None:
        plan.target.remote.upload()
    return receipt


def _failed(plan: Plan) -> Iterator[dict[str, Any]]:
    names = plan.layout.names
    for batch in plan.state.batches():
        errors = batch.column(names["error"])
        at = pa.array(np.flatnonzero(errors.is_valid().to_numpy(zero_copy_only=False)))
        keys = [batch.column(names[role]).take(at).to_pylist() for role in ("id", "file", "row")]
        for id_, file, row, error in zip(*keys, errors.take(at).to_pylist(), strict=True):
            yield {"id": id_, "file": file, "row": row, **error}


def _beside(plan: Plan, suffix: str) -> Path:
    return plan.output.with_name(f"{plan.output.name}.{suffix}")


def _read_receipt(plan: Plan) -> dict[str, Any]:
    try:
        receipt = json.loads(_beside(plan, "receipt.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(receipt) if receipt.get("plan") == plan.fingerprint else {}


def _outcome(plan: Plan, receipt: dict[str, Any], *, already: bool = False) -> Outcome:
    failed = bool(receipt.get("errors"))
    state = "already complete" if already else "failed rows" if failed else "complete"
    return Outcome(
        state=state,
        exit_code=3 if failed and not already else 0,
        output=plan.target.name,
        receipt=receipt,
        receipt_file=f"{plan.target.name}.receipt.json",
        errors_file=f"{plan.target.name}.errors.jsonl" if failed else None,
    )
