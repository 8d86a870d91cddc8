"""Model folders to break, and a way to embed in one line."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.config import Settings, load_settings
from vecmill.core.types import InputType, Vectors
from vecmill.models.local.provider import LocalProvider, load

GOLDEN = Path(__file__).parents[3] / "data" / "models"

Embed = Callable[..., Vectors]
Load = Callable[..., LocalProvider]


@pytest.fixture
def golden() -> Path:
    """The folder of tiny models with reference vectors."""
    return GOLDEN


@pytest.fixture
def settings() -> Settings:
    return load_settings()


@pytest.fixture
def open_local(settings: Settings) -> Load:
    """Open a local model with the test's settings."""

    def opened(name: str | Path, **options: Any) -> LocalProvider:
        return load(str(name), settings=settings, **options)

    return opened


@pytest.fixture
def embed() -> Embed:
    """Embed texts with a provider."""

    def vectors(
        provider: LocalProvider, texts: Sequence[str], input_type: InputType = InputType.DOCUMENT
    ) -> Vectors:
        return asyncio.run(provider.embed(provider.encode(texts, input_type=input_type))).vectors

    return vectors


@pytest.fixture
def copy_model(tmp_path: Path) -> Callable[[str], Path]:
    """Copy a golden model to where it may be broken."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return copied


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    """Write tensors given as (type's name, array)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, array) in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    raw = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


@pytest.fixture
def save_tensors() -> Callable[[Path, dict[str, tuple[str, np.ndarray[Any, Any]]]], None]:
    return write_safetensors
