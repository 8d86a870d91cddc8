"""What a job will do, decided before anything is embedded: files, texts, columns, model, fingerprint.

Everything that decides the output's bytes goes into the plan's fingerprint. The same fingerprint means the
same output, so a finished one is not made again and an unfinished one goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.config import Settings, load_settings
from vecmill.core.durable import TEMP_SUFFIX
from vecmill.core.errors import FormatVersionError, InputError, StorageError
from vecmill.core.events import Notice
from vecmill.core.space import Manifest, short
from vecmill.core.types import EmptyText, InputType, LongText
from vecmill.data.readers import FileBatch, ReadOptions, Scan, batches, scan
from vecmill.data.sources import Sources, resolve
from vecmill.data.template import Template, TextColumn, choose_text
from vecmill.data.vector_set import read_manifest
from vecmill.data.writers import output_format
from vecmill.embedder.embedder import make_manifest
from vecmill.embedder.rows import Policy, prepare
from vecmill.jobs.layout import Layout, ids_of, make_layout
from vecmill.jobs.remote import Remote
from vecmill.jobs.state import StateDir
from vecmill.jobs.windows import Window, cut
from vecmill.models.base import Provider
from vecmill.models.resolve import open_model

PLAN_FORMAT = 1
"""Raised when the same plan would give other bytes, such as by other windows or columns."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a job may be told.

    Attributes:
        model: Name of the model; None takes the settings' default.
        text, template: Where the texts come from: a column, or "Title: {title}". None: the only text column.
        id_column: The column whose values are the ids; None numbers the rows, "file#row".
        columns: Input columns to keep; None keeps all, () none.
        output_column: Other names for output columns by role: {"embedding": "vec"}.
        limit: Rows to read at most.
        long_text: "average" (default), "error", "truncate" or "chunks".
        empty: "error" (default), "skip" or "embed".
        max_tokens: Tokens above which a text is long; None takes the model's limit.
        input_type: "document" (default) or "query".
        device, precision, threads: As `Embedder` takes them.
        read: Encoding, header, quotes and where the records lie.
        format: The inputs' format; None goes by their suffixes.
        output_format: The output's format; None goes by its suffix.
        any_language: Go on where more than half of the tokens are unknown to the model.
        overwrite: Replace an output that is there, and drop an unfinished job with other settings.
    """

    model: str | None = None
    text: str | None = None
    template: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] | None = None
    output_column: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    long_text: str = "average"
    empty: str = "error"
    max_tokens: int | None = None
    input_type: str = "document"
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    format: str | None = None
    output_format: str | None = None
    any_language: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A job ready to run.

    Attributes:
        output: The target, a local path. format: its format.
        remote: Where the output is uploaded when it is made, or None.
        sources: The input's files. scan: their columns and row counts.
        text: Makes the texts.
        provider: The open model. policy: what happens to long and empty texts.
        layout: The output's columns.
        manifest: What the output will say about itself; its `rows` is not yet known.
        fingerprint: Hash of all that decides the output's bytes.
        complete: The output is there already, made by the same plan.
        resumed_windows: Windows an earlier run finished.
        notices: What a person should know before.
        read, limit, any_language: As asked.
        json_columns: Columns a JSON lines or npy output keeps beside file, row and vector.
        home: Where the list of jobs is kept.
    """

    output: Path
    format: str
    sources: Sources
    scan: Scan
    text: Template | TextColumn
    provider: Provider
    policy: Policy
    layout: Layout
    manifest: Manifest
    fingerprint: str
    remote: Remote | None
    complete: bool
    resumed_windows: int
    notices: tuple[Notice, ...]
    read: ReadOptions
    limit: int | None
    any_language: bool
    json_columns: tuple[str, ...]
    home: Path

    @property
    def target(self) -> str:
        """What the user called the output."""
        return self.remote.url if self.remote else str(self.output)

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(self.scan.rows)

    @property
    def state(self) -> StateDir:
        """The folder beside the output that holds the unfinished job."""
        return StateDir.beside(self.output)

    def stream(self) -> Iterator[FileBatch]:
        """Read the input again, in the same order."""
        return batches(
            self.sources, self.scan, text_columns=self.text.text_columns, options=self.read, limit=self.limit
        )

    def windows(self) -> Iterator[Window]:
        """Read the input in windows."""
        return cut(self.stream(), self.text)

    def discard(self) -> None:
        """Remove what planning left beside the output, such as spooled input; an unfinished job stays."""
        _discard(self.state)

    def describe(self) -> dict[str, Any]:
        """Return the plan for people and programs; no texts in it."""
        info = self.provider.info
        return {
            "output": self.target,
            "format": self.format,
            "files": [source.name for source in self.sources.files],
            "skipped_files": list(self.sources.skipped),
            "rows": self.rows,
            "text": self.text.describe(),
            "id": self.layout.id_column,
            "model": info.name,
            "space": short(info.space),
            "dimensions": info.dimensions,
            "precision": info.precision,
            "device": info.device,
            "long_text": str(self.policy.long_text),
            "max_tokens": self.policy.limit(self.provider),
            "columns": [entry.name for entry in self.layout.schema],
            "complete": self.complete,
            "resumed_windows": self.resumed_windows,
            "fingerprint": self.fingerprint,
        }


async def make_plan(
    inputs: Sequence[str | Path],
    output: str | Path,
    options: JobOptions | None = None,
    *,
    settings: Settings | None = None,
    provider: Provider | None = None,
) -> Plan:
    """Read the inputs once, decide everything, check what can be checked before work begins.

    Args:
        inputs: Files, folders, globs, URLs, or "-" for standard input.
        output: A file (.parquet, .arrow, .jsonl, .npy) or a folder.
        options: What the job is told.
        settings: None reads environment and `vecmill.toml`.
        provider: A model already open, instead of `options.model`.

    Raises:
        InputError: Something asked for does not fit the input; the message says what would.
        StorageError: An input is damaged, or the output cannot be used.
    """
    options = options or JobOptions()
    settings = settings or load_settings()
    remote = Remote.of(str(output), settings.home) if "://" in str(output) else None
    target = remote.staging if remote else Path(output).absolute()
    try:
        return await _planned(inputs, target, remote, options, settings, provider, output_format(output))
    except BaseException:
        _discard(StateDir.beside(target))
        raise


async def _planned(
    inputs: Sequence[str | Path],
    target: Path,
    remote: Remote | None,
    options: JobOptions,
    settings: Settings,
    provider: Provider | None,
    suffix_format: str,
) -> Plan:
    format_ = options.output_format or suffix_format
    state = StateDir.beside(target)
    sources = await asyncio.to_thread(resolve, inputs, spool_dir=state.path / "input", format=options.format)
    seen, text = await asyncio.to_thread(_scan, sources, options)
    if provider is None:
        provider = await asyncio.to_thread(_open, options, settings)
    policy = Policy(
        LongText(options.long_text),
        EmptyText(options.empty),
        InputType(options.input_type),
        options.max_tokens,
    )
    layout = make_layout(
        seen.schema,
        dimensions=provider.info.dimensions,
        has_template=isinstance(text, Template),
        id_column=options.id_column,
        columns=() if options.columns is None and format_ in ("jsonl", "npy") else options.columns,
        renamed=options.output_column,
        long_text=policy.long_text,
    )
    fingerprint = _fingerprint(sources, seen, text, provider, policy, layout, options, format_)
    manifest = await _manifest(provider, policy, text, layout, sources, fingerprint)
    plan = Plan(
        output=target,
        format=format_,
        sources=sources,
        scan=seen,
        text=text,
        provider=provider,
        policy=policy,
        layout=layout,
        manifest=manifest,
        fingerprint=fingerprint,
        remote=remote,
        complete=(
            remote.complete(fingerprint, overwrite=options.overwrite)
            if remote
            else _complete(target, fingerprint, overwrite=options.overwrite)
        ),
        resumed_windows=0,
        notices=(*seen.notices, *_skipped(sources)),
        read=options.read,
        limit=options.limit,
        any_language=options.any_language,
        json_columns=_json_columns(options, layout),
        home=settings.home,
    )
    if plan.complete:
        return plan
    if layout.id_column is not None:
        await asyncio.to_thread(_refuse_double_ids, plan)
    return replace(plan, resumed_windows=_resumable(state, fingerprint, overwrite=options.overwrite))


async def count_tokens(plan: Plan) -> dict[str, int]:
    """Tokenize the whole input and return exact totals: texts, distinct, tokens, long, unknown.

    Costs a pass over the input, no request and no money. Long texts count as they are.
    """
    totals = dict.fromkeys(("texts", "distinct", "tokens", "long", "unknown"), 0)
    limit = plan.policy.limit(plan.provider)
    for window in plan.windows():
        ready = await prepare(plan.provider, window.texts, plan.policy)
        totals["texts"] += int((ready.distinct >= 0).sum())
        totals["distinct"] += len(ready.encoded)
        totals["tokens"] += int(ready.encoded.tokens.sum())
        totals["long"] += int((ready.encoded.tokens > limit).sum())
        totals["unknown"] += int(ready.encoded.unknown.sum())
    return totals


def _discard(state: StateDir) -> None:
    if not state.plan_path.exists():
        state.remove()  # with what a crash during an earlier removal left


def _scan(sources: Sources, options: JobOptions) -> tuple[Scan, Template | TextColumn]:
    if options.text is not None and options.template is not None:
        raise InputError("--text and --template exclude each other: a template names its columns itself")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"limit is {options.limit}: it must be at least 1")
    seen = scan(sources, text_columns=_named(options), options=options.read, limit=options.limit)
    return seen, choose_text(seen, text=options.text, template=options.template)


def _named(options: JobOptions) -> tuple[str, ...]:
    if options.text is not None:
        return (options.text,)
    return ()


def _open(options: JobOptions, settings: Settings) -> Provider:
    return open_model(
        options.model,
        settings=settings,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        max_tokens=options.max_tokens,
    )


def _fingerprint(
    sources: Sources,
    seen: Scan,
    text: Template | TextColumn,
    provider: Provider,
    policy: Policy,
    layout: Layout,
    options: JobOptions,
    format_: str,
) -> str:
    decides = {
        "plan": PLAN_FORMAT,
        "sources": sources.fingerprint,
        "rows": seen.rows,
        "text": text.describe(),
        "space": provider.info.space,
        "dimensions": provider.info.dimensions,
        "long_text": str(policy.long_text),
        "empty": str(policy.empty),
        "input_type": str(policy.input_type),
        "max_tokens": policy.limit(provider),
        "schema": str(layout.schema),
        "id": layout.id_column,
        "format": format_,
        "columns": None if options.columns is None else list(options.columns),
    }
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


async def _manifest(
    provider: Provider,
    policy: Policy,
    text: Template | TextColumn,
    layout: Layout,
    sources: Sources,
    fingerprint: str,
) -> Manifest:
    made = await make_manifest(provider, policy.input_type)
    template = text.describe() if isinstance(text, Template) else None
    column = layout.names["text"] if template is not None else text.columns[0]
    return replace(
        made,
        template=template,
        text=column if column in layout.schema.names else None,
        vector=layout.names["embedding"],
        renamed=tuple((r, n) for r, n in layout.names.items() if r not in (n, "embedding", "text")),
        long_text=str(policy.long_text),
        max_tokens=policy.limit(provider),
        source=sources.fingerprint,
        plan=fingerprint,
    )


def _complete(output: Path, fingerprint: str, *, overwrite: bool) -> bool:
    """Whether the output is there and made by this plan; refuses one that is not."""
    if not output.exists() or _unfinished_folder(output, fingerprint):
        return False
    try:
        found = read_manifest(output)
        what = (
            "was not made by vecmill" if found is None else "was made from other input or with other options"
        )
    except (StorageError, FormatVersionError, InputError) as error:
        found, what = None, f"cannot be read ({error})"
    if found is not None and found.plan == fingerprint:
        return True
    if overwrite:
        return False
    raise InputError(
        f"{output} is there already and {what}: choose another name, or --overwrite to replace it"
    )


def _unfinished_folder(output: Path, fingerprint: str) -> bool:
    """Whether a folder is empty or holds only parts that this plan began to publish."""
    if not output.is_dir():
        return False
    ours = f"part-{fingerprint[:8]}-"
    return all(p.name.startswith(ours) or p.name.endswith(TEMP_SUFFIX) for p in output.iterdir())


def _resumable(state: StateDir, fingerprint: str, *, overwrite: bool) -> int:
    """Return how many windows are finished; refuses an unfinished job with other settings."""
    held, windows = state.fingerprint(), len(state.windows())
    if held == fingerprint:
        return windows
    if windows and not overwrite:
        raise InputError(
            f"{state.path} holds an unfinished job with other input or options ({windows} windows done): "
            f"repeat its command to finish it, or --overwrite to drop it"
        )
    return 0


def _json_columns(options: JobOptions, layout: Layout) -> tuple[str, ...]:
    named = layout.kept if options.columns is not None else ()
    return (*((layout.names["id"],) if layout.id_column is not None else ()), *named)


def _skipped(sources: Sources) -> tuple[Notice, ...]:
    if not sources.skipped:
        return ()
    some = ", ".join(sources.skipped[:5]) + (", …" if len(sources.skipped) > 5 else "")
    return (Notice("files_skipped", f"{len(sources.skipped)} files of other formats were left out: {some}"),)


def _refuse_double_ids(plan: Plan) -> None:
    """Raise when two rows have one id; 8 bytes of memory per row."""
    hashes = [_hashes(ids_of(window, plan.layout)) for window in plan.windows()]
    values = np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)
    unique, counts = np.unique(values, return_counts=True)
    suspects = set(unique[counts > 1].tolist())
    if suspects:
        _name_double(plan, suspects)


def _name_double(plan: Plan, suspects: set[int]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for window in plan.windows():
        ids = ids_of(window, plan.layout)
        for at in np.flatnonzero(np.isin(_hashes(ids), np.array(sorted(suspects), dtype=np.uint64))):
            here = (window.files[at], int(window.rows[at]))
            if ids[at] in first:
                file, row = first[ids[at]]
                raise InputError(
                    f"id {ids[at]!r} stands twice: {file} row {row} and {here[0]} row {here[1]}; ids must "
                    f"differ: choose another --id column, or none"
                )
            first[ids[at]] = here


def _hashes(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    raw = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids)
    return np.frombuffer(raw, dtype="<u8")
