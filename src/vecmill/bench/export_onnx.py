"""Write the ONNX file the ONNX Runtime peer runs: float32, token vectors out, as fastembed's models are.

A script of its own, run by the interpreter that has torch: `python export_onnx.py MODEL_FOLDER OUT.onnx`.
It imports nothing of this package.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any


def export(folder: Path, out: Path) -> None:
    """Export the transformer of a folder of Hugging Face files; batch and length stay open.

    Args:
        folder: Holds `config.json` and `model.safetensors`.
        out: The file to write; its folder exists.
    """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    by_name = model.forward

    def by_position(ids: Any, mask: Any, types: Any) -> Any:
        return by_name(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    model.forward = by_position  # the exporter passes its inputs by position
    ids = torch.ones((2, 8), dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    output = "last_hidden_state"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing, and of the exporter that is to replace this one
        torch.onnx.export(
            model,
            (ids, ids, 0 * ids),
            str(out),
            input_names=names,
            output_names=[output],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in (*names, output)},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
