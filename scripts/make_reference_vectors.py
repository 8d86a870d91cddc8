"""Make the reference vectors the quality tests compare the built-in model with. For maintainers.

    python scripts/make_reference_vectors.py MODEL_FOLDER SPEECH.txt

MODEL_FOLDER holds all-MiniLM-L6-v2 in full precision, SPEECH.txt the State of the Union address of 2022 (a
work of the United States government, in the public domain), a paragraph a line. Needs sentence-transformers.
Writes `tests/data/reference_texts.txt` and `tests/data/reference_vectors.npy` (float16, unit length).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

TEXTS = 300


def main() -> None:
    """Write both files."""
    folder, speech = Path(sys.argv[1]), Path(sys.argv[2])
    paragraphs = [line.strip() for line in speech.read_text("utf-8").splitlines() if line.strip()]
    texts = list(dict.fromkeys(paragraphs))[:TEXTS]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
    data = Path(__file__).resolve().parents[1] / "tests" / "data"
    (data / "reference_texts.txt").write_text("\n".join(texts) + "\n", "utf-8")
    np.save(data / "reference_vectors.npy", np.asarray(vectors, np.float16))
    print(f"{len(texts)} texts, {vectors.shape[1]} dimensions")


if __name__ == "__main__":
    main()
