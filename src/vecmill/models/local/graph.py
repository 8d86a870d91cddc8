"""Build an OpenVINO graph straight from a model's configuration and weights.

One encoder serves BERT, RoBERTa, XLM-RoBERTa, CamemBERT, MPNet and DistilBERT: they differ in the names of
their weights, in positions and in MPNet's relative attention bias. Attention is matmul, softmax, matmul with
1/sqrt(d) folded into the query weights; the CPU plugin fuses that into one node per layer.

Inputs of the graph: `ids` (b, s) int32, `mask` (b, s) float32 with 1 for a token and 0 for padding on the
right, and `positions` (b, s) int32 where the family counts positions from the padding id. Output: vectors (b,
d) float32.

Source: Devlin et al., BERT; Liu et al., RoBERTa; Song et al., MPNet; Sanh et al., DistilBERT; Raffel et al.,
T5 (relative position buckets).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecmill.core.errors import ConfigError, CorruptFileError, InputError, unknown_name
from vecmill.models.local import pooling
from vecmill.models.local.quantize import quantize_rows
from vecmill.models.local.weights import Weights

Node = Any
"""An OpenVINO output or node; the library ships no types for its operator factories."""

_MPNET_BUCKETS = 32
_MASKED = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family of models keeps its weights. `{i}` is the layer's number.

    Attributes:
        prefixes: What may stand before every name.
        layer: Prefix of a layer's weights; the names after it follow.
        positions_after_padding: Positions count from the padding id + 1, as in RoBERTa.
    """

    prefixes: tuple[str, ...]
    layer: str
    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    up: str
    down: str
    norm: str
    positions_after_padding: bool = False

    @property
    def padding_id(self) -> int:
        """The id of the padding token where config.json does not name one."""
        return 1 if self.positions_after_padding else 0


_BERT = Family(
    prefixes=("", "bert.", "model."),
    layer="encoder.layer.{i}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm="output.LayerNorm",
)
_ROBERTA = Family(
    prefixes=("", "roberta.", "model."),
    layer=_BERT.layer,
    query=_BERT.query,
    key=_BERT.key,
    value=_BERT.value,
    attention_out=_BERT.attention_out,
    attention_norm=_BERT.attention_norm,
    up=_BERT.up,
    down=_BERT.down,
    norm=_BERT.norm,
    positions_after_padding=True,
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": Family(
        prefixes=("", "mpnet.", "model."),
        layer="encoder.layer.{i}.",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_out="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        norm="output.LayerNorm",
        positions_after_padding=True,
    ),
    "distilbert": Family(
        prefixes=("", "distilbert.", "model."),
        layer="transformer.layer.{i}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm="output_layer_norm",
    ),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a model's config.json, under one name each.

    Attributes:
        family: A key of `FAMILIES`.
        inner: Width of the feed-forward layers.
        positions: Positions a text may use, special tokens counted.
        padding_id: The id of the padding token.
        relative_buckets: MPNet's buckets of relative positions, else 0.
    """

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    epsilon: float
    activation: str
    positions: int
    padding_id: int
    relative_buckets: int = 0


def read_architecture(config: dict[str, Any], *, where: str) -> Architecture:
    """Read a config.json.

    Raises:
        UnknownNameError: The family or the activation is none of those built here.
        InputError: A number is missing, or the model uses a variant this graph does not have.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        error = unknown_name("model_type", family, FAMILIES)
        raise type(error)(
            f"{where}: {error}; a model of another architecture works from an OpenVINO IR "
            "(openvino_model.xml) "
            f"or ONNX file (model.onnx) in the same folder"
        )
    bert_like = family != "distilbert"
    names = {
        "hidden": "hidden_size" if bert_like else "dim",
        "inner": "intermediate_size" if bert_like else "hidden_dim",
        "layers": "num_hidden_layers" if bert_like else "n_layers",
        "heads": "num_attention_heads" if bert_like else "n_heads",
        "positions": "max_position_embeddings",
    }
    missing = [name for name in names.values() if not _is_count(config.get(name))]
    if missing:
        raise InputError(
            f"{where} lacks {', '.join(missing)}: it is not a whole config.json of a {family} model"
        )
    _refuse_variants(config, where)
    hidden, heads = config[names["hidden"]], config[names["heads"]]
    if hidden % heads:
        raise ConfigError(
            f"{where}: {names['heads']} {heads} does not divide {names['hidden']} {hidden}: fetch the "
            "model again"
        )
    padding = padding_of(config, family, where=where)
    reserved = padding + 1 if FAMILIES[family].positions_after_padding else 0
    activation = str(config.get("hidden_act", "gelu") if bert_like else config.get("activation", "gelu"))
    if activation not in _ACTIVATIONS:
        raise unknown_name("hidden_act", activation, _ACTIVATIONS)
    return Architecture(
        family=family,
        hidden=hidden,
        inner=config[names["inner"]],
        layers=config[names["layers"]],
        heads=heads,
        epsilon=float(config.get("layer_norm_eps", 1e-12)) if bert_like else 1e-12,  # DistilBERT's is fixed
        activation=activation,
        positions=config["max_position_embeddings"] - reserved,
        padding_id=padding,
        relative_buckets=_MPNET_BUCKETS if family == "mpnet" else 0,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def padding_of(config: Mapping[str, Any], family: str, *, where: str) -> int:
    """Return the id of the padding token: what config.json says, else the family's own.

    Raises:
        ConfigError: It is no id, or null in a family that counts positions from it.
    """
    padding = config.get("pad_token_id", FAMILIES[family].padding_id)
    if padding is None and not FAMILIES[family].positions_after_padding:
        return FAMILIES[family].padding_id
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise ConfigError(
            f"{where}: pad_token_id {padding!r} is no token id, and {family} counts positions from it "
            "where it has "
            f"one: put the number of the padding token there (usually {FAMILIES[family].padding_id})"
        )
    return padding


def _refuse_variants(config: dict[str, Any], where: str) -> None:
    kind = config.get("position_embedding_type", "absolute")
    if kind not in (None, "absolute"):
        raise InputError(
            f"{where}: position_embedding_type {kind!r} is not built here (only 'absolute'); an OpenVINO IR "
            "or ONNX "
            f"file in the same folder works"
        )
    buckets = config.get("relative_attention_num_buckets", _MPNET_BUCKETS)
    if config.get("model_type") == "mpnet" and buckets != _MPNET_BUCKETS:
        raise InputError(
            f"{where}: relative_attention_num_buckets {buckets} is not built here (only {_MPNET_BUCKETS}, "
            "which "
            "MPNet's own code uses whatever stands there)"
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError(f"{where}: the model is a decoder; only encoders are built here")


def positions_of(ids: npt.NDArray[np.int32], padding_id: int) -> npt.NDArray[np.int32]:
    """Return RoBERTa's positions (b, s) int32: tokens count from padding_id + 1, padding has padding_id."""
    token = ids != padding_id
    return np.where(token, np.cumsum(token, axis=1) + padding_id, padding_id).astype(np.int32)


def build(architecture: Architecture, weights: Weights, head: pooling.Head, *, int8: bool) -> Any:
    """Build the graph of a model.

    Args:
        architecture: Its shape.
        weights: Its tensors.
        head: Pooling, dense layers and normalization after the encoder.
        int8: Keep the weights of linear layers as int8 with row scales; otherwise as float32.

    Returns:
        An `openvino.Model` with inputs and output as the module says.

    Raises:
        CorruptFileError: A tensor is missing or has the wrong shape.
    """
    return _Builder(architecture, weights, int8=int8).model(head)


def vocabulary_rows(architecture: Architecture, weights: Weights) -> int:
    """Return how many token ids the word embeddings have rows for.

    Raises:
        CorruptFileError: The weights hold no word embeddings.
    """
    prefix = _find_prefix(architecture, weights)
    return weights.shape(f"{prefix}embeddings.word_embeddings.weight")[0]


def check_shapes(architecture: Architecture, weights: Weights, *, positions: int) -> None:
    """Compare every tensor's shape with the configuration, reading headers only.

    Args:
        architecture: What config.json says.
        weights: The tensors.
        positions: Rows of the table of positions, as config.json says.

    Raises:
        CorruptFileError: A tensor is missing, or has another shape than the configuration says.
    """
    prefix = _find_prefix(architecture, weights)
    expected = _expected_shapes(architecture, weights, prefix, positions)
    for name, shape in expected.items():
        found = _renamed(name, weights)
        if found not in weights:
            raise CorruptFileError(
                f"tensor {name} is missing from the weights of this {architecture.family} model: fetch the "
                "model "
                "again"
            )
        has = weights.shape(found)
        if len(has) != len(shape) or any(n is not None and n != m for n, m in zip(shape, has, strict=True)):
            wanted = tuple("any" if n is None else n for n in shape)
            raise CorruptFileError(
                f"tensor {found} of {weights.file(found)} has shape {has}, config.json says "
                f"{wanted}: the two do not belong together; fetch the model again"
            )


def _expected_shapes(
    a: Architecture, weights: Weights, prefix: str, positions: int
) -> dict[str, tuple[int | None, ...]]:
    family = FAMILIES[a.family]
    shapes: dict[str, tuple[int | None, ...]] = {
        f"{prefix}embeddings.word_embeddings.weight": (None, a.hidden),
        f"{prefix}embeddings.position_embeddings.weight": (positions, a.hidden),
    }
    kinds = f"{prefix}embeddings.token_type_embeddings.weight"
    if kinds in weights:
        shapes[kinds] = (None, a.hidden)
    if a.relative_buckets:
        shapes[f"{prefix}encoder.relative_attention_bias.weight"] = (a.relative_buckets, a.heads)
    norms = [f"{prefix}embeddings.LayerNorm"]
    for i in range(a.layers):
        at = prefix + family.layer.format(i=i)
        norms += [at + family.attention_norm, at + family.norm]
        linear = dict.fromkeys(
            (family.query, family.key, family.value, family.attention_out), (a.hidden,) * 2
        )
        linear |= {family.up: (a.inner, a.hidden), family.down: (a.hidden, a.inner)}
        for name, (rows, columns) in linear.items():
            shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = (rows, columns), (rows,)
    shapes |= {f"{norm}.{part}": (a.hidden,) for norm in norms for part in ("weight", "bias")}
    return shapes


def _renamed(name: str, weights: Weights) -> str:
    """Return the name a norm's tensor has in checkpoints converted from TensorFlow, where it has that."""
    older = name.removesuffix(".weight") + ".gamma" if name.endswith(".weight") else ""
    older = name.removesuffix(".bias") + ".beta" if name.endswith(".bias") else older
    return older if older in weights else name


def _find_prefix(architecture: Architecture, weights: Weights) -> str:
    for prefix in FAMILIES[architecture.family].prefixes:
        if f"{prefix}embeddings.word_embeddings.weight" in weights:
            return prefix
    raise CorruptFileError(
        f"the weights hold no tensor embeddings.word_embeddings.weight: they are not those of a "
        f"{architecture.family} model; they begin with {', '.join(sorted(weights)[:3])}"
    )


class _Builder:
    def __init__(self, architecture: Architecture, weights: Weights, *, int8: bool) -> None:
        import openvino
        from openvino import opset13

        self._ov = openvino
        self._op: Any = opset13
        self._a = architecture
        self._family = FAMILIES[architecture.family]
        self._weights = weights
        self._int8 = int8
        self._prefix = _find_prefix(architecture, weights)

    def model(self, head: pooling.Head) -> Any:
        op, ov = self._op, self._ov
        ids = op.parameter([-1, -1], ov.Type.i32, name="ids")
        mask = op.parameter([-1, -1], ov.Type.f32, name="mask")
        inputs = [ids, mask]
        positions = None
        if self._family.positions_after_padding:
            positions = op.parameter([-1, -1], ov.Type.i32, name="positions")
            inputs.append(positions)
        for node in inputs:
            node.output(0).set_names({node.get_friendly_name()})
        x = self._embed(ids, positions)
        bias = self._bias(ids, mask)
        for i in range(self._a.layers):
            x = self._layer(x, bias, self._prefix + self._family.layer.format(i=i))
        result = op.result(pooling.apply(head, x, mask, op))
        result.output(0).set_names({"vectors"})
        return ov.Model([result], inputs, "vecmill")

    # Weights by name

    def _float(self, name: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
        if name not in self._weights:
            raise CorruptFileError(
                f"tensor {name} is missing from the weights of this {self._a.family} model"
            )
        array = self._weights.float32(name)
        if shape is not None and array.shape != shape:
            raise CorruptFileError(f"tensor {name} has shape {array.shape}, the configuration says {shape}")
        return array

    def _c(self, array: Any, dtype: Any = None) -> Node:
        return self._op.constant(np.ascontiguousarray(array, dtype=dtype))

    # Parts of the graph

    def _table(self, name: str) -> Node:
        """Return a table (rows, h) to look up in, and its row scales where the file has it as int8."""
        name = f"{self._prefix}embeddings.{name}.weight"
        if name in self._weights and self._weights[name].dtype == np.int8:
            return self._c(self._weights[name]), self._c(self._weights.scale(name))
        return self._c(self._float(name)), None

    def _lookup(self, name: str, at: Node) -> Node:
        op = self._op
        table, scale = self._table(name)
        zero = self._c(0, np.int32)
        rows = op.gather(table, at, zero)
        if scale is None:
            return rows
        return op.multiply(op.convert(rows, "f32"), op.gather(scale, at, zero))

    def _embed(self, ids: Node, positions: Node | None) -> Node:
        op = self._op
        x = self._lookup("word_embeddings", ids)
        table = self._float(f"{self._prefix}embeddings.position_embeddings.weight")
        kind = f"{self._prefix}embeddings.token_type_embeddings.weight"
        if kind in self._weights:
            table = table + self._float(kind)[0]
        if positions is None:
            length = op.gather(op.shape_of(ids, "i32"), self._c([1], np.int32), self._c(0, np.int32))
            at = op.slice(
                self._c(table), self._c([0], np.int32), length, self._c([1], np.int32), self._c([0], np.int32)
            )
        else:
            at = op.gather(self._c(table), positions, self._c(0, np.int32))
        return self._norm(op.add(x, at), f"{self._prefix}embeddings.LayerNorm")

    def _bias(self, ids: Node, mask: Node) -> Node:
        """Return what is added to the attention scores: -1e9 at padding, and MPNet's relative bias."""
        op = self._op
        off = op.multiply(op.subtract(mask, self._c(1.0, np.float32)), self._c(-_MASKED, np.float32))
        bias = op.unsqueeze(off, self._c([1, 2], np.int32))  # (b, 1, 1, s)
        if not self._a.relative_buckets:
            return bias
        table = self._float(f"{self._prefix}encoder.relative_attention_bias.weight")
        buckets = relative_buckets(self._a.positions, self._a.relative_buckets)
        full = self._c(table.T[:, buckets])  # (heads, positions, positions)
        length = op.gather(op.shape_of(ids, "i32"), self._c([1, 1], np.int32), self._c(0, np.int32))
        part = op.slice(
            full, self._c([0, 0], np.int32), length, self._c([1, 1], np.int32), self._c([1, 2], np.int32)
        )
        return op.add(bias, op.unsqueeze(part, self._c([0], np.int32)))

    def _layer(self, x: Node, bias: Node, at: str) -> Node:
        op, family, a = self._op, self._family, self._a
        scale = np.float32(1.0 / math.sqrt(a.hidden // a.heads))
        q = self._heads(self._linear(x, at + family.query, scale=scale), (0, 2, 1, 3))
        k = self._heads(self._linear(x, at + family.key), (0, 2, 3, 1))
        v = self._heads(self._linear(x, at + family.value), (0, 2, 1, 3))
        scores = op.add(op.matmul(q, k, False, False), bias)
        mixed = op.matmul(op.softmax(scores, -1), v, False, False)  # (b, heads, s, d)
        mixed = op.transpose(mixed, self._c([0, 2, 1, 3], np.int32))
        mixed = op.reshape(mixed, self._c([0, 0, a.hidden], np.int32), True)
        x = self._norm(op.add(self._linear(mixed, at + family.attention_out), x), at + family.attention_norm)
        inner = _ACTIVATIONS[a.activation](op, self._linear(x, at + family.up))
        return self._norm(op.add(self._linear(inner, at + family.down), x), at + family.norm)

    def _heads(self, x: Node, order: tuple[int, ...]) -> Node:
        a = self._a
        x = self._op.reshape(x, self._c([0, 0, a.heads, a.hidden // a.heads], np.int32), True)
        return self._op.transpose(x, self._c(order, np.int32))

    def _linear(self, x: Node, name: str, *, scale: np.float32 | None = None) -> Node:
        """Multiply by the weights (out, in) and add the bias; `scale` multiplies both beforehand."""
        op = self._op
        bias = self._float(f"{name}.bias")
        if scale is not None:
            bias = bias * scale
        y = op.matmul(x, self._matrix(f"{name}.weight", scale), False, True)
        return op.add(y, self._c(bias))

    def _matrix(self, name: str, scale: np.float32 | None) -> Node:
        op = self._op
        if not self._int8:
            weights = self._float(name)
            return self._c(weights if scale is None else weights * scale)
        if name in self._weights and self._weights[name].dtype == np.int8:
            levels, scales = self._weights[name], self._weights.scale(name)
        else:
            levels, scales = quantize_rows(self._float(name))
        if scale is not None:
            scales = scales * scale
        return op.multiply(op.convert(self._c(levels), "f32"), self._c(scales))

    def _norm(self, x: Node, name: str) -> Node:
        op = self._op
        old = f"{name}.gamma" in self._weights  # as checkpoints converted from TensorFlow name them
        gain = self._float(f"{name}.gamma" if old else f"{name}.weight")
        shift = self._float(f"{name}.beta" if old else f"{name}.bias")
        y = op.mvn(x, self._c([-1], np.int32), True, float(self._a.epsilon), "inside_sqrt")
        return op.add(op.multiply(y, self._c(gain)), self._c(shift))


def relative_buckets(positions: int, buckets: int, max_distance: int = 128) -> npt.NDArray[np.int64]:
    """Return the bucket (positions, positions) of each pair of query and key positions.

    Half the buckets serve keys after the query; within a half, small distances have one each and larger ones
    share them logarithmically. Source: Raffel et al., T5, as MPNet uses it.
    """
    at = np.arange(positions)
    distance = at[None, :] - at[:, None]  # key minus query
    half = buckets // 2
    result = np.where(distance > 0, half, 0)
    distance = np.abs(distance)
    exact = half // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int64), half - 1)
    return np.asarray(result + np.where(distance < exact, distance, far), dtype=np.int64)


_ACTIVATIONS: dict[str, Any] = {
    "gelu": lambda op, x: op.gelu(x, "erf"),
    "gelu_new": lambda op, x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda op, x: op.gelu(x, "tanh"),
    "relu": lambda op, x: op.relu(x),
    "silu": lambda op, x: op.swish(x),
    "swish": lambda op, x: op.swish(x),
    "tanh": lambda op, x: op.tanh(x),
}
