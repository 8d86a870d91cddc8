"""Measure the built-in model's quality beside float32 and word matching, and write the result file.

    python benchmarks/quality.py DATA_FOLDER [--model FOLDER] [--only NAME ...] [-o RESULT.json]

DATA_FOLDER holds `retrieval/NAME/{corpus.jsonl[.gz],queries.jsonl,qrels.tsv}` and `sts/stsb-en-test.tsv`.
FOLDER holds the same model in full precision, which the same engine runs in float32; without it that column
is left out. Word matching is TF-IDF with sublinear term frequency and cosine. All of it is measured in this
one run; where word matching wins, the table says so. Nothing is drawn at random. Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vecmill._version import __version__
from vecmill.bench import systems
from vecmill.bench.quality import Embeds, read_collection, search_quality, similarity_quality
from vecmill.bench.report import commit, machine_record, sha256_of
from vecmill.bench.words import word_quality
from vecmill.core import durable
from vecmill.core.types import Vectors
from vecmill.embedder.embedder import Embedder

COLLECTIONS = ("cisi", "cranfield", "xquad-en", "vaswani")
STS = Path("sts") / "stsb-en-test.tsv"
FLOOR = 0.98  # of the float32 figure


def main() -> int:
    """Print the table; the exit code is 1 where int8 falls below its floor."""
    arguments = _arguments()
    code = commit()  # of the code that runs: the tree may change meanwhile
    embedders = {"int8": _open("minilm")}
    if arguments.model is None:
        print("float32 is left out: give --model FOLDER with full-precision weights")
    else:
        embedders["float32"] = _open(str(arguments.model), precision="float32")
    embeds = {name: _embeds(embedder) for name, embedder in embedders.items()}
    print(f"{'nDCG@10':12}{'int8':>10}{'float32':>10}{'share':>8}{'TF-IDF':>10}")
    figures = {name: _search(arguments.data / "retrieval" / name, embeds) for name in arguments.only}
    sts = {name: similarity_quality(embed, arguments.data / STS) for name, embed in embeds.items()}
    print("\nSTS-B test, Spearman x 100:", ", ".join(f"{name} {value:.2f}" for name, value in sts.items()))
    if arguments.output is not None:
        record = {
            "format_version": 1,
            "benchmark": "quality",
            "command": shlex.join(["python", *sys.argv]),
            "commit": code,
            "version": __version__,
            "versions": {name: version(name) for name in ("numpy", "openvino", "tokenizers")},
            "machine": machine_record(),
            "data_sha256": _digests(arguments.data, arguments.only),
            "seed": None,
            "repeats": 1,
            "models": {name: _model(embedder, arguments.model) for name, embedder in embedders.items()},
            "tf_idf": "words of two or more characters, 1 + ln tf, smooth idf, cosine (vecmill.bench.words)",
            "ndcg_at_10": figures,
            "stsb_test_spearman_x100": sts,
        }
        durable.make_dir(arguments.output.parent)
        durable.write_bytes(arguments.output, (json.dumps(record, indent=1) + "\n").encode())
    for embedder in embedders.values():
        embedder.close()
    return int(any(_is_low(one) for one in figures.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="the model in full precision")
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=COLLECTIONS, metavar="NAME")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _open(model: str, **options: Any) -> Embedder:
    return Embedder(model, long_text="truncate", empty="embed", **options)


def _embeds(embedder: Embedder) -> Embeds:
    def embed(texts: Sequence[str]) -> Vectors:
        return embedder.embed(list(texts)).vectors

    return embed


def _search(folder: Path, embeds: dict[str, Embeds]) -> dict[str, float]:
    """Measure one collection and print its line."""
    collection = read_collection(folder)
    found = {name: search_quality(embed, collection) for name, embed in embeds.items()}
    found["tf_idf"] = word_quality(collection)
    full = found.get("float32")
    beside = f"{full:10.4f}{found['int8'] / full:8.3f}" if full else f"{'-':>10}{'-':>8}"
    remark = "  loses to word matching" if found["int8"] < found["tf_idf"] else ""
    remark += "  BELOW THE FLOOR" if _is_low(found) else ""
    print(f"{folder.name:12}{found['int8']:10.4f}{beside}{found['tf_idf']:10.4f}{remark}", flush=True)
    return found


def _is_low(found: dict[str, float]) -> bool:
    return "float32" in found and found["int8"] < FLOOR * found["float32"]


def _digests(data: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of every file read, by its path below the data folder."""
    kinds = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "qrels.tsv")
    places = [Path("retrieval") / name / kind for name in names for kind in kinds]
    return {str(place): sha256_of(data / place) for place in [*places, STS] if (data / place).is_file()}


def _model(embedder: Embedder, folder: Path | None) -> dict[str, Any]:
    model = systems.inspect(folder if embedder.info.precision == "float32" else None)
    return {**model.record(), "precision": embedder.info.precision, "space": embedder.info.space}


if __name__ == "__main__":
    sys.exit(main())
