"""Model folders: read rightly, or refused with the file, the fault and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import ConfigError, CorruptFileError, InputError, UnknownNameError
from vecmill.core.types import InputType
from vecmill.models.local.files import inspect_folder
from vecmill.models.local.pooling import Dense, Head, Normalize, Pool

Copy = Callable[[str], Path]


def rewrite(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def test_sentence_transformers_folder_is_read_whole(golden: Path) -> None:
    found = inspect_folder(golden / "bert-prompts")
    assert found.kind == "safetensors"
    assert found.head == Head((Pool.MEAN_SQRT_LEN, Pool.WEIGHTED_MEAN), (Normalize(),))
    assert found.prefixes == {InputType.QUERY: "query: ", InputType.DOCUMENT: "document: "}
    assert found.max_tokens == 48


def test_dense_module_is_read(golden: Path) -> None:
    head = inspect_folder(golden / "distilbert-dense").head
    assert head is not None
    (dense,) = head.steps
    assert isinstance(dense, Dense)
    assert (dense.weights.shape, dense.activation) == ((16, 32), "Tanh")


def test_shards_are_found_by_the_index(golden: Path) -> None:
    assert len(inspect_folder(golden / "xlm-roberta-mean").weights) == 3


def test_openvino_and_onnx_are_found(golden: Path) -> None:
    assert inspect_folder(golden / "ir-tokens").kind == "openvino"
    assert inspect_folder(golden / "onnx-sentences").kind == "onnx"


def test_older_pooling_settings_are_read(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    (folder / "1_Pooling/config.json").write_text(
        json.dumps(
            {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
        )
    )
    assert inspect_folder(folder).head == Head((Pool.CLS, Pool.MEAN))


def test_older_limit_file_wins_over_the_tokenizers(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 17, "do_lower_case": true}')
    found = inspect_folder(folder)
    assert (found.max_tokens, found.lowercase) == (17, True)


def test_transformer_in_a_folder_of_its_own_is_found(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(inner / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert inspect_folder(folder).tokenizer == inner.resolve() / "tokenizer.json"


def test_default_prompt_serves_both_roles_unless_named(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "config_sentence_transformers.json", prompts={"sts": "S: "}, default_prompt_name="sts")
    assert set(inspect_folder(folder).prefixes.values()) == {"S: "}


def test_own_file_adds_what_a_plain_folder_lacks(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    (folder / "modules.json").unlink()
    assert inspect_folder(folder).head is None
    (folder / "vecmill.json").write_text(
        json.dumps(
            {
                "pooling": ["cls"],
                "normalize": True,
                "max_tokens": 20,
                "query_prefix": "q: ",
                "languages": ["de"],
            }
        )
    )
    found = inspect_folder(folder)
    assert found.head == Head((Pool.CLS,), (Normalize(),))
    assert (found.max_tokens, found.languages) == (20, ("de",))
    assert found.prefixes[InputType.QUERY] == "q: "
    assert found.prefixes[InputType.DOCUMENT] == ""


def test_pooling_is_never_guessed(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match=r"pooled.*vecmill\.json.*mean"):
        open_local(folder)


def test_token_vectors_of_an_ir_need_pooling_too(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("ir-tokens")
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match="pooled"):
        open_local(folder)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("1_Pooling/config.json", "config.json is missing"),
    ],
)
def test_missing_file_is_named(copy_model: Copy, missing: str, said: str) -> None:
    folder = copy_model("bert-mean")
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=said):
        inspect_folder(folder)


def test_missing_shard_is_named(copy_model: Copy) -> None:
    folder = copy_model("xlm-roberta-mean")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError, match="model-00002-of-00003"):
        inspect_folder(folder)


def test_shard_outside_the_folder_is_refused(copy_model: Copy) -> None:
    folder = copy_model("xlm-roberta-mean")
    rewrite(folder / "model.safetensors.index.json", weight_map={"x": "../../other.safetensors"})
    with pytest.raises(ConfigError, match="other"):
        inspect_folder(folder)


def test_pickled_weights_are_never_read(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickle"):
        inspect_folder(folder)


def test_ir_without_its_weights_is_refused(copy_model: Copy) -> None:
    folder = copy_model("ir-tokens")
    (folder / "openvino_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"openvino_model\.bin is missing"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "tokenizer_config.json", "1_Pooling/config.json"]
)
@pytest.mark.parametrize("content", ["{", "[1, 2", "\x00"])
def test_damaged_json_is_named(copy_model: Copy, name: str, content: str) -> None:
    folder = copy_model("bert-mean")
    (folder / name).write_text(content)
    with pytest.raises(CorruptFileError, match=name.replace(".", r"\.")):
        inspect_folder(folder)


@pytest.mark.parametrize("content", ["{}", "[{}]", '[{"idx": "x"}]', "[3]"])
def test_modules_that_are_no_list_of_modules_raise(copy_model: Copy, content: str) -> None:
    folder = copy_model("bert-mean")
    (folder / "modules.json").write_text(content)
    with pytest.raises((CorruptFileError, ConfigError, InputError), match="modules"):
        inspect_folder(folder)


def test_unknown_module_is_refused(copy_model: Copy) -> None:
    folder = copy_model("bert-mean")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_LSTM", "type": "sentence_transformers.models.LSTM"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="LSTM"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("own", "said"), [({"poling": ["mean"]}, "'pooling'"), ({"pooling": ["meen"]}, "'mean'")]
)
def test_misspelt_own_settings_are_refused(copy_model: Copy, own: dict[str, Any], said: str) -> None:
    folder = copy_model("bert-mean")
    (folder / "vecmill.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match=said):
        inspect_folder(folder)


def test_prompts_left_out_of_pooling_are_refused(copy_model: Copy) -> None:
    folder = copy_model("bert-prompts")
    rewrite(folder / "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(InputError, match="include_prompt"):
        inspect_folder(folder)


def test_unknown_architecture_names_those_known_and_the_way_round(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "config.json", model_type="mamba")
    with pytest.raises(UnknownNameError, match=r"mamba.*bert.*ONNX"):
        open_local(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"hidden_act": "mish"},
        {"hidden_size": None},
    ],
)
def test_variants_not_built_are_refused(copy_model: Copy, open_local: Any, change: dict[str, Any]) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "config.json", **change)
    with pytest.raises(InputError):
        open_local(folder)


def test_not_a_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a model folder"):
        inspect_folder(tmp_path / "absent")


def test_truncated_weights_are_refused_on_opening(copy_model: Copy, open_local: Any) -> None:
    path = copy_model("bert-mean") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        open_local(path.parent)


@pytest.mark.parametrize("name", ["ir-tokens/openvino_model.xml", "onnx-sentences/onnx/model.onnx"])
def test_damaged_graph_is_refused(copy_model: Copy, open_local: Any, name: str) -> None:
    folder = copy_model(name.partition("/")[0])
    path = folder / name.partition("/")[2]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CorruptFileError, match=path.name):
        open_local(folder)


def test_damaged_tokenizer_is_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
        open_local(folder)


def test_missing_tensor_is_named(copy_model: Copy, open_local: Any, embed: Any, save_tensors: Any) -> None:
    from vecmill.models.local.weights import open_weights

    folder = copy_model("bert-mean")
    path = folder / "model.safetensors"
    weights = open_weights((path,))
    kept = {name: ("F32", np.array(weights[name])) for name in weights}
    del kept["encoder.layer.1.output.dense.bias"]
    save_tensors(path, kept)
    with pytest.raises(CorruptFileError, match=r"layer\.1\.output\.dense\.bias"):
        embed(open_local(folder), ["a"])


def test_prefixed_and_older_tensor_names_are_read(
    copy_model: Copy, golden: Path, open_local: Any, embed: Any, save_tensors: Any
) -> None:
    from vecmill.models.local.weights import open_weights

    folder = copy_model("bert-mean")
    path = folder / "model.safetensors"
    weights = open_weights((path,))
    renamed = {}
    for name in weights:
        older = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        older = older.replace("LayerNorm.bias", "LayerNorm.beta")
        renamed["bert." + older] = ("F32", np.array(weights[name]))
    save_tensors(path, renamed)
    expected = embed(open_local(golden / "bert-mean"), ["the mill turns"])
    np.testing.assert_array_equal(embed(open_local(folder), ["the mill turns"]), expected)
