"""A table that changed, brought into what was made from it: adds, updates and deletes by id, price first.

New ids are embedded and added; where the text is another it is embedded again; where only other columns are,
they are changed and the vector stays; ids the table no longer has are deleted. A text that did not change is
never paid for. What is embedded is an ordinary job in a folder beside the target, so a sync that was killed
goes on where it stopped when the same call is made again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.config import Settings
from vecmill.core.errors import JobError
from vecmill.core.events import Listener, Notice, ignore
from vecmill.core.space import Manifest, short
from vecmill.core.types import IntArray, Mask, Usage
from vecmill.data.set_files import open_set_file
from vecmill.data.vector_set import read_columns, read_manifest
from vecmill.data.writers import finish_set, write_set
from vecmill.embedder.background import run_sync
from vecmill.jobs.layout import ids_of
from vecmill.jobs.pipeline import whole
from vecmill.jobs.run import RECEIPT_VERSION, run
from vecmill.jobs.store import forget_job
from vecmill.jobs.sync_diff import Action
from vecmill.jobs.sync_plan import SyncPlan, SyncReceipt, prepare_sync
from vecmill.jobs.sync_sets import Merge, Side, first_rows
from vecmill.jobs.sync_targets import (
    STEP,
    ChangingTarget,
    SetTarget,
    changed_rows,
    table_ids,
)
from vecmill.models.base import Provider


def sync(table: str | Path | Sequence[str | Path], target: str | Path, **options: Any) -> SyncReceipt:
    """Bring a set, a collection or a table in PostgreSQL up to date with a table; see `sync_async`."""
    return run_sync(sync_async(table, target, **options))


async def sync_async(
    table: str | Path | Sequence[str | Path],
    target: str | Path,
    *,
    settings: Settings | None = None,
    provider: Provider | None = None,
    listen: Listener = ignore,
    **options: Any,
) -> SyncReceipt:
    """Bring a set, a collection or a table in PostgreSQL up to date with a table that changed, by id.

    Args:
        table: A file, folder, glob or URL, or several.
        target: A vector set (.parquet, .arrow, a folder), a collection, or postgresql://…; made if missing.
        settings: None reads environment and `vecmill.toml`.
        provider: A model already open, instead of the one that made the target.
        listen: Called with `Progress` and `Notice` events, from any thread.
        **options: `id_column` (needed), `delete` (default True), `delete_most`, `metric` of a new collection,
            and fields of `JobOptions`; those of a target that is there are taken from its manifest.

    Raises:
        InputError: Two rows have one id, or most of the target would be deleted.
        SpaceMismatchError: The target was made with another model, template or text column.
        ProviderError: The provider failed; the same call goes on from there.
    """
    listed = [table] if isinstance(table, str | Path) else list(table)
    async with prepare_sync(listed, target, settings=settings, provider=provider, **options) as plan:
        for notice in plan.notices:
            listen(notice)
        return await apply_sync(plan, listen=listen)


async def apply_sync(plan: SyncPlan, *, listen: Listener = ignore) -> SyncReceipt:
    """Embed what changed, then change the target. After a crash the same plan goes on from there.

    Raises:
        InputError: Most of the target would be deleted, and nobody said that it is meant.
        JobError: The target was replaced by somebody else meanwhile.
        ProviderError, BudgetReachedError: Nothing more can be embedded; what is done is kept.
    """
    plan.ensure_deletes_are_meant()
    target = plan.target
    if plan.nothing_to_do:
        await whole(_tidy, plan)
        return plan.receipt(state="up to date")
    before = plan.table.target.stamp() if isinstance(target, SetTarget) else None
    usage = Usage()
    if plan.work is not None:
        outcome = await run(plan.work, listen=listen)
        usage = _usage(outcome.receipt)
        if plan.work is not plan.table:
            forget_job(plan.work)
    failed, errors = await asyncio.to_thread(_failed, plan)
    if isinstance(target, SetTarget):
        if plan.work is not plan.table:
            if plan.table.target.stamp() != before:
                raise JobError(f"{target.name} was written by somebody else meanwhile: run the sync again")
            await whole(_write_set, plan, target)
    else:
        stale = await whole(_change, plan, cast("ChangingTarget", target))
        if stale is not None:
            listen(Notice("index_stale", stale))
    await whole(durable.remove_tree, target.state)
    state = "failed rows" if failed.any() else "complete"
    receipt = plan.receipt(state=state, failed=failed, usage=usage, errors=tuple(errors[:1000]))
    if not receipt.balances:
        raise JobError(f"the sync does not balance: {receipt.to_dict()}; please report this")
    return receipt


def _failed(plan: SyncPlan) -> tuple[Mask, list[dict[str, Any]]]:
    """Return which rows of the table could not be embedded, and why."""
    failed = np.zeros(plan.table.rows, np.bool_)
    errors: list[dict[str, Any]] = []
    if plan.work is None:
        return failed, errors
    names = plan.work.layout.names
    rows = np.arange(plan.table.rows) if plan.work is plan.table else np.flatnonzero(plan.diff.to_embed)
    wanted = [names["id"], names["row"], names["error"]]
    done = 0
    for batch in read_columns(plan.work.output, wanted):
        bad = np.flatnonzero(np.asarray(batch.column(names["error"]).is_valid()))
        if plan.work is not plan.table:
            failed[rows[batch.column(names["row"]).to_numpy()[bad]]] = True
        taken = batch.take(pa.array(bad)).to_pylist()
        errors += [{"id": row[names["id"]], **row[names["error"]]} for row in taken]
        done += batch.num_rows
    if plan.work is plan.table:
        _mark(plan, {error["id"] for error in errors}, failed)
    return failed, errors


def _mark(plan: SyncPlan, ids: set[str], failed: Mask) -> None:
    """Mark the rows of a whole table by id."""
    if not ids:
        return
    row = 0
    for window in plan.table.windows():
        for at, one in enumerate(ids_of(window, plan.table.layout)):
            failed[row + at] = one in ids
        row += len(window)


def _write_set(plan: SyncPlan, target: SetTarget) -> None:
    """Write the set anew beside the old one, and its receipt."""
    table, made = plan.table, target.manifest
    if target.file is None or made is None:
        return
    durable.make_dir(target.state)
    spool = target.state / "vectors.f32"
    old = Side.at_any_place(target.file, made, spool, table.layout)
    changes, at = None, np.zeros(1, np.int64)
    if plan.work is not None:
        file = open_set_file(plan.work.output)
        rows = _column(plan.work.output, plan.work.layout.names["row"])
        at = first_rows(rows, int(plan.diff.to_embed.sum()), str(plan.work.output))
        changes = Side(file, cast("Manifest", file.manifest))
    keep = np.empty(0, np.int64) if plan.delete else plan.diff.gone
    merge = Merge(table.layout, plan.diff, old, changes, at, keep)
    table.sources.ensure_unchanged()
    manifest = replace(
        table.manifest,
        rows=merge.total_rows(),
        probe=made.probe,
        plan=None if len(keep) else table.fingerprint,
    )
    with durable.lock(table.target.lock_path, what=target.name):
        write_set(
            target.path, table.layout.schema, merge.batches(table.windows()), manifest, format=target.format
        )
        finish_set(target.path, target.format)
        _account(plan, merge, manifest)


def _account(plan: SyncPlan, merge: Merge, manifest: Manifest) -> None:
    """Write the receipt and the failed rows of a set as a job would."""
    path = plan.table.output
    receipt = {
        "receipt_version": RECEIPT_VERSION,
        "output": path.name,
        "plan": manifest.plan,
        "model": manifest.model,
        "space": short(manifest.space),
        "rows": manifest.rows,
        "vectors": merge.vectors,
        "skipped": manifest.rows - merge.vectors - merge.errors,
        "errors": merge.errors,
        "synced": True,
    }
    durable.write_bytes(
        path.with_name(f"{path.name}.receipt.json"), json.dumps(receipt, indent=1).encode() + b"\n"
    )
    errors = path.with_name(f"{path.name}.errors.jsonl")
    if merge.failed:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in merge.failed)
        durable.write_bytes(errors, lines.encode())
    else:
        durable.remove(errors)


def _column(path: Path, name: str) -> IntArray:
    parts = [batch.column(0).to_numpy() for batch in read_columns(path, [name])]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def _change(plan: SyncPlan, target: ChangingTarget) -> str | None:
    """Change a collection or a table in PostgreSQL, step by step; each may be repeated."""
    if not target.exists:
        if plan.work is not None:
            target.create(plan.work.output, metric=plan.metric)
        return None
    if plan.work is not None:
        target.put(changed_rows(plan.work.output, numbers=plan.numbers))
    for ids, columns in _changed_columns(plan):
        target.set_columns(ids, columns)
    if plan.delete:
        for start in range(0, len(plan.diff.gone), STEP):
            target.remove(plan.diff.gone[start : start + STEP])
    return target.finish()


def _changed_columns(plan: SyncPlan) -> Iterator[tuple[list[Any], pa.Table]]:
    """Yield ids and columns of the rows of which only columns changed, some thousand at once."""
    table, row = plan.table, 0
    waiting: list[Any] = []
    batches: list[pa.RecordBatch] = []
    for window in table.windows():
        here = np.flatnonzero(plan.diff.actions[row : row + len(window)] == Action.COLUMNS)
        row += len(window)
        if len(here):
            ids = table_ids(window, table.layout, ids_of(window, table.layout), numbers=plan.numbers)
            waiting += [ids[at] for at in here]
            batches.append(window.batch.select(list(table.layout.kept)).take(pa.array(here)))
        if len(waiting) >= STEP:
            yield waiting, pa.Table.from_batches(batches)
            waiting, batches = [], []
    if waiting:
        yield waiting, pa.Table.from_batches(batches)


def _tidy(plan: SyncPlan) -> None:
    """Do what a crash kept an earlier sync from doing after its last change."""
    target = plan.target
    if isinstance(target, SetTarget):
        finish_set(target.path, target.format)
        made, held = read_manifest(target.path), plan.table.state.fingerprint()
        if made is not None and held is not None and made.plan == held:
            plan.table.state.remove()
    durable.remove_tree(target.state)


def _usage(receipt: Mapping[str, Any]) -> Usage:
    """Return what a job cost, its probe included."""
    usd = [receipt.get("usd", 0.0), receipt.get("probe_usd", 0.0)]
    known = [amount for amount in usd if amount is not None]
    return Usage(
        texts=receipt.get("sent", 0),
        tokens=receipt.get("tokens", 0) + receipt.get("probe_tokens", 0),
        requests=receipt.get("requests", 0),
        usd=sum(known) if len(known) == len(usd) else None,
        unsure_tokens=receipt.get("unsure_tokens", 0),
    )
