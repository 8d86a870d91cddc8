"""Settings, and the only place that reads the environment.

Order: argument, environment (`VECMILL_…`), `vecmill.toml`, default. `vecmill.toml` is read from the current
directory and then from `VECMILL_HOME`; the first one that has a value gives it. A key it does not know is an
error; the tables `[aliases]` and `[profiles]` are kept for later versions.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vecmill.core.errors import ConfigError

ORIGIN_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set.

    Attributes:
        home: State: the list of jobs, registered models, limits, keys.
        cache_dir: What can be made again: compiled models, pulled models, cached vectors.
        model: The model of commands that are given none.
        threads: Threads of local inference; 0 takes every core the process may use.
        confirm_above_usd: Ask before spending more, at a terminal only.

    Paths may be given as strings.
    """

    home: Path
    cache_dir: Path
    model: str = "minilm"
    threads: int = 0
    confirm_above_usd: float = 1.0

    def __post_init__(self) -> None:
        for name in ("home", "cache_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)).expanduser())

    @property
    def origins(self) -> dict[str, str]:
        """Return where each value comes from: an environment variable, a file or "default"."""
        return _origins(self)


def environment() -> Mapping[str, str]:
    """Return the process environment. Everything that needs a variable asks here."""
    return os.environ


def load_settings(**arguments: Any) -> Settings:
    """Gather the settings; an argument that is None counts as not given.

    Raises:
        ConfigError: A file cannot be read or has an unknown key, or a value is not of its type.
    """
    values: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        if arguments.get(name) is not None:
            values[name] = _convert(name, kind, arguments[name], "the argument")
            continue
        found = _find(name)
        values[name] = _convert(name, kind, *found) if found is not None else _default(name)
    return Settings(**values)


_KINDS: dict[str, type] = {
    "home": Path,
    "cache_dir": Path,
    "model": str,
    "threads": int,
    "confirm_above_usd": float,
}

_RESERVED = ("aliases", "profiles")
"""Tables of `vecmill.toml` that later versions read."""


def _find(name: str) -> tuple[Any, str] | None:
    variable = f"VECMILL_{name.upper()}"
    if value := os.environ.get(variable):
        return value, variable
    for path in _files(with_home=name != "home"):
        table = _read(path)
        if name in table:
            return table[name], str(path)
    return None


def _files(*, with_home: bool) -> list[Path]:
    files = [Path("vecmill.toml")]
    if with_home:
        home = os.environ.get("VECMILL_HOME")
        files.append((Path(home) if home else _platform_dir("data")) / "vecmill.toml")
    return [path for path in files if path.is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for name in table:
        if name not in _KINDS and not (name in _RESERVED and isinstance(table[name], dict)):
            raise ConfigError(f"{path}: {name!r} is no setting; known: {', '.join((*_KINDS, *_RESERVED))}")
    return table


def _convert(name: str, kind: type, value: Any, origin: str) -> Any:
    wrong = isinstance(value, bool) or (kind is int and isinstance(value, float))
    wrong = wrong or (kind in (str, Path) and not isinstance(value, str | Path))
    try:
        converted = Path(value).expanduser() if kind is Path else kind(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ConfigError(f"{name} = {value!r} from {origin} is not {_WORDS[kind]}") from error
    if wrong or (isinstance(converted, int | float) and not 0 <= converted < float("inf")):
        raise ConfigError(f"{name} = {value!r} from {origin} is not {_WORDS[kind]}")
    return converted


_WORDS: dict[type, str] = {
    Path: "a path",
    str: "a text",
    int: "a whole number of at least 0",
    float: "a number of at least 0",
}


def _default(name: str) -> Any:
    if name == "home":
        return _platform_dir("data")
    if name == "cache_dir":
        return _platform_dir("cache")
    return next(field.default for field in fields(Settings) if field.name == name)


def _platform_dir(kind: str) -> Path:
    home = Path.home()
    if sys.platform == "darwin":
        folder = home / "Library" / ("Caches" if kind == "cache" else "Application Support")
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        folder = folder / "vecmill"
        return folder / "cache" if kind == "cache" else folder
    elif kind == "cache":
        folder = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    else:
        folder = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return folder / "vecmill"


def _origins(settings: Settings) -> dict[str, str]:
    origins = {}
    for name in _KINDS:
        found = _find(name)
        same = found is not None and _convert(name, _KINDS[name], *found) == getattr(settings, name)
        if same and found is not None:
            origins[name] = found[1]
        else:
            origins[name] = ORIGIN_DEFAULT if _default(name) == getattr(settings, name) else "argument"
    return origins
