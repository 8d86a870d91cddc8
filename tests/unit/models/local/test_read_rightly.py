"""Folders whose files contradict each other, or ask for what is not built: read rightly or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecmill.core.errors import ConfigError, CorruptFileError, InputError
from vecmill.models.local import files, foreign, identity, runtime

Copy = Callable[[str], Path]


def rewrite(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


def forget(path: Path, name: str) -> None:
    value = json.loads(path.read_text())
    del value[name]
    path.write_text(json.dumps(value))


def add_module(folder: Path, kind: str, *, first: bool = False) -> Path:
    """Put a module after the Transformer or at the end, and return its folder."""
    modules = json.loads((folder / "modules.json").read_text())
    place = f"9_{kind}{len(modules)}"
    module = {"path": place, "type": f"sentence_transformers.models.{kind}", "name": "x"}
    modules.insert(1 if first else len(modules), module)
    (folder / "modules.json").write_text(json.dumps([{**m, "idx": i} for i, m in enumerate(modules)]))
    (folder / place).mkdir()
    return folder / place


def add_dense(folder: Path, rows: int, columns: int, save_tensors: Any, **config: Any) -> Path:
    place = add_module(folder, "Dense")
    weights = np.random.default_rng(rows).normal(0, 0.02, size=(rows, columns)).astype(np.float32)
    tensors = {"linear.weight": ("F32", weights), "linear.bias": ("F32", weights[:, 0].copy())}
    save_tensors(place / "model.safetensors", tensors)
    (place / "config.json").write_text(json.dumps({"activation_function": "x.Identity", **config}))
    return place


def assert_same_bytes_alone(open_local: Any, embed: Any, folder: Path) -> None:
    texts = [f"the mill turns {'grain ' * (i % 9)}" for i in range(300)]
    provider = open_local(folder)
    together = embed(provider, texts)
    for row in range(0, 300, 23):
        assert embed(provider, [texts[row]])[0].tobytes() == together[row].tobytes()


# Graphs made elsewhere

Outputs = dict[str, Callable[[Any, Any, Any], Any]]


def tokens(x: Any, at: Any, op: Any) -> Any:
    return op.add(x, at)


def pooled(x: Any, at: Any, op: Any) -> Any:
    return op.reduce_mean(x, op.constant(np.array([1], np.int32)), False)


def wide(x: Any, at: Any, op: Any) -> Any:
    """Mean and a matrix of 1,025 inputs, with the batch as rows."""
    draw = np.random.default_rng(0)
    up = op.constant(draw.normal(0, 0.02, size=(32, 1025)).astype(np.float32))
    down = op.constant(draw.normal(0, 0.02, size=(1025, 64)).astype(np.float32))
    inner = op.tanh(op.matmul(pooled(x, at, op), up, False, False))
    shift = op.constant(draw.normal(size=64).astype(np.float32))
    return op.tanh(op.add(op.matmul(inner, down, False, False), shift))


def export(folder: Path, outputs: Outputs, *, positions: bool = False) -> None:
    """Write an IR over 43 tokens: embeddings of ids, with positions / 10 added to token vectors."""
    ov = runtime.openvino()
    from openvino import opset13 as op

    table = np.random.default_rng(1).normal(size=(43, 32)).astype(np.float32)
    ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
    mask = op.parameter([-1, -1], ov.Type.i64, name="attention_mask")
    inputs = [ids, mask]
    at = op.constant(np.float32(0))
    if positions:
        where = op.parameter([-1, -1], ov.Type.i64, name="position_ids")
        inputs.append(where)
        at = op.divide(op.convert(where, "f32"), op.constant(np.float32(10)))
        at = op.unsqueeze(at, op.constant(np.array([2], np.int32)))
    for node in inputs:
        node.output(0).set_names({node.get_friendly_name()})
    x = op.gather(op.constant(table), ids, op.constant(np.int32(0)))
    x = op.multiply(x, op.unsqueeze(op.convert(mask, "f32"), op.constant(np.array([2], np.int32))))
    results = []
    for name, make in outputs.items():
        result = op.result(make(x, at, op))
        result.output(0).set_names({name})
        results.append(result)
    for old in ("openvino_model.xml", "openvino_model.bin"):
        (folder / old).unlink()
    ov.save_model(ov.Model(results, inputs, "x"), folder / "openvino_model.xml", compress_to_fp16=False)


def test_token_vectors_are_taken_by_name_among_several(copy_model: Copy, open_local: Any, embed: Any) -> None:
    folder = copy_model("ir-tokens")
    export(folder, {"last_hidden_state": tokens})
    expected = embed(open_local(folder), ["the mill"])
    export(folder, {"hidden_states.0": lambda x, at, op: op.negative(x), "last_hidden_state": tokens})
    np.testing.assert_array_equal(embed(open_local(folder), ["the mill"]), expected)


def test_several_nameless_token_outputs_are_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("ir-tokens")
    export(folder, {"a": tokens, "b": lambda x, at, op: op.negative(x)})
    with pytest.raises(InputError, match=r"several outputs.*last_hidden_state"):
        open_local(folder)


def test_lone_flat_output_is_refused_until_the_folder_says_it_is_finished(
    copy_model: Copy, open_local: Any
) -> None:
    folder = copy_model("ir-tokens")
    export(folder, {"pooler_output": pooled})
    with pytest.raises(ConfigError, match=r"pooler_output.*inside"):
        open_local(folder)
    (folder / "vecmill.json").write_text('{"pooling": "inside"}')
    assert open_local(folder).info.pooling == "inside+normalize"


def test_sentence_output_narrower_than_the_modules_is_refused(
    copy_model: Copy, open_local: Any, save_tensors: Any
) -> None:
    folder = copy_model("ir-tokens")
    export(folder, {"sentence_embedding": pooled})
    add_dense(folder, 16, 32, save_tensors)
    with pytest.raises(ConfigError, match=r"32 numbers, the folder's modules 16"):
        open_local(folder)


def test_inside_needs_a_graph_made_elsewhere(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    (folder / "vecmill.json").write_text('{"pooling": "inside"}')
    with pytest.raises(ConfigError, match="inside"):
        open_local(folder)


def test_position_ids_count_as_the_family_counts(copy_model: Copy, open_local: Any, embed: Any) -> None:
    folder = copy_model("ir-tokens")
    (folder / "vecmill.json").write_text('{"pooling": "cls", "normalize": false}')
    export(folder, {"last_hidden_state": tokens}, positions=True)
    bert = embed(open_local(folder), ["the mill"])
    rewrite(folder / "config.json", model_type="roberta", pad_token_id=1, max_position_embeddings=50)
    roberta = embed(open_local(folder), ["the mill"])
    np.testing.assert_allclose(roberta - bert, 0.2, atol=1e-5)  # the first token: position 2, not 0


def test_position_ids_of_an_unknown_family_are_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("ir-tokens")
    export(folder, {"last_hidden_state": tokens}, positions=True)
    rewrite(folder / "config.json", model_type="mamba")
    with pytest.raises(InputError, match=r"position_ids.*mamba"):
        open_local(folder)


def test_padding_id_of_a_graph_made_elsewhere_is_the_familys(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("ir-tokens")
    rewrite(folder / "config.json", model_type="xlm-roberta")
    forget(folder / "config.json", "pad_token_id")
    assert open_local(folder)._network.padding_id == 1


def test_external_data_of_any_name_is_hashed(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    name = "weights of " + "layers " * 20 + ".bin"  # longer than one byte says
    entry = b"\n\x08location\x12" + bytes([len(name) & 0x7F | 0x80, len(name) >> 7]) + name.encode()
    onnx.write_bytes(b"head" + entry + b"\n\x08location\x12\x05small")
    for file in (name, "small"):
        (tmp_path / file).write_bytes(b"1")
    assert files.external_data(onnx) == (tmp_path / "small", tmp_path / name)
    (tmp_path / "small").unlink()
    with pytest.raises(ConfigError, match=r"small.*missing"):
        files.external_data(onnx)


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.onnx").write_bytes(b"\n\x08location\x12\x04../x")
    with pytest.raises(ConfigError, match="outside"):
        files.external_data(tmp_path / "in/model.onnx")


def test_place_of_an_onnx_file_is_not_part_of_the_space(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("onnx-sentences")
    before = open_local(folder).info.space
    (folder / "onnx/model.onnx").rename(folder / "model.onnx")
    assert open_local(folder).info.space == before


# Same text, same bytes


@pytest.mark.parametrize(("inputs", "outputs"), [(1025, 64), (1152, 256), (4096, 16)])
def test_wide_dense_layer_gives_same_bytes_alone(
    copy_model: Copy, open_local: Any, embed: Any, save_tensors: Any, inputs: int, outputs: int
) -> None:
    folder = copy_model("bert-mean")
    add_dense(folder, inputs, 32, save_tensors, activation_function="x.Tanh")
    add_dense(folder, outputs, inputs, save_tensors, activation_function="x.Tanh")
    assert_same_bytes_alone(open_local, embed, folder)


def test_graph_with_a_matrix_over_the_batch_gives_same_bytes_alone(
    copy_model: Copy, open_local: Any, embed: Any
) -> None:
    folder = copy_model("ir-tokens")
    (folder / "vecmill.json").write_text('{"pooling": "inside"}')
    export(folder, {"sentence_embedding": wide})
    assert foreign.mixes_rows(foreign.read(folder / "openvino_model.xml"))
    assert_same_bytes_alone(open_local, embed, folder)


def test_onnx_folder_gives_same_bytes_alone(golden: Path, open_local: Any, embed: Any) -> None:
    assert_same_bytes_alone(open_local, embed, golden / "onnx-sentences")


# Files that change under the reader


@pytest.mark.parametrize("name", ["bert-mean/model.safetensors", "ir-tokens/openvino_model.bin"])
def test_files_changed_after_opening_are_refused_and_nothing_is_kept(
    copy_model: Copy, open_local: Any, embed: Any, name: str
) -> None:
    folder = copy_model(name.partition("/")[0])
    rewrite(folder / "config.json", of=name)  # a space of its own
    provider = open_local(folder)
    path = folder / name.partition("/")[2]
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    kept = set((provider._engine._plan.cache_dir / "compiled").glob("*"))
    with pytest.raises(ConfigError, match=r"changed while.*again"):
        embed(provider, ["the mill"])
    assert set((provider._engine._plan.cache_dir / "compiled").glob("*")) == kept


def test_files_changed_while_they_are_hashed_are_refused(
    copy_model: Copy, open_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_model("bert-mean")
    plain = identity._read_sha256

    def hashed(path: Path) -> str:
        digest = plain(path)
        os.utime(path, (1, 1))
        return digest

    monkeypatch.setattr(identity, "_read_sha256", hashed)
    with pytest.raises(ConfigError, match="changed while"):
        open_local(folder)


# config.json


@pytest.mark.parametrize(("name", "padding"), [("roberta-cls", 1), ("mpnet-mean", 1), ("bert-mean", 0)])
def test_missing_padding_id_is_the_familys(
    copy_model: Copy, golden: Path, open_local: Any, embed: Any, name: str, padding: int
) -> None:
    folder = copy_model(name)
    forget(folder / "config.json", "pad_token_id")
    provider = open_local(folder)
    assert provider._network.padding_id == padding
    np.testing.assert_array_equal(
        embed(provider, ["the mill"]), embed(open_local(golden / name), ["the mill"])
    )


@pytest.mark.parametrize("padding", [None, -1, "1"])
def test_padding_id_that_is_none_is_refused_where_positions_count_from_it(
    copy_model: Copy, open_local: Any, padding: object
) -> None:
    folder = copy_model("roberta-cls")
    rewrite(folder / "config.json", pad_token_id=padding)
    with pytest.raises(ConfigError, match=r"config\.json: pad_token_id"):
        open_local(folder)


def test_distilbert_ignores_an_epsilon_as_its_own_code_does(
    copy_model: Copy, golden: Path, open_local: Any, embed: Any
) -> None:
    folder = copy_model("distilbert-dense")
    rewrite(folder / "config.json", layer_norm_eps=0.1)
    expected = embed(open_local(golden / "distilbert-dense"), ["the mill"])
    np.testing.assert_array_equal(embed(open_local(folder), ["the mill"]), expected)


def test_other_buckets_than_mpnets_are_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("mpnet-mean")
    rewrite(folder / "config.json", relative_attention_num_buckets=16)
    with pytest.raises(InputError, match="relative_attention_num_buckets 16"):
        open_local(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 5}, r"num_attention_heads 5 does not divide hidden_size 32"),
        ({"hidden_size": 64}, r"model\.safetensors has shape \(43, 32\)"),
        ({"intermediate_size": 65}, r"has shape \(64, 32\), config\.json says \(65, 32\)"),
        ({"num_hidden_layers": 3}, r"layer\.2\..*is missing"),
        ({"max_position_embeddings": 40}, r"position_embeddings"),
    ],
)
def test_configuration_that_contradicts_the_weights_is_refused(
    copy_model: Copy, open_local: Any, change: dict[str, int], said: str
) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "config.json", **change)
    with pytest.raises((ConfigError, CorruptFileError), match=said):
        open_local(folder)


def test_errors_of_the_library_are_one_line(
    copy_model: Copy, open_local: Any, embed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = open_local(copy_model("bert-mean"))

    def broken() -> Any:
        raise RuntimeError("Exception from src/core.cpp:1:\nCheck failed at here\n shapes differ\n\n")

    monkeypatch.setattr(provider._engine, "_build", broken)
    monkeypatch.setattr(runtime, "read_blob", lambda path: None)
    with pytest.raises(ConfigError, match=r"on CPU \(shapes differ\).*--debug"):
        embed(provider, ["the mill"])


# The tokenizer


@pytest.mark.parametrize("name", ["bert-mean", "ir-tokens"])
def test_token_without_an_embedding_is_refused(copy_model: Copy, open_local: Any, name: str) -> None:
    folder = copy_model(name)
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append({**value["added_tokens"][0], "id": 43, "content": "[EXTRA]"})
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"ids up to 43.*0 to 42"):
        open_local(folder)


@pytest.mark.parametrize(
    "change", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_tokenizer_settings_that_contradict_each_other_are_refused(
    copy_model: Copy, open_local: Any, change: dict[str, bool]
) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "tokenizer_config.json", do_lower_case=True, strip_accents=None)
    open_local(folder)
    rewrite(folder / "tokenizer_config.json", **change)
    with pytest.raises(ConfigError, match=rf"tokenizer_config\.json: {next(iter(change))} False"):
        open_local(folder)


def test_cutting_off_beginnings_is_refused_when_a_text_is_cut(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "tokenizer_config.json", truncation_side="left")
    provider = open_local(folder)
    texts = provider.encode(["the mill turns and turns"], input_type="document")
    with pytest.raises(ConfigError, match="truncation_side"):
        provider.truncate(texts, max_tokens=4)


def test_tokenizer_without_special_tokens_is_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "tokenizer.json", post_processor=None)
    with pytest.raises(ConfigError, match="special tokens"):
        open_local(folder)


# Modules and settings of the folder


@pytest.mark.parametrize("side", ["module_input_name", "module_output_name"])
def test_dense_layer_on_token_vectors_is_refused(
    copy_model: Copy, open_local: Any, save_tensors: Any, side: str
) -> None:
    folder = copy_model("bert-mean")
    add_dense(folder, 16, 32, save_tensors, **{side: "token_embeddings"})
    with pytest.raises(InputError, match=rf"{side} 'token_embeddings'"):
        open_local(folder)


def test_module_before_pooling_is_refused(copy_model: Copy, open_local: Any) -> None:
    folder = copy_model("bert-mean")
    add_module(folder, "Normalize", first=True)
    with pytest.raises(InputError, match="before Pooling"):
        open_local(folder)


@pytest.mark.parametrize("setting", [{"truncate_dim": 16}, {"model_type": "Router"}, {"rotate": True}])
def test_settings_not_built_here_are_refused(
    copy_model: Copy, open_local: Any, setting: dict[str, Any]
) -> None:
    folder = copy_model("bert-mean")
    rewrite(folder / "config_sentence_transformers.json", truncate_dim=None)
    open_local(folder)
    rewrite(folder / "config_sentence_transformers.json", **setting)
    with pytest.raises(InputError, match=rf"config_sentence_transformers\.json.*{next(iter(setting))}"):
        open_local(folder)
