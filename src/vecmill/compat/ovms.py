"""OpenVINO Model Server's start flags, as options of our server.

`vecmill serve --config_path models/config.json --rest_port 8000` is understood; what has no meaning here is
said in a line each, and gRPC is not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vecmill.core.config import Settings, environment
from vecmill.core.errors import ConfigError, InputError, unknown_name
from vecmill.models.local import ovms_layout
from vecmill.server.keys import plain_key
from vecmill.server.options import ModelSource, Options

VALUES = (
    "rest_port",
    "rest_bind_address",
    "config_path",
    "model_name",
    "model_path",
    "model_repository_path",
    "source_model",
    "task",
    "target_device",
    "plugin_config",
    "file_system_poll_wait_seconds",
    "log_level",
    "cache_dir",
    "allowed_origins",
    "api_key_file",
)
"""Flags with a value that mean something here."""

SWITCHES = ("metrics_enable", "pull", "list_models")
"""Flags without a value."""

NAMING = ("config_path", "model_name", "model_path", "model_repository_path", "source_model")
"""Flags that say what is served."""

MEANINGLESS = (
    "rest_workers",
    "grpc_workers",
    "grpc_bind_address",
    "grpc_max_threads",
    "grpc_channel_arguments",
    "metrics_list",
    "log_path",
    "allowed_methods",
    "allowed_headers",
    "model_version_policy",
    "batch_size",
    "shape",
    "layout",
    "nireq",
    "max_sequence_number",
    "idle_sequence_cleanup",
    "cpu_extension",
    "sequence_cleaner_poll_wait_minutes",
    "custom_node_resources_cleaner_interval_seconds",
)
"""Flags with a value that have no meaning here; they are said once."""

LEVELS = {"TRACE": "debug", "DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error"}

_TASKS = ("embeddings",)


@dataclass(frozen=True, slots=True)
class Start:
    """What flags of OpenVINO Model Server ask for.

    Attributes:
        options, settings: Ours, with that in them.
        log_level: One of `server.logs.LEVELS`, or None where they say nothing.
        notes: What is to be said at the start, a line each.
    """

    options: Options
    settings: Settings
    log_level: str | None = None
    notes: tuple[str, ...] = field(default=())


def understand(
    given: Mapping[str, Any], options: Options, settings: Settings, *, grpc_port: int | None = None
) -> Start:
    """Put OpenVINO Model Server's flags into our options.

    Args:
        given: Flags by name, without "--"; those that are None or False were not given.
        options: What our own flags say.
        settings: Likewise.
        grpc_port: What `--port` said beside `--rest_port`.

    Raises:
        InputError: A flag has a value that is not understood, or asks for what is not done here.
        ConfigError: A file or folder is missing.
    """
    said = {name: value for name, value in given.items() if value not in (None, False)}
    if not said:
        return Start(options, settings)
    _refuse(said)
    notes = [f"--{name} has no meaning here and is left out" for name in said if name in MEANINGLESS]
    if grpc_port is not None:
        notes.append(f"gRPC is not served: nothing listens at port {grpc_port}")
    changes: dict[str, Any] = {}
    sources, repository = _sources(said, notes)
    if sources:
        changes["models"] = sources
    if repository is not None:
        changes["repository"] = repository
        changes["common"] = replace(options.common, **_of_all(said, []))
        changes.setdefault("models", ())
    changes |= _address(said, options, notes)
    if (key := _key(said, notes)) is not None:
        changes["key_hashes"] = (plain_key(key),)
    if "cache_dir" in said:
        settings = replace(settings, cache_dir=Path(said["cache_dir"]))
    return Start(replace(options, **changes), settings, _level(said), tuple(notes))


def _address(said: Mapping[str, Any], options: Options, notes: list[str]) -> dict[str, Any]:
    """Return where it listens, who may ask, and how often folders are looked at."""
    changes: dict[str, Any] = {}
    if "rest_port" in said:
        changes["port"] = _number(said, "rest_port", most=65535)
    if "rest_bind_address" in said:
        changes["host"] = str(said["rest_bind_address"]).split(",")[0]
    elif options.host == "127.0.0.1":
        notes.append("only this machine is answered: --rest_bind_address 0.0.0.0 answers others too")
    if "file_system_poll_wait_seconds" in said:
        changes["poll_seconds"] = float(_number(said, "file_system_poll_wait_seconds"))
    if "allowed_origins" in said:
        origins = (one.strip() for one in str(said["allowed_origins"]).split(","))
        changes["allowed_origins"] = tuple(one for one in origins if one)
    return changes


def _refuse(said: Mapping[str, Any]) -> None:
    for name in said:
        if name not in (*VALUES, *SWITCHES, *MEANINGLESS):
            raise unknown_name("flag", name, (*VALUES, *SWITCHES, *MEANINGLESS))
    for name in ("pull", "list_models"):
        if name in said:
            raise InputError(
                f"--{name} only changes or shows a folder of models, which the server does not do"
            )
    if said.get("task", "embeddings") not in _TASKS:
        raise InputError(f"--task {said['task']}: only embeddings are served")


def _sources(said: Mapping[str, Any], notes: list[str]) -> tuple[tuple[ModelSource, ...], Path | None]:
    """Return the models the flags name, and the folder of models that is watched."""
    more = _of_all(said, notes)
    if "config_path" in said:
        for other in ("model_path", "model_repository_path", "source_model"):
            if other in said:
                raise InputError(f"--config_path and --{other} exclude each other")
        entries = ovms_layout.read_config(Path(said["config_path"]))
        return tuple(_source(entry, more, notes) for entry in entries), None
    name, root = said.get("model_name"), said.get("model_repository_path")
    if "model_path" in said:
        if name is None:
            raise InputError("--model_path needs --model_name, the name clients ask for")
        return (_named(str(name), Path(said["model_path"]), more),), None
    named = said.get("source_model", name)
    if root is not None and named is not None:
        return (_named(str(name or named), Path(root) / str(named), more),), None
    if named is not None:
        raise InputError("--model_name needs --model_path, or --model_repository_path, to say where it lies")
    return (), None if root is None else Path(root)


def _named(name: str, folder: Path, more: Mapping[str, Any]) -> ModelSource:
    if not folder.is_dir():
        raise ConfigError(f"model {name} should be in {folder}, which is no folder")
    return ModelSource(name, str(folder.absolute()), **more)


def _source(entry: ovms_layout.Entry, more: Mapping[str, Any], notes: list[str]) -> ModelSource:
    folder = entry.folder
    if entry.versions:
        version = max(entry.versions, key=int)
        folder = (ovms_layout.versions_of(folder) or folder) / version
        if not folder.is_dir():
            raise ConfigError(
                f"model {entry.name}: version {version} should be in {folder}, which is no folder"
            )
        notes.append(f"model {entry.name}: version {version} is served and no other, as its policy says")
    notes += [
        f"model {entry.name}: {name} has no meaning here and is left out" for name in entry.said.ignored
    ]
    own: dict[str, Any] = {"device": entry.said.device, "streams": entry.said.streams}
    if entry.said.truncate:
        own["long_text"] = "truncate"
    return ModelSource(entry.name, str(folder.absolute()), **{**own, **more})


def _of_all(said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return what the flags say of every model: device and streams."""
    found: dict[str, Any] = {}
    if "target_device" in said:
        found["device"] = str(said["target_device"])
    if "plugin_config" in said:
        streams, unknown = ovms_layout.read_plugin_config(said["plugin_config"], "the flag")
        notes += [f"{name} has no meaning here and is left out" for name in unknown]
        if streams is not None:
            found["streams"] = streams
    return found


def _key(said: Mapping[str, Any], notes: list[str]) -> str | None:
    """Return the key of `--api_key_file`, or of API_KEY as that server reads it."""
    if "api_key_file" in said:
        path = Path(said["api_key_file"])
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    key = environment().get("API_KEY")
    if key:
        notes.append("the key is that of the variable API_KEY")
    return key or None


def _level(said: Mapping[str, Any]) -> str | None:
    if "log_level" not in said:
        return None
    level = str(said["log_level"]).upper()
    if level not in LEVELS:
        raise unknown_name("log level", level, LEVELS)
    return LEVELS[level]


def _number(said: Mapping[str, Any], name: str, *, most: int = 1_000_000) -> int:
    text = str(said[name])
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise InputError(f"--{name} {text}: a whole number up to {most} is wanted")
    return int(text)
