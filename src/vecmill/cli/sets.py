"""`vecmill info` and `vecmill verify`: what a vector set says, and whether it is true."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vecmill.cli.output import count, emit, say, table, tell
from vecmill.core.config import load_settings

_SHOWN = ("model", "provider", "precision", "pooling", "tokenizer", "revision", "input_type", "template")
_ALSO = ("long_text", "max_tokens", "tool_version")


@click.command()
@click.argument("vector_set", metavar="SET|COLLECTION")
@click.option("--vector-column", metavar="COLUMN", help="The column of the vectors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(vector_set: str, vector_column: str | None, as_json: bool) -> None:
    """Show what a vector set or a collection says about itself."""
    from vecmill.index.storage import is_store

    if is_store(vector_set):
        from vecmill.cli.index import show
        from vecmill.collection.upkeep import describe

        show(describe(vector_set), as_json=as_json)
        return
    described = _describe(vector_set, vector_column)
    if as_json:
        emit(described)
        return
    manifest: dict[str, Any] = described["manifest"] or {}
    made = [
        (name.replace("_", " "), str(manifest[name])) for name in _SHOWN if manifest.get(name) is not None
    ]
    also = [(name.replace("_", " "), str(manifest[name])) for name in _ALSO if manifest.get(name) is not None]
    without = described["rows"] - described["vectors"]
    rows = [
        ("set", described["path"]),
        ("size", _size_for_people(described["size_bytes"])),
        ("rows", f"{described['rows']:,}" + (f", {without:,} without a vector" if without else "")),
        ("dimensions", str(described["dimensions"])),
        ("unit length", {True: "yes", False: "no", None: "unknown"}[described["normalized"]]),
        ("space", described["space"][:6] if manifest else f"unknown: {described['why_unknown']}"),
        *made,
        *also,
        ("vectors in", described["vector_column"]),
        ("texts in", described["text_column"] or "none"),
        ("columns", ", ".join(described["columns"]) or "none"),
    ]
    say(*table(rows))


@click.command()
@click.argument("vector_set", metavar="SET|COLLECTION")
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Rows to compute again.",
)
@click.option(
    "-m", "--model", metavar="MODEL", help="Compute with this model.  [default: the one that made SET]"
)
@click.option("--base-url", metavar="URL", help="Where the hosted model is that made SET.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(vector_set: str, sample: int, model: str | None, base_url: str | None, as_json: bool) -> int:
    """Check a vector set against itself and its model, or the bytes of a collection.

    Rows, lengths, nulls, ids, order and doubles are looked at in every row; a sample is computed again. Exit
    code 1 when a check fails. A hosted model is also asked whether it is still the one that made the set; the
    sample costs what embedding it did.

    Of a collection every byte is compared with its checksum, and no more.
    """
    from vecmill.index.storage import is_store
    from vecmill.jobs.verify import verify as check_set

    if is_store(vector_set):
        return _verify_collection(vector_set, as_json=as_json)
    report = check_set(vector_set, sample=sample, model=model, base_url=base_url, settings=load_settings())
    if as_json:
        emit(report.describe())
    else:
        words = {True: "ok", False: "FAILED", None: "-"}
        say(*table([(words[check.ok], check.name, check.detail) for check in report.checks]))
    failed = sum(check.ok is False for check in report.checks)
    if failed:
        ours = any(check.name == "manifest" and check.ok for check in report.checks)
        cure = f": embed {vector_set} again, by the command that made it and --overwrite" if ours else ""
        tell(f"{count(failed, 'check')} failed{cure}")
    return 0 if report.ok else 1


def _verify_collection(path: str, *, as_json: bool) -> int:
    from vecmill.collection.upkeep import verify_collection

    found = verify_collection(path)
    if as_json:
        emit(found)
    elif found["ok"]:
        of = f"{count(found['rows'], 'row')} in {count(found['segments'], 'segment')}"
        say(*table([("ok", "checksums", f"{of}: every byte is what was written")]))
    else:
        say(*table([("FAILED", "checksums", found["damage"])]))
    if not found["ok"]:
        tell("1 check failed: restore the collection from a copy, or build it again from its vector set")
    return 0 if found["ok"] else 1


def _describe(vector_set: str, vector_column: str | None) -> dict[str, Any]:
    """Return what a set holds; no vectors and no texts in it."""
    from vecmill.data.vector_set import read_manifest, read_vectors

    found = read_vectors(vector_set, vector_column=vector_column)
    manifest = found.manifest
    kept = None if manifest is None else {k: v for k, v in asdict(manifest).items() if k != "probe"}
    other = read_manifest(vector_set) if manifest is None else None
    why = "no manifest of ours" if other is None else f"the manifest is about the column {other.vector!r}"
    return {
        "path": found.path,
        "size_bytes": _size(Path(vector_set)),
        "rows": found.total_rows,
        "vectors": len(found.vectors),
        "dimensions": found.dimensions,
        "normalized": None if manifest is None else manifest.normalized,
        "space": None if manifest is None else manifest.space,
        "vector_column": found.vector_column,
        "text_column": found.text_column,
        "columns": found.columns,
        "manifest": kept,
        "why_unknown": None if manifest is not None else why,
    }


def _size_for_people(size_bytes: int) -> str:
    if size_bytes < 2**20:
        return f"{size_bytes / 2**10:,.1f} KiB"
    return f"{size_bytes / 2**20:,.1f} MiB"


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
