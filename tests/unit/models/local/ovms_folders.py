"""Folders as OpenVINO Model Server's export script leaves them, made of the tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[3] / "data" / "models"

OLDER = """
input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {
  calculator: "OpenVINOModelServerSessionCalculator"
  output_side_packet: "SESSION:tokenizer" # inference
  node_options: {
    [type.googleapis.com / mediapipe.OpenVINOModelServerSessionCalculatorOptions]: {
      servable_name: "tokenizer"
    }
  }
}
node {
  name: "EmbeddingsExecutor"
  input_side_packet: "TOKENIZER_SESSION:tokenizer"
  calculator: "EmbeddingsCalculator"
  node_options: {
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOptions]: {
      %s
    }
  }
}
"""

NEWER = """
input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {
  name: "EmbeddingsExecutor"
  input_side_packet: "EMBEDDINGS_NODE_RESOURCES:embeddings_servable"
  calculator: "EmbeddingsCalculatorOV"
  input_stream: "REQUEST_PAYLOAD:input"
  output_stream: "RESPONSE_PAYLOAD:output"
  node_options: {
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOVOptions]: {
      models_path: "./",
      %s
    }
  }
}
"""


def ir_of(name: str, xml: Path) -> None:
    """Convert a tiny model of weights to an IR of token vectors with an exporter's names."""
    from vecmill.models.local import files, graph
    from vecmill.models.local.pooling import Head
    from vecmill.models.local.runtime import openvino
    from vecmill.models.local.weights import open_weights

    found = files.inspect_folder(MODELS / name)
    architecture = graph.read_architecture(dict(found.config), where=name)
    model = graph.build(architecture, open_weights(found.weights), Head(()), int8=False)
    names = {"ids": "input_ids", "mask": "attention_mask"}
    for node in model.get_parameters():
        node.output(0).set_names({names[node.get_friendly_name()]})
    model.output(0).set_names({"last_hidden_state"})
    openvino().save_model(model, xml, compress_to_fp16=False)


def older(
    folder: Path, model: str = "bert-mean", *, options: str = "", versions: tuple[int, ...] = (1,)
) -> Path:
    """Make `folder/embeddings/VERSION/model.xml` and `folder/tokenizer/VERSION/`."""
    for version in versions:
        place, tokenizer = folder / "embeddings" / str(version), folder / "tokenizer" / str(version)
        place.mkdir(parents=True)
        tokenizer.mkdir(parents=True)
        ir_of(model, place / "model.xml")
        for file in ("tokenizer.json", "config.json"):
            shutil.copy(MODELS / model / file, tokenizer / file)
    (folder / "graph.pbtxt").write_text(OLDER % options)
    base: dict[str, list[Any]] = {
        "model_config_list": [{"config": {"name": "tokenizer", "base_path": "tokenizer"}}]
    }
    embeddings = {
        "name": "embeddings_model",
        "base_path": "embeddings",
        "plugin_config": {"NUM_STREAMS": "2"},
    }
    base["model_config_list"].append({"config": embeddings})
    (folder / "subconfig.json").write_text(json.dumps(base))
    return folder


def newer(folder: Path, model: str = "bert-mean", *, options: str = "pooling: MEAN,") -> Path:
    """Make `folder/openvino_model.xml` with the tokenizer beside it."""
    folder.mkdir(parents=True)
    ir_of(model, folder / "openvino_model.xml")
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(MODELS / model / file, folder / file)
    (folder / "graph.pbtxt").write_text(NEWER % options)
    return folder


def config(path: Path, names: dict[str, str], **more: Any) -> Path:
    """Write a `config.json` that names models and their base paths."""
    listed = [{"name": name, "base_path": base, **more} for name, base in names.items()]
    path.write_text(json.dumps({"mediapipe_config_list": listed, "model_config_list": []}))
    return path
