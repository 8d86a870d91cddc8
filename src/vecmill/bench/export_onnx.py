"""Write the ONNX file the ONNX Runtime peer runs: float32, token vectors out, as fastembed's models are.

A script of its own, run by the interpreter that has torch:

    python export_onnx.py FOLDER OUT.onnx [token_types]

The last word is for models that take token types. It imports nothing of this package.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any


def export(folder: Path, out: Path, *, token_types: bool) -> None:
    """Export the transformer of a folder of Hugging Face files; batch and length stay open.

    Args:
        folder: Holds `config.json` and the weights.
        out: The file to write; its folder exists.
        token_types: Whether the model takes `token_type_ids`.
    """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    by_name = model.forward

    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])]

    def by_position(*inputs: Any) -> Any:
        return by_name(**dict(zip(names, inputs, strict=True))).last_hidden_state

    model.forward = by_position  # the exporter passes its inputs by position
    mask = torch.ones((2, 8), dtype=torch.int64)
    inputs = (4 * mask, mask, 0 * mask)[: len(names)]
    output = "last_hidden_state"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing, and of the exporter that is to replace this one
        torch.onnx.export(
            model,
            inputs,
            str(out),
            input_names=names,
            output_names=[output],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in (*names, output)},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), token_types="token_types" in sys.argv[3:])
