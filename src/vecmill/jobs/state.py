"""What a job keeps on disk while it runs: `OUT.vecmill/` with the plan and one file per finished window.

A window's file is written beside, fsynced and renamed; its name carries its digest and its schema its share
of the receipt. Nothing else records progress, so nothing can disagree with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from vecmill.core import durable

_NAME = re.compile(r"window-(\d{9})\.([0-9a-f]{32})\.arrow")
_KEY = b"vecmill.window"


@dataclass(frozen=True, slots=True)
class Counts:
    """A receipt's numbers, of a window or of the whole job.

    rows = vectors + skipped + errors, and texts = sent + deduped + cached, always.

    Attributes:
        input_rows: Rows read. rows: rows written; more than read where texts were cut into chunks.
        vectors: Rows with a vector. skipped: rows without text. errors: rows that failed.
        texts: Rows read whose text has a vector. sent, deduped, cached: where these came from.
        long: Texts above the limit. warned: rows with a warning.
        tokens, requests, usd: What the provider reports; requests that failed are counted too.
        unsure_tokens: Tokens of requests whose answer was lost: the provider may have billed them.
        probe_tokens, probe_usd: What the probe cost, which `tokens` and `usd` leave out.
        seen_tokens, unknown_tokens, characters: What the tokenizer saw, for the language guard.
    """

    input_rows: int = 0
    rows: int = 0
    vectors: int = 0
    skipped: int = 0
    errors: int = 0
    texts: int = 0
    sent: int = 0
    deduped: int = 0
    cached: int = 0
    long: int = 0
    warned: int = 0
    tokens: int = 0
    requests: int = 0
    usd: float | None = 0.0
    unsure_tokens: int = 0
    probe_tokens: int = 0
    probe_usd: float | None = 0.0
    seen_tokens: int = 0
    unknown_tokens: int = 0
    characters: int = 0

    def __add__(self, other: Counts) -> Counts:
        values: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            one, two = getattr(self, name), getattr(other, name)
            values[name] = None if one is None or two is None else one + two
        return Counts(**values)

    @property
    def balances(self) -> bool:
        """Whether nothing was lost."""
        return (
            self.rows == self.vectors + self.skipped + self.errors
            and self.texts == self.sent + self.deduped + self.cached
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StateDir:
    """The folder beside the output that holds a job's plan and windows."""

    path: Path

    @classmethod
    def beside(cls, output: Path) -> Self:
        """Return the state folder of an output; it need not exist."""
        return cls(output.with_name(output.name + ".vecmill"))

    @property
    def plan_path(self) -> Path:
        """The plan's fingerprint and what the job was asked."""
        return self.path / "plan.json"

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the unfinished job kept here, "" where its plan is damaged, or None."""
        if not self.plan_path.is_file():
            return None
        try:
            return str(json.loads(self.plan_path.read_bytes())["fingerprint"])
        except (ValueError, KeyError, TypeError):
            return ""

    def begin(self, fingerprint: str, described: dict[str, Any]) -> list[int]:
        """Make the folder ready for this job; return the numbers of finished windows that were damaged.

        Windows of another job are removed, and so are damaged ones.
        """
        if self.fingerprint() != fingerprint:
            for path in (*self.windows().values(), self._spent_path):
                durable.remove(path)
        text = json.dumps({**described, "fingerprint": fingerprint}, ensure_ascii=False, indent=1)
        durable.write_bytes(self.plan_path, text.encode())  # also what was asked last: caps may differ
        damaged = [(index, path) for index, path in self.windows().items() if not _intact(path)]
        for _, path in damaged:
            durable.remove(path)
        return [index for index, _ in damaged]

    def spent(self) -> Counts:
        """Return what earlier runs were billed for windows that were not finished then."""
        try:
            return Counts(**json.loads(self._spent_path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return Counts()

    def note_spent(self, counts: Counts) -> None:
        """Add what was billed for a window that is not finished: its vectors are in the cache only."""
        total = self.spent() + counts
        durable.write_bytes(self._spent_path, json.dumps(total.to_dict()).encode())

    @property
    def _spent_path(self) -> Path:
        return self.path / "spent.json"

    def windows(self) -> dict[int, Path]:
        """Return the files of finished windows by number."""
        if not self.path.is_dir():
            return {}
        found = ((_NAME.fullmatch(path.name), path) for path in sorted(self.path.iterdir()))
        return {int(match[1]): path for match, path in found if match}

    def commit(self, index: int, batch: pa.RecordBatch, counts: Counts) -> None:
        """Keep a finished window; it survives a crash when this returns."""
        schema = batch.schema.with_metadata({_KEY: json.dumps(counts.to_dict()).encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch.cast(schema))
        data = sink.getvalue()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        durable.write_bytes(self.path / f"window-{index:09d}.{digest}.arrow", data)

    def counts(self, path: Path) -> Counts:
        """Return a finished window's share of the receipt."""
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            return Counts(**json.loads(reader.schema.metadata[_KEY]))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the finished windows' rows in order, one window at a time."""
        for _, path in sorted(self.windows().items()):
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
                for at in range(reader.num_record_batches):
                    yield reader.get_batch(at).replace_schema_metadata(None)

    def remove(self) -> None:
        """Remove the folder with all it holds."""
        durable.remove_tree(self.path)


def _intact(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is not None and durable.digest_file(path) == match[2]
