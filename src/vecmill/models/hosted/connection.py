"""How a hosted model is reached: URLs, login, facts. What the provider is built from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Login: TypeAlias = Callable[[], Awaitable[Mapping[str, str]]]
"""Gives the headers that prove who asks, fresh for each request: Entra tokens end after an hour."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model before it is asked.

    Attributes:
        catalogue_name: "text-embedding-3-small" where the catalogue knows it: decides the space.
        dimensions: Full size; None when nobody knows yet.
        mrl: Whether the first components are vectors themselves; None when unknown.
        least_dimensions: The least an MRL model is said to be good for.
        normalized: Whether vectors have unit length.
        max_tokens: Tokens one text may have.
        max_inputs, max_request_tokens, max_request_bytes: Limits of one request.
        document_prefix, query_prefix: Put before texts of that role.
        query_model: The other one of a pair of models, for queries.
        usd_per_million_tokens, batch_usd_per_million_tokens: Prices; None when unknown.
        tokenizer: Name of the encoding tokens are counted with. exact: whether it is the model's own.
    """

    catalogue_name: str | None = None
    dimensions: int | None = None
    mrl: bool | None = None
    least_dimensions: int = 1
    normalized: bool = True
    max_tokens: int = 8192
    max_inputs: int = 2048
    max_request_tokens: int | None = 300_000
    max_request_bytes: int | None = None
    document_prefix: str = ""
    query_prefix: str = ""
    query_model: str | None = None
    usd_per_million_tokens: float | None = None
    batch_usd_per_million_tokens: float | None = None
    tokenizer: str = "cl100k_base"
    exact: bool = True
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Connection:
    """A hosted model's address.

    Attributes:
        provider: "openai", "azure" or "github".
        name: As the user would type it: "azure:reviews".
        model: What the body's `model` says (a deployment, for Azure).
        embeddings_url: Where texts are posted, query string included.
        files_url, batches_url: Where the Batch API is; None where there is none.
        batch_path: What a batch's lines call the embeddings URL: "/v1/embeddings".
        account: Tells accounts apart without telling the key: a hash of it. "" without a key.
        headers: Sent with each request; no secrets.
        login: Gives the secret headers.
        sends_model: Whether the body names the model (classic Azure URLs name it in the path).
        vouched: Whether the vendor itself is asked, so that a catalogue name is believed to be that model.
        unknown_hint: What to say where there is no such model: close names, and where profiles stand.
        learned_path: Where learned facts are kept, or None.
        requests_per_minute, tokens_per_minute, max_concurrency, timeout: As `Endpoint`.
    """

    provider: str
    name: str
    model: str
    embeddings_url: str
    login: Login = field(repr=False)
    facts: Facts = field(default_factory=Facts)
    files_url: str | None = None
    batches_url: str | None = None
    batch_path: str = "/v1/embeddings"
    account: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    sends_model: bool = True
    vouched: bool = False
    unknown_hint: str = ""
    learned_path: Path | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int = 64
    timeout: float = 120.0
