"""`vecmill embed`: tables in, one vector set out."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from vecmill.cli.exit_codes import exit_code
from vecmill.cli.output import count, duration, emit, say, table, tell
from vecmill.cli.progress import ProgressLine
from vecmill.core.config import load_settings
from vecmill.core.errors import BudgetReachedError, QuotaExhaustedError, RateLimitError
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.jobs.plan import JobOptions, Plan
    from vecmill.jobs.run import Outcome


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help=".parquet, .arrow, .jsonl, .npy or a folder."
)
@click.option(
    "-m", "--model", metavar="MODEL", help="The model; see `vecmill model list`.  [default: minilm]"
)
@click.option("--text", metavar="COLUMN", help="The column of the texts.")
@click.option("--template", metavar="TEMPLATE", help='Make the texts: "Title: {title}; Content: {body}".')
@click.option("--id", "id_column", metavar="COLUMN", help="The column of the ids.  [default: file#row]")
@click.option("--columns", metavar="A,B|none", help="Input columns to keep.  [default: all]")
@click.option(
    "--output-column",
    "output_columns",
    multiple=True,
    metavar="[ROLE=]NAME",
    help="Name the vector column, or with ROLE= another one (id, file, row, text, error, ...).",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Read the first N rows only.")
@click.option(
    "--long-text",
    type=click.Choice(["average", "error", "truncate", "chunks"]),
    default="average",
    show_default=True,
    help="What becomes of a text longer than the model takes.",
)
@click.option(
    "--empty",
    type=click.Choice(["error", "skip", "embed"]),
    default="error",
    show_default=True,
    help="What becomes of a text without a visible character.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens above which a text is long."
)
@click.option(
    "--input-type",
    type=click.Choice(["document", "query"]),
    default="document",
    show_default=True,
    help="The role of the texts.",
)
@click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    metavar="D",
    help="Fewer dimensions, where the model allows it.",
)
@click.option(
    "--base-url", metavar="URL", help="Where the hosted model is, instead of its provider's address."
)
@click.option("--user", metavar="NAME", help="End user named in requests to a hosted model.")
@click.option(
    "--cache/--no-cache",
    default=None,
    help="Keep vectors, and use those kept.  [default: for hosted models]",
)
@click.option("--max-usd", type=click.FloatRange(min=0), metavar="USD", help="Pause before more is spent.")
@click.option(
    "--via",
    type=click.Choice(["sync", "batch"]),
    default="sync",
    show_default=True,
    help="batch: the provider's Batch API, cheaper and within a day.",
)
@click.option("--usage", is_flag=True, help="Add a column: tokens and dollars of each row.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent.")
@click.option("--device", metavar="DEVICE", help="Where a local model runs: CPU, GPU, NPU, AUTO.")
@click.option("--precision", type=click.Choice(["float32", "int8"]), help="What a local model computes in.")
@click.option("--threads", type=click.IntRange(min=0), metavar="N", help="Threads; 0 takes every core.")
@click.option(
    "--format", "format_", metavar="FORMAT", help="Read every input as csv, tsv, parquet, json, ..."
)
@click.option(
    "--output-format", metavar="FORMAT", help="Write parquet, arrow, jsonl or npy, whatever the suffix."
)
@click.option(
    "--encoding", metavar="CODEC[:ERRORS]", help="Such as cp1252, or utf-8:replace.  [default: utf-8]"
)
@click.option(
    "--no-header", is_flag=True, help="csv and tsv: the first line is a row; columns are c0, c1, ..."
)
@click.option("--no-quotes", is_flag=True, help="csv and tsv: a quote is a character like any other.")
@click.option("--delimiter", metavar="CHAR", help="csv and tsv: what separates cells.")
@click.option("--records", metavar="KEY", help="json: where the records lie, such as data or a.b.")
@click.option("--any-language", is_flag=True, help="Go on where the model does not know most of the words.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Make the output anew, even a complete one; the old one stays until the new one is whole.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done: rows, tokens, requests, dollars, minutes; nothing is sent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the receipt, or the plan, as one JSON object.")
def embed(inputs: tuple[str, ...], output: str, dry_run: bool, as_json: bool, yes: bool, **given: Any) -> int:
    """Embed every row of tables into one vector set.

    INPUT is a file (csv, tsv, parquet, json, jsonl, arrow, feather, txt, also .gz and .zst), a folder, a
    glob, a URL, or - for standard input with --format. All columns are kept and the vectors added.

    A hosted model (-m openai:NAME, azure:DEPLOYMENT, github:PUBLISHER/NAME) reads its key from the
    environment or a profile. What was paid is kept and never bought again. A used-up quota parks the job and
    a reached --max-usd pauses it, both with exit code 4; `vecmill job resume` goes on.

    The same command again goes on where it stopped, or says that it is complete. Rows that fail stay, without
    a vector and with an error, and are listed in OUT.errors.jsonl; OUT.receipt.json adds up.

    \b
    vecmill embed reviews.csv --text review -o reviews.parquet
    vecmill embed reviews.csv --template "Title: {Summary}; Content: {Text}" -o reviews.parquet
    zcat log.jsonl.gz | vecmill embed - --format jsonl --text message -o log.parquet
    """  # noqa: D301 - the character by which click keeps the lines
    options = job_options(given)
    if dry_run:
        run_sync(_dry_run(inputs, output, options, as_json=as_json))
        return 0
    return embed_and_tell(inputs, output, options, as_json=as_json, yes=yes)


def embed_and_tell(
    inputs: tuple[str, ...], output: str, options: JobOptions, *, as_json: bool, yes: bool
) -> int:
    """Run a job, say how it ended, and return the exit code."""
    started = time.monotonic()
    try:
        outcome = _run(inputs, output, options, yes=yes)
    except (QuotaExhaustedError, RateLimitError, BudgetReachedError) as error:
        from vecmill.jobs.run import stopped_state

        state = stopped_state(error)
        tell(str(error))
        more = " --max-usd MORE" if isinstance(error, BudgetReachedError) else ""
        tell(f"{state}: what was finished or paid is kept; `vecmill job resume {output}{more}` goes on")
        if as_json:
            emit({"state": state, "output": output, "reason": str(error)})
        return exit_code(error)
    tell(summary(outcome, time.monotonic() - started))
    if as_json:
        emit(
            {
                "state": outcome.state,
                **outcome.receipt,
                "output": outcome.output,
                "errors_file": outcome.errors_file,
            }
        )
    return outcome.exit_code


def job_options(given: dict[str, Any]) -> JobOptions:
    """Turn the command's options into the job's.

    Raises:
        UsageError: An option does not have the form it needs.
    """
    from vecmill.data.readers import ReadOptions
    from vecmill.jobs.plan import JobOptions

    columns = given.pop("columns")
    read = ReadOptions(
        encoding=given.pop("encoding"),
        header=not given.pop("no_header"),
        quote=None if given.pop("no_quotes") else '"',
        delimiter=_unescaped(given.pop("delimiter")),
        records=given.pop("records"),
    )
    return JobOptions(
        columns=None if columns is None else listed(columns),
        output_column=renamed(given.pop("output_columns")),
        format=given.pop("format_"),
        read=read,
        **given,
    )


def summary(outcome: Outcome, seconds: float) -> str:
    """Say in one line how a job ended."""
    receipt = outcome.receipt
    if outcome.state == "already complete":
        rows = f" ({count(receipt['rows'], 'row')})" if receipt else ""
        failed = receipt.get("errors", 0)
        again = f"; {count(failed, 'row')} failed, --overwrite tries again" if failed else ""
        return f"already complete: {outcome.output}{rows}; nothing was done{again}"
    parts = [count(receipt["rows"], "row"), count(receipt["vectors"], "vector")]
    if receipt.get("long"):
        parts.append(f"{count(receipt['long'], 'long text')} ({receipt.get('long_text', 'over the limit')})")
    if receipt.get("deduped"):
        parts.append(f"{receipt['deduped']:,} repeated")
    if receipt.get("cached"):
        parts.append(f"{receipt['cached']:,} from the cache")
    if receipt.get("requests") or receipt.get("batch"):
        parts.append(_spent(receipt))
    if receipt.get("skipped"):
        parts.append(f"{receipt['skipped']:,} without text skipped")
    if receipt.get("warned"):
        parts.append(f"{receipt['warned']:,} marked in the column warning")
    if receipt.get("errors"):
        parts.append(f"{receipt['errors']:,} failed, see {outcome.errors_file}")
    parts.append(duration(seconds))
    return f"{outcome.state}: {', '.join(parts)} -> {outcome.output}"


def _spent(receipt: dict[str, Any]) -> str:
    """Say what a job has cost: its requests, the probe and its batches together."""
    batch = receipt.get("batch") or {}
    costs = [receipt.get("usd"), receipt.get("probe_usd"), batch.get("usd", 0.0)]
    tokens = receipt["tokens"] + receipt.get("probe_tokens", 0) + batch.get("tokens", 0)
    known = [cost for cost in costs if cost is not None]
    price = dollars(sum(known)) if len(known) == len(costs) else "price unknown"
    asked = [count(receipt["requests"], "request")] if receipt["requests"] else []
    if batch:
        asked.insert(0, count(batch["batches"], "batch", "batches"))
    return f"{', '.join(asked)}, {count(tokens, 'token')}, {price}"


def dollars(usd: float) -> str:
    """Return an amount as people read it: $0.0012, $3.40."""
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}"


def _run(inputs: tuple[str, ...], output: str, options: JobOptions, *, yes: bool) -> Outcome:
    from dataclasses import replace

    from vecmill.jobs.plan import make_plan
    from vecmill.jobs.run import run

    plan = run_sync(make_plan(inputs, output, options, settings=load_settings()))
    try:
        if not yes and not plan.complete:
            _ask_before_spending(plan)
        with ProgressLine() as line:
            outcome = run_sync(run(plan, listen=line))
    except KeyboardInterrupt as error:
        if not plan.state.plan_path.exists():
            raise
        kept = "what was finished is kept, and the same command goes on from there"
        raise KeyboardInterrupt(kept) from error
    finally:
        run_sync(plan.provider.close())
    return replace(outcome, receipt=_with_policy(outcome.receipt, plan))


def _ask_before_spending(plan: Plan) -> None:
    """Ask at a terminal before a job that costs more than the settings allow unasked; elsewhere never."""
    info = plan.provider.info
    if not info.hosted or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    from vecmill.jobs.estimate import estimate

    found = run_sync(estimate(plan))
    usd = found.batch_usd if plan.options.via == "batch" else found.usd
    cost = "at a price that is not known" if usd is None else f"for about {dollars(usd)}"
    tell(
        f"{count(plan.rows, 'row')}, {count(found.send_tokens, 'token')} to send in "
        f"{count(found.requests, 'request')} to {info.name} {cost}; {found.cached:,} texts are in the cache"
    )
    if usd is not None and usd > plan.settings.confirm_above_usd and not click.confirm("Go on?", err=True):
        plan.discard()
        raise KeyboardInterrupt("nothing was sent")


def _with_policy(receipt: dict[str, Any], plan: Plan) -> dict[str, Any]:
    done = {"average": "averaged", "truncate": "truncated", "chunks": "cut into chunks", "error": "refused"}
    return {**receipt, "long_text": done[str(plan.policy.long_text)]} if receipt else receipt


async def _dry_run(inputs: tuple[str, ...], output: str, options: JobOptions, *, as_json: bool) -> None:
    from dataclasses import asdict

    from vecmill.jobs.estimate import estimate
    from vecmill.jobs.plan import make_plan

    plan = await make_plan(inputs, output, options, settings=load_settings(), ask=False)
    try:
        described = {**plan.describe(), **asdict(await estimate(plan))}
    finally:
        plan.discard()
        await plan.provider.close()
    if as_json:
        emit(described)
        return
    described["id"] = described["id"] or "file#row"
    described["cached_share"] = f"{described['cached_share']:.0%}"
    for name in ("usd", "batch_usd"):
        described[name] = None if described[name] is None else dollars(described[name])
    if not plan.provider.info.hosted:
        for name in ("batch_usd", "minutes", "requests"):
            described.pop(name)
    say(*table([(name.replace("_", " "), _cell(value)) for name, value in described.items()]))


def _cell(value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
    return str(value)


def listed(columns: str) -> tuple[str, ...]:
    """Turn the value of `--columns` into names; none for "none".

    Raises:
        UsageError: A name is empty.
    """
    if columns == "none":
        return ()
    names = tuple(name.strip() for name in columns.split(","))
    if not all(names):
        raise click.UsageError(f"--columns {columns!r}: names separated by commas, or none")
    return names


def renamed(given: tuple[str, ...]) -> dict[str, str]:
    """Return the names given to columns by `--output-column`, by role; without a role it is the vectors'."""
    names: dict[str, str] = {}
    for item in given:
        role, equals, name = item.partition("=")
        if not equals:
            role, name = "embedding", item
        if not role or not name:
            raise click.UsageError(f"--output-column {item!r}: a name, or ROLE=NAME")
        if role in names:
            raise click.UsageError(f"--output-column names {role} twice")
        names[role] = name
    return names


def _unescaped(delimiter: str | None) -> str | None:
    return "\t" if delimiter in ("\\t", "tab") else delimiter
