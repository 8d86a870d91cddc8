"""What requests and answers look like: the types bodies are read into, and those the OpenAPI document shows.

Fields a request does not know are ignored, as other servers do; with `Options.strict` they are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from vecmill.core.extras import require

require("msgspec", extra="serve")

import msgspec  # noqa: E402 - a missing one is told by `require`
from msgspec import Meta, Struct  # noqa: E402

EXACTLY = "x-exactly"
"""In an annotation: what the OpenAPI document says instead of what follows from the type."""


def _exactly(schema: dict[str, Any]) -> dict[str, Any]:
    return {EXACTLY: schema}


Number = int | float
"""A whole number as clients write it: 3, or 3.0."""

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 1_000_000}
_TOKENS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
}
_INPUT_SCHEMA: dict[str, Any] = {
    "description": "A text, up to 2048 texts, the token ids of a text, or of up to 2048 texts.",
    "anyOf": [
        _TEXT,
        {"type": "array", "minItems": 1, "maxItems": 2048, "items": _TEXT},
        _TOKENS,
        {"type": "array", "minItems": 1, "maxItems": 2048, "items": _TOKENS},
    ],
}
_TEXTS_SCHEMA: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": 2048, "items": _TEXT}]
}
_DOCUMENTS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": 2048,
    "items": {
        "anyOf": [
            _TEXT,
            {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]},
        ]
    },
}
_POSITIVE: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": 65_536}, {"type": "null"}]
}
_TRUNCATE: dict[str, Any] = {
    "description": "What happens to a text above the model's limit: an error, its beginning, or the mean of "
    "its parts weighted by their tokens.",
    "anyOf": [
        {"type": "boolean"},
        {"type": "string", "enum": ["none", "end", "average"]},
        {"type": "null"},
    ],
}
_ROLE: dict[str, Any] = {
    "description": "The role of the texts, for models that tell queries from documents.",
    "anyOf": [
        {"type": "string", "enum": ["document", "query", "search_document", "search_query", "passage"]},
        {"type": "null"},
    ],
}

Input = str | list[str | int | float | list[Number]]
"""The four forms `input` may have; which one it is, `inputs` finds out."""

Dimensions = Annotated[Number | None, Meta(extra_json_schema=_exactly(_POSITIVE))]
Truncate = Annotated[bool | str | None, Meta(extra_json_schema=_exactly(_TRUNCATE))]
Role = Annotated[str | None, Meta(extra_json_schema=_exactly(_ROLE))]
ModelName = Annotated[str, Meta(description="The id of a served model.")]


class _Embeddings(Struct, kw_only=True):
    input: Annotated[Input, Meta(extra_json_schema=_exactly(_INPUT_SCHEMA))]
    encoding_format: Literal["float", "base64", "int8", "ubinary"] | None = None
    dimensions: Dimensions = None
    user: str | None = None
    input_type: Role = None
    truncate: Truncate = None


class EmbeddingsRequest(_Embeddings, kw_only=True):
    """Texts to embed. `input_type` and `truncate` are additions, sent by official clients as `extra_body`."""

    model: ModelName


class DeploymentRequest(_Embeddings, kw_only=True):
    """Texts to embed by the deployment the path names; `model` is not needed."""

    model: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    """Texts to tokenize. `max_length` cuts, and is what `pad_to_max_length` fills up to."""

    model: ModelName
    text: Annotated[str | list[str], Meta(extra_json_schema=_exactly(_TEXTS_SCHEMA))]
    max_length: Dimensions = None
    pad_to_max_length: bool | None = None
    padding_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None


class Document(Struct, kw_only=True):
    """A document to rank."""

    text: str


class RerankRequest(Struct, kw_only=True):
    """Documents to put into the order of their similarity to a query."""

    model: ModelName
    query: Annotated[str, Meta(extra_json_schema=_exactly(_TEXT))]
    documents: Annotated[list[str | Document], Meta(extra_json_schema=_exactly(_DOCUMENTS_SCHEMA))]
    top_n: Dimensions = None
    return_documents: bool | None = None
    truncate: Truncate = None


# Answers.


class Usage(Struct, kw_only=True):
    """Tokens that were embedded, special tokens and prefixes included."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Struct, kw_only=True):
    """One vector: numbers, or base64 of little-endian float32. `scale` comes with int8 alone."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    scale: float | msgspec.UnsetType = msgspec.UNSET


class EmbeddingsReply(Struct, kw_only=True):
    """One vector per input, in order. `truncated` lists inputs that were cut, where there are any."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: list[int] | msgspec.UnsetType = msgspec.UNSET


class TokenizeReply(Struct, kw_only=True):
    """Token ids: of a text, or of each text of a list."""

    tokens: Annotated[
        list[Any],
        Meta(
            extra_json_schema={
                "items": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}
            }
        ),
    ]


class Ranked(Struct, kw_only=True):
    """A document's place: `relevance_score` is the cosine between its vector and the query's."""

    index: int
    relevance_score: float
    document: Document | msgspec.UnsetType = msgspec.UNSET


class RerankReply(Struct, kw_only=True):
    """The most similar documents first; equal ones in the order they came."""

    id: str
    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: Usage
    meta: dict[str, Any]


class Model(Struct, kw_only=True):
    """A served model; what follows `owned_by` is more than OpenAI tells."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    max_tokens: int
    max_inputs: int
    space: str
    normalized: bool
    precision: str
    languages: list[str]
    provider: str


class ModelList(Struct, kw_only=True):
    """The served models, by name."""

    object: Literal["list"]
    data: list[Model]


class Problem(Struct, kw_only=True):
    """What was wrong; all four are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct, kw_only=True):
    """Every answer that is no success."""

    error: Problem
