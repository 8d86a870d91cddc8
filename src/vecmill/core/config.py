"""Settings and profiles, and the only place that reads the environment.

Order: argument, environment (`VECMILL_…`), `vecmill.toml`, default. `vecmill.toml` is read from the current
directory and then from `VECMILL_HOME`; the first one that has a value gives it, and a profile or alias of the
first hides one of that name in the second. A key it does not know is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vecmill.core.errors import ConfigError, unknown_name

ORIGIN_DEFAULT = "default"

FILE_NAME = "vecmill.toml"

SECRET_SCHEMES = ("env", "file", "keyring", "keyvault")
"""How a reference to a secret begins: "env:NAME"; see `core.secrets.resolve_secret`."""

CACHE_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class Profile:
    """A hosted model as `[profiles.NAME]` of `vecmill.toml` describes it. None: the file does not say.

    Attributes:
        name: NAME, by which the model is asked for.
        origin: The file it stands in.
        project: Whether that is the file of the current directory, which somebody else may have written.
        digest: BLAKE2b-128 of the file's bytes as they were read, 32 hex digits.
        provider: "openai", "azure" or "github".
        model: The model's own name; of an Azure deployment, which model it serves.
        deployment: Azure's name of the deployment.
        base_url: Where it is asked: "https://HOST/v1", or the endpoint of an Azure resource.
        key: A reference to the key, such as "env:NAME"; never the key.
        auth: "key", "entra", or "none": send no key that lies in the environment.
        api_version: Azure's; "v1" for the form without versions.
        organization, project_id: OpenAI's; the organization of GitHub's form for organizations. The file
            says `project` for `project_id`.
        headers: Sent with each request; a value may be a reference to a secret.
        allow_http: Allow a key over plain http:// to a host that is not this machine or a private one.
        requests_per_minute, tokens_per_minute: What the account is allowed.
        max_concurrency: Requests in flight at most.
        timeout: Seconds one request may take.
        max_inputs, max_request_tokens: Limits of one request.
        max_tokens: Tokens one text may have.
        dimensions: Components of a full vector.
        mrl: Whether the first components are vectors themselves.
        normalized: Whether vectors have unit length.
        document_prefix, query_prefix: Put before texts of that role.
        query_model: The other one of a pair of models or deployments, for queries.
        usd_per_million_tokens, batch_usd_per_million_tokens: Prices.
        user: Told to the provider as the end user.
    """

    name: str
    origin: str = ""
    project: bool = False
    digest: str = ""
    provider: str = "openai"
    model: str | None = None
    deployment: str | None = None
    base_url: str | None = None
    key: str | None = None
    auth: str | None = None
    api_version: str | None = None
    organization: str | None = None
    project_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    allow_http: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    timeout: float | None = None
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    max_tokens: int | None = None
    dimensions: int | None = None
    mrl: bool | None = None
    normalized: bool | None = None
    document_prefix: str | None = None
    query_prefix: str | None = None
    query_model: str | None = None
    usd_per_million_tokens: float | None = None
    batch_usd_per_million_tokens: float | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class ProjectSays:
    """Settings of a project's file that count for keys only where the file is trusted.

    Attributes:
        path, digest: The file, and BLAKE2b-128 of its bytes as they were read.
        values: `ca_file`, and a `confirm_above_usd` above the user's own.
    """

    path: Path
    digest: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set.

    Attributes:
        home: State: the list of jobs, registered models, limits, keys.
        cache_dir: What can be made again: compiled models, pulled models, cached vectors.
        model: The model of commands that are given none.
        threads: Threads of local inference; 0 takes every core the process may use.
        confirm_above_usd: Ask before spending more, at a terminal only.
        cache: Whether vectors are kept: "on", "off", or "auto": those that cost money.
        cache_max_bytes: What the kept vectors may take on disk; least recently used ones go first.
        ca_file: Certificates (PEM) that are believed beside the system's, for a proxy or an inside endpoint.
        profiles: Hosted models by name.
        aliases: Foreign names and what they stand for.
        said_by_project: What of this a project's file says that needs trust; `load_settings` notes it.

    Paths may be given as strings.
    """

    home: Path
    cache_dir: Path
    model: str = "minilm"
    threads: int = 0
    confirm_above_usd: float = 1.0
    cache: str = "auto"
    cache_max_bytes: int = 10 * 1024**3
    ca_file: Path | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict, hash=False)
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    said_by_project: ProjectSays | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("home", "cache_dir", "ca_file"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(value).expanduser())

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
    for name in _KINDS:
        if arguments.get(name) is not None:
            values[name] = _convert(name, arguments[name], "the argument")
            continue
        found = _find(name)
        values[name] = _convert(name, *found) if found is not None else _default(name)
    profiles: dict[str, Profile] = {}
    aliases: dict[str, str] = {}
    for path in _files(with_home=True):
        table, digest = _read(path)
        for name, given in table.get("profiles", {}).items():
            profiles.setdefault(name, _profile(name, given, path, digest))
        for name, stands in table.get("aliases", {}).items():
            aliases.setdefault(name, _text(f"aliases.{name}", stands, path))
    for name, kind in (("profiles", profiles), ("aliases", aliases)):
        values[name] = kind if arguments.get(name) is None else arguments[name]
    return Settings(**values, said_by_project=_said_by_project(values, arguments))


def _said_by_project(values: Mapping[str, Any], arguments: Mapping[str, Any]) -> ProjectSays | None:
    """Note what needs trust now: later another folder may be the current one."""
    path = project_file()
    if path is None:
        return None
    table, digest = _read(path)
    said: dict[str, Any] = {
        name: values[name]
        for name in ("ca_file", "confirm_above_usd")
        if name in table and arguments.get(name) is None and not os.environ.get(f"VECMILL_{name.upper()}")
    }
    if said.get("confirm_above_usd", 0.0) <= _own_confirm_above_usd():
        said.pop("confirm_above_usd", None)
    return ProjectSays(path, digest, said) if said else None


def _own_confirm_above_usd() -> float:
    path = user_home() / FILE_NAME
    table = _read(path)[0] if path.is_file() else {}
    value = table.get("confirm_above_usd", _default("confirm_above_usd"))
    own: float = _convert("confirm_above_usd", value, str(path))
    return own


def user_home() -> Path:
    """Return the folder of state that no project's file can move: `VECMILL_HOME`, or the platform's."""
    home = os.environ.get("VECMILL_HOME")
    return Path(home).expanduser() if home else _platform_dir("data")


def project_file() -> Path | None:
    """Return the current directory's `vecmill.toml`, absolute, unless it is the user's own."""
    path = Path(FILE_NAME)
    if not path.is_file() or path.resolve() == (user_home() / FILE_NAME).resolve():
        return None
    return path.resolve()


# Settings: kinds of values.


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a value is converted, and what it should have been: `convert` raises ValueError or TypeError."""

    convert: Callable[[Any], Any]
    words: str


def _refuse(value: object) -> Any:
    raise ValueError(value)


def _to_path(value: Any) -> Path:
    return Path(value).expanduser() if isinstance(value, str | Path) else _refuse(value)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(value)


def _to_int(value: Any) -> int:
    if isinstance(value, bool | float):
        _refuse(value)
    number = int(value)
    return number if number >= 0 else _refuse(value)


def _to_count(value: Any) -> int:
    return _to_int(value) or _refuse(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        _refuse(value)
    number = float(value)
    return number if 0 <= number < float("inf") else _refuse(value)


def _to_positive(value: Any) -> float:
    return _to_float(value) or _refuse(value)


def _to_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(value)


def _one_of(choices: tuple[str, ...]) -> _Kind:
    words = f"one of {', '.join(choices)}"
    return _Kind(lambda value: value if value in choices else _refuse(value), words)


_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}


def _to_bytes(value: Any) -> int:
    if not isinstance(value, str):
        return _to_int(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.replace("_", ""), re.IGNORECASE)
    if match is None or match[2].lower() not in _UNITS:
        return _refuse(value)  # type: ignore[no-any-return]  # it raises
    return int(float(match[1]) * _UNITS[match[2].lower()])


_PATH = _Kind(_to_path, "a path")
_TEXT = _Kind(_to_text, "a text")
_INT = _Kind(_to_int, "a whole number of at least 0")
_COUNT = _Kind(_to_count, "a whole number of at least 1")
_FLOAT = _Kind(_to_float, "a number of at least 0")
_POSITIVE = _Kind(_to_positive, "a number above 0")
_BOOL = _Kind(_to_bool, "true or false")

_KINDS: dict[str, _Kind] = {
    "home": _PATH,
    "cache_dir": _PATH,
    "model": _TEXT,
    "threads": _INT,
    "confirm_above_usd": _FLOAT,
    "cache": _one_of(CACHE_CHOICES),
    "cache_max_bytes": _Kind(_to_bytes, 'a number of bytes, such as 500_000_000 or "10 GiB"'),
    "ca_file": _PATH,
}

_TABLES = ("aliases", "profiles")


def _convert(name: str, value: Any, origin: str) -> Any:
    return _converted(_KINDS[name], name, value, origin)


def _converted(kind: _Kind, name: str, value: Any, origin: str) -> Any:
    try:
        return kind.convert(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ConfigError(f"{name} = {value!r} from {origin} is not {kind.words}") from error


def _text(name: str, value: Any, path: Path) -> str:
    text: str = _converted(_TEXT, name, value, str(path))
    return text


# Settings: where values are.


def _find(name: str) -> tuple[Any, str] | None:
    variable = f"VECMILL_{name.upper()}"
    if value := os.environ.get(variable):
        return value, variable
    for path in _files(with_home=name != "home"):
        table, _ = _read(path)
        if name in table:
            return table[name], str(path)
    return None


def _files(*, with_home: bool) -> list[Path]:
    files = [Path(FILE_NAME)]
    if with_home:
        files.append(user_home() / FILE_NAME)
    return [path for path in files if path.is_file()]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        raw = path.read_bytes()
        table = tomllib.loads(raw.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for name in table:
        if name not in _KINDS and not (name in _TABLES and isinstance(table[name], dict)):
            raise ConfigError(f"{path}: {name!r} is no setting; known: {', '.join((*_KINDS, *_TABLES))}")
    return table, hashlib.blake2b(raw, digest_size=16).hexdigest()


def _default(name: str) -> Any:
    if name == "home":
        return _platform_dir("data")
    if name == "cache_dir":
        return _platform_dir("cache")
    return next(entry.default for entry in fields(Settings) if entry.name == name)


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
        same = found is not None and _convert(name, *found) == getattr(settings, name)
        if same and found is not None:
            origins[name] = found[1]
        else:
            origins[name] = ORIGIN_DEFAULT if _default(name) == getattr(settings, name) else "argument"
    return origins


# Profiles.

PROFILE_PROVIDERS = ("openai", "azure", "github")

_PROFILE_KINDS: dict[str, _Kind] = {
    "provider": _one_of(PROFILE_PROVIDERS),
    "model": _TEXT,
    "deployment": _TEXT,
    "base_url": _TEXT,
    "key": _TEXT,
    "auth": _one_of(("key", "entra", "none")),
    "api_version": _TEXT,
    "organization": _TEXT,
    "project": _TEXT,
    "headers": _Kind(dict, "a table"),
    "allow_http": _BOOL,
    "requests_per_minute": _COUNT,
    "tokens_per_minute": _COUNT,
    "max_concurrency": _COUNT,
    "timeout": _POSITIVE,
    "max_inputs": _COUNT,
    "max_request_tokens": _COUNT,
    "max_tokens": _COUNT,
    "dimensions": _COUNT,
    "mrl": _BOOL,
    "normalized": _BOOL,
    "document_prefix": _TEXT,
    "query_prefix": _TEXT,
    "query_model": _TEXT,
    "usd_per_million_tokens": _FLOAT,
    "batch_usd_per_million_tokens": _FLOAT,
    "user": _TEXT,
}

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OUR_HEADERS = frozenset(
    ("authorization", "api-key", "connection", "content-encoding", "content-length", "content-type", "cookie")
) | {"host", "transfer-encoding"}
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(?i)bearer\s|basic\s|sk-|gh[a-z]_|github_pat_|eyJ|[0-9a-f]{32}|(?=\S*\d)(?=\S*[a-z])\S{40}"
)


def _profile(name: str, given: Any, path: Path, digest: str) -> Profile:
    place = f"profiles.{name}"
    if not re.fullmatch(r"[^\s:/\\~.][^\s:/\\~]*", name):
        raise ConfigError(f"{path}: {name!r} cannot be a profile's name: leave out blanks, ':', '/' and '~'")
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: {place} is not a table: write [{place}]")
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _PROFILE_KINDS:
            raise ConfigError(f"{path}, [{place}]: {unknown_name('key', key, _PROFILE_KINDS)}")
        if key == "key":
            _refuse_literal(place, value, path)
        if key == "headers" and not isinstance(value, dict):
            raise ConfigError(f"{path}: {place}.headers is not a table")  # its value may be a secret
        if key == "base_url" and isinstance(value, str):
            _refuse_secret_url(f"{place}.base_url", value, path)
        converted = _converted(_PROFILE_KINDS[key], f"{place}.{key}", value, str(path))
        values["project_id" if key == "project" else key] = converted
    values["headers"] = _headers(place, values.get("headers", {}), path)
    values.setdefault("provider", name if name in PROFILE_PROVIDERS else "openai")
    theirs = path.resolve() == project_file()
    return Profile(name, str(path.resolve()), theirs, digest, **values)


def _refuse_literal(place: str, value: Any, path: Path) -> None:
    """Refuse a key written into the file; the message never shows it."""
    if is_reference(value):
        _refuse_key_as_name(f"{place}.key", value, path)
        return
    raise ConfigError(
        f"{path}: {place}.key is not a reference, and a key itself does not belong into this file: put it "
        f'into a variable and write key = "env:OPENAI_API_KEY", or "file:PATH", "keyring:SERVICE/USER", '
        f'"keyvault:VAULT/SECRET"'
    )


_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEY_AS_NAME = re.compile(r"gh[a-z]_\w{16}|github_pat_|eyJ\w{16}|[0-9a-f]{32}|[0-9A-F]{32}")


def _refuse_key_as_name(where: str, reference: str, path: Path) -> None:
    """Refuse "env:" followed by the key itself: names of variables are shown."""
    scheme, _, name = reference.partition(":")
    if scheme == "env" and (not _VARIABLE.fullmatch(name.strip()) or _KEY_AS_NAME.match(name.strip())):
        raise ConfigError(
            f'{path}: {where}: what follows "env:" is no name of a variable; put the key into one, such as '
            f"OPENAI_API_KEY, and write its name"
        )


_URL_LOGIN = re.compile(r"(?:\w*:)?(?://)?[^/?#]*@")
_URL_SECRET = re.compile(r"[?&;][^=&;]*(?:key|token|secret|sig|password)[^=&;]*=", re.IGNORECASE)


def _refuse_secret_url(where: str, url: str, path: Path) -> None:
    """Refuse an address with a login or key in it, which would be shown with the profile."""
    if _URL_LOGIN.match(url) or _URL_SECRET.search(url):
        raise ConfigError(
            f"{path}: {where} holds a login or key: leave out what stands before '@' and keys after '?'; "
            f'write key = "env:NAME"'
        )


def is_reference(value: object) -> bool:
    """Say whether a value is a reference to a secret, such as "env:NAME"."""
    if not isinstance(value, str):
        return False
    scheme, colon, rest = value.partition(":")
    return bool(colon and rest.strip()) and scheme in SECRET_SCHEMES


def _headers(place: str, given: Mapping[str, Any], path: Path) -> dict[str, str]:
    headers = {}
    for name, value in given.items():
        where = f"{path}: {place}.headers.{name}"
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OUR_HEADERS:
            raise ConfigError(f"{where}: a profile cannot set such a header; for the login write key = …")
        if not isinstance(value, str):
            raise ConfigError(f"{where} is not a text")
        if is_reference(value):
            _refuse_key_as_name(f"{place}.headers.{name}", value, path)
        else:
            if _SECRET_HEADER.search(name) or _SECRET_VALUE.match(value):
                raise ConfigError(f'{where} may be a secret: put it into a variable and write "env:NAME"')
            if not value.isprintable() or not value.isascii():
                raise ConfigError(f"{where} has characters a header cannot carry")
        headers[name] = value
    return headers
