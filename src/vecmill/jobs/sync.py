"""A table that changed, brought into what was made from it: adds, updates and deletes by id, price first.

New ids are embedded and added; where the text is another it is embedded again; where only other columns are,
they are changed and the vector stays; ids the table no longer has are deleted. A text that did not change is
never paid for. What is embedded is an ordinary job in a folder beside the target, so a sync that was killed
goes on where it stopped when the same call is made again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, JobError, UnknownNameError
from vecmill.core.events import Listener, Notice, ignore
from vecmill.core.space import Manifest, ensure_comparable, short
from vecmill.core.types import EmptyText, IntArray, Mask, Usage
from vecmill.data.readers import ReadOptions
from vecmill.data.set_files import open_set_file
from vecmill.data.vector_set import read_columns, read_manifest
from vecmill.data.writers import finish_set, write_set
from vecmill.embedder.background import run_sync
from vecmill.jobs.estimate import Estimate, estimate
from vecmill.jobs.layout import ids_of
from vecmill.jobs.pipeline import whole
from vecmill.jobs.plan import JobOptions, Plan, make_plan
from vecmill.jobs.run import RECEIPT_VERSION, run
from vecmill.jobs.store import forget_job
from vecmill.jobs.sync_as_made import as_made
from vecmill.jobs.sync_diff import Action, Diff, Digester, compare
from vecmill.jobs.sync_sets import Merge, Side, first_rows
from vecmill.jobs.sync_targets import (
    STEP,
    ChangingTarget,
    SetTarget,
    SyncTarget,
    changed_rows,
    open_target,
    table_ids,
)
from vecmill.models.base import Provider

MOST_GONE = 0.5
"""A sync that would delete a greater share of the target's ids is refused unless `delete_most` is said."""


@dataclass(frozen=True, slots=True)
class SyncReceipt:
    """What a sync did, or what was there to do.

    rows = added + updated + columns_updated + unchanged + skipped + failed, always; and the target has
    `ids_before` + added + failed_new (sets only: their rows stay without a vector) - deleted ids afterwards.

    Attributes:
        state: "planned", "up to date", "complete" or "failed rows".
        target, kind: What was synced, and whether it is a set, a collection or postgresql.
        rows: Rows of the table.
        added, updated: Rows embedded because their id is new, or their text another.
        columns_updated: Rows of which only other columns changed: their vectors stay.
        unchanged: Rows equal to what the target has.
        skipped: Rows without text, which a collection does not hold.
        failed: Rows that could not be embedded; what the target has of them is as it was. failed_new: of
            these, those whose ids are new.
        deleted: Ids of the target the table no longer has. kept: those that were not to be deleted.
        ids_before, ids_after: Ids of the target.
        usage: What embedding cost: texts, tokens, requests, dollars.
        errors: The failed rows, as in OUT.errors.jsonl; at most 1,000.
    """

    state: str
    target: str
    kind: str
    rows: int
    added: int
    updated: int
    columns_updated: int
    unchanged: int
    skipped: int
    failed: int
    failed_new: int
    deleted: int
    kept: int
    ids_before: int
    ids_after: int
    usage: Usage = field(default_factory=Usage)
    errors: tuple[Mapping[str, Any], ...] = ()

    @property
    def balances(self) -> bool:
        """Whether every row is accounted for."""
        done = self.added + self.updated + self.columns_updated + self.unchanged
        return self.rows == done + self.skipped + self.failed

    @property
    def exit_code(self) -> int:
        """0, or 3 where rows failed."""
        return 3 if self.failed else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON's types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """A sync ready to run; `prepare_sync` makes it.

    Attributes:
        target: What is brought up to date.
        table: The plan of embedding the whole table: its rows, texts, columns and model.
        work: The plan of embedding what changed; None where nothing has to be.
        diff: What changed, row by row.
        numbers: Whether the target's ids are whole numbers.
        delete, delete_most: As asked.
        metric: Of a collection that is made.
        new_columns, lost_columns: Columns the target does not have yet, and those the table no longer has.
        notices: What a person should know before.
    """

    target: SyncTarget
    table: Plan
    work: Plan | None
    diff: Diff
    numbers: bool
    delete: bool
    delete_most: bool
    metric: str
    new_columns: tuple[str, ...]
    lost_columns: tuple[str, ...]
    notices: tuple[Notice, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether the target is as the table is."""
        gone = len(self.diff.gone) if self.delete else 0
        stays = self.diff.count(Action.UNCHANGED) + self.diff.count(Action.SKIP)
        return self.target.exists and not gone and stays == self.table.rows and not self._reshaped

    @property
    def _reshaped(self) -> bool:
        """Whether a set must be written again because its columns are others."""
        if not isinstance(self.target, SetTarget) or self.target.file is None:
            return False
        return not self.target.file.schema.remove_metadata().equals(self.table.layout.schema)

    @property
    def too_many_gone(self) -> bool:
        """Whether so much would be deleted that somebody must say that it is meant."""
        most = self.diff.gone_ids > MOST_GONE * self.diff.target_ids
        return self.delete and most and not self.delete_most

    def ensure_deletes_are_meant(self) -> None:
        """Refuse to delete most of a target.

        Raises:
            InputError: More than half of its ids would go.
        """
        if self.too_many_gone:
            id_column = self.table.layout.id_column
            raise InputError(
                f"{self.diff.gone_ids:,} of the {self.diff.target_ids:,} ids of {self.target.name} are not "
                f"in the table: is it the right table, and --id {id_column} the right column? "
                f"Nothing was changed; --delete-most deletes them, --no-delete keeps them"
            )

    async def estimate(self) -> Estimate | None:
        """Count what embedding what changed will cost; None where nothing is embedded. No request is sent."""
        return None if self.work is None or self.work.complete else await estimate(self.work)

    def receipt(self, *, state: str = "planned", failed: Mask | None = None, **more: Any) -> SyncReceipt:
        """Return the counts; of rows that failed only where it is known which."""
        diff, keeps_all = self.diff, self.target.keeps_all
        bad = np.zeros(self.table.rows, np.bool_) if failed is None else failed
        added, updated = (diff.actions == Action.ADD) & ~bad, (diff.actions == Action.UPDATE) & ~bad
        new = int(((diff.actions == Action.ADD) & bad).sum())
        deleted = diff.gone_ids if self.delete else 0
        return SyncReceipt(
            state=state,
            target=self.target.name,
            kind=self.target.kind,
            rows=self.table.rows,
            added=int(added.sum()),
            updated=int(updated.sum()),
            columns_updated=diff.count(Action.COLUMNS),
            unchanged=diff.count(Action.UNCHANGED),
            skipped=diff.count(Action.SKIP),
            failed=int(bad.sum()),
            failed_new=new,
            deleted=deleted,
            kept=diff.gone_ids - deleted,
            ids_before=diff.target_ids,
            ids_after=diff.target_ids + int(added.sum()) + (new if keeps_all else 0) - deleted,
            **more,
        )


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


@asynccontextmanager
async def prepare_sync(
    inputs: Sequence[str | Path],
    target: str | Path,
    *,
    settings: Settings | None = None,
    provider: Provider | None = None,
    ask: bool = True,
    delete: bool = True,
    delete_most: bool = False,
    metric: str = "cosine",
    **options: Any,
) -> AsyncIterator[SyncPlan]:
    """Compare a table with a target and plan what is to be done; nothing is changed or spent.

    Reads both once, in 48 bytes of memory a row. While the block runs no other sync works on the target.

    Args:
        inputs: Files, folders, globs or URLs.
        target: As `sync_async`.
        settings: None reads environment and `vecmill.toml`.
        provider: A model already open.
        ask: Whether a hosted model nobody knows may be asked for its dimensions; False for a dry run, which
            leaves nothing behind either.
        delete: Whether ids the table no longer has are deleted.
        delete_most: Whether they may be more than half of the target's.
        metric: Of a collection that is made.
        **options: Fields of `JobOptions`, only those that somebody asked for.

    Raises:
        InputError, SpaceMismatchError: As `sync_async`.
        StorageError: Another sync works on this target.
    """
    settings = settings or load_settings()
    for name in options:
        if name not in JobOptions.__dataclass_fields__ or name in ("overwrite", "output_format", "via"):
            raise UnknownNameError(f"a sync has no option {name!r}")
    if options.get("id_column") is None:
        raise InputError("a sync compares by id: name the column of the ids with --id (id_column=)")
    goal = await asyncio.to_thread(open_target, target, settings)
    _ensure_outside(inputs, goal)
    with _alone(goal) if ask else nullcontext():
        made = as_made(goal, options, settings)
        output: Path = goal.path if isinstance(goal, SetTarget) else goal.state / "table.parquet"
        plan = await make_plan(
            inputs, output, replace(made, overwrite=True), settings=settings, provider=provider, ask=ask
        )
        state = goal.state if ask else plan.spool_dir
        try:
            yield await _compared(plan, goal, state, made, delete, delete_most, metric, ask=ask)
        finally:
            plan.discard()
            if provider is None:
                await plan.provider.close()
            if state.is_dir() and not any(state.iterdir()):
                durable.remove_tree(state)


@contextmanager
def _alone(target: SyncTarget) -> Iterator[None]:
    """Let no other sync work on a target."""
    durable.make_dir(target.state.parent)
    lock = target.state.with_name(f".{target.state.name}-lock")
    with durable.lock(lock, what=f"{target.name}, by a sync,"):
        yield


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
        await whole(_change, plan, cast("ChangingTarget", target))
    await whole(durable.remove_tree, target.state)
    state = "failed rows" if failed.any() else "complete"
    receipt = plan.receipt(state=state, failed=failed, usage=usage, errors=tuple(errors[:1000]))
    if not receipt.balances:
        raise JobError(f"the sync does not balance: {receipt.to_dict()}; please report this")
    return receipt


async def _compared(
    table: Plan,
    target: SyncTarget,
    state: Path,
    made: JobOptions,
    delete: bool,
    delete_most: bool,
    metric: str,
    *,
    ask: bool,
) -> SyncPlan:
    if table.manifest.text is None:
        raise InputError(
            f"the texts would not be kept in {target.name}, so no later sync could see what changed: have "
            f"--columns name {', '.join(table.text.columns)} too"
        )
    if target.manifest is not None and table.provider.info.dimensions:
        ensure_comparable(target.manifest, table.manifest, what=target.name)
    if not isinstance(target, SetTarget):
        kept = pa.schema([table.layout.schema.field(name) for name in table.layout.kept])
        cast("ChangingTarget", target).ensure_takes(kept)
    numbers = await asyncio.to_thread(target.numbers)
    diff, notices = await asyncio.to_thread(_diff, table, target, numbers)
    work = None
    if isinstance(target, SetTarget) and not target.exists:
        work = table
    elif diff.to_embed.any():
        work = await _work(table, diff, state, made, ask=ask)
    known = {table.layout.names[role] for role in table.layout.names}
    there = set(target.columns)
    return SyncPlan(
        target=target,
        table=table,
        work=work,
        diff=diff,
        numbers=numbers,
        delete=delete,
        delete_most=delete_most,
        metric=metric,
        new_columns=tuple(n for n in table.layout.kept if target.exists and n not in there),
        lost_columns=tuple(n for n in target.columns if n not in table.layout.kept and n not in known),
        notices=(*table.notices, *notices),
    )


def _ensure_outside(inputs: Sequence[str | Path], target: SyncTarget) -> None:
    """Refuse a collection inside a folder that is read: its catalogue would be taken for a table."""
    if target.kind != "collection":
        return
    here = Path(target.name).resolve()
    for one in inputs:
        folder = Path(one)
        if folder.is_dir() and here.is_relative_to(folder.resolve()):
            raise InputError(f"{target.name} lies inside {one}, which is read: name the files, or move it")


def _diff(table: Plan, target: SyncTarget, numbers: bool) -> tuple[Diff, list[Notice]]:
    """Read both sides and compare them."""
    theirs = target.digests(table.layout)
    mine, kept, layout = Digester(), list(table.layout.kept), table.layout
    skips_blank = table.policy.empty is EmptyText.SKIP
    not_texts, first = 0, ""
    for window in table.windows():
        ids = ids_of(window, layout)
        if window.not_text and not not_texts:
            at = min(window.not_text)
            first = f"{window.files[at]} row {window.rows[at]} holds {window.not_text[at]}"
        not_texts += len(window.not_text)
        none = [text is None or (skips_blank and not text.strip()) for text in window.texts]
        mine.add(
            table_ids(window, layout, ids, numbers=numbers),
            window.texts,
            window.batch.select(kept),
            None if target.keeps_all else np.array(none, np.bool_),
        )
    notices = []
    if not_texts:
        what = f"{not_texts:,} rows have no text but something else in its column (first: {first})"
        notices.append(Notice("not_text", f"{what}: they count as rows without text"))
    return compare(mine.finish(), theirs), notices


async def _work(table: Plan, diff: Diff, state: Path, made: JobOptions, *, ask: bool) -> Plan:
    """Write what changed into a file of its own and plan embedding it; the same changes, the same plan."""
    durable.make_dir(state)
    digest = durable.digest_bytes(table.fingerprint.encode() + np.packbits(diff.to_embed).tobytes())[:12]
    source, output = state / f"changes-{digest}.arrow", state / f"changes-{digest}.parquet"
    await asyncio.to_thread(_clear, state, digest)
    await asyncio.to_thread(_write_changes, table, diff.to_embed, source)
    options = replace(
        made,
        format=None,
        limit=None,
        read=ReadOptions(),
        output_format="parquet",
        columns=None if made.columns is None else tuple(table.layout.kept),
    )
    return await make_plan(
        [source], output, options, settings=table.settings, provider=table.provider, ask=ask
    )


def _clear(state: Path, digest: str) -> None:
    """Remove what a sync of other changes left."""
    for entry in sorted(state.iterdir()):
        if entry.name.startswith(f"changes-{digest}.") or not entry.name.startswith("changes-"):
            continue
        if entry.is_dir():
            durable.remove_tree(entry)
        else:
            durable.remove(entry)


def _write_changes(table: Plan, wanted: Mask, path: Path) -> None:
    """Write the rows of the table that must be embedded, in order."""
    with (
        durable.replacing(path) as temp,
        pa.OSFile(str(temp), "wb") as sink,
        pa.ipc.new_file(sink, table.scan.schema) as writer,
    ):
        row = 0
        for window in table.windows():
            here = wanted[row : row + len(window)]
            row += len(window)
            if here.any():
                writer.write_batch(window.batch.filter(pa.array(here)))


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


def _change(plan: SyncPlan, target: ChangingTarget) -> None:
    """Change a collection or a table in PostgreSQL, step by step; each may be repeated."""
    if not target.exists:
        if plan.work is not None:
            target.create(plan.work.output, metric=plan.metric)
        return
    if plan.work is not None:
        target.put(changed_rows(plan.work.output, numbers=plan.numbers))
    for ids, columns in _changed_columns(plan):
        target.set_columns(ids, columns)
    if plan.delete:
        for start in range(0, len(plan.diff.gone), STEP):
            target.remove(plan.diff.gone[start : start + STEP])
    target.finish()


def _changed_columns(plan: SyncPlan) -> Iterator[tuple[list[Any], pa.Table]]:
    """Yield ids and columns of the rows of which only columns changed."""
    table, row = plan.table, 0
    for window in table.windows():
        here = np.flatnonzero(plan.diff.actions[row : row + len(window)] == Action.COLUMNS)
        row += len(window)
        if len(here):
            ids = table_ids(window, table.layout, ids_of(window, table.layout), numbers=plan.numbers)
            batch = window.batch.select(list(table.layout.kept)).take(pa.array(here))
            yield [ids[at] for at in here], pa.Table.from_batches([batch])


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
