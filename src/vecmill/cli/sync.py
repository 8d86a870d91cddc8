"""`vecmill sync`: a table that changed, brought into a set, a collection or PostgreSQL."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.embed import dollars, listed, renamed
from vecmill.cli.exit_codes import exit_code
from vecmill.cli.output import count, duration, emit, say, table, tell
from vecmill.cli.progress import ProgressLine
from vecmill.core.config import load_settings
from vecmill.core.errors import BudgetReachedError, QuotaExhaustedError, RateLimitError
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.jobs.estimate import Estimate
    from vecmill.jobs.sync_plan import SyncPlan, SyncReceipt


@click.command()
@click.argument("source", metavar="TABLE")
@click.argument("target")
@click.option("--id", "id_column", required=True, metavar="COLUMN", help="The column of the ids in TABLE.")
@click.option("--text", metavar="COLUMN", help="The column of the texts.  [default: as TARGET]")
@click.option("--template", metavar="TEMPLATE", help="Make the texts.  [default: as TARGET]")
@click.option("-m", "--model", metavar="MODEL", help="The model.  [default: as TARGET, or minilm]")
@click.option("--columns", metavar="A,B|none", help="Columns to keep.  [default: all of TABLE]")
@click.option(
    "--output-column",
    "output_columns",
    multiple=True,
    metavar="[ROLE=]NAME",
    help="Of a set that is made: name the vector column, or with ROLE= another one (id, file, row, ...).",
)
@click.option(
    "--delete/--no-delete", default=True, show_default=True, help="Delete ids that TABLE no longer has."
)
@click.option("--delete-most", is_flag=True, help="Go on where more than half of TARGET would be deleted.")
@click.option("--dry-run", is_flag=True, help="Say what would change and what it costs; nothing is sent.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent.")
@click.option(
    "--long-text",
    type=click.Choice(["average", "error", "truncate", "chunks"]),
    help="What becomes of a text longer than the model takes.  [default: as TARGET, or average]",
)
@click.option(
    "--empty",
    type=click.Choice(["error", "skip", "embed"]),
    help="What becomes of a text without a visible character.  [default: error]",
)
@click.option("--metric", metavar="METRIC", default="cosine", help="Of a collection that is made.")
@click.option("--base-url", metavar="URL", help="Where the hosted model is.")
@click.option("--cache/--no-cache", default=None, help="Keep vectors.  [default: for hosted models]")
@click.option("--max-usd", type=click.FloatRange(min=0), metavar="USD", help="Pause before more is spent.")
@click.option("--threads", type=click.IntRange(min=0), metavar="N", help="Threads; 0 takes every core.")
@click.option("--format", "format_", metavar="FORMAT", help="Read TABLE as csv, tsv, parquet, json, ...")
@click.option(
    "--encoding", metavar="CODEC[:ERRORS]", help="Such as cp1252, or utf-8:replace.  [default: utf-8]"
)
@click.option("--delimiter", metavar="CHAR", help="csv and tsv: what separates cells.")
@click.option(
    "--no-header", is_flag=True, help="csv and tsv: the first line is a row; columns are c0, c1, ..."
)
@click.option("--any-language", is_flag=True, help="Go on where the model does not know most of the words.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt, or the plan, as one JSON object.")
def sync(source: str, target: str, dry_run: bool, yes: bool, as_json: bool, **given: Any) -> int:
    """Bring a set, collection or PostgreSQL table up to date with a table that changed.

    TARGET is a vector set (.parquet, .arrow, a folder), a collection (a folder that ends in .collection when
    it is made) or postgresql://...?table=NAME; one that is not there is made. Rows are compared by id: new
    ones are embedded and added, those whose text is another embedded again; where only other columns changed,
    they are changed and the vector stays. A text that did not change is never paid for.

    Ids that TABLE no longer has are deleted. More than half of TARGET is not deleted unless --delete-most
    says that it is meant: a table cut short must not empty a collection. --yes does not say it.

    Model, text and template are those TARGET was made with. The same command goes on after a crash.

    \b
    vecmill sync products.csv products.parquet --id sku --dry-run
    vecmill sync products.csv products.collection --id sku --text title
    vecmill sync products.csv "postgresql://me@host/db?table=products" --id sku
    """  # noqa: D301 - the character by which click keeps the lines
    options = _options(given)
    started = time.monotonic()
    try:
        receipt = run_sync(_sync(source, target, options, dry_run=dry_run, yes=yes, as_json=as_json))
    except (QuotaExhaustedError, RateLimitError, BudgetReachedError) as error:
        tell(str(error))
        more = " (with a higher --max-usd)" if isinstance(error, BudgetReachedError) else ""
        tell(f"paused: what was embedded is kept; the same command{more} goes on")
        if as_json:
            emit({"state": "paused", "reason": str(error)})
        return exit_code(error)
    if receipt is None:
        return 0
    tell(_summary(receipt, time.monotonic() - started))
    for failed in receipt.errors[:5]:
        tell(f"failed: {failed['id']}: {failed['message']}")
    if as_json:
        emit(receipt.to_dict())
    return receipt.exit_code


async def _sync(
    source: str, target: str, options: dict[str, Any], *, dry_run: bool, yes: bool, as_json: bool
) -> SyncReceipt | None:
    """Compare, show, ask, apply; None where a plan was all that was wanted."""
    from vecmill.jobs.sync import apply_sync
    from vecmill.jobs.sync_plan import prepare_sync

    async with prepare_sync([source], target, settings=load_settings(), ask=not dry_run, **options) as plan:
        with ProgressLine() as line:
            for notice in plan.notices:
                line(notice)
            cost = await plan.estimate() if dry_run or plan.table.provider.info.hosted else None
            if dry_run:
                _show_plan(plan, cost, as_json=as_json)
                return None
            plan.ensure_deletes_are_meant()
            if not plan.nothing_to_do:
                tell(_changes(plan))
                if cost is not None:
                    tell(_price(cost, plan))
                    _ask(cost, plan, yes=yes)
            return await apply_sync(plan, listen=line)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked for, under the names of the library; what was not asked for is left out."""
    from vecmill.data.readers import ReadOptions

    columns, delimiter = given.pop("columns"), given.pop("delimiter")
    named, headless = renamed(given.pop("output_columns")), given.pop("no_header")
    read = {
        "encoding": given.pop("encoding"),
        "delimiter": "\t" if delimiter in ("\\t", "tab") else delimiter,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if "format_" in options:
        options["format"] = options.pop("format_")
    if columns is not None:
        options["columns"] = listed(columns)
    if named:
        options["output_column"] = named
    if headless or any(value is not None for value in read.values()):
        options["read"] = ReadOptions(**read, header=not headless)
    return options


def _changes(plan: SyncPlan) -> str:
    """Say in one line what would change."""
    receipt = plan.receipt()
    parts = [
        f"{receipt.added:,} new",
        f"{receipt.updated:,} with another text",
        f"{receipt.columns_updated:,} with other columns",
        f"{receipt.deleted:,} gone",
        f"{receipt.unchanged:,} unchanged",
    ]
    if receipt.kept:
        parts.append(f"{receipt.kept:,} gone from the table and kept")
    if receipt.skipped:
        parts.append(f"{receipt.skipped:,} without text left out")
    for names, what in ((plan.new_columns, "new columns"), (plan.lost_columns, "columns no longer there")):
        if names:
            parts.append(f"{what}: {', '.join(names)}")
    return f"{count(receipt.rows, 'row')}: {', '.join(parts)}"


def _price(cost: Estimate, plan: SyncPlan) -> str:
    info = plan.table.provider.info
    usd = "at a price that is not known" if cost.usd is None else f"for about {dollars(cost.usd)}"
    return (
        f"{count(cost.send_texts, 'text')}, {count(cost.send_tokens, 'token')} to send in "
        f"{count(cost.requests, 'request')} to {info.name} {usd}; {cost.cached:,} texts are in the cache"
    )


def _ask(cost: Estimate, plan: SyncPlan, *, yes: bool) -> None:
    """Ask at a terminal before more is spent than the settings allow unasked; elsewhere never."""
    if yes or cost.usd is None or cost.usd <= plan.table.settings.confirm_above_usd:
        return
    if sys.stdin.isatty() and sys.stderr.isatty() and not click.confirm("Go on?", err=True):
        raise KeyboardInterrupt("nothing was sent")


def _show_plan(plan: SyncPlan, cost: Estimate | None, *, as_json: bool) -> None:
    """Print what would be done; no texts in it."""
    described = {
        **plan.receipt().to_dict(),
        "model": plan.table.provider.info.name,
        "new_columns": plan.new_columns,
        "lost_columns": plan.lost_columns,
        "too_many_gone": plan.too_many_gone,
        "estimate": None if cost is None else asdict(cost),
    }
    for name in ("usage", "errors", "failed", "failed_new"):
        described.pop(name)
    if as_json:
        emit(described)
        return
    nothing = {"send_texts": 0, "send_tokens": 0, "requests": 0, "usd": 0.0, "cached": 0}
    money = nothing if cost is None else asdict(cost)
    rows = [
        ("target", f"{described['target']} ({described['kind']})"),
        ("model", described["model"]),
        *[
            (name.replace("_", " "), f"{described[name]:,}")
            for name in ("rows", "added", "updated", "columns_updated", "unchanged", "skipped")
        ],
        ("deleted", f"{described['deleted']:,}" + (" (needs --delete-most)" if plan.too_many_gone else "")),
        ("kept", f"{described['kept']:,}"),
        ("ids afterwards", f"{described['ids_after']:,}"),
        ("new columns", ", ".join(plan.new_columns) or "none"),
        ("lost columns", ", ".join(plan.lost_columns) or "none"),
        ("texts to embed", f"{money['send_texts']:,}"),
        ("tokens", f"{money['send_tokens']:,}"),
        ("requests", f"{money['requests']:,}"),
        ("in the cache", f"{money['cached']:,}"),
        ("usd", "unknown" if money["usd"] is None else dollars(money["usd"])),
    ]
    if not plan.table.provider.info.hosted:
        rows = [row for row in rows if row[0] not in ("requests", "in the cache", "usd")]
    say(*table(rows))


def _summary(receipt: SyncReceipt, seconds: float) -> str:
    """Say in one line how a sync ended; the numbers add up to the rows."""
    if receipt.state == "up to date":
        return f"up to date: {receipt.target} ({count(receipt.ids_after, 'id')}); nothing was done"
    parts = [
        f"{receipt.added:,} added",
        f"{receipt.updated:,} updated",
        f"{receipt.columns_updated:,} columns only",
        f"{receipt.unchanged:,} unchanged",
    ]
    if receipt.skipped:
        parts.append(f"{receipt.skipped:,} without text left out")
    if receipt.failed:
        parts.append(f"{receipt.failed:,} failed")
    done = f"{count(receipt.rows, 'row')} = {' + '.join(parts)}"
    ends = [f"{receipt.deleted:,} deleted", f"{receipt.ids_after:,} ids now"]
    usage = receipt.usage
    if usage.texts:
        ends.append(f"{count(usage.texts, 'text')} embedded")
    if usage.usd is None or usage.usd:
        price = "price unknown" if usage.usd is None else dollars(usage.usd)
        ends.append(f"{count(usage.tokens, 'token')}, {price}")
    ends.append(duration(seconds))
    return f"{receipt.state}: {done}; {', '.join(ends)} -> {receipt.target}"
