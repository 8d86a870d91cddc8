"""Find and read the files of a model folder: what is there, what is missing, how vectors are pooled.

A folder has the layout of sentence-transformers, or a plain one with config.json, weights and tokenizer.json
beside a `vecmill.json` that says what the folder itself does not:

    {"pooling": ["mean"], "normalize": true, "max_tokens": 512,
     "query_prefix": "query: ", "document_prefix": "passage: ", "languages": ["en"]}

Every field is optional; what stands there wins over the rest of the folder.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vecmill.core.errors import ConfigError, CorruptFileError, InputError, unknown_name
from vecmill.core.types import InputType
from vecmill.models.local import ovms_layout
from vecmill.models.local.pooling import DENSE_ACTIVATIONS, Dense, Head, Normalize, Pool
from vecmill.models.local.weights import open_weights

BUILTIN_NAME = "all-MiniLM-L6-v2"
BUILTIN_FOLDER = Path(__file__).parent / "builtin"
OWN_FILE = "vecmill.json"

_SETTINGS_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
)
_OWN_FIELDS = frozenset(
    {"pooling", "normalize", "max_tokens", "query_prefix", "document_prefix", "languages", "format"}
    | {"name", "source", "source_sha256", "sha256"}
)
_LEGACY_POOLS = {
    "pooling_mode_cls_token": Pool.CLS,
    "pooling_mode_max_tokens": Pool.MAX,
    "pooling_mode_mean_tokens": Pool.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pool.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": Pool.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": Pool.LAST,
}
_INSIDE = "inside"
"""As `pooling` in `vecmill.json`: an IR or ONNX file pools by itself."""
_FOLDER_FIELDS = frozenset(
    {"__version__", "prompts", "default_prompt_name", "similarity_fn_name", "model_type", "truncate_dim"}
)
"""What config_sentence_transformers.json may hold; the last two with one value each."""
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])")
"""How ONNX writes that a tensor lies in a file: key "location", then the length of the file's name."""
_FOREIGN_LIMIT = 1_000_000
"""Tokenizer settings write "no limit" as a huge number."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model folder as found.

    Attributes:
        folder: The folder, resolved.
        kind: "safetensors", "openvino" or "onnx": what the graph is made from.
        weights: The safetensors files, or the .xml and .bin, or the .onnx file and its data.
        config: config.json, empty where an IR or ONNX file stands without one.
        tokenizer: tokenizer.json.
        config_file: config.json, which an IR or ONNX file may lack.
        head: Pooling and what follows; None where the folder does not say.
        max_tokens: The folder's own limit, or None.
        prefixes: What is put before a text of each role.
        lowercase: Whether texts are lowercased before they are tokenized.
        languages: Two-letter codes, where `vecmill.json` names them.
        pooled_inside: Whether `vecmill.json` says that the graph's output is the finished vector.
        sha256: Digests `vecmill.json` vouches for, by file name.
    """

    folder: Path
    kind: str
    weights: tuple[Path, ...]
    config: Mapping[str, Any]
    tokenizer: Path
    config_file: Path
    head: Head | None
    max_tokens: int | None
    prefixes: Mapping[InputType, str]
    lowercase: bool = False
    languages: tuple[str, ...] = ()
    pooled_inside: bool = False
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def hashed(self) -> tuple[Path, ...]:
        """The files whose bytes decide the vectors, in a fixed order."""
        config = (self.config_file,) if self.config_file.is_file() else ()
        return (*self.weights, self.tokenizer, *config)

    @property
    def folder_of_transformer(self) -> Path:
        """Where the tokenizer lies: the folder, or `0_Transformer` in it."""
        return self.tokenizer.parent

    def name_of(self, path: Path) -> str:
        """Return a file's path relative to the folder."""
        return Path(os.path.relpath(path, self.folder)).as_posix()


def inspect_folder(path: Path) -> ModelFiles:
    """Read a model folder without reading its weights.

    Raises:
        ConfigError: The folder, its weights, config.json or tokenizer.json are missing.
        CorruptFileError: A JSON file is damaged.
        InputError: The folder asks for something not built here.
    """
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"{path} is not a model folder: give a folder with config.json, weights and tokenizer.json"
        )
    own = _own(folder)
    modules = _modules(folder)
    said = ovms_layout.read_said(folder)
    inner = folder / modules[0]["path"] if modules else folder
    if said is not None and said.models_path is not None and (folder / ovms_layout.GRAPH).is_file():
        inner = (folder / said.models_path).resolve()
    graph = None if said is None else ovms_layout.weights_of(inner)
    kind, weights = _find_weights(folder, inner) if graph is None else ("openvino", graph)
    config_file = inner / "config.json" if said is None else ovms_layout.config_of(inner)
    config = _json(config_file) if config_file.is_file() else {}
    if kind == "safetensors" and not config:
        raise ConfigError(f"{config_file} is missing: the weights alone do not say what model they are of")
    tokenizer = ovms_layout.tokenizer_of(inner) or inner / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigError(
            f"{tokenizer} is missing; only the fast tokenizer's file is read: save the model again with a "
            "current "
            f"transformers, which writes it"
        )
    settings = _settings(inner)
    prefixes = _prefixes(folder, own)
    head = _head(folder, modules, own, prefixed=any(prefixes.values()))
    return ModelFiles(
        folder=folder,
        kind=kind,
        weights=weights,
        config=config,
        tokenizer=tokenizer,
        config_file=config_file,
        head=head if said is None else _as_said(head, said),
        max_tokens=_max_tokens(inner, settings, own),
        prefixes=prefixes,
        lowercase=bool(settings.get("do_lower_case", False)),
        languages=tuple(own.get("languages", ())),
        pooled_inside=own.get("pooling") in (_INSIDE, [_INSIDE]),
        sha256=dict(own.get("sha256", {})),
    )


def with_head(found: ModelFiles, *, pooling: str | None, normalize: bool | None) -> ModelFiles:
    """Return a folder's files with another pooling or normalization than it says; None keeps its own.

    Raises:
        UnknownNameError: No such pooling.
        InputError: The graph is said to pool inside.
    """
    if pooling is None and normalize is None:
        return found
    if pooling is not None and found.pooled_inside:
        raise InputError(
            f"{found.folder / OWN_FILE} says that the graph pools inside: leave pooling {pooling!r} out"
        )
    if pooling is not None and pooling not in list(Pool):
        raise unknown_name("pooling", pooling, Pool)
    head = found.head
    pools = (Pool(pooling),) if pooling is not None else () if head is None else head.pools
    steps = () if head is None else head.steps
    unit = (head is not None and head.normalized) if normalize is None else normalize
    kept = tuple(step for step in steps if not isinstance(step, Normalize))
    return replace(found, head=Head(pools, (*kept, Normalize()) if unit else kept))


def pooling_missing(folder: Path) -> ConfigError:
    """Return the error for a folder that does not say how token vectors become one."""
    return ConfigError(
        f"{folder} does not say how token vectors are pooled (no modules.json with a Pooling module), and a "
        "wrong "
        f"guess would give wrong vectors: look it up in the model's description and put it into "
        f'{folder / OWN_FILE}, as {{"pooling": ["mean"], "normalize": true}}; '
        f"pooling is one or more of {', '.join(Pool)}"
    )


def _own(folder: Path) -> dict[str, Any]:
    path = folder / OWN_FILE
    if not path.is_file():
        return {}
    own = _object(path)
    for name in own:
        if name not in _OWN_FIELDS:
            raise InputError(f"{path}: {unknown_name('field', name, _OWN_FIELDS)}")
    return own


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = _json(path)
    try:
        found = [
            {"path": str(module["path"]), "type": str(module["type"]).rsplit(".", 1)[-1]}
            for module in sorted(modules, key=lambda module: int(module["idx"]))
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a list of modules ({error}): fetch the model again") from error
    if not found or found[0]["type"] != "Transformer":
        first = found[0]["type"] if found else "nothing"
        raise InputError(
            f"{path} begins with {first}, only models that begin with a Transformer are built here"
        )
    return found


def _find_weights(folder: Path, inner: Path) -> tuple[str, tuple[Path, ...]]:
    single, index = inner / "model.safetensors", inner / "model.safetensors.index.json"
    if single.is_file():
        return "safetensors", (single,)
    if index.is_file():
        return "safetensors", _shards(index)
    for place in (inner, inner / "openvino", folder, folder / "openvino"):
        xml, binary = place / "openvino_model.xml", place / "openvino_model.bin"
        if xml.is_file():
            if not binary.is_file():
                raise ConfigError(f"{binary} is missing: an OpenVINO model is two files, .xml and .bin")
            return "openvino", (xml, binary)
    for place in (inner, inner / "onnx", folder, folder / "onnx"):
        onnx = place / "model.onnx"
        if onnx.is_file():
            return "onnx", (onnx, *external_data(onnx))
    hint = ""
    if (inner / "pytorch_model.bin").is_file():
        hint = "; pytorch_model.bin is a pickle, which is never read: save the model as safetensors"
    raise ConfigError(
        f"{folder} holds no weights: expected model.safetensors, model.safetensors.index.json, "
        f"openvino_model.xml or model.onnx{hint}"
    )


def external_data(onnx: Path) -> tuple[Path, ...]:
    """Return the files, sorted, in which an ONNX file says that its tensors lie.

    Raises:
        ConfigError: One is missing or lies outside the ONNX file's folder.
    """
    if onnx.stat().st_size == 0:
        return ()
    names: set[str] = set()
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for match in _LOCATION.finditer(raw):
            length = match[1]
            size = length[0] if len(length) == 1 else (length[0] & 0x7F) | length[1] << 7
            names.add(raw[match.end() : match.end() + size].decode("utf-8", "replace"))
    paths = tuple(onnx.parent / name for name in sorted(names))
    for path in paths:
        if not path.is_file() or not path.resolve().is_relative_to(onnx.parent.resolve()):
            raise ConfigError(
                f"{path}, in which {onnx} says that tensors lie, is missing or outside its folder: fetch "
                "the model "
                "again"
            )
    return paths


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(_json(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise CorruptFileError(f"{index} has no weight_map: fetch the model again") from error
    paths = tuple(index.parent / name for name in names)
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise ConfigError(f"{path}, which {index.name} names, is missing: fetch the model again")
    return paths


def _settings(inner: Path) -> dict[str, Any]:
    for name in _SETTINGS_FILES:
        if (inner / name).is_file():
            return _object(inner / name)
    return {}


def _max_tokens(inner: Path, settings: dict[str, Any], own: dict[str, Any]) -> int | None:
    candidates = [own.get("max_tokens"), settings.get("max_seq_length")]
    if (inner / "tokenizer_config.json").is_file():
        candidates.append(_object(inner / "tokenizer_config.json").get("model_max_length"))
    for value in candidates:
        if isinstance(value, int | float) and 0 < value < _FOREIGN_LIMIT:
            return int(value)
    return None


def _prefixes(folder: Path, own: dict[str, Any]) -> dict[InputType, str]:
    path = folder / "config_sentence_transformers.json"
    settings = _object(path) if path.is_file() else {}
    _refuse_folder_settings(settings, path)
    prompts: dict[str, str] = settings.get("prompts") or {}
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(
            f"{path}: default_prompt_name {default!r} is none of its prompts: {', '.join(prompts)}"
        )
    fallback = prompts.get(default, "") if default else ""
    document = next(
        (prompts[name] for name in ("document", "passage", "corpus") if name in prompts), fallback
    )
    return {
        InputType.QUERY: str(own.get("query_prefix", prompts.get("query", fallback))),
        InputType.DOCUMENT: str(own.get("document_prefix", document)),
    }


def _refuse_folder_settings(settings: dict[str, Any], path: Path) -> None:
    for name in settings:
        if name not in _FOLDER_FIELDS:
            raise InputError(
                f"{path}: what {name!r} does to vectors is not known here (known: "
                f"{', '.join(sorted(_FOLDER_FIELDS))}); remove it where it does nothing"
            )
    if settings.get("truncate_dim") is not None:
        raise InputError(
            f"{path}: truncate_dim {settings['truncate_dim']!r} is not built here: remove it and shorten the "
            "vectors afterwards"
        )
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise InputError(
            f"{path}: model_type {settings['model_type']!r} is not built here, only SentenceTransformer"
        )


def _head(folder: Path, modules: list[dict[str, Any]], own: dict[str, Any], *, prefixed: bool) -> Head | None:
    pools, steps = _module_steps(folder, modules, prefixed=prefixed)
    if own.get("pooling") in (_INSIDE, [_INSIDE]):
        unit = own.get("normalize", bool(steps) and isinstance(steps[-1], Normalize))
        return Head((), (Normalize(),) if unit is True else ())
    if "pooling" in own:
        named = own["pooling"] if isinstance(own["pooling"], list) else [own["pooling"]]
        pools = tuple(_pool(name, folder / OWN_FILE) for name in named)
    if own.get("normalize") is True and not (steps and isinstance(steps[-1], Normalize)):
        steps.append(Normalize())
    elif own.get("normalize") is False:
        steps = [step for step in steps if not isinstance(step, Normalize)]
    return Head(pools, tuple(steps)) if pools else None


def _as_said(head: Head | None, said: ovms_layout.Said) -> Head:
    """Return the head with what `graph.pbtxt` says of it; without any word, that server's default."""
    if head is None and said.pooling is None:
        said = replace(said, pooling=Pool.CLS)
    unit = said.normalize if said.normalize is not None else True if head is None else head.normalized
    pools = (Pool(said.pooling),) if said.pooling is not None else () if head is None else head.pools
    steps = () if head is None else head.steps
    kept = tuple(step for step in steps if not isinstance(step, Normalize))
    return Head(pools, (*kept, Normalize()) if unit else kept)


def _module_steps(
    folder: Path, modules: list[dict[str, Any]], *, prefixed: bool
) -> tuple[tuple[Pool, ...], list[Dense | Normalize]]:
    """Read the modules after the Transformer: how it is pooled, and what follows."""
    pools: tuple[Pool, ...] = ()
    steps: list[Dense | Normalize] = []
    for module in modules[1:]:
        place = folder / module["path"]
        if module["type"] == "Pooling":
            if pools or steps:
                raise InputError(
                    f"{folder / 'modules.json'}: a module before Pooling, or a second Pooling, is not "
                    "built here: "
                    "only Transformer, Pooling, then Dense and Normalize"
                )
            pools = _pools(place / "config.json", prefixed=prefixed)
        elif module["type"] == "Dense":
            steps.append(_dense(place))
        elif module["type"] == "Normalize":
            steps.append(Normalize())
        elif module["type"] != "Dropout":  # does nothing outside training
            raise InputError(f"{folder / 'modules.json'}: a {module['type']} module is not built here")
    if steps and not pools:
        raise InputError(
            f"{folder / 'modules.json'} has Dense or Normalize without Pooling before them, which is not "
            "built here"
        )
    return pools, steps


def _pools(path: Path, *, prefixed: bool) -> tuple[Pool, ...]:
    config = _object(path)
    if config.get("include_prompt", True) is False and prefixed:
        raise InputError(f"{path}: include_prompt false (prompts left out of pooling) is not built here")
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        return tuple(_pool(mode, path) for mode in (modes if isinstance(modes, list) else [modes]))
    pools = tuple(pool for key, pool in _LEGACY_POOLS.items() if config.get(key))
    if not pools:
        raise InputError(f"{path} names no pooling mode: set one of {', '.join(_LEGACY_POOLS)} to true")
    return pools


def _pool(name: Any, path: Path) -> Pool:
    if name not in list(Pool):
        raise InputError(f"{path}: {unknown_name('pooling', str(name), Pool)}")
    return Pool(name)


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = _object(path)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in DENSE_ACTIVATIONS:
        raise InputError(f"{path}: {unknown_name('activation', activation, DENSE_ACTIVATIONS)}")
    if config.get("use_residual"):
        raise InputError(f"{path}: use_residual is not built here")
    for side in ("module_input_name", "module_output_name"):
        if config.get(side) not in (None, "sentence_embedding"):
            raise InputError(
                f"{path}: {side} {config[side]!r} is not built here, only 'sentence_embedding': a Dense "
                "layer on "
                "token vectors needs an ONNX file of the whole model"
            )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{file} is missing: a Dense module has weights of its own, as safetensors")
    weights = open_weights((file,))
    if "linear.weight" not in weights:
        raise CorruptFileError(f"{file} has no tensor linear.weight: fetch the model again")
    bias = np.array(weights.float32("linear.bias")) if "linear.bias" in weights else None
    return Dense(np.array(weights.float32("linear.weight")), bias, activation)


def _object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} is not a JSON object: fetch the model again")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: fetch the model again") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}): fetch the model again") from error
