"""What the simulated Files and Batches API keeps, its rules and faults, and how it reads a file of lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import orjson

FaultKind: TypeAlias = Literal[
    "line",
    "bad_reply",
    "fail",
    "expire",
    "upload_reset",
    "upload_lost",
    "create_lost",
    "cut",
    "download_reset",
]

_BOM = b"\xef\xbb\xbf"
_NEEDED = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class BatchFault:
    """Something that goes wrong with files or batches.

    Attributes:
        kind: "line": lines are answered with `status`, in the error file. "bad_reply": lines lack a vector.
            "fail": the whole batch fails with `code`. "expire": no more than half of the lines get done.
            "upload_reset": the connection breaks before the file is kept; "upload_lost" after it;
            "create_lost": after a batch was made. "cut": half of an output file is sent, as if it were all;
            "download_reset": the connection breaks in it.
        at: The number of the batch, upload, creation or download of an output file it happens to, counted
            from 0; None: to all of them.
        every: Of a batch's lines, only every n-th, beginning with the first.
        containing: Only lines with a text that contains this.
        status, code: What "line" and "fail" say.
    """

    kind: FaultKind
    at: int | None = None
    every: int = 1
    containing: str = ""
    status: int = 429
    code: str = "invalid_json_line"


@dataclass(frozen=True, slots=True)
class BatchRules:
    """How long a batch takes, what it may hold, and what goes wrong.

    Attributes:
        validating_seconds, seconds_per_line, finalizing_seconds, cancelling_seconds: How long each state
            lasts.
        processing_seconds: How long an uploaded file is not ready for use.
        window_seconds: After these a batch expires (on Azure it does not).
        max_lines, max_inputs, max_bytes: What one batch may hold.
        enqueued_tokens: Tokens all unfinished batches may have; None: any number.
        seed: Of the order of output lines.
    """

    validating_seconds: float = 20.0
    seconds_per_line: float = 1.0
    finalizing_seconds: float = 10.0
    cancelling_seconds: float = 60.0
    processing_seconds: float = 0.0
    window_seconds: float = 86_400.0
    max_lines: int = 50_000
    max_inputs: int = 50_000
    max_bytes: int = 200_000_000
    enqueued_tokens: int | None = None
    seed: int = 0
    faults: tuple[BatchFault, ...] = ()


@dataclass(slots=True)
class StoredFile:
    """A file somebody uploaded, or one a batch wrote."""

    id: str
    data: bytes
    filename: str
    purpose: str
    created: float

    def shown(self, status: str) -> dict[str, Any]:
        """Return the file's object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.data),
            "created_at": int(self.created),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": status,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    custom_id: str
    model: str
    texts: tuple[str, ...]
    dimensions: int | None
    base64: bool


@dataclass(slots=True)
class StoredBatch:
    """A batch and its times."""

    id: str
    number: int
    endpoint: str
    file_id: str
    metadata: dict[str, str]
    created: float
    azure: bool
    lines: list[Line] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    cancelled: float | None = None
    ended: float | None = None
    done: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None


def parse(data: bytes, batch: StoredBatch) -> tuple[list[Line], list[dict[str, Any]]]:
    """Return the file's lines and what is wrong with them."""
    lines, problems, seen = list[Line](), list[dict[str, Any]](), set[str]()
    if not data.strip():
        return [], [problem("empty_file", "The input file is empty.", None)]
    for number, raw in enumerate(data.rstrip(b"\n").split(b"\n"), start=1):
        found = list(_check(raw, batch, number, seen))
        problems += found
        if not found:
            parsed = orjson.loads(raw)
            body = parsed["body"]
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            base64 = body.get("encoding_format") == "base64"
            lines.append(
                Line(parsed["custom_id"], body["model"], tuple(texts), body.get("dimensions"), base64)
            )
            seen.add(parsed["custom_id"])
    return lines, problems


def _check(raw: bytes, batch: StoredBatch, number: int, seen: set[str]) -> Iterator[dict[str, Any]]:
    """Yield what is wrong with a line."""
    try:
        if raw.startswith(_BOM):
            raise ValueError
        line = orjson.loads(raw)
    except ValueError:
        yield problem("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
        return
    for name in _NEEDED:
        if name not in line:
            yield problem(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name, number
            )
            return
    if line["url"] != batch.endpoint:
        code = "url_mismatch" if batch.azure else "invalid_url"
        message = "The URL provided for this request does not match the batch endpoint."
        yield problem(code, message, "url", number)
    if line["custom_id"] in seen:
        yield problem("duplicate_custom_id", "The custom_id was used before.", "custom_id", number)
    for name in ("model", "input"):
        if not line["body"].get(name):
            yield problem("invalid_request", f"Missing field: '{name}'.", f"body.{name}", number)


def problem(code: str, message: str, param: str | None, line: int | None = None) -> dict[str, Any]:
    """Return an entry of a batch's `errors`; lines are counted from 1."""
    return {"code": code, "message": message, "param": param, "line": line}
