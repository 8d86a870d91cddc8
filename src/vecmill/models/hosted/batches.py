"""The providers' Batch API: files of requests, answered within a day at a lower price.

One method is one request and retries nothing. OpenAI and Azure OpenAI speak the same words here; what differs
is in the connection: the addresses, the login, what a line calls the embeddings (`Connection.batch_path`).
Source: the providers' reference pages of files and batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import orjson

from vecmill.core.errors import BadReplyError, InputError, RefusedError
from vecmill.core.http import FileForm, Response, Session
from vecmill.models import base
from vecmill.models.hosted import wire
from vecmill.models.hosted.connection import Connection
from vecmill.models.hosted.errors import classify, holds_error
from vecmill.models.hosted.provider import HostedProvider

WINDOW = "24h"
"""The only completion window there is."""

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

FILE_SECONDS = 3_600.0
"""Time for 200 MB up or a gigabyte down over a slow line."""

_MAX_DOWNLOAD = 8 << 30  # 50,000 vectors of 3,072 components as decimal numbers have 3 GB
_PAGE = 100
_FILES_PAGE = 10_000
_WAITING = frozenset({"pending", "running", "notRunning", "queued", "uploaded"})
_BROKEN = frozenset({"error", "failed"})


@dataclass(frozen=True, slots=True)
class BatchError:
    """Why a batch was refused as a whole.

    Attributes:
        line: The line of the input file that is to blame, counted from 1, or None.
        param: What is to blame in the line or in the request.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How a batch stands.

    Attributes:
        state: "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling" or
            "cancelled". Expired and cancelled ones keep the lines they finished.
        total, completed, failed: Lines.
        output_file, error_file: Ids of the files of answered and of failed lines; None where there is none.
        errors: Why it failed as a whole.
        created, expires: Seconds since the epoch.
        metadata: What it was given when it was made.
    """

    id: str
    state: str
    total: int
    completed: int
    failed: int
    output_file: str | None
    error_file: str | None
    errors: tuple[BatchError, ...]
    created: float | None
    expires: float | None
    metadata: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class BatchModel:
    """A model asked through batches: its lines and replies are those of its ordinary requests."""

    _provider: HostedProvider

    @classmethod
    def of(cls, provider: base.HostedProvider) -> BatchModel:
        """Return a provider's model for batches.

        Raises:
            InputError: It is none that has batches.
        """
        if not isinstance(provider, HostedProvider):
            raise InputError(f"{provider.info.name} has no Batch API that is known; leave --via batch away")
        return cls(provider)

    def client(self) -> BatchClient:
        """Return what uploads files and makes batches.

        Raises:
            InputError: The provider has no Batch API.
        """
        return BatchClient(self._provider._connection, self._provider._session)

    @property
    def path(self) -> str:
        """What a line calls the embeddings."""
        return self._provider._connection.batch_path

    def body(self, texts: Sequence[str], *, variant: str = "") -> bytes:
        """Return the body of a line, which always names the model (the deployment, on Azure).

        Args:
            texts: At least one.
            variant: As `Encoded.variant`.
        """
        provider = self._provider
        return wire.encode_body(
            texts,
            model=variant or provider._connection.model,
            dimensions=provider._known.sent_dimensions,
            user=provider._options.user,
            base64=provider._learned.base64 is not False,
        )

    def reply(self, value: object, count: int) -> wire.Parsed:
        """Return what the body of an answered line says, checked as a reply of the model is.

        Args:
            value: The JSON value.
            count: Texts of the line.

        Raises:
            BadReplyError: It does not answer the line.
            RefusedError: Another model answered than the one known.
        """
        provider = self._provider
        if holds_error(value):
            raise BadReplyError("the answer to a line is an error", retryable=True, code="bad_reply")
        width, unit = provider._width(), provider._unit_length()
        parsed = wire.decode_reply(value, count=count, width=width, normalized=unit)
        if provider._known.facts.query_model is None:
            provider._check_model(parsed, Response(200, {}, b""))
        return parsed


class BatchClient:
    """Files and batches of one account.

    Args:
        connection: Where and as whom; with `files_url` and `batches_url`.
        session: Sends the requests; it stays its owner's to close.

    Raises:
        InputError: The provider has no Batch API.
    """

    def __init__(self, connection: Connection, session: Session) -> None:
        if connection.files_url is None or connection.batches_url is None:
            raise InputError(
                f"{connection.name} has no Batch API that is known; leave --via batch away, or use a "
                f"model of openai: or azure:"
            )
        self._connection, self._session = connection, session
        self._files, self._batches = connection.files_url, connection.batches_url

    async def upload(self, path: Path, *, filename: str) -> str:
        """Upload a file of lines and return its id; what is uploaded costs nothing until a batch uses it.

        Args:
            path: JSON lines, at most 200 MB.
            filename: What the provider calls it; `find_file` finds it by this name.

        Raises:
            ProviderError: It was not taken, or nobody knows whether it was.
        """
        form = FileForm(
            path, fields={"purpose": "batch"}, filename=filename, content_type="application/jsonl"
        )
        return _id(await self._ask("POST", self._files, form=form, timeout=FILE_SECONDS), "id")

    async def file_is_ready(self, file_id: str) -> bool:
        """Say whether an uploaded file can be used by a batch; Azure looks at it first.

        Raises:
            RefusedError: The provider found it broken.
            ProviderError: The provider cannot say.
        """
        status = str((await self._ask("GET", _below(self._files, file_id))).get("status"))
        if status in _BROKEN:
            raise RefusedError(
                f"{self._connection.name} cannot use the uploaded file {file_id}: status {status!r}",
                provider=self._connection.provider,
                model=self._connection.name,
                code="file_refused",
            )
        return status not in _WAITING or (status == "uploaded" and self._connection.provider != "azure")

    async def find_file(self, filename: str, size_bytes: int) -> str | None:
        """Return the id of an uploaded file of this name and size, the newest one, or None.

        Raises:
            ProviderError: The provider cannot say.
        """
        reply = await self._ask("GET", _below(self._files, purpose="batch", limit=str(_FILES_PAGE)))
        for item in _items(reply):
            if item.get("filename") == filename and item.get("bytes") == size_bytes:
                return _id(item, "id")
        return None

    async def create(self, file_id: str, metadata: Mapping[str, str]) -> BatchStatus:
        """Make a batch of an uploaded file. From now on it costs.

        Args:
            file_id: From `upload`.
            metadata: At most 16 pairs, names to 64 and values to 512 characters; `find` finds it by these.

        Raises:
            ProviderError: It was not made, or nobody knows whether it was: ask `find`.
        """
        body = {
            "input_file_id": file_id,
            "endpoint": self._connection.batch_path,
            "completion_window": WINDOW,
            "metadata": dict(metadata),
        }
        return _status(await self._ask("POST", self._batches, json=body))

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how a batch stands.

        Raises:
            ProviderError: The provider cannot say, or knows no such batch.
        """
        return _status(await self._ask("GET", _below(self._batches, batch_id)))

    async def find(self, metadata: Mapping[str, str], *, since: float = 0.0) -> BatchStatus | None:
        """Return the newest batch that was made with this metadata and has not failed, or None.

        Args:
            metadata: All of these must be among the batch's own.
            since: Older batches (seconds since the epoch) are not looked at.

        Raises:
            ProviderError: The provider cannot say.
        """
        after: str | None = None
        while True:
            query = {"limit": str(_PAGE)} | ({"after": after} if after else {})
            reply = await self._ask("GET", _below(self._batches, **query))
            page = [_status(item) for item in _items(reply)]
            for found in page:
                if found.state != "failed" and metadata.items() <= found.metadata.items():
                    return found
            oldest = min((found.created or since for found in page), default=0.0)
            if not page or not reply.get("has_more") or oldest < since or page[-1].id == after:
                return None
            after = page[-1].id

    async def download(self, file_id: str, to: Path) -> None:
        """Write a file's content to a path, which is replaced when it is whole.

        Raises:
            ProviderError: It did not come whole, or there is no such file.
            WriteError: The disk does not take it.
        """
        await self._send("GET", _below(self._files, file_id, "content"), timeout=FILE_SECONDS, to=to)

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Stop a batch. Lines it has finished are kept and paid.

        Raises:
            ProviderError: It has ended already, or is not known.
        """
        return _status(await self._ask("POST", _below(self._batches, batch_id, "cancel"), json={}))

    async def delete_file(self, file_id: str) -> None:
        """Delete a file at the provider; one that is gone is fine.

        Raises:
            ProviderError: It was not deleted.
        """
        await self._send("DELETE", _below(self._files, file_id), missing_ok=True)

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        json: object | None = None,
        form: FileForm | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the object it is answered with."""
        response = await self._send(method, url, json=json, form=form, timeout=timeout)
        try:
            reply = orjson.loads(response.body)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise BadReplyError(
                f"{self._connection.name} answered something that is not a JSON object",
                provider=self._connection.provider,
                model=self._connection.name,
                status=response.status,
                retryable=True,
            )
        return reply

    async def _send(
        self,
        method: str,
        url: str,
        *,
        json: object | None = None,
        form: FileForm | None = None,
        timeout: float | None = None,
        to: Path | None = None,
        missing_ok: bool = False,
    ) -> Response:
        secret = await self._connection.login()
        headers = {**self._connection.headers, **secret}
        headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        if json is not None:
            headers["Content-Type"] = "application/json"
        response = await self._session.request(
            method,
            url,
            headers=headers,
            body=None if json is None else orjson.dumps(json),
            form=form,
            timeout=timeout or self._connection.timeout,
            max_bytes=_MAX_DOWNLOAD,
            to=to,
        )
        if 200 <= response.status < 300 or (missing_ok and response.status == 404):
            return response
        raise classify(self._connection, response, secrets=secret.values())


def _below(url: str, *names: str, **query: str) -> str:
    """Return an address below another one, whose query (Azure's `api-version`) is kept."""
    parts = urlsplit(url)
    path = "/".join((parts.path.rstrip("/"), *(quote(name, safe="") for name in names)))
    joined = "&".join(filter(None, (parts.query, urlencode(query))))
    return urlunsplit((parts.scheme, parts.netloc, path, joined, ""))


def _items(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    data = reply.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise BadReplyError("a list of files or batches has no 'data'", retryable=True)
    return data


def _text(reply: Mapping[str, Any], name: str) -> str:
    value = reply.get(name)
    if not isinstance(value, str) or not value:
        raise BadReplyError(f"a file or batch has no {name!r}", retryable=True)
    return value


def _id(reply: Mapping[str, Any], name: str) -> str:
    """Return an id that may stand in an address: a dot alone, or two, would name another one."""
    value = _text(reply, name)
    if not _ID.fullmatch(value):
        raise BadReplyError(f"a file or batch has a {name!r} that is no id", retryable=True)
    return value


_ID = re.compile(r"(?!\.{1,2}$)[\w.:@=+-]{1,200}", re.ASCII)


def _status(reply: Mapping[str, Any]) -> BatchStatus:
    counts = _table(reply.get("request_counts"))
    errors = _table(reply.get("errors")).get("data")
    return BatchStatus(
        id=_id(reply, "id"),
        state=_text(reply, "status"),
        total=_count(counts.get("total")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        output_file=_id(reply, "output_file_id") if reply.get("output_file_id") else None,
        error_file=_id(reply, "error_file_id") if reply.get("error_file_id") else None,
        errors=tuple(map(_error, errors)) if isinstance(errors, list) else (),
        created=_seconds(reply.get("created_at")),
        expires=_seconds(reply.get("expires_at")),
        metadata=_table(reply.get("metadata")),
    )


def _error(value: object) -> BatchError:
    given = _table(value)
    code, message, line, param = (given.get(name) for name in ("code", "message", "line", "param"))
    return BatchError(
        code if isinstance(code, str) else "",
        message if isinstance(message, str) else "",
        line if type(line) is int else None,
        param if isinstance(param, str) else None,
    )


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
