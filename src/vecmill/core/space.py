"""What makes vectors comparable: the space id, the manifest a vector set carries, and the probe.

A space id is a hash of everything that decides a vector's numbers. The manifest travels with the vectors, in
every file this package writes, and every reader compares manifests before it puts vectors together.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from vecmill.core.errors import FormatVersionError, SpaceMismatchError
from vecmill.core.types import Vectors

MANIFEST_VERSION = 1
MANIFEST_KEY = "vecmill"
"""The key under which Parquet footers and Arrow schemas carry the manifest."""

PROBE_TEXTS: tuple[str, str, str] = (
    "The mill turns grain into flour.",
    "A quarterly report lists revenue, costs and 42 open orders.",
    "Why does the sky look blue at noon and red at dusk?",
)
"""Embedded once per space. Never change a letter: the vectors in old files answer to these."""

PROBE_TOLERANCE = 1e-3
"""An older space stays searchable while its probe differs by no more than this (cosine distance)."""


def space_id(*parts: str | bytes) -> str:
    """Hash what decides a vector's numbers into 32 hex digits. Order matters; parts cannot run together."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def short(space: str) -> str:
    """Return the six digits under which a space is shown to people."""
    return space[:6]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a vector set says about itself. It holds no clock: equal work gives equal bytes.

    Attributes:
        model: As the user would name it, such as "local:all-MiniLM-L6-v2".
        space: Space id, 32 hex digits.
        dimensions: Components of a vector.
        normalized: Whether every vector has unit length.
        input_type: "document" or "query".
        template: The template the texts were made with, or None.
        text: The column the texts came from, or the one the template made.
        vector: The column of the vectors.
        renamed: Other columns of ours that have another name than usual, as (role, name).
        provider, revision, pooling, tokenizer, precision: Where the vectors come from.
        long_text, max_tokens: What happened to long texts, and what was long.
        source: Fingerprint of the input files.
        plan: Fingerprint of everything that decides the output's bytes.
        probe: The three probe vectors as base64 of (3, d) float32 little-endian, or None.
        rows: Rows of the set.
        tool_version: Version of this package.
        format_version: Version of this record.
    """

    model: str
    space: str
    dimensions: int
    normalized: bool
    rows: int = 0
    input_type: str = "document"
    template: str | None = None
    text: str | None = None
    vector: str = "embedding"
    renamed: tuple[tuple[str, str], ...] = ()
    provider: str = "local"
    revision: str | None = None
    pooling: str | None = None
    tokenizer: str | None = None
    precision: str = "float32"
    long_text: str = "error"
    max_tokens: int | None = None
    source: str | None = None
    plan: str | None = None
    probe: str | None = None
    tool_version: str = ""
    format_version: int = MANIFEST_VERSION

    def to_json(self) -> str:
        """Return the manifest as JSON with sorted keys, the same bytes for the same content."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "the manifest") -> Self:
        """Read a manifest; fields of later minor versions are ignored.

        Raises:
            FormatVersionError: It is not a manifest, or of a version this one does not read.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            version = values["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise FormatVersionError(f"{where} is not a vecmill manifest: {error}") from error
        if version != MANIFEST_VERSION:
            raise FormatVersionError(
                f"{where} has format version {version}, this vecmill reads {MANIFEST_VERSION}: upgrade"
            )
        known = {entry.name for entry in fields(cls)}
        values["renamed"] = tuple((str(role), str(name)) for role, name in values.get("renamed", ()))
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise FormatVersionError(f"{where} is not a whole vecmill manifest: {error}") from error

    def column(self, role: str) -> str:
        """Return the name of a column of ours by its role: id, file, row, error and so on."""
        return dict(self.renamed).get(role, role)

    def probe_vectors(self) -> Vectors | None:
        """Return the probe as (3, d) float32, or None where the set has none."""
        return None if self.probe is None else decode_probe(self.probe, self.dimensions)


def encode_probe(vectors: Vectors) -> str:
    """Encode probe vectors (3, d) as the manifest keeps them."""
    return base64.b64encode(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).decode("ascii")


def decode_probe(probe: str, dimensions: int) -> Vectors:
    """Return probe vectors (3, dimensions) float32 as `encode_probe` encoded them."""
    return np.frombuffer(base64.b64decode(probe), dtype="<f4").reshape(-1, dimensions)


def probe_distance(a: Manifest, b: Manifest) -> float | None:
    """Return the largest cosine distance between two probes, or None where one has none."""
    one, other = a.probe_vectors(), b.probe_vectors()
    if one is None or other is None or one.shape != other.shape:
        return None
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.max(1.0 - np.einsum("ij,ij->i", one, other) / np.maximum(norms, 1e-12)))


def ensure_comparable(stored: Manifest, asked: Manifest, *, what: str) -> None:
    """Raise unless vectors of two manifests may be compared.

    Equal spaces are comparable; so are different ones whose probes agree to `PROBE_TOLERANCE`.

    Args:
        stored: The manifest of the vectors at hand.
        asked: The manifest of what shall be compared with them.
        what: Names the stored side in the message.

    Raises:
        SpaceMismatchError: The vectors live in different spaces.
    """
    if stored.space == asked.space and stored.dimensions == asked.dimensions:
        return
    distance = probe_distance(stored, asked)
    if stored.dimensions == asked.dimensions and distance is not None and distance <= PROBE_TOLERANCE:
        return
    if stored.model == asked.model and stored.space != asked.space and stored.provider != "local":
        raise SpaceMismatchError(
            f"{what} holds vectors of {stored.model} from another address (space {short(stored.space)}, here "
            f"{short(asked.space)}): name the one it was made at (--base-url, OPENAI_BASE_URL or a profile)"
        )
    raise SpaceMismatchError(
        f"{what} holds vectors of {stored.model} (space {short(stored.space)}, {stored.dimensions} "
        f"dimensions), the other side is {asked.model} (space {short(asked.space)}, {asked.dimensions} "
        f"dimensions); use -m {stored.model}, or embed {what} again with {asked.model}"
    )
