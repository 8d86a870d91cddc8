"""Run a plan: embed window after window, commit each, publish the output, leave a receipt.

After a crash the same plan goes on with the first window that is not committed. The published bytes are
those of an undisturbed run. One process at a time works on an output; a lock says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vecmill.core import clock, durable
from vecmill.core.config import Settings
from vecmill.core.errors import (
    BudgetReachedError,
    InputError,
    JobError,
    QuotaExhaustedError,
    RateLimitError,
    StorageError,
)
from vecmill.core.events import Listener, Notice, ignore
from vecmill.core.space import short
from vecmill.data.writers import finish_set, write_set
from vecmill.embedder.background import run_sync
from vecmill.embedder.budget import Budget
from vecmill.jobs.pipeline import embed_windows, probe_counts, spent_before, texts_of, whole
from vecmill.jobs.plan import JobOptions, Plan, make_plan
from vecmill.jobs.state import Counts
from vecmill.jobs.store import forget_job, note_job

BATCH_FOLDER = "batch"
"""In the state folder: what was handed to the provider's Batch API."""

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
        QuotaExhaustedError, RateLimitError: Likewise; the job is parked.
        BudgetReachedError: The next request would pass `max_usd`; the job is paused.
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
        batched = await _through_batches(plan, listen) if plan.options.via == "batch" else {}
        receipt = await whole(_finish, plan, batched)
    else:
        receipt = await _make(plan, listen)
    plan.state.remove()
    if plan.target.remote is not None:
        durable.remove_tree(plan.output.parent)
    outcome = _outcome(plan, receipt)
    note_job(plan, state=outcome.state, done=plan.rows)
    return outcome


async def _make(plan: Plan, listen: Listener) -> dict[str, Any]:
    """Embed what is not finished, publish, upload; return the receipt.

    What a job that stops has paid for is in its windows or in the cache.
    """
    plan.target.resumable(plan.fingerprint, overwrite=plan.options.overwrite)
    before = plan.target.stamp()
    durable.make_dir(plan.state.path)
    described = {**plan.describe(), "command": plan.command()}
    for index in await asyncio.to_thread(plan.state.begin, plan.fingerprint, described):
        listen(Notice("window_damaged", f"window {index} of an earlier run is damaged and is made again"))
    try:
        batched = {}
        if plan.options.via == "batch":
            batched = await _through_batches(plan, listen)
        else:
            await plan.channel.ride_probe()
        await embed_windows(plan, listen)
        probe = await plan.channel.probe()
        if plan.target.stamp() != before:
            raise JobError(
                f"{plan.target.name} was written by somebody else while the job ran, and is left as it is; "
                f"run the command again, with --overwrite to replace it"
            )
        last = probe_counts(plan.channel.take_probe_usage())
        if last.requests:
            plan.state.note_spent(last)
        return await whole(_publish, plan, probe, batched)
    except BaseException as error:
        done = _rows_finished(plan)
        state = stopped_state(error)
        kept = any((plan.state.path / BATCH_FOLDER).glob("part-*")) or plan.state.spent() != Counts()
        if not done and state == "stopped" and not kept:
            plan.state.remove()  # nothing to resume, so nothing stays
            forget_job(plan)
        else:
            note_job(plan, state=state, done=done)
        raise


def stopped_state(error: BaseException) -> str:
    """Return the state of a job that ended with an error: "parked until …", "paused" or "stopped"."""
    if isinstance(error, BudgetReachedError):
        return "paused"
    if isinstance(error, QuotaExhaustedError) and error.until is not None:
        moment = datetime.fromtimestamp(error.until, UTC)
        return f"parked until {moment:%Y-%m-%dT%H:%M:%SZ}"
    return "parked" if isinstance(error, QuotaExhaustedError | RateLimitError) else "stopped"


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


async def _through_batches(plan: Plan, listen: Listener) -> dict[str, Any]:
    """Bring the texts' vectors into the cache through batches; return that part of the receipt."""
    from vecmill.jobs.batch_plan import KeySet  # on first use: most jobs need none of it
    from vecmill.jobs.via_batch import prefetch

    channel, engine = plan.channel, plan.channel.engine
    if engine is None:
        return {}
    price = plan.provider.info.batch_usd_per_million_tokens
    budget = Budget(plan.options.max_usd, price, spent_before(plan))
    receipt = await prefetch(
        texts_of(plan),
        engine.provider,
        channel.cache,
        plan.state.path / BATCH_FOLDER,
        job=plan.fingerprint,
        listen=listen,
        now=clock.now,
        budget=budget,
    )
    engine.budget.spent_usd += receipt.usd or 0.0
    counted = KeySet()  # a text that comes again in a later window was sent once
    channel.bought = lambda keys: receipt.bought(keys) & counted.add(keys)
    names = ("batches", "lines", "texts", "tokens", "usd", "failed_lines")
    return {"batch": {name: getattr(receipt, name) for name in names}}


def _publish(plan: Plan, probe: str, batched: dict[str, Any]) -> dict[str, Any]:
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
    return _account(plan, total, batched)


def _finish(plan: Plan, batched: dict[str, Any]) -> dict[str, Any]:
    """Do what an earlier run left to do when it had written its output."""
    finish_set(plan.output, plan.target.format)
    return _account(plan, _totals(plan), batched)


def _totals(plan: Plan) -> Counts:
    total = sum(map(plan.state.counts, plan.state.windows().values()), plan.state.spent())
    if total.input_rows != plan.rows:
        raise JobError(
            f"{total.input_rows} rows were embedded but the input had {plan.rows} when the job was planned: "
            f"it changed meanwhile; run the command again"
        )
    return total


def _account(plan: Plan, total: Counts, batched: dict[str, Any]) -> dict[str, Any]:
    """Write the receipt and the failed rows, and upload all where the target is remote."""
    receipt = {
        "receipt_version": RECEIPT_VERSION,
        "output": plan.output.name,
        "plan": plan.fingerprint,
        "model": plan.manifest.model,
        "space": short(plan.manifest.space),
        **total.to_dict(),
        **batched,
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
