"""Which systems can be measured with a model, the options each needs, and why one is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.bench import peers
from vecmill.bench.peers import System
from vecmill.bench.report import sha256_of
from vecmill.core.config import Settings
from vecmill.core.errors import InputError, ProviderError
from vecmill.core.types import InputType, IntArray
from vecmill.models.local.files import (
    BUILTIN_FOLDER,
    BUILTIN_NAME,
    ModelFiles,
    inspect_folder,
    pooling_missing,
)
from vecmill.models.local.graph import read_architecture
from vecmill.models.local.pooling import Dense, Head, Pool
from vecmill.models.local.tokenizer import Tokenizer

REFERENCE = "sentence-transformers"
ORT = "onnxruntime as fastembed runs it"


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder as the peers need to know it: everything this package goes by, nothing assumed.

    Attributes:
        name: The folder's name, for people.
        files: The folder as found.
        head: Pooling and what follows.
        max_tokens: Tokens a text is cut to, the prompt and special tokens counted.
        padding_id: The id rows are filled with.
        token_types: Whether the network takes token types.
        prompt: What stands before every document.
        builtin: Whether it is the model in the package.
    """

    name: str
    files: ModelFiles
    head: Head
    max_tokens: int
    padding_id: int
    token_types: bool
    prompt: str
    builtin: bool

    def record(self) -> dict[str, Any]:
        """Return what the result file says about the model; reads its files once."""
        folder = self.files.folder
        digests = {str(path.relative_to(folder)): sha256_of(path) for path in self.files.hashed}
        return {
            "name": self.name,
            "sha256": digests,
            "pooling": self.head.describe(),
            "max_tokens": self.max_tokens,
            "prompt": self.prompt,
        }

    def count_tokens(self, texts: Sequence[str]) -> IntArray:
        """Count the tokens of documents (n,) int64 as they are embedded: prompt added, cut at the limit."""
        tokenizer = Tokenizer(self.files.tokenizer, lowercase=self.files.lowercase)
        counts: IntArray = np.minimum(
            tokenizer.encode([self.prompt + text for text in texts]).tokens, self.max_tokens
        )
        return counts

    def peer_options(self) -> dict[str, Any]:
        """Return the options both peers' workers get, JSON values all."""
        return {
            "model": str(self.files.folder),
            "tokenizer": str(self.files.tokenizer),
            "max_tokens": self.max_tokens,
            "padding_id": self.padding_id,
            "token_types": self.token_types,
            "prompt": self.prompt,
            "lowercase": self.files.lowercase,
            "normalize": self.head.normalized,
        }

    def reason_against(self, name: str) -> str | None:
        """Say why a peer cannot run this model as this package does, or None where it can."""
        mean = self.head.pools == (Pool.MEAN,)
        if name == ORT and not mean:
            return f"its pooling is {self.head.describe()}, fastembed's is the mean"
        if name == ORT and any(isinstance(step, Dense) for step in self.head.steps):
            return "the model has a Dense module, fastembed has none"
        if name == REFERENCE and not mean and not (self.files.folder / "modules.json").is_file():
            return f"without modules.json it pools the mean, the model {self.head.describe()}"
        return None


def inspect(folder: Path | None) -> Model:
    """Read what the peers must know of a model folder; None is the model in the package.

    Raises:
        ConfigError: A file is missing, or the folder does not say how vectors are pooled.
        InputError: The folder holds no full-precision weights, or no model this package builds.
    """
    files = inspect_folder(folder or BUILTIN_FOLDER)
    if files.kind != "safetensors":
        raise InputError(
            f"{files.weights[0]}: systems are compared on full-precision weights; "
            "give a folder with model.safetensors"
        )
    if files.head is None:
        raise pooling_missing(files.folder)
    architecture = read_architecture(
        dict(files.config), where=str(files.folder_of_transformer / "config.json")
    )
    return Model(
        name=BUILTIN_NAME if folder is None else folder.absolute().name,
        files=files,
        head=files.head,
        max_tokens=min(files.max_tokens or architecture.positions, architecture.positions),
        padding_id=architecture.padding_id,
        token_types=bool(files.config.get("type_vocab_size")),
        prompt=files.prefixes[InputType.DOCUMENT],
        builtin=folder is None,
    )


def find(
    model: Model,
    *,
    threads: int,
    cores: list[int] | None,
    python: Path,
    settings: Settings,
    notes: list[str],
) -> list[System]:
    """List what can be measured here, this package first; a note says what cannot and why.

    Args:
        model: The model every system runs.
        threads: Threads each system gets.
        cores: Cores each is pinned to, or None.
        python: The interpreter that has the peers' packages.
        settings: Gives the cache, where the exported ONNX file is kept.
        notes: Lines are appended.
    """
    common: dict[str, Any] = {"threads": threads, "cores": cores}
    here = peers.this_python()
    if model.builtin:
        notes.append("float32 and peers are left out: they need --model FOLDER with full-precision weights")
        return [System("vecmill int8", "vecmill", here, {**common, "model": "minilm", "precision": None})]
    own = {**common, "model": str(model.files.folder)}
    found = [
        System(f"vecmill {precision}", "vecmill", here, {**own, "precision": precision})
        for precision in ("float32", "int8")
    ]
    options = {**common, **model.peer_options()}
    if _can_run(model, REFERENCE, python, ["torch", "sentence_transformers"], notes):
        found.append(System(REFERENCE, REFERENCE, python, options))
    if _can_run(model, ORT, python, ["torch", "transformers", "onnxruntime", "tokenizers"], notes):
        try:
            file = peers.export_onnx(
                python,
                model.files.folder_of_transformer,
                model.files.hashed,
                settings.cache_dir,
                token_types=model.token_types,
            )
            found.append(System(ORT, "onnxruntime", python, {**options, "onnx": str(file)}))
        except ProviderError as error:
            notes.append(f"{ORT} is left out: {error}")
    return found


def _can_run(model: Model, name: str, python: Path, modules: list[str], notes: list[str]) -> bool:
    reason = model.reason_against(name)
    if reason is None:
        missing = peers.missing_packages(python, modules)
        if missing:
            reason = (
                f"{python} has no {', '.join(missing)}; pip install 'vecmill[bench]', "
                "or name an interpreter that has them with --peer-python"
            )
    if reason is not None:
        notes.append(f"{name} is left out: {reason}")
    return reason is None
