"""A worker whose systems need no model: vectors depend on the text, slowness and errors are options."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import numpy as np

from vecmill.bench import worker


class Fake:
    packages = ("vecmill", "numpy", "no-such-package")

    def __init__(self, options: dict[str, Any]) -> None:
        if options.get("broken"):
            raise RuntimeError("this system cannot load")
        self._options = options
        print("libraries print; the pipe of replies must not see it")

    def embed(self, texts: list[str]) -> np.ndarray:
        if self._options.get("dies") and len(texts) > 1:
            sys.exit("gone in the middle")
        until = time.process_time() + self._options.get("busy", 0.0)
        while time.process_time() < until:
            pass
        rows = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
        vectors = np.stack(rows).astype(np.float32)
        noise = np.random.default_rng(0).normal(size=vectors.shape) * self._options.get("noise", 0.0)
        return (vectors + noise).astype(np.float32)


worker.main(dict.fromkeys(("vecmill", "sentence-transformers", "onnxruntime"), Fake))
