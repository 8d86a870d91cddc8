"""What a job will do, decided before anything is embedded: files, texts, columns, model, fingerprint.

Everything that decides the output's bytes goes into the plan's fingerprint. The same fingerprint means the
same output, so a finished one is not made again and an unfinished one goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vecmill.core import durable
from vecmill.core.config import Settings, load_settings
from vecmill.core.errors import InputError, unknown_name
from vecmill.core.events import Notice
from vecmill.core.machine import is_running
from vecmill.core.space import Manifest, short
from vecmill.core.types import EmptyText, InputType, LongText, choice
from vecmill.data.readers import FileBatch, ReadOptions, Scan, batches, scan
from vecmill.data.sources import Sources, resolve
from vecmill.data.template import Template, TextColumn, choose_text, template_columns
from vecmill.data.writers import FORMATS, check_target, output_format
from vecmill.embedder.channel import Channel
from vecmill.embedder.embedder import manifest_of
from vecmill.embedder.rows import Policy
from vecmill.jobs.ids import refuse_double_ids
from vecmill.jobs.layout import Layout, make_layout
from vecmill.jobs.remote import Remote
from vecmill.jobs.state import StateDir
from vecmill.jobs.target import Target
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
        dimensions: Fewer dimensions than the model's, for models that allow it.
        base_url, user: As `Embedder` takes them.
        cache: Whether vectors are kept on disk; None: as the settings say, for hosted models.
        max_usd: What the job may spend, earlier runs of it included.
        via: "sync" (default), or "batch" for the provider's Batch API.
        usage: Add a column that says what each row cost.
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
    dimensions: int | None = None
    base_url: str | None = None
    user: str | None = None
    cache: bool | None = None
    max_usd: float | None = None
    via: str = "sync"
    usage: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A job ready to run.

    Attributes:
        target: Where the output goes.
        options: As asked.
        sources: The input's files. scan: their columns and row counts.
        text: Makes the texts.
        inputs: As given.
        channel: The way to the open model. policy: what happens to long and empty texts.
        layout: The output's columns.
        manifest: What the output will say about itself; its rows and probe come last.
        fingerprint: Hash of all that decides the output's bytes.
        complete: The output is there already, made by the same plan.
        resumed_windows: Windows an earlier run finished.
        notices: What a person should know before.
        settings: Where state and caches lie.
        spool_dir: Where standard input and remote files were put, if there were any.
    """

    target: Target
    options: JobOptions
    inputs: tuple[str, ...]
    sources: Sources
    scan: Scan
    text: Template | TextColumn
    channel: Channel
    policy: Policy
    layout: Layout
    manifest: Manifest
    fingerprint: str
    complete: bool
    resumed_windows: int
    notices: tuple[Notice, ...]
    settings: Settings
    spool_dir: Path

    @property
    def provider(self) -> Provider:
        """The open model."""
        return self.channel.provider

    @property
    def output(self) -> Path:
        """The local path of the output."""
        return self.target.path

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return sum(self.scan.rows)

    @property
    def state(self) -> StateDir:
        """The folder beside the output that holds the unfinished job."""
        return self.target.state

    @property
    def json_columns(self) -> tuple[str, ...]:
        """Columns a JSON lines or npy output keeps beside file, row and vector."""
        named = self.layout.kept if self.options.columns is not None else ()
        return (*((self.layout.names["id"],) if self.layout.id_column is not None else ()), *named)

    def stream(self) -> Iterator[FileBatch]:
        """Read the input again, in the same order."""
        return batches(
            self.sources,
            self.scan,
            text_columns=_text_columns(self.options),
            template_columns=_template_columns(self.options),
            options=self.options.read,
            limit=self.options.limit,
        )

    def windows(self) -> Iterator[Window]:
        """Read the input in windows."""
        return cut(self.stream(), self.text)

    def command(self) -> dict[str, Any]:
        """Return what was asked, so that `vecmill job resume` can ask it again; no secrets are among it."""
        asked = asdict(self.options)
        defaults = asdict(JobOptions())
        given = {name: value for name, value in asked.items() if value != defaults[name]}
        return {"inputs": list(self.inputs), "folder": str(Path.cwd()), "options": given}

    def discard(self) -> None:
        """Remove what planning left, such as spooled input; an unfinished job stays."""
        _discard(self.target, self.spool_dir)

    def describe(self) -> dict[str, Any]:
        """Return the plan for people and programs; no texts in it."""
        info = self.provider.info
        return {
            "output": self.target.name,
            "format": self.target.format,
            "files": [source.name for source in self.sources.files],
            "skipped_files": list(self.sources.skipped),
            "rows": self.rows,
            "text": self.text.describe(),
            "id": self.layout.id_column,
            "model": info.name,
            "space": short(info.space),
            "dimensions": info.dimensions or None,
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
    ask: bool = True,
) -> Plan:
    """Read the inputs once, decide everything, check what can be checked before work begins.

    Args:
        inputs: Files, folders, globs, URLs, or "-" for standard input.
        output: A file (.parquet, .arrow, .jsonl, .npy), a folder, or the URL of one.
        options: What the job is told.
        settings: None reads environment and `vecmill.toml`.
        provider: A model already open, instead of `options.model`.
        ask: Whether a hosted model nobody knows may be asked for its dimensions: one request.

    Raises:
        InputError: Something asked for does not fit the input; the message says what would.
        StorageError: An input is damaged, or the output cannot be used.
    """
    options = options or JobOptions()
    settings = settings or load_settings()
    target = _target(output, options, settings)
    spool_dir = _spool_dir(settings.home)
    try:
        return await _planned(inputs, target, options, settings, provider, spool_dir, ask=ask)
    except BaseException:
        _discard(target, spool_dir)
        raise


async def _planned(
    inputs: Sequence[str | Path],
    target: Target,
    options: JobOptions,
    settings: Settings,
    provider: Provider | None,
    spool_dir: Path,
    *,
    ask: bool,
) -> Plan:
    policy = Policy(
        choice(LongText, options.long_text, "long_text"),
        choice(EmptyText, options.empty, "empty"),
        choice(InputType, options.input_type, "input_type"),
        options.max_tokens,
    )
    sources = await asyncio.to_thread(
        resolve, inputs, spool_dir=spool_dir, format=options.format, exclude=target.path
    )
    seen, text = await asyncio.to_thread(_scan, sources, options)
    opened = await asyncio.to_thread(_open, options, settings, ask) if provider is None else provider
    try:
        channel = Channel.to(opened, settings, cache=options.cache, max_usd=options.max_usd)
        _ensure_via(options, channel)
        if ask:
            await channel.learn()
        return await _with_model(
            inputs, target, options, settings, policy, sources, seen, text, channel, spool_dir
        )
    except BaseException:
        if provider is None:
            await opened.close()
        raise


async def _with_model(
    inputs: Sequence[str | Path],
    target: Target,
    options: JobOptions,
    settings: Settings,
    policy: Policy,
    sources: Sources,
    seen: Scan,
    text: Template | TextColumn,
    channel: Channel,
    spool_dir: Path,
) -> Plan:
    provider = channel.provider
    layout = make_layout(
        seen.schema,
        dimensions=max(provider.info.dimensions, 1),
        has_template=isinstance(text, Template),
        id_column=options.id_column,
        columns=() if options.columns is None and target.format in ("jsonl", "npy") else options.columns,
        renamed=options.output_column,
        long_text=policy.long_text,
        usage=options.usage,
    )
    fingerprint = _fingerprint(sources, seen, text, provider, policy, layout, options, target.format)
    plan = Plan(
        target=target,
        options=options,
        inputs=tuple(map(str, inputs)),
        sources=sources,
        scan=seen,
        text=text,
        channel=channel,
        policy=policy,
        layout=layout,
        manifest=_manifest(provider, policy, text, layout, sources, fingerprint),
        fingerprint=fingerprint,
        complete=await asyncio.to_thread(target.complete, fingerprint, overwrite=options.overwrite),
        resumed_windows=0,
        notices=(*seen.notices, *_skipped(sources), *_dropped(options, target)),
        settings=settings,
        spool_dir=spool_dir,
    )
    if plan.complete:
        return plan
    check_target(target.path, layout.schema, target.format, vector=layout.names["embedding"])
    if layout.id_column is not None:
        await asyncio.to_thread(refuse_double_ids, plan.windows, layout)
    resumed = target.resumable(fingerprint, overwrite=options.overwrite)
    return replace(plan, resumed_windows=resumed)


def _target(output: str | Path, options: JobOptions, settings: Settings) -> Target:
    if options.output_format is not None and options.output_format not in FORMATS:
        raise unknown_name("output format", options.output_format, FORMATS)
    format_ = options.output_format or output_format(output)
    if "://" in str(output):
        remote = Remote.of(str(output), settings.home)
        return Target(remote.staging, format_, remote)
    return Target(Path(output).absolute(), format_, None)


def _spool_dir(home: Path) -> Path:
    """Choose a folder for this plan's spooled input, and clear those of processes that died."""
    folder = home / "spool"
    for old in folder.iterdir() if folder.is_dir() else ():
        pid = old.name.partition("-")[0]
        if pid.isdigit() and not is_running(int(pid)):
            durable.remove_tree(old)
    return folder / f"{os.getpid()}-{secrets.token_hex(4)}"


def _discard(target: Target, spool_dir: Path) -> None:
    durable.remove_tree(spool_dir)
    if not target.state.plan_path.exists():
        target.state.remove()  # what a crash during an earlier removal left


def _scan(sources: Sources, options: JobOptions) -> tuple[Scan, Template | TextColumn]:
    if options.text is not None and options.template is not None:
        raise InputError("--text and --template exclude each other: a template names its columns itself")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"limit is {options.limit}: it must be at least 1")
    seen = scan(
        sources,
        text_columns=_text_columns(options),
        template_columns=_template_columns(options),
        options=options.read,
        limit=options.limit,
    )
    return seen, choose_text(seen, text=options.text, template=options.template)


def _text_columns(options: JobOptions) -> tuple[str, ...]:
    return () if options.text is None else (options.text,)


def _template_columns(options: JobOptions) -> tuple[str, ...]:
    return () if options.template is None else template_columns(options.template)


def _open(options: JobOptions, settings: Settings, needs_key: bool) -> Provider:
    return open_model(
        options.model,
        settings=settings,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        max_tokens=options.max_tokens,
        dimensions=options.dimensions,
        base_url=options.base_url,
        user=options.user,
        cached=options.cache is not False,
        needs_key=needs_key,
    )


def _ensure_via(options: JobOptions, channel: Channel) -> None:
    if options.via not in ("sync", "batch"):
        raise unknown_name("via", options.via, ("sync", "batch"))
    if options.via == "batch" and (channel.engine is None or options.cache is False):
        name = channel.provider.info.name
        why = f"{name} runs here" if channel.engine is None else "it brings its vectors through the cache"
        raise InputError(f'via="batch" does not go with this job: {why}')


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
        "read": asdict(options.read),
        "rows": seen.rows,
        "text": text.describe(),
        "space": provider.info.space,
        "dimensions": provider.info.dimensions,
        "long_text": str(policy.long_text),
        "empty": str(policy.empty),
        "input_type": str(policy.input_type),
        "max_tokens": policy.limit(provider),
        "schema": str(layout.schema),
        "names": dict(layout.names),
        "id": layout.id_column,
        "format": format_,
        "columns": None if options.columns is None else list(options.columns),
    }
    canonical = json.dumps(decides, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def _manifest(
    provider: Provider,
    policy: Policy,
    text: Template | TextColumn,
    layout: Layout,
    sources: Sources,
    fingerprint: str,
) -> Manifest:
    template = text.describe() if isinstance(text, Template) else None
    column = layout.names["text"] if template is not None else text.columns[0]
    return replace(
        manifest_of(provider.info, policy.input_type),
        template=template,
        text=column if column in layout.schema.names else None,
        vector=layout.names["embedding"],
        renamed=tuple((r, n) for r, n in layout.names.items() if r not in (n, "embedding", "text")),
        long_text=str(policy.long_text),
        max_tokens=policy.limit(provider),
        source=sources.fingerprint,
        plan=fingerprint,
    )


def _dropped(options: JobOptions, target: Target) -> tuple[Notice, ...]:
    if target.format != "npy" or not options.columns:
        return ()
    return (Notice("columns_dropped", "npy holds vectors and ids; the columns asked for are left out"),)


def _skipped(sources: Sources) -> tuple[Notice, ...]:
    if not sources.skipped:
        return ()
    some = ", ".join(sources.skipped[:5]) + (", …" if len(sources.skipped) > 5 else "")
    return (Notice("files_skipped", f"{len(sources.skipped)} files of other formats were left out: {some}"),)
