"""`vecmill demo`: the main job on a small table that comes with the package."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vecmill.cli.output import say, table, tell
from vecmill.cli.progress import ProgressLine
from vecmill.core.config import load_settings
from vecmill.embedder.background import run_sync

if TYPE_CHECKING:
    from vecmill.collection.search import SearchResult

SAMPLE = Path(__file__).with_name("sample") / "notes.csv"
"""Short notes of an imaginary shop, written for this package: id, title, category, text."""

TEMPLATE = "{title}: {text}"
QUERIES = (
    "something to keep the cat busy",
    "the package never came",
    "dinner for a cold evening",
)


@click.command()
@click.argument("folder", required=False, type=click.Path(file_okay=False), metavar="[FOLDER]")
def demo(folder: str | None) -> int:
    """Embed a small table that comes with the package, and search it.

    Writes notes.csv and notes.parquet to FOLDER, or to a new temporary folder.
    """
    target = Path(tempfile.mkdtemp(prefix="vecmill-demo-") if folder is None else folder)
    target.mkdir(parents=True, exist_ok=True)
    table_file, vector_set = target / "notes.csv", target / "notes.parquet"
    table_file.write_bytes(SAMPLE.read_bytes())
    say(f'$ vecmill embed {table_file} --template "{TEMPLATE}" --id id -o {vector_set}')
    code = run_sync(_embed(table_file, vector_set))
    if code:
        return code
    for result in run_sync(_search(vector_set)):
        say("", f'$ vecmill search {vector_set} "{result.query}" -k 3', *_lines(result))
    say(
        "",
        "These were the two main commands. Next:",
        f"  vecmill info {vector_set}",
        f"  vecmill verify {vector_set}",
        f"  vecmill similar {vector_set} --id recipe-01",
        "  vecmill embed YOUR_TABLE.csv --text COLUMN -o vectors.parquet",
    )
    return 0


async def _embed(table_file: Path, vector_set: Path) -> int:
    from vecmill.cli.embed import summary
    from vecmill.jobs.plan import JobOptions, make_plan
    from vecmill.jobs.run import run

    started = time.monotonic()
    options = JobOptions(template=TEMPLATE, id_column="id", output_column={"text": "note"}, overwrite=True)
    plan = await make_plan([table_file], vector_set, options, settings=load_settings())
    with ProgressLine() as line:
        outcome = await run(plan, listen=line)
    tell(summary(outcome, time.monotonic() - started))
    return outcome.exit_code


async def _search(vector_set: Path) -> list[SearchResult]:
    from vecmill.collection.search import search_many

    return await search_many(vector_set, QUERIES, k=3)


def _lines(result: SearchResult) -> list[str]:
    return table(
        [(str(hit.rank), f"{hit.similarity:.3f}", str(hit.id), hit.text or "") for hit in result.hits]
    )
