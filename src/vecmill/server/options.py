"""What an operator may set, with the limits the documentation promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of everything is taken. Times are seconds.

    Attributes:
        max_inputs: Texts of one request.
        max_request_tokens: Tokens of one request.
        max_characters: Characters of one text, checked before it is tokenized.
        max_body_bytes: Bytes of a request's body.
        max_bodies_bytes: Of the bodies of all requests that are being read, beyond the first 64 KiB of each.
        max_line_bytes, max_header_bytes, max_headers: The request line, all headers, their number.
        header_seconds: From the first byte of a request to the end of its headers.
        body_idle_seconds: Without any byte of a body.
        body_seconds, body_seconds_per_mib: For a whole body.
        keep_alive_seconds: An idle connection is kept.
        max_connections, max_connections_per_address: Connections at once.
        request_seconds: From the end of a request, its body included, to its answer; a client may ask for
            less.
        queue_tokens: Tokens that may wait for one model.
        queue_seconds: How long they may be expected to wait.
        batch_tokens: Tokens of one batch.
        key_requests_per_minute, key_tokens_per_minute, key_concurrency: Of one key; None: no limit.
        failed_keys_per_minute: Wrong keys from one address, before it is told to wait.
        drain_notice_seconds: Between the news that the server stops and the end of accepting.
        drain_seconds: For requests to end.
    """

    max_inputs: int = 2048
    max_request_tokens: int = 300_000
    max_characters: int = 1_000_000
    max_body_bytes: int = 16 * MIB
    max_bodies_bytes: int = 256 * MIB
    max_line_bytes: int = 8192
    max_header_bytes: int = 32_768
    max_headers: int = 100
    header_seconds: float = 10.0
    body_idle_seconds: float = 10.0
    body_seconds: float = 60.0
    body_seconds_per_mib: float = 1.0
    keep_alive_seconds: float = 75.0
    max_connections: int = 1024
    max_connections_per_address: int = 128
    request_seconds: float = 60.0
    queue_tokens: int = 64 * 16_384
    queue_seconds: float = 2.0
    batch_tokens: int = 16_384
    key_requests_per_minute: int | None = None
    key_tokens_per_minute: int | None = None
    key_concurrency: int | None = None
    failed_keys_per_minute: int = 10
    drain_notice_seconds: float = 5.0
    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to serve.

    Attributes:
        name: The id clients ask for.
        spec: What it is: a model's name or folder as `models.resolve.open_model` takes it. A folder whose
            sub-folders are numbers holds versions; the highest is served.
        pooling, normalize, streams, device, precision, max_tokens: Of a local model; None: its own.
        long_text: What happens to a text above the limit unless the request says otherwise: "error",
            "truncate" or "average".
        pinned: Whether it stays in memory when the budget is short.
    """

    name: str
    spec: str
    pooling: str | None = None
    normalize: bool | None = None
    streams: int | None = None
    device: str | None = None
    precision: str | None = None
    max_tokens: int | None = None
    long_text: str = "error"
    pinned: bool = True


@dataclass(frozen=True, slots=True)
class Options:
    """What a server serves, where, and to whom.

    Attributes:
        host, port: Where it listens; port 0 takes a free one.
        models: Served models; the first is nothing special.
        repository: A folder of `<name>/<version>/…`, watched every `poll_seconds` (0: only on reload).
        common: How the repository's models are opened; `name`, `spec` and `pinned` of it mean nothing.
        memory_bytes: What models that are not pinned may take together; None: no budget.
        token_ids: "auto", "own" or "cl100k": whose vocabulary lists of token ids are in.
        cache: Whether vectors are kept on disk; None: those that cost money.
        max_usd: What hosted models may spend, each.
        strict: Refuse unknown fields of a request.
        allow_truncated_dimensions: Cut vectors also of models not known to allow it.
        keys_file: Where keys are kept; None: `keys.json` of the settings' home.
        key_hashes: SHA-256 of keys that are in no file and may everything (`keys.plain_key`).
        require_keys: Closed also where no key exists yet; set for addresses other than this machine's.
        insecure_no_keys: Open where no key exists, also at addresses others reach.
        oidc_issuer, oidc_audience, oidc_jwks_url: Whose bearer tokens are believed.
        allowed_hosts: Values of Host that are answered; empty: those of a loopback address, or any where
            keys are required.
        allowed_origins: Browsers' pages that may ask.
        tls_cert, tls_key: Certificate and key (PEM) to serve https.
        docs: Serve the OpenAPI document and its page.
        metrics: Serve /metrics.
        limits: How much of everything.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    models: tuple[ModelSource, ...] = (ModelSource("minilm", "minilm"),)
    repository: Path | None = None
    common: ModelSource = ModelSource("", "")
    poll_seconds: float = 1.0
    memory_bytes: int | None = None
    token_ids: str = "auto"  # noqa: S105 - no password
    cache: bool | None = None
    max_usd: float | None = None
    strict: bool = False
    allow_truncated_dimensions: bool = False
    keys_file: Path | None = None
    key_hashes: tuple[bytes, ...] = field(default=(), repr=False)
    require_keys: bool = False
    insecure_no_keys: bool = False
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    oidc_jwks_url: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    docs: bool = True
    metrics: bool = True
    limits: Limits = field(default_factory=Limits)
