"""Graphs made elsewhere: OpenVINO IR and ONNX files, given the inputs and the output of our own graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vecmill.core.errors import CorruptFileError, InputError
from vecmill.models.local import pooling
from vecmill.models.local.runtime import openvino

_SENTENCE = "sentence_embedding"
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


def pools(model: Any) -> bool:
    """Return whether the graph gives token vectors (b, s, h), which have to be pooled, rather than (b, d).

    An output named `sentence_embedding` is taken first; a (b, d) output beside a (b, s, h) one is a pooler's,
    not a text's vector.

    Raises:
        InputError: No output is either.
    """
    return len(_output(model).get_partial_shape()) == 3


def dimensions(model: Any) -> int:
    """Return the width of the output.

    Raises:
        InputError: The graph does not fix it.
    """
    width = _output(model).get_partial_shape()[-1]
    if width.is_dynamic:
        raise InputError("the model's output has no fixed width: export it with static hidden size")
    return int(width.get_length())


def adapt(model: Any, head: pooling.Head) -> Any:
    """Give a graph the inputs `ids` and `mask`, append the head, and name the output `vectors`.

    Raises:
        InputError: It has an input that is none of those known.
    """
    ov = openvino()
    from openvino import opset13 as op

    factory: Any = op
    ids = factory.parameter([-1, -1], ov.Type.i32, name="ids")
    mask = factory.parameter([-1, -1], ov.Type.f32, name="mask")
    for node in (ids, mask):
        node.output(0).set_names({node.get_friendly_name()})
    for old in model.get_parameters():
        old.output(0).replace(_feed(old, ids, mask, factory).output(0))
    x = _output(model).get_node().input_value(0)
    result = factory.result(pooling.apply(head, x, mask, factory))
    result.output(0).set_names({"vectors"})
    return ov.Model([result], [ids, mask], "vecmill")


def _feed(old: Any, ids: Any, mask: Any, op: Any) -> Any:
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
        count = op.cum_sum(mask, op.constant(np.int32(1)), True, False)
        return op.convert(op.multiply(count, mask), kind.to_string())
    raise InputError(f"the model has an input {sorted(names)}; known are {', '.join(_INPUTS)}")


def _output(model: Any) -> Any:
    outputs = list(model.outputs)
    named = [output for output in outputs if _SENTENCE in output.get_names()]
    tokens = [output for output in outputs if len(output.get_partial_shape()) == 3]
    flat = [output for output in outputs if len(output.get_partial_shape()) == 2]
    for found in (named, tokens, flat):
        if found:
            return found[0]
    shapes = ", ".join(str(output.get_partial_shape()) for output in outputs)
    raise InputError(
        f"the model's outputs have shapes {shapes}; one of (batch, tokens, h) or (batch, d) is needed"
    )
