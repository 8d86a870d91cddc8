"""Files and batches of the simulated provider, in the shapes of OpenAI and of Azure OpenAI.

A batch is a function of the time since it was made: nothing runs in the background, so a virtual clock may
jump over its 24 hours. Each finished line is computed and billed exactly once, when its batch ends. The order
of output lines is shuffled, as no provider promises one.
Source: the reference of the Batch and Files APIs, and what llama-stack's tests recorded of the real ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from aiohttp import BodyPartReader, web

from vecmill.testing.scenarios import Scenario
from vecmill.testing.simulator_batch_files import (
    BatchFault,
    BatchRules,
    FaultKind,
    Line,
    StoredBatch,
    StoredFile,
    parse,
    problem,
)

__all__ = ["BatchFault", "BatchRules", "BatchService", "add_routes"]

ENDPOINT = "/v1/embeddings"
AZURE_ENDPOINTS = ("/embeddings", ENDPOINT)
ENDED = ("completed", "failed", "expired", "cancelled")


class Host(Protocol):
    """What of the simulator this part needs."""

    @property
    def scenario(self) -> Scenario:
        """What the provider is like: its deployments."""

    def now(self) -> float:
        """Return the seconds since the epoch."""

    def refuse(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request without a valid key, None for one that has it."""

    def count(self, text: str) -> int:
        """Return a text's tokens."""

    def answer_line(
        self, model: str, texts: Sequence[str], dimensions: int | None, *, base64: bool
    ) -> tuple[int, dict[str, Any]]:
        """Answer one line, and bill it at the batch price: (status, body)."""


class BatchService:
    """The files and batches of one simulated account.

    Args:
        host: The simulator: its clock, its keys, its model and its bill.
        rules: How long things take and what goes wrong; may be replaced while it serves.

    Attributes:
        computed: How often each text was computed, and so paid.
        requests: How often each call was made: "create", "status", "upload", "download", ….
    """

    def __init__(self, host: Host, rules: BatchRules | None = None) -> None:
        self.rules = rules or BatchRules()
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}
        self.computed: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._host = host
        self._made = 0

    def settle(self) -> None:
        """Bring every batch to the present, so that the bill is complete."""
        for batch in self.batches.values():
            self.state(batch)

    def state(self, batch: StoredBatch) -> str:
        """Return a batch's state now; one that has just ended gets its files and is billed."""
        state, moment, done = self._progress(batch, self._host.now())
        if batch.ended is None:
            batch.done = done
            if state in ENDED:
                batch.ended = moment
                self._write_files(batch, state)
        return state

    def _progress(self, batch: StoredBatch, now: float) -> tuple[str, float, int]:
        """Return (state, since when, lines done)."""
        rules, total = self.rules, len(batch.lines)
        start = batch.created + rules.validating_seconds
        if batch.errors:
            return ("failed", start, 0) if now >= start else ("validating", batch.created, 0)
        at = now if batch.cancelled is None else min(now, batch.cancelled)
        expires = batch.created + rules.window_seconds
        stuck = self._fault("expire", batch.number) is not None
        if not batch.azure or stuck:
            at = min(at, expires)
        most = total // 2 if stuck else total
        each = rules.seconds_per_line
        done = 0 if at < start else most if each <= 0 else min(most, int((at - start) / each))
        worked = start + total * each
        finished = worked + rules.finalizing_seconds
        if batch.cancelled is not None and batch.cancelled < finished:
            end = batch.cancelled + rules.cancelling_seconds
            return ("cancelled", end, done) if now >= end else ("cancelling", batch.cancelled, done)
        if (stuck or (finished > expires and not batch.azure)) and now >= expires:
            return "expired", expires, done
        if now < start:
            return "validating", batch.created, 0
        if stuck or now < worked:
            return "in_progress", start, done
        return ("completed", finished, done) if now >= finished else ("finalizing", worked, done)

    def _write_files(self, batch: StoredBatch, state: str) -> None:
        """Compute the finished lines and keep output and error file."""
        if state == "failed":
            return
        good, bad = list[bytes](), list[bytes]()
        for number, line in enumerate(batch.lines):
            if number >= batch.done:
                bad.append(_unfinished(batch, number, line, state))
                continue
            status, body = self._compute(batch, number, line)
            (good if status == 200 else bad).append(_line(batch, number, line, status, body))
        batch.failed = len(bad) - (len(batch.lines) - batch.done)
        shuffle = random.Random(f"{self.rules.seed}/{batch.number}")  # noqa: S311  # no secret
        shuffle.shuffle(good)
        shuffle.shuffle(bad)
        if good or batch.azure:
            batch.output_file = self._keep(b"".join(good), f"{batch.id}_output.jsonl", "batch_output").id
        if bad or batch.azure:
            batch.error_file = self._keep(b"".join(bad), f"{batch.id}_error.jsonl", "batch_output").id

    def _compute(self, batch: StoredBatch, number: int, line: Line) -> tuple[int, dict[str, Any]]:
        fault = self._line_fault("line", batch, number, line)
        if fault is not None:
            return fault.status, _refusal(fault.status)
        model = line.model
        if batch.azure:
            model = self._host.scenario.deployments.get(model, model)
        status, body = self._host.answer_line(model, line.texts, line.dimensions, base64=line.base64)
        if status == 200:
            self.computed.update(line.texts)
            if self._line_fault("bad_reply", batch, number, line) is not None:
                body = {**body, "data": body["data"][1:]}
        return status, body

    def _line_fault(self, kind: FaultKind, batch: StoredBatch, number: int, line: Line) -> BatchFault | None:
        for fault in self.rules.faults:
            hit = fault.kind == kind and fault.at in (None, batch.number) and number % fault.every == 0
            if hit and any(fault.containing in text for text in line.texts):
                return fault
        return None

    def _fault(self, kind: FaultKind, number: int) -> BatchFault | None:
        return next((f for f in self.rules.faults if f.kind == kind and f.at in (None, number)), None)

    def _count(self, call: str) -> int:
        self.requests[call] += 1
        return self.requests[call] - 1

    def _next(self, kind: str) -> str:
        self._made += 1
        return f"{kind}{self._made:024x}"

    def _keep(self, data: bytes, filename: str, purpose: str) -> StoredFile:
        stored = StoredFile(self._next("file-"), data, filename, purpose, self._host.now())
        self.files[stored.id] = stored
        return stored

    def _shown_file(self, stored: StoredFile) -> dict[str, Any]:
        waiting = stored.purpose == "batch" and self.rules.processing_seconds > 0
        ready = not waiting or self._host.now() >= stored.created + self.rules.processing_seconds
        return stored.shown("processed" if ready else "pending")

    # Files.

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Keep a file."""
        number = self._count("upload")
        if self._fault("upload_reset", number):
            return _reset(request)
        fields: dict[str, str] = {}
        data, filename = None, "file"
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                data, filename = await _content(part), part.filename or filename
            else:
                fields[part.name or ""] = (await _content(part)).decode()
        if data is None or "purpose" not in fields:
            missing = "file" if data is None else "purpose"
            return _error(
                400, "missing_required_parameter", f"Missing required parameter: '{missing}'.", missing
            )
        if len(data) > self.rules.max_bytes:
            return _error(413, "content_too_large", f"The file has {len(data)} bytes.", "file")
        stored = self._keep(data, filename, fields["purpose"])
        if self._fault("upload_lost", number):
            return _reset(request)
        return web.json_response(self._shown_file(stored))

    async def list_files(self, request: web.Request) -> web.StreamResponse:
        """List files, newest first."""
        self._count("list_files")
        purpose = request.query.get("purpose")
        found = [f for f in reversed(self.files.values()) if purpose in (None, f.purpose)]
        return _page(request, [self._shown_file(f) for f in found], most=10_000, usual=10_000)

    async def get_file(self, request: web.Request) -> web.StreamResponse:
        """Show a file's object."""
        self._count("get_file")
        stored = self.files.get(request.match_info["id"])
        return web.json_response(self._shown_file(stored)) if stored else _no_file(request)

    async def content(self, request: web.Request) -> web.StreamResponse:
        """Send a file."""
        stored = self.files.get(request.match_info["id"])
        if stored is None:
            return _no_file(request)
        number = self._count("download") if stored.filename.endswith("_output.jsonl") else -1
        self.requests["content"] += 1
        data = stored.data
        if number >= 0 and self._fault("cut", number):
            data = data[: len(data) // 2]
        if number >= 0 and self._fault("download_reset", number):
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            return _reset(request, response)
        return web.Response(body=data, content_type="application/octet-stream")

    async def delete_file(self, request: web.Request) -> web.StreamResponse:
        """Forget a file."""
        self._count("delete_file")
        stored = self.files.pop(request.match_info["id"], None)
        if stored is None:
            return _no_file(request)
        return web.json_response({"id": stored.id, "object": "file", "deleted": True})

    # Batches.

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Make a batch of an uploaded file."""
        number = self._count("create")
        azure = _is_azure(request)
        body = await request.json(loads=orjson.loads)
        endpoint, metadata = body.get("endpoint"), body.get("metadata") or {}
        known = AZURE_ENDPOINTS if azure else (ENDPOINT,)
        if endpoint not in known:
            message = f"Invalid value: '{endpoint}'. Supported values are: '{ENDPOINT}'."
            return _error(400, "invalid_value", message, "endpoint")
        if body.get("completion_window") != "24h":
            return _error(400, "invalid_value", "Invalid value for completion_window.", "completion_window")
        for name, value in metadata.items():
            if not isinstance(value, str):
                return _error(400, "invalid_type", "Expected a string.", f"metadata.{name}")
        if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            return _error(400, "invalid_value", "The metadata is too large.", "metadata")
        batch = StoredBatch(
            self._next("batch_"),
            len(self.batches),
            endpoint,
            body["input_file_id"],
            dict(metadata),
            self._host.now(),
            azure,
        )
        self._fill(batch)
        self.batches[batch.id] = batch
        if self._fault("create_lost", number):
            return _reset(request)
        return web.json_response(self._shown_batch(batch))

    async def get_batch(self, request: web.Request) -> web.StreamResponse:
        """Show how a batch stands."""
        self._count("status")
        batch = self.batches.get(request.match_info["id"])
        return web.json_response(self._shown_batch(batch)) if batch else _no_batch(request)

    async def list_batches(self, request: web.Request) -> web.StreamResponse:
        """List batches, newest first."""
        self._count("list_batches")
        shown = [self._shown_batch(batch) for batch in reversed(self.batches.values())]
        return _page(request, shown, most=100, usual=20)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop a batch; what is finished is kept."""
        self._count("cancel")
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return _no_batch(request)
        state = self.state(batch)
        if state in ("completed", "failed", "expired"):
            return _error(409, None, f"Cannot cancel a batch with status '{state}'.", None)
        if batch.cancelled is None:
            batch.cancelled = self._host.now()
        return web.json_response(self._shown_batch(batch))

    def _fill(self, batch: StoredBatch) -> None:
        """Check the input file and take its lines."""
        stored = self.files.get(batch.file_id)
        if stored is None:
            batch.errors = [problem("invalid_request", f"Cannot find file {batch.file_id}.", "file_id")]
            return
        fault = self._fault("fail", batch.number)
        if fault is not None:
            batch.errors = [problem(fault.code, "This line is not parseable as valid JSON.", None, 1)]
            return
        lines, batch.errors = parse(stored.data, batch)
        inputs = sum(len(line.texts) for line in lines)
        rules = self.rules
        if not batch.errors and (len(lines) > rules.max_lines or inputs > rules.max_inputs):
            message = (
                f"The batch has {len(lines)} requests and {inputs} inputs; the limit is {rules.max_inputs}."
            )
            batch.errors = [problem("too_many_tasks", message, None)]
        batch.tokens = sum(self._host.count(text) for line in lines for text in line.texts)
        if not batch.errors and rules.enqueued_tokens is not None:
            queued = sum(b.tokens for b in self.batches.values() if self.state(b) not in ENDED)
            if queued + batch.tokens > rules.enqueued_tokens:
                message = (
                    f"Enqueued token limit reached for {lines[0].model} in organization org-x. Limit: "
                    f"{rules.enqueued_tokens:,} enqueued tokens. Please try again once some in_progress "
                    f"batches have been completed."
                )
                batch.errors = [problem("token_limit_exceeded", message, None)]
        if not batch.errors:
            batch.lines = lines

    def _shown_batch(self, batch: StoredBatch) -> dict[str, Any]:
        state = self.state(batch)
        shown: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "errors": None,
            "input_file_id": batch.file_id,
            "completion_window": "24h",
            "status": state,
            "output_file_id": batch.output_file,
            "error_file_id": batch.error_file,
            "created_at": int(batch.created),
            "expires_at": int(batch.created + self.rules.window_seconds),
            "metadata": batch.metadata,
            "request_counts": {
                "total": 0 if state in ("validating", "failed") else len(batch.lines),
                "completed": batch.done - batch.failed,
                "failed": batch.failed,
            },
        }
        if state == "failed":
            shown["errors"] = {"object": "list", "data": batch.errors}
        if batch.ended is not None:
            shown[f"{state}_at"] = int(batch.ended)
        return shown


def add_routes(app: web.Application, host: Host, rules: BatchRules | None = None) -> BatchService:
    """Serve files and batches under `/v1`, `/openai` (with `api-version`) and `/openai/v1`.

    Args:
        app: The application that also serves the embeddings.
        host: The simulator.
        rules: How long things take and what goes wrong.

    Returns:
        The service, whose counters prove what was asked and computed.
    """
    service = BatchService(host, rules)

    def guarded(handler: Callable[..., Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            refusal = host.refuse(request)
            if refusal is not None:
                return refusal
            classic = request.path.startswith("/openai/") and not request.path.startswith("/openai/v1/")
            if classic and "api-version" not in request.query:
                return _error(404, "404", "Resource not found", None)
            answer: web.StreamResponse = await handler(request)
            return answer

        return handle

    for base in ("/v1", "/openai/v1", "/openai"):
        app.router.add_post(f"{base}/files", guarded(service.upload))
        app.router.add_get(f"{base}/files", guarded(service.list_files))
        app.router.add_get(f"{base}/files/{{id}}", guarded(service.get_file))
        app.router.add_get(f"{base}/files/{{id}}/content", guarded(service.content))
        app.router.add_delete(f"{base}/files/{{id}}", guarded(service.delete_file))
        app.router.add_post(f"{base}/batches", guarded(service.create))
        app.router.add_get(f"{base}/batches", guarded(service.list_batches))
        app.router.add_get(f"{base}/batches/{{id}}", guarded(service.get_batch))
        app.router.add_post(f"{base}/batches/{{id}}/cancel", guarded(service.cancel))
    return service


# Helpers.


async def _content(part: BodyPartReader) -> bytes:
    """Read a field of a form whole, however large requests for embeddings may be."""
    pieces = []
    while piece := await part.read_chunk(1 << 20):
        pieces.append(bytes(piece))
    return b"".join(pieces)


def _refusal(status: int) -> dict[str, Any]:
    kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(status, "server_error")
    code = "rate_limit_exceeded" if status == 429 else None
    message = f"The simulated provider answers {status}."
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _line(
    batch: StoredBatch, number: int, line: Line, status: int, body: Mapping[str, Any], error: object = None
) -> bytes:
    response = {"status_code": status, "request_id": f"req_{batch.number}_{number}", "body": body}
    shown = {
        "id": f"batch_req_{batch.number}_{number}",
        "custom_id": line.custom_id,
        "response": response if status else None,
        "error": error,
    }
    return orjson.dumps(shown, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _unfinished(batch: StoredBatch, number: int, line: Line, state: str) -> bytes:
    message = "This request could not be executed before the completion window expired."
    if state == "cancelled":
        message = "This request was cancelled before it was executed."
    return _line(batch, number, line, 0, {}, {"code": f"batch_{state}", "message": message})


def _page(request: web.Request, items: list[dict[str, Any]], *, most: int, usual: int) -> web.StreamResponse:
    limit = int(request.query.get("limit", usual))
    if not 1 <= limit <= most:
        return _error(400, "invalid_value", f"limit must be 1 to {most}.", "limit")
    after = request.query.get("after")
    if after:
        ids = [item["id"] for item in items]
        items = items[ids.index(after) + 1 :] if after in ids else []
    page = items[:limit]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


def _is_azure(request: web.Request) -> bool:
    return request.path.startswith("/openai/")


def _no_file(request: web.Request) -> web.Response:
    return _error(404, None, f"No such File object: {request.match_info['id']}", "id")


def _no_batch(request: web.Request) -> web.Response:
    return _error(404, None, f"No batch found with id '{request.match_info['id']}'.", None)


def _error(status: int, code: str | None, message: str, param: str | None) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)


def _reset(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Break the connection."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()
