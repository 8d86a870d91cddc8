"""Graphs made elsewhere: OpenVINO IR and ONNX files, given the inputs and the output of our own graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vecmill.core.errors import ConfigError, CorruptFileError, InputError
from vecmill.models.local import graph, pooling
from vecmill.models.local.runtime import openvino

_SENTENCE = "sentence_embedding"
_TOKENS = {"last_hidden_state", "token_embeddings"}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def read(path: Path) -> Any:
    """Read an IR (.xml) or ONNX file.

    Raises:
        CorruptFileError: OpenVINO cannot read it.
    """
    try:
        return openvino().Core().read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise CorruptFileError(
            f"{path} cannot be read as a model ({reason}): fetch or convert it again"
        ) from error


def choose(model: Any, *, where: Path, pooled_inside: bool, declared: bool) -> Any:
    """Return the output with the vectors: token vectors (b, s, h) to be pooled, or finished ones (b, d).

    An output named `sentence_embedding` is taken first, then token vectors, by name where there are several;
    a (b, d) output beside them is a pooler's, not a text's vector.

    Args:
        model: The graph.
        where: Its file, for messages.
        pooled_inside: `vecmill.json` says that the (b, d) output is the finished vector.
        declared: The folder says how token vectors are pooled.

    Raises:
        InputError: No output is either, or which one is meant cannot be told.
    """
    outputs = list(model.outputs)
    finished = [output for output in outputs if _SENTENCE in output.get_names()]
    tokens = [output for output in outputs if len(output.get_partial_shape()) == 3]
    named = [output for output in tokens if output.get_names() & _TOKENS]
    flat = [output for output in outputs if len(output.get_partial_shape()) == 2]
    for found in (finished, flat) if pooled_inside else (finished, named, tokens, flat):
        if len(found) == 1:
            if found is flat and not pooled_inside:
                _refuse_unnamed(found[0], where, declared=declared)
            return found[0]
        if found:
            raise InputError(
                f"{where} has several outputs that could be meant: {_described(found)}; export it again "
                "with one "
                f"named {_SENTENCE} or last_hidden_state"
            )
    raise InputError(
        f"{where}: its outputs are {_described(outputs)}; one of (batch, tokens, h) or (batch, d) is needed"
    )


def _refuse_unnamed(output: Any, where: Path, *, declared: bool) -> None:
    """Refuse a lone (b, d) output that may be a pooler's, or lack what modules.json puts after the graph."""
    if declared or "pooler_output" in output.get_names():
        raise ConfigError(
            f"{where} gives {_described([output])}, which may not be the finished vector: "
            f'where it is, say so in vecmill.json as {{"pooling": "inside"}}; else export last_hidden_state'
        )


def _described(outputs: Sequence[Any]) -> str:
    return ", ".join(
        f"{'/'.join(sorted(output.get_names())) or 'unnamed'} {output.get_partial_shape()}"
        for output in outputs
    )


def pools(output: Any) -> bool:
    """Return whether an output holds token vectors (b, s, h), which have to be pooled, rather than (b, d)."""
    return len(output.get_partial_shape()) == 3


def mixes_rows(model: Any) -> bool:
    """Return whether a matrix multiplication has the batch among its rows.

    Its kernel, and with it the last bits, then depends on how many texts share the batch.
    """
    return any(
        node.get_type_name() == "MatMul" and len(node.input_value(0).get_partial_shape()) == 2
        for node in model.get_ops()
        if node.get_type_name() == "MatMul" and node.input_value(0).get_partial_shape().rank.is_static
    )


def refuse_inputs(model: Any, *, where: Path, family: str) -> None:
    """Refuse a graph with inputs that are not known, or positions that count in an unknown way.

    Raises:
        InputError: It has such an input.
    """
    for node in model.get_parameters():
        names = node.output(0).get_names() | {node.get_friendly_name()}
        if not names & set(_INPUTS):
            raise InputError(
                f"{where}: the model has an input {sorted(names)}; known are {', '.join(_INPUTS)}"
            )
        if "position_ids" in names and family not in graph.FAMILIES:
            raise InputError(
                f"{where} wants position_ids, and how a {family or 'nameless'} model counts them is not "
                "known "
                "(config.json's model_type): export it without that input"
            )


def dimensions(output: Any) -> int:
    """Return the width of an output.

    Raises:
        InputError: The graph does not fix it.
    """
    width = output.get_partial_shape()[-1]
    if width.is_dynamic:
        raise InputError("the model's output has no fixed width: export it with static hidden size")
    return int(width.get_length())


def adapt(model: Any, output: Any, head: pooling.Head, *, first_position: int | None) -> Any:
    """Give a graph the inputs `ids` and `mask`, append the head, and name the output `vectors`.

    Args:
        model: The graph, whose inputs `refuse_inputs` has passed.
        output: The output that `choose` found.
        head: What to append.
        first_position: None where positions count from 0; else RoBERTa's: padding has this number less 1.
    """
    ov = openvino()
    from openvino import opset13 as op

    factory: Any = op
    ids = factory.parameter([-1, -1], ov.Type.i32, name="ids")
    mask = factory.parameter([-1, -1], ov.Type.f32, name="mask")
    for node in (ids, mask):
        node.output(0).set_names({node.get_friendly_name()})
    for old in model.get_parameters():
        old.output(0).replace(_feed(old, ids, mask, factory, first_position).output(0))
    x = output.get_node().input_value(0)
    result = factory.result(pooling.apply(head, x, mask, factory))
    result.output(0).set_names({"vectors"})
    return ov.Model([result], [ids, mask], "vecmill")


def _feed(old: Any, ids: Any, mask: Any, op: Any, first_position: int | None) -> Any:
    names = old.output(0).get_names() | {old.get_friendly_name()}
    name = next((name for name in _INPUTS if name in names), None)
    kind = old.get_element_type()
    if name == "input_ids":
        return op.convert(ids, kind.to_string())
    if name == "attention_mask":
        return op.convert(mask, kind.to_string())
    if name == "token_type_ids":
        return op.convert(op.multiply(ids, op.constant(np.int32(0))), kind.to_string())
    if name == "position_ids":
        count = op.cum_sum(mask, op.constant(np.int32(1)), first_position is None, False)
        at = op.multiply(count, mask)
        if first_position is not None:
            at = op.add(at, op.constant(np.float32(first_position - 1)))
        return op.convert(at, kind.to_string())
    raise InputError(f"the model has an input {sorted(names)}; known are {', '.join(_INPUTS)}")
