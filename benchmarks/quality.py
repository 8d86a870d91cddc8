"""Measure the built-in model's quality and write the result file.

    python benchmarks/quality.py DATA_FOLDER [--model MODEL] [--precision P] [-o RESULT.json]

DATA_FOLDER holds `retrieval/NAME/{corpus.jsonl[.gz],queries.jsonl,qrels.tsv}` and `sts/stsb-en-test.tsv`.
Beside each figure stand the full-precision model's (torch, texts cut at 256 tokens) and those of plain word
matching (TF-IDF with sublinear term frequency, cosine). Where word matching wins, the table says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vecmill._version import __version__
from vecmill.bench.quality import read_collection, search_quality, similarity_quality
from vecmill.bench.report import commit, machine_record
from vecmill.core import durable
from vecmill.embedder.embedder import Embedder

# Collection: nDCG@10 of the full-precision model, of TF-IDF; both measured once on the same files.
REFERENCES = {
    "cisi": (0.419, 0.357),
    "cranfield": (0.499, 0.504),
    "xquad-en": (0.944, 0.960),
    "vaswani": (0.434, 0.258),
}
FULL_STS = 82.03
FLOOR = 0.98  # of the full-precision figure


def main() -> int:
    """Print the table; the exit code is 1 where a figure falls below its floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--precision")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    embedder = Embedder(arguments.model, precision=arguments.precision, long_text="truncate", empty="embed")
    figures: dict[str, Any] = {}
    print(f"{embedder.info.name} {embedder.info.precision}, texts cut at {embedder.info.max_tokens} tokens")
    print(f"{'nDCG@10':12}{'vecmill':>10}{'float32':>10}{'share':>8}{'TF-IDF':>10}")
    for name, (full, words) in REFERENCES.items():
        collection = read_collection(arguments.data / "retrieval" / name)
        value = search_quality(lambda texts: embedder.embed(list(texts)).vectors, collection)
        remark = "  loses to word matching" if value < words else ""
        remark += "  BELOW THE FLOOR" if value < FLOOR * full else ""
        print(f"{name:12}{value:10.4f}{full:10.3f}{value / full:8.3f}{words:10.3f}{remark}", flush=True)
        figures[name] = {"ndcg_at_10": value, "full_precision": full, "tf_idf": words}
    sts = similarity_quality(
        lambda texts: embedder.embed(list(texts)).vectors, arguments.data / "sts" / "stsb-en-test.tsv"
    )
    print(f"\nSTS-B test, Spearman x 100: {sts:.2f}   float32 {FULL_STS}")
    if arguments.output is not None:
        record = {
            "benchmark": "quality",
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "version": __version__,
            "machine": machine_record(),
            "model": embedder.info.name,
            "precision": embedder.info.precision,
            "space": embedder.info.space,
            "max_tokens": embedder.info.max_tokens,
            "seed": None,
            "repeats": 1,
            "ndcg_at_10": figures,
            "stsb_test_spearman": {"value": sts, "full_precision": FULL_STS},
        }
        durable.make_dir(arguments.output.parent)
        durable.write_bytes(arguments.output, (json.dumps(record, indent=1) + "\n").encode())
    low = [name for name, one in figures.items() if one["ndcg_at_10"] < FLOOR * one["full_precision"]]
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
