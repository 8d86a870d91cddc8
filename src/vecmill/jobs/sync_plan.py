"""A sync before it runs: both sides compared, what changed planned as a job, everything counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from vecmill.core import durable
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, UnknownNameError
from vecmill.core.events import Notice
from vecmill.core.space import ensure_comparable
from vecmill.core.types import EmptyText, Mask, Usage
from vecmill.data.readers import ReadOptions
from vecmill.jobs.estimate import Estimate, estimate
from vecmill.jobs.layout import ids_of
from vecmill.jobs.plan import JobOptions, Plan, make_plan
from vecmill.jobs.sync_as_made import as_made
from vecmill.jobs.sync_diff import Action, Diff, Digester, compare
from vecmill.jobs.sync_targets import (
    ChangingTarget,
    SetTarget,
    SyncTarget,
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
        return refused(self.diff, delete=self.delete, delete_most=self.delete_most)

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


def refused(diff: Diff, *, delete: bool, delete_most: bool) -> bool:
    """Say whether a sync would delete more than half of its target's ids though nobody said so."""
    return delete and not delete_most and diff.gone_ids > MOST_GONE * diff.target_ids


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
            if _is_idle(state):
                durable.remove_tree(state)


def _is_idle(state: Path) -> bool:
    """Say whether the folder of a sync holds no job that was begun: its rows can be written again."""
    names = [entry.name for entry in state.iterdir()] if state.is_dir() else ["none"]
    return all(name.startswith("changes-") and name.endswith(".arrow") for name in names)


@contextmanager
def _alone(target: SyncTarget) -> Iterator[None]:
    """Let no other sync work on a target."""
    durable.make_dir(target.state.parent)
    lock = target.state.with_name(f".{target.state.name}-lock")
    with durable.lock(lock, what=f"{target.name}, by a sync,"):
        yield


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
    if not isinstance(target, SetTarget) and table.rows:  # without rows a type says nothing
        kept = pa.schema([table.layout.schema.field(name) for name in table.layout.kept])
        cast("ChangingTarget", target).ensure_takes(kept)
    numbers = await asyncio.to_thread(target.numbers)
    diff, notices = await asyncio.to_thread(_diff, table, target, numbers)
    work = None
    if isinstance(target, SetTarget) and not target.exists:
        work = table
    elif diff.to_embed.any() and not (ask and refused(diff, delete=delete, delete_most=delete_most)):
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
