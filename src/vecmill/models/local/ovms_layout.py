"""Models as OpenVINO Model Server keeps them: its folders, `graph.pbtxt`, `subconfig.json` and `config.json`.

Two layouts. The older has graph and tokenizer as two servables with versions each,
`MODEL/embeddings/VERSION/model.xml` and `MODEL/tokenizer/VERSION/`; the newer has `openvino_model.xml` and
the tokenizer's files beside `graph.pbtxt`. What `graph.pbtxt` says wins over what else lies in the folder;
where it says nothing, the folder's own pooling counts, and at last the server's defaults: the first token's
vector, of unit length.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vecmill.core.errors import ConfigError, CorruptFileError, InputError, unknown_name
from vecmill.models.local.pooling import Pool

log = logging.getLogger(__name__)

GRAPH = "graph.pbtxt"
SUBCONFIG = "subconfig.json"

POOLS = {"CLS": Pool.CLS, "LAST": Pool.LAST, "MEAN": Pool.MEAN}
"""The server's words for pooling."""

Message: TypeAlias = dict[str, list[Any]]
"""A text-proto message: each field's values in order; a value is a str, bool, float, or a message."""

_KNOWN = ("models_path", "normalize_embeddings", "pooling", "truncate", "target_device", "plugin_config")
_PLUGIN = ("NUM_STREAMS",)
_HINTS = ("PERFORMANCE_HINT", "CACHE_DIR")
"""Plugin settings that change no vector and have no meaning here: not worth a word."""


@dataclass(frozen=True, slots=True)
class Said:
    """What `graph.pbtxt` and `subconfig.json` say of a model. None: nothing.

    Attributes:
        models_path: Where graph and tokenizer are, relative to `graph.pbtxt`.
        pooling: As `Pool` names it.
        normalize: Whether vectors get unit length.
        truncate: Whether long texts are cut instead of refused.
        device: Where it runs.
        streams: Batches side by side.
        ignored: Options that are not understood here, as "name" or "plugin_config.NAME".
    """

    models_path: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    device: str | None = None
    streams: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A model `config.json` names.

    Attributes:
        name: The id clients ask for.
        folder: Its base path.
        said: What its files and its entry say.
        versions: The versions to be served; empty: the highest.
    """

    name: str
    folder: Path
    said: Said = field(default_factory=Said)
    versions: tuple[str, ...] = ()


def versions_of(folder: Path) -> Path | None:
    """Return where a model of the older layout has its versions, or None where it is no such model."""
    inner = folder / "embeddings"
    if (folder / GRAPH).is_file() and inner.is_dir():
        return inner
    return None


def root_of(folder: Path) -> Path | None:
    """Return the folder with the `graph.pbtxt` a model folder belongs to, or None."""
    places = (folder, folder.parent, folder.parent.parent)
    if folder.parent.name == "embeddings" and (places[2] / GRAPH).is_file():
        return places[2]
    return next((place for place in places[:2] if (place / GRAPH).is_file()), None)


def beside(folder: Path) -> list[Path]:
    """Return what decides a version's vectors and lies outside its folder."""
    root = root_of(folder)
    if root is None or root == folder:
        return []
    names = (GRAPH, SUBCONFIG, "config.json", "tokenizer.json", "tokenizer_config.json")
    places = [root / name for name in names]
    if folder.parent.name == "embeddings":
        places.append(root / "tokenizer" / folder.name)
    return [place for place in places if place.exists()]


def read_said(folder: Path) -> Said | None:
    """Return what the server's files say of a model or version folder; None where there is no `graph.pbtxt`.

    Raises:
        CorruptFileError: A file cannot be read.
        InputError: An option has a value that is not understood.
    """
    root = root_of(folder)
    if root is None:
        return None
    said = _options(root / GRAPH)
    if (root / SUBCONFIG).is_file():
        said = _with_subconfig(said, root / SUBCONFIG)
    return said


def weights_of(folder: Path) -> tuple[Path, Path] | None:
    """Return .xml and .bin of a model of the older layout; None where the folder is none.

    Raises:
        ConfigError: One of the two files is missing.
    """
    xml, binary = folder / "model.xml", folder / "model.bin"
    if root_of(folder) is None or not xml.is_file():
        return None
    if not binary.is_file():
        raise ConfigError(f"{binary} is missing: an OpenVINO model is two files, .xml and .bin")
    return xml, binary


def tokenizer_of(folder: Path) -> Path | None:
    """Return the `tokenizer.json` of a model folder of this server; None where the folder is none.

    Raises:
        ConfigError: The tokenizer is there as a graph only, which is not run here.
    """
    root = root_of(folder)
    if root is None:
        return None
    graphs = root / "tokenizer" / folder.name
    places = (folder, graphs, root, root / "tokenizer")
    for place in places:
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    compiled = (graphs / "model.xml", folder / "openvino_tokenizer.xml", root / "openvino_tokenizer.xml")
    found = next((path for path in compiled if path.is_file()), None)
    what = (
        "no tokenizer" if found is None else f"its tokenizer as a graph only ({found}), which is not run here"
    )
    raise ConfigError(
        f"{folder} has {what}: copy tokenizer.json (and config.json) of the model it was exported from, as "
        f"`transformers` saves it, to {folder / 'tokenizer.json'}"
    )


def config_of(folder: Path) -> Path:
    """Return the config.json of a model folder of this server, which may not exist."""
    root = root_of(folder) or folder
    tokenizer = root / "tokenizer" / folder.name
    places = (folder, tokenizer, root)
    return next(
        (p / "config.json" for p in places if _is_model_config(p / "config.json")), folder / "config.json"
    )


def read_config(path: Path) -> list[Entry]:
    """Return the models of the server's `config.json`.

    Raises:
        ConfigError: It is not there, or names a folder that is not.
        CorruptFileError: It is no JSON, or has another form.
    """
    content = _json(path)
    entries: list[Entry] = []
    for kind in ("mediapipe_config_list", "model_config_list"):
        listed = content.get(kind, [])
        if not isinstance(listed, list):
            raise CorruptFileError(f"{path}: {kind} is not a list")
        entries.extend(_entry(given, path, kind) for given in listed)
    if not entries:
        raise ConfigError(f"{path} names no model: put it into mediapipe_config_list or model_config_list")
    return entries


def read_plugin_config(given: Any, where: str) -> tuple[int | None, tuple[str, ...]]:
    """Return the streams a `plugin_config` asks for, and the names of what else stands there.

    Args:
        given: An object, or its JSON.
        where: Names the place in messages.

    Raises:
        CorruptFileError: It is no object of names and values.
        InputError: NUM_STREAMS is no whole number above 0.
    """
    if not given:
        return None, ()
    config = _embedded_json(given, where) if isinstance(given, str) else given
    if not isinstance(config, dict):
        raise CorruptFileError(f"{where}: plugin_config is not an object of names and values")
    streams: int | None = None
    asked = config.get("NUM_STREAMS")
    if asked is not None and str(asked).upper() != "AUTO":
        if not str(asked).isdigit() or int(str(asked)) < 1:
            raise InputError(f"{where}: NUM_STREAMS {asked!r} is no whole number above 0")
        streams = int(str(asked))
    known = (*_PLUGIN, *_HINTS)
    return streams, tuple(f"plugin_config.{name}" for name in config if name not in known)


def parse(text: str, *, where: str) -> Message:
    """Read a text-proto message.

    Raises:
        CorruptFileError: It is none; the message gives the line.
    """
    return _Reader(text, where).message(end=None)


# config.json

_ENTRY_FIELDS = {
    "mediapipe_config_list": ("name", "base_path", "graph_path", "subconfig"),
    "model_config_list": ("name", "base_path", "target_device", "plugin_config", "model_version_policy"),
}


def _entry(given: Any, path: Path, kind: str) -> Entry:
    given = given.get("config", given) if isinstance(given, dict) else given
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise CorruptFileError(f"{path}: an entry of {kind} has no name")
    name = given["name"]
    base = Path(str(given.get("base_path", name)))
    folder = base if base.is_absolute() else path.parent / base
    if not folder.is_dir():
        raise ConfigError(f"{path}: {name} should be in {folder}, which is no folder")
    graph = given.get("graph_path")
    if graph is not None and (folder / str(graph)).resolve() != (folder / GRAPH).resolve():
        raise InputError(f"{path}: {name} has its graph at {graph!r}; only {GRAPH} in its folder is read")
    own, versions = _said_of(given, where=f"{path}: {name}")
    unknown = tuple(sorted(set(given) - set(_ENTRY_FIELDS[kind])))
    inner = versions_of(folder)
    numbered = inner if inner is not None else folder
    first = next((one for one in sorted(numbered.iterdir()) if one.is_dir() and one.name.isdigit()), folder)
    said = _merged(read_said(first) or Said(), own)
    return Entry(name, folder, _merged(said, Said(ignored=unknown)), versions)


def _said_of(given: Mapping[str, Any], *, where: str) -> tuple[Said, tuple[str, ...]]:
    """Return what an entry of config.json or subconfig.json says, and which versions it wants."""
    device = given.get("target_device")
    streams, ignored = read_plugin_config(given.get("plugin_config"), where)
    policy = given.get("model_version_policy") or {}
    policy = _embedded_json(policy, where) if isinstance(policy, str) else policy
    versions: tuple[str, ...] = ()
    if isinstance(policy, dict) and "specific" in policy:
        versions = tuple(str(number) for number in policy["specific"].get("versions", ()))
    elif policy and "latest" not in policy:
        ignored = (*ignored, "model_version_policy")
    return Said(device=None if device is None else str(device), streams=streams, ignored=ignored), versions


def _with_subconfig(said: Said, path: Path) -> Said:
    """Add what `subconfig.json` says of the graph, not of the tokenizer."""
    for given in _json(path).get("model_config_list", []):
        given = given.get("config", given) if isinstance(given, dict) else {}
        base = Path(str(given.get("base_path", ""))).name
        if base == "embeddings":
            own, _ = _said_of(given, where=str(path))
            said = _merged(said, own)
    return said


def _merged(said: Said, over: Said) -> Said:
    """Return both; where both say something, the second counts."""
    values = {
        name: getattr(said, name) if getattr(over, name) is None else getattr(over, name)
        for name in ("models_path", "pooling", "normalize", "truncate", "device", "streams")
    }
    return Said(**values, ignored=tuple(dict.fromkeys((*said.ignored, *over.ignored))))


# graph.pbtxt


def _options(path: Path) -> Said:
    """Return the options of a graph's embeddings calculator."""
    try:
        graph = parse(path.read_text("utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
    for node in _messages(graph.get("node", [])):
        calculator = str(node.get("calculator", [""])[0])
        if not calculator.startswith("EmbeddingsCalculator"):
            continue
        values: Message = {}
        for options in _messages(node.get("node_options", []) + node.get("options", [])):
            for extension in options.values():
                for message in _messages(extension):
                    values |= message
        return _of_calculator(values, path)
    raise ConfigError(f"{path} has no EmbeddingsCalculator: it is not a graph that embeds texts")


def _of_calculator(values: Message, path: Path) -> Said:
    last = {name: found[-1] for name, found in values.items()}
    pooling = last.get("pooling")
    if pooling is not None and pooling not in POOLS:
        raise InputError(f"{path}: {unknown_name('pooling', str(pooling), POOLS)}")
    for name in ("normalize_embeddings", "truncate"):
        if not isinstance(last.get(name, True), bool):
            raise InputError(f"{path}: {name} is true or false, not {last[name]!r}")
    streams, ignored = read_plugin_config(last.get("plugin_config"), str(path))
    unknown = tuple(name for name in values if name not in _KNOWN)
    device, models_path = last.get("target_device"), last.get("models_path")
    return Said(
        models_path=None if models_path is None else str(models_path),
        pooling=None if pooling is None else POOLS[pooling],
        normalize=last.get("normalize_embeddings"),
        truncate=last.get("truncate"),
        device=None if device is None else str(device),
        streams=streams,
        ignored=(*unknown, *ignored),
    )


def _embedded_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CorruptFileError(f"{where}: {text!r} is not JSON ({error})") from error


def _messages(values: list[Any]) -> Iterator[Message]:
    yield from (value for value in values if isinstance(value, dict))


_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<extension>\[[^\]"'{}:,]*[A-Za-z_][^\]"'{}:,]*\](?=\s*:?\s*[{<]))
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<number>[-+]?(?:\.\d|\d)[\w.+-]*)
    |(?P<sign>[-{}<>\[\]:,;])""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_DEEPEST = 50


class _Reader:
    """Reads the text form of protocol buffers, as far as graphs use it."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._tokens = list(self._split(text))
        self._at = 0
        self._depth = 0

    def message(self, *, end: str | None) -> Message:
        """Read fields up to a closing sign."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong("messages lie too deep in each other")
        found: Message = {}
        while True:
            kind, value, _ = self._next()
            if value == end and kind in {"sign", "end"}:
                self._depth -= 1
                return found
            if kind not in {"word", "extension"}:
                raise self._wrong(f"{value!r} where a field's name should be", back=True)
            colon = self._skip(":")
            if self._peek() in {"{", "<"}:
                found.setdefault(value, []).append(self._inner())
            elif not colon:
                raise self._wrong(f"{value} has no value")
            elif self._skip("["):
                found.setdefault(value, []).extend(self._list())
            else:
                found.setdefault(value, []).append(self._scalar())
            self._skip(",") or self._skip(";")

    def _inner(self) -> Message:
        _, opening, _ = self._next()
        return self.message(end="}" if opening == "{" else ">")

    def _list(self) -> list[Any]:
        values: list[Any] = []
        while not self._skip("]"):
            values.append(self._inner() if self._peek() in {"{", "<"} else self._scalar())
            self._skip(",")
        return values

    def _scalar(self) -> Any:
        kind, value, _ = self._next()
        if kind == "text":
            whole = value
            while self._kind() == "text":  # texts side by side are one
                whole += self._next()[1]
            return whole
        if kind == "word":
            return {"true": True, "True": True, "false": False, "False": False}.get(value, value)
        if kind == "number":
            try:
                return float(value.rstrip("fF")) if not value.isdigit() else int(value)
            except ValueError:
                return value
        raise self._wrong(f"{value!r} where a value should be", back=True)

    def _split(self, text: str) -> Iterator[tuple[str, str, int]]:
        at, line = 0, 1
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise CorruptFileError(
                    f"{self._where}, line {line}: {text[at : at + 20]!r} is not understood"
                )
            kind, value = str(match.lastgroup), match[0]
            if kind == "text":
                value = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), value[1:-1])
            if kind == "extension":
                value = re.sub(r"\s", "", value[1:-1])
            if kind != "space":
                yield kind, value, line
            line += match[0].count("\n")
            at = match.end()

    def _next(self) -> tuple[str, Any, int]:
        if self._at >= len(self._tokens):
            self._at += 1
            return "end", None, 0
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> Any:
        return self._tokens[self._at][1] if self._kind() == "sign" else None

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else "end"

    def _skip(self, sign: str) -> bool:
        if self._peek() != sign:
            return False
        self._at += 1
        return True

    def _wrong(self, what: str, *, back: bool = False) -> CorruptFileError:
        at = min(self._at - back, len(self._tokens) - 1)
        line = self._tokens[at][2] if self._tokens else 1
        return CorruptFileError(f"{self._where}, line {line}: {what}: it is not a graph in text form")


def _is_model_config(path: Path) -> bool:
    """Say whether a config.json is a model's and not the server's own."""
    if not path.is_file():
        return False
    content = _json(path)
    return not {"mediapipe_config_list", "model_config_list"} & set(content)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} is not a JSON object")
    return content
