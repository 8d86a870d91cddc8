"""The simulated provider's model: counts tokens, checks requests, makes vectors and replies.

Tokens are counted by an encoding built here from the shipped ranks and the pattern in its first published
form, so that a fault in `core.tokens` shows. Texts are not kept: everything is keyed by their digests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from vecmill.core.types import Vectors
from vecmill.testing.hashed import seeds_of, vectors_of
from vecmill.testing.scenarios import Model, Scenario

if TYPE_CHECKING:
    import tiktoken

_REFERENCE = "https://platform.openai.com/docs/api-reference"
_MOST_COUNTS = 500_000
_MOST_ROW_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is refused, as OpenAI says it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    def body(self) -> dict[str, Any]:
        """Return OpenAI's shape."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def azure_body(self) -> dict[str, Any]:
        """Return the shape of Azure's classic door, which has neither type nor param."""
        return {"error": {"code": self.code or str(self.status), "message": self.message}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood.

    Attributes:
        name: The model's name. model: what it is.
        digests: Of each text, 16 bytes. tokens: of each text.
        dimensions: As asked, or None. base64: whether that was asked.
        poisoned: Whether a text contains the scenario's poison.
    """

    name: str
    model: Model
    digests: tuple[bytes, ...]
    tokens: tuple[int, ...]
    dimensions: int | None = None
    base64: bool = False
    poisoned: bool = False

    @property
    def total_tokens(self) -> int:
        """The request's tokens."""
        return sum(self.tokens)


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of `data`: its index (None: it has none) and its vector as JSON."""

    index: int | None
    value: bytes


class SimulatedModels:
    """Every model of a scenario. Its vectors are a pure function of text and model."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._counts: dict[bytes, int] = {}
        self._rows: dict[tuple[str, int, bytes], bytes] = {}
        self._row_bytes = 0

    def count(self, text: str) -> int:
        """Return a text's tokens."""
        return self._measure(text)[1]

    def vectors(self, digests: Sequence[bytes], name: str, dimensions: int | None = None) -> Vectors:
        """Return the vectors of texts, given by their digests: (n, d) float32 of unit length."""
        width = self._scenario.models[name].dimensions if dimensions is None else dimensions
        salt = _salt(name + self._scenario.models[name].revision)
        return vectors_of(seeds_of(digests) ^ salt, width)

    def understand(self, body: Any, name: str) -> Asked | Problem:
        """Check a request's shape and measure its texts, but not how many and how long they are.

        Args:
            body: The parsed body.
            name: The model's name in the scenario; it exists.
        """
        if "input" not in body:
            return Problem(
                400,
                "Missing required parameter: 'input'.",
                param="input",
                code="missing_required_parameter",
            )
        texts = _inputs(body["input"])
        if texts is None:
            return Problem(400, f"'$.input' is invalid. Please check the API reference: {_REFERENCE}.")
        problem = self._check_options(body, name)
        if problem is not None:
            return problem
        measured = [self._measure(text) for text in texts]
        if any(tokens < 0 for _, tokens in measured):
            return Problem(400, "Invalid 'input': a token is outside of the vocabulary.", param="input")
        poison = self._scenario.poison
        return Asked(
            name,
            self._scenario.models[name],
            tuple(digest for digest, _ in measured),
            tuple(tokens for _, tokens in measured),
            body.get("dimensions"),
            body.get("encoding_format") == "base64",
            bool(poison) and any(isinstance(text, str) and poison in text for text in texts),
        )

    def check(self, asked: Asked) -> Problem | None:
        """Say what limit of one request is broken, or that a text is refused."""
        scenario, longest = self._scenario, max(asked.tokens)
        if len(asked.tokens) > scenario.max_inputs:
            return _too_many_inputs(scenario, len(asked.tokens))
        if longest > asked.model.max_tokens:
            return Problem(
                400,
                f"This model's maximum context length is {asked.model.max_tokens} tokens, however you "
                f"requested {longest} tokens ({longest} in your prompt; 0 for the completion). Please reduce "
                f"your prompt; or completion length.",
            )
        most = scenario.max_request_tokens
        if most is not None and asked.total_tokens > most:
            message = f"Requested {asked.total_tokens} tokens, max {most} tokens per request"
            return Problem(400, message, "max_tokens_per_request", None, "max_tokens_per_request")
        if asked.base64 and scenario.base64 == "refused":
            return base64_refused()
        if asked.poisoned:
            return Problem(400, "The input could not be processed. Please check its content and try again.")
        return None

    def items(self, asked: Asked, *, dimensions: int | None = None, floats: bool = False) -> list[Item]:
        """Return the entries of a reply's `data`; the options differ from what was asked for faults."""
        width = dimensions or asked.dimensions or asked.model.dimensions
        if asked.base64 and not floats and self._scenario.base64 == "accepted":
            rows = self._base64_rows(asked, width)
        else:
            rows = [number_row(row) for row in self.vectors(asked.digests, asked.name, width)]
        return [Item(index, row) for index, row in enumerate(rows)]

    def _base64_rows(self, asked: Asked, width: int) -> list[bytes]:
        keys = [(asked.name, width, digest) for digest in asked.digests]
        new = [key for key in keys if key not in self._rows]
        if new and self._row_bytes > _MOST_ROW_BYTES:
            self._rows.clear()
            self._row_bytes, new = 0, keys
        if new:
            vectors = self.vectors([digest for _, _, digest in new], asked.name, width)
            for key, row in zip(new, vectors, strict=True):
                self._rows[key] = base64_row(row)
                self._row_bytes += len(self._rows[key])
        return [self._rows[key] for key in keys]

    def _measure(self, text: str | list[int]) -> tuple[bytes, int]:
        """Return a text's (digest, tokens); tokens are -1 for a token nobody has."""
        if isinstance(text, str):
            raw = text.encode("utf-8", "surrogatepass")
        else:
            try:
                raw = encoding().decode_bytes(text)
            except (KeyError, OverflowError):
                return b"", -1
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if not isinstance(text, str):
            return digest, len(text)
        tokens = self._counts.get(digest)
        if tokens is None:
            if len(self._counts) >= _MOST_COUNTS:
                self._counts.clear()
            tokens = self._counts[digest] = len(encoding().encode(text, disallowed_special=()))
        return digest, tokens

    def _check_options(self, body: Mapping[str, Any], name: str) -> Problem | None:
        form, dimensions = body.get("encoding_format"), body.get("dimensions")
        if form not in (None, "float", "base64"):
            return Problem(
                400,
                f"Invalid value: '{form}'. Supported values are: 'float' and 'base64'.",
                param="encoding_format",
                code="invalid_value",
            )
        if dimensions is None:
            return None
        if type(dimensions) is not int:
            return Problem(
                400,
                "Invalid type for 'dimensions': expected an integer.",
                param="dimensions",
                code="invalid_type",
            )
        model = self._scenario.models[name]
        if not model.mrl:
            return Problem(400, "This model does not support specifying dimensions.")
        if dimensions < 1:
            return Problem(
                400,
                f"Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got "
                f"{dimensions} instead.",
                param="dimensions",
                code="integer_below_min_value",
            )
        if dimensions > model.dimensions:
            message = f"Invalid value for 'dimensions' = {dimensions}. Must be less than or equal to"
            return Problem(400, f"{message} {model.dimensions}.", param="dimensions")
        return None


def base64_row(vector: Vectors) -> bytes:
    """Return one vector as a JSON string: base64 of little-endian float32."""
    return b'"' + binascii.b2a_base64(vector.astype("<f4", copy=False).data, newline=False) + b'"'


def number_row(vector: Vectors) -> bytes:
    """Return one vector as a JSON array; what is not a number becomes null."""
    return orjson.dumps(np.ascontiguousarray(vector), option=orjson.OPT_SERIALIZE_NUMPY)


def spoil(kind: str, asked: Asked, models: SimulatedModels, number: int) -> list[Item]:
    """Return the entries of a reply that is wrong, or unusual, in the way a fault says."""
    if kind == "narrow":
        return models.items(asked, dimensions=max(1, (asked.dimensions or asked.model.dimensions) // 4))
    items = models.items(asked, floats=kind == "floats")
    last = len(items) - 1
    match kind:
        case "count":
            return items[:-1]
        case "missing_index":
            items[last // 2] = replace(items[last // 2], index=None)
        case "duplicate_index":
            items[last] = replace(items[last], index=0 if last else 1)
        case "shuffled":
            turn = 1 + number % max(1, last)
            items = items[turn:][::-1] + items[:turn][::-1]
        case "nan" | "zero":
            vector = models.vectors(asked.digests[-1:], asked.name, asked.dimensions)[0]
            vector[:] = np.zeros_like(vector) if kind == "zero" else vector
            if kind == "nan":
                vector[len(vector) // 2] = np.nan
            is_text = items[last].value.startswith(b'"')
            items[last] = replace(items[last], value=base64_row(vector) if is_text else number_row(vector))
    return items


def reply(items: Sequence[Item], name: str, tokens: int) -> bytes:
    """Return the body of a reply."""
    data = b",".join(
        b'{"object":"embedding","embedding":%b}' % item.value
        if item.index is None
        else b'{"object":"embedding","index":%d,"embedding":%b}' % (item.index, item.value)
        for item in items
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (data, orjson.dumps(name), usage)


def base64_refused() -> Problem:
    """Return what a server without base64 answers."""
    message = "Unsupported value: 'encoding_format' does not support 'base64'; only 'float' is supported."
    return Problem(400, message, param="encoding_format", code="unsupported_value")


def _too_many_inputs(scenario: Scenario, given: int) -> Problem:
    most = scenario.max_inputs
    match scenario.wording:
        case "openai":
            message = (
                f"Invalid 'input': array too long. Expected an array with maximum length {most}, but got an "
                f"array with length {given} instead."
            )
            return Problem(400, message, param="input", code="array_above_max_length")
        case "limit":
            return Problem(
                400, f"Too many inputs. The max number of inputs is {most}. We hope to increase it."
            )
        case "named":
            return Problem(413, f"batch size {given} > maximum allowed batch size {most}", "Validation")
        case _:
            return Problem(400, "too many inputs in one request")


def _inputs(value: Any) -> list[str] | list[list[int]] | None:
    """Return the request's texts or token arrays; None where `input` is none of the four forms."""
    if isinstance(value, str):
        return [value] if value else None
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(text, str) for text in value):
        return value if all(value) else None
    if _is_tokens(value):
        return [value]
    return value if all(isinstance(item, list) and item and _is_tokens(item) for item in value) else None


def _is_tokens(value: list[Any]) -> bool:
    return all(type(token) is int and token >= 0 for token in value)


@cache
def _salt(name: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return seeds_of([hashlib.blake2b(name.encode(), digest_size=16).digest()])


@cache
def encoding() -> tiktoken.Encoding:
    """Build the encoding the models count with, independently of `core.tokens`."""
    import tiktoken  # on first use: it takes a moment

    ranks = {}
    lines = (resources.files("vecmill.core") / "ranks" / "cl100k_base.tiktoken").read_bytes().splitlines()
    for line in lines:
        token, _, rank = line.partition(b" ")
        ranks[base64.b64decode(token)] = int(rank)
    # Source: the pattern of cl100k_base as first published, in tiktoken 0.3 (MIT).
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|endofprompt|>": 100276}
    return tiktoken.Encoding("simulated", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
