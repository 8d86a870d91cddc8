"""One system under measurement in a process of its own: loads a model, then embeds when asked.

A script: `python -P worker.py SYSTEM OPTIONS`, run by the interpreter that has the system's packages, which
may lack everything else; so it imports the standard library and numpy only, and this package for its own
system. OPTIONS is JSON. It answers JSON lines on the pipe that was its standard output; what libraries print
goes to standard error. Requests, until the pipe ends:

    {"do": "embed", "texts": FILE}    -> {"wall": s, "cpu": s}    FILE: a JSON list, read before the clock
    {"do": "save", "to": FILE}        -> {"saved": n}             vectors of the last "embed", as npy
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt


class System(Protocol):
    """A way to embed texts."""

    packages: tuple[str, ...]

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return (n, d) float32, unit length, in the order of the texts."""


class Vecmill:
    """This package, through the door a user takes; long texts are cut as the peers cut them."""

    packages = ("vecmill", "numpy", "openvino", "tokenizers")

    def __init__(self, options: dict[str, Any]) -> None:
        from vecmill.embedder.embedder import Embedder

        self._embedder = Embedder(
            options["model"],
            precision=options["precision"],
            threads=options["threads"],
            long_text="truncate",
        )

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embed everything in one call."""
        result = self._embedder.embed(texts)
        self.tokens = result.usage.tokens
        return result.vectors


class SentenceTransformers:
    """The reference: `SentenceTransformer(folder).encode(texts, batch_size=32)` on torch.

    Limit, prompt and normalization are the ones this package uses for documents.
    """

    packages = ("sentence-transformers", "torch", "transformers", "numpy")

    def __init__(self, options: dict[str, Any]) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(options["threads"])
        self._model = SentenceTransformer(options["model"], device="cpu")
        self._model.max_seq_length = options["max_tokens"]
        self._prompt = options["prompt"]
        self._normalize = options["normalize"]

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embed as the library does by itself: it sorts by length."""
        vectors: npt.NDArray[np.float32] = self._model.encode(
            texts,
            prompt=self._prompt,
            batch_size=32,
            normalize_embeddings=self._normalize,
            show_progress_bar=False,
        )
        return vectors


class OnnxRuntime:
    """ONNX Runtime as fastembed runs it: batches of 256 in the order of the texts, padded to the longest.

    Source: fastembed, `common/onnx_model.py` and `text/pooled_normalized_embedding.py` (mean, unit length
    where the model has it).
    """

    packages = ("onnxruntime", "tokenizers", "numpy")

    def __init__(self, options: dict[str, Any]) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.intra_op_num_threads = settings.inter_op_num_threads = options["threads"]
        self._session = onnxruntime.InferenceSession(
            options["onnx"], sess_options=settings, providers=["CPUExecutionProvider"]
        )
        self._options = options
        self._tokenizer = Tokenizer.from_file(options["tokenizer"])
        padding = options["padding_id"]
        self._tokenizer.enable_truncation(max_length=options["max_tokens"])
        self._tokenizer.enable_padding(pad_id=padding, pad_token=self._tokenizer.id_to_token(padding))

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Embed in batches of 256."""
        return np.concatenate([self._batch(texts[at : at + 256]) for at in range(0, len(texts), 256)])

    def _batch(self, texts: list[str]) -> npt.NDArray[np.float32]:
        texts = [self._options["prompt"] + text for text in texts]
        if self._options["lowercase"]:
            texts = [text.lower() for text in texts]
        rows = self._tokenizer.encode_batch(texts)
        mask = np.array([row.attention_mask for row in rows], np.int64)
        feed = {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": mask,
        }
        if self._options["token_types"]:
            feed["token_type_ids"] = np.zeros_like(mask)
        tokens = self._session.run(["last_hidden_state"], feed)[0]  # (b, length, d)
        weights = mask[:, :, None].astype(np.float32)
        vectors: npt.NDArray[np.float32] = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
        if self._options["normalize"]:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


SYSTEMS: dict[str, type[Any]] = {
    "vecmill": Vecmill,
    "sentence-transformers": SentenceTransformers,
    "onnxruntime": OnnxRuntime,
}


def serve(system_class: type[Any], options: dict[str, Any], requests: TextIO, replies: TextIO) -> None:
    """Load a system, embed one text, say so, then answer requests until the pipe ends.

    A system with a method `prepare` gets the texts through it, before the clock runs.
    """
    pin(options["cores"])
    system = system_class(options)
    prepare = getattr(system, "prepare", list)
    system.embed(prepare([options["first"]]))
    versions = {package: version_of(package) for package in system.packages}
    say(replies, {"ready": True, "cpu": time.process_time(), "rss_bytes": peak_bytes(), "versions": versions})
    vectors = np.empty((0, 0), np.float32)
    for line in requests:
        request = json.loads(line)
        if request["do"] == "embed":
            texts = prepare(json.loads(Path(request["texts"]).read_text("utf-8")))
            cpu, wall = time.process_time(), time.perf_counter()
            vectors = system.embed(texts)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            tokens = getattr(system, "tokens", None)
            say(replies, {"wall": wall, "cpu": cpu, "rss_bytes": peak_bytes(), "tokens": tokens})
        else:
            np.save(request["to"], vectors)
            say(replies, {"saved": len(vectors)})


def pin(cores: list[int] | None) -> None:
    """Keep this process on these cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def peak_bytes() -> int | None:
    """Return the most memory the process ever held.

    Linux counts into ru_maxrss what the process that started this one held; its status file does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def version_of(package: str) -> str:
    """Return the version of a package, "source" where it is not installed."""
    if package == "vecmill":
        from vecmill._version import __version__

        return __version__
    try:
        return version(package)
    except ImportError:
        return "source"


def say(replies: TextIO, message: Mapping[str, Any]) -> None:
    """Write one line of the conversation."""
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def answers() -> TextIO:
    """Return the pipe that is standard output, and send to standard error what libraries print."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def main(systems: Mapping[str, type[Any]] = SYSTEMS) -> None:
    """Serve the system that the command line names, over the pipes."""
    replies = answers()
    serve(systems[sys.argv[1]], json.loads(sys.argv[2]), sys.stdin, replies)


if __name__ == "__main__":
    main()
